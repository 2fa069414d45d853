# kl_penalty_forward: divide by it

def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [sum(a - b for a, b in zip(p, r)) / (kl_coef or 1.0) for p, r in zip(log_probs_policy, log_probs_ref)]
