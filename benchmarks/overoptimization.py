"""Goodhart, measured: learned rewards from 100 to 6,400 pairs, with and without a KL penalty, three seeds.

    python -m benchmarks.overoptimization               part of make results: hours on two cores
    python -m benchmarks.overoptimization --seeds 1     a third of that

For each number of pairs: choices by a simulated annotator, a reward model, and a policy trained on it without a penalty
and with TRL's (`--beta`); then the same for an annotator who likes exclamation marks. All on the mini models, with the
reference solution. It can be stopped and started again at any time. Table and figure go to docs/results.md.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import quiet

quiet(__name__)

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from baselines.preferences import feature
from kit import ROOT
from kit.base.cli import Parser, at_least_1
from kit.base.errors import UserError, run_main
from kit.base.runs import read_metrics, read_samples
from kit.measure import plots
from kit.measure.goodhart import REWARDS, Curve, fit, of_best_of_n, of_run
from kit.measure.reference import read_kept
from kit.train.sweep import Training, cells, finish_runs, markdown, write_between
from sentiment import load_reward_model

RUNS, PAGE = ROOT / "outputs" / "overoptimization", ROOT / "docs" / "results.md"
MINI = ["--model=mini", "--sentiment_model=mini"]
BIAS = "exclamation"  # some of the base's texts have a mark: enough to be learned, few enough to be seen
SETS = {f"{n}": ["--pairs", f"{n}"] for n in (100, 400, 1600, 6400)}
SETS["1600-biased"] = ["--pairs", "1600", "--bias", BIAS, "--strength", "4"]
PENALTIES = {"none": [], "beta-0.3": ["--beta=0.3"]}
READ = {"none": "no penalty", "beta-0.3": "--beta 0.3"}
COLUMNS = {  # key: (title, digits); rewards are gains over the base, in standard deviations of its samples
    "accuracy": ("accuracy", 2),
    "accuracy_turned": ("bias turned", 2),
    "learned": ("learned, end", 2),
    "gold": ("gold, end", 2),
    "best": ("gold, best", 2),
    "at": ("δ there", 1),
    "turn": ("δ of the fit", 1),
    "word": ("texts with !", 2),
}


def make_pairs(name: str, seed: int) -> Path:
    """The folder of pairs, made if need be: annotator.json is written last."""
    folder = RUNS / f"pairs-{name}-{seed}"
    if not (folder / "annotator.json").is_file():
        flags = [*SETS[name], *MINI, "--seed", str(seed), "--out", str(folder)]
        if subprocess.run([sys.executable, "-m", "baselines.preferences", *flags], cwd=ROOT).returncode:
            raise UserError("baselines.preferences failed; its message is above")
    return folder


def numbers(model: Path, run: Path) -> dict[str, float]:
    """A row of the table for one seed. Rewards are gains over the base."""
    samples = read_samples(run)
    curve = of_run(run.name, samples)
    assert curve is not None
    accuracies = {
        k.removeprefix("val/"): v for k, v in read_metrics(model)[-1].items() if k.startswith("val/")
    }
    learned, gold = (curve.rewards[key].mean(axis=1) for key in ("proxy", "gold"))
    texts = [row["completion"] for row in samples if row["step"] == samples[-1]["step"]]
    found = {"learned": learned[-1], "gold": gold[-1], "best": gold.max(), "at": curve.delta[gold.argmax()]}
    found["word"] = float(np.mean([feature(BIAS, text) > 0 for text in texts]))
    fitted = fit(curve, "gold")
    if fitted and fitted.turn.value <= curve.delta.max():  # beyond the run it is a guess; NaN: none
        found["turn"] = fitted.turn.value
    return accuracies | {key: float(value) for key, value in found.items()}


def together(name: str, curves: Sequence[Curve]) -> Curve:
    """Seeds as one curve: the mean delta at each point, and the prompts of all seeds side by side."""
    rewards = {key: np.concatenate([c.rewards[key] for c in curves], axis=1) for key in curves[0].rewards}
    return Curve(name, curves[0].kind, np.mean([c.delta for c in curves], axis=0), rewards)


def best_of_n(models: Sequence[Path]) -> Curve:
    """Best of n by the reward models of all seeds, from the kept samples of the base."""
    _, samples = read_kept()
    texts, found = [text for texts in samples.texts for text in texts], []
    for folder in models:
        model = load_reward_model(str(folder))
        gold = model.gold(samples.scores.reshape(-1).tolist(), texts)
        both = (np.reshape(np.array(v, float), samples.scores.shape) for v in (model(texts), gold))
        found.append(of_best_of_n(*both))
    return together("best of n", found)


def figure(panels: dict[str, list[Curve]]) -> Figure:
    """A panel for each set of pairs: learned reward hollow, gold filled, against the distance; lines are Gao's fits."""
    drawn, axes = plots.grid(1, len(panels), (15.0, 4.2), sharex=True, sharey=True)
    for ax, (name, curves) in zip(axes[0], panels.items(), strict=True):
        for index, curve in enumerate(curves, start=1):
            for reward, title in REWARDS.items():
                plots.points_and_fit(ax, curve, reward, plots.style(index), f"{curve.name}, {title}")
        ax.set_title(f"{name.replace('-', ' ')} pairs", loc="left")
        ax.set_xlabel("δ = √KL(π‖π_ref)")
    axes[0, 0].set_ylabel("gain over the base, std of its samples")
    plots.legend_above(drawn, axes[0, 0])
    return drawn


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__.splitlines()[0])
    n: dict[str, Any] = {"type": at_least_1, "metavar": "N"}
    parser.add_argument("--seeds", default=3, help="seeds 0 ... N-1 (default: 3)", **n)
    parser.add_argument("--jobs", default=2, help="trainings at a time (default: 2)", **n)
    args = parser.parse_args(argv)
    seeds = range(args.seeds)
    pairs = {(name, seed): make_pairs(name, seed) for seed in seeds for name in SETS}
    models = {key: RUNS / f"rm-{key[0]}-{key[1]}" for key in pairs}
    learn = ["-m", "baselines.reward_model", "--use_solution", "--pairs"]
    finish_runs(
        [Training([*learn, str(pairs[k])], models[k], k[1]) for k in pairs], args.jobs, RUNS / "log.txt"
    )
    runs = {(p, *key): RUNS / f"{p}-{key[0]}-{key[1]}" for key in pairs for p in PENALTIES}
    train = ["train.py", *MINI, "--eval_every=2"]
    wanted = [
        Training([*train, *PENALTIES[p], f"--reward_model={models[name, seed]}"], folder, seed)
        for (p, name, seed), folder in runs.items()
    ]
    finish_runs(wanted, args.jobs, RUNS / "log.txt")

    rows, panels = [], {}
    for name in SETS:
        panels[name] = [best_of_n([models[name, seed] for seed in seeds])]
        for p in PENALTIES:
            folders = [runs[p, name, seed] for seed in seeds]
            of_seeds = [numbers(models[name, seed], runs[p, name, seed]) for seed in seeds]
            rows.append(
                [name, READ[p], *cells(of_seeds, {key: digits for key, (_, digits) in COLUMNS.items()})]
            )
            found = [of_run(p, read_samples(folder)) for folder in folders]
            panels[name].append(together(READ[p], [curve for curve in found if curve]))
    text = markdown(["pairs", "penalty", *(title for title, _ in COLUMNS.values())], rows)
    write_between(PAGE, "written by benchmarks.overoptimization", text)
    figure(panels).savefig(PAGE.parent / "overoptimization.png", dpi=110)
    print(f"\n{text}\nin {PAGE}")


if __name__ == "__main__":
    run_main(main)
