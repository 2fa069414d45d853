"""The students' zip, built, unpacked and used. `pytest tests/grading/test_handout.py`."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from grading import handout
from tests.conftest import ROOT


def run(*command: object, cwd: Path, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("handout")
    done = run(sys.executable, "-m", "grading.handout", "--out", folder / "handout.zip", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(folder / "handout.zip") as archive:
        archive.extractall(folder)
    return folder / handout.TOP


def test_no_answers_inside(unpacked):
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert {"rewards.py", "train.py", "grading/checks.py", "tests/test_rewards.py"} <= names
    for name in names:
        assert not name.endswith("rewards_solution.py")
        assert "submissions" not in name and "gradescope" not in name and ".git/" not in name
        assert not name.startswith("tests/grading/")
    assert not names & {"grading/grade.py", "grading/sandbox.py", "grading/worker.py"}
    listed = [
        line.split(maxsplit=2)[2] for line in (unpacked.parent / "handout.manifest").read_text().splitlines()
    ]
    assert sorted(names) == sorted(listed)


def test_byte_for_byte(unpacked, tmp_path):
    done = run(sys.executable, "-m", "grading.handout", "--out", tmp_path / "handout.zip", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for name in ("handout.zip", "handout.manifest"):
        assert (tmp_path / name).read_bytes() == (unpacked.parent / name).read_bytes()


def test_three_unfilled_stubs(unpacked):
    done = run(sys.executable, "rewards.py", cwd=unpacked)
    assert done.returncode == 1 and done.stderr == ""
    assert done.stdout.count("not implemented yet") == 3
    done = run(
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/test_rewards.py",
        "-k",
        "kl_penalty_forward",
        cwd=unpacked,
    )
    assert done.returncode == 0 and done.stdout.count("s") >= 7, done.stdout


def test_the_tests_inside_can_be_collected(unpacked):
    done = run(sys.executable, "-m", "pytest", "--collect-only", "-q", "tests", cwd=unpacked)
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_filled_exercise_is_tested(unpacked, tmp_path):
    copy = tmp_path / "kit"
    shutil.copytree(unpacked, copy)
    (copy / "rewards.py").write_text(
        (ROOT / "rewards_solution.py").read_text(encoding="utf-8"), encoding="utf-8"
    )
    done = run(sys.executable, "-m", "pytest", "--noconftest", "tests/test_rewards.py", cwd=copy)
    assert done.returncode == 0 and "23 passed" in done.stdout, done.stdout
    mistake = (ROOT / "tests" / "submissions" / "mistakes" / "forward_mean.py").read_text(encoding="utf-8")
    with (copy / "rewards.py").open("a", encoding="utf-8") as file:
        file.write("\n\n" + mistake)
    done = run(sys.executable, "-m", "pytest", "--noconftest", "tests/test_rewards.py", cwd=copy)
    assert done.returncode == 1 and "You average over the tokens" in done.stdout
    assert "Traceback" not in done.stdout and "raise Mistake" not in done.stdout


@pytest.mark.slow
def test_training_works_from_the_zip(unpacked, tmp_path):
    done = run(sys.executable, "train.py", "--max_steps", 2, "--output_dir", tmp_path, "--run_name", "first",
               "--sentiment_model", "mini", "--model", "mini", cwd=unpacked)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "first" / "metrics.jsonl").exists()


@pytest.fixture
def repository(tmp_path) -> Path:
    """A small one of its own, with the files the self-check needs."""
    root = tmp_path / "kit"
    for name in (*handout.SELF_CHECK, "rewards_solution.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    run("git", "init", "-q", cwd=root)
    run("git", "add", ".", cwd=root)
    return root


def test_only_what_git_tracks(repository):
    (repository / "rewards_mine.py").write_text("private = 1\n")
    assert sorted(handout.collect(repository)) == sorted(handout.SELF_CHECK)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("notes.md", "The penalty is sum_t (1 - w_t).", "notes.md gives away exercise 1b"),
        (
            "tour.ipynb",
            '{"source": ["x = 1.0 - math.exp(b -\\n", " a)"]}',
            "tour.ipynb gives away exercise 1b",
        ),
        ("rewards.py", None, "filled in"),
    ],
)
def test_a_leak_is_refused(repository, name, text, message):
    solution = (repository / "rewards_solution.py").read_text(encoding="utf-8")
    (repository / name).write_text(text or solution, encoding="utf-8")
    run("git", "add", ".", cwd=repository)
    with pytest.raises(handout.Leak, match=message):
        handout.collect(repository)


def test_a_file_that_is_not_tracked_is_missed(repository):
    run("git", "rm", "-q", "--cached", "grading/mistakes.py", cwd=repository)
    with pytest.raises(handout.Leak, match=r"does not track grading/mistakes\.py"):
        handout.collect(repository)
