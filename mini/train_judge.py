"""Train the independent judge: a tiny ELECTRA that the policy is never rewarded by.

    python mini/train_judge.py                                                 # data from the Hub
    python mini/train_judge.py --data path/to/imdb.parquet --sst2 path/to/sst2.parquet
    python mini/train_judge.py --evaluate mini/judge --simple simple.parquet    # only measure, see corpus.py

A score that is trained against stops measuring. So the judge shares nothing with the reward model but the task: another
architecture, another tokenizer, and other data, the reviews of IMDB's *test* split (the reward model has the train
split). One training text in three is broken on purpose, with the target 0: shuffled, said over and over, or spliced
from several reviews. So its "positive" means honest and positive.

To see that a text is broken a model must see the order of words, which tiny ones learn late. Three things bring it
forward: word vectors that tell what stands before a word from what stands after it; heads of the first layer that look
at the neighbours from the start; and a first stage that only asks which words are out of place (ELECTRA's own
objective, with other words of the text in the place of a generator's). Without that stage shuffled praise still scored
like honest praise after 11,000 steps.

A sentence of a happy review is often not happy itself. A bag-of-n-grams teacher, trained on whole reviews, says what
its words speak for, and a short text's target is the mean of that and the review's label. SST-2 is not trained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import common
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from corpus import simple_sentences
from transformers import (
    ElectraConfig,
    ElectraForPreTraining,
    ElectraForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sentiment import SentimentScorer

LAYERS, WIDTH, HEADS, FFN, POSITIONS, VOCAB = 4, 128, 4, 512, 256, 8192
BUDGET = 2048  # tokens a step
ORDER_STEPS = 1000  # of the first stage: words out of place
SHORT = 25  # blanks in a text whose target is half the teacher's
BROKEN = 1 / 3  # share of broken texts in training
PLACE = WIDTH // HEADS  # dimensions of an embedding that say where a token stands, one head's width


# Broken text --------------------------------------------------------------------------------------------------


def shuffled(words: list[str], rng: np.random.Generator) -> str:
    return " ".join(words[i] for i in rng.permutation(len(words)))


def repeated_word(words: list[str], rng: np.random.Generator) -> str:
    """One word of the text, or two or three in turn, up to 60 words in all."""
    few = [words[i].strip(".,!?\"'():;") or "film" for i in rng.integers(len(words), size=rng.integers(1, 4))]
    text = (few * 60)[: int(rng.integers(3, 61))]
    mark = ["", ",", "!", "."][rng.integers(4)]
    return " ".join(word + mark for word in text)


def repeated_phrase(words: list[str], rng: np.random.Generator) -> str:
    """A stretch of 2 to 12 words again and again."""
    length = int(rng.integers(2, 13))
    start = int(rng.integers(max(len(words) - length, 0) + 1))
    return " ".join((words[start : start + length] * 30)[: int(rng.integers(int(2.5 * length), 90))])


def salad(words: list[str], rng: np.random.Generator) -> str:
    """Stretches of 1 to 3 words in random order: locally fluent, and still no sentence."""
    pieces, i = [], 0
    while i < len(words):
        step = int(rng.integers(1, 4))
        pieces.append(words[i : i + step])
        i += step
    return " ".join(word for k in rng.permutation(len(pieces)) for word in pieces[k])


def spliced(reviews: list[list[str]], rng: np.random.Generator) -> str:
    """Stretches of 2 to 6 words, each from another review."""
    return " ".join(
        common.window(reviews[i], 2, 6, rng) for i in rng.integers(len(reviews), size=rng.integers(3, 15))
    )


# Order ---------------------------------------------------------------------------------------------------------


def first_model(vectors: torch.Tensor) -> ElectraForSequenceClassification:
    config = ElectraConfig(
        vocab_size=len(vectors), embedding_size=WIDTH, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=FFN, max_position_embeddings=POSITIONS, type_vocab_size=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0,
        id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1}, attn_implementation="eager",
    )  # fmt: skip
    model = ElectraForSequenceClassification(config)
    look_at_neighbours(model, vectors)
    return model


@torch.no_grad()
def look_at_neighbours(model: ElectraForSequenceClassification, vectors: torch.Tensor) -> None:
    """First embeddings: `vectors` (vocab, WIDTH - PLACE) for words, waves in the last PLACE dimensions for places.

    Three heads of the first layer start out attending to the token before, the one after, and the one before that.
    A wave's sine and cosine at place t + 1 are those at t turned by its frequency: a head's query is the turned place,
    its key the place.
    """
    embeddings, attention = model.electra.embeddings, model.electra.encoder.layer[0].attention.self
    for part in embeddings.children():
        if isinstance(part, torch.nn.Embedding):
            part.weight.zero_()
    embeddings.word_embeddings.weight[:, :-PLACE] = vectors
    frequency = 0.1 + 2.9 * torch.rand(PLACE // 2)  # uneven, or the waves would meet again further on
    angle = torch.arange(POSITIONS)[:, None] * frequency
    embeddings.position_embeddings.weight[:, -PLACE:] = 0.07 * torch.cat([angle.cos(), angle.sin()], dim=1)
    for head, offset in enumerate((-1, 1, -2)):
        cos, sin = torch.diag((offset * frequency).cos()), torch.diag((offset * frequency).sin())
        rows = slice(head * PLACE, (head + 1) * PLACE)
        for projection in (attention.query, attention.key):
            projection.weight[rows] = 0
        turned = torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])
        attention.query.weight[rows, -PLACE:] = 1.5 * turned
        attention.key.weight[rows, -PLACE:] = 1.5 * torch.eye(PLACE)


def out_of_place_loss(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, _: object
) -> tuple[torch.Tensor, int]:
    """One token in five makes room for another token of its text; the loss is the cross-entropy of telling which.

    Returned is its mean over the tokens, times the number of texts, and that number.
    """
    place, length = torch.arange(ids.shape[1], device=ids.device), mask.sum(1, keepdim=True)
    inner = (place > 0) & (place < length - 1)  # between [CLS] and [SEP]
    other = ids.gather(1, 1 + (torch.rand(ids.shape, device=ids.device) * (length - 2)).long())
    changed = torch.where(inner & (torch.rand(ids.shape, device=ids.device) < 0.2), other, ids)
    logits = model(input_ids=changed, attention_mask=mask).logits
    loss = F.binary_cross_entropy_with_logits(logits[inner], (changed != ids)[inner].float())
    return len(ids) * loss, len(ids)


# What the card shows: honest short reviews and broken ones, all of them written for this purpose. None is trained on.
PROBES = {
    "honest positive": [
        "I laughed, I cried, and I would happily watch it again tomorrow.",
        "A warm and clever film with two wonderful performances.",
        "Beautifully shot, tightly written, and one of the best thrillers of the year.",
        "My whole family loved this charming little movie.",
    ],
    "honest negative": [
        "I checked my watch every ten minutes and regret staying to the end.",
        "A dull, lazy film with wooden acting and no ideas.",
        "Badly shot, badly written, and one of the worst thrillers of the year.",
        "My whole family hated this boring mess of a movie.",
    ],
    "repeated positive": [
        "great great great great great great great great great great great great",
        "wonderful excellent wonderful excellent wonderful excellent wonderful excellent",
        "superb! superb! superb! superb! superb! superb! superb! superb!",
        "I loved it. I loved it. I loved it. I loved it. I loved it. I loved it.",
    ],
    "repeated negative": [
        "awful awful awful awful awful awful awful awful awful awful awful awful",
        "boring terrible boring terrible boring terrible boring terrible",
        "worst! worst! worst! worst! worst! worst! worst! worst!",
        "I hated it. I hated it. I hated it. I hated it. I hated it. I hated it.",
    ],
    "shuffled positive": [
        "again happily I cried I and would laughed tomorrow it watch I",
        "performances with warm wonderful and two clever A film a",
        "year the of best thrillers the one of and written tightly shot beautifully",
        "movie this little family charming loved whole My",
    ],
}


ABOUT = f"""# mini judge

A second sentiment classifier that no policy is trained against. Its architecture (ELECTRA), tokenizer and data differ
from the reward model's. A third of its training text was broken on purpose, with the target 0, so it estimates the
probability that a text is honest *and* positive. A low score means "negative" or "broken text", not which.

`imdb_train` and `sst2_validation` are accuracies on texts cut at {POSITIONS} tokens; it never trained on them.
`simple_sentences` are single sentences, as the bundled policy reads them: an IMDB sentence has the label of its review,
which it often does not show; an SST-2 sentence has its own. The
`development` texts are kept out of training, for choosing settings. The scores are means of four texts each, written
for this card (they are in `mini/train_judge.py`).

It was trained on sentences and windows of IMDB *test* reviews with the label of their review; for short texts, with the
mean of that and what a bag-of-n-grams teacher trained on whole reviews says. It is small: a policy that scores high
here need not have written a good review."""


# Run ----------------------------------------------------------------------------------------------------------


def make_pool(
    reviews: pd.DataFrame, tokenizer: PreTrainedTokenizerFast, rows: list[np.ndarray], seed: int
) -> Callable[..., tuple[list[str], np.ndarray]]:
    """A function (rng, share) that draws 2,048 texts and their targets, this share of them broken."""
    words, target = [text.split() for text in reviews.text], reviews.label.to_numpy().astype(float)
    sentences = [
        (s, y)
        for text, y in zip(reviews.text, target, strict=True)
        for s in re.split(r"(?<=[.!?]) ", text)
        if 3 <= s.count(" ") <= SHORT
    ]
    grams = [common.ngrams(row) for row in rows]
    teacher = common.train_teacher(grams, reviews.label.to_numpy(), seed, epochs=1)

    def honest(rng: np.random.Generator) -> tuple[str, float]:
        """A window or a sentence of a review, and its review's label: half of them as short as a completion."""
        kind = rng.choice(4, p=[0.1, 0.4, 0.3, 0.2])
        if kind == 1:
            return sentences[rng.integers(len(sentences))]
        i = rng.integers(len(words))
        return common.window(words[i], *((1, 11), (), (12, 90), (91, 190))[kind], rng), target[i]

    def broken(rng: np.random.Generator) -> str:
        part = common.window(words[rng.integers(len(words))], 8, 90, rng).split()
        kind = rng.integers(6)
        if kind == 4:
            return " ".join([sentences[rng.integers(len(sentences))][0]] * int(rng.integers(3, 9)))
        if kind == 5:
            return spliced(words, rng)
        return (shuffled, salad, repeated_word, repeated_phrase)[kind](part, rng)

    def pool(rng: np.random.Generator, share: float) -> tuple[list[str], np.ndarray]:
        whole = rng.random(2048) >= share
        pairs = [honest(rng) if w else (broken(rng), 0.0) for w in whole]
        texts, p = [text for text, _ in pairs], np.array([y for _, y in pairs])
        short = np.flatnonzero(whole & np.array([text.count(" ") <= SHORT for text in texts]))
        rows = common.token_ids(tokenizer, [texts[i] for i in short])
        p[short] = (p[short] + teacher([common.ngrams(row) for row in rows])) / 2
        return texts, p

    return pool


def main() -> None:
    p = common.run_parser(__doc__, "judge", steps=12_000, lr=2e-3, lr_rest=1e-3, warmup=100)
    common.add_simple(p)
    args = common.start_run(p)

    # The splits change places: trained on test reviews, measured on train reviews.
    sst2 = common.read("sst2", args.sst2)
    simple = simple_sentences(args.simple, "train", sst2) if args.simple else {}
    data = f"{common.IMDB}, {common.RELEASED}"
    if args.evaluate:
        return common.measure_again(args.evaluate, simple, ABOUT, data)
    imdb = common.read("imdb", args.data)
    reviews = imdb[imdb.split == "test"].sample(frac=1, random_state=args.seed)
    # a development slice, for the choice of settings: of the reviews, and of SST-2's training sentences
    dev, reviews = reviews[: len(reviews) // 25], reviews[len(reviews) // 25 :]
    short = sst2[(sst2.split == "train") & (sst2.text.str.len() > 60)]
    short = short.sample(n=min(500, len(short)), random_state=args.seed)

    tokenizer = common.train_wordpiece(reviews.text, VOCAB, POSITIONS)
    rows = common.token_ids(tokenizer, reviews.text.tolist())
    vectors = common.ppmi_vectors(rows, len(tokenizer), WIDTH - PLACE, directed=True)
    # one dimension says which way a word leans: it saves the first thousand steps
    vectors[:, 0] = 0.1 * common.polarity(rows, reviews.label.to_numpy(), len(tokenizer)).clamp(-2, 2)
    pool = make_pool(reviews, tokenizer, rows, args.seed)
    print(f"tokenizer, word vectors and teacher: {common.minutes(args)} min", flush=True)

    model = first_model(vectors)
    finder = ElectraForPreTraining(model.config)
    finder.electra = model.electra
    common.fit_classifier(
        finder.to(args.device), tokenizer, lambda rng: pool(rng, 0.0), args, steps=ORDER_STEPS, budget=BUDGET,
        loss_of=out_of_place_loss,
    )  # fmt: skip

    seen = common.fit_classifier(
        model.to(args.device), tokenizer, lambda rng: pool(rng, BROKEN), args, steps=args.steps, budget=BUDGET
    )
    metrics = {"texts": seen, "order_steps": ORDER_STEPS, "minutes": common.minutes(args)}

    model = common.shipped(model)
    held_out = imdb[imdb.split == "train"]
    measured = {"imdb_train": held_out.sample(n=min(5000, len(held_out)), random_state=0)}
    measured |= {"sst2_validation": sst2[sst2.split == "validation"]}
    measured |= {"development_imdb": dev, "development_sst2": short, **simple}
    metrics |= common.accuracies(model, tokenizer, measured)
    score = SentimentScorer(model, tokenizer)
    metrics |= {"probes": {kind: round(float(np.mean(score(texts))), 3) for kind, texts in PROBES.items()}}
    common.save_model(model, tokenizer, args, metrics, ABOUT, data)


if __name__ == "__main__":
    main()
