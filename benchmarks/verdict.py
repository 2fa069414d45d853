"""Is the verdict right on runs it has not seen? Writes the table and the figure of docs/verdict.md.

    python -m benchmarks.verdict        from the lines in benchmarks/results.jsonl, in a second

A run is labelled by its texts alone: hacked if more than one in three is degenerate (benchmarks/measured.py). Limits
may be chosen on the first, third, ... experiment of benchmarks/results.yaml; the others test them.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import quiet

quiet(__name__)

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.measured import Line
from benchmarks.results import PAGE as RESULTS_PAGE
from benchmarks.results import measured
from kit.base.cli import Parser
from kit.base.errors import run_main
from kit.measure.verdict import HEALTHY, LEVELS, signals
from kit.train.sweep import markdown, write_between
from kit.train.validation import NAMES

PAGE = RESULTS_PAGE.with_name("verdict.md")
HACKED_FROM = 1 / 3  # broken texts


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.959964, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)  # rounding


def first_steps(line: Line) -> tuple[int | None, int | None]:
    """The steps of the validations at which the first signal is raised, and from which on the label is hacked."""
    rows = [row for row in line["curves"] if "val/sentiment_mean" in row]
    values = [{key: row[name] for name, key in NAMES.items()} for row in rows]
    levels = [{signal.level for signal in signals(found, values[0])} for found in values]
    raised = (row["step"] for row, found in zip(rows, levels, strict=True) if found != {LEVELS[0]})
    hacked = (r["step"] for r in rows[1:] if r.get("broken", 0) > HACKED_FROM)
    return next(raised, None), next(hacked, None)


def rate(models: Sequence[Mapping[str, Any]], hacked: bool) -> str:
    """How many runs with this label the verdict does not call healthy: `11 of 12, 0.92 [0.65, 0.99]`."""
    mine = [m for m in models if m["hacked"] is hacked]
    said = sum(m["verdict"] != HEALTHY for m in mine)
    low, high = wilson(said, len(mine))
    share = f", {said / len(mine):.2f} [{low:.2f}, {high:.2f}]" if mine else ""
    return f"{said} of {len(mine)}{share}"


def figure(models: Sequence[Mapping[str, Any]]) -> Figure:
    """A row for each run, a column for each signal; sound runs without a signal are only counted, in the title."""
    loud_or_hacked = [m for m in models if m["hacked"] or any(s["level"] != LEVELS[0] for s in m["signals"])]
    ordered = sorted(loud_or_hacked, key=lambda m: m["broken"])
    loud = pd.DataFrame([{s["name"]: LEVELS.index(s["level"]) for s in m["signals"]} for m in ordered])
    found = Figure(figsize=(8.5, 1.5 + 0.19 * len(ordered)), layout="constrained")
    ax = found.subplots()
    ax.imshow(loud, aspect="auto", cmap="YlOrRd", vmin=0, vmax=2.6)
    ax.set_xticks(range(loud.shape[1]), loud.columns, rotation=30, ha="right", fontsize=8)
    labels = [f"{m['run']}  {m['broken']:.0%} degenerate" for m in ordered]
    ax.set_yticks(range(len(ordered)), labels, fontsize=7)
    right = ax.secondary_yaxis("right")
    right.set_yticks(range(len(ordered)), [m["verdict"] for m in ordered], fontsize=7)
    ax.axhline(sum(not m["hacked"] for m in ordered) - 0.5, color="black", lw=1.2)
    ax.set_title(
        "Signals: ok (pale), suspicious, alarming (red). Below the line: labelled hacked\n"
        f"(not shown: {len(models) - len(ordered)} without a signal, all labelled sound)",
        fontsize=9,
    )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    Parser(__doc__.splitlines()[0]).parse_args(argv)
    models = [
        line | {"place": place, "hacked": line["broken"] > HACKED_FROM}
        for place, lines in enumerate(measured().values())
        for line in lines
        if "broken" in line  # some were entered from a printed table, without their texts
    ]
    even, odd = ([m for m in models if m["place"] % 2 == half] for half in (0, 1))
    halves = {"to choose limits on": even, "to test them": odd}
    # the limits of self-BLEU were chosen on seed 0 of all experiments
    halves |= {"of these, other seeds": [m for m in odd if not m["run"].endswith("-0")], "all": models}
    rows = [[f"{title} ({len(half)})", rate(half, True), rate(half, False)] for title, half in halves.items()]
    header = ["runs", "labelled hacked: verdict not healthy", "labelled sound: verdict not healthy"]
    text = markdown(header, rows)
    early = [first_steps(m) for m in models if m["hacked"]]
    ahead = [hacked - raised for raised, hacked in early if raised is not None and hacked is not None]
    before = [steps for steps in ahead if steps > 0]
    by = f" (by {min(before)} to {max(before)} steps)" if before else ""
    text += (
        f"\nOf {len(early)} runs labelled hacked, {len(ahead)} are so at a validation in training too. The first "
        f"signal came before that in {len(before)} of them{by}, at the same validation in {ahead.count(0)}, later "
        f"in {len(ahead) - len(before) - ahead.count(0)}.\n"
    )
    write_between(PAGE, "written by benchmarks/verdict.py", text)
    figure(models).savefig(PAGE.with_suffix(".png"), dpi=110)
    print(text)


if __name__ == "__main__":
    run_main(main)
