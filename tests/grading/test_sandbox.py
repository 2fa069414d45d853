"""The sandbox against submissions that mean harm. `pytest tests/grading/test_sandbox.py`, about half a minute.

Every file in `submissions/hostile` must earn nothing, harm nothing, leave nothing behind, and end in time.
"""

import concurrent.futures
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from grading import grade as grader
from grading import sandbox
from kit.base.errors import UserError
from tests.conftest import ROOT, system_python
from tests.grading.conftest import SUBMISSIONS, assert_valid, marked_processes, solution_with

HOSTILE = sorted((SUBMISSIONS / "hostile").glob("*.py"))
TIMEOUT = 3.0  # seconds; half of the hostile files use all of it

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the grader runs on Linux"),
    pytest.mark.usefixtures("scratch_of_our_own"),
]


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
    assert "KeyError" not in text  # it looked for something to harm where there is nothing


def test_hostile_submissions_do_no_harm(hostile_run):
    canary = hostile_run["canary"]
    assert [path.name for path in canary.iterdir()] == ["secret.txt"]
    assert hostile_run["visitor"] is None
    assert hostile_run["victim_alive"]
    assert marked_processes() == [] and not outliving()
    assert not list(Path("/var/tmp").glob("hostile*")) and not list(Path("/etc").glob("hostile*"))


# ---- functions that hang, a grader that dies ---------------------------------------------------------------


def points(results: dict, function: str) -> float:
    return sum(t["score"] for t in results["tests"] if t["name"].startswith(function + ":"))


def test_one_hanging_function_costs_only_its_own_points(tmp_path):
    path = solution_with(
        tmp_path, "def kl_penalty_forward(p, r, kl_coef=0.1):\n    while True:\n        pass\n"
    )
    results = grader.grade(path, timeout=12)
    assert results["score"] == 75
    assert points(results, "kl_penalty_forward") == 0
    assert "took too long" in results["tests"][0]["output"]


def test_an_edge_case_that_hangs_costs_only_itself(tmp_path):
    path = solution_with(tmp_path, (SUBMISSIONS / "mistakes" / "forward_loops_on_empty.py").read_text())
    assert grader.grade(path, timeout=12)["score"] == 107


def test_killing_the_grader_takes_the_worker_with_it(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text("while True: pass\n")
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


def test_a_worker_that_cannot_start_is_no_fault_of_the_student(tmp_path, monkeypatch):
    """The result says so, and the exit status tells the instructor."""
    # No absolute path: the worker stumbles before the submission is run.
    monkeypatch.setattr(sandbox, "readable_paths", lambda: ["python"])
    out = tmp_path / "results.json"
    with pytest.raises(UserError, match="grading failed: the worker could not be shut in"):
        grader.main([str(ROOT / "rewards_solution.py"), "--out", str(out)])
    results = json.loads(out.read_text())
    assert_valid(results)
    assert "did not finish" in results["output"]
    assert marked_processes() == []


def test_a_kit_that_submissions_could_read_is_moved_first(tmp_path, monkeypatch):
    """`docker run -v "$PWD":/usr/src/app` puts the solution below /usr, which Python needs."""
    (tmp_path / "rewards.py").write_text("x = 1\n")
    for folder in (ROOT, tmp_path):
        monkeypatch.setattr(sandbox, "readable_paths", lambda folder=folder: ["/usr", str(folder)])
        said = f"grading failed: {folder} lies below {folder}, where every submission may read: move it elsewhere"
        with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
            grader.main([str(tmp_path / "rewards.py")])


def test_an_environment_that_is_a_link_has_its_packages(tmp_path):
    (tmp_path / "link").symlink_to(sys.prefix)
    python = tmp_path / "link" / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "grading.grade", SUBMISSIONS / "right" / "numpy_float64.py", "--timeout", "60"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "100 of 100 points" in done.stdout, done.stdout + done.stderr


def test_a_python_that_the_worker_cannot_read_is_no_fault_of_the_student(tmp_path, monkeypatch, capsys):
    """As for the user id that a root without namespaces gives its worker, where python lies below /root."""
    monkeypatch.setattr(sandbox, "readable_paths", list)
    out = tmp_path / "results.json"
    with pytest.raises(UserError, match=r"could not be shut in: .*may not read python in "):
        grader.main([str(ROOT / "rewards_solution.py"), "--out", str(out)])
    assert "did not finish" in json.loads(out.read_text())["output"]
    assert marked_processes() == []


# ---- with less help from the kernel ------------------------------------------------------------------------

HARMLESS_IF_LOOSE = [
    "exit_at_import", "loop_at_import", "daemon", "fork_bomb", "memory_bomb", "forged_replies", "steals_the_solution",
    "writes_outside", "reads_secrets", "network", "outlives_the_grader",
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
    for needed in ("grading", "kit"):
        shutil.copytree(ROOT / needed, folder / needed, ignore=shutil.ignore_patterns("__pycache__"))
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def outliving() -> list[str]:
    """Processes of outlives_the_grader.py, which carry no mark."""
    lines = (path for path in Path("/proc").glob("[0-9]*/cmdline"))
    return [path.parent.name for path in lines if b"# it outlives the grader" in read_bytes(path)]


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


LAYERS = {
    "all": ("namespaces", "landlock"),
    "no namespaces": ("landlock",),
    "limits only": (),
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())
def test_as_an_unprivileged_user(open_folder, layers):
    """Full marks for the solution, nothing for hostile files, and the report says what was not enforced."""
    jobs = {"solution": (ROOT / "rewards_solution.py").read_text()}
    for name in HARMLESS_IF_LOOSE:
        if (
            "landlock" in layers
            or name
            not in (
                "steals_the_solution",
                "reads_secrets",
                "network",
                "writes_outside",
            )
        ) and ("namespaces" in layers or name != "outlives_the_grader"):
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
        f"    return grade.grade(pathlib.Path(name + '.py'), timeout=seconds, layers={layers})\n"
        "with concurrent.futures.ThreadPoolExecutor(4) as pool:\n"
        f"    print(json.dumps(dict(zip({list(jobs)}, pool.map(run, {list(jobs)})))))\n"
    )
    done = as_nobody(open_folder, "run.py")
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert {name: results["score"] for name, results in outcomes.items()} == {
        name: 110 if name == "solution" else 0 for name in jobs
    }
    assert "SECRET-IN" not in done.stdout
    assert [path.name for path in (open_folder / "canary").iterdir()] == ["secret.txt"]
    assert marked_processes() == [] and not outliving()
    open_doors = outcomes["solution"]["extra_data"]["not_enforced"]
    if not layers:
        assert [text.split(":")[0] for text in open_doors] == [
            "files",
            "disk",
            "network",
            "processes",
            "processes",
        ]


FOLDERS = """
import os
for _ in range(1500):
    os.mkdir("d")
    os.chdir("d")
os.chdir(os.environ["HOME"])
os.makedirs("a/b")
os.chmod("a", 0)
os.chmod(".", 0)
"""


def test_folders_are_cleaned_up_however_deep_or_closed_to_their_owner(open_folder):
    (open_folder / "rewards.py").write_text(FOLDERS)
    (open_folder / "scratch").mkdir()
    (open_folder / "scratch").chmod(0o777)
    (open_folder / "run.py").write_text(
        "import pathlib, sys, tempfile\n"
        "sys.path.insert(0, '.')\n"
        "from grading import grade\n"
        f"tempfile.tempdir = {str(open_folder / 'scratch')!r}\n"
        "print(grade.grade(pathlib.Path('rewards.py'), layers=('landlock',))['tests'][0]['output'])\n"
    )
    done = as_nobody(open_folder, "run.py")
    assert done.returncode == 0, done.stderr
    assert "there is no function named" in done.stdout  # the file ran to its end
    assert list((open_folder / "scratch").iterdir()) == []


def test_a_user_namespace_that_opens_and_then_refuses_the_maps(open_folder):
    """AppArmor on Ubuntu does so to an ordinary user: graded all the same, and what is open is named."""
    worker = open_folder / "grading" / "worker.py"
    source = worker.read_text(encoding="utf-8")
    assert source.count('"/proc/self/setgroups"') == 1
    worker.write_text(source.replace("/proc/self/setgroups", "/proc/self/refused"), encoding="utf-8")
    shutil.copy(ROOT / "rewards_solution.py", open_folder / "rewards.py")
    done = as_nobody(
        open_folder, "-m", "grading.grade", "rewards.py", "--out", "results.json", "--timeout", 30
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((open_folder / "results.json").read_text())
    assert results["score"] == 110
    assert "network" in [text.split(":")[0] for text in results["extra_data"]["not_enforced"]]


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, and setpriv to be less of one"
)
def test_as_the_root_of_a_container(open_folder):
    """Root without CAP_SYS_ADMIN, as in Docker: the worker gets a user id of its own first."""
    python = system_python()
    for source, score in (("rewards_solution.py", 110), ("tests/submissions/hostile/daemon.py", 0)):
        shutil.copy(ROOT / source, open_folder / "rewards.py")
        done = subprocess.run(
            ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin",
             python, "-m", "grading.grade", "rewards.py", "--out", "results.json", "--timeout", "30"],
            cwd=open_folder, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads((open_folder / "results.json").read_text())["score"] == score
    assert marked_processes() == []
