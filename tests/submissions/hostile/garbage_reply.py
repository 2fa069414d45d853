"""Replaces the worker's JSON by something that is none, deeply nested."""

import json

json.dumps = lambda *args, **kwargs: "[" * 100000


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [1.0 for _ in log_probs_policy]


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [1.0 for _ in log_probs_policy]


def shaped_reward(scores, completions, prompts=None):
    return [1.0 for _ in scores]
