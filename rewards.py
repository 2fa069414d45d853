"""The only file you edit: two KL penalties, a shaped reward and (optional) a loss, in plain Python.

Check your work at any time, in about a second and without a GPU:

    python rewards.py                               all of them, or one: python rewards.py kl_penalty_forward

The grader has Python's standard library and numpy; nothing else can be imported there.

During training the model `pi` (the policy) writes completions, and each gets

    reward = shape(score) - penalty

The score is P(positive) of the completion. The penalty keeps the policy near the model it started from, `pi_ref` (the
reference). Two KL divergences measure that distance:

    KL(pi || pi_ref) = sum_x pi(x)     * log( pi(x) / pi_ref(x) )     here: "forward"
    KL(pi_ref || pi) = sum_x pi_ref(x) * log( pi_ref(x) / pi(x) )     here: "backward"

The names: here "forward" has the sampling model first. Most papers on RLHF call that one *reverse* KL.

Both penalties get the same two arguments: `log_probs_policy` and `log_probs_ref` have N rows, one per completion.
Row i has T_i floats: the natural-log probability that the policy, or the reference, gives to each *sampled*
token of completion i, the end-of-text token included. Row i has the same length for both models; different rows may
have different lengths. All completions were sampled from pi.
"""

from __future__ import annotations  # lets a Python that is too old say so


def kl_penalty_forward(
    log_probs_policy: list[list[float]], log_probs_ref: list[list[float]], kl_coef: float = 0.1
) -> list[float]:
    """Exercise 1a: charge each completion for its part in KL(pi || pi_ref).

    With x ~ pi, KL(pi || pi_ref) = E[ log pi(x) - log pi_ref(x) ], and a completion's log-probability is the sum of
    its tokens'. Your penalty must average to kl_coef * KL(pi || pi_ref) over the policy's own samples, in nats per
    *completion*: tokens add up, they are not averaged.

    Args:
        log_probs_policy: N rows of T_i natural-log probabilities under pi.
        log_probs_ref: the same tokens under pi_ref; same shape.
        kl_coef: strength of the penalty; 0 turns it off.

    Returns:
        N floats, in nats times kl_coef; float i depends on completion i alone. They are *subtracted* from the reward.
        Single values may be negative; their mean over many samples may not.

    By hand: pi gives two tokens the probabilities 0.5 and 0.5, pi_ref gave them 0.25 and 0.5, kl_coef = 2:

        kl_penalty_forward([[-0.6931, -0.6931]], [[-1.3863, -0.6931]], 2.0)  ->  [1.3863]

    Edge cases: an empty row costs 0.0, an empty batch returns []; a row may have one token or thousands; do not
    change the arguments.

    Check: `python rewards.py kl_penalty_forward`.
    """
    raise NotImplementedError("Exercise 1a: kl_penalty_forward")


def kl_penalty_backward(
    log_probs_policy: list[list[float]], log_probs_ref: list[list[float]], kl_coef: float = 0.1
) -> list[float]:
    """Exercise 1b, mostly with a pencil: a penalty that drives KL(pi_ref || pi) down.

    The samples still come from pi, so each token needs an importance weight w = pi_ref(token) / pi(token), and

        KL(pi_ref || pi) = E[ w * log w ]     for a single token drawn from pi.

    That is the right *value*. But a reward is a constant to the optimiser: no gradient flows through it. What a
    penalty f teaches is its policy gradient, E[ f * grad log pi ]. Before you write any code:

    1. One token; pi = (1/2, 1/2), pi_ref = (1/4, 3/4). Work out w * log w for either token. Which of the two does
       the policy use too often? Which one would that penalty charge, and which would it reward?
    2. Write KL(pi_ref || pi) as a sum over tokens under pi_ref, and take its gradient in the parameters of pi.
       Turn the sum into a mean over samples of pi. What stands in front of grad log pi?
    3. E[ grad log pi ] = 0, so a constant may be added for each token without changing what is taught. Which
       one makes the penalty 0 wherever both models agree?

    Args, shapes and units are those of exercise 1a, and again the tokens' terms add up. (Weighting the whole
    completion at once, by the product of its tokens' weights, is also right, and noisier.)

    Returns:
        N floats times kl_coef, to be *subtracted* from the reward. Some are negative. Here even the mean over samples
        says nothing; the gradient counts.

    By hand, the two tokens of question 1 as two completions:

        kl_penalty_backward([[-0.6931], [-0.6931]], [[-1.3863], [-0.2877]], 1.0)  ->  [0.5, -0.5]

    Edge cases: those of exercise 1a. And exp() overflows above 709, so cap the weight, at 10 or more: a lower
    cap changes what is taught. The result must be finite when the models are 800 nats apart on a token, and when
    pi_ref gives a token log-probability -inf.

    Check: `python rewards.py kl_penalty_backward`.
    """
    raise NotImplementedError("Exercise 1b: kl_penalty_backward")


def shaped_reward(
    scores: list[float], completions: list[str], prompts: list[str] | None = None
) -> list[float]:
    """Exercise 2: turn the scores into a reward that is harder to cheat.

    Read what the unpenalised policy writes, decide what you do not want to see, and make it expensive. There is no
    one right answer. Three things are certainly wrong:

    - a reward that is the same for all completions, or in which the score no longer counts;
    - an affine reward, a * score + b with a > 0 and the same a and b for the whole batch: GRPO subtracts the mean
      of each group of completions and divides by its standard deviation, so without a penalty a and b cancel and
      nothing has changed;
    - a function of the score alone: what fools the classifier best still earns most.

    The check measures yours on fixed texts and shows what they earn. One word over and over, a phrase over and
    over, three words, and no word must earn clearly less than honest praise. Word salad is left to the KL penalty.

    Args:
        scores: N probabilities in [0, 1] that the completion is positive (higher is wanted).
        completions: N texts, without their prompts; any of them may be empty or blank.
        prompts: N texts the completions continue, or None.

    Returns:
        N finite floats, higher is better. Within a batch the same text earns the same reward, whatever its place.

    By hand, for the (affine, so wrong!) reward 2 * score - 1:

        shaped_reward([0.9, 0.5], ["A delight.", "It is a film."])  ->  [0.8, 0.0]

    Check: `python rewards.py shaped_reward`.
    """
    raise NotImplementedError("Exercise 2: shaped_reward")


def preference_loss(chosen: list[float], rejected: list[float]) -> list[float]:
    """Exercise 8, optional: the loss that trains a reward model on people's choices between two texts.

    The model gives each text a score. Bradley and Terry (1952) say how likely a person chooses the first of two:

        P(first) = exp(s_first) / (exp(s_first) + exp(s_second))

    Your loss is minus the log of the probability of the choice that was made.

    Args:
        chosen: N scores, in nats, of the texts that were chosen.
        rejected: the scores of the N texts that they were preferred to.

    Returns:
        N floats, in nats; float i depends on pair i alone.

    By hand, scores that are equal, and a choice with probability 3/4, as log 3 = 1.0986:

        preference_loss([0.0, 1.0986], [0.0, 0.0])  ->  [0.6931, 0.2877]

    Edge cases: an empty batch returns []. exp() overflows above 709: the result must be right when two scores are 800
    apart, and when both are 1,000. It depends on one number only; which?

    Check: `python rewards.py preference_loss`.
    """
    raise NotImplementedError("Exercise 8: preference_loss")


if __name__ == "__main__":
    from grading.self_check import main

    main(__file__)
