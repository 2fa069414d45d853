# kl_penalty_backward: not 0 where the models agree

import math


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [-kl_coef * math.exp(min(sum(r) - sum(p), 20.0)) for p, r in zip(log_probs_policy, log_probs_ref)]
