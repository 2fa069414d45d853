"""The runs of `make results`, each measured once as evaluate.py measures it: 4 completions of every held-out prompt.

In a run's folder, measured.json is its entry of comparison.json's `models`, texts.jsonl its lines of samples.jsonl;
those of the base, which all are compared with, are in a folder `base` beside the runs.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kit.cli import BASE, Parser
from kit.comparison import UNWRITTEN, Model, base_slope, chosen_judge, fill_in, load_bench, model_record
from kit.errors import UserError
from kit.metrics import Estimate
from kit.models import resolve_models
from kit.reference import kept_samples
from kit.runs import to_json
from kit.screen import Progress
from kit.verdict import judge_slope, signals, verdict

RECORD, TEXTS = "measured.json", "texts.jsonl"


def measure(folders: Sequence[Path]) -> None:
    """Measure the run folders that have not been measured yet. Raises `UserError` for one that cannot be."""
    todo = [folder for folder in folders if not (folder / RECORD).is_file()]
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
    fill_in(base, bench, args.num_samples)
    _keep(base, base, folders[0].parent / BASE)
    slope, samples = base_slope(base), kept_samples(choice, bench)
    for folder in todo:
        model = Model(folder.name, str(folder))
        fill_in(model, bench, args.num_samples, base, slope, samples)
        if model.error:
            raise UserError(f"{folder.name} cannot be measured: {model.error}")
        _keep(model, base, folder)


def _keep(model: Model, base: Model, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    rows = [{key: row[key] for key in row if key not in UNWRITTEN} for row in model.rows]
    (folder / TEXTS).write_text("".join(to_json(row) + "\n" for row in rows), encoding="utf-8")
    # last: where it stands, all is there
    (folder / RECORD).write_text(to_json(model_record(model, base)) + "\n", encoding="utf-8")


def record(folder: Path) -> dict[str, Any]:
    """A run's entry, with signals and verdict by today's limits: those of kit/verdict.py may have changed since."""
    found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if found["verdict"] is None:  # the base
        return found
    base = folder.parent / BASE
    slope = judge_slope(*zip(*((row["sentiment"], row["judge"]) for row in texts(base)), strict=True))
    model, reference = (
        {key: Estimate(metric["value"], np.empty(0)) for key, metric in entry["metrics"].items()}
        for entry in (found, record(base))
    )
    flat = next((s["value"] for s in found["signals"] if s["name"] == "zero-variance groups"), None)
    again = signals(model, reference, flat, slope)
    return found | {"signals": [asdict(signal) for signal in again], "verdict": verdict(again)}


def texts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / TEXTS).read_text(encoding="utf-8").splitlines()]
