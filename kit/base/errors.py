"""Errors that a user can fix, stop signals, and a safe screen. This module imports nothing of the kit."""

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

# With several processes most errors are everybody's: rank 0 reports it, then the launcher ends the others.
SECONDS_FOR_RANK_0 = 5.0
HANGUP = getattr(signal, "SIGHUP", None)  # the terminal was closed; Windows has no such signal


class UserError(Exception):
    """Something the user can fix: the message says what was wrong, where, and what to do."""


class Diverged(UserError):
    """A number of the training is not finite. A resume from the last checkpoint would end the same way."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP: the process prints `message` and ends with status 128 + `signum`."""

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message or f"stopped by {signal_name(signum)}")
        self.signum = signum


def signal_name(signum: int) -> str:
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """A `UserError`, a full disk or memory, or a stop signal ends the process with one line and a non-zero status.

    Any other exception is our bug and keeps its traceback.
    """
    rank_0 = os.environ.get("RANK", "0") == "0"
    try:
        yield
    except (UserError, MemoryError, RuntimeError, OSError) as error:
        said = str(error) if isinstance(error, UserError) else no_room(error)
        if not said:
            raise
        if not rank_0:
            time.sleep(SECONDS_FOR_RANK_0)
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stop:
        stop = stop if isinstance(stop, Stopped) else Stopped(signal.SIGINT)
        if rank_0:  # all processes stop at the same step
            print(f"\n{stop}", file=sys.stderr)
        raise SystemExit(128 + stop.signum) from None


def no_room(error: BaseException, folder: Path | None = None) -> str:
    """The sentence for an error that means too little memory or a full disk; empty for any other.

    Libraries wrap a full disk in errors of their own, so the free space of `folder` counts too. The sentence quotes
    the error, in case the full disk was not its cause.
    """
    text = f"{type(error).__name__}: {error}"
    signs = ("MemoryError", "not enough memory", "allocate memory", "out of memory", "ALLOC_FAILED")
    if any(sign in text for sign in signs):
        flag = "--per_device_train_batch_size (other scripts: --batch_size)"
        return f"there is not enough memory; start anew with a lower {flag}"
    full = any(sign in text for sign in ("No space left", "File too large", "quota exceeded"))
    if folder and folder.is_dir() and isinstance(error, Exception) and not isinstance(error, UserError):
        full |= shutil.disk_usage(folder).free < 2**20
    if not full:
        return ""
    where = folder or getattr(error, "filename", None) or "the output"
    return f"the disk of {where} is full ({textwrap.shorten(text, 200)}); free some space, then start again"


def run_main(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main` in `told_in_one_line`; the process ends with the status it returns (None: 0)."""

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(signum)

    secure_screen()
    with told_in_one_line():
        on_stop_signals(stop)
        status = main()
    raise SystemExit(status or 0)


def stop_at_once() -> None:
    """During the imports: until `run_main`, a stop signal ends the process at once, with one line."""

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        print(f"\n{Stopped(signum)}", file=sys.stderr, flush=True)
        os._exit(128 + signum)  # a library that is being imported might swallow an exception

    on_stop_signals(end)


def on_stop_signals(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let Ctrl-C, SIGTERM and SIGHUP call `handler`. Returns the handlers that were set before.

    An ignored SIGHUP stays ignored: the process was started with nohup.
    """

    def handle(signum: int, frame: FrameType | None) -> None:
        if signum == HANGUP:
            signal.signal(signum, signal.SIG_IGN)  # a closing shell sends it twice
        handler(signum, frame)

    signals = [signal.SIGINT, signal.SIGTERM]
    if HANGUP and signal.getsignal(HANGUP) != signal.SIG_IGN:
        signals.append(HANGUP)
    return {signum: signal.signal(signum, handle) for signum in signals}


class _Screen(io.TextIOWrapper):
    """A standard stream. What cannot be written is dropped: a closed pipe or terminal, a full disk."""

    stream: object  # the one it replaces, which owns the file

    def write(self, text: str, /) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()

    def close(self) -> None:
        """The file is `stream`'s."""


def secure_screen() -> None:
    """Let no print end the process: what cannot be written is dropped, a character the encoding lacks becomes `?`.

    The text has no buffer below it: a signal handler may print while another print is under way.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or Path(os.devnull).open("w")  # None: the parent closed it
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, _Screen):
            with suppress(OSError):
                stream.flush()
            raw: Any = getattr(stream.buffer, "raw", stream.buffer)  # python -u has no buffer
            safe = _Screen(raw, stream.encoding, "replace", line_buffering=True)
            safe.stream = stream
            setattr(sys, name, safe)
