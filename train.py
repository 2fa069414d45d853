"""GRPO on a sentiment reward: teach a language model to write positive film talk, and watch it being hacked.

One step: 8 prompts, 8 completions of each, sampled from the policy at temperature 1; a reward for every
completion (reward_utils.py); advantage = (reward - mean of its group) / (std of its group + 1e-4); one gradient
step on -E[advantage * log pi]. What textbook GRPO has and this default leaves out: no KL term in the loss
(`--beta` brings TRL's back), no old policy (each batch is used once, so the ratio is 1 and clipping sleeps).

    python train.py                                       the hack, on the bundled mini models: minutes on a CPU
    python train.py --kl_type forward --use_solution      its cure
    python train.py --config configs/gpt2.yaml            real GPT-2 on a GPU
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.screen import clock, quiet

quiet()

import importlib
import inspect
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Literal

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import TrainerCallback, set_seed
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from data import HELD_OUT_PROMPTS, check_prompts, load_prompts
from kit.cli import KitParser
from kit.errors import UserError, run_main
from kit.models import (
    MINI,
    follow_mask_positions,
    load_policy,
    load_reference,
    lora_config,
    resolve_models,
    save_policy,
)
from kit.runs import Run
from kit.tracking import Tracker
from kit.validation import Validation, ValidationCallback
from reward_utils import checked, make_reward_function
from sentiment import load_scorer, word_count_score

# ------------------------------------------------------------------------------------------------- flags


@dataclass
class ExerciseArguments:
    """The exercise's own flags."""

    model: str = field(
        default="auto", metadata={"help": "the policy: auto, mini, a Hugging Face id, or a path"}
    )
    sentiment_model: str = field(
        default="auto", metadata={"help": "the classifier: auto, mini, an id, or a path"}
    )
    prompts: str = field(
        default="builtin",
        metadata={"help": "builtin, imdb, imdb:FILE.parquet, or a text file, one prompt a line"},
    )
    reward_shaping: Literal["linear", "shaped", "sparse"] = field(
        default="linear",
        metadata={"help": "the score as it is, your shaped_reward, or 1 if the score >= 0.8 else 0"},
    )
    kl_type: Literal["none", "forward", "backward"] = field(
        default="none",
        metadata={"help": "your penalty: forward is KL(pi||pi_ref), backward is KL(pi_ref||pi)"},
    )
    kl_coef: float = field(default=0.1, metadata={"help": "reward per nat of that penalty"})
    hackable_reward: bool = field(default=False, metadata={"help": "score by counting positive words"})
    negate_reward: bool = field(default=False, metadata={"help": "train for 1 - score: negative film talk"})
    use_solution: bool = field(default=False, metadata={"help": "rewards_solution.py instead of rewards.py"})
    use_peft: bool = field(default=False, metadata={"help": "train LoRA adapters instead of all weights"})
    lora_r: int = field(default=16, metadata={"help": "rank of the adapters"})
    merge_lora: bool = field(
        default=False, metadata={"help": "final/ holds the merged model, not the adapter"}
    )
    eval_every: int = field(
        default=10, metadata={"help": "steps between validations; 0: first and last only"}
    )
    wandb: bool = field(default=False, metadata={"help": "log to Weights & Biases too"})
    wandb_project: str = field(default="rl-sentiment", metadata={"help": "the W&B project"})
    resume: str | None = field(default=None, metadata={"help": "go on with this run folder, with its flags"})

    def __post_init__(self) -> None:
        if self.lora_r < 1:
            raise UserError(f"--lora_r {self.lora_r}: the rank must be at least 1")
        if self.eval_every < 0:
            raise UserError(f"--eval_every {self.eval_every}: must be 0 or more")
        if self.merge_lora and not self.use_peft:
            raise UserError("--merge_lora merges LoRA adapters: it needs --use_peft")


@dataclass
class TrainingSettings(GRPOConfig):
    """TRL's settings, all reachable as flags; these are the ones this kit sets otherwise, and why."""

    output_dir: str = field(default="outputs", metadata={"help": "where run folders go"})
    run_name: str | None = field(
        default=None, metadata={"help": "the run's folder; default: made from the flags"}
    )
    seed: int = field(default=0, metadata={"help": "same seed, same machine, CPU: same numbers"})
    max_steps: int = field(default=-1, metadata={"help": "gradient steps; -1: 50 for mini models, else 200"})
    learning_rate: float | None = field(
        default=None,
        metadata={"help": "decays linearly from: 3e-4 for mini models, else 2e-5; LoRA: x 5"},
    )
    prompts_per_step: int = field(default=8, metadata={"help": "prompts in one gradient step"})
    num_generations: int = field(default=8, metadata={"help": "completions of each prompt: the group"})
    max_completion_length: int = field(default=40, metadata={"help": "longest completion, in tokens"})
    temperature: float = field(default=1.0, metadata={"help": "of sampling, and of every log-prob"})
    beta: float = field(default=0.0, metadata={"help": "TRL's own KL(pi||pi_ref) term, in the loss; 0: none"})
    # Memory is that of one micro-batch; 16 is also faster than 64 on two CPU cores.
    per_device_train_batch_size: int = field(
        default=16, metadata={"help": "completions in one backward pass"}
    )
    gradient_accumulation_steps: int | None = field(
        default=None, metadata={"help": "default: so that all completions of a step are used"}
    )
    report_to: str = field(default="none", metadata={"help": "none, wandb, tensorboard, or trackio"})
    logging_steps: float = field(default=1, metadata={"help": "steps between lines"})
    save_steps: float = field(default=20, metadata={"help": "steps between checkpoints, for --resume"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints kept"})
    # GPT-2 ships with dropout 0.1: with it on, the KL of a policy equal to its reference is not 0.
    disable_dropout: bool = field(default=True, metadata={"help": "no dropout anywhere, LoRA's included"})
    # TRL turns it on, for models a thousand times this size; here it costs a fifth of the time.
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "recompute activations to save memory"}
    )
    disable_tqdm: bool | None = field(default=True, metadata={"help": "our own line a step instead"})
    # The prompts come shuffled, in one epoch as long as the run: TRL's sampler would replay the first epoch's order.
    shuffle_dataset: bool = field(default=False, metadata={"help": "the prompts are shuffled already"})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "every parameter is used"}
    )

    def __post_init__(self) -> None:
        if self.max_steps == 0 or self.max_steps < -1:
            raise UserError(f"--max_steps {self.max_steps}: give at least 1")
        if self.num_generations < 2:
            raise UserError(
                f"--num_generations {self.num_generations}: a group needs at least 2 completions to compare"
            )
        if self.prompts_per_step < 1 or self.max_completion_length < 1:
            raise UserError("--prompts_per_step and --max_completion_length must be at least 1")
        if self.temperature <= 0:
            raise UserError(f"--temperature {self.temperature}: must be above 0")
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if self.gradient_accumulation_steps is None:
            completions = self.prompts_per_step * self.num_generations
            if completions % processes:
                raise UserError(f"{completions} completions a step do not divide among {processes} processes")
            here = completions // processes
            fitting = range(1, min(self.per_device_train_batch_size, here) + 1)
            self.per_device_train_batch_size = max(size for size in fitting if here % size == 0)
            self.gradient_accumulation_steps = here // self.per_device_train_batch_size
        if self.bf16 is None:  # is_bf16_supported() counts emulation in: twice as slow as fp32 on a T4
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        self.use_cpu = self.use_cpu or not torch.cuda.is_available()
        super().__post_init__()


SHOWN_FLAGS = (
    "model sentiment_model prompts reward_shaping kl_type kl_coef beta hackable_reward negate_reward use_solution "
    "use_peft lora_r merge_lora max_steps learning_rate prompts_per_step num_generations max_completion_length "
    "temperature per_device_train_batch_size eval_every output_dir run_name seed resume wandb wandb_project report_to"
).split()


def run_name(ours: ExerciseArguments, settings: TrainingSettings) -> str:
    """A name that says what is unusual about the run: `forward-0.05-shaped`; `vanilla` if nothing is."""
    parts = [f"{ours.kl_type}-{ours.kl_coef:g}"] if ours.kl_type != "none" else []
    parts += [f"beta-{settings.beta:g}"] if settings.beta else []
    parts += [ours.reward_shaping] if ours.reward_shaping != "linear" else []
    flags = {"hackable": ours.hackable_reward, "negate": ours.negate_reward, "lora": ours.use_peft}
    return "-".join(parts + [name for name, on in flags.items() if on]) or "vanilla"


# ------------------------------------------------------------------------------- the student's functions


def student_module(ours: ExerciseArguments) -> ModuleType | None:
    """rewards.py or rewards_solution.py, its needed functions tried on one token before any model is loaded."""
    if ours.kl_type == "none" and ours.reward_shaping != "shaped":
        return None
    name = "rewards_solution" if ours.use_solution else "rewards"
    try:
        module = importlib.import_module(name)
    except SyntaxError as error:
        raise UserError(f"{name}.py, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        at, where = error.__traceback__, ""
        while at is not None:  # the deepest line of theirs
            file = Path(at.tb_frame.f_code.co_filename)
            where = f", line {at.tb_lineno}" if file.name == f"{name}.py" else where
            at = at.tb_next
        raise UserError(f"{name}.py{where}: importing it raised {type(error).__name__}: {error}") from None
    needed = {"none": [], "forward": ["kl_penalty_forward"], "backward": ["kl_penalty_backward"]}[
        ours.kl_type
    ]
    for function in needed:
        checked(_function(module, function), [[-1.0]], [[-1.5]], ours.kl_coef, expected=1)
    if ours.reward_shaping == "shaped":
        checked(_function(module, "shaped_reward"), [0.5], ["a film"], ["This was"], expected=1)
    return module


def _function(module: ModuleType, name: str) -> FunctionType:
    function = getattr(module, name, None)
    if not isinstance(inspect.unwrap(function), FunctionType):  # errors name its line, so it must have one
        raise UserError(f"{module.__name__}.py has no function {name}; keep the stubs' names and their def")
    return function


# ---------------------------------------------------------------------------------------- lines and files

# TRL's name -> ours, in metrics.jsonl, on W&B and in the README's glossary
METRIC_NAMES = {
    "reward": "train/reward",
    "score": "train/score",
    "shaped": "train/shaped",
    "kl_penalty": "train/kl_penalty",
    "kl_policy_ref": "train/kl_policy_ref",
    "kl_ref_policy": "train/kl_ref_policy",
    "reward_std": "train/reward_std",
    "frac_reward_zero_std": "train/zero_std_groups",
    "completions/mean_length": "train/length_mean",
    "completions/clipped_ratio": "train/truncated_ratio",
    "entropy": "train/entropy",
    "kl": "train/trl_kl",
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "step_time": "train/step_time",
}


class LogCallback(TrainerCallback):
    """Every logged step: one line of metrics.jsonl, one line on screen."""

    def __init__(self, run: Run, tracker: Tracker | None) -> None:
        self.run, self.tracker = run, tracker
        self.start, self.first_step = time.monotonic(), 0

    def on_train_begin(self, args, state, control, **_) -> None:
        self.start, self.first_step = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs=None, **_) -> None:
        if not state.is_world_process_zero or "train_runtime" in (logs or {}):  # the summary at the end
            return
        metrics = {ours: logs[theirs] for theirs, ours in METRIC_NAMES.items() if theirs in logs}
        self.run.log(state.global_step, metrics)
        if self.tracker is not None:
            self.tracker.log(state.global_step, metrics)
        elapsed = time.monotonic() - self.start
        eta = elapsed / max(state.global_step - self.first_step, 1) * (state.max_steps - state.global_step)
        m = {name.removeprefix("train/"): value for name, value in metrics.items()}
        penalty = f" | penalty {m['kl_penalty']:.2f}" if m.get("kl_penalty") else ""
        print(
            f"step {state.global_step:>4}/{state.max_steps} | reward {m['reward']:.3f} | score {m['score']:.3f}"
            f"{penalty} | KL {m['kl_policy_ref']:.1f} | flat groups {m['zero_std_groups']:.0%} | "
            f"length {m['length_mean']:.0f} | {m['step_time']:.1f} s | eta {clock(eta)}",
            flush=True,
        )


def last_words(run: Run, ours: ExerciseArguments, seconds: float) -> str:
    """Where things are, and what to try next."""
    if ours.kl_type == "none" and ours.reward_shaping == "linear" and not ours.hackable_reward:
        following = (
            "Read the last samples: is that what you meant by positive?\n"
            "  The cure is yours to write: fill rewards.py, check it with  python rewards.py\n"
            "  then train with             python train.py --kl_type forward   (--use_solution shows ours)"
        )
    elif ours.kl_type != "none" and ours.reward_shaping == "linear":
        following = (
            "Watch the length in the val lines: a short completion pays little KL.\n"
            f"  Next: python train.py --kl_type {ours.kl_type} --kl_coef {ours.kl_coef:g} --reward_shaping shaped"
        )
    else:
        following = "Change one flag at a time, and compare."
    return f"{run.closing(seconds, 'this')}\n  {following}"


# -------------------------------------------------------------------------------------------------- main


def main() -> None:
    started = time.monotonic()
    ours, settings = parse(sys.argv[1:])
    student = student_module(ours)
    distributed = PartialState()  # one process, unless launched by accelerate or torchrun
    main_process = distributed.is_main_process

    # Models
    choice = resolve_models(ours.model, ours.sentiment_model)
    mini = Path(choice.policy).is_relative_to(MINI)
    if settings.max_steps == -1:
        settings.max_steps = 50 if mini else 200
    if settings.learning_rate is None:
        settings.learning_rate = (3e-4 if mini else 2e-5) * (5 if ours.use_peft else 1)
    set_seed(settings.seed)
    policy, tokenizer = load_policy(choice.policy)
    scorer = load_scorer(choice.sentiment, distributed.device)
    score = word_count_score if ours.hackable_reward else scorer

    # Prompts: shuffled passes over all of them, as many as the run needs
    room = policy.config.max_position_embeddings - settings.max_completion_length
    check_prompts(HELD_OUT_PROMPTS, "held-out prompts", tokenizer, room)
    prompts = load_prompts(ours.prompts, tokenizer, room)
    rng, order = random.Random(settings.seed), []
    while len(order) < (settings.max_steps + 1) * settings.generation_batch_size:
        order += rng.sample(prompts, len(prompts))

    # Reward; without a reference model of its own, pi_ref is the LoRA policy less its adapter
    own_reference = not ours.use_peft and settings.beta == 0
    reference = load_reference(choice.policy, distributed.device) if own_reference else None
    reward = make_reward_function(
        score,
        tokenizer,
        reward_shaping=ours.reward_shaping,
        kl_type=ours.kl_type,
        kl_coef=ours.kl_coef,
        negate=ours.negate_reward,
        temperature=settings.temperature,
        reference=reference,
        student=student,
    )

    # Run folder
    paths = [None]
    if main_process:
        run = Run.open(ours.resume) if ours.resume else Run.create(settings.output_dir, settings.run_name)
        paths = [str(run.path)]
    run = Run(Path(broadcast_object_list(paths)[0]))
    checkpoint = run.last_checkpoint() if ours.resume else None
    settings.output_dir, settings.run_name = str(run.path), run.path.name

    # Trainer
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": order}),
        processing_class=tokenizer,
        peft_config=lora_config(ours.lora_r, policy) if ours.use_peft else None,
    )
    if trainer.ref_model is not None:  # --beta: TRL has loaded pi_ref, and one copy is enough
        reference = reward.reference = trainer.ref_model
        follow_mask_positions(trainer.ref_model)
    reward.policy = policy = trainer.accelerator.unwrap_model(trainer.model)

    # Logging
    tracker = None
    config = {"method": "grpo", "argv": PARSER.argv, **resolved(ours, settings, choice, len(prompts))}
    if main_process:
        if ours.resume is None:
            run.write_config(config)
        else:
            run.truncate_after(int(checkpoint.name.split("-")[1]))
        if ours.wandb:
            tracker = Tracker(
                ours.wandb_project, run.path.name, config, run.path, tags=["grpo", ours.kl_type]
            )
    validation = Validation(
        tokenizer,
        scorer,
        reference,
        run,
        tracker,
        score=score if ours.hackable_reward else None,
        max_new_tokens=settings.max_completion_length,
        temperature=settings.temperature,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogCallback(run, tracker))
    trainer.add_callback(ValidationCallback(validation, lambda: policy, ours.eval_every))

    # Train
    if main_process:
        print(choice.introduction(policy, distributed.device))
        print(
            f"run {run.path}, {settings.max_steps} steps of {settings.prompts_per_step} prompts x "
            f"{settings.num_generations} completions, learning rate {settings.learning_rate:g}\n",
            flush=True,
        )
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except BaseException as error:
        if tracker is not None:
            tracker.finish({"stopped": type(error).__name__}, exit_code=1)
        if main_process and run.checkpoints():
            print(
                f"\nstopped at step {trainer.state.global_step}; go on with --resume {run.path}",
                file=sys.stderr,
            )
        raise

    # Save
    if main_process:
        save_policy(policy, tokenizer, run.final, merge=ours.merge_lora)
        seconds = time.monotonic() - started
        if tracker is not None:
            tracker.finish({"seconds": seconds, "final": str(run.final)})
        print(last_words(run, ours, seconds))


PARSER = KitParser((ExerciseArguments, TrainingSettings), SHOWN_FLAGS, description=__doc__.splitlines()[0])


def parse(argv: list[str]) -> tuple[ExerciseArguments, TrainingSettings]:
    """The flags, checked; combinations that cannot work are refused in one sentence."""
    ours, settings = PARSER.parse_args_and_config(argv)
    if "wandb" in settings.report_to:  # the same thing by TRL's name; our tracker logs it, under our names
        ours.wandb, settings.report_to = True, []
    try:
        for callback in get_reporting_integration_callbacks(settings.report_to):
            callback()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--report_to {settings.report_to[0]}: {error}") from None
    if ours.kl_type != "none" and settings.beta:
        raise UserError(
            f"--kl_type {ours.kl_type} and --beta {settings.beta:g} both penalise KL: it would be counted twice; "
            "keep one"
        )
    if settings.top_p != 1.0 or settings.top_k != 0 or settings.min_p or settings.repetition_penalty != 1.0:
        raise UserError(
            "top_p, top_k, min_p and repetition_penalty change what is sampled but not the log-probs, so every KL "
            "would be that of another model; use --temperature"
        )
    if torch.cuda.device_count() > 1 and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"{torch.cuda.device_count()} GPUs are visible to one process: set CUDA_VISIBLE_DEVICES=0, or start it "
            "with accelerate launch train.py ..."
        )
    settings.run_name = settings.run_name or run_name(ours, settings)
    return ours, settings


def resolved(ours: ExerciseArguments, settings: TrainingSettings, choice, num_prompts: int) -> dict:
    """Every resolved setting, for config.json."""
    flags = {k: v for k, v in vars(ours).items() if not k.startswith("_")}
    return {
        **flags,
        "model": choice.policy_name,
        "sentiment_model": choice.sentiment_name,
        "num_prompts": num_prompts,
        "training": settings.to_sanitized_dict(),
    }


if __name__ == "__main__":
    run_main(main)
