# kl_penalty_forward: return statement

def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    penalties = [kl_coef * (sum(p) - sum(r)) for p, r in zip(log_probs_policy, log_probs_ref)]
