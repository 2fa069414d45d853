"""What the kit adds to a bare GRPO step, as ratios measured in one run.

The base line is the same trainer, model, prompts and sizes with a reward that costs nothing; it is what TRL takes
for sampling, loss and update. Each variant runs in a process of its own: none inherits another's memory. Prints a
table, and with --write puts it into benchmarks/step_time.md.

    python benchmarks/step_time.py --write
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kit.screen import quiet

quiet()

import argparse
import multiprocessing
import platform
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from datasets import Dataset
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

import rewards_solution
from data import load_prompts
from kit.models import load_policy, load_reference, lora_config, resolve_models
from reward_utils import make_reward_function
from sentiment import load_scorer
from train import TrainingSettings

WARM_UP = 2  # the first steps fill caches and allocate


class StepTimes(TrainerCallback):
    """Wall-clock seconds of every step, from one `on_step_end` to the next: optimizer and logging included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **_) -> None:
        self.start = self.start if self.seconds else time.perf_counter()

    def on_step_end(self, args, state, control, **_) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.start)
        self.start = now


def free_reward(completion_ids, **_) -> list[float]:
    """Costs nothing, and differs within a group: with equal rewards there would be no gradient to compute."""
    return [float(ids[0] % 7) for ids in completion_ids]


def time_variant(variant: str, choice, steps: int) -> tuple[list[float], float]:
    """([lower quartile, median, upper quartile] seconds a step, peak MB of the GPU or the process) of one variant."""
    policy, tokenizer = load_policy(choice.policy)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lora = variant == "LoRA, forward"
    reference = None if variant == "bare TRL" or lora else load_reference(choice.policy, device)
    reward = free_reward
    if variant != "bare TRL":
        kl_type = "none" if variant == "no penalty, KL measured" else "forward"
        reward = make_reward_function(
            load_scorer(choice.sentiment, device), tokenizer, kl_type=kl_type, reference=reference,
            student=rewards_solution,
        )  # fmt: skip
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingSettings(
            output_dir=folder, max_steps=steps + WARM_UP, learning_rate=1e-5, save_strategy="no"
        )
        trainer = GRPOTrainer(
            model=policy,
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": load_prompts() * 20}),
            processing_class=tokenizer,
            peft_config=lora_config(16, policy) if lora else None,
        )
        if variant != "bare TRL":
            reward.policy = trainer.model
        times = StepTimes()
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(times)
        trainer.train()
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux: kB
    return statistics.quantiles(times.seconds[WARM_UP:], n=4, method="inclusive"), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="auto", help="as in train.py")
    parser.add_argument("--steps", type=int, default=16, help="measured steps of each variant")
    parser.add_argument("--write", action="store_true", help="write benchmarks/step_time.md")
    args = parser.parse_args()
    choice = resolve_models(args.model)
    gpu = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU"
    lines = [
        f"`python benchmarks/step_time.py`: {choice.policy_name}, {machine}, {torch.get_num_threads()} threads; 64 "
        f"completions of at most 40 tokens; median [quartiles] of {args.steps} steps after {WARM_UP}.",
        "",
        f"| step | seconds | against bare TRL | peak memory of the {'GPU' if gpu else 'process'} |",
        "|---|---|---|---|",
    ]
    bare = None
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        for variant in ("bare TRL", "no penalty, KL measured", "forward penalty", "LoRA, forward"):
            (low, seconds, high), peak = processes.submit(time_variant, variant, choice, args.steps).result()
            bare = bare or seconds
            lines.append(
                f"| {variant} | {seconds:.2f} [{low:.2f}, {high:.2f}] | {seconds / bare:.2f} x | {peak:,.0f} MB |"
            )
            print(lines[-1], flush=True)
    if args.write:
        (ROOT / "benchmarks/step_time.md").write_text("# Step time\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
