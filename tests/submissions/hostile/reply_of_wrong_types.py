"""Replaces the worker's answers by objects of the wrong types."""

import sys

ODD = [[[]], {}, None, True, "x" * 1000] * 10
sys.modules["submission"].call = lambda module, name, args, kwargs: {
    "kind": {"a": 1},
    "values": ODD[: len(args[0])],
    "arguments": 3,
    "missing": 7,
}


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [1.0 for _ in log_probs_policy]


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [1.0 for _ in log_probs_policy]


def shaped_reward(scores, completions, prompts=None):
    return [1.0 for _ in scores]
