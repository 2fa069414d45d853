# kl_penalty_backward: OverflowError

import math


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [
        kl_coef * sum(1 - min(math.exp(b - a), 1e4) for a, b in zip(p, r))
        for p, r in zip(log_probs_policy, log_probs_ref)
    ]
