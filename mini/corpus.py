"""Make the corpus of the bundled policy: the simple sentences of IMDB reviews.

    python mini/corpus.py --out simple.parquet                                  # IMDB from the Hub
    python mini/corpus.py --data path/to/imdb.parquet --out simple.parquet      # IMDB from a local file

A small model that learns from whole reviews spends itself on names, numbers, quotes and slang. This script keeps what
a small model can learn to write well: sentences of 3 to 40 common words, without names, numbers, lists and slurs. It
joins the sentences that are left of a review to texts. `--shortest 40` keeps the longer texts: a policy that has read
only them at last runs past 40 tokens about as often as not.

The result has one row per text: `split` (IMDB's, or `held_out` for the reviews that training must not see), `label`
and `text`. The same input gives the same output. The reviews belong to those who wrote them: do not publish the file.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

import pandas as pd
from common import held_out_reviews, read

WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
BRACKETS = re.compile(r"\s*[(\[][^()\[\]]*[)\]]")
# signs of other alphabets, digits, dots of omission, stray punctuation
ODD = re.compile(r"[^A-Za-z' ,;:.!?-]|[.!?,;:][.!?,;:]| [^A-Za-z]|[;:] |[ -]'|'[ -]|-[ -]|[.!?]\w")
# slurs and crude words, and talk about the site, the disc or the review itself
SKIPPED = re.compile(
    r"\b(fuck|shit|fag|nigg|negro|retard|whore|slut|bitch|cunt|chink|gook|kike|porn|rape|raping|rapist|tits|boob"
    r"|imdb|spoiler|dvd|vhs|website|review|comment|rating|rated|vote|posted|board|thread|summary)",
    re.IGNORECASE,
)
REPLACED = str.maketrans(
    {"\x91": "'", "\x92": "'", "‘": "'", "’": "'", "`": "'", "´": "'", "\x96": ", ", "\x97": ", ", "–": ", "}
    | dict.fromkeys('"“”\x93\x94*_', "")
)
CONTRACTIONS = {
    full.replace("'", ""): full
    for full in "don't doesn't didn't isn't wasn't aren't weren't haven't hasn't hadn't couldn't wouldn't shouldn't "
    "can't won't that's what's there's i'm i've you're they're you've".split()
} | {"alot": "a lot", "noone": "no one"}


def sentences(review: str) -> list[str]:
    """The sentences of a review, without quotation marks and remarks in brackets."""
    text = BRACKETS.sub("", review.translate(REPLACED))
    text = re.sub(r"\s*--+\s*", ", ", text)
    text = re.sub(r"([!?])[.!?]+", r"\1", text)
    return [part for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(text.split())) if part]


def truecase(sentence: str) -> str:
    """The sentence as a careful writer has it: "thats" -> "that's", "VERY" -> "very", "i" -> "I"."""

    def word(match: re.Match[str]) -> str:
        word = match[0]
        if word[1:] != word[1:].lower():
            word = word.lower()
        full = CONTRACTIONS.get(word.lower())
        if full:
            word = full.capitalize() if word[0].isupper() else full
        return word.capitalize() if word.split("'")[0] == "i" else word

    sentence = WORD.sub(word, sentence)
    return sentence[0].upper() + sentence[1:]


def common_words(reviews: list[list[str]], n: int) -> set[str]:
    """The `n` most frequent words in lower case. Left out are those that mostly begin with a capital: names."""
    count: Counter[str] = Counter()
    inside: Counter[str] = Counter()  # without the first word of a sentence, which has a capital anyway
    capital: Counter[str] = Counter()
    for review in reviews:
        for sentence in review:
            words = WORD.findall(sentence)
            count.update(word.lower() for word in words)
            inside.update(word.lower() for word in words[1:])
            capital.update(word.lower() for word in words[1:] if word[0].isupper())
    kept = (w for w, _ in count.most_common() if capital[w] <= 0.3 * inside[w] or w.split("'")[0] == "i")
    return {word for word, _ in zip(kept, range(n), strict=False)}


def is_simple(sentence: str, common: set[str]) -> bool:
    """3 to 40 words, all of them common; at most three commas; no name, no digit, no slur."""
    words = WORD.findall(sentence)
    return (
        3 <= len(words) <= 40
        and sentence[-1] in ".!?"
        and not ODD.search(sentence)
        and not SKIPPED.search(sentence)
        and sentence.count(",") <= 3
        and all(word.lower() in common for word in words)
        and not any(word[0].isupper() and word.split("'")[0] != "I" for word in words[1:])
    )


def texts(good: list[str], shortest: int) -> list[str]:
    """The simple sentences of a review, joined to texts of `shortest` to 120 words."""
    out: list[str] = []
    for sentence in good:
        if out and len(f"{out[-1]} {sentence}".split()) <= 120:
            out[-1] = f"{out[-1]} {sentence}"
        else:
            out.append(sentence)
    return [text for text in out if len(text.split()) >= shortest]


def simple_sentences(path: str, split: str, sst2: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Single sentences (`text`, `label`) to measure a classifier on.

    5,000 of one split of the file that this script wrote, each with the label of its review, and those of SST-2's
    validation sentences that are as simple, spelled as reviews are.
    """
    frame = read("imdb", path)
    common = {word.lower() for text in frame["text"] for word in WORD.findall(text)}
    part, whole = frame[frame["split"] == split], sst2[sst2["split"] == "validation"]
    rows = [
        (text, y) for texts, y in zip(part["text"], part["label"], strict=True) for text in sentences(texts)
    ]
    some = pd.DataFrame(rows, columns=["text", "label"])
    spelled = [truecase(re.sub(r" ([.,!?;:]|n't|'\w+)", r"\1", text)) for text in whole["text"]]
    whole = whole.assign(text=spelled)[[is_simple(text, common) for text in spelled]]
    some = some.sample(n=min(5000, len(some)), random_state=0)
    return {f"simple_sentences_imdb_{split}": some, "simple_sentences_sst2_validation": whole}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", help="local imdb.parquet; default: stanfordnlp/imdb from the Hub")
    p.add_argument("--out", type=Path, required=True, help="parquet file to write")
    p.add_argument("--words", type=int, default=6000, help="size of the list of common words")
    p.add_argument("--shortest", type=int, default=12, help="words of the shortest text that is kept")
    args = p.parse_args()

    imdb = read("imdb", args.data)
    imdb.loc[held_out_reviews(imdb), "split"] = "held_out"
    reviews = [sentences(review) for review in imdb["text"]]
    common = common_words(reviews, args.words)
    rows, kept = [], 0
    for split, label, review in zip(imdb["split"], imdb["label"], reviews, strict=True):
        good = [sentence for sentence in map(truecase, review) if is_simple(sentence, common)]
        kept += len(good)
        rows += [(split, label, text) for text in texts(good, args.shortest)]
    frame = pd.DataFrame(rows, columns=["split", "label", "text"]).drop_duplicates("text")
    frame.to_parquet(args.out, index=False)
    words, held_out = frame["text"].str.split().str.len().sum(), (frame["split"] == "held_out").sum()
    print(
        f"{len(imdb):,} reviews, {sum(map(len, reviews)):,} sentences, {kept:,} of them simple\n"
        f"{len(frame):,} texts, {words / 1e6:.2f} M words; {held_out:,} texts held out\n{args.out}"
    )


if __name__ == "__main__":
    main()
