"""What pays under a shaped reward, by hand. `pytest tests/grading/test_loopholes.py`."""

import random
import types

import pytest

import rewards_solution
from grading import loopholes
from grading.loopholes import BLANK, LOOPHOLES, ONE_WORD, PAN, PHRASE, PRAISE, SALAD, SHORT, TEXTS, Earning
from grading.submission import Mistake, Student
from tests.conftest import ROOT
from tests.grading.conftest import student_of


def student_with(shaped_reward) -> Student:
    module = types.ModuleType("rewards")
    module.shaped_reward = shaped_reward
    return student_of(module)


def paying(shaped_reward) -> list[str]:
    return loopholes.still_pay(loopholes.earnings(student_with(shaped_reward), random.Random(0)))


def test_the_stored_scores_are_the_bundled_models():
    from sentiment import load_scorer

    scorer = load_scorer(str(ROOT / "mini" / "sentiment"))
    measured = scorer([text.completion for text in TEXTS])
    assert [text.score for text in TEXTS] == pytest.approx(measured, abs=1e-3)


def test_the_texts_are_what_they_are_called():
    words = {kind: [text.completion.split() for text in TEXTS if text.kind == kind] for kind in LOOPHOLES}
    assert all(len(w) == 40 and len(set(w)) == 1 for w in words[ONE_WORD])
    assert all(len(w) == 3 for w in words[SHORT])
    assert all(len(set(w)) <= len(w) / 4 for w in words[PHRASE])
    assert all(w == [] for w in words[BLANK])
    assert all(len(set(w)) == len(w) > 20 for w in words[SALAD])
    assert {text.kind for text in TEXTS} == {PRAISE, PAN, *LOOPHOLES}
    assert len({text.completion for text in TEXTS}) == len(TEXTS)


def test_what_is_drawn_for_the_checks():
    """Three texts of each repeated kind, 30 to 50 words of something no longer than 7, and the other texts as ever."""
    one, other = loopholes.drawn(random.Random(1)), loopholes.drawn(random.Random(2))
    kept = [text for text in TEXTS if text.kind not in (ONE_WORD, PHRASE)]
    assert one[: len(kept)] == other[: len(kept)] == kept
    for kind, most in ((ONE_WORD, 1), (PHRASE, 7)):
        words = [text.completion.split() for text in one if text.kind == kind]
        assert len(words) == 3 and all(30 <= len(w) <= 50 and len(set(w)) <= most for w in words)
        assert [len(w) for w in words] != [len(t.completion.split()) for t in other if t.kind == kind]


def test_what_is_drawn_scores_as_the_bundled_model_says():
    from sentiment import load_scorer

    scorer = load_scorer(str(ROOT / "mini" / "sentiment"))
    said = [words.split() for kind in loopholes.OVER_AND_OVER.values() for words in kind]
    measured = scorer([" ".join((words * n)[:n]) for words in said for n in (30, 50)])
    low, high = loopholes.OVER_AND_OVER_SCORES
    assert low < min(measured) and max(measured) < high


def test_about_as_much_is_a_twentieth_of_what_divides_praise_from_a_pan():
    """Praise 1, pan 0: what earns 0.96 pays, what earns 0.94 does not."""
    earned = {
        PRAISE: Earning(0.9, 1.0),
        PAN: Earning(0.1, 0.0),
        SHORT: Earning(1.0, 0.96),
        BLANK: Earning(0.5, 0.94),
    }
    assert loopholes.still_pay(earned) == [SHORT]


def times_unique_share(score: float, text: str) -> float:
    return score * len(set(text.split())) / max(len(text.split()), 1)


def plus_length(score: float, text: str) -> float:
    return score + (len(text.split()) >= 6)


def short_and_not_blank(score: float, text: str) -> float:
    return score - 3 * (not text.strip()) - 2 * (len(text) > 90)


@pytest.mark.parametrize(
    ("reward", "kinds"),
    [
        (lambda score, text: score * score, [ONE_WORD, PHRASE, SHORT, SALAD]),
        (times_unique_share, [SHORT, SALAD]),
        (plus_length, [ONE_WORD, PHRASE, SALAD]),
        (short_and_not_blank, [SHORT]),
        (lambda score, text: rewards_solution.shaped_reward([score], [text])[0], [SALAD]),
    ],
    ids=[
        "the score alone",
        "times the share of unique words",
        "plus length",
        "shortness alone",
        "the solution",
    ],
)
def test_what_still_pays(reward, kinds):
    assert paying(lambda scores, texts, prompts: list(map(reward, scores, texts))) == kinds


def test_what_earns_the_same_in_other_units_pays_the_same():
    for scale in (1e-3, 1e3):
        assert paying(
            lambda s, t, p, scale=scale: [scale * x - 5 for x in rewards_solution.shaped_reward(s, t)]
        ) == [SALAD]


def test_praise_that_does_not_pay_is_said():
    with pytest.raises(Mistake, match=r"Honest praise earns -0\.894 at best, and an honest pan -0\.014"):
        paying(lambda scores, texts, prompts: [-s for s in scores])


def test_the_solutions_earnings_by_hand():
    """Of 1.0 * score - 0.5 * repetition + 0.2 * length: 0.998 - 0.5 * 39/40, 0.996 - 0.2, 0.5 - 0.2."""
    earned = loopholes.earnings(student_of(rewards_solution), random.Random(0))
    assert earned[ONE_WORD].reward == pytest.approx(0.998 - 0.5 * 39 / 40)
    assert earned[SHORT].reward == pytest.approx(0.996 - 0.2)
    assert earned[BLANK].reward == pytest.approx(0.5 - 0.2)
    lines = loopholes.table(earned)
    assert [line.split()[-1] for line in lines[:6]] == [
        "reward",
        "0.931",
        "-0.066",
        "0.510",
        "0.604",
        "0.796",
    ]
    assert "still pays" in lines[-1] and "still pays" not in "".join(lines[:-1])


def test_a_text_that_breaks_the_reward_costs_only_its_own_check():
    """Nothing defined for a blank text: one word and phrases can be judged all the same."""

    def shaped_reward(scores, texts, prompts):
        return [
            s * len(set(t.split())) / len(t.split()) * min(len(t.split()), 6)
            for s, t in zip(scores, texts, strict=True)
        ]

    student = student_with(shaped_reward)
    for kinds in ((ONE_WORD,), (PHRASE,), (SHORT,)):
        loopholes.closed(kinds, student, random.Random(0))
    with pytest.raises(Mistake, match="ZeroDivisionError"):
        loopholes.closed((SHORT, BLANK), student, random.Random(0))
