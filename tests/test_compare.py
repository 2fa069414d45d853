"""The comparison driver: equal budgets, means over seeds, and the table, from numbers written here.

python -m pytest tests/test_compare.py
"""

import json
import subprocess

import pytest

from baselines import compare
from baselines.ppo import PARSER as PPO_PARSER
from baselines.sft import PARSER as SFT_PARSER
from kit.errors import UserError
from kit.measuring import METRICS
from kit.models import MINI
from train import parse as parse_grpo


@pytest.mark.parametrize("steps", [10, 50])
def test_every_method_samples_as_many_completions(steps):
    commands = compare.commands(steps)
    budgets = {}
    for name in ("ppo", "ppo-0.3"):
        run, ppo = PPO_PARSER.parse(commands[name][2:])
        budgets[name] = ppo.max_steps * ppo.batch_size * run.max_completion_length
    run, sft = SFT_PARSER.parse(commands["sft"][2:])
    budgets["sft"] = sft.rounds * sft.prompts_per_round * sft.num_generations * run.max_completion_length
    _, grpo = parse_grpo(commands["grpo"][1:])
    budgets["grpo"] = grpo.max_steps * grpo.generation_batch_size * grpo.max_completion_length
    assert set(budgets.values()) == {steps * 64 * 40}


def test_all_train_on_the_same_reward_and_penalty():
    commands = compare.commands(40)
    run, ppo = PPO_PARSER.parse(commands["ppo"][2:])
    grpo, _ = parse_grpo(commands["grpo"][1:])
    assert run.reward_shaping == grpo.reward_shaping == "shaped"
    assert ppo.kl_coef == grpo.kl_coef == 0.1 and grpo.kl_type == "forward"
    assert SFT_PARSER.parse([])[0].reward_shaping == "shaped"


def test_grpo_has_a_rate_of_its_own_for_the_bundled_policy_alone():
    assert parse_grpo(compare.commands(40)["grpo"][1:])[1].learning_rate == 1e-4
    assert (
        parse_grpo(compare.commands(40, mini=False)["grpo"][1:])[1].learning_rate is None
    )  # the model's own


@pytest.mark.parametrize("model", ["mini", str(MINI / "policy")])
def test_the_bundled_policy_is_known_by_name_and_by_path(model, monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr(compare, "finish_run", lambda command, folder, seed: trained.append(command))
    monkeypatch.setattr(compare.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    with pytest.raises(UserError, match=r"evaluate\.py failed"):
        compare.main(["--seeds", "1", "--methods", "grpo", "--model", model, "--runs", str(tmp_path)])
    assert "1e-4" in trained[0]


def test_tokens_are_read_from_the_counter_or_from_the_lengths():
    assert (
        compare.generated_tokens(
            [{"step": 0}, {"train/generated_tokens": 5}, {"train/generated_tokens": 9.0}]
        )
        == 9
    )
    # GRPO logs the mean length of 64 completions a step: 64 * (10 + 30)
    assert compare.generated_tokens([{"train/length_mean": 10.0}, {"train/length_mean": 30.0}]) == 2560


def test_histories_are_averaged_where_all_seeds_have_a_value():
    one = [{"step": 0, "val/a": 1.0}, {"step": 1, "train/b": 2.0}, {"step": 1, "val/a": 3.0}]
    two = [{"step": 0, "val/a": 3.0}, {"step": 1, "val/a": 5.0}, {"step": 1, "train/b": None}]
    assert compare.mean_history([one, two]) == [{"step": 0, "val/a": 2.0}, {"step": 1, "val/a": 4.0}]


def test_the_table_has_the_mean_and_the_extremes_of_the_seeds(tmp_path):
    def model(name, value, verdict=None):
        cells = {key: {"value": value, "low": value - 0.25, "high": value + 0.25} for key in METRICS}
        return {"name": name, "metrics": cells, "verdict": verdict}

    for seed, seconds in enumerate((60.0, 120.0)):
        folder = tmp_path / f"ppo-{seed}"
        folder.mkdir()
        (folder / "seconds.json").write_text(json.dumps(seconds))
        (folder / "metrics.jsonl").write_text('{"step": 1, "train/generated_tokens": 1000}\n')
    models = [model("base", 0.5), model("ppo-0", 0.75, "healthy"), model("ppo-1", 1.0, "drifting")]
    lines = compare.table({"models": models}, tmp_path, ["ppo"], seeds=2).splitlines()
    assert lines[2].split(" | ")[:3] == ["| base", "0.50 [0.25, 0.75]", "0.50 [0.25, 0.75]"]
    assert lines[3].split(" | ")[:3] == ["| ppo", "0.88 [0.75, 1.00]", "0.88 [0.75, 1.00]"]
    assert lines[3].endswith("| 1 drifting, 1 healthy | 1,000 | 1:30 |")


def test_one_seed_shows_its_interval_over_prompts_and_unknown_seconds_are_blank(tmp_path):
    cells = {key: {"value": 0.5, "low": 0.4, "high": 0.7} for key in METRICS}
    (tmp_path / "sft-0").mkdir()
    (tmp_path / "sft-0" / "metrics.jsonl").write_text('{"step": 1, "train/generated_tokens": 7}\n')
    models = [{"name": name, "metrics": cells, "verdict": "healthy"} for name in ("base", "sft-0")]
    line = compare.table({"models": models}, tmp_path, ["sft"], seeds=1).splitlines()[3]
    assert line.startswith("| sft | 0.50 [0.40, 0.70] |")
    assert line.endswith("| 1 healthy | 7 |  |")


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(UserError, match="dpo is none of sft, ppo, grpo"):
        compare.main(["--methods", "ppo,dpo"])


def test_the_frontier_shows_the_last_model_of_every_seed_under_its_method():
    def point(model, step, kl, source="samples"):
        return {"model": model, "step": step, "source": source, "kl": kl, "sentiment": 0.5, "judge": None}

    points = [point("base", None, 0.0), point("ppo-0.3-0", 50, 2.0), point("ppo-0.3-0", 40, 9.0)]
    points += [point("ppo-0.3-1", 50, 3.0), point("ppo-0.3-1", 50, 7.0, "validation")]
    figure = compare.methods_frontier({"points": points, "best_of_n": [], "tilt": []}, ["ppo-0.3"])
    drawn = {line.get_label(): list(line.get_xdata()) for line in figure.axes[0].get_lines()}
    assert drawn["base"] == [0.0] and drawn["ppo-0.3"] == [2.0, 3.0]
    assert not any("validations" in label for label in drawn)
