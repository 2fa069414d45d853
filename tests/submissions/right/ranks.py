"""Rewards by rank in the batch, a clipped score, generators and recursion: unusual, and right."""

from functools import reduce
from math import exp


def _total(row):
    half = len(row) // 2
    return _total(row[:half]) + _total(row[half:]) if half else sum(row)


def kl_penalty_forward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    return [kl_coef * _total([a - b for a, b in zip(p, r)]) for p, r in zip(log_probs_policy, log_probs_ref)]


def kl_penalty_backward(log_probs_policy, log_probs_ref, kl_coef=0.1):
    def add(total, pair):
        return total + 1.0 - min(exp(min(pair[1] - pair[0], 300)), 1e4)

    return list(kl_coef * reduce(add, zip(p, r), 0.0) for p, r in zip(log_probs_policy, log_probs_ref))


def shaped_reward(scores, completions, prompts=None):
    def worth(i):
        words = completions[i].split()
        return scores[i] - (len(words) < 6) - (2 * len(set(words)) < len(words))

    order = sorted(range(len(scores)), key=lambda i: (worth(i), len(completions[i])))
    rewards = [0] * len(scores)
    for rank, i in enumerate(order):
        rewards[i] = rank
    return rewards
