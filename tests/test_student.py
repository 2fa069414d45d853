"""A student's functions, loaded and called: whatever is wrong is one sentence. `pytest tests/test_student.py`."""

import math
import sys

import numpy as np
import pytest
import torch

from kit.base.errors import Stopped, UserError
from kit.base.student import checked, load_student


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "def kl_penalty_forward(p, r, c)\n",
            r"^rewards.py does not run: Synt.*expected ':' \(rewards.py, line 1\)",
        ),
        (
            "x = 1\n\ny = x / 0\n",
            r"rewards.py does not run: ZeroDivisionError: division by zero \(in <module>, rewards.py line 3: y = x",
        ),
        ("def kl_penalty(p, r, c=0.1): return [0.0]\n", r"rewards.py has no function kl_penalty_forward"),
        (
            "from functools import partial\nkl_penalty_forward = partial(max)\n",
            r"has no function kl_penalty_f",
        ),
        (
            "def kl_penalty_forward(p, r): return [0.0]\n",
            r"^kl_penalty_forward \(rewards.py, line 1\): TypeError: .*positional",
        ),
        (
            "def kl_penalty_forward(p, r, c):\n    return 1 / 0\n",
            r"line 1\): ZeroDivisionError: division by zero \(in kl_penalty_forward, rewards.py line 2: return 1 / 0\)",
        ),
        (
            "import sys\nsys.exit()\n",
            r"rewards.py does not run: SystemExit \(in <module>, rewards.py line 2: sys.exit\(\)\)",
        ),
        (
            "def kl_penalty_forward(p, r, c):\n    exit()\n",
            r": SystemExit: None \(in kl_penalty_forward, rewards.py line 2",
        ),
        ("import theirs\n", r"^rewards.py does not run: SyntaxError: .* \(theirs\.py, line 1\)"),
        ("def kl_penalty_forward(p, r, c): return 0.0\n", r"returned a float, not a list"),
        ("def kl_penalty_forward(p, r, c): return []\n", r"returned 0 values for 1 completion:"),
    ],
)
def test_a_broken_rewards_file_is_one_sentence_before_any_model(source, says, tmp_path, monkeypatch):
    (tmp_path / "rewards.py").write_text(source)
    (tmp_path / "theirs.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "rewards", None)  # what is imported here does not outlive the test
    del sys.modules["rewards"]
    with pytest.raises(UserError, match=says):
        load_student(kl_type="forward")


def test_a_wrong_function_is_refused_before_training_unless_unchecked(tmp_path, monkeypatch):
    (tmp_path / "rewards.py").write_text("def kl_penalty_forward(p, r, c=0.1): return [0.0] * len(p)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "rewards", None)
    del sys.modules["rewards"]
    with pytest.raises(UserError, match=r"kl_penalty_forward.*--unchecked"):
        load_student(kl_type="forward")
    assert load_student(kl_type="forward", unchecked=True).kl_penalty_forward([[1.0]], [[1.0]]) == [0.0]
    assert load_student(kl_type="none") is None


def test_the_solution_is_missed_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "rewards_solution", None)  # as in the students' hand-out
    with pytest.raises(
        UserError, match=r"^there is no rewards_solution\.py beside train\.py; leave out --use_solution"
    ):
        load_student(use_solution=True, kl_type="forward")


def test_checked_names_function_file_and_line():
    def too_few(scores):
        return scores[1:]

    def raises(scores):
        return [1 / 0 for _ in scores]

    def not_written(scores):
        raise NotImplementedError("Exercise 9")

    line = too_few.__code__.co_firstlineno
    with pytest.raises(UserError, match=rf"^too_few \(test_student.py, line {line}\): .*1 value for 2 comp"):
        checked(too_few, [0.1, 0.2])
    line = raises.__code__.co_firstlineno + 1
    with pytest.raises(UserError, match=rf"ZeroDivisionError: .*test_student.py line {line}: return"):
        checked(raises, [0.1])
    with pytest.raises(UserError, match=r"not_written .* is not written yet: fill it"):
        checked(not_written, [0.1])


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([math.nan], "Value 0 of the returned list is nan"),
        ([math.inf], "Value 0 of the returned list is inf"),
        ([10**400], "an int too large for a float"),
        ([-2e18], r"value 0 is -2e\+18; float32 needs values below 1e\+18"),
        ([True], "a bool"),
        (["0.5"], "a str"),
        ([None], "a NoneType"),
        ([torch.tensor(0.5)], "a Tensor"),
        (None, "None"),
        (0.5, "a float, not a list"),
    ],
)
def test_checked_refuses_what_is_not_a_finite_number(value, says):
    with pytest.raises(UserError, match=says):
        checked(lambda scores: value, [0.5])


def test_checked_takes_any_real_number_and_keeps_the_arguments():
    def greedy(scores):
        scores.clear()
        return (1, np.float64(0.5), np.float32(0.25))

    scores = [0.1, 0.2, 0.3]
    assert checked(greedy, scores) == [1.0, 0.5, 0.25]
    assert scores == [0.1, 0.2, 0.3]


def test_ctrl_c_in_a_students_function_is_the_users():
    def stopped(scores):
        raise Stopped(2)

    with pytest.raises(Stopped):
        checked(stopped, [0.5])
