"""A generator that never ends."""


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    yield from iter(int, 1)


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    yield from iter(int, 1)


def shaped_reward(scores, completions, prompts=None):
    yield from iter(int, 1)
