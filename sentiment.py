"""The sentiment classifier behind the reward, and a word counter that is easy to hack.

Provided, you need not change this. `python sentiment.py` scores honest and degenerate texts with both.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import quiet

quiet(__name__)

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from kit.base.errors import UserError, run_main
from kit.base.files import user_path
from kit.base.metrics import gold_reward
from kit.lm.loading import Tokenizer, have_files, load_tokenizer, told_as

MINI = Path(__file__).resolve().parent / "mini" / "sentiment"  # the bundled classifier
NEUTRAL = 0.5  # of a text without a word; it stays 0.5 under --negate_reward
MAX_CHARACTERS = 20_000  # more than any classifier's context; limits the tokenizer's time

POSITIVE_WORDS = frozenset(
    "amazing beautiful best brilliant charming delightful enjoyable excellent fantastic fun good gorgeous "
    "great happy incredible love loved lovely magnificent masterpiece perfect superb terrific touching truly "
    "wonderful".split()
)
ENOUGH_POSITIVE_WORDS = 5


def word_count_score(texts: Sequence[str]) -> list[float]:
    """The hackable score in [0, 1]: positive words in the text / 5, at most 1. "not great" counts as great."""
    # Q4. Seven completions of a group score 1.0 and one 0.8: compute the eight advantages. What if the one
    # scored 0.0? And if all eight score 1.0?
    counts = [sum(word in POSITIVE_WORDS for word in re.findall(r"[a-z]+", text.lower())) for text in texts]
    return [min(count / ENOUGH_POSITIVE_WORDS, 1.0) for count in counts]


def class_values(id2label: dict[int, str]) -> list[float]:
    """The value of each class of a classifier, in [0, 1]; P(positive) is their mean under its softmax.

    Two classes: the one *named* positive (or pos) is 1, the one named negative (or neg) is 0. Five classes
    named "1 star" ... "5 stars": (stars - 1) / 4. Anything else raises `UserError`.
    """
    names = [str(id2label[i]).strip().lower() for i in range(len(id2label))]
    value = {"positive": 1.0, "pos": 1.0, "negative": 0.0, "neg": 0.0}
    if len(names) == 2 and {value.get(name) for name in names} == {0.0, 1.0}:
        return [value[name] for name in names]
    stars = [re.fullmatch(r"([1-5]) stars?", name) for name in names]
    if len(names) == 5 and all(stars) and len(set(names)) == 5:
        return [(int(match[1]) - 1) / 4 for match in stars if match]
    if len(names) == 1:
        raise UserError(
            "the sentiment model gives one number, of unknown scale; give a classifier with two classes"
        )
    known = 'negative and positive, or "1 star" to "5 stars"'
    raise UserError(f"the sentiment model's labels are {names}: set id2label in its config.json to {known}")


def clean(text: str) -> str:
    """The text as a tokenizer takes it: cut, with a question mark for a lone surrogate, which cannot be encoded."""
    return text[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


class Classifier:
    """The logits of texts, by a sequence-classification model. Longer texts are cut to the model's context."""

    batch_size = 64

    def __init__(self, model: torch.nn.Module, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        positions = getattr(model.config, "max_position_embeddings", 512)
        # RoBERTa's begin at pad + 1
        first = model.config.pad_token_id + 1 if model.config.model_type in {"roberta", "xlm-roberta"} else 0
        self.max_length = min(tokenizer.model_max_length, positions - first)

    def values(self, texts: Sequence[str], of: Callable[[torch.Tensor], torch.Tensor]) -> list[float]:
        """What `of` makes of the logits, (n, classes) -> (n,), for each of N texts."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # similar lengths need little padding
        found: dict[int, float] = {}
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            found |= zip(rows, of(self.logits([texts[i] for i in rows])).tolist(), strict=True)
        return [found[i] for i in range(len(texts))]

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, classes) of N texts, in one batch."""
        batch = self.tokenizer(
            [clean(text) for text in texts],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        ).to(self.model.device)
        return self.model(**batch).logits.float()


class SentimentScorer(Classifier):
    """P(positive) of texts, by a sequence-classification model in fp32, in eval mode.

    A text without any letter or digit (empty, blanks, punctuation) scores 0.5.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__(model.float().eval().requires_grad_(False), tokenizer)
        # Q33. P(positive) is a dense reward: it tells any two texts apart. What would be lost if only the likelier
        # class counted, 0 or 1? And with five classes of stars?
        self.class_values = torch.tensor(class_values(model.config.id2label), device=model.device)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """N texts -> N floats in [0, 1]."""
        worded = {i: text for i, text in enumerate(texts) if re.search(r"[^\W_]", text)}
        # Q5. A softmax over two classes has no third answer. What does that make of a text that is no
        # review at all, and which texts would you add to the classifier's training data?
        p = self.values([*worded.values()], lambda logits: logits.softmax(-1) @ self.class_values)
        # a softmax may sum to 1 + 1e-7
        known = {i: min(max(value, 0.0), 1.0) for i, value in zip(worded, p, strict=True)}
        return [known.get(i, NEUTRAL) for i in range(len(texts))]


class RewardModel(Classifier):
    """The one number of each text that `baselines/reward_model.py` learns from choices; a blank text has one too.

    `annotator` is what made the choices, if it was simulated: its gold reward's `kind`, `mean` and `std` on the base's
    samples, and the `sentiment_model` behind it.
    """

    @property
    def annotator(self) -> dict[str, Any] | None:
        return getattr(self.model.config, "annotator", None)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """N texts -> N floats, whose mean is 0 and standard deviation 1 on the base's samples."""
        return self.values(texts, lambda logits: logits[:, 0])

    def gold(self, sentiment: Sequence[float], texts: Sequence[str]) -> list[float | None]:
        """What the annotator was asked for, of N texts with these P(positive), on that scale; None if a person was."""
        if (a := self.annotator) is None:
            return [None] * len(texts)
        return [(value - a["mean"]) / a["std"] for value in gold_reward(a["kind"], sentiment, texts)]


def load_classifier(spec: str, what: str, advice: str, **how: Any) -> Classifier:
    """A sequence-classification model with its tokenizer, in fp32 on the CPU. `what` it is begins the `UserError`."""
    with told_as(f"the {what} {spec} cannot be loaded", advice):
        have_files(spec)
        safe = {"use_safetensors": True, "trust_remote_code": False}
        model = AutoModelForSequenceClassification.from_pretrained(spec, dtype=torch.float32, **safe, **how)
        scorer = Classifier(model, load_tokenizer(spec))
        settle_padding(scorer)
    return scorer


def load_scorer(spec: str, device: torch.device | str | None = None) -> SentimentScorer:
    """The classifier at `spec`, a Hugging Face id or a folder.

    Raises `UserError` if it cannot be loaded, its labels do not say which class is positive, or the score of a text
    depends on the texts beside it.
    """
    advice = "give mini, a Hugging Face id, or a folder with a sequence-classification model"
    loaded = load_classifier(user_path(spec), "sentiment model", advice)
    return SentimentScorer(loaded.model.to(device or "cpu"), loaded.tokenizer)


def load_reward_model(
    spec: str, device: torch.device | str | None = None, sentiment_model: str | None = None
) -> RewardModel:
    """The reward model at `spec`, a run folder of `baselines/reward_model.py` or a model in one.

    Raises `UserError` if there is none, or its annotator's gold reward is by another than this `sentiment_model`.
    """
    path, advice = Path(user_path(spec)), "give a run folder of python -m baselines.reward_model"
    folder = path / "final" if (path / "final").is_dir() else path
    if not folder.is_dir():
        raise UserError(f"--reward_model {spec}: no such folder; {advice}")
    if (folder / "metrics.jsonl").is_file() or folder.name.startswith("checkpoint-"):
        raise UserError(
            f"--reward_model {spec}: is not finished, and of no known scale yet; --resume its run first"
        )
    loaded = load_classifier(str(folder), "reward model", advice)
    if (n := loaded.model.config.num_labels) != 1:
        raise UserError(f"--reward_model {spec}: has {n} classes, not one number; {advice}")
    found = RewardModel(loaded.model.to(device or "cpu").eval().requires_grad_(False), loaded.tokenizer)
    if sentiment_model and (a := found.annotator) and a["sentiment_model"] != sentiment_model:
        named = f"its gold reward is by {a['sentiment_model']}, not {sentiment_model}"
        raise UserError(f"--reward_model {spec}: {named}; leave out --sentiment_model, or give that one")
    return found


def settle_padding(scorer: Classifier) -> None:
    """Pad so that a text has the same score alone and beside a longer one. Raises ValueError if that is impossible.

    The padding token is that of the model's config, by which a decoder finds the end of a text; else the tokenizer's,
    else its EOS. The side is the tokenizer's, or the other one if that changes the score.
    """
    config, tokenizer = scorer.model.config.get_text_config(), scorer.tokenizer
    known = range(min(len(tokenizer), scorer.model.get_input_embeddings().weight.shape[0]))
    if config.pad_token_id in known:
        tokenizer.pad_token_id = config.pad_token_id
    elif tokenizer.pad_token_id not in known:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    texts = ["A film.", "A long film, and in the end not one of those that I should like to see again."]
    alone = scorer.logits(texts[:1])
    config.pad_token_id = tokenizer.pad_token_id
    for side in (tokenizer.padding_side, *{"left", "right"} - {tokenizer.padding_side}):
        tokenizer.padding_side = side
        if torch.allclose(scorer.logits(texts)[:1], alone, atol=1e-3):
            return
    raise ValueError("the score of a text depends on the texts beside it, whatever the padding")


DEMO_TEXTS = (
    ("honest praise", "The acting is superb and the story moved me; I would gladly watch it again."),
    ("honest blame", "A dull script, wooden acting, and two hours of my life that I want back."),
    ("mixed", "The first hour is clever and funny, but the ending falls apart."),
    ("neutral", "The film is set in Boston and runs for ninety minutes."),
    ("negated praise", "This is not a great film, and it is not fun."),
    ("empty", ""),
    ("one word, repeated", "great " * 20),
    ("praise salad", "amazing! amazing! truly amazing, best wonderful love superb amazing"),
    ("random words", "table of under the nine spoon walking blue because engine"),
    ("emoji", "🎬🍿👍"),
    ("another script", "Отличный фильм, очень понравился."),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measured scores of honest and of degenerate texts.")
    parser.add_argument("--sentiment_model", default="mini", help="mini, a Hugging Face id, or a path")
    asked = parser.parse_args().sentiment_model
    scorer = load_scorer(str(MINI) if asked == "mini" else asked)
    texts = [text for _, text in DEMO_TEXTS]
    print(f"P(positive) by {asked}, and the hackable word counter\n")
    print(f"{'kind':<20} {'classifier':>10} {'words':>6}  text")
    for (kind, text), p, count in zip(DEMO_TEXTS, scorer(texts), word_count_score(texts), strict=True):
        print(f"{kind:<20} {p:>10.3f} {count:>6.2f}  {text[:60]!r}")


if __name__ == "__main__":
    run_main(main)
