"""Plain loops, everything spelled out; an int where the sum is empty."""

import math


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    out = []
    for i in range(len(log_probs_policy)):
        total = 0
        for t in range(len(log_probs_policy[i])):
            total = total + log_probs_policy[i][t] - log_probs_ref[i][t]
        out.append(kl_coef * total)
    return out


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    out = []
    for i in range(len(log_probs_policy)):
        total = 0
        for t in range(len(log_probs_policy[i])):
            gap = log_probs_ref[i][t] - log_probs_policy[i][t]
            if gap > math.log(10):  # the lowest cap the exercise allows
                gap = math.log(10)
            total = total + 1 - math.exp(gap)
        out.append(kl_coef * total)
    return out


def shaped_reward(scores, completions, prompts=None):
    """The score squared, less a little for each word said before, and for each of the first eight that is missing."""
    out = []
    for i in range(len(scores)):
        words = completions[i].lower().split()
        repeated = 0
        for t in range(len(words)):
            if words[t] in words[:t]:
                repeated = repeated + 1
        missing = 8 - len(words)
        if missing < 0:
            missing = 0
        out.append(scores[i] * scores[i] - 0.02 * repeated - 0.05 * missing)
    return out
