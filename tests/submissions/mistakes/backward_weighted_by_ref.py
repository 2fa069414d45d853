# kl_penalty_backward: by pi_ref(token)

import math


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    def weight(a, b):
        return math.exp(min(b - a, 20.0))

    return [kl_coef * sum(math.exp(b) * (b - a) for a, b in zip(p, r)) for p, r in zip(log_probs_policy, log_probs_ref)]
