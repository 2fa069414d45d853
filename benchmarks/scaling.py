"""How a training step grows: with the completions of a step, with their length, with the width of the model.

    python benchmarks/scaling.py --write            about five minutes on two cores: let nothing else run

Three points each, random weights by config (speed and memory do not depend on what a model has learned), forward
penalty, everything else as in `python train.py`. The slope is that of log seconds over log size: 1 means in proportion.
With --write the table goes into benchmarks/scaling.md and the figure into docs/speed.png.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from step_time import ROOT, Timing, random_policy, time_variant

from kit.models import MINI, ModelChoice

# What is varied: (name, sizes, the flags or the width for one size); the middle one is the default
AXES: tuple[tuple[str, tuple[int, ...], Callable[[int], tuple[dict[str, Any], int]]], ...] = (
    ("completions", (32, 64, 128), lambda n: ({"prompts_per_step": n // 8}, 256)),
    ("tokens of a completion", (20, 40, 80), lambda n: ({"max_completion_length": n}, 256)),
    ("width of the model", (128, 256, 512), lambda n: ({}, n)),
)


def measure_point(flags: dict[str, Any], width: int, steps: int) -> Timing:
    """A policy of that width with random weights, 6 layers deep, trained for `steps` steps."""
    with tempfile.TemporaryDirectory() as folder:
        random_policy(Path(folder), width=width, layers=6, heads=width // 64, vocabulary=8192)
        choice = ModelChoice(folder, str(MINI / "sentiment"), "a benchmark")
        return time_variant("forward penalty", choice, steps, flags)


def draw(points: dict[str, list[tuple[int, float]]]) -> Figure:
    """Seconds a step over each size, both on logarithmic axes."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, 3, sharey=True), points.items(), strict=True):
        sizes, seconds = zip(*values, strict=True)
        axes.loglog(sizes, seconds, "o-", color="#0072B2")
        axes.set_xticks(sizes, [str(s) for s in sizes])
        axes.minorticks_off()
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    figure.axes[0].set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    figure.axes[0].set_ylabel("seconds a step")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each point (default: 5)")
    parser.add_argument("--write", action="store_true", help="write benchmarks/scaling.md and docs/speed.png")
    args = parser.parse_args()
    lines = [
        f"`python benchmarks/scaling.py`: {torch.get_num_threads()} threads, GPT-2 of 6 layers and 8,192 words; "
        f"median of {args.steps} steps; the default is 64 completions of at most 40 tokens, width 256.",
        "",
        "| varied | size | seconds a step | tokens/s | peak memory | slope |",
        "|---|---|---|---|---|---|",
    ]
    points: dict[str, list[tuple[int, float]]] = {}
    known: dict[str, Timing] = {}  # the default stands on all three axes, and is measured once
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        for name, sizes, settings in AXES:
            for at, size in enumerate(sizes):
                flags, width = settings(size)
                key = "default" if at == 1 else f"{name} {size}"
                if key not in known:
                    known[key] = processes.submit(measure_point, flags, width, args.steps).result()
                seconds = float(np.median(known[key].steps))
                points.setdefault(name, []).append((size, seconds))
                slope = ""
                if at == 2:
                    x, y = np.log(np.array(points[name])).T
                    slope = f"{np.polyfit(x, y, 1)[0]:.2f}"
                t = known[key]
                lines.append(
                    f"| {name} | {size} | {seconds:.2f} | {t.tokens / seconds:,.0f} | {t.memory:,.0f} MB | {slope} |"
                )
                print(lines[-1], flush=True)
    if args.write:
        (ROOT / "benchmarks/scaling.md").write_text(
            "# Scaling\n\n" + "\n".join(lines) + "\n", encoding="utf-8"
        )
        draw(points).savefig(ROOT / "docs/speed.png", dpi=130)


if __name__ == "__main__":
    main()
