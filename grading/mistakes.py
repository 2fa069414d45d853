"""The classic wrong answers to the two KL penalties, recognised by their values, and a hint for each.

A hint names the mistake and points to the idea; it never states the answer. The values are stored as numbers and not
as formulas, since students have this file; `tests/grading/test_mistakes.py` recomputes them from the formulas.
"""

import math

from grading.submission import BACKWARD, FORWARD, TOLERANCE, Mistake, Student, all_close, close

# ---- the table ---------------------------------------------------------------------------------------------

# (pi, pi_ref) of the one token of a completion; the values below are for these four, with kl_coef = 1.
PROBE = ((0.5, 0.25), (0.2, 0.6), (0.4, 0.1), (0.1, 0.7))

# Wrong for both penalties, and for the same reason.
WRONG_FOR_BOTH = {
    (0.240227, 0.603474, 0.960906, 1.893283): (
        "This is k2, half the squared log-ratio: its policy gradient, inside a reward, is not the KL's."
    ),
    (0.193147, 0.901388, 0.636294, 4.054090): (
        "This is k3 (Schulman's low-variance estimator). Its mean is KL(pi || pi_ref), but inside a reward its policy "
        "gradient is not a KL's."
    ),
    (0.346574, -0.219722, 0.554518, -0.194591): (
        "You weight the log-ratio by pi(token), but the samples come from pi: likely tokens are counted twice."
    ),
    (-0.173287, 0.659167, -0.138629, 1.362137): (
        "You weight by pi_ref(token), as if summing over all tokens. But the samples come from pi."
    ),
    (0.250000, -0.400000, 0.300000, -0.600000): (
        "You subtract probabilities. The ratio of two probabilities is a difference of log-probabilities."
    ),
    (-0.693147, -1.609438, -0.916291, -2.302585): (
        "Only the policy's log-probabilities are used: that rewards entropy. Use the reference too."
    ),
    (0.693147, 1.609438, 0.916291, 2.302585): (
        "Only the policy's log-probabilities are used. Use the reference too."
    ),
    (1.386294, 0.510826, 2.302585, 0.356675): (
        "Only the reference's log-probabilities are used: that is a cross-entropy. Use the policy too."
    ),
}
WRONG_TERMS = {
    FORWARD: {
        (-0.693147, 1.098612, -1.386294, 1.945910): (
            "This is log(pi_ref / pi): the sign is wrong, or the two arguments are swapped. The penalty is subtracted "
            "from the reward; it has to charge the tokens that pi likes better than pi_ref does."
        ),
        (0.693147, 1.098612, 1.386294, 1.945910): (
            "You take the absolute value of the log-ratio. A single value may be negative; without the sign the mean "
            "is no KL."
        ),
        (0.693147, 0.000000, 1.386294, 0.000000): (
            "You clamp the log-ratio at 0. A single value may be negative; cutting that off changes the mean."
        ),
        (0.000000, -1.098612, 0.000000, -1.945910): (
            "You keep only the negative log-ratios. The mean that is the KL needs both signs."
        ),
        (0.693147, -1.000000, 1.000000, -1.000000): (
            "You clip the log-ratio to [-1, 1], which hides a large divergence."
        ),
        (0.480453, 1.206949, 1.921812, 3.786566): (
            "You square the log-ratio: tokens that pi likes less than pi_ref does then cost as much as the others."
        ),
        (-0.346574, 3.295837, -0.346574, 13.621371): (
            "This is w * log w with w = pi_ref / pi, a value of the *other* KL. Samples of pi need no weight here."
        ),
        (0.500000, -2.000000, 0.750000, -6.000000): (
            "This is a penalty for KL(pi_ref || pi), exercise 1b. The two KLs agree only for close models."
        ),
        (2.000000, 0.333333, 4.000000, 0.142857): "This is the ratio pi / pi_ref: a log is missing.",
        (1.000000, -0.666667, 3.000000, -0.857143): (
            "This is pi / pi_ref - 1. It is near the log-ratio for close models, but its mean is another divergence "
            "(chi-squared)."
        ),
        (0.500000, 3.000000, 0.250000, 7.000000): (
            "This is the ratio pi_ref / pi: a log is missing, and the ratio is upside down."
        ),
        (-1.386294, -0.510826, -2.302585, -0.356675): (
            "Only the reference's log-probabilities are used, and likely tokens cost most. Use the policy too."
        ),
        (-2.079442, -2.120264, -3.218876, -2.659260): (
            "You add the two log-probabilities; the log of a ratio is their difference."
        ),
        (1.000000, -1.584963, 2.000000, -2.807355): (
            "You count in bits (log base 2); the penalty is in nats, like the log-probabilities."
        ),
        **WRONG_FOR_BOTH,
    },
    BACKWARD: {
        (-0.500000, 2.000000, -0.750000, 6.000000): (
            "The sign is wrong. Your penalty is *subtracted* from the reward: should a token that pi uses too often "
            "be charged or paid?"
        ),
        (-1.000000, 0.666667, -3.000000, 0.857143): (
            "The weight is upside down, or the two arguments are swapped: samples of pi stand for samples of pi_ref "
            "if each is weighted by w = pi_ref / pi."
        ),
        (1.000000, -0.666667, 3.000000, -0.857143): (
            "You use the ratio pi / pi_ref. Samples of pi stand for samples of pi_ref if each is weighted by w = "
            "pi_ref / pi."
        ),
        (-0.500000, -3.000000, -0.250000, -7.000000): (
            "The gradient is right, but the penalty is not 0 where the models agree (question 3 of the exercise): a "
            "constant for each token is missing, and long completions are paid for their length."
        ),
        (0.500000, 3.000000, 0.250000, 7.000000): (
            "You charge the weight w itself. It is largest on tokens that pi_ref likes and pi neglects: should those "
            "be charged?"
        ),
        (2.000000, 0.333333, 4.000000, 0.142857): (
            "You charge pi / pi_ref. Samples of pi stand for samples of pi_ref if each is weighted by w = pi_ref / pi."
        ),
        (-0.346574, 3.295837, -0.346574, 13.621371): (
            "This is w * log w. Its mean is a KL, but as a reward it has the wrong sign: it charges tokens that pi "
            "neglects. Work out questions 1 and 2 of the exercise: what stands in front of grad log pi?"
        ),
        (0.346574, -3.295837, 0.346574, -13.621371): (
            "This is -w * log w. Turning the sign of w * log w helps, but its gradient is not that of KL(pi_ref || "
            "pi), and tokens with w near 0 are free. Question 2 of the exercise: what stands in front of grad log pi?"
        ),
        (0.693147, -1.098612, 1.386294, -1.945910): (
            "This is the log-ratio of exercise 1a. The two KLs agree for close models only; here each sample of pi "
            "needs the weight w = pi_ref / pi."
        ),
        (-0.693147, 1.098612, -1.386294, 1.945910): (
            "This is log(pi_ref / pi) without the weight: its mean over samples of pi is -KL(pi || pi_ref), and a "
            "penalty has to charge the tokens that pi uses too often."
        ),
        (0.500000, 2.000000, 0.750000, 6.000000): (
            "You take an absolute value: tokens that pi neglects then cost as much as those it overuses."
        ),
        (0.500000, 0.000000, 0.750000, 0.000000): (
            "You cut off the negative values (or cap the weight at 1): tokens that pi neglects must be paid."
        ),
        (0.000000, -2.000000, 0.000000, -6.000000): (
            "You cut off the positive values: the tokens that pi overuses are then free."
        ),
        (0.250000, 4.000000, 0.562500, 36.000000): (
            "You square: tokens that pi neglects then cost as much as those it overuses."
        ),
        (0.153426, 1.295837, 0.403426, 7.621371): (
            "This is w * log w - w + 1, the best estimate of the *value* of this KL. But inside a reward it is a "
            "constant: what counts is E[f grad log pi], question 2 of the exercise."
        ),
        (0.306853, 0.431946, 1.613706, 1.088767): (
            "This is k3 with the ratio upside down; its policy gradient, inside a reward, is not a KL's."
        ),
        (1.693147, -0.098612, 2.386294, -0.945910): (
            "An exp() is missing: the weight is a ratio of probabilities, not a difference of their logs."
        ),
        (-1.693147, 0.098612, -2.386294, 0.945910): (
            "An exp() is missing: the weight is a ratio of probabilities, not a difference of their logs."
        ),
        **WRONG_FOR_BOTH,
    },
}


# ---- recognising them --------------------------------------------------------------------------------------


def diagnose(student: Student, name: str) -> list[str]:
    """Hints that name what a failing KL penalty computes instead, as far as it is one of the classic mistakes."""
    pairs = [(math.log(p), math.log(r)) for p, r in PROBE]
    same = (math.log(0.5), math.log(0.5))
    whole_pair = (sum(a for a, _ in pairs[:3]), sum(b for _, b in pairs[:3]))
    try:
        terms = [student.penalties(name, [[pair]])[0] for pair in pairs]
        together = student.penalties(name, [[pair] for pair in pairs])
        (row,) = student.penalties(name, [pairs[:3]])
        (whole,) = student.penalties(name, [[whole_pair]])
        (from_last,) = student.penalties(name, [[same, pairs[0]]])
        (from_first,) = student.penalties(name, [[pairs[0], same]])
    except Mistake:
        return []
    hints = [hint for numbers, hint in WRONG_TERMS[name].items() if all_close(terms, list(numbers))]
    if not all_close(together, terms):
        hints.append(batch_hint(together, terms))
    if all(abs(term) < TOLERANCE for term in terms):
        ends = {"last": from_last, "first": from_first}
        dropped = [which for which, value in ends.items() if abs(value) < TOLERANCE]
        if len(dropped) == 1:
            hints.append(f"The {dropped[0]} token of each completion is dropped: every sampled token counts.")
    elif not hints and min(abs(terms[i] - terms[j]) for i, j in ((0, 2), (1, 3))) < TOLERANCE:
        hints.append(
            "Tokens on which the models differ by different amounts cost the same: you clip too early."
        )
    token_by_token, all_at_once = close(row, sum(terms[:3])), close(row, whole)
    if any(terms) and not token_by_token and not all_at_once:
        hints += row_hints(row, terms[:3])
    return hints


def row_hints(row: float, terms: list[float]) -> list[str]:
    """How a completion of three tokens got the penalty `row` from its tokens' three `terms`: one hint, or none."""
    first, *middle, last = terms
    readings = {
        "You average over the tokens of a completion; its KL is a sum over them.": sum(terms) / 3,
        "The first token of each completion is dropped: every sampled token counts.": sum([*middle, last]),
        "The last token of each completion is dropped: every sampled token counts.": sum([first, *middle]),
        "Only the first token of each completion counts; add up all of them.": first,
        "Only the last token of each completion counts; add up all of them.": last,
        "You multiply the tokens' terms; add them up.": math.prod(terms),
        "Only the largest term of each completion counts; add up all of them.": max(terms),
        "The sum over tokens is multiplied by their number once more.": 3 * sum(terms),
    }
    return [hint for hint, reading in readings.items() if close(row, reading)][:1]


def coefficient_hint(once: list[float], values: list[float], coef: float) -> str:
    """Why `values`, the penalties with kl_coef = `coef`, are not `coef` times those with 1, which are `once`."""
    readings = {
        "The value does not change with kl_coef: multiply by it.": once,
        "Your penalty grows with the square of kl_coef: you multiply by it twice.": [
            v * coef**2 for v in once
        ],
        "Your penalty shrinks as kl_coef grows: you divide by it.": [v / coef for v in once],
        "kl_coef is added to your penalty; it is a factor.": [v + coef - 1 for v in once],
    }
    for hint, reading in readings.items():
        if all_close(values, reading):
            return hint
    return f"With kl_coef = {coef} your penalty is not {coef} times that with kl_coef = 1."


def batch_hint(together: list[float], alone: list[float]) -> str:
    """Why completions cost `together` in one batch, but `alone` in batches of their own."""
    n = len(alone)
    mean = sum(alone) / n
    average = "You average over the batch: every completion gets the same value. Return one penalty for each."
    total = "You add up the whole batch: every completion gets the total. Return one penalty for each."
    divided = "You divide by the number of completions in the batch; each one's penalty is its own."
    centred = "You subtract the mean of the batch; each completion's penalty is its own."
    readings = {
        average: [mean] * n,
        total: [mean * n] * n,
        divided: [v / n for v in alone],
        centred: [v - mean for v in alone],
    }
    for hint, reading in readings.items():
        if all_close(together, reading):
            return hint
    if max(together) - min(together) < TOLERANCE:
        return "All completions of a batch get the same value: return one penalty for each."
    return "A completion's penalty changes with the others in its batch; each one's penalty is its own."
