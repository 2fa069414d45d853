"""Rows to estimates, by hand.

pytest tests/test_measuring.py
"""

import math

import pytest

from kit.measuring import METRICS, estimates


def row(completion: str, **values) -> dict:
    given = {"prompt": "P", "sample": 0, "tokens": 4, "truncated": False, "sentiment": 0.5, "judge": None}
    ratios = {
        "reward": 0.5,
        "unique_token_ratio": 1.0,
        "ref_nll": 4.0,
        "kl_policy_ref": 0.0,
        "kl_ref_policy": 0.0,
        "fluency": None,
    }
    return given | ratios | {"completion": completion} | values


def test_estimates_by_hand():
    rows = [
        row("a b", sentiment=0.2, tokens=3, ref_nll=2.0),
        row("a a", sentiment=0.6, tokens=1, ref_nll=6.0, truncated=True),
        row("", sentiment=0.5, tokens=1, ref_nll=1.0),
        row("c d", sentiment=0.9, tokens=3, ref_nll=1.0),
    ]
    found = {key: e.value for key, e in estimates(rows, num_samples=2).items()}
    assert found["sentiment"] == pytest.approx(0.55)
    assert found["positive_ratio"] == 0.5  # above 0.5, not at it
    assert found["ref_nll"] == pytest.approx((3 * 2 + 6 + 1 + 3) / 8)  # over tokens, not over completions
    assert found["ref_perplexity"] == pytest.approx(math.exp(2.0))
    assert found["repetition"] == pytest.approx(0.5 / 4)
    assert found["distinct_1"] == pytest.approx(4 / 6)
    assert found["vocabulary"] == 4
    assert found["empty_ratio"] == found["truncated_ratio"] == 0.25
    assert found["length"] == 2.0
    assert "judge" not in found
    assert set(found) < set(METRICS)


def test_fluency_is_a_mean_over_bytes_and_an_empty_text_has_none():
    rows = [
        row("abcd", fluency=1.0),
        row("\u00e9", fluency=4.0),
        row("", fluency=None),
        row("ab", fluency=2.0),
    ]
    # 4, 2, 0 and 2 bytes
    assert estimates(rows, num_samples=2)["fluency"].value == pytest.approx((4 * 1 + 2 * 4 + 2 * 2) / 8)
    assert "fluency" not in estimates([row("a b"), row("c d")], num_samples=1)


def test_a_strange_tokenizer_leaves_out_what_needs_the_reference():
    rows = [row("a b", ref_nll=None, kl_policy_ref=None, kl_ref_policy=None) for _ in range(4)]
    assert not {"ref_nll", "ref_perplexity", "kl_policy_ref", "kl_ref_policy"} & set(estimates(rows, 2))
