"""What a step holds in memory, counted from its tensors: for models of any size, without a GPU or weights, in seconds.

    python -m benchmarks.memory --write     GPT-2 and DistilBERT, into docs/scaling.md

Forward and backward pass of a micro-batch run on tensors that have shapes but no data, in fp32. Every storage that an
operation makes is counted from then on until it is freed. A GPU needs more than its tensors: CUDA's own context and
what the allocator rounds up.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import quiet

quiet(__name__)

import weakref
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import DistilBertConfig, DistilBertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from kit import ROOT
from kit.base.cli import Parser
from kit.base.errors import run_main
from kit.lm.log_probs import scaled_logits
from kit.lm.models import follow_mask_positions, fuse_gelu, lora_config, turn_off_dropout
from kit.lm.sampling import GrowingLayer
from kit.train.sweep import markdown, write_between

PAGE = ROOT / "docs" / "scaling.md"
PROMPT, COMPLETIONS, RANK = 8, 64, 16  # tokens of a prompt; completions of a step; of the adapters


class Counted(TorchDispatchMode):
    """The bytes of all tensors that are alive, views counted once: now (`live`), and at most (`peak`)."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        self.add(result)
        return result

    def add(self, tensors: Any) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen[storage] = True
                self.change(storage.nbytes())
                weakref.finalize(storage, self.change, -storage.nbytes())

    def change(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)


def step(config: GPT2Config, batch: int, tokens: int, lora: bool) -> dict[str, int]:
    """Bytes of the parts of a step whose micro-batches are `batch` completions of `tokens` tokens each.

    The two peaks include all that is alive then.
    """
    turn_off_dropout(config)
    with torch.device("meta"):
        policy = GPT2LMHeadModel(config)
        follow_mask_positions(policy)
        fuse_gelu(policy)
        model = get_peft_model(policy, lora_config(RANK, policy)) if lora else policy
        scorer = DistilBertForSequenceClassification(DistilBertConfig())
    with FakeTensorMode(allow_non_fake_inputs=True), Counted() as count:
        model.to_empty(device="cpu")
        policy.tie_weights()
        parts = {"weights": count.live}
        trained = [p for p in model.parameters() if p.requires_grad]
        copies = [] if lora else [p.detach().clone() for p in policy.parameters()]
        scorer.to_empty(device="cpu")
        parts["reference, classifier"] = count.live - sum(parts.values())
        moments = [torch.zeros_like(p) for p in trained for _ in range(2)]
        parts["Adam"] = count.live - sum(parts.values())

        # keys and values of all completions, with the sampler's spare room; logits, their exponentials and sums
        room = PROMPT + tokens + GrowingLayer.SPARE
        cache = 8 * config.n_layer * config.n_embd * COMPLETIONS * room
        parts["peak while sampling"] = count.live + cache + 12 * COMPLETIONS * config.vocab_size

        for p in trained:  # of the micro-batch before
            p.grad = torch.zeros_like(p)
        parts["gradients"] = count.live - parts["weights"] - parts["reference, classifier"] - parts["Adam"]
        ids = torch.zeros(batch, PROMPT + tokens, dtype=torch.long)
        count.peak = before = count.live
        # as `add_plain_head` in kit/lm/models.py does
        hidden = policy.base_model(ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
        log_p = scaled_logits(policy, hidden[:, PROMPT - 1 : -1].flatten(0, 1), 1.0).log_softmax(-1)
        loss = log_p.gather(-1, ids[:, PROMPT:].reshape(-1, 1)).sum()
        del hidden, log_p
        parts["kept for the backward pass"] = count.live - before
        loss.backward()
        del copies, moments, scorer
    return parts | {"peak of the backward pass": count.peak}


def table() -> str:
    """Markdown: the parts of a step with all weights and with LoRA; then the peaks of other batches and lengths."""

    def gb(size: int) -> str:
        return f"{size / 1e9:.2f}"

    found = {lora: step(GPT2Config(), 16, 48, lora) for lora in (False, True)}
    rows = [[part, *(gb(found[lora][part]) for lora in found)] for part in found[False]]
    peaks = []
    for batch in (8, 16, 32, 64):
        cells = []
        for tokens, lora in ((48, False), (128, False), (48, True), (128, True)):
            parts = step(GPT2Config(), batch, tokens, lora)
            cells.append(gb(max(parts["peak while sampling"], parts["peak of the backward pass"])))
        peaks.append([str(batch), *cells])
    return (
        f"GPT-2 and DistilBERT in fp32, {COMPLETIONS} completions a step, prompts of {PROMPT} tokens; GB. First "
        f"`configs/gpt2.yaml`.\n\n{markdown(['part', 'all weights', 'LoRA'], rows)}\n"
        + markdown(["peak of micro-batch", "48 tokens", "128 tokens", "LoRA, 48", "LoRA, 128"], peaks)
    )


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write to docs/scaling.md")
    args = parser.parse_args()
    print(text := table())
    if args.write:
        write_between(PAGE, "written by benchmarks.memory", text)


if __name__ == "__main__":
    run_main(main)
