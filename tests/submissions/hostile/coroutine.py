"""Asynchronous functions."""


async def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return []


async def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return []


async def shaped_reward(scores, completions, prompts=None):
    return []
