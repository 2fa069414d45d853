"""Metrics of texts, the composite reward R, and confidence intervals."""

import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from kit import ROOT
from kit.base.errors import UserError

T = TypeVar("T")

REWARD_CONFIG = ROOT / "configs" / "reward.yaml"


def words(text: str) -> list[str]:
    """Lower-cased words and single punctuation marks: what the diversity measures count."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def repetition(text: str) -> float:
    """1 - unique/total over the blank-separated, lower-cased tokens of one text; 0.0 for an empty one."""
    # Q20. A policy gives every prompt the same flawless review. Which numbers see it: this one, distinct_n,
    # self_bleu, compression_ratio, the reference NLL?
    tokens = text.lower().split()
    return 1.0 - len(set(tokens)) / len(tokens) if tokens else 0.0


@dataclass(frozen=True)
class RewardWeights:
    """Weights of the composite reward R, read from `configs/reward.yaml`."""

    sentiment: float
    repetition: float
    length: float
    target_words: tuple[int, int]


@cache
def load_reward_weights(path: Path = REWARD_CONFIG) -> RewardWeights:
    """The weights of R. Raises `UserError` if the file is missing, or a key is missing or unknown."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        low, high = values.pop("target_words")
        return RewardWeights(**values, target_words=(int(low), int(high)))
    except (OSError, yaml.YAMLError, TypeError, ValueError, KeyError, AttributeError) as error:
        keys = ", ".join(f.name for f in fields(RewardWeights))
        raise UserError(f"{path.name}: needs exactly the keys {keys} ({error})") from None


def composite_reward(
    scores: Sequence[float],
    completions: Sequence[str],
    prompts: Sequence[str] | None = None,
    weights: RewardWeights | None = None,
) -> list[float]:
    """R = w_s * sentiment + w_r * repetition + w_l * length, the same for every method.

    `scores` are P(positive) of the N completions; length is 0 inside the target range of words and -1 outside. The
    prompts are not used; every reward function gets them.
    """
    w = weights or load_reward_weights()
    low, high = w.target_words
    return [
        w.sentiment * score
        + w.repetition * repetition(text)
        + w.length * (0.0 if low <= len(text.split()) <= high else -1.0)
        for score, text in zip(scores, completions, strict=True)
    ]


GOLD = ("sentiment", "composite")
SURE = 1e-6  # P(positive) is cut at this distance from 0 and 1: 14 nats


def gold_reward(kind: str, scores: Sequence[float], completions: Sequence[str]) -> list[float]:
    """What a simulated annotator values, in nats: log p/(1-p) of the N P(positive) `scores`, or 10 R (`composite`)."""
    if kind == "composite":
        return [10 * r for r in composite_reward(scores, completions)]
    return [math.log(p / (1 - p)) for p in (min(max(p, SURE), 1 - SURE) for p in scores)]


# ---- confidence intervals ---------------------------------------------------------------------------------------

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number, and replicates of it that give its interval.

    `bootstrap`: estimates on prompts drawn with replacement; the interval is their percentiles. For means.
    `jackknife`: estimates with one prompt left out; the interval is value +- 1.96 standard errors. For numbers
    about a whole corpus (distinct-n, vocabulary, compression): a bootstrap draw repeats prompts, which lowers
    diversity, so its interval would miss the value.
    """

    value: float
    replicates: np.ndarray
    kind: str = "bootstrap"

    def interval(self) -> tuple[float, float]:
        """The 95 % interval; (nan, nan) for fewer than two prompts."""
        n = len(self.replicates)
        if n < 2 or not np.isfinite(self.replicates).all():
            return math.nan, math.nan
        if self.kind == "bootstrap":
            low, high = np.quantile(self.replicates, [0.025, 0.975])
            return float(low), float(high)
        # Efron & Stein 1981: var = (n-1)/n sum_i (theta_(i) - mean)^2
        error = math.sqrt((n - 1) / n * float(((self.replicates - self.replicates.mean()) ** 2).sum()))
        z = 1.959964
        return self.value - z * error, self.value + z * error

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The paired difference: replicate by replicate, on the same prompts."""
        return Estimate(self.value - other.value, self.replicates - other.replicates, self.kind)


def mean_estimate(
    values: Sequence[Sequence[float]] | np.ndarray,
    weights: Sequence[Sequence[float]] | np.ndarray | None = None,
) -> Estimate:
    """The (weighted) mean of `values` (num_prompts, num_samples), bootstrapped over prompts.

    NaNs are left out: ratios of empty completions. Every call draws the same prompts, so two estimates may be
    subtracted.
    """
    v = np.asarray(values, dtype=float)
    w = np.ones_like(v) if weights is None else np.asarray(weights, dtype=float)
    w = np.where(np.isnan(v), 0.0, w)
    top, bottom = (np.where(w > 0, v, 0.0) * w).sum(axis=1), w.sum(axis=1)  # (num_prompts,)
    # Q21. Draw completions instead of prompts: does the interval get too narrow or too wide? For which model
    # would it make no difference?
    resamples = RESAMPLES if len(v) > 1 else 0  # one prompt says nothing about the next
    draws = np.random.default_rng(0).integers(len(v), size=(resamples, len(v)))
    with np.errstate(invalid="ignore", divide="ignore"):
        value = math.fsum(top) / total if (total := math.fsum(bottom)) else math.nan
        return Estimate(value, top[draws].sum(axis=1) / bottom[draws].sum(axis=1))


def corpus_estimate(groups: Sequence[T], statistic: Callable[[Sequence[T]], float]) -> Estimate:
    """`statistic` of all groups (one per prompt), with its leave-one-prompt-out replicates."""
    without = [statistic([*groups[:i], *groups[i + 1 :]]) for i in range(len(groups)) if len(groups) > 1]
    return Estimate(statistic(groups), np.asarray(without, dtype=float), "jackknife")


def ngram_groups(groups: Sequence[Sequence[str]], n: int) -> list[np.ndarray]:
    """Word n-grams of each group of texts as integer ids, one array per group; equal n-grams, equal ids."""
    ids: dict[tuple[str, ...], int] = {}
    arrays = []
    for group in groups:
        grams = [tuple(w[i : i + n]) for w in map(words, group) for i in range(len(w) - n + 1)]
        arrays.append(np.array([ids.setdefault(gram, len(ids)) for gram in grams], dtype=np.int64))
    return arrays


def num_unique(ids: Sequence[np.ndarray]) -> float:
    """How many different ids all arrays together have: for 1-grams, the size of the vocabulary."""
    return float(len(np.unique(np.concatenate(ids)))) if ids else 0.0


def unique_ratio(ids: Sequence[np.ndarray]) -> float:
    """Unique / total ids over all arrays, 0.0 if there are none: distinct-n for n-grams (Li et al. 2016).

    It falls as the list grows: compare lists of equal size only.
    """
    total = sum(map(len, ids))
    return num_unique(ids) / total if total else 0.0


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of the joined texts / bytes after zlib; 0.0 without text. Redundant text has a high ratio.

    Shaib et al. 2024, "Standardizing the Measurement of Text Diversity". It rises with the amount of text:
    compare lists of equal size only.
    """
    raw = "\n".join(texts).encode()
    return len(raw) / len(zlib.compress(raw, 9)) if raw else 0.0


def self_bleu(texts: Sequence[str], max_n: int = 4) -> list[float]:
    """BLEU of each text against all others (Zhu et al. 2018), in [0, 1]; high: the texts are alike.

    Geometric mean of clipped n-gram precisions, n = 1..max_n, times the brevity penalty. A precision of zero
    matches out of m becomes 0.1 / m (smoothing method 1 of Chen & Cherry 2014). An empty text and a single text
    score NaN.
    """
    tokens = [words(text) for text in texts]
    if len(tokens) < 2:
        return [math.nan] * len(tokens)
    log_precision = np.zeros(len(tokens))
    for n in range(1, max_n + 1):
        counts = [Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1)) for w in tokens]
        # A count is clipped at the highest count of any *other* text. Only a text with the highest count of all is
        # clipped, at the second highest.
        found = defaultdict[tuple[str, ...], list[int]](lambda: [0])
        for count in counts:
            for gram, k in count.items():
                found[gram].append(k)
        second = {gram: sorted(ks)[-2] for gram, ks in found.items()}
        for row, count in enumerate(counts):
            matched = sum(min(k, second[gram]) for gram, k in count.items())
            total = max(1, sum(count.values()))
            log_precision[row] += math.log((matched or 0.1) / total) / max_n
    lengths = np.array([len(w) for w in tokens])
    scores = []
    for row, c in enumerate(lengths):
        others = np.sort(np.delete(lengths, row))
        r = others[np.abs(others - c).argmin()]  # the closest reference length; of two, the shorter
        penalty = min(0.0, 1.0 - r / c) if c else 0.0
        scores.append(math.exp(log_precision[row] + penalty) if c else math.nan)
    return scores
