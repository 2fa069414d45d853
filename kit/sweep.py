"""Trainings one after the other, or two at a time, each to its end whatever stops them in between; and what is
written of them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

from kit.errors import UserError
from kit.models import ROOT
from kit.runs import Run


def finish_run(
    command: Sequence[str],
    folder: Path,
    seed: int,
    log: TextIO | None = None,
    on_start: Callable[[subprocess.Popen], None] = lambda training: None,
) -> None:
    """Run one training to its end, from its last checkpoint if there is one. Adds its seconds to seconds.json.

    With a `log` its screen goes there, and it computes with one thread: another one runs beside it. A signal reaches
    the main thread alone: whoever calls this from another one stops what `on_start` was given.
    """
    if (folder / "final").is_dir():
        return
    flags = ["--output_dir", str(folder.parent), "--run_name", folder.name, "--seed", str(seed)]
    if folder.exists():
        if Run(folder).checkpoints():
            Run(folder).last_checkpoint()  # if none is whole, its sentence; nothing is thrown away
            flags = ["--resume", str(folder)]
        else:  # it was stopped before there was anything to keep
            shutil.rmtree(folder)
    print(f"\n=== {folder.name}: python {' '.join([*command, *flags])}", file=log, flush=True)
    start = time.monotonic()
    threads = {"OMP_NUM_THREADS": "1"} if log else {}
    with subprocess.Popen(
        [sys.executable, *command, *flags],
        cwd=ROOT,
        env={**os.environ, **threads},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    ) as training:
        on_start(training)
        try:
            status = training.wait()
        except KeyboardInterrupt as stop:
            stop_too(training, stop)
            training.wait()
            raise
        finally:
            if folder.exists():
                spent = folder / "seconds.json"
                before = json.loads(spent.read_text(encoding="utf-8")) if spent.exists() else 0.0
                spent.write_text(json.dumps(before + time.monotonic() - start), encoding="utf-8")
    if status:
        raise UserError(f"{folder.name} ended with status {status}; start it again to go on")


def stop_too(training: subprocess.Popen, stop: BaseException) -> None:
    """It saves a checkpoint, and then it ends. Ctrl-C has reached it already: a second signal would cut it short."""
    if getattr(stop, "signum", None) == signal.SIGTERM:
        training.terminate()


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
