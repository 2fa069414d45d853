"""Your `rewards.py` against the checks of `python rewards.py`, one test for each.

    pytest tests/test_rewards.py                    all exercises
    pytest -k kl_penalty_forward                    one of them

An exercise that is not filled in yet is skipped.
"""

from functools import partial
from pathlib import Path

import pytest

from grading.checks import CHECKS, run_checks
from grading.self_check import SEED
from grading.submission import Student, Unfilled, call, load

REWARDS = Path(__file__).resolve().parent.parent / "rewards.py"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.function}-{check.number}")
def test_rewards(check):
    me = Student(partial(call, load(REWARDS)))
    mistake = next(mistake for c, mistake in run_checks(me, check.function, SEED) if c is check)
    if isinstance(mistake, Unfilled):
        pytest.skip(f"{check.function} is not implemented yet")
    if mistake:
        pytest.fail(f"{check.title}: {mistake}", pytrace=False)
