"""Reads address 0."""

import ctypes


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    ctypes.string_at(0)


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    ctypes.string_at(0)


def shaped_reward(scores, completions, prompts=None):
    ctypes.string_at(0)
