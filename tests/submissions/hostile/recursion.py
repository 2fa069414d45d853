"""Recurses without end, with the limit taken off."""

import sys

sys.setrecursionlimit(10**9)


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef)


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef)


def shaped_reward(scores, completions, prompts=None):
    return shaped_reward(scores, completions)
