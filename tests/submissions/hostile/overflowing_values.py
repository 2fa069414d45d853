"""Finite values whose sums are not."""


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [(-1.0) ** i * 1.7e308 for i, _ in enumerate(log_probs_policy)]


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [(-1.0) ** i * 1.7e308 for i, _ in enumerate(log_probs_policy)]


def shaped_reward(scores, completions, prompts=None):
    return [(-1.0) ** i * 1.7e308 for i, _ in enumerate(scores)]
