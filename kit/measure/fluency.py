"""How fluent is a text to a language model that had no part in the training?"""

import math
from collections.abc import Callable, Sequence

import torch

from kit.lm.log_probs import token_log_probs
from kit.lm.models import load_policy, resolve_models

Fluency = Callable[[Sequence[str], Sequence[str]], list[float | None]]


def load_fluency(model: str, device: torch.device) -> Fluency:
    """(prompts, completions) -> -log p(completion | prompt) under `model`, in nats per byte of the completion.

    Per byte, not per token: its tokens are not the policy's. An empty completion has None. `model` is `smollm2`, an id
    or a path; `UserError` if it cannot be had.
    """
    lm, tokenizer = load_policy(resolve_models(model, "mini").policy, device)
    lm.requires_grad_(False).eval()

    def score(prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        said = [i for i, text in enumerate(completions) if text]
        scores: list[float | None] = [None] * len(completions)
        if not said:  # a policy that always stops at once
            return scores
        prompt_ids = tokenizer([prompts[i] for i in said])["input_ids"]
        ids = tokenizer([completions[i] for i in said], add_special_tokens=False)["input_ids"]
        for i, row in zip(said, token_log_probs(lm, prompt_ids, ids, chunk_size=8), strict=True):
            scores[i] = -math.fsum(row) / len(completions[i].encode("utf-8", "replace"))
        return scores

    return score
