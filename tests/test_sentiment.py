"""The sentiment score and the word counter.

pytest tests/test_sentiment.py
"""

import math
from types import SimpleNamespace

import pytest
import torch

from kit.errors import UserError
from sentiment import NEUTRAL, class_values, word_count_score


def test_word_counter_by_hand():
    assert word_count_score(
        ["", "great", "Great! GREAT, great great great great", "greatness", "not good"]
    ) == [
        0.0,
        0.2,
        1.0,
        0.0,
        0.2,
    ]


def test_class_values_are_read_from_the_names():
    assert class_values({0: "NEGATIVE", 1: "POSITIVE"}) == [0.0, 1.0]
    assert class_values({0: "pos", 1: "neg"}) == [1.0, 0.0]
    assert class_values({i: f"{i + 1} star{'s' * (i > 0)}" for i in range(5)}) == [0.0, 0.25, 0.5, 0.75, 1.0]
    for unclear in ({0: "LABEL_0", 1: "LABEL_1"}, {0: "pos", 1: "positive"}, {0: "a", 1: "b", 2: "c"}):
        with pytest.raises(UserError, match="id2label"):
            class_values(unclear)


class CharTokenizer:
    """Lengths of text to one-hot 'logits' input; records what it is asked for."""

    model_max_length = 8

    def __call__(self, texts, max_length, **_):
        from transformers import BatchEncoding

        self.texts = getattr(self, "texts", []) + list(texts)
        return BatchEncoding({"input_ids": torch.tensor([[min(len(t), max_length)] for t in texts])})


class LengthModel(torch.nn.Module):
    """P(positive) = sigmoid(length of the cut text): logits (0, length)."""

    config = SimpleNamespace(
        id2label={0: "NEGATIVE", 1: "POSITIVE"}, max_position_embeddings=8, model_type="distilbert"
    )
    device = torch.device("cpu")

    def forward(self, input_ids):
        n = input_ids[:, 0].float()
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(n), n], dim=-1))


def test_scorer_keeps_order_cuts_long_texts_and_defines_empty_ones():
    from sentiment import SentimentScorer

    scorer = SentimentScorer(LengthModel(), CharTokenizer(), batch_size=2)
    texts = ["abcd", "", "a" * 10_000, "a", " \n\t", "...", "👍", "хорошо", "\ud800 x"]
    sigmoid = [1 / (1 + math.exp(-min(len(t), 8))) for t in texts]
    expected = [
        sigmoid[0],
        NEUTRAL,
        sigmoid[2],
        sigmoid[3],
        NEUTRAL,
        NEUTRAL,
        NEUTRAL,
        sigmoid[7],
        sigmoid[8],
    ]
    assert scorer(texts) == pytest.approx(expected, rel=1e-5)
    assert scorer([]) == []
    # a model that names its classes the other way round
    model = LengthModel()
    model.config = SimpleNamespace(**vars(model.config) | {"id2label": {0: "POSITIVE", 1: "NEGATIVE"}})
    turned = SentimentScorer(model, CharTokenizer(), batch_size=2)(texts)
    meant = [value if value == NEUTRAL else 1 - value for value in expected]
    assert turned == pytest.approx(meant, rel=1e-4)
