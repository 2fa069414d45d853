"""The variants of the hand-out. `pytest tests/grading/test_variants.py`."""

import ast
import functools
import math
import re
import types
from collections.abc import Callable

import pytest
import yaml

import rewards_solution
from grading import bug, handout
from grading.checks import run_checks
from grading.submission import FUNCTIONS
from grading.variants import PlaceMissing, apply_variant
from tests.conftest import ROOT
from tests.grading.conftest import student_of

NUMBERS = range(1, 13)


@pytest.fixture(scope="module")
def kit() -> dict[str, tuple[bytes, bool]]:
    return handout.collect(ROOT)


@pytest.fixture(scope="module")
def variant(kit) -> Callable[[int], dict[str, tuple[bytes, bool]]]:
    """The hand-out of a number, made once."""
    return functools.cache(lambda number: apply_variant(kit, number))


def text_of(files: dict[str, tuple[bytes, bool]], name: str) -> str:
    return files[name][0].decode("utf-8")


def constant(source: str, name: str) -> object:
    """The value of a top-level assignment; `frozenset("...".split())` is read as its set of words."""
    for node in ast.parse(source).body:
        target = node.target if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])[0]
        if isinstance(target, ast.Name) and target.id == name:
            text = ast.unparse(node.value)
            return eval(text, {"frozenset": frozenset})
    raise AssertionError(f"no {name}")


def test_variant_0_is_the_kit_as_it_stands(kit):
    assert apply_variant(kit, 0) == kit


@pytest.mark.parametrize("number", NUMBERS)
def test_the_same_number_gives_the_same_hand_out(kit, variant, number):
    once, again = variant(number), apply_variant(kit, number)
    assert once == again
    # what leaks in a file that is as it was would leak in the kit's own hand-out
    handout.check(
        {name: file for name, file in once.items() if name in handout.NEEDED or file != kit.get(name)}
    )
    gone = set(kit) - set(once)
    assert set(once) <= set(kit) and all("/bugs/" in name for name in gone)


@pytest.mark.parametrize("number", NUMBERS)
def test_four_bugs_are_left_and_they_apply(variant, number, tmp_path):
    files = variant(number)
    page = text_of(files, "docs/exercises.md")
    told = re.findall(r"^\*\*Bug (\d)\.\*\*", page, re.M)
    shown = re.findall(r"^!\[.*\]\(bugs/(\d)\.png\)", page, re.M)
    assert shown == told and len(told) == 4 and page.count("\n\n\n") == 0
    patches = [f"grading/bugs/{n}.patch" for n in told]
    assert sorted(name for name in files if name.startswith("grading/bugs/")) == patches
    assert f"make bug N={told[0]}\n" in page and f"`outputs/bugs/{told[0]}/`" in page
    for name in ("Makefile", "grading/bug.py"):  # the help
        examples = re.findall(r"(?:make bug N=|grading\.bug |outputs/bugs/)(\d)\b", text_of(files, name))
        assert examples and set(examples) == {told[0]}, name
    for patch in patches:
        for name in re.findall(r"^--- a/(.*)", text_of(files, patch), re.M):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(files[name][0])
        bug.apply(text_of(files, patch), tmp_path)


def test_every_bug_is_somebodys(variant):
    left = [frozenset(n for n in variant(v) if n.startswith("grading/bugs/")) for v in NUMBERS]
    assert len(set(left)) > 6 and len(frozenset.union(*left)) == 8


def test_other_numbers_give_other_ones(variant):
    variants = [variant(number) for number in (0, *NUMBERS)]
    for name in ("sentiment.py", "mini/held_out_prompts.txt", "grading/self_check.py"):
        assert len({files[name] for files in variants}) == len(variants), name
    assert len({files["rewards.py"] for files in variants}) > 3
    assert len({files["configs/reward.yaml"] for files in variants}) > 3


@pytest.mark.parametrize("number", (0, *NUMBERS))
def test_the_examples_are_right(variant, number):
    """Worked out anew from the probabilities in the text, and by the reference solution from the call."""
    source = text_of(variant(number), "rewards.py")
    calls = re.findall(r"^        (\w+\(.*\))  ->  (\[.*\])$", source, re.M)
    assert [call.split("(")[0] for call, _ in calls] == list(FUNCTIONS)
    forward, backward, shaped, preference = [(call, eval(result)) for call, result in calls]
    names = {name: getattr(rewards_solution, name) for name in FUNCTIONS}
    assert eval(forward[0], names) == pytest.approx(forward[1], abs=2e-3)
    assert eval(backward[0], names) == pytest.approx(backward[1], abs=2e-3)
    assert eval(preference[0], names) == pytest.approx(preference[1], abs=2e-3)

    words = re.search(
        r"probabilities (\S+) and (\S+), pi_ref gave them (\S+) and (\S+), kl_coef = (\S+):", source
    )
    p1, p2, r1, r2, coef = map(float, words.groups())
    assert forward[1] == pytest.approx([coef * (math.log(p1 / r1) + math.log(p2 / r2))], abs=1e-4)
    arguments = ast.literal_eval(forward[0].removeprefix("kl_penalty_forward"))
    assert arguments == ([pytest.approx(list(map(math.log, (p1, p2))), abs=1e-4)],
                         [pytest.approx(list(map(math.log, (r1, r2))), abs=1e-4)], coef)  # fmt: skip

    numbers = re.search(r"pi = \((.+), (.+)\), pi_ref = \((.+), (.+)\)\. Work out", source).groups()
    p1, p2, r1, r2 = map(eval, numbers)
    assert p1 + p2 == pytest.approx(1) and r1 + r2 == pytest.approx(1) and p1 > r1
    assert backward[1] == pytest.approx([1 - r1 / p1, 1 - r2 / p2], abs=1e-4)
    arguments = ast.literal_eval(backward[0].removeprefix("kl_penalty_backward"))
    assert arguments[0] == [[pytest.approx(math.log(p), abs=1e-4)] for p in (p1, p2)]
    assert arguments[1] == [[pytest.approx(math.log(r), abs=1e-4)] for r in (r1, r2)]

    slope, shift = map(float, re.search(r"reward (\S+) \* score - (\S+):", source).groups())
    scores = ast.literal_eval(shaped[0].removeprefix("shaped_reward"))[0]
    assert shaped[1] == pytest.approx([slope * score - shift for score in scores])


@pytest.mark.parametrize("number", NUMBERS)
def test_the_solution_gets_full_marks_and_the_numbers_follow(variant, number):
    seed = constant(text_of(variant(number), "grading/self_check.py"), "SEED")
    assert seed == f"self-check {number}"
    for function in FUNCTIONS:
        assert [m for _, m in run_checks(student_of(rewards_solution), function, seed) if m] == []


def test_another_seed_says_other_numbers(kit):
    wrong = types.ModuleType("rewards")
    wrong.kl_penalty_forward = lambda p, r, kl_coef=0.1: [0.5 * sum(a) for a in p]
    said = [
        str(next(m for _, m in run_checks(student_of(wrong), FUNCTIONS[0], seed) if m))
        for seed in ("self-check", "self-check 1", "self-check 2")
    ]
    assert len({re.search(r"averages (\S+),", message).group(1) for message in said}) == 3


@pytest.mark.parametrize("number", NUMBERS)
def test_the_prompts_are_the_same_ones_dealt_out_anew(kit, variant, number):
    files = variant(number)
    names = ("mini/train_prompts.txt", "mini/held_out_prompts.txt")
    train, held_out = (text_of(files, name).splitlines() for name in names)
    old_train, old_held_out = (text_of(kit, name).splitlines() for name in names)
    assert (len(train), len(held_out)) == (len(old_train), len(old_held_out))
    assert sorted(train + held_out) == sorted(old_train + old_held_out)
    assert len(set(held_out) & set(old_train)) > 20
    # the rule of tests/test_data.py, here for all training prompts
    for start in (opener.lower().split()[:3] for opener in held_out):
        assert not [opener for opener in train if opener.lower().split()[: len(start)] == start]
    words = constant(text_of(files, "sentiment.py"), "POSITIVE_WORDS")
    assert not words & set(
        re.findall("[a-z]+", " ".join(train + held_out).lower())
    )  # an opener carries no verdict


@pytest.mark.parametrize("number", NUMBERS)
def test_the_word_list_has_its_length_and_what_every_base_model_writes(kit, variant, number):
    words = constant(text_of(variant(number), "sentiment.py"), "POSITIVE_WORDS")
    old = constant(text_of(kit, "sentiment.py"), "POSITIVE_WORDS")
    assert len(words) == len(old) and words != old
    assert {"good", "great", "best", "love"} <= words


@pytest.mark.parametrize("number", NUMBERS)
def test_the_target_words_are_a_range(variant, number):
    low, high = yaml.safe_load(text_of(variant(number), "configs/reward.yaml"))["target_words"]
    assert 15 < low < 30 < 45 < high < 70


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("rewards.py", "->  [0.5, -0.5]", "->  [0.5, -0.50]"),
        ("sentiment.py", "POSITIVE_WORDS = frozenset(", "POSITIVE_WORDS = set("),
        ("configs/reward.yaml", "[24, 60]", "[24, 59]"),
        ("grading/self_check.py", 'SEED = "self-check"', "SEED = 0"),
    ],
)
def test_a_place_that_is_gone_is_an_error(kit, name, old, new):
    contents, executable = kit[name]
    assert old.encode() in contents
    changed = {**kit, name: (contents.replace(old.encode(), new.encode()), executable)}
    with pytest.raises(PlaceMissing, match=re.escape(name)):
        apply_variant(changed, 3)


def test_the_command_line(tmp_path, capsys):
    handout.main(["--variant", "3", "--out", str(tmp_path / "handout.zip")])
    assert "variant 3" in capsys.readouterr().out
    first = (tmp_path / "handout.zip").read_bytes()
    handout.main(["--variant", "3", "--out", str(tmp_path / "handout.zip")])
    assert (tmp_path / "handout.zip").read_bytes() == first
