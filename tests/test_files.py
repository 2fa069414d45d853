"""kit/base/files.py: what everyday machines do to files."""

import os
import stat
from pathlib import Path

import pytest

from kit.base import files
from kit.base.errors import UserError
from kit.base.files import lines, output_folder, read_text, refuse_foreign, user_path, write_text

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def test_a_tilde_is_the_home_folder_and_nothing_else_is_changed(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("USERPROFILE", "/home/ada")
    cases = {"~/x": "/home/ada/x", "~": "/home/ada", "a/~/b": "a/~/b", "x~": "x~", "$HOME/x": "$HOME/x"}
    cases |= {"mini": "mini", "a b/c%20": "a b/c%20", "": ""}
    assert {text: user_path(text) for text in cases} == cases


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\nb\n", "a\nb\n"),
        (b"\xef\xbb\xbfa\r\nb", "a\nb"),  # as Notepad saves it
        ("ä\u2028\x0c\x85".encode(), "ä\u2028\x0c\x85"),
        (b"a\rb", "a\rb"),  # a carriage return alone ends no line
        (b"", ""),
    ],
)
def test_text_is_read_whatever_the_editor_adds(tmp_path, data, text):
    (tmp_path / "x").write_bytes(data)
    assert read_text(tmp_path / "x", "--prompts") == text


def test_lines_end_at_newlines_only():
    assert lines("a\u2028b\x0cc\x85d\x1ee\n f \n") == ["a\u2028b\x0cc\x85d\x1ee", " f "]
    assert [lines(text) for text in ("", "\n", "a", "a\n\n")] == [[], [""], ["a"], ["a", ""]]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (None, "cannot be read (No such file"),
        (b"caf\xe9", "is not UTF-8 text; save it as UTF-8"),  # Latin-1
        ("a".encode("utf-16"), "is not UTF-8"),
        ("a\nb".encode("utf-16-le"), "line 1 has a NUL byte"),
        (POINTER.encode(), "Git LFS pointer, not the file itself; run git lfs pull"),
    ],
)
def test_what_is_no_text_is_told_in_one_sentence(tmp_path, data, complaint):
    path = tmp_path / "x"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_text(path, "--prompts")
    assert str(error.value).startswith(f"--prompts {path}: ")
    assert complaint in str(error.value)
    with pytest.raises(UserError, match=r"^--x .*cannot be read \(Is a directory\)"):
        read_text(tmp_path, "--x")


def test_a_file_is_written_whole_through_links_with_its_permissions(tmp_path):
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(file)
    write_text(link, "new \udcff")  # what is no UTF-8
    file.chmod(0o600)
    write_text(str(link), "ä\nb")
    assert link.is_symlink()
    assert file.read_bytes() == "ä\nb".encode()
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


def test_a_rename_refused_twice_and_a_folder_that_cannot_be_synced_end_nothing(tmp_path, monkeypatch):
    refused, rename, fsync = [], Path.replace, os.fsync

    def replace(path, target):
        if len(refused) < 2:
            refused.append(path)
            raise PermissionError(13, "a virus scanner reads it")
        return rename(path, target)

    def sync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(fd)

    monkeypatch.setattr(files, "SECONDS_BEFORE_RETRY", (0, 0))
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(os, "fsync", sync)
    write_text(tmp_path / "x", "text")
    assert (tmp_path / "x").read_text() == "text"
    refused.clear()
    monkeypatch.setattr(files, "SECONDS_BEFORE_RETRY", (0,))  # now the second refusal is the last try's
    with pytest.raises(PermissionError):
        write_text(tmp_path / "x", "other")
    assert (tmp_path / "x").read_text() == "text"


def test_only_a_command_s_own_file_is_written_over(tmp_path):
    path = tmp_path / "comparison.json"
    refuse_foreign(path, '"schema"', "--out")  # none yet
    for text in ("", '{\n "schema": 1'):
        path.write_text(text)
        refuse_foreign(path, '"schema"', "--out")
    for text in ("mine", " " * 5000 + '"schema"'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"^--out .*comparison\.json: this file was not written by"):
            refuse_foreign(path, '"schema"', "--out")
    with pytest.raises(UserError, match="Is a directory"):
        refuse_foreign(tmp_path, '"schema"', "--out")


def test_results_never_go_into_a_run_or_a_model_or_over_a_file_of_somebody_else(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert output_folder("~/new/results", {"a.json": "ours"}) == tmp_path / "new" / "results"
    assert (tmp_path / "new" / "results").is_dir()
    (tmp_path / "new" / "a.json").write_text("theirs")
    with pytest.raises(UserError, match=r"a\.json: this file was not written by"):
        output_folder(str(tmp_path / "new"), {"a.json": "ours"})
    for marker in ("config.json", "adapter_config.json"):
        folder = tmp_path / marker[0]
        folder.mkdir()
        (folder / marker).write_text("{}")
        with pytest.raises(UserError, match=r"^--out .*: that is the folder of a run or a model"):
            output_folder(str(folder), {})
    with pytest.raises(UserError, match=r"^--out .*: cannot write there \("):
        output_folder(str(tmp_path / "new" / "a.json" / "x"), {})
