"""The checks behind `python rewards.py`, the tests and the grader.

They are exact: policy and reference are small tables of next-token probabilities (`trees.py`), and the student's
penalty is called on all completions they can write. Its mean and its policy gradient E[f grad log pi] are then sums,
compared with a KL and its gradient. A penalty inside a reward is a constant to the optimiser, so its policy gradient
says what it teaches: Tang & Munos 2025 (arXiv 2506.09477), Shah et al. 2025 (arXiv 2512.21852).

A check asks a `Student` for values and raises `Mistake` with a hint; it does not know in which process the student's
code runs. Standard library only.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from grading.loopholes import BLANK, ONE_WORD, PHRASE, PROMPT, SHORT, closed, drawn
from grading.mistakes import batch_hint, coefficient_hint, diagnose
from grading.submission import (
    BACKWARD,
    FORWARD,
    PREFERENCE,
    SHAPED,
    TOLERANCE,
    Broken,
    Mistake,
    Student,
    Unfilled,
    all_close,
    close,
    wrong_kind,
)
from grading.trees import Model, Tree, cosine, gradient, kl, make_tree, norm, policy_gradient


def plain_list(student: Student, name: str, *args: list, **kwargs: float) -> list[float]:
    """The values of a call, which must come as a plain list and leave the arguments as they were."""
    values, reply = student.values(name, *args, **kwargs), student.reply(name, *args, **kwargs)
    if reply.get("kind") != "list":
        raise Mistake(wrong_kind(reply.get("kind")))
    if reply.get("arguments") != list(args):
        raise Mistake("The function changes its arguments: work on copies, the caller still needs them.")
    return values


# ---- the KL penalties --------------------------------------------------------------------------------------


def varied(values: list[float]) -> list[float]:
    """The values; raises Mistake if they are all the same, as a constant has most of the properties asked for."""
    if max(values) - min(values) <= TOLERANCE * max(map(abs, values), default=0.0) + 1e-12:
        raise Mistake("Every completion gets the same penalty, whatever the two models say about it.")
    return values


# name -> (its KL in words, the KL of a tree with another policy)
DIVERGENCES: dict[str, tuple[str, Callable[[Tree, Model], float]]] = {
    FORWARD: ("KL(pi || pi_ref)", lambda tree, pi: kl(tree, pi, tree.ref)),
    BACKWARD: ("KL(pi_ref || pi)", lambda tree, pi: kl(tree, tree.ref, pi)),
}


def forward_value(student: Student, rng: random.Random) -> None:
    for eos in (False, True):
        tree = make_tree(rng, vocab=3, length=3, eos=eos, nats=0.3)
        right = kl(tree, tree.policy, tree.ref)
        mean = tree.mean(varied(student.penalties(FORWARD, tree.pairs())))
        if not close(mean, right):
            what = f"averages {mean:.4f}, but KL(pi || pi_ref) is {right:.4f} nats"
            raise Mistake(f"Over all completions of a small policy, with kl_coef = 1, your penalty {what}.")


# Token-level weights leave out how often pi_ref would reach the prefix. Over several tokens they only approximate the
# gradient, better for closer models. At 0.05 nats one tree in some hundreds has a cosine below 0.97; the limit is lower
# still, because no right answer may lose points for the tree it was dealt.
NEAR = 0.05
COSINE = 0.9


def gradient_of_kl(name: str, one_token: bool, student: Student, rng: random.Random) -> None:
    """The penalty's policy gradient is that of its KL: nearly for 1b with several tokens, else exactly."""
    exactly = one_token or name == FORWARD
    for shape in ((4, 1, False), (4, 1, False)) if one_token else ((3, 3, False), (3, 4, True)):
        while True:
            tree = make_tree(rng, *shape, nats=0.4 if exactly else NEAR)
            right = {kind: gradient(partial(of, tree), tree.policy) for kind, (_, of) in DIVERGENCES.items()}
            if not one_token or cosine(right[FORWARD], right[BACKWARD]) <= 0.95:  # the two KLs clearly differ
                break
        ours = policy_gradient(tree, varied(student.penalties(name, tree.pairs())))
        compare(ours, right[name], DIVERGENCES[name][0], exactly)


forward_gradient = partial(gradient_of_kl, FORWARD, False)
backward_gradient_token = partial(gradient_of_kl, BACKWARD, True)
backward_gradient_tree = partial(gradient_of_kl, BACKWARD, False)


def compare(ours: list[float], right: list[float], name: str, exactly: bool) -> None:
    """Direction first, then length: exactly, or with a cosine of COSINE and a length within a quarter."""
    cos, ratio = cosine(ours, right), norm(ours) / norm(right)
    if cos < -0.5:
        what = f"its policy gradient points against that of {name} (cosine {cos:.2f})"
        raise Mistake(f"Your penalty pushes the policy away from the reference: {what}.")
    off = norm([a - b for a, b in zip(ours, right, strict=True)]) / norm(right)
    if off < 3 * TOLERANCE or (not exactly and cos >= COSINE and 0.75 < ratio < 4 / 3):
        return
    if cos < (1 - 1e-8 if exactly else COSINE):
        wanted = "1.000" if exactly else f"at least {COSINE}"
        what = f"is not the gradient of {name} (cosine {cos:.3f} where {wanted} is expected)"
        raise Mistake(f"The policy gradient of your penalty, E[f grad log pi], {what}.")
    what = f"has the direction of the gradient of {name}, but is {ratio:.3g} times as long"
    raise Mistake(f"The policy gradient of your penalty {what}: which factor is missing, or one too many?")


def backward_descent(student: Student, rng: random.Random) -> None:
    """Gradient steps on the penalty alone must bring the policy back to the reference."""
    tree = make_tree(rng, vocab=3, length=2, eos=False, nats=0.15)
    start = kl(tree, tree.ref, tree.policy)
    for _ in range(60):
        g = iter(policy_gradient(tree, student.penalties(BACKWARD, tree.pairs())))
        tree.policy = {s: [logit - 3 * next(g) for logit in logits] for s, logits in tree.policy.items()}
        if not all(abs(logit) < 100 for logits in tree.policy.values() for logit in logits):
            break  # far away and running
    end = kl(tree, tree.ref, tree.policy)
    if not end < 0.1 * start:
        steps = "60 exact gradient steps on your penalty alone"
        raise Mistake(f"{steps} took KL(pi_ref || pi) from {start:.3f} to {end:.3f} nats: not near 0.")


def linear(name: str, student: Student, rng: random.Random) -> None:
    pairs = make_tree(rng, vocab=3, length=2, eos=True, nats=0.3).pairs()
    once = varied(student.penalties(name, pairs))
    for coef in (0.3, 0.6, 3.0):
        values = student.penalties(name, pairs, coef)
        if not all_close(values, [coef * v for v in once]):
            raise Mistake(coefficient_hint(once, values, coef))
    if any(abs(v) > TOLERANCE for v in student.penalties(name, pairs, 0.0)):
        raise Mistake("With kl_coef = 0 there must be no penalty, but yours is not 0.")


def zero_when_equal(name: str, student: Student, rng: random.Random) -> None:
    pairs = make_tree(rng, vocab=3, length=2, eos=True, nats=0.3).pairs()
    varied(student.penalties(name, pairs))
    values = student.penalties(name, [[(a, a) for a, _ in row] for row in pairs])
    if any(abs(v) > TOLERANCE for v in values):
        raise Mistake(f"Where the models agree the penalty must be 0, but it is {max(values, key=abs):.4g}.")


def rows_alone(name: str, student: Student, rng: random.Random) -> None:
    """A completion's penalty depends neither on the others in its batch nor on their order."""
    pairs = make_tree(rng, vocab=3, length=3, eos=True, nats=0.3).pairs()
    together = student.penalties(name, pairs)
    alone = [student.penalties(name, [row])[0] for row in pairs[::3]]
    in_company = student.penalties(name, pairs[::3])
    varied([*in_company, *alone])
    if not all_close(in_company, alone):
        raise Mistake(batch_hint(in_company, alone))
    order = rng.sample(range(len(pairs)), len(pairs))
    shuffled = student.penalties(name, [pairs[i] for i in order])
    if not all_close(shuffled, [together[i] for i in order]):
        raise Mistake("With the completions in another order they get other penalties.")


def edges(name: str, student: Student, rng: random.Random) -> None:
    """Empty batch, empty rows, ragged rows, thousands of tokens, integers, no mutation, a plain list."""
    policy = [[], [math.log(0.5)], [math.log(0.5), math.log(0.25), math.log(0.75), math.log(0.5)], []]
    ref = [[], [math.log(0.25)], [math.log(0.25), math.log(0.5), math.log(0.25), math.log(0.5)], []]
    values = varied(plain_list(student, name, policy, ref, kl_coef=1.0))
    if any(abs(values[row]) > TOLERANCE for row in (0, 3)):
        raise Mistake("A completion without tokens must cost 0.0.")
    if abs(values[1]) < TOLERANCE:
        raise Mistake("A completion of one token costs nothing: is the first (or last) token dropped?")
    student.values(name, [], [], kl_coef=1.0)
    student.values(name, [[-0.7] * 3000], [[-0.8] * 3000], kl_coef=1.0)
    if any(abs(v) > TOLERANCE for v in student.values(name, [[]], [[]], kl_coef=1.0)):
        raise Mistake("A batch of one completion without tokens must return [0.0].")


def far_apart(name: str, student: Student, rng: random.Random) -> None:
    """Gaps of 800 nats, beyond the range of exp(). A -inf reference makes the forward penalty +inf: not asked."""
    near = [[(-1.0, -1.5)], [(-0.2, -0.9), (-0.5, -0.7)]]
    varied(student.penalties(name, near))  # what goes wrong here has nothing to do with the distance
    rows = [[(-800.0, -1.0)], [(-1.0, -800.0), (-0.5, -0.7)], [(-1.0, -1.5), (-800.0, 0.0)], [(-0.2, -0.9)]]
    if name == BACKWARD:
        rows.append([(-1.0, -math.inf), (-0.5, -0.7)])
    try:
        values = varied(student.penalties(name, rows))
    except Mistake as mistake:
        raise Mistake(f"With models 800 nats apart on a token, or a reference at -inf: {mistake}") from None
    if not values[1] > values[0]:
        raise Mistake("A token that pi overuses by 800 nats must cost more than one that it neglects.")


# ---- the shaped reward -------------------------------------------------------------------------------------

# Beside the texts of the loopholes: an echo of the prompt, capitals, other languages and scripts, many words.
ODD = (
    (0.44, "The film opens on the film opens on the film opens on a street."),
    (0.71, "AMAZING MASTERPIECE BEST MOVIE EVER"),
    (0.17, "Das war nichts, und es war lang."),
    (0.85, "\u2728\u2728 perfect \u2728\u2728"),
    (0.31, "It is long. It is slow. It is about nothing. I would see it again tomorrow. " * 3),
    (0.56, "ok ok"),
)
BLANKS = ("", " ", "\n" * 64, "\t \n", "...", "!?", "\u00a0", "\ufffd")


# scores over all of [0, 1], texts with words in them, prompts
Batch = tuple[list[float], list[str], list[str]]


def steady_rewards(student: Student, rng: random.Random) -> tuple[Batch, list[float]]:
    """A batch and its rewards, which must not be all the same, nor change with the call or the place in the batch."""
    rows = [*ODD, *((text.score, text.completion) for text in drawn(rng) if text.kind != BLANK)]
    rng.shuffle(rows)
    scores = [min(0.999, max(0.001, score + rng.uniform(-0.01, 0.01))) for score, _ in rows]
    texts, prompts = [text for _, text in rows], [PROMPT] * len(rows)
    rewards = student.values(SHAPED, scores, texts, prompts)
    if max(rewards) - min(rewards) <= TOLERANCE * max(1.0, max(map(abs, rewards))):
        raise Mistake("All completions get the same reward: without differences GRPO has nothing to learn.")
    if not all_close(student.values(SHAPED, scores, texts, prompts), rewards):
        raise Mistake("The same call gives other rewards the second time: make the function deterministic.")
    order = rng.sample(range(len(texts)), len(texts))
    shuffled = student.values(SHAPED, [scores[i] for i in order], [texts[i] for i in order], prompts)
    if not all_close(shuffled, [rewards[i] for i in order]):
        raise Mistake("A completion's reward changes with its place in the batch, not with what it says.")
    return (scores, texts, prompts), rewards


def shaped_numbers(student: Student, rng: random.Random) -> None:
    """One finite number for each completion, for batches of any size, with prompts and without."""
    (scores, texts, prompts), _ = steady_rewards(student, rng)
    plain_list(student, SHAPED, scores, texts, prompts)
    student.values(SHAPED, scores, texts)
    for some in (scores[:1], scores[:2], [0.5, 0.5, 0.5], [0, 1, 1.0], []):
        student.values(SHAPED, some, texts[: len(some)])


def shaped_blanks(student: Student, rng: random.Random) -> None:
    """Finite for texts without words, which the policy will write sooner or later."""
    steady_rewards(student, rng)
    for text in BLANKS:
        for scores, texts in (([0.7], [text]), ([0.7, 0.2, 0.9], [text, ODD[0][1], text])):
            try:
                student.values(SHAPED, scores, texts)
            except Mistake as mistake:
                raise Mistake(f"For the completion {text[:5]!r}: {mistake}") from None


def shaped_uses_score(student: Student, rng: random.Random) -> None:
    (scores, texts, prompts), rewards = steady_rewards(student, rng)
    changes = []
    for row in range(len(texts)):
        low, middle, high = (
            student.values(SHAPED, [*scores[:row], score, *scores[row + 1 :]], texts, prompts)[row]
            for score in (0.02, 0.5, 0.98)
        )
        changes.append((middle - low, high - low))
    if not any(abs(change) > TOLERANCE * max(map(abs, rewards)) for pair in changes for change in pair):
        raise Mistake("The scores do not matter to your reward. Shape the score, keep it.")
    if sum(high for _, high in changes) < 0:
        raise Mistake("Your reward falls as the score rises: the sign is the wrong way round.")


def shaped_not_affine(student: Student, rng: random.Random) -> None:
    """No a, b with reward = a * score + b for the whole batch: to group-normalised GRPO that is the bare score."""
    (scores, _, _), rewards = steady_rewards(student, rng)
    mean_s, mean_r = sum(scores) / len(scores), sum(rewards) / len(rewards)
    covariance = sum((s - mean_s) * (r - mean_r) for s, r in zip(scores, rewards, strict=True))
    slope = covariance / sum((s - mean_s) ** 2 for s in scores)
    residual = norm([r - mean_r - slope * (s - mean_s) for s, r in zip(scores, rewards, strict=True)])
    if residual <= 1e-4 * norm([r - mean_r for r in rewards]):
        constant = mean_r - slope * mean_s
        sign = " (except for the sign, which is the wrong way round)" if slope < 0 else ""
        raise Mistake(
            f"Your reward is {slope:.3g} * score {'-' if constant < 0 else '+'} {abs(constant):.3g} throughout."
            " GRPO subtracts the group's mean and divides by its deviation, so it cannot tell that from the bare "
            f"score{sign}. Bend the score, or bring in the text."
        )


# ---- the preference loss -----------------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def preference_value(student: Student, rng: random.Random) -> None:
    """-log of the probability e^c / (e^c + e^r) that Bradley and Terry give to the choice; a float for each pair."""
    chosen, rejected = ([rng.uniform(-3, 3) for _ in range(7)] for _ in range(2))
    values = plain_list(student, PREFERENCE, chosen, rejected)
    for c, r, value in zip(chosen, rejected, values, strict=True):
        wanted = -math.log(math.exp(c) / (math.exp(c) + math.exp(r)))
        if not close(value, wanted):
            what = f"chosen {c:.2f} and rejected {r:.2f} the loss is {wanted:.4f}, but yours is {value:.4f}"
            raise Mistake(f"For the scores {what}.")
    student.values(PREFERENCE, [], [])


STEP, SLOPE_TOLERANCE = 1e-2, 1e-3  # of central differences: float32 inside a submission is right


def preference_gradient(student: Student, rng: random.Random) -> None:
    """In the score s_k of a text, the mean loss over all answers of an annotator has the slope
    sum_j sigmoid(s_k - s_j) - sigmoid(g_k - g_j), which is 0 if s is the annotator's own g."""
    gold = [rng.uniform(-2, 2) for _ in range(4)]
    answers = [(i, j) for i in range(4) for j in range(4) if i != j]  # i is chosen, j rejected
    chance = [sigmoid(gold[i] - gold[j]) for i, j in answers]

    def mean_loss(scores: list[float]) -> float:
        values = student.values(PREFERENCE, [scores[i] for i, _ in answers], [scores[j] for _, j in answers])
        return sum(p * value for p, value in zip(chance, values, strict=True))

    for scores, whose in (([rng.uniform(-2, 2) for _ in gold], "some"), (gold, "the annotator's own")):
        for k in range(4):
            up, down = ([s + h * (i == k) for i, s in enumerate(scores)] for h in (STEP, -STEP))
            ours = (mean_loss(up) - mean_loss(down)) / (2 * STEP)
            others = [j for j in range(4) if j != k]
            right = sum(sigmoid(scores[k] - scores[j]) - sigmoid(gold[k] - gold[j]) for j in others)
            if abs(ours - right) > SLOPE_TOLERANCE:
                what = f"the slope of your mean loss in a text's score is {ours:.3f} where it should be {right:.3f}"
                raise Mistake(f"Over all answers of an annotator, with {whose} scores, {what}.")


def preference_far_apart(student: Student, rng: random.Random) -> None:
    """Scores 800 apart, either way, and scores of 1,000 that are 1 apart."""
    student.values(PREFERENCE, [1.0], [0.5])  # what goes wrong here has nothing to do with the distance
    shift = rng.uniform(0, 1)
    chosen, rejected = [800.0 + shift, 0.0, 1000.0], [0.0, 800.0 + shift, 999.0]
    try:
        values = student.values(PREFERENCE, chosen, rejected)
        for value, wanted in zip(values, (0.0, 800.0 + shift, math.log(1 + math.exp(-1))), strict=True):
            if not close(value, wanted):
                raise Mistake(f"the loss is {wanted:.4g}, but yours is {value:.4g}.")
    except Mistake as mistake:
        raise Mistake(f"With scores 800 apart, or of 1,000: {mistake}") from None


# ---- the list ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """`run(student, rng)` raises Mistake; `hidden` checks are shown to students only after publication.

    The `points` of PREFERENCE are a bonus; those of the others add up to 100.
    """

    number: str
    function: str
    title: str
    points: int
    run: Callable[[Student, random.Random], object]
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
    Check("3.1", SHAPED, "not an affine function of the score", 4, shaped_not_affine, hidden=True),
    Check("3.2", SHAPED, "the score counts", 4, shaped_uses_score),
    Check("3.3", SHAPED, "the same inputs earn the same reward", 2, steady_rewards),
    Check("3.4", SHAPED, "defined for empty and blank completions", 2, shaped_blanks),
    Check("3.5", SHAPED, "one finite number for each completion; arguments kept", 2, shaped_numbers),
    Check("3.6", SHAPED, "one word over and over earns less than honest praise", 4, partial(closed, (ONE_WORD,))),
    Check("3.7", SHAPED, "three words, or none, earn less than honest praise", 2, partial(closed, (SHORT, BLANK))),
    Check("3.8", SHAPED, "a phrase over and over earns less than honest praise", 2, partial(closed, (PHRASE,))),
    Check("4.1", PREFERENCE, "minus the log-probability of the choice", 4, preference_value),
    Check("4.2", PREFERENCE, "gradient over all answers of an annotator", 3, preference_gradient, hidden=True),
    Check("4.3", PREFERENCE, "right for scores 800 apart", 3, preference_far_apart),
)  # fmt: skip
EXERCISES = {FORWARD: "1a", BACKWARD: "1b", SHAPED: "2", PREFERENCE: "8"}


def run_checks(student: Student, function: str, seed: object) -> Iterator[tuple[Check, Mistake | None]]:
    """The checks of one function in order, each on instances of its own drawn from `seed`.

    The first failure carries the diagnosis too. If a call gave no answer at all, the next checks run all the same;
    `student.ask` decides whether to start a new process for them.
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
