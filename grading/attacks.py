"""The grader's side of exercise 2's attack: a student's bonus, and a class's exploits in one table.

`grading.grade --all` collects the texts of all exploits.txt that the judge dislikes and asks every reward, each in its
own sandbox, what it pays for them: which rewards fall to which texts.
"""

import csv
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from grading.exploits import (
    BONUS,
    JUDGE_BELOW,
    MAX_BYTES,
    TOO_LARGE,
    WANTED,
    Exploit,
    attack,
    file_beside,
    paid,
    scored,
    texts_in,
)
from grading.sandbox import Refused, Sandbox, cut, no_formula, read_submission
from grading.submission import Mistake, Student
from kit.base.files import write_text
from kit.base.screen import table

FIELDS = ("exploit", "text", "score", "judge", "found by", "rewards that fall", "which")


def handed_in(submission: Path) -> list[Exploit] | str:
    """The scored texts of the exploits.txt beside a submission; what is wrong with them; [] without such a file."""
    file = file_beside(submission)
    try:
        return scored(texts_in(read_submission(file, MAX_BYTES, TOO_LARGE))) if file else []
    except (Refused, Mistake) as wrong:
        return str(wrong)


def bonus(student: Student, texts: list[Exploit] | str) -> dict:
    """The bonus as one more test of the results. Its max_score is 0: the others make up the 100 points."""
    try:
        found, lines = (0, [texts]) if isinstance(texts, str) else attack(student, texts)
    except Mistake as mistake:
        found, lines = 0, [str(mistake)]
    enough = found >= WANTED
    return {
        "number": "2x",
        "name": f"exploits: {WANTED} texts that your shaped reward overpays",
        "score": float(BONUS) if enough else 0.0,
        "max_score": 0.0,
        "status": "passed" if enough else "failed",
        "output": cut("\n".join(lines), 1500),
        "visibility": "visible",
    }


def fallen(texts: list[Exploit], timeout: float, submission: Path) -> list[int] | None:
    """Which of the texts (by place) a submission's reward pays more than honest praise; None if it has no answer."""
    try:
        with Sandbox(read_submission(submission), timeout) as sandbox:
            praise, rewards = paid(Student(sandbox.ask), texts)
    except (Refused, Mistake):
        return None
    return [place for place, reward in enumerate(rewards) if reward > praise]


def collect(submissions: dict[str, Path], out: Path, jobs: int, timeout: float) -> None:
    """Write the exploits of a class to `out`, those that most rewards fall to first, and print who falls to which."""
    found: dict[str, Exploit] = {}
    finders: dict[str, list[str]] = {}
    for name, path in submissions.items():
        texts = handed_in(path)
        for text in texts if isinstance(texts, list) else []:
            if text.judge < JUDGE_BELOW:
                found.setdefault(text.text, text)
                finders.setdefault(text.text, []).append(name)
    if not found:
        return
    texts = list(found.values())
    ask: Callable[[Path], list[int] | None] = partial(fallen, texts, timeout)
    with ThreadPoolExecutor(jobs) as pool:
        answers = zip(submissions, pool.map(ask, submissions.values()), strict=True)
        falls = {name: set(places) for name, places in answers if places is not None}
    which = {place: [name for name in falls if place in falls[name]] for place in range(len(texts))}
    order = sorted(which, key=lambda place: -len(which[place]))
    rows, shown = [], []
    for number, place in enumerate(order, 1):
        text, names = texts[place], which[place]
        by, those = (no_formula(", ".join(some)) for some in (finders[text.text], names))
        numbers = [f"{text.score:.3f}", f"{text.judge:.3f}"]
        rows.append([number, no_formula(text.text), *numbers, by, len(names), those])
        shown.append([str(number), f"{len(names)} of {len(falls)}", *numbers, text.text])
    lines = io.StringIO()
    csv.writer(lines).writerows([FIELDS, *rows])
    write_text(out, lines.getvalue())
    print(table(["exploit", "rewards fall", "score", "judge", "text"], shown))
    for name, places in falls.items():
        numbers = [str(number) for number, place in enumerate(order, 1) if place in places]
        print(f"{name} falls to {len(numbers)} of {len(order)}{': ' * bool(numbers)}{', '.join(numbers)}")
    print(f"{len(order)} exploits: {out}")
