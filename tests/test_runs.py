"""The run folder.

pytest tests/test_runs.py
"""

import json
import math

import pytest

from kit.errors import UserError
from kit.runs import Run, read_config, read_metrics, to_json


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
