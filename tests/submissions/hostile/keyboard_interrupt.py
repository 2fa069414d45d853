"""Pretends that somebody pressed Ctrl-C."""


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    raise KeyboardInterrupt


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    raise KeyboardInterrupt


def shaped_reward(scores, completions, prompts=None):
    raise KeyboardInterrupt
