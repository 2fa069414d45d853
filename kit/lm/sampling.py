"""Sampling from softmax(logits / T), and nothing else: what is drawn is what `token_log_probs` scores.

`generate` of transformers obeys a model's `generation_config` (top-k, penalties, minimum lengths), draws with
`torch.multinomial`, which makes a random number for every entry of the vocabulary, and computes a prompt again for each
of its samples. The loop here draws one random number a token and computes a prompt once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from kit.lm.log_probs import evaluating, positions, scaled_logits


@dataclass(frozen=True)
class Completion:
    """One sampled continuation. `completion_ids` keeps its EOS; `text` leaves it out."""

    prompt: str
    prompt_ids: list[int]
    completion_ids: list[int]
    text: str
    truncated: bool  # it ended at max_new_tokens, not at EOS


def sample(
    policy: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    num_samples: int = 1,
    max_new_tokens: int = 40,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
    on_text: Callable[[list[str]], None] | None = None,
) -> list[Completion]:
    """`num_samples` completions of every prompt, prompt by prompt, from softmax(logits / temperature).

    The random numbers are a function of `seed` alone: training goes on as if nothing had been sampled, and neither
    `batch_size` nor the order of other calls changes what is drawn. `on_batch` is called with the number of
    completions of each finished batch, `on_text` at every token with the texts of the batch as far as they are drawn.
    """
    # Q18. All models get the same seed. Do two models then write the same text? What is it good for?
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(len(prompts) * num_samples, max_new_tokens, generator=generator)
    prompt_ids = [ids for ids in tokenizer(list(prompts))["input_ids"] for _ in range(num_samples)]
    ends = end_tokens(policy, tokenizer)
    completions: list[Completion] = []

    def on_token(rows: list[list[int]]) -> None:
        if on_text is not None:
            on_text(tokenizer.batch_decode([until(row, ends) for row in rows], skip_special_tokens=True))

    for start in range(0, len(prompt_ids), batch_size):
        rows = slice(start, start + batch_size)
        drawn, _ = rollout(
            policy, prompt_ids[rows], uniforms[rows], ends, temperature, on_token if on_text else None
        )
        for i, ids in enumerate(drawn, start=start):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            completions.append(
                Completion(prompts[i // num_samples], prompt_ids[i], ids, text, truncated=ids[-1] not in ends)
            )
        if on_batch is not None:
            on_batch(len(drawn))
    return completions


def until(row: list[int], ends: set[int]) -> list[int]:
    """The row up to its first token of `ends`, which is kept."""
    return row[: next((i for i, token in enumerate(row, start=1) if token in ends), len(row))]


def end_tokens(policy: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a completion: the tokenizer's EOS, and those the model's generation config names."""
    eos = policy.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *([eos] if isinstance(eos, int) else eos or [])}


@torch.no_grad()
def rollout(
    policy: PreTrainedModel | PeftModel,
    prompt_ids: Sequence[list[int]],
    uniforms: Tensor,
    ends: set[int],
    temperature: float = 1.0,
    on_token: Callable[[list[list[int]]], None] | None = None,
) -> tuple[list[list[int]], list[list[float]]]:
    """Draw one completion for each of N prompts: (N rows of token ids, N rows of their log-probs in nats).

    `uniforms` (N, T) in [0, 1) decide what is drawn, and T how long a completion may be. A prompt that stands several
    times in a row is computed once. A completion keeps the token of `ends` that ended it; its row is then left out
    of the computation. Dropout is off, the head and the softmax are fp32, and the policy's mode is put back.
    `on_token` is called after every draw with the N rows so far; whatever follows the end of one is not its own.

    Raises:
        FloatingPointError: a log-prob is NaN or infinite, as of a policy whose weights have blown up.
    """
    lm = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    device = lm.get_input_embeddings().weight.device
    stop = torch.tensor(sorted(ends), device=device)
    with evaluating(policy):
        # Every different prompt once, padded on the left
        groups = [(ids, len(list(same))) for ids, same in groupby(prompt_ids)]
        width = max(len(ids) for ids, _ in groups)
        ids = torch.tensor([[0] * (width - len(row)) + row for row, _ in groups], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row, _ in groups], device=device)
        cache = GrowingCache()
        hidden = lm.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache
        ).last_hidden_state[:, -1]

        # From here on a row for each completion: repeat what its prompt has left in the cache
        copies = torch.tensor([count for _, count in groups], device=device)
        which = torch.repeat_interleave(torch.arange(len(groups), device=device), copies)
        cache.batch_select_indices(which)
        hidden, mask = hidden[which], mask[which]
        tokens = torch.zeros(uniforms.shape, dtype=torch.long, device=device)
        log_probs = torch.zeros(uniforms.shape, device=device)
        uniforms = uniforms.to(device)
        alive = torch.arange(len(prompt_ids), device=device)  # the rows that still are computed
        ended = torch.zeros(len(prompt_ids), dtype=torch.bool, device=device)
        for t in range(uniforms.shape[1]):
            logits = scaled_logits(lm, hidden, temperature)  # (rows, V)
            drawn, log_p = draw(logits, uniforms[alive, t])
            tokens[alive, t], log_probs[alive, t] = drawn, log_p
            ended[alive] |= torch.isin(drawn, stop)
            if on_token is not None:
                on_token(tokens[:, : t + 1].tolist())
            going = ~ended[alive]
            if t + 1 == uniforms.shape[1] or not going.any():
                break
            # Leaving rows out means copying the cache: worth it once a quarter of them is done
            if going.sum() <= 0.75 * len(alive):
                cache.batch_select_indices(going.nonzero().squeeze(1))
                alive, mask, drawn = alive[going], mask[going], drawn[going]
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            hidden = lm.base_model(
                input_ids=drawn[:, None],
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=cache,
            ).last_hidden_state[:, -1]
    ids_rows = [until(row, ends) for row in tokens.tolist()]
    log_rows = [values[: len(row)] for row, values in zip(ids_rows, log_probs.tolist(), strict=True)]
    total = sum(map(sum, log_rows))
    if not math.isfinite(total):
        raise FloatingPointError(f"the log-prob of a completion is {total}")
    return ids_rows, log_rows


def draw(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One token of softmax(logits) for each row, by inverting the distribution function: (N, V), (N,) -> (N,), (N,).

    The token is the first whose cumulated probability exceeds `uniform` in [0, 1): token k with probability
    p_k, and never one of probability 0. The second tensor is its log-probability in nats.
    """
    top = logits.amax(-1, keepdim=True)
    cumulated = (logits - top).exp_().cumsum(-1)  # unnormalised; fp32, summed in double precision on a CPU
    total = cumulated[:, -1:]
    # The largest float32 below 1 is 1 - 2^-24, and that times total still rounds to less than total
    tokens = torch.searchsorted(cumulated, uniform[:, None] * total, right=True)
    tokens.clamp_(max=logits.shape[-1] - 1)  # NaN logits cumulate to nothing; their log-prob is NaN too
    # Q19. Suppose only the 50 likeliest tokens could be drawn here, and log-probs were taken as they are.
    # Could the mean of log pi - log pi_ref be negative? Could the exact sum over the vocabulary?
    log_probs = logits.gather(-1, tokens) - top - total.log()
    return tokens.squeeze(-1), log_probs.squeeze(-1)


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer in a buffer with room to grow: `DynamicLayer` copies them all at every token."""

    SPARE = 48  # tokens
    buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.buffers is None or end > self.buffers[0].shape[-2]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            old = (self.keys, self.values) if start else ()
            self.buffers = tuple(
                new.new_empty(*new.shape[:-2], end + self.SPARE, new.shape[-1])
                for new in (key_states, value_states)
            )
            for buffer, kept in zip(self.buffers, old, strict=False):
                buffer[..., :start, :] = kept
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = new
        self.keys: Tensor = self.buffers[0][..., :end, :]
        self.values: Tensor = self.buffers[1][..., :end, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.buffers = None


class GrowingCache(DynamicCache):
    """A `DynamicCache` of such layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = GrowingLayer
