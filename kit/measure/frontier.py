"""The reward that a given KL(pi||pi_ref) can buy without training, from samples of the reference alone.

`rewards` are (num_prompts, N): N reference samples of every prompt, scored by the reward that training uses.
`judged`, of the same shape, are the judge's scores of these samples. A point of a curve holds `n` or `beta`, and means
over prompts: `kl` in nats per completion, `sentiment`, `judge` (None without one) and `effective_samples`.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kit.base.metrics import Estimate, mean_estimate

# With fewer effective samples the curve is cut: its reward cannot exceed that of the best sample drawn, so it falls
# below the true one. Measured for Beta(1/2, 1/2) rewards, N = 16: at 4.4 effective samples the estimate is 0.937 at
# 1.17 nats, the truth 0.947 at 1.16.
MIN_EFFECTIVE_SAMPLES = 4.0
NO_ROOM = 1e-9  # J* - J(pi_ref) of equal rewards, up to rounding
DEFAULT_PRICE = 0.1  # for a run without a KL term
Point = dict[str, Any]


def price(settings: Mapping[str, Any]) -> float:
    """The KL coefficient beta of J = E[r] - beta KL(pi||pi_ref) for a run with these flags.

    For a penalty it is `kl_coef`: the penalty is part of the reward, whatever the reward is divided by afterwards.
    TRL's own `--beta` counts only where rewards are not divided by the standard deviation s of their group. Where they
    are, the coefficient is s beta, and s changes from step to step: such a run is measured at `DEFAULT_PRICE`.
    """
    undivided = settings.get("credit") == "token" or settings.get("scale_rewards") == "none"
    in_loss = settings.get("beta") if undivided else None
    in_reward = None if settings.get("kl_type") == "none" else settings.get("kl_coef")
    return in_loss or in_reward or DEFAULT_PRICE


def of_the_best(rewards: np.ndarray, n: int, values: np.ndarray) -> np.ndarray:
    """What the best of n by `rewards` (P, N) has in `values` (P, N): (P,), the mean over all subsets of size n.

    The i-th smallest of the N samples is the best of C(i-1, n-1) of the C(N, n) subsets.
    """
    num_samples = rewards.shape[1]
    # Q22. The best of the first n of the N samples has the same expectation. Why all subsets? And how sure is
    # the point n = N?
    weights = np.array([math.comb(i, n - 1) / math.comb(num_samples, n) for i in range(num_samples)])
    order = np.argsort(rewards, axis=1, kind="stable")
    return np.take_along_axis(values, order, axis=1) @ weights


def kl_of_best(n: int) -> float:
    """KL(pi||pi_ref) of the best of n, in nats: exact for rewards without ties, and an upper bound with them."""
    return math.log(n) - (n - 1) / n


def best_of_n(
    rewards: np.ndarray, n: int, judged: np.ndarray | None = None, by: np.ndarray | None = None
) -> Point:
    """Draw n completions, keep the one of the highest reward (Stiennon 2020, Gao 2022), or the highest of `by`."""
    by = rewards if by is None else by
    return {
        "n": n,
        "kl": kl_of_best(n),
        "sentiment": float(of_the_best(by, n, rewards).mean()),
        "judge": None if judged is None else float(of_the_best(by, n, judged).mean()),
        "effective_samples": rewards.shape[1] / n,
    }


def tilt(rewards: np.ndarray, beta: float, judged: np.ndarray | None = None) -> Point:
    """The policy that maximises E[r] - beta KL(pi||pi_ref): pi* ~ pi_ref exp(r/beta) (Ziegler 2019; DPO eq. 4).

    Self-normalised weights w_i = exp(r_i/beta) / sum_j exp(r_j/beta) of each prompt's N samples:
    reward sum_i w_i r_i, KL = log N + sum_i w_i log w_i. For its KL, no policy has a higher reward.
    `effective_samples` is 1 / sum_i w_i^2, averaged over prompts; see `MIN_EFFECTIVE_SAMPLES`.
    """
    # Q23. beta = 0.1, scores in [0, 1]: how many completions of score 0 weigh as much as one of score 1? If
    # J*, the most that E[r] - beta KL can be, is 0.8, about what share of the reference's completions score
    # near 1?
    scaled = rewards / beta
    log_w = scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True)
    w = np.exp(log_w)
    kl = math.log(rewards.shape[1]) + np.where(w > 0, w * log_w, 0.0).sum(axis=1)  # 0 log 0 = 0
    return {
        "beta": beta,
        "kl": float(kl.mean()),
        "sentiment": float((w * rewards).sum(axis=1).mean()),
        "judge": None if judged is None else float((w * judged).sum(axis=1).mean()),
        "effective_samples": float((1.0 / (w**2).sum(axis=1)).mean()),
    }


def curves(rewards: np.ndarray, judged: np.ndarray | None = None) -> tuple[list[Point], list[Point]]:
    """(best-of-n for n = 1, 2, 4, ... up to N; the tilt for beta from 10 down, while its weights can be trusted)."""
    sizes = [2**k for k in range(rewards.shape[1].bit_length())]
    bon = [best_of_n(rewards, n, judged) for n in sizes]
    # Q24. With J = E[r] - beta KL, a policy has captured (J - J(pi_ref)) / (J* - J(pi_ref)) of what can be
    # had. How much is that for score 1.0 at 150 nats, beta 0.1, J(pi_ref) = 0.5, J* = 0.8? From which beta
    # downwards would it be at least 0?
    tilts = [tilt(rewards, beta, judged) for beta in np.geomspace(10.0, 0.02, 28)]
    return bon, [point for point in tilts if point["effective_samples"] >= MIN_EFFECTIVE_SAMPLES]


# ---- the share of the possible gain ------------------------------------------------------------------------


def attainable(rewards: np.ndarray, beta: float) -> np.ndarray:
    """J* of each prompt: the maximum of J(pi) = E[r] - beta KL(pi||pi_ref) over all policies.

    J* = beta log E_ref[exp(r/beta)] (Ziegler 2019; DPO eq. 4), from N reference samples' `rewards` (prompts, N). The
    mean inside the log is unbiased, so J* comes out too low, by about beta var(w) / (2 N mean(w)^2), w = exp(r/beta).
    """
    scaled = rewards / beta
    return beta * (np.logaddexp.reduce(scaled, axis=1) - math.log(rewards.shape[1]))


def captured(rewards: np.ndarray, kl: np.ndarray, reference_rewards: np.ndarray, beta: float) -> Estimate:
    """(J(pi) - J(pi_ref)) / (J* - J(pi_ref)): the share of the possible gain, means over prompts.

    `rewards` and `kl`, KL(pi||pi_ref) in nats, are those of the policy's completions, (prompts, n);
    `reference_rewards` (prompts, N) those of the reference's. 0 is the reference, 1 the optimum, and below 0 the KL
    costs more than the reward gained. The interval is bootstrapped over prompts, paired. NaN if at every prompt all
    rewards are equal: then no gain is possible.
    """
    base = reference_rewards.mean(axis=1)  # J(pi_ref): no KL to itself
    room = attainable(reference_rewards, beta) - base
    gain = (rewards - beta * kl).mean(axis=1) - base
    g, r = mean_estimate(gain[:, None]), mean_estimate(room[:, None])  # the same prompts are drawn for both
    if r.value < NO_ROOM:
        return Estimate(math.nan, np.empty(0))
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of prompts without room: no interval
        return Estimate(g.value / r.value, g.replicates / r.replicates)
