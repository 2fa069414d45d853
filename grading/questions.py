"""The comprehension questions that stand in the code, as a list or as a sheet to fill in.

    python -m grading.questions                       each with its file and line
    python -m grading.questions --sheet answers.md    a Markdown file with room for the answers

A question is a comment that begins with its number, `Q7. Why is ...`, and goes on in the comments right below it. The
numbers go from 1 up without a gap; if they do not, the list says so and the exit status is 2. Only the kit's own files
are searched; what cannot be read, or is nearly a question, is left out with a line that says so. Standard library only.
"""

import argparse
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kit import ROOT
from kit.base.errors import UserError, run_main
from kit.base.files import lines, read_text, user_path, write_text

SCRIPTS = "train evaluate play prompt_engineering data sentiment reward_utils"
FOLDERS = ("kit", "baselines", "configs")
START = re.compile(r"Q(\d+)\. +(\S.*)")
ALMOST = re.compile(r"Q ?\d+\b")


@dataclass(frozen=True)
class Question:
    number: int
    text: str
    file: str  # relative to the kit
    line: int


def sources(root: Path) -> tuple[list[Path], list[str]]:
    """(the kit's Python and YAML files, the names of other such files beside them)."""
    scripts = {f"{name}.py" for name in SCRIPTS.split()}
    beside = {path.name for path in root.glob("[!.]*") if path.suffix in (".py", ".yaml")}
    inside = [path for folder in FOLDERS for path in (root / folder).rglob("*.*")]
    kit = [root / name for name in scripts & beside] + [p for p in inside if p.suffix in (".py", ".yaml")]
    return sorted(kit), sorted(beside - scripts - {"rewards.py", "rewards_solution.py"})


def comments(path: Path) -> Iterator[tuple[int, int, str]]:
    """(line, column, text without the #) of every comment; in Python a # inside a string is none. Raises UserError."""
    source = read_text(path, "the file")
    if path.suffix == ".py":
        try:
            for token in tokenize.generate_tokens(io.StringIO(source).readline):
                if token.type == tokenize.COMMENT:
                    yield token.start[0], token.start[1], token.string.lstrip("#").strip()
        except (tokenize.TokenError, SyntaxError):
            raise UserError("no Python") from None
    else:
        for line, code in enumerate(lines(source), start=1):
            if found := re.match(r"(\s*)#+(.*)", code):
                yield line, len(found[1]), found[2].strip()


def questions_in(root: Path) -> tuple[list[Question], list[str]]:
    """(every question of the kit, in the order of their numbers; what was left out, with the reason)."""
    questions: list[Question] = []
    paths, left_out = sources(root)
    for path in paths:
        file = path.relative_to(root).as_posix()
        try:
            found = list(comments(path))
        except UserError:
            left_out.append(f"{file} (no readable {'Python' if path.suffix == '.py' else 'YAML'})")
            continue
        asked: dict[int, Question] = {}
        end = (0, 0)  # line and column of a comment that goes on with the last question
        for line, column, text in found:
            start = START.match(text)
            if start and int(start[1]) not in asked:
                number, end = int(start[1]), (line + 1, column)
                asked[number] = Question(number, start[2], file, line)
            elif ALMOST.match(text):
                left_out.append(f"{file}, line {line} (not `# Q7. Why ...`, or a number for the second time)")
                end = (0, 0)
            elif text and (line, column) == end:
                last = asked[number]
                asked[number], end = replace(last, text=f"{last.text} {text}"), (line + 1, column)
        questions += asked.values()
    return sorted(questions, key=lambda question: (question.number, question.file)), left_out


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
