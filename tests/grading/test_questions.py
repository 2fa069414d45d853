"""The questions in the code, on a small tree made here and on the kit. `pytest tests/grading/test_questions.py`."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from grading import questions
from grading.questions import Question
from kit.base.errors import UserError
from tests.conftest import ROOT

TRAIN = '''"""A docstring with # Q9. no question in it."""

# Q2. Why is the loss near 0 here,
# and the gradient not?
#
# This is another remark.
x = "# Q8. Nor is this one."
def f():
    # An ordinary comment.
    # Q1. Which of the two
    #     is larger?
    return x  # no question
# Q4. Last one?
# Q5. Right below it?
'''
REWARD = "# Weights.\nsentiment: 1.0\nlength: 0.2\n# Q3. Twice as much: what changes?\nend: 1\n"


@pytest.fixture
def tree(tmp_path) -> Path:
    root = tmp_path / "kit"
    (root / "configs").mkdir(parents=True)
    (root / "train.py").write_text(TRAIN)
    (root / "configs" / "reward.yaml").write_text(REWARD)
    for environment, sign in (("env", "pyvenv.cfg"), ("packages", "conda-meta/history")):
        (root / environment / sign).parent.mkdir(parents=True)
        (root / environment / sign).write_text("")
    for skipped in (".venv/lib", "env/lib", "packages/lib", "tests", "outputs/run", "kit/__pycache__"):
        (root / skipped).mkdir(parents=True)
        (root / skipped / "a.py").write_text("# Q1. Not this one.\n" * (skipped[:3] != "kit"))
    return root


def test_every_question_with_its_file_and_line(tree):
    assert questions.questions_in(tree) == [
        Question(1, "Which of the two is larger?", "train.py", 10),
        Question(2, "Why is the loss near 0 here, and the gradient not?", "train.py", 3),
        Question(3, "Twice as much: what changes?", "configs/reward.yaml", 4),
        Question(4, "Last one?", "train.py", 13),
        Question(5, "Right below it?", "train.py", 14),
    ]


def test_the_list(tree, capsys):
    questions.main([], tree)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[:4] == [
        "Q1   train.py:10",
        "     Which of the two is larger?",
        "Q2   train.py:3",
        "     Why is the loss near 0 here, and the gradient not?",
    ]


def test_the_sheet(tree, tmp_path, capsys):
    out = tmp_path / "answers.md"
    questions.main(["--sheet", str(out)], tree)
    assert out.read_text().startswith(
        "# Answers\n\nName:\n\n## Q1. `train.py`, line 10\n\n> Which of the two is larger?\n\nAnswer:\n\n## Q2. "
    )
    assert out.read_text().count("\nAnswer:\n") == 5
    out.write_text("my answers\n")
    with pytest.raises(UserError, match="there already"):
        questions.main(["--sheet", str(out)], tree)
    assert out.read_text() == "my answers\n"
    with pytest.raises(UserError, match="cannot be written"):
        questions.main(["--sheet", str(tmp_path / "no" / "answers.md")], tree)


def test_a_gap_and_a_number_that_is_there_twice(tree, tmp_path):
    (tree / "data.py").write_text("# Q7. Seven?\n# Q2. Two again?\n# Q9. Nine?\n")
    with pytest.raises(UserError) as wrong:
        questions.main(["--sheet", str(tmp_path / "answers.md")], tree)
    assert (
        str(wrong.value) == "Q2 is in data.py, line 2 and in train.py, line 3. Q6 is nowhere. Q8 is nowhere."
    )
    assert not (tmp_path / "answers.md").exists()


@pytest.mark.parametrize("comment", ["Q6 Why?", "Q6: because it is", "Q 6. Why?", "Q6."])
def test_what_is_nearly_a_question_is_left_out(tree, comment, capsys):
    """An answer below its question, say: no part of it, and no question."""
    (tree / "train.py").write_text(f"{TRAIN}# {comment}\n# and more\n")
    questions.main([], tree)
    out = capsys.readouterr().out
    assert out.endswith("     Right below it?\n") and out.count("\n") == 10


def test_a_students_folder(tree, tmp_path):
    """Files that are not the kit's do not stand in the way of the sheet; an unreadable one of the kit is named."""
    (tree / "notes.py").write_bytes("# Q1. Schön?\n".encode("latin-1"))
    (tree / "scratch.py").write_text("def f(:\n# Q3: because\n")
    (tree / "train_old.py").write_text(TRAIN)
    (tree / "kit" / "idea.py").write_text("def f(:\n")
    (tree / "link.py").symlink_to(tree / "nowhere.py")
    questions.main(["--sheet", str(tmp_path / "answers.md")], tree)
    assert (tmp_path / "answers.md").read_text().count("\nAnswer:\n") == 5
    (tree / "kit" / "latin.py").write_bytes("# Q1. Schön?\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"kit/latin\.py: is not UTF-8 text"):
        questions.main([], tree)


def test_no_question_at_all(tmp_path):
    with pytest.raises(UserError, match=r"^There is no question in the code\.$"):
        questions.main([], tmp_path)


def test_the_kit_itself():
    found = questions.questions_in(ROOT)
    assert len(found) >= 15
    assert questions.faults(found) == []  # unique, and from 1 up without a gap
    assert len({question.text for question in found}) == len(found)
    for one, other in itertools.combinations(found, 2):  # each by itself, with code between
        assert one.file != other.file or abs(one.line - other.line) > 5, f"{one} and {other}"


ANSWERS = ROOT / "docs" / "answers.md"  # the hand-out has none
HEADING = r"^### Q(\d+)\. `([\w./]+)`: `([\w.]+)`\n\n(?=[^#\s])"


def symbol(statements: list[ast.stmt], line: int) -> str:
    """The function, method, or assigned name that holds a comment, or that follows it."""
    statement = next(s for s in statements if (s.end_lineno or 0) >= line)
    if isinstance(statement, ast.ClassDef) and statement.lineno < line:
        return f"{statement.name}.{symbol(statement.body, line)}"
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        return ast.unparse(statement.targets[0] if isinstance(statement, ast.Assign) else statement.target)
    assert isinstance(statement, (ast.FunctionDef, ast.ClassDef)), f"line {line}: a question about no name"
    return statement.name


@pytest.mark.skipif(not ANSWERS.exists(), reason="answers are for instructors")
def test_every_question_has_its_answer():
    """docs/answers.md has an answer to each question once, below its number, its file and what it is about."""
    told = re.findall(HEADING, ANSWERS.read_text(encoding="utf-8"), re.M)
    asked = questions.questions_in(ROOT)
    code = {q.file: ast.parse((ROOT / q.file).read_text(encoding="utf-8")).body for q in asked}
    assert told == [(str(q.number), q.file, symbol(code[q.file], q.line)) for q in asked]


def test_the_command_line(tmp_path):
    command = [sys.executable, "-m", "grading.questions", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--sheet FILE" in done.stdout
