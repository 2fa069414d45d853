"""How every script reads and writes a file that a user named. Standard library and `kit.base.errors` only."""

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from kit.base.errors import UserError

LFS_POINTER = b"version https://git-lfs.github.com/"
SECONDS_BEFORE_RETRY = (0.1, 1.0)  # a virus scanner holds a new file for a moment


def user_path(text: str) -> str:
    """A path with `~` expanded, which a shell does in `--out ~/x` and not in `--out=~/x`."""
    return os.path.expanduser(text)  # noqa: PTH111 - pathlib would change "./x" and fail for an unknown "~name"


def read_text(path: str | Path, what: str) -> str:
    """A UTF-8 file, with or without byte order mark; CR LF becomes `\\n`.

    Raises `UserError`, which begins with `what` and the path, if there is no such file or it is no text.
    """
    path = Path(user_path(str(path)))
    try:
        data = path.read_bytes()
        refuse_pointer(data, f"{what} {path}")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{what} {path}: is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{what} {path}: cannot be read ({error.strerror})") from None
    before, nul, _ = text.partition("\0")
    if nul:
        line = before.count("\n") + 1
        raise UserError(f"{what} {path}: line {line} has a NUL byte; is it a text file, saved as UTF-8?")
    return text.replace("\r\n", "\n")


def lines(text: str) -> list[str]:
    """The lines of a text, split at `\\n` only: `str.splitlines` also splits at U+2028 or a form feed."""
    return text.removesuffix("\n").split("\n") if text else []


def refuse_pointer(data: bytes, what: str) -> None:
    """Raises `UserError` if `data`, the beginning of a file, is that of a Git LFS pointer."""
    if data.startswith(LFS_POINTER):
        raise UserError(f"{what}: is a Git LFS pointer, not the file itself; run git lfs pull")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: object) -> str:
    """The SHA-256 of `repr(value)`, in hexadecimal digits."""
    return hashlib.sha256(repr(value).encode("utf-8", "replace")).hexdigest()


def write_text(path: str | Path, text: str, encoding: str = "utf-8") -> None:
    """Write beside, then rename: at every moment `path` holds the old text or the new one.

    A link stays a link, and a file keeps its permissions. What the encoding lacks becomes a question mark.
    """
    path = Path(os.path.realpath(path))
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding=encoding, errors="replace", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        shutil.copymode(path, beside)
    rename(beside, path)
    with suppress(OSError):  # Windows opens no folders, and some network disks cannot sync them
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Make an `OSError` a `UserError`. `what` is written inside: the user's flag and path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: cannot be written ({error.strerror})") from None


def rename(old: Path, new: Path) -> None:
    """`old.replace(new)`, which Windows refuses while another program has the file open: tried three times."""
    for seconds in SECONDS_BEFORE_RETRY:
        try:
            old.replace(new)
            return
        except PermissionError:
            time.sleep(seconds)
    old.replace(new)


def remove(folder: Path) -> None:
    """Remove a folder, if it is there. If that is refused, one line says so, and it stays."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        print(f"{folder}: cannot be removed ({error.strerror or error}) and stays", file=sys.stderr)


def refuse_foreign(path: str | Path, why_ours: str, flag: str) -> None:
    """Let a command overwrite its own files only. Call it before the work begins.

    `why_ours` is a text that the command writes into the first 4 KB of the file, `flag` the user's, such as `--out`.
    Raises `UserError` if there is a folder, or a file (not an empty one) without that text.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(4096)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror}); choose another name") from None
    if head and why_ours.encode() not in head:
        why = "this file was not written by this command and stays as it is"
        raise UserError(f"{flag} {path}: {why}; choose another name")


def output_folder(folder: str, written: Mapping[str, str]) -> Path:
    """The folder of `--out`, made if need be. `written`: the files to come, each with its text for `refuse_foreign`.

    Raises `UserError` if it belongs to a run or a model, holds such a file of somebody else's, or cannot be written.
    """
    path = Path(user_path(folder))
    try:
        if (path / "config.json").exists() or (path / "adapter_config.json").exists():
            raise UserError(
                f"--out {folder}: that is the folder of a run or a model; choose another for results"
            )
        for name, why_ours in written.items():
            refuse_foreign(path / name, why_ours, "--out")
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"--out {folder}: cannot write there ({error.strerror})") from None
    return path
