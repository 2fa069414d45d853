"""The reward, built from its parts, and the exact log-probabilities behind its KL penalty.

Provided, you need not change this; you write the parts marked (yours) in `rewards.py`:

    reward = shape(score or 1 - score) - penalty
             (yours)                     (yours)

The penalty reaches GRPO as a number: no gradient flows through it. What it does to the policy is
E[penalty * grad log pi], which need not be the gradient of the KL whose value it estimates.
"""

import importlib
import inspect
import math
import numbers
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import pad

from kit.errors import UserError

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

    Rows are padded on the right, so the positions 0, 1, 2, ... that the mask implies are the model's default.
    The token at position p is predicted by the logits at p - 1: completion token 0 by the last prompt token.

    Raises:
        ValueError: an empty prompt (nothing predicts its first token), or lists of unequal length.
    """
    if not all(prompt_ids):
        raise ValueError("token_log_probs needs at least one prompt token in every row")
    lm = model.get_base_model() if isinstance(model, PeftModel) else model
    device = lm.get_input_embeddings().weight.device
    was_training = model.training
    model.eval()
    pairs = [(len(p), [*p, *c]) for p, c in zip(prompt_ids, completion_ids, strict=True)]
    rows: LogProbs = [[] for _ in pairs]
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][1]))  # rows of one length: little padding
    try:
        for start in range(0, len(order), chunk_size):
            chunk = order[start : start + chunk_size]
            tokens = [torch.tensor(pairs[i][1]) for i in chunk]
            ids = pad(tokens, padding_value=0, padding_side="right").to(device)  # (B, L)
            real = [torch.ones_like(row) for row in tokens]
            mask = pad(real, padding_value=0, padding_side="right").to(device)
            # The backbone alone: the trainer patches the whole model's forward with autocast and a fused head.
            hidden = lm.base_model(
                input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False
            ).last_hidden_state  # (B, L, D)
            # The completions' tokens of all rows at once: (N, D) hidden states and the (N,) tokens that come next
            starts = torch.tensor([pairs[i][0] for i in chunk], device=device)
            sampled = (torch.arange(1, ids.shape[1], device=device) >= starts[:, None]) & mask[:, 1:].bool()
            logits = lm.get_output_embeddings()(hidden[:, :-1][sampled]).float() / temperature  # (N, V)
            chosen = logits.log_softmax(-1).gather(-1, ids[:, 1:][sampled].unsqueeze(-1))
            for i, values in zip(chunk, chosen.squeeze(-1).split(sampled.sum(1).tolist()), strict=True):
                rows[i] = values.tolist()
    finally:
        model.train(was_training)
    return rows


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Position of every real token, counted over real tokens only: (B, L) mask -> (B, L) ids."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def reference_log_probs(
    policy: PreTrainedModel | PeftModel, reference: PreTrainedModel | None, *args: Any, **kwargs: Any
) -> LogProbs:
    """`token_log_probs` under pi_ref: the `reference` model, or without one the LoRA policy less its adapter."""
    if reference is not None:
        return token_log_probs(reference, *args, **kwargs)
    if not isinstance(policy, PeftModel):
        raise ValueError(
            "without a reference model the policy must be a LoRA model, whose base is the reference"
        )
    with policy.disable_adapter():
        return token_log_probs(policy, *args, **kwargs)


# ---- measured KL (ours, never the student's) ---------------------------------------------------------------
# d = log pi - log pi_ref of a token sampled from pi, w = exp(-d) = pi_ref/pi. Both forms are >= 0 for every
# token and have less variance than d and -w*d, whose expectations they share because E_pi[w] = 1
# (Schulman 2020, "Approximating KL divergence").

MAX_LOG_RATIO = 80.0  # exp(80) is 5e34: past any sane model, and still a finite float32


def kl_policy_ref(log_probs_policy: LogProbs, log_probs_ref: LogProbs) -> list[float]:
    """KL(pi||pi_ref) of each completion in nats: sum_t (w_t - 1 + d_t), the estimator called k3."""
    return _sum_over_tokens(lambda d: math.expm1(min(-d, MAX_LOG_RATIO)) + d, log_probs_policy, log_probs_ref)


def kl_ref_policy(log_probs_policy: LogProbs, log_probs_ref: LogProbs) -> list[float]:
    """KL(pi_ref||pi) of each completion in nats: sum_t (w_t log w_t - w_t + 1).

    Token by token, on prefixes sampled from pi: sum_t E_{x<t ~ pi} KL(pi_ref(.|x<t)||pi(.|x<t)). The
    KL of whole completions would draw its prefixes from pi_ref.
    """

    def estimate(d: float) -> float:
        log_w = min(-d, MAX_LOG_RATIO)
        return math.exp(log_w) * log_w - math.expm1(log_w)

    return _sum_over_tokens(estimate, log_probs_policy, log_probs_ref)


def _sum_over_tokens(estimate: Callable[[float], float], policy: LogProbs, ref: LogProbs) -> list[float]:
    return [
        math.fsum(estimate(a - b) for a, b in zip(row, ref_row, strict=True))
        for row, ref_row in zip(policy, ref, strict=True)
    ]


# ---- the student's functions -------------------------------------------------------------------------------


def load_student(
    use_solution: bool = False, kl_type: str = "none", reward_shaping: str = "linear", kl_coef: float = 0.1
) -> ModuleType | None:
    """rewards.py or rewards_solution.py, or None where none of its functions is used.

    The functions that are used are tried on one token each, before any model is loaded.

    Raises:
        UserError: importing it failed, or one of these functions is missing, not written yet, or wrong.
    """
    # (name, positional arguments of the trial call)
    needed: list[tuple[str, tuple]] = []
    if kl_type != "none":
        needed.append((f"kl_penalty_{kl_type}", ([[-1.0]], [[-1.5]], kl_coef)))
    if reward_shaping == "shaped":
        needed.append(("shaped_reward", ([0.5], ["a film"], ["This was"])))
    if not needed:
        return None
    name = "rewards_solution" if use_solution else "rewards"
    try:
        module = importlib.import_module(name)
    except SyntaxError as error:
        raise UserError(f"{name}.py, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        theirs = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(f"{name}.py")
        ]
        where = f", line {theirs[-1]}" if theirs else ""
        raise UserError(f"{name}.py{where}: importing it raised {type(error).__name__}: {error}") from None
    for function_name, args in needed:
        function: Any = getattr(module, function_name, None)
        if not isinstance(
            inspect.unwrap(function), FunctionType
        ):  # errors name its line, so it must have one
            raise UserError(f"{name}.py has no function {function_name}; keep the stubs' names and their def")
        checked(function, *args, expected=1)
    return module


def checked(function: Callable[..., list[float]], *args: Any, expected: int) -> list[float]:
    """Call a student's function; whatever is wrong with it or its result is one sentence with file and line.

    Raises:
        UserError: it raised, or did not return `expected` finite plain numbers.
    """
    name = function.__name__
    code = inspect.unwrap(function).__code__
    where = f"{Path(code.co_filename).name}, line {code.co_firstlineno}"
    try:
        values = function(*args)
    except NotImplementedError:
        raise UserError(
            f"{name} ({where}) is not written yet: fill the stub, then check it with python rewards.py"
        ) from None
    except Exception as error:
        frames = [f for f in traceback.extract_tb(sys.exc_info()[2]) if f.filename == code.co_filename]
        line = f"{Path(code.co_filename).name}, line {frames[-1].lineno}" if frames else where
        raise UserError(f"{name} ({line}) raised {type(error).__name__}: {error}") from None
    try:
        values = list(values)
    except TypeError:
        raise UserError(f"{name} ({where}) returned {values!r}, not a list of {expected} numbers") from None
    if len(values) != expected:
        raise UserError(
            f"{name} ({where}) returned {len(values)} values for {expected} completions; return one each"
        )
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise UserError(
                f"{name} ({where}): value {i} is {value!r}, a {type(value).__name__}; return plain floats"
            )
        if not math.isfinite(value):
            raise UserError(f"{name} ({where}): value {i} is {value}; every value must be finite")
    return [float(value) for value in values]


def sparse_reward(scores: Sequence[float], completions: Sequence[str], prompts: object = None) -> list[float]:
    """1 if P(positive) >= 0.8 else 0. A group in which all agree teaches nothing: its advantages are zero."""
    return [1.0 if score >= SPARSE_THRESHOLD else 0.0 for score in scores]


def linear_reward(scores: Sequence[float], completions: Sequence[str], prompts: object = None) -> list[float]:
    """The score as it is."""
    return list(scores)


# ---- the reward --------------------------------------------------------------------------------------------


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
        signed = [1.0 - s for s in scores] if self.negate else scores
        shaped = checked(
            self.shape, list(signed), list(completions), list(prompts), expected=len(completions)
        )
        return scores, shaped

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
                # copies: what a student's function does to its arguments stays there
                rows = [list(row) for row in policy_rows], [list(row) for row in ref_rows]
                penalties = checked(self.penalty, *rows, self.kl_coef, expected=n)
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
