"""Every experiment that the kit speaks of, with three seeds each: docs/results.md, its figures, the README's samples.

    python -m benchmarks.results                       make results: hours on two cores
    python -m benchmarks.results --seeds 1             a third of that
    python -m benchmarks.results --only vanilla best   some of them
    python -m benchmarks.results --missing             those that benchmarks/results.jsonl has no line of

benchmarks/results.yaml says what is run, on the mini models, with the reference solution. Two trainings run at a time,
with one thread each. Stop it whenever you like: started again, it goes on where it was. What was measured is kept in
benchmarks/results.jsonl, a line a run, and the pages are written from all lines there.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.screen import quiet

quiet(__name__)

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from matplotlib.figure import Figure

from benchmarks.measured import SAMPLED, Line, judged, kept_lines, measure
from kit import plots
from kit.cli import BASE, Parser, at_least_1
from kit.errors import UserError, run_main
from kit.frontier import curves
from kit.models import ROOT
from kit.reference import read_kept
from kit.runs import read_metrics
from kit.sweep import (
    Training,
    finish_runs,
    markdown,
    mean_and_range,
    mean_history,
    spelled_out,
    write_between,
)

EXPERIMENTS: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "results.yaml").read_text(encoding="utf-8")
)
RUNS, PAGE, README = ROOT / "outputs" / "results", ROOT / "docs" / "results.md", ROOT / "README.md"
COLUMNS = {  # evaluate.py's metric -> (title, digits)
    "sentiment": ("sentiment", 2),
    "judge": ("judge", 2),
    "kl_policy_ref": ("KL(pi\\|\\|pi_ref)", 1),
    "kl_ref_policy": ("KL(pi_ref\\|\\|pi)", 1),
    "ref_nll": ("ref NLL", 2),
    "distinct_2": ("distinct-2", 2),
    "length": ("length", 0),
    "captured": ("captured", 2),
}
FOCUS = ("vanilla", "forward-0.05", "shaped", "best")  # their curves, and their samples in the README


def command(name: str, steps: int | None) -> list[str]:
    """The training of one experiment."""
    flags = [f"--{key}={value}" for key, value in EXPERIMENTS[name].items()]
    short = [f"--max_steps={steps}"] if steps else []
    return ["train.py", "--model=mini", "--sentiment_model=mini", "--use_solution", *flags, *short]


def measured() -> dict[str, list[Line]]:
    """{experiment: the lines of its runs, as it is defined today, seed by seed, with their verdicts}."""
    kept = kept_lines()
    found: dict[str, list[Line]] = {name: [] for name in EXPERIMENTS}
    for run, line in kept.items():
        name = run.rpartition("-")[0]
        if name in EXPERIMENTS and line["command"] == spelled_out(command(name, None)):
            found[name].append(judged(line, kept[BASE]))
    return found


def flags_of(name: str) -> str:
    """As one would type them: `--kl_type forward --kl_coef 0.05`."""
    said = [f"--{key}" if value is True else f"--{key} {value}" for key, value in EXPERIMENTS[name].items()]
    return f"`{' '.join(said)}`" if said else "(no flag)"


def table() -> str:
    """Markdown: a row for each experiment, as its runs were measured, the mean over seeds with the lowest and the
    highest; the base's own row first."""
    titles = ["`python train.py` ...", "seeds", *(title for title, _ in COLUMNS.values()), "verdicts"]
    rows = [["(base)", "", *_cells([kept_lines()[BASE]]), ""]]
    for name, lines in measured().items():
        if lines:
            said = Counter(line["verdict"] for line in lines)
            verdicts = ", ".join(f"{count} {word}" for word, count in sorted(said.items()))
            rows.append([flags_of(name), str(len(lines)), *_cells(lines), verdicts])
    return markdown(titles, rows)


def _cells(lines: Sequence[Line]) -> list[str]:
    cells = []
    for key, (_, digits) in COLUMNS.items():
        values = [line["metrics"][key] for line in lines if key in line["metrics"]]
        cells.append(mean_and_range(values, digits) if values else "")
    return cells


def samples_table() -> str:
    """The README's: the last validation of seed 0, the same random numbers for every model."""
    titles = {
        "vanilla": "no penalty",
        "forward-0.05": "KL(pi\\|\\|pi_ref) penalty",
        "shaped": "the same, shaped reward",
        "best": "credit token by token",
    }
    rows: list[list[str]] = []
    runs = measured()
    for name in FOCUS:
        if not (lines := runs[name]):
            continue
        samples = lines[0]["samples"]
        if not rows:
            rows.append(["base", *_sampled(samples, 0)])
        rows.append([titles[name], *_sampled(samples, samples[-1]["step"])])
    return markdown(["", *(f'"{prompt} ..."' for prompt in SAMPLED)], rows)


def _sampled(samples: Sequence[Line], step: int) -> list[str]:
    found = {row["prompt"]: row for row in samples if row["step"] == step}
    cells = []
    for prompt in SAMPLED:
        text = " ".join(found[prompt]["completion"].split()).replace("|", "\\|")
        cut = text if len(text) <= 105 else text[:105].rsplit(" ", 1)[0] + " ..."
        cells.append(f"{cut} [{found[prompt]['sentiment']:.2f}]")
    return cells


def frontier() -> Figure:
    """The end of every finished run: sentiment against KL(pi||pi_ref), with what no training can beat at that price.

    Experiments that differ by a number alone, as forward-0.1 and forward-0.2 do, are joined by a line.
    """
    best_of_n, tilt = curves(read_kept()[1].scores)
    figure = Figure(figsize=(8.5, 5.5), layout="constrained")
    ax = figure.subplots()
    for curve, line, label in ((tilt, "-", "optimal tilt"), (best_of_n, "--", "best of n of the base")):
        ax.plot([p.kl for p in curve], [p.reward for p in curve], color="0.45", ls=line, lw=2.2, label=label)
    ax.set_xscale("symlog", linthresh=1.0)
    ax.set_xlim(0, 400)
    ax.set_ylim(-0.03, 1.06)
    names: list[tuple[str, float, float]] = []
    runs = measured()
    for index, (family, members) in enumerate(families(EXPERIMENTS).items(), start=1):
        look, ends = plots.style(index), []
        for name in members:
            metrics = [line["metrics"] for line in runs[name]]
            points = [(found["kl_policy_ref"], found["sentiment"]) for found in metrics]
            if not points:
                continue
            xs, ys = zip(*points, strict=True)
            ax.scatter(xs, ys, s=10, color=look.color, alpha=0.5)
            ends.append((fmean(xs), fmean(ys)))
            names.append((name.removeprefix(f"{family}-"), *ends[-1]))
        if ends:
            joined = {"ls": "-", "label": f"{family}-..."} if len(ends) > 1 else {"ls": ""}
            xs, ys = zip(*ends, strict=True)
            ax.plot(xs, ys, color=look.color, marker=look.marker, ms=5, lw=1, **joined)
    plots.name_points(ax, names)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("KL(π‖π_ref), nats per completion (linear to 1, logarithmic beyond)")
    ax.set_ylabel("P(positive), held-out prompts")
    ax.legend(fontsize=8, loc="center right")
    return figure


def families(names: Iterable[str]) -> dict[str, list[str]]:
    """{`forward`: [`forward-0.02`, `forward-0.05`, ...]}; a name that shares its beginning with no other is its own."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(re.sub(r"-[\d.]+$", "", name), []).append(name)
    return {
        key: members
        for head, together in found.items()
        for key, members in ([(head, together)] if len(together) > 1 else [(together[0], together)])
    }


def last_line(folder: Path) -> str:
    last = [row for row in read_metrics(folder) if "val/sentiment_mean" in row][-1]
    return f"sentiment {last['val/sentiment_mean']:.2f}, KL {last['val/kl_policy_ref']:.1f}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", type=at_least_1, default=3, metavar="N", help="seeds 0 ... N-1 (default: 3)"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="experiments of benchmarks/results.yaml")
    parser.add_argument("--steps", type=at_least_1, metavar="N", help="shorter runs, for a try, and no pages")
    parser.add_argument(
        "--jobs", type=at_least_1, default=2, metavar="N", help="trainings at a time (default: 2)"
    )
    parser.add_argument(
        "--missing", action="store_true", help="train only what benchmarks/results.jsonl has no line of"
    )
    args: argparse.Namespace = parser.parse_args(argv)
    for name in args.only or []:
        if name not in EXPERIMENTS:
            raise UserError(f"--only {name}: it is none of {', '.join(EXPERIMENTS)}")
    # seed by seed: after the first there is a whole table to look at
    wanted = [
        Training(command(name, args.steps), RUNS / f"{name}-{seed}", seed)
        for seed in range(args.seeds)
        for name in args.only or EXPERIMENTS
    ]
    if args.missing:
        kept = kept_lines()
        wanted = [
            run for run in wanted if kept.get(run.folder.name, {}).get("command") != spelled_out(run.command)
        ]
    finish_runs(wanted, args.jobs, RUNS / "log.txt", last_line)
    if args.steps:  # no page speaks of shorter runs
        return

    measure(wanted)
    text = table()
    write_between(PAGE, "written by make results", text)
    write_between(README, "samples by make results", samples_table())
    runs = measured()
    focus = {name: mean_history([line["curves"] for line in runs[name]]) for name in FOCUS if runs[name]}
    frontier().savefig(PAGE.parent / "results.png", dpi=110)
    plots.training_curves(focus, start=1).savefig(PAGE.parent / "hack_and_cure.png", dpi=110)
    print(f"\n{text}\nin {PAGE}")


if __name__ == "__main__":
    run_main(main)
