"""How well a policy writes, measured on samples: `train_policy.py --evaluate`. For use by that script."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import HELD_OUT_PROMPTS  # noqa: E402
from kit.base.errors import UserError  # noqa: E402
from kit.lm.models import load_policy  # noqa: E402
from kit.lm.sampling import sample  # noqa: E402
from kit.measure.fluency import load_fluency  # noqa: E402
from sentiment import load_scorer  # noqa: E402

WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")


def non_words(texts: Iterable[str], corpus: Iterable[str], rare: int = 10) -> float:
    """The share of the words in `texts` that occur fewer than `rare` times in `corpus`, whatever their case."""
    count = Counter(word for text in corpus for word in WORD.findall(text.lower()))
    words = [word for text in texts for word in WORD.findall(text.lower())]
    return sum(count[word] < rare for word in words) / max(len(words), 1)


def distinct_2(texts: Sequence[str]) -> float:
    """Different pairs of neighbouring words / pairs of neighbouring words."""
    pairs = [pair for text in texts for pair in pairwise(text.split())]
    return len(set(pairs)) / max(len(pairs), 1)


def memorised(texts: Iterable[str], corpus: Iterable[str], shortest: int = 12) -> float:
    """The share of the texts that stand in the corpus word for word, of those of at least `shortest` words."""
    long = [text.strip() for text in texts if len(text.split()) >= shortest]
    everything = "\n".join(corpus)
    return sum(text in everything for text in long) / max(len(long), 1)


def measure_samples(policy: str, corpus: Sequence[str], reviews: Sequence[str]) -> dict:
    """256 samples of the held-out prompts, 40 tokens at temperature 1, seed 0: how well they are written.

    `corpus` is the text that the policy was trained on, `reviews` the text that words are counted in.
    """
    model, tokenizer = load_policy(policy, torch.device("cpu"))
    drawn = sample(model, tokenizer, HELD_OUT_PROMPTS, num_samples=4)
    prompts, texts = [c.prompt for c in drawn], [c.text for c in drawn]
    scores = np.array(load_scorer(str(ROOT / "mini" / "sentiment"))(texts))
    low, high = np.quantile(scores, [0.25, 0.75])
    out = {
        "non_words": round(non_words(texts, reviews), 4),
        "ended_by_itself": round(sum(not c.truncated for c in drawn) / len(drawn), 3),
        "sentiment": round(float(scores.mean()), 3),
        "sentiment_interquartile_range": round(float(high - low), 3),
        "distinct_2": round(distinct_2(texts), 3),
        "memorised": round(memorised((c.prompt + c.text for c in drawn), corpus), 4),
    }
    for c in drawn[::13]:
        print(f"  {c.prompt} ▸{c.text}{'' if c.truncated else ' ∎'}")
    try:
        bits = [x for x in load_fluency("smollm2", torch.device("cpu"))(prompts, texts) if x is not None]
        out["nats_per_byte_smollm2"] = round(float(np.mean(bits)), 3)
    except UserError as error:
        print(error)
    return out
