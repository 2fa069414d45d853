"""What the training scripts of this folder share: the data, the training loop, the classifiers' tokenizer, word vectors
and teacher, and saving a model with its card.

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
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tokenizers import normalizers, processors
from tokenizers.implementations import BertWordPieceTokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

BUCKETS = 1 << 21  # of the teacher's n-grams
IMDB = """Large Movie Review Dataset (Maas et al., *Learning Word Vectors for Sentiment Analysis*,
ACL 2011; on the Hub as `stanfordnlp/imdb`)"""
RELEASED = """released by its authors for research,
without a standard licence text. None of its text is in this repository."""
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def clean(text: str) -> str:
    """Drop the HTML line breaks of the IMDB dump and squeeze every run of blanks to one space."""
    return " ".join(_BREAK.sub(" ", text).split())


# Data ------------------------------------------------------------------------------------------------------


def read(path: str | None, name: str, column: str) -> pd.DataFrame:
    """`split`, `label` and `text` (cleaned) of a parquet file, or of a data set of the Hub."""
    if path:
        frame = pd.read_parquet(path, columns=["split", "label", column])
    else:
        from datasets import load_dataset

        parts = [part.to_pandas().assign(split=split) for split, part in load_dataset(name).items()]
        frame = pd.concat(parts, ignore_index=True)
    frame["split"] = frame["split"].astype(object)
    frame["text"] = [clean(text) for text in frame[column]]
    return frame[["split", "label", "text"]]


def read_imdb(path: str | None) -> pd.DataFrame:
    """Sorted by label as published: shuffle before taking a slice."""
    return read(path, "stanfordnlp/imdb", "text")


def read_sst2(path: str | None) -> pd.DataFrame:
    return read(path, "stanfordnlp/sst2", "sentence")


def held_out_reviews(imdb: pd.DataFrame, n: int) -> np.ndarray:
    """Row numbers of the texts the language model never sees (always the same ones).

    They are those of the split `held_out`, which `corpus.py` makes, or else `n` of the test reviews.
    """
    marked = imdb[imdb["split"] == "held_out"]
    if marked.empty:
        marked = imdb[imdb["split"] == "test"].sample(n=n, random_state=0)
    return marked.index.to_numpy()


# Training ---------------------------------------------------------------------------------------------------


@dataclass
class Schedule:
    """Learning-rate factor: up to 1 in `warmup` steps, and down to 0 at the end of the run (cosine: to 0.05).

    The end is a number of steps or of minutes. With minutes the run ends on time on a busy machine too, and still
    gets its whole cool-down, without which a small model is a few percent worse.
    """

    steps: int
    minutes: float
    warmup: int
    cosine: bool = False
    step: int = 0  # done
    seen: int = 0  # texts or tokens trained on
    start: float = field(default_factory=time.monotonic)

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
        if self.cosine:
            left = 0.05 + 0.95 * 0.5 * (1.0 - math.cos(math.pi * left))
        return min((self.step + 1) / max(self.warmup, 1), 1.0) * left

    def eta(self) -> str:
        left = self.elapsed * (1 / max(self.progress, 1e-6) - 1)
        return f"{self.elapsed / 60:.1f} min, eta {left / 60:.1f} min"


def run_parser(
    doc: str, out: Path, steps: int, lr: float, warmup: int, log_every: int
) -> argparse.ArgumentParser:
    """The flags of every training script; each adds its own."""
    p = argparse.ArgumentParser(description=doc.splitlines()[0])
    p.add_argument("--data", help="local imdb.parquet; default: stanfordnlp/imdb from the Hub")
    p.add_argument("--out", type=Path, default=out, help="folder for the model")
    p.add_argument("--note", default="", help="a sentence for the card")
    p.add_argument("--steps", type=int, default=steps, help="length of training in steps (0: by --minutes)")
    p.add_argument("--minutes", type=float, default=0, help="length of training in minutes (0: by --steps)")
    p.add_argument("--lr", type=float, default=lr, help="peak learning rate of Muon (hidden matrices)")
    p.add_argument(
        "--lr_rest", type=float, default=0, help="peak learning rate of AdamW, all the rest (0: --lr)"
    )
    p.add_argument("--weight_decay", type=float, default=0.05, help="of the hidden matrices")
    p.add_argument("--warmup", type=int, default=warmup, help="warm-up steps")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=0, help="CPU threads (0: all)")
    p.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto", help="of the matrix products")
    p.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile (1 minute)"
    )
    p.add_argument("--log_every", type=int, default=log_every, help="steps between progress lines")
    return p


def start_run(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, str, torch.dtype]:
    """The flags; seed and threads set; the device, and the dtype of the matrix products.

    By default that is bf16 where the hardware multiplies it natively (GPUs since Ampere, AVX512-BF16, AMX), or fp32.
    """
    args = parser.parse_args()
    if not (args.steps or args.minutes or parser.get_default("steps")):
        parser.error("give the run a length: --minutes or --steps")
    if (
        args.out.exists() and not (args.out / "metrics.json").is_file()
    ):  # a model of these scripts is replaced
        parser.error(f"--out {args.out}: what stands there is no model of these scripts; name another folder")
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
    return args, device, torch.bfloat16 if bf16 else torch.float32


def make_optimizers(
    model: PreTrainedModel, args: argparse.Namespace, betas: tuple[float, float], decay_rest: float
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the rest."""
    outside = ("embeddings", "wte", "wpe")
    hidden: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, p in model.named_parameters():
        matrix = p.ndim == 2 and min(p.shape) > 2 and not any(word in name for word in outside)
        (hidden if matrix else rest).append(p)
    return [  # match_rms_adamw: a learning rate means what it means for AdamW (arXiv 2502.16982)
        torch.optim.Muon(hidden, args.lr, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, args.lr_rest or args.lr, betas=betas, weight_decay=decay_rest, fused=True),
    ]


def fit(
    model: PreTrainedModel,
    draw: Callable[[np.random.Generator], Iterator[tuple[torch.Tensor, ...]]],
    loss_of: Callable[..., tuple[torch.Tensor, int]],
    optimizers: list[torch.optim.Optimizer],
    schedule: Schedule,
    args: argparse.Namespace,
    dtype: torch.dtype,
    *,
    clip: float,
    unit: str,
    dynamic: bool = False,
    watch: Callable[[], str] | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Train the model in place, until the schedule is done.

    `draw(rng)` yields batches without end. `loss_of(model, *batch)` gives the sum of the losses, whose gradient is
    clipped to a norm of `clip`, and their number, which `schedule.seen` adds up; `unit` is its name. `dynamic`: batches
    differ in shape. `watch()` is printed every `args.watch_every` steps. With `checkpoint` the run is saved there every
    `args.save_every` minutes, and `args.resume` goes on from it, with other batches than an unbroken run would draw.
    """
    device = model.device
    groups = [group for opt in optimizers for group in opt.param_groups]
    peak = [group["lr"] for group in groups]
    if checkpoint and args.resume:
        load_checkpoint(checkpoint, model, optimizers, schedule)
    step = torch.compile(loss_of, dynamic=dynamic) if args.compile else loss_of
    batches = draw(np.random.default_rng([args.seed, schedule.step]))
    total, count, last, last_save = 0.0, 0, time.monotonic(), time.monotonic()
    model.train()
    while not schedule.done:
        factor = schedule.factor()
        for group, lr in zip(groups, peak, strict=True):
            group["lr"] = lr * factor
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss, n = step(model, *(part.to(device) for part in next(batches)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for opt in optimizers:
            opt.step()
            opt.zero_grad()
        if not math.isfinite(loss.item()):  # before it is saved
            raise SystemExit("the loss is not finite: lower --lr")
        schedule.step += 1
        schedule.seen += n
        total, count = total + loss.item(), count + n
        if schedule.step % args.log_every == 0:
            now = time.monotonic()
            print(
                f"step {schedule.step} | {schedule.seen:,} {unit} | loss {total / count:.4f} | lr x {factor:.3f} | "
                f"{count / (now - last):,.0f} {unit}/s | {schedule.eta()}",
                flush=True,
            )
            total, count, last = 0.0, 0, now
        if watch and schedule.step % args.watch_every == 0:
            model.eval()
            print(f"step {schedule.step} | {watch()}", flush=True)
            model.train()
        if checkpoint and (schedule.done or time.monotonic() - last_save > 60 * args.save_every):
            save_checkpoint(checkpoint, model, optimizers, schedule)
            last_save = time.monotonic()
    model.eval()


def save_checkpoint(
    path: Path, model: PreTrainedModel, optimizers: list[torch.optim.Optimizer], schedule: Schedule
) -> None:
    state = {"model": model.state_dict(), "optimizers": [opt.state_dict() for opt in optimizers]}
    state |= {"step": schedule.step, "seen": schedule.seen, "elapsed": schedule.elapsed}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_checkpoint(
    path: Path, model: PreTrainedModel, optimizers: list[torch.optim.Optimizer], schedule: Schedule
) -> None:
    state = torch.load(path, map_location=model.device, weights_only=True)
    model.load_state_dict(state["model"])
    for opt, saved in zip(optimizers, state["optimizers"], strict=True):
        opt.load_state_dict(saved)
    schedule.step, schedule.seen = state["step"], state["seen"]
    schedule.start = time.monotonic() - state["elapsed"]
    print(f"resumed at step {schedule.step}, {schedule.elapsed / 60:.1f} min", flush=True)


# Classifiers ------------------------------------------------------------------------------------------------


def train_wordpiece(texts: Iterable[str], vocab_size: int, positions: int) -> PreTrainedTokenizerFast:
    """Lower-cased WordPiece with BERT's special tokens and [CLS] ... [SEP] around the text."""
    piece = BertWordPieceTokenizer()
    # SST-2 is written "do n't", real text "don't": made one here, so that it is one for every user of the model
    piece.normalizer = normalizers.Sequence([piece.normalizer, normalizers.Replace(" n't", "n't")])
    piece.train_from_iterator(iter(texts), vocab_size, min_frequency=0, show_progress=False)
    piece.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # after [PAD] and [UNK]
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(
        tokenizer_object=piece._tokenizer,
        model_max_length=positions,
        model_input_names=["input_ids", "attention_mask"],
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


def polarity(rows: list[np.ndarray], label: np.ndarray, n: int) -> torch.Tensor:
    """Naive-Bayes log-count ratio of each of `n` features: log (p + 1)/|p| - log (q + 1)/|q|.

    p is the feature's count in the positive texts, q that in the negative ones.
    """
    p, q = (
        np.bincount(np.concatenate([r for r, y in zip(rows, label, strict=True) if y == k]), minlength=n)
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
    rng: np.random.Generator,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Batches (ids, mask, targets) of about `budget` tokens each, of texts of about one length: little padding."""
    ids = tokenizer(texts, truncation=True)["input_ids"]
    groups: list[list[int]] = [[]]
    for i in np.argsort([len(row) for row in ids], kind="stable"):
        if groups[-1] and len(ids[i]) * (len(groups[-1]) + 1) > budget:
            groups.append([])
        groups[-1].append(i)
    for k in rng.permutation(len(groups)):
        block = tokenizer.pad({"input_ids": [ids[i] for i in groups[k]]}, return_tensors="pt")
        yield block["input_ids"], block["attention_mask"], torch.from_numpy(targets[groups[k]]).float()


def classifier_parser(
    doc: str, out: Path, budget: int, lr: float, lr_rest: float, dropout: float
) -> argparse.ArgumentParser:
    """The flags of `fit_classifier` and its data; each script adds its own."""
    p = run_parser(doc, out, steps=0, lr=lr, warmup=100, log_every=50)
    p.set_defaults(lr_rest=lr_rest)
    p.add_argument("--sst2", help="local sst2.parquet; default: stanfordnlp/sst2 from the Hub")
    p.add_argument("--budget", type=int, default=budget, help="tokens a step")
    p.add_argument("--smoothing", type=float, default=0.05, help="label smoothing")
    p.add_argument("--dropout", type=float, default=dropout)
    p.add_argument(
        "--watch_every", type=int, default=400, help="steps between looks at the development slice"
    )
    return p


def polarity_loss(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, p: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """The cross-entropy of the model's two classes to (1 - p, p), summed over the texts, and their number."""
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    return F.cross_entropy(logits, torch.stack([1 - p, p], 1), reduction="sum"), len(p)


def fit_classifier(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pool: Callable[[np.random.Generator], tuple[list[str], np.ndarray]],
    schedule: Schedule,
    args: argparse.Namespace,
    dtype: torch.dtype,
    watch: Callable[[], str] | None = None,
    loss_of: Callable[..., tuple[torch.Tensor, int]] = polarity_loss,
) -> None:
    """Train a classifier by `fit`. `pool(rng)` gives some thousands of fresh texts and their targets P(positive).

    A batch counts by the number of its texts, so texts count alike whatever their length.
    """

    def draw(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, ...]]:
        while True:
            texts, target = pool(rng)
            target = target * (1 - args.smoothing) + args.smoothing / 2
            yield from batches(tokenizer, texts, target, args.budget, rng)

    optimizers = make_optimizers(model, args, betas=(0.9, 0.98), decay_rest=0.01)
    fit(
        model, draw, loss_of, optimizers, schedule, args, dtype, clip=320.0, unit="texts", dynamic=True, watch=watch
    )  # fmt: skip


@torch.no_grad()
def positive(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], budget: int = 16384
) -> np.ndarray:
    """P(positive) of each text, cut at the model's positions."""
    out = np.zeros(len(texts))
    # the texts' numbers travel in the place of targets, to undo the sorting by length
    numbers = np.arange(len(texts), dtype=np.float64)
    for ids, mask, which in batches(tokenizer, texts, numbers, budget, np.random.default_rng(0)):
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits.float()
        out[which.long().numpy()] = logits.softmax(-1)[:, 1].cpu().numpy()
    return out


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, frame: pd.DataFrame) -> float:
    scores = positive(model, tokenizer, frame["text"].tolist())
    return float(((scores > 0.5) == (frame["label"].to_numpy() == 1)).mean())


def accuracies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, frames: dict[str, pd.DataFrame]
) -> dict:
    """The accuracy on each frame and, as `NAME_n`, its number of texts."""
    out: dict = {name: round(accuracy(model, tokenizer, frame), 4) for name, frame in frames.items()}
    return out | {f"{name}_n": len(frame) for name, frame in frames.items()}


# The teacher: logistic regression on n-grams ------------------------------------------------------------------


def ngrams(row: np.ndarray) -> np.ndarray:
    """The distinct 1-, 2- and 3-grams of token ids, hashed into BUCKETS."""
    two = row[:-1] * 1_000_003 + row[1:] * 31 + 7
    three = row[:-2] * 998_244_353 + row[1:-1] * 1_000_003 + row[2:] * 31 + 11
    mixed = np.concatenate([row, two, three]) * 0x9E3779B1
    return np.unique((mixed ^ (mixed >> 17)) % BUCKETS)


def train_teacher(
    rows: list[np.ndarray], label: np.ndarray, seed: int, epochs: int = 4
) -> Callable[[list[np.ndarray]], np.ndarray]:
    """NB-LR (Wang and Manning 2012): features scaled by their naive-Bayes log-count ratio, then logistic regression.

    `rows` are the n-grams of each text. Returns a function: rows of n-grams -> P(positive).
    """
    ratio = polarity(rows, label, BUCKETS)
    # Each text's features are scaled to unit length, or long reviews would be scored more extremely than short ones.
    weight, bias = torch.ones(BUCKETS, 1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.02)

    def logit(group: list[np.ndarray]) -> torch.Tensor:
        flat, lengths = torch.from_numpy(np.concatenate(group)), torch.tensor([len(r) for r in group])
        value, starts = ratio[flat], lengths.cumsum(0) - lengths
        size = torch.segment_reduce(value**2, "sum", lengths=lengths).sqrt()
        total = F.embedding_bag(flat, weight, starts, per_sample_weights=value, mode="sum")[:, 0]
        return 10 * total / size + bias

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


def shipped(model: PreTrainedModel) -> PreTrainedModel:
    """The model as `from_pretrained` will give it: fp16 weights, computed in fp32, on the CPU."""
    return model.cpu().half().float().eval()


def run_facts(
    model: PreTrainedModel, schedule: Schedule, unit: str, minutes: float, args: argparse.Namespace,
    parser: argparse.ArgumentParser,
) -> dict:  # fmt: skip
    """What every `metrics.json` says of its run."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": schedule.step,
        unit: schedule.seen,
        "minutes": round(minutes, 1),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "seed": args.seed,
        "command": command_line(args, parser),
        "note": args.note,
    }


def make_card(title: str, about: str, rows: list[tuple[str, str]], m: dict, more: str, data: str) -> str:
    """README.md of a model: `about` it, a table of `rows` with the command, `more`, and where the data are from."""
    rows = [*rows, ("command", f"`{m['command']}`")]
    table = "\n".join(f"| {left} | {right} |" for left, right in rows)
    note = f"\n{m['note']}\n" if m["note"] else ""
    return f"""# mini {title}

{about}

| | |
|---|---|
{table}
{note}
{more}

The weights are fp16 on disk; `from_pretrained` gives fp32. Made by `mini/train_{title}.py`, which has every setting.
The numbers above are in `metrics.json`, for programs.

## Data and licence

{data}
Use the weights as the data are meant: for teaching and research.
"""


def trained(m: dict) -> str:
    """How long and where, for the card."""
    where = "a GPU" if m["device"] == "cuda" else "the CPU"
    return f"{m['minutes']:.0f} minutes on {where}, seed {m['seed']}"


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
    shutil.rmtree(out, ignore_errors=True)
    new.rename(out)


def command_line(args: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The command that made a model, for its card: every flag that is not at its default, folders made generic."""
    words = ["python", f"mini/{parser.prog}"]
    skip = {"out", "work", "resume", "threads", "save_every", "log_every", "watch_every", "note"}
    for name, value in vars(args).items():
        if name in skip or value == parser.get_default(name):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            file = name in ("data", "sst2", "init")
            words += [f"--{name}", f"path/to/{Path(value).name}" if file else str(value)]
    return " ".join(words)
