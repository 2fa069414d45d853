# kl_penalty_backward: average over the batch

import math


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    rows = [
        sum(1 - math.exp(min(b - a, 20.0)) for a, b in zip(p, r))
        for p, r in zip(log_probs_policy, log_probs_ref)
    ]
    return [kl_coef * sum(rows) / len(rows) for _ in rows]
