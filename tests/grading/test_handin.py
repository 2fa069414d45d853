"""The zip that students hand in. `pytest tests/grading/test_handin.py`."""

import zipfile

import pytest

from grading import handin
from kit.base.errors import UserError


@pytest.fixture
def zipped(tmp_path, monkeypatch):
    """Hand in with these arguments from a kit with a rewards.py; the sizes in the zip."""
    monkeypatch.setattr(handin, "ROOT", tmp_path)
    (tmp_path / "rewards.py").write_text("x = 1\n")

    def run(*args: object) -> dict[str, int]:
        monkeypatch.setattr("sys.argv", ["handin", "--out", str(tmp_path / "out.zip"), *map(str, args)])
        handin.main()
        with zipfile.ZipFile(tmp_path / "out.zip") as archive:
            return {info.filename: info.file_size for info in archive.infolist()}

    return run


def finished(run, *weights: str) -> None:
    """A run folder with more in it than is needed."""
    files = ("config.json", "metrics.jsonl", "samples.jsonl", "checkpoint-3/model.safetensors")
    for name in (*files, "final/config.json", "final/adapter_config.json", "final/tokenizer.json", *weights):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"12345")


def test_what_is_there(tmp_path, zipped):
    assert zipped() == {"handin/rewards.py": 6}
    for name in ("exploits.txt", "answers.md", "report.pdf"):
        (tmp_path / name).write_text("12")
    found = zipped(tmp_path / "report.pdf", tmp_path / "answers.md")  # named, and always in it: once
    assert found == {"handin/rewards.py": 6} | dict.fromkeys(
        ("handin/exploits.txt", "handin/answers.md", "handin/report.pdf"), 2
    )


@pytest.mark.parametrize("prefix", ["", "adapter_"], ids=["all weights", "adapters"])
def test_a_run_and_no_more_of_it_than_is_measured(tmp_path, zipped, prefix):
    run = tmp_path / "outputs" / "best"
    finished(run, f"final/{prefix}model.safetensors")
    needed = (
        "config.json",
        "metrics.jsonl",
        f"final/{prefix}config.json",
        f"final/{prefix}model.safetensors",
    )
    assert zipped("--run", run) == {"handin/rewards.py": 6} | {f"handin/run/{name}": 5 for name in needed}


def test_what_cannot_be_handed_in(tmp_path, zipped):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "rewards.py").write_text("another")
    finished(tmp_path / "run")  # without weights
    for args, says in (
        ((tmp_path / "none.pdf",), r"none\.pdf: cannot be read"),
        ((tmp_path / "other" / "rewards.py",), r"two files are named rewards\.py"),
        (("--run", tmp_path / "none"), "no finished run there"),
        (("--run", tmp_path / "run"), "no finished run there"),
    ):
        with pytest.raises(UserError, match=says):
            zipped(*args)
        assert not (tmp_path / "out.zip").exists()
    (tmp_path / "out.zip").write_bytes(b"somebody else's")
    with pytest.raises(UserError, match="was not written by this command"):
        zipped()


def test_a_zip_that_is_too_large_does_not_stay_and_an_earlier_one_does(tmp_path, zipped, monkeypatch):
    zipped()
    before = (tmp_path / "out.zip").read_bytes()
    monkeypatch.setattr(handin, "MAX_MB", 0.0005)  # 500 bytes
    (tmp_path / "report.pdf").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(UserError, match=r"handin/report\.pdf alone has 0\.0 MB"):
        zipped(tmp_path / "report.pdf")
    assert (tmp_path / "out.zip").read_bytes() == before and [
        path.name for path in tmp_path.glob("*zip*")
    ] == ["out.zip"]
