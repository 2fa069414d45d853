"""The parent's side of the sandbox: read a submission, start a worker, ask it, stop it, and trust nothing of it.

The child's side, which shuts itself in and runs the submission, is `worker.py`. Linux only.
"""

import contextlib
import itertools
import json
import os
import platform
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kit import ROOT
from kit.base.errors import UserError

STARTUP = 30  # seconds a worker may take to be ready; on the grader's account, not on the submission's
MAX_REPLY = 4 << 20  # bytes of one reply
LAYERS = ("namespaces", "landlock")  # what the worker tries
MAX_SOURCE = 256 << 10  # bytes of a submission
# RLIMIT_*, beside that on the seconds of CPU time: bytes, but numbers of files and of processes
LIMITS = {"AS": 1 << 30, "DATA": 512 << 20, "FSIZE": 8 << 20, "NOFILE": 256, "CORE": 0, "NPROC": 24}
PYTHON = f"Python {platform.python_version()}"  # what the worker is run with


class Refused(Exception):
    """The submission is not a file that can be graded; the message says why."""


def read_plain(path: Path, largest: int, advice: str) -> bytes:
    """The bytes of a regular file of at most `largest` of them; Refused for anything else. A link is not followed."""
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
        data = file.read(largest + 1)
    if len(data) > largest:
        raise Refused(f"{path.name} is larger than {largest >> 10:,} kB: {advice}.")
    return data


def read_submission(
    path: Path, largest: int = MAX_SOURCE, advice: str = "submit rewards.py alone, as source"
) -> str:
    """The text of a regular, small, UTF-8 file; Refused for anything else. A link is not followed."""
    data = read_plain(path, largest, advice)
    if b"\0" in data:
        raise Refused(f"{path.name} is not UTF-8 text, it has NUL bytes: save it as UTF-8.")
    if not data.strip():
        raise Refused(f"{path.name} is empty: save it, and submit it again.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Refused(f"{path.name} is not UTF-8 text: save it as UTF-8.") from None


class Sandbox(contextlib.AbstractContextManager):
    """Runs the submission in a worker; `ask` has the form that `grading.submission.Student` wants.

    A function gets a third of the time, all together get `timeout` seconds. After one that hangs, dies or talks
    nonsense, the next function starts with a fresh process.
    """

    count = itertools.count()

    def __init__(self, source: str, timeout: float, layers: Sequence[str] = LAYERS) -> None:
        check_unreadable(ROOT)
        # On a busy machine a few hundred questions take longer, which is no fault of the submission.
        timeout *= min(4.0, max(1.0, os.getloadavg()[0] / (2 * (os.cpu_count() or 1))))
        self.source, self.timeout, self.deadline = source, timeout, time.monotonic() + timeout
        self.spent: dict[str, float] = {}
        self.broken = ""  # why the file cannot be imported
        self.missing: list[str] = []
        self.process: subprocess.Popen | None = None
        # As root the worker gets a user id that nothing else runs as (the range systemd keeps for transient users), if
        # that user can read python, or will see it in a file system of its own.
        folders = Path(sys.base_prefix, "lib").parents
        can_read = "namespaces" in layers or all(p.stat().st_mode & 5 == 5 for p in folders)
        own = 61184 + (31 * os.getpid() + next(Sandbox.count)) % 4300
        self.uid = own if os.geteuid() == 0 and can_read else None
        self.settings = {
            "parent": os.getpid(),
            "layers": layers,
            "uid": self.uid,
            "readable": readable_paths(),
            "disk": 16 << 20,
            "limits": {**LIMITS, "CPU": int(timeout) + 2},
        }

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, name: str, args: list, kwargs: dict) -> dict:
        late = time.monotonic() > self.deadline
        if self.process is None and not self.broken and not late:
            self.broken = self.start()
        if self.broken or late:
            return {"error": self.broken or "the time for the whole submission was used up"}
        started = time.monotonic()
        budget = min(self.timeout / 3 - self.spent.get(name, 0.0), self.deadline - started)
        reply = self.exchange({"name": name, "args": args, "kwargs": kwargs}, started + budget)
        self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - started
        if "lost" in reply:
            self.stop()
            reply = {"lost": f"{name} {reply['lost']}"}
        return reply

    def start(self) -> str:
        """Start a process and import the submission in it; empty, or why that failed."""
        self.scratch = Path(tempfile.mkdtemp(prefix="grading-"))
        here = Path(__file__).parent
        for name in ("worker.py", "submission.py"):
            shutil.copyfile(here / name, self.scratch / name)
        if self.uid is not None:
            os.chown(self.scratch, self.uid, self.uid)
        environment = {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "USER": "student",
            "HOME": str(self.scratch),
            "TMPDIR": str(self.scratch),
            "GRADING_WORKER": self.scratch.name,
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(self.scratch / "worker.py"), json.dumps(self.settings)],
            cwd=self.scratch,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.buffer = b""
        assert self.process.stdin and self.process.stdout
        self.pipes = (self.process.stdin, self.process.stdout)  # what the worker reads, what it writes
        for pipe in self.pipes:
            os.set_blocking(pipe.fileno(), False)
        started = time.monotonic()
        ready = self.exchange({"source": self.source}, started + STARTUP)  # nothing of it has run yet
        self.deadline += time.monotonic() - started
        if not isinstance(ready.get("missing"), list):
            self.stop()
            why = ready.get("broken") or "it " + ready["lost"]
            raise UserError(f"grading failed: the worker could not be shut in: {why}")
        self.missing = ready["missing"]
        reply = self.exchange(None, self.deadline)
        if reply.get("loaded") is True:
            return ""
        self.stop()
        if "lost" in reply:
            return f"the file {reply['lost']} while it was being imported"
        return f"rewards.py does not run in {PYTHON}: {cut(reply.get('error'))}"

    def exchange(self, request: dict | None, deadline: float) -> dict:
        """Send one line (if any), receive one line; {"lost": why} on silence, death, too much or no JSON."""
        if self.buffer and request is not None:
            return {"lost": "sent more than it was asked for"}
        to_send = json.dumps(request).encode() + b"\n" if request is not None else b""
        ended = {"lost": "ended the process instead of returning (a crash, or out of memory?)"}
        stdin, stdout = (pipe.fileno() for pipe in self.pipes)
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
                        return ended
                    self.buffer += data
            except BrokenPipeError:
                return ended
            if len(self.buffer) > MAX_REPLY:
                return {"lost": "returned more than can be read"}
        line, self.buffer = self.buffer.split(b"\n", 1)
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(reply := json.loads(line), dict):
                return reply
        return {"lost": "sent something that is no reply"}

    def stop(self) -> None:
        """Kill everything the worker started, wherever it has hidden, and remove its scratch folder."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in self.pipes:
            pipe.close()
        self.process = None
        # With a process namespace all are dead by now. Without, some may have left the group: started as root they have
        # a user of their own, else our mark, unless they have dropped it.
        for _ in range(100):
            victims = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and self.owns(p)]
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not victims:
                break
            time.sleep(0.01)
        # Folders may be closed to their owner, or nested deeper than Python can follow.
        if not self.scratch.is_symlink():
            subprocess.run(["chmod", "-R", "u+rwx", self.scratch], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["rm", "-rf", self.scratch], stderr=subprocess.DEVNULL, check=False)

    def owns(self, process: Path) -> bool:
        try:
            if (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
            if self.uid is not None and process.stat().st_uid == self.uid:
                return True
            mark = f"GRADING_WORKER={self.scratch.name}".encode()
            return mark in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


def readable_paths() -> list[str]:
    """What Python needs to run and to import installed packages, and nothing of the kit."""
    system = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"]
    python = [sys.base_prefix, sys.prefix, sys.executable]
    return list(dict.fromkeys([*system, *python, *map(os.path.realpath, python)]))  # .venv may be a link


def check_unreadable(folder: Path) -> None:
    """Raise UserError where a submission could read this folder, the kit's or that of all submissions."""
    for path in readable_paths():
        if folder.resolve().is_relative_to(os.path.realpath(path)):
            where = f"{folder} lies below {path}, where every submission may read"
            raise UserError(f"grading failed: {where}: move it elsewhere")


def cut(text: object, length: int = 400) -> str:
    """Printable text of bounded length, from a worker that may say anything."""
    text = "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text)[: length + 1])
    return text if len(text) <= length else text[:length] + "..."


def plain(text: object) -> str:
    """One printable line: a name in a student's files may hold anything."""
    return " ".join(cut(text).split())


def no_formula(text: str) -> str:
    """A text as a cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(tuple("=+-@'")) else text
