# kl_penalty_forward: a float, not a list: return a plain list

def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return kl_coef * sum(sum(p) - sum(r) for p, r in zip(log_probs_policy, log_probs_ref))
