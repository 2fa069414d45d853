"""Runs that end before their end: by numbers that are not finite, by Ctrl-C, by SIGTERM.

pytest tests/test_stopped.py
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import train as script
from baselines import ppo, sft
from kit.base.errors import Diverged, Stopped, UserError, no_room
from kit.base.runs import read_metrics, what_is_missing
from kit.lm.sampling import sample
from kit.train import sweep
from kit.train.session import Session, largest
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("few_validation_prompts")
SIZE = "--model mini --sentiment_model mini --max_completion_length 4 --eval_every 0"
GRPO = f"{SIZE} --prompts_per_step 2 --num_generations 2 --max_steps 9 --save_steps 1"
PPO = f"{SIZE} --batch_size 4 --minibatch_size 4 --ppo_epochs 1 --max_steps 9 --save_steps 1"
SFT = f"{SIZE} --rounds 9 --prompts_per_round 4 --num_generations 2 --epochs 1 --batch_size 2"


def run(method, flags: str, folder: Path, monkeypatch, *more: str) -> Path:
    """A trainer in this process; its run folder."""
    argv = [*flags.split(), "--output_dir", str(folder), "--run_name", "r", *more]
    monkeypatch.setattr(sys, "argv", ["script", *argv])
    method.main()
    return folder / "r"


# ------------------------------------------------------------------------------------ not finite


def test_the_largest_of_all_numbers_shows_every_nan():
    assert largest([torch.tensor([1.0, -3.0]), torch.tensor([[2.0]])]) == 3
    assert largest([]) == 0
    assert largest([torch.tensor([1.0]), torch.tensor([float("inf")])]) == float("inf")
    assert largest([torch.tensor([float("nan"), 1.0]), torch.tensor([7.0])]) != largest([])
    assert largest([torch.tensor([float("nan"), 1.0]), torch.tensor([7.0])]) != 7


@pytest.mark.parametrize(
    ("method", "flags"),
    [(script, GRPO), (script, GRPO + " --use_peft"), (ppo, PPO), (sft, SFT)],
    ids=["grpo", "lora", "ppo", "sft"],
)
def test_weights_that_are_not_finite_are_never_saved(method, flags, tmp_path, monkeypatch):
    with pytest.raises(
        Diverged, match=r"^(after )?step \d+:? [\w -]+ is (nan|inf|-inf), .*checkpoint"
    ) as error:
        run(method, flags, tmp_path, monkeypatch, "--learning_rate", "1e30")
    assert "\n" not in str(error.value)
    for file in tmp_path.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file
    assert not list(tmp_path.glob("r/final*"))
    for folder in tmp_path.glob("r/checkpoint-*"):
        assert what_is_missing(folder) == ""
    steps = [row["step"] for row in read_metrics(tmp_path / "r")]
    assert steps[0] == 0 and all(v is not None for row in read_metrics(tmp_path / "r") for v in row.values())


@pytest.mark.parametrize(("method", "flags"), [(script, GRPO), (ppo, PPO), (sft, SFT)])
def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(
    method, flags, tmp_path, monkeypatch, capsys
):
    """The third backward pass spoils one number; the checkpoints before it stay, and are named."""
    backward, passes = torch.Tensor.backward, []

    def spoiled(self, *args, **kwargs):
        passes.append(1)
        backward(self * float("nan") if len(passes) == 3 else self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", spoiled)
    with pytest.raises(
        Diverged, match=r"step 3: (gradient|loss)[a-z ]* is nan.*checkpoint is .*r/checkpoint-2"
    ):
        run(method, flags, tmp_path, monkeypatch)
    assert {p.name for p in tmp_path.glob("r/checkpoint-*")} <= {"checkpoint-1", "checkpoint-2"}
    assert what_is_missing(tmp_path / "r/checkpoint-2") == ""
    assert "--resume" not in capsys.readouterr().err  # it would end at the same place


# ------------------------------------------------------------------------------------ Ctrl-C, SIGTERM


def signal_after(last: int, signum: signal.Signals, monkeypatch) -> None:
    """This process gets `signum` once the line of step `last` stands on the screen."""
    show = Session.show

    def and_signal(session, step, *args):
        show(session, step, *args)
        if step == last:
            for _ in range(2 if signum == signal.SIGHUP else 1):  # a shell that ends sends it twice
                os.kill(os.getpid(), signum)

    monkeypatch.setattr(Session, "show", and_signal)


@pytest.mark.parametrize(
    ("method", "flags", "signum"),
    [(script, GRPO, signal.SIGTERM), (ppo, PPO, signal.SIGHUP)],
    ids=["grpo", "ppo"],
)
def test_stopped_it_saves_the_step_it_was_in(method, flags, signum, tmp_path, monkeypatch, capsys):
    signal_after(1, signum, monkeypatch)
    before = signal.getsignal(signum)
    with pytest.raises(Stopped) as stop:
        run(method, flags, tmp_path, monkeypatch, "--save_steps", "5")
    assert stop.value.signum == signum and signal.getsignal(signum) == before
    last = re.fullmatch(
        rf"stopped by {signum.name} at step (\d); --resume {tmp_path}/r goes on from step \1", str(stop.value)
    )
    assert last and what_is_missing(tmp_path / f"r/checkpoint-{last[1]}") == ""
    assert not (tmp_path / "r/final").exists()
    assert capsys.readouterr().err.count(f"{signum.name}: stopping at the end of this step") == 1


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    tune = sft.fine_tune

    def twice(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        tune(*args, **kwargs)
        raise AssertionError("it went on")

    monkeypatch.setattr(sft, "fine_tune", twice)
    with pytest.raises(Stopped, match="stopped by Ctrl-C at step 0, before there was a checkpoint") as stop:
        run(sft, SFT, tmp_path, monkeypatch)
    assert stop.value.signum == signal.SIGINT


def test_sft_stopped_in_a_round_names_the_round_it_begins_again(tmp_path, monkeypatch):
    signal_after(3, signal.SIGINT, monkeypatch)
    with pytest.raises(Stopped, match=r"Ctrl-C at step [34]; --resume .*/r goes on from step [24]$"):
        run(sft, SFT, tmp_path, monkeypatch)


def test_sft_stopped_while_it_samples_draws_no_further_batch(tmp_path, monkeypatch):
    drawn = []

    def two_at_a_time(*args, on_batch, **kwargs):
        def and_signal(completions):
            drawn.append(completions)
            if len(drawn) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            on_batch(completions)

        return sample(*args, batch_size=2, on_batch=and_signal, **kwargs)

    monkeypatch.setattr(sft, "sample", two_at_a_time)
    with pytest.raises(Stopped, match="stopped by SIGTERM at step 0, before there was a checkpoint"):
        run(sft, SFT, tmp_path, monkeypatch)
    assert drawn == [2, 2]  # of eight


SIGNALLED = """import os, runpy, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "@MODULE@":
            os.kill(os.getpid(), @SIGNAL@)
sys.meta_path.insert(0, Finder())
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("signum", "said", "module"),
    [
        (signal.SIGINT, "Ctrl-C", "torch"),
        (signal.SIGTERM, "SIGTERM", "torch"),
        (signal.SIGINT, "Ctrl-C", "trl"),
    ],
)
def test_stopped_while_importing_is_one_line_and_leaves_nothing(signum, said, module, run_script, tmp_path):
    code = SIGNALLED.replace("@MODULE@", module).replace("@SIGNAL@", str(int(signum)))
    done = run_script("-c", code, *GRPO.split(), "--output_dir", str(tmp_path / "out"), real=True)
    assert done.returncode == 128 + signum and done.stderr == f"\nstopped by {said}\n" and done.stdout == ""
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------ no room


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 130 MB: one checkpoint of the mini policy has 100."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=130m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_said_and_the_last_whole_checkpoint_stays(small_disk, run_script):
    done = run_script("train.py", *GRPO.split(), "--output_dir", str(small_disk), "--run_name", "r")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.fullmatch(
        rf"error: the disk of {small_disk}/r is full \(\w+: .+\); free some space, then start again; "
        rf"the last good checkpoint is {small_disk}/r/checkpoint-1",
        done.stderr.strip().splitlines()[-1],
    )
    assert what_is_missing(small_disk / "r/checkpoint-1") == ""
    assert [p.name for p in small_disk.glob("r/checkpoint-*")] == ["checkpoint-1"]


def test_what_means_no_memory():
    assert "not enough memory; start anew with a lower --per_device" in no_room(
        RuntimeError("DefaultCPUAllocator: can't allocate memory")
    )
    assert "not enough memory" in no_room(MemoryError())
    # a card that another process has filled
    for said in ("CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"):
        assert "not enough memory" in no_room(RuntimeError(said))
    assert no_room(RuntimeError("index out of range")) == ""


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from kit.base.errors import run_main
import train, kit.train.session

kit.train.session.validation_prompts = lambda source: ("This film",)
begin = kit.train.session.Session.begin

def and_limit(*args):
    begin(*args)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20),) * 2)

kit.train.session.Session.begin = and_limit
run_main(train.main)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_too_little_memory_is_said_in_one_line(run_script, tmp_path):
    """A step of 128 completions in one backward pass: their logits have 0.13 GB, are there several times, and 0.25 GB
    are left once the models are loaded."""
    flags = f"{SIZE} --max_completion_length 40 --prompts_per_step 8 --num_generations 16 --max_steps 2"
    (tmp_path / "limited.py").write_text(LITTLE_MEMORY)
    argv = [*flags.split(), "--per_device_train_batch_size", "128", "--output_dir", str(tmp_path / "runs")]
    done = run_script(str(tmp_path / "limited.py"), *argv, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith(
            "error: there is not enough memory; start anew with a lower --per_device_train_batch_size"
        )
    )
    assert not list(tmp_path.rglob("final"))


def test_on_a_full_disk_another_error_keeps_its_own_words(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert no_room(ValueError("an odd\nvalue"), tmp_path) == (
        f"the disk of {tmp_path} is full (ValueError: an odd value); free some space, then start again"
    )


# ----------------------------------------------------------------------------------------------- a comparison


STOPPED_COMPARISON = """
import os, signal, sys, threading, time
from pathlib import Path
from kit.base.errors import run_main
from kit.train.sweep import Training, finish_runs

here = Path(sys.argv[1])

def stop_when_both_have_begun():
    while not all((here / name).exists() for name in "ab"):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)  # to this process alone, as by kill

threading.Thread(target=stop_when_both_have_begun, daemon=True).start()
sleep = ["-c", "import pathlib, sys, time; pathlib.Path(sys.argv[2], sys.argv[4]).mkdir(); time.sleep(60)"]
run_main(lambda: finish_runs([Training(sleep, here / name, 0) for name in "ab"], 2, here / "log.txt"))
"""


def test_a_stopped_comparison_stops_its_trainings(run_script, tmp_path):
    driver = tmp_path / "driver.py"
    driver.write_text(STOPPED_COMPARISON)
    done = run_script(str(driver), str(tmp_path), env={"PYTHONPATH": str(ROOT)}, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM and done.stderr.strip() == "stopped by SIGTERM"


def test_a_run_of_another_command_is_not_taken_for_the_one_that_is_wanted(tmp_path):
    make = ["-c", "import pathlib, sys; pathlib.Path(sys.argv[2], sys.argv[4], 'final').mkdir(parents=True)"]
    sweep.finish_runs([sweep.Training(make, tmp_path / "a", 0)], 1, tmp_path / "log.txt")
    sweep.finish_runs([sweep.Training(make, tmp_path / "a", 0)], 1, tmp_path / "log.txt")
    with pytest.raises(UserError, match=r"a was trained by hand, or by another command .*remove that folder"):
        sweep.finish_runs([sweep.Training([*make, "--steps=3"], tmp_path / "a", 0)], 1, tmp_path / "log.txt")
    (tmp_path / "a.command.json").unlink()  # nobody knows what it is of
    with pytest.raises(UserError, match="was trained by hand"):
        sweep.finish_runs([sweep.Training(make, tmp_path / "a", 0)], 1, tmp_path / "log.txt")


def test_a_run_that_is_training_at_this_moment_is_not_removed(tmp_path):
    """Another sweep's: it has no checkpoint yet, and looks as if it had been stopped."""
    wanted = sweep.Training(["-c", "pass"], tmp_path / "a", 0)
    wanted.folder.mkdir()
    wanted.record.write_text(json.dumps(wanted.command))
    with sweep.Run(wanted.folder).lock(), pytest.raises(UserError, match="another process"):
        sweep.finish_runs([wanted], 1, tmp_path / "log.txt")
    assert wanted.folder.is_dir()
    sweep.finish_runs([wanted], 1, tmp_path / "log.txt")  # it has ended
    assert not wanted.folder.is_dir()


def test_a_failed_training_is_named_and_the_others_are_not_begun(tmp_path):
    fails = ["-c", "import pathlib, sys; pathlib.Path(sys.argv[2], sys.argv[4]).mkdir(); sys.exit(3)"]
    wanted = [sweep.Training(fails, tmp_path / name, 0) for name in "abc"]
    with pytest.raises(UserError, match=r"a ended with status 3, see .*log\.txt"):
        sweep.finish_runs(wanted, 1, tmp_path / "log.txt")
    assert not (tmp_path / "c").exists()


def test_a_hostile_environment_changes_nothing_on_screen(run_script, tmp_path):
    env = {
        "WANDB_MODE": "offline",
        "WANDB_PROJECT": "x",
        "WANDB_SILENT": "false",
        "HF_HUB_VERBOSITY": "debug",
    }
    env |= {
        "TRANSFORMERS_VERBOSITY": "debug",
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "HF_HOME": "/nowhere",
    }
    env |= {"TMPDIR": str(tmp_path / "none"), "OMP_NUM_THREADS": "1"}
    done = run_script(
        "train.py", *GRPO.split(), "--max_steps", "1", "--output_dir", str(tmp_path / "o"), env=env, real=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("policy mini/policy") and done.stderr == ""
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["vanilla"]
    assert not list((tmp_path / "o").rglob("README.md"))  # TRL's, of a "fine-tuned version of None"
