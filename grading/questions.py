"""The comprehension questions that stand in the code, as a list or as a sheet to fill in.

    python -m grading.questions                       each with its file and line
    python -m grading.questions --sheet answers.md    a Markdown file with room for the answers

A question is a comment that begins with its number, `Q7. Why is ...`, and goes on in the comments right below it. The
numbers go from 1 up without a gap; where they do not, the list says so and the exit status is 1. Standard library only.
"""

import argparse
import io
import os
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_SEARCHED = {"tests", "outputs", "results", "dist", "wandb"}  # and whatever begins with a dot
START = re.compile(r"Q(\d+)\. +(\S.*)")
ALMOST = re.compile(r"Q ?\d+\b")


@dataclass(frozen=True)
class Question:
    number: int
    text: str
    file: str  # relative to the kit
    line: int


class Malformed(Exception):
    """A comment that is nearly a question; the message says where it is."""


def is_environment(folder: Path) -> bool:
    """Installed packages, whatever the folder is called: made by venv, uv or conda."""
    return (folder / "pyvenv.cfg").exists() or (folder / "conda-meta").exists()


def sources(root: Path) -> list[Path]:
    """The kit's Python and YAML files."""
    files = []
    for folder, inside, names in os.walk(root):
        inside[:] = [
            name
            for name in inside
            if name not in NOT_SEARCHED
            and not name.startswith(".")
            and not is_environment(Path(folder, name))
        ]
        files += [Path(folder, name) for name in names if name.endswith((".py", ".yaml"))]
    return sorted(files)


def comments(path: Path) -> Iterator[tuple[int, int, str]]:
    """(line, column, text without the #) of every comment; in Python a # inside a string is none."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        try:
            for token in tokenize.generate_tokens(io.StringIO(source).readline):
                if token.type == tokenize.COMMENT:
                    yield token.start[0], token.start[1], token.string.lstrip("#").strip()
        except (tokenize.TokenError, SyntaxError):
            raise Malformed(f"{path.name} is no Python that can be read") from None
    else:
        for line, code in enumerate(source.splitlines(), start=1):
            found = re.match(r"(\s*)#+(.*)", code)
            if found:
                yield line, len(found[1]), found[2].strip()


def questions_in(root: Path) -> list[Question]:
    """Every question below `root`, in the order of their numbers; raises Malformed."""
    questions = []
    for path in sources(root):
        file = path.relative_to(root).as_posix()
        number, place = 0, (0, 0)
        lines: list[str] = []
        for line, column, text in [*comments(path), (0, 0, "")]:
            start = START.match(text)
            continues = number and text and not start and (line, column) == (place[0] + len(lines), place[1])
            if continues:
                lines.append(text)
                continue
            if number:
                questions.append(Question(number, " ".join(lines), file, place[0]))
                number = 0
            if start:
                number, lines, place = int(start[1]), [start[2]], (line, column)
            elif ALMOST.match(text):
                raise Malformed(
                    f"{file}, line {line}: write a question as `# Q7. Why ...`, not as `# {text[:30]}`"
                )
    return sorted(questions, key=lambda question: (question.number, question.file, question.line))


def faults(questions: list[Question]) -> list[str]:
    """What is wrong with the numbers: two questions with one number, or a number without a question."""
    said = []
    places: dict[int, list[str]] = {}
    for question in questions:
        places.setdefault(question.number, []).append(f"{question.file}, line {question.line}")
    for number, where in places.items():
        if len(where) > 1:
            said.append(f"Q{number} is there {len(where)} times: {'; '.join(where)}.")
    missing = [number for number in range(1, max(places, default=0) + 1) if number not in places]
    if missing:
        said.append(f"There is no {', '.join(f'Q{number}' for number in missing)}.")
    return said


def sheet(questions: list[Question]) -> str:
    """Markdown: the questions in order, with room for an answer below each."""
    parts = ["# Answers", "Name:"]
    for question in questions:
        parts += [
            f"## Q{question.number}. `{question.file}`, line {question.line}",
            f"> {question.text}",
            "Answer:",
        ]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="python -m grading.questions", description=__doc__.split("\n")[0])
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write a Markdown sheet to fill in")
    out = parser.parse_args(argv).sheet
    try:
        questions = questions_in(root)
    except Malformed as malformed:
        print(f"{malformed}.", file=sys.stderr)
        return 1
    wrong = faults(questions) if questions else ["There is no question in the code."]
    for fault in wrong:
        print(fault, file=sys.stderr)
    if out is None:
        for question in questions:
            print(f"Q{question.number:<3} {question.file}:{question.line}\n     {question.text}")
    elif not wrong:
        try:
            with out.open("x", encoding="utf-8") as file:
                file.write(sheet(questions))
        except FileExistsError:
            print(f"{out} is there already, perhaps with answers: give another name.", file=sys.stderr)
            return 1
        except OSError as error:
            print(f"Cannot write {out}: {error.strerror}.", file=sys.stderr)
            return 1
        print(f"{out}: {len(questions)} questions")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
