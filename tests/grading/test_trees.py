"""The enumerated models: values by hand, sums that must be 1. `pytest tests/grading/test_trees.py`."""

import math
import random

import pytest

from grading import trees


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def two_token_tree() -> trees.Tree:
    ref, policy = {(): logs(0.25, 0.75)}, {(): logs(0.5, 0.5)}
    return trees.Tree(policy, ref, trees.enumerate_completions(vocab=2, length=1, eos=False))


def test_kl_by_hand():
    tree = two_token_tree()
    assert trees.kl(tree, tree.policy, tree.ref) == pytest.approx(0.5 * math.log(4 / 3))
    assert trees.kl(tree, tree.ref, tree.policy) == pytest.approx(0.130812, abs=1e-6)


def test_gradients_by_hand():
    """d KL(pi_ref || pi) / d logits = pi - pi_ref = (1/4, -1/4); E[f grad log pi] for f = (1, 0): (1/4, -1/4)."""
    tree = two_token_tree()
    assert trees.gradient(lambda policy: trees.kl(tree, tree.ref, policy), tree.policy) == pytest.approx(
        [0.25, -0.25]
    )
    assert trees.policy_gradient(tree, [1.0, 0.0]) == pytest.approx([0.25, -0.25])
    assert trees.policy_gradient(tree, [3.0, 3.0]) == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize(("eos", "count"), [(False, 27), (True, 15)])
def test_all_completions_are_there(eos, count):
    """V = 3, T = 3: 27 sequences; ended by token 0 there are 1 + 2 + 4 of one to three tokens, and 8 without it."""
    tree = trees.make_tree(random.Random(0), 3, 3, eos, nats=0.2)
    assert len(tree.completions) == count
    for model in (tree.policy, tree.ref):
        assert sum(math.exp(sum(row)) for row in tree.rows(model)) == pytest.approx(1)
    assert trees.kl(tree, tree.ref, tree.policy) == pytest.approx(0.2, rel=2e-3)
    weights = [
        math.exp(sum(r) - sum(p)) for p, r in zip(tree.rows(tree.policy), tree.rows(tree.ref), strict=True)
    ]
    assert max(weights) < 8


def test_policy_gradient_by_differences():
    """E[f grad log pi] is the gradient of E[f] for a constant f: compare with differences of the expectation."""
    tree = trees.make_tree(random.Random(1), 3, 3, True, nats=0.3)
    f = [random.Random(2).gauss(0, 1) for _ in tree.completions]

    def expectation(policy):
        return sum(math.exp(sum(row)) * value for row, value in zip(tree.rows(policy), f, strict=True))

    assert trees.policy_gradient(tree, f) == pytest.approx(trees.gradient(expectation, tree.policy), abs=1e-8)
