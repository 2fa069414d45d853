"""`python rewards.py` as a student runs it. `pytest tests/grading/test_self_check.py`."""

import re
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT
from tests.grading.conftest import SOLUTION, SUBMISSIONS


def self_check(path: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, path], cwd=path.parent, capture_output=True, text=True)


def kit_with(tmp_path: Path, source: str) -> Path:
    (tmp_path / "grading").symlink_to(ROOT / "grading")
    path = tmp_path / "rewards.py"
    main = (ROOT / "rewards.py").read_text(encoding="utf-8").partition('if __name__ == "__main__":')
    path.write_text(source + "\n\n" + main[1] + main[2], encoding="utf-8")
    return path


def test_self_check_of_the_stubs():
    started = time.monotonic()
    done = self_check(ROOT / "rewards.py")
    assert time.monotonic() - started < 3
    assert done.returncode == 1
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(line.endswith("| not implemented yet") for line in lines)


def test_self_check_of_the_solution(tmp_path):
    started = time.monotonic()
    done = self_check(kit_with(tmp_path, SOLUTION))
    assert time.monotonic() - started < 3
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("| right\n") == 3


def test_self_check_says_what_is_wrong_without_a_traceback(tmp_path):
    w_log_w = (SUBMISSIONS / "mistakes" / "backward_w_log_w.py").read_text()
    broken = "def shaped_reward(scores, completions, prompts=None):\n    return [1 / 0 for _ in scores]\n"
    path = kit_with(tmp_path, f"{SOLUTION}\n\n{w_log_w}\n\n{broken}")
    done = self_check(path)
    assert done.returncode == 1 and done.stderr == ""
    assert "kl_penalty_forward   | right" in done.stdout
    assert "kl_penalty_backward  | wrong" in done.stdout and "w * log w" in done.stdout
    text = " ".join(done.stdout.split())
    line = path.read_text().splitlines().index("    return [1 / 0 for _ in scores]") + 1
    assert re.search(
        rf"ZeroDivisionError: division by zero \(in \S+, rewards.py line {line}: return", text
    ), text


def test_self_check_of_a_file_that_does_not_import(tmp_path):
    done = self_check(kit_with(tmp_path, "import no_such_module\n"))
    assert done.returncode == 1
