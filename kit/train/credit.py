"""Per-token advantages (`--credit token`): GRPO with an advantage for every token, and the exact KL in the loss.

GRPO gives all tokens of a completion one advantage, which contains the noise of all the others. Here the reward model
scores each prefix, every 4 tokens, and each block of tokens is credited with the change of the predicted reward V.

    V_j = E[reward | first j blocks of 4 tokens], fitted to the score so far and the rewards of the group's others
    A_j = sum_{i >= j} lambda^(i - j) (V_{i+1} - V_i),  V at the end = the reward     (GAE, gamma = 1: Schulman 2016)

With lambda = 1 the sum is reward - V_j: credit for everything that follows. With lambda = 0 a block is credited with
its own change only.

The KL is in the loss, not in the reward. KL(pi||pi_ref) = E_pi[sum_t k_t] with
k_t = sum_v pi(v|x<t) log(pi(v|x<t) / pi_ref(v|x<t)). Its gradient has two parts: that of each k_t itself, and a charge
to each token for the k_s of the prefixes it leads to:

    loss = E[sum_t beta k_t - (A_t - beta F_t) log pi(x_t|x<t)]
    F_t  = sum_{s > t} k_s - (the mean of that over the micro-batch's other completions, at the same place)

With lambda = 1 that is the gradient of E[reward] - beta KL(pi||pi_ref) for any V that does not see the completion's own
reward. V is fitted to the N completions of the batch, its own among them, which gives an error of about 3/N.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOTrainer

from kit.lm.log_probs import LanguageModel, as_reference, chunks, next_token_log_softmax

RIDGE = 0.5  # half a completion's weight
BLOCK = 4  # tokens between two scores: a score costs a twentieth of a step on the bundled models


def prefix_values(rewards: np.ndarray, so_far: np.ndarray) -> np.ndarray:
    """V of P groups of G completions: rewards (P, G), scores after 1, ..., K blocks (P, G, K) -> (P, G, K + 2).

    V_0 is fitted to the rewards of the group's others, V_{K+1} is the reward itself. A score is NaN once the completion
    has ended: V is the reward there. Ridge regression over the batch, block by block.
    """
    n = rewards.shape[1]
    others = (rewards.sum(1, keepdims=True) - rewards) / (n - 1)
    values = np.repeat(rewards[..., None], so_far.shape[-1] + 2, axis=-1)
    values[..., 0] = _fitted(rewards.ravel(), others.reshape(-1, 1)).reshape(rewards.shape)
    for j in range(so_far.shape[-1]):
        going = ~np.isnan(so_far[..., j])
        if going.any():
            known = np.stack([others[going], so_far[..., j][going]], axis=1)
            values[..., j + 1][going] = _fitted(rewards[going], known)
    return values


def _fitted(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The fit of y (N,) by a constant and x (N, F)."""
    centred = x - x.mean(0)
    slopes = np.linalg.solve(centred.T @ centred + RIDGE * np.eye(x.shape[1]), centred.T @ (y - y.mean()))
    return y.mean() + centred @ slopes


def credit(values: np.ndarray, trace: float) -> np.ndarray:
    """A of each block: (..., K + 1) values -> (..., K); `trace` is lambda."""
    gains = np.diff(values, axis=-1)
    advantages = np.zeros_like(gains)
    following = np.zeros(gains.shape[:-1])
    for j in reversed(range(gains.shape[-1])):
        advantages[..., j] = following = gains[..., j] + trace * following
    return advantages


def later(k: Tensor, lengths: Sequence[int]) -> Tensor:
    """F: the sum of k after each token, minus its mean over the other completions that are as long, if there are any.

    `k` (N,) holds the tokens of B completions of `lengths`, one after the other; so does the result.
    """
    rows = [row.flip(0).cumsum(0).flip(0) - row for row in k.split(list(lengths))]
    after = pad_sequence(rows, batch_first=True)  # (B, T), 0 behind the end
    there = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).bool()
    others = there.sum(0) - 1
    mean = (after.sum(0) - after) / others.clamp(min=1)
    return (after - mean * (others > 0))[there]


class CreditTrainer(GRPOTrainer):
    """TRL's trainer with these advantages and this loss.

    One process, each batch used once, and no vLLM: the gradient is taken where the tokens were sampled.
    """

    def __init__(self, credit_lambda: float, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.credit_lambda = credit_lambda
        self.price: float = self.args.beta
        self.beta = 0.0  # TRL's own term, k3 of the sampled tokens, is off

    def _calculate_rewards(
        self, inputs: list[dict], prompts: list[str], completions: list[str], completion_ids: list[list[int]]
    ) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids)  # (N, 1)
        self.credited = self._credit(rewards[:, 0].double().cpu().numpy(), prompts, completion_ids)
        return rewards

    def _credit(self, rewards: np.ndarray, prompts: list[str], completion_ids: list[list[int]]) -> Tensor:
        """A of every token, (N, longest); what is after a completion's end is never read."""
        longest = max(map(len, completion_ids))
        cuts = [(i, end) for i, row in enumerate(completion_ids) for end in range(BLOCK, len(row), BLOCK)]
        prefixes = [completion_ids[i][:end] for i, end in cuts]
        texts = self.processing_class.batch_decode(prefixes, skip_special_tokens=True)
        so_far = np.full((len(rewards), (longest - 1) // BLOCK), np.nan)
        # without cuts, all of them short, a student's function would get a batch of nothing
        scores = self.reward_funcs[0].base_reward(texts, [prompts[i] for i, _ in cuts])[1] if cuts else []
        for (i, end), score in zip(cuts, scores, strict=True):
            so_far[i, end // BLOCK - 1] = score
        groups = (len(rewards) // self.num_generations, self.num_generations)
        values = prefix_values(rewards.reshape(groups), so_far.reshape(*groups, so_far.shape[1]))
        blocks = credit(values, self.credit_lambda).reshape(len(rewards), -1)
        return torch.from_numpy(blocks).float().repeat_interleave(BLOCK, dim=1)[:, :longest]

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        output["advantages"] = self.credited.to(output["completion_ids"].device)  # (N, T)
        return output

    def _compute_loss(self, model: LanguageModel, inputs: dict[str, Any]) -> Tensor:
        def token_ids(part: str) -> list[list[int]]:
            pairs = zip(inputs[f"{part}_ids"], inputs[f"{part}_mask"], strict=True)
            return [ids[mask.bool()].tolist() for ids, mask in pairs]

        prompts, reward = token_ids("prompt"), self.reward_funcs[0]
        (chunk,) = chunks(prompts, token_ids("completion"), len(prompts))
        with self.accelerator.autocast():  # model.forward would do it, but is not called
            log_p = next_token_log_softmax(model, chunk, self.temperature)  # (N, V)
            with torch.no_grad(), as_reference(reward.policy, reward.reference) as reference:
                log_q = next_token_log_softmax(reference, chunk, self.temperature)
        chosen = log_p.gather(-1, chunk.sampled.to(log_p.device).unsqueeze(-1)).squeeze(-1)
        of_rows = zip(chunk.rows, chunk.lengths, strict=True)
        advantages = torch.cat([inputs["advantages"][row, :length] for row, length in of_rows])
        k = kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)  # (N,)
        advantages = advantages - self.price * later(k.detach(), chunk.lengths)
        # the ratio is 1, and its gradient that of log pi
        loss = (self.price * k - (chosen - chosen.detach()).exp() * advantages).sum()
        self._metrics["train"]["entropy"].append(-chosen.mean().item())
        self._metrics["train"]["kl"].append(k.mean().item())
        return loss / inputs["num_items_in_batch"]
