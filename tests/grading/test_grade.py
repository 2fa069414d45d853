"""The grader's results, its command line and its table. `pytest tests/grading/test_grade.py`."""

import concurrent.futures
import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grading import grade as grader
from kit.base.errors import UserError
from tests.conftest import ROOT, system_python
from tests.grading.conftest import SUBMISSIONS, assert_valid, marked_processes, solution_with

RIGHT = sorted((SUBMISSIONS / "right").glob("*.py"))

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the grader runs on Linux"),
    pytest.mark.usefixtures("scratch_of_our_own"),
]


@pytest.fixture(scope="module")
def right_run():
    """All right submissions, two at a time; torch needs seconds to import on a busy machine."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(
            zip([p.stem for p in RIGHT], pool.map(lambda p: grader.grade(p, timeout=60), RIGHT), strict=True)
        )


@pytest.mark.parametrize("name", [path.stem for path in RIGHT])
def test_a_right_submission_gets_full_marks(right_run, name):
    results = right_run[name]
    assert_valid(results)
    assert [t["output"] for t in results["tests"] if t["status"] == "failed"] == []
    assert results["score"] == 100


def test_the_stubs_earn_exactly_nothing():
    results = grader.grade(ROOT / "rewards.py")
    assert_valid(results)
    assert results["score"] == 0
    assert {t["output"] for t in results["tests"]} == {"not implemented yet"}


def test_every_python_grades_the_same(tmp_path):
    """torch is in the kit's own Python and not in Gradescope's: in neither can it be imported, and the words agree."""
    path = SUBMISSIONS / "torch_tensors.py"
    outcomes = []
    for python in (sys.executable, system_python()):
        out = tmp_path / "results.json"
        done = subprocess.run(
            [python, "-m", "grading.grade", path, "--out", out], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        results = json.loads(out.read_text())
        version = subprocess.run([python, "--version"], capture_output=True, text=True).stdout.strip()
        assert results["extra_data"]["python"] == version and version in done.stdout
        (output,) = {test["output"] for test in results["tests"]}
        outcomes.append((results["score"], output.replace(version, "Python X")))
    words = "it imports torch, but it is graded with Python's standard library and numpy alone"
    where = "in <module>, rewards.py line 3: import torch"
    assert outcomes == 2 * [(0, f"rewards.py does not run in Python X: {words} ({where})")]


def submitted(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "rewards.py"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "prefix",
    [b"\xef\xbb\xbf", b"# -*- coding: utf-8 -*-\r\n", "# Schöne Grüße, 你好\n".encode()],
    ids=["byte-order-mark", "CRLF", "unicode"],
)
def test_encodings_that_are_fine(tmp_path, prefix):
    body = (ROOT / "rewards_solution.py").read_bytes()
    if b"\r\n" in prefix:
        body = body.replace(b"\n", b"\r\n")
    assert grader.grade(submitted(tmp_path, prefix + body), timeout=30)["score"] == 110


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rewards.py is empty: save it, and submit it again."),
        ("x = 1\n", "there is no function named kl_penalty_forward"),
        ("def kl_penalty_forward(:\n    pass\n", "SyntaxError"),
        ("def f():\n\tif 1:\n        pass\n", "TabError"),
        ("import rewards\nrewards.kl_penalty_forward\n", "AttributeError"),
        (
            "import a_module_that_is_not_there\n",
            "it imports a_module_that_is_not_there, but it is graded with",
        ),
        ("x = 1 / 0\n", "ZeroDivisionError: division by zero (in <module>, rewards.py line 1"),
        ("kl_penalty_forward = kl_penalty_backward = shaped_reward = 3\n", "not callable"),
        ("# -*- coding: latin-1 -*-\ndef f(): return '\xe4'\n".encode("latin-1"), "not UTF-8"),
        (b"x = 1\0\n", "NUL"),
        (b"#" * 300_000, "larger than 256 kB"),
    ],
)
def test_files_that_do_not_run(tmp_path, text, message):
    out = tmp_path / "results.json"
    path = submitted(tmp_path, text)
    done = subprocess.run(
        [sys.executable, "-m", "grading.grade", path, "--out", out], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr
    results = json.loads(out.read_text())
    assert_valid(results)
    assert results["score"] == 0
    assert message in results["tests"][0]["output"]


def run_cli(*args: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "grading.grade", *map(str, args)], cwd=ROOT, capture_output=True, text=True
    )


def test_what_cannot_be_graded_is_refused_in_one_sentence(tmp_path):
    target = submitted(tmp_path, "x = 1\n")
    link, folder, pipe = tmp_path / "link.py", tmp_path / "folder.py", tmp_path / "pipe.py"
    link.symlink_to(target)
    folder.mkdir()
    os.mkfifo(pipe)
    (tmp_path / "empty.py").write_text(" \n")
    for path, status, message in (
        (tmp_path / "missing.py", 2, "There is no file"),
        (link, 0, "symbolic link"),
        (folder, 0, "not a plain file"),
        (pipe, 0, "not a plain file"),
        (tmp_path / "empty.py", 0, "empty.py is empty"),
        (Path("/dev/zero"), 0, "not a plain file"),
    ):
        out = tmp_path / f"{path.stem}.json"
        done = run_cli(path, "--out", out)
        assert (done.returncode, done.stderr.count("\n")) == (status, 1), done.stderr
        assert message in done.stderr
        results = json.loads(out.read_text())
        assert_valid(results)
        assert results["score"] == 0 and message in results["output"]


def test_bad_command_lines(tmp_path):
    empty, mine = tmp_path / "empty", submitted(tmp_path, "x = 1\n")
    (empty / "anna").mkdir(parents=True)
    for arguments, said in (
        ((mine, "--out", tmp_path / "no" / "such" / "results.json"), "cannot be written"),
        ((mine, "--out", tmp_path), r"cannot be read \(Is a directory\)"),
        ((mine, "--out", mine), "was not written by this command and stays as it is"),
        (("--all", tmp_path / "nowhere"), "is no folder"),
        ((empty,), "empty is a folder: grade those in it with --all"),
        (
            ("--all", empty, "--csv", tmp_path / "grades.csv"),
            "nothing to grade in .*: no \\*.py, no \\*/rewards.py",
        ),
    ):
        with pytest.raises(UserError, match=said):
            grader.main(list(map(str, arguments)))
    assert mine.read_text() == "x = 1\n" and not (tmp_path / "grades.csv").exists()
    done = run_cli("--all", tmp_path / "nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    more = ((mine, "--timeout", "nan"), (mine, "--timeout", "inf"), ("--all", empty, "--out", mine))
    for arguments in ((), (mine, "--timeout", "-1"), *more):
        with pytest.raises(SystemExit) as stopped:
            grader.main(list(map(str, arguments)))
        assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("into", "environment"),
    [("| head -1", {}), (">/dev/full 2>&1", {}), ("", {"PYTHONIOENCODING": "ascii"}), (">&- 2>&-", {})],
    ids=["a closed pipe", "a full disk", "a console without the character", "no console"],
)
def test_the_result_file_is_finished_whatever_the_screen_does(tmp_path, into, environment):
    path = submitted(tmp_path, "x = 1 / 0  # \N{MULTIPLICATION SIGN} \u4f60\n")
    command = shlex.join(
        [sys.executable, "-m", "grading.grade", str(path), "--out", str(tmp_path / "results.json")]
    )
    subprocess.run(
        f"{command} {into}", shell=True, cwd=ROOT, env={**os.environ, **environment}, capture_output=True
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["output"].startswith("0 of 100 points.") and results["extra_data"]["python"]
    assert {test["output"] for test in results["tests"]} != {results["output"]}


def test_the_result_file_is_whole_at_any_moment(tmp_path, start):
    """Before the first check it says 0, and being killed half-way leaves it valid."""
    out = tmp_path / "results.json"
    path = solution_with(
        tmp_path, "def shaped_reward(scores, completions, prompts=None):\n    while True: pass\n"
    )
    running = start(
        [sys.executable, "-m", "grading.grade", path, "--out", out, "--timeout", "90"],
        stdout=subprocess.DEVNULL,
    )
    seen = set()
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and (not seen or max(seen) < 78):
        if out.exists():
            seen.add(json.loads(out.read_text())["score"])
        time.sleep(0.02)
    assert max(seen) == 78
    running.send_signal(signal.SIGTERM)
    running.wait(10)
    assert json.loads(out.read_text())["score"] == 78
    assert marked_processes() == []


def test_other_seeds_for_other_submissions(tmp_path):
    """Instances depend on the submission, so answers to one's own cannot be looked up."""
    one = grader.grade(ROOT / "rewards.py")["extra_data"]["seed"]
    assert one == grader.grade(ROOT / "rewards.py")["extra_data"]["seed"]
    assert one != grader.grade(solution_with(tmp_path, ""))["extra_data"]["seed"]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_folder_that_is_stopped_keeps_its_rows(tmp_path, start, sent, status):
    """One sentence, no queue worked off, no worker left behind."""
    folder, table = tmp_path / "all", tmp_path / "grades.csv"
    folder.mkdir()
    shutil.copy(ROOT / "rewards.py", folder / "anna.py")
    for name in ("berta", "carl", "dora", "emil"):
        (folder / f"{name}.py").write_text("while True: pass\n")
    command = [sys.executable, "-m", "grading.grade", "--all", folder, "--csv", table, "--jobs", 1]
    running = start([*command, "--timeout", "3"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (table.exists() and "anna" in table.read_text()):
        time.sleep(0.05)
    running.send_signal(sent)
    _, said = running.communicate(timeout=60)
    assert said == f"\nStopped: 1 of 5 are graded, and {table} keeps them; the same command goes on.\n"
    assert running.returncode == status
    assert [row["submission"] for row in csv.DictReader(table.open())] == ["anna.py"]
    assert marked_processes() == []
