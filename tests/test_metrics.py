"""Numbers about texts, and how sure we are of them: by hand.

pytest tests/test_metrics.py
"""

import math
import zlib

import numpy as np
import pytest

from kit.base.errors import UserError
from kit.base.metrics import (
    RewardWeights,
    composite_reward,
    compression_ratio,
    corpus_estimate,
    load_reward_weights,
    mean_estimate,
    ngram_groups,
    num_unique,
    repetition,
    self_bleu,
    unique_ratio,
)


def test_distinct_and_repetition_by_hand():
    def distinct_n(texts, n):
        return unique_ratio(ngram_groups([texts], n))

    assert distinct_n(["a b a", "b c"], 1) == pytest.approx(3 / 5)
    assert distinct_n(["a b a", "a b"], 2) == pytest.approx(2 / 3)  # ab ba | ab
    assert distinct_n(["Great!", "great !"], 2) == pytest.approx(1 / 2)  # case and blanks do not count
    assert distinct_n(["", "one"], 2) == 0.0
    assert repetition("great great great great") == 0.75
    assert repetition("") == 0.0


def test_composite_reward_by_hand():
    weights = RewardWeights(sentiment=1.0, repetition=-0.5, length=0.1, target_words=(2, 4))
    texts = ["good good", "a b c d", "", "a b c d e"]
    # 0.9 - 0.5 * 0.5 ; 0.4 ; 0.5 - 0.1 ; 1.0 - 0.1
    assert composite_reward([0.9, 0.4, 0.5, 1.0], texts, weights=weights) == pytest.approx(
        [0.65, 0.4, 0.4, 0.9]
    )


@pytest.mark.whole_kit
def test_the_solution_shapes_with_the_weights_of_the_yardstick():
    import rewards_solution

    texts = ["", "fine", "great " * 30, " ".join(f"w{i}" for i in range(30)), "x " * 200]
    scores = [0.5, 0.9, 0.99, 0.3, 0.7]
    assert rewards_solution.shaped_reward(scores, texts) == pytest.approx(composite_reward(scores, texts))


def test_reward_weights_file_is_strict(tmp_path):
    file = tmp_path / "reward.yaml"
    file.write_text("sentiment: 1\nrepetition: -1\nlength: 1\ntarget_words: [1, 2]\nextra: 3\n")
    with pytest.raises(UserError, match="exactly the keys"):
        load_reward_weights(file)


def test_bootstrap_draws_whole_prompts():
    assert mean_estimate([[0.3]] * 10).interval() == pytest.approx((0.3, 0.3))
    low, high = mean_estimate([[0.0], [1.0]] * 200).interval()
    # a mean of 400 coin flips: 0.5 +- 1.96 * 0.5 / 20 = 0.5 +- 0.049
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.008)
    # four equal completions a prompt are worth one: the interval must not shrink
    four = mean_estimate([[x] * 4 for x in [0.0, 1.0] * 200]).interval()
    assert four == pytest.approx((low, high), abs=1e-9)


def test_mean_estimate_is_the_mean_and_its_replicates_resample_prompts():
    found = mean_estimate([[0.0, 1.0], [2.0, 3.0]])
    assert found.value == 1.5
    # Two prompts of means 0.5 and 2.5: a draw is one of 0.5, 1.5, 2.5, with probability 1/4, 1/2, 1/4
    values, counts = np.unique(found.replicates, return_counts=True)
    assert values.tolist() == [0.5, 1.5, 2.5]
    assert counts / 2000 == pytest.approx([0.25, 0.5, 0.25], abs=0.04)
    assert found.interval() == (0.5, 2.5)


def test_mean_estimate_leaves_out_nan_and_weighs():
    assert mean_estimate([[math.nan, 1.0], [2.0, 3.0]]).value == 2.0
    # 3 tokens at 1 nat and 1 token at 5 nats: 8 / 4
    assert mean_estimate([[1.0], [5.0]], weights=[[3], [1]]).value == 2.0
    assert math.isnan(mean_estimate([[math.nan], [math.nan]]).value)


def test_differences_are_paired():
    """A model that is exactly 0.1 above base on every prompt is 0.1 above base, with no doubt at all."""
    base = np.random.default_rng(0).random((20, 3))
    delta = mean_estimate(base + 0.1) - mean_estimate(base)
    assert delta.value == pytest.approx(0.1)
    assert delta.interval() == pytest.approx((0.1, 0.1))


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    found = corpus_estimate(values.tolist(), lambda some: float(np.mean(some)))
    error = np.std(values, ddof=1) / 2  # s / sqrt(n)
    assert found.interval() == pytest.approx((4.0 - 1.959964 * error, 4.0 + 1.959964 * error), rel=1e-6)


def test_a_corpus_number_lies_in_its_own_interval_and_a_bootstrap_of_it_would_not():
    rng = np.random.default_rng(1)
    groups = [[" ".join(f"w{i}" for i in rng.zipf(1.3, 30) % 2000)] for _ in range(40)]
    ids = ngram_groups(groups, 1)
    found = corpus_estimate(ids, unique_ratio)
    low, high = found.interval()
    assert low < found.value < high
    redrawn = [unique_ratio([ids[i] for i in rng.integers(40, size=40)]) for _ in range(300)]
    assert np.quantile(redrawn, 0.975) < found.value


def test_one_prompt_has_no_interval():
    assert all(map(math.isnan, mean_estimate([[1.0, 2.0]]).interval()))
    assert all(map(math.isnan, corpus_estimate([np.array([1])], num_unique).interval()))


def test_ngram_ids_by_hand():
    groups = [["a b a", "A b."], ["c", ""]]
    assert num_unique(ngram_groups(groups, 1)) == 4  # a b . c
    assert unique_ratio(ngram_groups(groups, 2)) == 3 / 4  # (a b) (b a) | (a b) (b .)
    assert unique_ratio(ngram_groups([[""]], 1)) == 0.0


def test_self_bleu_by_hand():
    # "a b c d e" against "a b c d f": precisions 4/5, 3/4, 2/3, 1/2; equal lengths, no penalty
    by_hand = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu(["a b c d e", "a b c d f"]) == pytest.approx([by_hand, by_hand])
    assert self_bleu(["a b c d", "a b c d"]) == pytest.approx([1.0, 1.0])


def test_self_bleu_clips_smooths_and_penalises_brevity():
    # "a a a" against "a b c d": one a counts; no pair matches (0.1 / 2), no triple (0.1 / 1), no 4-gram (0.1 / 1);
    # brevity exp(1 - 4/3)
    by_hand = math.exp(1 - 4 / 3) * (1 / 3 * 0.1 / 2 * 0.1 * 0.1) ** 0.25
    assert self_bleu(["a a a", "a b c d"])[0] == pytest.approx(by_hand)
    # A count is clipped at the most any other text has, not at what they have together
    three = self_bleu(["a a a", "a x y", "a a z"], max_n=1)
    assert three[0] == pytest.approx(2 / 3)


def test_self_bleu_without_text_or_company():
    assert math.isnan(self_bleu(["alone"])[0])
    scores = self_bleu(["", "a b c d", "a b c d"])
    assert math.isnan(scores[0])
    assert scores[1] == pytest.approx(1.0)


def test_compression_ratio_is_bytes_in_over_bytes_out():
    texts = ["great " * 50, "é"]
    raw = (texts[0] + "\n" + "é").encode()
    assert compression_ratio(texts) == len(raw) / len(zlib.compress(raw, 9))
    assert compression_ratio(["great " * 50]) > 3 * compression_ratio(
        ["the quick brown fox jumps over a lazy dog"]
    )
    assert compression_ratio([]) == compression_ratio([""]) == 0.0


def test_the_difference_of_two_jackknives_is_a_jackknife():
    a = corpus_estimate([1.0, 2.0, 4.0, 9.0], lambda s: float(np.mean(s)))
    b = corpus_estimate([0.0, 0.0, 0.0, 0.0], lambda s: float(np.mean(s)))
    error = math.sqrt(38 / 3) / 2  # deviations -3, -2, 0, 5: squares 38
    assert (a - b).interval() == pytest.approx((4 - 1.959964 * error, 4 + 1.959964 * error), rel=1e-6)


def test_a_weighted_mean_is_redrawn_as_a_ratio_of_sums():
    found = mean_estimate([[1.0], [5.0]], weights=[[3], [1]])
    # both once: (3 + 5) / 4; one of them twice: 1 or 5
    assert np.unique(found.replicates).tolist() == [1.0, 2.0, 5.0]


def test_self_bleu_takes_the_closest_length():
    # 4 words against 1, 3 and 5: of 3 and 5 the shorter; c > r, no penalty. Every unigram is there: 1
    assert self_bleu(["a b c d", "a", "b c d", "a b c d e"], max_n=1)[0] == pytest.approx(1.0)
    # 3 words against 1 and 4: exp(1 - 4/3); against 1 and 5, both 2 away: the shorter counts, no penalty
    assert self_bleu(["a b c", "a", "a b c x"], max_n=1)[0] == pytest.approx(math.exp(1 - 4 / 3))
    assert self_bleu(["a b c", "a", "a b c x y"], max_n=1)[0] == pytest.approx(1.0)
    assert self_bleu(["a b", "a b", "a b c d e f"], max_n=1)[0] == pytest.approx(1.0)


def test_repetition_reads_small_and_capital_letters_alike():
    assert repetition("Great great") == 0.5
