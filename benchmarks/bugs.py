"""The eight figures of *spot the bug*, docs/bugs/N.png: short runs of the kit, and of a copy with bug N in it.

    python -m benchmarks.bugs --imdb imdb.parquet      all eight
    python -m benchmarks.bugs 1 8                      some of them; a run that is there is not trained again

`--imdb` is a parquet file as `python -m baselines.sft --data` takes it; only figure 7 needs it.
Figures 1 and 5 to 8 took 16 minutes on two busy CPU cores, figures 2 to 4 five minutes.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import quiet

quiet(__name__)

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kit import ROOT
from kit.base.cli import Parser
from kit.base.errors import run_main
from kit.base.runs import read_metrics
from kit.measure.plots import grid, join, style

OUT = ROOT / "outputs" / "bug-figures"
TRAIN = "train.py --model mini --sentiment_model mini --eval_every 0 --prompts_per_step 4 --max_completion_length 24"
PENALTY = f"{TRAIN} --kl_type forward --use_solution --unchecked"
PPO = (
    "-m baselines.ppo --model mini --sentiment_model mini --reward_shaping linear --eval_every 4 "
    "--batch_size 32 --max_completion_length 20 --learning_rate 3e-4 --max_steps 12"
)
SFT = (
    "-m baselines.sft --model mini --sentiment_model mini --num_reviews 320 --rounds 1 --max_length 64 "
    "--learning_rate 3e-4 --eval_every 10"
)
STEP_KL = ("train/kl_policy_ref", "KL of the step lines, nats")
VAL_KL = ("val/kl_policy_ref", "KL of the val lines, nats")
BY_TOKEN = ("", "mean log π/π_ref, nats")
OPENERS = "A wonderful film:\nI loved this movie,\nWhat a great story,\nA beautiful, moving picture that\n"
Runs = dict[str, tuple[int, str, str]]  # legend -> (bug, 0: none; name; command)


def panels(bug: int, imdb: Path) -> list[tuple[Runs, tuple[str, str], str]]:
    """The two panels of a figure: (runs, (series of metrics.jsonl, its label), title)."""

    def both(name: str, command: str, bug_name: str = f"bug {bug}", kit_name: str = "this kit") -> Runs:
        return {kit_name: (0, name, command), bug_name: (bug, name, command)}

    if bug == 1:
        flags = (
            "--kl_coef 0.3 --max_steps 30 --learning_rate 6e-4 --max_completion_length 3 --prompts_per_step 8"
        )
        runs, keys = both("strong", f"{PENALTY} {flags}"), (STEP_KL, BY_TOKEN)
    elif bug == 2:  # nothing is learned at this rate: the KL of a model to itself
        command = f"{PENALTY} --kl_coef 1 --max_steps 5 --learning_rate 1e-12"
        runs = {"this kit": (0, "still", command)}
        runs |= {f"bug 2, seed {s}": (2, f"still{s}", f"{command} --seed {s}") for s in (0, 1)}
        keys = STEP_KL, ("train/kl_penalty", "mean penalty, nats")
    elif bug in (3, 4):  # no penalty: the two runs train alike, and differ in what they log
        command = f"{TRAIN} --max_steps 6 --learning_rate 6e-4 --temperature"
        return [(both(f"t{t:g}", f"{command} {t}"), STEP_KL, f"temperature {t:g}") for t in (1.0, 1.5)]
    elif bug == 5:
        runs = {"this kit, kl_coef 1": (0, "ppo1", f"{PPO} --kl_coef 1")}
        runs |= {f"bug 5, kl_coef {c}": (5, f"ppo{c}", f"{PPO} --kl_coef {c}") for c in ("0.1", "10")}
        keys = ("train/loss", "loss"), VAL_KL
    elif bug == 6:
        runs = {"this kit, kl_coef 0": (0, "ppo0", f"{PPO} --kl_coef 0")}
        runs |= both("ppo1", f"{PPO} --kl_coef 1", "bug 6, kl_coef 1", "this kit, kl_coef 1")
        keys = ("train/reward", "reward after the penalty"), VAL_KL
    elif bug == 7:
        runs = both("reviews", f"{SFT} --data {imdb}")
        keys = ("train/loss", "loss, nats per token"), ("val/sentiment_mean", "sentiment, P(positive)")
    else:
        prompts = OUT / "openers.txt"
        prompts.write_text(OPENERS, encoding="utf-8")
        command = f"{PENALTY} --kl_coef 0.1 --max_steps 16 --learning_rate 6e-4 --prompts {prompts}"
        runs = both("openers", command)
        keys = ("train/score", "score, P(positive)"), ("train/length_mean", "length, tokens")
    return [(runs, key, "") for key in keys]


def trained(bug: int, name: str, command: str) -> Path:
    """The run folder of `command` in the copy with that bug; copy and run are made if they are not there."""
    kit = OUT / str(bug) if bug else ROOT
    if not kit.exists():
        subprocess.run([sys.executable, "-m", "grading.bug", str(bug), "--out", OUT], cwd=ROOT, check=True)
    run = OUT / "runs" / f"{name}-{bug or 'right'}"
    if not (run / "final").is_dir():
        flags = ["--output_dir", str(run.parent), "--run_name", run.name]
        subprocess.run([sys.executable, *command.split(), *flags], cwd=kit, check=True)
    return run


def kl_by_position(run: Path, shown: int = 3) -> list[float]:
    """Mean log(pi/pi_ref), in nats, of the 1st, 2nd, ... token of the final model's held-out completions."""
    from data import HELD_OUT_PROMPTS
    from kit.lm.models import load_policy, load_reference
    from kit.measure.measuring import Bench

    policy, tokenizer = load_policy(str(run))
    reference, unscored = load_reference("mini/policy"), lambda texts: [0.0] * len(texts)
    bench = Bench(HELD_OUT_PROMPTS, unscored, reference, tokenizer, shown, temperature=1.0, seed=1)
    ratios = [row["log_ratios"] for row in bench.rows(policy, tokenizer, 32)]  # some have ended earlier
    return pd.DataFrame(ratios).mean().tolist()


def draw(ax: Axes, runs: Runs, key: str) -> None:
    for i, (label, how) in enumerate(runs.items()):
        run, look = trained(*how), style(i)
        if key:
            join(ax, read_metrics(run), "step", key, ms=3, label=label, **look.pen)
        else:
            values = kl_by_position(run)
            places = np.arange(1, len(values) + 1) + 0.4 * i - 0.2
            ax.bar(places, values, 0.4, label=label, color=look.color, hatch=look.hatch)
            ax.margins(y=0.35)  # room for the legend
    ax.set_xlabel("step" if key else "token of the completion, after training")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=7)


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", type=int, help="which figures; none: all eight")
    parser.add_argument("--imdb", default="imdb.parquet", help="film reviews, for figure 7")
    args = parser.parse_args()
    (OUT / "runs").mkdir(parents=True, exist_ok=True)
    for number in args.numbers or range(1, 9):
        figure, axes = grid(1, 2, (7, 2.4))
        shown = panels(number, Path(args.imdb).resolve())
        for ax, (runs, (key, label), title) in zip(axes.flat, shown, strict=True):
            draw(ax, runs, key)
            ax.set(ylabel=label, title=title)
        figure.savefig(ROOT / "docs" / "bugs" / f"{number}.png", dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    run_main(main)
