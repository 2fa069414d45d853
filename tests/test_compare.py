"""The comparison driver: equal budgets, means over seeds, and the table, from numbers written here.

python -m pytest tests/test_compare.py
"""

import subprocess

import pytest

from baselines import compare
from baselines.ppo import PARSER as PPO_PARSER
from baselines.sft import PARSER as SFT_PARSER
from kit.base.errors import UserError
from kit.lm.models import ROOT
from kit.measure.measuring import METRICS
from kit.train import sweep
from train import PARSER as GRPO_PARSER


@pytest.fixture(autouse=True)
def in_the_kit(monkeypatch):
    monkeypatch.chdir(ROOT)  # --config configs/best.yaml


@pytest.mark.parametrize("steps", [10, 50])
def test_every_method_samples_as_many_completions(steps):
    budgets = {}
    for name, command in compare.commands(steps).items():
        if "baselines.ppo" in command:
            ppo = PPO_PARSER.parse(command[2:])
            budgets[name] = ppo.max_steps * ppo.batch_size * ppo.max_completion_length
        elif "baselines.sft" in command:
            sft = SFT_PARSER.parse(command[2:])
            completions = sft.rounds * sft.prompts_per_round * sft.num_generations
            budgets[name] = completions * sft.max_completion_length
        else:
            grpo = GRPO_PARSER.parse(command[1:])
            completions = grpo.max_steps * grpo.prompts_per_step * grpo.num_generations
            budgets[name] = completions * grpo.max_completion_length
    assert set(budgets) == set(compare.METHODS) and set(budgets.values()) == {steps * 64 * 40}


def test_all_train_on_the_same_reward_and_price():
    found = compare.commands(40)
    ppo = PPO_PARSER.parse(found["ppo"][2:])
    grpo, token = (GRPO_PARSER.parse(found[name][1:]) for name in ("grpo", "token"))
    shapes = {ppo.reward_shaping, grpo.reward_shaping, token.reward_shaping}
    shapes |= {SFT_PARSER.parse(found[name][2:]).reward_shaping for name in compare.ROUNDS}
    assert shapes == {"linear"}
    assert ppo.kl_coef == grpo.kl_coef == token.beta == 0.1 and grpo.kl_type == "forward"


def test_all_train_in_one_precision():
    for name, command in compare.commands(40).items():
        parse = PPO_PARSER.parse if "baselines.ppo" in command else SFT_PARSER.parse
        settings = GRPO_PARSER.parse(command[1:]) if command[0] == "train.py" else parse(command[2:])
        assert settings.bf16 is False, name
        assert ("--bf16" in command) == (command[0] == "train.py")  # whose default follows the GPU


def test_grpo_has_a_rate_of_its_own():
    assert GRPO_PARSER.parse(compare.commands(40)["grpo"][1:]).learning_rate == 1e-4


def test_the_bundled_models_are_trained(monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr(compare, "finish_runs", lambda wanted, *_: trained.extend(wanted))
    monkeypatch.setattr(sweep.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    with pytest.raises(UserError, match=r"evaluate\.py failed"):
        compare.main(["--seeds", "1", "--methods", "grpo", "--runs", str(tmp_path)])
    assert trained[0].command[-4:] == ["--model", "mini", "--sentiment_model", "mini"]


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


@pytest.mark.parametrize(
    ("seeds", "mean", "end"),
    [
        (2, "0.88 [0.75, 1.00]", "| 1 drifting, 1 healthy | 1,000 |"),
        (1, "0.75", "| 1 healthy | 1,000 |"),
    ],
)
def test_the_table_has_the_mean_and_the_extremes_of_the_seeds(seeds, mean, end, tmp_path):
    def model(name, value, verdict=None):
        return {"name": name, "metrics": {key: {"value": value} for key in METRICS}, "verdict": verdict}

    folders = [tmp_path / f"ppo-{seed}" for seed in range(seeds)]
    for folder in folders:
        folder.mkdir()
        (folder / "metrics.jsonl").write_text('{"step": 1, "train/generated_tokens": 1000}\n')
    models = [model("base", 0.5), model("ppo-0", 0.75, "healthy"), model("ppo-1", 1.0, "drifting")]
    del models[0]["metrics"]["captured"]  # the base's is 0 by definition
    lines = compare.table({"models": models}, {"ppo": folders}).splitlines()
    assert lines[2].split(" | ")[:3] == ["| base", "0.50", ""]
    assert lines[3].split(" | ")[:3] == ["| ppo", mean, mean]
    assert lines[3].endswith(end)
    models[1]["verdict"] = None  # could not be measured
    assert "1 failed" in compare.table({"models": models}, {"ppo": folders}).splitlines()[3]


@pytest.mark.parametrize("name", ["table.md", "methods.png"])
def test_a_file_that_it_did_not_write_is_refused_before_any_training(name, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "finish_runs", lambda *_: pytest.fail("it trains"))
    (tmp_path / name).write_text("my own")
    with pytest.raises(UserError, match=f"--out .*{name}: this file was not written by this command"):
        compare.main(["--out", str(tmp_path)])
    assert (tmp_path / name).read_text() == "my own"


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(UserError, match=r"--methods: invalid choice: 'dpo' .*distil.*sft.*ppo.*grpo.*token"):
        compare.main(["--methods", "ppo", "dpo"])


def test_the_frontier_shows_every_seed_under_its_method():
    def point(model, step, kl, source="samples"):
        return {"model": model, "step": step, "source": source, "kl": kl, "sentiment": 0.5, "judge": None}

    points = [point("base", None, 0.0), point("ppo-0.3-0", 50, 2.0)]
    points += [point("ppo-0.3-1", 50, 3.0), point("ppo-0.3-1", 50, 7.0, "validation")]
    figure = compare.methods_frontier({"points": points, "best_of_n": [], "tilt": []}, ["ppo-0.3"])
    drawn = {line.get_label(): list(line.get_xdata()) for line in figure.axes[0].get_lines()}
    assert drawn["base"] == [0.0] and drawn["ppo-0.3"] == [2.0, 3.0]
    assert not any("validations" in label for label in drawn)
