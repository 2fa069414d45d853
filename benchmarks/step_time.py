"""What a training step of this kit costs beside bare TRL, where its time goes, and what it costs on busy cores.

    python -m benchmarks.step_time --write          about six minutes on two cores: let nothing else run
    python -m benchmarks.step_time --busy --write   five minutes: beside programs that keep every core busy

Bare TRL is `GRPOTrainer` on the model as `from_pretrained` gives it, with TRL's own sampling and loss and a reward
that costs nothing. Prompts, sizes and optimizer are the same. Every case runs in a process of its own, in one order
and then in the other; the figures are medians over both. With --write the tables go into docs/speed.md.

--busy measures a step of `python train.py` without flags: with OMP_WAIT_POLICY=passive, which the kit sets, and without
it; on a quiet machine, and beside one single-threaded process a core that never waits.
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

import reward_utils
import rewards_solution
import train
from data import load_prompts
from kit import ROOT
from kit.base.cli import Parser, at_least_1
from kit.base.errors import run_main
from kit.lm.loading import have_files, load_tokenizer
from kit.lm.memory import keep_freed_memory
from kit.lm.models import ModelChoice, default_device, load_policy, load_reference, resolve_models
from kit.train.hooks import Rollouts
from kit.train.sweep import markdown, write_between
from reward_utils import make_reward_function
from sentiment import load_scorer

WARM_UP = 2  # the first steps fill caches and allocate
FORWARD = "forward penalty"
NO_PENALTY = "no penalty, both KLs measured"  # train.py without flags
VARIANTS = ("bare TRL", NO_PENALTY, FORWARD, "LoRA, forward")
PHASES = ("sampling", "score", "reference log-probs")
# How OpenMP's threads wait. 200 is the default of macOS's OpenMP and nothing to Linux's: it only keeps `quiet` away
WAITING = {"unset": {"KMP_BLOCKTIME": "200"}, "passive": {"OMP_WAIT_POLICY": "passive"}}
PAGE = ROOT / "docs" / "speed.md"
# The seconds of each "step" and of each phase in it; "memory", the peak in MB, and "tokens", sampled in a step: one
# number for each process
Columns = dict[str, list[float]]


def quartiles(values: Sequence[float]) -> str:
    """`2.82 [2.77, 2.94]`: the median and the quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


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


def time_variant(variant: str, choice: ModelChoice, steps: int, flags: Sequence[str] = ()) -> Columns:
    """Train `steps` steps of one variant, with more flags of train.py."""
    device, ends, phases = default_device(), StepEnds(), {phase: list[float]() for phase in PHASES}
    keep_freed_memory()
    bare, lora = variant == "bare TRL", variant.startswith("LoRA")
    prompts = load_prompts()
    with tempfile.TemporaryDirectory() as folder:
        args = train.PARSER.parse(["--output_dir", folder, *["--use_peft"] * lora, *flags])
        config = train.grpo_config(args)
        config.max_steps, config.learning_rate, config.save_strategy = steps + WARM_UP, 1e-5, "no"
        if bare:
            have_files(choice.policy)
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
            trainer = train.make_trainer(policy, tokenizer, reward, prompts * 20, args, config)
            reward.policy = trainer.model
            Rollouts.__call__ = timed(Rollouts.__call__, phases["sampling"])  # type: ignore[method-assign]
            scored = timed(reward_utils.reference_log_probs, phases["reference log-probs"])
            reward_utils.reference_log_probs = scored
        trainer.add_callback(ends)
        trainer.train()
    lengths = [log["completions/mean_length"] for log in trainer.state.log_history[:-1]]
    on_gpu = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    return {
        "step": np.diff(ends.times)[WARM_UP - 1 :].tolist(),
        "memory": [on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10],  # Linux: kB
        "tokens": [args.prompts_per_step * args.num_generations * fmean(lengths)],
        **{phase: seconds[WARM_UP:] for phase, seconds in phases.items()},
    }


def in_a_process(function: Callable, *args: Any) -> Any:
    """The function's result from a fresh process, whose environment and peak of memory are its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *args).result()


def time_all(cases: Sequence[tuple[str, str]], choice: ModelChoice, steps: int) -> list[Columns]:
    """The cases (variant, waiting), each in a fresh process, there and back again.

    OpenMP reads its environment when torch is imported, so `waiting` is set before the process starts.
    """
    found = [defaultdict[str, list[float]](list) for _ in cases]
    there = list(zip(found, cases, strict=True))
    for columns, (variant, waiting) in (*there, *reversed(there)):
        for variable in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
            os.environ.pop(variable, None)
        os.environ |= WAITING[waiting]
        timed_once = in_a_process(time_variant, variant, choice, steps)
        print(f"{variant}, {waiting}: {median(timed_once['step']):.2f} s", flush=True)
        for name, values in timed_once.items():
            columns[name] += values
    return list(found)


def compared(choice: ModelChoice, steps: int) -> str:
    """Markdown: a step of each variant, and the phases of the one with a forward penalty."""
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    found = dict(zip(VARIANTS, time_all([(v, "passive") for v in VARIANTS], choice, steps), strict=True))
    seconds = {variant: median(columns["step"]) for variant, columns in found.items()}
    rows = []
    for variant, columns in found.items():
        ratio, speed = seconds[variant] / seconds[VARIANTS[0]], fmean(columns["tokens"]) / seconds[variant]
        memory = f"{max(columns['memory']):,.0f} MB"
        rows.append([variant, quartiles(columns["step"]), f"{ratio:.2f} x", f"{speed:,.0f}", memory])
    phases = {phase: median(found[FORWARD][phase]) for phase in PHASES}
    phases["loss, gradient, update, logging"] = seconds[FORWARD] - sum(phases.values())
    header = ["step", "seconds", "against bare TRL", "tokens/s", "peak memory"]
    parts = [[phase, f"{spent:.2f}"] for phase, spent in phases.items()]
    return (
        f"{choice.policy_name}, {machine}, {torch.get_num_threads()} threads; 64 completions of at most 40 tokens; "
        f"median [quartiles] of {2 * steps} steps, in two processes, in both orders.\n\n{markdown(header, rows)}\n"
        + markdown(["phase (forward penalty)", "seconds"], parts)
    )


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
    unset, passive = (c["step"] for c in time_all([(NO_PENALTY, w) for w in WAITING], choice, steps))
    with spinning(cores):
        beside = time_all([(NO_PENALTY, "passive")], choice, (steps + 1) // 2)[0]["step"]
    fair_share = median(passive) * (threads + cores) / cores  # all threads get equal parts of the cores
    cost = f"quiet: passive / unset = {median(passive) / median(unset):.2f} (at most 1.05 wanted)"
    share = f"busy: passive / fair share = {median(beside) / fair_share:.2f} (at most 2 wanted)"
    rows = [
        ["quiet", "unset", quartiles(unset), ""],
        ["quiet", "passive", quartiles(passive), cost],
        ["busy", "passive", quartiles(beside), share],
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
    add("--busy", action="store_true", help="a step beside programs that keep every core busy")
    add("--write", action="store_true", help="write to docs/speed.md")
    args = parser.parse_args()
    text = (busy if args.busy else compared)(resolve_models(args.model), args.steps)
    print(f"\n{text}")
    if args.write:
        write_between(PAGE, f"written by benchmarks.step_time{' --busy' if args.busy else ''}", text)


if __name__ == "__main__":
    run_main(main)
