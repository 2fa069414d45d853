# kl_penalty_forward: first token of each completion is dropped

def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [kl_coef * sum(a - b for a, b in (list(zip(p, r))[1:] or zip(p, r))) for p, r in zip(log_probs_policy, log_probs_ref)]
