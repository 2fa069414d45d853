"""Runs that are compared.

pytest tests/test_comparison.py
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from data import HELD_OUT_PROMPTS
from kit.comparison import Model, trained_with, validation_points

ROOT = Path(__file__).resolve().parent.parent
BENCH = SimpleNamespace(prompts=list(HELD_OUT_PROMPTS), temperature=1.0, max_new_tokens=40)


def make_run(folder: Path, **config) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"method": "grpo", **config}))
    lines = [
        {"step": s, "val/sentiment_mean": 0.5 + s / 100, "val/kl_policy_ref": s / 10} for s in (0, 10, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_validations_stand_in_for_checkpoints(tmp_path):
    model = Model("m", str(make_run(tmp_path / "run")))
    points = validation_points(model, BENCH)
    assert [(p["step"], p["kl"], p["sentiment"]) for p in points] == [
        (0, 0.0, 0.5),
        (10, 1.0, 0.6),
    ]  # 20: sampled anew
    (tmp_path / "run" / "checkpoint-10").mkdir()
    (tmp_path / "run" / "checkpoint-20").mkdir()
    assert [step for step, _ in model.earlier_checkpoints()] == [10]


@pytest.mark.parametrize(
    "config",
    [
        {"training": {"temperature": 1.3}},  # train.py keeps it there
        {"temperature": 1.3},  # and the baselines here
        {"training": {"max_completion_length": 24}},
        {"prompts": "fit"},  # validated on the tuning prompts
    ],
)
def test_validations_of_other_conditions_are_not_put_beside_this_bench(config, tmp_path):
    assert validation_points(Model("m", str(make_run(tmp_path / "run", **config))), BENCH) == []


def test_auto_is_what_the_runs_were_trained_with(tmp_path):
    a = Model("a", str(make_run(tmp_path / "a", model="gpt2")))
    b = Model("b", str(make_run(tmp_path / "b", model="mini/policy")))
    assert trained_with("auto", "model", [a]) == "gpt2"
    assert trained_with("auto", "model", [b]) == str(ROOT / "mini" / "policy")
    assert trained_with("auto", "model", [a, b]) == "auto"
    assert trained_with("mini", "model", [a]) == "mini"


def test_a_broken_run_file_is_a_note(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    model = Model("m", str(run))
    assert "line 2" in model.notes[0]
    assert model.history == []
