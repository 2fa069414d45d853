"""Best-of-n fine-tuning, PPO and GRPO side by side: the same reward, equal samples, several seeds.

    python -m baselines.compare                              three seeds on the mini models (make baselines)
    python -m baselines.compare --seeds 1 --steps 10 --runs outputs/taste --out results/taste

It trains what is missing, measures every model with evaluate.py, and writes table.md and the figures to --out (default
results/baselines). It can be stopped and started again at any time. docs/baselines.md describes the methods.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import quiet

quiet(__name__)

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from kit import ROOT
from kit.base.cli import Parser, at_least_1
from kit.base.errors import run_main
from kit.base.files import output_folder, user_path, write_text
from kit.base.runs import read_metrics
from kit.measure import plots
from kit.measure.measuring import METRICS
from kit.train.sweep import (
    Training,
    cells,
    counted,
    evaluated,
    finish_runs,
    markdown,
    mean_history,
    write_between,
)

MODELS = ["--model", "mini", "--sentiment_model", "mini"]
COMPLETIONS_PER_STEP = 64
ROUNDS = {"distil": (1, 8), "sft": (4, 8)}  # (rounds, n of best of n)
DIGITS = dict.fromkeys(("sentiment", "captured", "judge", "kl_policy_ref", "distinct_2"), 2)
DIGITS |= {"ref_perplexity": 1, "length": 1}
# Beside the files of evaluate.py, each with a text at its beginning: an older one may be overwritten
FIGURES = [f"{name}.{kind}" for name in ("methods", "frontier_methods") for kind in ("png", "svg")]
WRITTEN = {"table.md": "Tokens sampled", **dict.fromkeys(FIGURES, "atplotlib")}


def commands(steps: int) -> dict[str, list[str]]:
    """{method: its command} for `steps` of 64 completions."""
    methods = {}
    for name, (rounds, n) in ROUNDS.items():
        prompts = steps * COMPLETIONS_PER_STEP // (rounds * n)
        flags = f"--rounds {rounds} --prompts_per_round {prompts} --num_generations {n}"
        methods[name] = f"-m baselines.sft --reward_shaping linear {flags}"
    # Rates and PPO's settings were chosen on the tuning prompts with an earlier bundled policy; train.py's default
    # rate, 3e-4, is chosen to show the hack
    methods["ppo"] = f"-m baselines.ppo --max_steps {steps} --reward_shaping linear --kl_coef 0.1"
    methods["ppo"] += " --gamma 1 --use_peft --lora_r 8 --learning_rate 3e-4"
    # fp32 as the baselines: train.py would take bfloat16 on a GPU
    grpo = "train.py --bf16 false"
    methods["grpo"] = f"{grpo} --max_steps {steps} --kl_type forward --kl_coef 0.1 --use_solution"
    methods["grpo"] += " --learning_rate 1e-4"
    methods["token"] = f"{grpo} --config configs/best.yaml --max_steps {steps}"
    return {name: command.split() for name, command in methods.items()}


METHODS = (*ROUNDS, "ppo", "grpo", "token")


def generated_tokens(rows: Sequence[dict[str, Any]]) -> float:
    """Tokens sampled for training, from the lines of metrics.jsonl: the last count, or lengths of 64 completions."""
    counts = [row["train/generated_tokens"] for row in rows if "train/generated_tokens" in row]
    lengths = [row["train/length_mean"] for row in rows if "train/length_mean" in row]
    return counts[-1] if counts else sum(lengths) * COMPLETIONS_PER_STEP


def table(comparison: dict[str, Any], folders: dict[str, list[Path]]) -> str:
    """Markdown: method by metric, the mean over seeds with the lowest and the highest of them."""
    models = {model["name"]: model for model in comparison["models"]}
    lines = []
    for method, runs in {"base": [], **folders}.items():
        found = [models[name] for name in ([run.name for run in runs] or ["base"])]
        line = [method, *cells([{k: v["value"] for k, v in m["metrics"].items()} for m in found], DIGITS)]
        line.append(counted(model["verdict"] or "failed" for model in found) if runs else "")
        line.append(f"{fmean(generated_tokens(read_metrics(run)) for run in runs):,.0f}" if runs else "")
        lines.append(line)
    labels = [METRICS[key].label for key in DIGITS]
    return markdown(["", *labels, "Verdicts", "Tokens sampled"], lines)


def methods_frontier(found: dict[str, Any], methods: Iterable[str]) -> Figure:
    """evaluate.py's frontier with a look for each method instead of each run: one point a seed, joined."""
    seeds = [
        {**point, "model": point["model"].rsplit("-", 1)[0], "step": None}
        for point in found["points"]
        if point["source"] == "samples"
    ]
    return plots.reward_against_kl(seeds, found["best_of_n"], found["tilt"], ["base", *methods])


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__.splitlines()[0])
    add = parser.add_argument
    n: dict[str, Any] = {"type": at_least_1, "metavar": "N"}
    add("--seeds", default=3, help="seeds 0 ... N-1 (default: 3)", **n)
    add("--steps", default=50, help="64 completions each (default: 50)", **n)
    add("--methods", nargs="+", choices=METHODS, default=METHODS, help="some of them (default: all)")
    add("--jobs", default=2, help="trainings at a time, a thread each (default: 2)", **n)
    add("--out", default="results/baselines", metavar="FOLDER", help="table and figures")
    add("--runs", default="outputs/baselines", metavar="FOLDER", help="the run folders")
    add("--write", action="store_true", help="the table and the figures into docs/, too")
    args = parser.parse_args(argv)
    out, runs = output_folder(args.out, WRITTEN).resolve(), Path(user_path(args.runs)).resolve()
    folders = {method: [runs / f"{method}-{seed}" for seed in range(args.seeds)] for method in args.methods}
    available = commands(args.steps)
    wanted = [  # seed by seed: after the first there is a whole comparison to look at
        Training([*available[method], *MODELS], folders[method][seed], seed)
        for seed in range(args.seeds)
        for method in args.methods
    ]
    finish_runs(wanted, args.jobs, runs / "log.txt")

    named = [f"{run.name}={run}" for found in folders.values() for run in found]
    comparison = evaluated(["base", *named], out, *MODELS)
    text = table(comparison, folders)
    write_text(out / "table.md", text)
    histories = {name: mean_history([read_metrics(run) for run in found]) for name, found in folders.items()}
    curves = plots.training_curves(histories, start=1)
    frontier = methods_frontier(comparison["frontier"], args.methods)
    plots.save(curves, out, "methods")
    plots.save(frontier, out, "frontier_methods")
    if args.write:
        docs = ROOT / "docs"
        write_between(docs / "baselines.md", "written by make baselines", text)
        curves.savefig(docs / "methods.png", dpi=110)
        frontier.savefig(docs / "baselines_frontier.png", dpi=110)
    print(f"\nMeans of {args.seeds} seed(s), [lowest, highest]\n\n{text}\nin {out}")


if __name__ == "__main__":
    run_main(main)
