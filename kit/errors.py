"""What a user can mend is one sentence, not a traceback. A leaf: this module imports nothing of the kit."""

import errno
import os
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

# With several processes most errors are everybody's: the launcher ends the others once the first has said it.
SECONDS_FOR_RANK_0 = 5.0


class UserError(Exception):
    """Something the user can put right: the message says what was wrong, where, and what to do."""


class Diverged(UserError):
    """A number of the training is not finite. Going on from the last checkpoint would end here again."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the process ends with status 128 + `signum`, after one line that says `message`."""

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message or f"stopped by {signal_name(signum)}")
        self.signum = signum


def signal_name(signum: int) -> str:
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """A `UserError`, Ctrl-C or SIGTERM in the block ends the process with one line and a non-zero status.

    Any other exception is our bug and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(SECONDS_FOR_RANK_0)
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError, OSError) as error:
        if not (said := no_room(error)):
            raise
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        stop = stop if isinstance(stop, Stopped) else Stopped(signal.SIGINT)
        if os.environ.get("RANK", "0") == "0":  # all processes stop at the same step, and one says so
            print(f"\n{stop}", file=sys.stderr)
        raise SystemExit(128 + stop.signum) from None


def no_room(error: BaseException, folder: Path | None = None) -> str:
    """What to say of an error that means a full disk, or memory that cannot be had; empty for any other.

    Libraries wrap a full disk in errors of their own, so the disk of `folder` is asked too; the error's own words
    follow, in case it was another that only met a full disk.
    """
    text = str(error)
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if memory or "not enough memory" in text or "allocate memory" in text:
        return (
            "there is not enough memory; lower --per_device_train_batch_size (baselines: the batch sizes), then "
            "--max_completion_length or --prompts_per_step"
        )
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    full |= "No space left" in text or "File too large" in text
    if folder and folder.is_dir() and isinstance(error, Exception) and not isinstance(error, UserError):
        full |= shutil.disk_usage(folder).free < 2**20
    if not full:
        return ""
    used = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder else 0
    where = folder or getattr(error, "filename", None) or "what is written to"
    said = textwrap.shorten(f"{type(error).__name__}: {text}", 200)
    return f"the disk of {where} is full (the run holds {used / 1e6:.0f} MB; {said}); make room for as much again"


def run_main(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and end the process: with status 0, or as `told_in_one_line`."""
    with told_in_one_line():
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, _raise)
        main()
    raise SystemExit(0)


def stop_at_once() -> None:
    """Until `run_main`, Ctrl-C and SIGTERM end the process with one line: libraries are imported, nothing is begun."""

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        print(f"\n{Stopped(signum)}", file=sys.stderr, flush=True)
        os._exit(128 + signum)  # an exception might be swallowed by what is being imported

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, end)


def _raise(signum: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(signum)
