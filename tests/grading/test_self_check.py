"""`python rewards.py` as a student runs it, and what scripts ask. `pytest tests/grading/test_self_check.py`."""

import os
import re
import resource
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import rewards_solution
from grading import self_check
from grading.submission import BACKWARD, FORWARD, FUNCTIONS, SHAPED, load
from tests.conftest import ROOT
from tests.grading.conftest import SOLUTION, SUBMISSIONS, solution_with


def run(path: Path, *names: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, path, *names], cwd=path.parent, capture_output=True, text=True)


def kit_with(folder: Path, source: str) -> Path:
    """A rewards.py with the last lines of ours, where it finds the checks."""
    for needed in ("grading", "kit"):
        (folder / needed).symlink_to(ROOT / needed)
    path = folder / "rewards.py"
    main = (ROOT / "rewards.py").read_text(encoding="utf-8").partition('if __name__ == "__main__":')
    path.write_text(source + "\n\n" + main[1] + main[2], encoding="utf-8")
    return path


def mistake(name: str) -> str:
    return (SUBMISSIONS / "mistakes" / f"{name}.py").read_text(encoding="utf-8")


@pytest.fixture
def said(tmp_path, capsys):
    """Check the solution less what a text defines anew; the lines on the screen."""

    def check(text: str, *functions: str) -> list[str]:
        assert self_check.self_check(str(solution_with(tmp_path, text)), functions or FUNCTIONS) == 1
        return capsys.readouterr().out.splitlines()

    return check


def seconds_of_children() -> float:
    """Of the processor: a busy machine does not stretch them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---- python rewards.py -------------------------------------------------------------------------------------


def test_the_stubs():
    used = seconds_of_children()
    done = run(ROOT / "rewards.py")
    assert seconds_of_children() - used < 3
    assert done.returncode == 1
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line.split(" | ")[1] for line in lines] == [
        *["not implemented yet"] * 3,
        "optional, not implemented yet",
    ]


def test_the_solution(tmp_path):
    used = seconds_of_children()
    done = run(kit_with(tmp_path, SOLUTION))
    assert seconds_of_children() - used < 3
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("| right\n") == 4


def test_without_the_optional_function_all_is_right(tmp_path, capsys):
    path = tmp_path / "rewards.py"
    path.write_text(SOLUTION.partition("def preference_loss")[0], encoding="utf-8")
    assert self_check.self_check(str(path)) == 0
    assert "| optional, not implemented yet" in capsys.readouterr().out


def test_one_function(tmp_path):
    """The docstring of each stub names its own check."""
    stubs = load(ROOT / "rewards.py")
    path = kit_with(tmp_path, f"{SOLUTION}\n\n{mistake('backward_sign')}")
    for function, status in ((FORWARD, 0), (BACKWARD, 1), (SHAPED, 0)):
        assert f"`python rewards.py {function}`" in getattr(stubs, function).__doc__
        done = run(path, function)
        assert (done.returncode, done.stdout.count("exercise ")) == (status, 1)
        assert f" {function} " in done.stdout


def test_a_function_that_is_none():
    done = run(ROOT / "rewards.py", "kl_penality_forward")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert (
        "no exercise kl_penality_forward: name kl_penalty_forward, kl_penalty_backward, shaped" in done.stderr
    )


def test_what_is_wrong_without_a_traceback(tmp_path):
    broken = "def shaped_reward(scores, completions, prompts=None):\n    return [1 / 0 for _ in scores]\n"
    path = kit_with(tmp_path, f"{SOLUTION}\n\n{mistake('backward_w_log_w')}\n\n{broken}")
    done = run(path)
    assert done.returncode == 1 and done.stderr == ""
    assert "kl_penalty_forward   | right" in done.stdout
    assert "kl_penalty_backward  | wrong" in done.stdout and "w * log w" in done.stdout
    text = " ".join(done.stdout.split())
    line = path.read_text().splitlines().index("    return [1 / 0 for _ in scores]") + 1
    assert re.search(
        rf"ZeroDivisionError: division by zero \(in \S+, rewards.py line {line}: return", text
    ), text


@pytest.mark.parametrize("text", ["", "x = 1\n"], ids=["empty", "without the last lines"])
def test_a_file_that_cannot_check_itself(tmp_path, text):
    path = tmp_path / "rewards.py"
    path.write_text(text)
    command = [sys.executable, "-m", "grading.self_check", path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == ""
    names = "kl_penalty_forward, kl_penalty_backward, shaped_reward"
    assert done.stdout == f"rewards.py has no function: is it saved? It should have {names}.\n"


def test_a_file_that_is_not_there_or_does_not_run(tmp_path, capsys):
    path = tmp_path / "rewards.py"
    for text, said in (
        (None, f"There is no file {path}.\n"),
        ("def f(:\n", "rewards.py does not run: SyntaxError: invalid syntax (rewards.py, line 1)\n"),
        ("raise KeyboardInterrupt\n", "rewards.py does not run: it raised KeyboardInterrupt\n"),
    ):
        if text:
            path.write_text(text)
        assert self_check.self_check(str(path)) == 1
        assert capsys.readouterr().out == said


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_whoever_debugs_at_a_terminal_has_time(tmp_path):
    """A `breakpoint()` waits longer than SECONDS; an endless loop after it is still named."""
    import pty

    text = "\n\nasked = []\ndef kl_penalty_forward(p, r, kl_coef=0.1):\n    asked or asked.append(breakpoint())\n"
    path = kit_with(tmp_path, SOLUTION + text + "    while True: pass\n")
    code = (
        f"import sys; sys.argv[1:] = ['{FORWARD}']; from grading import self_check; self_check.SECONDS = 0.2"
    )
    terminal, theirs = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-c", f"{code}; self_check.main({str(path)!r})"],
        cwd=tmp_path, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    said = ""
    while not said.endswith("(Pdb) "):
        said += running.stdout.read(1)
        assert running.poll() is None, said
    time.sleep(0.5)
    os.write(terminal, b"p 20 + 22\nc\n")
    said += running.communicate(timeout=60)[0]
    assert running.returncode == 1 and "(Pdb) 42" in said and "(Pdb) exercise 1a" in said, said
    assert "still running after 0.2 seconds" in " ".join(said.split())
    os.close(terminal), os.close(theirs)


# ---- the words ---------------------------------------------------------------------------------------------


def bullets(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("    - ")]


def test_the_wrong_type_is_said_once(said):
    lines = said(mistake("backward_tensors"), BACKWARD)
    assert lines[0].endswith("| wrong: 0 of 8 checks passed")
    assert len(bullets(lines)) == 1 and "Value 0 of the returned list is a FakeTensor" in lines[1]
    lines = said("def shaped_reward(scores, completions, prompts=None):\n    return 0.5\n", SHAPED)
    assert len(bullets(lines)) == 1 and "a float, not a list" in lines[1]


def test_the_distance_of_the_models_is_not_blamed_for_a_typing_error(said):
    text = "def kl_penalty_backward(p, r, kl_coef=0.1):\n    return [kl_coef * lenght(a) for a in p]\n"
    lines = said(text, BACKWARD)
    assert len(bullets(lines)) == 1 and "NameError: name 'lenght'" in lines[1]
    assert "800 nats" not in " ".join(lines)
    lines = " ".join(said(mistake("backward_overflows"), BACKWARD))
    assert "800 nats apart on a token" in lines and "OverflowError" in lines


def test_a_missing_function(said):
    lines = " ".join(" ".join(said("del kl_penalty_forward\n", FORWARD)).split())
    assert "there is no function named kl_penalty_forward in the file" in lines


def test_a_loophole_is_shown_in_a_table(said):
    lines = said(mistake("shaped_unique_share"), SHAPED)
    assert lines[0].endswith("| 7 of 8 checks passed: it has a loophole")
    assert "Still pays: three words." in lines[1]
    rows = [re.sub(r"\s+", " ", line).strip() for line in lines]
    assert "three words 0.996 0.996 still pays" in rows
    assert "one word forty times 0.998 0.025" in rows  # 0.998 / 40
    assert "no word at all 0.500 0.000" in rows


def test_an_endless_loop_is_named_and_the_rest_is_checked(said, monkeypatch):
    monkeypatch.setattr(self_check, "SECONDS", 0.5)
    text = "def kl_penalty_forward(p, r, kl_coef=0.1):\n    while True:\n        kl_coef += 1\n"
    started = time.monotonic()
    lines = said(text)
    assert time.monotonic() - started < 10
    assert lines[0].endswith("kl_penalty_forward   | wrong: 0 of 7 checks passed")
    assert len(bullets(lines)) == 1
    told = " ".join(" ".join(lines).split())
    loop = len(SOLUTION.splitlines()) + 4
    where = "still running after 0.5 seconds: does the loop end? (in kl_penalty_forward, rewards.py line "
    assert f"{where}{loop}: while True:)" in told or f"{where}{loop + 1}: kl_coef += 1)" in told
    assert "exercise 1b kl_penalty_backward | right" in told


def test_many_slow_calls_would_not_end_in_the_grader(said, monkeypatch):
    monkeypatch.setattr(self_check, "IN_ALL", 0.2)
    slow = "def shaped_reward(s, c, p=None):\n    sum(range(2_000_000))\n    return [len(t) for t in c]\n"
    told = " ".join(" ".join(said(slow, SHAPED)).split())
    assert "all checks together take more than 0.2 seconds, and would not end in the grader" in told


def test_an_endless_loop_that_ends_is_left_no_thread(said, monkeypatch):
    """A function that was stopped does not take time from those that follow."""
    import threading

    monkeypatch.setattr(self_check, "SECONDS", 0.2)
    before = threading.active_count()
    said("def shaped_reward(s, c, p=None):\n    while True:\n        pass\n", SHAPED)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_an_endless_loop_while_the_file_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(self_check, "SECONDS", 0.2)
    path = tmp_path / "rewards.py"
    path.write_text("n = 0\nwhile n < 1:\n    pass\n")
    assert self_check.self_check(str(path)) == 1
    out = capsys.readouterr().out
    assert out.startswith(
        "rewards.py does not run: still running after 0.2 seconds: does the loop end? (in <module>, "
    )


@pytest.mark.parametrize(
    ("line", "package"),
    [
        ("import torch", "torch"),
        ("from grading.trees import make_tree", "grading"),
        ("from kit.base.errors import UserError", "kit"),
    ],
)
def test_an_import_that_the_grader_does_not_have(tmp_path, line, package):
    """In the grader's own words (`test_grade.py`), though everything works in this Python and the kit is there."""
    path = kit_with(tmp_path, f"{line}\n{SOLUTION}")
    done = run(path)
    assert (done.returncode, done.stderr) == (1, "")
    words = f"it imports {package}, but it is graded with Python's standard library and numpy alone"
    assert done.stdout == f"rewards.py does not run: {words} (in <module>, rewards.py line 1: {line})\n"


def test_an_import_inside_a_function_costs_that_function(said):
    line = "    from grading.trees import kl"
    lines = said(f"def shaped_reward(scores, completions, prompts=None):\n{line}\n    return scores\n")
    assert [line.split(" | ")[1] for line in lines if line.startswith("exercise")] == [
        "right",
        "right",
        "wrong: 0 of 8 checks passed",
        "right",
    ]
    assert "it imports grading, but it is graded with" in " ".join(" ".join(lines).split())


IMPORTS = """
import math, os.path
from collections import abc
from typing import TYPE_CHECKING

import numpy.linalg
import rewards

if TYPE_CHECKING:
    import torch
try:
    import torch
except ImportError:
    assert "torch" not in globals()
if __name__ == "__main__":
    from grading.trees import kl
"""


def test_imports_that_the_grader_has_or_never_comes_to(tmp_path, capsys):
    before = dict(sys.modules)
    assert self_check.self_check(str(solution_with(tmp_path, IMPORTS))) == 0
    assert capsys.readouterr().out.startswith("exercise")
    assert {name: sys.modules[name] for name in before} == before


def test_a_fallback_is_what_is_checked(said):
    """As when it is graded: without torch, though this Python has it."""
    pytest.importorskip("torch")
    lines = said(
        "try:\n    import torch\nexcept ImportError:\n    torch = None\n"
        "def shaped_reward(scores, completions, prompts=None):\n    return torch.tensor(scores).tolist()\n",
        SHAPED,
    )
    assert "'NoneType' object has no attribute 'tensor'" in " ".join(" ".join(lines).split())


# ---- for a script ------------------------------------------------------------------------------------------


def test_nothing_is_wrong_with_the_solution():
    assert self_check.what_is_wrong(rewards_solution, FUNCTIONS) == []


def test_what_is_wrong_with_the_functions_that_are_asked_for(tmp_path):
    module = load(solution_with(tmp_path, mistake("forward_sign")))
    (first, *_) = self_check.what_is_wrong(module, [FORWARD])
    assert first.startswith("kl_penalty_forward: This is log(pi_ref / pi): the sign is wrong")
    assert self_check.what_is_wrong(module, [BACKWARD, SHAPED]) == []
    assert self_check.what_is_wrong(module, []) == []
    stubs = load(ROOT / "rewards.py")
    assert self_check.what_is_wrong(stubs, [SHAPED]) == ["shaped_reward: not implemented yet"]


def test_a_loophole_is_no_error():
    module = types.ModuleType("rewards")
    module.shaped_reward = lambda scores, completions, prompts=None: [s * s for s in scores]
    assert self_check.what_is_wrong(module, [SHAPED]) == []
