"""Grade a submitted `rewards.py`.

    python -m grading.grade SUBMISSION.py --out results.json       one submission, in Gradescope's format
    python -m grading.grade --all FOLDER --csv grades.csv          a folder of them, in parallel; run again to resume
    python -m grading.grade SUBMISSION.py --train                  and see what it trains, in a few dozen steps

The submission never runs in this process. A worker (`worker.py`), shut in as far as the kernel allows, gets inputs on a
pipe and returns numbers; every verdict is drawn here, from instances seeded by assignment and submission. The result
file is valid at any moment: it starts with 0 points and is replaced after each check. Standard library only (and tqdm
for the bar of `--all`).
"""

import argparse
import concurrent.futures
import csv
import hashlib
import itertools
import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from grading.checks import CHECKS, EXERCISES, Student, run_checks

ROOT = Path(__file__).resolve().parent.parent
ASSIGNMENT = "rl-sentiment-exercise"
STARTUP = 30  # seconds a worker may take to be ready; on the grader's account, not on the submission's
MAX_SOURCE = 256 << 10  # bytes of a submission
MAX_REPLY = 4 << 20  # bytes of one reply
MAX_MESSAGE = 1500  # characters of one test's output: 20 tests stay far below Gradescope's 1 MB


class Refused(Exception):
    """The submission is not a file that can be graded; the message says why."""


class GraderFailed(Exception):
    """The grader itself could not do its work."""


def read_submission(path: Path) -> str:
    """The text of a regular, small, UTF-8 file; Refused for anything else. A link is not followed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Refused(f"There is no file {path.name}: nothing was submitted under that name.") from None
    except OSError as error:
        reason = "it is a symbolic link" if path.is_symlink() else error.strerror.lower()
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
    return source


# --- the worker, seen from here -----------------------------------------------------------------------------------


class Worker:
    """Runs the submission in another process; `ask` has the form that `grading.checks.Student` wants.

    A function gets a third of the time, all together get `timeout` seconds. One that hangs, dies or talks nonsense is
    not called again; the next function starts with a fresh process.
    """

    count = itertools.count()

    def __init__(
        self,
        source: str,
        timeout: float,
        namespaces: bool = True,
        landlock: bool = True,
        kit: Path | None = None,
    ):
        # Seconds of a machine that has them to give: on one where several processes wait for each core, asking a few
        # hundred times takes many times as long, which is no fault of the submission.
        timeout *= min(4.0, max(1.0, os.getloadavg()[0] / (2 * (os.cpu_count() or 1))))
        self.source = source
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self.spent: dict[str, float] = {}
        self.dead: dict[str, str] = {}  # function -> why it is not called any more; "" is the whole file
        self.missing: list[str] = []
        self.process: subprocess.Popen | None = None
        # As root the worker gets a user id that nothing else runs as (the range systemd keeps for transient users), if
        # that user could read python at all or will see it in a file system of its own.
        self.uid = 61184 + (31 * os.getpid() + next(Worker.count)) % 4300 if os.geteuid() == 0 else None
        if not namespaces and not all(
            p.stat().st_mode & 5 == 5 for p in Path(sys.base_prefix, "lib").parents
        ):
            self.uid = None
        heavy = kit is not None or re.search(r"\b(torch|jax|tensorflow)\b", source) is not None
        self.settings = {
            "parent": os.getpid(),
            "namespaces": namespaces,
            "landlock": landlock,
            "uid": self.uid,
            "readable": readable_paths() + ([str(kit)] if kit else []),
            "memory": (4 << 30) if heavy else (512 << 20),
            "address_space": (64 << 30) if heavy else (1 << 30),
            "cpu_seconds": int(timeout) * (os.cpu_count() or 1 if kit else 1) + 2,
            "processes": 128 if heavy else 24,
            "threads": (os.cpu_count() or 1) if kit else 1,
            "disk": (1 << 30) if kit else (16 << 20),
        }

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, name: str, args: list, kwargs: dict) -> dict:
        for function in ("", name):
            if function in self.dead:
                return {"error": self.dead[function]}
        if time.monotonic() > self.deadline:
            return {"error": "the time for the whole submission was used up"}
        if self.process is None and not self.start():
            return {"error": self.dead[""]}
        started = time.monotonic()
        budget = min(self.timeout / 3 - self.spent.get(name, 0.0), self.deadline - started)
        reply = self.exchange({"name": name, "args": args, "kwargs": kwargs}, started + budget)
        self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - started
        if "lost" in reply:
            self.stop()
            self.dead[name] = f"{name} {reply['lost']}"
            return {"error": self.dead[name]}
        return reply

    def start(self) -> bool:
        """Start a process and import the submission in it."""
        reply = self.launch({"source": self.source})
        if reply.get("loaded") is not True:
            self.stop()
            lost = f"the file {reply['lost']} while it was being imported" if "lost" in reply else None
            self.dead[""] = lost or f"rewards.py does not run: {cut(reply.get('error'))}"
            return False
        return True

    def launch(self, request: dict) -> dict:
        """Start a process and return its answer to its first request."""
        self.scratch = Path(tempfile.mkdtemp(prefix="grading-"))
        self.mark = f"GRADING_WORKER={self.scratch.name}"
        here = Path(__file__).parent
        for name in ("worker.py", "student.py"):
            shutil.copyfile(here / name, self.scratch / name)
        if self.uid is not None:
            os.chown(self.scratch, self.uid, self.uid)
        key, value = self.mark.split("=")
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(self.scratch / "worker.py"), json.dumps(self.settings)],
            cwd=self.scratch,
            env={
                "PATH": "/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "HOME": str(self.scratch),
                "TMPDIR": str(self.scratch),
                "USER": "student",
                "OMP_NUM_THREADS": str(self.settings["threads"]),
                "OPENBLAS_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                key: value,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.buffer = b""
        for pipe in (self.process.stdin, self.process.stdout):
            os.set_blocking(pipe.fileno(), False)
        started = time.monotonic()
        ready = self.exchange(request, started + STARTUP)  # nothing of the submission has run yet
        self.deadline += time.monotonic() - started
        if not isinstance(ready.get("missing"), list):
            self.stop()
            raise GraderFailed(
                f"the worker could not be shut in: {ready.get('broken') or 'it ' + ready['lost']}"
            )
        self.missing = ready["missing"]
        return self.exchange(None, self.deadline)

    def exchange(self, request: dict | None, deadline: float) -> dict:
        """Send one line (if any), receive one line; {"lost": why} on silence, death, too much or no JSON."""
        if self.buffer and request is not None:
            return {"lost": "sent more than it was asked for"}
        to_send = json.dumps(request).encode() + b"\n" if request is not None else b""
        stdin, stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                return {"lost": "took too long and was stopped"}
            can_read, can_write, _ = select.select([stdout], [stdin] if to_send else [], [], left)
            try:
                if can_write:
                    to_send = to_send[os.write(stdin, to_send) :]
                if can_read:
                    data = os.read(stdout, 1 << 16)
                    if not data:
                        return {"lost": "ended the process instead of returning (a crash, or out of memory?)"}
                    self.buffer += data
            except BrokenPipeError:
                return {"lost": "ended the process instead of returning (a crash, or out of memory?)"}
            if len(self.buffer) > MAX_REPLY:
                return {"lost": "returned more than can be read"}
        line, self.buffer = self.buffer.split(b"\n", 1)
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        return reply if isinstance(reply, dict) else {"lost": "sent something that is no reply"}

    def stop(self) -> None:
        """Kill everything the worker started, wherever it has hidden, and remove its scratch folder."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process = None
        # With a process namespace all are dead by now. Without, some may have left the group: they carry our mark.
        for _ in range(100):
            victims = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and self.owns(p)]
            for pid in victims:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if not victims:
                break
            time.sleep(0.01)
        for folder, _, _ in os.walk(self.scratch):
            Path(folder).chmod(0o700)  # top down, so that folders closed to their owner open up
        shutil.rmtree(self.scratch, ignore_errors=True)

    def owns(self, process: Path) -> bool:
        try:
            if (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
            if self.uid is not None and process.stat().st_uid == self.uid:
                return True
            return self.mark.encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


def readable_paths() -> list[str]:
    """What Python needs to run and to import installed packages, and nothing of the kit."""
    system = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"]
    python = [sys.base_prefix, sys.prefix, os.path.realpath(sys.executable)]
    return list(dict.fromkeys([*system, *python]))


def cut(text: object, length: int = 400) -> str:
    """Printable text of bounded length, from a worker that may say anything."""
    text = "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text)[: length + 1])
    return text if len(text) <= length else text[:length] + "..."


# --- results ------------------------------------------------------------------------------------------------------


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
    **layers: bool,
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
    seed = hashlib.sha256(f"{ASSIGNMENT}\n{source}".encode()).hexdigest()
    tests = {test["number"]: test for test in results["tests"]}
    with Worker(source, timeout, **layers) as worker:
        for function in EXERCISES:
            for check, mistake in run_checks(Student(worker.ask), function, seed):
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
    results["extra_data"] = {"seed": seed[:16], "not_enforced": worker.missing}
    results["execution_time"] = round(time.monotonic() - started, 3)
    write_results(results, out)
    return results


def grade_safely(submission: Path, out: Path | None = None, **options: object) -> dict:
    """`grade`, with a refusal as a result of 0 points; for anything else there are results too, and an "error"."""
    try:
        return grade(submission, out, **options)
    except Refused as refused:
        return blank_results(str(refused))
    except Exception as error:
        results = blank_results("The grader itself failed on this submission: tell your instructor.")
        results["error"] = f"{type(error).__name__}: {error}"
        return results


# --- training with it -----------------------------------------------------------------------------------------------

# what training needs of the kit
KIT = ("train.py", "data.py", "reward_utils.py", "sentiment.py", "configs", "kit", "mini")


def train(submission: Path, steps: int, timeout: float = 900.0) -> str:
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
        command += ["--kl_type", "forward", "--max_steps", str(steps), "--run_name", "run"]
        command += ["--save_steps", str(10 * steps)]
        with Worker(source, timeout, kit=kit) as worker:
            request = {"command": command, "folder": str(kit)}
            reply = worker.launch(request)
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


# --- a folder of submissions --------------------------------------------------------------------------------------


def grade_folder(folder: Path, table: Path, jobs: int, timeout: float) -> int:
    """Grade `*.py` and `*/rewards.py` below `folder` into a CSV, one row as each is done; rows that stand are kept.

    A row stands if the file has not changed since (sha256). Returns the number of submissions the grader failed on.
    """
    from tqdm import tqdm

    fields = ["submission", "score", *EXERCISES, "seconds", "message", "sha256"]
    submissions = {
        str(p.relative_to(folder)): p for p in sorted([*folder.glob("*.py"), *folder.glob("*/rewards.py")])
    }
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
        for future in bar:
            name, results = futures[future], future.result()
            if "error" in results:
                failed += 1
                bar.write(f"{name}: not graded, {results['error']}")
                continue
            rows[name] = table_row(name, results, digests[name])
            write_table()
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
        row[function] = (
            f"{sum(t['score'] for t in results['tests'] if t['name'].startswith(function + ':')):g}"
        )
    failures = {t["output"]: t["number"] for t in reversed(results["tests"]) if t["status"] == "failed"}
    # a leading quote keeps a spreadsheet from taking a student's text for a formula
    row["message"] = (
        "'" + " / ".join(f"{n} {cut(text, 200)}" for text, n in reversed(failures.items()))
        if failures
        else ""
    )
    return row


def digest(path: Path) -> str:
    try:
        return hashlib.sha256(read_submission(path).encode()).hexdigest()[:16]
    except Refused as refused:
        return hashlib.sha256(str(refused).encode()).hexdigest()[:16]


# --- command line ---------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m grading.grade", description=__doc__.split("\n\n")[0])
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
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # unwinds, so that the worker is stopped and cleaned up
    if args.all is not None:
        if not args.all.is_dir():
            print(f"{args.all} is no folder.", file=sys.stderr)
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
            results["extra_data"]["training"] = train(args.submission, args.max_steps)
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
    print(f"{results['output']} ({results['execution_time']:.1f} s)")
    for text in results["extra_data"]["not_enforced"]:
        print(f"not enforced - {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
