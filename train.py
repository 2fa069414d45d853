"""GRPO on a sentiment reward: teach a language model to write positive film talk, and watch it being hacked.

One step: 8 prompts, 8 completions of each, sampled from the policy at temperature 1; a reward for every
completion (reward_utils.py); advantage = (reward - mean of its group) / (std of its group + 1e-4); one gradient
step on -E[advantage * log pi]. What textbook GRPO has and this default leaves out: no KL term in the loss
(`--beta` brings TRL's back), no old policy (each batch is used once, so the ratio is 1 and clipping sleeps).

    python train.py                                       the hack, on the bundled mini models: minutes on a CPU
    python train.py --kl_type forward                     its cure, once you have written it in rewards.py
    python train.py --config configs/gpt2.yaml            real GPT-2 on a GPU
"""

# ruff: noqa: E402 - flags are checked, and libraries silenced, before anything heavy is imported
from kit.screen import quiet

quiet(__name__)

import copy
import importlib.util
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from kit.cli import KitParser, field_names
from kit.errors import UserError, run_main, told_in_one_line
from kit.flags import RunSettings, TaskArguments, above_0, at_least, setting

# ---- flags -------------------------------------------------------------------------------------------------


@dataclass
class ExerciseArguments(TaskArguments):
    """The exercise's own flags."""

    kl_type: Literal["none", "forward", "backward"] = setting(
        "none", "your penalty: forward is KL(pi||pi_ref), backward is KL(pi_ref||pi)"
    )
    kl_coef: float = setting(0.1, "reward per nat of that penalty")
    use_solution: bool = setting(False, "rewards_solution.py instead of rewards.py")
    unchecked: bool = setting(False, "train with your functions even if the self-check says they are wrong")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "kl_coef")
        if self.kl_type == "none" and self.kl_coef != type(self).kl_coef:
            raise UserError(
                f"--kl_coef {self.kl_coef:g} is the strength of your penalty: it needs --kl_type forward or backward "
                "(TRL's own KL term is --beta)"
            )


@dataclass
class GRPOSettings(RunSettings):
    """The settings of GRPO that matter here. All others of TRL's are flags too: --help_all."""

    max_steps: int = setting(-1, "gradient steps; -1: 50 for mini models, else 200")
    learning_rate: float | None = setting(
        None, "decays linearly from: 3e-4 for mini models, else 2e-5; LoRA: x 5"
    )
    prompts_per_step: int = setting(8, "prompts in one gradient step")
    # Q13. With 2 generations, which values can an advantage have, whatever the rewards are?
    num_generations: int = setting(8, "completions of each prompt: the group")
    beta: float = setting(0.0, "KL(pi||pi_ref) in the loss, TRL's own term; 0: none")
    credit: Literal["completion", "token"] = setting(
        "completion", "what has an advantage of its own: kit/credit.py"
    )
    credit_lambda: float = setting(0.9, "of --credit token: 1 pays a token for all that follows, 0 for a few")
    # memory is that of one micro-batch; 16 is also faster than 64 on two CPU cores
    per_device_train_batch_size: int = setting(16, "completions in one backward pass")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "prompts_per_step", "per_device_train_batch_size")
        at_least(2, self, "num_generations")  # a group needs something to compare
        at_least(0, self, "beta", "credit_lambda")
        if self.credit == "completion" and self.credit_lambda != type(self).credit_lambda:
            raise UserError(f"--credit_lambda {self.credit_lambda:g} needs --credit token")
        if self.credit_lambda > 1:
            raise UserError(f"--credit_lambda {self.credit_lambda:g}: must be between 0 and 1")
        above_0(self, "learning_rate")
        if self.max_steps == 0 or self.max_steps < -1:
            raise UserError(f"--max_steps {self.max_steps}: give at least 1")


def trl_flags() -> set[str]:
    """The names of TRL's own settings, read from its source."""
    ours = field_names("trl", "trainer/grpo_config.py", "trainer/base_config.py")
    return ours | field_names("transformers", "training_args.py")


if __name__ == "__main__":  # a typo and --help are answered before torch is imported, which takes seconds
    with told_in_one_line():
        KitParser((ExerciseArguments, GRPOSettings), __doc__, trl_flags).check()

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from grading.self_check import what_is_wrong
from kit.closing import what_next
from kit.credit import CreditTrainer, refuse_beside_token_credit
from kit.frontier import price
from kit.models import add_plain_head, follow_mask_positions, load_policy, load_reference, lora_config
from kit.processes import follow, refuse_launch
from kit.runs import read_metrics
from kit.sampling import end_tokens, rollout
from kit.session import Session
from kit.student import load_student
from reward_utils import RewardFunction, make_reward_function


@dataclass
class TrainingSettings(GRPOSettings, GRPOConfig):
    """All of TRL's settings; these are the ones this kit sets otherwise, and why."""

    gradient_accumulation_steps: int | None = setting(
        None, "micro-batches a step (sets their size); default: as few as per_device_train_batch_size allows"
    )
    bf16: bool | None = setting(None, "bfloat16 autocast; default: on a GPU that has it")
    use_cpu: bool = setting(False, "default: where there is no GPU")
    logging_steps: float = setting(1, "steps between lines")
    save_steps: float = setting(20, "steps between checkpoints, for --resume")
    save_total_limit: int | None = setting(2, "checkpoints kept")
    # GPT-2 ships with dropout 0.1: with it on, the KL of a policy equal to its reference is not 0.
    disable_dropout: bool = setting(True, "no dropout anywhere, LoRA's included")
    # TRL turns it on, for models a thousand times this size; here it costs a fifth of the time.
    gradient_checkpointing: bool = setting(False, "recompute activations to save memory")
    disable_tqdm: bool | None = setting(True, "our own line a step instead")
    # The prompts come shuffled, in one epoch as long as the run: TRL's sampler would replay the first epoch's order.
    shuffle_dataset: bool = setting(False, "the prompts are shuffled already")
    logging_nan_inf_filter: bool = setting(False, "a loss that is not finite ends the run")
    ddp_find_unused_parameters: bool | None = setting(False, "every parameter is used")

    def __post_init__(self) -> None:
        GRPOSettings.__post_init__(self)
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        completions = self.prompts_per_step * self.num_generations
        if completions % processes:
            raise UserError(f"{completions} completions a step do not divide among {processes} processes")
        here = completions // processes
        if self.gradient_accumulation_steps is None:
            # Q14. prompts_per_step, num_generations, per_device_train_batch_size: halve each alone. Which one
            # changes nothing that is learned, and what do the other two do to the advantages?
            fitting = range(1, min(self.per_device_train_batch_size, here) + 1)
            self.per_device_train_batch_size = max(size for size in fitting if here % size == 0)
            self.gradient_accumulation_steps = here // self.per_device_train_batch_size
        elif self.gradient_accumulation_steps < 1 or here % self.gradient_accumulation_steps:
            raise UserError(
                f"--gradient_accumulation_steps {self.gradient_accumulation_steps}: the {here} completions of a step "
                "do not divide into as many micro-batches; give a divisor, or leave it out"
            )
        else:  # the size follows: TRL would draw fewer prompts a step than asked for
            self.per_device_train_batch_size = here // self.gradient_accumulation_steps
        self.use_cpu = self.use_cpu or not torch.cuda.is_available()
        if self.bf16 is None:  # is_bf16_supported() counts emulation in: twice as slow as fp32 on a T4
            self.bf16 = not self.use_cpu and torch.cuda.is_bf16_supported(including_emulation=False)
        report_to = self.report_to
        GRPOConfig.__post_init__(self)
        self.report_to = report_to  # as a word: it makes a list of it


PARSER = KitParser((ExerciseArguments, TrainingSettings), __doc__)

# ---- the run -----------------------------------------------------------------------------------------------


def main() -> None:
    ours, settings = parse(sys.argv[1:])
    # Before any model is loaded: are the functions there that the student was to write?
    student = load_student(ours.use_solution, ours.kl_type, ours.reward_shaping)
    if student is not None and not (ours.unchecked or ours.use_solution):
        refuse_what_is_wrong(student, ours)
    session = Session("grpo", ours, settings, PARSER.argv)
    if session.choice.policy.endswith(".gguf") and settings.beta and not ours.use_peft:
        raise UserError(
            f"--beta with --model {session.choice.policy_name}: TRL cannot load its copy of the reference from such a "
            "file; add --use_peft, or take --kl_type"
        )
    settings.max_steps = session.steps(settings.max_steps)
    session.refuse_finished(session.first_step, settings.max_steps, "max_steps")
    name = settings.run_name or run_name(ours, settings)
    settings.learning_rate = session.rate(settings.learning_rate, mini=3e-4, full=2e-5)

    # The policy, and prompts for it: shuffled passes over all of them, as many as the run needs
    policy, tokenizer = load_policy(session.choice.policy)
    prompts = session.load_prompts(policy, tokenizer)
    rng = random.Random(settings.seed)
    order: list[str] = []
    drawn = max(settings.prompts_per_step, settings.generation_batch_size // settings.num_generations)
    while len(order) < (settings.max_steps + 1) * drawn:
        order += rng.sample(prompts, len(prompts))

    # The reward; without a reference model of its own, pi_ref is the LoRA policy less its adapter
    own_reference = not ours.use_peft and settings.beta == 0
    # Q15. Without a penalty nothing in the reward needs pi_ref. What would you not see without it, and which
    # curve would mislead you?
    reference = load_reference(session.choice.policy, session.device) if own_reference else None
    reward = make_reward_function(
        session.score,
        tokenizer,
        reward_shaping=ours.reward_shaping,
        kl_type=ours.kl_type,
        kl_coef=ours.kl_coef,
        negate=ours.negate_reward,
        temperature=settings.temperature,
        reference=reference,
        student=student,
    )

    run = session.open_run(name)
    settings.output_dir, settings.run_name = str(run.path), run.path.name
    settings.report_to = "none"  # the session logs there, under our names; TRL would too, under its own
    adapters = lora_config(ours.lora_r, policy) if ours.use_peft else None
    trainer = make_trainer(policy, tokenizer, reward, order, settings, adapters)
    # FSDP will lay the weights it trains in pieces over all processes; what is sampled and measured is a whole copy
    whole = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled:
        whole = copy.deepcopy(whole)
    if trainer.ref_model is not None:  # --beta: TRL has loaded pi_ref, and one copy is enough
        # It went by the name in the policy's config, which a merged adapter has of its base
        if not trainer.is_fsdp_enabled:
            trainer.ref_model.load_state_dict(policy.state_dict())
        reference = reward.reference = trainer.ref_model
        follow_mask_positions(trainer.ref_model)
    # What the trainer has made of the model: LoRA's wrapper around it, where there is one
    reward.policy = policy = whole

    session.begin(
        policy,
        tokenizer,
        reference,
        reward,
        price=price({**vars(ours), **vars(settings)}),
        training=settings.to_sanitized_dict(),
        tags=["grpo", ours.kl_type],
        plan=(
            f"{settings.max_steps} steps of {settings.prompts_per_step} prompts x {settings.num_generations} "
            f"completions, learning rate {settings.learning_rate:g}"
        ),
    )
    trainer.add_callback(StepCallback(session, policy, keep=settings.save_total_limit))
    settings.save_total_limit = None  # TRL would remove old checkpoints before the new one has its manifest
    with session.training(policy, tokenizer):
        if session.first_step < settings.max_steps:
            trainer.train(resume_from_checkpoint=str(session.checkpoint) if session.checkpoint else None)
        else:  # stopped between its last checkpoint and final/; trainer.train() would take one step more
            trainer._load_from_checkpoint(str(session.checkpoint))
            session.start(policy)
    if session.is_main:
        validated = [m for m in read_metrics(session.run.path) if "val/sentiment_mean" in m]
        print(f"  {what_next(ours, penalty_flags(ours, settings), validated[0], validated[-1])}")


def make_trainer(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: RewardFunction,
    prompts: list[str],
    settings: TrainingSettings,
    adapters: LoraConfig | None = None,
) -> GRPOTrainer:
    """TRL's trainer, or that of `--credit token`, around this file's sampling and log-probs in plain torch.

    Raises:
        UserError: two of TRL's many settings do not go together.
    """
    trainer_class = CreditTrainer if settings.credit == "token" else GRPOTrainer
    # Q16. Leave out one argument of this call at a time: which of them ends the run with an error, and which
    # leaves a run that is wrong without a word?
    try:
        trainer = trainer_class(
            model=policy,
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            peft_config=adapters,
            rollout_func=None if settings.use_vllm else Rollouts(tokenizer, settings),
        )
    except ValueError as error:
        raise UserError(f"TRL refuses these settings: {' '.join(str(error).split())}") from None
    # It would write one beside every checkpoint: "a fine-tuned version of None"
    trainer.create_model_card = lambda *_, **__: None
    trainer.remove_callback(PrinterCallback)
    for lm in (policy, trainer.ref_model):
        if lm is not None:
            add_plain_head(lm, settings.temperature)
    return trainer


# ---- sampling ----------------------------------------------------------------------------------------------


class Rollouts:
    """TRL's `rollout_func`: completions from the policy as it is, with the log-probability of every token drawn.

    The random numbers are a function of the seed, the step and the completion's place in the batch of all processes:
    a resumed run draws what the uninterrupted one drew, and two processes draw together what one would. (With
    --num_iterations above 1, or --steps_per_generation above a step's micro-batches, the first is so where it was
    stopped between two batches.)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: TrainingSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.step, self.round = -1, 0  # within one step there may be several rounds of sampling

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list]:
        step, processes = trainer.state.global_step, trainer.accelerator
        self.step, self.round = step, self.round + 1 if step == self.step else 0
        n, rank = len(prompts), processes.process_index
        random_stream = np.random.default_rng([self.settings.seed, step, self.round])
        shape = (n * processes.num_processes, self.settings.max_completion_length)
        uniforms = torch.from_numpy(random_stream.random(shape, dtype=np.float32))[rank * n : (rank + 1) * n]
        policy = trainer.reward_funcs[0].policy
        prompt_ids = self.tokenizer(prompts)["input_ids"]
        ends = end_tokens(policy, self.tokenizer)
        completion_ids, log_probs = rollout(policy, prompt_ids, uniforms, ends, self.settings.temperature)
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
            "logprobs": log_probs,
            "policy_log_probs": log_probs,  # under a name of its own it reaches the reward
        }


# ---- every step --------------------------------------------------------------------------------------------

# TRL's name -> ours, in metrics.jsonl (under train/), on W&B and in docs/metrics.md
METRIC_NAMES = {
    "reward": "reward",
    "score": "score",
    "shaped": "shaped",
    "kl_penalty": "kl_penalty",
    "kl_policy_ref": "kl_policy_ref",
    "kl_ref_policy": "kl_ref_policy",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "zero_std_groups",
    "completions/mean_length": "length_mean",
    "completions/clipped_ratio": "truncated_ratio",
    "entropy": "entropy",
    "kl": "trl_kl",
    # Q17. Try --loss_type grpo for three steps: the loss is 0 to the last digits. Why there, and not by
    # default? And the gradient?
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "step_time": "step_time",
}
SHOWN = {  # in the step's line on screen
    "reward": "reward {:.3f}",
    "score": "score {:.3f}",
    "kl_penalty": "penalty {:.2f}",
    "kl_policy_ref": "KL {:.1f}",
    "zero_std_groups": "flat groups {:.0%}",
    "length_mean": "length {:.0f}",
    "step_time": "{:.1f} s",
}


class StepCallback(TrainerCallback):
    """Every logged step: one line of metrics.jsonl and one on screen. Validates before the first step, every
    `--eval_every` steps and at the end; after the step's own line, and before its checkpoint is saved."""

    def __init__(self, session: Session, policy: torch.nn.Module, keep: int | None) -> None:
        self.session, self.policy, self.keep = session, policy, keep

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any, lr_scheduler: Any, model: Any, **_: Any
    ) -> None:
        # A checkpoint brings its own --save_steps, and the rate that --max_steps of then gave: 0 for a finished run
        state.compute_steps(args, state.max_steps)
        if isinstance(lr_scheduler, LambdaLR):
            for group, base, decay in zip(
                optimizer.param_groups, lr_scheduler.base_lrs, lr_scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * decay(lr_scheduler.last_epoch)
        follow(self.policy, model)
        self.session.start(self.policy)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if not logs or "train_runtime" in logs:  # TRL's summary at the end
            return
        m = {ours: logs[theirs] for theirs, ours in METRIC_NAMES.items() if theirs in logs}
        self.session.check(state.global_step, **m)
        self.session.log(state.global_step, m)
        # A step on a batch that was used before (--num_iterations) has no rewards of its own, most runs no penalty
        shown = [name for name in SHOWN if name in m and (m[name] or name != "kl_penalty")]
        self.session.show(
            state.global_step, state.max_steps, *(SHOWN[name].format(m[name]) for name in shown)
        )
        self._validate_if_due(state)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any
    ) -> None:
        self.session.check_gradient(state.global_step + 1, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        follow(self.policy, model)
        self.session.check_weights(state.global_step, self.policy)
        if not control.should_log:  # else on_log comes next, and its line belongs above ours
            self._validate_if_due(state)
        if self.session.stopping():
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.session.seal_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.keep)

    def _validate_if_due(self, state: Any) -> None:
        if self.session.due(state.global_step) or state.global_step == state.max_steps:
            self.session.validate(self.policy, state.global_step)


# ---- flags that do not go together, and a name ---------------------------------------------------------------


def parse(argv: list[str]) -> tuple[ExerciseArguments, TrainingSettings]:
    """The flags, checked; combinations that cannot work are refused in one sentence."""
    ours, settings = PARSER.parse(argv)
    if ours.kl_type != "none" and settings.beta:
        raise UserError(
            f"--kl_type {ours.kl_type} and --beta {settings.beta:g} both penalise KL: it would be counted twice; "
            "keep one"
        )
    if settings.credit == "token":
        refuse_beside_token_credit(ours.kl_type, ours.kl_coef, settings)
    refuse_other_distributions(settings)
    if settings.use_vllm and importlib.util.find_spec("vllm") is None:
        raise UserError(
            "--use_vllm: vLLM is not installed, and it needs a GPU; leave it out, or pip install vllm"
        )
    if settings.top_entropy_quantile < 1 or settings.entropy_coef or settings.use_adaptive_entropy:
        raise UserError(
            "top_entropy_quantile, entropy_coef and use_adaptive_entropy need the entropy of every token, which this "
            "kit only estimates from the sampled ones; leave them out"
        )
    if settings.sync_ref_model or settings.cast_lm_head_to_fp32:
        raise UserError(
            "sync_ref_model would move the reference that every KL here is measured to, and cast_lm_head_to_fp32 does "
            "what is done already; leave them out"
        )
    refuse_without_effect(settings)
    refuse_launch(ours, settings)
    return ours, settings


def refuse_other_distributions(settings: TrainingSettings) -> None:
    """Only `--temperature` may shape what is sampled: the log-probs know of nothing else. Raises `UserError`."""
    usual = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0, "generation_kwargs": None}
    for name, value in usual.items():
        if getattr(settings, name) not in (value, {}):
            raise UserError(
                f"--{name} {getattr(settings, name)} changes what is sampled but not the log-probs, so every KL would "
                "be that of another model; use --temperature"
            )


def refuse_without_effect(settings: TrainingSettings) -> None:
    """TRL's flags that would do nothing here, or not what they say. Raises `UserError`."""
    instead = {
        "num_train_epochs": "give --max_steps",
        "resume_from_checkpoint": "give --resume RUN",
        "eval_steps": "give --eval_every",
        "disable_dropout": "dropout is off, or the KL at step 0 would not be 0",
        "fp16": "bfloat16 or float32 are what is trained in",
        "save_only_model": "--resume needs the rest",
        "ignore_data_skip": "a resumed run would train on the first prompts again",
        "use_transformers_continuous_batching": "completions are sampled by kit/sampling.py",
        "cache_implementation": "completions are sampled by kit/sampling.py",
    }
    for name, why in instead.items():
        if getattr(settings, name) != getattr(TrainingSettings, name):
            raise UserError(f"--{name} {getattr(settings, name)} has no place here: {why}")


def refuse_what_is_wrong(student: ModuleType, ours: ExerciseArguments) -> None:
    """The self-check, in a second, of the functions this run is about to use. Raises `UserError`."""
    used = [f"kl_penalty_{ours.kl_type}"] if ours.kl_type != "none" else []
    used += ["shaped_reward"] if ours.reward_shaping == "shaped" else []
    wrong = what_is_wrong(student, used)
    if wrong:
        raise UserError(
            f"{wrong[0]} (python rewards.py says more; --unchecked trains all the same, which is worth seeing once)"
        )


def penalty_flags(ours: ExerciseArguments, settings: GRPOSettings) -> str:
    """The flags of the run's KL term, its strength last; empty for none."""
    if ours.kl_type != "none":
        return f"--kl_type {ours.kl_type} --kl_coef {ours.kl_coef:g}"
    return f"--beta {settings.beta:g}" if settings.beta else ""


def run_name(ours: ExerciseArguments, settings: GRPOSettings) -> str:
    """A name that says what is unusual about the run: `forward-0.05-shaped`; `vanilla` if nothing is."""
    parts = [f"{ours.kl_type}-{ours.kl_coef:g}"] if ours.kl_type != "none" else []
    parts += [f"beta-{settings.beta:g}"] if settings.beta else []
    parts += ["token"] if settings.credit == "token" else []
    return "-".join(parts + ours.name_parts(settings.seed, settings.learning_rate)) or "vanilla"


if __name__ == "__main__":
    run_main(main)
