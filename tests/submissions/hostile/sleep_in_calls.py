"""Sleeps a little in every call, so that no single one takes too long."""

import time


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    time.sleep(1.5); return [0.0]


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    time.sleep(1.5); return [0.0]


def shaped_reward(scores, completions, prompts=None):
    time.sleep(1.5); return [0.0]
