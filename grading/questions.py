"""The comprehension questions that stand in the code, as a list or as a sheet to fill in.

    python -m grading.questions                       each with its file and line
    python -m grading.questions --sheet answers.md    a Markdown file with room for the answers

A question is a comment on a line of its own that begins with its number, `Q7. Why is ...`, and goes on in the comments
right below it. The numbers go from 1 up without a gap; if they do not, the exit status is 2. Only the kit's own files
are searched. Standard library only.
"""

import argparse
import re
from pathlib import Path
from typing import NamedTuple

from kit import ROOT
from kit.base.errors import UserError, run_main
from kit.base.files import read_text, user_path, write_text, writing

SCRIPTS = "train evaluate play prompt_engineering data sentiment reward_utils"
FOLDERS = ("kit", "baselines", "configs")
# Indentation, number, and text, which goes on in the comments right below with the same indentation
QUESTION = re.compile(r"^([ \t]*)#+ *Q(\d+)\. +(\S.*(?:\n\1#+[ \t]*(?!Q ?\d+\b)[^\s#].*)*)", re.M)


class Question(NamedTuple):
    number: int
    text: str
    file: str  # relative to the kit
    line: int


def sources(root: Path) -> list[Path]:
    """The kit's own Python and YAML files."""
    scripts = [path for path in root.glob("*.py") if path.stem in SCRIPTS.split()]
    inside = [path for folder in FOLDERS for path in (root / folder).rglob("*.*")]
    return sorted([*scripts, *(path for path in inside if path.suffix in (".py", ".yaml"))])


def questions_in(root: Path) -> list[Question]:
    """Every question of the kit, in the order of their numbers. Raises UserError for a file that cannot be read."""
    questions = []
    for path in sources(root):
        source, file = read_text(path, "the file"), path.relative_to(root).as_posix()
        for found in QUESTION.finditer(source):
            text = " ".join(re.sub(r"\n\s*#+", " ", found[3]).split())
            line = source.count("\n", 0, found.start()) + 1
            questions.append(Question(int(found[2]), text, file, line))
    return sorted(questions, key=lambda question: (question.number, question.file))


def faults(questions: list[Question]) -> list[str]:
    """A sentence for each number that is missing, or that two questions have."""
    said = [] if questions else ["There is no question in the code."]
    for number in range(1, max((question.number for question in questions), default=0) + 1):
        places = [f"in {q.file}, line {q.line}" for q in questions if q.number == number]
        if len(places) != 1:
            said.append(f"Q{number} is {' and '.join(places) or 'nowhere'}.")
    return said


def sheet(questions: list[Question]) -> str:
    """Markdown: the questions in order, with room for an answer below each."""
    rows = [f"## Q{q.number}. `{q.file}`, line {q.line}\n\n> {q.text}\n\nAnswer:\n" for q in questions]
    return "\n".join(["# Answers\n\nName:\n", *rows])


def main(argv: list[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(prog="python -m grading.questions", description=__doc__.split("\n")[0])
    parser.add_argument("--sheet", metavar="FILE", help="write a Markdown sheet to fill in")
    out = parser.parse_args(argv).sheet
    questions = questions_in(root)
    if out is None:
        for question in questions:
            print(f"Q{question.number:<3} {question.file}:{question.line}\n     {question.text}")
    if wrong := faults(questions):
        raise UserError(" ".join(wrong))
    if out is not None:
        path = Path(user_path(out))
        if path.exists():
            raise UserError(f"--sheet {out}: is there already, perhaps with answers; give another name")
        with writing(f"--sheet {out}"):
            write_text(path, sheet(questions))
        print(f"{out}: {len(questions)} questions")


if __name__ == "__main__":
    run_main(main)
