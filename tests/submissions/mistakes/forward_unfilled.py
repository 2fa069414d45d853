# kl_penalty_forward: not implemented yet

def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    raise NotImplementedError("Exercise 1a: kl_penalty_forward")
