# kl_penalty_forward: the sign is wrong

def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [kl_coef * sum(b - a for a, b in zip(p, r)) for p, r in zip(log_probs_policy, log_probs_ref)]
