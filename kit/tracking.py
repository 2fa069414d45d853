"""Weights & Biases, only when asked for: the lines of metrics.jsonl under the same names, on one step axis."""

import netrc
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from kit.errors import UserError

SAMPLE_COLUMNS = ("step", "prompt", "completion", "sentiment", "ref_nll", "kl_policy_ref")


class Tracker:
    """One W&B run. Without a login and without a terminal to ask on, it is kept offline, and says so."""

    def __init__(
        self, project: str, name: str, config: dict[str, Any], folder: Path, tags: list[str]
    ) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE")
        if mode is None and not _logged_in(wandb.Settings().base_url) and not sys.stdin.isatty():
            mode = "offline"
            print(
                f"W&B: no login and no terminal, so the run is kept offline; later: wandb sync {folder}/wandb/*run-*"
            )
        try:
            self.wandb_run = wandb.init(
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
        self.wandb_run.define_metric("step")
        self.wandb_run.define_metric("*", step_metric="step")
        self.rows: list[list[Any]] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of one step."""
        self.wandb_run.log({"step": step, **metrics})

    def log_samples(self, step: int, rows: list[dict[str, Any]], limit: int = 16) -> None:
        """A table of the first `limit` completions of every validation so far."""
        import wandb

        self.rows += [[step, *(row[c] for c in SAMPLE_COLUMNS[1:])] for row in rows[:limit]]
        self.wandb_run.log(
            {"step": step, "samples": wandb.Table(columns=list(SAMPLE_COLUMNS), data=self.rows)}
        )

    def finish(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        """Write the summary and close the run."""
        self.wandb_run.summary.update(summary)
        self.wandb_run.finish(exit_code=exit_code)


def _logged_in(base_url: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        file = os.environ.get("NETRC") or str(Path.home() / ("_netrc" if os.name == "nt" else ".netrc"))
        return netrc.netrc(file).authenticators(urlparse(base_url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
