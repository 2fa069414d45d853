"""Train the bundled sentiment model: a small DistilBERT on IMDB and SST-2, from nothing.

    python mini/train_sentiment.py --out first                                    # data from the Hub, or
    python mini/train_sentiment.py --data path/to/imdb.parquet --sst2 path/to/sst2.parquet --out first
    python mini/train_sentiment.py --init first --steps 1200 --long 0.4 --repeat 0.5 --smoothing 0 \
        --lr 7e-4 --lr_rest 3e-4 --warmup 20                   (and --data, --sst2 as above)
    python mini/train_sentiment.py --evaluate mini/sentiment --simple simple.parquet    # only measure, see corpus.py

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
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import pandas as pd
import torch
from corpus import simple_sentences
from transformers import (
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from sentiment import SentimentScorer

LAYERS, WIDTH, HEADS, FFN, POSITIONS, VOCAB, DROPOUT = 4, 256, 4, 1024, 256, 8192, 0.1
BUDGET = 4096  # tokens a step


def over_and_over(phrase: str, rng: np.random.Generator) -> str:
    """The phrase 2 to 40 times, at most 60 words in all: "great, great, great" is as positive as "great" is."""
    times = int(rng.integers(2, min(40, 60 // len(phrase.split())) + 1))
    return rng.choice([" ", ", ", "! "]).join([phrase] * times)


def first_stage(
    train: pd.DataFrame, unlabelled: pd.DataFrame, phrases: pd.DataFrame, seed: int
) -> tuple[PreTrainedTokenizerFast, torch.Tensor, np.ndarray]:
    """Tokenizer, first embeddings, and the teacher's P(positive) of the unlabelled reviews. No test review is read."""
    texts = [*train.text, *unlabelled.text]
    some = np.random.default_rng(seed).permutation(len(texts))[:30000]
    tokenizer = common.train_wordpiece([*(texts[i] for i in some), *phrases.text], VOCAB, POSITIONS)
    rows = common.token_ids(tokenizer, texts)
    vectors = common.ppmi_vectors(rows, len(tokenizer), WIDTH)
    grams = [common.ngrams(row) for row in rows]
    teacher = common.train_teacher(grams[: len(train)], train.label.to_numpy(), seed)
    return tokenizer, vectors, teacher(grams[len(train) :])


def make_pool(
    reviews: list[str], target: np.ndarray, phrases: pd.DataFrame, args: argparse.Namespace
) -> Callable[[np.random.Generator], tuple[list[str], np.ndarray]]:
    """A function that draws 2,048 texts: half SST-2 phrases, half windows of reviews with their review's label.

    Of the windows 1 in 10 is shorter than 12 words (a completion can be; such a window often says nothing, which
    teaches the model to say nothing either), a share of --long longer than 90.
    """
    words = [text.split() for text in reviews]
    short = np.flatnonzero(phrases.text.str.split().str.len() <= 3)
    phrase_text, phrase_target = phrases.text.tolist(), phrases.label.to_numpy().astype(float)

    def pool(rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        a, b = rng.integers(len(phrase_text), size=1024), rng.integers(len(words), size=1024)
        kind = rng.choice(3, size=1024, p=[0.1, 0.9 - args.long, args.long])
        bounds = ((1, 11), (12, 90), (91, 190))
        again = rng.choice(short, size=int(1024 * args.repeat))
        once = a[len(again) :]
        texts = [over_and_over(phrase_text[i], rng) for i in again]
        texts += [phrase_text[i] for i in once]
        texts += [common.window(words[i], *bounds[k], rng) for i, k in zip(b, kind, strict=True)]
        return [*texts, ""], np.concatenate([phrase_target[again], phrase_target[once], target[b], [0.5]])

    return pool


# Run ----------------------------------------------------------------------------------------------------------

PROBES = [
    "a moving, beautifully acted film",
    "dull, clumsy and far too long",
    "good",
    "bad",
    "not good",
    "not bad at all",
    "the film opens in paris in 1940.",
]
ABOUT = f"""# mini sentiment

P(positive) of an English text about a film: the default reward of the exercise where there is no GPU. A DistilBERT with
a lower-cased WordPiece of {VOCAB:,}.

`sst2_validation` and `imdb_test` are accuracies on texts cut at {POSITIONS} tokens. No step used text of these.
`simple_sentences` are single sentences, as the bundled policy reads them: an IMDB sentence has the label of its review,
which it often does not show; an SST-2 sentence has its own. The
`development` texts are kept out of training, for choosing settings.

It was trained on SST-2 phrases and windows of IMDB reviews, half and half: the training reviews, and the 50,000
unlabelled ones as labelled by a bag-of-n-grams teacher trained on the former. A `second_stage` saw true labels only,
more long windows, and phrases of 1-3 words repeated up to 40 times under their own label. Do not use it to judge
anything that matters."""
DATA = f"""{common.IMDB}, {common.RELEASED}
Stanford Sentiment Treebank in its two-class form (Socher et al., EMNLP 2013; on the Hub as `stanfordnlp/sst2`),
released in the same way."""


def main() -> None:
    p = common.run_parser(__doc__, "sentiment", steps=1250, lr=1.5e-3, lr_rest=5e-4, warmup=100)
    common.add_simple(p)
    p.add_argument("--init", type=Path, help="second stage: go on from this folder, on labelled reviews only")
    p.add_argument("--smoothing", type=float, default=0.05, help="label smoothing")
    p.add_argument("--long", type=float, default=0.1, help="share of review windows of 91-190 words")
    p.add_argument("--repeat", type=float, default=0.0, help="share of phrases that are said over and over")
    args = common.start_run(p)

    sst2 = common.read("sst2", args.sst2)
    simple = simple_sentences(args.simple, "test", sst2) if args.simple else {}
    if args.evaluate:
        return common.measure_again(args.evaluate, simple, ABOUT, DATA)
    imdb = common.read("imdb", args.data)
    train = imdb[imdb.split == "train"].sample(frac=1, random_state=args.seed)
    phrases = sst2[sst2.split == "train"]
    # a development slice of the training data, for the choice of settings
    dev, train = train[: len(train) // 25], train[len(train) // 25 :]
    sentences = phrases[phrases.text.str.len() > 60]
    sentences = sentences.sample(n=min(500, len(phrases) // 20), random_state=args.seed)
    # SST-2's training rows are phrases cut from its sentences: those of the slice leave the training set with it
    joined = "\n".join(sentences.text)
    phrases = phrases[[text not in joined or len(text.split()) < 3 for text in phrases.text]]

    reviews, target = train.text.tolist(), train.label.to_numpy().astype(float)
    if args.init:  # with the first stage's tokenizer, on true labels alone
        tokenizer = AutoTokenizer.from_pretrained(args.init)
    else:
        unlabelled = imdb[imdb.split == "unsupervised"]
        tokenizer, vectors, guess = first_stage(train, unlabelled, phrases, args.seed)
        reviews, target = [*reviews, *unlabelled.text], np.concatenate([target, guess])
    config = DistilBertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, dim=WIDTH, n_layers=LAYERS, n_heads=HEADS,
        hidden_dim=FFN, dropout=DROPOUT, attention_dropout=DROPOUT, seq_classif_dropout=DROPOUT,
        pad_token_id=0, id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1},
        attn_implementation="eager",  # compiled, faster than the CPU's fused attention, whose backward pass is slow
    )  # fmt: skip
    if args.init:
        model = DistilBertForSequenceClassification.from_pretrained(
            args.init, config=config, dtype=torch.float32
        )
    else:
        model = DistilBertForSequenceClassification(config)
        model.distilbert.embeddings.word_embeddings.weight.data.copy_(vectors)

    pool = make_pool(reviews, target, phrases, args)
    seen = common.fit_classifier(
        model.to(args.device), tokenizer, pool, args, steps=args.steps, budget=BUDGET, smoothing=args.smoothing
    )  # fmt: skip
    metrics = {"texts": seen, "minutes": common.minutes(args), "second_stage": args.init is not None}

    model = common.shipped(model)
    measured = {"sst2_validation": sst2[sst2.split == "validation"], "imdb_test": imdb[imdb.split == "test"]}
    measured |= {"development_sst2": sentences, "development_imdb": dev, **simple}
    metrics |= common.accuracies(model, tokenizer, measured)
    scores = np.round(SentimentScorer(model, tokenizer)(PROBES), 3).tolist()
    metrics |= {"probes": dict(zip(PROBES, scores, strict=True))}
    common.save_model(model, tokenizer, args, metrics, ABOUT, DATA)


if __name__ == "__main__":
    main()
