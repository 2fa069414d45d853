"""A dataclass with postponed annotations, closures, module constants, a file that imports itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import rewards

CAP = math.log(1e6)


@dataclass
class Token:
    policy: float
    ref: float

    def cost(self) -> float:
        return 1.0 - math.exp(min(self.ref - self.policy, CAP))


def per_row(term):
    def penalty(log_probs_policy, log_probs_ref, kl_coef=0.1):
        return [
            kl_coef * math.fsum(term(Token(*pair)) for pair in zip(p, r))
            for p, r in zip(log_probs_policy, log_probs_ref)
        ]

    return penalty


kl_penalty_forward = per_row(lambda token: token.policy - token.ref)
kl_penalty_backward = per_row(Token.cost)


def shaped_reward(scores, completions, prompts=None):
    """A capped score, in full for fifteen different words."""
    assert rewards is not None
    variety = [min(len(set(text.split())), 15) / 15 for text in completions]
    return [min(s, 0.9) * v - 0.1 * text.count("!") for s, v, text in zip(scores, variety, completions)]
