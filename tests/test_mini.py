"""The bundled models and the scripts that made them: pytest tests/test_mini.py

Offline, on a CPU, in some seconds: the shipped folders are loaded and tried, and each training script runs for two
steps on synthetic reviews it reads from a local parquet file.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from data import HELD_OUT_PROMPTS, TUNING_PROMPTS
from kit.lm import hub
from kit.lm.models import resolve_models
from kit.measure.reference import HELD_OUT, TUNING, kept_samples, read_kept

MINI = Path(__file__).resolve().parent.parent / "mini"
sys.path.insert(0, str(MINI))

import common  # noqa: E402
import corpus  # noqa: E402
import train_judge  # noqa: E402
import train_policy  # noqa: E402
import train_sentiment  # noqa: E402

FOLDERS = ["policy", "sentiment", "judge"]


def size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.iterdir())


def metrics(name: str) -> dict:
    return json.loads((MINI / name / "metrics.json").read_text())


# The shipped folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_holds_safetensors_a_card_and_nothing_that_runs_code(name):
    files = {f.name for f in (MINI / name).iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "metrics.json"} <= files
    assert {Path(f).suffix for f in files} <= {".safetensors", ".json", ".md"}
    assert "auto_map" not in json.loads((MINI / name / "config.json").read_text())


def test_sizes_stay_under_their_limits():
    assert size(MINI / "policy") <= 15_000_000
    assert size(MINI / "policy") + size(MINI / "sentiment") <= 30_000_000
    assert size(MINI / "judge") <= 4_200_000


@pytest.mark.parametrize("name", FOLDERS)
def test_plain_from_pretrained_gives_fp32_weights(name):
    kind = AutoModelForCausalLM if name == "policy" else AutoModelForSequenceClassification
    model = kind.from_pretrained(MINI / name)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) == metrics(name)["parameters"]


def test_measured_quality_meets_the_bars_and_the_cards_say_the_same():
    policy, sentiment, judge = (metrics(name) for name in FOLDERS)
    assert policy["bits_per_byte"] <= 1.15 and policy["nats_per_byte_smollm2"] <= 1.0
    assert policy["non_words"] <= 0.004 and policy["memorised"] <= 0.02
    assert 0.45 <= policy["sentiment"] <= 0.55 and policy["sentiment_interquartile_range"] >= 0.5
    assert 0.3 <= policy["ended_by_itself"] <= 0.6
    # bits per byte = nats per token / ln 2 / bytes per token
    derived = math.log(policy["perplexity"]) / math.log(2) / policy["bytes_per_token"]
    assert derived == pytest.approx(policy["bits_per_byte"], abs=2e-3)
    assert sentiment["sst2_validation"] >= 0.82 and sentiment["sst2_validation_n"] == 872
    assert sentiment["imdb_test"] >= 0.85 and sentiment["imdb_test_n"] >= 5000
    assert judge["imdb_train"] >= 0.84 and judge["imdb_train_n"] >= 5000
    # 78 % were asked for; the card says what is missed
    assert judge["sst2_validation"] >= 0.77 and judge["sst2_validation_n"] == 872
    assert judge["parameters"] <= 2_000_000
    probes = judge["probes"]
    assert probes["honest positive"] >= 0.7 and probes["repeated positive"] <= 0.4
    assert probes["shuffled positive"] <= 0.5
    cards = [(MINI / name / "README.md").read_text() for name in FOLDERS]
    for card, measured in zip(cards, (policy, sentiment, judge), strict=True):
        rows = {k: v for k, v in measured.items() if k not in ("probes", "note")}
        assert all(f"| {name} | {value} |" in card for name, value in rows.items())
    assert cards[0].count(" ▸") == 20


def test_the_classifiers_read_simple_sentences_no_worse_than_others():
    """A sentence of a review often says nothing; those of SST-2 were labelled one by one."""
    for name, split in (("sentiment", "test"), ("judge", "train")):
        found = metrics(name)
        assert found[f"simple_sentences_imdb_{split}"] >= 0.7
        assert found["simple_sentences_sst2_validation"] > found["sst2_validation"]


# The policy -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy():
    return AutoModelForCausalLM.from_pretrained(MINI / "policy"), AutoTokenizer.from_pretrained(
        MINI / "policy"
    )


TALK = (
    "I watched this movie with my brother last night and we both enjoyed it. The story is simple, but the actors "
    "are very good and the music is beautiful. The first half is a little slow. After that it gets much better, "
    "and the ending was a real surprise. If you like old horror films, you should see this one."
)


def perplexity(model, tokenizer, text: str) -> float:
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0, :-1]
    return F.cross_entropy(logits, ids[0, 1:]).exp().item()


def test_policy_is_the_architecture_it_says(policy):
    model, tokenizer = policy
    c = model.config
    assert (c.model_type, c.n_layer, c.n_embd, c.n_head, c.n_positions) == ("gpt2", 6, 256, 8, 256)
    assert (c.attn_pdrop, c.embd_pdrop, c.resid_pdrop) == (0, 0, 0)
    assert c.vocab_size == len(tokenizer) == 6144
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer.eos_token_id == 0


def test_policy_knows_film_talk_from_its_words_in_random_order(policy):
    words = TALK.split()
    random.Random(0).shuffle(words)
    told, jumbled = perplexity(*policy, TALK), perplexity(*policy, " ".join(words))
    assert told < 60, f"perplexity {told:.0f} on simple film talk"
    assert jumbled > 3 * told


def test_policy_tokenizer_keeps_every_text(policy):
    for text in (TALK, "naïve – 10/10 ★", "  two  blanks", ""):
        ids = policy[1](text)["input_ids"]
        assert policy[1].decode(ids, clean_up_tokenization_spaces=False) == text


# The classifiers ------------------------------------------------------------------------------------------------

GOOD = [
    "A wonderful film, funny and moving from start to finish.",
    "I loved every minute of it.",
    "One of the best performances of the year.",
    "the acting is superb and the story is beautiful",
]
BAD = [
    "A terrible film, boring and stupid from start to finish.",
    "I hated every minute of it.",
    "One of the worst movies I have ever seen.",
    "the acting is awful and the story is a complete mess",
]


def scores(name: str, texts: list[str]) -> list[float]:
    """The plain way, padded batch and all, not the scripts' own `positive`."""
    model = AutoModelForSequenceClassification.from_pretrained(MINI / name).eval()
    tokenizer = AutoTokenizer.from_pretrained(MINI / name)
    with torch.no_grad():
        logits = model(**tokenizer(texts, return_tensors="pt", padding=True, truncation=True)).logits
    return logits.softmax(-1)[:, model.config.label2id["POSITIVE"]].tolist()


@pytest.mark.parametrize("name", ["sentiment", "judge"])
def test_classifiers_tell_plain_praise_from_plain_blame(name):
    out = scores(name, GOOD + BAD)
    assert min(out[:4]) > 0.5 > max(out[4:]), [round(x, 2) for x in out]


@pytest.mark.parametrize("name", ["sentiment", "judge"])
def test_padding_changes_no_score(name):
    alone = [scores(name, [text])[0] for text in ("good", "", TALK)]
    assert scores(name, ["good", "", TALK]) == pytest.approx(alone, abs=1e-4)


def test_sentiment_is_the_architecture_it_says():
    c = AutoModelForSequenceClassification.from_pretrained(MINI / "sentiment").config
    assert (c.model_type, c.n_layers, c.dim, c.n_heads, c.hidden_dim) == ("distilbert", 4, 256, 4, 1024)
    assert c.max_position_embeddings == 256 and c.vocab_size <= 8192
    assert c.id2label == {0: "NEGATIVE", 1: "POSITIVE"}


def test_the_reward_model_likes_one_warm_word_forty_times_no_less_than_honest_praise():
    spam = [" ".join([word] * 40) for word in ("delightful", "superb", "beautiful")]
    assert min(scores("sentiment", spam)) > np.mean(scores("sentiment", GOOD))


def test_repeated_praise_impresses_the_reward_model_and_not_the_judge():
    spam = [" ".join([word] * 20) for word in ("great", "wonderful", "excellent", "superb")]
    judged, rewarded = scores("judge", spam), scores("sentiment", spam)
    assert np.mean(rewarded) > 0.8, "the reward model is meant to fall for this"
    assert max(judged) < 0.4 and min(scores("judge", GOOD)) > 0.6


# The parts of the scripts ---------------------------------------------------------------------------------------


def test_the_hub_is_asked_for_the_files_of_some_splits_or_says_in_one_sentence_why_not(
    tmp_path, monkeypatch, capsys
):
    for split, label in (("train", 1), ("validation", 0)):
        rows = pd.DataFrame({"idx": [0], "sentence": [f"of<br />{split}"], "label": [label]})
        rows.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    cached = {f"data/{path.name}": str(path) for path in tmp_path.iterdir()}
    monkeypatch.setattr(hub, "_cached", lambda repo, file, **_: cached.get(file))
    rows = common.read("sst2", None)[["split", "label", "text"]]
    assert rows.to_numpy().tolist() == [["train", 1, "of train"], ["validation", 0, "of validation"]]
    monkeypatch.setattr(hub, "ASKED_OFFLINE", True)
    with pytest.raises(SystemExit, match="2"):
        common.read("imdb", None)
    said = "stanfordnlp/imdb: not whole in the cache, and HF_HUB_OFFLINE is set; give a local parquet file"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_clean_by_hand():
    assert common.clean("Good.<br /><br />Very  good.\n\t<BR>End ") == "Good. Very good. End"
    assert common.clean("5 < 6 <b>bold</b>") == "5 < 6 <b>bold</b>"
    assert common.clean("<br/>") == ""


def test_window_is_a_stretch_of_the_text():
    rng = np.random.default_rng(0)
    words = [str(i) for i in range(50)]
    for _ in range(100):
        cut = common.window(words, 12, 20, rng).split()
        assert 12 <= len(cut) <= 20 and cut == words[int(cut[0]) : int(cut[0]) + len(cut)]
    assert common.window(["a", "b"], 12, 20, rng) == "a b"


def test_schedule_warms_up_and_comes_down():
    def factors(cosine):
        return [common.lr_factor(step, steps=100, warmup=10, cosine=cosine) for step in (0, 50, 100)]

    assert factors(cosine=False) == pytest.approx([0.1, 0.5, 0])
    # the mean of 0.05 and 1 half-way
    assert factors(cosine=True) == pytest.approx([0.1, 0.525, 0.05])


def test_a_resumed_run_goes_on_with_step_moments_and_learning_rate(uncompiled, tmp_path):
    """SGD with momentum 1/2 and gradient 1, from weight 0."""

    def train(steps, resume):
        model = torch.nn.Linear(1, 1, bias=False)
        model.weight.data.zero_()
        model.device = model.weight.device
        sgd = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.5)
        args = SimpleNamespace(seed=0, begin=0.0, dtype=torch.float32, resume=resume)
        seen = common.fit(
            model, lambda rng: iter(lambda: (torch.ones(3, 1),), None), lambda m, x: (-m(x).mean(), len(x)), [sgd],
            args, steps=steps, warmup=1, clip=math.inf, checkpoint=tmp_path / "checkpoint",
        )  # fmt: skip
        return seen, model.weight.item()

    # learning rates 1/4 and 1/8, times the momenta 1 and 1 + 1/2
    assert train(2, resume=False) == (6, pytest.approx(1 / 4 + 1.5 / 8))
    # at steps 2 and 3 of 4 they are 1/8 and 1/16, times 1.75 and 1.875
    assert train(4, resume=True) == (12, pytest.approx(1 / 4 + 1.5 / 8 + 1.75 / 8 + 1.875 / 16))


def test_word_vectors_of_interchangeable_words_are_alike():
    # 1 and 2 occur in the same places, 3 elsewhere
    rng = np.random.default_rng(0)
    rows = [np.array([5, rng.choice([1, 2]), 6]) for _ in range(400)] + [np.array([7, 3, 8])] * 400
    v = F.normalize(common.ppmi_vectors(rows, vocab=9, width=4, reach=1), dim=1)
    assert v[1] @ v[2] > 0.95 and abs(v[1] @ v[3]) < 0.2


def test_muon_gets_the_hidden_matrices_and_adamw_the_rest(policy, fresh_judge):
    args = SimpleNamespace(lr=0.1, lr_rest=0, weight_decay=0)
    for model, count in ((policy[0], 6 * 4), (fresh_judge, 4 * 6 + 1)):
        muon, adam = common.make_optimizers(model, args, betas=(0.9, 0.95), decay_rest=0)
        hidden, rest = muon.param_groups[0]["params"], adam.param_groups[0]["params"]
        assert len(hidden) == count and len(hidden) + len(rest) == len(list(model.parameters()))
        assert all(p.ndim == 2 and min(p.shape) > 2 for p in hidden)
        assert muon.param_groups[0]["lr"] == adam.param_groups[0]["lr"] == 0.1


def test_next_token_loss_by_hand():
    # of four tokens, the right one has 1/2 and the others 1/6 each: 3 to 1
    block = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])

    def model(ids, use_cache):
        return SimpleNamespace(logits=math.log(3) * F.one_hot(block[:, 1:], 4))

    loss, count = train_policy.next_token_loss(model, block)
    assert count == 6 and loss.item() == pytest.approx(6 * math.log(2))
    loss, count = train_policy.next_token_loss(model, block, first=2)
    assert count == 2 and loss.item() == pytest.approx(2 * math.log(2))


def tiny_policy():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=256, n_embd=8, n_layer=1, n_head=1))


def test_the_extension_changes_nothing_but_the_second_half_of_the_positions(uncompiled, monkeypatch):
    model, stream = tiny_policy(), np.arange(600) % 20
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    monkeypatch.setattr(train_policy, "EXTEND", 2)
    args = SimpleNamespace(batch=2, seed=0, begin=0.0, dtype=torch.float32)
    train_policy.extend_positions(model, stream, args)
    for name, p in model.named_parameters():
        same = p[:128], before[name][:128]
        if name != "transformer.wpe.weight":
            same = p, before[name]
        assert torch.equal(*same), name
    stretched = before["transformer.wpe.weight"][64:128].repeat_interleave(2, dim=0)
    # two steps of Adam of about 3e-3 and 1.5e-3 at most
    assert 0 < (model.transformer.wpe.weight[128:] - stretched).abs().max() < 5e-3


def test_sharpened_logits_are_the_old_ones_at_a_lower_temperature():
    model, ids = tiny_policy().eval(), torch.arange(10)[None]
    torch.nn.init.normal_(model.transformer.ln_f.bias)  # it begins as 0
    before = model(ids).logits
    train_policy.sharpen(model, 0.8)
    torch.testing.assert_close(model(ids).logits, before / 0.8)


def test_a_new_token_begins_as_the_mean_of_the_old_tokens_that_spell_it(tmp_path):
    old = train_policy.train_tokenizer([], 257)  # the bytes alone
    model = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    old.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    new_model, new = train_policy.first_model(str(tmp_path), ["a film a film"], 262)
    assert {"film", "Ġfilm"} & set(new.get_vocab()) and len(new) > 258
    embedding, moved = model.transformer.wte.weight, new_model.transformer.wte.weight
    spelt = [old.convert_tokens_to_ids(letter) for letter in "film"]
    token = "film" if "film" in new.get_vocab() else "Ġfilm"
    if token[0] == "Ġ":
        spelt = [old.convert_tokens_to_ids("Ġ"), *spelt]
    torch.testing.assert_close(moved[new.convert_tokens_to_ids(token)], embedding[spelt].mean(0))
    assert torch.equal(moved[0], embedding[0]) and new_model.lm_head.weight is moved
    assert new.decode(new("naïve ★ 10/10")["input_ids"]) == "naïve ★ 10/10"


# The corpus -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "review, expected",
    [
        ("I liked it. It was good!", ["I liked it.", "It was good!"]),
        ('He said "no way" (twice). Bad!!! So?!', ["He said no way.", "Bad!", "So?"]),
        ("Good -- but long.", ["Good, but long."]),
        ("It’s fine", ["It's fine"]),
    ],
)
def test_sentences_of_a_review(review, expected):
    assert corpus.sentences(review) == expected


@pytest.mark.parametrize(
    "sentence, expected",
    [
        ("thats VERY good and i dont mind.", "That's very good and I don't mind."),
        ("Im sure I'm REally right.", "I'm sure I'm really right."),
        ("It is alot, they wont say.", "It is a lot, they won't say."),
    ],
)
def test_truecase(sentence, expected):
    assert corpus.truecase(sentence) == expected


def test_common_words_leave_out_names_and_acronyms():
    reviews = [["The film with Anna was good.", "Anna is in the film.", "A film, FBI and all, I say."]] * 2
    # most frequent first: film 6, the 4. "a" and "the" are common words though they begin sentences, too
    common_words = corpus.common_words(reviews, 100)
    assert {"film", "the", "a", "i", "good"} <= common_words and not {"anna", "fbi"} & common_words
    assert corpus.common_words(reviews, 2) == {"film", "the"}


@pytest.mark.parametrize(
    "sentence, simple",
    [
        ("The film was good.", True),
        ("The film was good, and I liked it!", True),
        ("So good.", False),  # two words
        ("The film was good", False),  # no end
        ("The zany film was good.", False),  # a rare word
        ("The film by Good was good.", False),  # a name
        ("The film was 2 good.", False),
        ("It was good, good, good, good, good.", False),  # a list
        ("The film was good...", False),
        ("The film was rated good.", False),  # about the site
        (" ".join(["The", *["good"] * 40]) + ".", False),  # 41 words
    ],
)
def test_simple_sentences(sentence, simple):
    known = set("the film was good and i liked it so by rated".split())
    assert corpus.is_simple(sentence, known) is simple


def test_texts_have_the_shortest_length_to_120_words():
    assert corpus.texts(["one two three."] * 3, 12) == []  # 9 words
    assert corpus.texts(["one two three."] * 4, 12) == [" ".join(["one two three."] * 4)]
    assert corpus.texts(["one two three."] * 4, 13) == []
    cut = corpus.texts(["one two three."] * 50, 12)  # 150 words
    assert [len(text.split()) for text in cut] == [120, 30]


# Measuring ------------------------------------------------------------------------------------------------------


def test_simple_sentences_to_measure_a_classifier_on(tmp_path):
    """Of the asked split, one by one, with the review's label; of SST-2 those in words of the file, respelled."""
    rows = [
        ("test", 1, "I don't like it much. It works!"),
        ("test", 0, "It isn't good."),
        ("train", 1, "It's great fun."),
    ]
    pd.DataFrame(rows, columns=["split", "label", "text"]).to_parquet(tmp_path / "simple.parquet")
    rows = [("validation", 0, "it does n't work ."), ("validation", 1, "i do n't like it , much !"),
            ("validation", 1, "it 's great fun ."), ("train", 1, "i like it .")]  # fmt: skip
    sst2 = pd.DataFrame(rows, columns=["split", "label", "text"])
    found = corpus.simple_sentences(str(tmp_path / "simple.parquet"), "test", sst2)
    got = {name: sorted(zip(frame.text, frame.label, strict=True)) for name, frame in found.items()}
    assert got == {
        "simple_sentences_imdb_test": [("I don't like it much.", 1), ("It isn't good.", 0), ("It works!", 1)],
        "simple_sentences_sst2_validation": [("I don't like it, much!", 1), ("It's great fun.", 1)],
    }


def test_measures_of_samples_by_hand():
    reviews = ["good film"] * 10 + ["Good odd"] * 9
    assert train_policy.non_words(["a good FILM", "odd"], reviews) == 0.5  # "a" and "odd"
    assert train_policy.distinct_2(["a b a b", "c"]) == pytest.approx(2 / 3)  # ab, ba, ab
    long = " ".join("abcdefghijkl")
    assert (
        train_policy.memorised([long, "a b c", long + " z"], [f"x {long} y"]) == 0.5
    )  # the short one does not count


def test_broken_texts_keep_to_the_words_they_are_made_of():
    rng = np.random.default_rng(0)
    words = "one two three four five six seven eight nine ten".split()
    assert sorted(train_judge.shuffled(words, rng).split()) == sorted(words)
    assert sorted(train_judge.salad(words, rng).split()) == sorted(words)
    for make in (train_judge.repeated_word, train_judge.repeated_phrase):
        text = [w.strip(",!.") for w in make(words, rng).split()]
        assert set(text) <= set(words) and len(set(text)) < len(text) <= 90


def test_a_spliced_text_is_stretches_of_reviews():
    rng = np.random.default_rng(0)
    reviews = [[f"{k}.{i}" for i in range(20)] for k in range(50)]
    for _ in range(50):
        places = [tuple(map(int, word.split("."))) for word in train_judge.spliced(reviews, rng).split()]
        seams = sum(b != (a[0], a[1] + 1) for a, b in itertools.pairwise(places))
        assert 6 <= len(places) <= 84 and 2 <= seams <= 13


@pytest.fixture
def fresh_judge():
    torch.manual_seed(0)
    vectors = 0.05 * torch.randn(30, train_judge.WIDTH - train_judge.PLACE)
    return train_judge.first_model(vectors).eval()


def test_first_heads_of_the_judge_start_out_looking_at_the_neighbours(fresh_judge):
    with torch.no_grad():
        seen = fresh_judge(torch.randint(30, (1, 200)), output_attentions=True).attentions[0][0]
    for head, offset in enumerate((-1, 1, -2)):  # most of each query's attention, ends of the text aside
        assert seen[head].diagonal(offset)[3:-3].min() > 0.5


def test_out_of_place_loss_is_the_cross_entropy_of_telling_the_changed_tokens():
    ids = torch.tensor([[2, *range(10, 30), 3, 0, 0], [2, *range(40, 62), 3]])
    seen = {}

    def model(input_ids, attention_mask):
        seen["changed"] = input_ids
        return SimpleNamespace(
            logits=torch.full(ids.shape, math.log(3.0))
        )  # says 3 : 1 that a token is wrong

    torch.manual_seed(0)
    loss, count = train_judge.out_of_place_loss(model, ids, (ids != 0).long(), None)
    assert count == 2
    inner = ids > 3
    wrong = (seen["changed"] != ids)[inner]
    assert torch.equal(seen["changed"][~inner], ids[~inner]) and 1 <= wrong.sum() <= 20
    for row, new in zip(ids, seen["changed"], strict=True):
        assert set(new.tolist()) <= set(row.tolist())
    # -log 3/4 for a wrong token, -log 1/4 for one in its place; mean over tokens, times two texts
    share = wrong.float().mean().item()
    assert loss.item() == pytest.approx(
        -2 * (share * math.log(0.75) + (1 - share) * math.log(0.25)), rel=1e-5
    )


def test_directed_word_vectors_tell_before_from_after():
    # 1 and 2 stand before 5, 3 behind it: 1 and 2 are alike in what follows them
    rng = np.random.default_rng(0)
    rows = [np.array([rng.choice([1, 2]), 5, 3]) for _ in range(400)]
    v = common.ppmi_vectors(rows, vocab=9, width=4, reach=1, directed=True)
    after, before = v[:, :2], v[:, 2:]
    assert F.cosine_similarity(after[1], after[2], dim=0) > 0.95
    assert after[3].abs().max() < 1e-4 * after[1].abs().max()  # nothing follows 3
    assert before[1].abs().max() < 1e-4 * before[3].abs().max()  # nothing comes before 1


# The scripts, end to end ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A few dozen made-up reviews and phrases in the published columns."""
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    plain = (
        "the film story actor scene music plot camera ending was and with a very long short old new".split()
    )
    tone = {1: ["great", "lovely", "moving"], 0: ["awful", "dull", "clumsy"]}

    def text(label: int, length: int) -> str:
        words = plain + 3 * tone.get(label, tone[0] + tone[1])
        return " ".join(rng.choice(words) for _ in range(length))

    ending = ".<br /><br />And so it ends."
    rows = [
        (split, k, text(k, 60) + ending) for split in ("train", "test") for k in (0, 1) for _ in range(25)
    ]
    rows += [("unsupervised", -1, text(-1, 60) + ending) for _ in range(20)]
    pd.DataFrame(rows, columns=["split", "label", "text"]).to_parquet(folder / "imdb.parquet")
    rows = [(split, k, text(k, 12)) for split in ("train", "validation") for k in (0, 1) for _ in range(40)]
    rows += [("train", k, word) for k, words in tone.items() for word in words]
    rows += [("validation", 1, "a great old story .")]
    pd.DataFrame(rows, columns=["split", "label", "sentence"]).to_parquet(folder / "sst2.parquet")
    return folder


@pytest.fixture
def uncompiled(monkeypatch):
    """Without torch.compile, which takes a minute."""
    monkeypatch.setattr(torch, "compile", lambda loss_of, dynamic: loss_of)


@pytest.fixture
def run(uncompiled, monkeypatch):
    monkeypatch.setattr(common, "BUCKETS", 1 << 12)
    monkeypatch.setattr(train_sentiment, "BUDGET", 256)
    monkeypatch.setattr(train_judge, "BUDGET", 256)
    monkeypatch.setattr(train_judge, "ORDER_STEPS", 2)
    monkeypatch.setattr(train_policy, "EXTEND", 1)

    def run(script, *flags) -> None:
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", "--steps", "2", *map(str, flags)])
        script.main()

    return run


def test_policy_script_runs_and_continues_from_a_local_file(data, tmp_path, run):
    flags = ["--data", data / "imdb.parquet", "--batch", 2, "--out", tmp_path / "policy"]
    run(train_policy, *flags)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    written = json.loads((tmp_path / "policy" / "metrics.json").read_text())
    assert written["steps"] == 2 and model.config.vocab_size == len(tokenizer)
    command = "python mini/train_policy.py --data path/to/imdb.parquet --steps 2 --batch 2"
    assert written["command"] == command and command in (tmp_path / "policy" / "README.md").read_text()
    run(train_policy, *flags, "--resume", "--steps", 3)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert not torch.equal(model.transformer.wte.weight, again.transformer.wte.weight)


def test_a_phrase_said_over_and_over_is_that_phrase_alone():
    rng = np.random.default_rng(0)
    texts = [train_sentiment.over_and_over("truly amazing", rng) for _ in range(300)]
    counts = {text.count("truly amazing") for text in texts}
    assert min(counts) == 2 and max(counts) == 30  # 60 words
    assert set(" ".join(texts).replace(",", "").replace("!", "").split()) == {"truly", "amazing"}
    assert {"," in t for t in texts} == {"!" in t for t in texts} == {True, False}
    assert max(train_sentiment.over_and_over("fun", rng).count("fun") for _ in range(300)) == 40


def test_sentiment_script_runs_from_local_files(data, tmp_path, run):
    files = ["--data", data / "imdb.parquet", "--sst2", data / "sst2.parquet"]
    run(train_sentiment, *files, "--out", tmp_path / "sentiment")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sentiment")
    assert model.config.model_type == "distilbert"
    assert "| second_stage | False |" in (tmp_path / "sentiment" / "README.md").read_text()

    # the second stage goes on from the first
    out = ["--init", tmp_path / "sentiment", "--long", 0.4, "--repeat", 0.5, "--out", tmp_path / "second"]
    run(train_sentiment, *files, *out, "--lr", 0, "--lr_rest", 0)
    same = AutoModelForSequenceClassification.from_pretrained(tmp_path / "second")
    for name, weight in same.state_dict().items():  # with learning rate 0 it gets nowhere
        torch.testing.assert_close(weight, model.state_dict()[name])
    assert "| second_stage | True |" in (tmp_path / "second" / "README.md").read_text()


def test_judge_script_runs_from_local_files(data, tmp_path, run):
    files = ["--data", data / "imdb.parquet", "--sst2", data / "sst2.parquet", "--out", tmp_path / "judge"]
    run(train_judge, *files)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge")
    assert model.config.model_type == "electra"
    assert "| P(positive): honest positive | 0." in (tmp_path / "judge" / "README.md").read_text()

    # measured again: the rows are those of the training run, and the new ones beside them
    before = json.loads((tmp_path / "judge" / "metrics.json").read_text())
    run(train_judge, *files, "--evaluate", tmp_path / "judge", "--simple", data / "imdb.parquet")
    after = json.loads((tmp_path / "judge" / "metrics.json").read_text())
    assert after == before | {key: after[key] for key in after if key.startswith("simple_sentences")}
    assert "| simple_sentences_imdb_train_n |" in (tmp_path / "judge" / "README.md").read_text()


@pytest.mark.whole_kit  # a variant of the hand-out deals the prompts out anew, and then they count no more
@pytest.mark.parametrize("file, prompts", [(HELD_OUT, HELD_OUT_PROMPTS), (TUNING, TUNING_PROMPTS)])
def test_the_kept_samples_count_for_the_bundled_pair_and_how_they_were_drawn_only(file, prompts):
    """A model, a prompt or a setting that has changed since would make J* that of something else."""
    choice = resolve_models("mini", "mini")
    bench = SimpleNamespace(prompts=prompts, max_new_tokens=40, temperature=1.0)
    kept = kept_samples(choice, bench)
    assert kept is not None and kept.scores.shape == (64, 64) and {len(t) for t in kept.texts} == {64}
    assert kept.scores.tolist() == read_kept(file)[1].scores.tolist()
    for other in ({"prompts": prompts[:63]}, {"max_new_tokens": 39}, {"temperature": 0.9}):
        assert kept_samples(choice, SimpleNamespace(**vars(bench) | other)) is None
    assert kept_samples(replace(choice, policy=choice.sentiment), bench) is None


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis.txt").write_text("my thesis")
    parser = common.run_parser("Doc.", "judge", steps=1, lr=1e-3, lr_rest=0, warmup=1)
    monkeypatch.setattr(sys, "argv", ["train", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        common.start_run(parser)
    assert "is no model of these scripts; name another folder" in capsys.readouterr().err
    (tmp_path / "metrics.json").write_text("{}")
    assert common.start_run(parser).out == tmp_path
