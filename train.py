"""GRPO on a sentiment reward: teach a language model to write positive film talk, and watch it being hacked.

One step: sample 8 completions of each of 8 prompts from the policy; give every completion a reward (reward_utils.py);
advantage = (reward - mean of its group) / (std of its group + 1e-4); take one gradient step on -E[advantage * log pi].
Two parts of textbook GRPO are off by default: the KL term in the loss (`--beta` turns TRL's on) and the old policy
(each batch is used once, so the ratio pi/pi_old is 1 and clipping is inactive).

    python train.py                                       the hack, on the bundled mini models: minutes on a CPU
    python train.py --kl_type forward                     its cure, once you have written it in rewards.py
    python train.py --config configs/gpt2.yaml            real GPT-2 on a GPU
"""

# ruff: noqa: E402 - flags are checked, and libraries silenced, before anything heavy is imported
from kit.base.screen import quiet

quiet(__name__)

import copy
import math
import os
import random
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

from kit.base.cli import KitParser
from kit.base.errors import UserError, run_main, told_in_one_line
from kit.base.flags import Arguments, above_0, at_least, check_steps, setting

# ---- flags -------------------------------------------------------------------------------------------------


@dataclass
class GRPOArguments(Arguments):
    """The flags of this script: the exercise's, GRPO's, and those that every trainer here has."""

    kl_type: Literal["none", "forward", "backward"] = setting(
        "none", "no penalty, KL(pi||pi_ref), or KL(pi_ref||pi)"
    )
    kl_coef: float = setting(0.1, "reward per nat of that penalty")
    use_solution: bool = setting(False, "rewards_solution.py instead of rewards.py")
    unchecked: bool = setting(False, "train with your functions even if the self-check says they are wrong")
    max_steps: int = setting(-1, "gradient steps; -1: 50 for mini models, else 200")
    learning_rate: float | None = setting(None, "decays linearly from 3e-4 (mini), else 2e-5; LoRA: x 5")
    prompts_per_step: int = setting(8, "prompts in one gradient step")
    # Q13. With 2 generations, which values can an advantage have, whatever the rewards are?
    num_generations: int = setting(8, "completions of each prompt: the group")
    # memory is that of one micro-batch; 16 is also faster than 64 on two CPU cores
    per_device_train_batch_size: int = setting(16, "completions in one backward pass")
    beta: float = setting(0.0, "KL(pi||pi_ref) in the loss, TRL's own term; 0: none")
    scale_rewards: Literal["group", "batch", "none"] = setting("group", "divide advantages by this std")
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = setting("dapo", "how the loss averages tokens")
    credit: Literal["completion", "token"] = setting("completion", "one advantage each (kit/train/credit.py)")
    credit_lambda: float = setting(0.9, "GAE's, for --credit token: 1 credits all that follows, 0 one block")
    bf16: bool | None = setting(None, "bfloat16 autocast; default: on a GPU that has it")
    save_steps: int = setting(20, "steps between checkpoints, for --resume")
    save_total_limit: int = setting(2, "checkpoints kept")
    trl: str | None = setting(None, "more settings of TRL's: a mapping in a --config file; docs/install.md")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "kl_coef", "beta", "credit_lambda")
        at_least(1, self, "prompts_per_step", "per_device_train_batch_size")
        at_least(2, self, "num_generations")  # a group needs something to compare
        above_0(self, "learning_rate")
        check_steps(self)
        if self.kl_type == "none" and self.kl_coef != type(self).kl_coef:
            said = f"--kl_coef {self.kl_coef:g} is the strength of your penalty"
            raise UserError(f"{said}: it needs --kl_type forward or backward (TRL's own KL is --beta)")
        if self.kl_type != "none" and self.beta:
            both = f"--kl_type {self.kl_type} and --beta {self.beta:g}"
            raise UserError(f"{both}: the KL would be counted twice; keep one")
        if self.credit == "token":
            self._check_token_credit()
        elif self.credit_lambda != type(self).credit_lambda:
            raise UserError(f"--credit_lambda {self.credit_lambda:g} needs --credit token")

    def _check_token_credit(self) -> None:
        """`--credit token` has a loss of its own (kit/train/credit.py), in one process."""
        if self.kl_type != "none":
            instead = f"give --beta {self.kl_coef:g}, which is KL(pi||pi_ref) token by token there"
            raise UserError(f"--credit token and --kl_type {self.kl_type} do not go together; {instead}")
        if self.credit_lambda > 1:
            raise UserError(f"--credit_lambda {self.credit_lambda:g}: must be between 0 and 1")
        for name in ("scale_rewards", "loss_type"):
            if getattr(self, name) != getattr(type(self), name):
                raise UserError(f"--credit token has a loss of its own, and no --{name}; leave that out")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("--credit token runs in one process; leave it out, or start one")

    @property
    def penalty(self) -> str:
        """The flags of the run's KL term, its strength last; empty for none."""
        if self.kl_type != "none":
            return f"--kl_type {self.kl_type} --kl_coef {self.kl_coef:g}"
        return f"--beta {self.beta:g}" if self.beta else ""

    @property
    def name(self) -> str:
        """The run's name: what is unusual about it (`forward-0.05-shaped`), or `vanilla` if nothing is."""
        parts = [f"{self.kl_type}-{self.kl_coef:g}"] if self.kl_type != "none" else []
        parts += [f"beta-{self.beta:g}"] if self.beta else []
        parts += ["token"] if self.credit == "token" else []
        return self.run_name or "-".join(parts + self.name_parts(self.learning_rate)) or "vanilla"


PARSER = KitParser(GRPOArguments, __doc__)
if __name__ == "__main__":  # a typo and --help are answered before torch is imported, which takes seconds
    with told_in_one_line():
        PARSER.parse()

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from kit.base.runs import read_metrics
from kit.base.student import load_student
from kit.lm.models import (
    add_plain_head,
    follow_mask_positions,
    fuse_gelu,
    load_policy,
    load_reference,
    lora_config,
)
from kit.train.closing import what_next
from kit.train.credit import CreditTrainer
from kit.train.hooks import Rollouts, StepCallback, run_trainer
from kit.train.processes import refuse_launch
from kit.train.session import Session
from kit.train.trl_settings import extra_settings, refusals_of_trl
from reward_utils import RewardFunction, make_reward_function

# ---- the trainer -------------------------------------------------------------------------------------------


def make_trainer(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: RewardFunction,
    prompts: list[str],
    args: GRPOArguments,
    config: GRPOConfig,
) -> GRPOTrainer:
    """TRL's trainer, or that of `--credit token`, with the kit's sampling (kit/train/hooks.py) and log-probs.

    Raises `UserError` for settings that TRL refuses, or an optimizer that is not installed.
    """
    trainer_class = partial(CreditTrainer, args.credit_lambda) if args.credit == "token" else GRPOTrainer
    rollouts = Rollouts(tokenizer, args.seed, args.max_completion_length, args.temperature)
    # Q16. Leave out one argument of this call at a time: which of them ends the run with an error, and which
    # leaves a run that is wrong without a word?
    with refusals_of_trl():
        trainer = trainer_class(
            model=policy,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            peft_config=lora_config(args.lora_r, policy) if args.use_peft else None,
            rollout_func=None if config.use_vllm else rollouts,
        )
        trainer.get_optimizer_cls_and_kwargs(config, policy)
    # No README.md beside every checkpoint: it would say "a fine-tuned version of None"
    trainer.create_model_card = lambda *_, **__: None
    trainer.remove_callback(PrinterCallback)
    for lm in (policy, trainer.ref_model):
        if lm is not None:
            add_plain_head(lm, args.temperature)
    return trainer


# ---- the run -----------------------------------------------------------------------------------------------


def main() -> None:
    args: GRPOArguments = PARSER.parse()
    config = grpo_config(args)  # before the session: TRL's settings reset Accelerate's state
    refuse_launch(args, config)
    # Check the student's functions before any model is loaded
    student = load_student(args.use_solution, args.kl_type, args.reward_shaping, args.unchecked)

    session = Session("grpo", args, PARSER.argv)
    if session.choice.policy.endswith(".gguf") and args.beta and not args.use_peft:
        name, instead = session.choice.policy_name, "add --use_peft, or take --kl_type"
        raise UserError(f"--beta with --model {name}: TRL cannot load a reference from its file; {instead}")
    config.max_steps = session.steps(args.max_steps)
    config.learning_rate = session.rate(args.learning_rate, mini=3e-4, full=2e-5)
    session.refuse_finished(session.first_step, config.max_steps, "max_steps")

    policy, tokenizer = load_policy(session.choice.policy)
    drawn = max(args.prompts_per_step, config.generation_batch_size // args.num_generations)  # in one step
    prompts = session.load_prompts(policy, tokenizer)
    order = shuffled_passes(prompts, (config.max_steps + 1) * drawn, args.seed)

    # The reward. With LoRA the reference is the policy without its adapter; with --beta it is TRL's.
    own_reference = not args.use_peft and args.beta == 0
    # Q15. Without a penalty nothing in the reward needs pi_ref. What would you not see without it, and which
    # curve would mislead you?
    reference = load_reference(session.choice.policy, session.device) if own_reference else None
    reward = make_reward_function(
        session.score,
        tokenizer,
        reward_shaping=args.reward_shaping,
        sparse_threshold=args.sparse_threshold,
        kl_type=args.kl_type,
        kl_coef=args.kl_coef,
        negate=args.negate_reward,
        temperature=args.temperature,
        reference=reference,
        student=student,
    )

    run = session.open_run(args.name)
    config.output_dir, config.run_name = str(run.path), run.path.name
    trainer = make_trainer(policy, tokenizer, reward, order, args, config)
    # FSDP will shard the trained weights over all processes; sampling and measuring use a whole copy
    whole = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.is_fsdp_enabled:
        whole = copy.deepcopy(whole)
    if trainer.ref_model is not None:  # --beta: TRL has loaded pi_ref, and one copy is enough
        # TRL loads the model that the policy's config names, which for a merged adapter is its base
        if not trainer.is_fsdp_enabled:
            trainer.ref_model.load_state_dict(policy.state_dict())
        reference = reward.reference = trainer.ref_model
        follow_mask_positions(trainer.ref_model)
        fuse_gelu(trainer.ref_model)  # as the policy: under bf16 the two forms differ
    reward.policy = policy = whole  # TRL has wrapped the model in LoRA, if asked to

    plan = f"{config.max_steps} steps of {args.prompts_per_step} prompts x {args.num_generations} completions"
    plan += f", learning rate {config.learning_rate:g}"
    session.begin(policy, tokenizer, reference, reward, plan, config.to_sanitized_dict())
    trainer.add_callback(StepCallback(session, policy, keep=args.save_total_limit))
    with session.training(policy, tokenizer):
        run_trainer(trainer, session, policy, config.max_steps)
    if session.is_main:
        validated = [m for m in read_metrics(session.run.path) if "val/sentiment_mean" in m]
        print(f"  {what_next(args, args.penalty, validated[0], validated[-1])}")


# ---- GRPO's settings ---------------------------------------------------------------------------------------


def grpo_config(args: GRPOArguments) -> GRPOConfig:
    """Every setting of TRL's that matters here, with its reason. What is not named keeps TRL's default.

    `max_steps` and `learning_rate` depend on the model and are set once it is chosen. Raises `UserError`.
    """
    completions = args.prompts_per_step * args.num_generations
    here, rest = divmod(completions, processes := int(os.environ.get("WORLD_SIZE", "1")))
    if rest:
        raise UserError(f"{completions} completions a step do not divide among {processes} processes")
    # Q14. prompts_per_step, num_generations, per_device_train_batch_size: halve each alone. Which one
    # changes nothing that is learned, and what do the other two do to the advantages?
    micro_batch = max(n for n in range(1, min(args.per_device_train_batch_size, here) + 1) if here % n == 0)
    gpu = torch.cuda.is_available()
    # is_bf16_supported() counts emulation in, which is twice as slow as fp32 on a T4
    has_bf16 = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    settings = {
        "output_dir": args.output_dir,
        "seed": args.seed,
        # One step: this many micro-batches, whose gradients add up. Each batch is used once, so pi/pi_old is 1.
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": here // micro_batch,
        "num_generations": args.num_generations,
        "num_iterations": 1,
        # What is sampled is what is scored: softmax(logits / temperature) over the whole vocabulary.
        "max_completion_length": args.max_completion_length,
        "temperature": args.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
        # The advantage, and how the loss averages. dapo: over all tokens of the step, so each token counts the same
        # in a long completion and in a short one. A completion cut off by the limit is a result like any other.
        "scale_rewards": args.scale_rewards,
        "loss_type": args.loss_type,
        "importance_sampling_level": "token",
        "mask_truncated_completions": False,
        # TRL's own KL(pi||pi_ref) in the loss. The correction multiplies k3 by the ratio pi/pi_old, which makes its
        # gradient that of the KL, token by token (exercise 7).
        "beta": args.beta,
        "use_bias_correction_kl": True,
        # GPT-2 ships with dropout 0.1. With it on, the KL of a policy equal to its reference is not 0.
        "disable_dropout": True,
        # Adam without weight decay; the learning rate falls linearly to 0.
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        # Weights are always fp32. Recomputing activations saves memory in models a thousand times this size; here it
        # costs a fifth of the time.
        "use_cpu": not gpu,
        "bf16": has_bf16 if args.bf16 is None else args.bf16,
        "fp16": False,
        "activation_checkpointing": False,
        "ddp_find_unused_parameters": False,
        # The prompts come shuffled, in one epoch as long as the run: TRL's sampler would replay the first epoch.
        "shuffle_dataset": False,
        "remove_unused_columns": False,
        # A line a step. A loss that is not finite ends the run; TRL would log it as 0.
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        # StepCallback removes old checkpoints once the new one is whole. The session validates, logs and shows
        # progress under the kit's names.
        "save_strategy": "steps",
        "save_steps": args.save_steps,
        "save_total_limit": None,
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "push_to_hub": False,
    }
    with refusals_of_trl():
        return GRPOConfig(**settings | extra_settings(args.trl, {f.name for f in fields(args)}, args.credit))


def shuffled_passes(prompts: list[str], number: int, seed: int) -> list[str]:
    """`number` prompts or a few more: passes over all of them, each in another order."""
    rng = random.Random(seed)
    passes = math.ceil(number / len(prompts))
    return [prompt for _ in range(passes) for prompt in rng.sample(prompts, len(prompts))]


if __name__ == "__main__":
    run_main(main)
