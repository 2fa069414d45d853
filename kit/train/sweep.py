"""Many trainings, some at a time, each brought to its end after any interruption; and tables of their results."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

import yaml

from kit.base.cli import split, take
from kit.base.errors import UserError
from kit.base.files import write_text
from kit.base.runs import Run
from kit.base.screen import clock
from kit.lm.models import ROOT


@dataclass(frozen=True)
class Training:
    """A run that is wanted. `command`: what follows `python`, without seed and folder."""

    command: Sequence[str]
    folder: Path
    seed: int

    @property
    def finished(self) -> bool:
        return (self.folder / "final").is_dir()

    @property
    def record(self) -> Path:
        """The file with its command. It lies beside the folder, since it is written before the folder exists."""
        return self.folder.with_name(f"{self.folder.name}.command.json")


def spelled_out(command: Sequence[str]) -> list[str]:
    """The command with `--config FILE` replaced by that file's flags. Two runs are the same if these are equal."""
    file, rest = take([part for arg in command for part in split(arg)], "--config")
    if file is None:
        return list(command)
    settings = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    return [*rest, *(f"--{key}={value}" for key, value in settings.items())]


def finish_runs(
    wanted: Sequence[Training], jobs: int, log_file: Path, told: Callable[[Path], str] = lambda folder: ""
) -> None:
    """Finish all trainings, `jobs` at a time with one thread each, and print a line for each that ends.

    Their screens go to `log_file`; `told(folder)` is added to the line of a finished run.

    Raises:
        UserError: a training fails, or its folder was made by another command.
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
            # Ctrl-C in a terminal reaches the trainings too: each saves a checkpoint and ends, and a second signal
            # would cut that short. Any other signal reaches this process alone.
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
    merged = [defaultdict[int, dict[str, Any]](dict) for _ in histories]
    for steps, rows in zip(merged, histories, strict=True):
        for row in rows:
            steps[row["step"]].update(row)
    history = []
    for step in sorted(set.intersection(*map(set, merged))):
        lines = [steps[step] for steps in merged]
        keys = [key for key in lines[0] if all(line.get(key) is not None for line in lines)]
        history.append({key: fmean(line[key] for line in lines) for key in keys} | {"step": step})
    return history


def cells(seeds: Sequence[Mapping[str, float]], digits: Mapping[str, int]) -> list[str]:
    """A table's cells, one for each metric in `digits`: `0.75 [0.73, 0.78]`, the mean of the seeds, the lowest, the
    highest. One seed has no brackets, and a metric that none has is an empty cell."""
    found = []
    for key, n in digits.items():
        values = [seed[key] for seed in seeds if key in seed]
        ends = f" [{min(values):.{n}f}, {max(values):.{n}f}]" if len(values) > 1 else ""
        found.append(f"{fmean(values):.{n}f}{ends}" if values else "")
    return found


def counted(names: Iterable[str]) -> str:
    """`2 drifting, 1 healthy`"""
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(names).items()))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *rows))


def write_between(page: Path, mark: str, text: str) -> None:
    """Replace what stands between <!-- mark --> and <!-- /mark --> on the page.

    Raises:
        UserError: the marks are not there.
    """
    old = page.read_text(encoding="utf-8")
    between = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
    new, found = re.subn(between, lambda m: m[1] + text + m[2], old, flags=re.S)
    if not found:
        raise UserError(f"{page.name} has no <!-- {mark} --> ... <!-- /{mark} --> to write to")
    page.write_text(new, encoding="utf-8")
