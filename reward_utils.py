"""The reward, built from its parts, and the exact log-probabilities behind its KL penalty.

Provided, you need not change this; you write the parts marked (yours) in `rewards.py`:

    reward = shape(score or 1 - score) - penalty
             (yours)                     (yours)

The penalty reaches GRPO as a number: no gradient flows through it. What it does to the policy is
E[penalty * grad log pi], which need not be the gradient of the KL whose value it estimates.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch.nn.functional import kl_div
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import pad

from kit.student import checked

Scorer = Callable[[Sequence[str]], list[float]]
LogProbs = list[list[float]]  # one row per completion, one natural log-probability per sampled token
SPARSE_THRESHOLD = 0.8


# ---- log-probs ---------------------------------------------------------------------------------------------


@torch.no_grad()
def token_log_probs(
    model: PreTrainedModel | PeftModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    temperature: float = 1.0,
    chunk_size: int = 16,
) -> LogProbs:
    """log pi(x_t | prompt, x_<t), in nats, of every sampled token of every completion, EOS included.

    `prompt_ids` and `completion_ids` hold N rows of token ids each, as they were sampled: text that is decoded
    and encoded again is often other tokens. The result has N rows, row i as long as completion i. Logits are
    divided by the sampling `temperature`, head and log-softmax are fp32 (bf16 logits are off by 0.1 nat a
    token), dropout is off, and the model's mode is put back. Memory is that of `chunk_size` rows.

    Raises:
        ValueError: an empty prompt (nothing predicts its first token), or lists of unequal length.
    """
    # Q6. No gradient is recorded here, nor by the sampler, and yet the penalty made of these numbers changes
    # the policy. Through which term, in whose code?
    rows: LogProbs = [[] for _ in prompt_ids]
    with evaluating(model):
        for chunk in chunks(prompt_ids, completion_ids, chunk_size):
            log_p = next_token_log_softmax(model, chunk, temperature)  # (N, V)
            chosen = log_p.gather(-1, chunk.sampled.to(log_p.device).unsqueeze(-1)).squeeze(-1)
            for row, values in zip(chunk.rows, chosen.split(chunk.lengths), strict=True):
                rows[row] = values.tolist()
    return rows


@torch.no_grad()
def exact_distances(
    policy: PreTrainedModel | PeftModel,
    reference: PreTrainedModel | None,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    temperature: float = 1.0,
) -> tuple[LogProbs, LogProbs, list[float], list[float]]:
    """(log pi, log pi_ref of the sampled tokens; KL(pi||pi_ref), KL(pi_ref||pi) of each completion), in nats.

    Both KLs are summed over the whole vocabulary at every prefix of a sampled completion:

        sum_t sum_v pi(v|x<t) log(pi(v|x<t) / pi_ref(v|x<t)),   and with the two models changing places.

    The mean of the first over samples of pi is KL(pi||pi_ref) of whole completions, with less variance than any
    function of the sampled tokens alone (Rao-Blackwell; Amini et al. 2025, arXiv 2504.10637), and it is right
    where those fail: a collapsed policy never samples the tokens that would tell. The second has its
    prefixes from pi too, as `kl_ref_policy` says. `reference` None means a LoRA policy, whose base is the reference.
    """
    vocabulary = policy.config.vocab_size
    longest = max(map(len, completion_ids), default=1)
    # 64 MB for each (N, V) tensor, of which five are alive at a time
    rows_at_once = max(1, min(16, 2**24 // (vocabulary * longest)))
    own: LogProbs = [[] for _ in prompt_ids]
    ref: LogProbs = [[] for _ in prompt_ids]
    kl_pq, kl_qp = [0.0] * len(own), [0.0] * len(own)
    with evaluating(policy):
        for chunk in chunks(prompt_ids, completion_ids, rows_at_once):
            log_p = next_token_log_softmax(policy, chunk, temperature)
            if reference is policy:
                log_q = log_p
            else:
                with as_reference(policy, reference) as model, evaluating(model):
                    log_q = next_token_log_softmax(model, chunk, temperature)
            # kl_div(a, b) is exp(b) (b - a): its arguments stand the other way round
            forth = kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)  # (N,)
            back = kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)
            at = chunk.sampled.to(log_p.device).unsqueeze(-1)
            columns = (log_p.gather(-1, at).squeeze(-1), log_q.gather(-1, at).squeeze(-1), forth, back)
            pieces = (column.double().split(chunk.lengths) for column in columns)
            for row, lp, lq, f, b in zip(chunk.rows, *pieces, strict=True):
                own[row], ref[row] = lp.tolist(), lq.tolist()
                kl_pq[row], kl_qp[row] = f.sum().item(), b.sum().item()
    return own, ref, kl_pq, kl_qp


class Chunk(NamedTuple):
    """Some completions with their prompts, as tensors. N: the completions' tokens of all rows together."""

    rows: list[int]  # which of the completions
    ids: torch.Tensor  # (B, L), padded on the right
    mask: torch.Tensor  # (B, L), 1 on real tokens
    predicting: torch.Tensor  # (B, L) True where the next token is one of the completion
    sampled: torch.Tensor  # (N,) these next tokens
    lengths: list[int]  # of the completions; they sum to N


def chunks(
    prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], size: int
) -> Iterator[Chunk]:
    """`size` completions at a time, shortest first: rows of one length have little padding.

    The token at position p is predicted at p - 1: the first one of the completion by the last of the prompt. Padding
    is on the right, so the positions 0, 1, 2, ... that the mask implies are the model's default.
    """
    if not all(prompt_ids):
        raise ValueError("log-probabilities need at least one prompt token in every row")
    pairs = list(zip(prompt_ids, completion_ids, strict=True))
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        tokens = [torch.tensor([*pairs[i][0], *pairs[i][1]]) for i in rows]
        ids = pad(tokens, padding_value=0, padding_side="right")
        mask = pad([torch.ones_like(row) for row in tokens], padding_value=0, padding_side="right")
        prompt_lengths = torch.tensor([len(pairs[i][0]) for i in rows])
        following = torch.arange(1, ids.shape[1] + 1)
        predicting = (following >= prompt_lengths[:, None]) & (following < mask.sum(1)[:, None])
        sampled = ids[:, 1:][predicting[:, :-1]]
        yield Chunk(rows, ids, mask, predicting, sampled, [len(pairs[i][1]) for i in rows])


def next_token_log_softmax(
    model: PreTrainedModel | PeftModel, chunk: Chunk, temperature: float
) -> torch.Tensor:
    """log softmax(logits / temperature) at every position that predicts a completion's token: (N, V), fp32."""
    lm = model.get_base_model() if isinstance(model, PeftModel) else model
    device = lm.get_input_embeddings().weight.device
    mask = chunk.mask.to(device)
    # The backbone alone: the trainer patches the whole model's forward with autocast and a fused head.
    hidden = lm.base_model(
        input_ids=chunk.ids.to(device), attention_mask=mask, position_ids=positions(mask), use_cache=False
    ).last_hidden_state  # (B, L, D)
    return scaled_logits(lm, hidden[chunk.predicting.to(device)], temperature).log_softmax(-1)


def scaled_logits(lm: PreTrainedModel, hidden: torch.Tensor, temperature: float) -> torch.Tensor:
    """(N, D) hidden states -> (N, V) logits / temperature: a language model's head, in fp32 whatever autocast says.

    bf16 logits are off by 0.1 nat a token.
    """
    # Q7. A rounding error of 0.1 nat a token has no preferred sign and leaves the mean of log pi - log pi_ref
    # as it is. Why would it harm the training all the same?
    with torch.autocast(hidden.device.type, enabled=False):
        logits = lm.get_output_embeddings()(hidden.float())
    # dividing 20 million logits by 1, and their gradients, is a thirtieth of a training step
    return logits if temperature == 1 else logits / temperature


@contextmanager
def evaluating(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Dropout off in the block; the model's mode is put back."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def as_reference(
    policy: PreTrainedModel | PeftModel, reference: PreTrainedModel | None
) -> Iterator[PreTrainedModel | PeftModel]:
    """pi_ref: the `reference` model, or without one the LoRA policy less its adapter."""
    if reference is not None:
        yield reference
    elif isinstance(policy, PeftModel):
        with policy.disable_adapter():
            yield policy
    else:
        raise ValueError(
            "without a reference model the policy must be a LoRA model, whose base is the reference"
        )


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Position of every real token, counted over real tokens only: (B, L) mask -> (B, L) ids."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def reference_log_probs(
    policy: PreTrainedModel | PeftModel, reference: PreTrainedModel | None, *args: Any, **kwargs: Any
) -> LogProbs:
    """`token_log_probs` under pi_ref."""
    with as_reference(policy, reference) as model:
        return token_log_probs(model, *args, **kwargs)


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


def sparse_reward(scores: Sequence[float], completions: Sequence[str], prompts: object = None) -> list[float]:
    """1 if P(positive) >= 0.8 else 0. A group in which all agree teaches nothing: its advantages are zero."""
    # Q11. If a completion passes with probability p, how many groups of 8 are flat? Compute it for 0.1, 0.3
    # and 0.5, and compare with the first steps of train/zero_std_groups.
    return [1.0 if score >= SPARSE_THRESHOLD else 0.0 for score in scores]


def linear_reward(scores: Sequence[float], completions: Sequence[str], prompts: object = None) -> list[float]:
    """The score as it is."""
    return list(scores)


class RewardFunction:
    """reward = shape(score or 1 - score) - penalty(log pi, log pi_ref, kl_coef), as `GRPOTrainer` calls it.

    Build it with `make_reward_function`. The policy is set once the trainer exists (`reward.policy = ...`):
    with LoRA the trainer wraps the model, and the KL must be that of the model in training.
    """

    __name__ = "reward"

    def __init__(
        self,
        score: Scorer,
        tokenizer: PreTrainedTokenizerBase,
        shape: Callable[..., list[float]],
        penalty: Callable[..., list[float]] | None,
        kl_coef: float,
        negate: bool,
        temperature: float,
        reference: PreTrainedModel | None,
    ) -> None:
        self.score, self.tokenizer, self.shape, self.penalty = score, tokenizer, shape, penalty
        self.kl_coef, self.negate, self.temperature = kl_coef, negate, temperature
        self.reference = reference
        self.policy: PreTrainedModel | PeftModel | None = None

    def base_reward(
        self, completions: Sequence[str], prompts: Sequence[str]
    ) -> tuple[list[float], list[float]]:
        """(scores, shaped scores) of N completions, without their prompts and without the KL penalty.

        The scores are P(positive) before `negate`; the student's shape sees the negated ones, and the completion
        alone, so that its length and repetition terms keep their meaning.
        """
        scores = self.score(completions)
        return scores, self.shaped(scores, completions, prompts)

    def shaped(
        self, scores: Sequence[float], completions: Sequence[str], prompts: Sequence[str]
    ) -> list[float]:
        """What the shape makes of N scores, turned into 1 - score first where the reward is negated."""
        signed = [1.0 - s for s in scores] if self.negate else list(scores)
        return checked(self.shape, signed, list(completions), list(prompts))

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        policy_log_probs: LogProbs | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **_: object,
    ) -> list[float]:
        """N rewards for N sampled completions. Each part is its own series through TRL's `log_metric`.

        `policy_log_probs` are those of the sampled tokens where the sampler has them (`kit.sampling.rollout`).
        """
        scores, shaped = self.base_reward(completions, prompts)
        n = len(completions)
        penalties, series = [0.0] * n, {}
        if self.policy is not None:
            prompt_ids = self.tokenizer(prompts)["input_ids"]
            policy_rows = policy_log_probs or token_log_probs(
                self.policy, prompt_ids, completion_ids, self.temperature
            )
            ref_rows = reference_log_probs(
                self.policy, self.reference, prompt_ids, completion_ids, self.temperature
            )
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
        if log_extra is not None:
            for name, values in series.items():
                log_extra(name, values)
        return rewards


def make_reward_function(
    score: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reward_shaping: str = "linear",
    kl_type: str = "none",
    kl_coef: float = 0.1,
    negate: bool = False,
    temperature: float = 1.0,
    reference: PreTrainedModel | None = None,
    student: object = None,
) -> RewardFunction:
    """Put the reward together.

    `student` is the module, from `load_student`, whose `shaped_reward`, `kl_penalty_forward` and
    `kl_penalty_backward` are used for `reward_shaping="shaped"` and `kl_type="forward" | "backward"`.
    `reference` is pi_ref; None means a LoRA policy, whose base is the reference.
    """
    shape: dict[str, Any] = {
        "linear": linear_reward,
        "sparse": sparse_reward,
        "shaped": getattr(student, "shaped_reward", None),
    }
    penalty = {
        "none": None,
        "forward": getattr(student, "kl_penalty_forward", None),
        "backward": getattr(student, "kl_penalty_backward", None),
    }
    return RewardFunction(
        score, tokenizer, shape[reward_shaping], penalty[kl_type], kl_coef, negate, temperature, reference
    )
