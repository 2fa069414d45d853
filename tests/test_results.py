"""benchmarks/results.py and measured.py: table, samples and marks, from lines and run folders written by hand.

pytest tests/test_results.py
"""

import json
import math
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import measured, overoptimization, results, smollm2, step_time, verdict
from benchmarks.measured import keep, kept_lines, of_training
from kit.base.errors import UserError
from kit.lm.models import ModelChoice
from kit.train.sweep import spelled_out, write_between
from tests.conftest import ROOT
from train import PARSER

METRICS = {
    "judge": 0.6, "kl_policy_ref": 2.0, "kl_ref_policy": 3.0, "ref_nll": 4.0, "distinct_2": 0.5, "length": 30.0,
}  # fmt: skip


def line(name: str, seed: int, sentiment: float, **others: float) -> dict:
    """What is kept of a run; its samples have a bar, and are too long for a cell."""
    samples = [
        {"step": step, "prompt": prompt, "completion": f"is | {step} " + "x" * 120, "sentiment": 0.25}
        for step in (0, 2)
        for prompt in measured.SAMPLED
    ]
    return {
        "run": f"{name}-{seed}",
        "command": spelled_out(results.command(name)),
        "metrics": METRICS | {"sentiment": sentiment, "captured": 0.25} | others,
        "samples": samples,
    }


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """vanilla with two seeds, forward-0.05 with one, and one that was trained by another command."""
    monkeypatch.setattr(measured, "KEPT", tmp_path / "results.jsonl")
    keep({"run": "base", "metrics": METRICS | {"sentiment": 0.5}, "judge_slope": 0.0})
    keep(line("vanilla", 1, 0.9, distinct_2=0.1))  # one signal alarming
    keep(line("vanilla", 0, 1.0, distinct_2=0.1, length=9.0))  # two
    keep(line("forward-0.05", 0, 0.8))
    keep(line("forward-0.05", 1, 0.1) | {"command": ["train.py", "--kl_coef=7"]})


def test_the_table_has_means_over_the_seeds_that_are_kept(kept):
    _, rule, base, vanilla, forward = results.table().splitlines()
    assert len(rule.split(" | ")) == len(base.split(" | ")) == 7
    # the base has captured nothing by definition, and no verdict
    assert base == "| (base) | 0.50 | 0.60 | 2.0 | 30 |  |  |"
    # (1.0 + 0.9) / 2
    assert vanilla.startswith("| (no flag) | 0.95 [0.90, 1.00] |")
    assert vanilla.endswith("| 0.25 [0.25, 0.25] | 1 drifting, 1 hacked |")
    assert forward.startswith("| `--kl_type forward --kl_coef 0.05` | 0.80 |")
    assert forward.endswith("| 0.25 | 1 healthy |")


def test_a_line_takes_the_place_of_the_earlier_one_of_its_name(kept):
    before = kept_lines()
    keep(line("vanilla", 1, 0.7) | {"note": "U+2028 is no end of a line: \u2028"})
    after = kept_lines()
    assert list(after) == ["base", "forward-0.05-0", "forward-0.05-1", "vanilla-0", "vanilla-1"]
    assert after.pop("vanilla-1")["metrics"]["sentiment"] == 0.7
    assert after == {name: line for name, line in before.items() if name != "vanilla-1"}


def test_a_line_of_another_yaml_file_is_no_line_of_this_experiment(kept, tmp_path, monkeypatch):
    keep(line("best", 0, 0.75))
    (best,) = results.measured()["best"]
    found = best["command"]
    assert "--beta=0.1" in found and "--config" not in " ".join(found)
    monkeypatch.setattr("kit.train.sweep.ROOT", tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "best.yaml").write_text("credit: token\nbeta: 0.2\n")
    assert results.measured()["best"] == []


def test_what_is_kept_of_a_training(tmp_path):
    """Curves that are drawn, to four digits; the broken share of each validation; the samples shown, first and last."""
    rows = [
        {"step": 0, "val/sentiment_mean": 0.123456, "val/seconds": 9.0},
        {"step": 1, "train/reward": 0.5, "train/loss": 9.0},
        {"step": 2, "train/reward": 0.25},
        {"step": 2, "val/sentiment_mean": 0.75},
    ]
    samples = [
        {"step": step, "prompt": prompt, "completion": text, "sentiment": 0.5, "ref_nll": 4.0, "tokens": 3}
        for step, text in ((0, "one two three"), (1, "never shown"), (2, "two"))
        for prompt in ("The script", "Another prompt", "The acting")
    ]
    rows.insert(2, {"step": 1, "val/sentiment_mean": 0.25})
    for name, lines in (("metrics.jsonl", rows), ("samples.jsonl", samples)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    found = of_training(tmp_path, np.array([0.2, -2, -3.0, 5.0]))
    assert found["curves"] == [
        {
            "step": 0,
            "val/sentiment_mean": 0.1235,
            "broken": 1.0,
        },  # the same three words in all: a stock phrase
        {"step": 1, "train/reward": 0.5, "val/sentiment_mean": 0.25, "broken": 0.0},
        {"step": 2, "train/reward": 0.25, "val/sentiment_mean": 0.75, "broken": 1.0},  # short
    ]
    assert not any("broken" in row for row in of_training(tmp_path, None)["curves"])
    assert [(row["step"], row["prompt"], row["completion"]) for row in found["samples"]] == [
        (0, "The script", "one two three"),
        (0, "The acting", "one two three"),
        (2, "The script", "two"),
        (2, "The acting", "two"),
    ]


def test_the_figure_has_a_dot_for_each_seed_and_a_marker_at_their_mean(kept):
    keep(line("halfway", 0, 0.5))
    figure = results.figure(results.measured())
    (rate,) = (ax for ax in figure.axes if ax.get_title() == "Learning rate")
    drawn = {
        label: list(zip(*line.get_data(), strict=True)) for line in rate.lines if (label := line.get_label())
    }
    assert drawn["no penalty"] == [(3e-5, 0.5), (3e-4, 0.95)]  # no run at 1e-4 is kept
    dots = [tuple(line.get_ydata()) for line in rate.lines if line.get_marker() == "."]
    assert dots[0] == (0.5, 1.0, 0.9)


def test_every_experiment_of_the_figure_is_one():
    shown = [
        name
        for series in results.QUESTIONS.values()
        for places in series.values()
        for name in places.values()
    ]
    assert set(shown) <= set(results.EXPERIMENTS)


def test_the_samples_are_those_of_seed_0_cut_and_without_bars(kept):
    lines = results.samples_table().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| base",
        "| no penalty",
        "| KL(π‖π_ref) penalty",
    ]
    assert "is \\| 0 ... [0.25]" in lines[2] and "is \\| 2 ... [0.25]" in lines[3]


def test_a_busy_step_is_compared_with_its_fair_share(monkeypatch):
    """Two threads beside two spinners on two cores: the fair share of a quiet step of 2.1 s is 4.2 s."""
    measured = iter([[{"step": [2.0]}, {"step": [2.1]}], [{"step": [6.3]}]])  # quiet: unset, passive; busy
    monkeypatch.setattr(step_time.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(step_time.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(step_time, "time_all", lambda *_: next(measured))
    text = step_time.busy(ModelChoice("policy", "scorer", "a test"), steps=1)
    assert "| quiet | passive | 2.10 [2.10, 2.10] | quiet: passive / unset = 1.05 (" in text
    assert "| busy | passive | 6.30 [6.30, 6.30] | busy: passive / fair share = 1.50 (" in text


def test_each_case_has_a_process_of_its_own_that_starts_with_its_environment(monkeypatch):
    started = []

    class Process:
        def __init__(self, *_):
            started.append({name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")})

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, *_):
            return SimpleNamespace(result=lambda: {"step": [1.0]})

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(step_time, "ProcessPoolExecutor", Process)
    found = step_time.time_all([("", "unset"), ("", "passive")], ModelChoice("policy", "scorer", "a test"), 1)
    assert found == [{"step": [1.0, 1.0]}] * 2
    unset, passive = (
        {"OMP_WAIT_POLICY": None, "KMP_BLOCKTIME": "200"},
        {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": None},
    )
    assert started == [unset, passive, passive, unset]


def test_the_spinners_end_with_the_measurement():
    with pytest.raises(KeyError), step_time.spinning(2) as spinners:
        assert [process.poll() for process in spinners] == [None, None]
        raise KeyError
    assert all(process.returncode for process in spinners)


def test_only_what_stands_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- m -->\nold\n<!-- /m -->\nz\n")
    write_between(page, "m", "new\n")
    assert page.read_text() == "a\n<!-- m -->\nnew\n<!-- /m -->\nz\n"
    with pytest.raises(UserError, match="has no <!-- n -->"):
        write_between(page, "n", "new\n")


def test_the_pages_say_what_the_kept_lines_say(tmp_path, monkeypatch, capsys):
    assert results.table() in results.PAGE.read_text()
    assert results.samples_table() in results.PAGE.read_text()
    page = tmp_path / "verdict.md"
    page.write_bytes(verdict.PAGE.read_bytes())
    monkeypatch.setattr(verdict, "PAGE", page)
    monkeypatch.setattr(verdict, "figure", lambda models: Figure())
    verdict.main([])
    assert page.read_text() == (results.ROOT / "docs/verdict.md").read_text()


@pytest.mark.parametrize("name", list(results.EXPERIMENTS))
def test_every_experiment_is_a_command_that_train_takes(name, monkeypatch):
    monkeypatch.chdir(results.ROOT)
    _, *flags = results.command(name)
    args = PARSER.parse(flags)
    assert args.use_solution and args.prompts_per_step * args.num_generations == 64


@pytest.mark.whole_kit
def test_no_page_speaks_of_the_bundled_policy_that_was():
    """Its J*, and what was said of its texts. Lines of measured numbers (.jsonl) may hold these digits by chance."""
    rooms = ". docs configs notebooks baselines benchmarks grading kit/* mini mini/* tests".split()
    files = [
        p for room in rooms for end in ("md", "py", "ipynb", "yaml") for p in ROOT.glob(f"{room}/*.{end}")
    ]
    assert {"README.md", "results.md", "rewards.py", "colab.ipynb", "best.yaml"} <= {p.name for p in files}
    old = re.compile(r"\b0\.766\b|\brambl[e]")
    assert [str(p.relative_to(ROOT)) for p in files if old.search(p.read_text(encoding="utf-8"))] == []


def test_a_row_of_the_learned_rewards_by_hand(tmp_path):
    """Two prompts at three validations; the gold reward is highest at the second, 4 nats from the base."""
    model, run = tmp_path / "rm", tmp_path / "run"
    for folder in (model, run):
        folder.mkdir()
    (model / "metrics.jsonl").write_text('{"step": 9, "val/accuracy": 0.75}\n')
    rows = [  # step, KL, learned, gold, text
        (0, 0.0, (0.0, 2.0), (1.0, 1.0), "Fine."),
        (2, 4.0, (1.0, 3.0), (3.0, 2.0), "Fine!"),
        (4, 9.0, (4.0, 3.0), (1.0, 2.0), "!"),
    ]
    lines = [
        {"step": step, "prompt": "p", "completion": text if i else "Fine.", "kl_policy_ref": kl, "proxy": proxy[i],
         "gold": gold[i]}
        for step, kl, proxy, gold, text in rows for i in (0, 1)
    ]  # fmt: skip
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = overoptimization.numbers(model, run)
    turn = found.pop("turn")
    assert found == pytest.approx(
        {"accuracy": 0.75, "learned": 2.5, "gold": 0.5, "best": 1.5, "at": 2.0, "word": 0.5}
    )
    # d (a - b log d) through 1.5 at 2 and 0.5 at 3: a - b log 2 = 3/4, a - b log 3 = 1/6
    b = (3 / 4 - 1 / 6) / (math.log(3) - math.log(2))
    assert turn == pytest.approx(math.exp((3 / 4 + b * math.log(2)) / b - 1))
    assert {*found, "turn"} <= {*overoptimization.COLUMNS}


def test_a_row_of_the_table_of_smollm2_has_the_flags_and_numbers_of_its_model():
    number = {"value": 0.5, "low": 0.4, "high": 0.6}
    base = {"name": "base", "verdict": None, "metrics": {"sentiment": number, "length": {"value": 20.4}}}
    shaped = base | {"name": "shaped", "verdict": "drifting", "metrics": {"kl_policy_ref": {"value": 7.25}}}
    hacked = base | {"name": "no-penalty", "verdict": "hacked", "metrics": {}}
    rows = smollm2.table([base, hacked, shaped]).splitlines()[2:]
    assert [[cell.strip() for cell in row.strip("|").split("|")] for row in rows] == [
        ["(base)", "0.50", "", "", "", "20", "", ""],
        ["(no flag)", "", "", "", "", "", "", "hacked"],
        ["`--kl_type forward --kl_coef 0.05 --reward_shaping shaped`", "", "", "7.2", "", "", "", "drifting"],
    ]
