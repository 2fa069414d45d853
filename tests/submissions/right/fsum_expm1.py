"""fsum, expm1, comprehensions, keyword-happy; a cap only against overflow."""

from math import expm1, fsum


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [kl_coef * (fsum(p) - fsum(r)) for p, r in zip(log_probs_policy, log_probs_ref, strict=True)]


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [
        -kl_coef * fsum(expm1(min(b - a, 700.0)) for a, b in zip(p, r, strict=True))
        for p, r in zip(log_probs_policy, log_probs_ref, strict=True)
    ]


def shaped_reward(scores, completions, prompts=None):
    """Sparse: a positive text of ten different words, which are more than half of all its words."""
    rewards = []
    for score, text in zip(scores, completions):
        words = text.split()
        rewards.append(1.0 if score >= 0.8 and len(set(words)) >= max(10, len(words) / 2) else 0.0)
    return rewards
