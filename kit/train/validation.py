"""Validation on held-out prompts: the same prompts, sampler and random stream at every step and for every method."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from kit.base.runs import Run
from kit.base.screen import table
from kit.lm.log_probs import LanguageModel
from kit.measure.frontier import captured
from kit.measure.measuring import Bench, Row, column_of, estimates, spreads
from kit.measure.reference import ReferenceSamples
from kit.train.tracking import Tracker
from reward_utils import RewardFunction
from sentiment import word_count_score

VALIDATION_SEED = 20_240_229  # a stream of its own: how often we validate changes nothing in training
SHOWN_SAMPLES = 4
SAMPLE_COLUMNS = ("prompt", "completion", "sentiment", "ref_nll", "kl_policy_ref", "tokens")  # samples.jsonl
LEARNED_COLUMNS = ("proxy", "gold")  # there too, with --reward_model
# name in metrics.jsonl -> key of `kit.measure.measuring.METRICS`
NAMES = {
    "val/positive_ratio": "positive_ratio",
    "val/composite_reward": "reward",
    "val/distinct_1": "distinct_1",
    "val/distinct_2": "distinct_2",
    "val/repetition": "repetition",
    "val/ref_nll": "ref_nll",
    "val/kl_policy_ref": "kl_policy_ref",
    "val/kl_ref_policy": "kl_ref_policy",
    "val/length_mean": "length",
    "val/empty_ratio": "empty_ratio",
    "val/truncated_ratio": "truncated_ratio",
}


@dataclass
class Validation:
    """Measures a policy on the bench's prompts, writes the numbers and shows them.

    `reward` and the KL coefficient `beta` are the run's; `samples` are those of the reference, for `captured`.
    """

    bench: Bench
    folder: Run
    tracker: Tracker
    reward: RewardFunction
    beta: float
    samples: ReferenceSamples | None

    def run(self, policy: LanguageModel, step: int) -> None:
        """Measure `policy`, log the `val/*` metrics and every sample at `step`, print one line and four samples."""
        rows = self.bench.rows(policy, self.bench.tokenizer)
        metrics = self.metrics(rows)
        columns = SAMPLE_COLUMNS + (LEARNED_COLUMNS if self.bench.proxy else ())
        samples = [{key: row[key] for key in columns} for row in rows]
        self.folder.log(step, metrics)
        self.folder.log_samples(step, samples)
        self.tracker.log(step, metrics)
        self.tracker.log_samples(step, samples)
        print(line(step, metrics))
        print(sample_table(rows), flush=True)

    def metrics(self, rows: Sequence[Row]) -> dict[str, float]:
        """The `val/*` metrics of one row per prompt."""
        found, sentiment = estimates(rows), [row["sentiment"] for row in rows]
        low, high = found["sentiment"].interval()
        metrics = {
            "val/sentiment_mean": found["sentiment"].value,
            "val/sentiment_ci_low": low,
            "val/sentiment_ci_high": high,
            "val/sentiment_std": spreads(rows)["sentiment"]["std"],
            "val/sentiment_min": min(sentiment),
            "val/sentiment_median": statistics.median(sentiment),
            "val/sentiment_max": max(sentiment),
            **{name: found[key].value for name, key in NAMES.items()},
        }
        texts, scores = [row["completion"] for row in rows], sentiment
        if self.reward.score is word_count_score:  # --hackable_reward
            scores = word_count_score(texts)
            metrics["val/score_mean"] = statistics.fmean(scores)
        if "proxy" in found:  # --reward_model
            metrics |= {f"val/{key}": found[key].value for key in LEARNED_COLUMNS if key in found}
        elif self.samples is not None:
            rewards = np.array(self.reward.shaped(scores, texts, [row["prompt"] for row in rows]))
            kl = column_of(rows, "kl_policy_ref")
            share = captured(rewards[:, None], kl, self.reference_rewards, self.beta)
            if not math.isnan(share.value):
                metrics["val/captured"] = share.value
                metrics["val/captured_ci_low"], metrics["val/captured_ci_high"] = share.interval()
        return metrics

    @cached_property
    def reference_rewards(self) -> np.ndarray:
        """The run's reward, without its penalty, of the reference's samples: (prompts, N)."""
        assert self.samples is not None
        texts, n = [*chain(*self.samples.texts)], self.samples.scores.shape[1]
        counted = self.reward.score is word_count_score
        scores = word_count_score(texts) if counted else self.samples.scores.reshape(-1).tolist()
        prompts = [prompt for prompt in self.bench.prompts for _ in range(n)]
        return np.reshape(self.reward.shaped(scores, texts, prompts), (-1, n))


def line(step: int, m: dict[str, float]) -> str:
    """The validation on one line."""
    share = f" | captured {m['val/captured']:.2f}" if "val/captured" in m else ""
    own = {"counted": "val/score_mean", "learned": "val/proxy", "gold": "val/gold"}
    counted = "".join(f" | {word} {m[key]:.3f}" for word, key in own.items() if key in m)
    return (
        f"val  {step:>4} | sentiment {m['val/sentiment_mean']:.3f} "
        f"[{m['val/sentiment_ci_low']:.2f}, {m['val/sentiment_ci_high']:.2f}]{counted} | "
        f"KL {m['val/kl_policy_ref']:.1f} | ref NLL {m['val/ref_nll']:.2f} | "
        f"distinct-2 {m['val/distinct_2']:.2f} | repeated {m['val/repetition']:.2f} | "
        f"length {m['val/length_mean']:.0f} | empty {m['val/empty_ratio']:.0%}{share}"
    )


def sample_table(rows: Sequence[dict[str, Any]]) -> str:
    """Four samples, always of the same prompts. In a hacked model log pi_ref falls while the score rises."""
    every = max(len(rows) // SHOWN_SAMPLES, 1)
    cells = [
        (f"{r['sentiment']:.2f}", f"{-r['ref_nll'] * r['tokens']:.0f}", f"{r['prompt']} ▸{r['completion']}")
        for r in rows[every // 2 :: every][:SHOWN_SAMPLES]
    ]
    return table(("score", "log pi_ref", "prompt ▸ completion"), cells)
