"""What a user can mend is one sentence, not a traceback. A leaf: this module imports nothing of the kit."""

import errno
import io
import os
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

# With several processes most errors are everybody's: the launcher ends the others once the first has said it.
SECONDS_FOR_RANK_0 = 5.0
HANGUP = getattr(signal, "SIGHUP", None)  # the terminal was closed; Windows has no such signal


class UserError(Exception):
    """Something the user can put right: the message says what was wrong, where, and what to do."""


class Diverged(UserError):
    """A number of the training is not finite. Going on from the last checkpoint would end here again."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP: the process ends with status 128 + `signum`, after one line that says `message`."""

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message or f"stopped by {signal_name(signum)}")
        self.signum = signum


def signal_name(signum: int) -> str:
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """A `UserError` or a stop signal in the block ends the process with one line and a non-zero status.

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


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main` and end the process: with the status it returns (None: 0), or as `told_in_one_line`."""
    secure_screen()
    with told_in_one_line():
        on_stop_signals(_raise)
        status = main()
    raise SystemExit(status or 0)


def stop_at_once() -> None:
    """Until `run_main`, a stop signal ends the process with one line: libraries are imported, nothing is begun."""

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        print(f"\n{Stopped(signum)}", file=sys.stderr, flush=True)
        os._exit(128 + signum)  # an exception might be swallowed by what is being imported

    on_stop_signals(end)


def on_stop_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let Ctrl-C, SIGTERM and SIGHUP call `handler`. Returns what they did before.

    SIGHUP stays ignored if it is: then the process was started with nohup.
    """

    def handle(signum: int, frame: FrameType | None) -> None:
        if signum == HANGUP:
            signal.signal(signum, signal.SIG_IGN)  # a shell that ends sends it twice
        handler(signum, frame)

    signals = [signal.SIGINT, signal.SIGTERM]
    if HANGUP and signal.getsignal(HANGUP) != signal.SIG_IGN:
        signals.append(HANGUP)
    return {signum: signal.signal(signum, handle) for signum in signals}


def _raise(signum: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(signum)


class _Screen(io.RawIOBase):
    """The file behind a standard stream. What it does not take is dropped: a closed pipe or terminal, a full disk."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self.stream = stream  # kept, as it closes the file when it is collected
        self.file: Any = getattr(stream.buffer, "raw", stream.buffer)  # python -u has no buffer

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.file.isatty()

    def fileno(self) -> int:
        return self.file.fileno()

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        with suppress(OSError):
            while rest and (written := self.file.write(rest)):
                rest = rest[written:]
        return len(data)


def secure_screen() -> None:
    """Let no print end the process: what cannot be written is dropped, a character without an encoding becomes `?`.

    There is no buffer below the text, as a signal handler that prints may interrupt another print.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or Path(os.devnull).open("w")  # None: it was closed by who started this
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream.buffer, _Screen):
            with suppress(OSError):
                stream.flush()
            safe = io.TextIOWrapper(_Screen(stream), stream.encoding, "replace", line_buffering=True)  # type: ignore[type-var]
            setattr(sys, name, safe)
