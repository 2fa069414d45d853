"""What a training step of this kit costs against bare TRL, where the time goes, and how near the machine's limit it is.

    python benchmarks/step_time.py --write          about six minutes on two cores: let nothing else run

Bare TRL is `GRPOTrainer` on the model as `from_pretrained` gives it, with TRL's own sampling and loss and a reward
that costs nothing; prompts, sizes and optimizer are the same. Every variant runs in a process of its own, first in one
order and then in the other; a figure is the median over both. The floor is the arithmetic that cannot be left out
(2 floating point operations for each weight and token, 6 with the backward pass), at the rate at which this machine
multiplies matrices of the model's shapes. With --write the tables go into benchmarks/step_time.md.
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
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    TrainerCallback,
)
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

import reward_utils
import rewards_solution
from data import load_prompts
from kit.memory import keep_freed_memory
from kit.models import (
    MINI,
    ModelChoice,
    default_device,
    load_policy,
    load_reference,
    resolve_models,
)
from reward_utils import make_reward_function
from sentiment import load_scorer, load_tokenizer
from train import GRPOArguments, Rollouts, grpo_config, make_trainer

WARM_UP = 2  # the first steps fill caches and allocate
VARIANTS = ("bare TRL", "no penalty, both KLs measured", "forward penalty", "LoRA, forward")


@dataclass
class Timing:
    """Of one variant: seconds of every step, of every phase, peak memory in MB, and the work of a step."""

    steps: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: float = 0.0
    gflop: float = 0.0
    tokens: float = 0.0  # sampled in a step
    gflops: float = 0.0  # what the machine multiplies in a second


class StepTimes(TrainerCallback):
    """Wall-clock seconds from one `on_step_end` to the next: optimizer and logging included."""

    def __init__(self, timing: Timing) -> None:
        self.timing, self.before = timing, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        if state.global_step > WARM_UP:
            self.timing.steps.append(now - self.before)
        self.before = now


def timed(function: Callable, name: str, timing: Timing) -> Callable:
    """The function, with the seconds of each call noted under `name`."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            timing.phases[name].append(time.perf_counter() - start)

    return wrapper


def matmul_rate(width: int, rows: int = 2560, seconds: float = 1.0) -> float:
    """GFLOP a second of fp32 products (rows, width) x (width, 4 width), the model's largest block."""
    device = default_device()
    a, b = torch.randn(rows, width, device=device), torch.randn(width, 4 * width, device=device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(10):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        count += 10
    return count * 2 * rows * width * 4 * width / (time.perf_counter() - start) / 1e9


def work(policy: Any, scorer: Any, prompts: float, completions: float, groups: int) -> float:
    """GFLOP of one step: sampling (a prompt once for its group), reference, loss and its gradient, score.

    `prompts` and `completions` are the tokens of all rows of a batch.
    """
    embeddings = policy.get_input_embeddings().weight.numel()
    head = policy.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in policy.parameters()) - embeddings
    sampling = 2 * (body * (prompts / groups + completions) + head * completions)
    one_pass = body * (prompts + completions) + head * completions
    score = 2 * sum(p.numel() for p in scorer.model.parameters()) * completions if scorer else 0.0
    return (sampling + 2 * one_pass + 6 * one_pass + score) / 1e9


def time_variant(
    variant: str, choice: ModelChoice, steps: int, flags: dict[str, Any], gigabytes: float | None = None
) -> Timing:
    """Train `steps` steps of one variant, with `flags` of TRL's, on a GPU that gives no more than `gigabytes`."""
    timing, device = Timing(), default_device()
    keep_freed_memory()
    bare, lora = variant == "bare TRL", variant.startswith("LoRA")
    if bare:
        policy = AutoModelForCausalLM.from_pretrained(choice.policy, dtype=torch.float32)
        tokenizer, scorer = load_tokenizer(choice.policy), None
        reward: Any = free_reward
    else:
        policy, tokenizer = load_policy(choice.policy)
        scorer = load_scorer(choice.sentiment, device)
        reward = make_reward_function(
            timed(scorer, "score", timing),
            tokenizer,
            kl_type="none" if variant.startswith("no penalty") else "forward",
            reference=None if lora else load_reference(choice.policy, device),
            student=rewards_solution,
        )
        reward_utils.reference_log_probs = timed(
            reward_utils.reference_log_probs, "reference log-probs", timing
        )
    if device.type == "cuda":
        if gigabytes:
            whole = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(gigabytes * 2**30 / whole)
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOArguments(output_dir=folder, use_peft=lora, **flags)
        config = grpo_config(args)
        config.max_steps, config.learning_rate, config.save_strategy = steps + WARM_UP, 1e-5, "no"
        prompts = load_prompts() * 20
        if bare:
            trainer = GRPOTrainer(
                model=policy,
                reward_funcs=reward,
                args=config,
                train_dataset=Dataset.from_dict({"prompt": prompts}),
                processing_class=tokenizer,
            )
            trainer.remove_callback(PrinterCallback)
        else:
            Rollouts.__call__ = timed(Rollouts.__call__, "sampling", timing)  # type: ignore[method-assign]
            trainer = make_trainer(policy, tokenizer, reward, prompts, args, config)
            reward.policy = trainer.model
        trainer.add_callback(StepTimes(timing))
        trainer.train()
        rows = args.prompts_per_step * args.num_generations
        length = np.mean([log["completions/mean_length"] for log in trainer.state.log_history[:-1]])
    timing.phases = {name: seconds[WARM_UP:] for name, seconds in timing.phases.items()}
    timing.tokens = float(rows * length)
    prompt_tokens = rows * float(np.mean([len(ids) for ids in tokenizer(load_prompts())["input_ids"]]))
    timing.gflop = work(policy, scorer, prompt_tokens, timing.tokens, args.num_generations)
    timing.gflops = matmul_rate(policy.config.hidden_size)
    if device.type == "cuda":
        timing.memory = torch.cuda.max_memory_allocated() / 2**20
    else:
        timing.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux: kB
    return timing


def random_policy(folder: Path, width: int, layers: int, heads: int, vocabulary: int) -> None:
    """A GPT-2 with random weights and the bundled tokenizer, to be loaded like any other model."""
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=heads, n_positions=256,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MINI / "policy").save_pretrained(folder)


def random_gpt2(folder: Path) -> ModelChoice:
    """GPT-2 (124 M) and DistilBERT (66 M) in their real sizes, with random weights: what speed and memory depend on."""
    random_policy(folder / "policy", width=768, layers=12, heads=12, vocabulary=50257)
    names = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
    DistilBertForSequenceClassification(DistilBertConfig(**names)).save_pretrained(folder / "sentiment")
    AutoTokenizer.from_pretrained(MINI / "sentiment").save_pretrained(folder / "sentiment")
    return ModelChoice(str(folder / "policy"), str(folder / "sentiment"), "random weights")


def free_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Costs nothing, and differs within a group: with equal rewards there would be no gradient to compute."""
    return [float(ids[0] % 7) for ids in completion_ids]


def alternate(choice: ModelChoice, steps: int, gigabytes: float | None) -> dict[str, Timing]:
    """All variants, each in a fresh process, there and back again."""
    found: dict[str, Timing] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        for variant in (*VARIANTS, *reversed(VARIANTS)):
            timing = processes.submit(time_variant, variant, choice, steps, {}, gigabytes).result()
            print(f"{variant:<30} {np.median(timing.steps):.2f} s", flush=True)
            if variant not in found:
                found[variant] = timing
                continue
            found[variant].steps += timing.steps
            for name, seconds in timing.phases.items():
                found[variant].phases[name] += seconds
            found[variant].memory = max(found[variant].memory, timing.memory)
            found[variant].gflops = (found[variant].gflops + timing.gflops) / 2
    return found


def report(found: dict[str, Timing], choice: ModelChoice, steps: int) -> str:
    """Two tables in Markdown: the steps, and the phases of one."""
    gpu = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU"
    bare = float(np.median(found[VARIANTS[0]].steps))
    lines = [
        f"`python benchmarks/step_time.py`: {choice.policy_name}, {machine}, {torch.get_num_threads()} threads; 64 "
        f"completions of at most 40 tokens; median [quartiles] of {2 * steps} steps, in two processes, in both orders.",
        "",
        "| step | seconds | against bare TRL | tokens/s | share of the machine's matmul rate | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for variant, t in found.items():
        low, seconds, high = np.quantile(t.steps, [0.25, 0.5, 0.75])
        lines.append(
            f"| {variant} | {seconds:.2f} [{low:.2f}, {high:.2f}] | {seconds / bare:.2f} x | "
            f"{t.tokens / seconds:,.0f} | {t.gflop / seconds / t.gflops:.0%} | {t.memory:,.0f} MB |"
        )
    t = found["forward penalty"]
    whole = float(np.median(t.steps))
    lines += [
        "",
        f"The step with a forward penalty, {t.gflop:.0f} GFLOP on a machine that multiplies at {t.gflops:.0f} GFLOP/s: "
        f"{t.gflop / t.gflops:.2f} s at least.",
        "",
        "| phase | seconds | whose |",
        "|---|---|---|",
    ]
    for name, seconds_list in t.phases.items():
        seconds = float(np.median(seconds_list))
        whole -= seconds
        lines.append(f"| {name} | {seconds:.2f} | ours |")
    lines.append(f"| loss, gradient, update, logging | {whole:.2f} | TRL's trainer, with our log-prob pass |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="auto", help="as in train.py")
    parser.add_argument(
        "--steps", type=int, default=8, help="measured steps of each process, of two (default: 8)"
    )
    parser.add_argument(
        "--gpt2", action="store_true", help="GPT-2 and DistilBERT in their real sizes, with random weights"
    )
    parser.add_argument("--gigabytes", type=float, help="of the GPU's memory, and no more")
    parser.add_argument("--write", action="store_true", help="write benchmarks/step_time.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        choice = random_gpt2(Path(folder)) if args.gpt2 else resolve_models(args.model)
        text = report(alternate(choice, args.steps, args.gigabytes), choice, args.steps)
    print(f"\n{text}")
    if args.write:
        (ROOT / "benchmarks/step_time.md").write_text(f"# Step time\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
