"""See what RL did: any number of models side by side, on the same prompts, sampler and random stream.

    python evaluate.py vanilla=outputs/vanilla cure=outputs/forward-0.05 --out results

A model is NAME=PATH, where PATH is a run folder, a checkpoint, a LoRA adapter or a Hugging Face id; `base`, the
reference model, always takes part. The folder `--out` then holds

    report.html       everything on one page: open it in a browser, print it to PDF, hand it in
    comparison.json   every number (schema below)
    samples.jsonl     one line per completion: model, prompt, sample, completion, tokens, truncated, sentiment,
                      judge, fluency (nats per byte), reward, unique_token_ratio, ref_nll (nats per token),
                      kl_policy_ref and kl_ref_policy (nats per completion); null where a number cannot be had;
                      with a learned reward also proxy, that reward, and gold, what it was learned for
    *.png, *.svg      the figures

comparison.json, schema 1 (a key may be added within a schema, none is renamed or dropped):

    schema, command, created, seconds {phase: s}, settings {...}, provenance {...}
    metrics {key: {label, unit, meaning}}
    models [{name, path, verdict, error (null, or why there is nothing else), notes [...],
             price, metrics {key: {value, low, high, delta, delta_low, delta_high, interval}},
             spread {key: {std, min, max}}, signals [{name, value, unit, thresholds, level}], config}]
    frontier {points [{model, step, source, kl, sentiment, judge, reward, samples}],
              best_of_n [{n, kl, sentiment, judge}], tilt [{beta, kl, sentiment, judge, effective_samples}],
              best_of_n_learned (by the learned reward; absent without one) [as best_of_n]}
    overoptimization [{name, kind, points [{delta, proxy, gold}], fits {proxy, gold: {alpha, beta, turn: [value, low,
                      high]}}}]: kit/measure/goodhart.py

`low`, `high` are 95 % intervals over prompts; `delta` is the paired difference from base. `source` of a frontier
point is `samples` (drawn here) or `validation` (read from the run's metrics.jsonl).
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import Progress, clock, quiet, table

quiet(__name__)

import argparse
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kit.base.cli import BASE, Parser, at_least_0, named_paths
from kit.base.errors import run_main
from kit.base.files import output_folder, user_path, write_text
from kit.base.runs import provenance, to_json
from kit.lm.models import display_name, find_model
from kit.measure import goodhart, plots, report
from kit.measure.comparison import (
    UNWRITTEN,
    Model,
    base_slope,
    chosen_judge,
    chosen_pair,
    chosen_reward_model,
    compared,
    find_frontier,
    find_overoptimization,
    learned_of,
    load_bench,
    measure,
    what_differs,
)
from kit.measure.measuring import METRICS
from kit.measure.reference import draw_samples, kept_samples
from kit.measure.verdict import LEVELS

SCHEMA = 1
WRITTEN = {  # each file, and a text at its beginning: an older file of evaluate.py may be overwritten
    "comparison.json": '"schema"',
    "samples.jsonl": '{"model": ',
    "report.html": "<title>What RL did",
    **{f"{name}.{kind}": "atplotlib" for name, _ in report.FIGURES for kind in ("png", "svg")},
}
DRAWN = 16  # samples of the base for each prompt, if none are kept
SHOWN = {  # on the screen: title and digits
    "reward": ("R", 2),
    "sentiment": ("sent.", 2),
    "captured": ("capt.", 2),
    "proxy": ("learned", 2),
    "gold": ("gold", 2),
    "judge": ("judge", 2),
    "kl_policy_ref": ("KL", 1),
    "ref_nll": ("NLL", 2),
    "fluency": ("fluency", 2),
    "distinct_2": ("dist-2", 2),
    "length": ("length", 0),
}
BARS = "reward sentiment judge kl_policy_ref ref_nll distinct_2 compression_ratio length".split()


def draw(
    out: Path, comparison: dict[str, Any], models: Sequence[Model], curves: Sequence[goodhart.Curve]
) -> None:
    """All figures. Those of an earlier comparison are removed."""
    for name, _ in report.FIGURES:
        for kind in ("png", "svg"):
            (out / f"{name}.{kind}").unlink(missing_ok=True)
    measured = [m for m in models if m.rows]
    names = [m.name for m in measured]
    sentiment = {m.name: [r["sentiment"] for r in m.rows] for m in measured}
    judge = {m.name: [r["judge"] for r in m.rows] for m in measured if m.rows[0]["judge"] is not None}
    plots.save(plots.sentiment_distributions(sentiment, judge), out, "sentiment")
    panels = []
    for key in BARS:
        found = {m["name"]: m["metrics"][key] for m in comparison["models"] if key in m["metrics"]}
        if found:
            values = {name: (x["value"], x["low"], x["high"]) for name, x in found.items()}
            panels.append((METRICS[key].label, METRICS[key].unit, values))
    plots.save(plots.metric_bars(panels, names), out, "metrics")
    runs = {m.name: m.history for m in measured}
    if any(runs.values()):
        plots.save(plots.training_curves(runs), out, "training")
    if comparison["frontier"]:
        plots.save(plots.reward_against_kl(**comparison["frontier"], names=names), out, "frontier")
    if curves:
        plots.save(plots.overoptimization(curves, names), out, "overoptimization")


def show(models: Sequence[dict[str, Any]]) -> None:
    """The comparison on the screen, from `models` of comparison.json."""
    keys = [key for key in SHOWN if any(key in model["metrics"] for model in models)]
    rows = []
    for model in models:
        found = model["metrics"]
        cells = [f"{found[key]['value']:.{SHOWN[key][1]}f}" if key in found else "-" for key in keys]
        said = model["verdict"] or ("failed" if model["error"] else "the reference")
        rows.append([*cells, f"{model['name']}: {said}"])
    print(table([*(SHOWN[key][0] for key in keys), "model: verdict"], rows))
    for model in models:
        for line in [*filter(None, [model["error"]]), *model["notes"]]:
            print(f"{model['name']}: {line}")
        if model["verdict"]:
            print(f"{model['name']} is {model['verdict']}: {'; '.join(map(describe, model['signals']))}")
    prices = {model["name"]: model["price"] for model in models if "captured" in model["metrics"]}
    if len(set(prices.values())) > 1:
        each = ", ".join(f"{name} {cost:g}" for name, cost in prices.items())
        print(f"`captured` uses each run's KL coefficient ({each}): compare runs of one coefficient only")


def describe(signal: dict[str, Any]) -> str:
    """`distinct-2 0.07 x base, alarming (from 0.5)`; just the number if all is well."""
    said = f"{signal['name']} {signal['value']:.2f} {signal['unit']}"
    if signal["level"] == LEVELS[0]:
        return said
    return f"{said}, {signal['level']} (from {signal['thresholds'][LEVELS.index(signal['level']) - 1]:g})"


# ---- the command line --------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("Compare models: numbers, figures, and one page to hand in (OUT/report.html).")
    add = parser.add_argument
    add("models", nargs="*", metavar="NAME=PATH", help="run folder, checkpoint, LoRA adapter, id; or: base")
    add("--out", default="results", metavar="FOLDER", help="where everything is written (default: results)")
    parser.add_sampling_flags()
    add("--judge", type=user_path, default="auto", help="another classifier: auto (bundled), none, id, path")
    add("--reward_model", type=user_path, default="auto", metavar="RUN",
        help="measure this learned reward too: auto (that of the runs), none, or a run")  # fmt: skip
    add("--fluency", type=user_path, metavar="MODEL", help="rate fluency by this LM: smollm2, id, or path")
    add("--frontier_samples", type=at_least_0, metavar="N",
        help="base samples a prompt for the frontier (default: 16; bundled pair: 64 kept); 0: no figure")  # fmt: skip
    return parser.parse_intermixed_args(argv)  # flags may stand between models


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)

    # Load. All models are found now, not after minutes of sampling
    models = [Model(name, find_model(path)) for name, path in named_paths(args.models).items()]
    judge, choice = chosen_judge(args.judge), chosen_pair(args, models)
    out = output_folder(args.out, WRITTEN)
    learned = chosen_reward_model(args.reward_model, models)
    bench = load_bench(args, choice, judge, args.fluency, learned)
    for model in models:
        model.notes += what_differs(model, bench, choice)
    models = [base := Model(BASE, choice.policy), *models]
    # Samples of the base: the kept ones, or new ones
    samples = None if args.frontier_samples else kept_samples(choice, bench)
    drawn = 0 if samples else DRAWN if args.frontier_samples is None else args.frontier_samples
    wanted = args.frontier_samples != 0
    total = len(models) * args.num_samples + drawn
    print(
        f"reference {choice.policy_name}, reward model {choice.sentiment_name}, "
        f"judge {display_name(judge) if judge else 'none'} ({choice.reason})\n"
        f"{len(models)} models x {len(bench.prompts)} prompts x {args.num_samples} samples of at most "
        f"{args.max_new_tokens} tokens, temperature {args.temperature:g}, seed {args.seed}"
    )

    # Measure
    with Progress(total * len(bench.prompts), "sampling", "completions") as bench.progress:
        for model in models:
            measure(model, bench, args.num_samples)
        samples = samples or (draw_samples(bench, drawn) if drawn else None)
        frontier, of_base = None, None
        if wanted and samples:
            of_base = learned_of(bench, samples) if learned else None
            frontier = find_frontier(bench, choice, models, samples, of_base)
        overoptimization = find_overoptimization(models, of_base) if learned else []

    # Compare
    slope = base_slope(base)
    entries = [compared(model, base, slope, samples, args.num_samples) for model in models]

    # Write, draw, render
    lines = [{"model": model.name, **row} for model in models for row in model.rows]
    written = [to_json({key: line[key] for key in line if key not in UNWRITTEN}) + "\n" for line in lines]
    write_text(out / "samples.jsonl", "".join(written))
    settings = {
        "reference": choice.policy_name,
        "sentiment_model": choice.sentiment_name,
        "judge": display_name(judge) if judge else None,
        "reward_model": learned,
        "prompts": args.prompts,
        "num_prompts": len(bench.prompts),
        **{key: getattr(args, key) for key in ("num_samples", "max_new_tokens", "temperature", "seed")},
        "frontier_samples": samples.scores.shape[1] if frontier and samples else 0,
        "judge_slope": slope,
    }
    comparison = {
        "schema": SCHEMA,
        "command": shlex.join(["python", "evaluate.py", *(sys.argv[1:] if argv is None else argv)]),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": bench.seconds,
        "settings": settings,
        "provenance": provenance(),
        "metrics": {key: metric._asdict() for key, metric in METRICS.items()},
        "models": entries,
        "frontier": frontier,
        "overoptimization": [goodhart.as_dict(curve) for curve in overoptimization],
    }
    with bench.phase("figures"):
        draw(out, comparison, models, overoptimization)
    with bench.phase("report"):
        page = report.render(comparison, {m.name: m.rows for m in models if m.rows}, out)
    comparison["seconds"] = {k: round(v, 1) for k, v in bench.seconds.items()}
    write_text(out / "comparison.json", to_json(comparison, indent=1) + "\n")
    write_text(out / "report.html", page)

    show(entries)
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in bench.seconds.items())
    print(f"{clock(sum(bench.seconds.values()))} in all: {spent}\n{out / 'report.html'}")
    return int(len(models) > 1 and all(model.error for model in models if model is not base))


if __name__ == "__main__":
    run_main(main)
