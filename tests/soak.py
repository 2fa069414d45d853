"""Kill trainings at random moments, resume them, compare with a run that nobody killed: `make soak`.

    python -m tests.soak [--kills 20] [--only ppo sft] [--write]      --write: the table in docs/reliability.md

Everything is imported once, and every training is a fork of that: a kill then costs seconds, and hits the training
rather than the imports. The runs are tiny, the kill is SIGKILL, and equal means equal bytes: the weights of final/,
every line of metrics.jsonl (less the times it holds) and of samples.jsonl.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import quiet

quiet(__name__)

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

import kit.train.session
import train
from baselines import ppo, sft
from data import validation_prompts
from kit.base.errors import told_in_one_line
from kit.base.runs import MANIFEST, Run, read_metrics, read_samples
from kit.train.sweep import write_between

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
TIMES = {"train/step_time", "train/tokens_per_second"}
HELD_OUT = 4  # prompts of a validation: what it measures does not matter here

TINY = "--model mini --sentiment_model mini --max_completion_length 8"
SAVING = f"{TINY} --max_steps 6 --save_steps 2 --eval_every 3"
GRPO = f"{SAVING} --prompts_per_step 2 --num_generations 2"


class Method(NamedTuple):
    """What is trained, and how; `spare`: does it keep an older checkpoint beside the last?"""

    title: str
    script: ModuleType
    flags: str
    spare: bool = True


METHODS = {
    "full": Method("GRPO, all weights", train, GRPO),
    "lora": Method("GRPO, LoRA", train, f"{GRPO} --use_peft"),
    "forward": Method("GRPO, forward penalty", train, f"{GRPO} --kl_type forward --use_solution"),
    "beta": Method("GRPO, TRL's own KL (`--beta`)", train, f"{GRPO} --beta 0.04"),
    "ppo": Method("PPO", ppo, f"{SAVING} --batch_size 4 --minibatch_size 2"),
    "sft": Method(
        "SFT, best of n",
        sft,
        f"{TINY} --rounds 3 --prompts_per_round 2 --num_generations 2 --epochs 1 --batch_size 1 --eval_every 3",
        spare=False,
    ),
}


# ---- one training, in a process of its own -----------------------------------------------------------------


def start(method: Method, *flags: str | Path, log: Path) -> int:
    """Fork a training; what it says goes to `log`. Returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    torch.set_num_threads(1)  # as in tests/forks.py
    status = 70  # neither success nor a refusal: an exception of ours
    try:
        for target, path, mode in (
            (0, os.devnull, os.O_RDONLY),
            (1, log, os.O_WRONLY),
            (2, log, os.O_WRONLY),
        ):
            os.dup2(os.open(path, mode | os.O_CREAT | os.O_APPEND), target)
        sys.argv = [method.script.__name__, *map(str, flags)]
        with told_in_one_line():
            method.script.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 70
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(method: Method, *flags: str | Path, log: Path) -> int:
    """The exit status of a training that is left alone."""
    return os.waitstatus_to_exitcode(os.waitpid(start(method, *flags, log=log), 0)[1])


def kill_after(pid: int, seconds: float) -> bool:
    """SIGKILL in so many seconds. False if the process had ended by itself."""
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def wait_for(path: str, folder: Path, pid: int) -> None:
    """Until the training `pid` has written a file that `path` matches."""
    while not any(folder.glob(path)):
        if os.waitpid(pid, os.WNOHANG)[0]:
            raise RuntimeError(f"{folder}: the training ended without {path}; its log says why")
        time.sleep(0.002)


def digest(folder: Path) -> str:
    """Of all that must be equal."""
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(folder)]
    found = hashlib.sha256(json.dumps([rows, read_samples(folder)]).encode())
    for path in sorted((folder / "final").glob("*.safetensors")):
        found.update(path.read_bytes())
    return found.hexdigest()


def contents(folder: Path) -> dict[Path, bytes]:
    # The lock is held by nobody and says nothing
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


# ---- the trials --------------------------------------------------------------------------------------------


class Soak:
    """All trials of one method. What went wrong is in `wrong`, one sentence each."""

    def __init__(self, method: Method, folder: Path, seed: int) -> None:
        self.method, self.folder, self.rng = method, folder, random.Random(seed)
        self.wrong: list[str] = []
        self.in_checkpoint = 0  # kills that left a checkpoint, or final/, half written
        folder.mkdir()
        began = time.monotonic()
        pid = self.new("whole")
        wait_for(f"checkpoint-*/{MANIFEST}", folder / "whole", pid)
        self.first = time.monotonic() - began
        if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            raise RuntimeError(f"{method.title}: exit status {status}\n{self.log('whole').read_text()}")
        self.seconds = time.monotonic() - began
        self.expected = digest(folder / "whole")

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def new(self, name: str) -> int:
        flags = (*self.method.flags.split(), "--output_dir", self.folder, "--run_name", name)
        return start(self.method, *flags, log=self.log(name))

    def resume(self, name: str) -> int:
        return start(self.method, "--resume", self.folder / name, log=self.log(name))

    def compare(self, name: str, what: str) -> bool:
        """Resume `name` to its end: is it the run that was not killed?"""
        status = os.waitstatus_to_exitcode(os.waitpid(self.resume(name), 0)[1])
        equal = status == 0 and digest(self.folder / name) == self.expected
        if equal:
            shutil.rmtree(self.folder / name)
        else:
            self.wrong.append(f"{self.method.title}, {what}: status {status}, see {self.log(name)}")
        return equal

    def killed(self, name: str) -> str:
        """A new run, killed at a random moment after its first checkpoint. Returns its name."""
        for attempt in range(100):
            run = f"{name}.{attempt}"
            pid = self.new(run)
            wait_for(f"checkpoint-*/{MANIFEST}", self.folder / run, pid)
            if kill_after(pid, self.rng.uniform(0, self.seconds - self.first)):
                checkpoints = [folder for _, folder in Run(self.folder / run).checkpoints()]
                half = [folder for folder in checkpoints if not (folder / MANIFEST).exists()]
                self.in_checkpoint += bool(half or (self.folder / run / "final.part").exists())
                return run
        raise RuntimeError(f"{self.method.title}: it ends before it can be killed")

    def kill(self, number: int) -> bool:
        return self.compare(self.killed(f"kill-{number}"), f"kill {number}")

    def kill_twice(self, number: int) -> bool:
        """Killed again while it resumes: while it loads, or later."""
        for attempt in range(100):
            name = self.killed(f"twice-{number}-{attempt}")
            if kill_after(self.resume(name), self.rng.uniform(0, self.seconds)):
                return self.compare(name, f"double kill {number}")
        raise RuntimeError(f"{self.method.title}: its resume ends before it can be killed")

    def kill_early(self) -> bool:
        """Before the first checkpoint there is nothing to go on from: one sentence, and nothing changes."""
        pid = self.new("early")
        wait_for("config.json", self.folder / "early", pid)
        kill_after(pid, 0)
        return self.refused("early", "killed before its first checkpoint")

    def refused(self, name: str, what: str) -> bool:
        before = contents(self.folder / name)
        status = os.waitstatus_to_exitcode(os.waitpid(self.resume(name), 0)[1])
        said = self.log(name).read_text(encoding="utf-8").splitlines()[-1]
        right = (
            status == 2 and "no checkpoint to go on from" in said and contents(self.folder / name) == before
        )
        if not right:
            self.wrong.append(f"{self.method.title}, {what}: status {status}, see {self.log(name)}")
        return right

    def damage(self, files: Sequence[str] | None = None) -> list[bool]:
        """Every file of the last checkpoint torn in two, emptied, and removed, one at a time.

        The run goes on from the checkpoint before, or, where the method keeps only one, is refused.
        """
        last = Run(self.folder / "whole").checkpoints()[-1][1]
        found = []
        for path in sorted(p.relative_to(last) for p in last.rglob("*") if p.is_file()):
            for how in ("torn", "emptied", "removed"):
                if files is not None and f"{path} {how}" not in files:
                    continue
                name = f"{path.name}-{how}"
                copy = shutil.copytree(self.folder / "whole", self.folder / name) / last.name / path
                shutil.rmtree(self.folder / name / "final")
                if how == "removed":
                    copy.unlink()
                else:
                    os.truncate(copy, copy.stat().st_size // 2 if how == "torn" else 0)
                check = self.compare if self.method.spare else self.refused
                found.append(check(name, f"{path} {how}"))
        return found


def share(found: Sequence[bool]) -> str:
    return f"{sum(found)} of {len(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kills", type=int, default=20, help="of each method; a quarter as many double kills"
    )
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--damage", nargs="+", help="only these, as 'optimizer.pt torn'; default: every file")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--write", action="store_true", help="the table into docs/reliability.md")
    args = parser.parse_args()
    kit.train.session.validation_prompts = lambda source: validation_prompts(source)[:HELD_OUT]
    began, wrong = time.monotonic(), []
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    table = [
        "| run | killed, resumed, equal | of these in a checkpoint | killed twice, equal | damaged files, none used |"
        " killed before the first checkpoint, refused |",
        "|---|---|---|---|---|---|",
    ]
    for key in args.only:
        soak = Soak(METHODS[key], folder / key, args.seed)
        kills = [soak.kill(number) for number in range(args.kills)]
        torn = soak.in_checkpoint
        twice = [soak.kill_twice(number) for number in range(args.kills // 4)]
        cells = [soak.method.title, share(kills), f"{torn}", share(twice), share(soak.damage(args.damage))]
        table.append(f"| {' | '.join([*cells, share([soak.kill_early()])])} |")
        print(table[-1], *soak.wrong, f"{time.monotonic() - began:.0f} s", sep="\n", flush=True)
        wrong += soak.wrong
    if args.write:
        text = "\n".join(
            [*table, "", f"Seed {args.seed}, {(time.monotonic() - began) / 60:.0f} minutes.", ""]
        )
        write_between(PAGE, "written by make soak", text)
    if wrong:
        print(*wrong, f"left in {folder}", sep="\n")
        raise SystemExit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
