"""Many trainings, some at a time, that go on after any interruption; and tables of their results."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

import pandas as pd
import yaml

from kit.base.cli import split, take
from kit.base.errors import UserError
from kit.base.files import write_text
from kit.base.runs import Run
from kit.base.screen import Progress
from kit.lm.models import ROOT


@dataclass(frozen=True)
class Training:
    """A wanted run. `command` is what follows `python`, without seed and folder."""

    command: Sequence[str]
    folder: Path
    seed: int

    @property
    def record(self) -> Path:
        """The file with its command, beside the folder, which does not exist yet when it is written."""
        return self.folder.with_name(f"{self.folder.name}.command.json")


def spelled_out(command: Sequence[str]) -> list[str]:
    """The command with `--config FILE` replaced by that file's flags. Two runs are the same if these are equal."""
    file, rest = take([part for arg in command for part in split(arg)], "--config")
    if file is None:
        return list(command)
    settings = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    return [*rest, *(f"--{key}={value}" for key, value in settings.items())]


def finish_runs(wanted: Sequence[Training], jobs: int, log_file: Path) -> None:
    """Finish all trainings, `jobs` at a time with one thread each. Their screens go to `log_file`.

    Raises `UserError` if a training fails, or its folder was made by another command.
    """
    for training in wanted:
        kept = json.loads(training.record.read_text(encoding="utf-8")) if training.record.is_file() else None
        if training.folder.exists() and kept != spelled_out(training.command):
            raise UserError(
                f"{training.folder} was trained by hand, or by another command than the wanted one (its own is in "
                f"{training.record.name}); remove that folder, or name another"
            )
    todo = [training for training in wanted if not (training.folder / "final").is_dir()]
    print(f"{len(todo)} trainings, {jobs} at a time; their screens go to {log_file}", flush=True)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    started = list[subprocess.Popen]()
    with (
        log_file.open("a", encoding="utf-8") as log,
        ThreadPoolExecutor(jobs) as pool,
        Progress(len(todo), "training", "runs") as progress,
    ):
        running = [pool.submit(finish_run, training, log, started) for training in todo]
        try:
            for future in as_completed(running):
                future.result()
                progress.advance()
        except BaseException as stop:
            pool.shutdown(wait=False, cancel_futures=True)
            # Ctrl-C in a terminal reaches the trainings too: each saves a checkpoint and ends; a second signal would
            # stop that. Any other signal reaches this process only.
            if (signum := getattr(stop, "signum", signal.SIGINT)) != signal.SIGINT:
                for process in started:
                    process.send_signal(signum)  # ignored if it has ended
            raise


def finish_run(training: Training, log: TextIO, started: list[subprocess.Popen]) -> None:
    """Run one training to its end, from its last checkpoint if there is one."""
    folder = training.folder
    flags = ["--output_dir", str(folder.parent), "--run_name", folder.name, "--seed", str(training.seed)]
    if folder.exists():
        if Run(folder).checkpoints():
            Run(folder).last_checkpoint()  # raises if none is whole; nothing is thrown away
            flags = ["--resume", str(folder)]
        else:  # it was stopped before there was anything to keep
            with Run(folder).lock():  # raises if it is being trained
                shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_text(training.record, json.dumps(spelled_out(training.command)))
    print(f"\n=== {folder.name}: python {' '.join([*training.command, *flags])}", file=log, flush=True)
    with subprocess.Popen(
        [sys.executable, *training.command, *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    ) as process:
        started.append(process)
        status = process.wait()
    if status:
        raise UserError(f"{folder.name} ended with status {status}, see {log.name}; start it again to go on")


def evaluated(models: Sequence[str], out: Path, *flags: str) -> dict[str, Any]:
    """comparison.json, by evaluate.py, of `models` (`base`, or NAME=PATH). Raises `UserError` if there is none."""
    command = [sys.executable, "evaluate.py", *models, *flags, "--out", str(out)]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise UserError("evaluate.py failed; its message is above")
    return json.loads((out / "comparison.json").read_text(encoding="utf-8"))


def mean_history(histories: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The mean over seeds of every series, step by step, where all seeds have it."""
    rows = pd.concat([pd.DataFrame(seed, dtype=float).groupby("step").last() for seed in histories])
    steps = rows.groupby("step")
    means = steps.mean().where(steps.count() == len(histories)).dropna(how="all")
    return [{"step": step, **row.dropna().to_dict()} for step, row in means.iterrows()]


def cells(seeds: Sequence[Mapping[str, float]], digits: Mapping[str, int]) -> list[str]:
    """A cell for each metric in `digits`: `0.75 [0.73, 0.78]`, the mean of the seeds, the lowest, the highest; only
    the value for one seed, and empty if no seed has the metric."""
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
    """A table in Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *rows))


def write_between(page: Path, mark: str, text: str) -> None:
    """Replace the text between <!-- mark --> and <!-- /mark --> on the page. Raises `UserError` if they are missing."""
    old = page.read_text(encoding="utf-8")
    between = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
    new, found = re.subn(between, lambda m: m[1] + text + m[2], old, flags=re.S)
    if not found:
        raise UserError(f"{page.name} has no <!-- {mark} --> ... <!-- /{mark} --> to write to")
    page.write_text(new, encoding="utf-8")
