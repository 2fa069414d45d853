"""Prompts and IMDB.

pytest tests/test_data.py
"""

import pandas
import pytest
from datasets import ClassLabel, Dataset, Features, Value

import data
from kit.base.errors import UserError
from sentiment import word_count_score


def test_builtin_prompts():
    train, held_out = data.TRAIN_PROMPTS, data.HELD_OUT_PROMPTS
    assert len(train) >= 500 and len(held_out) == 64
    everything = [p.lower() for p in train + held_out]
    assert len(set(everything)) == len(everything)  # no duplicate, and no prompt in both
    assert len({len(p.split()) for p in train}) >= 8 and len({len(p.split()) for p in held_out}) >= 5
    assert all(p == p.strip() and p for p in train + held_out)
    assert all(2 <= len(p.split()) <= 14 for p in train[100:])
    assert not any(word_count_score(train + held_out))  # an opener carries no verdict
    assert len(data.TUNING_PROMPTS) == 64 and set(data.TUNING_PROMPTS) < set(train)
    fit, tuning = data.load_prompts("fit"), data.load_prompts("tuning")
    assert sorted([*fit, *tuning]) == sorted(train)  # two parts, nothing in both


def test_the_later_training_prompts_begin_like_no_held_out_one():
    """Neither with its first three words nor with the whole of it. (Of the first hundred, a few do.)"""
    held_out = [p.lower().split()[:3] for p in data.HELD_OUT_PROMPTS]
    later = [p.lower().split() for p in data.TRAIN_PROMPTS[100:]]
    assert [words for words in later if any(words[: len(start)] == start for start in held_out)] == []


def test_prompt_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffOne opener\nAnother opener\n", encoding="utf-8")
    assert data.load_prompts(str(file)) == ["One opener", "Another opener"]
    file.write_text("One opener\n\nThird\n")
    with pytest.raises(UserError, match="line 2: the prompt is empty"):
        data.load_prompts(str(file))
    file.write_text("")
    with pytest.raises(UserError, match="there is no prompt in it"):
        data.load_prompts(str(file))
    with pytest.raises(UserError, match="no such file; give builtin, imdb, or a file"):
        data.load_prompts(str(tmp_path / "missing.txt"))


def test_a_prompt_ends_at_a_newline_and_a_blank_at_its_end_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "p.txt").write_bytes("a\u2028b\r\nc\x0cd\x85e\nf \n".encode())
    assert data.load_prompts("~/p.txt") == ["a\u2028b", "c\x0cd\x85e", "f "]
    assert capsys.readouterr().err == (
        "--prompts ~/p.txt, line 3: begins or ends with a blank, which is kept: the model sees it\n"
    )


def test_a_prompt_that_leaves_no_room_is_refused_with_its_line():
    def tokenizer(text):
        return {"input_ids": text.split()}

    data.check_prompts(["a b", "a b c d e"], "f", tokenizer, 5)
    with pytest.raises(UserError, match=r"--prompts f, line 2: 5 tokens, but only 4"):
        data.check_prompts(["a b", "a b c d e"], "f", tokenizer, 4)


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


@pytest.mark.parametrize(
    "labels",
    [
        [1, 0, -1],
        [1.0, 0.0, None],  # as pandas makes of integers where one is missing
        [True, False, None],
        ["pos", "neg", "unsup"],
        [" Positive", "NEGATIVE", None],
        ["1", "0", "-1"],
    ],
)
def test_labels_may_be_spelled_as_data_sets_spell_them(labels, tmp_path):
    reviews = pandas.DataFrame({"text": ["a fine film", "a bad film", None], "label": labels})
    reviews.to_parquet(tmp_path / "x.parquet")
    assert data.load_imdb(str(tmp_path / "x.parquet")) == (["a fine film", "a bad film"], [1, 0])


def test_labels_that_the_file_itself_names_mean_what_they_are_called(tmp_path):
    """Some data sets number the positive class 0."""
    columns = {"text": ["a fine film", "a bad film"], "label": [0, 1]}
    kinds = Features({"text": Value("string"), "label": ClassLabel(names=["positive", "negative"])})
    Dataset.from_dict(columns, features=kinds).to_parquet(tmp_path / "x.parquet")
    assert data.load_imdb(str(tmp_path / "x.parquet")) == (["a fine film", "a bad film"], [1, 0])


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"text": ["a", "b"], "label": [1, 1]}, r"no review of label 0; 1 and 0 are both needed"),
        ({"text": ["a", "b"], "label": [1, 2]}, "row 1: the label is 2; write 1 or pos, 0 or neg"),
        ({"text": ["a", "b"], "label": ["pos", "great"]}, "row 1: the label is 'great'"),
        ({"text": ["a", None], "label": [1, 0]}, "row 1: the text is None; it must be a string"),
        ({"text": [float("nan"), 1.0], "label": [1, 0]}, "row 0: the text is "),
        ({"text": [7, 8], "label": [1, 0]}, "row 0: the text is 7"),
        ({"text": [b"a", b"b"], "label": [1, 0]}, "row 0: the text is b'a'"),
        ({"text": ["a", "b"], "label": [1, 0], "split": ["test", "test"]}, "column split never says train"),
        ({"review": ["a", "b"], "label": [1, 0]}, "has no column text$"),
    ],
)
def test_reviews_that_cannot_be_used_are_told_with_their_row(columns, says, tmp_path):
    file = tmp_path / "imdb.parquet"
    pandas.DataFrame(columns).to_parquet(file)
    with pytest.raises(UserError, match=rf"{file}.*{says}"):
        data.load_prompts(f"imdb:{file}")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"not parquet", "cannot read IMDB"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
    ],
)
def test_imdb_that_cannot_be_had_is_one_sentence(content, says, tmp_path):
    file = tmp_path / "x.parquet"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=says):
        data.load_imdb(str(file))


def test_imdb_prompts_are_short_once_each_and_never_held_out(tmp_path):
    held = min(data.HELD_OUT_PROMPTS, key=len)
    rows = [{"text": held, "label": k % 2} for k in range(40)]
    rows += [{"text": " ".join(f"w{i}x{k}" for i in range(30)), "label": k % 2} for k in range(400)]
    rows += [{"text": "same words", "label": k % 2} for k in range(10)] + [
        {"text": "unsup " * 9, "label": -1}
    ] * 9
    pandas.DataFrame(rows).to_parquet(tmp_path / "x.parquet")
    prompts = data.load_prompts(f"imdb:{tmp_path / 'x.parquet'}")
    assert held not in prompts and len(set(prompts)) == len(prompts)
    assert {len(p.split()) for p in prompts} == set(range(2, 9))
    assert not any(p.startswith("unsup") for p in prompts)
    assert data.load_prompts(f"imdb:{tmp_path / 'x.parquet'}", limit=5) == prompts[:5]
    assert data.load_prompts("tuning")[:2] == [data.TRAIN_PROMPTS[0], data.TRAIN_PROMPTS[9]]
    f = tmp_path / "p.txt"
    f.write_text("a b\nc d\ne f\n")
    assert data.load_prompts(str(f), limit=2) == ["a b", "c d"]
