"""Train the bundled language model: a small GPT-2 on film reviews, from nothing or from an earlier one.

    python mini/train_policy.py                               # Hub data; on two cores 70 minutes
    python mini/train_policy.py --data path/to/imdb.parquet   # the same from a local file
    python mini/train_policy.py --steps 7700 --batch 128      # a GPU, 4 epochs: better, in minutes
    python mini/train_policy.py --evaluate mini/policy        # only measure

What it does, top to bottom: a byte-level BPE; all texts but the held-out ones as one stream with <|endoftext|> between
them; windows of 128 tokens; Muon on the hidden matrices, AdamW on the rest, cosine schedule; in the end the second half
of the position embeddings, alone. A second stage (`--init`) can go on with other text, such as that of
`mini/corpus.py`, and with a vocabulary of that text (`--vocab`). DATA below has the three stages of the bundled one.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import common
import numpy as np
import torch
import torch.nn.functional as F
from corpus import WORD
from tokenizers.implementations import ByteLevelBPETokenizer
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from data import HELD_OUT_PROMPTS
from kit.base.errors import UserError
from kit.lm.sampling import sample
from kit.measure.fluency import load_fluency
from sentiment import MINI, load_scorer

EOS = "<|endoftext|>"
LAYERS, WIDTH, HEADS, POSITIONS = 6, 256, 8, 256
EXTEND = 120  # steps for the position embeddings 128 to 255 alone


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
    rows = common.token_ids(tokenizer, texts)
    return np.concatenate([part for row in rows for part in (row, [0])]).astype(np.uint16)


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
    init: str | None, texts: Iterable[str], vocab: int | None
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


def extend_positions(model: GPT2LMHeadModel, stream: np.ndarray, args: argparse.Namespace) -> None:
    """Teach the position embeddings 128 to 255, and nothing else, on windows of 256.

    Windows of 128 never touch them, and untrained they cost more than a nat a token. All other weights stay as they
    are, so whatever was measured on the first 128 positions still holds to the last bit. Start: the second half of
    the trained ones, stretched.
    """
    places = model.requires_grad_(False).transformer.wpe.weight.requires_grad_()
    with torch.no_grad():
        places[128:] = places[64:128].repeat_interleave(2, dim=0)
    later = (torch.arange(len(places), device=places.device) >= 128)[:, None]
    # without decay, Adam leaves a row alone whose gradient is 0
    places.register_hook(lambda grad: grad * later)
    adam = torch.optim.Adam([places], lr=3e-3, betas=(0.9, 0.95))
    common.fit(
        model, lambda rng: windows(stream, max(args.batch // 2, 1), 256, rng), partial(next_token_loss, first=128),
        [adam], args, steps=EXTEND, warmup=1, clip=math.inf,
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


def non_words(texts: Iterable[str], corpus: Iterable[str], rare: int = 10) -> float:
    """The share of the words in `texts` that occur fewer than `rare` times in `corpus`, whatever their case."""
    count = Counter(word for text in corpus for word in WORD.findall(text.lower()))
    words = [word for text in texts for word in WORD.findall(text.lower())]
    return sum(count[word] < rare for word in words) / max(len(words), 1)


def distinct_2(texts: Sequence[str]) -> float:
    """Different pairs of neighbouring words / pairs of neighbouring words."""
    pairs = [pair for text in texts for pair in pairwise(text.split())]
    return len(set(pairs)) / max(len(pairs), 1)


def memorised(texts: Iterable[str], corpus: Iterable[str], shortest: int = 12) -> float:
    """The share of the texts that stand in the corpus word for word, of those of at least `shortest` words."""
    long = [text.strip() for text in texts if len(text.split()) >= shortest]
    everything = "\n".join(corpus)
    return sum(text in everything for text in long) / max(len(long), 1)


def measure_samples(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, corpus: Sequence[str], reviews: Sequence[str]
) -> tuple[dict, list[str]]:
    """How well 256 samples are written: four of each held-out prompt, 40 tokens at temperature 1, seed 0.

    `corpus` is the text that the policy was trained on, `reviews` the text that words are counted in. Besides the
    metrics: every 13th sample, 20 in all.
    """
    drawn = sample(model, tokenizer, HELD_OUT_PROMPTS, num_samples=4)
    prompts, texts = [c.prompt for c in drawn], [c.text for c in drawn]
    scores = np.array(load_scorer(str(MINI))(texts))
    low, high = np.quantile(scores, [0.25, 0.75])
    out = {
        "non_words": round(non_words(texts, reviews), 4),
        "ended_by_itself": round(sum(not c.truncated for c in drawn) / len(drawn), 3),
        "sentiment": round(float(scores.mean()), 3),
        "sentiment_interquartile_range": round(float(high - low), 3),
        "distinct_2": round(distinct_2(texts), 3),
        "memorised": round(memorised((c.prompt + c.text for c in drawn), corpus), 4),
    }
    try:
        bits = [x for x in load_fluency("smollm2", torch.device("cpu"))(prompts, texts) if x is not None]
        out["nats_per_byte_smollm2"] = round(float(np.mean(bits)), 3)
    except UserError as error:
        print(error)
    return out, [f"{c.prompt} ▸{c.text}{'' if c.truncated else ' ∎'}" for c in drawn[::13]]


# Run --------------------------------------------------------------------------------------------------------

ABOUT = """# mini policy

A small language model of film reviews: a GPT-2 without dropout, and a byte-level BPE; `<|endoftext|>` = id 0 stands
between texts. With it the exercise runs in minutes on a laptop.

`perplexity` per token and `bits_per_byte` are those of the first 640 windows of 128 tokens of texts that training
never saw, `perplexity_positions_128_255` that of the second half of windows of 256. `sharpened`: all logits are divided
by this number, in the weights. The other numbers are of 256 samples of the held-out prompts; every 13th follows the
table (`▸`: here the prompt ends; `∎`: the text ended by itself). A word is no word if it occurs fewer than 10 times in
all reviews; `memorised` is the share of samples of 12 words or more that stand in the training text."""
DATA = f"""Trained on nothing but the {common.IMDB}: 100,000 user reviews, {common.RELEASED}
The first stage (`--init`) read all of them:
`python mini/train_policy.py --data path/to/imdb.parquet --out path/to/first`.
The second read their simple sentences:
`python mini/corpus.py --data path/to/imdb.parquet --out path/to/simple.parquet`,
`python mini/train_policy.py --init path/to/first --vocab 6144 --data path/to/simple.parquet --lr 2e-3 --warmup 60
--steps 2000 --out path/to/second`. The third read the longer ones of these texts
(`--shortest 40`), by the command above.
The reviews belong to those who wrote them. The model repeats what its reviewers say, and everything it states about
films is made up."""


def main() -> None:
    p = common.run_parser(__doc__, "policy", steps=4500, lr=3e-3, lr_rest=0, warmup=150)
    p.add_argument("--init", help="model folder to continue from (default: from nothing)")
    p.add_argument("--vocab", type=int, help="size of a new vocabulary (default: 8192, or that of --init)")
    p.add_argument("--resume", action="store_true", help="continue from the checkpoint beside --out")
    p.add_argument("--evaluate", help="model folder to measure; nothing is trained")
    p.add_argument("--imdb", help="imdb.parquet to count words in (default: --data)")
    p.add_argument("--batch", type=int, default=32, help="windows of 128 tokens a step")
    p.add_argument("--sharpen", type=float, default=1.0, help="divide the logits by this in the end (1: no)")
    args = common.start_run(p)

    data = common.read("imdb", args.data)
    text = data["text"].tolist()
    held = common.held_out_reviews(data)
    held_texts = [text[i] for i in held]
    reviews = common.read("imdb", args.imdb)["text"].tolist() if args.imdb else text
    if args.evaluate:
        model = GPT2LMHeadModel.from_pretrained(args.evaluate, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(args.evaluate)
        print(quality(model, tokenizer, held_texts), flush=True)
        metrics, shown = measure_samples(model, tokenizer, text, reviews)
        print(metrics, *shown, sep="\n  ")
        return
    checkpoint = args.out.with_name(f"{args.out.name}.checkpoint")
    if args.resume and not checkpoint.is_file():
        p.error(f"--resume: there is no {checkpoint} yet")
    order = np.random.default_rng(args.seed).permutation(np.setdiff1d(np.arange(len(text)), held))
    model, tokenizer = first_model(args.init, (text[i] for i in order[:100_000]), args.vocab)
    train = encode(tokenizer, [text[i] for i in order])
    print(f"{len(order):,} texts, {len(train) / 1e6:.1f} M tokens; {len(held):,} held out", flush=True)

    model = model.to(args.device)
    optimizers = common.make_optimizers(model, args, betas=(0.9, 0.95), decay_rest=0.0)
    tokens = common.fit(
        model, lambda rng: windows(train, args.batch, 128, rng), next_token_loss, optimizers, args, steps=args.steps,
        warmup=args.warmup, clip=args.batch * 128.0, cosine=True,
        checkpoint=checkpoint,
    )  # fmt: skip
    extend_positions(model, train, args)
    minutes = common.minutes(args)

    model = common.shipped(model)
    before = quality(model, tokenizer, held_texts)["bits_per_byte"]
    sharpen(model, args.sharpen)
    model = common.shipped(model)
    metrics = quality(model, tokenizer, held_texts) | {
        "bits_per_byte_before_sharpening": before,
        "sharpened": args.sharpen,
        "layers": model.config.n_layer,
        "vocabulary": len(tokenizer),
        "tokens": tokens,
        "train_stream_tokens": len(train),
        "train_reviews": len(order),
        "held_out_reviews": len(held),
        "minutes": minutes,
    }
    measured, shown = measure_samples(model, tokenizer, text, reviews)
    common.save_model(model, tokenizer, args, metrics | measured, ABOUT, DATA, shown)


if __name__ == "__main__":
    main()
