"""Trackio and TensorBoard under our names. pytest tests/test_dashboards.py"""

import pytest

from kit import dashboards
from kit.errors import UserError


def failing() -> dashboards.Dashboard:
    """A dashboard whose disk is full from the second line on."""
    seen = []

    def send(step, values):
        if seen:
            raise OSError("no space\nleft")
        seen.append((step, values))

    made = dashboards.Dashboard()
    made.name, made.send, made.close, made.seen = "TensorBoard", send, lambda: seen.append("closed"), seen
    return made


def test_what_fails_in_a_dashboard_is_said_once_and_ends_nothing(capsys):
    dashboard = failing()
    for step in (1, 2, 3):
        dashboard.log(step, {"train/reward": 0.5})
    dashboard.finish({})
    assert dashboard.seen == [(1, {"train/reward": 0.5})]
    said = capsys.readouterr().err
    assert said == "TensorBoard logs no more (OSError: no space\\nleft); metrics.jsonl goes on\n"


def test_one_that_cannot_be_opened_is_said_and_the_run_goes_on_without(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trackio", None)
    assert dashboards.open_dashboard("trackio", "p", tmp_path, {}, 0) is None
    assert "--report_to trackio: " in capsys.readouterr().err


def test_one_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(dashboards.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--report_to trackio: .* requirements-play\.txt"):
        dashboards.refuse_uninstalled("trackio")
    dashboards.refuse_uninstalled("none")


def test_tensorboard_gets_the_lines_of_metrics_jsonl_and_samples_as_text(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs TensorBoard: pip install -r requirements-play.txt",
    )
    dashboard = dashboards.open_dashboard("tensorboard", "p", tmp_path, {}, 0)
    dashboard.log(3, {"train/reward": 0.5, "val/kl_policy_ref": 2.0})
    dashboard.log_samples(3, [{"completion": "so <b>good"}] * 17)
    dashboard.finish({})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {key: [(e.step, e.value) for e in events.Scalars(key)] for key in events.Tags()["scalars"]}
    assert found == {"train/reward": [(3, 0.5)], "val/kl_policy_ref": [(3, 2.0)]}
    (text,) = events.Tensors("samples/text_summary")
    assert text.tensor_proto.string_val[0].decode() == '    {"completion": "so <b>good"}\n' * 16
