"""The checks themselves: mistakes named, right answers in any style let be. `pytest tests/grading/test_checks.py`."""

import math
import random
import re
import types
from pathlib import Path

import pytest

from grading import checks
from grading.checks import CHECKS, EXERCISES, run_checks
from grading.submission import BACKWARD, FORWARD, PREFERENCE, SHAPED, Mistake, Unfilled, load
from grading.trees import cosine, log_softmax, make_tree, norm
from tests.conftest import ROOT
from tests.grading.conftest import SUBMISSIONS, solution_with, student_of


def results_of(path: Path, seed: object = "test") -> dict[str, list]:
    me = student_of(load(path))
    return {function: list(run_checks(me, function, seed)) for function in EXERCISES}


@pytest.mark.parametrize(
    ("ours", "exactly", "message"),
    [
        ([1.0, 0.0], True, None),
        ([0.92, 0.39], False, None),  # cosine 0.92, length 1
        ([0.92, 0.39], True, "is not the gradient"),
        ([0.88, 0.47], False, "is not the gradient"),  # cosine 0.88
        ([0.5, 0.0], False, "0.5 times as long"),
        ([2.0, 0.0], True, "2 times as long"),
        ([-1.0, 0.0], True, "away from the reference"),
        ([-1.0, 0.0], False, "away from the reference"),
        ([0.0, 0.0], False, "is not the gradient"),
    ],
)
def test_compare_with_the_gradient_1_0(ours, exactly, message):
    if message is None:
        checks.compare(ours, [1.0, 0.0], "KL", exactly)
    else:
        with pytest.raises(Mistake, match=message):
            checks.compare(ours, [1.0, 0.0], "KL", exactly)


def test_token_weights_are_far_from_the_limit_on_the_trees_of_the_check():
    """No right answer may fail by the luck of the draw: of the room that check 2.2 leaves, at most half is used.

    At prefix s the policy gradient of sum_t (1 - w_t) is pi(s) (pi(.|s) - pi_ref(.|s)), as the factors of the other
    tokens have mean 0 under pi; that of KL(pi_ref || pi) is pi_ref(s) (pi(.|s) - pi_ref(.|s)).
    """

    def visits(probs: dict, prefix: tuple) -> float:
        return math.prod(probs[prefix[:t]][token] for t, token in enumerate(prefix))

    rng = random.Random(0)
    for _ in range(200):
        tree = make_tree(rng, vocab=3, length=4, eos=True, nats=checks.NEAR)
        pi, ref = (
            {s: [math.exp(lp) for lp in log_softmax(logits)] for s, logits in model.items()}
            for model in (tree.policy, tree.ref)
        )
        token, true = (
            [visits(probs, s) * (p - r) for s in pi for p, r in zip(pi[s], ref[s], strict=True)]
            for probs in (pi, ref)
        )
        assert 1 - cosine(token, true) < (1 - checks.COSINE) / 2
        assert 0.85 < norm(token) / norm(true) < 1.25


# ---- right answers and mistakes ----------------------------------------------------------------------------


def test_a_hundred_points():
    assert sum(check.points for check in CHECKS if check.function != PREFERENCE) == 100
    assert sum(check.points for check in CHECKS if check.function == PREFERENCE) == 10
    assert len({check.number for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        first = {FORWARD: "1.", BACKWARD: "2.", SHAPED: "3.", PREFERENCE: "4."}[check.function]
        assert check.number.startswith(first)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "path",
    [*sorted((SUBMISSIONS / "right").glob("*.py")), ROOT / "rewards_solution.py"],
    ids=lambda path: path.stem,
)
def test_right_in_any_style(path, seed):
    for function, verdicts in results_of(path, seed).items():
        wrong = [m for _, m in verdicts if m]
        if function == PREFERENCE and path.parent.name == "right":  # which do without it: it is optional
            assert wrong and all(isinstance(m, Unfilled) for m in wrong)
        else:
            assert [str(m) for m in wrong] == [], function


MISTAKES = [p for p in sorted((SUBMISSIONS / "mistakes").glob("*.py")) if p.stem != "forward_loops_on_empty"]


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: path.stem)
def test_a_mistake_costs_points_in_its_function_and_is_named(path, tmp_path):
    """The first line of each file says `# function: words of the hint that must come`."""
    text = path.read_text(encoding="utf-8")
    function, hint = re.match(r"# (\w+): (.*)\n", text).groups()
    results = results_of(solution_with(tmp_path, text))
    for other in EXERCISES.keys() - {function}:
        assert not any(m for _, m in results[other])
    messages = [str(m) for _, m in results[function] if m]
    assert messages
    assert any(hint in message for message in messages), messages


def test_w_log_w_drives_the_policy_away():
    """The classic: 60 exact steps on w * log w raise the KL it estimates; on 1 - w they end at 0."""
    with pytest.raises(Mistake, match=r"from 0\.150 to (\d+\.\d+)") as caught:
        module = load(SUBMISSIONS / "mistakes" / "backward_w_log_w.py")
        checks.backward_descent(student_of(module), random.Random(0))
    assert float(re.search(r"to (\d+\.\d+)", str(caught.value)).group(1)) > 1


@pytest.mark.parametrize(
    ("loss", "failed"),
    [
        ("max(r - c, 0) + log(1 + exp(-abs(r - c)))", set()),
        ("-min(c - r, 0) + log(1 + exp(-abs(r - c)))", set()),
        ("log(1 + exp(min(r - c, 500)))", {"4.3"}),  # finite, and 300 nats short
        # the right values at a glance, but nothing flows where the choice is far off
        ("-log(max(1 / (1 + exp(r - c)), 0.2))", {"4.1", "4.2", "4.3"}),
        ("0.5 * (max(r - c, 0) + log(1 + exp(-abs(r - c))))", {"4.1", "4.2", "4.3"}),
        ("max(c - r, 0) + log(1 + exp(-abs(r - c)))", {"4.1", "4.2", "4.3"}),
        # a constant shift has the right gradient
        ("1 + max(r - c, 0) + log(1 + exp(-abs(r - c)))", {"4.1", "4.3"}),
    ],
)
def test_what_the_checks_of_the_preference_loss_see(loss, failed):
    names = {"log": math.log, "exp": math.exp}
    module = types.ModuleType("rewards")
    module.preference_loss = lambda chosen, rejected: [
        eval(loss, {**names, "c": c, "r": r}) for c, r in zip(chosen, rejected, strict=True)
    ]
    for seed in range(3):
        verdicts = run_checks(student_of(module), PREFERENCE, seed)
        assert {check.number for check, mistake in verdicts if mistake} == failed


def test_unfilled_and_nan_earn_nothing():
    verdicts = results_of(ROOT / "rewards.py")
    assert all(isinstance(m, Unfilled) for results in verdicts.values() for _, m in results)
    nan = types.ModuleType("rewards")
    for function in EXERCISES:
        setattr(nan, function, lambda rows, *_, **__: [math.nan] * len(rows))
    me = student_of(nan)
    for function in EXERCISES:
        assert all(m for _, m in run_checks(me, function, 0))


def test_no_answer_stands_in_what_students_get():
    """The formula of exercise 1b is nowhere in the files of the self-check."""
    for name in ("checks.py", "loopholes.py", "mistakes.py", "self_check.py", "submission.py", "trees.py"):
        text = re.sub(r"\s", "", (ROOT / "grading" / name).read_text(encoding="utf-8"))
        assert not re.search(r"1(\.0)?-(math\.)?exp|expm1|1(\.0)?-w", text), name
