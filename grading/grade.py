"""Grade a submitted `rewards.py`.

    python -m grading.grade SUBMISSION.py --out results.json       one submission, in Gradescope's format
    python -m grading.grade --all FOLDER --csv grades.csv          a folder of them, in parallel; run again to resume
    python -m grading.grade SUBMISSION.py --train                  and see what it trains, in a few dozen steps

The submission never runs in this process. A worker (`sandbox.py` starts it, `worker.py` is it), shut in as far as the
kernel allows, gets inputs on a pipe and returns numbers; every verdict is drawn here, from instances seeded by
assignment and submission. The result file is valid at any moment: it starts with 0 points and is replaced after each
check. Standard library only (and tqdm for the bar of `--all`).
"""

import argparse
import concurrent.futures
import csv
import hashlib
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grading.checks import CHECKS, EXERCISES, run_checks
from grading.sandbox import PYTHON, GraderFailed, Sandbox, check_unreadable, cut
from grading.submission import Student

ROOT = Path(__file__).resolve().parent.parent
ASSIGNMENT = "rl-sentiment-exercise"
MAX_SOURCE = 256 << 10  # bytes of a submission
MAX_MESSAGE = 1500  # characters of one test's output: 20 tests stay far below Gradescope's 1 MB


class Refused(Exception):
    """The submission is not a file that can be graded; the message says why."""


def read_submission(path: Path) -> str:
    """The text of a regular, small, UTF-8 file; Refused for anything else. A link is not followed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Refused(f"There is no file {path.name}: nothing was submitted under that name.") from None
    except OSError as error:
        reason = "it is a symbolic link" if path.is_symlink() else str(error.strerror).lower()
        raise Refused(f"{path.name} cannot be read: {reason}. Submit the file itself.") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Refused(f"{path.name} is not a plain file.")
    with os.fdopen(fd, "rb") as file:
        data = file.read(MAX_SOURCE + 1)
    if len(data) > MAX_SOURCE:
        raise Refused(
            f"{path.name} is larger than {MAX_SOURCE >> 10} kB: submit rewards.py alone, as source."
        )
    try:
        source = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Refused(f"{path.name} is not UTF-8 text: save it as UTF-8.") from None
    if "\0" in source:
        raise Refused(f"{path.name} contains NUL bytes: it is no Python source.")
    if not source.strip():
        raise Refused(f"{path.name} is empty: save it, and submit it again.")
    return source


# ---- results -----------------------------------------------------------------------------------------------


def blank_results(message: str, hidden: bool = True) -> dict:
    """Gradescope's schema with 0 points everywhere; the score is the sum, as it always is."""
    return {
        "score": 0.0,
        "execution_time": 0.0,
        "output": message,
        "output_format": "text",
        "stdout_visibility": "hidden",
        "tests": [
            {
                "number": check.number,
                "name": f"{check.function}: {check.title}",
                "score": 0.0,
                "max_score": float(check.points),
                "status": "failed",
                "output": message,
                "output_format": "text",
                "visibility": "after_published" if check.hidden and hidden else "visible",
            }
            for check in CHECKS
        ],
        "extra_data": {},
    }


def write_results(results: dict, out: Path | None) -> None:
    """Replace the result file in one step: whoever looks finds a whole one."""
    if out is None:
        return
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(results, indent=1, allow_nan=False), encoding="utf-8")
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def grade(
    submission: Path,
    out: Path | None = None,
    timeout: float = 9.0,
    progress: Callable[[dict], None] = lambda test: None,
    **layers: Any,
) -> dict:
    """Grade one file; returns the results and leaves them in `out`. Raises Refused, OSError for `out`, GraderFailed."""
    started = time.monotonic()
    results = blank_results("Grading did not finish. If this stays, tell your instructor.")
    write_results(results, out)
    try:
        source = read_submission(submission)
    except Refused as refused:
        write_results(blank_results(str(refused)), out)
        raise
    check_unreadable(submission.parent)
    seed = hashlib.sha256(f"{ASSIGNMENT}\n{source}".encode()).hexdigest()
    tests = {test["number"]: test for test in results["tests"]}
    with Sandbox(source, timeout, **layers) as sandbox:
        for function in EXERCISES:
            for check, mistake in run_checks(Student(sandbox.ask), function, seed):
                test = tests[check.number]
                test["output"] = cut(mistake, MAX_MESSAGE) if mistake else "Right."
                test["score"] = 0.0 if mistake else float(check.points)
                test["status"] = "failed" if mistake else "passed"
                results["score"] = sum(t["score"] for t in results["tests"])
                results["execution_time"] = round(time.monotonic() - started, 3)
                progress(test)
                write_results(results, out)
    results["output"] = f"{results['score']:g} of 100 points."
    if any(test["visibility"] != "visible" for test in results["tests"]):
        results["output"] += " Some checks, on other instances, are shown once the grades are published."
    results["extra_data"] = {"seed": seed[:16], "python": PYTHON, "not_enforced": sandbox.missing}
    results["execution_time"] = round(time.monotonic() - started, 3)
    write_results(results, out)
    return results


def grade_safely(submission: Path, out: Path | None = None, **options: Any) -> dict:
    """`grade`, with a refusal as a result of 0 points; for anything else there are results too, and an "error"."""
    try:
        return grade(submission, out, **options)
    except Refused as refused:
        return blank_results(str(refused))
    except Exception as error:
        results = blank_results("The grader itself failed on this submission: tell your instructor.")
        results["error"] = f"{type(error).__name__}: {error}"
        return results


# ---- a trial run -------------------------------------------------------------------------------------------

# what training needs of the kit
KIT = ("train.py", "data.py", "reward_utils.py", "sentiment.py", "configs", "grading", "kit", "mini")


def trial_run(submission: Path, steps: int, timeout: float = 900.0) -> str:
    """Train the mini model with the submission's forward penalty, shut in like the checks; a sentence on what came out.

    For the instructor's eyes, and worth no points: the numbers come from the submission's own process.
    """
    source = read_submission(submission)
    with tempfile.TemporaryDirectory(prefix="grading-kit-") as folder:
        kit = Path(folder)
        for name in KIT:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, kit / name)
        (kit / "rewards.py").write_text(source, encoding="utf-8")
        for path in (kit, *kit.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        command = [sys.executable, "train.py", "--model", "mini", "--sentiment_model", "mini"]
        command += ["--kl_type", "forward", "--unchecked"]
        command += ["--max_steps", str(steps), "--run_name", "run"]
        command += ["--save_steps", str(10 * steps)]
        with Sandbox(source, timeout, kit=kit) as sandbox:
            request = {"command": command, "folder": str(kit)}
            reply = sandbox.launch(request)
    if "lost" in reply:
        return f"Training {reply['lost']}."
    validations = []
    for line in str(reply.get("metrics")).splitlines():
        try:
            record = json.loads(line)
            values = [float(record[name]) for name in ("step", "val/sentiment_mean", "val/kl_policy_ref")]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        validations.append(values)
    if reply.get("status") != 0 or not validations:
        said = str(reply.get("said", "")).strip().splitlines()
        return f"Training did not finish: {cut(said[-1] if said else 'it said nothing')}"
    (_, before, _), (step, after, nats) = validations[0], validations[-1]
    return (
        f"{step:.0f} steps with kl_penalty_forward: sentiment {before:.3f} -> {after:.3f}, "
        f"KL(pi || pi_ref) {nats:.1f} nats a completion."
    )


# ---- a folder of submissions -------------------------------------------------------------------------------


def submissions_in(folder: Path) -> dict[str, Path]:
    """{name: path} of the submissions in a folder: `*.py` and `*/rewards.py`."""
    return {
        str(p.relative_to(folder)): p for p in sorted([*folder.glob("*.py"), *folder.glob("*/rewards.py")])
    }


def grade_folder(folder: Path, table: Path, jobs: int, timeout: float) -> int:
    """Grade the submissions in `folder` into a CSV, one row as each is done; rows that stand are kept.

    A row stands if the file has not changed since (sha256). Returns the number of submissions the grader failed on.
    """
    from tqdm import tqdm

    fields = ["submission", "score", *EXERCISES, "seconds", "message", "sha256"]
    submissions = submissions_in(folder)
    digests = {name: digest(path) for name, path in submissions.items()}
    rows = {}
    if table.exists():
        with table.open(newline="", encoding="utf-8") as file:
            rows = {row["submission"]: row for row in csv.DictReader(file) if row.get("sha256")}
    rows = {name: row for name, row in rows.items() if digests.get(name) == row["sha256"]}
    todo = [name for name in submissions if name not in rows]

    def write_table() -> None:
        temporary = table.with_name(f".{table.name}.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fields, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows[name] for name in sorted(rows))
        temporary.replace(table)

    write_table()
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(grade_safely, submissions[name], timeout=timeout): name for name in todo}
        bar = tqdm(concurrent.futures.as_completed(futures), total=len(todo), unit="file", disable=None)
        try:
            for future in bar:
                name, results = futures[future], future.result()
                if "error" in results:
                    failed += 1
                    bar.write(f"{name}: not graded, {results['error']}")
                    continue
                rows[name] = table_row(name, results, digests[name])
                write_table()
        except (KeyboardInterrupt, SystemExit):  # those under way come to their end, and clean up
            pool.shutdown(wait=False, cancel_futures=True)
            bar.close()
            done = f"{len(rows)} of {len(submissions)} are graded"
            print(f"Stopped: {done}, and {table} keeps them; the same command goes on.", file=sys.stderr)
            raise
    scores = [float(row["score"]) for row in rows.values()]
    mean = f", mean {sum(scores) / len(scores):.1f} of 100" if scores else ""
    print(
        f"{len(scores)} graded ({len(submissions) - len(todo)} kept from before), {failed} not graded{mean}: {table}"
    )
    return failed


def table_row(name: str, results: dict, sha256: str) -> dict:
    row = {
        "submission": name,
        "score": f"{results['score']:g}",
        "seconds": results["execution_time"],
        "sha256": sha256,
    }
    for function in EXERCISES:
        tests = [test for test in results["tests"] if test["name"].startswith(f"{function}:")]
        row[function] = f"{sum(test['score'] for test in tests):g}"
    failures = {t["output"]: t["number"] for t in reversed(results["tests"]) if t["status"] == "failed"}
    message = " / ".join(f"{number} {cut(text, 200)}" for text, number in reversed(failures.items()))
    # a leading quote keeps a spreadsheet from taking a student's text for a formula
    row["message"] = f"'{message}" if message else ""
    return row


def digest(path: Path) -> str:
    try:
        return hashlib.sha256(read_submission(path).encode()).hexdigest()[:16]
    except Refused as refused:
        return hashlib.sha256(str(refused).encode()).hexdigest()[:16]


# ---- command line ------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m grading.grade",
        usage="%(prog)s SUBMISSION.py | --all FOLDER  [--flag value ...]",
        description=__doc__.split("\n\n")[0],
    )
    parser.add_argument("submission", nargs="?", type=Path, help="the file to grade")
    parser.add_argument("--out", type=Path, help="where to write the results, Gradescope's results.json")
    parser.add_argument(
        "--all", type=Path, metavar="FOLDER", help="grade *.py and */rewards.py of a folder instead"
    )
    parser.add_argument("--csv", type=Path, default=Path("grades.csv"), help="the table of --all")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="submissions graded at a time by --all"
    )
    parser.add_argument(
        "--train", action="store_true", help="also train the mini model with it, for no points"
    )
    parser.add_argument("--max_steps", type=int, default=20, help="steps of --train")
    parser.add_argument(
        "--timeout", type=float, help="seconds for the code of one submission: 9, with --all 30"
    )
    args = parser.parse_args(argv)
    if args.timeout is None:
        args.timeout = 9.0 if args.all is None else 30.0
    if (args.submission is None) == (args.all is None):
        parser.error("name one submission, or a folder with --all")
    if args.timeout <= 0 or args.jobs < 1 or args.max_steps < 1:
        parser.error("--timeout, --jobs and --max_steps must be positive")
    if args.train and args.all is not None:
        parser.error("--train takes one submission at a time")
    if args.train and not (ROOT / "train.py").exists():
        parser.error("--train needs the whole kit, of which this is a part")
    if sys.platform != "linux":
        print(
            "The grader shuts submissions in by means of Linux; on other systems run it in a container.",
            file=sys.stderr,
        )
        return 2
    # Unwinds, so that the worker is stopped and cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.all is not None:
        if not args.all.is_dir():
            print(f"{args.all} is no folder.", file=sys.stderr)
            return 2
        if not submissions_in(args.all):
            print(f"There is nothing to grade in {args.all}: no *.py, no */rewards.py.", file=sys.stderr)
            return 2
        try:
            return 1 if grade_folder(args.all, args.csv, args.jobs, args.timeout) else 0
        except OSError as error:
            print(f"Cannot write the table {args.csv}: {error.strerror}.", file=sys.stderr)
            return 2

    def show(test: dict) -> None:
        score = f"{test['score']:g}/{test['max_score']:g}"
        print(f"{test['number']:<4} {score:>6}  {test['name']}")
        if test["status"] == "failed":
            print(f"             {test['output']}")

    try:
        results = grade(args.submission, args.out, args.timeout, show)
        if args.train:
            results["extra_data"]["training"] = trial_run(args.submission, args.max_steps)
            results["output"] += f" {results['extra_data']['training']}"
            write_results(results, args.out)
    except Refused as refused:
        print(f"{refused} 0 of 100 points.", file=sys.stderr)
        return 0 if args.submission.exists() or args.submission.is_symlink() else 2
    except OSError as error:
        print(
            f"Cannot write {args.out}: {error.strerror}." if args.out else f"Grading failed: {error}.",
            file=sys.stderr,
        )
        return 2
    except GraderFailed as error:
        print(f"Grading failed: {error}.", file=sys.stderr)
        return 2
    print(f"{results['output']} ({results['execution_time']:.1f} s, {PYTHON})")
    for text in results["extra_data"]["not_enforced"]:
        print(f"not enforced - {text}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
