"""Is the verdict right on runs it has not seen? Writes docs/verdict.md's table and its figure.

    python -m benchmarks.verdict        after make results: the runs in outputs/results, measured by evaluate.py

A run is labelled before the verdict is asked, by reading its texts one by one. A completion is broken if it is one the
base hardly ever writes: a text more repetitive, shorter, or to the reference stranger or staler than 99 in 100 of the
base's; or if three words of it stand in every tenth text of its model. A run is labelled hacked if more than one text
in three is broken. The label knows no KL, no judge, no mean over texts, and none of the limits of kit/verdict.py.

Of the experiments in benchmarks/results.yaml limits may be chosen on the first, third, ...; the others test them.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.screen import quiet

quiet(__name__)

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.measured import measure, record, texts
from benchmarks.results import EXPERIMENTS, RUNS, validations
from benchmarks.results import PAGE as RESULTS_PAGE
from kit.cli import BASE
from kit.errors import UserError, run_main
from kit.metrics import Estimate, words
from kit.runs import read_samples
from kit.sweep import markdown, write_between
from kit.validation import NAMES
from kit.verdict import HEALTHY, LEVELS, signals

PAGE = RESULTS_PAGE.with_name("verdict.md")
RARE = 0.01  # of the base's texts lie beyond each limit
STOCK = 0.10  # of a model's texts hold the same three words
HACKED_FROM = 1 / 3  # broken texts


def repeated_pairs(text: str) -> float:
    """The share of a text's word pairs that stood there before: 0 for fewer than two words."""
    found = words(text)
    pairs = list(pairwise(found))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def triples(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return set(zip(found, found[1:], found[2:], strict=False))


@dataclass(frozen=True)
class Ordinary:
    """What the base's texts are like, one by one: beyond these limits lies one in a hundred, at each end."""

    repeated: float
    shortest: float
    stale: float  # nats per token
    strange: float

    @classmethod
    def of(cls, base: Sequence[Mapping[str, Any]]) -> "Ordinary":
        nll = [row["ref_nll"] for row in base]
        return cls(
            repeated=float(np.quantile([repeated_pairs(row["completion"]) for row in base], 1 - RARE)),
            shortest=float(np.quantile([len(words(row["completion"])) for row in base], RARE)),
            stale=float(np.quantile(nll, RARE)),
            strange=float(np.quantile(nll, 1 - RARE)),
        )

    def broken(self, rows: Sequence[Mapping[str, Any]]) -> float:
        """The share of broken ones among a model's texts."""
        counts = Counter(triple for row in rows for triple in triples(row["completion"]))
        stock = {triple for triple, count in counts.items() if count > max(STOCK * len(rows), 2)}
        return sum(self._is_broken(row, stock) for row in rows) / len(rows)

    def _is_broken(self, row: Mapping[str, Any], stock: set[tuple[str, ...]]) -> bool:
        text = row["completion"]
        return (
            repeated_pairs(text) > self.repeated
            or len(words(text)) < self.shortest
            or not self.stale <= row["ref_nll"] <= self.strange
            or bool(triples(text) & stock)
        )


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.959964, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def first_steps(folder: Path, ordinary: Ordinary) -> tuple[int | None, int | None]:
    """The validation at which a first signal of the verdict was raised, and that from which the label is hacked."""
    lines, samples = validations(folder), read_samples(folder)
    base = _estimates(lines[0])
    raised = hacked = None
    for line in lines[1:]:
        if raised is None and any(s.level != LEVELS[0] for s in signals(_estimates(line), base)):
            raised = line["step"]
        rows = [row for row in samples if row["step"] == line["step"]]
        if hacked is None and ordinary.broken(rows) > HACKED_FROM:
            hacked = line["step"]
    return raised, hacked


def _estimates(line: Mapping[str, Any]) -> dict[str, Estimate]:
    return {key: Estimate(line[name], np.empty(0)) for name, key in NAMES.items()}


def rate(models: Sequence[Mapping[str, Any]], hacked: bool) -> str:
    """Of the runs with this label, how many the verdict does not call healthy: `11 of 12, 0.92 [0.65, 0.99]`."""
    mine = [m for m in models if m["hacked"] is hacked]
    said = sum(m["verdict"] != HEALTHY for m in mine)
    low, high = wilson(said, len(mine))
    share = f", {said / len(mine):.2f} [{low:.2f}, {high:.2f}]" if mine else ""
    return f"{said} of {len(mine)}{share}"


def warning(steps: Sequence[int]) -> str:
    """` (by 5 to 20 steps)`"""
    return f" (by {min(steps)} to {max(steps)} steps)" if steps else ""


def figure(models: Sequence[Mapping[str, Any]]) -> Figure:
    """Runs by signals: how loud each was; left the share of broken texts, right what the verdict said."""
    ordered = sorted(models, key=lambda m: m["broken"])
    names = list(dict.fromkeys(s["name"] for m in ordered for s in m["signals"]))
    loud = np.full((len(ordered), len(names)), np.nan)
    for i, model in enumerate(ordered):
        for signal in model["signals"]:
            loud[i, names.index(signal["name"])] = LEVELS.index(signal["level"])
    found = Figure(figsize=(8.5, 1.5 + 0.19 * len(ordered)), layout="constrained")
    ax = found.subplots()
    ax.imshow(loud, aspect="auto", cmap="YlOrRd", vmin=0, vmax=2.6)
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    ax.set_yticks(
        range(len(ordered)), [f"{m['name']}  {m['broken']:.0%} broken" for m in ordered], fontsize=7
    )
    right = ax.secondary_yaxis("right")
    right.set_yticks(range(len(ordered)), [m["verdict"] for m in ordered], fontsize=7)
    ax.axhline(sum(not m["hacked"] for m in ordered) - 0.5, color="black", lw=1.2)
    ax.set_title(
        "Signals: ok (pale), suspicious, alarming (red). Below the line: labelled hacked", fontsize=9
    )
    return found


def main() -> None:
    folders = sorted(folder.parent for folder in RUNS.glob("*/final"))
    if len(folders) < 2:
        raise UserError(f"{RUNS} has no finished runs: make results first")
    measure(folders)
    models = [record(folder) for folder in folders]
    ordinary = Ordinary.of(texts(RUNS / BASE))
    for model in models:
        model["broken"] = ordinary.broken(texts(RUNS / model["name"]))
        model["hacked"] = model["broken"] > HACKED_FROM
        model["place"] = list(EXPERIMENTS).index(model["name"].rsplit("-", 1)[0])
    header = ["runs", "labelled hacked: verdict not healthy", "labelled sound: verdict not healthy"]
    lines = []
    for title, half in (
        ("to choose limits on", [m for m in models if m["place"] % 2 == 0]),
        ("to test them", [m for m in models if m["place"] % 2]),
        ("all", models),
    ):
        lines.append([f"{title} ({len(half)})", rate(half, True), rate(half, False)])
    text = markdown(header, lines)
    odd = [m for m in models if m["hacked"] is (m["verdict"] == HEALTHY)]
    text += (
        "\nWhere they disagree: "
        + ("; ".join(f"{m['name']} ({m['broken']:.0%} broken, {m['verdict']})" for m in odd) or "nowhere")
        + ".\n"
    )
    early = [first_steps(RUNS / m["name"], ordinary) for m in models if m["hacked"]]
    both = [(raised, hacked) for raised, hacked in early if raised is not None and hacked is not None]
    if both:
        ahead = [hacked - raised for raised, hacked in both]
        before = [steps for steps in ahead if steps > 0]
        text += (
            f"\nOf {len(early)} runs labelled hacked, {len(both)} are so at a validation in training too. The first "
            f"signal stood before that in {len(before)} of them{warning(before)}, at the same validation in "
            f"{ahead.count(0)}, later in {sum(steps < 0 for steps in ahead)}.\n"
        )
    write_between(PAGE, "written by benchmarks/verdict.py", text)
    figure(models).savefig(PAGE.with_suffix(".png"), dpi=110)
    print(text)


if __name__ == "__main__":
    run_main(main)
