# kl_penalty_forward: average over the tokens

def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [kl_coef * sum(a - b for a, b in zip(p, r)) / max(len(p), 1) for p, r in zip(log_probs_policy, log_probs_ref)]
