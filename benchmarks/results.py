"""Train every experiment of benchmarks/results.yaml with three seeds; write the tables and figures of docs/results.md.

    python -m benchmarks.results                       make results: hours on two cores
    python -m benchmarks.results --seeds 1             a third of that
    python -m benchmarks.results --only vanilla best   some experiments
    python -m benchmarks.results --missing             train only runs without a line in benchmarks/results.jsonl

All runs use the mini models and the reference solution. Two trainings run at a time, with one thread each. The command
can be stopped and started again at any time. The page is written from the lines of benchmarks/results.jsonl, one a run.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import quiet

quiet(__name__)

from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

from benchmarks.measured import SAMPLED, Line, judged, kept_lines, measure
from kit import ROOT
from kit.base.cli import BASE, Parser, at_least_1
from kit.base.errors import run_main
from kit.measure import plots
from kit.measure.measuring import METRICS
from kit.train import sweep
from kit.train.sweep import Training, cells, finish_runs, markdown, spelled_out, write_between

RUNS, PAGE = ROOT / "outputs" / "results", ROOT / "docs" / "results.md"
EXPERIMENTS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("results.yaml").read_text(encoding="utf-8")
)
DIGITS = {"sentiment": 2, "judge": 2, "kl_policy_ref": 1, "length": 0, "captured": 2}
FOCUS = {  # their curves and samples are shown
    "vanilla": "no penalty",
    "forward-0.05": "KL(π‖π_ref) penalty",
    "shaped": "the same, shaped reward",
    "best": "per-token advantages",
}
COEFFICIENTS = (0.02, 0.05, 0.1, 0.2)
# The figure has a column for each question: {title: {series: {place on the axis: experiment}}}
QUESTIONS: dict[str, dict[str, dict[Any, str]]] = {
    "KL coefficient": {
        "forward": {c: f"forward-{c}" for c in COEFFICIENTS},
        "backward": {c: f"backward-{c}" for c in COEFFICIENTS[:3]},
        "--beta": {c: f"beta-{c:g}" for c in (0.1, 0.3)},
        "forward, shaped": {0.05: "shaped"},
    },
    "No penalty, one change": {
        "": {
            "none": "vanilla",
            "hackable": "hackable",
            "negated": "negate",
            "sparse": "sparse",
            "sparse 0.99": "sparse-high",
            "sparse 0.997": "sparse-higher",
            "LoRA": "lora",
        }
    },
    "Learning rate": {
        "no penalty": {3e-5: "halfway", 1e-4: "slow", 3e-4: "vanilla"},
        "forward 0.1": {1e-4: "rate-1e-4", 3e-4: "forward-0.1"},
    },
    "Parts of best.yaml": {
        "": {
            "none": "rate-1e-4",
            "LoRA": "few-weights",
            "tokens": "token-credit",
            "both": "both",
            "both, longer": "best",
        }
    },
}
ROWS = {  # metric -> (unit, limits)
    "sentiment": ("P(positive)", (0, 1.04)),
    "kl_policy_ref": ("KL(π‖π_ref), nats", (0.5, 300)),
    "captured": ("captured", (-1, 1)),
}


def command(name: str) -> list[str]:
    """The training of one experiment."""
    flags = [f"--{key}={value}" for key, value in EXPERIMENTS[name].items()]
    return ["train.py", "--model=mini", "--sentiment_model=mini", "--use_solution", *flags]


def measured() -> dict[str, list[Line]]:
    """{experiment: the lines of its runs with their verdicts, seed by seed}; only runs of today's command."""
    kept = kept_lines()
    found: dict[str, list[Line]] = {name: [] for name in EXPERIMENTS}
    for run, line in kept.items():
        name = run.rpartition("-")[0]
        if name in found and line["command"] == spelled_out(command(name)):
            found[name].append(judged(line, kept[BASE]))
    return found


def table() -> str:
    """Markdown: the base, then a row for each experiment with the mean over seeds, the lowest and the highest."""
    rows = [["(base)", *cells([kept_lines()[BASE]["metrics"]], DIGITS), ""]]
    for name, lines in measured().items():
        if lines:
            flags = [f"--{k}" if v is True else f"--{k} {v}" for k, v in EXPERIMENTS[name].items()]
            numbers = cells([line["metrics"] for line in lines], DIGITS)
            verdicts = sweep.counted(line["verdict"] for line in lines)
            rows.append([f"`{' '.join(flags)}`" if flags else "(no flag)", *numbers, verdicts])
    titles = [METRICS[key].label for key in DIGITS]
    return markdown(["`python train.py` ...", *titles, "Verdicts"], rows)


def samples_table() -> str:
    """The last validation of seed 0: the same prompts and random numbers for every model."""
    runs = measured()
    shown = {title: runs[name][0]["samples"] for name, title in FOCUS.items() if runs[name]}
    rows = [["base", *_sampled(samples, 0)] for samples in [*shown.values()][:1]]
    rows += [[title, *_sampled(samples, samples[-1]["step"])] for title, samples in shown.items()]
    return markdown(["", *(f'"{prompt} ..."' for prompt in SAMPLED)], rows)


def _sampled(samples: Sequence[Line], step: int) -> list[str]:
    found = {row["prompt"]: row for row in samples if row["step"] == step}
    shown = []
    for prompt in SAMPLED:
        text = " ".join(found[prompt]["completion"].split()).replace("|", "\\|")
        cut = text if len(text) <= 70 else text[:70].rsplit(" ", 1)[0] + " ..."
        shown.append(f"{cut} [{found[prompt]['sentiment']:.2f}]")
    return shown


def figure(runs: dict[str, list[Line]]) -> Figure:
    """A column for each question, a row for each metric: a dot for each seed, and a marker at their mean.

    A value outside the limits of its row is not shown.
    """
    drawn, axes = plots.grid(len(ROWS), len(QUESTIONS), (14.0, 6.4), sharex="col", sharey="row")
    for column, (question, series) in zip(axes.T, QUESTIONS.items(), strict=True):
        places = list(next(iter(series.values())))
        names = isinstance(places[0], str)
        for ax, (key, (unit, limits)) in zip(column, ROWS.items(), strict=True):
            for index, (label, experiments) in enumerate(series.items(), start=1):
                look = plots.style(index)
                seeds = {
                    x: [line["metrics"].get(key, nan) for line in runs[name]]
                    for x, name in experiments.items()
                }
                dots = [(x, value) for x, values in seeds.items() for value in values]
                means = [(x, float(np.nanmean(values))) for x, values in seeds.items() if values]
                ax.plot(*zip(*dots, strict=True), ".", color=look.color, ms=4)
                pen = look.pen | ({"ls": ""} if names else {})
                ax.plot(*zip(*means, strict=True), lw=1, mfc="none", label=label, **pen)
            ax.set_ylim(*limits)
            if ax in axes[:, 0]:
                ax.set_ylabel(unit)
        column[0].set_title(question)
        if len(series) > 1:
            column[0].legend(fontsize=7, loc="lower left")
        column[1].set_yscale("log")
        column[1].yaxis.set_major_formatter("{x:g}")
        column[1].margins(x=0.12)
        if names:
            column[-1].tick_params(axis="x", rotation=60)
        else:
            column[-1].set_xscale("log")
            column[-1].set_xticks(places, [f"{x:g}" for x in places])
            column[-1].minorticks_off()
    return drawn


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__.splitlines()[0])
    n: dict[str, Any] = {"type": at_least_1, "metavar": "N"}
    parser.add_argument("--seeds", default=3, help="seeds 0 ... N-1 (default: 3)", **n)
    parser.add_argument(
        "--only", nargs="+", choices=EXPERIMENTS, metavar="NAME", help="of benchmarks/results.yaml"
    )
    parser.add_argument("--jobs", default=2, help="trainings at a time (default: 2)", **n)
    parser.add_argument("--missing", action="store_true", help="only runs without a line in results.jsonl")
    args = parser.parse_args(argv)
    wanted = [  # seed by seed: after the first there is a whole table to look at
        Training(command(name), RUNS / f"{name}-{seed}", seed)
        for seed in range(args.seeds)
        for name in args.only or EXPERIMENTS
    ]
    if args.missing:
        commands = {name: line.get("command") for name, line in kept_lines().items()}
        wanted = [run for run in wanted if commands.get(run.folder.name) != spelled_out(run.command)]
    finish_runs(wanted, args.jobs, RUNS / "log.txt")
    measure(wanted)
    write_between(PAGE, "written by make results", table())
    write_between(PAGE, "samples by make results", samples_table())
    runs = measured()
    curves = {
        name: sweep.mean_history([line["curves"] for line in runs[name]]) for name in FOCUS if runs[name]
    }
    figure(runs).savefig(PAGE.parent / "results.png", dpi=110)
    plots.training_curves(curves, start=1).savefig(PAGE.parent / "hack_and_cure.png", dpi=110)
    print(f"\n{table()}\nin {PAGE}")


if __name__ == "__main__":
    run_main(main)
