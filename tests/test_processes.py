"""Two processes on two CPU cores: what one would train, errors said once, and what is refused.

pytest tests/test_processes.py
"""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

import train as script
from baselines import ppo, sft
from kit.base.errors import UserError
from kit.base.runs import read_metrics, what_is_missing
from kit.lm.models import MINI
from kit.train.processes import refuse_launch

TINY = (
    "--model mini --sentiment_model mini --prompts_per_step 2 --num_generations 2 --max_completion_length 4 "
)
TINY += "--max_steps 2 --eval_every 0"
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Runs of one process: all weights, and LoRA."""
    folder = tmp_path_factory.mktemp("one")
    for name, flags in (("full", ""), ("lora", "--use_peft")):
        with pytest.MonkeyPatch.context() as patch:
            argv = f"train.py {TINY} {flags} --output_dir {folder} --run_name {name}".split()
            patch.setattr(sys, "argv", argv)
            script.main()
    return folder


@pytest.mark.parametrize(
    ("start", "name", "flags"),
    [("train", "lora", ["--use_peft", "--merge_lora"]), ("tests.fsdp_on_cpu", "full", [])],
    ids=["DDP", "FSDP2"],
)
def test_two_processes_train_what_one_would(start, name, flags, one, run_script, tmp_path):
    flags = [*TINY.split(), *flags, "--output_dir", str(tmp_path), "--run_name", "two"]
    done = run_script("-m", "tests.two_processes", start, *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [p.name for p in tmp_path.iterdir()] == ["two"]  # one folder, written once
    alone, together = read_metrics(one / name), read_metrics(tmp_path / "two")
    assert [row["step"] for row in together] == [0, 1, 2, 2]
    assert together[0] == alone[0] and abs(together[0]["val/kl_policy_ref"]) < 1e-5
    for key in ("reward", "score", "length_mean", "kl_policy_ref", "grad_norm", "entropy"):
        for step in (1, 2):  # step 2 samples from what step 1 has learned
            a, b = alone[step][f"train/{key}"], together[step][f"train/{key}"]
            assert math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-5), (key, step)
    assert together[2]["train/grad_norm"] > 0
    trained, base = (
        AutoModelForCausalLM.from_pretrained(p) for p in (tmp_path / "two/final", MINI / "policy")
    )
    pairs = zip(trained.parameters(), base.parameters(), strict=True)
    assert not all(torch.equal(a, b.float()) for a, b in pairs)


def test_resumed_by_another_number_of_processes(one, tmp_path, monkeypatch):
    run = shutil.copytree(one / "full", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    assert config["processes"] == 1
    (run / "config.json").write_text(json.dumps(config | {"processes": 2}))
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume", str(run), "--max_steps", "3"])
    with pytest.raises(UserError, match=r"this run has processes 2, not 1: .*, or start a new run"):
        script.main()


def test_stopped_together_they_leave_a_checkpoint(tmp_path, start):
    flags = [*TINY.split(), "--max_steps", "999", "--output_dir", str(tmp_path), "--run_name", "two"]
    launcher = start(
        [sys.executable, *TWO, "train.py", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "two/metrics.jsonl"
    while not (metrics.exists() and "train/reward" in metrics.read_text()):
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    said = launcher.communicate(timeout=60)[1]
    assert launcher.returncode > 0
    (step,) = re.findall(
        rf"^stopped by SIGTERM at step (\d+); --resume {tmp_path}/two goes on from step \1$", said, re.M
    )
    assert what_is_missing(tmp_path / f"two/checkpoint-{step}") == ""
    assert not (tmp_path / "two/final").exists()


def test_an_error_is_said_once(run_script):
    done = run_script(*TWO, "train.py", "--max_steps", "0", real=True)
    assert done.returncode != 0
    assert done.stderr.count("error: --max_steps 0: give at least 1") == 1


def test_the_baselines_run_as_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for baseline in (ppo, sft):
        with pytest.raises(UserError, match="the baselines run as one process"):
            baseline.PARSER.parse([])


@pytest.mark.parametrize(
    ("variable", "value", "flags", "gpu", "says"),
    [
        ("ACCELERATE_USE_FSDP", "true", [], False, "FSDP needs GPUs"),
        ("ACCELERATE_USE_FSDP", "true", ["--use_peft"], True, "--use_peft does not work with FSDP"),
        ("ACCELERATE_USE_FSDP", "true", ["--beta", "0.1"], True, "--beta does not work with FSDP"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3", [], False, "ZeRO-3 .*; use FSDP2"),
    ],
)
def test_launches_that_would_not_do_what_was_meant(variable, value, flags, gpu, says, monkeypatch):
    args = script.PARSER.parse(flags)
    settings = script.grpo_config(args)
    settings.use_cpu = not gpu
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=says):
        refuse_launch(args, settings)


def test_one_process_with_two_gpus_is_refused_before_anything_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    args = script.PARSER.parse([])
    settings = script.grpo_config(args)
    settings.use_cpu = False
    with pytest.raises(UserError, match=r"2 GPUs .* torchrun --nproc_per_node 2 train\.py"):
        refuse_launch(args, settings)
    settings.use_cpu = True
    refuse_launch(args, settings)
    monkeypatch.setattr(sys, "argv", ["sft", "--output_dir", str(tmp_path / "runs")])
    with pytest.raises(UserError, match=r"2 GPUs are visible to one process: set CUDA_VISIBLE_DEVICES=0$"):
        sft.main()
    assert not (tmp_path / "runs").exists()
