"""Train the independent judge: a tiny ELECTRA that the policy is never rewarded by.

    python mini/train_judge.py --minutes 20                                    # data from the Hub
    python mini/train_judge.py --data path/to/imdb.parquet --sst2 path/to/sst2.parquet --minutes 20

A score that is trained against stops measuring. So the judge shares nothing with the reward model but the task: another
architecture, another tokenizer, and other data, the reviews of IMDB's *test* split (the reward model has the train
split). One training text in five is broken on purpose, with the target 0.5: words shuffled, one word or phrase
repeated, one sentence repeated. Trained long enough it may
learn that such text says nothing, which is what a reader would say; the card's table tells whether it did.
SST-2 is only read to measure.
"""

from __future__ import annotations

import argparse
import re
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
    polarity,
    positive,
    ppmi_vectors,
    read_imdb,
    read_sst2,
    save_model,
    start_run,
    table,
    token_ids,
    train_wordpiece,
    window,
)
from transformers import AutoTokenizer, ElectraConfig, ElectraForSequenceClassification

LAYERS, WIDTH, EMBEDDING, HEADS, FFN, POSITIONS, VOCAB = 4, 128, 64, 4, 512, 256, 6144


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
    return " ".join((words[start : start + length] * 30)[: int(rng.integers(2.5 * length, 90))])


def salad(words: list[str], rng: np.random.Generator) -> str:
    """Stretches of 1 to 3 words in random order: locally fluent, and still no sentence."""
    pieces, i = [], 0
    while i < len(words):
        step = int(rng.integers(1, 4))
        pieces.append(words[i : i + step])
        i += step
    return " ".join(word for k in rng.permutation(len(pieces)) for word in pieces[k])


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


# Run ----------------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    p = classifier_parser(__doc__, Path(__file__).parent / "judge", budget=2048, lr=2e-3, lr_rest=1e-3)
    p.add_argument(
        "--init", help="model folder to continue from, weights and tokenizer (default: from nothing)"
    )
    p.add_argument("--broken", type=float, default=0.2, help="share of broken texts in training")
    p.add_argument(
        "--train_sample", type=int, default=0, help="IMDB train reviews to measure on (0: all 25,000)"
    )
    return p


def main() -> None:
    parser = make_parser()
    args = parser.parse_args()
    if not args.steps and not args.minutes:
        parser.error("give the run a length: --minutes or --steps")
    begin = time.monotonic()
    device, dtype = start_run(args)

    # The splits change places: trained on test reviews, measured on train reviews.
    imdb, sst2 = read_imdb(args.data), read_sst2(args.sst2)
    reviews = imdb[imdb.split == "test"].sample(frac=1, random_state=args.seed)
    dev, reviews = reviews[: len(reviews) // 25], reviews[len(reviews) // 25 :]
    measured, sst2_validation = imdb[imdb.split == "train"], sst2[sst2.split == "validation"]
    if args.train_sample:
        measured = measured.sample(n=args.train_sample, random_state=0)

    if args.init:
        tokenizer = AutoTokenizer.from_pretrained(args.init)
    else:
        tokenizer = train_wordpiece(reviews.text, VOCAB, POSITIONS)
        rows = token_ids(tokenizer, reviews.text.tolist())
        vectors = ppmi_vectors(rows, len(tokenizer), EMBEDDING)
        # one dimension says which way a word leans: it saves the first thousand steps
        vectors[:, 0] = 0.1 * polarity(rows, reviews.label.to_numpy(), len(tokenizer)).clamp(-2, 2)
        print(f"tokenizer and word vectors: {time.monotonic() - begin:.0f} s", flush=True)
    words, target = [text.split() for text in reviews.text], reviews.label.to_numpy().astype(float)
    sentences = [
        s for text in reviews.text for s in re.split(r"(?<=[.!?]) ", text) if 3 <= s.count(" ") <= 20
    ]

    def pool(rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        """2,048 texts: windows of reviews carrying their review's label, the share `--broken` of them broken.

        Lengths as for the reward model: 1 in 10 shorter than 12 words, 1 in 10 longer than 90.
        """
        texts, targets = [], []
        for i in rng.integers(len(words), size=2048):
            low, high = ((1, 11), (12, 90), (91, 190))[rng.choice(3, p=[0.1, 0.8, 0.1])]
            if rng.random() >= args.broken:
                texts.append(window(words[i], low, high, rng))
                targets.append(target[i])
                continue
            part = window(words[i], 8, 90, rng).split()
            kind = rng.integers(5)
            if kind == 0:
                texts.append(shuffled(part, rng))
            elif kind == 1:
                texts.append(salad(part, rng))
            elif kind == 2:
                texts.append(repeated_word(part, rng))
            elif kind == 3:
                texts.append(repeated_phrase(part, rng))
            else:
                texts.append(" ".join([sentences[rng.integers(len(sentences))]] * int(rng.integers(3, 9))))
            targets.append(0.5)
        return [*texts, ""], np.array([*targets, 0.5])

    config = ElectraConfig(
        vocab_size=len(tokenizer), embedding_size=EMBEDDING, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=FFN, max_position_embeddings=POSITIONS, type_vocab_size=1,
        hidden_dropout_prob=args.dropout, attention_probs_dropout_prob=args.dropout, pad_token_id=0,
        id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1}, attn_implementation="eager",
    )  # fmt: skip
    if args.init:
        model = ElectraForSequenceClassification.from_pretrained(
            args.init, config=config, dtype=torch.float32
        )
    else:
        model = ElectraForSequenceClassification(config)
        with torch.no_grad():
            model.electra.embeddings.word_embeddings.weight.copy_(vectors)
    model = model.to(device)
    schedule = Schedule(args.steps, args.minutes, args.warmup)

    def watch(model) -> str:
        return f"development slice: IMDB {accuracy(model, tokenizer, dev[:500]):.4f}"

    fit_classifier(model, tokenizer, pool, schedule, args, dtype, device, watch)
    minutes = (time.monotonic() - begin) / 60

    # Measure what is shipped: fp16 weights, computed in fp32.
    model = model.cpu().half().float().eval()
    save_model(model, tokenizer, args.out, "not measured yet\n", {})
    means = {kind: float(positive(model, tokenizer, texts).mean()) for kind, texts in PROBES.items()}
    metrics = {
        "imdb_train": round(accuracy(model, tokenizer, measured), 4),
        "imdb_train_n": len(measured),
        "sst2_validation": round(accuracy(model, tokenizer, sst2_validation), 4),
        "sst2_validation_n": len(sst2_validation),
        "development_imdb": round(accuracy(model, tokenizer, dev), 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": schedule.step,
        "texts": schedule.seen,
        "minutes": round(minutes, 1),
        "device": device,
        "seed": args.seed,
        "command": command_line(args, parser),
        "note": args.note,
        "probes": {kind: round(mean, 3) for kind, mean in means.items()},
    }
    print(metrics, flush=True)
    save_model(model, tokenizer, args.out, card(metrics), metrics)


def card(m: dict) -> str:
    rows = [
        ("architecture", f"ELECTRA: {LAYERS} layers x {WIDTH}, embeddings of {EMBEDDING}, {HEADS} heads, FFN {FFN}, "
                         f"{POSITIONS} positions, {m['parameters'] / 1e6:.2f} M parameters; "
                         "labels NEGATIVE (0), POSITIVE (1)"),
        ("tokenizer", f"WordPiece of {VOCAB:,}, lower-cased, its own"),
        ("IMDB train", f"**{m['imdb_train']:.1%}** of {m['imdb_train_n']:,} reviews cut at {POSITIONS} tokens"),
        ("SST-2 validation", f"**{m['sst2_validation']:.1%}** of {m['sst2_validation_n']:,} sentences; it never "
                             "trained on SST-2"),
        ("development slice", f"{m['development_imdb']:.1%} of IMDB test reviews kept out of training"),
        ("data", "windows of IMDB *test* reviews, the label of their review (10 % of 1-11 words, 80 % of 12-90, "
                 "10 % of 91-190); one text in five broken on purpose, target 0.5: words shuffled, short stretches "
                 "shuffled, one to three words repeated, a phrase repeated, a sentence repeated"),
        ("training", f"{m['steps']:,} steps, {m['texts']:,} texts, {m['minutes']:.0f} minutes on "
                     f"{'a GPU' if m['device'] == 'cuda' else 'the CPU'} in all, seed {m['seed']}"),
        ("command", f"`{m['command']}`"),
    ]  # fmt: skip
    note = f"\n{m['note']}\n" if m["note"] else ""
    probes = "\n".join(f"| {kind} | {score:.2f} |" for kind, score in m["probes"].items())
    return f"""# mini judge

A second opinion on sentiment that no policy is trained against. It shares with the reward model neither architecture
nor tokenizer nor data, and part of its training text was spam with the target 0.5. How much of that it learned is in
the second table: look before you rely on it.

{table(rows)}
{note}
Mean P(positive) of four texts each, written for this card (they are in `mini/train_judge.py`):

| text | P(positive) |
|---|---|
{probes}

It is small and it is not a human: a policy that scores high here has not thereby written a good review. The weights
are fp16 on disk; `from_pretrained` gives fp32. Made by `mini/train_judge.py`; the numbers are in `metrics.json`.

## Data and licence

Large Movie Review Dataset (Maas et al., *Learning Word Vectors for Sentiment Analysis*, ACL 2011; on the Hub as
`stanfordnlp/imdb`), released by its authors for research without a standard licence text; none of its text is in this
repository. Use the weights as the data are meant: for teaching and research.
"""


if __name__ == "__main__":
    main()
