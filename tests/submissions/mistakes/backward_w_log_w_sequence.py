# kl_penalty_backward: wrong sign

import math


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    out = []
    for p, r in zip(log_probs_policy, log_probs_ref):
        log_weight = sum(r) - sum(p)
        out.append(kl_coef * math.exp(min(log_weight, 20.0)) * max(log_weight, -1e9))
    return out
