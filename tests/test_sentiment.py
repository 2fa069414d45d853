"""The sentiment score and the word counter.

pytest tests/test_sentiment.py
"""

import math
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    FNetConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from kit.base.errors import UserError
from sentiment import NEUTRAL, class_values, load_scorer, word_count_score


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


def test_scorer_keeps_order_cuts_long_texts_and_defines_empty_ones(monkeypatch):
    from sentiment import SentimentScorer

    monkeypatch.setattr(SentimentScorer, "batch_size", 2)
    scorer = SentimentScorer(LengthModel(), CharTokenizer())
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
    turned = SentimentScorer(model, CharTokenizer())(texts)
    meant = [value if value == NEUTRAL else 1 - value for value in expected]
    assert turned == pytest.approx(meant, rel=1e-4)


def words(**special: str) -> PreTrainedTokenizerFast:
    """One token a word: <eos> <pad> a film is good bad long and dull <unk>, 0 to 10."""
    names = ["<eos>", "<pad>", *"a film is good bad long and dull".split(), "<unk>"]
    tokenizer = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"eos_token": "<eos>", **special})


SMALL = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}  # fmt: skip
ENCODER = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "pad_token_id": 1}
TWO = {0: "NEGATIVE", 1: "POSITIVE"}
FIVE = {i: f"{i + 1} stars" for i in range(5)}


@pytest.mark.parametrize(
    ("config_class", "changes", "special", "error"),
    [
        (DistilBertConfig, ENCODER, {"pad_token": "<pad>", "padding_side": "left"}, None),
        (RobertaConfig, {"pad_token_id": 5}, {"pad_token": "<pad>", "padding_side": "left"}, None),
        (LlamaConfig, {}, {}, None),  # no padding token at all
        (LlamaConfig, {}, {"pad_token": "<more>"}, None),  # one outside the embedding
        (LlamaConfig, {"pad_token_id": 5}, {"pad_token": "<pad>"}, None),  # another than the model looks for
        (GPT2Config, {"id2label": FIVE}, {"padding_side": "left"}, None),
        (GPT2Config, {"id2label": {0: "LABEL_0"}}, {}, "gives one number, of unknown scale"),
        (BertConfig, {"id2label": {0: "LABEL_0"}, "pad_token_id": 1}, {"pad_token": "<pad>"}, "gives one number"),
        (BertConfig, {"id2label": FIVE, "pad_token_id": 1}, {"pad_token": "<pad>"}, None),
        (AlbertConfig, {"embedding_size": 16, "pad_token_id": 1}, {"pad_token": "<pad>"}, None),
        (ElectraConfig, {"embedding_size": 16, "pad_token_id": 1}, {"pad_token": "<pad>"}, None),
        (XLMRobertaConfig, {"pad_token_id": 1}, {"pad_token": "<pad>"}, None),
        (Qwen3Config, {}, {}, None),
        (OPTConfig, {"ffn_dim": 32, "word_embed_proj_dim": 16, "pad_token_id": 1}, {}, None),
        (LlamaConfig, {}, {"eos_token": None}, "does not have a padding token"),
        (FNetConfig, {"pad_token_id": 1}, {"pad_token": "<pad>"}, "depends on the texts beside it"),  # has no mask
    ],
)  # fmt: skip
def test_a_text_has_the_same_score_alone_and_in_company_or_the_classifier_is_refused(
    config_class, changes, special, error, tmp_path
):
    torch.manual_seed(0)
    config = config_class(**{**SMALL, "id2label": TWO, **changes})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    words(**special).save_pretrained(tmp_path)
    if error:
        with pytest.raises(UserError, match=error):
            load_scorer(str(tmp_path))
        return
    texts = [
        "a film",
        "a good film and a long film",
        "bad",
        "dull and long and bad and long and good and dull",
    ]
    if config_class is LlamaConfig:  # a text may end with the token that its tokenizer pads with
        texts.append("dull <pad>")
    values = torch.tensor([0.0, 1.0] if len(config.id2label) == 2 else [0.0, 0.25, 0.5, 0.75, 1.0])
    with torch.no_grad():
        alone = [
            (model(torch.tensor([words().encode(t)])).logits[0].softmax(-1) @ values).item() for t in texts
        ]
    assert load_scorer(str(tmp_path))(texts) == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 0.1
    if config_class in (RobertaConfig, XLMRobertaConfig):  # 512 positions, the first of them pad + 1
        ids = words().encode("a film is bad " * 200)[: 511 - config.pad_token_id]
        with torch.no_grad():
            cut = (model(torch.tensor([ids])).logits[0].softmax(-1) @ values).item()
        assert load_scorer(str(tmp_path))(["a film is bad " * 200]) == pytest.approx([cut], abs=1e-5)
