"""The comprehension questions that stand in the code, as a list or as a sheet to fill in.

    python -m grading.questions                       each with its file and line
    python -m grading.questions --sheet answers.md    a Markdown file with room for the answers

A question is a comment on a line of its own that begins with its number, `Q7. Why is ...`, and goes on in the comments
right below it. The numbers go from 1 up without a gap; if they do not, the exit status is 2. Only the kit's own files
are searched; a line says which of them cannot be read, and what is nearly a question. Standard library only.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from kit import ROOT
from kit.base.errors import UserError, run_main
from kit.base.files import read_text, user_path, write_text

SCRIPTS = "train evaluate play prompt_engineering data sentiment reward_utils"
FOLDERS = ("kit", "baselines", "configs")
# A comment that begins with Q and a number, and the comments right below it with the same indentation
COMMENT = re.compile(r"^([ \t]*)#+ *(Q ?\d+\b.*(?:\n\1#+[ \t]*(?!Q ?\d+\b)[^\s#].*)*)", re.M)
START = re.compile(r"Q(\d+)\. +(?=\S)")


@dataclass
class Question:
    number: int
    text: str
    file: str  # relative to the kit
    line: int


def sources(root: Path) -> list[Path]:
    """The kit's own Python and YAML files."""
    scripts = [path for path in root.glob("*.py") if path.stem in SCRIPTS.split()]
    inside = [path for folder in FOLDERS for path in (root / folder).rglob("*.*")]
    return sorted([*scripts, *(path for path in inside if path.suffix in (".py", ".yaml"))])


def questions_in(root: Path) -> tuple[list[Question], list[str]]:
    """(every question of the kit, in the order of their numbers; what was left out, with the reason)."""
    questions: list[Question] = []
    left_out: list[str] = []
    for path in sources(root):
        file = path.relative_to(root).as_posix()
        try:
            source = read_text(path, "the file")
        except UserError:
            left_out.append(f"{file} (cannot be read)")
            continue
        asked: list[Question] = []
        for comment in COMMENT.finditer(source):
            line = source.count("\n", 0, comment.start()) + 1
            start = START.match(comment[2])
            if start and int(start[1]) not in [question.number for question in asked]:
                words = re.sub(r"\n\s*#+", " ", comment[2][start.end() :]).split()
                asked.append(Question(int(start[1]), " ".join(words), file, line))
            else:
                left_out.append(f"{file}, line {line} (not `# Q7. Why ...`, or a number for the second time)")
        questions += asked
    return sorted(questions, key=lambda question: (question.number, question.file)), left_out


def faults(questions: list[Question]) -> list[str]:
    """A sentence for each number that is missing, or that two questions have."""
    said = []
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
    questions, left_out = questions_in(root)
    if left_out:
        print(f"left out: {'; '.join(left_out)}", file=sys.stderr)
    wrong = faults(questions) if questions else ["There is no question in the code."]
    if out is None:
        for question in questions:
            print(f"Q{question.number:<3} {question.file}:{question.line}\n     {question.text}")
    if wrong:
        raise UserError(" ".join(wrong))
    if out is not None:
        path = Path(user_path(out))
        if path.exists():
            raise UserError(f"--sheet {out}: is there already, perhaps with answers; give another name")
        try:
            write_text(path, sheet(questions))
        except OSError as error:
            raise UserError(f"--sheet {out}: cannot be written ({error.strerror})") from None
        print(f"{out}: {len(questions)} questions")


if __name__ == "__main__":
    run_main(main)
