"""The largest values that pass as finite, to make sums and products overflow."""


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [(-1.0) ** i * 9e299 for i, _ in enumerate(log_probs_policy)]


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [(-1.0) ** i * 9e299 for i, _ in enumerate(log_probs_policy)]


def shaped_reward(scores, completions, prompts=None):
    return [(-1.0) ** i * 9e299 for i, _ in enumerate(scores)]
