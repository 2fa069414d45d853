"""What a training step of this kit costs beside bare TRL, where its time goes, and how it grows with the sizes.

    python -m benchmarks.step_time --write            about six minutes on two cores: let nothing else run
    python -m benchmarks.step_time --growth --write   a quarter of an hour: sizes of a step, a completion, the model
    python -m benchmarks.step_time --busy --write     five minutes: beside programs that keep every core busy

Bare TRL is `GRPOTrainer` on the model as `from_pretrained` gives it, with TRL's own sampling and loss and a reward
that costs nothing. Prompts, sizes and optimizer are the same. Every case runs in a process of its own, in one order
and then in the other; the figures are medians over both. Models of --growth have random weights: speed and
memory do not depend on them. With --write the tables go into docs/speed.md, and the figure of --growth to
docs/speed.png.

--busy measures a step of `python train.py` without flags: with OMP_WAIT_POLICY=passive, which the kit sets, and without
it; on a quiet machine, and beside one single-threaded process a core that never waits. The fair share is the time that
a step takes if all threads get equal parts of the cores. With T threads in a step and S spinning processes on S cores
there are (T + S) / S threads on each core, so it is (T + S) / S times the quiet step: twice for one thread a core.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import quiet

quiet(__name__)

import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

import reward_utils
import rewards_solution
from data import load_prompts
from kit import ROOT
from kit.base.cli import Parser, at_least_1
from kit.base.errors import run_main
from kit.lm.loading import load_tokenizer
from kit.lm.memory import keep_freed_memory
from kit.lm.models import MINI, ModelChoice, default_device, load_policy, load_reference, resolve_models
from kit.measure import plots
from kit.train.hooks import Rollouts
from kit.train.sweep import markdown, write_between
from reward_utils import make_reward_function
from sentiment import load_scorer
from train import GRPOArguments, grpo_config, make_trainer

WARM_UP = 2  # the first steps fill caches and allocate
FORWARD = "forward penalty"
NO_PENALTY = "no penalty, both KLs measured"  # train.py without flags
VARIANTS = ("bare TRL", NO_PENALTY, FORWARD, "LoRA, forward")
WIDTH = 256
# What is varied -> {size: flags}; the middle size is the default
GROWTH: dict[str, dict[int, dict[str, Any]]] = {
    "completions": {n: {"prompts_per_step": n // 8} for n in (32, 64, 128)},
    "tokens of a completion": {n: {"max_completion_length": n} for n in (20, 40, 80)},
    "width of the model": {n: {} for n in (128, WIDTH, 512)},
}
# How OpenMP's threads wait. 200 is the default of macOS's OpenMP and nothing to Linux's: it only keeps `quiet` away
WAITING = {"unset": {"KMP_BLOCKTIME": "200"}, "passive": {"OMP_WAIT_POLICY": "passive"}}
PAGE = ROOT / "docs" / "speed.md"


@dataclass
class Timing:
    """One case: the seconds of every step and of every phase."""

    steps: list[float]
    phases: dict[str, list[float]] = field(default_factory=dict)
    memory: float = 0.0  # peak, MB
    tokens: float = 0.0  # sampled in a step

    @property
    def seconds(self) -> float:
        """The median step."""
        return float(np.median(self.steps))

    def __str__(self) -> str:
        """`2.82 [2.77, 2.94]`, the median step and the quartiles."""
        low, median, high = np.quantile(self.steps, [0.25, 0.5, 0.75])
        return f"{median:.2f} [{low:.2f}, {high:.2f}]"

    def join(self, other: "Timing") -> None:
        """Add the steps and phases of a second process."""
        self.steps += other.steps
        for phase, seconds in other.phases.items():
            self.phases[phase] += seconds
        self.memory = max(self.memory, other.memory)


class StepEnds(TrainerCallback):
    """The clock at the end of each step, after optimizer and logging."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())


def timed(function: Callable, seconds: list[float]) -> Callable:
    """The function; the seconds of each call go into the list."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        return result

    return wrapper


def free_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Costs nothing, and differs within a group: equal rewards would leave no gradient to compute."""
    return [float(ids[0] % 7) for ids in completion_ids]


def time_variant(variant: str, choice: ModelChoice, steps: int, flags: dict[str, Any]) -> Timing:
    """Train `steps` steps of one variant with these flags of train.py."""
    device, ends, phases = default_device(), StepEnds(), defaultdict[str, list[float]](list)
    keep_freed_memory()
    bare, lora = variant == "bare TRL", variant.startswith("LoRA")
    prompts = load_prompts()
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOArguments(output_dir=folder, use_peft=lora, **flags)
        config = grpo_config(args)
        config.max_steps, config.learning_rate, config.save_strategy = steps + WARM_UP, 1e-5, "no"
        if bare:
            policy = AutoModelForCausalLM.from_pretrained(choice.policy, dtype=torch.float32)
            tokenizer = load_tokenizer(choice.policy)
            dataset = Dataset.from_dict({"prompt": prompts * 20})
            trainer = GRPOTrainer(policy, free_reward, config, dataset, processing_class=tokenizer)
            trainer.remove_callback(PrinterCallback)
        else:
            policy, tokenizer = load_policy(choice.policy)
            reward = make_reward_function(
                timed(load_scorer(choice.sentiment, device), phases["score"]),
                tokenizer,
                kl_type="none" if variant.startswith("no penalty") else "forward",
                reference=None if lora else load_reference(choice.policy, device),
                student=rewards_solution,
            )
            trainer = make_trainer(policy, tokenizer, reward, prompts * 20, args, config)
            reward.policy = trainer.model
            for owner, name, phase in (
                (Rollouts, "__call__", "sampling"),
                (reward_utils, "reference_log_probs", "reference log-probs"),
            ):
                setattr(owner, name, timed(getattr(owner, name), phases[phase]))
        trainer.add_callback(ends)
        trainer.train()
    lengths = [log["completions/mean_length"] for log in trainer.state.log_history[:-1]]
    on_gpu = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    return Timing(
        steps=np.diff(ends.times)[WARM_UP - 1 :].tolist(),
        phases={name: seconds[WARM_UP:] for name, seconds in phases.items()},
        memory=on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,  # Linux: kB
        tokens=args.prompts_per_step * args.num_generations * float(np.mean(lengths)),
    )


def random_policy(folder: Path, width: int) -> None:
    """A GPT-2 of six layers with random weights and the bundled tokenizer."""
    config = GPT2Config(
        vocab_size=8192, n_embd=width, n_layer=6, n_head=width // 64, n_positions=256,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MINI / "policy").save_pretrained(folder)


def time_all(cases: dict[str, tuple], steps: int) -> dict[str, Timing]:
    """The cases (variant, models, flags, waiting), each in a fresh process, there and back again.

    OpenMP reads its environment when torch is imported, so `waiting` is set before the process starts.
    """
    found: dict[str, Timing] = {}
    for name in (*cases, *reversed(cases)):
        variant, choice, flags, waiting = cases[name]
        for variable in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
            os.environ.pop(variable, None)
        os.environ |= WAITING[waiting]
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            timing = process.submit(time_variant, variant, choice, steps, flags).result()
        print(f"{name:<30} {timing.seconds:.2f} s", flush=True)
        if name in found:
            found[name].join(timing)
        else:
            found[name] = timing
    return found


def compared(choice: ModelChoice, steps: int) -> str:
    """Markdown: a step of each variant, and the phases of the one with a forward penalty."""
    found = time_all({variant: (variant, choice, {}, "passive") for variant in VARIANTS}, steps)
    gpu = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU"
    bare = found[VARIANTS[0]].seconds
    rows = [
        [variant, str(t), f"{t.seconds / bare:.2f} x", f"{t.tokens / t.seconds:,.0f}", f"{t.memory:,.0f} MB"]
        for variant, t in found.items()
    ]
    t = found[FORWARD]
    phases = {name: float(np.median(seconds)) for name, seconds in t.phases.items()}
    phases["loss, gradient, update, logging"] = t.seconds - sum(phases.values())
    header = ["step", "seconds", "against bare TRL", "tokens/s", "peak memory"]
    return (
        f"{choice.policy_name}, {machine}, {torch.get_num_threads()} threads; 64 completions of at most 40 tokens; "
        f"median [quartiles] of {2 * steps} steps, in two processes, in both orders.\n\n{markdown(header, rows)}\n"
        + markdown(
            ["phase (forward penalty)", "seconds"],
            [[name, f"{seconds:.2f}"] for name, seconds in phases.items()],
        )
    )


def growth(folder: Path, steps: int) -> tuple[str, Figure]:
    """(Markdown, seconds a step over each size). The slope is that of log seconds over log size: 1 is in proportion."""
    cases = {}
    for axis, sizes in GROWTH.items():
        for size, flags in sizes.items():
            width = size if axis.startswith("width") else WIDTH
            policy = folder / f"{width}"
            if not policy.exists():
                random_policy(policy, width)
            choice = ModelChoice(str(policy), str(MINI / "sentiment"), "a benchmark")
            cases[f"{axis} {size}"] = (FORWARD, choice, flags, "passive")
    found, rows = time_all(cases, steps), []
    figure, axes = plots.grid(1, len(GROWTH), (9, 2.8), sharey=True)
    for ax, (axis, sizes) in zip(axes.flat, GROWTH.items(), strict=True):
        timings = [found[f"{axis} {size}"] for size in sizes]
        seconds = [t.seconds for t in timings]
        slope = f"{np.polyfit(np.log(list(sizes)), np.log(seconds), 1)[0]:.2f}"
        for size, t in zip(sizes, timings, strict=True):
            numbers = [f"{t.seconds:.2f}", f"{t.tokens / t.seconds:,.0f}", f"{t.memory:,.0f} MB"]
            rows.append([axis, f"{size}", *numbers, slope if size == max(sizes) else ""])
        ax.loglog(list(sizes), seconds, "o-", color=plots.style(2).color)
        ax.set_xticks(list(sizes), [str(size) for size in sizes])
        ax.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        ax.minorticks_off()
        ax.set_xlabel(axis)
    axes[0, 0].set_ylabel("seconds a step")
    return markdown(["varied", "size", "seconds a step", "tokens/s", "peak memory", "slope"], rows), figure


@contextmanager
def spinning(count: int) -> Iterator[list[subprocess.Popen]]:
    """`count` processes of one thread that never wait. Each also ends when this process is gone."""
    code = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
    spinners = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield spinners
    finally:
        for process in spinners:
            process.kill()
            process.wait()


def busy(choice: ModelChoice, steps: int) -> str:
    """Markdown: the default step with and without the wait policy, and beside one spinning process a core."""
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    cases: dict[str, tuple] = {f"quiet, {waiting}": (NO_PENALTY, choice, {}, waiting) for waiting in WAITING}
    unset, passive = time_all(cases, steps).values()
    with spinning(cores):
        case: dict[str, tuple] = {"busy, passive": (NO_PENALTY, choice, {}, "passive")}
        (beside,) = time_all(case, (steps + 1) // 2).values()
    fair_share = passive.seconds * (threads + cores) / cores
    cost = f"quiet: passive / unset = {passive.seconds / unset.seconds:.2f} (at most 1.05 wanted)"
    share = f"busy: passive / fair share = {beside.seconds / fair_share:.2f} (at most 2 wanted)"
    rows = [
        ["quiet", "unset", str(unset), ""],
        ["quiet", "passive", str(passive), cost],
        ["busy", "passive", str(beside), share],
    ]
    header = ["machine", "OMP_WAIT_POLICY", "seconds a step", "ratio"]
    return (
        f"{choice.policy_name}, {platform.machine()} CPU, {threads} threads; `python train.py` without flags; "
        f"busy = beside {cores} spinning processes; median [quartiles].\n\n{markdown(header, rows)}"
    )


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="auto", help="as in train.py")
    add("--steps", type=at_least_1, default=8, metavar="N", help="measured steps a process (default: 8)")
    add("--growth", action="store_true", help="how a step grows, instead of its comparison with TRL")
    add("--busy", action="store_true", help="a step beside programs that keep every core busy")
    add("--write", action="store_true", help="write to docs/speed.md")
    args = parser.parse_args()
    flag, figure = " --growth" if args.growth else " --busy" if args.busy else "", None
    if args.growth:
        with tempfile.TemporaryDirectory() as folder:
            text, figure = growth(Path(folder), args.steps)
    else:
        text = (busy if args.busy else compared)(resolve_models(args.model), args.steps)
    print(f"\n{text}")
    if args.write:
        write_between(PAGE, f"written by benchmarks.step_time{flag}", text)
        if figure:
            figure.savefig(ROOT / "docs" / "speed.png", dpi=130)


if __name__ == "__main__":
    run_main(main)
