"""Decorators, keyword-only helpers, regular expressions; an optional import that what grades it does not have."""

import functools
import math
import re
from collections import Counter

try:
    import torch
except ImportError:
    torch = None


def for_each_row(term):
    @functools.wraps(term)
    def penalty(log_probs_policy, log_probs_ref, kl_coef=0.1):
        rows = zip(log_probs_policy, log_probs_ref)
        return [float(kl_coef * sum(map(term, p, r))) for p, r in rows]

    return penalty


@for_each_row
def kl_penalty_forward(a, b):
    return a - b


@for_each_row
def kl_penalty_backward(a, b):
    return 1 - math.exp(min(max(b - a, -50.0), 9.0))


def _pairs(text, *, most=4):
    """The share of the text's commonest pair of words, 1 for a text of fewer than `most` pairs."""
    words = re.findall(r"\w+", text.lower())
    pairs = Counter(zip(words, words[1:]))
    return max(pairs.values()) / sum(pairs.values()) if sum(pairs.values()) >= most else 1.0


def shaped_reward(scores, completions, prompts=None):
    return [1 / (1 + math.exp(-8 * (s - 0.5))) - 2 * _pairs(text) for s, text in zip(scores, completions)]
