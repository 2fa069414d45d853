# kl_penalty_backward: square of kl_coef

import math


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    def weight(a, b):
        return math.exp(min(b - a, 20.0))

    return [kl_coef**2 * sum(1 - weight(a, b) for a, b in zip(p, r)) for p, r in zip(log_probs_policy, log_probs_ref)]
