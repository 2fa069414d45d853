"""Trackers under our names. pytest tests/test_tracking.py"""

import json
import os
import subprocess
import sys
import time
import types

import pytest

from kit.base.errors import UserError
from kit.base.flags import Arguments
from kit.train import tracking
from tests.conftest import ROOT


def failing() -> tracking.Tracker:
    """A tracker whose disk is full from the second line on."""
    seen = []

    def send(step, values):
        if seen:
            raise OSError("no space\nleft")
        seen.append((step, values))

    made = tracking.Tracker("TensorBoard", send, lambda summary, exit_code: seen.append("closed"))
    made.seen = seen
    return made


def test_what_fails_in_a_tracker_is_said_once_and_ends_nothing(capsys):
    tracker = failing()
    for step in (1, 2, 3):
        tracker.log(step, {"train/reward": 0.5})
    tracker.finish({})
    assert tracker.seen == [(1, {"train/reward": 0.5})]
    said = capsys.readouterr().err
    assert said == "TensorBoard logs no more (OSError: no space\\nleft); metrics.jsonl goes on\n"


def test_an_address_that_nothing_answers_at_is_out_of_reach(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")  # which would answer
    started = time.monotonic()
    assert not tracking.in_reach("http://127.0.0.1:9") and not tracking.in_reach("nonsense")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("terminal", [True, False])
def test_wandb_without_a_login_asks_nobody_and_is_kept_offline(terminal, capsys, tmp_path, monkeypatch):
    started = {}
    wandb = types.SimpleNamespace(
        setup=lambda: types.SimpleNamespace(settings=types.SimpleNamespace(base_url="https://wandb.lab")),
        init=lambda **settings: (
            started.update(settings) or types.SimpleNamespace(define_metric=lambda *_, **__: None)
        ),
        errors=types.SimpleNamespace(Error=RuntimeError),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    hosts = []
    auth = types.SimpleNamespace(read_netrc_auth=lambda host: hosts.append(host))
    monkeypatch.setitem(sys.modules, "wandb.sdk.lib.wbauth", auth)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal, raising=False)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(tracking, "in_reach", lambda url: True)
    tracking.open_wandb("p", tmp_path, {"method": "grpo", "kl_type": "forward"})
    assert (started["tags"], started["job_type"]) == (["grpo", "forward"], "grpo")
    assert hosts == ["https://wandb.lab"]  # a server of the user's own, not the built-in address
    assert started["mode"] == "offline" and "W&B: no login" in capsys.readouterr().out


def test_one_that_cannot_be_opened_is_said_and_the_run_goes_on_without(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trackio", None)
    assert tracking.open_tracker("trackio", "p", tmp_path, {}, 0) == tracking.Tracker()
    assert "--report_to trackio: " in capsys.readouterr().err


def test_wandbs_mode_is_read_whichever_flag_asks_for_it(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    for asked in ({"wandb": True}, {"report_to": "wandb"}):
        with pytest.raises(UserError, match="WANDB_MODE=nonsense"):
            Arguments(**asked)


def test_one_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("kit.base.flags.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--report_to trackio: .* requirements-play\.txt"):
        Arguments(report_to="trackio")
    assert Arguments().report_to == "none"


@pytest.mark.needs("tensorboard")
def test_tensorboard_gets_the_lines_of_metrics_jsonl_and_samples_as_text(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator as accumulator

    tracker = tracking.open_tracker("tensorboard", "p", tmp_path, {}, 0)
    tracker.log(3, {"train/reward": 0.5, "val/kl_policy_ref": 2.0})
    tracker.log_samples(3, [{"completion": "so <b>good"}] * 17)
    tracker.finish({})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {key: [(e.step, e.value) for e in events.Scalars(key)] for key in events.Tags()["scalars"]}
    assert found == {"train/reward": [(3, 0.5)], "val/kl_policy_ref": [(3, 2.0)]}
    (text,) = events.Tensors("samples/text_summary")
    assert text.tensor_proto.string_val[0].decode() == '    {"completion": "so <b>good"}\n' * 16


THREE_RUNS = """
import json, sys
from pathlib import Path
from trackio.sqlite_storage import SQLiteStorage
from kit.train import tracking
for first_step, reward in ((0, 0.25), (2, 0.5), (0, 0.75)):  # a run; it is resumed; another of its name
    tracker = tracking.open_tracker("trackio", "p", Path("run"), {}, first_step)
    for step in range(first_step + 1, 4):
        tracker.log(step, {"train/reward": reward})
    tracker.finish({})
runs = [SQLiteStorage.get_logs("p", "run", run_id=run["id"]) for run in SQLiteStorage.get_run_records("p")]
found = sorted([[line["step"], line["train/reward"]] for line in run] for run in runs)
print(json.dumps(found), file=sys.stderr)
"""


@pytest.mark.needs("trackio")
def test_trackio_keeps_every_run_of_a_name_apart(tmp_path):
    env = {
        **os.environ,
        "TRACKIO_DIR": str(tmp_path / "data"),
    }  # read when it is imported, so in its own process
    done = subprocess.run(
        [sys.executable, "-c", THREE_RUNS], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == [
        [[1, 0.25], [2, 0.25], [3, 0.25]],
        [[1, 0.75], [2, 0.75], [3, 0.75]],
        [[3, 0.5]],
    ]
