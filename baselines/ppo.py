"""PPO on the same task, in one file to be read from top to bottom: torch, transformers, accelerate, no trainer class.

    python -m baselines.ppo                        # mini models, the settings of configs/ppo.yaml
    python -m baselines.ppo --max_steps 2          # does it run? half a minute
    python -m baselines.ppo --config my.yaml --kl_coef 0.3

Unlike GRPO (train.py), the baseline is a learnt value function, there is a reward at every token, and each batch is
used several times.

These details decide whether PPO works. The code names them by number. Sources: [PPO] Schulman et al. 2017, arXiv
1707.06347; [GAE] Schulman et al. 2016, 1506.02438; [Z] Ziegler et al. 2019, 1909.08593 (PPO on GPT-2 with a sentiment
reward); [37] Huang et al. 2022, "The 37 Implementation Details of Proximal Policy Optimization"; [N] Huang et al. 2023,
"The N Implementation Details of RLHF with PPO"; [S] Schulman 2020, "Approximating KL Divergence".

 1. One trunk, two heads: the value head is one linear layer on the last hidden state [Z, N]. Its weight starts at
    zero, its bias at the mean score of the first batch. With V = 0 instead, A_t would be about (gamma lam)^(T-t) R:
    whitening would push all early tokens down and all late ones up (Yuan et al. 2025, 2503.01491).
 2. Dropout is off. Otherwise pi_new/pi_old is not 1 before the first update, and the KL at step 0 is not 0.
 3. Rows are built from the sampled token ids and padded on the right, so GPT-2's positions 0, 1, 2, ... are right.
    Nothing is decoded and encoded again. (`kit.lm.sampling` pads on the left, with position ids from the mask [N].)
 4. Sampled = scored: softmax(logits / temperature) over the whole vocabulary, no top-k, no top-p [N].
 5. An action is a token of the completion, its EOS included. Tokens after EOS are no actions: no reward, no loss. The
    mask comes from lengths; GPT-2 pads with EOS, so `ids != pad` would drop the real one.
 6. Reward of token t: -kl_coef (log pi_old - log pi_ref), the estimator k1 [S], plus the score R at the last
    token [Z eq. 2, N]. As a reward, its policy gradient is that of KL(pi||pi_ref) if gamma = 1; k1 in the loss would
    have the gradient E[grad log pi] = 0.
 7. Generalised advantage estimation within one completion [GAE eq. 16]. The last token ends the episode, EOS or not:
    the length limit is part of the task, so nothing is bootstrapped there.
 8. Advantages are whitened [37 detail 7, N] over the real tokens of the whole batch, never over padding. Returns,
    the targets of the value function, are taken before.
 9. Clipped surrogate objective [PPO eq. 7] and clipped value loss [37 detail 9], both means over real tokens.
10. The entropy bonus is that of the full softmax [37 detail 10]. -log pi of the sampled token has the right mean, but
    its gradient is -E[grad log pi] = 0.
11. Adam with eps 1e-5; the learning rate decays linearly to 0; the gradient's norm is clipped [37 details 3, 4, 11].
    The value head has a learning rate of its own, because it starts from zero.
12. The passes over a batch stop early once the approximate KL(pi_old||pi_new), estimator k3 [S], passes a target [37].
13. Every random draw is a function of (seed, step), so a resumed run draws what the uninterrupted run drew.
"""

# ruff: noqa: E402 - flags are checked, and libraries silenced, before anything heavy is imported
from kit.base.screen import quiet

quiet(__name__)

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from kit.base.cli import KitParser
from kit.base.errors import UserError, run_main, told_in_one_line
from kit.base.flags import BaselineArguments, above_0, at_least, check_steps, setting

# ---- settings ----------------------------------------------------------------------------------------------


@dataclass
class PPOArguments(BaselineArguments):
    """The flags of this script. configs/ppo.yaml holds PPO's own numbers, to copy and change."""

    max_steps: int = setting(-1, "batches; -1: 50 for mini models, else 200")
    batch_size: int = setting(64, "completions sampled a step")
    minibatch_size: int = setting(32, "completions to an update")
    ppo_epochs: int = setting(3, "passes over each batch, at most")
    learning_rate: float | None = setting(None, "decays linearly from: 5e-5 for mini, else 5e-6; LoRA: x 5")
    value_learning_rate: float = setting(1e-3, "of the value head; decays likewise")
    gamma: float = setting(0.99, "discount from token to token")
    lam: float = setting(0.95, "GAE's lambda: 1 trusts the rewards alone, 0 the value function alone")
    clip_range: float = setting(0.2, "how far pi_new/pi_old may leave 1 before its gradient is cut")
    value_clip_range: float = setting(0.2, "how far a value may move in one step before its gradient is cut")
    value_coef: float = setting(0.5, "weight of the value loss")
    entropy_coef: float = setting(0.01, "weight of the entropy bonus; 0: none")
    kl_coef: float = setting(0.1, "weight of log pi - log pi_ref in each token's reward; 0: none")
    target_kl: float = setting(0.05, "a step ends once KL(pi_old||pi_new) is above, nats per token; 0: never")
    max_grad_norm: float = setting(1.0, "a longer gradient is scaled down to this norm; 0: none")
    save_steps: int = setting(20, "steps between checkpoints, for --resume")
    save_total_limit: int = setting(2, "checkpoints kept")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self)
        at_least(1, self, "batch_size", "minibatch_size", "ppo_epochs")
        at_least(0, self, "value_learning_rate", "gamma", "lam", "clip_range", "value_clip_range")
        at_least(0, self, "value_coef", "entropy_coef", "kl_coef", "target_kl", "max_grad_norm")
        above_0(self, "learning_rate")
        if self.minibatch_size > self.batch_size:
            raise UserError(
                f"--minibatch_size {self.minibatch_size} is larger than --batch_size {self.batch_size}"
            )
        if max(self.gamma, self.lam) > 1:
            raise UserError("--gamma and --lam are at most 1")


PARSER = KitParser(PPOArguments, __doc__)
if __name__ == "__main__":
    with told_in_one_line():
        PARSER.parse()

import numpy as np
import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from trl.trainer.utils import disable_dropout_in_model

from kit.lm.log_probs import as_reference, scaled_logits
from kit.lm.sampling import Completion, sample
from kit.train.session import LanguageModel, Session, reward_without_penalty

# ---- formulas ----------------------------------------------------------------------------------------------
# Tensors are (B, T): column t is the completion's t-th token (the action), or the value of the state before it.
# mask is 1 on real tokens, 0 on padding, which is on the right.


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of all rows. An all-padding mask gives 0."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / std over the real tokens; 0 on padding. The std is that of the population, 1/n (detail 8)."""
    # Q26. Say that a batch has eight completions of each prompt. Can all tokens of all eight have a positive
    # advantage here? And in GRPO?
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return (x - mean) * (variance + 1e-8).rsqrt() * mask


def token_rewards(
    log_probs: Tensor, ref_log_probs: Tensor, scores: Tensor, mask: Tensor, kl_coef: float
) -> Tensor:
    """r_t = -kl_coef (log pi - log pi_ref)_t, and + score at the last real token (detail 6). (B, T); scores: (B,)."""
    rewards = -kl_coef * (log_probs - ref_log_probs) * mask
    last = mask.sum(1).long() - 1  # (B,) every completion has at least one token
    rewards[torch.arange(len(rewards)), last] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation of ragged episodes (detail 7): (advantages, returns), (B, T), 0 on padding.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}; both V and A are 0 after the last
    real token. The returns A_t + V_t are the value function's targets (TD(lambda)).
    """
    # Q27. Set gamma = lam = 1, V = 0 and one pass over each batch. Which older algorithm is this?
    values = values * mask
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value, next_advantage = values[:, t], advantages[:, t]
    return advantages, (advantages + values) * mask


def policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """-E[min(rho A, clamp(rho, 1 - clip, 1 + clip) A)] with rho = pi_new/pi_old: a scalar to minimise (detail 9)."""
    ratio = ((log_probs - old_log_probs) * mask).exp()
    # Q28. clip = 0.2. What is the gradient of a token with ratio 1.5 if its advantage is 1? And if it is -1?
    surrogate = torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -masked_mean(surrogate, mask)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """1/2 E[max((V - G)^2, (V_clip - G)^2)], V_clip within `clip` of the value before the update (detail 9)."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.max((values - returns) ** 2, (clipped - returns) ** 2), mask)


def entropy(logits: Tensor) -> Tensor:
    """H = logsumexp(z) - sum_v p_v z_v of each softmax, in nats: (..., V) -> (...) (detail 10)."""
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(G - V) / Var(G) over real tokens: 1 is perfect, 0 no better than a constant; nan for constant G."""
    real = mask.bool()
    variance = returns[real].var(unbiased=False)
    return (1 - (returns - values)[real].var(unbiased=False) / variance).item() if variance else math.nan


# ---- model -------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """Completions as tensors (details 3, 5): B rows, L tokens with the prompt, T of the completion alone."""

    ids: Tensor  # (B, L) prompt + completion, padded on the right
    attention: Tensor  # (B, L)
    where: Tensor  # (B, T) the position that predicts completion token t: len(prompt) - 1 + t
    actions: Tensor  # (B, T) the sampled tokens
    mask: Tensor  # (B, T) float, 1 on them

    @classmethod
    def of(cls, completions: list[Completion], device: torch.device | str = "cpu") -> "Batch":
        """Lay out sampled completions, each with at least one prompt token and one sampled token."""
        rows = [torch.tensor([*c.prompt_ids, *c.completion_ids]) for c in completions]
        sampled = [torch.tensor(c.completion_ids) for c in completions]
        starts = torch.tensor([len(c.prompt_ids) for c in completions])
        ids, actions = pad_sequence(rows, batch_first=True), pad_sequence(sampled, batch_first=True)
        attention = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        mask = pad_sequence([torch.ones(len(row)) for row in sampled], batch_first=True)
        where = (starts[:, None] - 1 + torch.arange(mask.shape[1])).clamp(max=ids.shape[1] - 1)
        return cls(*(x.to(device) for x in (ids, attention, where, actions, mask)))

    def __getitem__(self, rows: Tensor | slice) -> "Batch":
        return Batch(*(getattr(self, f.name)[rows] for f in fields(self)))


def logits_and_hidden(lm: LanguageModel, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """(logits / temperature (B, T, V), last hidden states (B, T, D)) before each action; the prompt needs no logits."""
    lm = lm.get_base_model() if isinstance(lm, PeftModel) else lm  # LoRA's layers are inside
    hidden = lm.base_model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)[0]
    hidden = hidden.gather(1, batch.where[..., None].expand(-1, -1, hidden.shape[-1]))
    return scaled_logits(lm, hidden, temperature), hidden.float()


def action_log_probs(logits: Tensor, batch: Batch) -> Tensor:
    """log pi(a_t | s_t) in nats of the sampled tokens, (B, T); 0 on padding."""
    chosen = logits.gather(-1, batch.actions[..., None]).squeeze(-1)
    return (chosen - logits.logsumexp(-1)) * batch.mask


class ActorCritic(nn.Module):
    """A causal language model `lm` (or its LoRA wrapper) with a value head on the same trunk (details 1, 2)."""

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__()
        self.lm = lm
        self.value_head = nn.Linear(lm.config.hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        disable_dropout_in_model(self)

    def forward(self, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
        """logits (B, T, V) and values (B, T)."""
        logits, hidden = logits_and_hidden(self.lm, batch, temperature)
        with torch.autocast(hidden.device.type, enabled=False):
            return logits, self.value_head(hidden).squeeze(-1)


# ---- one step: sample, collect, update -------------------------------------------------------------------------------


@dataclass
class Rollout:
    """One batch of experience. All tensors are (B, T), and constants in the update."""

    completions: list[Completion]
    batch: Batch
    log_probs: Tensor  # log pi_old
    ref_log_probs: Tensor
    values: Tensor  # V_old
    rewards: Tensor
    advantages: Tensor  # whitened
    returns: Tensor


@torch.no_grad()
def collect(
    model: ActorCritic,
    reference: PreTrainedModel | None,
    completions: list[Completion],
    scores: list[float],
    args: PPOArguments,
    accelerator: Accelerator,
) -> Rollout:
    """The rollout of sampled completions and their scores R. `reference` None: LoRA, whose base is the reference."""
    batch = Batch.of(completions, accelerator.device)
    parts = []
    for rows in torch.arange(len(batch.ids)).split(args.minibatch_size):
        part = batch[rows]
        with accelerator.autocast():
            logits, values = model(part, args.temperature)
            with as_reference(model.lm, reference) as pi_ref:
                ref_logits, _ = logits_and_hidden(pi_ref, part, args.temperature)
        parts.append((action_log_probs(logits, part), action_log_probs(ref_logits, part), values * part.mask))
    log_probs, ref_log_probs, values = (torch.cat(column) for column in zip(*parts, strict=True))

    R = torch.tensor(scores, device=accelerator.device)  # (B,)
    rewards = token_rewards(log_probs, ref_log_probs, R, batch.mask, args.kl_coef)
    advantages, returns = gae(rewards, values, batch.mask, args.gamma, args.lam)
    advantages = whiten(advantages, batch.mask)
    return Rollout(completions, batch, log_probs, ref_log_probs, values, rewards, advantages, returns)


def update(
    model: ActorCritic,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    args: PPOArguments,
    accelerator: Accelerator,
    seed: int,
    check: Callable[..., None] = lambda **series: None,
) -> dict[str, float]:
    """Several passes over one rollout: mean losses and diagnostics. `check` gets what must be finite before a step."""
    generator = torch.Generator().manual_seed(seed)
    stats: dict[str, list[float]] = defaultdict(list)

    def note(**found: Tensor) -> None:
        for name, value in found.items():
            stats[name].append(value.item())

    passes = [torch.randperm(len(rollout.batch.ids), generator=generator) for _ in range(args.ppo_epochs)]
    for rows in (rows for order in passes for rows in order.split(args.minibatch_size)):
        batch, mask, old_log_probs = rollout.batch[rows], rollout.batch.mask[rows], rollout.log_probs[rows]
        with accelerator.autocast():
            logits, values = model(batch, args.temperature)  # (b, T, V), (b, T)
        log_probs = action_log_probs(logits, batch)  # (b, T)

        with torch.no_grad():
            d = log_probs - old_log_probs
            ratio = d.exp()
            update_kl = masked_mean(torch.expm1(d) - d, mask)  # k3 of KL(pi_old||pi_new), nats per token
            note(
                update_kl_k1=masked_mean(-d, mask),
                update_kl_k3=update_kl,
                clip_fraction=masked_mean(((ratio - 1).abs() > args.clip_range).float(), mask),
                ratio=masked_mean(ratio, mask),
                first_ratio_error=((ratio - 1) * mask).abs().max(),
            )
        if 0 < args.target_kl < update_kl:  # detail 12
            break

        pg_loss = policy_loss(log_probs, old_log_probs, rollout.advantages[rows], mask, args.clip_range)
        v_loss = value_loss(values, rollout.values[rows], rollout.returns[rows], mask, args.value_clip_range)
        bonus = masked_mean(entropy(logits), mask)
        loss = pg_loss + args.value_coef * v_loss - args.entropy_coef * bonus
        optimizer.zero_grad()
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
        check(loss=loss.item(), gradient_norm=norm.item())
        optimizer.step()
        note(loss=loss, policy_loss=pg_loss, value_loss=v_loss, entropy=bonus, grad_norm=norm)
    means = {name: sum(values) / len(values) for name, values in stats.items()}
    # Before the first update pi_new is pi_old (detail 2): more than rounding here is a bug
    return means | {"first_ratio_error": stats["first_ratio_error"][0], "updates": len(stats["loss"])}


SHOWN = (
    "reward {reward:.3f} | R {shaped:.3f} | score {score:.3f} | KL {kl_policy_ref:.1f} | "
    "explained {explained_variance:.2f} | clipped {clip_fraction:.0%} | length {length_mean:.0f} | {step_time:.1f} s"
)


@torch.no_grad()
def numbers(rollout: Rollout, scores: list[float], shaped: list[float], kl_coef: float) -> dict[str, float]:
    """The logged numbers of a rollout: means over its completions, KLs in nats per completion."""
    mask = rollout.batch.mask
    d = (rollout.log_probs - rollout.ref_log_probs) * mask  # log pi/pi_ref, 0 on padding
    kl_k1 = d.sum(1).mean().item()
    return {
        "reward": rollout.rewards.sum(1).mean().item(),  # R - kl_coef * k1
        "shaped": sum(shaped) / len(shaped),  # R
        "score": sum(scores) / len(scores),
        "kl_penalty": kl_coef * kl_k1,
        "kl_policy_ref": (torch.expm1(-d) + d).sum(1).mean().item(),  # k3, as in train.py
        "kl_policy_ref_k1": kl_k1,
        "return": masked_mean(rollout.returns, mask).item(),
        "explained_variance": explained_variance(rollout.values, rollout.returns, mask),
        "length_mean": mask.sum(1).mean().item(),
        "truncated_ratio": sum(c.truncated for c in rollout.completions) / len(rollout.completions),
    }


# ---- checkpoints: what the next step needs besides the language model -----------------------------------------


def save_learner(folder: Path, model: ActorCritic, optimizer: torch.optim.Optimizer) -> None:
    """Value head and optimizer into `folder`."""
    folder.mkdir(exist_ok=True)
    save_file(model.value_head.state_dict(), folder / "value_head.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")


def load_learner(folder: Path, model: ActorCritic, optimizer: torch.optim.Optimizer) -> None:
    """Value head and optimizer from the checkpoint `folder`."""
    model.value_head.load_state_dict(load_file(folder / "value_head.safetensors"))
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True))


# ---- the run -----------------------------------------------------------------------------------------------


def main() -> None:
    args: PPOArguments = PARSER.parse()
    precision = "bf16" if args.bf16 else "no"
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)
    session = Session("ppo", args, PARSER.argv)
    name = args.run_name or "-".join([f"ppo-{args.kl_coef:g}", *args.name_parts(args.learning_rate)])
    args.max_steps = session.steps(args.max_steps)
    session.refuse_finished(session.first_step, args.max_steps, "max_steps")
    args.learning_rate = session.rate(args.learning_rate, mini=5e-5, full=5e-6)
    lm, tokenizer, reference = session.load_models()
    model = ActorCritic(lm).to(session.device)
    parts = [p for p in lm.parameters() if p.requires_grad], model.value_head.parameters()
    optimizer = torch.optim.Adam([{"params": part} for part in parts], eps=1e-5)  # detail 11
    model, optimizer = accelerator.prepare(model, optimizer)
    if session.checkpoint:
        load_learner(session.checkpoint, model, optimizer)
    prompts = session.load_prompts(lm, tokenizer)
    reward = reward_without_penalty(args, session.score, tokenizer)
    run = session.open_run(name)
    plan = f"{args.max_steps} steps of {args.batch_size} completions, learning rate {args.learning_rate:g}, "
    session.begin(lm, tokenizer, reference, reward, plan + f"kl_coef {args.kl_coef:g}")
    generated_tokens = session.state.get("generated_tokens", 0)
    with session.training(lm, tokenizer, "Compare: python evaluate.py base ppo={run}"):
        session.start(lm)
        for step in range(session.first_step + 1, args.max_steps + 1):
            started = time.monotonic()
            rng = np.random.default_rng([args.seed, step])  # detail 13
            left = 1 - (step - 1) / args.max_steps  # detail 11
            optimizer.param_groups[0]["lr"] = rate = left * args.learning_rate
            optimizer.param_groups[1]["lr"] = left * args.value_learning_rate

            # Experience: one completion for each of B prompts, and its score
            asked = rng.choice(prompts, args.batch_size, replace=args.batch_size > len(prompts)).tolist()
            length, seed = args.max_completion_length, int(rng.integers(2**31))
            with accelerator.autocast():  # detail 4, rounding included
                completions = sample(lm, tokenizer, asked, 1, length, args.temperature, seed)
            scores, shaped = reward.base_reward([c.text for c in completions], asked)
            if step == 1:  # detail 1
                model.value_head.bias.data.fill_(sum(shaped) / len(shaped))
            rollout = collect(model, reference, completions, shaped, args, accelerator)
            found = numbers(rollout, scores, shaped, args.kl_coef)
            session.check(step, reward=found["reward"], KL=found["kl_policy_ref"])

            # Learning
            seed, finite = int(rng.integers(2**31)), partial(session.check, step)
            stats = update(model, optimizer, rollout, args, accelerator, seed, finite)
            session.check_weights(step, model)

            tokens, seconds = int(rollout.batch.mask.sum()), time.monotonic() - started
            generated_tokens += tokens
            metrics = found | stats | {"learning_rate": rate, "generated_tokens": generated_tokens}
            metrics |= {"tokens_per_second": tokens / seconds, "step_time": seconds}
            session.log(step, metrics)
            session.show(step, args.max_steps, SHOWN.format(**metrics))
            last = step == args.max_steps
            if last or session.due(step):
                session.validate(lm, step)
            stopping = session.stopping()
            if last or stopping or step % args.save_steps == 0:
                state = {"generated_tokens": generated_tokens}
                save_learner(run.path / f"checkpoint-{step}", model, optimizer)
                session.save_checkpoint(step, lm, tokenizer, state, keep=args.save_total_limit)
            if stopping:
                break


if __name__ == "__main__":
    run_main(main)
