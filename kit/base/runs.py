"""The run folder: config.json, metrics.jsonl, samples.jsonl, checkpoint-*/, final/. Scripts write, evaluate reads.

A checkpoint is whole if its manifest.json says so, which is written last; any other is never used.
"""

import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from filelock import FileLock, Timeout  # comes with torch

from kit import ROOT
from kit.base.errors import UserError
from kit.base.files import read_text, remove, rename, sha256, user_path, write_text
from kit.base.screen import clock

STATE = "trainer_state.json"  # in every checkpoint; TRL calls it so
MANIFEST = "manifest.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")


def to_json(value: object, **kwargs: Any) -> str:
    """JSON with null for NaN and infinities, which JSON does not have, and plain numbers for numpy's."""

    def plain(v: object) -> object:
        if isinstance(v, dict):
            return {str(k): plain(x) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return [plain(x) for x in v]
        if isinstance(v, np.generic):
            v = v.item()
        if isinstance(v, float) and not math.isfinite(v):
            return None
        return v if isinstance(v, int | float | str | bool | None) else str(v)

    return json.dumps(plain(value), allow_nan=False, ensure_ascii=False, **kwargs)


@dataclass(frozen=True)
class Run:
    """One run's folder. Every line is written at once, so a killed run leaves whole lines."""

    path: Path

    @classmethod
    def create(cls, output_dir: str | Path, name: str) -> "Run":
        """A new folder `output_dir/name`, or name-2, name-3, ... : an existing run is never overwritten.

        Raises:
            UserError: `name` is not a plain folder name, or the folder cannot be made.
        """
        if not re.fullmatch(r"[\w.+=-]+", name) or name in {".", ".."}:
            raise UserError(f"--run_name {name!r}: use letters, digits, and . _ + = - only")
        folder = Path(user_path(str(output_dir)))
        try:
            if folder.is_symlink() and not folder.exists():
                print(
                    f"{folder} is a link to {os.path.realpath(folder)}, which is made anew", file=sys.stderr
                )
            Path(os.path.realpath(folder)).mkdir(parents=True, exist_ok=True)
            path, number = folder / name, 1
            while True:
                try:
                    path.mkdir()
                    return cls(path)
                except FileExistsError:
                    number += 1
                    path = folder / f"{name}-{number}"
        except OSError as error:
            raise UserError(
                f"--output_dir {output_dir}: cannot make a folder there ({error.strerror})"
            ) from None

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """An existing run, to go on with. Raises `UserError` if there is none."""
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
        folders = [p for p in self.path.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
        return sorted((int(p.name.split("-")[1]), p) for p in folders)

    def last_checkpoint(self) -> tuple[Path, list[str]]:
        """(the newest whole checkpoint, why each later one was passed over). Raises `UserError` if none is whole."""
        skipped: list[str] = []
        for _, folder in reversed(self.checkpoints()):
            wrong = what_is_missing(folder)
            if not wrong:
                return folder, skipped
            skipped.append(f"{folder.name} is not whole ({wrong})")
        why = f": {'; '.join(skipped)}" if skipped else ""
        raise UserError(f"--resume {self.path}: no checkpoint to go on from{why}; start it anew")

    def remove_if_unused(self) -> None:
        """Remove the folder of a run that ended before anything was measured."""
        if not (self.path / "metrics.jsonl").exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def set_aside(self, folder: Path) -> None:
        """Rename `folder`, which is to be written anew, to *.old. There it stays until `remove_old`."""
        if folder.exists():
            old = folder.with_name(f"{folder.name}.old")
            remove(old)
            try:
                rename(folder, old)
            except OSError as error:
                print(f"{folder}: cannot be renamed ({error.strerror}) and stays", file=sys.stderr)

    def remove_old(self) -> None:
        """Remove what was set aside, once the run is at its end."""
        for old in [*self.path.glob("checkpoint-*.old"), *self.path.glob("final.old")]:
            remove(old)

    def lock(self) -> AbstractContextManager[Any]:
        """Keep every other process from writing here, until what is returned is left or this process ends.

        Raises:
            UserError: another process is training this run.
        """
        try:
            return FileLock(self.path / "lock").acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"--resume {self.path}: another process is training this run; wait for it or stop it"
            ) from None
        except OSError:  # a network drive that knows no locks
            return nullcontext()

    def write_config(self, config: dict[str, Any]) -> None:
        """Every resolved setting, next to the versions that give it its meaning."""
        text = to_json({**config, "provenance": provenance()}, indent=2)
        write_text(self.path / "config.json", text + "\n")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl."""
        self._append("metrics.jsonl", [{"step": step, **metrics}])

    def log_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """One line of samples.jsonl for every completion."""
        self._append("samples.jsonl", [{"step": step, **row} for row in rows])

    def truncate_after(self, step: int) -> None:
        """Drop lines later than `step`: a resumed run writes them again."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.path / name
            if path.exists():
                kept = [row for row in read_lines(path) if row["step"] <= step]
                write_text(path, "".join(to_json(row) + "\n" for row in kept))

    def closing(self, seconds: float, name: str) -> str:
        """The last lines on screen: how long it took, where things are, how to compare them under `name`."""
        return (
            f"\nDone in {clock(seconds)}. The run is in {self.path}/ : metrics.jsonl, samples.jsonl, final/\n"
            f"  Compare: python evaluate.py base {name}={self.path}"
        )

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write("".join(to_json(row) + "\n" for row in rows))


def write_manifest(folder: Path) -> None:
    """manifest.json: size and SHA-256 of every file in the checkpoint `folder`, all of them on disk before it is."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        entry = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        files[path.relative_to(folder).as_posix()] = entry
    write_text(folder / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")


def what_is_missing(folder: Path) -> str:
    """Why the checkpoint `folder` is not whole, in a few words; empty if it is."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if (size := (folder / name).stat().st_size) != expected["bytes"]:
                return f"{name} has {size:,} of {expected['bytes']:,} bytes"
            if sha256(folder / name) != expected["sha256"]:
                return f"{name} is not what was written"
    except FileNotFoundError:
        return f"{MANIFEST}, which is written last, is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return "" if STATE in files else f"{STATE} is missing"


def refuse_change(run: str | Path, setting: str, was: object, now: object) -> NoReturn:
    """A resumed run is the same experiment. Raises `UserError`, which names the setting and both values."""
    raise UserError(
        f"--resume {run}: this run has {setting} {'unset' if was is None else was}, not {now}: that would be "
        "another experiment; go on with what it had, or start a new run"
    )


def provenance() -> dict[str, Any]:
    """Versions, git commit and machine, so that a number can be had again."""
    import torch  # not above: the command line reads run folders before anything heavy is imported

    git = {}
    for key, command in (("commit", ["rev-parse", "HEAD"]), ("changed", ["status", "--porcelain", "-uno"])):
        try:
            done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, timeout=10)
            git[key] = done.stdout.strip() if done.returncode == 0 else None
        except (OSError, subprocess.TimeoutExpired):
            git[key] = None
    return {
        "git_commit": git["commit"],
        "git_changed": bool(git["changed"]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
    }


def read_config(path: str | Path) -> dict[str, Any]:
    """config.json of the run folder `path`. Raises `UserError` if it is missing or broken."""
    file = Path(user_path(str(path))) / "config.json"
    try:
        config = json.loads(read_text(file, "run configuration"))
    except ValueError as error:
        raise UserError(f"{file}: not a readable run configuration ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{file}: not a run configuration (it must be a JSON object)")
    return config


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in the run folder `path`. Raises `UserError` if it is missing or broken."""
    return read_lines(Path(path) / "metrics.jsonl")


def read_samples(path: str | Path) -> list[dict[str, Any]]:
    """The lines of samples.jsonl in the run folder `path`. Raises `UserError` if it is missing or broken."""
    return read_lines(Path(path) / "samples.jsonl")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file, less a last one that is torn. Raises `UserError` if it is missing or broken."""
    try:
        # bytes: a line may be torn within a character. Not splitlines(): U+2028 is plain text to JSON.
        *lines, rest = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}); is {file.parent} a run folder?"
        ) from None
    rows = []
    for number, line in enumerate([*lines, rest], start=1):
        if not line:
            continue
        try:
            rows.append(json.loads(line.decode("utf-8")))
        except ValueError:
            if number > len(lines):  # no line end: the process died while writing it
                print(f"{file}: the last line is torn and was left out", file=sys.stderr)
                break
            raise UserError(f"{file}, line {number}: not JSON; remove the line") from None
    return rows
