"""The runs of `make results`: measured once as evaluate.py measures, labelled by their texts, and kept.

benchmarks/results.jsonl has a line for each run: its command, its metrics, its curves, two of its samples. The pages
are written from these lines, so seeds that were trained on another machine count as well. A run's folder gets
texts.jsonl, the 4 completions of every held-out prompt that were measured.

The label uses no KL, no judge, no mean over texts, and none of the limits of the verdict. A completion is degenerate
if the base hardly ever writes such a text: it is more repetitive, shorter, or more or less likely under the reference
than 99 in 100 of the base's. It is also degenerate if it holds three words that stand in every tenth text of its model.
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kit.base.cli import BASE, Parser
from kit.base.errors import UserError
from kit.base.files import write_text
from kit.base.metrics import words
from kit.base.runs import read_lines, read_metrics, read_samples, to_json
from kit.base.screen import Progress
from kit.lm.models import resolve_models
from kit.measure import comparison
from kit.measure.comparison import UNWRITTEN, Model, base_slope, chosen_judge, load_bench, zero_std_groups
from kit.measure.plots import CURVES
from kit.measure.reference import kept_samples
from kit.measure.verdict import signals, verdict
from kit.train.sweep import Training, spelled_out
from kit.train.validation import NAMES

KEPT, TEXTS = Path(__file__).with_name("results.jsonl"), "texts.jsonl"
RARE = 0.01  # of the base's texts lie beyond each limit
STOCK = 0.10  # of a model's texts hold the same three words
SAMPLED = ("The script", "The acting")  # held-out prompts whose samples are shown
DRAWN = {key for key, *_ in CURVES} | set(NAMES)  # series of metrics.jsonl

Line = dict[str, Any]

# ---- the label ---------------------------------------------------------------------------------------------


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All runs of n words, without punctuation: "it's" is one word, or the base itself would have a stock phrase."""
    found = re.findall(r"[\w']+", text.lower())
    return list(zip(*(found[i:] for i in range(n)), strict=False))


def repeated_pairs(text: str) -> float:
    """The share of word pairs that occurred earlier in the text: 0 for fewer than two words."""
    pairs = ngrams(text, 2)
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def oddness(row: Mapping[str, Any]) -> tuple[float, ...]:
    """How repetitive and how short a text is, how likely and how unlikely under the reference: higher is odder."""
    text, nll = row["completion"], row["ref_nll"]
    return repeated_pairs(text), -len(words(text)), -nll, nll


def base_limits(base: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(4,): one in a hundred of the base's texts lies above each number of `oddness`."""
    return np.quantile([oddness(row) for row in base], 1 - RARE, axis=0)


def broken(rows: Sequence[Mapping[str, Any]], limits: np.ndarray) -> float:
    """The share of degenerate texts among a model's."""
    triples = [set(ngrams(row["completion"], 3)) for row in rows]
    counts = Counter(triple for found in triples for triple in found)
    stock = {triple for triple, count in counts.items() if count > max(STOCK * len(rows), 2)}
    odd = np.greater([oddness(row) for row in rows], limits).any(axis=1)
    return float(np.mean(odd | [bool(found & stock) for found in triples]))


# ---- measuring ---------------------------------------------------------------------------------------------


def measure(trained: Sequence[Training]) -> None:
    """Measure the runs that have not been measured, and keep a line of each. Raises `UserError` if one cannot be."""
    kept = kept_lines()
    todo = [run for run in trained if not ((run.folder / TEXTS).is_file() and run.folder.name in kept)]
    if not todo:
        return
    parser = Parser("")
    parser.add_sampling_flags()
    args: argparse.Namespace = parser.parse_args([])
    choice = resolve_models("mini", "mini")
    bench = load_bench(args, choice, judge=chosen_judge("auto"))
    total = (1 + len(todo)) * args.num_samples * len(bench.prompts)
    bench.progress = Progress(total, "measuring", "completions")
    base = Model(BASE, choice.policy)
    comparison.measure(base, bench, args.num_samples)
    slope, samples, limits = base_slope(base), kept_samples(choice, bench), base_limits(base.rows)

    def metrics(model: Model) -> dict[str, float]:
        entry = comparison.compared(model, base, slope, samples, args.num_samples)
        return {key: _short(found["value"]) for key, found in entry["metrics"].items()}

    keep({"run": BASE, "metrics": metrics(base), "judge_slope": slope})
    for run in todo:
        folder, name = run.folder, run.folder.name
        model = Model(name, str(folder))
        comparison.measure(model, bench, args.num_samples)
        if model.error:
            raise UserError(f"{name} cannot be measured: {model.error}")
        rows = [{key: row[key] for key in row if key not in UNWRITTEN} for row in model.rows]
        write_text(folder / TEXTS, "".join(to_json(row) + "\n" for row in rows))
        line: Line = {"run": name, "command": spelled_out(run.command), "metrics": metrics(model)}
        line |= {"zero_std_groups": zero_std_groups(model), "broken": _short(broken(model.rows, limits))}
        # Validations are sampled at the run's temperature; the base's limits hold at the base's alone
        same = model.settings["temperature"] == bench.temperature
        keep(line | of_training(folder, limits if same else None))


def _short(value: float) -> float:
    """To four digits: the fifth is noise."""
    return float(f"{value:.4g}")


def of_training(folder: Path, limits: np.ndarray | None) -> Line:
    """A run's curves, with the share of degenerate texts at each validation, and its first and last samples."""
    at, curves = defaultdict[int, list[Line]](list), defaultdict[int, Line](dict)
    for row in read_samples(folder):
        at[row["step"]].append(row)
    for row in read_metrics(folder):
        found = {key: _short(value) for key, value in row.items() if key in DRAWN}
        curves[row["step"]] |= {"step": row["step"], **found}
    if limits is not None:
        for step, rows in at.items():
            curves[step]["broken"] = _short(broken(rows, limits))
    shown = [row for step in (min(at), max(at)) for row in at[step] if row["prompt"] in SAMPLED]
    keys = ("step", "prompt", "completion", "sentiment")
    return {"curves": list(curves.values()), "samples": [{key: row[key] for key in keys} for row in shown]}


# ---- what is kept ------------------------------------------------------------------------------------------


def kept_lines() -> dict[str, Line]:
    """{name of the run: its line}; the base's is under `BASE`."""
    return {line["run"]: line for line in read_lines(KEPT)} if KEPT.is_file() else {}


def keep(line: Line) -> None:
    """Write a run's line; it replaces that of an earlier run of this name."""
    kept = kept_lines() | {line["run"]: line}
    write_text(KEPT, "".join(to_json(kept[run]) + "\n" for run in sorted(kept)))


def judged(line: Line, base: Line) -> Line:
    """A run's line with `signals` and `verdict` as today's limits have them."""
    found = signals(line["metrics"], base["metrics"], line.get("zero_std_groups"), base["judge_slope"])
    return line | {"signals": [asdict(signal) for signal in found], "verdict": verdict(found)}
