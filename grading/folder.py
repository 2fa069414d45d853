"""Grade a folder of submissions into a table that may have been through a spreadsheet: `grading.grade --all`.

Instructors edit the table: its encoding, separator, decimal comma, order, edited cells and added columns are kept.
"""

import codecs
import csv
import hashlib
import io
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from grading.exploits import file_beside
from grading.sandbox import Refused, cut, no_formula, plain, read_submission
from grading.submission import FUNCTIONS
from kit.base.errors import Stopped, UserError
from kit.base.files import write_text, writing

NUMBERS = ("score", *FUNCTIONS, "exploits", "seconds")
FIELDS = ("submission", *NUMBERS, "message", "sha256")
NOT_A_STUDENT = re.compile(r"\..*|__MACOSX|__pycache__")  # file managers and archives leave these


def submissions_in(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """({name: path} of the files to grade, a line for each entry of the folder that is not graded).

    A student is a file `*.py`, or a folder with one rewards.py; if it has several, the one nearest to the top counts.
    """
    found, lines, others = {}, [], []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not NOT_A_STUDENT.fullmatch(entry.name):
            below = (path for path in sorted(entry.rglob("rewards.py")) if not path.is_dir())
            named = [p for p in below if not any(map(NOT_A_STUDENT.fullmatch, p.relative_to(folder).parts))]
            nearest = [path for path in named if len(path.parts) == min(len(p.parts) for p in named)]
            here, rest = listed(nearest, entry), listed([p for p in named if p not in nearest], entry)
            if len(nearest) == 1:
                found[str(nearest[0].relative_to(folder))] = nearest[0]
                lines += [f"{plain(entry.name)}: {here} is graded, not {rest}"] if rest else []
            else:
                several = f"it has {here}; leave one of them" if nearest else "it has no rewards.py"
                lines.append(f"{plain(entry.name)}: not graded, {several}")
        elif entry.suffix.lower() == ".py" and not NOT_A_STUDENT.fullmatch(entry.name):
            found[entry.name] = entry
        else:
            others.append(entry)
    if others:
        lines.append(f"no submissions: {listed(others, folder)}")
    return found, lines


def listed(paths: list[Path], folder: Path) -> str:
    names = [plain(path.relative_to(folder)) for path in paths]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Table:
    """grades.csv. `rows` are lists of cells in the order of the file; what a spreadsheet made of it is kept."""

    def __init__(self, path: Path) -> None:
        """Read the table, if there is one already. Raises UserError if the file is no table of grades."""
        self.path, self.encoding, self.delimiter = path, "utf-8", ","
        self.header, self.rows, self.decimal_comma = list(FIELDS), [], False
        try:
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise UserError(f"--csv {path}: cannot be read ({error.strerror})") from None
        if not data:
            return
        self.encoding = encoding_of(data)
        try:
            text = data.decode(self.encoding)
            self.delimiter = max(",;\t", key=text.partition("\n")[0].count)
            self.header, *self.rows = csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter)
        except (ValueError, csv.Error):
            self.header = []
        if "submission" not in self.header:
            raise UserError(f"--csv {path}: is no table of grades and stays as it is; choose another name")
        self.header += [field for field in FIELDS if field not in self.header]
        numbers = "".join(self.cell(row, field) for row in self.rows for field in NUMBERS)
        self.decimal_comma = "," in numbers or (self.delimiter == ";" and "." not in numbers)

    def cell(self, row: list[str], field: str) -> str:
        place = self.header.index(field)
        return row[place].strip() if place < len(row) else ""

    def name(self, text: str) -> str:
        """A submission's name as its cell: one line, no formula, and `?` for what the encoding does not have."""
        return no_formula(plain(text)).encode(self.encoding, "replace").decode(self.encoding)

    def row(self, name: str) -> list[str] | None:
        return next((row for row in self.rows if self.cell(row, "submission") == name), None)

    def put(self, values: dict[str, str]) -> None:
        """Fill in our cells of a submission's row, a new one in the order of names if need be, and seal them."""
        row = self.row(values["submission"])
        if row is None:
            names = [self.cell(row, "submission") for row in self.rows]
            later = (place for place, name in enumerate(names) if name > values["submission"])
            self.rows.insert(next(later, len(names)), row := [])
        row += [""] * (len(self.header) - len(row))
        for field, value in values.items():
            comma = self.decimal_comma and field in NUMBERS
            row[self.header.index(field)] = value.replace(".", ",") if comma else value
        row[self.header.index("sha256")] += f"-{self.seal(row)}"

    def seal(self, row: list[str]) -> str:
        """A checksum of our cells that changes with an edit, but not when a spreadsheet saves them."""
        cells = " | ".join(self.cell(row, field) for field in ("score", *FUNCTIONS, "message"))
        cells += self.cell(row, "exploits")
        cells = cells.replace(",", ".").replace("'", "")
        return hashlib.sha256(cells.encode("ascii", "replace")).hexdigest()[:8]

    def state(self, name: str, digest: str) -> str:
        """A submission is "new", "graded", "changed" since, or changed while its row was "edited" by hand."""
        row = self.row(name)
        if row is None or not (self.cell(row, "score") or self.cell(row, "sha256")):
            return "new"
        graded, _, seal = self.cell(row, "sha256").partition("-")
        if graded == digest:
            return "graded"
        return "changed" if seal == self.seal(row) else "edited"

    def write(self) -> None:
        """Replace the file in one step. Raises UserError."""
        with writing(f"--csv {self.path}"):
            write_text(self.path, csv_text([self.header, *self.rows], self.delimiter), self.encoding)


def csv_text(rows: Iterable[Sequence[object]], delimiter: str = ",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue()


def write_new_csv(path: Path, rows: Iterable[Sequence[object]]) -> Path:
    """Write a table to `path`, or to `NAME-2.csv` and so on: what stands there may have been edited, and stays.

    Returns where it is: a table of the same rows is not written twice. Raises UserError.
    """
    text = csv_text(rows)
    numbered = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2))
    with writing(f"--csv {path}"):
        for place in itertools.chain([path], numbered):
            if place.is_file() and place.read_bytes() == text.encode("utf-8", "replace"):
                break
            if not place.exists():
                write_text(place, text)
                break
    return place


def encoding_of(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    with suppress(UnicodeDecodeError):
        data.decode("utf-8")
        return "utf-8-sig" if data.startswith(codecs.BOM_UTF8) else "utf-8"
    return "cp1252"


def grade_folder(folder: Path, path: Path, jobs: int, grade: Callable[[Path], dict]) -> int:
    """Grade the submissions in `folder` into the table at `path`, which is whole after each; rows that stand are kept.

    A row stands if the file has not changed since (sha256) or is gone, or if it was edited by hand. `grade` is that of
    `grade.py`, with its time limit. Returns the number of submissions on which it failed.
    """
    from tqdm import tqdm  # not on Gradescope, which grades one file

    table = Table(path)
    found, lines = submissions_in(folder)
    files: dict[str, Path] = {}
    for text, submission in found.items():
        name = table.name(text)
        while name in files:  # two names that differ in what is shown as ?
            name += "?"
        files[name] = submission
    digests = {name: digest(submission) for name, submission in files.items()}
    states = {name: table.state(name, digests[name]) for name in files}
    todo = [name for name, state in states.items() if state in ("new", "changed")]
    edited = "has changed, but its row was edited by hand; delete the row to grade it again"
    lines += [f"{name}: {edited}" for name, state in states.items() if state == "edited"]
    print(*lines, sep="\n", end="\n" * bool(lines), file=sys.stderr)
    if not files:
        raise UserError(f"there is nothing to grade in {folder}: no *.py, no */rewards.py")
    table.write()
    kept = len(files) - len(todo)
    failed = done = 0
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(grade, files[name]): name for name in todo}
        bar = tqdm(as_completed(futures), total=len(todo), unit="file", disable=None)
        try:
            for future in bar:
                name = futures[future]
                if error := future.exception():
                    failed += 1
                    bar.write(f"{name}: not graded, {type(error).__name__}: {error}", file=sys.stderr)
                    continue
                table.put({"submission": name, **cells(future.result()), "sha256": digests[name]})
                done += 1
                table.write()
        except Stopped as stop:  # those under way come to their end, and clean up
            table.write()  # the stop may have come between a row and its writing
            pool.shutdown(wait=False, cancel_futures=True)
            bar.close()
            graded = f"{kept + done} of {len(files)} are graded"
            said = f"Stopped: {graded}, and {path} keeps them; the same command goes on."
            raise Stopped(stop.signum, said) from None
    print(f"{kept + done} graded ({kept} kept from before), {failed} not graded: {path}")
    return failed


def cells(results: dict) -> dict[str, str]:
    """Our cells of a row: points in all and by function, seconds, and what was wrong."""
    row = {"score": f"{results['score']:g}", "seconds": str(results["execution_time"])}
    for function in FUNCTIONS:
        tests = [test for test in results["tests"] if test["name"].startswith(f"{function}:")]
        row[function] = f"{sum(test['score'] for test in tests):g}"
    bonus = [test["score"] for test in results["tests"] if test["name"].startswith("exploits:")]
    row["exploits"] = f"{sum(bonus):g}" if bonus else ""
    failures = {t["output"]: t["number"] for t in reversed(results["tests"]) if t["status"] == "failed"}
    message = " / ".join(f"{number} {cut(text, 200)}" for text, number in reversed(failures.items()))
    # a leading quote keeps a spreadsheet from taking a student's text for a formula
    row["message"] = f"'{' '.join(message.split())}" if message else ""
    return row


def digest(path: Path) -> str:
    """SHA-256 of a submission and its exploits, or of why they cannot be read; 16 hexadecimal digits."""
    text = ""
    for file in filter(None, (path, file_beside(path))):
        try:
            text += read_submission(file)
        except Refused as refused:
            text += str(refused)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
