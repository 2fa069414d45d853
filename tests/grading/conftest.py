"""What the grader's tests share: the solution, the folder of submissions, and a watch over workers left behind."""

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from grading.checks import CHECKS
from grading.submission import Student, call
from tests.conftest import ROOT

SUBMISSIONS = ROOT / "tests" / "submissions"
SOLUTION = (ROOT / "rewards_solution.py").read_text(encoding="utf-8")


def student_of(module: ModuleType) -> Student:
    """The functions of a module, called in this process."""
    return Student(partial(call, module))


def solution_with(folder: Path, more: str) -> Path:
    """The solution, less what `more` defines anew."""
    path = folder / "rewards.py"
    path.write_text(f"{SOLUTION}\n\n{more}", encoding="utf-8")
    return path


def assert_valid(results: dict) -> None:
    """Gradescope's schema as the kit uses it."""
    tests = results["tests"]
    assert results["score"] == sum(t["score"] for t in tests)
    assert sum(t["max_score"] for t in tests) == 100
    assert [t["number"] for t in tests] == [c.number for c in CHECKS]
    for test in tests:
        bonus = test["number"].startswith("4.")
        assert 0 <= test["score"] <= (4 if bonus else test["max_score"])
        assert test["max_score"] > 0 or bonus
        if not bonus:
            assert test["status"] == ("passed" if test["score"] == test["max_score"] else "failed")
        hidden = test["number"] in {"1.2", "2.2", "2.3", "3.1", "4.2"}
        assert test["visibility"] == ("after_published" if hidden else "visible")
        assert len(test["output"]) < 2000
    assert len(json.dumps(results)) < 1_000_000


@pytest.fixture(scope="module")
def scratch_of_our_own(tmp_path_factory):
    """Scratch folders of this file's workers lie in one place, so that nobody else's are taken for ours."""
    tmp_path_factory.getbasetemp()  # pytest's own folder is not to be made inside the one that goes
    folder = Path(tempfile.mkdtemp(prefix="test-grader-"))
    folder.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield
    shutil.rmtree(folder, ignore_errors=True)


def marked_processes() -> list[str]:
    """Processes of any worker of ours that are still alive, zombies apart."""
    mark = f"\0HOME={tempfile.gettempdir()}/".encode()
    alive = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in b"\0" + (process / "environ").read_bytes():
                if (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    alive.append(process.name)
        except OSError:
            continue
    return alive
