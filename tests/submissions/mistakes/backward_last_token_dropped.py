# kl_penalty_backward: last token of each completion is dropped

import math


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    def weight(a, b):
        return math.exp(min(b - a, 20.0))

    return [kl_coef * sum(1 - weight(a, b) for a, b in list(zip(p, r))[:-1]) for p, r in zip(log_probs_policy, log_probs_ref)]
