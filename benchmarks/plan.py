"""Memory of a training, part by part: formulas, checked against tensors counted here, then applied to a 7B policy.

    python -m benchmarks.plan          a few seconds; the tables of docs/scaling.md

The shape is GPT-2's: L layers of width d, V words, P positions, head and embedding tied. Everything is fp32.
"""

import argparse
from typing import NamedTuple

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from kit.models import add_plain_head
from kit.sampling import GrowingCache

FLOAT = 4  # bytes
LINES = ("weights", "gradients", "Adam", "reference", "KV cache", "logits")


class Shape(NamedTuple):
    """Of a policy."""

    layers: int
    width: int
    vocabulary: int
    positions: int = 1024

    @property
    def parameters(self) -> int:
        """12 L d^2 in the matrices, 13 L d in biases and norms, (V + P) d in the embeddings, 2 d in the last norm."""
        blocks = self.layers * (12 * self.width**2 + 13 * self.width)
        return blocks + (self.vocabulary + self.positions + 2) * self.width


def formulas(shape: Shape, rows: int, tokens: int) -> dict[str, int]:
    """Bytes, for `rows` sequences of `tokens` in one micro-batch, on one device that holds everything."""
    model = FLOAT * shape.parameters
    return {
        "weights": model,
        "gradients": model,
        "Adam": 2 * model,
        "reference": model,
        "KV cache": FLOAT * 2 * shape.layers * shape.width * rows * tokens,
        "logits": FLOAT * rows * tokens * shape.vocabulary,
    }


def counted(shape: Shape, rows: int, tokens: int) -> tuple[dict[str, int], int]:
    """(the same from tensors that are there, bytes that autograd keeps of the backbone's forward pass)."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=shape.vocabulary, n_positions=shape.positions, n_embd=shape.width, n_layer=shape.layers,
        n_head=shape.width // 64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    lm = GPT2LMHeadModel(config)
    add_plain_head(lm, 1.0)
    own = {p.data_ptr() for p in lm.parameters()}
    ids = torch.randint(shape.vocabulary, (rows, tokens))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = lm.base_model(input_ids=ids, use_cache=False).last_hidden_state
    activations = sum(kept.values())
    logits = lm.get_output_embeddings()(hidden)
    logits.logsumexp(-1).sum().backward()
    optimizer = torch.optim.AdamW(lm.parameters())
    optimizer.step()
    with torch.no_grad():
        cache = GrowingCache()
        lm.base_model(input_ids=ids, past_key_values=cache)
    parameters = list(lm.parameters())
    states = [s for state in optimizer.state.values() for s in state.values() if s.dim()]
    size = {
        "weights": nbytes(parameters),
        "gradients": nbytes([p.grad for p in parameters if p.grad is not None]),
        "Adam": nbytes(states),
        "reference": nbytes(parameters),
        "KV cache": nbytes([t for layer in cache.layers for t in (layer.keys, layer.values)]),
        "logits": nbytes([logits]),
    }
    return size, activations


def nbytes(tensors: list[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    points = {(6, 256): Shape(6, 256, 8192, 512), (6, 512): Shape(6, 512, 8192, 512)}
    points |= {(12, 256): Shape(12, 256, 8192, 512)}
    rows, tokens = 16, 48
    found = {name: counted(shape, rows, tokens) for name, shape in points.items()}
    unit = FLOAT * rows * tokens
    first = points[6, 256]
    floats = found[6, 256][1] / (unit * first.layers * first.width)
    print(f"Floats kept by autograd per token, layer and unit of width, from the first point: {floats:.1f}\n")
    print(f"| layers, width | {' | '.join(LINES)} | activations |\n|{'---|' * (len(LINES) + 2)}")
    for name, shape in points.items():
        said = formulas(shape, rows, tokens) | {
            "activations": int(unit * shape.layers * shape.width * floats)
        }
        measured = found[name][0] | {"activations": found[name][1]}
        cells = [f"{said[key] / 1e6:.1f} / {measured[key] / 1e6:.1f}" for key in said]
        print(f"| {name[0]}, {name[1]} | {' | '.join(cells)} |")
    large = Shape(32, 4096, 50257)
    rows, tokens = 4, 1024 + 256
    said = formulas(large, rows, tokens)
    acts = FLOAT * rows * tokens * large.layers * large.width * floats
    print(f"\n7B: {large.parameters / 1e9:.2f} billion parameters; micro-batch {rows} x {tokens} tokens; GB:")
    print({key: round(value / 1e9, 1) for key, value in said.items()}, f"activations {acts / 1e9:.1f}")


if __name__ == "__main__":
    main()
