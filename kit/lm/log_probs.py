"""Log-probabilities of sampled tokens, and the exact KL between two models on them, in fp32.

All are of softmax(logits / temperature), without dropout, with positions counted over real tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from peft import PeftModel
from torch.nn.functional import kl_div
from transformers import PreTrainedModel
from trl.trainer.utils import pad

LanguageModel: TypeAlias = PreTrainedModel | PeftModel
Ids = Sequence[Sequence[int]]  # one row of token ids per prompt or completion
LogProbs = list[list[float]]  # one row per completion, one natural log-probability per sampled token


@torch.no_grad()
def token_log_probs(
    model: LanguageModel, prompt_ids: Ids, completion_ids: Ids, temperature: float = 1.0, chunk_size: int = 16
) -> LogProbs:
    """log pi(x_t | prompt, x_<t), in nats, of every sampled token of every completion, EOS included.

    `prompt_ids` and `completion_ids` hold N rows of token ids each, as sampled: text that is decoded and encoded
    again often has other tokens. The result has N rows, row i as long as completion i. Logits are divided by the
    sampling `temperature`, and the model's mode is put back. `chunk_size` rows are computed at a time.

    Raises ValueError for an empty prompt (nothing predicts the first token), or lists of unequal length.
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
    policy: LanguageModel,
    reference: PreTrainedModel | None,
    prompt_ids: Ids,
    completion_ids: Ids,
    temperature: float = 1.0,
) -> tuple[LogProbs, LogProbs, list[float], list[float]]:
    """(log pi, log pi_ref of the sampled tokens; KL(pi||pi_ref), KL(pi_ref||pi) of each completion), in nats.

    Both KLs are summed over the whole vocabulary at every prefix of a sampled completion:

        sum_t sum_v pi(v|x<t) log(pi(v|x<t) / pi_ref(v|x<t)),   and the same with the two models swapped.

    The mean of the first over samples of pi is KL(pi||pi_ref) of whole completions, with less variance than any
    function of the sampled tokens alone (Rao-Blackwell; Amini et al. 2025, arXiv 2504.10637), and it still holds
    for a collapsed policy, which never samples the tokens that differ. The prefixes of the second come from pi too:
    see `kl_ref_policy`. `reference` None means a LoRA policy, whose base is the reference.
    """
    longest = max(map(len, completion_ids), default=1)
    # 64 MB for each (N, V) tensor, of which five are alive at a time
    rows_at_once = max(1, min(16, 2**24 // (policy.config.vocab_size * longest)))
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
            # kl_div(a, b) is exp(b) (b - a): KL(b||a)
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
    """Some completions with their prompts, as tensors. N: the number of completion tokens in all rows."""

    rows: list[int]  # which of the completions
    ids: torch.Tensor  # (B, L), padded on the right
    mask: torch.Tensor  # (B, L), 1 on real tokens
    predicting: torch.Tensor  # (B, L), True where the next token belongs to the completion
    sampled: torch.Tensor  # (N,), these next tokens
    lengths: list[int]  # of the completions; they sum to N


def chunks(prompt_ids: Ids, completion_ids: Ids, size: int) -> Iterator[Chunk]:
    """`size` completions at a time, shortest first: rows of similar length need little padding, on the right.

    The token at position p is predicted at p - 1: the first of the completion by the last of the prompt.
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


def next_token_log_softmax(model: LanguageModel, chunk: Chunk, temperature: float) -> torch.Tensor:
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
    """A language model's head: (N, D) hidden states -> (N, V) logits / temperature, in fp32 even under autocast.

    bf16 logits are off by 0.1 nat a token.
    """
    # Q7. A rounding error of 0.1 nat a token has no preferred sign and leaves the mean of log pi - log pi_ref
    # as it is. Why would it harm the training all the same?
    with torch.autocast(hidden.device.type, enabled=False):
        logits = lm.get_output_embeddings()(hidden.float())
    # dividing 20 million logits and their gradients by 1 takes a thirtieth of a training step
    return logits if temperature == 1 else logits / temperature


@contextmanager
def evaluating(model: LanguageModel) -> Iterator[None]:
    """Dropout off in the block; the model's mode is put back."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def as_reference(policy: LanguageModel, reference: PreTrainedModel | None) -> Iterator[LanguageModel]:
    """pi_ref: the `reference` model, or if None the LoRA policy without its adapter."""
    if reference is not None:
        yield reference
    elif isinstance(policy, PeftModel):
        with policy.disable_adapter():
            yield policy
    else:
        raise ValueError("without a reference model the policy must be LoRA, whose base is the reference")


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Position of every real token, counted over real tokens only: (B, L) mask -> (B, L) ids."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def reference_log_probs(policy: LanguageModel, reference: PreTrainedModel | None, *args: Any) -> LogProbs:
    """`token_log_probs` under pi_ref."""
    with as_reference(policy, reference) as model:
        return token_log_probs(model, *args)
