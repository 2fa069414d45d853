"""Rows to estimates, by hand.

pytest tests/test_measuring.py
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from kit.lm.sampling import sample
from kit.measure.measuring import METRICS, Bench, estimates
from kit.measure.reference import ReferenceSamples
from kit.train.validation import Validation, line, sample_table
from reward_utils import make_reward_function
from sentiment import word_count_score
from tests.test_reward_utils import by_definition, oracle
from tests.test_sampling import LetterTokenizer


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


def test_rows_of_two_known_models(tiny_gpt2):
    policy, reference, tok = (
        tiny_gpt2(seed=1, vocab_size=8),
        tiny_gpt2(seed=2, vocab_size=8),
        LetterTokenizer(),
    )
    bench = Bench(
        ["12", "3"],
        lambda t: [0.25] * len(t),
        reference.eval(),
        tok,
        max_new_tokens=5,
        temperature=1.5,
        seed=3,
        judge=lambda t: [0.75] * len(t),
    )
    rows = bench.rows(policy, tok, 2)
    drawn = sample(policy, tok, ["12", "3"], 2, max_new_tokens=5, temperature=1.5, seed=3)
    assert [r["sample"] for r in rows] == [0, 1, 0, 1]
    for r, c in zip(rows, drawn, strict=True):
        # one word or none is too short in every variant
        assert (r["sentiment"], r["judge"], r["reward"]) == (0.25, 0.75, pytest.approx(0.25 - 0.2))
        ids = c.prompt_ids, c.completion_ids
        pq = by_definition(tiny_gpt2(seed=1, vocab_size=8), tiny_gpt2(seed=2, vocab_size=8), *ids, 1.5)
        qp = by_definition(tiny_gpt2(seed=2, vocab_size=8), tiny_gpt2(seed=1, vocab_size=8), *ids, 1.5)
        own = oracle(tiny_gpt2(seed=1, vocab_size=8), *ids, 1.5)
        ref = oracle(tiny_gpt2(seed=2, vocab_size=8), *ids, 1.5)
        assert (r["kl_policy_ref"], r["kl_ref_policy"]) == pytest.approx((pq, qp), rel=1e-4)
        assert r["ref_nll"] == pytest.approx(-sum(ref) / len(ref), rel=1e-4)
        assert r["log_ratios"] == pytest.approx(
            [a - b for a, b in zip(own, ref, strict=True)], rel=1e-3, abs=1e-4
        )
        assert r["unique_token_ratio"] == len(set(c.completion_ids)) / len(c.completion_ids)
    assert any(r["unique_token_ratio"] < 1 for r in rows)


@pytest.mark.parametrize(
    ("negate", "counted", "gain", "grown"),
    [
        # reference scores 0, 0, 1 (mean 1/3); the policy's 0.9 for 1 nat at 0.1; grown: E[exp(r / 0.1)]
        (False, False, 0.9 - 1 / 3 - 0.1, (2 + math.exp(10)) / 3),
        (True, False, 0.1 - 2 / 3 - 0.1, (1 + 2 * math.exp(10)) / 3),
        # counts 1/5, 0, 0 of the reference, 3/5 of the policy
        (False, True, 0.6 - 0.2 / 3 - 0.1, (math.exp(2) + 2) / 3),
    ],
    ids=["plain", "negated", "counted"],
)
def test_captured_in_validation_is_that_of_the_run_s_own_reward(negate, counted, gain, grown):
    samples = ReferenceSamples([["great", "dull", "dull"]] * 2, np.array([[0.0, 0.0, 1.0]] * 2))
    reward = make_reward_function(
        word_count_score if counted else (lambda t: [0.5] * len(t)), None, negate=negate
    )
    rows = [row("great great great", sentiment=0.9, kl_policy_ref=1.0, prompt=p) for p in "PQ"]
    bench = SimpleNamespace(prompts=["P", "Q"])
    found = Validation(bench, None, None, reward, beta=0.1, samples=samples).metrics(rows)
    start = 0.2 / 3 if counted else (2 / 3 if negate else 1 / 3)
    assert found["val/captured"] == pytest.approx(gain / (0.1 * math.log(grown) - start))
    assert found.get("val/score_mean") == (pytest.approx(0.6) if counted else None)


def test_every_name_in_validation_stands_for_its_own_number():
    columns = {"sentiment": (0.2, 0.4, 0.7, 0.9), "reward": (0.1, 0.1, 0.3, 0.3), "ref_nll": (1.0, 2.0, 4.0, 5.0),
               "kl_policy_ref": (1.0, 2.0, 3.0, 6.0), "kl_ref_policy": (2.0, 3.0, 4.0, 7.0), "tokens": (2, 3, 1, 4),
               "truncated": (True, False, False, False)}  # fmt: skip
    texts = ("a b", "a b a", "", "c d c d")
    rows = [row(text, **{key: values[i] for key, values in columns.items()}) for i, text in enumerate(texts)]
    reward = SimpleNamespace(score=None)
    found = Validation(None, None, None, reward, beta=0.0, samples=None).metrics(rows)
    low, high = found.pop("val/sentiment_ci_low"), found.pop("val/sentiment_ci_high")
    assert 0.2 <= low < 0.55 < high <= 0.9
    assert found == pytest.approx(
        {
            "val/sentiment_mean": 0.55,
            "val/sentiment_std": math.sqrt((0.35**2 + 0.15**2) / 2),
            "val/sentiment_min": 0.2,
            "val/sentiment_median": 0.55,
            "val/sentiment_max": 0.9,
            "val/positive_ratio": 0.5,
            "val/composite_reward": 0.2,
            "val/distinct_1": 4 / 9,  # a b c d, of nine words
            "val/distinct_2": 4 / 6,  # ab ba cd dc, of six pairs
            "val/repetition": (0 + 1 / 3 + 0 + 1 / 2) / 4,
            "val/ref_nll": (2 * 1 + 3 * 2 + 1 * 4 + 4 * 5) / 10,
            "val/kl_policy_ref": 3.0,
            "val/kl_ref_policy": 4.0,
            "val/length_mean": 2.5,
            "val/empty_ratio": 0.25,
            "val/truncated_ratio": 0.25,
        }
    )


def test_the_screen_shows_each_number_under_its_name():
    names = "sentiment_mean sentiment_ci_low sentiment_ci_high kl_policy_ref kl_ref_policy ref_nll distinct_2"
    names += " distinct_1 repetition length_mean empty_ratio captured"
    shown = {f"val/{name}": i / 100 for i, name in enumerate(names.split(), start=1)}
    shown |= {"val/kl_policy_ref": 4.0, "val/kl_ref_policy": 5.0, "val/length_mean": 10.0}
    assert line(7, shown) == (
        "val     7 | sentiment 0.010 [0.02, 0.03] | KL 4.0 | ref NLL 0.06 | distinct-2 0.07 | repeated 0.09 | "
        "length 10 | empty 11% | captured 0.12"
    )
    rows = [row(f" {i}", sentiment=i / 10, ref_nll=float(i), tokens=3) for i in range(8)]
    found = [
        [cell.strip() for cell in text.split("  ") if cell.strip()]
        for text in sample_table(rows).splitlines()
    ]
    assert found[-4:] == [[f"0.{i}0", f"-{3 * i}", f"P \u25b8 {i}"] for i in (1, 3, 5, 7)]
