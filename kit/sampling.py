"""Sampling completions for measurement: the same settings and the same random stream for every model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Completion:
    """One sampled continuation. `completion_ids` keeps its EOS; `text` leaves it out."""

    prompt: str
    prompt_ids: list[int]
    completion_ids: list[int]
    text: str
    truncated: bool  # it ended at max_new_tokens, not at EOS


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    num_samples: int = 1,
    max_new_tokens: int = 40,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> list[Completion]:
    """`num_samples` completions of every prompt, prompt by prompt, from softmax(logits / temperature).

    No top-k, no top-p: the distribution sampled is the one whose log-probs are measured. The random stream
    is this call's own: training goes on as if nothing had been sampled. The model's mode is put back.
    `on_batch` is called with the number of completions of each finished batch.
    """
    eos = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *([eos] if isinstance(eos, int) else eos or [])}
    rows = [prompt for prompt in prompts for _ in range(num_samples)]
    was_training, completions = model.training, []
    model.eval()
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                inputs = tokenizer(batch, return_tensors="pt", padding=True, padding_side="left").to(
                    model.device
                )
                output = model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=max_new_tokens,
                    do_sample=True,
                    temperature=temperature,
                    top_k=0,
                    top_p=1.0,
                    eos_token_id=sorted(ends),
                    pad_token_id=tokenizer.pad_token_id,
                    use_cache=True,
                )
                width = inputs["input_ids"].shape[1]
                masks = inputs["attention_mask"].bool().cpu()
                for i, prompt in enumerate(batch):
                    ids = output[i, width:].tolist()
                    end = next((t for t, token in enumerate(ids) if token in ends), None)
                    ids = (
                        ids if end is None else ids[: end + 1]
                    )  # EOS is part of the completion, padding is not
                    completions.append(
                        Completion(
                            prompt=prompt,
                            prompt_ids=inputs["input_ids"][i].cpu()[masks[i]].tolist(),
                            completion_ids=ids,
                            text=tokenizer.decode(ids, skip_special_tokens=True),
                            truncated=end is None,
                        )
                    )
                if on_batch is not None:
                    on_batch(len(batch))
    finally:
        model.train(was_training)
    return completions
