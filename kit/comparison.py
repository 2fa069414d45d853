"""What `evaluate.py` measures: the same prompts, sampler and random stream for every model, and the numbers of each."""

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data import HELD_OUT_PROMPTS, load_prompts
from kit.errors import UserError
from kit.frontier import CurvePoint, curves
from kit.metrics import (
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
from kit.models import ROOT, ModelChoice, default_device, load_policy
from kit.runs import Run, read_config, read_metrics
from kit.sampling import Completion, sample
from kit.screen import Progress
from kit.verdict import Signal
from reward_utils import kl_policy_ref, kl_ref_policy, token_log_probs
from sentiment import SentimentScorer, load_scorer

POSITIVE = 0.5  # a completion counts as positive above this P(positive)
LAST_STEPS = 10  # logged training steps that count for the zero-variance signal
Row = dict[str, Any]  # one line of samples.jsonl


class Parser(argparse.ArgumentParser):
    """argparse with one-sentence errors, and the flags that mean the same in every script that measures."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=110),
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")

    def add_sampling_flags(self) -> None:
        add = self.add_argument
        add(
            "--num_samples",
            type=at_least_1,
            default=4,
            metavar="N",
            help="completions per prompt (default: 4)",
        )
        add(
            "--prompts",
            default="held_out",
            help="held_out (default), builtin (those of training), imdb, or a file",
        )
        add("--num_prompts", type=at_least_1, metavar="N", help="only the first N prompts")
        add(
            "--max_new_tokens",
            type=at_least_1,
            default=40,
            metavar="N",
            help="longest completion (default: 40)",
        )
        add("--temperature", type=above_0, default=1.0, metavar="T", help="of the sampler (default: 1.0)")
        add("--seed", type=int, default=0, help="of the sampler, the same for every model (default: 0)")
        add("--batch_size", type=at_least_1, default=128, metavar="N", help="sampled at once (default: 128)")
        add(
            "--model",
            default="auto",
            help="the reference: auto (what the runs started from), mini, id, or path",
        )
        add(
            "--sentiment_model",
            default="auto",
            help="the reward model: auto (what the runs used), mini, id, path",
        )


def at_least_1(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return int(text)


def above_0(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


class Metric(NamedTuple):
    label: str
    unit: str
    meaning: str


METRICS = {
    "reward": Metric("Reward R", "reward", "sentiment less repetition and wrong length, as in configs/reward.yaml"),
    "sentiment": Metric("Sentiment", "P(positive)", "by the reward model that training used"),
    "judge": Metric("Judge", "P(positive)", "by an independent classifier no training saw"),
    "positive_ratio": Metric("Positive", "share", f"completions with sentiment above {POSITIVE}"),
    "kl_policy_ref": Metric("KL(π‖π_ref)", "nats/completion", "sum over tokens of w - 1 - log w, w = π_ref/π"),
    "kl_ref_policy": Metric("KL(π_ref‖π)", "nats/completion", "sum over tokens of w log w - w + 1, on π's prefixes"),
    "ref_nll": Metric("Reference NLL", "nats/token", "-log π_ref: how strange the text is to the base model"),
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


@dataclass
class Model:
    """One row of the comparison: what was asked for, what was measured, or why it could not be.

    `run` is the run folder if `path` is one, `history` its metrics.jsonl; `config` is also that of the run
    a checkpoint lies in.
    """

    name: str
    path: str
    run: Run | None = None
    config: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    signals: list[Signal] = field(default_factory=list)
    verdict: str | None = None
    error: str | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for folder in (Path(self.path), Path(self.path).parent):
            if not (folder / "metrics.jsonl").is_file():
                continue
            try:
                self.config = read_config(folder)
                if folder == Path(self.path):
                    self.run, self.history = Run(folder), read_metrics(folder)
            except UserError as error:  # the weights may be fine
                self.notes.append(str(error))
            return

    @property
    def last_step(self) -> int | None:
        """The last step its run has logged."""
        return max((r["step"] for r in self.history), default=None)

    def logged(self, key: str) -> list[float]:
        """The values of one series of its run."""
        return [r[key] for r in self.history if r.get(key) is not None]

    def earlier_checkpoints(self) -> list[tuple[int, Path]]:
        """Its run's checkpoints, less the one that is the final model."""
        return [(s, p) for s, p in self.run.checkpoints() if s != self.last_step] if self.run else []


def one_sentence(error: Exception) -> str:
    """What a row says of a model that failed."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def trained_with(asked: str, key: str, models: Sequence[Model]) -> str:
    """`asked`, or for `auto` what the models' runs were trained with, if they agree.

    `key` is `model` or `sentiment_model`; config.json names a bundled one by its place in the project.
    """
    used = {m.config[key] for m in models if m.config and m.config.get(key)}
    if asked != "auto" or len(used) != 1:
        return asked
    spec = used.pop()
    return str(ROOT / spec) if (ROOT / spec).is_dir() else spec


# Measuring one model ---------------------------------------------------------------------------------------


@dataclass
class Bench:
    """What is the same for all models."""

    prompts: list[str]
    scorer: SentimentScorer
    judge: SentimentScorer | None
    reference: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    temperature: float
    seed: int
    batch_size: int
    progress: Progress | None = None
    judge_slope: float = 0.0  # see kit.verdict.judge_slope; known once the base model is measured
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @classmethod
    def from_flags(cls, args: argparse.Namespace, choice: ModelChoice, judge: str | None = None) -> "Bench":
        """Load what the flags of `Parser` ask for. Raises `UserError` for whatever cannot be had."""
        start, device = time.monotonic(), default_device()
        reference, tokenizer = load_policy(choice.policy, device)
        if args.prompts == "held_out":
            prompts = list(HELD_OUT_PROMPTS)[: args.num_prompts]
        else:
            room = getattr(reference.config, "max_position_embeddings", 1024) - args.max_new_tokens
            prompts = load_prompts(args.prompts, tokenizer, room, args.num_prompts)
        bench = cls(
            prompts=prompts,
            scorer=load_scorer(choice.sentiment, device),
            judge=load_scorer(judge, device) if judge else None,
            reference=reference.requires_grad_(False).eval(),
            tokenizer=tokenizer,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            seed=args.seed,
            batch_size=args.batch_size,
        )
        bench.seconds["loading"] += time.monotonic() - start
        return bench

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - start

    def load(self, path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model at `path`, in eval mode. Raises `UserError` if there is none."""
        if "/" in path and not Path(path).exists() and Path(path).parent.is_dir():
            raise UserError(
                f"{path}: no such folder"
            )  # outputs/typo is no Hub id: do not wait for the network
        with self.phase("loading"):
            model, tokenizer = load_policy(path, default_device())
        return model.eval(), tokenizer

    def sample(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        num_samples: int,
        prompts: Sequence[str] | None = None,
    ) -> list[Completion]:
        """`num_samples` completions of every prompt (the bench's own by default), prompt by prompt."""
        with self.phase("sampling"):
            return sample(
                model,
                tokenizer,
                self.prompts if prompts is None else prompts,
                num_samples=num_samples,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                seed=self.seed,
                batch_size=self.batch_size,
                on_batch=self.progress.advance if self.progress else None,
            )

    def scores(self, texts: Sequence[str]) -> tuple[list[float], list[float | None]]:
        """(sentiment, judge) of N texts."""
        with self.phase("scoring"):
            return self.scorer(texts), self.judge(texts) if self.judge else [None] * len(texts)

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_samples: int
    ) -> list[Row]:
        """Sample and score: one row per completion, prompt by prompt; every text without its prompt.

        A tokenizer other than the reference's leaves the columns that need pi_ref at None: the two models
        then give probabilities to different tokens.
        """
        completions = self.sample(model, tokenizer, num_samples)
        texts = [c.text for c in completions]
        sentiment, judge = self.scores(texts)
        rows: list[Row] = [
            {
                "prompt": c.prompt,
                "sample": i % num_samples,
                "completion": c.text,
                "tokens": len(c.completion_ids),
                "truncated": c.truncated,
                "sentiment": sentiment[i],
                "judge": judge[i],
                "unique_token_ratio": len(set(c.completion_ids)) / len(c.completion_ids),
                "ref_nll": None,
                "kl_policy_ref": None,
                "kl_ref_policy": None,
            }
            for i, c in enumerate(completions)
        ]
        for row, reward in zip(rows, composite_reward(sentiment, texts), strict=True):
            row["reward"] = reward
        if same_tokenizer(tokenizer, self.tokenizer):
            with self.phase("log-probs"):
                # Both at the sampling temperature: the KL of the distributions that were sampled
                ids = [c.prompt_ids for c in completions], [c.completion_ids for c in completions]
                ref = token_log_probs(self.reference, *ids, self.temperature)
                own = ref if model is self.reference else token_log_probs(model, *ids, self.temperature)
            for row, lr, forward, backward in zip(
                rows, ref, kl_policy_ref(own, ref), kl_ref_policy(own, ref), strict=True
            ):
                row.update(ref_nll=-math.fsum(lr) / len(lr), kl_policy_ref=forward, kl_ref_policy=backward)
        return rows


def same_tokenizer(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Do equal ids mean equal tokens?"""
    return a.get_vocab() == b.get_vocab()


# From rows to numbers --------------------------------------------------------------------------------------


def estimates(rows: Sequence[Row], num_samples: int) -> dict[str, Estimate]:
    """The metrics of one model's rows (`num_samples` per prompt, prompt by prompt).

    A metric that no row has (the judge's, or those of a strange tokenizer) is left out.
    """

    def column(key: str) -> np.ndarray:  # (num_prompts, num_samples)
        values = [math.nan if r[key] is None else float(r[key]) for r in rows]
        return np.array(values).reshape(-1, num_samples)

    texts = [r["completion"] for r in rows]
    groups = [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)]
    ngrams = {n: ngram_groups(groups, n) for n in (1, 2, 3)}
    tokens = column("tokens")
    by_completion = {
        "positive_ratio": column("sentiment") > POSITIVE,
        "repetition": [[repetition(t) for t in group] for group in groups],
        "self_bleu": np.reshape(self_bleu(texts), (-1, num_samples)),
        "length": tokens,
        "empty_ratio": [[not t.strip() for t in group] for group in groups],
        "truncated_ratio": column("truncated"),
    }
    found = {key: mean_estimate(values) for key, values in by_completion.items()}
    for key in ("reward", "sentiment", "judge", "unique_token_ratio", "kl_policy_ref", "kl_ref_policy"):
        found[key] = mean_estimate(column(key))
    nll = mean_estimate(column("ref_nll"), tokens)  # over all tokens: a long text weighs as long as it is
    found["ref_nll"] = nll
    found["ref_perplexity"] = Estimate(math.exp(nll.value), np.exp(nll.replicates))
    for n, ids in ngrams.items():
        found[f"distinct_{n}"] = corpus_estimate(ids, unique_ratio)
    found["vocabulary"] = corpus_estimate(ngrams[1], num_unique)
    found["compression_ratio"] = corpus_estimate(
        groups, lambda some: compression_ratio([text for group in some for text in group])
    )
    return {key: found[key] for key in METRICS if not math.isnan(found[key].value)}


def spread(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Standard deviation, minimum and maximum over completions."""
    found = {}
    for key in SPREAD:
        values = [float(r["tokens" if key == "length" else key]) for r in rows if r.get(key, 0) is not None]
        if values:
            found[key] = {"std": float(np.std(values)), "min": min(values), "max": max(values)}
    return found


def zero_std_groups(model: Model) -> float | None:
    """Share of groups without any difference in reward, over the last logged steps; None if never logged."""
    logged = model.logged("train/zero_std_groups")
    return float(np.mean(logged[-LAST_STEPS:])) if logged else None


# The frontier ----------------------------------------------------------------------------------------------


def validation_points(model: Model) -> list[Row]:
    """Frontier points from the validations of a run, which cost nothing: its metrics.jsonl has them."""
    return [
        {"model": model.name, "step": r["step"], "source": "validation", "kl": r["val/kl_policy_ref"],
         "sentiment": r["val/sentiment_mean"], "judge": None, "reward": r.get("val/composite_reward"),
         "samples": None}
        for r in model.history
        if r["step"] != model.last_step
        and r.get("val/kl_policy_ref") is not None
        and r.get("val/sentiment_mean") is not None
    ]  # fmt: skip


def sample_point(name: str, step: int | None, rows: Sequence[Row]) -> Row:
    """A frontier point from measured completions."""

    def mean(key: str) -> float | None:
        return float(np.mean([r[key] for r in rows])) if rows[0][key] is not None else None

    return {"model": name, "step": step, "source": "samples", "kl": mean("kl_policy_ref"),
            "sentiment": mean("sentiment"), "judge": mean("judge"), "reward": mean("reward"),
            "samples": len(rows)}  # fmt: skip


def curve_rows(points: Sequence[CurvePoint], setting: str, judged: bool) -> list[Row]:
    """Points of a training-free curve; `judge` is what the judge says of samples chosen by the reward model."""
    return [
        {setting: p.setting, "kl": p.kl, "sentiment": p.reward, "judge": p.value if judged else None,
         "effective_samples": p.effective_samples}
        for p in points
    ]  # fmt: skip


def find_frontier(
    bench: Bench, models: Sequence[Model], runs: dict[str, list[tuple[int, Path]]], num_samples: int
) -> dict[str, list[Row]]:
    """One point per model, one per earlier checkpoint or validation of a run, and the curves of the base."""
    points = []
    for model in models:
        if not model.rows or model.rows[0]["kl_policy_ref"] is None:
            continue
        if model.run:
            for step, path in runs[model.name]:
                try:
                    points.append(sample_point(model.name, step, bench.measure(*bench.load(str(path)), 1)))
                except Exception as error:  # as for a model: its frontier lacks a point, no more
                    model.notes.append(f"{path.name}: {one_sentence(error)}")
            if not runs[model.name]:
                points += validation_points(model)
        points.append(sample_point(model.name, model.last_step, model.rows))
    completions = bench.sample(bench.reference, bench.tokenizer, num_samples)
    sentiment, judge = bench.scores([c.text for c in completions])
    shape = (len(bench.prompts), num_samples)
    judged = np.reshape(judge, shape).astype(float) if bench.judge else None
    best_of_n, tilt = curves(np.reshape(sentiment, shape), judged)
    return {
        "points": points,
        "best_of_n": curve_rows(best_of_n, "n", bench.judge is not None),
        "tilt": curve_rows(tilt, "beta", bench.judge is not None),
    }
