"""A folder of submissions, and its table after a spreadsheet has had it. `pytest tests/grading/test_folder.py`."""

import csv
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest

from grading import grade as grader
from grading.folder import FIELDS, Table, grade_folder, submissions_in, write_new_csv
from grading.submission import FUNCTIONS
from kit.base.errors import UserError
from tests.conftest import ROOT
from tests.grading.conftest import SUBMISSIONS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the grader runs on Linux")


@pytest.mark.usefixtures("scratch_of_our_own")
def test_a_folder_of_submissions(tmp_path, capsys):
    """Graded for real; again, only what has changed is graded anew."""
    place, table = tmp_path / "all", tmp_path / "grades.csv"
    grade = partial(grader.grade, timeout=30)
    (place / "berta").mkdir(parents=True)
    shutil.copy(ROOT / "rewards_solution.py", place / "anna.py")
    shutil.copy(ROOT / "rewards.py", place / "berta" / "rewards.py")
    (place / "carl.py").write_bytes(b"\xff\xfe")
    shutil.copy(SUBMISSIONS / "hostile" / "exit_at_import.py", place / "dora.py")
    (place / "emil.py").symlink_to("/etc/passwd")
    assert grade_folder(place, table, 2, grade) == 0
    rows = {row["submission"]: row for row in csv.DictReader(table.open())}
    assert {name: float(row["score"]) for name, row in rows.items()} == {
        "anna.py": 110, "berta/rewards.py": 0, "carl.py": 0, "dora.py": 0, "emil.py": 0,
    }  # fmt: skip
    assert "UTF-8" in rows["carl.py"]["message"] and "symbolic link" in rows["emil.py"]["message"]
    shutil.copy(ROOT / "rewards_solution.py", place / "carl.py")
    grade_folder(place, table, 2, grade)
    assert "4 kept from before" in capsys.readouterr().out
    rows = {row["submission"]: row for row in csv.DictReader(table.open())}
    assert float(rows["carl.py"]["score"]) == 110 and float(rows["anna.py"]["score"]) == 110


# ---- what is a submission ----------------------------------------------------------------------------------


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x = 1\n")
    return root


def test_every_file_has_a_row_or_a_line(tmp_path):
    names = "anna.py ._anna.py __MACOSX/anna.py BERTA.PY carl/kit/rewards.py dora/rewards_final.py emil/a/rewards.py "
    names += "emil/b/rewards.py fritz/rewards.py fritz/old/rewards.py fritz/.venv/rewards.py gerd/notes.txt list.pdf"
    found, lines = submissions_in(files(tmp_path, *names.split()))
    assert sorted(found) == ["BERTA.PY", "anna.py", "carl/kit/rewards.py", "fritz/rewards.py"]
    assert lines == [
        "dora: not graded, it has no rewards.py",
        "emil: not graded, it has a/rewards.py, b/rewards.py; leave one of them",
        "fritz: rewards.py is graded, not old/rewards.py",
        "gerd: not graded, it has no rewards.py",
        "no submissions: ._anna.py, __MACOSX, list.pdf",
    ]


# ---- the table ---------------------------------------------------------------------------------------------


@pytest.fixture
def graded(tmp_path):
    """Grade a folder with a grader of our own that gives each function 12.5 points; the names it was asked for."""

    def grade(path: Path) -> dict:
        asked.append(path.name)
        if path.name == "fails.py":
            raise OSError("no worker")
        tests = [
            {"name": f"{f}: x", "number": "1.1", "score": 12.5, "status": "failed", "output": "w \u2212 1"}
            for f in FUNCTIONS
        ]
        return {"score": 37.5, "execution_time": 0.25, "tests": tests}

    def run() -> list[str]:
        asked.clear()
        grade_folder(tmp_path / "all", tmp_path / "grades.csv", 1, grade)
        return sorted(asked)

    asked: list[str] = []
    files(tmp_path / "all", "anna.py", "berta.py", "carl.py")
    return run


# What a spreadsheet makes of a table: encoding, separator, decimal mark, end of a line
SAVED = [
    ("utf-8", ",", ".", "\r\n"),
    ("utf-8-sig", ";", ",", "\r\n"),
    ("utf-16", "\t", ",", "\n"),
    ("cp1252", ";", ",", "\r\n"),
]


@pytest.mark.parametrize(("encoding", "separator", "decimal", "newline"), SAVED)
def test_a_table_that_a_spreadsheet_has_saved(tmp_path, graded, encoding, separator, decimal, newline):
    """Its dialect, an edited score, an emptied cell, an added column and the instructor's own row are kept."""
    table = tmp_path / "grades.csv"
    assert graded() == ["anna.py", "berta.py", "carl.py"]
    header, anna, berta, carl = csv.reader(table.open(encoding="utf-8", newline=""))
    assert header == list(FIELDS) and anna[:5] == ["anna.py", "37.5", "12.5", "12.5", "12.5"]
    rows = [
        ["submission", "tutor", *header[1:]],
        ["berta.py", "", *berta[1:]],
        ["anna.py", "J\u00fcrgen", *anna[1:]],
    ]
    rows += [["carl.py", "", "", *carl[2:]], [], ["mean", "", "37.5"]]
    rows[2][2] = "80.5"
    with table.open("w", encoding=encoding, errors="replace", newline="") as file:
        for row in rows:
            cells = [
                cell.replace(".", decimal) if cell[:1].isdigit() and "-" not in cell else cell for cell in row
            ]
            file.write(separator.join(f'"{cell}"' if separator in cell else cell for cell in cells) + newline)
    before = table.read_bytes()
    assert graded() == []  # nothing has changed
    after = list(csv.reader(before.decode(encoding).splitlines(), delimiter=separator))
    assert list(csv.reader(table.read_bytes().decode(encoding).splitlines(), delimiter=separator)) == after
    for name in ("anna.py", "berta.py", "dora.py"):  # two hand in anew, one for the first time
        (tmp_path / "all" / name).write_text("x = 2\n")
    assert graded() == ["berta.py", "dora.py"]
    data = table.read_bytes()
    assert data[:2] == before[:2] and data.count(newline.encode(encoding)[-2:]) >= 6
    again = list(csv.reader(data.decode(encoding).splitlines(), delimiter=separator))
    assert again[0] == after[0] and again[2][:4] == [
        "anna.py",
        "J\u00fcrgen",
        f"80{decimal}5",
        f"12{decimal}5",
    ]
    assert ["carl.py", "", ""] in [row[:3] for row in again] and ["mean", "", f"37{decimal}5"] in again
    (dora,) = [row for row in again if row[:1] == ["dora.py"]]
    assert dora[2] == f"37{decimal}5"


def test_a_row_whose_file_has_changed_after_an_edit_is_named(tmp_path, graded, capsys):
    graded()
    table = tmp_path / "grades.csv"
    table.write_text(table.read_text().replace("anna.py,37.5", "anna.py,99"))
    (tmp_path / "all" / "anna.py").write_text("x = 2\n")
    assert graded() == []
    said = "anna.py: has changed, but its row was edited by hand; delete the row to grade it again\n"
    assert capsys.readouterr().err == said and "anna.py,99" in table.read_text()


def test_a_file_on_which_the_grader_fails_has_no_row_and_is_tried_again(tmp_path, graded, capsys):
    (tmp_path / "all" / "fails.py").write_text("x = 1\n")
    assert graded() == ["anna.py", "berta.py", "carl.py", "fails.py"] and graded() == ["fails.py"]
    out, err = capsys.readouterr()
    assert "fails.py: not graded, OSError: no worker\n" in err and "3 kept from before), 1 not graded" in out
    assert "fails.py" not in (tmp_path / "grades.csv").read_text()


@pytest.mark.parametrize("text", ["name,points\nanna,3\n", "my notes\n", "\0\1\2", "\x81\n"])
def test_what_is_no_table_of_grades_is_refused(tmp_path, graded, text):
    table = tmp_path / "grades.csv"
    table.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="is no table of grades and stays as it is"):
        graded()
    assert table.read_bytes() == text.encode("latin-1")


def test_names_that_spreadsheets_or_encodings_do_not_take(tmp_path, graded):
    odd = [b"=cmd.py", b"+1.py", b"-1.py", b"@a.py", b"b\xe4.py", b"b\xf6.py", b" c \x1b[2J\n200 graded.py"]
    for name in odd:
        (tmp_path / "all" / os.fsdecode(name)).write_text("x = 1\n")
    assert len(graded()) == 10 and graded() == []
    names = [row["submission"] for row in csv.DictReader((tmp_path / "grades.csv").open(encoding="utf-8"))]
    assert names == [
        "'+1.py",
        "'-1.py",
        "'=cmd.py",
        "'@a.py",
        "anna.py",
        "b?.py",
        "b?.py?",
        "berta.py",
        "c ?[2J 200 graded.py",
        "carl.py",
    ]


def test_a_new_table_stands_beside_one_that_may_have_been_edited(tmp_path):
    out, rows = tmp_path / "board.csv", [["run", "captured"], ["anna", "0.7"]]
    assert write_new_csv(out, rows) == write_new_csv(out, rows) == out
    out.write_text(edited := "run;captured;note\nanna;0,7;late\n")
    assert write_new_csv(out, rows) == write_new_csv(out, rows) == tmp_path / "board-2.csv"
    assert out.read_text() == edited and len([*tmp_path.iterdir()]) == 2


def test_the_seal_sees_edits_and_not_spreadsheets(tmp_path):
    table = Table(tmp_path / "none.csv")
    table.put({**dict.fromkeys(FIELDS, "1.5"), "message": "'w \u2212 1", "sha256": "ab"})
    (row,) = table.rows
    assert row[FIELDS.index("sha256")] == f"ab-{table.seal(row)}"
    saved = [cell.replace(".", ",").replace("\u2212", "?") for cell in row]
    assert table.seal(saved) == table.seal(row)
    for field in ("score", *FUNCTIONS, "exploits", "message"):
        place = FIELDS.index(field)
        assert table.seal([*row[:place], "2", *row[place + 1 :]]) != table.seal(row)


def test_a_row_stays_when_its_file_is_gone(tmp_path, graded, capsys):
    graded()
    (tmp_path / "all" / "anna.py").unlink()
    assert graded() == []
    rows = list(csv.DictReader((tmp_path / "grades.csv").open()))
    assert [row["submission"] for row in rows] == ["anna.py", "berta.py", "carl.py"]
    assert "2 graded (2 kept from before)" in capsys.readouterr().out
