"""The classic wrong answers to the KL penalties and the preference loss, recognised by their values, with hints.

A hint names the mistake and points to the idea; it never states the answer. The values are stored as numbers and not
as formulas, since students have this file; `tests/grading/test_mistakes.py` recomputes them from the formulas.
"""

import math

from grading.submission import BACKWARD, FORWARD, PREFERENCE, TOLERANCE, Mistake, Student, all_close, close

# ---- the table ---------------------------------------------------------------------------------------------

# (pi, pi_ref) of the one token of a completion. The tables below have the penalties of the first two, kl_coef = 1.
PROBE = ((0.5, 0.25), (0.2, 0.6), (0.4, 0.1), (0.1, 0.7))

# Wrong for both penalties, and for the same reason.
WRONG_FOR_BOTH = {
    (0.2402, 0.6035): "This is k2, half the squared log-ratio: inside a reward its gradient is not the KL's.",
    (0.1931, 0.9014): "This is k3: its mean is KL(pi || pi_ref), but inside a reward its gradient is not.",
    (0.3466, -0.2197): "You weight the log-ratio by pi(token), but the samples already come from pi.",
    (-0.1733, 0.6592): "You weight the log-ratio by pi_ref(token), but the samples come from pi.",
    (0.2500, -0.4000): "You subtract probabilities; a ratio of two is a difference of log-probabilities.",
    (-0.6931, -1.6094): "Only the policy's log-probabilities are used: that rewards entropy. Use both.",
    (0.6931, 1.6094): "Only the policy's log-probabilities are used. Use the reference too.",
    (1.3863, 0.5108): "Only the reference's log-probabilities are used, a cross-entropy. Use both models.",
}
WRONG_FORWARD = {
    (-0.6931, 1.0986): "This is log(pi_ref / pi): the sign is wrong, or the two arguments are swapped.",
    (0.6931, 1.0986): "You take the absolute value of the log-ratio. Without its sign the mean is no KL.",
    (0.6931, 0.0000): "You clamp at 0. A single value may be negative; cutting that off changes the mean.",
    (0.0000, -1.0986): "You keep only the negative log-ratios; the mean that is the KL needs both signs.",
    (0.6931, -1.0000): "You clip the log-ratio to [-1, 1], which hides a large divergence.",
    (0.4805, 1.2069): "You square the log-ratio: tokens that pi neglects then cost as much as the others.",
    (-0.3466, 3.2958): "This is w * log w, w = pi_ref / pi, for the *other* KL. Here no weight is needed.",
    (0.5000, -2.0000): "This is for KL(pi_ref || pi), exercise 1b. The two KLs agree for close models only.",
    (2.0000, 0.3333): "This is the ratio pi / pi_ref: a log is missing.",
    (1.0000, -0.6667): "This is pi / pi_ref - 1: near the log-ratio for close models, but its mean is no KL.",
    (0.5000, 3.0000): "This is the ratio pi_ref / pi: a log is missing, and the ratio is upside down.",
    (-1.3863, -0.5108): "Only the reference's log-probabilities are used, and likely tokens cost most.",
    (-2.0794, -2.1203): "You add the two log-probabilities; the log of a ratio is their difference.",
    (1.0000, -1.5850): "You count in bits (log base 2); the penalty is in nats, like the log-probabilities.",
}
WRONG_BACKWARD = {
    (-0.5000, 2.0000): "The sign is wrong: should a token that pi uses too often be charged or paid?",
    (-1.0000, 0.6667): "The weight is upside down, or the arguments are swapped: it is w = pi_ref / pi.",
    (1.0000, -0.6667): "You use the ratio pi / pi_ref; samples of pi need the weight w = pi_ref / pi.",
    (-0.5000, -3.0000): "Right gradient, but not 0 where the models agree (question 3): length alone is paid.",
    (0.5000, 3.0000): "You charge the weight w itself, large where pi neglects: should those be charged?",
    (2.0000, 0.3333): "You charge pi / pi_ref; samples of pi need the weight w = pi_ref / pi.",
    (-0.3466, 3.2958): (
        "This is w * log w. Its mean is a KL, but as a reward it has the wrong sign: it charges tokens that pi "
        "neglects. Questions 1 and 2 of the exercise: what stands in front of grad log pi?"
    ),
    (0.3466, -3.2958): (
        "This is -w * log w. Turning the sign of w * log w helps, but tokens with w near 0 are free, and its gradient "
        "is not the KL's. Question 2 of the exercise: what stands in front of grad log pi?"
    ),
    (0.6931, -1.0986): "This is the log-ratio of exercise 1a; for this KL, samples of pi need a weight.",
    (-0.6931, 1.0986): "This is log(pi_ref / pi) without the weight; its mean is -KL(pi || pi_ref).",
    (0.5000, 2.0000): "You take an absolute value: neglected tokens then cost as much as overused ones.",
    (0.5000, 0.0000): "You cut off the negative values, or cap w at 1: tokens that pi neglects must be paid.",
    (0.0000, -2.0000): "You cut off the positive values: the tokens that pi overuses are then free.",
    (0.2500, 4.0000): "You square: tokens that pi neglects then cost as much as those it overuses.",
    (0.1534, 1.2958): "This is w * log w - w + 1: its mean is right, E[f grad log pi] is not (question 2).",
    (0.3069, 0.4319): "This is k3 upside down; inside a reward its policy gradient is not a KL's.",
    (1.6931, -0.0986): "An exp() is missing: the weight is a ratio of probabilities, not of their logs.",
    (-1.6931, 0.0986): "An exp() is missing: the weight is a ratio of probabilities, not of their logs.",
}  # fmt: skip
# Scores (chosen, rejected) that are 1 and -2 apart: p, the probability of the choice, is 0.7311 and 0.1192.
PREFERENCE_PROBE = ([1.0, 0.0], [0.0, 2.0])
WRONG_PREFERENCE = {
    (-0.3133, -2.1269): "This is log p: the sign is wrong. The log-likelihood should rise, so the loss is minus it.",
    (1.3133, 0.1269): "This is -log(1 - p): it teaches that the *rejected* text is better. Are the arguments swapped?",
    (-1.3133, -0.1269): "This is log(1 - p): it has no lower bound, and is steepest where the model is sure.",
    (0.7311, 0.1192): "This is p itself: take its log, and mind the sign.",
    (0.2689, 0.8808): "This is 1 - p: a log is missing, and with it a gradient for pairs that are far off.",
    (-1.0000, 2.0000): "This is the bare difference of the scores: the sigmoid and the log are missing.",
    (0.0000, 3.0000): "This is a hinge: it stops at a margin of 1, where Bradley and Terry do not.",
    (0.4519, 3.0685): "You use the log to base 2; the loss is in nats.",
}  # fmt: skip
WRONG_TERMS = {FORWARD: WRONG_FORWARD | WRONG_FOR_BOTH, BACKWARD: WRONG_BACKWARD | WRONG_FOR_BOTH}


# ---- recognising them --------------------------------------------------------------------------------------


def diagnose(student: Student, name: str) -> list[str]:
    """Hints that name what a failing function computes instead, as far as it is one of the classic mistakes."""
    if name == PREFERENCE:
        return diagnose_preference(student)
    pairs = [(math.log(p), math.log(r)) for p, r in PROBE]
    same = (math.log(0.5), math.log(0.5))
    whole_pair = (sum(a for a, _ in pairs[:3]), sum(b for _, b in pairs[:3]))

    def alone(*row: tuple[float, float]) -> float:
        return student.penalties(name, [list(row)])[0]

    try:
        terms = [alone(pair) for pair in pairs]
        together = student.penalties(name, [[pair] for pair in pairs])
        row, whole = alone(*pairs[:3]), alone(whole_pair)
        ends = {"last": alone(same, pairs[0]), "first": alone(pairs[0], same)}
    except Mistake:
        return []
    hints = [hint for stored, hint in WRONG_TERMS[name].items() if math.dist(terms[:2], stored) < 1e-4]
    if not all_close(together, terms):
        hints.append(batch_hint(together, terms))
    if all(abs(term) < TOLERANCE for term in terms):
        dropped = [which for which, value in ends.items() if abs(value) < TOLERANCE]
        if len(dropped) == 1:
            hints.append(f"The {dropped[0]} token of each completion is dropped: every sampled token counts.")
    elif not hints and min(abs(terms[0] - terms[2]), abs(terms[1] - terms[3])) < TOLERANCE:
        hints.append("Different gaps between the models cost the same: you clip too early.")
    if any(terms) and not close(row, sum(terms[:3])) and not close(row, whole):
        hints.append(row_hint(row, terms[:3]))
    return [hint for hint in hints if hint]


def diagnose_preference(student: Student) -> list[str]:
    chosen, rejected = PREFERENCE_PROBE
    try:
        together = student.values(PREFERENCE, chosen, rejected)
        alone = [student.values(PREFERENCE, [c], [r])[0] for c, r in zip(chosen, rejected, strict=True)]
    except Mistake:
        return []
    hints = [hint for stored, hint in WRONG_PREFERENCE.items() if math.dist(alone, stored) < 1e-4]
    return hints if all_close(together, alone) else [*hints, batch_hint(together, alone)]


def first_that_fits(values: list[float], readings: dict[str, list[float]]) -> str:
    """The first hint whose reading of the mistake gives these values; empty if none does."""
    return next((hint for hint, reading in readings.items() if all_close(values, reading)), "")


def row_hint(row: float, terms: list[float]) -> str:
    """How a completion of three tokens got the penalty `row` from its tokens' three `terms`."""
    first, middle, last = terms
    readings = {
        "You average over the tokens of a completion; its KL is a sum over them.": sum(terms) / 3,
        "The first token of each completion is dropped: every sampled token counts.": middle + last,
        "The last token of each completion is dropped: every sampled token counts.": first + middle,
        "Only the first token of each completion counts; add up all of them.": first,
        "Only the last token of each completion counts; add up all of them.": last,
        "You multiply the tokens' terms; add them up.": math.prod(terms),
        "Only the largest term of each completion counts; add up all of them.": max(terms),
        "The sum over tokens is multiplied by their number once more.": 3 * sum(terms),
    }
    return first_that_fits([row], {hint: [reading] for hint, reading in readings.items()})


def coefficient_hint(once: list[float], values: list[float], coef: float) -> str:
    """Why `values`, the penalties with kl_coef = `coef`, are not `coef` times those with 1, which are `once`."""
    readings = {
        "The value does not change with kl_coef: multiply by it.": once,
        "Your penalty grows with the square of kl_coef: multiply by it once.": [v * coef**2 for v in once],
        "Your penalty shrinks as kl_coef grows: you divide by it.": [v / coef for v in once],
        "kl_coef is added to your penalty; it is a factor.": [v + coef - 1 for v in once],
    }
    otherwise = f"With kl_coef = {coef} your penalty is not {coef} times that with kl_coef = 1."
    return first_that_fits(values, readings) or otherwise


def batch_hint(together: list[float], alone: list[float]) -> str:
    """Why the entries (completions, or pairs) have these values `together` in one batch, but others `alone`."""
    n, total = len(alone), sum(alone)
    readings = {
        "You average over the batch: return one number for each of its entries.": [total / n] * n,
        "You add up the whole batch: return one number for each of its entries.": [total] * n,
        "You divide by the number of completions in the batch.": [v / n for v in alone],
        "You subtract the mean of the batch.": [v - total / n for v in alone],
        "All entries of a batch get the same value: return one number for each.": together[:1] * n,
    }
    otherwise = "An entry's value changes with the others in its batch."
    return first_that_fits(together, readings) or otherwise
