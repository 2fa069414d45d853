"""The run folder.

pytest tests/test_runs.py
"""

import json
import math
import subprocess
import sys

import pytest

from kit.base.errors import UserError
from kit.base.runs import STATE, Run, read_config, read_metrics, to_json, write_manifest
from tests.conftest import ROOT


def test_a_run_is_never_overwritten(tmp_path):
    paths = [Run.create(tmp_path, "a").path.name for _ in range(3)]
    assert paths == ["a", "a-2", "a-3"]
    with pytest.raises(UserError, match="letters, digits"):
        Run.create(tmp_path, "../b")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output_dir"):
        Run.create(tmp_path / "file", "a")


def test_lines_are_json_even_for_nan(tmp_path):
    run = Run.create(tmp_path, "a")
    run.log(0, {"x": math.nan, "y": math.inf, "z": 0.5})
    run.log(5, {"z": 1.0})
    run.log_samples(5, [{"completion": "</script>\n\u2028 “é”"}])
    assert read_metrics(run.path) == [{"step": 0, "x": None, "y": None, "z": 0.5}, {"step": 5, "z": 1.0}]
    run.truncate_after(0)
    assert [row["step"] for row in read_metrics(run.path)] == [0]
    assert (run.path / "samples.jsonl").read_text() == ""
    assert json.loads(to_json({"a": (1, None, True)})) == {"a": [1, None, True]}


def test_config_holds_versions_and_a_broken_one_is_one_sentence(tmp_path):
    run = Run.create(tmp_path, "a")
    run.write_config({"seed": 1})
    config = read_config(run.path)
    assert config["seed"] == 1 and config["provenance"]["versions"]["trl"].startswith("1.16")
    (run.path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not a readable"):
        read_config(run.path)
    (run.path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="JSON object"):
        read_config(run.path)


def test_bytes_that_are_no_utf_8_do_not_end_a_run(tmp_path):
    """As Python hands them on from the command line."""
    Run(tmp_path).write_config({"argv": ["--predict", "caf\udce9"]})
    assert read_config(tmp_path)["argv"] == ["--predict", "caf?"]


def test_a_torn_last_line_is_left_out_and_a_torn_line_elsewhere_refused(tmp_path, capsys):
    run = Run.create(tmp_path, "a")
    file = run.path / "metrics.jsonl"
    for torn in (b'{"st', b'{"step": 1, "x": "\xc3'):  # the second within a character
        file.write_bytes(b'{"step": 0}\n' + torn)
        assert read_metrics(run.path) == [{"step": 0}]
        assert capsys.readouterr().err == f"{file}: the last line is torn and was left out\n"
    run.truncate_after(0)
    assert file.read_bytes() == b'{"step": 0}\n'
    file.write_bytes(b'{"step": 0}')  # whole, but for its end
    assert read_metrics(run.path) == [{"step": 0}]
    for broken in (b'{"step": 0}\n{"st\n{"step": 2}\n', b'{"step": 0}\n{"st\n'):
        file.write_bytes(broken)
        with pytest.raises(UserError, match="line 2"):
            read_metrics(run.path)


def test_cutting_the_logs_short_never_loses_them(tmp_path, monkeypatch):
    run = Run.create(tmp_path, "a")
    run.log(0, {"x": 1.0})
    run.log(1, {"x": 2.0})
    before = (run.path / "metrics.jsonl").read_text()

    def killed(*_):
        raise KeyboardInterrupt

    for moment in ("os.fsync", "pathlib.Path.replace"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(moment, killed)
            run.truncate_after(0)
        assert (run.path / "metrics.jsonl").read_text() == before
    run.truncate_after(0)
    assert [row["step"] for row in read_metrics(run.path)] == [0]
    assert not list(run.path.glob("*.part"))


def test_checkpoints_are_sorted_by_step(tmp_path):
    run = Run.create(tmp_path, "a")
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-tmp"):
        (run.path / name).mkdir()
    assert [step for step, _ in run.checkpoints()] == [20, 100]


# ------------------------------------------------------------------------------------ whole checkpoints


@pytest.fixture
def run(tmp_path) -> Run:
    """A run with checkpoint-1 and checkpoint-2, both whole."""
    run = Run.create(tmp_path, "a")
    for step in (1, 2):
        folder = run.path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(1024))
        (folder / "optimizer.pt").write_bytes(bytes(10))
        (folder / STATE).write_text(json.dumps({"global_step": step}))
        write_manifest(folder)
    return run


def test_the_last_whole_checkpoint_is_taken(run):
    assert run.last_checkpoint() == (run.path / "checkpoint-2", [])
    (run.path / "checkpoint-2/README.md").write_text("what is not in the manifest does not matter")
    assert run.last_checkpoint() == (run.path / "checkpoint-2", [])


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("model.safetensors", bytes(1000), "model.safetensors has 1,000 of 1,024 bytes"),
        ("model.safetensors", bytes(1023) + b"x", "model.safetensors is not what was written"),
        ("optimizer.pt", b"", "optimizer.pt has 0 of 10 bytes"),
        ("optimizer.pt", None, "optimizer.pt is missing"),
        (STATE, None, "trainer_state.json is missing"),
        ("manifest.json", None, "manifest.json, which is written last, is missing"),
        ("manifest.json", b"", "manifest.json cannot be read"),
        ("manifest.json", b"[]", "manifest.json cannot be read"),
        ("manifest.json", b'{"files": {}}', "trainer_state.json is missing"),
        ("manifest.json", b'{"files": {"optimizer.pt": 10}}', "manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_named(run, file, content, says):
    for step, left in ((2, "checkpoint-1"), (1, None)):
        path = run.path / f"checkpoint-{step}" / file
        path.unlink() if content is None else path.write_bytes(content)
        if left:
            assert run.last_checkpoint() == (run.path / left, [f"checkpoint-2 is not whole ({says})"])
    with pytest.raises(
        UserError, match=r"no checkpoint to go on from: checkpoint-2 is not whole .*checkpoint-1"
    ):
        run.last_checkpoint()


def test_the_manifest_comes_last_and_after_every_file_is_on_disk(run, monkeypatch):
    folder, synced = run.path / "checkpoint-2", []
    (folder / "manifest.json").unlink()
    monkeypatch.setattr("os.fsync", lambda _: synced.append((folder / "manifest.json").exists()))
    write_manifest(folder)
    # three files and the manifest itself before it appears, then its folder
    assert synced == [False] * 4 + [True] * (len(synced) - 4)


# ------------------------------------------------------------------------------------ one writer


def test_two_processes_do_not_train_one_run_and_a_dead_one_is_no_obstacle(run):
    pytest.importorskip("fcntl")
    code = f"""
from kit.base.runs import Run
lock = Run.open({str(run.path)!r}).lock()
print("got it", flush=True)
input()
"""
    run.write_config({})
    other = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "got it\n"
        with pytest.raises(UserError, match="another process is training this run"):
            run.lock()
    finally:
        other.kill()  # -9: it cleans nothing up
        other.communicate()
    with run.lock():
        with pytest.raises(UserError, match="another process"):
            run.lock()
    with run.lock():
        pass


@pytest.mark.parametrize("name", ["final", "checkpoint-20"])
def test_a_model_of_a_run_is_not_taken_for_the_run(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")  # the model's
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=rf"that is a model of a run; give the run's folder, {tmp_path}$"):
        Run.open(tmp_path / name)


# ------------------------------------------------------------------------------------ disks and links


def test_a_link_to_a_folder_that_is_gone_is_filled_again(tmp_path):
    (tmp_path / "outputs").symlink_to(tmp_path / "scratch" / "me")
    assert Run.create(tmp_path / "outputs", "a").path == tmp_path / "outputs" / "a"
    assert (tmp_path / "scratch" / "me" / "a").is_dir()
    (tmp_path / "nowhere").symlink_to("/proc/nowhere")  # nobody can make a folder there
    with pytest.raises(UserError, match=r"--output_dir .*nowhere: cannot make a folder there"):
        Run.create(tmp_path / "nowhere", "a")


def test_what_is_set_aside_stays_until_the_end_and_a_refusal_is_one_line(run, monkeypatch, capsys):
    folder, old = run.path / "checkpoint-2", run.path / "checkpoint-2.old"
    run.set_aside(folder)
    run.set_aside(run.final)  # there is none
    assert [step for step, _ in run.checkpoints()] == [1]
    assert (old / "model.safetensors").is_file()
    folder.mkdir()
    run.set_aside(folder)  # a second resume: the newer one stays
    assert list(old.iterdir()) == []
    run.final.mkdir()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("kit.base.files.SECONDS_BEFORE_RETRY", ())
        patch.setattr("pathlib.Path.replace", refuse)
        patch.setattr("shutil.rmtree", refuse)
        run.set_aside(run.final)
        run.remove_old()
    assert capsys.readouterr().err == (
        f"{run.final}: cannot be renamed (Permission denied) and stays\n"
        f"{old}: cannot be removed (Permission denied) and stays\n"
    )
    run.remove_old()
    assert not old.exists() and run.final.is_dir()


def test_a_disk_that_knows_no_locks_ends_nothing(run, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with run.lock():
        pass
