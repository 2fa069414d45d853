# kl_penalty_forward: does not change with kl_coef

def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [sum(a - b for a, b in zip(p, r)) for p, r in zip(log_probs_policy, log_probs_ref)]
