"""The autograder's zip, built, unpacked and used. `pytest tests/grading/test_gradescope.py`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, system_python


def run(*command: object, cwd: Path, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, **options)


@pytest.fixture
def autograder() -> Path:
    """Gradescope's layout, unpacked where an unprivileged user can work."""
    base = Path(tempfile.mkdtemp(prefix="autograder-"))
    done = run(sys.executable, "-m", "grading.gradescope.build", "--out", base / "autograder.zip", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (base / "autograder.zip").stat().st_size < 1_000_000
    for folder in ("source", "submission", "results"):
        (base / folder).mkdir()
    with zipfile.ZipFile(base / "autograder.zip") as archive:
        assert not [name for name in archive.namelist() if "solution" in name or "test" in name]
        for info in archive.infolist():
            (base / "source" / info.filename).parent.mkdir(exist_ok=True)
            (base / "source" / info.filename).write_bytes(archive.read(info))
            (base / "source" / info.filename).chmod(info.external_attr >> 16 & 0o777)
    shutil.copy(base / "source" / "run_autograder", base / "run_autograder")
    yield base
    shutil.rmtree(base, ignore_errors=True)


USERS = ["as we are", "unprivileged"] if os.geteuid() == 0 else ["as we are"]


def run_autograder(base: Path, user: str) -> dict:
    system_python()  # what run_autograder will find
    identity = {}
    if user == "unprivileged":
        for path in (base, *base.rglob("*")):
            os.chown(path, 65534, 65534, follow_symlinks=False)
        identity = {"user": 65534, "group": 65534, "extra_groups": []}
    done = run(base / "run_autograder", cwd=base, env={"PATH": "/usr/bin:/bin:/usr/local/bin"}, **identity)
    assert done.returncode == 0, done.stderr
    results = json.loads((base / "results" / "results.json").read_text())
    assert results["score"] == sum(test["score"] for test in results["tests"])
    assert sum(test["max_score"] for test in results["tests"]) == 100
    return results


@pytest.mark.parametrize("user", USERS)
def test_autograder(autograder, user):
    """A right file at the top, one a folder down, none at all, a link, and one that would steal the solution."""
    place = autograder / "submission"
    shutil.copy(ROOT / "rewards_solution.py", place / "rewards.py")
    assert run_autograder(autograder, user)["score"] == 110
    (place / "rewards.py").rename(autograder / "rewards.py")
    results = run_autograder(autograder, user)
    assert results["score"] == 0 and "There is no file rewards.py" in results["output"]
    (place / "my work").mkdir()
    (autograder / "rewards.py").rename(place / "my work" / "rewards.py")
    assert run_autograder(autograder, user)["score"] == 110
    (place / "rewards.py").symlink_to(place / "my work" / "rewards.py")
    assert "symbolic link" in run_autograder(autograder, user)["output"]
    (place / "rewards.py").unlink()
    shutil.copy(ROOT / "tests" / "submissions" / "hostile" / "steals_the_solution.py", place / "rewards.py")
    assert run_autograder(autograder, user)["score"] == 0


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("has", ["python3.12 python3.11 python3", "python3.11 python3", "python3", ""])
def test_set_up_takes_the_best_python_that_the_image_has(autograder, has):
    """With an apt-get of our own that has these, and whose python3 is 3.10 as on Ubuntu 22.04."""
    tools, said = autograder / "bin", autograder / "said"
    tools.mkdir()
    script(
        tools / "apt-get",
        f'echo "apt-get $*" >>{said}; [[ "$1" == update || " {has} " == *" ${{4%-venv}} "* ]]',
    )
    for name in has.split():
        new_enough = "exit 1" if name == "python3" else "exit 0"
        script(tools / name, f'[ "$1" = -c ] && {new_enough}; echo "{name} $*" >>{said}')
    done = run(autograder / "source" / "setup.sh", cwd=autograder, env={"PATH": f"{tools}:/usr/bin:/bin"})
    assert done.returncode == 0
    made = [line for line in said.read_text().splitlines() if not line.startswith("apt-get")]
    best = has.split()[0] if "3.1" in has else None
    assert made == ([f"{best} -m venv --clear {autograder / 'venv'}"] if best else [])


def test_the_autograder_runs_what_was_set_up(autograder):
    """Not the image's own python3; and rather than with one older than the students' there is no grade."""
    python = autograder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    script(python, f'echo "$*" >>{autograder / "said"}; exit 1')
    done = run(autograder / "run_autograder", cwd=autograder, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0 and (autograder / "said").read_text().startswith("-c import sys")
    assert (autograder / "said").read_text().count("\n") == 1
    assert "tell your instructor" in (autograder / "results" / "results.json").read_text()


def test_autograder_without_python_still_answers(autograder):
    tools = autograder / "bin"
    tools.mkdir()
    for tool in ("bash", "env", "dirname", "mkdir", "chmod", "find", "sort", "head"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = run(autograder / "run_autograder", cwd=autograder, env={"PATH": tools})
    assert done.returncode == 0
    results = json.loads((autograder / "results" / "results.json").read_text())
    assert results["score"] == 0 and "tell your instructor" in results["output"]
