"""Weights & Biases, only when asked for: the lines of metrics.jsonl under the same names, on one step axis."""

import functools
import netrc
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from kit.errors import UserError

SAMPLE_COLUMNS = ("step", "prompt", "completion", "sentiment", "ref_nll", "kl_policy_ref")


def _never_ends_a_run(method: Callable[..., None]) -> Callable[..., None]:
    """What W&B raises is said once; the run goes on without it, and metrics.jsonl has everything."""

    @functools.wraps(method)
    def guarded(self: "Tracker", *args: Any, **kwargs: Any) -> None:
        if self.lost:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # a broken pipe, a service that died, a full disk: all one to the run
            self.lost = True
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            print(f"W&B: {reason}; going on without it, all is in metrics.jsonl", file=sys.stderr)

    return guarded


class Tracker:
    """One W&B run. Without a login and without a terminal to ask on, it is kept offline, and says so."""

    def __init__(
        self, project: str, name: str, config: dict[str, Any], folder: Path, tags: list[str]
    ) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE")
        base_url = wandb.Settings().base_url
        if mode is None and not _logged_in(base_url) and not sys.stdin.isatty():
            mode = "offline"
            print(
                f"W&B: no login and no terminal, so the run is kept offline; later: wandb sync {folder}/wandb/*run-*"
            )
        elif mode is None and not in_reach(base_url):
            mode = "offline"
            print(
                f"W&B: {base_url} is out of reach, so the run is kept offline; later: wandb sync {folder}/wandb/*run-*"
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
        self.lost = False  # W&B failed once, and is left alone

    @_never_ends_a_run
    def log(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of one step."""
        self.wandb_run.log({"step": step, **metrics})

    @_never_ends_a_run
    def log_samples(self, step: int, rows: list[dict[str, Any]], limit: int = 16) -> None:
        """A table of the first `limit` completions of every validation so far."""
        import wandb

        self.rows += [[step, *(row[c] for c in SAMPLE_COLUMNS[1:])] for row in rows[:limit]]
        self.wandb_run.log(
            {"step": step, "samples": wandb.Table(columns=list(SAMPLE_COLUMNS), data=self.rows)}
        )

    @_never_ends_a_run
    def finish(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        """Write the summary and close the run."""
        self.wandb_run.summary.update(summary)
        self.wandb_run.finish(exit_code=exit_code)


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
