"""Runs that are compared.

pytest tests/test_comparison.py
"""

import argparse
import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data import HELD_OUT_PROMPTS
from kit.base.errors import UserError
from kit.base.metrics import Estimate
from kit.lm.models import MINI, ModelChoice
from kit.measure import comparison
from kit.measure.comparison import (
    Model,
    base_slope,
    captured_by,
    chosen_pair,
    compared,
    find_frontier,
    learned_of,
    measure,
    validation_points,
    what_differs,
    zero_std_groups,
)
from kit.measure.reference import ReferenceSamples, draw_samples

ROOT = Path(__file__).resolve().parent.parent
BENCH = SimpleNamespace(prompts=list(HELD_OUT_PROMPTS), temperature=1.0, max_new_tokens=40)
CHOICE = ModelChoice(str(MINI / "policy"), str(MINI / "sentiment"), "as asked for")


def make_run(folder: Path, **config) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"method": "grpo", **config}))
    lines = [
        {"step": s, "val/sentiment_mean": 0.5 + s / 100, "val/kl_policy_ref": s / 10} for s in (0, 10, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_validations_are_points_of_the_frontier(tmp_path):
    model = Model("m", str(make_run(tmp_path / "run")))
    points = validation_points(model, BENCH, CHOICE)
    assert [(p["step"], p["kl"], p["sentiment"]) for p in points] == [
        (0, 0.0, 0.5),
        (10, 1.0, 0.6),
    ]  # 20: sampled anew


@pytest.mark.parametrize(
    ("config", "note"),
    [
        # train.py keeps it there, and the baselines here
        ({"training": {"temperature": 1.3}}, "--temperature 1.3, and measured with 1.0, as all here"),
        ({"temperature": 1.3}, "--temperature 1.3, and measured with 1.0, as all here"),
        (
            {"training": {"max_completion_length": 24}},
            "--max_completion_length 24, and measured with 40, as all here",
        ),
        ({"model": "gpt2"}, "--model gpt2, and measured with mini/policy, as all here"),
        ({"sentiment_model": "x/y"}, "--sentiment_model x/y, and measured with mini/sentiment, as all here"),
        ({"prompts": "fit"}, ""),  # validated on the tuning prompts
        (  # a baseline's flags stand there too
            {"prompts": "fit", "sentiment_model": "mini/sentiment"}
            | {"training": {"model": "mini", "sentiment_model": "auto"}},
            "",
        ),
    ],
)
def test_validations_of_other_conditions_are_not_put_beside_this_bench(config, note, tmp_path):
    model = Model("m", str(make_run(tmp_path / "run", **{"model": "mini/policy"} | config)))
    assert validation_points(model, BENCH, CHOICE) == []
    assert what_differs(model, BENCH, CHOICE) == ([f"trained with {note}"] if note else [])


def test_the_word_counters_run_says_that_its_sentiment_is_the_classifiers(tmp_path):
    model = Model("m", str(make_run(tmp_path / "run", hackable_reward=True)))
    assert model.notes == [
        "trained to use words of praise (--hackable_reward); its sentiment is the classifier's"
    ]


def test_a_run_as_the_base_is_where_others_start_and_no_run(tmp_path):
    """Its own validations are distances from another model."""
    run = str(make_run(tmp_path / "run", kl_type="forward", kl_coef=0.3))
    base, model = Model("base", run), Model("m", run)
    assert (base.run, base.config, base.history) == (None, None, [])
    assert [compared(m, base, 0.0, None, 1)["price"] for m in (base, model)] == [0.1, 0.3]


def test_auto_is_what_the_runs_were_trained_with(tmp_path, monkeypatch):
    a = Model("a", str(make_run(tmp_path / "a", model="gpt2")))
    b = Model("b", str(make_run(tmp_path / "b", model="mini/policy")))
    auto = argparse.Namespace(model="auto", sentiment_model="mini")
    monkeypatch.setattr(comparison, "resolve_models", lambda *pair: pair)
    assert chosen_pair(auto, [a]) == ("gpt2", "mini")
    assert chosen_pair(auto, [b]) == (str(ROOT / "mini" / "policy"), "mini")
    assert chosen_pair(auto, [a, b]) == ("auto", "mini")
    assert chosen_pair(argparse.Namespace(model="mini", sentiment_model="mini"), [a]) == ("mini", "mini")


def test_a_broken_run_file_is_a_note(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    model = Model("m", str(run))
    assert "line 2" in model.notes[0]
    assert model.history == []


def test_a_model_that_fails_is_a_row_and_a_base_that_fails_is_the_end(monkeypatch):
    def rows(*_):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(comparison, "load_measured", lambda *_: (None, None))
    bench, base, model = (
        SimpleNamespace(reference=None, tokenizer=None, rows=rows),
        Model("base", "x"),
        Model("m", "y"),
    )
    measure(model, bench, 4)
    assert model.error == "RuntimeError: out of memory" and model.rows == []
    with pytest.raises(
        UserError, match=r"^the reference model cannot be measured: RuntimeError: out of memory$"
    ):
        measure(base, bench, 4)


def test_delta_is_model_less_base():
    base, better = Model("base", "x"), Model("m", "y")
    base.estimates = {"sentiment": Estimate(0.5, np.array([0.4, 0.5, 0.6]))}
    better.estimates = {
        "sentiment": Estimate(0.75, np.array([0.6, 0.75, 0.9])),
        "judge": Estimate(0.3, np.zeros(2)),
    }
    found = compared(better, base, 0.0, None, 1)["metrics"]
    assert found["sentiment"]["delta"] == pytest.approx(0.25)
    # differences 0.2, 0.25, 0.3; the 2.5th percentile of three lies a twentieth of the way
    assert (found["sentiment"]["delta_low"], found["sentiment"]["delta_high"]) == pytest.approx(
        (0.2025, 0.2975)
    )
    assert found["judge"]["delta"] is None


def test_captured_by_at_the_runs_price_and_in_its_direction():
    # base scores 0 and 1, beta 1: J* - J = log((1 + e)/2) - 1/2; a negated run that writes score 0 for 0 nats gains 1/2
    samples = ReferenceSamples([["", ""]] * 2, np.array([[0.0, 1.0]] * 2))
    room = math.log((1 + math.e) / 2) - 0.5
    model = Model("m", "x", config={"kl_coef": 1.0, "negate_reward": True})
    model.rows = [{"sentiment": 0.0, "kl_policy_ref": 0.4}] * 2
    assert captured_by(model, samples, 1).value == pytest.approx((0.5 - 0.4) / room)
    model.config = {"kl_coef": 1.0}
    assert captured_by(model, samples, 1).value == pytest.approx((-0.5 - 0.4) / room)


def test_flat_groups_of_the_last_ten_steps():
    model = Model("m", "x", history=[{"step": i, "train/zero_std_groups": float(i >= 5)} for i in range(14)])
    assert zero_std_groups(model) == pytest.approx(0.9)  # steps 4 ... 13


def test_the_judges_slope_over_the_bases_texts():
    base = Model("base", "x", estimates={"judge": Estimate(0.525, np.empty(0))})
    base.rows = [{"sentiment": s, "judge": j} for s, j in ((0, 0.3), (1, 0.6), (0, 0.5), (1, 0.7))]
    assert base_slope(base) == pytest.approx(0.25)  # from 0.4 on average to 0.65
    assert base.notes == []


def test_scores_of_the_bases_samples_stay_with_their_prompts():
    texts = [["0", "1"], ["2", "3"], ["4", "5"]]
    bench = SimpleNamespace(
        reference="pi_ref",
        tokenizer=None,
        phase=lambda name: nullcontext(),
        sample=lambda *_: [SimpleNamespace(text=text) for row in texts for text in row],
        scorer=lambda some: [float(text) for text in some],
        judge=lambda some: [100 - float(text) for text in some],
        learned=lambda scores, some: ([-float(text) for text in some], [10 * score for score in scores]),
    )
    samples = draw_samples(bench, 2)
    assert samples.texts == texts and samples.scores.tolist() == [[0, 1], [2, 3], [4, 5]]
    both = learned_of(bench, samples)
    proxy, gold = both
    assert proxy.tolist() == [[0, -1], [-2, -3], [-4, -5]] and gold.tolist() == [[0, 10], [20, 30], [40, 50]]
    found = find_frontier(bench, CHOICE, [], samples, both)
    # the best of two are 1, 3, 5 by the score, and 0, 2, 4 by the learned reward
    best, by_learned = found["best_of_n"][1], found["best_of_n_learned"][1]
    assert (best["sentiment"], best["judge"]) == pytest.approx((3, 97))
    assert (by_learned["sentiment"], by_learned["judge"]) == pytest.approx((2, 98))
