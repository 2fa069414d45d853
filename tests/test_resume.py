"""Going on with a run: what is let in, what is refused, and that nothing is lost.

pytest tests/test_resume.py
"""

import dataclasses
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import data
import train as script
from baselines import ppo, sft
from kit.base.errors import UserError
from kit.base.metrics import composite_reward, load_reward_weights
from kit.base.runs import Run, read_config, read_metrics, what_is_missing
from kit.lm.models import MINI, load_policy
from kit.train.session import Session, fingerprint, reward_sources
from reward_utils import linear_reward
from sentiment import load_scorer

# ------------------------------------------------------------------------------------ a stranger's run


@pytest.fixture
def stored(tmp_path):
    """A run folder whose config.json holds these flags."""

    def make(*argv: str) -> str:
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run/config.json").write_text(json.dumps({"method": "grpo", "argv": argv}))
        return str(tmp_path / "run")

    return make


@pytest.mark.parametrize(
    "flags",
    [
        ["--trust_remote_code", "True"],
        ["--trust-remote-code=True"],
        ["--trust_remote_code"],
        ["--model_init_kwargs", '{"trust_remote_code": true}'],
    ],
)
def test_no_flag_lets_a_models_code_in(flags, tmp_path, stored):
    key, _, value = " ".join(flags)[2:].replace("=", " ").partition(" ")
    (tmp_path / "x.yaml").write_text(f"{key.replace('-', '_')}: {value or True}\n")
    for argv in (flags, ["--resume", stored(*flags)], ["--config", str(tmp_path / "x.yaml")]):
        with pytest.raises(UserError, match=r"unknown (flag --|key ')(trust|model)"):
            script.PARSER.parse(argv)


@pytest.mark.parametrize("load", [load_policy, load_scorer])
def test_a_models_own_code_is_never_run_and_nothing_is_asked(load, tmp_path, monkeypatch):
    """A folder with `auto_map`: transformers would ask, and a `y` on standard input would run it."""
    folder = tmp_path / "model"
    shutil.copytree(MINI / ("policy" if load is load_policy else "sentiment"), folder)
    config = json.loads((folder / "config.json").read_text())
    kinds = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    config |= {"model_type": "theirs", "auto_map": {kind: f"theirs.{kind}" for kind in kinds}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "y")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(UserError):
        load(str(folder))
    assert not asked and not Path(tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------ the same experiment


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--kl_coef", "0.3"], "--kl_coef 0.1, not 0.3"),
        (["--kl-coef=0.3"], "--kl_coef 0.1, not 0.3"),
        (["--kl_type", "backward"], "--kl_type forward, not backward"),
        (["--seed", "1"], "--seed 0, not 1"),
        (["--num_generations", "4"], "--num_generations 8, not 4"),
        (["--scale_rewards", "none"], "--scale_rewards group, not none"),
        (["--temperature", "0.7"], "--temperature 1.0, not 0.7"),
        (["--learning_rate", "1e-3"], "--learning_rate 0.0002, not 0.001"),
        (["--use_peft", "False"], "--use_peft True, not False"),
        (["--lora_r", "8"], "--lora_r 16, not 8"),
        (["--prompts", "imdb"], "--prompts builtin, not imdb"),
        (["--trl", '{"epsilon": 0.1}'], '--trl unset, not {"epsilon": 0.1}'),
        (["--save_steps", "2", "--hackable_reward"], "--hackable_reward False, not True"),
    ],
)
def test_a_resumed_run_is_the_same_experiment(flags, says, stored, tmp_path):
    run = stored("--learning_rate", "2e-4", "--kl_type", "forward", "--kl_coef", "0.1", "--use_peft")
    with pytest.raises(UserError, match=rf"--resume {run}: this run has {says}: .*new run"):
        script.PARSER.parse(["--resume", run, *flags])
    (tmp_path / "x.yaml").write_text(f"resume: {run}\n")
    with pytest.raises(UserError, match=rf"--resume {run}: this run has {says}: .*new run"):
        script.PARSER.parse(["--config", str(tmp_path / "x.yaml"), *flags])


def test_what_may_change_on_resume_does(stored):
    run = stored("--max_steps", "5", "--seed", "3", "--save_steps", "4")
    changes = "--max_steps 9 --save_steps 3 --eval_every 2 --wandb --wandb_project p --seed 3"
    args = script.PARSER.parse(["--resume", run, *changes.split()])
    assert (args.max_steps, args.save_steps, args.eval_every) == (9, 3, 2)
    assert args.wandb and args.wandb_project == "p" and args.seed == 3 and args.resume == run
    # and is remembered, without the flag that is not the run's own
    again = script.PARSER.parse(["--resume", stored(*script.PARSER.argv)])
    assert again.max_steps == 9 and "--resume" not in script.PARSER.argv


# ------------------------------------------------------------------------------------ real runs, tiny

SIZE = "--model mini --sentiment_model mini --max_completion_length 4 --eval_every 0"
GRPO = f"{SIZE} --prompts_per_step 2 --num_generations 2"
TIMES = {"train/step_time"}


def grpo(monkeypatch, *flags: str) -> None:
    """train.py in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    script.main()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, few_validation_prompts) -> Path:
    """A finished run of two steps, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        flags = f"{GRPO} --max_steps 2 --save_steps 1 --output_dir {folder} --run_name whole"
        grpo(patch, *flags.split())
    return folder / "whole"


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def lines(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(folder)]


def weights(folder: Path) -> bytes:
    return (folder / "final/model.safetensors").read_bytes()


def test_a_finished_run_is_left_alone(copy, monkeypatch):
    before = contents(copy)
    assert [row["step"] for row in read_metrics(copy)] == [0, 1, 2, 2]
    for flags in ([], ["--max_steps", "1"]):
        with pytest.raises(UserError, match=r"2 of [12] steps done; to go on, give --max_steps more than 2"):
            grpo(monkeypatch, "--resume", str(copy), *flags)
    assert contents(copy) == before


def test_a_run_that_is_being_trained_is_not_resumed(copy, monkeypatch):
    shutil.rmtree(copy / "final")
    before = contents(copy)
    with Run.open(copy).lock(), pytest.raises(UserError, match="another process is training this run"):
        grpo(monkeypatch, "--resume", str(copy))
    assert contents(copy) == before


def test_stopped_before_final_it_only_finishes(copy, whole, monkeypatch):
    shutil.rmtree(copy / "final")
    (copy / "final.part").mkdir()  # what a killed process left of it
    (copy / "final.part/adapter_model.safetensors").write_bytes(b"")
    grpo(monkeypatch, "--resume", str(copy))
    assert read_metrics(copy) == read_metrics(whole)
    assert weights(copy) == weights(whole)
    assert {p.name for p in (copy / "final").iterdir()} == {p.name for p in (whole / "final").iterdir()}


def test_a_run_that_was_stopped_and_is_ended_there_is_measured_before_it_is_saved(copy, monkeypatch):
    shutil.rmtree(copy / "final")
    shutil.rmtree(copy / "checkpoint-2")
    grpo(monkeypatch, "--resume", str(copy), "--max_steps", "1")
    rows = read_metrics(copy)
    assert [row["step"] for row in rows] == [0, 1, 1] and "val/sentiment_mean" in rows[-1]
    assert (copy / "final/model.safetensors").is_file()


def test_a_damaged_checkpoint_costs_only_its_steps(copy, whole, monkeypatch, capsys):
    (copy / "checkpoint-2/scheduler.pt").unlink()
    grpo(monkeypatch, "--resume", str(copy))
    said = capsys.readouterr().err
    assert "checkpoint-2 is not whole (scheduler.pt is missing): going on from checkpoint-1\n" in said
    assert lines(copy) == lines(whole) and what_is_missing(copy / "checkpoint-2") == ""
    assert weights(copy) == weights(whole)


def test_nothing_is_cut_before_the_checkpoint_has_loaded(copy, monkeypatch):
    shutil.rmtree(copy / "checkpoint-2")
    before = contents(copy)

    def fails(*_, **__):
        raise RuntimeError("no memory")

    monkeypatch.setattr("transformers.Trainer._load_optimizer_and_scheduler", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        grpo(monkeypatch, "--resume", str(copy), "--save_steps", "2")
    assert contents(copy) == before


def test_a_longer_run_keeps_what_it_had_and_says_so_in_its_config(copy, whole, monkeypatch):
    grpo(monkeypatch, "--resume", str(copy), "--max_steps", "3", "--save_steps", "5")
    assert [row["step"] for row in read_metrics(copy)] == [0, 1, 2, 2, 3, 3]
    assert read_metrics(copy)[:4] == read_metrics(whole)
    config = read_config(copy)
    assert config["training"]["max_steps"] == 3 and config["training"]["save_steps"] == 5
    assert weights(copy) != weights(whole)  # the rate is that of step 3 of 3, not the 0 of the finished run
    with pytest.raises(UserError, match="3 of 3 steps done"):  # the plain resume knows of it too
        grpo(monkeypatch, "--resume", str(copy))


def test_another_model_or_method_is_refused(copy, monkeypatch):
    with pytest.raises(UserError, match="sentiment_model mini/sentiment, not "):
        grpo(monkeypatch, "--resume", str(copy), "--sentiment_model", str(copy / "final"))
    config = read_config(copy) | {"argv": SIZE.split()}
    (copy / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "argv", ["ppo", "--resume", str(copy)])
    with pytest.raises(UserError, match="method grpo, not ppo"):
        ppo.main()


def test_changed_prompts_are_refused_and_the_run_is_left_as_it_was(copy, monkeypatch):
    before = contents(copy)
    monkeypatch.setitem(data.BUILT_IN, "builtin", ("The actor", *data.TRAIN_PROMPTS[1:]))
    with pytest.raises(UserError, match=r"changed since this run began: prompts builtin; .* new run"):
        grpo(monkeypatch, "--resume", str(copy), "--max_steps", "3")
    assert contents(copy) == before


def test_each_changed_input_is_named_and_a_run_without_digests_goes_on(tmp_path):
    session = SimpleNamespace(
        run=Run(tmp_path),
        config={"prompts": "p.txt", "model": "mini/policy"},
        digests={"prompts": "1", "validation prompts": "2", "model": "3", "rewards.py": "4"},
    )
    stored = dict(session.digests)
    for digests, changed in [
        ({}, None),
        (stored, None),
        (stored | {"prompts": "x"}, "prompts p.txt"),
        (stored | {"model": None, "rewards.py": "x"}, "model mini/policy and rewards.py"),
        (stored | {"validation prompts": "x"}, "validation prompts"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({"digests": digests} if digests else {}))
        if changed is None:
            Session._refuse_changed_inputs(session)
        else:
            with pytest.raises(UserError, match=f"changed since this run began: {changed}; restore it"):
                Session._refuse_changed_inputs(session)


def test_a_model_is_known_by_its_files_wherever_it_lies(tmp_path):
    names = ("model.safetensors", "config.json", "tokenizer.json", "README.md")
    for folder in ("a", "run/final"):
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / folder / name).write_text(name)
    first = fingerprint(str(tmp_path / "a"))
    assert first == fingerprint(str(tmp_path / "run"))  # a run is its final model
    changed = set()
    for name in names:
        (tmp_path / "a" / name).write_text("other")
        changed.add(fingerprint(str(tmp_path / "a")))
    assert len(changed) == 3 and first not in changed  # what README.md says makes no other model
    (tmp_path / "x.gguf").write_bytes(b"abc")
    sha256_of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprint(str(tmp_path / "x.gguf")) == sha256_of_abc


def test_an_adapter_is_known_by_its_base_too(tmp_path):
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    weights = tmp_path / "base/model.safetensors"
    weights.write_text("first")
    config = {"base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    first = fingerprint(str(tmp_path / "adapter"))
    weights.write_text("second")
    assert fingerprint(str(tmp_path / "adapter")) != first


def test_a_model_from_the_hub_is_known_by_its_commit(monkeypatch):
    monkeypatch.setattr(
        "kit.train.session.try_to_load_from_cache", lambda *_: "/cache/snapshots/607a30d/config.json"
    )
    assert fingerprint("openai-community/gpt2") == "607a30d"


def test_the_reward_is_known_by_its_code_without_the_comments(tmp_path, monkeypatch):
    def digests(source: str) -> dict[str, str]:
        (tmp_path / "rewards.py").write_text(source)
        names: dict = {}
        exec(compile(source, tmp_path / "rewards.py", "exec"), names)
        return reward_sources(SimpleNamespace(shape=linear_reward, penalty=names["penalty"]))

    first = digests("def penalty(s):\n    return s\n")
    assert list(first) == ["rewards.py"]
    assert digests("def penalty(s):  # Q3: because\n\n    return (s)\n") == first
    assert digests("def penalty(s):\n    return s * 2\n") != first
    assert digests("penalty = None") == {}

    composite = SimpleNamespace(shape=composite_reward, penalty=None)
    weights = load_reward_weights()
    first = reward_sources(composite)
    assert list(first) == ["configs/reward.yaml"]
    monkeypatch.setattr(
        "kit.train.session.load_reward_weights", lambda: dataclasses.replace(weights, length=0.3)
    )
    assert reward_sources(composite) != first


@pytest.mark.usefixtures("few_validation_prompts")
def test_sft_stopped_in_a_round_writes_its_line_once(tmp_path, monkeypatch):
    flags = f"{SIZE} --rounds 2 --prompts_per_round 2 --num_generations 2 --epochs 1 --output_dir {tmp_path}"
    run, tune, rounds = tmp_path / "r", sft.fine_tune, []

    def killed(*args, **kwargs):
        with pytest.raises(UserError, match="another process"):  # a run that trains holds its lock
            Run.open(run).lock()
        rounds.append(1)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        tune(*args, **kwargs)

    monkeypatch.setattr(sft, "fine_tune", killed)
    monkeypatch.setattr(sys, "argv", ["sft", *flags.split(), "--run_name", "r"])
    with pytest.raises(KeyboardInterrupt):
        sft.main()
    assert [row["step"] for row in read_metrics(run) if "train/kept_shaped" in row] == [1, 2]
    monkeypatch.setattr(sys, "argv", ["sft", "--resume", str(run)])
    sft.main()
    assert [row["step"] for row in read_metrics(run) if "train/kept_shaped" in row] == [1, 2]
    with pytest.raises(UserError, match="2 of 2 rounds done; to go on, give --rounds more than 2"):
        sft.main()
