"""What is checked, exactly: the one set of checks behind `python rewards.py`, the tests and the grader.

No Monte Carlo. Policy and reference are small tables of next-token probabilities, every completion they can write
is enumerated, and the student's penalty is called on the whole list at once. Then two things follow as sums:

    the expectation      E[f]               = sum_x pi(x) f(x)
    the policy gradient  E[f grad log pi]   = sum_x pi(x) f(x) grad log pi(x)

and are compared with a KL divergence and with its gradient. A penalty inside a reward is a constant to the
optimiser, so it is the second line that says what it teaches: Tang & Munos 2025 (arXiv 2506.09477), Shah et al.
2025 (arXiv 2512.21852).

A check asks a `Student` for values and raises `Mistake` with a hint. Where the student's code runs, in this process
or behind a pipe, is the `Student`'s business alone. Standard library only.
"""

import itertools
import math
import random
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from grading import student as student_code
from grading.mistakes import BACKWARD, FORWARD, PROBE, WRONG_TERMS

SHAPED = "shaped_reward"

# Arithmetic in float32 inside a submission is right: log-probs near -5 then carry errors of 3e-7.
TOLERANCE = 1e-5


class Mistake(Exception):
    """A check that was not passed; the message is the hint a student reads."""


class Unfilled(Mistake):
    """The stub is still there."""


class Broken(Mistake):
    """The student's code gave no answer at all: it raised, hung or died."""


# --- asking the student ----------------------------------------------------------------------------------------


@dataclass
class Student:
    """The functions under test; `ask(name, args, kwargs)` returns a reply as in `grading.student.call`."""

    ask: Callable[[str, list, dict], dict]

    def reply(self, name: str, *args: list, **kwargs: float) -> dict:
        reply = self.ask(name, list(args), kwargs)
        if reply.get("unfilled"):
            raise Unfilled("not implemented yet")
        if "error" in reply:
            raise Broken(str(reply["error"]))
        return reply

    def values(self, name: str, *args: list, **kwargs: float) -> list[float]:
        """One finite number for each row of the first argument, or a `Mistake` that says what came instead."""
        reply, rows = self.reply(name, *args, **kwargs), len(args[0])
        kind, values = reply.get("kind"), reply.get("values")
        if not isinstance(values, list):
            raise Mistake(f"It returned {describe_kind(kind)}; expected is a list of {rows} floats.")
        if len(values) != rows:
            raise Mistake(
                f"It returned {len(values)} values for {rows} completions: one float for each, please."
            )
        for row, value in enumerate(values):
            if type(value) not in (int, float):
                raise Mistake(
                    f"Value {row} of the returned list is {value}, not a plain number: return Python floats "
                    "(.item() or .tolist() turn arrays and tensors into them)."
                )
            if not -1.7e308 < value < 1.7e308:  # nor NaN, nor an integer no float can hold
                raise Mistake(f"Value {row} of the returned list is {value:.5g}: every value must be finite.")
        return [float(value) for value in values]


def describe_kind(kind: object) -> str:
    if kind == "NoneType":
        return "None (is a return statement missing?)"
    return f"a {kind}, not a list"


def values_of(
    student: Student, name: str, pairs: list[list[tuple[float, float]]], coef: float
) -> list[float]:
    """A KL penalty on completions given as rows of (log pi, log pi_ref) for each token."""
    policy = [[a for a, _ in row] for row in pairs]
    ref = [[b for _, b in row] for row in pairs]
    return student.values(name, policy, ref, kl_coef=coef)


def close(a: float, b: float) -> bool:
    """Equal up to float32 rounding; an overflow to inf equals nothing."""
    return math.isfinite(a - b) and abs(a - b) <= TOLERANCE * max(1.0, abs(a), abs(b))


def all_close(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b, strict=True))


# --- two models small enough to know everything about ---------------------------------------------------------

Prefix = tuple[int, ...]
Model = dict[Prefix, list[float]]  # logits of the next token after each prefix


@dataclass
class Tree:
    """A policy, a reference, and every completion they can write."""

    policy: Model
    ref: Model
    completions: list[Prefix]

    def rows(self, model: Model) -> list[list[float]]:
        """log p(x_t | x_<t) for each completion (rows) and token, the end-of-text token included."""
        table = {prefix: log_softmax(logits) for prefix, logits in model.items()}
        return [[table[x[:t]][x[t]] for t in range(len(x))] for x in self.completions]

    def values(self, student: Student, name: str, coef: float = 1.0) -> list[float]:
        return student.values(name, self.rows(self.policy), self.rows(self.ref), kl_coef=coef)


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = top + math.log(sum(math.exp(logit - top) for logit in logits))
    return [logit - total for logit in logits]


def enumerate_completions(vocab: int, length: int, eos: bool) -> list[Prefix]:
    """All sequences of `length` tokens; with `eos`, token 0 ends a completion early."""
    completions = set()
    for x in itertools.product(range(vocab), repeat=length):
        completions.add(x[: x.index(0) + 1] if eos and 0 in x else x)
    return sorted(completions)


def make_tree(rng: random.Random, vocab: int, length: int, eos: bool, nats: float) -> Tree:
    """Random models with KL(pi_ref || pi) = `nats`, and no completion more than 8 times likelier under pi_ref.

    The second condition leaves room for a cap on importance weights, which a submission may have from 10 on.
    """
    completions = enumerate_completions(vocab, length, eos)
    prefixes = sorted({x[:t] for x in completions for t in range(len(x))})
    while True:
        ref = {s: [rng.gauss(0.0, 0.7) for _ in range(vocab)] for s in prefixes}
        change = {s: [rng.gauss(0.0, 1.0) for _ in range(vocab)] for s in prefixes}
        tree = Tree(ref, ref, completions)
        low, high = 0.0, 4.0
        for _ in range(40):
            size = (low + high) / 2
            tree.policy = {
                s: [a + size * b for a, b in zip(ref[s], change[s], strict=True)] for s in prefixes
            }
            low, high = (size, high) if kl(tree, tree.ref, tree.policy) < nats else (low, size)
        log_weights = [
            sum(ref_row) - sum(policy_row)
            for ref_row, policy_row in zip(tree.rows(tree.ref), tree.rows(tree.policy), strict=True)
        ]
        if max(log_weights) < math.log(8) and abs(kl(tree, tree.ref, tree.policy) - nats) < 1e-3 * nats:
            return tree


def kl(tree: Tree, p: Model, q: Model) -> float:
    """KL(p || q) in nats over whole completions, from its definition."""
    totals = zip(map(sum, tree.rows(p)), map(sum, tree.rows(q)), strict=True)
    return sum(math.exp(log_p) * (log_p - log_q) for log_p, log_q in totals)


def gradient(divergence: Callable[[Model], float], policy: Model, step: float = 1e-5) -> list[float]:
    """Gradient in the policy's logits by central differences: exact to 1e-9, and assumes nothing but the KL."""
    result = []
    for prefix, logits in policy.items():
        for token in range(len(logits)):
            ends = []
            for sign in (1, -1):
                moved = list(logits)
                moved[token] += sign * step
                ends.append(divergence({**policy, prefix: moved}))
            result.append((ends[0] - ends[1]) / (2 * step))
    return result


def policy_gradient(tree: Tree, values: list[float]) -> list[float]:
    """E[f grad log pi] in the policy's logits, with f a constant: d log pi(x) / d logit(s, a) = 1[a] - pi(a | s)."""
    probs = {s: [math.exp(lp) for lp in log_softmax(logits)] for s, logits in tree.policy.items()}
    result = {s: [0.0] * len(logits) for s, logits in tree.policy.items()}
    for x, row, value in zip(tree.completions, tree.rows(tree.policy), values, strict=True):
        weight = math.exp(sum(row)) * value
        for t, token in enumerate(x):
            at_prefix = result[x[:t]]
            for a, prob in enumerate(probs[x[:t]]):
                at_prefix[a] += weight * ((a == token) - prob)
    return [g for gradients in result.values() for g in gradients]


def norm(g: list[float]) -> float:
    return math.sqrt(sum(x * x for x in g))


def cosine(g: list[float], h: list[float]) -> float:
    lengths = norm(g) * norm(h)
    return sum(x * y for x, y in zip(g, h, strict=True)) / lengths if lengths else 0.0


# --- the KL penalties -------------------------------------------------------------------------------------------


def varied(values: list[float]) -> list[float]:
    """The values, unless they are all the same: zeros and constants have properties, but earn nothing for them."""
    if max(values) - min(values) <= TOLERANCE * max(map(abs, values), default=0.0) + 1e-12:
        raise Mistake("Every completion gets the same penalty, whatever the two models say about it.")
    return values


def forward_value(student: Student, rng: random.Random) -> None:
    for eos in (False, True):
        tree = make_tree(rng, vocab=3, length=3, eos=eos, nats=0.3)
        right = kl(tree, tree.policy, tree.ref)
        values = varied(tree.values(student, FORWARD))
        mean = sum(math.exp(sum(row)) * v for row, v in zip(tree.rows(tree.policy), values, strict=True))
        if not close(mean, right):
            raise Mistake(
                f"Over all completions of a small policy (weighted by its probabilities, kl_coef = 1) your penalty "
                f"averages {mean:.4f}, but KL(pi || pi_ref) is {right:.4f} nats."
            )


def forward_gradient(student: Student, rng: random.Random) -> None:
    for vocab, length, eos in ((4, 2, False), (3, 4, True)):
        tree = make_tree(rng, vocab, length, eos, nats=0.4)
        right = gradient(lambda policy, tree=tree: kl(tree, policy, tree.ref), tree.policy)
        ours = policy_gradient(tree, varied(tree.values(student, FORWARD)))
        compare(ours, right, "KL(pi || pi_ref)", exactly=True)


def backward_gradient_token(student: Student, rng: random.Random) -> None:
    """One token, models far apart: nothing is approximate here, and the two KLs clearly differ."""
    done = 0
    while done < 2:
        tree = make_tree(rng, vocab=4, length=1, eos=False, nats=0.5)
        right = gradient(lambda policy, tree=tree: kl(tree, tree.ref, policy), tree.policy)
        other = gradient(lambda policy, tree=tree: kl(tree, policy, tree.ref), tree.policy)
        if cosine(right, other) > 0.95:
            continue
        done += 1
        ours = policy_gradient(tree, varied(tree.values(student, BACKWARD)))
        compare(ours, right, "KL(pi_ref || pi)", exactly=True)


def backward_gradient_tree(student: Student, rng: random.Random) -> None:
    """Several tokens: token-level weights are an approximation, good for models as close as these (0.1 nats)."""
    for vocab, length, eos in ((3, 3, False), (3, 4, True)):
        tree = make_tree(rng, vocab, length, eos, nats=0.1)
        right = gradient(lambda policy, tree=tree: kl(tree, tree.ref, policy), tree.policy)
        ours = policy_gradient(tree, varied(tree.values(student, BACKWARD)))
        compare(ours, right, "KL(pi_ref || pi)", exactly=False)


def compare(ours: list[float], right: list[float], name: str, exactly: bool) -> None:
    """Direction first, then length: exactly, or with a cosine of 0.95 and a length within a quarter."""
    cos, ratio = cosine(ours, right), norm(ours) / norm(right)
    if cos < -0.5:
        raise Mistake(
            f"Your penalty pushes the policy away from the reference: its policy gradient and the gradient of {name} "
            f"point in opposite directions (cosine {cos:.2f})."
        )
    off = norm([a - b for a, b in zip(ours, right, strict=True)]) / norm(right)
    if off < 3 * TOLERANCE or (not exactly and cos >= 0.95 and 0.75 < ratio < 4 / 3):
        return
    if cos < (1 - 1e-8 if exactly else 0.95):
        raise Mistake(
            f"The policy gradient of your penalty, E[f grad log pi], is not the gradient of {name} "
            f"(cosine {cos:.3f} where {'1.000' if exactly else 'at least 0.95'} is expected)."
        )
    raise Mistake(
        f"The policy gradient of your penalty has the direction of the gradient of {name}, but is {ratio:.3g} "
        "times as long: which factor is missing, or one too many?"
    )


def backward_descent(student: Student, rng: random.Random) -> None:
    """What the exercise is about: follow the penalty alone, and the policy must come home."""
    tree = make_tree(rng, vocab=3, length=2, eos=False, nats=0.15)
    start = kl(tree, tree.ref, tree.policy)
    for _ in range(60):
        g = iter(policy_gradient(tree, tree.values(student, BACKWARD)))
        tree.policy = {s: [logit - 3 * next(g) for logit in logits] for s, logits in tree.policy.items()}
        if not all(abs(logit) < 100 for logits in tree.policy.values() for logit in logits):
            break  # far away and running
    end = kl(tree, tree.ref, tree.policy)
    if not end < 0.1 * start:
        raise Mistake(
            f"60 exact gradient steps on your penalty alone took KL(pi_ref || pi) from {start:.3f} to {end:.3f} nats; "
            "it must fall close to 0."
        )


def linear(name: str, student: Student, rng: random.Random) -> None:
    tree = make_tree(rng, vocab=3, length=2, eos=True, nats=0.3)
    once = varied(tree.values(student, name, 1.0))
    for coef in (0.3, 0.6, 3.0):
        values = tree.values(student, name, coef)
        if not all_close(values, [coef * v for v in once]):
            raise Mistake(coefficient_hint(once, values, coef))
    if any(abs(v) > TOLERANCE for v in tree.values(student, name, 0.0)):
        raise Mistake("With kl_coef = 0 there must be no penalty, but yours is not 0.")


def coefficient_hint(once: list[float], values: list[float], coef: float) -> str:
    readings = {
        "The value does not change with kl_coef: multiply by it.": once,
        "Your penalty grows with the square of kl_coef: you multiply by it twice.": [
            coef**2 * v for v in once
        ],
        "Your penalty shrinks as kl_coef grows: you divide by it.": [v / coef for v in once],
        "kl_coef is added to your penalty; it is a factor.": [v + coef - 1 for v in once],
    }
    for hint, reading in readings.items():
        if all_close(values, reading):
            return hint
    return f"With kl_coef = {coef} your penalty is not {coef} times that with kl_coef = 1."


def zero_when_equal(name: str, student: Student, rng: random.Random) -> None:
    tree = make_tree(rng, vocab=3, length=2, eos=True, nats=0.3)
    varied(tree.values(student, name))
    rows = tree.rows(tree.policy)
    values = student.values(name, rows, rows, kl_coef=1.0)
    if any(abs(v) > TOLERANCE for v in values):
        example = max(values, key=abs)
        raise Mistake(
            "Where both models give the same probabilities the penalty must be 0; "
            f"a completion of yours pays {example:.4g}."
        )


def rows_alone(name: str, student: Student, rng: random.Random) -> None:
    """Each completion's penalty is its own: no averaging over the batch, no dependence on order or company."""
    tree = make_tree(rng, vocab=3, length=3, eos=True, nats=0.3)
    policy, ref = tree.rows(tree.policy), tree.rows(tree.ref)
    together = student.values(name, policy, ref, kl_coef=1.0)
    some = policy[::3], ref[::3]
    alone = [student.values(name, [p], [r], kl_coef=1.0)[0] for p, r in zip(*some, strict=True)]
    in_company = student.values(name, *some, kl_coef=1.0)
    varied([*in_company, *alone])
    if not all_close(in_company, alone):
        raise Mistake(batch_hint(in_company, alone))
    order = list(range(len(policy)))
    rng.shuffle(order)
    shuffled = student.values(name, [policy[i] for i in order], [ref[i] for i in order], kl_coef=1.0)
    if not all_close(shuffled, [together[i] for i in order]):
        raise Mistake("With the completions in another order they get other penalties.")


def batch_hint(together: list[float], alone: list[float]) -> str:
    n = len(alone)
    mean = sum(alone) / n
    readings = {
        "You average over the batch: every completion gets the same value. Return one penalty for each.": [
            mean
        ]
        * n,
        "You add up the whole batch: every completion gets the total. Return one penalty for each.": [
            n * mean
        ]
        * n,
        "You divide by the number of completions in the batch; each one's penalty is its own.": [
            v / n for v in alone
        ],
        "You subtract the mean of the batch; each completion's penalty is its own.": [
            v - mean for v in alone
        ],
    }
    for hint, reading in readings.items():
        if all_close(together, reading):
            return hint
    if max(together) - min(together) < TOLERANCE:
        return "All completions of a batch get the same value: return one penalty for each."
    return "A completion's penalty changes with the others in its batch; each one's penalty is its own."


def edges(name: str, student: Student, rng: random.Random) -> None:
    """Empty batch, empty rows, ragged rows, integers, no mutation, a plain list."""
    policy = [[], [math.log(0.5)], [math.log(0.5), math.log(0.25), math.log(0.75), math.log(0.5)], []]
    ref = [[], [math.log(0.25)], [math.log(0.25), math.log(0.5), math.log(0.25), math.log(0.5)], []]
    reply = student.reply(name, policy, ref, kl_coef=1.0)
    values = student.values(name, policy, ref, kl_coef=1.0)
    varied(values)
    if any(abs(values[row]) > TOLERANCE for row in (0, 3)):
        raise Mistake("A completion without tokens must cost 0.0.")
    if abs(values[1]) < TOLERANCE:
        raise Mistake("A completion of one token costs nothing: is the first (or last) token dropped?")
    if reply.get("kind") != "list":
        raise Mistake(f"It returned {describe_kind(reply.get('kind'))}: return a plain list of floats.")
    if reply.get("arguments") != [policy, ref]:
        raise Mistake(
            "The function changes its arguments: work on copies, the caller still needs the log-probs."
        )
    if student.values(name, [], [], kl_coef=1.0):
        raise Mistake("An empty batch must return an empty list.")
    if any(abs(v) > TOLERANCE for v in student.values(name, [[]], [[]], kl_coef=1.0)):
        raise Mistake("A batch of one completion without tokens must return [0.0].")


def far_apart(name: str, student: Student, rng: random.Random) -> None:
    """Gaps of 800 nats, beyond the range of exp(). A -inf reference makes the forward penalty +inf: not asked."""
    rows = [[(-800.0, -1.0)], [(-1.0, -800.0), (-0.5, -0.7)], [(-1.0, -1.5), (-800.0, 0.0)], [(-0.2, -0.9)]]
    if name == BACKWARD:
        rows.append([(-1.0, -math.inf), (-0.5, -0.7)])
    try:
        values = varied(values_of(student, name, rows, 1.0))
    except Unfilled:
        raise
    except Mistake as mistake:
        raise Mistake(f"With models 800 nats apart on a token, or a reference at -inf: {mistake}") from None
    if not values[1] > values[0]:
        raise Mistake(
            "A token that pi overuses by 800 nats must cost more than one that it neglects by as much."
        )


# --- naming the mistake -----------------------------------------------------------------------------------------


def diagnose(student: Student, name: str) -> list[str]:
    """Hints that name what a failing KL penalty computes instead, as far as it is one of the classic mistakes."""
    pairs = [(math.log(p), math.log(r)) for p, r in PROBE]
    same = (math.log(0.5), math.log(0.5))
    try:
        terms = [values_of(student, name, [[pair]], 1.0)[0] for pair in pairs]
        row = values_of(student, name, [pairs[:3]], 1.0)[0]
        whole = values_of(
            student, name, [[(sum(a for a, _ in pairs[:3]), sum(b for _, b in pairs[:3]))]], 1.0
        )[0]
        together = values_of(student, name, [[pair] for pair in pairs], 1.0)
        ends = [values_of(student, name, [ends], 1.0)[0] for ends in ([same, pairs[0]], [pairs[0], same])]
    except Mistake:
        return []
    hints = [hint for numbers, hint in WRONG_TERMS[name].items() if all_close(terms, list(numbers))]
    if not all_close(together, terms):
        hints.append(batch_hint(together, terms))
    if all(abs(term) < TOLERANCE for term in terms):
        dropped = [which for which, end in zip(("last", "first"), ends, strict=True) if abs(end) < TOLERANCE]
        if len(dropped) == 1:
            hints.append(f"The {dropped[0]} token of each completion is dropped: every sampled token counts.")
    elif not hints and min(abs(terms[i] - terms[j]) for i, j in ((0, 2), (1, 3))) < TOLERANCE:
        hints.append(
            "Tokens on which the models differ by different amounts cost the same: you clip too early."
        )
    readings = {
        "You average over the tokens of a completion; its KL is a sum over them.": sum(terms[:3]) / 3,
        "The first token of each completion is dropped: every sampled token counts.": sum(terms[1:3]),
        "The last token of each completion is dropped: every sampled token counts.": sum(terms[:2]),
        "Only the first token of each completion counts; add up all of them.": terms[0],
        "Only the last token of each completion counts; add up all of them.": terms[2],
        "You multiply the tokens' terms; add them up.": math.prod(terms[:3]),
        "Only the largest term of each completion counts; add up all of them.": max(terms[:3]),
        "The sum over tokens is multiplied by their number once more.": 3 * sum(terms[:3]),
    }
    if (
        any(terms) and not close(row, sum(terms[:3])) and not close(row, whole)
    ):  # not token by token, nor all at once
        hints += [hint for hint, reading in readings.items() if close(row, reading)][:1]
    return hints


# --- the shaped reward ------------------------------------------------------------------------------------------

# Different in every way a reward may look at: words and characters (no two alike), repetition, case, punctuation,
# words of praise and of blame, an echo of the prompt, other scripts.
PROMPT = "The film opens on"
TEXTS = (
    "great " * 24,
    "A quiet story that takes its time, and earns every one of the tears it asks for in the last scene of all.",
    "I loved it!",
    "The film opens on the film opens on the film opens on a street.",
    "Boring.",
    "wonderful, wonderful, wonderful, and then some more of the same wonderful wonderful stuff!!!",
    "It is long. It is slow. It is about nothing. I would see it again tomorrow, and I could not tell you why, for "
    "the plot would fit on a stamp, the jokes are old, the ending is missing; still, one leaves the theatre with the "
    "feeling of having met somebody. The acting is fine, the music is better, the light is the best thing in it.",
    "AMAZING MASTERPIECE BEST MOVIE EVER",
    "Das war nichts, und es war lang.",
    "the the the the of of of",
    "Not bad at all; not good either, though the second half, in which the brothers finally speak, has some weight.",
    "\u2728\u2728 perfect \u2728\u2728",
    "He walks in. She walks out. Nobody in the audience of nine, of whom I was one, seemed to mind a great deal, "
    "and the man with the popcorn slept through the shooting with a smile I have been thinking about ever since.",
    "ok ok",
)
SCORES = (0.98, 0.71, 0.93, 0.44, 0.03, 0.99, 0.62, 0.96, 0.17, 0.31, 0.52, 0.85, 0.38, 0.56)
BLANKS = ("", " ", "\n" * 64, "\t \n", "...", "!?", "\u00a0", "\ufffd")


def shaped_batch(rng: random.Random) -> tuple[list[float], list[str], list[str]]:
    """Scores over all of [0, 1], texts and prompts, jittered and in random order."""
    rows = [
        (min(0.999, max(0.001, score + rng.uniform(-0.01, 0.01))), text)
        for score, text in zip(SCORES, TEXTS, strict=True)
    ]
    rng.shuffle(rows)
    return [score for score, _ in rows], [text for _, text in rows], [PROMPT] * len(rows)


def steady_rewards(
    student: Student, rng: random.Random
) -> tuple[list[float], list[str], list[str], list[float]]:
    """A batch and its rewards, which must not be all the same, nor change with the call or the place in the batch."""
    scores, texts, prompts = shaped_batch(rng)
    rewards = student.values(SHAPED, scores, texts, prompts)
    if max(rewards) - min(rewards) <= TOLERANCE * max(1.0, max(map(abs, rewards))):
        raise Mistake(
            "All completions get the same reward. GRPO compares the completions of a group with each other: without "
            "differences there is nothing to learn."
        )
    if not all_close(student.values(SHAPED, scores, texts, prompts), rewards):
        raise Mistake(
            "The same call gives other rewards the second time: noise teaches nothing, memory misleads."
        )
    order = list(range(len(texts)))
    rng.shuffle(order)
    shuffled = student.values(SHAPED, [scores[i] for i in order], [texts[i] for i in order], prompts)
    if not all_close(shuffled, [rewards[i] for i in order]):
        raise Mistake("A completion's reward changes with its place in the batch, not with what it says.")
    return scores, texts, prompts, rewards


def shaped_numbers(student: Student, rng: random.Random) -> None:
    """A list with one finite number each, for batches of any size, with prompts and without."""
    scores, texts, prompts, _ = steady_rewards(student, rng)
    student.values(SHAPED, scores, texts)
    reply = student.reply(SHAPED, scores, texts, prompts)
    if reply.get("kind") != "list":
        raise Mistake(f"It returned {describe_kind(reply.get('kind'))}: return a plain list of floats.")
    if reply.get("arguments") != [scores, texts, prompts]:
        raise Mistake("The function changes its arguments: work on copies, the caller still needs them.")
    for n in (1, 2):
        student.values(SHAPED, scores[:n], texts[:n])
    student.values(SHAPED, [0.5, 0.5, 0.5], texts[:3])
    student.values(SHAPED, [0, 1, 1.0], texts[:3])
    student.values(SHAPED, [], [])


def shaped_blanks(student: Student, rng: random.Random) -> None:
    """Defined for texts without words: the policy will write them sooner or later."""
    steady_rewards(student, rng)
    for text in BLANKS:
        for scores, texts in (([0.7], [text]), ([0.7, 0.2, 0.9], [text, TEXTS[1], text])):
            try:
                student.values(SHAPED, scores, texts)
            except Unfilled:
                raise
            except Mistake as mistake:
                raise Mistake(f"For the completion {text[:5]!r}: {mistake}") from None


def shaped_uses_score(student: Student, rng: random.Random) -> None:
    scores, texts, prompts, rewards = steady_rewards(student, rng)
    changes = []
    for row in range(0, len(texts), 5):
        low, middle, high = (
            student.values(SHAPED, [*scores[:row], score, *scores[row + 1 :]], texts, prompts)[row]
            for score in (0.02, 0.5, 0.98)
        )
        changes.append((middle - low, high - low))
    if not any(abs(change) > TOLERANCE * max(map(abs, rewards)) for pair in changes for change in pair):
        raise Mistake(
            "The scores do not matter to your reward: with others it stays the same. Shape the score, keep it."
        )
    if sum(high for _, high in changes) < 0:
        raise Mistake(
            "Your reward falls as the score rises: the sign is the wrong way round, higher is better."
        )


def shaped_not_affine(student: Student, rng: random.Random) -> None:
    """No a, b with reward = a * score + b for the whole batch: to group-normalised GRPO that is the bare score."""
    scores, _, _, rewards = steady_rewards(student, rng)
    mean_s, mean_r = sum(scores) / len(scores), sum(rewards) / len(rewards)
    covariance = sum((s - mean_s) * (r - mean_r) for s, r in zip(scores, rewards, strict=True))
    slope = covariance / sum((s - mean_s) ** 2 for s in scores)
    residual = norm([r - mean_r - slope * (s - mean_s) for s, r in zip(scores, rewards, strict=True)])
    if residual <= 1e-4 * norm([r - mean_r for r in rewards]):
        raise Mistake(
            f"Your reward is {slope:.3g} * score + {mean_r - slope * mean_s:.3g} for the whole batch. GRPO subtracts "
            "the group's mean and divides by its standard deviation, so it cannot tell that from the bare score"
            + (" (except for the sign, which is the wrong way round)." if slope < 0 else ".")
            + " Bend the score, or bring in the text."
        )


# --- the list ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """`run(student, rng)` raises Mistake; `hidden` checks are shown to students only after publication."""

    number: str
    function: str
    title: str
    points: int
    run: Callable[[Student, random.Random], None]
    hidden: bool = False


CHECKS = (
    Check("1.1", FORWARD, "averages to KL(pi || pi_ref)", 8, forward_value),
    Check("1.2", FORWARD, "policy gradient is that of KL(pi || pi_ref)", 11, forward_gradient, hidden=True),
    Check("1.3", FORWARD, "proportional to kl_coef", 4, partial(linear, FORWARD)),
    Check("1.4", FORWARD, "zero where the models agree", 3, partial(zero_when_equal, FORWARD)),
    Check("1.5", FORWARD, "each completion on its own", 3, partial(rows_alone, FORWARD)),
    Check("1.6", FORWARD, "finite for models far apart", 3, partial(far_apart, FORWARD)),
    Check("1.7", FORWARD, "empty, one-token and ragged rows; arguments kept", 3, partial(edges, FORWARD)),
    Check("2.1", BACKWARD, "policy gradient is that of KL(pi_ref || pi) for one token", 12, backward_gradient_token),
    Check("2.2", BACKWARD, "policy gradient is near that of KL(pi_ref || pi)", 8, backward_gradient_tree, hidden=True),
    Check("2.3", BACKWARD, "gradient steps lower KL(pi_ref || pi)", 6, backward_descent, hidden=True),
    Check("2.4", BACKWARD, "proportional to kl_coef", 4, partial(linear, BACKWARD)),
    Check("2.5", BACKWARD, "zero where the models agree", 4, partial(zero_when_equal, BACKWARD)),
    Check("2.6", BACKWARD, "each completion on its own", 3, partial(rows_alone, BACKWARD)),
    Check("2.7", BACKWARD, "finite for models far apart", 3, partial(far_apart, BACKWARD)),
    Check("2.8", BACKWARD, "empty, one-token and ragged rows; arguments kept", 3, partial(edges, BACKWARD)),
    Check("3.1", SHAPED, "not an affine function of the score", 12, shaped_not_affine, hidden=True),
    Check("3.2", SHAPED, "the score counts", 4, shaped_uses_score),
    Check("3.3", SHAPED, "the same inputs earn the same reward", 2, steady_rewards),
    Check("3.4", SHAPED, "defined for empty and blank completions", 2, shaped_blanks),
    Check("3.5", SHAPED, "one finite number for each completion; arguments kept", 2, shaped_numbers),
)  # fmt: skip
EXERCISES = {FORWARD: "1a", BACKWARD: "1b", SHAPED: "2"}


def run_checks(student: Student, function: str, seed: object) -> Iterator[tuple[Check, Mistake | None]]:
    """The checks of one function in order, each on instances of its own drawn from `seed`.

    The first failure carries the diagnosis too. After one that gave no answer at all the next checks still run: whether
    a new process is worth it is for `student.ask` to know.
    """
    diagnosed = False
    for check in CHECKS:
        if check.function != function:
            continue
        try:
            check.run(student, random.Random(f"{seed} {check.number}"))
        except ArithmeticError:  # finite values, but sums of them that are not
            yield check, Mistake("The values are too large to calculate with.")
        except Mistake as mistake:
            hints = []
            if not diagnosed and function != SHAPED and not isinstance(mistake, Unfilled | Broken):
                hints, diagnosed = diagnose(student, function), True
            yield check, type(mistake)(" ".join([*hints, str(mistake)]))
        else:
            yield check, None


def self_check(path: str) -> int:
    """Check the file in this process and print one line an exercise; 0 where all three are right."""
    try:
        module = student_code.load(path)
    except (Exception, SystemExit) as error:
        print(f"rewards.py does not run: {student_code.explain(error, str(path))}")
        return 1
    student = Student(partial(student_code.call, module))
    all_right = True
    for function, exercise in EXERCISES.items():
        results = list(run_checks(student, function, seed="self-check"))
        mistakes = [mistake for _, mistake in results if mistake]
        if not mistakes:
            state = "right"
        elif isinstance(mistakes[0], Unfilled):
            state = "not implemented yet"
        else:
            state = f"wrong ({len(results) - len(mistakes)} of {len(results)} checks passed)"
        print(f"exercise {exercise:<3} {function:<20} | {state}")
        if mistakes and not isinstance(mistakes[0], Unfilled):
            said = ""
            for message in map(str, mistakes):
                if message in said:
                    continue
                said += message + "\n"
                print(textwrap.fill(message, 100, initial_indent="    - ", subsequent_indent="      "))
        all_right = all_right and not mistakes
    return 0 if all_right else 1
