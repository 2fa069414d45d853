"""Weights & Biases, Trackio, TensorBoard, only when asked for: the lines of metrics.jsonl, under the same names.

What goes wrong there while a run trains ends the tracking, not the run.
"""

import importlib.util
import netrc
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from kit.base.errors import UserError
from kit.base.runs import to_json
from kit.base.screen import one_line

SAMPLES = 16  # of a validation
TABLE_COLUMNS = ("step", "prompt", "completion", "sentiment", "ref_nll", "kl_policy_ref")


class Tracker:
    """One run on the tracker called `name`. `send` and `close` are what its library does."""

    name: str
    send: Callable[[int, dict[str, Any]], None] | None
    close: Callable[[dict[str, Any], int], None]  # of a summary and an exit status

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of one step."""
        self._send(step, metrics)

    def log_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """The first completions of a validation."""
        self._send(step, {"samples": rows[:SAMPLES]})

    def finish(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        """Close the run."""
        if self.send is not None:
            self._guarded(lambda: self.close(summary, exit_code))

    def _send(self, step: int, values: dict[str, Any]) -> None:
        if (send := self.send) is not None:
            self._guarded(lambda: send(step, values))

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a full disk, a locked data base, a service that died: all one to the run
            self.send = None
            reason = one_line(f"{type(error).__name__}: {error}", 200)
            print(f"{self.name} logs no more ({reason}); metrics.jsonl goes on", file=sys.stderr)


class WandB(Tracker):
    """A W&B run, on one step axis. Without a login, or out of reach, it is kept offline."""

    name = "W&B"

    def __init__(
        self, project: str, name: str, config: dict[str, Any], folder: Path, tags: list[str]
    ) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE")
        base_url = wandb.Settings().base_url
        if mode is None:
            why = None
            if not _logged_in(base_url):
                why = "no login"
            elif not in_reach(base_url):
                why = f"{base_url} is out of reach"
            if why:
                mode = "offline"
                print(f"W&B: {why}, so the run is kept offline; later: wandb sync {folder}/wandb/*run-*")
        try:
            run = wandb.init(
                project=project,
                name=name,
                config=config,
                dir=str(folder),
                mode=mode,
                tags=tags,
                job_type=tags[0],
            )
        except (wandb.errors.Error, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--wandb: {reason}; log in with `wandb login`, or set WANDB_MODE=offline"
            ) from None
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

        self.send, self.close = send, close


class TensorBoard(Tracker):
    """Event files in the run folder; steps after `first_step` of a resumed run replace what was there."""

    name = "TensorBoard"

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)

        def send(step: int, values: dict[str, Any]) -> None:
            for key, value in values.items():
                if key == "samples":  # indented: Markdown shows it as it is
                    text = "".join(f"    {to_json(row)}\n" for row in value)
                    writer.add_text(key, text, step)
                else:
                    writer.add_scalar(key, value, step)
            writer.flush()

        self.send, self.close = send, lambda summary, exit_code: writer.close()


class Trackio(Tracker):
    """A run in Trackio's local data base: `trackio show --project PROJECT` opens the page.

    A resumed run is another one of the same name: Trackio knows runs by their names, and to take the last of this name
    up again could be to write into somebody else's.
    """

    name = "Trackio"

    def __init__(self, project: str, name: str, config: dict[str, Any]) -> None:
        import trackio

        more: dict[str, Any] = {
            "resume": "never",
            "embed": False,
            "auto_log_gpu": False,
            "auto_log_cpu": False,
        }
        with redirect_stdout(None):  # it says in seven lines what stands below in one
            run = trackio.init(project=project, name=name, config=config, **more)
        print(f"Trackio: look at it with: trackio show --project {project}")

        def send(step: int, values: dict[str, Any]) -> None:
            if "samples" in values:
                import pandas

                values = {"samples": trackio.Table(dataframe=pandas.DataFrame(values["samples"]))}
            run.log(values, step=step)

        def close(summary: dict[str, Any], exit_code: int) -> None:
            with redirect_stdout(None):
                trackio.finish()

        self.send, self.close = send, close


def refuse_uninstalled(report_to: str) -> None:
    """Raises `UserError` if the library of that tracker is not there."""
    if report_to in ("trackio", "tensorboard") and importlib.util.find_spec(report_to) is None:
        raise UserError(f"--report_to {report_to}: it is not installed: pip install -r requirements-play.txt")


def open_tracker(
    report_to: str, project: str, folder: Path, config: dict[str, Any], tags: list[str], first_step: int
) -> Tracker | None:
    """The tracker `report_to` of the run in `folder`; None where it is `none`, or, with a line why, cannot be had.

    Raises:
        UserError: W&B refuses; it was asked for by name, and what to do about it is known.
    """
    if report_to == "none":
        return None
    if report_to == "wandb":
        return WandB(project, folder.name, config, folder, tags)
    try:
        if report_to == "tensorboard":
            return TensorBoard(folder, first_step)
        return Trackio(project, folder.name, config)
    except Exception as error:  # as in Tracker
        print(
            f"--report_to {report_to}: {one_line(str(error), 200)}; the run goes on without", file=sys.stderr
        )
        return None


def in_reach(base_url: str, seconds: float = 5.0) -> bool:
    """Does anything answer there? `wandb.init` would wait for a minute and a half, and then end the run."""
    try:
        urllib.request.urlopen(base_url, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError):
        return False
    return True


def _logged_in(base_url: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        file = os.environ.get("NETRC") or str(Path.home() / ("_netrc" if os.name == "nt" else ".netrc"))
        return netrc.netrc(file).authenticators(urlparse(base_url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
