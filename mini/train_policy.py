"""Train the bundled language model: a small GPT-2 on IMDB reviews, from nothing.

    python mini/train_policy.py                                        # Hub data; on two cores 70 minutes
    python mini/train_policy.py --data path/to/imdb.parquet            # the same from a local file
    python mini/train_policy.py --minutes 20                           # the whole schedule in a given time
    python mini/train_policy.py --epochs 4 --batch 128                 # a GPU: better, in minutes
    python mini/train_policy.py --evaluate mini/policy                 # only measure

What it does, top to bottom: a byte-level BPE of 8,192; all reviews but 2,000 held-out ones as one stream with
<|endoftext|> between them; windows of 128; Muon on the hidden matrices, AdamW on the rest, cosine schedule; in the
end the second half of the position embeddings, alone. The forward pass is written out below (the arithmetic of
transformers' GPT2LMHeadModel, which the result is loaded into and measured with), because compiled it is 2.5 times
as fast on a CPU: no fp32 logits, attention as two batched products instead of the fused one with its slow backward
pass, bf16 in every matrix product.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import (
    Muon,
    Schedule,
    add_machine_flags,
    command_line,
    held_out_reviews,
    read_imdb,
    save_model,
    start_run,
    table,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

EOS = "<|endoftext|>"
LAYERS, WIDTH, HEADS, POSITIONS, VOCAB = 6, 256, 8, 256, 8192


# Tokenizer and data -----------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    # no padding token, like GPT-2: users of the policy set pad = eos themselves
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=EOS, eos_token=EOS, unk_token=EOS, model_max_length=POSITIONS
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """One stream of token ids, EOS (0) after each review."""
    rows = []
    for i in range(0, len(texts), 2000):
        for e in tokenizer.backend_tokenizer.encode_batch_fast(texts[i : i + 2000]):
            rows.append(np.array([*e.ids, 0], dtype=np.uint16))
    return np.concatenate(rows)


def windows(stream: np.ndarray, batch: int, length: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Batches (batch, length + 1) of windows in random order, each epoch cut at another offset, for ever."""
    while True:
        offset = int(rng.integers(length))
        starts = rng.permutation(np.arange(offset, len(stream) - length - 1, length))
        for i in range(0, max(len(starts) - batch, 0) + 1, batch):
            rows = [stream[s : s + length + 1] for s in starts[i : i + batch]]
            yield torch.from_numpy(np.stack(rows).astype(np.int64))


# The model, as plain functions of its parameters ------------------------------------------------------------


def hidden_states(ids: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """Last hidden states (B * T, WIDTH). Matrices in `w` are already in the compute dtype; the residual is fp32."""
    b, t = ids.shape
    size = WIDTH // HEADS
    matmul = w["h.0.attn.c_attn.weight"].dtype
    future = torch.full((t, t), float("-inf"), device=ids.device).triu(1)
    x = F.embedding(ids, w["wte.weight"]) + w["wpe.weight"][:t]
    for layer in range(LAYERS):
        p = {k[len(f"h.{layer}.") :]: v for k, v in w.items() if k.startswith(f"h.{layer}.")}
        h = F.layer_norm(x, (WIDTH,), p["ln_1.weight"], p["ln_1.bias"], 1e-5).to(matmul).view(-1, WIDTH)
        qkv = torch.addmm(p["attn.c_attn.bias"], h, p["attn.c_attn.weight"]).view(b, t, 3, HEADS, size)
        q, k, v = (z.transpose(1, 2).reshape(b * HEADS, t, size) for z in qkv.unbind(2))
        scores = torch.bmm(q, k.mT).float() * size**-0.5 + future
        h = (
            torch.bmm(scores.softmax(-1).to(matmul), v)
            .view(b, HEADS, t, size)
            .transpose(1, 2)
            .reshape(-1, WIDTH)
        )
        x = x + torch.addmm(p["attn.c_proj.bias"], h, p["attn.c_proj.weight"]).view(b, t, WIDTH)
        h = F.layer_norm(x, (WIDTH,), p["ln_2.weight"], p["ln_2.bias"], 1e-5).to(matmul).view(-1, WIDTH)
        h = F.gelu(torch.addmm(p["mlp.c_fc.bias"], h, p["mlp.c_fc.weight"]), approximate="tanh")
        x = x + torch.addmm(p["mlp.c_proj.bias"], h, p["mlp.c_proj.weight"]).view(b, t, WIDTH)
    return F.layer_norm(x, (WIDTH,), w["ln_f.weight"], w["ln_f.bias"], 1e-5).to(matmul).view(-1, WIDTH)


def loss_and_slope(
    logits: torch.Tensor, target: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy, and its gradient with respect to the logits, scale * (softmax - one-hot)."""
    z = logits.float()
    log_norm = torch.logsumexp(z, -1, keepdim=True)
    loss = (log_norm - z.gather(1, target[:, None])).sum()
    columns = torch.arange(z.shape[1], device=z.device)
    slope = (torch.exp(z - log_norm) - (columns == target[:, None]).float()) * scale
    return loss, slope.to(logits.dtype)


class TiedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of softmax(h E^T), 1,024 rows at a time: the (tokens, 8192) logits never exist in fp32.

    Gradients are made in the forward pass and handed out in the backward pass, so this must be the loss itself.
    """

    @staticmethod
    def forward(ctx, h, embedding, target, slope_fn):
        n = h.shape[0]
        e = embedding.to(h.dtype)
        loss = torch.zeros((), device=h.device)
        dh, de = torch.empty_like(h), torch.zeros_like(embedding)
        for i in range(0, n, 1024):
            rows = h[i : i + 1024]
            part, slope = slope_fn(rows @ e.t(), target[i : i + 1024], 1.0 / n)
            loss += part
            torch.mm(slope, e, out=dh[i : i + 1024])
            de += slope.t() @ rows
        ctx.save_for_backward(dh, de)
        return loss / n

    @staticmethod
    def backward(ctx, _):
        dh, de = ctx.saved_tensors
        return dh, de, None, None


def extend_positions(
    w: dict[str, torch.Tensor],
    stream: np.ndarray,
    steps: int,
    batch: int,
    run: Callable[..., torch.Tensor],
    slope_fn: Callable[..., torch.Tensor],
    rng: np.random.Generator,
) -> torch.Tensor:
    """Teach the position embeddings 128 to 255, and nothing else, on windows of 256.

    Windows of 128 never touch them, and untrained they cost more than a nat a token. All other weights stay as they
    are, so whatever was measured on the first 128 positions still holds to the last bit. Start: the second half of
    the trained ones, stretched.
    """
    w = {k: v.detach() for k, v in w.items()}
    device, matmul = w["wte.weight"].device, w["h.0.attn.c_attn.weight"].dtype
    start = w["wpe.weight"][64:128].repeat_interleave(2, dim=0)
    tail = start.clone().requires_grad_()
    adam, draw = torch.optim.Adam([tail], lr=3e-3, betas=(0.9, 0.95)), windows(stream, batch, 256, rng)
    losses = []
    for step in range(steps):
        adam.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        block = next(draw).to(device)
        positions = torch.cat([w["wpe.weight"][:128], tail])
        h = run(block[:, :-1].contiguous(), w | {"wpe.weight": positions}).view(-1, 256, WIDTH)[:, 128:]
        target = block[:, 129:].reshape(-1)
        loss = TiedCrossEntropy.apply(h.reshape(-1, WIDTH), w["wte.weight"].to(matmul), target, slope_fn)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
        if (step + 1) % 10 == 0:
            print(
                f"positions 128-255: step {step + 1}/{steps} | loss {np.mean(losses[-10:]):.3f}", flush=True
            )
    return torch.cat([w["wpe.weight"][:128], tail.detach()])


def to_huggingface(weights: dict[str, torch.Tensor], vocab: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=vocab, n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, summary_first_dropout=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    if weights:
        model.transformer.load_state_dict(
            {k: v.detach().float().cpu() for k, v in weights.items()}, strict=False
        )
    return model.eval()


@torch.no_grad()
def held_out_nll(
    model: GPT2LMHeadModel, stream: np.ndarray, count: int, length: int, first: int = 1
) -> float:
    """Nats per token over the first `count` windows of the held-out stream, by transformers' own forward pass.

    Each window is read alone; its tokens from number `first` on are predicted (from 1: all that have a context).
    """
    count = min(count, len(stream) // length)
    total = 0.0
    for i in range(0, count, 16):
        starts = range(i * length, min(i + 16, count) * length, length)
        block = torch.from_numpy(np.stack([stream[s : s + length] for s in starts]).astype(np.int64))
        logits = model(block).logits[:, first - 1 : -1].float()
        total += F.cross_entropy(logits.flatten(0, 1), block[:, first:].flatten(), reduction="sum").item()
    return total / (count * (length - first))


# Run --------------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", help="local imdb.parquet; default: stanfordnlp/imdb from the Hub")
    p.add_argument("--out", type=Path, default=Path(__file__).parent / "policy", help="folder for the model")
    p.add_argument("--work", type=Path, default=Path("outputs/mini_policy"), help="folder for the checkpoint")
    p.add_argument(
        "--init", help="model folder to continue from, weights and tokenizer (default: from nothing)"
    )
    p.add_argument("--note", default="", help="a sentence for the card, e.g. on what --init was")
    p.add_argument("--resume", action="store_true", help="continue from the checkpoint in --work")
    p.add_argument("--evaluate", help="model folder to measure; nothing is trained")
    p.add_argument("--steps", type=int, default=4500, help="length of training in steps (0: only --extend)")
    p.add_argument(
        "--minutes", type=float, default=0, help="length of training in minutes instead (0: by --steps)"
    )
    p.add_argument(
        "--epochs", type=float, default=0, help="length in passes over the data instead (0: by --steps)"
    )
    p.add_argument("--batch", type=int, default=32, help="windows of 128 tokens a step")
    p.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of Muon and of AdamW")
    p.add_argument("--weight_decay", type=float, default=0.05, help="of the hidden matrices")
    p.add_argument("--warmup", type=int, default=150, help="warm-up steps")
    p.add_argument(
        "--extend", type=int, default=120, help="steps at the end for positions 128-255 alone (0: none)"
    )
    p.add_argument("--held_out", type=int, default=2000, help="test reviews kept for measuring")
    add_machine_flags(p)
    p.add_argument("--log_every", type=int, default=25, help="steps between progress lines")
    p.add_argument("--save_every", type=float, default=5, help="minutes between checkpoints")
    return p


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    begin = time.monotonic()
    device, dtype = start_run(args)
    rng = np.random.default_rng(args.seed)

    # Data: shuffled once; the tokenizer sees the first 30,000 of the training reviews.
    imdb = read_imdb(args.data)
    text = imdb["text"].tolist()
    held = held_out_reviews(imdb, min(args.held_out, len(imdb) // 4))
    order = np.random.default_rng(args.seed).permutation(np.setdiff1d(np.arange(len(text)), held))
    source = args.evaluate or args.init
    if source:
        tokenizer = AutoTokenizer.from_pretrained(source)
    else:
        tokenizer = train_tokenizer(text[i] for i in order[:30000])
    held_stream = encode(tokenizer, [text[i] for i in held])
    bytes_per_token = sum(len(text[i].encode()) for i in held) / len(held_stream)

    def quality(model: GPT2LMHeadModel) -> dict:
        nll = held_out_nll(model, held_stream, 640, 128)
        far = held_out_nll(model, held_stream, 160, 256, first=128)
        return {
            "bits_per_byte": round(nll / math.log(2) / bytes_per_token, 4),  # nats per token -> bits per byte
            "perplexity": round(math.exp(nll), 2),
            "perplexity_positions_128_255": round(math.exp(far), 2),
            "bytes_per_token": round(bytes_per_token, 4),
        }

    if args.evaluate:
        print(quality(GPT2LMHeadModel.from_pretrained(args.evaluate, dtype=torch.float32)))
        return

    train = encode(tokenizer, [text[i] for i in order])
    print(
        f"{len(order):,} reviews, {len(train) / 1e6:.1f} M tokens; {len(held):,} held out, "
        f"{bytes_per_token:.3f} bytes per token; {time.monotonic() - begin:.0f} s",
        flush=True,
    )
    if args.epochs:
        args.steps = math.ceil(args.epochs * len(train) / (args.batch * 128))

    # Parameters: a model to continue from, or transformers' own initialisation.
    if args.init:
        model = GPT2LMHeadModel.from_pretrained(args.init, dtype=torch.float32)
        print(f"continuing from {quality(model)}", flush=True)
    else:
        model = to_huggingface({}, len(tokenizer))
    weights = {k: p.detach().clone().to(device) for k, p in model.transformer.named_parameters()}
    for w in weights.values():
        w.requires_grad_()
    hidden = [n for n, w in weights.items() if n.startswith("h.") and w.ndim == 2]
    matrices = Muon([weights[n] for n in hidden], args.lr, args.weight_decay)
    rest = [w for n, w in weights.items() if n not in hidden]
    adam = torch.optim.AdamW(rest, args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    # A run bound to minutes ends by the clock, any other by its steps.
    length = {"steps": 0 if args.minutes else args.steps, "minutes": args.minutes, "warmup": args.warmup}
    schedule, tokens = Schedule(**length, shape="cosine", floor=0.05), 0
    checkpoint = args.work / "checkpoint.pt"
    if args.resume:
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        with torch.no_grad():
            for name, w in weights.items():
                w.copy_(state["weights"][name])
        matrices.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        schedule = Schedule(
            **length, shape="cosine", floor=0.05, step=state["step"], elapsed=state["elapsed"]
        )
        # the windows after a resumption are other ones than an unbroken run would have drawn
        tokens, rng = state["tokens"], np.random.default_rng([args.seed, state["step"]])
        print(f"resumed at step {schedule.step}, {schedule.elapsed / 60:.1f} min", flush=True)

    def save_checkpoint() -> None:
        args.work.mkdir(parents=True, exist_ok=True)
        state = {"weights": weights, "muon": matrices.state_dict(), "adam": adam.state_dict()}
        state |= {"step": schedule.step, "elapsed": schedule.elapsed, "tokens": tokens}
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    run = torch.compile(hidden_states, dynamic=False) if args.compile else hidden_states
    slope_fn = torch.compile(loss_and_slope) if args.compile else loss_and_slope
    draw = windows(train, args.batch, 128, rng)
    last_time, last_tokens, last_save, losses = time.monotonic(), tokens, time.monotonic(), []
    while not schedule.done:
        factor = schedule.factor()
        for optimizer in (matrices, adam):
            for group in optimizer.param_groups:
                group["lr"] = args.lr * factor
        block = next(draw).to(device)
        # one cast of each matrix a step instead of autocast's one a use
        cast = {k: w.to(dtype) if k.startswith("h.") and "ln_" not in k else w for k, w in weights.items()}
        h = run(block[:, :-1].contiguous(), cast)
        loss = TiedCrossEntropy.apply(h, weights["wte.weight"], block[:, 1:].reshape(-1), slope_fn)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        matrices.step()
        adam.step()
        for w in weights.values():
            w.grad = None
        schedule.step += 1
        tokens += block.shape[0] * (block.shape[1] - 1)
        losses.append(loss.detach())
        if not math.isfinite(loss.item()):  # before it is saved
            raise SystemExit("the loss is not finite: lower --lr")
        if schedule.step % args.log_every == 0:
            now, mean = time.monotonic(), torch.stack(losses).mean().item()
            print(
                f"step {schedule.step} | {tokens / 1e6:.2f} M tokens | loss {mean:.3f} | lr x {factor:.3f} | "
                f"{(tokens - last_tokens) / (now - last_time):,.0f} tokens/s | {schedule.eta()}",
                flush=True,
            )
            last_time, last_tokens, losses = now, tokens, []
        if time.monotonic() - last_save > 60 * args.save_every:
            save_checkpoint()
            last_save = time.monotonic()
    save_checkpoint()
    if args.extend:
        cast = {k: w.to(dtype) if k.startswith("h.") and "ln_" not in k else w for k, w in weights.items()}
        tail = extend_positions(cast, train, args.extend, max(args.batch // 2, 1), run, slope_fn, rng)
        weights["wpe.weight"] = tail
    minutes = schedule.elapsed / 60

    # Measure what is shipped: the fp16 weights, through transformers.
    model = to_huggingface({k: w.detach().half() for k, w in weights.items()}, len(tokenizer))
    metrics = quality(model) | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": schedule.step,
        "tokens": tokens,
        "train_stream_tokens": len(train),
        "train_reviews": len(order),
        "held_out_reviews": len(held),
        "minutes": round(minutes, 1),
        "device": device,
        "seed": args.seed,
        "command": command_line(args, parser),
        "note": args.note,
    }
    print(metrics, flush=True)
    save_model(model, tokenizer, args.out, card(metrics), metrics)


def card(m: dict) -> str:
    rows = [
        ("architecture", f"GPT-2: {LAYERS} layers x {WIDTH}, {HEADS} heads, {POSITIONS} positions, no dropout, "
                         f"{m['parameters'] / 1e6:.2f} M parameters (embeddings tied)"),
        ("tokenizer", f"byte-level BPE of {VOCAB:,}, trained on 30,000 of the training reviews; "
                      f"`{EOS}` = id 0 stands between reviews"),
        ("held out", f"**{m['bits_per_byte']:.3f} bits per byte** = perplexity {m['perplexity']:.1f} per token at "
                     f"{m['bytes_per_token']:.3f} bytes per token: the first 640 windows of 128 tokens of "
                     f"{m['held_out_reviews']:,} test reviews that training never saw"),
        ("further on", f"perplexity {m['perplexity_positions_128_255']:.1f} at positions 128-255 of windows of 256"),
        ("data", f"{m['train_reviews']:,} reviews of the Large Movie Review Dataset (all splits but the held-out "
                 f"ones), {m['train_stream_tokens'] / 1e6:.1f} M tokens; `<br />` and runs of blanks to one space"),
        ("training", f"{m['steps']:,} steps, {m['tokens'] / 1e6:.1f} M tokens "
                     f"({m['tokens'] / m['train_stream_tokens']:.2f} epochs), {m['minutes']:.0f} minutes on "
                     f"{'a GPU' if m['device'] == 'cuda' else 'the CPU'}, "
            f"seed {'not kept' if m['seed'] is None else m['seed']}"),
        ("command", f"`{m['command']}`"),
    ]  # fmt: skip
    note = f"\n{m['note']}\n" if m["note"] else ""
    return f"""# mini policy

A small language model of film reviews, made to be fine-tuned: with it the exercise runs in minutes on a laptop.
It writes grammatical, rambling reviews that do not hold a thought for long; it knows nothing else.

{table(rows)}
{note}
The weights are fp16 on disk; `from_pretrained` gives fp32. The recipe is `mini/train_policy.py`, in which every
setting is written down. A run bound to minutes ends with a somewhat different number on a faster or busier machine.
The numbers above are in `metrics.json`, for programs.

## Data, licence, limits

Trained on nothing but the Large Movie Review Dataset (Maas et al., *Learning Word Vectors for Sentiment Analysis*,
ACL 2011; on the Hub as `stanfordnlp/imdb`): 100,000 user reviews from IMDB, released by its authors for research,
without a standard licence text. The reviews belong to those who wrote them; none of their text is in this
repository. Use the weights as the data are meant: for teaching and research. The model repeats what its reviewers
say, slurs and prejudices about real people included, and everything it states about films is made up.
"""


if __name__ == "__main__":
    main()
