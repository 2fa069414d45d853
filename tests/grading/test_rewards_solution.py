"""The reference solution, by hand. `pytest tests/grading/test_rewards_solution.py`."""

import inspect
import math

import pytest

import rewards
import rewards_solution
from grading.submission import FUNCTIONS


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_forward_by_hand():
    """pi = (1/2, 1/2), pi_ref = (1/4, 3/4): log-ratios ln 2 and ln 2/3, mean 0.143841 = KL(pi || pi_ref)."""
    values = rewards_solution.kl_penalty_forward([logs(0.5), logs(0.5)], [logs(0.25), logs(0.75)], 1.0)
    assert values == pytest.approx([0.693147, -0.405465], abs=1e-6)
    assert sum(values) / 2 == pytest.approx(0.143841, abs=1e-6)
    rows = rewards_solution.kl_penalty_forward([logs(0.5, 0.5), []], [logs(0.25, 0.5), []], 2.0)
    assert rows == pytest.approx([1.386294, 0.0], abs=1e-6)


def test_backward_by_hand():
    """w = 1/2 and 3/2, so 1/2 and -1/2: the token that pi overuses is charged, the neglected one paid."""
    values = rewards_solution.kl_penalty_backward([logs(0.5), logs(0.5)], [logs(0.25), logs(0.75)], 1.0)
    assert values == pytest.approx([0.5, -0.5])
    (value,) = rewards_solution.kl_penalty_backward([logs(0.5, 0.5)], [logs(0.25, 0.25)], 0.1)
    assert value == pytest.approx(0.1)
    (far,) = rewards_solution.kl_penalty_backward([[-800.0]], [[0.0]], 1.0)
    assert far == pytest.approx(1 - math.exp(10))
    assert rewards_solution.kl_penalty_backward([[-1.0]], [[-math.inf]], 1.0) == [1.0]


def test_shaped_reward_by_hand():
    """Repetition is 0, 1/2 (4 words, 2 of them new) or 1 - 1/low; length is 0 inside the target and -1 outside."""
    low, high = rewards_solution.TARGET_WORDS
    s, r, n = (getattr(rewards_solution, f"{name}_WEIGHT") for name in ("SENTIMENT", "REPETITION", "LENGTH"))
    cases = {
        "Great GREAT great day": 0.5 * s + 0.5 * r - n,
        "": 0.5 * s - n,
        " \n\t": 0.5 * s - n,
        " ".join(f"word{i}" for i in range(low - 1)): 0.5 * s - n,
        " ".join(f"word{i}" for i in range(low)): 0.5 * s,
        " ".join(f"word{i}" for i in range(high)): 0.5 * s,
        " ".join(f"word{i}" for i in range(high + 1)): 0.5 * s - n,
        "x " * low: 0.5 * s + (1 - 1 / low) * r,
    }
    assert rewards_solution.shaped_reward([0.5] * len(cases), list(cases)) == pytest.approx(
        list(cases.values())
    )


def test_preference_by_hand():
    """Equal scores: log 2. Odds of 3 to 1: -log 3/4, and -log 1/4 for the other choice."""
    chosen, rejected = [0.0, math.log(3), 0.0, 0.0, 800.0], [0.0, 0.0, math.log(3), 800.0, 0.0]
    wanted = [0.693147, 0.287682, 1.386294, 800.0, 0.0]
    assert rewards_solution.preference_loss(chosen, rejected) == pytest.approx(wanted, abs=1e-6)


def test_signatures_agree():
    for function in FUNCTIONS:
        assert inspect.signature(getattr(rewards, function), eval_str=True) == inspect.signature(
            getattr(rewards_solution, function)
        )
