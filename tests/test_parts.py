"""Prompts, sentiment, metrics, run folder, sampling, screen: each against numbers worked out by hand.

python -m pytest tests/test_parts.py
"""

import json
import math
from types import SimpleNamespace

import pandas
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import AutoModelForSequenceClassification

import data
from kit.errors import UserError
from kit.metrics import (
    RewardWeights,
    bootstrap_interval,
    composite_reward,
    distinct_n,
    load_reward_weights,
    repetition,
)
from kit.models import HUB_TIMEOUT_SECONDS, MINI, load_policy, resolve_models
from kit.runs import Run, read_config, read_metrics, to_json
from kit.sampling import sample
from kit.screen import clock, one_line, table
from sentiment import NEUTRAL, class_values, load_scorer, word_count_score

# ----------------------------------------------------------------------------------------------- prompts


def test_builtin_prompts():
    train, held_out = data.TRAIN_PROMPTS, data.HELD_OUT_PROMPTS
    assert len(train) >= 96 and len(held_out) == 64
    everything = [p.lower() for p in train + held_out]
    assert len(set(everything)) == len(everything)  # no duplicate, and no prompt in both
    assert len({len(p.split()) for p in train}) >= 8 and len({len(p.split()) for p in held_out}) >= 6
    assert all(p == p.strip() and p for p in train + held_out)
    assert not any(word_count_score(train + held_out))  # an opener carries no verdict


def test_prompt_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffOne opener\nAnother opener\n", encoding="utf-8")
    assert data.load_prompts(str(file)) == ["One opener", "Another opener"]
    file.write_text("One opener\n\nThird\n")
    with pytest.raises(UserError, match="line 2: the prompt is empty"):
        data.load_prompts(str(file))
    file.write_text("")
    with pytest.raises(UserError, match="the file is empty"):
        data.load_prompts(str(file))
    with pytest.raises(UserError, match="cannot read it"):
        data.load_prompts(str(tmp_path / "missing.txt"))


def test_a_prompt_that_leaves_no_room_is_refused_with_its_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a b\na b c d e\n")

    def tokenizer(text):
        return {"input_ids": text.split()}

    assert len(data.load_prompts(str(file), tokenizer, max_prompt_tokens=5)) == 2
    with pytest.raises(UserError, match=r"line 2: 5 tokens, but only 4"):
        data.load_prompts(str(file), tokenizer, max_prompt_tokens=4)


def write_imdb(path):
    """Sorted by label, as the real one is: the first half all negative."""
    rows = [{"text": f"bad<br /><br />film {i}", "label": 0, "split": "train"} for i in range(20)]
    rows += [{"text": f"good film {i}", "label": 1, "split": "train"} for i in range(20)]
    rows += [{"text": "unlabelled", "label": -1, "split": "unsupervised"}] * 3
    rows += [{"text": "test text", "label": 1, "split": "test"}]
    pandas.DataFrame(rows).to_parquet(path)
    return str(path)


def test_imdb_is_shuffled_balanced_and_clean(tmp_path):
    texts, labels = data.load_imdb(write_imdb(tmp_path / "imdb.parquet"))
    assert len(texts) == 40 and sum(labels[:10]) == 5 and sum(labels) == 20
    assert all(("good" in t) == bool(label) for t, label in zip(texts, labels, strict=True))
    assert "<br />" not in " ".join(texts) and "bad film" in " ".join(texts)
    assert [t for t in texts if "good" in t] != [f"good film {i}" for i in range(20)]  # not the file's order


def test_imdb_prompts_are_the_first_words_of_reviews(tmp_path):
    prompts = data.load_prompts("imdb:" + write_imdb(tmp_path / "imdb.parquet"))
    assert prompts and all(2 <= len(p.split()) <= 3 for p in prompts)  # these reviews have three words


def test_imdb_that_cannot_be_had_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        data.load_imdb(str(tmp_path / "none.parquet"))
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot read IMDB"):
        data.load_imdb(str(tmp_path / "broken.parquet"))


# --------------------------------------------------------------------------------------------- sentiment


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

    scorer = SentimentScorer(LengthModel(), CharTokenizer(), "length", batch_size=2)
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


# ----------------------------------------------------------------------------------------------- metrics


def test_distinct_and_repetition_by_hand():
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
    assert composite_reward([0.9, 0.4, 0.5, 1.0], texts, weights) == pytest.approx([0.65, 0.4, 0.4, 0.9])


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
    assert bootstrap_interval([0.3] * 10) == pytest.approx((0.3, 0.3))
    low, high = bootstrap_interval([0.0, 1.0] * 200)
    # a mean of 400 coin flips: 0.5 +- 1.96 * 0.5 / 20 = 0.5 +- 0.049
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.008)
    # four equal completions a prompt are worth one: the interval must not shrink
    assert bootstrap_interval([[x] * 4 for x in [0.0, 1.0] * 200]) == pytest.approx((low, high), abs=1e-9)
    assert all(math.isnan(x) for x in bootstrap_interval([]))


# ------------------------------------------------------------------------------------------- run folder


def test_a_run_is_never_overwritten(tmp_path):
    paths = [Run.create(tmp_path, "a").path.name for _ in range(3)]
    assert paths == ["a", "a-2", "a-3"]
    with pytest.raises(UserError, match="letters, digits"):
        Run.create(tmp_path, "../b")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output_dir"):
        Run.create(tmp_path / "file", "a")


def test_lines_are_json_even_for_nan(tmp_path):
    run = Run.create(tmp_path, "a")
    run.log(0, {"x": math.nan, "y": math.inf, "z": 0.5})
    run.log(5, {"z": 1.0})
    run.log_samples(5, [{"completion": "</script>\n\u2028 “é”"}])
    assert read_metrics(run.path) == [{"step": 0, "x": None, "y": None, "z": 0.5}, {"step": 5, "z": 1.0}]
    run.truncate_after(0)
    assert [row["step"] for row in read_metrics(run.path)] == [0]
    assert (run.path / "samples.jsonl").read_text() == ""
    assert json.loads(to_json({"a": (1, None, True)})) == {"a": [1, None, True]}


def test_config_holds_versions_and_a_broken_one_is_one_sentence(tmp_path):
    run = Run.create(tmp_path, "a")
    run.write_config({"seed": 1})
    config = read_config(run.path)
    assert config["seed"] == 1 and config["provenance"]["versions"]["trl"].startswith("1.16")
    (run.path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not a readable"):
        read_config(run.path)
    (run.path / "metrics.jsonl").write_text('{"step": 0}\n{"st')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(run.path)


def test_checkpoints_are_sorted_by_step(tmp_path):
    run = Run.create(tmp_path, "a")
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-tmp"):
        (run.path / name).mkdir()
    assert [step for step, _ in run.checkpoints()] == [20, 100]


# ---------------------------------------------------------------------------------------------- sampling


class LetterTokenizer:
    """Prompts of digits to ids; decodes to digits without EOS (0)."""

    eos_token_id = pad_token_id = 0

    def __call__(self, texts, padding_side, **_):
        from transformers import BatchEncoding

        rows = [[int(c) for c in text] for text in texts]
        width = max(map(len, rows))
        assert padding_side == "left"
        ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def decode(self, ids, skip_special_tokens):
        return "".join(str(i) for i in ids if i)


def test_sampling_has_its_own_random_stream_and_keeps_eos(tiny_gpt2):
    model, tokenizer = tiny_gpt2().train(), LetterTokenizer()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    completions = sample(
        model, tokenizer, ["12", "3", "4567"], num_samples=20, max_new_tokens=6, batch_size=7
    )
    assert torch.equal(torch.rand(3), expected)  # the global stream did not move
    assert model.training
    assert [c.prompt for c in completions] == ["12"] * 20 + ["3"] * 20 + ["4567"] * 20
    assert {tuple(c.prompt_ids) for c in completions} == {(1, 2), (3,), (4, 5, 6, 7)}
    ended = [c for c in completions if 0 in c.completion_ids]
    assert ended and all(c.completion_ids.index(0) == len(c.completion_ids) - 1 for c in ended)
    assert all(c.truncated == (0 not in c.completion_ids) for c in completions)
    assert all(len(c.completion_ids) == 6 for c in completions if c.truncated)
    again = sample(model, tokenizer, ["12", "3", "4567"], num_samples=20, max_new_tokens=6, batch_size=7)
    assert again == completions


def test_samples_follow_the_scored_distribution(tiny_gpt2):
    """First tokens of 4,000 samples at temperature 1.5 against softmax(z / 1.5): no top-k, no top-p."""
    model = tiny_gpt2(vocab_size=5)
    ids = [
        c.completion_ids[0]
        for c in sample(
            model,
            LetterTokenizer(),
            ["12"],
            num_samples=4000,
            max_new_tokens=1,
            temperature=1.5,
            batch_size=4000,
        )
    ]
    with torch.no_grad():
        p = (model.eval()(torch.tensor([[1, 2]])).logits[0, -1] / 1.5).softmax(-1)
    for token in range(5):
        sd = math.sqrt(p[token] * (1 - p[token]) / 4000)
        assert ids.count(token) / 4000 == pytest.approx(p[token].item(), abs=4 * sd)


# ---------------------------------------------------------------------------------- models and the screen


def test_a_named_model_is_never_swapped(tmp_path, monkeypatch):
    assert resolve_models("mini", "mini").policy.endswith("policy")
    assert resolve_models().reason  # and it says why
    with pytest.raises(UserError, match="no such model folder"):
        resolve_models(str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(UserError, match="outputs/typo: no such model folder"):
        resolve_models("outputs/typo")
    with pytest.raises(UserError, match="some-name is not in the cache, and the Hub is out of reach"):
        resolve_models("some-name", "mini")
    with pytest.raises(UserError, match="no complete language model at some-name"):
        load_policy("some-name")


def test_the_hub_is_asked_once_and_what_is_cached_is_not_asked_for(monkeypatch):
    asked = []

    def answer(error=None):
        def model_info(self, repo_id, timeout):
            asked.append((repo_id, timeout))
            if error is not None:
                raise error

        monkeypatch.setattr("kit.models.HfApi.model_info", model_info)

    answer()
    assert resolve_models("some-name", "mini").policy == "some-name"
    assert asked == [("some-name", HUB_TIMEOUT_SECONDS)]
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    answer(RepositoryNotFoundError("404", response=response))
    with pytest.raises(
        UserError, match="some-name: no such folder here, and no such public model on the Hub"
    ):
        resolve_models("some-name", "mini")
    monkeypatch.setattr("kit.models.try_to_load_from_cache", lambda repo, name: "cached/config.json")
    assert resolve_models("some-name", "mini").policy == "some-name"
    assert len(asked) == 2


def test_a_model_without_tokenizer_is_refused(tmp_path, tiny_gpt2):
    tiny_gpt2().save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match="a model but no tokenizer"):
        load_policy(str(tmp_path / "policy"))
    AutoModelForSequenceClassification.from_pretrained(MINI / "sentiment").save_pretrained(
        tmp_path / "scorer"
    )
    with pytest.raises(UserError, match="a model but no tokenizer"):
        load_scorer(str(tmp_path / "scorer"))


def test_half_written_model_is_one_sentence(tmp_path, tiny_gpt2):
    tiny_gpt2().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match="no complete language model"):
        load_policy(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="did not finish"):
        load_policy(str(tmp_path))


def test_clock_and_cells():
    assert [clock(s) for s in (0, 59.6, 75, 3725)] == ["0:00", "1:00", "1:15", "1:02:05"]
    assert one_line("a\nb\x1b[2J", 20) == "a\\nb?[2J"
    assert one_line("abcdef", 4) == "abc…"
    assert table(("n", "text"), [("1", "x"), ("10", "y")]).splitlines()[1] == "   1  x"
