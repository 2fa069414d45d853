"""Trainings, some at a time, each to its end whatever stops them in between; and what is written of them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

import yaml

from kit.cli import split, take
from kit.errors import UserError
from kit.files import write_text
from kit.models import ROOT
from kit.runs import Run
from kit.screen import clock


@dataclass(frozen=True)
class Training:
    """One run that is wanted: `command` is what stands behind python, less seed and folder."""

    command: Sequence[str]
    folder: Path
    seed: int

    @property
    def finished(self) -> bool:
        return (self.folder / "final").is_dir()

    @property
    def record(self) -> Path:
        """Its command is kept beside its folder: there before the folder is, whatever stops driver or training."""
        return self.folder.with_name(f"{self.folder.name}.command.json")


def spelled_out(command: Sequence[str]) -> list[str]:
    """The command with the flags of its YAML file in the file's place: what must be equal in two runs of one name."""
    file, rest = take([part for arg in command for part in split(arg)], "--config")
    if file is None:
        return list(command)
    settings = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    return [*rest, *(f"--{key}={value}" for key, value in settings.items())]


def finish_runs(
    wanted: Sequence[Training], jobs: int, log_file: Path, told: Callable[[Path], str] = lambda folder: ""
) -> None:
    """Bring all of them to their end, `jobs` at a time with one thread each, and say a line for each that is done.

    Their screens go to `log_file`; `told` is what the line says of a finished run.

    Raises:
        UserError: one fails, or stands there already, trained by another command.
    """
    for training in wanted:
        kept = json.loads(training.record.read_text(encoding="utf-8")) if training.record.is_file() else None
        if training.folder.exists() and kept != spelled_out(training.command):
            raise UserError(
                f"{training.folder} was trained by hand, or by another command than the one wanted now (its own is in "
                f"{training.record.name}); remove that folder, or name another"
            )
    todo = [training for training in wanted if not training.finished]
    print(f"{len(todo)} trainings, {jobs} at a time; their screens go to {log_file}", flush=True)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    start, started = time.monotonic(), list[subprocess.Popen]()
    with log_file.open("a", encoding="utf-8") as log, ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(finish_run, training, log, started.append): training for training in todo}
        try:
            for done, future in enumerate(as_completed(running), start=1):
                future.result()
                folder = running[future].folder
                left = (time.monotonic() - start) / done * (len(todo) - done)
                print(
                    f"[{done:>2}/{len(todo)}] {folder.name:<18} {told(folder)}   eta {clock(left)}",
                    flush=True,
                )
        except BaseException as stop:
            pool.shutdown(wait=False, cancel_futures=True)
            # A signal reaches the main thread alone. Ctrl-C in a terminal has reached the trainings already, and a
            # second one would cut them short: each saves a checkpoint, and then it ends.
            if (signum := getattr(stop, "signum", signal.SIGINT)) != signal.SIGINT:
                for process in started:
                    process.send_signal(signum)  # what has ended is left alone
            raise


def finish_run(training: Training, log: TextIO, on_start: Callable[[subprocess.Popen], None]) -> None:
    """Run one training to its end, from its last checkpoint if there is one; keep its seconds."""
    folder = training.folder
    flags = ["--output_dir", str(folder.parent), "--run_name", folder.name, "--seed", str(training.seed)]
    if folder.exists():
        if Run(folder).checkpoints():
            Run(folder).last_checkpoint()  # if none is whole, its sentence; nothing is thrown away
            flags = ["--resume", str(folder)]
        else:  # it was stopped before there was anything to keep
            with Run(folder).lock():  # or it is training at this moment: then its sentence
                shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_text(training.record, json.dumps(spelled_out(training.command)))
    print(f"\n=== {folder.name}: python {' '.join([*training.command, *flags])}", file=log, flush=True)
    start = time.monotonic()
    with subprocess.Popen(
        [sys.executable, *training.command, *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    ) as process:
        on_start(process)
        status = process.wait()
    if folder.exists():
        spent = folder / "seconds.json"
        before = json.loads(spent.read_text(encoding="utf-8")) if spent.exists() else 0.0
        spent.write_text(json.dumps(before + time.monotonic() - start), encoding="utf-8")
    if status:
        raise UserError(f"{folder.name} ended with status {status}, see {log.name}; start it again to go on")


def mean_history(histories: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The mean over seeds of every series, step by step, where all seeds have it."""
    merged: list[dict[int, dict[str, Any]]] = []
    for rows in histories:
        steps: dict[int, dict[str, Any]] = {}
        for row in rows:
            steps.setdefault(row["step"], {}).update(row)
        merged.append(steps)
    history = []
    for step in sorted(set.intersection(*map(set, merged))):
        lines = [steps[step] for steps in merged]
        keys = [key for key in lines[0] if all(line.get(key) is not None for line in lines)]
        history.append({key: fmean(line[key] for line in lines) for key in keys} | {"step": step})
    return history


def mean_and_range(values: Sequence[float], digits: int) -> str:
    """`0.75 [0.73, 0.78]`: the mean over seeds with the lowest and the highest; of one, itself."""
    ends = f" [{min(values):.{digits}f}, {max(values):.{digits}f}]" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{ends}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *rows))


def write_between(page: Path, mark: str, text: str) -> None:
    """Replace what stands between <!-- mark --> and <!-- /mark --> on the page.

    Raises:
        UserError: the marks are not there.
    """
    old = page.read_text(encoding="utf-8")
    new, found = re.subn(
        rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)",
        lambda m: m[1] + text + m[2],
        old,
        flags=re.S,
    )
    if not found:
        raise UserError(f"{page.name} has no <!-- {mark} --> ... <!-- /{mark} --> to write to")
    page.write_text(new, encoding="utf-8")
