"""Gao's fits on curves written down by hand. `pytest tests/test_goodhart.py`"""

import itertools
import math

import numpy as np
import pytest

from kit.measure import plots
from kit.measure.frontier import best_of_n, of_the_best
from kit.measure.goodhart import Curve, as_dict, fit, of_best_of_n, of_run, turning


def curve(kind: str, alpha: float, beta: float, noise: float = 0.0) -> Curve:
    """Exact points, at 8 prompts that differ by `noise` in alpha, up and down alike."""
    delta = np.array([0.0, 0.5, 1.0, 2.0, 4.0])
    log_or_delta = [0.0, *map(math.log, delta[1:])] if kind == "rl" else delta
    spread = noise * np.array([-1, 1] * 4)
    gold = np.array(
        [[d * (alpha + s - beta * x) for s in spread] for d, x in zip(delta, log_or_delta, strict=True)]
    )
    return Curve("a", kind, delta, {"proxy": gold * 2, "gold": gold})


@pytest.mark.parametrize(
    ("kind", "alpha", "beta", "turn"),
    [
        ("rl", 1.0, 0.5, math.e),  # exp(2 - 1)
        ("rl", 0.2, 0.2, 1.0),
        ("bon", 1.5, 0.5, 1.5),
        ("bon", 1.0, -0.1, math.nan),  # rises for ever
        ("rl", 1.0, 0.0, math.nan),
    ],
)
def test_the_parameters_come_back(kind, alpha, beta, turn):
    found = fit(curve(kind, alpha, beta), "gold")
    assert found.alpha.value == pytest.approx(alpha) and found.beta.value == pytest.approx(beta, abs=1e-9)
    if beta:  # at 0 rounding decides
        assert found.turn.value == pytest.approx(turn, nan_ok=True)
    doubled = fit(curve(kind, alpha, beta), "proxy")
    assert doubled.alpha.value == pytest.approx(2 * alpha)
    at = np.array([0.0, 3.0])
    bend = math.log(3) if kind == "rl" else 3
    assert found(at) == pytest.approx([0.0, 3 * (alpha - beta * bend)])


def test_the_turning_point_is_the_maximum():
    for kind, alpha, beta in (("rl", 1.0, 0.5), ("bon", 1.5, 0.5)):
        x = np.linspace(0.01, 8, 100_000)
        r = x * (alpha - beta * (np.log(x) if kind == "rl" else x))
        assert turning(kind, np.array(alpha), np.array(beta)) == pytest.approx(x[r.argmax()], abs=1e-3)


def test_the_interval_is_that_of_the_prompts():
    """A mean of eight numbers, 1 +- 0.4: the bootstrap interval reaches about 1.96 * 0.4 / sqrt(8) each way."""
    found = fit(curve("bon", 1.0, 0.2, noise=0.4), "gold")
    low, high = found.alpha.interval()
    # every prompt has the same beta: the turning point is alpha / 0.4 in every draw
    assert found.as_dict()["turn"] == pytest.approx([2.5, low / 0.4, high / 0.4])
    assert (1 - low, high - 1) == (pytest.approx(0.277, abs=0.07), pytest.approx(0.277, abs=0.07))
    assert fit(curve("bon", 1.0, 0.2), "gold").alpha.interval() == pytest.approx((1.0, 1.0))


def test_no_fit_from_one_distance_or_without_a_gold_reward():
    one = Curve("a", "rl", np.array([0.0, 1.0]), {"proxy": np.zeros((2, 3)), "gold": np.zeros((2, 3))})
    assert fit(one, "gold") is None
    people = Curve("a", "rl", np.arange(4.0), {"proxy": np.ones((4, 3)), "gold": np.full((4, 3), np.nan)})
    assert fit(people, "gold") is None and fit(people, "proxy") is not None
    assert as_dict(people)["fits"]["gold"] is None


def test_best_of_n_by_the_learned_reward_by_enumeration():
    proxy = np.array([[0.3, 0.9, 0.1, 0.5], [2.0, 1.0, 8.0, 0.0]])
    gold = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    for n in (1, 2, 4):
        for values in (proxy, gold):
            expected = [
                np.mean([v[max(s, key=lambda i: p[i])] for s in itertools.combinations(range(4), n)])
                for p, v in zip(proxy, values, strict=True)
            ]
            assert of_the_best(proxy, n, values) == pytest.approx(expected)
    found = of_best_of_n(proxy, gold)
    assert found.delta == pytest.approx([0.0, math.sqrt(math.log(2) - 1 / 2), math.sqrt(math.log(4) - 3 / 4)])
    # best of 4: 2.0 and 7.0; the mean of all: 2.5 and 6.5
    assert found.rewards["gold"][-1] == pytest.approx([2.0 - 2.5, 7.0 - 6.5])
    # best of n by the learned reward, as the frontier shows it: what it has in another score
    assert best_of_n(gold, 4, by=proxy)["sentiment"] == pytest.approx((2.0 + 7.0) / 2)


def test_the_curve_of_a_run():
    rows = [
        {"step": step, "prompt": p, "kl_policy_ref": kl, "proxy": proxy, "gold": gold}
        for step, p, kl, proxy, gold in (
            (0, "x", 0.0, 0.5, -0.5),
            (0, "y", 0.0, 0.1, 0.3),
            (10, "x", 3.0, 1.5, 0.5),
            (10, "y", 5.0, 2.1, 0.0),
        )
    ]
    found = of_run("a", rows)
    assert found.delta == pytest.approx([0.0, 2.0])  # sqrt of the mean, not the mean of roots
    assert found.rewards["proxy"] == pytest.approx(np.array([[0.0, 0.0], [1.0, 2.0]]))
    assert found.rewards["gold"] == pytest.approx(np.array([[0.0, 0.0], [1.0, -0.3]]))
    assert of_run("a", [{"step": 0, "prompt": "x", "kl_policy_ref": 0.0}]) is None
    people = of_run("a", [{**row, "gold": None} for row in rows])
    assert np.isnan(people.rewards["gold"]).all()


def test_the_figure(tmp_path):
    curves = [
        curve("rl", 1.0, 0.5),
        curve("bon", 1.5, 0.5),
        Curve("b", "rl", np.zeros(1), {k: np.zeros((1, 2)) for k in ("proxy", "gold")}),
    ]
    figure = plots.overoptimization(curves, ["base", "a", "b"])
    plots.save(figure, tmp_path, "overoptimization")
    left, right = figure.axes
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["Training: R = δ (α - β log δ)", "Best of n: R = δ (α - β δ)"]
    labels = [label for label in left.get_legend_handles_labels()[1] if label.startswith("a: gold")]
    assert labels == ["a: gold reward\nα 1.00 [1.00, 1.00], β 0.50 [0.50, 0.50], turns at δ 2.7"]
    marks = [line.get_xdata()[0] for line in left.lines if line.get_linestyle() == ":"]
    assert marks == [pytest.approx(math.e)]
    assert [line.get_xdata()[0] for line in right.lines if line.get_linestyle() == ":"] == [
        pytest.approx(1.5)
    ]
