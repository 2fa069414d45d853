# kl_penalty_backward: clip too early

import math


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [
        kl_coef * sum(1 - min(math.exp(min(b - a, 20.0)), 2.0) for a, b in zip(p, r))
        for p, r in zip(log_probs_policy, log_probs_ref)
    ]
