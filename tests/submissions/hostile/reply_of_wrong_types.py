"""Replaces the worker's answers by objects of the wrong types."""

import sys

REPLY = {"kind": {"a": 1}, "values": [[[]], {}, None, True, "x" * 1000], "arguments": 3, "error": None}
sys.modules["student"].call = lambda *args: dict(REPLY, missing=7) if len(args) else 0


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [1.0 for _ in log_probs_policy]


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [1.0 for _ in log_probs_policy]


def shaped_reward(scores, completions, prompts=None):
    return [1.0 for _ in scores]
