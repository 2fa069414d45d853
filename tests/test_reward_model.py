"""The reward model: its gradient, its scale, and the whole chain from pairs to a policy trained on it.

pytest tests/test_reward_model.py
"""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rewards_solution
import train
from baselines import preferences, reward_model
from baselines.reward_model import HeldOut, load_encoder, load_sets, standardise, with_gradient
from kit.base.errors import UserError
from kit.base.runs import read_config, read_metrics, read_samples
from kit.lm.models import MINI
from kit.measure import comparison
from kit.train.session import Session
from sentiment import RewardModel, load_reward_model, load_scorer

TEXTS = [
    "A delight from start to end.",
    "Dull.",
    "",
    "It is a film about a town, and about its people.",
    "!!!",
]


def test_the_gradient_is_that_of_bradley_and_terry():
    """The solution's values and difference quotients against torch's logsigmoid, weights included."""
    gaps = torch.tensor([[2.0, -1.0, 0.0, 30.0, -800.0], [0.5, 1.5, 0.0, 0.0, 800.0]])
    found, wanted = gaps.clone().requires_grad_(), gaps.clone().requires_grad_()
    loss = with_gradient(rewards_solution.preference_loss, *(2 * found))
    exact = -torch.nn.functional.logsigmoid(2 * wanted[0] - 2 * wanted[1]).mean()
    loss.backward()
    exact.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert torch.allclose(found.grad, wanted.grad, atol=1e-6)
    # by hand: equal scores, slope -1/2 of one pair in five, times 2
    assert found.grad[0, 2] == pytest.approx(-1 / 2 * 2 / 5)


def test_another_loss_is_the_one_that_is_trained():
    scores = torch.tensor([1.0, 2.0]).requires_grad_()
    with_gradient(
        lambda c, r: [3 * (b - a) for a, b in zip(c, r, strict=True)], scores, torch.zeros(2)
    ).backward()
    assert scores.grad.tolist() == pytest.approx([-1.5, -1.5])


def test_the_scale_is_free_and_set_at_the_end():
    loaded = load_encoder()
    proxy = RewardModel(loaded.model, loaded.tokenizer)
    assert loaded.model.config.num_labels == 1
    before = proxy(TEXTS)
    standardise(proxy, TEXTS[:4])
    after = proxy(TEXTS)
    assert np.mean(after[:4]) == pytest.approx(0, abs=1e-4) and np.std(after[:4]) == pytest.approx(
        1, abs=1e-3
    )
    assert np.argsort(after).tolist() == np.argsort(before).tolist()
    # a blank text has a score of its own, not 0 or 0.5
    assert after[2] != after[4]


def test_gold_is_on_the_scale_of_the_annotators_held_out_texts():
    loaded = load_encoder()
    loaded.model.config.annotator = {"kind": "sentiment", "sentiment_model": "m", "mean": 1.0, "std": 2.0}
    proxy = RewardModel(loaded.model, loaded.tokenizer)
    assert proxy.gold([0.5, 0.75], ["a", "b"]) == pytest.approx([-0.5, (math.log(3) - 1) / 2])
    loaded.model.config.annotator = None
    assert proxy.gold([0.5], ["a"]) == [None]


def test_a_file_of_choices_holds_out_every_tenth(tmp_path):
    file = tmp_path / "choices.jsonl"
    rows = [{"prompt": "p", "chosen": f"good {i}", "rejected": "bad"} for i in range(21)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs, sets, annotator = load_sets(str(file))
    assert [row["chosen"] for row in sets["accuracy"]] == ["good 0", "good 10", "good 20"]
    assert [row["chosen"] for row in pairs] == [f"good {i}" for i in range(21) if i not in (0, 10, 20)]
    assert annotator is None
    file.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match="one pair is too few"):
        load_sets(str(file))


def test_the_accuracy_is_the_share_of_pairs_in_which_the_chosen_text_scores_higher():
    pairs = [{"chosen": c, "rejected": r} for c, r in (("2 a", "1"), ("1", "2"), ("1 a", "1 b"), ("3", "0"))]
    turned = [{"chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in pairs]
    logged = {}
    session = SimpleNamespace(
        run=SimpleNamespace(log=lambda step, found: logged.update(found)), tracker=SimpleNamespace(log=print)
    )
    sets = {"accuracy": pairs, "accuracy_turned": turned}
    HeldOut(session, lambda texts: [float(text[0]) for text in texts], sets).run(None, 3)
    assert (logged["val/accuracy"], logged["val/accuracy_turned"]) == (0.5, 0.25)  # equal scores are no hit
    # of four draws with chance 1/4 none hits 0.32 of the time, three do 0.05, all four 0.004
    assert (logged["val/accuracy_turned_ci_low"], logged["val/accuracy_turned_ci_high"]) == (0.0, 0.75)


@pytest.mark.parametrize("damaged", ["{}", "[1]", "no", '{"annotator": {"kind": "sentiment"}}'])
def test_a_damaged_folder_is_one_sentence(damaged, tmp_path):
    (tmp_path / "annotator.json").write_text(damaged)
    with pytest.raises(UserError, match=r"annotator\.json is damaged"):
        load_sets(str(tmp_path))
    (tmp_path / "annotator.json").unlink()
    with pytest.raises(UserError, match=r"annotator\.json: cannot be read"):
        load_sets(str(tmp_path))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("", "--pairs FOLDER is needed"),
        ("--pairs nowhere", "nowhere: no such file"),
        ("--pairs x --epochs 0", "--epochs 0"),
        ("--pairs x --learning_rate 0", "--learning_rate 0"),
        ("--pairs x --pears 3", r"did you mean --pairs\?"),
    ],
)
def test_a_users_error_is_one_sentence(flags, says, tmp_path, monkeypatch):
    argv = ["reward_model", *flags.split(), "--use_solution", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(UserError, match=says) as error:
        reward_model.main()
    assert "\n" not in str(error.value) and not any(tmp_path.iterdir())


def test_without_the_loss_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reward_model", "--pairs", "x", "--output_dir", str(tmp_path)])
    with pytest.raises(UserError, match=r"preference_loss .* is not written yet"):
        reward_model.main()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--reward_model x --hackable_reward", "keep one"),
        ("--reward_model x --reward_shaping sparse", "give --reward_shaping linear"),
    ],
)
def test_flags_that_do_not_go_together(flags, says):
    with pytest.raises(UserError, match=says):
        train.PARSER.parse(flags.split())


def test_a_home_folder_in_a_config_file():
    assert train.PARSER.parse(["--reward_model=~/rm"]).reward_model == str(Path.home() / "rm")


def test_half_an_emoji_in_a_choice(tmp_path, monkeypatch):
    """What a program that cuts texts by UTF-16 units leaves: a question mark, not a traceback."""
    file, half = tmp_path / "choices.jsonl", "\ud83d"
    rows = [{"prompt": "p", "chosen": f"good {half}{i}", "rejected": "bad"} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = f"--pairs {file} --use_solution --epochs 1 --eval_every 0 --output_dir {tmp_path} --run_name rm"
    monkeypatch.setattr(sys, "argv", ["reward_model", *flags.split()])
    reward_model.main()
    assert (tmp_path / "rm" / "final").is_dir()


def test_what_is_no_reward_model(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_reward_model(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="has 2 classes, not one number"):
        load_reward_model(str(MINI / "judge"))
    for unfinished in ("rm", "rm/checkpoint-2"):  # its scale is set at the end
        (tmp_path / unfinished).mkdir()
        (tmp_path / "rm" / "metrics.jsonl").touch()
        with pytest.raises(UserError, match="is not finished"):
            load_reward_model(str(tmp_path / unfinished))


# ------------------------------------------------------------------------------------------- the whole chain

SMALL = "--model mini --sentiment_model mini --max_completion_length 8"


@pytest.fixture(scope="module")
def chain(tmp_path_factory, few_validation_prompts) -> Path:
    """24 pairs of a biased annotator, a reward model of six steps (rm), and two steps of GRPO on it (on)."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preferences, "HELD_OUT", 8)
        flags = f"--pairs 24 --bias length --strength 40 --out {folder / 'pairs'} {SMALL}"
        preferences.main(flags.split())
        learn(patch, folder, "rm")
        grpo = f"--reward_model {folder / 'rm'} --output_dir {folder} --run_name on {SMALL} --max_steps 2"
        grpo += " --prompts_per_step 2 --num_generations 2 --eval_every 1"
        patch.setattr(sys, "argv", ["train.py", *grpo.split()])
        train.main()
    return folder


def learn(patch: pytest.MonkeyPatch, folder: Path, name: str, more: str = "") -> None:
    flags = (
        f"--pairs {folder / 'pairs'} --use_solution --epochs 2 --batch_size 8 --save_steps 2 --eval_every 2"
    )
    flags += f" --learning_rate 1e-3 --output_dir {folder} --run_name {name} {more}"
    patch.setattr(sys, "argv", ["reward_model", *flags.split()])
    reward_model.main()


@pytest.mark.slow
def test_the_pairs_are_what_the_annotator_says(chain):
    about = json.loads((chain / "pairs" / "annotator.json").read_text())
    lines = {name: (chain / "pairs" / f"{name}.jsonl").read_text().splitlines()
             for name in ("pairs", "held_out", "turned")}  # fmt: skip
    assert {name: len(found) for name, found in lines.items()} == {"pairs": 24, "held_out": 8, "turned": 8}
    held_out, turned = ([json.loads(line) for line in lines[name]] for name in ("held_out", "turned"))
    for one, other in zip(held_out, turned, strict=True):  # the same texts
        assert one["prompt"] == other["prompt"]
        assert {one["chosen"], one["rejected"]} == {other["chosen"], other["rejected"]}
    for rows, sign in (
        (held_out, 1),
        (turned, -1),
    ):  # at 40 nats the longer one, and turned round the shorter
        assert all(sign * (len(row["chosen"].split()) - len(row["rejected"].split())) >= 0 for row in rows)
    texts = [row[key] for row in held_out for key in ("chosen", "rejected")]
    gold = [math.log(p / (1 - p)) for p in load_scorer(str(MINI / "sentiment"))(texts)]
    assert about["annotator"]["mean"] == pytest.approx(np.mean(gold), abs=1e-4)
    assert about["annotator"]["std"] == pytest.approx(np.std(gold), abs=1e-4)
    every = [json.loads(line) for line in (*lines["pairs"], *lines["held_out"])]
    chosen, rejected = (
        load_scorer(str(MINI / "sentiment"))([row[key] for row in every]) for key in ("chosen", "rejected")
    )
    assert about["agrees_with_gold"] == np.mean(np.greater(chosen, rejected))


@pytest.mark.slow
def test_the_reward_model_goes_where_every_model_goes(chain):
    run = chain / "rm"
    assert read_config(run)["method"] == "reward_model" and read_config(run)["num_pairs"] == 24
    rows = read_metrics(run)
    assert [row["step"] for row in rows if "val/accuracy" in row] == [0, 2, 4, 6]
    assert all(0 <= row["val/accuracy_turned"] <= 1 for row in rows if "val/accuracy" in row)
    # before the first step the new layer is nearly 0: log 2
    assert next(row["train/loss"] for row in rows if "train/loss" in row) == pytest.approx(
        math.log(2), abs=0.02
    )
    assert not [*run.rglob("README.md")] and (run / "final" / "model.safetensors").is_file()
    held_out = [json.loads(line) for line in (chain / "pairs" / "held_out.jsonl").read_text().splitlines()]
    scores = load_reward_model(str(run))([row[key] for row in held_out for key in ("chosen", "rejected")])
    assert np.mean(scores) == pytest.approx(0, abs=1e-3) and np.std(scores) == pytest.approx(1, abs=1e-2)
    learned = [json.loads(line) for line in (chain / "pairs" / "pairs.jsonl").read_text().splitlines()]
    chosen, rejected = (
        load_reward_model(str(run))([row[key] for row in learned]) for key in ("chosen", "rejected")
    )
    assert np.mean(np.greater(chosen, rejected)) > 0.6  # and not the other way round
    with pytest.raises(UserError, match="its gold reward is by mini/sentiment, not other"):
        load_reward_model(str(run), sentiment_model="other")


@pytest.mark.slow
def test_a_resumed_reward_model_has_the_same_bytes(chain, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def kill(self, step, **_):
        if step == 4:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(reward_model.RunSession, "check_weights", lambda self, step, model: kill(self, step))
        learn(patch, chain, "killed")
    assert not (chain / "killed" / "final").exists()
    learn(monkeypatch, chain, "ignored", f"--resume {chain / 'killed'}")
    whole, resumed = (
        (chain / name / "final" / "model.safetensors").read_bytes() for name in ("rm", "killed")
    )
    assert whole == resumed
    lines = ([(row["step"], row["train/loss"]) for row in read_metrics(chain / name) if "train/loss" in row]
             for name in ("rm", "killed"))  # fmt: skip
    whole, resumed = lines
    assert whole == resumed and [step for step, _ in whole] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(UserError, match="it is finished"):
        learn(monkeypatch, chain, "ignored", f"--resume {chain / 'killed'}")


@pytest.mark.slow
def test_the_policy_is_trained_on_the_learned_reward_and_gold_is_only_watched(chain):
    run, model = chain / "on", load_reward_model(str(chain / "rm"))
    args = train.PARSER.parse(["--reward_model", str(chain / "rm"), *SMALL.split()])
    assert Session("grpo", args, []).score(TEXTS) == pytest.approx(model(TEXTS))
    rows, samples = read_metrics(run), read_samples(run)
    validated = [row for row in rows if "val/gold" in row]
    assert [row["step"] for row in validated] == [0, 1, 2]
    assert not any("gold" in key for row in rows for key in row if key.startswith("train/"))
    for row in validated:
        mine = [sample for sample in samples if sample["step"] == row["step"]]
        proxy = model([sample["completion"] for sample in mine])
        assert row["val/proxy"] == pytest.approx(np.mean(proxy), abs=1e-4)
        gold = model.gold([s["sentiment"] for s in mine], [s["completion"] for s in mine])
        assert row["val/gold"] == pytest.approx(np.mean(gold), abs=1e-4)
        assert "val/captured" not in row
    assert set(read_config(run)["digests"]) >= {"reward_model"}
    final, base = (load_file(path / "model.safetensors") for path in (run / "final", MINI / "policy"))
    assert any(not torch.equal(final[name], base[name].float()) for name in final)


@pytest.mark.slow
def test_evaluate_has_both_rewards_and_the_figure(chain, tmp_path):
    import evaluate

    flags = f"base on={chain / 'on'} --out {tmp_path / 'out'} --num_prompts 3 --num_samples 1 --frontier_samples 4"
    evaluate.main([*flags.split(), "--max_new_tokens", "8", "--judge", "none"])
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["settings"]["reward_model"] == str(chain / "rm")
    assert all({"proxy", "gold"} <= set(model["metrics"]) for model in found["models"])
    kinds = [(curve["name"], curve["kind"], len(curve["points"])) for curve in found["overoptimization"]]
    assert kinds == [("on", "rl", 3), ("best of n", "bon", 3)]  # n = 1, 2, 4
    assert [point["n"] for point in found["frontier"]["best_of_n_learned"]] == [1, 2, 4]
    assert (tmp_path / "out" / "overoptimization.png").is_file()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Gao et al. 2022" in page


def test_a_run_without_samples_is_a_note_and_the_others_have_their_curves(tmp_path):
    """A zip of `make handin` has none."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").touch()
    model = comparison.Model("handed in", str(tmp_path))
    assert comparison.find_overoptimization([model], None) == []
    assert "samples.jsonl: cannot be read" in model.notes[-1]
