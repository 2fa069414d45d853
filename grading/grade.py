"""Grade a submitted `rewards.py`.

    python -m grading.grade SUBMISSION.py --out results.json       one submission, in Gradescope's format
    python -m grading.grade --all FOLDER --csv grades.csv          a folder of them, in parallel; run again to resume

The submission never runs in this process. A worker (`sandbox.py` starts it, `worker.py` is it), shut in as far as the
kernel allows, gets inputs on a pipe and returns numbers; every verdict is drawn here, from instances seeded by
assignment and submission. The result file is valid at any moment: it starts with 0 points and is replaced after each
check. Standard library only.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from grading.checks import CHECKS, EXERCISES, run_checks
from grading.sandbox import LAYERS, PYTHON, Refused, Sandbox, check_unreadable, cut, read_submission
from grading.submission import PREFERENCE, Student, Unfilled
from kit import ROOT
from kit.base.errors import UserError, run_main
from kit.base.files import refuse_foreign, user_path, write_text, writing

ASSIGNMENT = "rl-sentiment-exercise"
MAX_MESSAGE = 1500  # characters of one test's output: 20 tests stay far below Gradescope's 1 MB


# ---- results -----------------------------------------------------------------------------------------------


def blank_results(message: str) -> dict:
    """Gradescope's schema with 0 points everywhere; the score is the sum, as it always is."""
    return {
        "score": 0.0,
        "execution_time": 0.0,
        "output": message,
        "stdout_visibility": "hidden",
        "tests": [
            {
                "number": check.number,
                "name": f"{check.function}: {check.title}",
                "score": 0.0,
                # of the bonus 0: on Gradescope these add up to the assignment's 100 points
                "max_score": 0.0 if check.function == PREFERENCE else float(check.points),
                "status": "failed",
                "output": message,
                "visibility": "after_published" if check.hidden else "visible",
            }
            for check in CHECKS
        ],
        "extra_data": {},
    }


def write_results(results: dict, out: Path | None) -> None:
    """Replace the result file in one step; raises UserError."""
    if out is not None:
        with writing(f"--out {out}"):
            write_text(out, json.dumps(results, indent=1, allow_nan=False))


def grade(
    submission: Path, out: Path | None = None, timeout: float = 9.0, layers: Sequence[str] = LAYERS
) -> dict:
    """Grade one file; returns the results and leaves them in `out`. Raises UserError.

    A file that cannot be graded gets 0 points, the reason as "output", and no "extra_data".
    """
    started = time.monotonic()
    results = blank_results("Grading did not finish. If this stays, tell your instructor.")
    write_results(results, out)
    try:
        source = read_submission(submission)
    except Refused as refused:
        results = blank_results(str(refused))
        write_results(results, out)
        return results
    check_unreadable(submission.parent)
    seed = hashlib.sha256(f"{ASSIGNMENT}\n{source}".encode()).hexdigest()
    tests = {test["number"]: test for test in results["tests"]}
    exploits: list | str = []
    if (ROOT / "mini").is_dir():  # on Gradescope there are no models to score them by
        from grading import attacks

        exploits = attacks.handed_in(submission)  # now: loading the models is not on the submission's time
    with Sandbox(source, timeout, layers) as sandbox:
        for function in EXERCISES:
            for check, mistake in run_checks(Student(sandbox.ask), function, seed):
                test = tests[check.number]
                test["output"] = cut(mistake, MAX_MESSAGE) if mistake else "Right."
                test["score"] = 0.0 if mistake else float(check.points)
                left_out = check.function == PREFERENCE and isinstance(mistake, Unfilled)
                test["status"] = "failed" if mistake and not left_out else "passed"
                results["score"] = sum(t["score"] for t in results["tests"])
                results["execution_time"] = round(time.monotonic() - started, 3)
                write_results(results, out)
        if exploits:
            results["tests"].append(attacks.bonus(Student(sandbox.ask), exploits))
            results["score"] = sum(t["score"] for t in results["tests"])
    shown = "Some checks are shown once the grades are published."
    bonus = sum(test["score"] for test in results["tests"] if not test["max_score"])
    points = f"{results['score'] - bonus:g} of 100 points{f', and a bonus of {bonus:g}' * (bonus > 0)}"
    results["output"] = f"{points}. {shown}"
    results["extra_data"] = {"seed": seed[:16], "python": PYTHON, "not_enforced": sandbox.missing}
    write_results(results, out)
    return results


# ---- command line ------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    def path(text: str) -> Path:
        return Path(user_path(text))

    usage = "%(prog)s SUBMISSION.py | --all FOLDER  [--flag value ...]"
    parser = argparse.ArgumentParser("python -m grading.grade", usage, __doc__.split("\n\n")[0])
    add = parser.add_argument
    add("submission", nargs="?", type=path, help="the file to grade")
    add("--out", type=path, help="where to write the results, Gradescope's results.json")
    add("--all", type=path, metavar="FOLDER", help="grade *.py and */rewards.py of a folder instead")
    add("--csv", type=path, default=Path("grades.csv"), help="the table of --all")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="submissions graded at a time by --all")
    add("--timeout", type=float, default=30.0, help="seconds for the code of one submission")
    args = parser.parse_args(argv)
    if (args.submission is None) == (args.all is None):
        parser.error("name one submission, or a folder with --all")
    if not 0 < args.timeout < float("inf") or args.jobs < 1:
        parser.error("--timeout and --jobs must be positive numbers")
    if args.all and args.out:
        parser.error("--out is for one submission; the table of --all is --csv")
    if sys.platform != "linux":
        raise UserError("submissions are shut in by means of Linux; on other systems grade in a container")
    if args.all is not None:
        from grading import attacks  # not in Gradescope's zip
        from grading.folder import grade_folder, submissions_in

        if not args.all.is_dir():
            raise UserError(f"{args.all} is no folder")
        exploits = args.csv.with_name(f"{args.csv.stem}-exploits.csv")
        failed = grade_folder(args.all, args.csv, args.jobs, partial(grade, timeout=args.timeout))
        attacks.collect(submissions_in(args.all)[0], exploits, args.jobs, args.timeout)
        raise SystemExit(bool(failed))
    if args.submission.is_dir() and args.out is None:
        raise UserError(f"{args.submission} is a folder: grade those in it with --all {args.submission}")
    if args.out is not None:
        refuse_foreign(args.out, '"execution_time"', "--out")
    try:
        results = grade(args.submission, args.out, args.timeout)
    except OSError as error:
        raise UserError(f"grading failed: {error}") from None
    if not results["extra_data"]:
        print(f"{results['output']} 0 of 100 points.", file=sys.stderr)
        raise SystemExit(0 if args.submission.exists() or args.submission.is_symlink() else 2)
    for test in results["tests"]:
        print(f"{test['number']:<4} {test['score']:>3g}/{test['max_score']:<2g}  {test['name']}")
        if test["status"] == "failed":
            print(f"             {test['output']}")
    print(f"{results['output']} ({results['execution_time']:.1f} s, {PYTHON})")
    for text in results["extra_data"]["not_enforced"]:
        print(f"not enforced - {text}")


if __name__ == "__main__":
    run_main(main)
