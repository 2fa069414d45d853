"""Completions -> rows -> estimates: how validation and `evaluate.py` measure a model."""

import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel

from kit.base.metrics import (
    Estimate,
    composite_reward,
    compression_ratio,
    corpus_estimate,
    mean_estimate,
    ngram_groups,
    num_unique,
    repetition,
    self_bleu,
    unique_ratio,
)
from kit.base.screen import Progress
from kit.lm.loading import Tokenizer
from kit.lm.log_probs import LanguageModel, exact_distances
from kit.lm.sampling import Completion, sample
from kit.measure.fluency import Fluency
from reward_utils import Scorer
from sentiment import RewardModel

POSITIVE = 0.5  # a completion counts as positive above this P(positive)
Row = dict[str, Any]  # one completion and its numbers; a line of samples.jsonl


class Metric(NamedTuple):
    """Name, unit and meaning of a metric."""

    label: str
    unit: str
    meaning: str


METRICS = {
    "reward": Metric("Reward R", "reward", "sentiment less repetition and wrong length, as in configs/reward.yaml"),
    "sentiment": Metric("Sentiment", "P(positive)", "by the reward model, the classifier used in training"),
    "captured": Metric("Captured", "share of J*",
                       "of the largest possible gain over the base in J = sentiment - β KL(π‖π_ref)"),
    "proxy": Metric("Learned reward", "std of the base's", "by the reward model of the runs (--reward_model)"),
    "gold": Metric("Gold reward", "std of the base's", "what the annotator of that model was asked for"),
    "judge": Metric("Judge", "P(positive)", "by an independent classifier that no training used"),
    "positive_ratio": Metric("Positive", "share", f"completions with sentiment above {POSITIVE}"),
    "kl_policy_ref": Metric("KL(π‖π_ref)", "nats/completion", "summed over the vocabulary at every sampled prefix"),
    "kl_ref_policy": Metric("KL(π_ref‖π)", "nats/completion", "the same with the models exchanged"),
    "ref_nll": Metric("Reference NLL", "nats/token", "-log π_ref: how strange the text is to the base model"),
    "fluency": Metric("Fluency NLL", "nats/byte", "-log p by another language model (--fluency)"),
    "ref_perplexity": Metric("Reference perplexity", "per token", "exp of the reference NLL"),
    "distinct_1": Metric("Distinct-1", "share", "different words / words, over all completions"),
    "distinct_2": Metric("Distinct-2", "share", "the same for pairs of words"),
    "distinct_3": Metric("Distinct-3", "share", "the same for triples of words"),
    "vocabulary": Metric("Vocabulary", "words", "different words in all completions"),
    "unique_token_ratio": Metric("Unique tokens", "share", "different tokens / tokens within one completion, mean"),
    "repetition": Metric("Repetition", "share", "1 - different words / words within one completion, mean"),
    "self_bleu": Metric("Self-BLEU", "BLEU-4", "likeness of a completion to all the others, mean"),
    "compression_ratio": Metric("Compression", "ratio", "bytes of all completions / bytes after zlib"),
    "length": Metric("Length", "tokens", "end-of-text token included"),
    "empty_ratio": Metric("Empty", "share", "completions without visible text"),
    "truncated_ratio": Metric("Truncated", "share", "completions cut at --max_new_tokens"),
}  # fmt: skip
SPREAD = ("reward", "sentiment", "judge", "length")

# ---- completions -> rows -----------------------------------------------------------------------------------


@dataclass
class Bench:
    """What all measurements share: prompts, scorers, sampling settings.

    `reference` is pi_ref; None for LoRA policies, whose base is the reference. `tokenizer` is the reference's.
    `seconds` adds up the time of each phase.
    """

    prompts: Sequence[str]
    scorer: Scorer
    reference: PreTrainedModel | None
    tokenizer: Tokenizer
    max_new_tokens: int
    temperature: float
    seed: int
    batch_size: int = 64
    judge: Scorer | None = None
    proxy: RewardModel | None = None
    fluency: Fluency | None = None
    progress: Progress | None = None
    on_text: Callable[[list[str]], None] | None = None  # `kit.lm.sampling.sample` calls it
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to `seconds`, and name the phase on the progress line."""
        start = time.monotonic()
        if self.progress:
            self.progress.doing(name)
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - start

    def sample(
        self, policy: LanguageModel, tokenizer: Tokenizer, num_samples: int, prompts: Sequence[str] = ()
    ) -> list[Completion]:
        """`num_samples` completions of every prompt (the bench's own by default), prompt by prompt."""
        asked = prompts or self.prompts
        on_batch = self.progress.advance if self.progress else None
        with self.phase("sampling"):
            return sample(policy, tokenizer, asked, num_samples, self.max_new_tokens, self.temperature, self.seed,
                          self.batch_size, on_batch, self.on_text)  # fmt: skip

    def scores(self, texts: Sequence[str]) -> tuple[list[float], list[float | None]]:
        """(sentiment, judge) of N texts."""
        with self.phase("scoring"):
            return self.scorer(texts), list(self.judge(texts)) if self.judge else [None] * len(texts)

    def learned(self, sentiment: Sequence[float], texts: Sequence[str]) -> tuple[list, list]:
        """(learned reward, gold reward) of N texts with these P(positive); None for what there is not."""
        if self.proxy is None:
            return [None] * len(texts), [None] * len(texts)
        with self.phase("scoring"):
            return self.proxy(texts), self.proxy.gold(sentiment, texts)

    def rows(self, policy: LanguageModel, tokenizer: Tokenizer, num_samples: int = 1) -> list[Row]:
        """Sample and score: one row per completion, prompt by prompt; every text without its prompt.

        KLs are in nats per completion, `ref_nll` in nats per token, `log_ratios` are log(pi/pi_ref) of each sampled
        token, and `tokens_text` the text of each. With a tokenizer other than the reference's the columns that need
        pi_ref are None: the two models then give probabilities to different tokens.
        """
        completions = self.sample(policy, tokenizer, num_samples)
        texts = [c.text for c in completions]
        sentiment, judge = self.scores(texts)
        fluency: list[float | None] = [None] * len(texts)
        if self.fluency:
            with self.phase("fluency"):
                fluency = self.fluency([c.prompt for c in completions], texts)
        rewards = composite_reward(sentiment, texts)
        proxy, gold = self.learned(sentiment, texts)
        known = tokenizer is self.tokenizer or tokenizer.get_vocab() == self.tokenizer.get_vocab()
        if known:
            with self.phase("log-probs"):
                # At the sampling temperature: the KL of the distributions that were sampled
                ids = [c.prompt_ids for c in completions], [c.completion_ids for c in completions]
                own, ref, kl_pq, kl_qp = exact_distances(policy, self.reference, *ids, self.temperature)
        return [
            {
                "prompt": c.prompt,
                "sample": i % num_samples,
                "completion": c.text,
                "tokens": len(c.completion_ids),
                "truncated": c.truncated,
                "sentiment": sentiment[i],
                "judge": judge[i],
                "fluency": fluency[i],
                "unique_token_ratio": len(set(c.completion_ids)) / len(c.completion_ids),
                "ref_nll": -math.fsum(ref[i]) / len(ref[i]) if known else None,
                "kl_policy_ref": kl_pq[i] if known else None,
                "kl_ref_policy": kl_qp[i] if known else None,
                "reward": rewards[i],
                "tokens_text": token_texts(tokenizer, c.completion_ids) if known else None,
                "log_ratios": [p - q for p, q in zip(own[i], ref[i], strict=True)] if known else None,
                **({"proxy": proxy[i], "gold": gold[i]} if self.proxy else {}),
            }
            for i, c in enumerate(completions)
        ]


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; joined they are the completion. EOS adds nothing, and a character of several
    tokens belongs to its last."""
    texts = tokenizer.batch_decode([ids[: i + 1] for i in range(len(ids))], skip_special_tokens=True)
    pieces, shown = [], ""
    for text in texts:
        whole = text.rstrip("\ufffd")  # half a character, so far
        pieces.append(whole[len(shown) :] if whole.startswith(shown) else "")
        shown += pieces[-1]
    pieces[-1] += texts[-1][len(shown) :]
    return pieces


# ---- rows -> estimates -------------------------------------------------------------------------------------


def estimates(rows: Sequence[Row], num_samples: int = 1) -> dict[str, Estimate]:
    """The metrics of one model's rows (`num_samples` per prompt, prompt by prompt), by the keys of `METRICS`.

    A metric that no row has (without a judge, or with another tokenizer) is left out. So is `captured`, which needs the
    reference's samples (`kit.measure.frontier`).
    """
    column = functools.partial(column_of, rows, num_samples=num_samples)
    texts = [r["completion"] for r in rows]
    groups = [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)]
    tokens = column("tokens")
    scores = "reward sentiment proxy gold judge unique_token_ratio kl_policy_ref kl_ref_policy".split()
    by_completion: dict[str, Any] = {
        **{key: column(key) for key in scores},
        "positive_ratio": column("sentiment") > POSITIVE,
        "repetition": [[repetition(t) for t in group] for group in groups],
        "self_bleu": np.reshape(self_bleu(texts), (-1, num_samples)),
        "length": tokens,
        "empty_ratio": [[not t.strip() for t in group] for group in groups],
        "truncated_ratio": column("truncated"),
    }
    found = {key: mean_estimate(values) for key, values in by_completion.items()}
    size = [[len(text.encode("utf-8", "replace")) for text in group] for group in groups]
    found["fluency"] = mean_estimate(column("fluency"), np.array(size))
    found["ref_nll"] = nll = mean_estimate(column("ref_nll"), tokens)  # the mean over all tokens
    with np.errstate(over="ignore"):  # infinite above 709 nats a token
        found["ref_perplexity"] = Estimate(float(np.exp(nll.value)), np.exp(nll.replicates))
    for n in (1, 2, 3):
        found[f"distinct_{n}"] = corpus_estimate(ngram_groups(groups, n), unique_ratio)
    found["vocabulary"] = corpus_estimate(ngram_groups(groups, 1), num_unique)
    found["compression_ratio"] = corpus_estimate(
        groups, lambda some: compression_ratio([text for group in some for text in group])
    )
    return {key: found[key] for key in METRICS if key in found and not math.isnan(found[key].value)}


def column_of(rows: Sequence[Row], key: str, num_samples: int = 1) -> np.ndarray:
    """One entry of all rows as numbers, (num_prompts, num_samples); NaN for None and what is not there."""
    values = [math.nan if r.get(key) is None else float(r[key]) for r in rows]
    return np.array(values).reshape(-1, num_samples)


def spreads(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Standard deviation, minimum and maximum over completions."""
    found = {}
    for key in SPREAD:
        values = [float(r["tokens" if key == "length" else key]) for r in rows if r.get(key, 0) is not None]
        if values:
            found[key] = {"std": float(np.std(values)), "min": min(values), "max": max(values)}
    return found
