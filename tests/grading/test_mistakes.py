"""The table of classic mistakes against the formulas it was made from. `pytest tests/grading/test_mistakes.py`."""

import math
import random
import types

import pytest

from grading.checks import CHECKS
from grading.mistakes import PROBE, WRONG_TERMS, diagnose
from grading.submission import BACKWARD, FORWARD, Mistake
from tests.grading.conftest import student_of

TERMS = {
    FORWARD: [
        "-d", "abs(d)", "max(d, 0)", "min(d, 0)", "max(-1, min(d, 1))", "d * d / 2", "d * d", "w - 1 + d", "p * d",
        "-r * d", "-w * d", "1 - w", "1 / w", "1 / w - 1", "w", "p - r", "log(p)", "-log(p)", "-log(r)", "log(r)",
        "log(p) + log(r)", "d / log(2)",
    ],
    BACKWARD: [
        "w - 1", "1 - 1 / w", "1 / w - 1", "-w", "w", "1 / w", "-w * d", "w * d", "d", "-d", "abs(1 - w)",
        "max(1 - w, 0)", "min(1 - w, 0)", "(1 - w) ** 2", "d * d / 2", "w - 1 + d", "-w * d - w + 1", "1 / w - 1 - d",
        "-r * d", "p * d", "p - r", "log(p)", "-log(p)", "-log(r)", "1 + d", "-d - 1",
    ],
}  # fmt: skip


@pytest.mark.parametrize("function", [FORWARD, BACKWARD])
def test_the_table_of_wrong_terms(function):
    """Recompute the stored numbers; none is the right answer, and no two look alike."""
    tables = [
        [eval(term, {"p": p, "r": r, "d": math.log(p / r), "w": r / p, "log": math.log}) for p, r in PROBE]
        for term in TERMS[function]
    ]
    stored = list(WRONG_TERMS[function])
    assert len(stored) == len(tables)
    for numbers, table in zip(stored, tables, strict=True):
        assert numbers == pytest.approx(table, abs=1e-6)
    right = [math.log(p / r) if function == FORWARD else 1 - r / p for p, r in PROBE]
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
