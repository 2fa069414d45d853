"""The grader against submissions right, mistaken and hostile. `pytest tests/test_grader.py`, about half a minute.

Every hostile file in `submissions/hostile` must earn nothing, harm nothing, leave nothing behind, and end in time.
"""

import concurrent.futures
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from grading import grade as grader
from grading.checks import CHECKS
from tests.conftest import ROOT, system_python

SUBMISSIONS = ROOT / "tests" / "submissions"
HOSTILE = sorted((SUBMISSIONS / "hostile").glob("*.py"))
RIGHT = sorted((SUBMISSIONS / "right").glob("*.py"))
TIMEOUT = 3.0  # half of the hostile files use all of it

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the grader runs on Linux")


def assert_valid(results: dict) -> None:
    """Gradescope's schema as the kit uses it."""
    tests = results["tests"]
    assert results["score"] == sum(t["score"] for t in tests)
    assert sum(t["max_score"] for t in tests) == 100
    assert [t["number"] for t in tests] == [c.number for c in CHECKS]
    for test in tests:
        assert 0 <= test["score"] <= test["max_score"]
        assert test["status"] == ("passed" if test["score"] == test["max_score"] else "failed")
        assert test["visibility"] in ("visible", "after_published")
        assert len(test["output"]) < 2000
    assert len(json.dumps(results)) < 1_000_000


@pytest.fixture(scope="module", autouse=True)
def scratch_of_our_own():
    """Scratch folders of this file's workers lie in one place, so that nobody else's are taken for ours."""
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


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """All hostile files graded, several at a time; what they were to destroy, steal or reach stands by."""
    folder = tmp_path_factory.mktemp("hostile")
    canary = folder / "canary"
    canary.mkdir()
    (canary / "secret.txt").write_text("SECRET-IN-A-FILE")
    os.environ["WANDB_API_KEY"] = "SECRET-IN-THE-ENVIRONMENT"
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]

        def run(path: Path) -> tuple[dict, float]:
            source = path.read_text(encoding="utf-8")
            for name, value in (("CANARY", canary), ("PORT", port), ("VICTIM", victim.pid)):
                source = source.replace(f"@{name}@", str(value))
            copy = folder / path.name
            copy.write_text(source, encoding="utf-8")
            started = time.monotonic()
            grader.grade(copy, folder / f"{path.stem}.json", timeout=TIMEOUT)
            results = json.loads((folder / f"{path.stem}.json").read_text())
            return results, time.monotonic() - started

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            outcomes = dict(zip([p.stem for p in HOSTILE], pool.map(run, HOSTILE), strict=True))
        try:
            visitor = server.accept()[0].recv(100)
        except TimeoutError:
            visitor = None
    alive = victim.poll() is None
    victim.kill()
    victim.wait()
    del os.environ["WANDB_API_KEY"]
    return {"outcomes": outcomes, "canary": canary, "visitor": visitor, "victim_alive": alive}


@pytest.mark.parametrize("name", [path.stem for path in HOSTILE])
def test_a_hostile_submission_earns_nothing_and_ends_in_time(hostile_run, name):
    results, seconds = hostile_run["outcomes"][name]
    assert_valid(results)
    assert results["score"] == 0
    assert seconds < 60  # on a quiet machine TIMEOUT and half a second
    text = json.dumps(results)
    assert "SECRET-IN" not in text
    assert "\\u001b" not in text and "\\u0000" not in text
    assert "Traceback" not in text and "grading/" not in text


def test_hostile_submissions_do_no_harm(hostile_run):
    canary = hostile_run["canary"]
    assert [path.name for path in canary.iterdir()] == ["secret.txt"]
    assert hostile_run["visitor"] is None
    assert hostile_run["victim_alive"]
    assert marked_processes() == []
    assert not list(Path("/var/tmp").glob("hostile*")) and not list(Path("/etc").glob("hostile*"))


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


def submission(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "rewards.py"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def solution_with(tmp_path: Path, more: str) -> Path:
    return submission(tmp_path, (ROOT / "rewards_solution.py").read_text() + "\n\n" + more)


def points(results: dict, function: str) -> float:
    return sum(t["score"] for t in results["tests"] if t["name"].startswith(function + ":"))


def test_one_hanging_function_costs_only_its_own_points(tmp_path):
    path = solution_with(
        tmp_path, "def kl_penalty_forward(p, r, kl_coef=0.1):\n    while True:\n        pass\n"
    )
    results = grader.grade(path, timeout=12)
    assert results["score"] == 65
    assert points(results, "kl_penalty_forward") == 0
    assert "took too long" in results["tests"][0]["output"]


def test_an_edge_case_that_hangs_costs_only_itself(tmp_path):
    path = solution_with(tmp_path, (SUBMISSIONS / "mistakes" / "forward_loops_on_empty.py").read_text())
    assert grader.grade(path, timeout=12)["score"] == 97


@pytest.mark.parametrize(
    "prefix",
    [b"\xef\xbb\xbf", b"# -*- coding: utf-8 -*-\r\n", "# Schöne Grüße, 你好\n".encode()],
    ids=["byte-order-mark", "CRLF", "unicode"],
)
def test_encodings_that_are_fine(tmp_path, prefix):
    body = (ROOT / "rewards_solution.py").read_bytes()
    if b"\r\n" in prefix:
        body = body.replace(b"\n", b"\r\n")
    assert grader.grade(submission(tmp_path, prefix + body), timeout=30)["score"] == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no function named kl_penalty_forward"),
        ("def kl_penalty_forward(:\n    pass\n", "SyntaxError"),
        ("def f():\n\tif 1:\n        pass\n", "TabError"),
        ("import rewards\nrewards.kl_penalty_forward\n", "AttributeError"),
        ("import a_module_that_is_not_there\n", "ModuleNotFoundError"),
        ("x = 1 / 0\n", "ZeroDivisionError: division by zero (in <module>, rewards.py line 1"),
        ("kl_penalty_forward = kl_penalty_backward = shaped_reward = 3\n", "not callable"),
        ("# -*- coding: latin-1 -*-\ndef f(): return '\xe4'\n".encode("latin-1"), "not UTF-8"),
        (b"x = 1\0\n", "NUL"),
        (b"#" * 300_000, "larger than 256 kB"),
    ],
)
def test_files_that_do_not_run(tmp_path, text, message):
    out = tmp_path / "results.json"
    path = submission(tmp_path, text)
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
    target = submission(tmp_path, "x = 1\n")
    link, folder, pipe = tmp_path / "link.py", tmp_path / "folder.py", tmp_path / "pipe.py"
    link.symlink_to(target)
    folder.mkdir()
    os.mkfifo(pipe)
    for path, status, message in (
        (tmp_path / "missing.py", 2, "There is no file"),
        (link, 0, "symbolic link"),
        (folder, 0, "not a plain file"),
        (pipe, 0, "not a plain file"),
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
    done = run_cli(ROOT / "rewards.py", "--out", tmp_path / "no" / "such" / "folder" / "results.json")
    assert done.returncode == 2 and done.stderr.startswith("Cannot write") and done.stderr.count("\n") == 1
    done = run_cli(ROOT / "rewards.py", "--out", tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("Cannot write") and done.stderr.count("\n") == 1
    assert run_cli("--all", tmp_path / "nowhere").returncode == 2
    assert run_cli().returncode == 2
    assert run_cli(ROOT / "rewards.py", "--timeout", "-1").returncode == 2
    assert not list(tmp_path.glob(".*tmp"))


def test_the_result_file_is_whole_at_any_moment(tmp_path):
    """Before the first check it says 0, and being killed half-way leaves it valid."""
    out = tmp_path / "results.json"
    path = solution_with(
        tmp_path, "def shaped_reward(scores, completions, prompts=None):\n    while True: pass\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-m", "grading.grade", path, "--out", out, "--timeout", "90"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    seen = set()
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and (not seen or max(seen) < 78):
        if out.exists():
            seen.add(json.loads(out.read_text())["score"])
    assert max(seen) == 78
    running.send_signal(signal.SIGTERM)
    running.wait(10)
    assert json.loads(out.read_text())["score"] == 78
    assert marked_processes() == []


def test_killing_the_grader_takes_the_worker_with_it(tmp_path):
    path = submission(tmp_path, "while True: pass\n")
    running = subprocess.Popen(
        [sys.executable, "-m", "grading.grade", path],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not marked_processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.kill()
    running.wait()
    deadline = time.monotonic() + 5
    while marked_processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert marked_processes() == []


@pytest.mark.slow
def test_training_with_a_submission(tmp_path):
    """Shut in like the checks, for no points; what the stub says comes through."""
    done = run_cli(
        ROOT / "rewards_solution.py", "--train", "--max_steps", 1, "--out", tmp_path / "results.json"
    )
    assert "1 steps with kl_penalty_forward: sentiment 0." in done.stdout, done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert_valid(results)
    assert results["score"] == 100 and "nats a completion" in results["extra_data"]["training"]
    assert "is not written yet" in grader.train(ROOT / "rewards.py", steps=1)
    assert marked_processes() == []


def test_other_seeds_for_other_submissions(tmp_path):
    """Instances depend on the submission, so answers to one's own cannot be looked up."""
    one = grader.grade(ROOT / "rewards.py")["extra_data"]["seed"]
    assert one == grader.grade(ROOT / "rewards.py")["extra_data"]["seed"]
    assert one != grader.grade(solution_with(tmp_path, ""))["extra_data"]["seed"]


def test_a_folder_of_submissions(tmp_path):
    folder, table = tmp_path / "all", tmp_path / "grades.csv"
    (folder / "berta").mkdir(parents=True)
    shutil.copy(ROOT / "rewards_solution.py", folder / "anna.py")
    shutil.copy(ROOT / "rewards.py", folder / "berta" / "rewards.py")
    (folder / "carl.py").write_bytes(b"\xff\xfe")
    shutil.copy(SUBMISSIONS / "hostile" / "exit_at_import.py", folder / "dora.py")
    (folder / "emil.py").symlink_to("/etc/passwd")
    done = run_cli("--all", folder, "--csv", table, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    rows = {row["submission"]: row for row in csv.DictReader(table.open())}
    assert {name: float(row["score"]) for name, row in rows.items()} == {
        "anna.py": 100, "berta/rewards.py": 0, "carl.py": 0, "dora.py": 0, "emil.py": 0,
    }  # fmt: skip
    assert "UTF-8" in rows["carl.py"]["message"] and "symbolic link" in rows["emil.py"]["message"]
    # again: only what changed is graded anew
    shutil.copy(ROOT / "rewards_solution.py", folder / "carl.py")
    done = run_cli("--all", folder, "--csv", table)
    assert "4 kept from before" in done.stdout
    rows = {row["submission"]: row for row in csv.DictReader(table.open())}
    assert float(rows["carl.py"]["score"]) == 100 and float(rows["anna.py"]["score"]) == 100
    (folder / "carl.py").unlink()
    run_cli("--all", folder, "--csv", table)
    assert "carl.py" not in table.read_text()


# --- with less help from the kernel ---------------------------------------------------------------------------------

HARMLESS_IF_LOOSE = [
    "exit_at_import", "loop_at_import", "daemon", "fork_bomb", "memory_bomb", "forged_replies", "steals_the_solution",
    "writes_outside", "reads_secrets", "network",
]  # fmt: skip


def as_nobody(tmp_path: Path, *args: object) -> subprocess.CompletedProcess:
    """Run the grader from a copy of its own, as an unprivileged user if that needs arranging."""
    python = sys.executable
    extra = {}
    if os.geteuid() == 0:
        python = system_python()
        extra = {"user": 65534, "group": 65534, "extra_groups": []}
    return subprocess.run(
        [python, *map(str, args)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
        **extra,
    )


@pytest.fixture
def open_folder():
    """A folder that an unprivileged user can reach and write, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="kit-"))
    folder.chmod(0o777)
    shutil.copytree(ROOT / "grading", folder / "grading", ignore=shutil.ignore_patterns("__pycache__"))
    for path in [folder / "grading", *(folder / "grading").rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


LAYERS = {
    "all": {},
    "no namespaces": {"namespaces": False},
    "limits only": {"namespaces": False, "landlock": False},
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())
def test_as_an_unprivileged_user(open_folder, layers):
    """Full marks for the solution, nothing for hostile files, and the report says what was not enforced."""
    jobs = {"solution": (ROOT / "rewards_solution.py").read_text()}
    for name in HARMLESS_IF_LOOSE:
        if layers.get("landlock", True) or name not in (
            "steals_the_solution",
            "reads_secrets",
            "network",
            "writes_outside",
        ):
            source = (SUBMISSIONS / "hostile" / f"{name}.py").read_text()
            jobs[name] = source.replace("@CANARY@", str(open_folder / "canary")).replace("@PORT@", "9")
    (open_folder / "canary").mkdir()
    (open_folder / "canary" / "secret.txt").write_text("SECRET-IN-A-FILE")
    for name, source in jobs.items():
        (open_folder / f"{name}.py").write_text(source)
    (open_folder / "run.py").write_text(
        "import concurrent.futures, json, pathlib, sys\n"
        "sys.path.insert(0, '.')\n"
        "from grading import grade\n"
        "def run(name):\n"
        "    seconds = 20 if name == 'solution' else 5\n"
        f"    return grade.grade(pathlib.Path(name + '.py'), timeout=seconds, **{layers})\n"
        "with concurrent.futures.ThreadPoolExecutor(4) as pool:\n"
        f"    print(json.dumps(dict(zip({list(jobs)}, pool.map(run, {list(jobs)})))))\n"
    )
    done = as_nobody(open_folder, "run.py")
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert {name: results["score"] for name, results in outcomes.items()} == {
        name: 100 if name == "solution" else 0 for name in jobs
    }
    assert "SECRET-IN" not in done.stdout
    assert [path.name for path in (open_folder / "canary").iterdir()] == ["secret.txt"]
    assert marked_processes() == []
    open_doors = outcomes["solution"]["extra_data"]["not_enforced"]
    if layers == {"namespaces": False, "landlock": False}:
        assert [text.split(":")[0] for text in open_doors] == ["files", "network", "processes"]


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, and setpriv to be less of one"
)
def test_as_the_root_of_a_container(open_folder):
    """Root without CAP_SYS_ADMIN, as in Docker: the worker gets a user id of its own first."""
    python = system_python()
    for source, score in (("rewards_solution.py", 100), ("tests/submissions/hostile/daemon.py", 0)):
        shutil.copy(ROOT / source, open_folder / "rewards.py")
        done = subprocess.run(
            ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin",
             python, "-m", "grading.grade", "rewards.py", "--out", "results.json", "--timeout", "30"],
            cwd=open_folder, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads((open_folder / "results.json").read_text())["score"] == score
    assert marked_processes() == []


def test_a_worker_that_cannot_start_is_no_fault_of_the_student(tmp_path, monkeypatch):
    """The result says so, and the exit status tells the instructor."""
    monkeypatch.setattr(
        grader, "readable_paths", lambda: [3]
    )  # no path: the worker stumbles before the submission
    out = tmp_path / "results.json"
    assert grader.main([str(ROOT / "rewards_solution.py"), "--out", str(out)]) == 2
    results = json.loads(out.read_text())
    assert_valid(results)
    assert "did not finish" in results["output"]
    assert marked_processes() == []
