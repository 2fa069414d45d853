"""The eight figures of *spot the bug*: docs/bugs/N.png, each from short runs of the kit and of a copy with bug N in it.

    python -m benchmarks.bugs --imdb imdb.parquet      all eight
    python -m benchmarks.bugs 1 8                      some of them; runs that are there are not trained again

`--imdb` is a parquet file as `python -m baselines.sft --data` takes it; figure 7 alone needs it.
On two CPU cores with other work on them: 16 minutes for figures 1 and 5 to 8 (figure 5 alone: 5 minutes), and 5 minutes
for the gradient steps of figures 2 to 4, start-up not counted.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kit.plots import RC, style
from kit.runs import read_metrics

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "outputs" / "bug-figures"
TRAIN = "train.py --model mini --sentiment_model mini --eval_every 0 --prompts_per_step 4 --max_completion_length 24"
PENALTY = "--kl_type forward --use_solution --unchecked"
PPO = (
    "-m baselines.ppo --model mini --sentiment_model mini --reward_shaping linear --eval_every 4 "
    "--batch_size 32 --max_completion_length 20 --learning_rate 3e-4 --max_steps 12"
)
STEP_KL, VAL_KL = "KL of the step lines, nats", "KL of the val lines, nats"
RIGHT = 0  # the kit itself, beside the bugs 1 to 8


def trained(bug: int, name: str, command: str) -> Path:
    """The run folder of `command` in the copy with that bug; the copy is made, and the run, if they are not there."""
    kit = OUT / str(bug) if bug else ROOT
    if not kit.exists():
        subprocess.run([sys.executable, "-m", "grading.bug", str(bug), "--out", OUT], cwd=ROOT, check=True)
    run = OUT / "runs" / f"{name}-{bug or 'right'}"
    if not (run / "final").is_dir():
        flags = ["--output_dir", str(run.parent), "--run_name", run.name]
        subprocess.run([sys.executable, *command.split(), *flags], cwd=kit, check=True)
    return run


def series(run: Path, key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one name in metrics.jsonl."""
    found = [(m["step"], m[key]) for m in read_metrics(run) if m.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


def lines(ax: Axes, runs: dict[str, Path], key: str, ylabel: str) -> None:
    for i, (label, run) in enumerate(runs.items()):
        look = style(i)
        ax.plot(
            *series(run, key), label=label, color=look.color, linestyle=look.line, marker=look.marker, ms=3
        )
    ax.set(xlabel="step", ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=7)


# ---- one figure a bug: its runs, and two panels --------------------------------------------------------------


def kl_by_position(run: Path, shown: int = 3) -> list[float]:
    """Mean log(pi/pi_ref), in nats, of the 1st, 2nd, ... token of the final model's held-out completions."""
    from data import HELD_OUT_PROMPTS
    from kit.models import load_policy, load_reference
    from kit.sampling import sample
    from reward_utils import token_log_probs

    policy, tokenizer = load_policy(str(run))
    drawn = sample(policy, tokenizer, HELD_OUT_PROMPTS, num_samples=32, max_new_tokens=shown, seed=1)
    ids = [c.prompt_ids for c in drawn], [c.completion_ids for c in drawn]
    own, ref = token_log_probs(policy, *ids), token_log_probs(load_reference("mini/policy"), *ids)
    d = np.full((len(drawn), shown), np.nan)
    for i, (p, q) in enumerate(zip(own, ref, strict=True)):
        d[i, : len(p)] = np.subtract(p, q)
    return np.nanmean(d, axis=0).tolist()


def bug_1(left: Axes, right: Axes, _: str) -> None:
    command = f"{TRAIN} {PENALTY} --kl_coef 0.3 --max_steps 30 --learning_rate 6e-4"
    command += " --max_completion_length 3 --prompts_per_step 8"
    runs = {"this kit": trained(RIGHT, "strong", command), "bug 1": trained(1, "strong", command)}
    lines(left, runs, "train/kl_policy_ref", STEP_KL)
    for i, (label, run) in enumerate(runs.items()):
        values = kl_by_position(run)
        right.bar(np.arange(1, len(values) + 1) + 0.4 * i - 0.2, values, 0.4, label=label,
                  color=style(i).color, hatch=style(i).hatch)  # fmt: skip
    right.set(xlabel="token of the completion, after training", ylabel="mean log π/π_ref, nats")
    right.set_xticks(range(1, len(values) + 1))
    right.margins(y=0.35)  # room for the legend
    right.legend(fontsize=7)


def bug_2(left: Axes, right: Axes, _: str) -> None:
    """Nothing is learned at this rate, so all that is seen is measured between equal models."""
    command = f"{TRAIN} {PENALTY} --kl_coef 1 --max_steps 5 --learning_rate 1e-12"
    runs = {"this kit": trained(RIGHT, "still", command)}
    runs |= {f"bug 2, seed {s}": trained(2, f"still{s}", f"{command} --seed {s}") for s in (0, 1)}
    lines(left, runs, "train/kl_policy_ref", STEP_KL)
    lines(right, runs, "train/kl_penalty", "mean penalty, nats")


def two_temperatures(axes: tuple[Axes, Axes], bug: int) -> None:
    """No penalty: the two runs train alike, and differ in what they log."""
    for ax, temperature in zip(axes, (1.0, 1.5), strict=True):
        command = f"{TRAIN} --max_steps 6 --learning_rate 6e-4 --temperature {temperature}"
        name = f"t{temperature:g}"
        runs = {"this kit": trained(RIGHT, name, command), f"bug {bug}": trained(bug, name, command)}
        lines(ax, runs, "train/kl_policy_ref", STEP_KL)
        ax.set_title(f"temperature {temperature:g}")


def bug_3(left: Axes, right: Axes, _: str) -> None:
    two_temperatures((left, right), 3)


def bug_4(left: Axes, right: Axes, _: str) -> None:
    two_temperatures((left, right), 4)


def bug_5(left: Axes, right: Axes, _: str) -> None:
    runs = {"this kit, kl_coef 1": trained(RIGHT, "ppo1", f"{PPO} --kl_coef 1")}
    runs |= {f"bug 5, kl_coef {c}": trained(5, f"ppo{c}", f"{PPO} --kl_coef {c}") for c in ("0.1", "10")}
    lines(left, runs, "train/loss", "loss")
    lines(right, runs, "val/kl_policy_ref", VAL_KL)


def bug_6(left: Axes, right: Axes, _: str) -> None:
    runs = {"this kit, kl_coef 0": trained(RIGHT, "ppo0", f"{PPO} --kl_coef 0")}
    runs |= {"this kit, kl_coef 1": trained(RIGHT, "ppo1", f"{PPO} --kl_coef 1")}
    runs |= {"bug 6, kl_coef 1": trained(6, "ppo1", f"{PPO} --kl_coef 1")}
    lines(left, runs, "train/reward", "reward after the penalty")
    lines(right, runs, "val/kl_policy_ref", VAL_KL)


def bug_7(left: Axes, right: Axes, imdb: str) -> None:
    command = (
        f"-m baselines.sft --model mini --sentiment_model mini --data {imdb} --num_reviews 320 --rounds 1 "
        "--max_length 64 --learning_rate 3e-4 --eval_every 10"
    )
    runs = {"this kit": trained(RIGHT, "reviews", command), "bug 7": trained(7, "reviews", command)}
    lines(left, runs, "train/loss", "loss, nats per token")
    lines(right, runs, "val/sentiment_mean", "sentiment, P(positive)")


def bug_8(left: Axes, right: Axes, _: str) -> None:
    openers = "A wonderful film:|I loved this movie,|What a great story,|A beautiful, moving picture that"
    prompts = OUT / "openers.txt"
    prompts.write_text(openers.replace("|", "\n") + "\n", encoding="utf-8")
    command = f"{TRAIN} {PENALTY} --kl_coef 0.1 --max_steps 16 --learning_rate 6e-4 --prompts {prompts}"
    runs = {"this kit": trained(RIGHT, "openers", command), "bug 8": trained(8, "openers", command)}
    lines(left, runs, "train/score", "score, P(positive)")
    lines(right, runs, "train/length_mean", "length, tokens")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bugs", description=__doc__.split("\n")[0])
    parser.add_argument("numbers", nargs="*", type=int, help="which figures; none: all eight")
    parser.add_argument("--imdb", default="imdb.parquet", help="film reviews, for figure 7")
    args = parser.parse_args()
    (OUT / "runs").mkdir(parents=True, exist_ok=True)
    for number in args.numbers or range(1, 9):
        with mpl.rc_context(RC):
            figure = Figure(figsize=(7, 2.4), layout="constrained")
            globals()[f"bug_{number}"](*figure.subplots(1, 2), str(Path(args.imdb).resolve()))
            figure.savefig(ROOT / "docs" / "bugs" / f"{number}.png", dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main()
