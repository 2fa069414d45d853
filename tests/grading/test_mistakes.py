"""The table of classic mistakes against the formulas it was made from. `pytest tests/grading/test_mistakes.py`."""

import math
import random
import types

import pytest

from grading.checks import CHECKS, run_checks
from grading.mistakes import PREFERENCE_PROBE, PROBE, WRONG_PREFERENCE, WRONG_TERMS, diagnose
from grading.submission import BACKWARD, FORWARD, PREFERENCE, Mistake, load
from tests.grading.conftest import SUBMISSIONS, solution_with, student_of

BOTH = ["d * d / 2", "w - 1 + d", "p * d", "-r * d", "p - r", "log(p)", "-log(p)", "-log(r)"]
TERMS = {
    FORWARD: [
        "-d", "abs(d)", "max(d, 0)", "min(d, 0)", "max(-1, min(d, 1))", "d * d", "-w * d", "1 - w", "1 / w",
        "1 / w - 1", "w", "log(r)", "log(p) + log(r)", "d / log(2)", *BOTH,
    ],
    BACKWARD: [
        "w - 1", "1 - 1 / w", "1 / w - 1", "-w", "w", "1 / w", "-w * d", "w * d", "d", "-d", "abs(1 - w)",
        "max(1 - w, 0)", "min(1 - w, 0)", "(1 - w) ** 2", "-w * d - w + 1", "1 / w - 1 - d", "1 + d", "-d - 1", *BOTH,
    ],
}  # fmt: skip


@pytest.mark.parametrize("function", [FORWARD, BACKWARD])
def test_the_table_of_wrong_terms(function):
    """Recompute the stored numbers; none is the right answer, and no two look alike."""
    tables = [
        [
            eval(term, {"p": p, "r": r, "d": math.log(p / r), "w": r / p, "log": math.log})
            for p, r in PROBE[:2]
        ]
        for term in TERMS[function]
    ]
    stored = list(WRONG_TERMS[function])
    assert len(stored) == len(tables)
    for numbers, table in zip(stored, tables, strict=True):
        assert numbers == pytest.approx(table, abs=1e-4)
    right = [math.log(p / r) if function == FORWARD else 1 - r / p for p, r in PROBE[:2]]
    tables.append(right)
    for i, one in enumerate(tables):
        for other in tables[:i]:
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 1e-3


@pytest.mark.parametrize("function", [FORWARD, BACKWARD])
def test_every_wrong_term_fails_and_is_named(function):
    """Each formula of the table as a submission: it fails, and the hint is the table's."""
    for term, hint in zip(TERMS[function], WRONG_TERMS[function].values(), strict=True):
        code = compile(term, term, "eval")

        def penalty(policy, ref, kl_coef=0.1, code=code):
            def value(a, b):
                names = {"p": math.exp(a), "r": math.exp(b), "d": a - b, "w": math.exp(min(b - a, 30.0))}
                return eval(code, {"log": math.log, **names})

            return [kl_coef * sum(map(value, p, r)) for p, r in zip(policy, ref, strict=True)]

        module = types.ModuleType("rewards")
        setattr(module, function, penalty)
        me = student_of(module)
        with pytest.raises(Mistake):
            for check in CHECKS:
                if check.function == function:
                    check.run(me, random.Random(0))
        assert diagnose(me, function) == [hint], term


def test_every_wrong_preference_loss_fails_and_is_named():
    """The stored numbers are those of these formulas of the gap d and p = sigmoid(d)."""
    terms = ["log(p)", "-log(1 - p)", "log(1 - p)", "p", "1 - p", "-d", "max(0, 1 - d)", "-log(p) / log(2)"]
    for term, (stored, hint) in zip(terms, WRONG_PREFERENCE.items(), strict=True):
        code = compile(term, term, "eval")

        def loss(chosen, rejected, code=code):
            gaps = [c - r for c, r in zip(chosen, rejected, strict=True)]
            return [eval(code, {"log": math.log, "d": d, "p": 1 / (1 + math.exp(-d))}) for d in gaps]

        assert loss(*PREFERENCE_PROBE) == pytest.approx(stored, abs=1e-4)
        module = types.ModuleType("rewards")
        module.preference_loss = loss
        _, first = next(run_checks(student_of(module), PREFERENCE, 0))
        assert str(first).startswith(hint), term


FAILS = {
    # k3 has the right mean and another gradient; exp(800) alone is too far
    "forward_k3": {"1.2", "1.6"},
    "forward_k2": {"1.1", "1.2"},
    "forward_no_coef": {"1.3"},
    "forward_mutates": {"1.7"},
    "forward_crashes_on_empty": {"1.7"},
    # the expectation of -w is the right gradient for one token, and -1 a token where the models agree
    "backward_no_constant": {"2.2", "2.5"},
    "backward_clips_at_2": {"2.1"},
    "backward_coef_squared": {"2.4"},
    "backward_overflows": {"2.7"},
    "backward_w_log_w": {"2.1", "2.2", "2.3", "2.7"},
    "shaped_unique_share": {"3.7"},
}


@pytest.mark.parametrize("name", FAILS)
def test_what_a_mistake_costs(name, tmp_path):
    text = (SUBMISSIONS / "mistakes" / f"{name}.py").read_text()
    me = student_of(load(solution_with(tmp_path, text)))
    function = text[2:].partition(":")[0]
    assert {c.number for c, m in run_checks(me, function, "test") if m} == FAILS[name]
