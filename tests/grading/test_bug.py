"""Spot the bug: every patch applies, and each is caught by the test named here. `pytest tests/grading/test_bug.py`."""

import re

import pytest

from grading import bug
from kit.base.errors import UserError
from tests.conftest import ROOT

# The test that goes red with each bug; docs/answers.md names the same
RED = {
    1: "tests/test_reward_utils.py::test_score_then_negate_then_shape_then_minus_penalty",
    2: "tests/test_reward_utils.py::test_dropout_is_off_and_the_mode_is_put_back",
    3: "tests/test_reward_utils.py::test_the_penalty_gets_the_sampled_tokens_at_the_sampling_temperature",
    4: "tests/test_reward_utils.py::test_the_penalty_gets_the_sampled_tokens_at_the_sampling_temperature",
    5: "tests/test_ppo.py::test_kl_as_a_reward_has_the_gradient_of_the_kl",
    6: "tests/test_ppo.py::test_kl_as_a_reward_has_the_gradient_of_the_kl",
    7: "tests/test_sft.py::test_sorted_imdb_gives_the_wanted_reviews_shuffled",
    8: "tests/test_reward_utils.py::test_the_score_sees_the_completion_alone",
}


@pytest.mark.whole_kit
def test_each_bug_is_caught_by_its_test(tmp_path, run_script):
    assert sorted(RED) == sorted(int(path.stem) for path in bug.PATCHES.glob("*.patch"))
    before = {path: path.read_bytes() for path in ROOT.glob("*.py")}
    for number in RED:
        bug.main([str(number), "--out", str(tmp_path)])
    assert before == {path: path.read_bytes() for path in ROOT.glob("*.py")}  # the kit itself is as it was
    for number, test in RED.items():
        done = run_script("-m", "pytest", "-p", "no:xdist", test, cwd=tmp_path / str(number))
        report = f"bug {number}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert done.returncode == 1 and re.search(r"^\d failed", done.stdout, re.M), report
        assert "AssertionError" in done.stdout or "assert " in done.stdout, (
            f"red for another reason: {report}"
        )
        assert test.partition("::")[2] in done.stdout


@pytest.mark.whole_kit
def test_the_answers_name_these_tests():
    answers = (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")
    page = answers.split("## Spot the bug")[1].split("\n## ")[0]
    for number, test in RED.items():
        (row,) = re.findall(rf"^\| {number} \|.*", page, re.M)
        assert f"`{test.partition('::')[2]}`" in row


def test_a_patch_that_no_longer_fits_changes_nothing(tmp_path):
    (tmp_path / "a.py").write_text("one\ntwo\n")
    (tmp_path / "b.py").write_text("one\none\n")
    good = "--- a/a.py\n+++ b/a.py\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"
    for bad in ("-four\n+five\n", "-one\n+two\n"):  # not there; there twice
        with pytest.raises(bug.DoesNotApply, match=r"b\.py no longer has these lines, or has them twice"):
            bug.apply(good + "--- a/b.py\n+++ b/b.py\n@@ -1 +1 @@\n" + bad, tmp_path)
    with pytest.raises(bug.DoesNotApply, match="no change"):
        bug.apply("", tmp_path)
    assert (tmp_path / "a.py").read_text() == "one\ntwo\n"
    bug.apply(good, tmp_path)
    assert (tmp_path / "a.py").read_text() == "one\nthree\n"


def test_an_environment_is_not_copied_whatever_its_name(tmp_path, monkeypatch):
    root = tmp_path / "kit"
    (root / "env" / "lib").mkdir(parents=True)
    (root / "env" / "pyvenv.cfg").write_text("")
    (root / "outputs").mkdir()
    (root / "a.py").write_text("one\n")
    (root / "1.patch").write_text("--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-one\n+two\n")
    monkeypatch.setattr(bug, "ROOT", root)
    monkeypatch.setattr(bug, "PATCHES", root)
    (root / "dangling").symlink_to(root / "nowhere")
    bug.main(["1", "--out", str(tmp_path)])
    assert {path.name for path in (tmp_path / "1").iterdir()} == {"a.py", "1.patch"}
    assert (tmp_path / "1" / "a.py").read_text() == "two\n"


def test_a_copy_inside_the_kit_would_be_copied_into_the_next_one():
    with pytest.raises(UserError, match="would be copied itself"):
        bug.main(["1", "--out", str(bug.ROOT / "bugs")])
    assert not (bug.ROOT / "bugs").exists()


def test_a_copy_is_never_written_over(tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(UserError, match="is there already"):
        bug.main(["1", "--out", str(tmp_path)])
    assert not any((tmp_path / "1").iterdir())
