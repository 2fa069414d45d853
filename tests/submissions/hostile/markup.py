"""Errors made of markup and terminal codes."""


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    raise ValueError("<script>alert(1)</script>\x1b[2J\x00" + "A" * 10**6)


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    raise ValueError("<script>alert(1)</script>\x1b[2J\x00" + "A" * 10**6)


def shaped_reward(scores, completions, prompts=None):
    raise ValueError("<script>alert(1)</script>\x1b[2J\x00" + "A" * 10**6)
