# kl_penalty_forward: a log is missing

import math


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [kl_coef * (sum(math.exp(a - b) for a, b in zip(p, r)) if p else 0.0) for p, r in zip(log_probs_policy, log_probs_ref)]
