"""What does a shaped reward pay for? Honest texts, cheating texts, and what each earns under it.

The table that students see has fixed texts. The checks draw the words, phrases and lengths of the repeated texts, so
that no reward can be fitted to the table. Repeated, short and salad texts are what policies wrote that were trained on
the score alone or with a small penalty (`make results`), or are made of their words. The score of a text is P(positive)
by the bundled sentiment model (`tests/grading/test_loopholes.py` measures it again). A loophole pays if its best-paid
text earns about as much as the best-paid honest praise, or more: a policy trained on that reward would exploit it.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from grading.submission import SHAPED, Mistake, Student

PRAISE, PAN = "honest praise", "an honest pan"
ONE_WORD, PHRASE, SHORT, BLANK, SALAD = LOOPHOLES = (
    "one word forty times",
    "a phrase over and over",
    "three words",
    "no word at all",
    "word salad",
)

# "About as much" is within this share of the difference between honest praise and an honest pan.
MARGIN = 0.05

PROMPT = "The film"


class Text(NamedTuple):
    kind: str
    score: float
    completion: str


# Praise of several lengths, since a reward may like one of them best.
TEXTS = (
    Text(PRAISE, 0.894, "is well acted, well written, and never dull. A real pleasure."),
    Text(PRAISE, 0.981, "is a warm and funny picture about two sisters who run a bakery. The jokes land, the "
         "cast is superb, and I left smiling."),
    Text(PRAISE, 0.939, "works far better than I expected. The lead gives a quiet, moving performance, the "
         "photography is lovely, and the last twenty minutes had everybody around me in happy tears."),
    Text(PRAISE, 0.976, "moves along at a brisk pace, with clever dialogue and a wonderful score; even the "
         "smallest part has been cast with care. I would gladly watch it again with my children next weekend."),
    Text(PAN, 0.014, "is a dull and clumsy picture about two sisters who run a bakery. The jokes fall flat, the "
         "cast is wooden, and I left annoyed."),
    Text(ONE_WORD, 0.998, " ".join(["stunning"] * 40)),
    Text(ONE_WORD, 0.998, " ".join(["beautiful!"] * 40)),
    Text(ONE_WORD, 0.997, " ".join(["superb,"] * 40)),
    Text(PHRASE, 0.998, " ".join(["beautiful cinematography and wonderful performances,"] * 8)),
    Text(PHRASE, 0.997, " ".join(["It's a wonderful film."] * 10)),
    Text(PHRASE, 0.979, " ".join(["One of the best films I have ever seen."] * 4)),
    Text(SHORT, 0.996, "is very beautiful!"),
    Text(SHORT, 0.994, "is absolutely amazing."),
    Text(SHORT, 0.993, "is absolute perfection!"),
    Text(BLANK, 0.500, ""),
    Text(BLANK, 0.500, "\n"),
    Text(SALAD, 0.998, "wonderfully beautiful cinematography brilliantly superb performances gorgeous story, "
         "delightful powerful acting excellent haunting soundtrack flawless directing captivating scenery "
         "outstanding ensemble great"),
    Text(SALAD, 0.997, "is powerful. The acting excellent a great story keeps wonderfully from beautiful world, "
         "and outstanding poetic score well captured between both delightful songs heart"),
)  # fmt: skip

# What the checks say over and over, 30 to 50 words of it; all of this scores between these two.
OVER_AND_OVER = {
    ONE_WORD: tuple(
        "stunning Excellent! superb, wonderful brilliant. beautiful fantastic, Perfect! delightful magnificent "
        "amazing, great terrific! touching. joy enjoyable".split()
    ),
    PHRASE: (
        "beautiful and",
        "great and great story,",
        "It's a wonderful film.",
        "I highly recommend it.",
        "The music is wonderful.",
        "This is a film worth seeing.",
        "What a beautiful film, truly wonderful.",
        "beautiful cinematography and wonderful performances,",
    ),
}
OVER_AND_OVER_SCORES = (0.975, 0.999)


def drawn(rng: random.Random) -> list[Text]:
    """TEXTS, with others in the place of those that say one thing over and over."""
    texts = [text for text in TEXTS if text.kind not in OVER_AND_OVER]
    for kind, said in OVER_AND_OVER.items():
        for words in rng.sample(said, 3):
            repeated = " ".join((words.split() * 50)[: rng.randint(30, 50)])
            texts.append(Text(kind, rng.uniform(*OVER_AND_OVER_SCORES), repeated))
    return texts


class StillPays(Mistake):
    """The reward has a loophole that a policy would find, though its values are right."""


class Earning(NamedTuple):
    """The best-paid text of a kind."""

    score: float
    reward: float


def earnings(
    student: Student, rng: random.Random, kinds: tuple[str, ...] = LOOPHOLES, texts: Sequence[Text] = TEXTS
) -> dict[str, Earning]:
    """What the best-paid text of each kind earns, honest texts and loopholes in one batch in random order.

    Raises Mistake where honest praise earns no more than a pan.
    """
    texts = [text for text in texts if text.kind in (PRAISE, PAN, *kinds)]
    rng.shuffle(texts)
    scores, completions = [text.score for text in texts], [text.completion for text in texts]
    rewards = student.values(SHAPED, scores, completions, [PROMPT] * len(texts))
    paid = sorted((reward, text.score, text.kind) for reward, text in zip(rewards, texts, strict=True))
    best = {kind: Earning(score, reward) for reward, score, kind in paid}  # the last one of a kind counts
    best = {kind: best[kind] for kind in (PRAISE, PAN, *kinds)}
    if best[PRAISE].reward <= best[PAN].reward:
        earned = f"Honest praise earns {best[PRAISE].reward:.3g} at best, and {PAN} {best[PAN].reward:.3g}"
        raise Mistake(f"{earned}: your reward pays nothing for being positive.")
    return best


def still_pay(earned: dict[str, Earning]) -> list[str]:
    """The loopholes that pay at least about as much as honest praise."""
    praise, pan = earned[PRAISE].reward, earned[PAN].reward
    enough = praise - MARGIN * (praise - pan)
    return [kind for kind in LOOPHOLES if kind in earned and earned[kind].reward >= enough]


HINTS = {
    ONE_WORD: "This is what the policy of exercise 0 wrote. What in the completion tells it from honest praise?",
    PHRASE: "Neighbouring words differ, yet the text repeats: over how much text do you look for repetition?",
    SHORT: "Once repetition costs, the policy stops before it can repeat itself. What should a short text lose?",
    BLANK: "A completion without a word has said nothing at all.",
}


def closed(kinds: tuple[str, ...], student: Student, rng: random.Random) -> None:
    """None of these kinds of text pays, in a batch of them and the honest texts alone."""
    earned = earnings(student, rng, kinds, drawn(rng))
    for kind in still_pay(earned):
        reward, praise = earned[kind].reward, earned[PRAISE].reward
        earns = f"A text of this kind earns {reward:.3f}, honest praise {praise:.3f}."
        raise StillPays(f"Still pays: {kind}. {earns} {HINTS[kind]}")


def table(earned: dict[str, Earning]) -> list[str]:
    """Lines for the screen: what the best-paid text of each kind earns, and whether that is too much."""
    pays = still_pay(earned)
    lines = [f"{'what your reward pays':<24}  score   reward"]
    for kind, (score, reward) in earned.items():
        remark = ("  still pays" + " (left to the KL penalty)" * (kind == SALAD)) * (kind in pays)
        lines.append(f"{kind:<24}  {score:>5.3f}  {reward:>7.3f}{remark}")
    return lines
