# kl_penalty_forward: changes its arguments

def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    for p, r in zip(log_probs_policy, log_probs_ref):
        for t in range(len(p)):
            p[t] -= r[t]
    return [kl_coef * sum(p) for p in log_probs_policy]
