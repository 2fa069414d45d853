"""What changes from one year's hand-out to the next: `make handout VARIANT=3`.

A variant is a number. It decides question 1 of exercise 1b and its example, the word list of the hackable counter, the
target words of the composite reward, the held-out prompts, the bugs to be spotted, and the instances of the self-check.
Variant 0 is the kit as it stands. Other exercises, answers and the grader are the same in all.
It is text substitution: a place that is not found as often as expected is an error.
"""

import math
import random
import re
from fnmatch import fnmatch
from fractions import Fraction

from grading.archive import Files
from kit.base.errors import UserError


class PlaceMissing(UserError):
    """The kit has changed under a variant; the message says which place is gone."""


def apply_variant(files: Files, number: int) -> Files:
    """The files of the hand-out as they are in variant `number`; raises PlaceMissing."""
    if number == 0:
        return files
    rng = random.Random(f"variant {number}")
    files = dict(files)
    for change in (example, word_list, target_words, prompts_split, bugs):
        change(files, rng)
    # Other instances, and so other numbers in what the self-check says.
    literally(files, "grading/self_check.py", 'SEED = "self-check"', f'SEED = "self-check {number}"')
    return files


def substitute(files: Files, where: str, pattern: str, new: str, times: int | None = 1) -> None:
    """Put `new` for the pattern in every file whose name matches one of the words of `where`.

    `times` is how often the pattern must be there (None: at least once).
    """
    found = 0
    for name in [name for name in files if any(fnmatch(name, glob) for glob in where.split())]:
        contents, executable = files[name]
        text, n = re.subn(pattern, new, contents.decode("utf-8"), flags=re.M)
        files[name] = (text.encode("utf-8"), executable)
        found += n
    if found != times if times is not None else found == 0:
        wanted = "at least once" if times is None else f"{times} times"
        raise PlaceMissing(f"{pattern!r} is {found} times in {where}, and a variant needs it {wanted}")


def literally(files: Files, where: str, old: str, new: str) -> None:
    substitute(files, where, re.escape(old), new.replace("\\", r"\\"))


# ---- the places --------------------------------------------------------------------------------------------

# Exercise 1b: pi and pi_ref of the first of two tokens, which pi uses too often.
ONE_B = ("1/2 1/5", "2/3 1/3", "3/4 1/2", "3/5 2/5", "4/5 3/5", "2/5 1/5")


def example(files: Files, rng: random.Random) -> None:
    """Question 1 of exercise 1b and its example in rewards.py, worked out here from the definition."""
    pi, ref = ((x, 1 - x) for x in map(Fraction, rng.choice(ONE_B).split()))
    new = f"pi = ({pi[0]}, {pi[1]}), pi_ref = ({ref[0]}, {ref[1]})"
    literally(files, "rewards.py", "pi = (1/2, 1/2), pi_ref = (1/4, 3/4)", new)
    logs = ", ".join(f"[[{math.log(first):.4f}], [{math.log(second):.4f}]]" for first, second in (pi, ref))
    new = f"({logs}, 1.0)  ->  {[round(float(1 - b / a), 4) for a, b in zip(pi, ref, strict=True)]}"
    old = "([[-0.6931], [-0.6931]], [[-1.3863], [-0.2877]], 1.0)  ->  [0.5, -0.5]"
    literally(files, "rewards.py", old, new)


# Words that a base model writes in any case, so that there is something to count from the start.
COMMON_WORDS = "best excellent fun good great love loved perfect wonderful".split()
OTHER_WORDS = (
    "amazing awesome beautiful brilliant charming clever compelling delightful engaging enjoyable entertaining "
    "exciting fantastic fascinating favorite funny gem genius gorgeous happy hilarious impressive incredible lovely "
    "magnificent masterpiece memorable outstanding powerful recommend refreshing remarkable satisfying sensational "
    "splendid stunning superb terrific thrilling touching unforgettable witty"
).split()
NUMBER_OF_WORDS = 26


def word_list(files: Files, rng: random.Random) -> None:
    words = sorted([*COMMON_WORDS, *rng.sample(OTHER_WORDS, NUMBER_OF_WORDS - len(COMMON_WORDS))])
    lines = [" ".join(words[i : i + 9]) for i in range(0, NUMBER_OF_WORDS, 9)]
    body = '    "' + ' "\n    "'.join(lines) + '"'
    pattern = r'(^POSITIVE_WORDS = frozenset\(\n)(?:    "[a-z ]+"\n)*    "[a-z ]+"(\.split\(\)\n\)\n)'
    substitute(files, "sentiment.py", pattern, rf"\g<1>{body}\g<2>")


def target_words(files: Files, rng: random.Random) -> None:
    low, high = rng.choice((18, 20, 22, 26)), rng.choice((50, 54, 58, 64))
    literally(files, "configs/reward.yaml", "target_words: [24, 60]", f"target_words: [{low}, {high}]")


def prompts_split(files: Files, rng: random.Random) -> None:
    """The same openers, dealt out anew into as many for training and as many held out, the shortest first.

    As in the kit, no other opener begins with the first three words of a held-out one.
    """
    names = ("mini/train_prompts.txt", "mini/held_out_prompts.txt")
    lists = [files[name][0].decode("utf-8").splitlines() for name in names]
    openers = [opener for half in lists for opener in half]
    rng.shuffle(openers)
    words = {opener: opener.lower().split() for opener in openers}

    def alone(start: list[str]) -> bool:
        return sum(other[: len(start)] == start for other in words.values()) == 1

    held_out = [opener for opener in openers if alone(words[opener][:3])][: len(lists[1])]
    train = [opener for opener in openers if opener not in held_out]
    for name, dealt in zip(names, (train, held_out), strict=True):
        dealt.sort(key=lambda opener: (len(opener.split()), opener))
        files[name] = (("\n".join(dealt) + "\n").encode("utf-8"), files[name][1])


NUMBER_OF_BUGS = 4


def bugs(files: Files, rng: random.Random) -> None:
    """Keep some bugs under their numbers; the patches, figures and words of the others are left out."""
    numbers = sorted(int(n) for n in re.findall(r"^grading/bugs/(\d+)\.patch$", "\n".join(files), re.M))
    kept = sorted(rng.sample(numbers, NUMBER_OF_BUGS))
    for number in set(numbers) - set(kept):
        substitute(files, "docs/exercises.md", rf"^\*\*Bug {number}\.\*\*(?s:.*?)(?=^\*\*Bug|\Z)", "")
        del files[f"grading/bugs/{number}.patch"]
        del files[f"docs/bugs/{number}.png"]
    example = r"(make bug N=|grading\.bug |with bug |outputs/bugs/)3\b"
    substitute(files, "*.md Makefile grading/bug.py", example, rf"\g<1>{kept[0]}", times=None)
