"""The simulated annotator and its files, by hand; and the reading of people's choices.

pytest tests/test_preferences.py
"""

import json
import math

import numpy as np
import pytest

from baselines import preferences
from baselines.preferences import answers, chance_of_first, draw_pairs, feature
from data import load_pairs
from kit.base.errors import UserError
from kit.base.metrics import gold_reward
from kit.lm.sampling import Completion


def text(words: str, prompt: str = "p") -> Completion:
    return Completion(prompt, [1], [2], words, truncated=False)


def test_gold_rewards_by_hand():
    assert gold_reward("sentiment", [0.75, 0.5, 0.25], ["a"] * 3) == pytest.approx(
        [math.log(3), 0, -math.log(3)]
    )
    # a saturated classifier: 1 - 1e-6
    assert gold_reward("sentiment", [1.0, 0.0], ["a"] * 2) == pytest.approx([13.8155, -13.8155], abs=1e-3)
    # three words, two of them new, too short in every variant: 10 (0.8 - 0.5 / 3 - 0.2)
    assert gold_reward("composite", [0.8], ["good good film"]) == pytest.approx([10 * (0.8 - 0.5 / 3 - 0.2)])


def test_features():
    assert feature("length", "A good, good film!") == 4
    assert feature("exclamation", "Good! Good!!") == 3
    assert feature("word:good", "Good, very good. Goodness") == 2
    assert feature("none", "Good!") == 0


def test_the_annotator_by_hand():
    gold = np.array([[math.log(3), 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, math.log(3)]])
    more = np.array([[1, 1], [7, 2], [0, 1], [3, 3]])  # the number does not count, only which has more
    log3 = math.log(3)
    assert chance_of_first(gold, more, strength=log3, random=0.0) == pytest.approx(
        [3 / 4, 3 / 4, 1 / (1 + 3 * math.exp(-1)), 1 / 4]
    )
    # the bias turned round
    assert chance_of_first(gold, more, strength=-log3, random=0.0)[1] == pytest.approx(1 / 4)
    # one answer in five is a coin: 0.8 * 3/4 + 0.1
    assert chance_of_first(gold, more, strength=0.0, random=0.2)[0] == pytest.approx(0.7)
    assert chance_of_first(gold, more, strength=5.0, random=1.0) == pytest.approx(0.5)


def test_answers_are_in_trls_format():
    lines = answers(
        [(text(" a"), text(" b")), (text(" c", "q"), text(" \u2028d", "q"))], np.array([True, False])
    )
    assert [json.loads(line) for line in lines.splitlines()[:1]] == [
        {"prompt": "p", "chosen": " a", "rejected": " b"}
    ]
    assert json.loads(lines.split("\n")[1]) == {"prompt": "q", "chosen": " \u2028d", "rejected": " c"}


def test_equal_texts_are_drawn_again(monkeypatch):
    drawn = [["same", "same", "a", "b"], ["c", "d"]]
    asked = []

    def sample(lm, tokenizer, prompts, num, length, temperature, seed, on_batch):
        asked.append((len(prompts), seed))
        return [text(words) for words in drawn[len(asked) - 1]]

    monkeypatch.setattr(preferences, "sample", sample)
    pairs = draw_pairs(None, None, ["p"] * 3, 2, 8, 1.0, np.random.default_rng(0))
    assert [(a.text, b.text) for a, b in pairs] == [("a", "b"), ("c", "d")]
    assert [n for n, _ in asked] == [2, 1] and asked[0][1] != asked[1][1]
    drawn[:] = [["same", "same"]]
    asked.clear()
    with pytest.raises(UserError, match="raise --temperature"):
        draw_pairs(None, None, ["p"], 1, 8, 1.0, np.random.default_rng(0))


GOOD = {"prompt": "It was", "chosen": " good.", "rejected": " bad."}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "no pair in it"),
        ([GOOD, {"prompt": "x", "chosen": " y"}], "line 2: needs a text under 'rejected'"),
        ([{"text": "x"}], "line 1: needs a text under 'prompt'"),
        ([["a", "b", "c"]], "line 1: needs a text under 'prompt'"),
        ([{**GOOD, "chosen": [{"role": "user"}]}], "line 1: needs a text under 'chosen'"),
        ([GOOD, {**GOOD, "rejected": " good."}], "line 2: chosen and rejected are the same text"),
    ],
)
def test_bad_pairs_are_one_sentence(lines, says, tmp_path):
    file = tmp_path / "choices.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=says) as error:
        load_pairs(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_choices(tmp_path):
    file = tmp_path / "choices.jsonl"
    with pytest.raises(UserError, match="no such file"):
        load_pairs(file)
    file.write_bytes(b"PAR1\xff\x00")
    with pytest.raises(UserError):
        load_pairs(file)
    file.write_text(json.dumps({**GOOD, "annotator": "anna"}) + "\n")
    assert load_pairs(file) == [GOOD]


def test_a_file_of_choices_from_an_editor_on_windows(tmp_path):
    """A byte order mark, CR LF, blank lines, and no end of the last line: none is an error, none shifts a number."""
    file, good = tmp_path / "choices.jsonl", json.dumps(GOOD).encode()
    file.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\r\n" + good)
    assert load_pairs(file) == [GOOD, GOOD]
    file.write_bytes(good + b"\n\n" + good[:-1])  # never left out in silence
    with pytest.raises(UserError, match="line 3: is no JSON object"):
        load_pairs(file)


def test_a_persons_choices_are_not_written_over(tmp_path):
    theirs = tmp_path / "pairs.jsonl"
    theirs.write_text(json.dumps(GOOD) + "\n")
    with pytest.raises(UserError, match="not of this command"):
        preferences.main(["--pairs", "4", "--out", str(tmp_path)])
    assert load_pairs(theirs) == [GOOD]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("", "--out"),
        ("--out x --pairs 0", "below 1"),
        ("--out x --bias words", "--bias words"),
        ("--out x --bias word:", "--bias word:"),
        ("--out x --random 1.5", "from 0 to 1"),
        ("--out x --strength 3", "needs --bias"),
        ("--out {run}", "folder of a run"),
    ],
)
def test_a_users_error_is_one_sentence(flags, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=says):
        preferences.main(flags.format(run=tmp_path / "run").split())
    assert not (tmp_path / "x").exists()
