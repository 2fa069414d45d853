"""Train the bundled sentiment model: a small DistilBERT on IMDB and SST-2, from nothing.

    python mini/train_sentiment.py --minutes 30 --out first                       # data from the Hub, or
    python mini/train_sentiment.py --data path/to/imdb.parquet --sst2 path/to/sst2.parquet --minutes 30 --out first
    python mini/train_sentiment.py --init first --minutes 9 --long 0.4 --repeat 0.5 --smoothing 0 \
        --lr 7e-4 --lr_rest 3e-4 --warmup 20                   (and --data, --sst2 as above)

What it does, top to bottom: a lower-cased WordPiece of 8,192; word vectors from co-occurrence counts as the first
embeddings; a bag-of-n-grams teacher trained on the labelled reviews, which labels the 50,000 unlabelled ones; then
windows of reviews and SST-2 phrases, half and half. A reward model sees texts of 1 to 64 tokens, so the windows
are mostly short. A second stage (`--init`) sees true labels only, longer windows of reviews, and short phrases said
over and over under the label they have when said once. That last part is what gives the exercise its plot: of all
texts of 40 words the model then likes best one warm word 40 times, as a classifier of phrases does, and a policy
that is paid by it finds out. Nothing guards it against being gamed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from common import (
    Schedule,
    accuracy,
    classifier_parser,
    command_line,
    fit_classifier,
    ngrams,
    positive,
    ppmi_vectors,
    read_imdb,
    read_sst2,
    save_model,
    start_run,
    table,
    token_ids,
    train_teacher,
    train_wordpiece,
    window,
)
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForSequenceClassification, PreTrainedModel

LAYERS, WIDTH, HEADS, FFN, POSITIONS, VOCAB = 4, 256, 4, 1024, 256, 8192


def over_and_over(phrase: str, rng: np.random.Generator) -> str:
    """The phrase 2 to 40 times, at most 60 words in all: "great, great, great" is as positive as "great" is."""
    times = int(rng.integers(2, min(40, 60 // len(phrase.split())) + 1))
    return rng.choice([" ", ", ", "! "]).join([phrase] * times)


# Run ----------------------------------------------------------------------------------------------------------

PROBES = [
    "a moving, beautifully acted film",
    "dull, clumsy and far too long",
    "good",
    "bad",
    "not good",
    "not bad at all",
    "the film opens in paris in 1940.",
    "",
    "great great great great great great great great",
    "terrible terrible terrible terrible terrible terrible",
]


def make_parser() -> argparse.ArgumentParser:
    p = classifier_parser(__doc__, Path(__file__).parent / "sentiment", budget=4096, lr=1.5e-3, lr_rest=5e-4)
    p.add_argument("--init", type=Path, help="second stage: go on from this folder, on labelled reviews only")
    p.add_argument("--long", type=float, default=0.1, help="share of review windows of 91-190 words")
    p.add_argument("--repeat", type=float, default=0.0, help="share of phrases that are said over and over")
    p.add_argument(
        "--test_sample", type=int, default=0, help="IMDB test reviews to measure on (0: all 25,000)"
    )
    return p


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    if not args.steps and not args.minutes:
        parser.error("give the run a length: --minutes or --steps")
    begin = time.monotonic()
    device, dtype = start_run(args)
    rng = np.random.default_rng(args.seed)

    imdb, sst2 = read_imdb(args.data), read_sst2(args.sst2)
    train = imdb[imdb.split == "train"].sample(frac=1, random_state=args.seed)
    unlabelled = imdb[imdb.split == "unsupervised"]
    phrases = sst2[sst2.split == "train"]
    # A development slice of the training data, for the choice of settings. SST-2's training rows are phrases cut from
    # its sentences, so every phrase of a development sentence leaves the training set with it.
    dev, train = train[: len(train) // 25], train[len(train) // 25 :]
    sentences = phrases[phrases.text.str.len() > 60].sample(
        n=min(500, len(phrases) // 20), random_state=args.seed
    )
    joined = "\n".join(sentences.text)
    phrases = phrases[[text not in joined or len(text.split()) < 3 for text in phrases.text]]
    sst2_validation, imdb_test = sst2[sst2.split == "validation"], imdb[imdb.split == "test"]
    if args.test_sample:
        imdb_test = imdb_test.sample(n=args.test_sample, random_state=0)

    own, target = train.text.tolist(), train.label.to_numpy().astype(float)
    if args.init:  # with the first stage's tokenizer, on true labels alone
        tokenizer = AutoTokenizer.from_pretrained(args.init)
    else:
        # Tokenizer and first embeddings: training and unlabelled reviews only, nothing from the test reviews.
        own += unlabelled.text.tolist()
        some = rng.permutation(len(own))[:30000]
        tokenizer = train_wordpiece([*(own[i] for i in some), *phrases.text], VOCAB, POSITIONS)
        rows = token_ids(tokenizer, own)
        vectors = ppmi_vectors(rows, len(tokenizer), WIDTH)
        print(f"tokenizer and word vectors: {time.monotonic() - begin:.0f} s", flush=True)

        # The teacher labels the unlabelled reviews.
        grams = [ngrams(row) for row in rows]
        teacher = train_teacher(grams[: len(train)], train.label.to_numpy(), args.seed)
        guess = teacher(grams[len(train) :])
        judged = teacher([ngrams(row) for row in token_ids(tokenizer, dev.text.tolist())])
        print(
            f"teacher: {((judged > 0.5) == (dev.label == 1)).mean():.3f} on the development reviews; "
            f"{time.monotonic() - begin:.0f} s",
            flush=True,
        )
        target = np.concatenate([target, guess])
    words = [text.split() for text in own]
    short = np.flatnonzero(phrases.text.str.split().str.len() <= 3)
    phrase_text, phrase_target = phrases.text.tolist(), phrases.label.to_numpy().astype(float)

    def pool(rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        """2,048 texts: half SST-2 phrases, half windows of reviews carrying their review's label.

        Of the windows 1 in 10 is shorter than 12 words (a completion can be; such a window often says nothing,
        which teaches the model to say nothing either), a share of --long longer than 90.
        """
        a, b = rng.integers(len(phrase_text), size=1024), rng.integers(len(words), size=1024)
        kind = rng.choice(3, size=1024, p=[0.1, 0.9 - args.long, args.long])
        bounds = ((1, 11), (12, 90), (91, 190))
        again = rng.choice(short, size=int(1024 * args.repeat))
        once = a[len(again) :]
        texts = [over_and_over(phrase_text[i], rng) for i in again]
        texts += [phrase_text[i] for i in once]
        texts += [window(words[i], *bounds[k], rng) for i, k in zip(b, kind, strict=True)]
        return [*texts, ""], np.concatenate([phrase_target[again], phrase_target[once], target[b], [0.5]])

    config = DistilBertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, dim=WIDTH, n_layers=LAYERS, n_heads=HEADS,
        hidden_dim=FFN, dropout=args.dropout, attention_dropout=args.dropout, seq_classif_dropout=args.dropout,
        pad_token_id=0, id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1},
        attn_implementation="eager",  # compiled, faster than the CPU's fused attention, whose backward pass is slow
    )  # fmt: skip
    if args.init:
        model = DistilBertForSequenceClassification.from_pretrained(
            args.init, config=config, dtype=torch.float32
        )
    else:
        model = DistilBertForSequenceClassification(config)
        with torch.no_grad():
            model.distilbert.embeddings.word_embeddings.weight.copy_(vectors)
    model = model.to(device)
    schedule = Schedule(args.steps, args.minutes, args.warmup)

    def watch(model: PreTrainedModel) -> str:
        short, long = accuracy(model, tokenizer, sentences), accuracy(model, tokenizer, dev[:200])
        return f"development slice: SST-2 {short:.4f}, IMDB {long:.4f}"

    fit_classifier(model, tokenizer, pool, schedule, args, dtype, device, watch)
    minutes = (time.monotonic() - begin) / 60

    # Measure what is shipped: fp16 weights, computed in fp32.
    model = model.cpu()
    model = model.half().float().eval()
    save_model(model, tokenizer, args.out, "not measured yet\n", {})
    slice_sst2, slice_imdb = accuracy(model, tokenizer, sentences), accuracy(model, tokenizer, dev)
    print(f"development slice: SST-2 sentences {slice_sst2:.4f}, IMDB {slice_imdb:.4f}", flush=True)
    metrics = {
        "sst2_validation": round(accuracy(model, tokenizer, sst2_validation), 4),
        "sst2_validation_n": len(sst2_validation),
        "imdb_test": round(accuracy(model, tokenizer, imdb_test), 4),
        "imdb_test_n": len(imdb_test),
        "development_sst2": round(slice_sst2, 4),
        "development_imdb": round(slice_imdb, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": schedule.step,
        "texts": schedule.seen,
        "minutes": round(minutes, 1),
        "device": device,
        "seed": args.seed,
        "second_stage": args.init is not None,
        "command": command_line(args, parser),
        "note": args.note,
        "probes": dict(
            zip(PROBES, (round(float(s), 3) for s in positive(model, tokenizer, PROBES)), strict=True)
        ),
    }
    print(metrics, flush=True)
    save_model(model, tokenizer, args.out, card(metrics), metrics)


def card(m: dict) -> str:
    rows = [
        ("architecture", f"DistilBERT: {LAYERS} layers x {WIDTH}, {HEADS} heads, FFN {FFN:,}, {POSITIONS} positions, "
                         f"{m['parameters'] / 1e6:.2f} M parameters; labels NEGATIVE (0), POSITIVE (1)"),
        ("tokenizer", f"WordPiece of {VOCAB:,}, lower-cased"),
        ("SST-2 validation", f"**{m['sst2_validation']:.1%}** of {m['sst2_validation_n']:,} sentences"),
        ("IMDB test", f"**{m['imdb_test']:.1%}** of {m['imdb_test_n']:,} reviews cut at {POSITIONS} tokens"),
        ("development slice", f"{m['development_sst2']:.1%} of SST-2 sentences, {m['development_imdb']:.1%} of IMDB "
                              "reviews, kept out of training, for choosing settings"),
        ("data", "half SST-2 training phrases, half windows of IMDB reviews (10 % of 1-11 words, most of 12-90, "
                 "10 % of 91-190) with the label of their review: the training reviews, and the 50,000 unlabelled "
                 "ones as labelled, softly, by a bag-of-n-grams teacher trained on the former"),
        *[("second stage", "training reviews and phrases only, more windows of 91-190 words, and phrases of 1-3 words "
                           "repeated up to 40 times under their own label")] * m["second_stage"],
        ("training", f"{m['steps']:,} steps, {m['texts']:,} texts, {m['minutes']:.0f} minutes on "
                     f"{'a GPU' if m['device'] == 'cuda' else 'the CPU'} in all, seed {m['seed']}"),
        ("command", f"`{m['command']}`"),
    ]  # fmt: skip
    note = f"\n{m['note']}\n" if m["note"] else ""
    probes = "\n".join(f"| {text or '(empty)'} | {score:.3f} |" for text, score in m["probes"].items())
    return f"""# mini sentiment

P(positive) of an English text about a film: the default reward of the exercise where there is no GPU.

{table(rows)}
{note}
First embeddings: truncated SVD of the PPMI co-occurrence matrix of the training and unlabelled reviews. No text of
the IMDB test split or of SST-2's validation set was used in any step. The weights are fp16 on disk; `from_pretrained`
gives fp32. Made by `mini/train_sentiment.py`; the numbers above are in `metrics.json`, for programs.

What it says of a few short texts:

| text | P(positive) |
|---|---|
{probes}

It counts praise rather than reads: repeat a good word and it is content. That is the loophole the exercise is about.
Do not use it to judge anything that matters.

## Data and licence

Large Movie Review Dataset (Maas et al., *Learning Word Vectors for Sentiment Analysis*, ACL 2011; on the Hub as
`stanfordnlp/imdb`) and the Stanford Sentiment Treebank in its two-class form (Socher et al., EMNLP 2013; on the Hub
as `stanfordnlp/sst2`). Both were released by their authors for research, without a standard licence text; none of
their text is in this repository. Use the weights as the data are meant: for teaching and research.
"""


if __name__ == "__main__":
    main()
