"""Sampling from softmax(logits / T), the distribution that `token_log_probs` scores.

`generate` of transformers obeys a model's `generation_config` (top-k, penalties, minimum lengths), draws a random
number for every entry of the vocabulary, and computes a prompt again for each of its samples. The loop here draws one
random number a token and computes a prompt once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kit.lm.loading import Tokenizer
from kit.lm.log_probs import LanguageModel, LogProbs, evaluating, positions, scaled_logits


@dataclass(frozen=True)
class Completion:
    """One sampled continuation. `completion_ids` keeps its EOS; `text` leaves it out."""

    prompt: str
    prompt_ids: list[int]
    completion_ids: list[int]
    text: str
    truncated: bool  # it ended at max_new_tokens, not at EOS


def sample(
    policy: LanguageModel,
    tokenizer: Tokenizer,
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

    The random numbers depend on `seed` alone: neither `batch_size` nor other calls change them, and they leave torch's
    own generator as it is. `on_batch` gets the number of completions of each finished batch, `on_text` at every token
    the texts of the batch so far.
    """
    # Q18. All models get the same seed. Do two models then write the same text? What is it good for?
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(len(prompts) * num_samples, max_new_tokens, generator=generator)
    prompt_ids = [ids for ids in tokenizer(list(prompts))["input_ids"] for _ in range(num_samples)]
    ends = end_tokens(policy, tokenizer)
    completions: list[Completion] = []

    def texts(rows: list[list[int]]) -> list[str]:
        return tokenizer.batch_decode([until(row, ends) for row in rows], skip_special_tokens=True)

    for start in range(0, len(prompt_ids), batch_size):
        rows = slice(start, start + batch_size)
        on_token = (lambda rows: on_text(texts(rows))) if on_text else None
        drawn, _ = rollout(policy, prompt_ids[rows], uniforms[rows], ends, temperature, on_token)
        for i, (ids, text) in enumerate(zip(drawn, texts(drawn), strict=True), start=start):
            prompt, truncated = prompts[i // num_samples], ids[-1] not in ends
            completions.append(Completion(prompt, prompt_ids[i], ids, text, truncated))
        if on_batch is not None:
            on_batch(len(drawn))
    return completions


def until(row: list[int], ends: set[int]) -> list[int]:
    """The row up to its first token of `ends`, which is kept."""
    return row[: next((i for i, token in enumerate(row, start=1) if token in ends), len(row))]


def end_tokens(policy: LanguageModel, tokenizer: Tokenizer) -> set[int]:
    """The tokens that end a completion: the tokenizer's EOS, and those the model's generation config names."""
    eos = policy.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *([eos] if isinstance(eos, int) else eos or [])}


@torch.no_grad()
def rollout(
    policy: LanguageModel,
    prompt_ids: Sequence[list[int]],
    uniforms: Tensor,
    ends: set[int],
    temperature: float = 1.0,
    on_token: Callable[[list[list[int]]], None] | None = None,
) -> tuple[list[list[int]], LogProbs]:
    """Draw one completion for each of N prompts: (N rows of token ids, N rows of their log-probs in nats).

    `uniforms` (N, T) in [0, 1) decide what is drawn; T is the maximum length. Equal prompts in a row are computed once.
    A completion keeps the token of `ends` that ended it; its row is then no longer computed. Dropout is off, the
    head and the softmax are fp32, and the policy's mode is put back. `on_token` gets the N rows after every draw;
    ignore what follows the end of a row.

    Raises FloatingPointError if a log-prob is NaN or infinite: the policy's weights have diverged.
    """
    lm = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    device = lm.get_input_embeddings().weight.device
    stop = torch.tensor(sorted(ends), device=device)
    with evaluating(policy):
        # Each distinct prompt once, padded on the left
        groups = [(ids, len(list(same))) for ids, same in groupby(prompt_ids)]
        width = max(len(ids) for ids, _ in groups)
        ids = torch.tensor([[0] * (width - len(row)) + row for row, _ in groups], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row, _ in groups], device=device)
        cache = DynamicCache()
        cache.layer_class_to_replicate = GrowingLayer
        hidden = lm.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache
        ).last_hidden_state[:, -1]

        # From here on a row for each completion: repeat the cache of its prompt
        which = torch.tensor([i for i, (_, count) in enumerate(groups) for _ in range(count)], device=device)
        cache.batch_select_indices(which)
        hidden, mask = hidden[which], mask[which]
        tokens = torch.zeros(uniforms.shape, dtype=torch.long, device=device)
        log_probs = torch.zeros(uniforms.shape, device=device)
        uniforms = uniforms.to(device)
        alive = torch.arange(len(prompt_ids), device=device)  # the rows still being computed
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
            # Dropping rows copies the cache: worth it once a quarter of them is done
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
    if not math.isfinite(total := sum(map(sum, log_rows))):
        raise FloatingPointError(f"the log-prob of a completion is {total}")
    return ids_rows, log_rows


def draw(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One token of softmax(logits) for each row, by inverse transform sampling: (N, V), (N,) -> (N,), (N,).

    The first token whose cumulated probability exceeds `uniform` in [0, 1): token k with probability p_k, never one
    of probability 0. The second tensor is its log-probability in nats.
    """
    top = logits.amax(-1, keepdim=True)
    cumulated = (logits - top).exp_().cumsum(-1)  # unnormalised; fp32, summed in double precision on a CPU
    total = cumulated[:, -1:]
    # The largest float32 below 1 is 1 - 2^-24, and that times total still rounds to less than total
    tokens = torch.searchsorted(cumulated, uniform[:, None] * total, right=True)
    tokens.clamp_(max=logits.shape[-1] - 1)  # for NaN logits, whose log-prob is NaN too
    # Q19. Suppose only the 50 likeliest tokens could be drawn here, and log-probs were taken as they are.
    # Could the mean of log pi - log pi_ref be negative? Could the exact sum over the vocabulary?
    log_probs = logits.gather(-1, tokens) - top - total.log()
    return tokens.squeeze(-1), log_probs.squeeze(-1)


class GrowingLayer(DynamicLayer):
    """Keys and values in a buffer with spare room: `DynamicLayer` copies them all at every token."""

    SPARE = 48  # tokens
    keys: Tensor
    values: Tensor
    buffers: list[Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = [key_states, value_states]
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.buffers is None or end > self.buffers[0].shape[-2]:
            old = [self.keys, self.values] if start else new
            room = (0, 0, 0, end + self.SPARE - old[0].shape[-2])
            self.buffers = [torch.nn.functional.pad(states, room) for states in old]
        for buffer, states in zip(self.buffers, new, strict=True):
            buffer[..., start:end, :] = states
        self.keys, self.values = (buffer[..., :end, :] for buffer in self.buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.buffers = None
