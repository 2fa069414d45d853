"""Weights & Biases, Trackio, TensorBoard, only when asked for: the lines of metrics.jsonl, under the same names.

An error of theirs ends the tracking, not the run.
"""

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.base.errors import UserError
from kit.base.runs import to_json
from kit.base.screen import one_line

SAMPLES = 16  # of a validation
TABLE_COLUMNS = ("step", "prompt", "completion", "sentiment", "ref_nll", "kl_policy_ref")


@dataclass
class Tracker:
    """One run on the tracker called `name`; without arguments, no tracker.

    `send` takes a step and its values; "samples" among them are rows, not a number. `close` takes a summary and an
    exit status.
    """

    name: str = "none"
    send: Callable[[int, dict[str, Any]], None] = lambda step, values: None
    close: Callable[[dict[str, Any], int], None] = lambda summary, exit_code: None
    failed: bool = False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of one step."""
        self._guarded(lambda: self.send(step, metrics))

    def log_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """The first completions of a validation."""
        self._guarded(lambda: self.send(step, {"samples": rows[:SAMPLES]}))

    def finish(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        """Close the run."""
        self._guarded(lambda: self.close(summary, exit_code))

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            if not self.failed:
                action()
        except Exception as error:  # a full disk, a locked data base, a service that died
            self.failed = True
            reason = one_line(f"{type(error).__name__}: {error}", 200)
            print(f"{self.name} logs no more ({reason}); metrics.jsonl goes on", file=sys.stderr)


def open_wandb(project: str, folder: Path, config: dict[str, Any]) -> Tracker:
    """A W&B run, on one step axis; offline without a login or network. Raises `UserError` if W&B refuses."""
    import wandb
    from wandb.sdk.lib.wbauth import read_netrc_auth

    mode, base_url = os.environ.get("WANDB_MODE"), wandb.setup().settings.base_url
    key = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    try:
        logged_in = key or read_netrc_auth(host=base_url)
    except wandb.errors.Error:  # a key of an odd form: W&B says so below
        logged_in = True
    if mode is None and not (logged_in and in_reach(base_url)):
        mode, why = "offline", f"{base_url} is out of reach" if logged_in else "no login"
        print(f"W&B: {why}, so the run is kept offline; later: wandb sync {folder}/wandb/*run-*")
    method = config["method"]
    tags = [method, *filter(None, [config.get("kl_type")])]
    try:
        run = wandb.init(project=project, name=folder.name, config=config, dir=str(folder), mode=mode, tags=tags,
                         job_type=method)  # fmt: skip
    except (wandb.errors.Error, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--wandb: {reason}; log in with `wandb login`, or set WANDB_MODE=offline") from None
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    table: list[list[Any]] = []  # a row for each sample of every validation so far

    def send(step: int, values: dict[str, Any]) -> None:
        if "samples" in values:
            table.extend([step, *(row[c] for c in TABLE_COLUMNS[1:])] for row in values["samples"])
            values = {"samples": wandb.Table(columns=list(TABLE_COLUMNS), data=table)}
        run.log({"step": step, **values})

    def close(summary: dict[str, Any], exit_code: int) -> None:
        run.summary.update(summary)
        run.finish(exit_code=exit_code)

    return Tracker("W&B", send, close)


def open_tensorboard(folder: Path, first_step: int) -> Tracker:
    """Event files in the run folder; a resumed run replaces the steps after `first_step`."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def send(step: int, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if key == "samples":  # indented: Markdown shows it as it is
                writer.add_text(key, "".join(f"    {to_json(row)}\n" for row in value), step)
            else:
                writer.add_scalar(key, value, step)
        writer.flush()

    return Tracker("TensorBoard", send, lambda summary, exit_code: writer.close())


def open_trackio(project: str, folder: Path, config: dict[str, Any]) -> Tracker:
    """A run in Trackio's local data base; `trackio show --project PROJECT` opens the page.

    A resumed run becomes another run of the same name: Trackio knows runs by name only, and might go on with another's.
    """
    import trackio

    more: dict[str, Any] = {"resume": "never", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    with redirect_stdout(None):  # seven lines
        run = trackio.init(project=project, name=folder.name, config=config, **more)
    print(f"Trackio: look at it with: trackio show --project {project}")

    def send(step: int, values: dict[str, Any]) -> None:
        if "samples" in values:
            import pandas

            values = {"samples": trackio.Table(dataframe=pandas.DataFrame(values["samples"]))}
        run.log(values, step=step)

    def close(summary: dict[str, Any], exit_code: int) -> None:
        with redirect_stdout(None):
            trackio.finish()

    return Tracker("Trackio", send, close)


def open_tracker(report_to: str, project: str, folder: Path, config: dict, first_step: int) -> Tracker:
    """The tracker of the run in `folder`. If Trackio or TensorBoard cannot be opened, one line says why.

    Raises `UserError` if W&B refuses.
    """
    if report_to == "wandb":
        return open_wandb(project, folder, config)
    try:
        if report_to == "tensorboard":
            return open_tensorboard(folder, first_step)
        if report_to == "trackio":
            return open_trackio(project, folder, config)
    except Exception as error:  # as in Tracker
        reason = one_line(str(error), 200)
        print(f"--report_to {report_to}: {reason}; the run goes on without", file=sys.stderr)
    return Tracker()


def in_reach(base_url: str, seconds: float = 5.0) -> bool:
    """Does anything answer there? `wandb.init` would wait for 90 seconds and then end the run."""
    try:
        urllib.request.urlopen(base_url, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError):
        return False
    return True
