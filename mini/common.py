"""What the three training scripts of this folder share: reading the data, cleaning it, the schedule, the
classifiers' training loop, and saving a model with its card.

The data come either from the Hub (`stanfordnlp/imdb`, `stanfordnlp/sst2`) or from local parquet files:
IMDB with the columns `split` (train, test, unsupervised), `label` (0 negative, 1 positive, -1 none) and `text`;
SST-2 with `split` (train, validation), `label` and `sentence`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

BUCKETS = 1 << 21  # of the teacher's n-grams
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def clean(text: str) -> str:
    """Drop the HTML line breaks of the IMDB dump and squeeze every run of blanks to one space."""
    return " ".join(_BREAK.sub(" ", text).split())


# Data ------------------------------------------------------------------------------------------------------


def read_imdb(path: str | None) -> pd.DataFrame:
    """`split`, `label`, `text` (cleaned). Sorted by label as published: shuffle before taking a slice."""
    if path:
        frame = pd.read_parquet(path, columns=["split", "label", "text"])
    else:
        from datasets import load_dataset

        splits = load_dataset("stanfordnlp/imdb")
        parts = [splits[name].to_pandas().assign(split=name) for name in ("train", "test", "unsupervised")]
        frame = pd.concat(parts, ignore_index=True)
    frame["text"] = [clean(t) for t in frame["text"]]
    frame["split"] = frame["split"].astype(object)
    return frame[["split", "label", "text"]]


def read_sst2(path: str | None) -> pd.DataFrame:
    """`split`, `label`, `text`."""
    if path:
        frame = pd.read_parquet(path, columns=["split", "label", "sentence"])
    else:
        from datasets import load_dataset

        splits = load_dataset("stanfordnlp/sst2")
        parts = [splits[name].to_pandas().assign(split=name) for name in ("train", "validation")]
        frame = pd.concat(parts, ignore_index=True)
    frame = frame.rename(columns={"sentence": "text"})
    frame["text"] = [clean(t) for t in frame["text"]]
    frame["split"] = frame["split"].astype(object)
    return frame[["split", "label", "text"]]


def held_out_reviews(imdb: pd.DataFrame, n: int) -> np.ndarray:
    """Row numbers of the `n` test reviews the language model never sees (always the same ones)."""
    return imdb[imdb["split"] == "test"].sample(n=n, random_state=0).index.to_numpy()


# Training ---------------------------------------------------------------------------------------------------


class Schedule:
    """Learning-rate factor: up to 1 in `warmup` steps, and down to `floor` at the end of the run.

    The end is a number of steps or of minutes. With minutes the run ends on time on a busy machine too, and still
    gets its whole cool-down, without which a small model is a few percent worse.
    """

    def __init__(
        self, steps: int, minutes: float, warmup: int, shape: str = "linear", floor: float = 0.0, step: int = 0,
        elapsed: float = 0.0,
    ):  # fmt: skip
        self.steps, self.minutes, self.warmup, self.shape, self.floor = steps, minutes, warmup, shape, floor
        self.step, self.start = step, time.monotonic() - elapsed
        self.seen = 0  # texts

    @property
    def elapsed(self) -> float:
        """Seconds."""
        return time.monotonic() - self.start

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end."""
        if not self.steps and not self.minutes:
            return 1.0
        by_steps = self.step / self.steps if self.steps else 0.0
        by_time = self.elapsed / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    @property
    def done(self) -> bool:
        return self.progress >= 1.0

    def factor(self) -> float:
        left = 1.0 - self.progress
        if self.shape == "cosine":
            left = 0.5 * (1.0 - math.cos(math.pi * left))
        return min((self.step + 1) / max(self.warmup, 1), 1.0) * (self.floor + (1.0 - self.floor) * left)

    def eta(self) -> str:
        left = self.elapsed * (1 / max(self.progress, 1e-6) - 1)
        return f"{self.elapsed / 60:.1f} min, eta {left / 60:.1f} min"


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps, for the hidden matrices. Steps are scaled by 0.2 sqrt(longer side), which
    makes a learning rate mean what it means for AdamW (Liu et al. 2025, arXiv 2502.16982).

    torch.optim.Muon does the same in bf16, which a CPU without bf16 only emulates: most of a small model's step.
    """

    def __init__(self, weights: list[torch.Tensor], lr: float, weight_decay: float):
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                momentum = state.setdefault("momentum_buffer", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                step = orthogonal(p.grad.lerp(momentum, 0.95))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(step, alpha=-0.2 * math.sqrt(max(p.shape)) * group["lr"])


def orthogonal(g: torch.Tensor) -> torch.Tensor:
    """About U V^T of g = U S V^T, by five Newton-Schulz steps: the singular values come to 0.7 to 1.2."""
    x = g.to(torch.bfloat16 if g.is_cuda else torch.float32)
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.T if g.shape[0] > g.shape[1] else x).to(g.dtype)


def add_machine_flags(p: argparse.ArgumentParser) -> None:
    """The flags of `start_run`, and --compile."""
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=0, help="CPU threads (0: all)")
    p.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto", help="of the matrix products")
    p.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile (1 minute)"
    )


def start_run(args: argparse.Namespace) -> tuple[str, torch.dtype]:
    """Seed and threads set; device, and the dtype of the matrix products.

    By default that is bf16 where the hardware multiplies it natively (GPUs since Ampere, AVX512-BF16, AMX), or fp32.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.dtype != "auto":
        bf16 = args.dtype == "bf16"
    elif device == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        bf16 = "avx512_bf16" in flags or "amx_bf16" in flags
    return device, torch.bfloat16 if bf16 else torch.float32


# Classifiers ------------------------------------------------------------------------------------------------


def train_wordpiece(texts: Iterable[str], vocab_size: int, positions: int) -> PreTrainedTokenizerFast:
    """Lower-cased WordPiece with BERT's special tokens and [CLS] ... [SEP] around the text."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    piece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    # SST-2 is written "do n't", real text "don't": made one here, so that it is one for every user of the model
    piece.normalizer = normalizers.Sequence(
        [normalizers.BertNormalizer(lowercase=True), normalizers.Replace(" n't", "n't")]
    )
    piece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    piece.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    piece.train_from_iterator(texts, trainer)
    piece.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", piece.token_to_id("[CLS]")), ("[SEP]", piece.token_to_id("[SEP]"))],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=piece,
        model_max_length=positions,
        model_input_names=["input_ids", "attention_mask"],
        mask_token="[MASK]",
        **names,
    )


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[np.ndarray]:
    """Token ids of each text, without special tokens, not cut."""
    backend, rows = tokenizer.backend_tokenizer, []
    backend.no_truncation()
    backend.no_padding()
    for i in range(0, len(texts), 2000):
        for e in backend.encode_batch_fast(texts[i : i + 2000], add_special_tokens=False):
            rows.append(np.array(e.ids, dtype=np.int64))
    return rows


def ppmi_vectors(
    rows: list[np.ndarray], vocab: int, width: int, reach: int = 5, directed: bool = False
) -> torch.Tensor:
    """Word vectors by factoring co-occurrence counts: what GloVe does, in half a minute and without training.

    PPMI(a, b) = max(0, log p(a, b) / (p(a) p(b))), counts within `reach` tokens weighted 1/distance, context
    probabilities smoothed by ^0.75 (Levy et al. 2015); vectors are U sqrt(S) of its truncated SVD, rows scaled to
    a root mean square of 0.05. Directed, counts tell before from after: half of a vector says what follows the word
    (U sqrt(S)), half what it follows (V sqrt(S)), and the product of the one's with the other's how well two words fit.
    """
    gap = np.full(reach, -1)
    stream = np.concatenate([part for row in rows for part in (row, gap)]) if rows else gap
    counts = np.zeros(vocab * vocab, dtype=np.float32)
    for d in range(1, reach + 1):
        for block in np.array_split(np.arange(len(stream) - d), max(1, len(stream) // 10_000_000)):
            a, b = stream[block], stream[block + d]
            keep = (a >= 0) & (b >= 0)
            counts += np.bincount(a[keep] * vocab + b[keep], minlength=vocab * vocab).astype(np.float32) / d
    joint = torch.from_numpy(counts).view(vocab, vocab)
    if not directed:
        joint = joint + joint.T
    context = joint.sum(0) ** 0.75
    expected = joint.sum(1, keepdim=True) * (context / context.sum())
    ppmi = torch.log(joint / expected.clamp_min(1e-9) + 1e-9).clamp_min(0)
    u, s, v = torch.svd_lowrank(ppmi, q=min(width // 2 if directed else width, vocab), niter=3)
    vectors = torch.zeros(vocab, width)
    vectors[:, : len(s)] = u * s.sqrt()
    if directed:
        vectors[:, width // 2 : width // 2 + len(s)] = v * s.sqrt()
    return 0.05 * vectors / vectors.pow(2).mean(1, keepdim=True).sqrt().clamp_min(1e-6)


def polarity(rows: list[np.ndarray], label: np.ndarray, vocab: int) -> torch.Tensor:
    """Naive-Bayes log-count ratio of each token, log (p + 1)/|p| - log (q + 1)/|q|, p its count in positive texts."""
    p, q = (
        np.bincount(np.concatenate([r for r, y in zip(rows, label, strict=True) if y == k]), minlength=vocab)
        + 1.0
        for k in (1, 0)
    )
    return torch.from_numpy(np.log(p / p.sum()) - np.log(q / q.sum())).float()


def window(words: list[str], low: int, high: int, rng: np.random.Generator) -> str:
    """`low` to `high` consecutive words from anywhere in the text (the whole text if it is shorter)."""
    length = int(rng.integers(low, high + 1))
    start = int(rng.integers(max(len(words) - length, 0) + 1))
    return " ".join(words[start : start + length])


def batches(
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    targets: np.ndarray,
    budget: int,
    positions: int,
    rng: np.random.Generator,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batches of about `budget` tokens each, of texts of about one length: padding costs next to nothing."""
    ids = [row[: positions - 2] for row in token_ids(tokenizer, texts)]
    cls, sep, pad = (tokenizer.convert_tokens_to_ids(t) for t in ("[CLS]", "[SEP]", "[PAD]"))
    order = np.argsort([len(row) for row in ids], kind="stable")
    groups: list[list[int]] = []
    group: list[int] = []
    for i in order:
        if group and (len(ids[i]) + 2) * (len(group) + 1) > budget:
            groups.append(group)
            group = []
        group.append(i)
    groups.append(group)
    for k in rng.permutation(len(groups)):
        group = groups[k]
        block = np.full((len(group), max(len(ids[i]) for i in group) + 2), pad)
        for r, i in enumerate(group):
            block[r, : len(ids[i]) + 2] = [cls, *ids[i], sep]
        block = torch.from_numpy(block)
        yield block, (block != pad).long(), torch.from_numpy(targets[group]).float()


def classifier_parser(doc: str, out: Path, budget: int, lr: float, lr_rest: float) -> argparse.ArgumentParser:
    """The flags of `fit_classifier` and its data; each script adds its own."""
    p = argparse.ArgumentParser(description=doc.splitlines()[0])
    p.add_argument("--data", help="local imdb.parquet; default: stanfordnlp/imdb from the Hub")
    p.add_argument("--sst2", help="local sst2.parquet; default: stanfordnlp/sst2 from the Hub")
    p.add_argument("--out", type=Path, default=out, help="folder for the model")
    p.add_argument("--note", default="", help="a sentence for the card")
    p.add_argument("--minutes", type=float, default=0, help="length of training in minutes (0: by --steps)")
    p.add_argument("--steps", type=int, default=0, help="length of training in steps (0: by --minutes)")
    p.add_argument("--budget", type=int, default=budget, help="tokens a step")
    p.add_argument("--lr", type=float, default=lr, help="peak learning rate of Muon (hidden matrices)")
    p.add_argument(
        "--lr_rest", type=float, default=lr_rest, help="peak learning rate of AdamW (all the rest)"
    )
    p.add_argument("--weight_decay", type=float, default=0.05, help="of the hidden matrices")
    p.add_argument("--warmup", type=int, default=100, help="warm-up steps")
    p.add_argument("--smoothing", type=float, default=0.05, help="label smoothing")
    p.add_argument("--dropout", type=float, default=0.1)
    add_machine_flags(p)
    p.add_argument("--log_every", type=int, default=50, help="steps between progress lines")
    p.add_argument(
        "--watch_every", type=int, default=400, help="steps between looks at the development slice"
    )
    return p


def polarity_loss(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, p: torch.Tensor
) -> torch.Tensor:
    """The cross-entropy of the model's two classes to (1 - p, p), summed over the texts of a batch."""
    logp = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits.float(), -1)
    return -(p * logp[:, 1] + (1 - p) * logp[:, 0]).sum()


def fit_classifier(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pool: Callable[[np.random.Generator], tuple[list[str], np.ndarray]],
    schedule: Schedule,
    args: argparse.Namespace,
    dtype: torch.dtype,
    device: str,
    watch: Callable[[PreTrainedModel], str],
    loss_of: Callable[..., torch.Tensor] = polarity_loss,
) -> None:
    """Train with Muon on the hidden matrices and AdamW on the rest.

    `pool(rng)` gives some thousands of fresh texts and their targets P(positive) in [0, 1]; `loss_of(model, ids, mask,
    p)` the sum of a batch's losses. A batch counts by the number of its texts, so texts count alike whatever their
    length.
    """
    positions = model.config.max_position_embeddings
    named = dict(model.named_parameters())
    hidden = [n for n, p in named.items() if p.ndim == 2 and "embeddings." not in n and p.shape[0] > 2]
    matrices = Muon([named[n] for n in hidden], args.lr, args.weight_decay)
    adam = torch.optim.AdamW(
        [p for n, p in named.items() if n not in hidden], args.lr_rest, betas=(0.9, 0.98), weight_decay=0.01
    )
    peak = {id(g): g["lr"] for opt in (matrices, adam) for g in opt.param_groups}
    run = torch.compile(model, dynamic=True) if args.compile else model
    rng, model = np.random.default_rng(args.seed), model.train()
    losses, seen, last, last_seen = [], 0, time.monotonic(), 0
    while not schedule.done:
        for ids, mask, p in batches(tokenizer, *pool(rng), args.budget, positions, rng):
            if schedule.done:
                break
            factor = schedule.factor()
            for opt in (matrices, adam):
                for g in opt.param_groups:
                    g["lr"] = peak[id(g)] * factor
            p = (p * (1 - args.smoothing) + args.smoothing / 2).to(device)
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                loss = loss_of(run, ids.to(device), mask.to(device), p)
            (loss / 64).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            matrices.step()
            adam.step()
            matrices.zero_grad()
            adam.zero_grad()
            schedule.step += 1
            seen += len(p)
            losses.append((loss.item(), len(p)))
            if not math.isfinite(losses[-1][0]):  # before it is saved
                raise SystemExit("the loss is not finite: lower --lr")
            if schedule.step % args.log_every == 0:
                now = time.monotonic()
                mean = sum(x for x, _ in losses) / sum(n for _, n in losses)
                print(
                    f"step {schedule.step} | {seen:,} texts | loss {mean:.4f} | lr x {factor:.3f} | "
                    f"{(seen - last_seen) / (now - last):,.0f} texts/s | {schedule.eta()}",
                    flush=True,
                )
                losses, last, last_seen = [], now, seen
            if schedule.step % args.watch_every == 0:
                print(f"step {schedule.step} | {watch(model.eval())}", flush=True)
                model.train()
    schedule.seen = seen
    model.eval()


@torch.no_grad()
def positive(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], budget: int = 16384
) -> np.ndarray:
    """P(positive) of each text, cut at the model's positions."""
    positions, device = model.config.max_position_embeddings, model.device
    out = np.zeros(len(texts))
    # the texts' numbers travel in the place of targets, to undo the sorting by length
    numbers = np.arange(len(texts), dtype=np.float64)
    for ids, mask, which in batches(tokenizer, texts, numbers, budget, positions, np.random.default_rng(0)):
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float()
        out[which.long().numpy()] = logits.softmax(-1)[:, 1].cpu().numpy()
    return out


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, frame: pd.DataFrame) -> float:
    scores = positive(model, tokenizer, frame["text"].tolist())
    return float(((scores > 0.5) == (frame["label"].to_numpy() == 1)).mean())


# The teacher: logistic regression on n-grams ------------------------------------------------------------------


def ngrams(row: np.ndarray) -> np.ndarray:
    """The distinct 1-, 2- and 3-grams of token ids, hashed into BUCKETS."""
    one = row
    two = row[:-1] * 1_000_003 + row[1:] * 31 + 7
    three = row[:-2] * 998_244_353 + row[1:-1] * 1_000_003 + row[2:] * 31 + 11
    mixed = np.concatenate([one, two, three]) * 0x9E3779B1
    return np.unique((mixed ^ (mixed >> 17)) % BUCKETS)


def bags(rows: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """The flat list and the offsets that embedding_bag takes."""
    offsets = np.cumsum([0, *(len(r) for r in rows[:-1])])
    return torch.from_numpy(np.concatenate(rows)), torch.from_numpy(offsets)


def train_teacher(
    rows: list[np.ndarray], label: np.ndarray, seed: int, epochs: int = 4
) -> Callable[[list[np.ndarray]], np.ndarray]:
    """NB-LR (Wang and Manning 2012): features scaled by their naive-Bayes log-count ratio, then logistic regression.

    r_f = log (p_f / |p|) / (q_f / |q|), p and q the smoothed counts of feature f in positive and negative texts.
    Returns a function: rows of n-grams -> P(positive).
    """
    p, q = (
        np.bincount(
            np.concatenate([r for r, y in zip(rows, label, strict=True) if y == k]), minlength=BUCKETS
        )
        + 1.0
        for k in (1, 0)
    )
    ratio = torch.from_numpy(np.log((p / p.sum()) / (q / q.sum()))).float()
    # Each text's features are scaled to unit length, or long reviews would be scored more extremely than short ones.
    weight, bias = torch.ones(BUCKETS, 1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.02)

    def logit(group: list[np.ndarray]) -> torch.Tensor:
        flat, offsets = bags(group)
        value = ratio[flat]
        size = torch.segment_reduce(value**2, "sum", lengths=torch.tensor([len(r) for r in group])).sqrt()
        return (
            10 * F.embedding_bag(flat, weight, offsets, per_sample_weights=value, mode="sum")[:, 0] / size
            + bias
        )

    rng = np.random.default_rng(seed)
    target = torch.tensor(label, dtype=torch.float32)
    for _ in range(epochs):
        order = rng.permutation(len(rows))
        for i in range(0, len(order), 512):
            part = order[i : i + 512]
            loss = F.binary_cross_entropy_with_logits(logit([rows[j] for j in part]), target[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def score(rows: list[np.ndarray]) -> np.ndarray:
        parts = [torch.sigmoid(logit(rows[i : i + 2000])) for i in range(0, len(rows), 2000)]
        return torch.cat(parts).numpy()

    return score


# Saving -----------------------------------------------------------------------------------------------------


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path, card: str, metrics: dict
) -> None:
    """fp16 safetensors, tokenizer, README.md and metrics.json, swapped into place when all of it is written.

    The file is fp16 to halve the repository; config.json says float32 so that a plain `from_pretrained` gives
    fp32 weights, which is what a CPU is good at and what training wants.
    """
    new = out.with_name(f".{out.name}-new")
    shutil.rmtree(new, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(new)  # the caller goes on in fp32
    tokenizer.save_pretrained(new)
    (new / "model.safetensors").chmod(0o644)
    config = json.loads((new / "config.json").read_text())
    config["dtype"] = "float32"
    (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (new / "README.md").write_text(card)
    (new / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    old = out.with_name(f".{out.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def table(rows: Iterable[tuple[str, str]]) -> str:
    """A two-column Markdown table for the card."""
    return "\n".join(["| | |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows)])


def command_line(args: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The command that made a model, for its card: every flag that is not at its default, paths made generic."""
    words = ["python", f"mini/{parser.prog}"]
    generic = {"data": "path/to/imdb.parquet", "sst2": "path/to/sst2.parquet", "init": "path/to/earlier"}
    skip = {"out", "work", "resume", "threads", "save_every", "log_every", "watch_every", "note"}
    for name, value in vars(args).items():
        if name in skip or value == parser.get_default(name):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", str(generic.get(name, value))]
    return " ".join(words)
