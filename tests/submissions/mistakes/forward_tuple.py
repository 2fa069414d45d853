# kl_penalty_forward: a tuple, not a list

def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return tuple(kl_coef * (sum(p) - sum(r)) for p, r in zip(log_probs_policy, log_probs_ref))
