# kl_penalty_forward: took too long

def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    out = []
    for p, r in zip(log_probs_policy, log_probs_ref):
        total, t = 0.0, 0
        while t != len(p) or t == 0:
            if t < len(p):
                total += p[t] - r[t]
                t += 1
        out.append(kl_coef * total)
    return out
