"""What TRL's trainer calls: `Rollouts` samples, `StepCallback` logs, validates, saves and stops."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback
from trl import GRPOTrainer

from kit.lm.loading import Tokenizer
from kit.lm.sampling import end_tokens, rollout
from kit.train.processes import follow
from kit.train.session import RunSession


class Rollouts:
    """TRL's `rollout_func`: completions from the policy as it is, with the log-probability of every token drawn.

    The random numbers depend on the seed, the step and the completion's place in the batch of all processes. So a
    resumed run draws what the uninterrupted run drew, and two processes draw together what one would. (With
    num_iterations above 1, or steps_per_generation above a step's micro-batches, only if the run was stopped between
    two batches.)
    """

    def __init__(self, tokenizer: Tokenizer, seed: int, max_new_tokens: int, temperature: float) -> None:
        self.tokenizer, self.temperature = tokenizer, temperature
        self.seed, self.max_new_tokens = seed, max_new_tokens
        self.step, self.round = -1, 0  # within one step there may be several rounds of sampling

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list]:
        # Q31. In the words of RL: what is a state here, an action, an episode, and the environment? Which part of it is
        # random?
        step, processes = trainer.state.global_step, trainer.accelerator
        self.step, self.round = step, self.round + 1 if step == self.step else 0
        n, rank = len(prompts), processes.process_index
        random_stream = np.random.default_rng([self.seed, step, self.round])
        shape = (n * processes.num_processes, self.max_new_tokens)
        uniforms = torch.from_numpy(random_stream.random(shape, dtype=np.float32))[rank * n : (rank + 1) * n]
        policy = trainer.reward_funcs[0].policy
        prompt_ids = self.tokenizer(prompts)["input_ids"]
        ends = end_tokens(policy, self.tokenizer)
        completion_ids, log_probs = rollout(policy, prompt_ids, uniforms, ends, self.temperature)
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
            "logprobs": log_probs,
            "policy_log_probs": log_probs,  # TRL hands an unknown key on to the reward
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
    """Every step: one line of metrics.jsonl and one on screen. Validates before the first step, every `--eval_every`
    steps and at the end: after the step's line, before its checkpoint is saved."""

    names: ClassVar = METRIC_NAMES
    shown: ClassVar = SHOWN
    every: ClassVar = 1  # steps from one line on screen to the next

    def __init__(self, session: RunSession, policy: torch.nn.Module, keep: int) -> None:
        self.session, self.policy, self.keep = session, policy, keep

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any, lr_scheduler: Any, model: Any, **_: Any
    ) -> None:
        # A checkpoint holds the --save_steps and learning rate of its run: 0 if that was finished. Take today's
        state.compute_steps(args, state.max_steps)
        if isinstance(lr_scheduler, LambdaLR):
            rates = zip(lr_scheduler.base_lrs, lr_scheduler.lr_lambdas, strict=True)
            for group, (base, decay) in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = base * decay(lr_scheduler.last_epoch)
        follow(self.policy, model)
        self.session.start(self.policy)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "train_runtime" in logs:  # TRL's summary at the end
            return
        m = {ours: logs[theirs] for theirs, ours in self.names.items() if theirs in logs}
        self.session.check(state.global_step, **m)
        self.session.log(state.global_step, m)
        # A step that uses a batch again (num_iterations) has no rewards, and most runs have no penalty
        shown = [name for name in self.shown if name in m and (m[name] or name != "kl_penalty")]
        parts = [self.shown[name].format(m[name]) for name in shown]
        if state.global_step % self.every == 0 or state.global_step == 1:
            self.session.show(state.global_step, state.max_steps, *parts)
        self.session.last_step = state.global_step
        self._validate_if_due(state)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.session.check_gradient(state.global_step + 1, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        follow(self.policy, model)
        self.session.check_weights(state.global_step, self.policy)
        if not control.should_log:  # else on_log comes next, and its line should be first
            self._validate_if_due(state)
        if self.session.stopping():
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.session.seal_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.keep)

    def _validate_if_due(self, state: Any) -> None:
        if self.session.due(state.global_step) or state.global_step == state.max_steps:
            self.session.validate(self.policy, state.global_step)


def run_trainer(trainer: Trainer, session: RunSession, model: torch.nn.Module, steps: int) -> None:
    """`trainer.train()` up to step `steps`, from the session's checkpoint if it has one."""
    if session.first_step < steps:
        trainer.train(resume_from_checkpoint=str(session.checkpoint) if session.checkpoint else None)
    else:  # stopped between its last checkpoint and final/; trainer.train() would take another step
        trainer._load_from_checkpoint(str(session.checkpoint))
        session.start(model)
