"""Reference solution of the exercises in `rewards.py`. For instructors: not part of the hand-out."""

import math

# w = pi_ref / pi is capped at exp(10), about 22,000, against overflow. Under pi a weight above c has probability at
# most 1/c (Markov, as E[w] = 1), so the cap hardly changes what is learned.
MAX_LOG_WEIGHT = 10.0

SENTIMENT_WEIGHT = 1.0
REPETITION_WEIGHT = -0.5
LENGTH_WEIGHT = 0.2
TARGET_WORDS = (24, 60)


def kl_penalty_forward(
    log_probs_policy: list[list[float]], log_probs_ref: list[list[float]], kl_coef: float = 0.1
) -> list[float]:
    """kl_coef * sum_t log(pi / pi_ref): N floats, for N rows of T_i log-probs (nats) under either model.

    The k1 estimator of KL(pi || pi_ref). As a reward it is right in both senses: its mean over samples of pi is
    the KL of whole completions, and its policy gradient is that KL's gradient.
    """
    return [
        kl_coef * sum(lp - lr for lp, lr in zip(row_policy, row_ref, strict=True))
        for row_policy, row_ref in zip(log_probs_policy, log_probs_ref, strict=True)
    ]


def kl_penalty_backward(
    log_probs_policy: list[list[float]], log_probs_ref: list[list[float]], kl_coef: float = 0.1
) -> list[float]:
    """kl_coef * sum_t (1 - w_t) with w_t = pi_ref / pi: N floats, for N rows of T_i log-probs (nats).

    grad KL(pi_ref || pi) = -E_ref[grad log pi] = -E_pi[w grad log pi] = E_pi[(1 - w) grad log pi]: exact for one
    token, approximate for a completion near pi_ref (the weight of one token leaves out how likely pi_ref is to
    reach the prefix). The mean of 1 - w is 0, so it is no estimate of the KL. The estimate w * log w is the wrong
    penalty: near pi_ref it is about -log(pi / pi_ref), so it pushes pi *away*
    (Tang & Munos 2025, arXiv 2506.09477; Shah et al. 2025, arXiv 2512.21852).
    """
    return [
        kl_coef
        * sum(
            1.0 - math.exp(min(lr - lp, MAX_LOG_WEIGHT)) for lp, lr in zip(row_policy, row_ref, strict=True)
        )
        for row_policy, row_ref in zip(log_probs_policy, log_probs_ref, strict=True)
    ]


def shaped_reward(
    scores: list[float], completions: list[str], prompts: list[str] | None = None
) -> list[float]:
    """Composite of sentiment, repetition and length, one float for each of the N completions.

    R = SENTIMENT_WEIGHT * score + REPETITION_WEIGHT * repetition + LENGTH_WEIGHT * length, where repetition is
    1 - unique words / words in [0, 1), and length is 0 for a number of words in TARGET_WORDS (both ends
    included) and -1 outside, as for an empty text. The prompts are not needed.
    """
    rewards = []
    for score, completion in zip(scores, completions, strict=True):
        words = completion.lower().split()
        repetition = 1.0 - len(set(words)) / len(words) if words else 0.0
        length = 0.0 if TARGET_WORDS[0] <= len(words) <= TARGET_WORDS[1] else -1.0
        rewards.append(SENTIMENT_WEIGHT * score + REPETITION_WEIGHT * repetition + LENGTH_WEIGHT * length)
    return rewards


def preference_loss(chosen: list[float], rejected: list[float]) -> list[float]:
    """-log sigmoid(s_chosen - s_rejected) of N pairs, in nats (Bradley & Terry 1952).

    With d = s_rejected - s_chosen it is log(1 + e^d) = max(d, 0) + log(1 + e^-|d|), whose exponent is never positive.
    """
    gaps = [r - c for c, r in zip(chosen, rejected, strict=True)]
    return [max(d, 0.0) + math.log1p(math.exp(-abs(d))) for d in gaps]
