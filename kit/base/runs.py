"""The run folder: config.json, metrics.jsonl, samples.jsonl, checkpoint-*/, final/.

A checkpoint is whole if its manifest.json, which is written last, says so; no other is used.
"""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from filelock import FileLock, Timeout  # comes with torch

from kit import ROOT
from kit.base.errors import UserError
from kit.base.files import read_text, remove, rename, sha256, user_path, write_text

STATE = "trainer_state.json"  # in every checkpoint; TRL calls it so
MANIFEST = "manifest.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")


def to_json(value: object, **kwargs: Any) -> str:
    """JSON, with null for NaN and infinities, plain numbers for numpy's, and text for any other object."""
    text = json.dumps(value, default=lambda v: v.item() if isinstance(v, np.generic) else str(v))
    return json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False, **kwargs)


@dataclass(frozen=True)
class Run:
    """One run's folder. A line is written by one call, so a killed run leaves whole lines."""

    path: Path

    @classmethod
    def create(cls, output_dir: str | Path, name: str) -> "Run":
        """A new folder `output_dir/name`, or name-2, name-3, ... if there is one. Raises `UserError` for a bad name."""
        if not re.fullmatch(r"[\w.+=-]+", name) or name in {".", ".."}:
            raise UserError(f"--run_name {name!r}: use letters, digits, and . _ + = - only")
        folder = Path(user_path(str(output_dir)))
        path = folder / name
        try:
            folder.resolve().mkdir(parents=True, exist_ok=True)  # resolved: a link may lead nowhere
            for number in count(2):
                with suppress(FileExistsError):
                    path.mkdir()
                    break
                path = folder / f"{name}-{number}"
        except OSError as error:
            raise UserError(f"--output_dir {folder}: cannot make a folder there ({error.strerror})") from None
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """An existing run, to be resumed. Raises `UserError` if there is none."""
        folder = Path(user_path(str(path)))
        if re.fullmatch(r"final|checkpoint-\d+", folder.name) and (folder.parent / "metrics.jsonl").is_file():
            raise UserError(f"{path}: that is a model of a run; give the run's folder, {folder.parent}")
        if not (folder / "config.json").is_file():
            raise UserError(f"{path}: no run there (it has no config.json)")
        return cls(folder)

    @property
    def final(self) -> Path:
        return self.path / "final"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of every checkpoint, by step."""
        names = ((re.fullmatch(r"checkpoint-(\d+)", p.name), p) for p in self.path.iterdir())
        return sorted((int(match[1]), p) for match, p in names if match)

    def last_checkpoint(self) -> tuple[Path, list[str]]:
        """(the newest whole checkpoint, what is wrong with each later one). Raises `UserError` if none is whole."""
        skipped: list[str] = []
        for _, folder in reversed(self.checkpoints()):
            if not (wrong := what_is_missing(folder)):
                return folder, skipped
            skipped.append(f"{folder.name} is not whole ({wrong})")
        why = f": {'; '.join(skipped)}" if skipped else ""
        raise UserError(f"--resume {self.path}: no checkpoint to go on from{why}; start it anew")

    def remove_if_unused(self) -> None:
        """Remove the folder of a run that ended before anything was measured."""
        if not (self.path / "metrics.jsonl").exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def set_aside(self, folder: Path) -> None:
        """Rename `folder`, if it is there, to *.old, until `remove_old`: the run will write it again."""
        if folder.exists():
            old = folder.with_name(f"{folder.name}.old")
            remove(old)
            try:
                rename(folder, old)
            except OSError as error:
                print(f"{folder}: cannot be renamed ({error.strerror}) and stays", file=sys.stderr)

    def remove_old(self) -> None:
        """At the end of the run: remove what was set aside."""
        for old in [*self.path.glob("checkpoint-*.old"), *self.path.glob("final.old")]:
            remove(old)

    def lock(self) -> AbstractContextManager[Any]:
        """Keep other processes out (`UserError`), until the returned context is left or this process ends."""
        try:
            return FileLock(self.path / "lock").acquire(blocking=False)
        except Timeout:
            raise UserError(f"--resume {self.path}: another process is training this run; stop it") from None
        except OSError:  # a network drive without locks
            return nullcontext()

    def write_config(self, config: dict[str, Any]) -> None:
        """Every resolved setting, with versions and machine."""
        text = to_json({**config, "provenance": provenance()}, indent=2)
        write_text(self.path / "config.json", text + "\n")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl."""
        self._append("metrics.jsonl", [{"step": step, **metrics}])

    def log_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """One line of samples.jsonl for every completion."""
        self._append("samples.jsonl", [{"step": step, **row} for row in rows])

    def truncate_after(self, step: int) -> None:
        """When resuming: drop log lines written after `step`."""
        for path in (self.path / "metrics.jsonl", self.path / "samples.jsonl"):
            if path.exists():
                kept = [row for row in read_lines(path) if row["step"] <= step]
                write_text(path, "".join(to_json(row) + "\n" for row in kept))

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write("".join(to_json(row) + "\n" for row in rows))


def write_manifest(folder: Path) -> None:
    """Sync every file in the checkpoint `folder` to disk, then write manifest.json: their sizes and SHA-256."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_text(folder / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")


def what_is_missing(folder: Path) -> str:
    """Why the checkpoint `folder` is not whole, in a few words; empty if it is."""
    if not (folder / MANIFEST).exists():
        return f"{MANIFEST}, which is written last, is missing"
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if (size := (folder / name).stat().st_size) != expected["bytes"]:
                return f"{name} has {size:,} of {expected['bytes']:,} bytes"
            if sha256(folder / name) != expected["sha256"]:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return "" if STATE in files else f"{STATE} is missing"


def refuse_change(run: str | Path, setting: str, was: object, now: object) -> NoReturn:
    """Raise the `UserError` for a resumed run with another value of a setting."""
    had = "unset" if was is None else was
    raise UserError(f"--resume {run}: this run has {setting} {had}, not {now}: keep it, or start a new run")


def provenance() -> dict[str, Any]:
    """Versions, git commit and machine: what is needed to reproduce a number."""
    import torch  # not above: the command line reads run folders before anything heavy is imported

    def git(*command: str) -> str | None:
        how: dict[str, Any] = {"cwd": ROOT, "text": True, "timeout": 10, "stderr": subprocess.DEVNULL}
        with suppress(OSError, subprocess.SubprocessError):
            return subprocess.check_output(["git", *command], **how).strip()
        return None

    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed": bool(git("status", "--porcelain", "-uno")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
    }


def read_config(path: str | Path) -> dict[str, Any]:
    """config.json of the run folder `path`. Raises `UserError` if it is missing or broken."""
    file = Path(user_path(str(path))) / "config.json"
    with suppress(ValueError):
        if isinstance(config := json.loads(read_text(file, "run configuration")), dict):
            return config
    raise UserError(f"{file}: not a readable run configuration (it must be a JSON object)")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in the run folder `path`; see `read_lines`."""
    return read_lines(Path(path) / "metrics.jsonl")


def read_samples(path: str | Path) -> list[dict[str, Any]]:
    """The lines of samples.jsonl in the run folder `path`; see `read_lines`."""
    return read_lines(Path(path) / "samples.jsonl")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file, without a torn last one. Raises `UserError` if it is missing or broken."""
    try:
        # bytes: a line may be torn within a character. Not splitlines(): U+2028 is plain text to JSON.
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); is it in a run folder?") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [json.loads(line.decode("utf-8"))] if line else []
        except ValueError:
            if number < len(lines):
                raise UserError(f"{file}, line {number}: not JSON; remove the line") from None
            # no line end: the process died while it wrote the line
            print(f"{file}: the last line is torn and was left out", file=sys.stderr)
    return rows
