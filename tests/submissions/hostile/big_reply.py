"""Returns ten million numbers."""


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [0.25] * 10**7


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [0.25] * 10**7


def shaped_reward(scores, completions, prompts=None):
    return [0.25] * 10**7
