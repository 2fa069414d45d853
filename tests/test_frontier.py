"""Best-of-n and the tilt, by enumeration.

pytest tests/test_frontier.py
"""

import itertools
import math

import numpy as np
import pytest

from kit.measure.frontier import attainable, best_of_n, captured, curves, price, tilt


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.1),
        ({"kl_type": "forward", "kl_coef": 0.05, "beta": 0.0, "scale_rewards": "group"}, 0.05),
        # the flag's default, in a variant
        ({"kl_type": "none", "kl_coef": 0.12, "beta": 0.0}, 0.1),
        ({"kl_type": "none", "kl_coef": 0.1, "beta": 0.3, "scale_rewards": "group"}, 0.1),  # 0.3 s of reward
        ({"kl_type": "none", "kl_coef": 0.1, "beta": 0.3, "scale_rewards": "none"}, 0.3),
        ({"kl_type": "none", "kl_coef": 0.1, "beta": 0.04, "credit": "token"}, 0.04),
        ({"kl_coef": 0.3}, 0.3),  # PPO
    ],
)
def test_the_price_of_a_nat_in_reward(settings, expected):
    assert price(settings) == expected


def test_best_of_n_is_the_mean_over_all_subsets():
    rewards = np.array([[0.3, 0.9, 0.1, 0.5], [0.2, 0.2, 0.8, 0.0]])
    judge = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 7.0, 8.0]])
    for n in (1, 2, 3, 4):
        point = best_of_n(rewards, n, judge)
        best = [max(s, key=lambda i: row[i]) for row in rewards for s in itertools.combinations(range(4), n)]
        row_of = np.repeat([0, 1], len(best) // 2)
        assert point["sentiment"] == pytest.approx(np.mean(rewards[row_of, best]))
        assert point["judge"] == pytest.approx(np.mean(judge[row_of, best]))
        assert point["kl"] == pytest.approx(math.log(n) - (n - 1) / n)


def test_best_of_n_kl_is_exact_by_enumeration():
    """Without ties, the best of 2 of k equally likely texts is text number i with probability (2i-1)/k^2."""
    k = 4000
    p = (2 * np.arange(1, k + 1) - 1) / k**2
    exact = float((p * np.log(p * k)).sum())
    assert best_of_n(np.zeros((1, 2)), 2)["kl"] == pytest.approx(exact, rel=1e-3)


def test_tilt_is_exact_when_the_samples_are_the_whole_distribution():
    """Four equally likely texts: the tilted distribution, its reward and its KL can be written out."""
    rewards, beta = np.array([0.0, 0.25, 0.5, 1.0]), 0.5
    p = np.exp(rewards / beta) / np.exp(rewards / beta).sum()
    point = tilt(rewards[None], beta, judged=rewards[None] ** 2)
    assert point["sentiment"] == pytest.approx(p @ rewards)
    assert point["judge"] == pytest.approx(p @ rewards**2)
    assert point["kl"] == pytest.approx(float(p @ np.log(p / 0.25)))
    assert point["effective_samples"] == pytest.approx(1 / float(p @ p))


def test_no_distribution_beats_the_tilt_at_its_own_kl():
    rng = np.random.default_rng(0)
    rewards = rng.random(5)
    point = tilt(rewards[None], 0.2)
    for _ in range(500):
        q = rng.dirichlet(np.ones(5) * rng.uniform(0.2, 5))
        if float(q @ np.log(q * 5)) <= point["kl"]:
            assert q @ rewards <= point["sentiment"] + 1e-12


def test_tilt_survives_small_beta():
    point = tilt(np.array([[0.0, 1.0, 0.5]]), 1e-4)
    assert (point["sentiment"], point["kl"], point["effective_samples"]) == pytest.approx(
        (1.0, math.log(3), 1.0)
    )


def test_curves_stop_where_the_weights_rest_on_too_few_samples():
    rewards = np.random.default_rng(0).random((20, 16))
    best, tilted = curves(rewards)
    assert [p["n"] for p in best] == [1, 2, 4, 8, 16]
    assert all(p["effective_samples"] >= 4 for p in tilted)
    assert len(tilted) > 5
    assert [p["kl"] for p in tilted] == sorted(p["kl"] for p in tilted)
    assert best[0]["sentiment"] == pytest.approx(rewards.mean())


# ---- captured ----------------------------------------------------------------------------------------------


def test_attainable_by_hand():
    """Rewards 0 and 1 with probability 1/2, beta 1: J* = log((1 + e) / 2) = 0.620."""
    assert attainable(np.array([[0.0, 1.0]]), 1.0) == pytest.approx([math.log((1 + math.e) / 2)])
    # a constant reward leaves nothing to gain
    assert attainable(np.array([[0.3, 0.3, 0.3]]), 0.1) == pytest.approx([0.3])


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_the_optimal_tilt_captures_all_and_the_reference_nothing(beta):
    """pi* ~ pi_ref exp(r/beta) by enumeration: its reward and its KL, prompt by prompt."""
    reference = np.random.default_rng(0).random((5, 12))
    weights = np.exp(reference / beta) / np.exp(reference / beta).sum(axis=1, keepdims=True)
    reward = (weights * reference).sum(axis=1, keepdims=True)
    kl = (weights * np.log(weights * 12)).sum(axis=1, keepdims=True)
    assert captured(reward, kl, reference, beta).value == pytest.approx(1.0)
    assert captured(reference, np.zeros_like(reference), reference, beta).value == pytest.approx(0.0)
    # the same reward for 1 nat more is worth beta less
    room = (attainable(reference, beta) - reference.mean(axis=1)).mean()
    dearer = captured(reward, kl + 1.0, reference, beta)
    assert dearer.value == pytest.approx(1.0 - beta / room)


def test_a_prompt_without_room_counts_with_what_it_lost_and_no_room_at_all_is_no_number():
    # room log((1 + e) / 2) - 1/2 = 0.12 and 0; gains 0.3 - 0.5 - 0 and 0.9 - 0.9 - 1
    reference = np.array([[0.0, 1.0], [0.9, 0.9]])
    found = captured(np.array([[0.3], [0.9]]), np.array([[0.0], [1.0]]), reference, 1.0)
    assert found.value == pytest.approx((-0.2 - 1.0) / (math.log((1 + math.e) / 2) - 0.5))
    assert math.isnan(captured(np.ones((2, 1)), np.ones((2, 1)), np.full((2, 4), 0.7), 0.1).value)


def test_captured_is_paired_by_prompt_and_may_be_negative():
    reference = np.array([[0.0, 1.0], [0.0, 1.0], [0.2, 0.4]])
    hacked = captured(np.ones((3, 1)), np.full((3, 1), 150.0), reference, 0.1)
    room = attainable(reference, 0.1) - reference.mean(axis=1)
    by_hand = ((1 - 15 - reference.mean(axis=1)).sum()) / room.sum()
    assert hacked.value == pytest.approx(by_hand) and by_hand < -40
    low, high = hacked.interval()
    assert low <= hacked.value <= high
    # two prompts: one draw in four has the first twice, one the second; each has its own gain over its own room
    found = captured(np.array([[0.6], [1.4]]), np.zeros((2, 1)), np.array([[0.0, 1.0], [0.0, 2.0]]), beta=1.0)
    room = math.log((1 + math.e) / 2) - 0.5, math.log((1 + math.exp(2)) / 2) - 1
    assert found.interval() == pytest.approx((0.1 / room[0], 0.4 / room[1]))


def test_curves_carry_the_other_scale():
    values = np.arange(8.0)[None]
    best, tilted = curves(np.zeros((1, 8)), values)
    assert [p["judge"] for p in tilted] == pytest.approx([3.5] * len(tilted)) and all(
        p["sentiment"] == 0 for p in tilted
    )
    rewards = np.arange(8.0)[None] / 8
    best, _ = curves(rewards, 10 + rewards)
    assert best[-1]["judge"] == pytest.approx(10.875) and best[0]["judge"] == pytest.approx(10.4375)
    assert best_of_n(rewards, 2)["effective_samples"] == 4
    # weights of two prompts: equal (4 effective) and all on one (1)
    two = np.array([[0.0] * 4, [0.0, 0.0, 0.0, 1.0]])
    assert tilt(two, 1e-3)["effective_samples"] == pytest.approx(2.5)
