"""Prompts and IMDB.

pytest tests/test_data.py
"""

import pandas
import pytest

import data
from kit.errors import UserError
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


@pytest.mark.parametrize("labels", [[1, 1], ["neg", "pos"]])
def test_imdb_without_both_classes_is_refused(labels, tmp_path):
    file = tmp_path / "imdb.parquet"
    pandas.DataFrame({"text": ["a fine film", "a bad film"], "label": labels}).to_parquet(file)
    with pytest.raises(UserError, match=r"no review of label 0; both 1 \(positive\) and 0"):
        data.load_prompts(f"imdb:{file}")


def test_imdb_that_cannot_be_had_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        data.load_imdb(str(tmp_path / "none.parquet"))
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot read IMDB"):
        data.load_imdb(str(tmp_path / "broken.parquet"))


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
