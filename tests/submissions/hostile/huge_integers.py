"""Integers that no float can hold."""


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [10**5000 for _ in log_probs_policy]


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [10**5000 for _ in log_probs_policy]


def shaped_reward(scores, completions, prompts=None):
    return [10**5000 for _ in scores]
