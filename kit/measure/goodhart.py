"""Overoptimisation of a learned reward (Gao, Schulman & Hilton 2022, arXiv 2210.10760): two rewards against delta.

delta = sqrt(KL(pi||pi_ref)), with the KL in nats per completion. `proxy` is the learned reward, `gold` what its
annotator was asked for; both are gains over the base, in standard deviations of the base's samples. The curves are

    RL:         R(delta) = delta (alpha - beta log delta)        best of n:  R(delta) = delta (alpha - beta delta)
    turns at    delta = exp(alpha / beta - 1)                                delta = alpha / (2 beta)

where they turn at all: for alpha, beta > 0.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.base.metrics import Estimate, mean_estimate
from kit.measure.frontier import kl_of_best, of_the_best

REWARDS = {"proxy": "learned", "gold": "gold"}  # as records and figures name them


@dataclass(frozen=True)
class Curve:
    """Measured points of one policy in training (`kind` "rl") or of best of n ("bon"): `delta` is (K,), and each of
    `rewards` the gains (K, P) of K points at P prompts."""

    name: str
    kind: str
    delta: np.ndarray
    rewards: dict[str, np.ndarray]


@dataclass(frozen=True)
class Fit:
    """alpha, beta and the delta at which the curve turns, with intervals over prompts (each delta as measured).

    `turn` is NaN for a curve that does not turn, and has no interval if some replicates do not.
    """

    kind: str
    alpha: Estimate
    beta: Estimate
    turn: Estimate

    def __call__(self, delta: np.ndarray) -> np.ndarray:
        return columns(self.kind, delta) @ [self.alpha.value, self.beta.value]

    def as_dict(self) -> dict[str, list[float]]:
        """{alpha, beta, turn: [value, low, high]}"""
        named = {"alpha": self.alpha, "beta": self.beta, "turn": self.turn}
        return {key: [estimate.value, *estimate.interval()] for key, estimate in named.items()}


def columns(kind: str, delta: np.ndarray) -> np.ndarray:
    """What alpha and beta are multiplied by: (K, 2)."""
    bend = np.log(np.where(delta > 0, delta, 1.0)) if kind == "rl" else delta  # delta log delta -> 0
    return np.stack([delta, -delta * bend], axis=1)


def turning(kind: str, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """The delta > 0 of the maximum; NaN if there is none."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        at = np.exp(alpha / beta - 1) if kind == "rl" else alpha / (2 * beta)
    return np.where((beta > 0) & (at > 0), at, math.nan)


def fit(curve: Curve, reward: str) -> Fit | None:
    """Least squares. None with fewer than two deltas above 0, or a curve without this reward."""
    if len(np.unique(curve.delta[curve.delta > 0])) < 2 or np.isnan(curve.rewards[reward]).any():
        return None
    # Least squares is linear in the rewards: the parameters are means over prompts of each prompt's own
    alpha, beta = np.linalg.pinv(columns(curve.kind, curve.delta)) @ curve.rewards[reward]  # (2, P)
    a, b = mean_estimate(alpha[:, None]), mean_estimate(beta[:, None])  # the same prompts are drawn for both
    turn = turning(curve.kind, np.array(a.value), np.array(b.value))
    return Fit(curve.kind, a, b, Estimate(float(turn), turning(curve.kind, a.replicates, b.replicates)))


def of_run(name: str, samples: Sequence[Mapping[str, Any]]) -> Curve | None:
    """The curve of a run's validations, from the lines of its samples.jsonl; None if it had no learned reward."""
    steps = defaultdict(list)
    for row in samples:
        steps[row["step"]].append(row)
    if not samples or any("proxy" not in row for row in samples):
        return None
    kl = np.array([np.mean([row["kl_policy_ref"] for row in rows]) for rows in steps.values()])
    values = {
        key: np.array([[row[key] for row in rows] for rows in steps.values()], dtype=float) for key in REWARDS
    }
    gains = {key: value - value[0] for key, value in values.items()}  # the same prompts and random numbers
    return Curve(name, "rl", np.sqrt(np.maximum(kl, 0.0)), gains)  # rounding


def of_best_of_n(proxy: np.ndarray, gold: np.ndarray) -> Curve:
    """The curve of the best of n by the proxy, n = 1, 2, 4, ... N, from N samples of the base a prompt (P, N)."""
    sizes = [2**k for k in range(proxy.shape[1].bit_length())]
    kl = np.array([kl_of_best(n) for n in sizes])
    values = {key: np.array([of_the_best(proxy, n, v) for n in sizes])
              for key, v in (("proxy", proxy), ("gold", gold))}  # fmt: skip
    return Curve("best of n", "bon", np.sqrt(kl), {key: value - value[0] for key, value in values.items()})


def as_dict(curve: Curve) -> dict[str, Any]:
    """For comparison.json: the points and, for each reward, the fit."""
    points = [
        {"delta": float(d), **{key: float(v[i].mean()) for key, v in curve.rewards.items()}}
        for i, d in enumerate(curve.delta)
    ]
    fits = {key: found.as_dict() if (found := fit(curve, key)) else None for key in REWARDS}
    return {"name": curve.name, "kind": curve.kind, "points": points, "fits": fits}
