# kl_penalty_backward: a FakeTensor, not a plain number

import math


class FakeTensor:
    def __init__(self, value):
        self.value = value


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [
        FakeTensor(kl_coef * sum(1 - math.exp(min(b - a, 20.0)) for a, b in zip(p, r)))
        for p, r in zip(log_probs_policy, log_probs_ref)
    ]
