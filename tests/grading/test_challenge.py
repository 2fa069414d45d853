"""The leaderboard of exercise 6. `pytest tests/grading/test_challenge.py`."""

import csv
import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data import HELD_OUT_PROMPTS
from grading import challenge
from grading.sandbox import Refused
from kit.base.errors import UserError
from kit.base.metrics import Estimate
from tests.conftest import ROOT

GPT2 = SimpleNamespace(config=SimpleNamespace(model_type="gpt2"))  # what `lora_config` asks of the reference
MATRIX = "transformer.h.0.attn.c_attn"
LORA = f"base_model.model.{MATRIX}.lora_"

# ---- what is taken of a run --------------------------------------------------------------------------------


@pytest.fixture
def staged(tmp_path, monkeypatch):
    """Save tensors as a student's final/, with files beside them; what `stage` makes of it."""
    policy = tmp_path / "mini" / "policy"
    policy.mkdir(parents=True)
    save_file(
        {f"{MATRIX}.weight": torch.zeros(2, 6), "transformer.wte.weight": torch.zeros(5, 2)},
        policy / "model.safetensors",
    )
    (policy / "config.json").write_text("ours")
    monkeypatch.setattr(challenge, "MINI", tmp_path / "mini")

    def run(tensors: dict[str, torch.Tensor], said: dict | None = None, **files: str) -> Path:
        final, place = tmp_path / "runs" / "anna" / "final", tmp_path / "place"
        for folder in (final, place):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        save_file(tensors, final / ("model.safetensors" if said is None else "adapter_model.safetensors"))
        if said is not None:
            (final / "adapter_config.json").write_text(json.dumps(said))
        for name, text in files.items():
            (final / name.replace("_py", ".py").replace("_json", ".json")).write_text(text)
        challenge.stage(final.parent, place, GPT2)
        return place

    return run


WHOLE = {f"{MATRIX}.weight": torch.ones(2, 6), "transformer.wte.weight": torch.ones(5, 2)}
ADAPTERS = {f"{LORA}A.weight": torch.ones(3, 2), f"{LORA}B.weight": torch.ones(6, 3)}
SAID = {
    "peft_type": "LORA",
    "base_model_name_or_path": "C:\\kit\\mini\\policy",
    "r": 3,
    "lora_alpha": 5,
    "bias": "none",
}


def test_config_tokenizer_and_code_of_a_student_are_left(staged):
    place = staged(
        WHOLE, config_json='{"auto_map": {}}', tokenizer_json="theirs", modeling_py="raise SystemExit"
    )
    assert {path.name for path in place.iterdir()} == {"config.json", "model.safetensors"}
    assert (place / "config.json").read_text() == "ours"
    assert torch.equal(load_file(place / "model.safetensors")["transformer.wte.weight"], torch.ones(5, 2))


def test_half_precision_is_fine_and_other_tensors_are_foreign(staged):
    staged({name: tensor.half() for name, tensor in WHOLE.items()})
    first = next(iter(WHOLE))
    for tensors in (
        {first: WHOLE[first]},
        {**WHOLE, "more": torch.ones(1)},
        {**WHOLE, first: torch.ones(6, 2)},
    ):
        with pytest.raises(Refused, match="foreign: not the tensors of mini/policy"):
            staged(tensors)


def test_adapters_get_a_config_of_our_own(staged):
    place = staged(ADAPTERS, SAID)
    config = json.loads((place / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (3, 5.0, [MATRIX])
    assert Path(config["base_model_name_or_path"]) == challenge.MINI / "policy"
    assert config["fan_in_fan_out"] is True and config["use_rslora"] is False
    assert {path.name for path in place.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((staged(ADAPTERS, {**SAID, "use_rslora": True}) / "adapter_config.json").read_text())[
        "use_rslora"
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"megatron_config": {}, "megatron_core": "antigravity"}, "foreign: megatron_config in"),
        ({"auto_mapping": {"parent_library": "antigravity"}}, "foreign: auto_mapping in"),
        ({"use_dora": True}, "foreign: use_dora in"),
        ({"rank_pattern": {"c_attn": 2}}, "foreign: rank_pattern in"),
        ({"modules_to_save": ["wte"]}, "foreign: modules_to_save in"),
        ({"peft_type": "IA3"}, "foreign: peft_type in"),
        ({"unheard_of": 1}, "foreign: unheard_of in"),
        ({"lora_alpha": math.nan}, "foreign: lora_alpha in"),
        ({"lora_alpha": -1}, "foreign: lora_alpha in"),
        ({"lora_alpha": 10**400}, "torn: adapter_config.json cannot be read"),
        ({"lora_alpha": None}, "torn: adapter_config.json cannot be read"),
        ({"base_model_name_or_path": "outputs/sft/final"}, "foreign: the adapters are not on mini/policy"),
    ],
)
def test_adapter_configs_that_are_not_the_kits(staged, change, says):
    with pytest.raises(Refused, match=says):
        staged(ADAPTERS, {**SAID, **change})


@pytest.mark.parametrize(
    "tensors",
    [
        {f"{LORA}A.weight": torch.ones(3, 2)},
        {**ADAPTERS, f"{LORA}B.weight": torch.ones(3, 6)},
        {**ADAPTERS, f"base_model.model.{MATRIX}.lora_magnitude_vector": torch.ones(6)},
        {f"{LORA}A.weight": torch.ones(0, 2), f"{LORA}B.weight": torch.ones(6, 0)},
        {f"{LORA}A.weight": torch.tensor(1.0), f"{LORA}B.weight": torch.ones(6, 3)},
        {name.replace(MATRIX, "transformer.wte"): torch.ones(3, 3) for name in ADAPTERS},
        {name.replace(MATRIX, "transformer.h.9.x"): torch.ones(3, 3) for name in ADAPTERS},
        {"x": torch.ones(1)},
    ],
    ids=["half a pair", "turned", "DoRA", "rank 0", "a scalar", "embedding", "no such matrix", "none"],
)
def test_adapters_that_do_not_fit(staged, tensors):
    with pytest.raises(Refused, match="foreign: the adapters are no LoRA matrices"):
        staged(tensors, SAID)


def test_links_and_sizes(staged, tmp_path):
    staged(WHOLE)
    runs, place = tmp_path / "runs", tmp_path / "place"
    (runs / "berta").mkdir()
    (runs / "berta" / "final").symlink_to("../anna/final")
    with pytest.raises(Refused, match="foreign: final/ is a link"):
        challenge.stage(runs / "berta", place, GPT2)
    weights = runs / "anna" / "final" / "model.safetensors"
    os.truncate(weights, 4 * (12 + 10) + (1 << 20) + 1)  # fp32 of all numbers, a MiB for names, and a byte
    with pytest.raises(Refused, match="too large for a run from mini/policy"):
        challenge.stage(runs / "anna", place, GPT2)
    os.truncate(weights, 50)
    with pytest.raises(Refused, match="torn: "):
        challenge.stage(runs / "anna", place, GPT2)
    weights.unlink()
    weights.symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="symbolic link"):
        challenge.stage(runs / "anna", place, GPT2)


# ---- the order ---------------------------------------------------------------------------------------------


def test_order_and_ties():
    """By the lower end. b and c differ by less than their difference varies, a is better than both in every draw."""
    noise = np.linspace(-0.1, 0.1, 101)
    draws = {"a": 0.9 + noise, "b": 0.5 + noise, "c": 0.52 - 2 * noise, "h": 0.99 + noise}
    shares = {name: Estimate(float(some.mean()), some) for name, some in draws.items()}
    rows = [{"run": "torn", "reason": "torn: x"}]
    for name, share in sorted(shares.items(), reverse=True):
        low, high = share.interval()
        rows.append({"run": name, "low": low, "high": high, "reason": "hacked: x" if name == "h" else ""})
    found = challenge.ranked(rows, shares)
    assert [row["run"] for row in found] == ["a", "b", "c", "h", "torn"]
    assert [row.get("rank") for row in found] == [1, 2, 3, None, None]
    assert [row.get("tied_with") for row in found] == ["", "c", "b", None, None]


# ---- the command -------------------------------------------------------------------------------------------

NEW = [
    f"{start} number {number}"
    for start in ("The evening", "A screening")
    for number in "one two three four five six seven eight".split()
]


def test_prompts_must_be_new(tmp_path):
    file = tmp_path / "new.txt"
    for prompts, says in (
        ([*NEW, HELD_OUT_PROMPTS[0].upper()], "a prompt of the kit; replace it"),
        (NEW[:15], "has 15 different prompts; 16 are needed"),
        (NEW[:1] * 20, "has 1 different prompts"),
    ):
        file.write_text("\n".join(prompts))
        with pytest.raises(UserError, match=says):
            challenge.check_prompts_are_new(str(file))
    with pytest.raises(UserError, match="builtin: no such file"):
        challenge.check_prompts_are_new("builtin")
    file.write_text("\n".join(NEW))
    challenge.check_prompts_are_new(str(file))


def test_a_class(tmp_path, run_script):
    """Two copies of the base, one as weights and one as adapters that add 0, are tied at 0 nats; one token over and
    over is hacked; the rest has a reason."""
    policy, runs = ROOT / "mini" / "policy", tmp_path / "runs"
    tensors = load_file(policy / "model.safetensors")
    for name in ("anna  b/handin/run", "base", "carl", "dora", "emil", "fritz"):
        (runs / name / "final").mkdir(parents=True)
    shutil.copy(policy / "model.safetensors", runs / "anna  b/handin/run/final")
    inputs, outputs = tensors[f"{MATRIX}.weight"].shape
    save_file(
        {f"{LORA}A.weight": torch.randn(4, inputs), f"{LORA}B.weight": torch.zeros(outputs, 4)},
        runs / "base/final/adapter_model.safetensors",
    )
    (runs / "base/final/adapter_config.json").write_text(json.dumps(SAID))
    wte = tensors["transformer.wte.weight"].float()
    one_token = {**tensors, "transformer.ln_f.bias": 100 * wte[1000] / wte[1000].norm()}
    save_file(one_token, runs / "carl/final/model.safetensors", {"format": "pt"})
    nan = {**tensors, "transformer.ln_f.bias": torch.full_like(tensors["transformer.ln_f.bias"], math.nan)}
    save_file(nan, runs / "dora/final/model.safetensors", {"format": "pt"})
    forged = {**tensors, "0\x1b[2J\n1 0.99 fritz": torch.zeros(1)}  # a name that would rewrite the screen
    save_file(forged, runs / "fritz/final/model.safetensors")
    (tmp_path / "new.txt").write_text("\n".join(NEW))
    out = tmp_path / "board.csv"
    command = f"--prompts {tmp_path}/new.txt --csv {out} --num_samples 1 --frontier_samples 4"
    done = run_script("-m", "grading.challenge", str(runs), *command.split())
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(out.open()))
    assert [row["run"] for row in rows] == ["anna b", "base", "carl", "dora", "emil", "fritz"]
    anna, berta, carl, dora, emil, fritz = rows  # a student may be called base
    for row, other in ((anna, "base"), (berta, "anna b")):
        assert abs(float(row["kl"])) < 1e-3 and row["verdict"] == "healthy" and row["tied_with"] == other
        assert float(row["low"]) <= float(row["captured"]) <= float(row["high"])
    assert float(anna["captured"]) == pytest.approx(float(berta["captured"]), abs=1e-2)
    assert carl["verdict"] == "hacked" and carl["rank"] == "" and carl["reason"].startswith("hacked: ")
    assert float(carl["kl"]) > 25
    assert dora["captured"] == "" and dora["reason"].startswith("not measured: ")
    assert emil["reason"].startswith("There is no file model.safetensors")
    assert fritz["reason"] == "foreign: not the tensors of mini/policy, 0?[2J 1 0.99 fritz for one"
    assert "\x1b" not in done.stdout


def test_a_table_that_cannot_be_written_is_refused_before_the_measuring(tmp_path):
    (tmp_path / "runs" / "anna").mkdir(parents=True)
    with pytest.raises(UserError, match=r"--csv .*board\.csv: cannot be written"):
        challenge.main(
            [str(tmp_path / "runs"), "--prompts", "new.txt", "--csv", str(tmp_path / "no/board.csv")]
        )
