# kl_penalty_forward: number of completions in the batch

def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    n = len(log_probs_policy)
    return [kl_coef * (sum(p) - sum(r)) / n for p, r in zip(log_probs_policy, log_probs_ref)]
