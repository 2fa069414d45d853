"""The students' zip, built, unpacked and used. `pytest tests/grading/test_handout.py`."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from grading import handout
from kit.base.errors import UserError
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
    assert not names & {"grading/grade.py", "grading/sandbox.py", "grading/worker.py", "grading/challenge.py"}


def test_nothing_that_a_trained_model_wrote(unpacked):
    """No block that `make results` writes, none of its cells, no figure of trained models, no hacked text."""
    written = r"<!-- (.* by make results) -->\n(.*?)<!-- /\1 -->"
    pages = "\n".join(
        page.read_text(encoding="utf-8") for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    )
    blocks = re.findall(written, pages, re.S)
    assert "written by make results" in {name for name, _ in blocks}
    rows = [row for _, block in blocks for row in block.splitlines() if re.search(r"\d\.\d", row)]
    texts = {cell.strip() for row in rows for cell in row.split("|") if len(cell) > 30 and "`" not in cell}
    assert len(rows) > 8
    for page in [*unpacked.glob("*.md"), *unpacked.glob("docs/*.md")]:
        text = page.read_text(encoding="utf-8")
        assert "by make results" not in text, page.name
        assert not [row for row in (*rows, *texts) if row in text], page.name
        assert not re.search(r"\b(\w{3,}) \1 \1\b", text), page.name
    figures = {path.name for path in (unpacked / "docs").glob("*.png")}
    assert figures == set(), "figures of trained models; a neutral one is to be named here"


def test_byte_for_byte(unpacked, tmp_path):
    done = run(sys.executable, "-m", "grading.handout", "--out", tmp_path / "handout.zip", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "handout.zip").read_bytes() == (unpacked.parent / "handout.zip").read_bytes()


def test_three_unfilled_stubs(unpacked, run_script):
    done = run(sys.executable, "rewards.py", cwd=unpacked)
    assert done.returncode == 1 and done.stderr == ""
    assert done.stdout.count("not implemented yet") == 4
    command = "-m pytest -p no:xdist tests/test_rewards.py -k kl_penalty_forward"
    done = run_script(*command.split(), cwd=unpacked)
    assert done.returncode == 0 and re.search(r"^\d+ skipped", done.stdout, re.M), done.stdout


def test_the_tests_inside_can_be_collected(unpacked, run_script):
    done = run_script("-m", "pytest", "-p", "no:xdist", "--collect-only", "-q", "tests", cwd=unpacked)
    assert done.returncode == 0, done.stdout[-2000:]


def test_every_link_leads_somewhere(unpacked):
    for page in unpacked.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_pages_send_nobody_to_what_is_not_there(unpacked):
    gone = re.compile(
        r"use_solution|rewards_solution|baselines\.compare|grading\.(grade|handout|gradescope)|benchmarks/"
    )
    targets = set(re.findall(r"^([a-z]+):", (unpacked / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in [*unpacked.rglob("*.md"), unpacked / "Makefile", unpacked / "notebooks" / "colab.ipynb"]:
        text = page.read_text(encoding="utf-8")
        assert not gone.search(text), page.name
        named = set(re.findall(r"(?:`|^|\")make ([a-z]+)", text, re.M))
        assert named <= targets, f"{page.name}: make {named - targets}"


def test_every_target_of_the_makefile_finds_its_program(unpacked):
    targets = re.findall(r"^([a-z]+):", (unpacked / "Makefile").read_text(encoding="utf-8"), re.M)
    assert {"train", "test"} <= set(targets)
    for target in targets:
        done = run("make", "-n", target, "N=3", cwd=unpacked)
        assert done.returncode == 0, done.stderr
        for script in re.findall(r"bin/python ([\w/]+\.py)", done.stdout):
            assert (unpacked / script).exists(), f"make {target}: {script}"
        for module in re.findall(r"bin/python -m ([\w.]+)", done.stdout):
            ours = unpacked / module.replace(".", "/")
            outside = module.partition(".")[0] in ("pip", "pytest")
            assert outside or ours.with_suffix(".py").exists(), f"make {target}: {module}"


def test_what_the_page_of_results_says_now_and_later(unpacked):
    page = (unpacked / "docs" / "results.md").read_text(encoding="utf-8")
    assert "after hand-in" in page and "|" not in page  # no table
    assert "| (base) |" in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_a_copy_with_a_bug_is_made_beside_the_students_files(unpacked, tmp_path):
    done = run(sys.executable, "-m", "grading.bug", "3", "--out", tmp_path, cwd=unpacked)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "3" / "rewards.py").read_bytes() == (unpacked / "rewards.py").read_bytes()
    differ = [
        str(path.relative_to(unpacked))
        for path in unpacked.rglob("*.py")
        if path.read_bytes() != (tmp_path / "3" / path.relative_to(unpacked)).read_bytes()
    ]
    assert differ == ["reward_utils.py"]


def test_handing_in(unpacked, tmp_path):
    done = run(sys.executable, "rewards.py", "exploits", cwd=unpacked)
    assert done.returncode == 2 and done.stderr.startswith("error: there is no "), done.stderr
    done = run(sys.executable, "-m", "grading.handin", "--out", tmp_path / "handin.zip", cwd=unpacked)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "handin.zip") as archive:
        assert archive.namelist() == ["handin/rewards.py"]


def test_a_block_without_its_end_is_refused():
    text = (
        "a\n<!-- instructors: not in the hand-out -->\nb\n<!-- /instructors -->\nc\n<!-- students: d\ne -->\n"
    )
    assert handout.for_students("a.md", text) == "a\nc\nd\ne\n"
    make = "a:\n# instructors: not in the hand-out\nb:\n# /instructors\n"
    assert handout.for_students("Makefile", make) == "a:\n"
    for broken in (text.replace("<!-- /instructors -->\n", ""), text.replace("<!-- instr", "<!-- Instr")):
        with pytest.raises(handout.Leak, match=r"a\.md has an instructors'"):
            handout.for_students("a.md", broken)


@pytest.fixture(scope="module")
def filled(unpacked, tmp_path_factory) -> Path:
    """The kit of a student who has finished: in `rewards.py` each stub has its solution's body."""
    kit = tmp_path_factory.mktemp("student") / "kit"
    shutil.copytree(unpacked, kit)
    stubs = (kit / "rewards.py").read_text(encoding="utf-8")
    source = (ROOT / "rewards_solution.py").read_text(encoding="utf-8")
    lines, before = source.splitlines(), []
    for node in ast.parse(source).body[1:]:
        if isinstance(node, ast.FunctionDef):
            body = "\n".join(lines[node.body[1].lineno - 1 : node.end_lineno])
            (stub,) = re.findall(rf"^    raise NotImplementedError\(.*: {node.name}\"\)$", stubs, re.M)
            stubs = stubs.replace(stub, body)
        else:
            before.append(ast.unparse(node))
    stubs = stubs.replace("\n\n\ndef ", "\n\n" + "\n".join(before) + "\n\n\ndef ", 1)
    (kit / "rewards.py").write_text(stubs, encoding="utf-8")
    return kit


def test_right_stubs_are_right(filled):
    done = run(sys.executable, "rewards.py", cwd=filled)
    assert done.returncode == 0 and done.stdout.count("| right") == 4, done.stdout
    done = run(sys.executable, "rewards.py", "kl_penalty_forward", cwd=filled)
    assert done.returncode == 0 and done.stdout.count("| right") == 1, done.stdout


def test_a_filled_exercise_is_tested(filled, tmp_path):
    copy = tmp_path / "kit"
    shutil.copytree(filled, copy)
    done = run(sys.executable, "-m", "pytest", "--noconftest", "tests/test_rewards.py", cwd=copy)
    assert done.returncode == 0 and "26 passed" in done.stdout, done.stdout
    mistake = (ROOT / "tests" / "submissions" / "mistakes" / "forward_mean.py").read_text(encoding="utf-8")
    with (copy / "rewards.py").open("a", encoding="utf-8") as file:
        file.write("\n\n" + mistake)
    done = run(sys.executable, "-m", "pytest", "--noconftest", "tests/test_rewards.py", cwd=copy)
    assert done.returncode == 1 and "You average over the tokens" in done.stdout
    assert "Traceback" not in done.stdout and "raise Mistake" not in done.stdout


def sh_lines(page: Path) -> list[str]:
    """The commands of a page's `sh` blocks, less those marked `# needs ...`."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if "# needs" not in line]


TINY = {
    "train.py": "--max_steps 1 --eval_every 0 --prompts_per_step 2 --num_generations 2 --max_completion_length 6",
    "baselines.sft": "--rounds 1 --prompts_per_round 2 --num_generations 2 --max_completion_length 6 --eval_every 0",
    "baselines.preferences": "--max_completion_length 6",
    "baselines.reward_model": "--epochs 1 --eval_every 0",
    "baselines.ppo": "--max_steps 1 --batch_size 4 --minibatch_size 4 --max_completion_length 6 --eval_every 0",
    "evaluate.py": "--num_prompts 4 --num_samples 1 --frontier_samples 2 --max_new_tokens 6",
    "prompt_engineering.py": "--num_prompts 4 --num_samples 1 --max_new_tokens 6",
}

# Five minutes of one core: a part of .ci/run, and of `make test` when asked for
LONG = pytest.mark.skipif("HANDOUT_TESTS" not in os.environ, reason="minutes long: HANDOUT_TESTS=1 make test")


@LONG
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_of_the_readme_and_the_exercises(filled, run_script):
    """In the order of the pages, in one folder, each cut to a step or two."""
    lines = dict.fromkeys(sh_lines(filled / "README.md") + sh_lines(filled / "docs" / "exercises.md"))
    commands = [f"python train.py {TINY['train.py']}"]  # `make train`, in the README's table
    for line in lines:
        if not line.startswith("python "):
            assert line.startswith((". .venv/bin/activate", "make ")), line
        else:
            script = line.split()[2 if line.split()[1] == "-m" else 1]
            commands.append(f"{line} {TINY.get(script, '')}")
    assert len(commands) > 20
    for command in commands:
        done = run_script(*shlex.split(command)[1:], cwd=filled, env={"CUDA_VISIBLE_DEVICES": ""})
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}{done.stderr[-2500:]}"
    for name in (
        "vanilla",
        "forward-0.05",
        "backward-0.05",
        "tempting",
        "shaped",
        "lora",
        "ppo",
        "sft",
        "grpo",
        "rm-100",
        "on-rm-100",
    ):
        assert (filled / "outputs" / name / "metrics.jsonl").exists(), name
    assert (filled / "results" / "report.html").exists()


def test_exercise_7_names_what_is_there(unpacked):
    page = (unpacked / "docs" / "exercises.md").read_text(encoding="utf-8")
    (made,) = re.findall(r"`(make_tree\(.*?\))`", page)
    names = "make_tree, kl, gradient, policy_gradient, cosine"
    assert all(f"`{name}`" in page for name in names.split(", "))
    code = f"import random; from grading.trees import {names}; print(len({made}.completions))"
    assert run(sys.executable, "-c", code, cwd=unpacked).stdout == "4\n"


@LONG
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [3, 6])  # with a longer and a shorter text than the kit's to aim at
def test_a_variants_own_tests_are_green(number, tmp_path):
    handout.main(["--variant", str(number), "--out", str(tmp_path / "handout.zip")])
    with zipfile.ZipFile(tmp_path / "handout.zip") as zip_file:
        zip_file.extractall(tmp_path)
    names = ("data", "metrics", "sentiment", "measuring", "reward_utils", "rewards", "resume", "sft", "ppo")
    files = [f"tests/test_{name}.py" for name in names]
    done = run(sys.executable, "-m", "pytest", "-m", "not slow", *files, cwd=tmp_path / handout.TOP)
    assert done.returncode == 0, done.stdout[-3000:]


@LONG
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_with_the_students_penalty(filled):
    done = run(sys.executable, "-m", "pytest", "tests/test_notebook.py", cwd=filled)
    assert done.returncode == 0 and re.search(r"\d\d passed, 1 skipped", done.stdout), done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [("train.py", "--kl_type", "forward"), ("prompt_engineering.py", "--score", "shaped", "mini/policy")],
)
def test_the_solution_is_not_there_and_that_is_one_sentence(unpacked, flags, run_script):
    done = run_script(*flags, "--use_solution", cwd=unpacked)
    assert done.returncode == 2 and re.fullmatch(
        r"error: there is no rewards_solution\.py .*; leave out --use_solution.*\n", done.stderr
    )


@pytest.fixture
def repository(tmp_path) -> Path:
    """A small one of its own, with the files the self-check needs."""
    root = tmp_path / "kit"
    for name in (*handout.NEEDED, "rewards_solution.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    run("git", "init", "-q", cwd=root)
    run("git", "add", ".", cwd=root)
    return root


def test_only_what_git_tracks(repository):
    (repository / "rewards_mine.py").write_text("private = 1\n")
    assert sorted(handout.collect(repository)) == sorted(handout.NEEDED)


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
        ("a.md", "<!-- samples by make results -->\n", r"^a\.md shows what trained models did: <!-- samples"),
    ],
)
def test_a_leak_is_refused(repository, name, text, message):
    solution = (repository / "rewards_solution.py").read_text(encoding="utf-8")
    (repository / name).write_text(text or solution, encoding="utf-8")
    run("git", "add", ".", cwd=repository)
    with pytest.raises(handout.Leak, match=message):
        handout.collect(repository)


def test_every_checkout_has_the_same_bytes():
    """On Windows too: the files of both zips are taken as they lie there."""
    attributes = (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()
    assert "* text=auto eol=lf" in attributes


def test_what_stands_at_the_place_of_the_zip_is_not_written_over(tmp_path):
    (tmp_path / "handout.zip").write_text("my notes")
    with pytest.raises(UserError, match=r"handout\.zip: this file was not written by this command"):
        handout.main(["--out", str(tmp_path / "handout.zip")])


def test_a_file_that_is_not_tracked_is_missed(repository):
    run("git", "rm", "-q", "--cached", "grading/mistakes.py", cwd=repository)
    with pytest.raises(handout.Leak, match=r"does not track grading/mistakes\.py"):
        handout.collect(repository)
