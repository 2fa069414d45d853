"""Exercise 7 by enumeration: the exact cosines of docs/results.md, and both KLs after 400 steps.

python -m benchmarks.estimators        a minute
"""

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

from grading.trees import Tree, cosine, gradient, kl, log_softmax, make_tree

# f(d), and its slope in log pi: d has slope 1, w = exp(-d) has slope -w
TERMS: dict[str, tuple[Any, Callable[[float], float]]] = {
    "k1": (lambda d: d, lambda d: 1.0),
    "k2": (lambda d: d * d / 2, lambda d: d),
    "k3": (lambda d: math.exp(-d) - 1 + d, lambda d: 1 - math.exp(-d)),
    "w log w": (lambda d: -d * math.exp(-d), lambda d: (d - 1) * math.exp(-d)),
    "1 - w": (lambda d: 1 - math.exp(-d), lambda d: math.exp(-d)),
    "exact": (None, lambda d: d),  # at one prefix: grad sum_v pi(v) d(v) = E[d grad log pi]
}


def direction(tree: Tree, name: str, place: str) -> list[float]:
    """E[sum_t a_t grad log pi(x_t | x_<t)]: a_t is the whole completion's f in the reward, the slope in the loss."""
    f, slope = TERMS[name]
    pi, ref = (
        {s: list(map(math.exp, log_softmax(z))) for s, z in m.items()} for m in (tree.policy, tree.ref)
    )
    total = {s: [0.0] * len(p) for s, p in pi.items()}
    for x in tree.completions:
        steps = [(x[:t], token) for t, token in enumerate(x)]
        ds = [math.log(pi[s][v] / ref[s][v]) for s, v in steps]
        exact = [sum(p * math.log(p / r) for p, r in zip(pi[s], ref[s], strict=True)) for s, _ in steps]
        whole = sum(map(f, ds)) if f else sum(exact)
        probability = math.prod(pi[s][v] for s, v in steps)
        for (s, v), d in zip(steps, ds, strict=True):
            a = slope(d) if place == "loss" else whole
            for u, p in enumerate(pi[s]):
                total[s][u] += probability * a * ((u == v) - p)
    return [g for row in total.values() for g in row]


def row(shape: tuple[int, int, bool], name: str, place: str) -> str:
    """The cosines with the gradients of both KLs, and both KLs after 400 steps of learning rate 1."""
    tree = make_tree(random.Random(0), *shape, nats=0.3)
    forward = gradient(lambda policy: kl(tree, policy, tree.ref), tree.policy)
    backward = gradient(lambda policy: kl(tree, tree.ref, policy), tree.policy)
    g = direction(tree, name, place)
    cosines = (cosine(g, forward), cosine(g, backward)) if max(map(abs, g)) > 1e-12 else (0, 0)
    for _ in range(400):
        step = iter(direction(tree, name, place))
        moved = {s: [z - next(step) for z in row] for s, row in tree.policy.items()}
        if max(abs(z) for row in moved.values() for z in row) > 60:
            break
        tree.policy = moved
    ends = kl(tree, tree.policy, tree.ref), kl(tree, tree.ref, tree.policy)
    return f"{name} {place}: cosines {cosines[0]:+.3f} {cosines[1]:+.3f}, after {ends[0]:.2f} {ends[1]:.2f}"


if __name__ == "__main__":
    for case in itertools.product(((4, 1, False), (3, 3, True)), TERMS, ("reward", "loss")):
        print(row(*case))
