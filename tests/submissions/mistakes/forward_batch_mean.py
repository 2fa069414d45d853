# kl_penalty_forward: average over the batch

def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    rows = [sum(p) - sum(r) for p, r in zip(log_probs_policy, log_probs_ref)]
    mean = sum(rows) / max(len(rows), 1)
    return [kl_coef * mean] * len(rows)
