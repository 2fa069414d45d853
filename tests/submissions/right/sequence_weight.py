"""One importance weight for the whole completion; a reward that looks at the text and at the prompt."""

import math
import zlib


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [kl_coef * (sum(p) - sum(r)) for p, r in zip(log_probs_policy, log_probs_ref)]


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    penalties = []
    for p, r in zip(log_probs_policy, log_probs_ref):
        log_ratio = sum(r) - sum(p)
        try:
            weight = math.exp(log_ratio)
        except OverflowError:
            weight = 1e6
        penalties.append(kl_coef * (1 - weight))
    return penalties


def shaped_reward(scores, completions, prompts=None):
    prompts = prompts or [""] * len(completions)
    rewards = []
    for score, text, prompt in zip(scores, completions, prompts):
        echo = 1.0 if prompt and prompt.lower() in text.lower() else 0.0
        brevity = max(0.0, 1 - len(text) / 55)
        data = text.encode()
        squeezed = len(zlib.compress(data)) / len(data) if data else 1.0  # small for a text that repeats itself
        rewards.append(score - 0.5 * echo - 0.3 * brevity - max(0.0, 0.5 - squeezed))
    return rewards
