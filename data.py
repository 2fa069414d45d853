"""Prompts: neutral openers of film reviews, written for this kit; or a file's, or IMDB's. And pairs of texts.

Provided, you need not change this. The policy continues an opener and only the continuation is scored, so an opener
must not judge the film ("The best part was" would lift the base model's score).
"""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from kit.base.errors import UserError
from kit.base.files import lines, read_text, refuse_pointer, user_path
from kit.lm.hub import fetch_splits
from kit.lm.loading import Tokenizer, told_as

MINI = Path(__file__).resolve().parent / "mini"  # the openers, one a line
IMDB_PROMPT_WORDS = (2, 8)  # a prompt is the first 2 to 8 words of a review
LABELS = dict.fromkeys(("1", "1.0", "pos", "positive", "true"), 1)  # how data sets spell them
LABELS |= dict.fromkeys(("0", "0.0", "neg", "negative", "false"), 0)
UNLABELLED = ("-1", "-1.0", "unsup", "none", "nan")


def _lines(file: str) -> tuple[str, ...]:
    return tuple(lines(read_text(MINI / file, "the prompts of the kit")))


# Q1. None of these prompts has a label. What takes the place of one in training, and through which argument
# of which call does it get there?
TRAIN_PROMPTS = _lines("train_prompts.txt")

# Every ninth of them: 64 prompts to choose settings by, with `train.py --prompts fit` (which validates on them) and
# `evaluate.py --prompts tuning`. Tuning on HELD_OUT_PROMPTS would bias the result upwards.
TUNING_PROMPTS = TRAIN_PROMPTS[::9]
BUILT_IN = {
    "builtin": TRAIN_PROMPTS,
    "fit": tuple(prompt for prompt in TRAIN_PROMPTS if prompt not in TUNING_PROMPTS),
    "tuning": TUNING_PROMPTS,
}

# Q2. A hack shows on these prompts as plainly as on those above. What do held-out prompts protect from, then,
# and from what not?
HELD_OUT_PROMPTS = _lines("held_out_prompts.txt")


def validation_prompts(source: str) -> tuple[str, ...]:
    """The prompts of the `val` lines of a training on `source`."""
    return TUNING_PROMPTS if source == "fit" else HELD_OUT_PROMPTS


def load_prompts(source: str = "builtin", limit: int | None = None) -> list[str]:
    """Training prompts, the first `limit` of them.

    `source` is `builtin` (the openers above; `fit` and `tuning` are its two parts), `imdb` (the first words of
    shuffled IMDB reviews, half of them positive, from the Hub), `imdb:FILE` (the same from a parquet file) or the
    path of a text file with one prompt a line.

    Raises `UserError` for a file that is missing or has no prompt, and (with its line) for an empty prompt.
    """
    if source in BUILT_IN:
        prompts = list(BUILT_IN[source])
    elif source == "imdb" or source.startswith("imdb:"):
        texts, _ = load_imdb(source.partition(":")[2] or None)
        rng = random.Random(0)
        # Q3. Why not the first 60 words? If the held-out prompts were as long, which two numbers of the val
        # line would change for the very same policy?
        starts = [" ".join(text.split()[: rng.randint(*IMDB_PROMPT_WORDS)]) for text in texts]
        prompts = list(dict.fromkeys(p for p in starts if p and p not in HELD_OUT_PROMPTS))[: limit or 4096]
    else:
        if not Path(user_path(source)).exists():
            raise UserError(f"--prompts {source}: no such file; give builtin, imdb, or a file of prompts")
        prompts = lines(read_text(source, "--prompts"))
        for line, prompt in enumerate(prompts, start=1):
            if not prompt.strip():
                raise UserError(f"--prompts {source}, line {line}: the prompt is empty; remove the line")
        blank = [str(line) for line, p in enumerate(prompts, start=1) if p != p.strip()]
        if blank:
            where = f"--prompts {source}, line {', '.join(blank[:5])}{', ...' * (len(blank) > 5)}"
            print(f"{where}: begins or ends with a blank, which is kept: the model sees it", file=sys.stderr)
    if not prompts:
        raise UserError(f"--prompts {source}: there is no prompt in it; write one prompt a line")
    return prompts[:limit]


def check_prompts(prompts: Sequence[str], source: str, tokenizer: Tokenizer, max_tokens: int) -> None:
    """Raises `UserError`, with the line, for a prompt without a token or with more than `max_tokens` of them."""
    for line, prompt in enumerate(prompts, start=1):
        where, length = f"--prompts {source}, line {line}", len(tokenizer(prompt)["input_ids"])
        if length == 0:
            raise UserError(f"{where}: the tokenizer makes no token of this prompt")
        if length > max_tokens:
            room = f"only {max(max_tokens, 0)} leave room for a completion"
            raise UserError(f"{where}: {length} tokens, but {room}; shorten the prompt, or the completion")


def load_imdb(source: str | None = None) -> tuple[list[str], list[int]]:
    """IMDB reviews (Maas et al. 2011) as cleaned texts and labels (1 positive, 0 negative), shuffled.

    The data set is sorted by label, so a naive slice is all negative. Here the two classes are shuffled apart and
    alternate: every slice of even length is balanced. `source` is a parquet file with columns text, label and
    (optionally) split, of which `train` is taken; `None` means `stanfordnlp/imdb` on the Hub.

    Raises `UserError` if the file or the Hub cannot be read, a row (counted from 0) has no text or an unknown label,
    or one of the two classes is missing.
    """
    from datasets import ClassLabel, load_dataset

    where = source or "stanfordnlp/imdb on the Hub"
    with told_as(f"cannot read IMDB from {where}", "give a local parquet file"):
        path = user_path(source) if source else fetch_splits("stanfordnlp/imdb", ["train"])[0]
        with Path(path).open("rb") as file:
            refuse_pointer(file.read(100), path)
        rows = load_dataset("parquet", data_files=path, split="train")
    if missing := {"text", "label"} - set(rows.column_names):
        raise UserError(f"{where}: has no column {' and no column '.join(sorted(missing))}")

    kind = rows.features["label"]
    names = dict(enumerate(kind.names)) if isinstance(kind, ClassLabel) else {}
    splits = rows["split"] if "split" in rows.column_names else ["train"] * len(rows)
    if "train" not in splits:
        raise UserError(f"{where}: its column split never says train, so no review can be used")
    texts, labels = [], []
    for row, (text, label, split) in enumerate(zip(rows["text"], rows["label"], splits, strict=True)):
        name = str(names.get(label, label)).strip().lower()
        if split != "train" or name in UNLABELLED:
            continue
        if name not in LABELS:
            raise UserError(f"{where}, row {row}: the label is {label!r}; write 1 or pos, 0 or neg, or -1")
        if not isinstance(text, str):
            raise UserError(f"{where}, row {row}: the text is {text!r:.40}; it must be a string")
        texts.append(" ".join(text.replace("<br />", " ").split()))
        labels.append(LABELS[name])

    rng = random.Random(0)
    by_label = {k: [text for text, label in zip(texts, labels, strict=True) if label == k] for k in (0, 1)}
    for label, group in by_label.items():
        if not group:
            raise UserError(f"{where} has no review of label {label}; 1 and 0 are both needed")
        rng.shuffle(group)
    pairs = list(zip(by_label[1], by_label[0], strict=False))  # equal numbers of both
    return [text for pair in pairs for text in pair], [1, 0] * len(pairs)


COLUMNS = ("prompt", "chosen", "rejected")  # TRL's preference format


def load_pairs(file: Path) -> list[dict[str, str]]:
    """Choices between two texts: a file with a JSON object a line, of the keys `prompt`, `chosen` and `rejected`.

    Raises `UserError`, with the line, for a missing or an empty file, a missing key, a value that is no text, or two
    equal texts.
    """
    if not file.is_file():
        raise UserError(f"--pairs {file}: no such file; make one with python -m baselines.preferences")
    pairs = []
    for number, line in enumerate(lines(read_text(file, "--pairs")), start=1):
        if not line.strip():
            continue
        where = f"--pairs {file}, line {number}"
        try:
            row = json.loads(line)
        except ValueError:
            raise UserError(f"{where}: is no JSON object; correct the line") from None
        found = row if isinstance(row, dict) else {}
        for key in COLUMNS:
            if not isinstance(found.get(key), str):
                raise UserError(f"{where}: needs a text under {key!r}, beside {', '.join(COLUMNS)}")
        if row["chosen"] == row["rejected"]:
            raise UserError(f"{where}: chosen and rejected are the same text; remove the line")
        pairs.append({key: row[key] for key in COLUMNS})
    if not pairs:
        raise UserError(f"--pairs {file}: there is no pair in it; write one JSON object a line")
    return pairs
