"""Prompt prefixes against RL: the split that keeps the choice honest, the conclusion, and one real run.

pytest tests/test_prompt_engineering.py
"""

import json

import numpy as np
import pytest

import prompt_engineering
from kit.base.errors import UserError
from kit.base.metrics import Estimate, RewardWeights
from kit.lm.models import MINI
from prompt_engineering import NO_PREFIX, conclusion, gains


def estimate(value: float, spread: float = 0.01) -> Estimate:
    return Estimate(value, np.linspace(value - spread, value + spread, 101))


def test_the_prefix_is_chosen_on_even_prompts_and_measured_on_odd_ones():
    lucky = np.array([[1.0], [0.1], [1.0], [0.1]])  # best where it is chosen, poor where it is measured
    steady = np.array([[0.6], [0.8], [0.6], [0.8]])
    base = {NO_PREFIX: np.full((4, 1), 0.5), "lucky": lucky, "steady": steady}
    trained = {NO_PREFIX: np.full((4, 1), 0.9), "lucky": steady, "steady": lucky}
    found, chosen = gains(base, trained)
    assert chosen == {"base": "lucky", "trained": "steady"}
    assert {name: e.value for name, e in found.items()} == pytest.approx(
        {"prefix": -0.4, "rl": 0.4, "both": -0.4}
    )


def test_no_prefix_is_no_prefix():
    scores = {NO_PREFIX: np.ones((4, 1)), "a": np.zeros((4, 1))}
    assert gains(scores, scores)[1] == {"base": "a", "trained": "a"}


@pytest.mark.parametrize(
    "prefix, rl, both, said",
    [
        (
            0.1,
            0.4,
            0.4,
            "RL beats the best prefix (+0.300 [+0.300, +0.300]); both together add nothing to RL alone",
        ),
        (
            0.1,
            0.4,
            0.5,
            "RL beats the best prefix (+0.300 [+0.300, +0.300]); both together beat RL alone (+0.100",
        ),
        (
            0.4,
            0.1,
            0.2,
            "The best prefix beats RL (-0.300 [-0.300, -0.300]); both together are worse than the prefix",
        ),
    ],
)
def test_conclusion(prefix, rl, both, said):
    assert said in conclusion({"prefix": estimate(prefix), "rl": estimate(rl), "both": estimate(both)})


def test_an_interval_with_zero_in_it_is_no_win():
    wide = {"prefix": estimate(0.1), "rl": estimate(0.12, spread=0.5), "both": estimate(0.3, spread=2.0)}
    assert "cannot be told apart (+0.020 [" in conclusion(wide)
    assert "add nothing to RL alone that can be told from noise" in conclusion(wide)


def run(*args: str, out) -> None:
    small = ["--model", "mini", "--num_samples", "1", "--max_new_tokens", "6"]
    prompt_engineering.main([*args, "--out", str(out), *small])


def fake_scorer(monkeypatch, scorer) -> None:
    load = prompt_engineering.load_bench

    def with_fake_scorer(*args, **kwargs):
        bench = load(*args, **kwargs)
        bench.scorer = scorer
        return bench

    monkeypatch.setattr(prompt_engineering, "load_bench", with_fake_scorer)


def test_a_copy_of_the_base_gains_nothing_and_only_completions_are_scored(tmp_path, monkeypatch, capsys):
    seen: list[str] = []

    def scorer(texts):
        seen.extend(texts)
        return [len(text) / 100 for text in texts]

    fake_scorer(monkeypatch, scorer)
    monkeypatch.setattr(prompt_engineering, "PREFIXES", ("ZQX ",))
    run(str(MINI / "policy"), "--num_prompts", "4", "--prefix", "VKJ ", out=tmp_path)
    assert len(seen) == 2 * 3 * 4
    assert not any("ZQX" in text or "VKJ" in text for text in seen)
    record = json.loads((tmp_path / "prompt_engineering.json").read_text())
    assert [row["prefix"] for row in record["table"]] == ["", "ZQX ", "VKJ "] * 2
    assert record["gain"]["rl"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert record["gain"]["both"] == record["gain"]["prefix"]
    assert record["conclusion"] in capsys.readouterr().out


@pytest.mark.whole_kit
def test_shaped_reward_is_the_students(tmp_path, monkeypatch, capsys):
    """`rewards.py` is unfilled: one sentence that says so. The solution's is R with whatever weights the file has:
    for a run with --negate_reward 1 - 0.25, less 0.7 for a text that is too short."""
    trained = tmp_path / "run"
    trained.mkdir()
    (trained / "final").symlink_to(MINI / "policy")
    (trained / "metrics.jsonl").write_text("")
    (trained / "config.json").write_text('{"negate_reward": true}')
    weights = RewardWeights(sentiment=1.0, repetition=0.0, length=0.7, target_words=(100, 200))
    monkeypatch.setattr("kit.base.metrics.load_reward_weights", lambda: weights)
    monkeypatch.setattr(prompt_engineering, "PREFIXES", ("Good. ",))
    fake_scorer(monkeypatch, lambda texts: [0.25] * len(texts))
    shaped = (str(trained), "--num_prompts", "4", "--score", "shaped")
    with pytest.raises(UserError, match=r"shaped_reward .* is not written yet"):
        run(*shaped, out=tmp_path)
    run(*shaped, "--use_solution", out=tmp_path)
    assert "score shaped of 1 - P(positive) of the completion alone" in capsys.readouterr().out
    table = json.loads((tmp_path / "prompt_engineering.json").read_text())["table"]
    assert [row["value"] for row in table] == pytest.approx([0.05] * 4)


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["--num_prompts", "2"], "2 prompts are too few"),
        (["--num_prompts", "4", "--prefix", "long " * 300], r"after the prefix .*leave room"),
        (["--score", "stars"], "invalid choice"),
        (["--use_solution"], "needs --score shaped"),
    ],
)
def test_bad_input_is_one_sentence(args, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        run(str(MINI / "policy"), *args, out=tmp_path)
