"""Going on with a run: what is let in, what is refused, and that nothing is lost.

pytest tests/test_resume.py
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

import train as script
from kit.errors import UserError
from kit.models import MINI, load_policy
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
        with pytest.raises(UserError, match="code that comes with a model is never run here"):
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
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))  # noqa: SIM115
    with pytest.raises(UserError):
        load(str(folder))
    assert not asked and not Path(tmp_path / "ran").exists()
