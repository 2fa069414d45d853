"""What the training scripts of this folder share: the data, the training loop, the classifiers' tokenizer, word vectors
and teacher, and saving a model with its card.

The data come either from the Hub (`stanfordnlp/imdb`, `stanfordnlp/sst2`) or from local parquet files:
IMDB with the columns `split` (train, test, unsupervised), `label` (0 negative, 1 positive, -1 none) and `text`;
SST-2 with `split` (train, validation), `label` and `sentence`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tokenizers import normalizers, processors
from tokenizers.implementations import BertWordPieceTokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kit.base.errors import told_in_one_line
from kit.lm.hub import fetch_splits
from sentiment import SentimentScorer

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


def read(name: str, path: str | None) -> pd.DataFrame:
    """`split`, `label` and `text` (cleaned) of `imdb` or `sst2`, from a parquet file or from the Hub.

    IMDB is sorted by label as published: shuffle before taking a slice.
    """
    if path:
        frame = pd.read_parquet(path)
    else:
        splits = ["train", "test", "unsupervised"] if name == "imdb" else ["train", "validation"]
        with told_in_one_line():
            files = fetch_splits(f"stanfordnlp/{name}", splits)
        parts = [pd.read_parquet(file).assign(split=split) for file, split in zip(files, splits, strict=True)]
        frame = pd.concat(parts, ignore_index=True)
    frame = frame.rename(columns={"sentence": "text"})[["split", "label", "text"]].astype({"split": object})
    frame["text"] = [clean(text) for text in frame["text"]]
    return frame


def held_out_reviews(imdb: pd.DataFrame) -> np.ndarray:
    """Row numbers of the texts the language model never sees (always the same ones).

    They are those of the split `held_out`, which `corpus.py` makes, or else 2,000 of the test reviews.
    """
    marked = imdb[imdb["split"] == "held_out"]
    if marked.empty:
        marked = imdb[imdb["split"] == "test"].sample(n=min(2000, len(imdb) // 4), random_state=0)
    return marked.index.to_numpy()


# Training ---------------------------------------------------------------------------------------------------


def run_parser(
    doc: str, name: str, steps: int, lr: float, lr_rest: float, warmup: int
) -> argparse.ArgumentParser:
    """The flags of every training script; each adds its own."""
    p = argparse.ArgumentParser(description=doc.splitlines()[0])
    p.add_argument("--data", help="local imdb.parquet; default: stanfordnlp/imdb from the Hub")
    p.add_argument("--out", type=Path, default=Path(__file__).parent / name, help="folder for the model")
    p.add_argument("--steps", type=int, default=steps, help="length of training")
    p.add_argument("--lr", type=float, default=lr, help="peak learning rate of Muon (hidden matrices)")
    p.add_argument("--lr_rest", type=float, default=lr_rest, help="that of AdamW, all the rest (0: --lr)")
    p.add_argument("--warmup", type=int, default=warmup, help="warm-up steps")
    p.add_argument("--seed", type=int, default=0)
    return p


def add_simple(p: argparse.ArgumentParser) -> None:
    """The flags of the classifiers that measure them on what the policy reads."""
    p.add_argument("--sst2", help="local sst2.parquet; default: stanfordnlp/sst2 from the Hub")
    p.add_argument("--simple", help="file of corpus.py: measure on those of its sentences that are unseen")
    p.add_argument("--evaluate", type=Path, help="only measure this model on --simple, and write its card")


def start_run(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags, and besides `command` for the card, `device`, `dtype` of the matrix products, `begin` (seconds).

    The dtype is bf16 where the hardware multiplies it natively (GPUs since Ampere, AVX512-BF16, AMX), else fp32.
    """
    args = parser.parse_args()
    # a model of these scripts is replaced, nothing else
    if args.out.exists() and not (args.out / "metrics.json").is_file():
        parser.error(f"--out {args.out}: what stands there is no model of these scripts; name another folder")
    words = ["python", f"mini/{parser.prog}"]  # every flag that is not at its default, folders made generic
    for name, value in vars(args).items():
        if name not in ("out", "resume") and value != parser.get_default(name):
            file = name in ("data", "imdb", "sst2", "init", "simple")
            words += [f"--{name}", f"path/to/{Path(value).name}" if file else str(value)]
    args.command, args.begin = " ".join(words), time.monotonic()
    torch.manual_seed(args.seed)
    if torch.cuda.is_available():
        args.device, bf16 = "cuda", torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        args.device, bf16 = "cpu", "avx512_bf16" in flags or "amx_bf16" in flags
    args.dtype = torch.bfloat16 if bf16 else torch.float32
    return args


def minutes(args: argparse.Namespace) -> float:
    """Since the start of the run; what came before a resume counts too."""
    return round((time.monotonic() - args.begin) / 60, 1)


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
        torch.optim.Muon(hidden, args.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, args.lr_rest or args.lr, betas=betas, weight_decay=decay_rest, fused=True),
    ]


def lr_factor(step: int, steps: int, warmup: int, cosine: bool = False) -> float:
    """Share of the peak learning rate at `step` (from 0): up in `warmup` steps, down to 0 (cosine: to 0.05)."""
    left = 1.0 - step / steps
    if cosine:
        left = 0.05 + 0.95 * 0.5 * (1.0 - math.cos(math.pi * left))
    return min((step + 1) / max(warmup, 1), 1.0) * left


def fit(
    model: PreTrainedModel,
    draw: Callable[[np.random.Generator], Iterator[tuple[torch.Tensor, ...]]],
    loss_of: Callable[..., tuple[torch.Tensor, int]],
    optimizers: list[torch.optim.Optimizer],
    args: argparse.Namespace,
    *,
    steps: int,
    warmup: int,
    clip: float,
    cosine: bool = False,
    dynamic: bool = False,
    checkpoint: Path | None = None,
) -> int:
    """Train the model in place. Returns the number of losses (of texts or tokens) it was trained on.

    `draw(rng)` yields batches without end. `loss_of(model, *batch)` gives the sum of the losses, whose gradient is
    clipped to a norm of `clip`, and their number. `dynamic`: batches differ in shape. With `checkpoint` the run is
    saved there every 5 minutes, and `args.resume` goes on from it, with other batches than an unbroken run would draw.
    TORCHDYNAMO_DISABLE=1 saves torch.compile's minute, for short runs.
    """
    device = model.device
    peak = [group["lr"] for opt in optimizers for group in opt.param_groups]
    step = seen = 0
    if checkpoint and args.resume:
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for opt, saved in zip(optimizers, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        step, seen = state["step"], state["seen"]
        args.begin -= state["seconds"]
        print(f"resumed at step {step}, {minutes(args)} min", flush=True)
    groups = [group for opt in optimizers for group in opt.param_groups]  # a resume replaces them
    compiled = torch.compile(loss_of, dynamic=dynamic)
    batches = draw(np.random.default_rng([args.seed, step]))
    total, count, last_save = 0.0, 0, time.monotonic()
    model.train()
    while step < steps:
        factor = lr_factor(step, steps, warmup, cosine)
        for group, lr in zip(groups, peak, strict=True):
            group["lr"] = lr * factor
        with torch.autocast(device.type, args.dtype, enabled=args.dtype != torch.float32):
            loss, n = compiled(model, *(part.to(device) for part in next(batches)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for opt in optimizers:
            opt.step()
            opt.zero_grad()
        if not math.isfinite(loss.item()):  # before it is saved
            raise SystemExit("the loss is not finite: lower --lr")
        step, seen = step + 1, seen + n
        total, count, now = total + loss.item(), count + n, time.monotonic()
        if step % 50 == 0:
            print(f"step {step}/{steps} | loss {total / count:.4f} | {minutes(args)} min", flush=True)
            total, count = 0.0, 0
        if checkpoint and (step == steps or now - last_save > 300):
            state = {"model": model.state_dict(), "optimizers": [opt.state_dict() for opt in optimizers]}
            state |= {"step": step, "seen": seen, "seconds": now - args.begin}
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            last_save = now
    model.eval()
    return seen


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
    return [
        np.array(ids, dtype=np.int64)
        for i in range(0, len(texts), 2000)
        for ids in tokenizer(texts[i : i + 2000], add_special_tokens=False, verbose=False)["input_ids"]
    ]


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
    texts = ([row for row, y in zip(rows, label, strict=True) if y == k] for k in (1, 0))
    p, q = (np.bincount(np.concatenate(some), minlength=n) + 1.0 for some in texts)
    return torch.from_numpy(np.log(p / p.sum()) - np.log(q / q.sum())).float()


def window(words: list[str], low: int, high: int, rng: np.random.Generator) -> str:
    """`low` to `high` consecutive words from anywhere in the text (the whole text if it is shorter)."""
    length = int(rng.integers(low, high + 1))
    start = int(rng.integers(max(len(words) - length, 0) + 1))
    return " ".join(words[start : start + length])


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
    args: argparse.Namespace,
    *,
    steps: int,
    budget: int,
    smoothing: float = 0.05,
    loss_of: Callable[..., tuple[torch.Tensor, int]] = polarity_loss,
) -> int:
    """Train a classifier by `fit`, on batches of about `budget` tokens of texts of about one length (little padding).

    `pool(rng)` gives some thousands of fresh texts and their targets P(positive), which are smoothed. A batch counts
    by the number of its texts, so texts count alike whatever their length.
    """

    def draw(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, ...]]:
        while True:
            texts, target = pool(rng)
            target = target * (1 - smoothing) + smoothing / 2
            ids = tokenizer(texts, truncation=True)["input_ids"]
            groups: list[list[int]] = [[]]
            for i in np.argsort([len(row) for row in ids], kind="stable"):
                if groups[-1] and len(ids[i]) * (len(groups[-1]) + 1) > budget:
                    groups.append([])
                groups[-1].append(i)
            for k in rng.permutation(len(groups)):
                block = tokenizer.pad({"input_ids": [ids[i] for i in groups[k]]}, return_tensors="pt")
                yield block["input_ids"], block["attention_mask"], torch.from_numpy(target[groups[k]]).float()

    optimizers = make_optimizers(model, args, betas=(0.9, 0.98), decay_rest=0.01)
    return fit(
        model, draw, loss_of, optimizers, args, steps=steps, warmup=args.warmup, clip=320.0, dynamic=True
    )


def accuracies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, frames: dict[str, pd.DataFrame]
) -> dict:
    """The accuracy on each frame and, as `NAME_n`, its number of texts."""
    score = SentimentScorer(model, tokenizer)
    out: dict = {}
    for name, frame in frames.items():
        right = (np.array(score(frame["text"].tolist())) > 0.5) == (frame["label"].to_numpy() == 1)
        out |= {name: round(float(right.mean()), 4), f"{name}_n": len(frame)}
    return out


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


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace, metrics: dict, about: str,
    data: str, samples: Iterable[str] = (),
) -> None:  # fmt: skip
    """Save fp16 safetensors, tokenizer, metrics.json and a card: `about`, the metrics, `samples`, and `data`.

    The folder is swapped into place when all of it is written. The file is fp16 to halve the repository; config.json
    says float32 so that a plain `from_pretrained` gives fp32 weights, which is what a CPU is good at and what training
    wants.
    """
    metrics |= {"parameters": sum(p.numel() for p in model.parameters()), "steps": args.steps}
    metrics |= {"device": args.device, "seed": args.seed, "command": args.command}
    new = args.out.with_name(f".{args.out.name}-new")
    shutil.rmtree(new, ignore_errors=True)
    model.half().save_pretrained(new)
    tokenizer.save_pretrained(new)
    (new / "model.safetensors").chmod(0o644)
    config = json.loads((new / "config.json").read_text()) | {"dtype": "float32"}
    (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_card(new, metrics, about, data, samples)
    shutil.rmtree(args.out, ignore_errors=True)
    new.rename(args.out)


def write_card(folder: Path, metrics: dict, about: str, data: str, samples: Iterable[str] = ()) -> None:
    """README.md and metrics.json of a model; `probes` become rows of their own, a `note` its own paragraph."""
    print(metrics, flush=True)
    rows = metrics | {f"P(positive): {text}": score for text, score in metrics.get("probes", {}).items()}
    table = "\n".join(
        f"| {name} | {value} |" for name, value in rows.items() if name not in ("probes", "note")
    )
    notes = "".join(f"- {text}\n" for text in samples) + metrics.get("note", "")
    (folder / "README.md").write_text(f"""{about}

| | |
|---|---|
{table}

{notes}
The weights are fp16 on disk; `from_pretrained` gives fp32. The numbers are in `metrics.json` too.

## Data and licence

{data}
Use the weights as the data are meant: for teaching and research.
""")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def measure_again(folder: Path, frames: dict[str, pd.DataFrame], about: str, data: str) -> None:
    """Write the accuracy on each frame into the card of the classifier in `folder`, beside what stands there."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics |= accuracies(model, AutoTokenizer.from_pretrained(folder), frames)
    write_card(folder, metrics, about, data)
