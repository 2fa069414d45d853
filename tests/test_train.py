"""train.py as a user runs it: its own process, the bundled models, tiny sizes; and its flags, in process.

python -m pytest tests/test_train.py
"""

import json
import math
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train as script
from data import TUNING_PROMPTS
from kit.base.errors import UserError
from kit.base.runs import Run, read_config, read_metrics, read_samples
from kit.lm.models import MINI
from kit.measure.reference import read_kept
from kit.train import hooks
from kit.train.closing import what_next
from kit.train.hooks import StepCallback
from kit.train.session import Session, prediction
from tests.conftest import ROOT
from tests.test_sampling import LetterTokenizer

TINY = ["--model", "mini", "--sentiment_model", "mini", "--prompts_per_step", "2", "--num_generations", "4"]
TINY += ["--max_completion_length", "8", "--max_steps", "3", "--eval_every", "2"]
PREDICTION = "0.9 by step 30: --kl_coef is 0"
STARTED = datetime.now(UTC)
TIMES = {"train/step_time"}  # the one series that is not a matter of the seed

VALIDATION_KEYS = set(
    "sentiment_mean sentiment_ci_low sentiment_ci_high positive_ratio distinct_1 distinct_2 repetition ref_nll "
    "kl_policy_ref kl_ref_policy length_mean empty_ratio".split()
)
TRAINING_KEYS = {
    "reward",
    "score",
    "shaped",
    "kl_penalty",
    "kl_policy_ref",
    "zero_std_groups",
    "step_time",
    "loss",
}


@pytest.fixture
def train(run_script, tmp_path):
    """Run train.py with tiny sizes; returns (finished process, run folder)."""

    def run(*flags: str, name: str = "run", **kwargs):
        done = run_script(
            "train.py", *TINY, "--output_dir", str(tmp_path), "--run_name", name, *flags, **kwargs
        )
        return done, tmp_path / name

    return run


@pytest.fixture
def train_here(few_validation_prompts, tmp_path, monkeypatch):
    """train.py with tiny sizes in this process, where four validation prompts will do; the run folder."""

    def run(*flags: str, name: str = "run") -> Path:
        argv = ["train.py", *TINY, "--output_dir", str(tmp_path), "--run_name", name, *flags]
        monkeypatch.setattr(sys, "argv", argv)
        script.main()
        return tmp_path / name

    return run


def series(folder: Path, key: str) -> dict[int, float]:
    return {row["step"]: row[key] for row in read_metrics(folder) if key in row}


def training_lines(folder: Path) -> list[dict]:
    rows = [row for row in read_metrics(folder) if "train/reward" in row]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def assert_starts_at_zero(folder: Path) -> None:
    assert series(folder, "val/kl_policy_ref")[0] < 1e-5
    assert series(folder, "val/kl_ref_policy")[0] < 1e-5
    assert series(folder, "train/kl_policy_ref")[1] < 1e-5  # rollouts before the first update


@pytest.fixture(scope="module")
def first(run_script, tmp_path_factory):
    """The first run of a user, from the shell: (finished process, run folder)."""
    flags = [
        "--save_steps",
        "1",
        "--predict",
        PREDICTION,
        "--output_dir",
        str(tmp_path_factory.mktemp("first")),
    ]
    done = run_script("train.py", *TINY, *flags, "--run_name", "run", real=True)
    assert done.returncode == 0, done.stderr
    return done, Path(flags[-1]) / "run"


def test_a_run_leaves_what_the_readme_says(first):
    done, folder = first
    assert {p.name for p in folder.iterdir()} >= {"config.json", "metrics.jsonl", "samples.jsonl", "final"}
    assert [step for step, _ in Run(folder).checkpoints()] == [2, 3]  # the last two
    config = read_config(folder)
    assert (
        config["kl_type"] == "none"
        and config["training"]["max_steps"] == 3
        and config["provenance"]["versions"]
    )

    # Validation at 0, every 2, and at the end; no step twice
    validations = [row for row in read_metrics(folder) if "val/ref_nll" in row]
    assert [row["step"] for row in validations] == [0, 2, 3]
    assert {f"val/{key}" for key in VALIDATION_KEYS} <= validations[0].keys()
    assert all(math.isfinite(v) for row in validations for v in row.values())
    assert [row["step"] for row in training_lines(folder)] == [1, 2, 3]
    assert all(
        {f"train/{key}" for key in TRAINING_KEYS - {"step_time"}} <= row.keys()
        for row in training_lines(folder)
    )
    assert_starts_at_zero(folder)
    assert 2.0 < validations[0]["val/ref_nll"] < 4.0  # the model's own samples, about 2.8 nats a token
    samples = read_samples(folder)
    assert len(samples) == 3 * 64
    assert samples[0].keys() >= {"step", "prompt", "completion", "sentiment", "ref_nll", "kl_policy_ref"}

    # The policy moved, and loads with plain from_pretrained and pipeline
    before, after = (
        load_file(MINI / "policy/model.safetensors"),
        load_file(folder / "final/model.safetensors"),
    )
    moved = [name for name in after if not torch.equal(after[name], before[name].float())]
    assert len(moved) == len(after)
    from transformers import AutoTokenizer, pipeline

    write = pipeline("text-generation", model=str(folder / "final"))
    assert write("This film", max_new_tokens=4, do_sample=False)[0]["generated_text"].startswith("This film")
    assert AutoTokenizer.from_pretrained(folder / "final")("film")["input_ids"]
    assert not list(folder.glob("final/*.bin"))  # nothing pickled

    # The screen: which models and why, a line a step with an ETA, a table, and what next
    assert "no GPU" in done.stdout or "as asked for" in done.stdout
    assert len(re.findall(r"^step +\d/3 \| reward .* eta \d:\d\d$", done.stdout, re.M)) == 3
    assert done.stdout.count("log pi_ref") == 3 and f"run is in {folder}" in done.stdout
    assert "{'" not in done.stdout and "Warning" not in done.stderr


def test_six_steps_of_the_default_recipe_teach_positive_talk(train):
    size = ["--prompts_per_step", "8", "--num_generations", "8", "--max_completion_length", "12"]
    done, folder = train(*size, "--max_steps", "6", "--eval_every", "0")
    assert done.returncode == 0, done.stderr
    low, high = series(folder, "val/sentiment_ci_low"), series(folder, "val/sentiment_ci_high")
    assert high[0] + 0.05 < low[6]  # the 95 % intervals of before and after are well apart
    assert series(folder, "val/kl_policy_ref")[6] > 1  # and nothing was paid for it without a penalty


def test_same_seed_same_numbers_however_often_we_validate(first, train):
    once = first[1]
    done, often = train("--eval_every", "1", name="b")
    assert done.returncode == 0, done.stderr
    assert training_lines(once) == training_lines(often)
    assert series(once, "val/sentiment_mean").items() <= series(often, "val/sentiment_mean").items()


@pytest.mark.whole_kit
def test_lora_with_the_forward_penalty(train_here):
    flags = ["--use_peft", "--kl_type", "forward", "--use_solution", "--kl_coef", "0.5", "--merge_lora"]
    folder = train_here(*flags, "--learning_rate", "0.01", "--temperature", "1.5")
    assert_starts_at_zero(folder)  # sampler, reward and reference are all at 1.5
    assert series(folder, "val/ref_nll")[0] > 4.5  # 2.8 at temperature 1
    assert series(folder, "val/kl_policy_ref")[3] > 0.01  # it moved
    kl, penalty = series(folder, "train/kl_policy_ref"), series(folder, "train/kl_penalty")
    assert penalty[1] == pytest.approx(0, abs=1e-5) and kl[3] > 0.001
    shaped, reward = series(folder, "train/shaped"), series(folder, "train/reward")
    assert reward[3] == pytest.approx(shaped[3] - penalty[3], abs=1e-5)
    from transformers import AutoModelForCausalLM

    assert not (folder / "final/adapter_config.json").exists()  # merged
    AutoModelForCausalLM.from_pretrained(folder / "final")


def test_unmerged_adapter_is_loaded_with_its_base(first, train_here):
    from kit.lm.models import load_policy

    folder = train_here("--use_peft", "--learning_rate", "0.01", "--max_steps", "2", "--seed", "1")
    # another seed, another sample: a new adapter is the base, and step 1 samples before the first update
    assert series(folder, "train/score")[1] != series(first[1], "train/score")[1]
    assert (folder / "final/adapter_config.json").is_file() and list(folder.glob("checkpoint-2/adapter*"))
    assert not list(folder.rglob("README.md"))  # PEFT's, an empty form
    adapted, base = load_policy(str(folder))[0], load_policy(str(MINI / "policy"))[0]
    changed = [n for n, p in adapted.named_parameters() if not torch.equal(p, base.get_parameter(n))]
    # all matrices but the head, and the embeddings that share its weights
    assert len(changed) == 4 * len(base.transformer.h)
    assert all(name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) for name in changed)
    # trained on, with TRL's reference: that is this model too, and not its base
    further = train_here(
        "--model", str(folder), "--beta", "0.5", "--bf16", "True", "--max_steps", "2", name="further"
    )
    assert_starts_at_zero(further)
    trl_kl = series(further, "train/trl_kl")
    assert trl_kl[1] == pytest.approx(0, abs=1e-6)  # positions, dropout and rounding agree on both sides
    assert trl_kl[2] > 0


@pytest.mark.whole_kit
def test_backward_shaped_and_negated(train_here):
    flags = ["--kl_type", "backward", "--use_solution", "--negate_reward", "--reward_shaping", "shaped"]
    rows = training_lines(train_here(*flags))
    assert any(row["train/kl_penalty"] for row in rows)
    # R of a text of fewer than 20 words (8 tokens): (1 - s) - repetition - 0.1 <= 1 - s
    assert all(row["train/shaped"] < 1 - row["train/score"] for row in rows)


def test_hackable_reward_is_scored_by_counting_and_sparse_is_0_or_1(train_here):
    folder = train_here(
        "--hackable_reward", "--reward_shaping", "sparse", "--sparse_threshold", "0.1", "--prompts", "fit"
    )
    # settings are being chosen: no held-out prompt is shown
    assert {row["prompt"] for row in read_samples(folder)} == set(TUNING_PROMPTS[:4])
    assert all(
        (40 * v) % 1 == pytest.approx(0, abs=1e-3) for v in series(folder, "train/score").values()
    )  # fifths
    counted, classified = series(folder, "val/score_mean"), series(folder, "val/sentiment_mean")
    assert counted[0] <= 0.1 < classified[0]
    shaped, scores = (series(folder, f"train/{key}") for key in ("shaped", "score"))
    assert all(
        (8 * v) % 1 == pytest.approx(0) for v in shaped.values()
    )  # eighths: 8 completions, each 0 or 1
    # at 0.1 one word of praise, a score of 0.2, is enough for 1
    assert all(shaped[step] >= score for step, score in scores.items()) and max(scores.values()) > 0


def test_a_prediction_is_kept_with_its_time_once(first, tmp_path):
    config = read_config(first[1])
    assert config["prediction"]["text"] == PREDICTION and "predict" not in config
    time = datetime.fromisoformat(config["prediction"]["time"])
    assert time.utcoffset() == timedelta(0) and STARTED < time <= datetime.now(UTC)

    assert prediction("I knew it", resumed=Run(first[1])) == config["prediction"]
    (tmp_path / "config.json").write_text("{}")
    assert prediction("I knew it", resumed=Run(tmp_path)) is prediction(None) is prediction(" ") is None


@pytest.mark.whole_kit
def test_captured_is_what_the_samples_say_at_the_runs_price(train):
    flags = ["--kl_type", "forward", "--use_solution", "--kl_coef", "0.3", "--learning_rate", "1e-3"]
    done, folder = train(*flags, "--max_steps", "1", "--max_completion_length", "40")
    assert done.returncode == 0, done.stderr
    reference = read_kept()[1].scores  # (prompts, 64): captured needs the base at the usual 40 tokens
    attainable = 0.3 * np.log(np.exp(reference / 0.3).mean(1)).mean()
    found = series(folder, "val/captured")
    for step in (0, 1):
        rows = [row for row in read_samples(folder) if row["step"] == step]
        gained = np.mean([row["sentiment"] - 0.3 * row["kl_policy_ref"] for row in rows]) - reference.mean()
        assert found[step] == pytest.approx(gained / (attainable - reference.mean()), abs=1e-3)
    assert series(folder, "val/kl_policy_ref")[1] > 0.05  # so that the price counts
    assert re.search(r"^val +1 \| .* captured -?\d", done.stdout, re.M)


def test_wandb_without_login_goes_offline_and_says_so(train, tmp_path):
    env = {"WANDB_MODE": None, "WANDB_API_KEY": None, "HOME": str(tmp_path), "NETRC": None}
    done, folder = train("--wandb", "--max_steps", "2", env=env, real=True)
    assert done.returncode == 0, done.stderr
    assert "kept offline" in done.stdout
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    rows = wandb_rows(file)
    steps = [row["step"] for row in rows if "train/reward" in row]
    assert steps == [1, 2]
    assert [row["step"] for row in rows if "val/sentiment_mean" in row] == [0, 2]
    assert any("samples" in key for row in rows for key in row)
    assert {row["train/zero_std_groups"] for row in rows if row["step"] == 1 and "train/reward" in row}


def wandb_rows(path: Path) -> list[dict]:
    """The history of an offline run: LevelDB's log framing around protobuf records."""
    import struct

    from wandb.proto import wandb_internal_pb2 as pb

    content, at, record, rows = path.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", content[at : at + 7]) if left >= 7 else (0, 0, 0)
        if kind == 0:
            at += left
            continue
        chunk = content[at + 7 : at + 7 + length]
        at += 7 + length
        record = chunk if kind in (1, 2) else record + chunk  # 1 full, 2 first, 3 middle, 4 last
        if kind in (1, 4):
            parsed = pb.Record()
            parsed.ParseFromString(record)
            if parsed.WhichOneof("record_type") == "history":
                items = parsed.history.item
                rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


# ------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.whole_kit
@pytest.mark.parametrize(
    ("flags", "function"),
    [(["--kl_type", "forward"], "kl_penalty_forward"), (["--reward_shaping", "shaped"], "shaped_reward")],
)
def test_what_is_not_written_is_named_before_anything_is_loaded(flags, function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--max_steps", "1", "--model", "mini", *flags])
    with pytest.raises(UserError, match=rf"{function} \(rewards.py, line \d+\) is not written yet") as error:
        script.main()
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not (tmp_path / "outputs").exists()  # and no half-made run folder


@pytest.mark.whole_kit
def test_an_error_ends_the_process_with_one_line(run_script, tmp_path):
    done = run_script("train.py", "--kl_type", "forward", "--output_dir", str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(
        r"error: kl_penalty_forward \(rewards.py, line \d+\) is not written yet: .*\n", done.stderr
    )


def test_yaml_is_checked_like_flags_and_flags_win(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "kl_type: backward\nkl_coef: 2e-2\nuse_solution: true\nlearning_rate: 1e-3\nnum_generations: 3\n"
        "predict:\nrun_name: null\n"
    )
    args = script.PARSER.parse(["--config", str(file), "--kl_coef=0.5"])
    assert args.predict is None and args.run_name is None  # a key without a value: not the word None
    assert (args.kl_type, args.kl_coef, args.use_solution) == ("backward", 0.5, True)
    assert args.learning_rate == 1e-3 and args.name == "backward-0.5-lr-0.001"
    # 8 prompts x 3 completions: two micro-batches of 12, the largest divisor of 24 up to 16
    config = script.grpo_config(args)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (12, 2)
    args.per_device_train_batch_size = 5
    config = script.grpo_config(args)  # the prompts of a step stay 8
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (4, 6)
    for text, says in (
        ("kl_typ: none", "unknown key 'kl_typ'; did you mean --kl_type"),
        ("kl_type: sideways", "invalid choice: 'sideways'"),
        ("- 1", "a mapping"),
        ("a: [", "cannot be read as YAML"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=re.escape(says)):
            script.PARSER.parse(["--config", str(file)])


def test_an_unusual_threshold_is_in_the_runs_name():
    sparse = ["--reward_shaping", "sparse"]
    assert script.PARSER.parse([*sparse, "--sparse_threshold", "0.95"]).name == "sparse-0.95"
    assert script.PARSER.parse(sparse).name == "sparse"


def test_defaults_of_the_exercise():
    args = script.PARSER.parse([])
    assert (args.reward_shaping, args.kl_type, args.beta) == ("linear", "none", 0.0)
    assert 0.08 <= args.kl_coef <= 0.12  # 0.1, or what a variant of the hand-out has
    assert not (
        args.hackable_reward or args.negate_reward or args.use_solution or args.use_peft or args.wandb
    )
    config = script.grpo_config(args)
    assert config.disable_dropout and not config.gradient_checkpointing and not config.shuffle_dataset
    assert config.generation_batch_size == 64 and config.report_to == []
    # with and without a KL term alike: a comparison of two runs must be one of the term alone
    other = script.grpo_config(script.PARSER.parse(["--kl_type", "forward"]))
    assert config.to_dict() == other.to_dict()


BASE = {
    "sentiment_mean": 0.5, "positive_ratio": 0.5, "composite_reward": 0.4, "distinct_1": 0.5, "distinct_2": 0.8,
    "repetition": 0.1, "ref_nll": 4.0, "kl_policy_ref": 0.0, "kl_ref_policy": 0.0, "length_mean": 40.0,
    "empty_ratio": 0.0, "truncated_ratio": 0.9, "captured": 0.0,
}  # fmt: skip
FORWARD = ["--kl_type", "forward", "--kl_coef", "0.05"]


@pytest.mark.parametrize(
    ("flags", "changes", "says"),
    [
        # distinct-2 at 0.08 / 0.8 of the base's and NLL 2 nats off are alarming both
        ([], {"sentiment_mean": 0.99, "distinct_2": 0.08, "ref_nll": 6.0, "kl_policy_ref": 150.0},
         r"Hacked, 150 nats away \(distinct-2 0\.10 x base, reference NLL 2\.00 nats/token off\).*\n.*\n.*forward$"),
        (FORWARD, {"sentiment_mean": 0.99, "distinct_2": 0.08, "ref_nll": 6.0, "kl_policy_ref": 150.0},
         r"Hacked in spite of the penalty \(.*\), 150 nats away:\n  try a larger --kl_coef\.$"),
        (["--beta", "0.01"], {"sentiment_mean": 0.99, "distinct_2": 0.08, "ref_nll": 6.0, "kl_policy_ref": 150.0},
         r"Hacked in spite of the penalty \(.*\), 150 nats away:\n  try a larger --beta\.$"),
        (FORWARD, {"sentiment_mean": 0.45, "kl_policy_ref": 137.0, "distinct_2": 0.08, "ref_nll": 6.0},
         r"The KL has grown to 137\.0 nats, and the score has not \(-0\.05\).*\n.*sign of the penalty"),
        (["--negate_reward"], {"sentiment_mean": 0.9, "kl_policy_ref": 5.0}, r"the score has not \(-0\.40\)"),
        (FORWARD, {"sentiment_mean": 0.8, "kl_policy_ref": 5.0, "length_mean": 29.0},
         r"length fell to 72% .*\n  Next: python train\.py --kl_type forward --kl_coef 0\.05 --reward_shaping shaped"),
        (["--reward_shaping", "shaped"], {"sentiment_mean": 0.8, "kl_policy_ref": 5.0, "length_mean": 8.0},
         r"The length fell to 20% .*\n  Your shaped reward still pays for it"),
        (FORWARD, {"sentiment_mean": 0.8, "kl_policy_ref": 3.0, "captured": 0.4},
         r"The score moved by \+0\.30 for 3\.0 nats, captured 0\.40; .* cuts off 90% of .*\n  Change one flag"),
        (FORWARD, {"sentiment_mean": 0.8, "kl_policy_ref": 3.0, "ref_nll": 4.6},
         r"\n  Look at this: reference NLL 0\.60"),
    ],
)  # fmt: skip
def test_the_closing_words_look_at_the_numbers(flags, changes, says):
    first, last = ({f"val/{name}": value for name, value in m.items()} for m in (BASE, BASE | changes))
    args = script.PARSER.parse(flags)
    words = what_next(args, args.penalty, first, last)
    assert re.search(says, words), words
    assert words.count("\n") <= 2 and max(map(len, words.split("\n"))) <= 118


def test_a_step_on_a_batch_that_was_used_before_has_a_line_without_rewards():
    """`--num_iterations 2`: TRL logs no reward for every second step."""
    shown = []
    session = SimpleNamespace(
        check=lambda *_, **__: None,
        log=lambda *_: None,
        show=lambda *parts: shown.append(parts),
        due=lambda step: False,
    )
    callback = StepCallback(session, torch.nn.Identity(), keep=2)
    state = SimpleNamespace(global_step=2, max_steps=4)
    callback.on_log(None, state, None, {"loss": 0.1, "step_time": 1.25})
    assert shown == [(2, 4, "1.2 s")]


def test_a_word_counter_is_judged_by_its_own_count():
    args = script.PARSER.parse(["--hackable_reward"])
    first = {f"val/{name}": value for name, value in BASE.items()} | {"val/score_mean": 0.0}
    last = first | {"val/score_mean": 1.0, "val/sentiment_mean": 0.4, "val/kl_policy_ref": 9.0}
    assert what_next(args, "", first, last).startswith("The score moved by +1.00 for 9.0 nats")


def test_a_hacked_learned_reward_points_at_the_gold_reward():
    args = script.PARSER.parse(["--reward_model", "outputs/rm-100"])
    first = {f"val/{name}": value for name, value in BASE.items()} | {"val/proxy": 0.0}
    last = first | {"val/proxy": 1.2, "val/kl_policy_ref": 90.0, "val/distinct_2": 0.1}
    words = what_next(args, "", first, last)
    assert words.startswith("Hacked, 90 nats away") and words.endswith(
        "`gold` turn while `learned` still rises?"
    )


def test_help_fits_two_screens(run_script):
    done = run_script("train.py", "--help", real=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) <= 48, len(lines)
    for flag in (
        "--reward_shaping",
        "--kl_type",
        "--kl_coef",
        "--beta",
        "--hackable_reward",
        "--negate_reward",
        "--use_solution",
        "--use_peft",
        "--wandb",
        "--model",
        "--seed",
        "--resume",
        "--trl",
    ):
        assert flag in done.stdout
    assert "KL(pi||pi_ref)" in done.stdout and "KL(pi_ref||pi)" in done.stdout


def test_a_student_error_in_the_middle_names_the_line_and_loses_nothing(run_script, tmp_path):
    """The whole kit beside a student's rewards.py that fails on its third call."""
    kit = tmp_path / "kit"
    kit.mkdir()
    for path in ROOT.iterdir():
        if path.name not in {"rewards.py", "outputs", ".git", ".venv"}:
            (kit / path.name).symlink_to(path)
    (kit / "rewards.py").write_text(
        "calls = 0\n\n\ndef kl_penalty_forward(p, r, kl_coef=0.1):\n    global calls\n    calls += 1\n"
        "    return [float('nan') if calls > 2 else 0.0 for _ in p]\n"
    )
    copied = (ROOT / "train.py").read_text(encoding="utf-8")
    (kit / "train.py").unlink()
    (kit / "train.py").write_text(copied, encoding="utf-8")  # a copy: a link would import the real rewards.py
    done = run_script(
        "train.py",
        *TINY,
        "--kl_type",
        "forward",
        "--kl_coef",
        "0.2",
        "--unchecked",
        "--save_steps",
        "1",
        "--output_dir",
        str(tmp_path),
        cwd=kit,
        env={"PYTHONPATH": str(kit)},
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "error: kl_penalty_forward (rewards.py, line 4): Value 0 of the returned list is nan"
    ), done.stderr
    assert "Traceback" not in done.stderr and "--resume" in done.stderr
    assert (tmp_path / "forward-0.2/checkpoint-1/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("mini", "lora", "rate", "steps"),
    [(True, False, 3e-4, 50), (True, True, 1.5e-3, 50), (False, False, 2e-5, 200), (False, True, 1e-4, 200)],
)
def test_learning_rate_and_steps_follow_the_policy(mini, lora, rate, steps):
    session = Session.__new__(Session)
    session.choice, session.args = SimpleNamespace(of_mini=mini), SimpleNamespace(use_peft=lora)
    assert session.rate(None, mini=3e-4, full=2e-5) == pytest.approx(rate)
    assert session.rate(7e-5, mini=3e-4, full=2e-5) == 7e-5
    assert session.steps(-1) == steps and session.steps(7) == 7


def test_every_step_round_and_process_draws_its_own_random_numbers(tiny_gpt2, monkeypatch):
    made = []
    model = tiny_gpt2()

    def fake(policy, ids, uniforms, ends, t):
        made.append(uniforms.clone())
        return [[1]] * len(ids), [[0.0]] * len(ids)

    def rollouts(seed=5):
        return hooks.Rollouts(LetterTokenizer(), seed, max_new_tokens=3, temperature=1.0)

    def trainer(step, rank=0, n=1):
        return SimpleNamespace(
            state=SimpleNamespace(global_step=step),
            accelerator=SimpleNamespace(process_index=rank, num_processes=n),
            reward_funcs=[SimpleNamespace(policy=model)],
        )

    monkeypatch.setattr(hooks, "rollout", fake)
    run = rollouts()
    run(["1", "2"], trainer(4))
    run(["1", "2"], trainer(4))  # a second round in the same step
    run(["1", "2"], trainer(5))
    rollouts()(["1", "2"], trainer(5))  # a resumed run
    rollouts()(["2"], trainer(4, rank=1, n=2))
    rollouts(seed=6)(["1", "2"], trainer(4))
    first, second_round, next_step, resumed, second_process, other_seed = made
    assert not torch.equal(first, other_seed)
    assert not torch.equal(first, second_round) and not torch.equal(first, next_step)
    assert torch.equal(resumed, next_step) and torch.equal(second_process, first[1:])
