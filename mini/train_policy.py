"""Train the bundled language model: a small GPT-2 on film reviews, from nothing or from an earlier one.

    python mini/train_policy.py                                        # Hub data; on two cores 70 minutes
    python mini/train_policy.py --data path/to/imdb.parquet            # the same from a local file
    python mini/train_policy.py --minutes 20                           # the whole schedule in a given time
    python mini/train_policy.py --epochs 4 --batch 128                 # a GPU: better, in minutes
    python mini/train_policy.py --init first --data simple.parquet --vocab 6144 --lr 1.5e-3 --sharpen 0.85
    python mini/train_policy.py --evaluate mini/policy                 # only measure

What it does, top to bottom: a byte-level BPE; all texts but the held-out ones as one stream with <|endoftext|> between
them; windows of 128 tokens; Muon on the hidden matrices, AdamW on the rest, cosine schedule; in the end the second half
of the position embeddings, alone. A second stage (`--init`) can go on with other text, such as that of
`mini/corpus.py`, and with a vocabulary of that text (`--vocab`).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import common
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers.implementations import ByteLevelBPETokenizer
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

EOS = "<|endoftext|>"
LAYERS, WIDTH, HEADS, POSITIONS = 6, 256, 8, 256


# Tokenizer and data -----------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: a word it does not know is written in bytes, so that every text can be encoded."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(iter(texts), vocab, min_frequency=0, special_tokens=[EOS], show_progress=False)
    # no padding token, like GPT-2: users of the policy set pad = eos themselves
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        unk_token=EOS,
        model_max_length=POSITIONS,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """One stream of token ids, EOS (0) after each text."""
    rows = []
    for i in range(0, len(texts), 2000):
        for e in tokenizer.backend_tokenizer.encode_batch_fast(texts[i : i + 2000]):
            rows.append(np.array([*e.ids, 0], dtype=np.uint16))
    return np.concatenate(rows)


def windows(
    stream: np.ndarray, batch: int, length: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor]]:
    """Batches (batch, length + 1) of windows in random order, each epoch cut at another offset, for ever."""
    while True:
        offset = int(rng.integers(length))
        starts = rng.permutation(np.arange(offset, len(stream) - length - 1, length))
        for i in range(0, max(len(starts) - batch, 0) + 1, batch):
            rows = [stream[s : s + length + 1] for s in starts[i : i + batch]]
            yield (torch.from_numpy(np.stack(rows).astype(np.int64)),)


# Model ------------------------------------------------------------------------------------------------------


def first_model(
    init: str | None, texts: Iterable[str], vocab: int
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Model and tokenizer to begin with: new ones, or those of the folder `init`.

    If both `init` and `vocab` are given, the tokenizer is new, and a token's embedding is the mean of the embeddings
    of the old tokens that spell it.
    """
    # Compiled, eager attention is faster on a CPU than the fused one, whose backward pass is slow.
    if not init:
        tokenizer = train_tokenizer(texts, vocab or 8192)
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, summary_first_dropout=0.0, bos_token_id=0, eos_token_id=0,
            attn_implementation="eager",
        )  # fmt: skip
        return GPT2LMHeadModel(config), tokenizer
    model = GPT2LMHeadModel.from_pretrained(init, dtype=torch.float32, attn_implementation="eager")
    old = AutoTokenizer.from_pretrained(init)
    if not vocab:
        return model, old
    tokenizer, known = train_tokenizer(texts, vocab), old.get_vocab()
    embedding = model.transformer.wte.weight.detach().clone()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for i, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
            text = tokenizer.convert_tokens_to_string([token])
            pieces = [known[token]] if token in known else old(text)["input_ids"]
            model.transformer.wte.weight[i] = embedding[pieces].mean(0)
    return model, tokenizer


def next_token_loss(model: GPT2LMHeadModel, block: torch.Tensor, first: int = 0) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy (nats) of the next tokens from place `first` on, and their number. `block`: (B, T + 1)."""
    logits = model(block[:, :-1], use_cache=False).logits[:, first:].float()
    target = block[:, 1 + first :]
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum"), target.numel()


def extend_positions(
    model: GPT2LMHeadModel, stream: np.ndarray, args: argparse.Namespace, dtype: torch.dtype
) -> None:
    """Teach the position embeddings 128 to 255, and nothing else, on windows of 256.

    Windows of 128 never touch them, and untrained they cost more than a nat a token. All other weights stay as they
    are, so whatever was measured on the first 128 positions still holds to the last bit. Start: the second half of
    the trained ones, stretched.
    """
    places = model.requires_grad_(False).transformer.wpe.weight.requires_grad_()
    with torch.no_grad():
        places[128:] = places[64:128].repeat_interleave(2, dim=0)
    later = (torch.arange(len(places), device=places.device) >= 128)[:, None]
    places.register_hook(
        lambda grad: grad * later
    )  # without decay, Adam leaves a row alone whose gradient is 0
    adam = torch.optim.Adam([places], lr=3e-3, betas=(0.9, 0.95))
    common.fit(
        model, lambda rng: windows(stream, max(args.batch // 2, 1), 256, rng), partial(next_token_loss, first=128),
        [adam], common.Schedule(args.extend, 0, 1), args, dtype, clip=math.inf, unit="tokens",
    )  # fmt: skip


def sharpen(model: GPT2LMHeadModel, factor: float) -> None:
    """Divide all logits by `factor`, in the weights: the same as sampling at that temperature ever after."""
    with torch.no_grad():
        model.transformer.ln_f.weight /= factor
        model.transformer.ln_f.bias /= factor


# Measuring --------------------------------------------------------------------------------------------------


@torch.no_grad()
def held_out_nll(
    model: GPT2LMHeadModel, stream: np.ndarray, count: int, length: int, first: int = 1
) -> float:
    """Nats per token over the first `count` windows of the held-out stream.

    Each window is read alone; its tokens from number `first` on are predicted (from 1: all that have a context).
    """
    count = min(count, len(stream) // length)
    total = 0.0
    for i in range(0, count, 16):
        starts = range(i * length, min(i + 16, count) * length, length)
        block = torch.from_numpy(np.stack([stream[s : s + length] for s in starts]).astype(np.int64))
        total += next_token_loss(model, block.to(model.device), first - 1)[0].item()
    return total / (count * (length - first))


def quality(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict:
    """How well the held-out texts are predicted."""
    stream = encode(tokenizer, texts)
    bytes_per_token = sum(len(text.encode()) for text in texts) / len(stream)
    nll = held_out_nll(model, stream, 640, 128)
    far = held_out_nll(model, stream, 160, 256, first=128)
    return {
        "bits_per_byte": round(nll / math.log(2) / bytes_per_token, 4),  # nats per token -> bits per byte
        "perplexity": round(math.exp(nll), 2),
        "perplexity_positions_128_255": round(math.exp(far), 2),
        "bytes_per_token": round(bytes_per_token, 4),
    }


# Run --------------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    p = common.run_parser(
        __doc__, Path(__file__).parent / "policy", steps=4500, lr=3e-3, warmup=150, log_every=25
    )
    p.add_argument("--work", type=Path, default=Path("outputs/mini_policy"), help="folder for the checkpoint")
    p.add_argument("--init", help="model folder to continue from (default: from nothing)")
    p.add_argument(
        "--vocab", type=int, default=0, help="size of a new vocabulary (0: 8192, or that of --init)"
    )
    p.add_argument("--resume", action="store_true", help="continue from the checkpoint in --work")
    p.add_argument("--evaluate", help="model folder to measure; nothing is trained")
    p.add_argument("--imdb", help="imdb.parquet that --evaluate counts words in (default: --data)")
    p.add_argument("--epochs", type=float, default=0, help="length in passes over the data (0: by --steps)")
    p.add_argument("--batch", type=int, default=32, help="windows of 128 tokens a step")
    p.add_argument("--extend", type=int, default=120, help="steps for positions 128-255 alone (0: none)")
    p.add_argument("--sharpen", type=float, default=1.0, help="divide the logits by this in the end (1: no)")
    p.add_argument("--held_out", type=int, default=2000, help="test reviews kept for measuring")
    p.add_argument("--save_every", type=float, default=5, help="minutes between checkpoints")
    return p


def main() -> None:
    parser = make_parser()
    args, device, dtype = common.start_run(parser)
    begin = time.monotonic()

    data = common.read_imdb(args.data)
    text = data["text"].tolist()
    held = common.held_out_reviews(data, min(args.held_out, len(text) // 4))
    held_texts = [text[i] for i in held]
    if args.evaluate:
        model = GPT2LMHeadModel.from_pretrained(args.evaluate, dtype=torch.float32).eval()
        print(quality(model, AutoTokenizer.from_pretrained(args.evaluate), held_texts), flush=True)
        from measure import measure_samples  # the kit, which training does not need

        reviews = common.read_imdb(args.imdb)["text"] if args.imdb else data["text"]
        print(measure_samples(args.evaluate, data["text"], reviews))
        return
    order = np.random.default_rng(args.seed).permutation(np.setdiff1d(np.arange(len(text)), held))
    model, tokenizer = first_model(args.init, (text[i] for i in order[:100_000]), args.vocab)
    train = encode(tokenizer, [text[i] for i in order])
    print(
        f"{len(order):,} texts, {len(train) / 1e6:.1f} M tokens; {len(held):,} held out; "
        f"{time.monotonic() - begin:.0f} s",
        flush=True,
    )
    if args.init and not args.resume:
        print(f"continuing from {quality(model, tokenizer, held_texts)}", flush=True)
    if args.epochs:
        args.steps = math.ceil(args.epochs * len(train) / (args.batch * 128))

    # A run bound to minutes ends by the clock, any other by its steps.
    schedule = common.Schedule(0 if args.minutes else args.steps, args.minutes, args.warmup, cosine=True)
    model = model.to(device)
    optimizers = common.make_optimizers(model, args, betas=(0.9, 0.95), decay_rest=0.0)
    common.fit(
        model, lambda rng: windows(train, args.batch, 128, rng), next_token_loss, optimizers, schedule,
        args, dtype, clip=args.batch * 128.0, unit="tokens", checkpoint=args.work / "checkpoint.pt",
    )  # fmt: skip
    if args.extend:
        extend_positions(model, train, args, dtype)
    minutes = schedule.elapsed / 60

    model = common.shipped(model)
    before = quality(model, tokenizer, held_texts)["bits_per_byte"]
    sharpen(model, args.sharpen)
    model = common.shipped(model)
    metrics = quality(model, tokenizer, held_texts) | {
        "bits_per_byte_before_sharpening": before,
        "sharpened": args.sharpen,
        "layers": model.config.n_layer,
        "vocabulary": len(tokenizer),
        "train_stream_tokens": len(train),
        "train_reviews": len(order),
        "held_out_reviews": len(held),
    }
    metrics |= common.run_facts(model, schedule, "tokens", minutes, args, parser)
    print(metrics, flush=True)
    common.save_model(model, tokenizer, args.out, card(metrics), metrics)


def card(m: dict) -> str:
    rows = [
        ("architecture", f"GPT-2: {m['layers']} layers x {WIDTH}, {HEADS} heads, {POSITIONS} positions, no dropout, "
                         f"{m['parameters'] / 1e6:.2f} M parameters (embeddings tied)"),
        ("tokenizer", f"byte-level BPE of {m['vocabulary']:,}; `{EOS}` = id 0 stands between texts"),
        ("held out", f"**{m['bits_per_byte']:.3f} bits per byte** = perplexity {m['perplexity']:.1f} per token at "
                     f"{m['bytes_per_token']:.3f} bytes per token: the first 640 windows of 128 tokens of "
                     f"{m['held_out_reviews']:,} texts that training never saw"),
        ("further on", f"perplexity {m['perplexity_positions_128_255']:.1f} at positions 128-255 of windows of 256"),
        *[("sharpened", f"all logits divided by {m['sharpened']}, in the weights; before, "
                        f"{m['bits_per_byte_before_sharpening']:.3f} bits per byte")] * (m["sharpened"] != 1),
        ("data", f"{m['train_reviews']:,} texts from the Large Movie Review Dataset, "
                 f"{m['train_stream_tokens'] / 1e6:.1f} M tokens; `<br />` and runs of blanks to one space"),
        ("training", f"{m['steps']:,} steps, {m['tokens'] / 1e6:.1f} M tokens "
                     f"({m['tokens'] / m['train_stream_tokens']:.2f} epochs), {common.trained(m)}"),
    ]  # fmt: skip
    about = "A small language model of film reviews. With it the exercise runs in minutes on a laptop."
    more = "A run limited by minutes ends with another number on a faster or busier machine."
    data = f"""Trained on nothing but the {common.IMDB}: 100,000 user reviews, {common.RELEASED}
The reviews belong to those who wrote them. The model repeats what its reviewers say, and everything it states about
films is made up."""
    return common.make_card("policy", about, rows, m, more, data)


if __name__ == "__main__":
    main()
