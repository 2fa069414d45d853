"""The screen: silenced libraries, tables, times, and a line of progress."""

import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Sequence

import kit
from kit.base.errors import UserError, secure_screen, stop_at_once, told_in_one_line


def quiet(name: str = "") -> None:
    """Silence the libraries' messages to developers, and their telemetry. Call before importing them.

    With `name` "__main__", a script's `__name__`: if a library is missing, say so in one sentence; Ctrl-C during the
    imports is one line too.
    """
    if name == "__main__":
        secure_screen()
        stop_at_once()
        with told_in_one_line():
            if wrong := kit.wrong_packages():
                raise UserError(wrong)
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
        # Threads that spin while they wait take the cores from other processes: a step then took 20 times as long
        os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ |= {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "HF_HUB_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",  # a bar when weights are loaded
        "WANDB_SILENT": "true",
        "TRL_EXPERIMENTAL_SILENCE": "1",  # rollout_func is experimental, and TRL is pinned
    }
    if os.environ.get("WANDB_MODE") == "offline":
        os.environ["WANDB_MODE"] = "dryrun"  # the same to W&B; transformers prints a line about "offline"
    warnings.filterwarnings("ignore", category=FutureWarning)
    libraries = r"(torch|peft|transformers|trl|accelerate)\b"
    warnings.filterwarnings("ignore", category=UserWarning, module=libraries)
    for name in ("trl", "transformers", "accelerate", "datasets", "huggingface_hub", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def clock(seconds: float) -> str:
    """75 -> '1:15', 4000 -> '1:06:40'."""
    minutes, s = divmod(round(max(seconds, 0.0)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def as_word(path: object) -> str:
    """A path for a command that the user may paste: with blanks it stands in double quotes, as every shell reads."""
    return f'"{path}"' if " " in str(path) else str(path)


def one_line(text: str, width: int) -> str:
    """Text for a table cell: control characters replaced (a model may print them), cut to `width`."""
    text = "".join(c if c.isprintable() else "\\n" if c == "\n" else "?" for c in text)
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Right-aligned columns, the last one left-aligned and cut to the terminal's width."""
    widths = [max(len(str(r[i])) for r in [header, *rows]) for i in range(len(header) - 1)]
    room = max(shutil.get_terminal_size((110, 24)).columns - sum(widths) - 2 * len(widths) - 2, 30)
    lines = []
    for row in [header, *rows]:
        cells = [str(cell).rjust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  " + "  ".join([*cells, one_line(str(row[-1]), room)]))
    return "\n".join(lines)


class Progress:
    """Progress and ETA of a loop of known size: one line, redrawn, on a terminal; in a log a line every 15 seconds."""

    def __init__(self, total: int, label: str, unit: str) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.live = sys.stderr.isatty()
        self.done, self.open = 0.0, False  # open: the cursor stands behind an unfinished line
        self.start = self.shown = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        """End the line: an error or a table may follow."""
        if self.open:
            print(file=sys.stderr, flush=True)
        self.open = False

    def doing(self, label: str) -> None:
        """Change the label; a terminal shows it at once."""
        self.label = label
        if self.open:
            self._show()

    def advance(self, amount: float = 1) -> None:
        """`amount` more are done."""
        self.done += amount
        full = self.live and self.done >= self.total
        if full or time.monotonic() - self.shown >= (0.2 if self.live else 15):
            self._show()

    def _show(self) -> None:
        self.shown = time.monotonic()
        elapsed = self.shown - self.start
        eta = elapsed / max(self.done, 1) * (self.total - self.done)
        line = f"{self.label} {self.done:.0f}/{self.total} {self.unit} | {clock(elapsed)} | eta {clock(eta)}"
        self.open = self.live and self.done < self.total
        line = f"\r\033[K{line}" if self.live else line
        print(line, end="" if self.open else "\n", file=sys.stderr, flush=True)
