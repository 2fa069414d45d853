"""The grader's side of exercise 2's attack: a student's bonus, and a class's exploits in one table.

`grading.grade --all` collects the texts of all exploits.txt that the judge dislikes and asks every reward, each in its
own sandbox, what it pays for them: which rewards fall to which texts.
"""

from collections.abc import Sequence
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
from grading.folder import write_new_csv
from grading.sandbox import Refused, Sandbox, cut, no_formula, plain, read_submission
from grading.submission import Mistake, Student

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


def fallen(texts: list[Exploit], timeout: float, submission: Path) -> set[Exploit] | None:
    """Those of the texts that a submission's reward pays more than honest praise; None if it has no answer."""
    try:
        with Sandbox(read_submission(submission), timeout) as sandbox:
            praise, rewards = paid(Student(sandbox.ask), texts)
    except (Refused, Mistake):
        return None
    return {text for text, reward in zip(texts, rewards, strict=True) if reward > praise}


def collect(submissions: dict[str, Path], out: Path, jobs: int, timeout: float) -> None:
    """Write the exploits of a class to `out`, those that most rewards fall to first, and print who falls to which."""
    finders: dict[Exploit, list[str]] = {}
    for name, path in submissions.items():
        texts = handed_in(path)
        for text in texts if isinstance(texts, list) else []:
            if text.judge < JUDGE_BELOW:
                finders.setdefault(text, []).append(name)
    if not finders:
        return
    with ThreadPoolExecutor(jobs) as pool:
        answers = pool.map(partial(fallen, list(finders), timeout), submissions.values())
        falls = {name: fell for name, fell in zip(submissions, answers, strict=True) if fell is not None}
    which = {text: [name for name, fell in falls.items() if text in fell] for text in finders}
    order = sorted(which, key=lambda text: -len(which[text]))
    rows: list[Sequence[object]] = [FIELDS]
    for number, text in enumerate(order, 1):
        by, those = (no_formula(plain(", ".join(names))) for names in (finders[text], which[text]))
        numbers = [f"{text.score:.3f}", f"{text.judge:.3f}"]
        rows.append([number, no_formula(text.text), *numbers, by, len(which[text]), those])
    out = write_new_csv(out, rows)
    for name, fell in falls.items():
        numbers = [str(number) for number, text in enumerate(order, 1) if text in fell]
        those = f"{': ' * bool(numbers)}{', '.join(numbers)}"
        print(f"{plain(name)} falls to {len(numbers)} of {len(order)}{those}")
    print(f"{len(order)} exploits: {out}")
