"""The reward, built from its parts, and the exact log-probabilities behind its KL penalty.

Provided, you need not change this; you write the parts marked (yours) in `rewards.py`:

    reward = shape(score or 1 - score) - penalty
             (yours)                     (yours)

The penalty reaches GRPO as a number: no gradient flows through it. What it does to the policy is
E[penalty * grad log pi], which need not be the gradient of the KL whose value it estimates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from kit.base.student import checked
from kit.lm.loading import Tokenizer
from kit.lm.log_probs import LanguageModel, LogProbs, reference_log_probs, token_log_probs

Scorer = Callable[[Sequence[str]], list[float]]


# ---- KL estimated from the sampled tokens (ours, never the student's) ----------------------------------------
# Cheap enough for every training step; validation and evaluation sum over the vocabulary (`exact_distances`).
# d = log pi - log pi_ref of a token sampled from pi, w = exp(-d) = pi_ref/pi. Both forms are >= 0 for every
# token and have less variance than d and -w*d, whose expectations they share because E_pi[w] = 1
# (Schulman 2020, "Approximating KL divergence").

MAX_LOG_RATIO = 80.0  # exp(80) is 5e34: past any sane model, and still a finite float32


def kl_policy_ref(log_probs_policy: LogProbs, log_probs_ref: LogProbs) -> list[float]:
    """KL(pi||pi_ref) of each completion in nats: sum_t (w_t - 1 + d_t), the estimator called k3."""
    # Q8. Same mean as the sum of d, less noise. Why is it not the better answer to exercise 1a?
    return _sum_over_tokens(lambda d: math.expm1(min(-d, MAX_LOG_RATIO)) + d, log_probs_policy, log_probs_ref)


def kl_ref_policy(log_probs_policy: LogProbs, log_probs_ref: LogProbs) -> list[float]:
    """KL(pi_ref||pi) of each completion in nats: sum_t (w_t log w_t - w_t + 1).

    Token by token, on prefixes sampled from pi: sum_t E_{x<t ~ pi} KL(pi_ref(.|x<t)||pi(.|x<t)). The
    KL of whole completions would draw its prefixes from pi_ref.
    """

    # Q9. Describe a policy for which this is a few nats and KL(pi_ref||pi) of whole completions is hundreds.
    def estimate(d: float) -> float:
        log_w = min(-d, MAX_LOG_RATIO)
        return math.exp(log_w) * log_w - math.expm1(log_w)

    return _sum_over_tokens(estimate, log_probs_policy, log_probs_ref)


def _sum_over_tokens(estimate: Callable[[float], float], policy: LogProbs, ref: LogProbs) -> list[float]:
    return [
        math.fsum(estimate(a - b) for a, b in zip(row, ref_row, strict=True))
        for row, ref_row in zip(policy, ref, strict=True)
    ]


# ---- the reward --------------------------------------------------------------------------------------------


def sparse_reward(threshold: float) -> Callable[..., list[float]]:
    """1 if P(positive) >= threshold else 0. A group in which all agree teaches nothing: its advantages are zero."""

    def sparse(scores: Sequence[float], completions: Sequence[str], prompts: object = None) -> list[float]:
        # Q11. If a completion passes with probability p, how many groups of 8 are flat? Compute it for 0.01,
        # 0.1 and 0.5, and compare with the first steps of train/zero_std_groups.
        return [1.0 if score >= threshold else 0.0 for score in scores]

    return sparse


def linear_reward(scores: Sequence[float], completions: Sequence[str], prompts: object = None) -> list[float]:
    """The score as it is."""
    return list(scores)


@dataclass(eq=False, repr=False)
class RewardFunction:
    """reward = shape(score or 1 - score) - penalty(log pi, log pi_ref, kl_coef), as `GRPOTrainer` calls it.

    Build it with `make_reward_function`. The policy is set once the trainer exists (`reward.policy = ...`):
    with LoRA the trainer wraps the model, and the KL must be that of the model in training.
    """

    score: Scorer
    tokenizer: Tokenizer
    shape: Callable[..., list[float]]
    penalty: Callable[..., list[float]] | None
    kl_coef: float
    negate: bool
    temperature: float
    reference: PreTrainedModel | None
    policy: LanguageModel | None = None
    __name__ = "reward"

    def base_reward(self, texts: Sequence[str], prompts: Sequence[str]) -> tuple[list[float], list[float]]:
        """(scores, shaped scores) of N completions, without their prompts and without the KL penalty.

        The scores are P(positive) before `negate`; the student's shape sees the negated ones, and the completion
        alone, so that its length and repetition terms keep their meaning.
        """
        scores = self.score(texts)
        return scores, self.shaped(scores, texts, prompts)

    def shaped(self, scores: Sequence[float], texts: Sequence[str], prompts: Sequence[str]) -> list[float]:
        """What the shape makes of N scores, turned into 1 - score first where the reward is negated."""
        signed = [1.0 - s for s in scores] if self.negate else list(scores)
        return checked(self.shape, signed, list(texts), list(prompts))

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        policy_log_probs: LogProbs | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: object,
    ) -> list[float]:
        """N rewards for N sampled completions. Each part is its own series through TRL's `log_metric`.

        `policy_log_probs` are those of the sampled tokens where the sampler has them (`kit.lm.sampling.rollout`).
        """
        scores, shaped = self.base_reward(completions, prompts)
        n = len(completions)
        penalties, series = [0.0] * n, {}
        if self.policy is not None:
            prompt_ids = self.tokenizer(prompts)["input_ids"]
            sampled = (prompt_ids, completion_ids, self.temperature)
            policy_rows = policy_log_probs or token_log_probs(self.policy, *sampled)
            ref_rows = reference_log_probs(self.policy, self.reference, *sampled)
            series["kl_policy_ref"] = kl_policy_ref(policy_rows, ref_rows)
            series["kl_ref_policy"] = kl_ref_policy(policy_rows, ref_rows)
            if self.penalty is not None:
                penalties = checked(self.penalty, policy_rows, ref_rows, self.kl_coef)
        # Q12. The scores of a group lie between 0.98 and 1.00, its KLs are spread over 3 nats, kl_coef is
        # 0.1. What does an advantage consist of? And with scores all over [0, 1]?
        rewards = [s - p for s, p in zip(shaped, penalties, strict=True)]
        series = {"score": scores, "shaped": shaped, "kl_penalty": penalties, **series}
        if log_metric is not None:
            for name, values in series.items():
                log_metric(name, sum(values) / n)
        return rewards


def make_reward_function(
    score: Scorer,
    tokenizer: Tokenizer,
    *,
    reward_shaping: str = "linear",
    sparse_threshold: float = 0.8,
    kl_type: str = "none",
    kl_coef: float = 0.1,
    negate: bool = False,
    temperature: float = 1.0,
    reference: PreTrainedModel | None = None,
    student: Any = None,
) -> RewardFunction:
    """Put the reward together.

    `student` is the module, from `load_student`, whose `shaped_reward`, `kl_penalty_forward` and
    `kl_penalty_backward` are used for `reward_shaping="shaped"` and `kl_type="forward" | "backward"`.
    `reference` is pi_ref; None means a LoRA policy, whose base is the reference.
    """
    ours = {"linear": linear_reward, "sparse": sparse_reward(sparse_threshold)}
    shape = ours.get(reward_shaping) or student.shaped_reward
    # Q35. Somebody gives the current policy as `reference`, copied anew after every step. What is the penalty worth
    # then, and what holds the policy near the base?
    penalty = None if kl_type == "none" else getattr(student, f"kl_penalty_{kl_type}")
    return RewardFunction(score, tokenizer, shape, penalty, kl_coef, negate, temperature, reference)
