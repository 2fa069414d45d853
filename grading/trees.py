"""Models small enough to know everything about: tables of next-token logits, and every completion they can write.

On such a tree what training only samples is a finite sum:

    the expectation      E[f]               = sum_x pi(x) f(x)
    the policy gradient  E[f grad log pi]   = sum_x pi(x) f(x) grad log pi(x)

Nothing in here knows about students. Standard library only.
"""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

Prefix = tuple[int, ...]
Model = dict[Prefix, list[float]]  # logits of the next token after each prefix


@dataclass
class Tree:
    """A policy, a reference, and every completion they can write."""

    policy: Model
    ref: Model
    completions: list[Prefix]

    def rows(self, model: Model) -> list[list[float]]:
        """log p(x_t | x_<t) for each completion (rows) and token, the end-of-text token included."""
        table = {prefix: log_softmax(logits) for prefix, logits in model.items()}
        return [[table[x[:t]][x[t]] for t in range(len(x))] for x in self.completions]

    def pairs(self) -> list[list[tuple[float, float]]]:
        """(log pi, log pi_ref) for each completion (rows) and token."""
        both = zip(self.rows(self.policy), self.rows(self.ref), strict=True)
        return [list(zip(row, row_ref, strict=True)) for row, row_ref in both]

    def mean(self, values: list[float]) -> float:
        """E[f] under the policy, `values` being f of each completion."""
        return sum(math.exp(sum(row)) * v for row, v in zip(self.rows(self.policy), values, strict=True))


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = top + math.log(sum(math.exp(logit - top) for logit in logits))
    return [logit - total for logit in logits]


def enumerate_completions(vocab: int, length: int, eos: bool) -> list[Prefix]:
    """All sequences of `length` tokens; with `eos`, token 0 ends a completion early."""
    sequences = itertools.product(range(vocab), repeat=length)
    return sorted({x[: x.index(0) + 1] if eos and 0 in x else x for x in sequences})


def make_tree(rng: random.Random, vocab: int, length: int, eos: bool, nats: float) -> Tree:
    """Random models with KL(pi_ref || pi) = `nats`, and no completion more than 8 times likelier under pi_ref.

    The second condition leaves room for a cap on importance weights, which a submission may have from 10 on.
    """
    completions = enumerate_completions(vocab, length, eos)
    prefixes = sorted({x[:t] for x in completions for t in range(len(x))})
    while True:
        ref = {s: [rng.gauss(0.0, 0.7) for _ in range(vocab)] for s in prefixes}
        change = {s: [rng.gauss(0.0, 1.0) for _ in range(vocab)] for s in prefixes}
        tree = Tree(ref, ref, completions)
        low, high = 0.0, 4.0
        for _ in range(40):  # bisection: how far to go in the direction `change`
            size = (low + high) / 2
            tree.policy = {
                s: [a + size * b for a, b in zip(ref[s], change[s], strict=True)] for s in prefixes
            }
            low, high = (size, high) if kl(tree, tree.ref, tree.policy) < nats else (low, size)
        log_weights = [sum(r - p for p, r in row) for row in tree.pairs()]
        if max(log_weights) < math.log(8) and abs(kl(tree, tree.ref, tree.policy) - nats) < 1e-3 * nats:
            return tree


def kl(tree: Tree, p: Model, q: Model) -> float:
    """KL(p || q) in nats over whole completions, from its definition."""
    totals = zip(map(sum, tree.rows(p)), map(sum, tree.rows(q)), strict=True)
    return sum(math.exp(log_p) * (log_p - log_q) for log_p, log_q in totals)


def gradient(divergence: Callable[[Model], float], policy: Model, step: float = 1e-5) -> list[float]:
    """Gradient in the policy's logits by central differences: exact to 1e-9, and assumes nothing but the KL."""

    def at(prefix: Prefix, token: int, change: float) -> float:
        logits = [logit + change * (a == token) for a, logit in enumerate(policy[prefix])]
        return divergence({**policy, prefix: logits})

    places = [(prefix, token) for prefix, logits in policy.items() for token in range(len(logits))]
    return [(at(*place, step) - at(*place, -step)) / (2 * step) for place in places]


def policy_gradient(tree: Tree, values: list[float]) -> list[float]:
    """E[f grad log pi] in the policy's logits, with f a constant: d log pi(x) / d logit(s, a) = 1[a] - pi(a | s)."""
    probs = {s: [math.exp(lp) for lp in log_softmax(logits)] for s, logits in tree.policy.items()}
    result = {s: [0.0] * len(logits) for s, logits in tree.policy.items()}
    for x, row, value in zip(tree.completions, tree.rows(tree.policy), values, strict=True):
        weight = math.exp(sum(row)) * value
        for t, token in enumerate(x):
            at_prefix = result[x[:t]]
            for a, prob in enumerate(probs[x[:t]]):
                at_prefix[a] += weight * ((a == token) - prob)
    return [g for gradients in result.values() for g in gradients]


def norm(g: list[float]) -> float:
    return math.sqrt(sum(x * x for x in g))


def cosine(g: list[float], h: list[float]) -> float:
    lengths = norm(g) * norm(h)
    return sum(x * y for x, y in zip(g, h, strict=True)) / lengths if lengths else 0.0
