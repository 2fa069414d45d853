# kl_penalty_forward: IndexError

def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    out = []
    for p, r in zip(log_probs_policy, log_probs_ref):
        total = p[0] - r[0]
        for t in range(1, len(p)):
            total += p[t] - r[t]
        out.append(kl_coef * total)
    return out
