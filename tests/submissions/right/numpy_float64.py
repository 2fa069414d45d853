"""numpy throughout; the returned list holds numpy.float64."""

import numpy as np


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [kl_coef * np.sum(np.array(p) - np.array(r)) for p, r in zip(log_probs_policy, log_probs_ref)]


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    result = []
    for p, r in zip(log_probs_policy, log_probs_ref):
        weights = np.exp(np.minimum(np.array(r, dtype=float) - np.array(p, dtype=float), 20.0))
        result.append(kl_coef * np.sum(1.0 - weights))
    return result


def shaped_reward(scores, completions, prompts=None):
    words = np.array([max(len(c.split()), 1) for c in completions])
    unique = np.array([len(set(c.split())) for c in completions])
    return list(np.array(scores) * unique / words * np.minimum(words / 10, 1.0))
