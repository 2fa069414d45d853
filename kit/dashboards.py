"""Trackio and TensorBoard, without an account: the lines of metrics.jsonl under the same names, as on W&B.

Both come with requirements-play.txt. What goes wrong while a run is logged there ends the logging, not the run.
"""

import importlib.util
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from kit.errors import UserError
from kit.runs import to_json
from kit.screen import one_line

SAMPLES = 16  # of a validation


class Dashboard:
    """One run on a dashboard called `name`. `send` and `close` are what its library does."""

    name: str
    send: Callable[[int, dict[str, Any]], None] | None
    close: Callable[[], None]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of one step."""
        self._send(step, metrics)

    def log_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """The first completions of a validation, as text."""
        self._send(step, {"samples": rows[:SAMPLES]})

    def finish(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        """Close the run."""
        if self.send is not None:
            self._guarded(self.close)

    def _send(self, step: int, values: dict[str, Any]) -> None:
        if (send := self.send) is not None:
            self._guarded(lambda: send(step, values))

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a full disk, a locked data base: the run is worth more than its picture
            self.send = None
            reason = one_line(f"{type(error).__name__}: {error}", 200)
            print(f"{self.name} logs no more ({reason}); metrics.jsonl goes on", file=sys.stderr)


class TensorBoard(Dashboard):
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

        self.send, self.close = send, writer.close


class Trackio(Dashboard):
    """A run in Trackio's local data base: `trackio show --project PROJECT` opens the page."""

    name = "Trackio"

    def __init__(self, project: str, name: str, config: dict[str, Any]) -> None:
        import trackio

        more: dict[str, Any] = {
            "resume": "allow",
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

        def close() -> None:
            with redirect_stdout(None):
                trackio.finish()

        self.send, self.close = send, close


def refuse_uninstalled(report_to: str) -> None:
    """Raises `UserError` if the library of that dashboard is not there."""
    if report_to in ("trackio", "tensorboard") and importlib.util.find_spec(report_to) is None:
        raise UserError(f"--report_to {report_to}: it is not installed: pip install -r requirements-play.txt")


def open_dashboard(
    report_to: str, project: str, folder: Path, config: dict[str, Any], first_step: int
) -> Dashboard | None:
    """The dashboard `report_to` for the run in `folder`, or None, with a line that says why it cannot be had."""
    try:
        if report_to == "tensorboard":
            return TensorBoard(folder, first_step)
        return Trackio(project, folder.name, config)
    except Exception as error:  # as above
        print(
            f"--report_to {report_to}: {one_line(str(error), 200)}; the run goes on without", file=sys.stderr
        )
        return None
