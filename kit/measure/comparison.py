"""What `evaluate.py` compares: models on one bench, their runs, and the frontier of KL against score.

The way of a model: `Model` (asked for) -> `measure` (rows, then estimates) -> `compared` (signals, then verdict).
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data import HELD_OUT_PROMPTS, check_prompts, load_prompts, validation_prompts
from kit import ROOT
from kit.base.cli import BASE
from kit.base.errors import UserError, no_room
from kit.base.metrics import Estimate
from kit.base.runs import Run, read_config, read_metrics, read_samples
from kit.lm.models import (
    ModelChoice,
    context,
    default_device,
    display_name,
    find_model,
    load_policy,
    resolve_models,
)
from kit.measure import goodhart
from kit.measure.fluency import load_fluency
from kit.measure.frontier import best_of_n, captured, curves, price
from kit.measure.measuring import Bench, Row, column_of, estimates, spreads
from kit.measure.reference import ReferenceSamples
from kit.measure.verdict import MIN_JUDGE_SLOPE, judge_slope, signals, verdict
from sentiment import load_reward_model, load_scorer

UNWRITTEN = ("tokens_text", "log_ratios")  # of a row: for the page alone, and ten times the rest
LAST_STEPS = 10  # logged training steps that count for the zero-variance signal


@dataclass
class Model:
    """A model that was asked for. `measure` adds its rows and estimates, or the error that left none.

    `run` is the run folder if `path` is one, and `history` its metrics.jsonl. For a checkpoint, `config` is that of the
    run it lies in.
    """

    name: str
    path: str
    run: Run | None = None
    config: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    error: str | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        path = Path(self.path)
        folder = next((f for f in (path, path.parent) if (f / "metrics.jsonl").is_file()), None)
        if folder is None or self.name == BASE:  # base may be a run's model, but counts as the start of all
            return
        try:
            self.config = read_config(folder)
            if folder == path:
                self.run, self.history = Run(folder), read_metrics(folder)
        except UserError as error:  # the weights may be fine
            self.notes.append(str(error))
        if self.settings.get("hackable_reward"):
            note = "trained to use words of praise (--hackable_reward); its sentiment is the classifier's"
            self.notes.append(note)

    @property
    def settings(self) -> dict[str, Any]:
        """The flags of its run; {} without a run."""
        config = self.config or {}
        flags = {**config, **(config.get("training") or {})}
        # a baseline's flags say `mini`, config.json what that is
        return flags | {key: config[key] for key in ("model", "sentiment_model") if key in config}

    @property
    def last_step(self) -> int | None:
        """The last step its run has logged."""
        return max((r["step"] for r in self.history), default=None)


def one_sentence(error: Exception) -> str:
    """The error as a note beside the model."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def chosen_pair(args: argparse.Namespace, models: Sequence[Model]) -> ModelChoice:
    """Reference and reward model: the flags', or for `auto` those that all models' runs were trained with.

    Raises `UserError`.
    """
    pair = []
    for key in ("model", "sentiment_model"):
        asked, used = getattr(args, key), {m.config[key] for m in models if m.config and m.config.get(key)}
        if asked == "auto" and len(used) == 1:
            asked = used.pop()  # config.json names a bundled model by its path in the project
            asked = str(ROOT / asked) if (ROOT / asked).is_dir() else asked
        pair.append(asked)
    return resolve_models(*pair)


def chosen_judge(asked: str) -> str | None:
    """The id or path of the judge; None for `none`. Raises `UserError` if there is no such model."""
    if asked == "none":
        return None
    return find_model("mini" if asked == "auto" else asked, "judge")


def chosen_reward_model(asked: str, models: Sequence[Model]) -> str | None:
    """The learned reward model of `--reward_model`; for `auto` that of the runs, if they have one between them."""
    used = {m.settings["reward_model"] for m in models if m.settings.get("reward_model")}
    if asked == "auto" and len(used) > 1:
        print(f"no learned reward: the runs have {', '.join(sorted(used))}; --reward_model names one")
    return (used.pop() if len(used) == 1 else None) if asked == "auto" else None if asked == "none" else asked


# ---- measuring models --------------------------------------------------------------------------------------


def load_bench(
    args: argparse.Namespace,
    choice: ModelChoice,
    judge: str | None = None,
    fluency: str | None = None,
    reward_model: str | None = None,
) -> Bench:
    """The bench that the flags of `cli.Parser` ask for. Raises `UserError` if a part of it cannot be loaded."""
    start, device = time.monotonic(), default_device()
    reference, tokenizer = load_policy(choice.policy, device)
    room = context(reference) - args.max_new_tokens
    if args.prompts == "held_out":
        prompts = list(HELD_OUT_PROMPTS)[: args.num_prompts]
    else:
        prompts = load_prompts(args.prompts, args.num_prompts)
    check_prompts(prompts, args.prompts, tokenizer, room)
    bench = Bench(
        prompts=prompts,
        scorer=load_scorer(choice.sentiment, device),
        judge=load_scorer(judge, device) if judge else None,
        proxy=load_reward_model(reward_model, device, choice.sentiment_name) if reward_model else None,
        fluency=load_fluency(fluency, device) if fluency else None,
        reference=reference.requires_grad_(False).eval(),
        tokenizer=tokenizer,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    bench.seconds["loading"] += time.monotonic() - start
    return bench


def load_measured(bench: Bench, path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model at `path`, in eval mode. Raises `UserError` if there is none."""
    with bench.phase("loading"):
        model, tokenizer = load_policy(path, default_device())
    return model.eval(), tokenizer


def measure(model: Model, bench: Bench, num_samples: int) -> None:
    """Fill in `rows` and `estimates`, or `error`: if one model fails, the others go on.

    Raises:
        UserError: the base fails. Without it there is nothing to compare with.
    """
    base = model.name == BASE
    try:
        pair = (bench.reference, bench.tokenizer) if base else load_measured(bench, model.path)
        model.rows = bench.rows(*pair, num_samples)
        with bench.phase("statistics"):
            model.estimates = estimates(model.rows, num_samples)
    except Exception as error:
        # Any error: a foreign model may run out of memory, have NaN weights, or a vocabulary larger than its head
        model.rows, model.error = [], one_sentence(error)
        if base:
            why = no_room(error) or model.error
            raise UserError(f"the reference model cannot be measured: {why}") from None
    if model.rows and "kl_policy_ref" not in model.estimates:
        model.notes.append("no KL and no reference NLL: its tokenizer is not the reference model's")


def what_differs(model: Model, bench: Bench, choice: ModelChoice) -> list[str]:
    """A sentence for each setting of its run that differs from the bench's and that a KL or a score depends on."""
    here = {
        "model": choice.policy_name,
        "sentiment_model": choice.sentiment_name,
        "temperature": bench.temperature,
        "max_completion_length": bench.max_new_tokens,
    }
    return [
        f"trained with --{key} {was}, and measured with {value}, as all here"
        for key, value in here.items()
        if (was := model.settings.get(key, value)) != value
    ]


def base_slope(base: Model) -> float:
    """How well the judge follows the reward model on the base's texts; 0.0 without a judge."""
    if "judge" not in base.estimates:
        return 0.0
    slope = judge_slope([r["sentiment"] for r in base.rows], [r["judge"] for r in base.rows])
    if slope < MIN_JUDGE_SLOPE:
        base.notes.append(
            f"the judge hardly tells the base model's texts apart (it moves by {slope:.2f} where the reward model's "
            "score moves by 1), so there is no judge gap: give a better one with --judge"
        )
    return slope


def zero_std_groups(model: Model) -> float | None:
    """Share of groups without any difference in reward, over the last logged steps; None if never logged."""
    logged = [share for row in model.history if (share := row.get("train/zero_std_groups")) is not None]
    return float(np.mean(logged[-LAST_STEPS:])) if logged else None


def captured_by(model: Model, samples: ReferenceSamples, num_samples: int) -> Estimate:
    """`captured` of the model's rows at its run's KL coefficient, in P(positive), or in 1 - it for a negated reward."""
    rewards, reference = column_of(model.rows, "sentiment", num_samples), samples.scores
    if model.settings.get("negate_reward"):
        rewards, reference = 1 - rewards, 1 - reference
    kl = column_of(model.rows, "kl_policy_ref", num_samples)
    return captured(rewards, kl, reference, price(model.settings))


def compared(
    model: Model, base: Model, slope: float, samples: ReferenceSamples | None, num_samples: int
) -> dict[str, Any]:
    """The model's entry in comparison.json: its estimates beside those of the base, its signals and its verdict."""
    found, others = dict(model.estimates), model is not base
    mine, its = ({key: e.value for key, e in m.estimates.items()} for m in (model, base))
    raised = signals(mine, its, zero_std_groups(model), slope) if found and others else []
    if samples and others and "kl_policy_ref" in found:
        share = captured_by(model, samples, num_samples)
        found |= {} if math.isnan(share.value) else {"captured": share}
    numbers: dict[str, dict[str, Any]] = {}
    for key, estimate in found.items():
        low, high = estimate.interval()
        delta = estimate - base.estimates[key] if others and key in base.estimates else None
        delta_low, delta_high = delta.interval() if delta else (None, None)
        numbers[key] = {"value": estimate.value, "low": low, "high": high, "delta": delta.value if delta else None,
                        "delta_low": delta_low, "delta_high": delta_high, "interval": estimate.kind}  # fmt: skip
    return {
        "name": model.name,
        "path": display_name(model.path),
        "price": price(model.settings),
        "verdict": verdict(raised) if found and others else None,
        "error": model.error,
        "notes": model.notes,
        "metrics": numbers,
        "spread": spreads(model.rows),
        "signals": [asdict(signal) for signal in raised],
        "config": model.config,
    }


# ---- the frontier ------------------------------------------------------------------------------------------


def validation_points(model: Model, bench: Bench, choice: ModelChoice) -> list[Row]:
    """Frontier points from the validations in a run's metrics.jsonl; none if other prompts, models or sampling
    settings were used there."""
    prompts = validation_prompts(model.settings.get("prompts", "builtin"))
    if what_differs(model, bench, choice) or list(prompts) != list(bench.prompts):
        return []
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
    """A frontier point: the means over measured completions."""

    def mean(key: str) -> float | None:
        return float(np.mean([r[key] for r in rows])) if rows[0][key] is not None else None

    return {"model": name, "step": step, "source": "samples", "kl": mean("kl_policy_ref"),
            "sentiment": mean("sentiment"), "judge": mean("judge"), "reward": mean("reward"),
            "samples": len(rows)}  # fmt: skip


def find_frontier(
    bench: Bench,
    choice: ModelChoice,
    models: Sequence[Model],
    samples: ReferenceSamples,
    learned: np.ndarray | None = None,
) -> dict[str, list[Row]]:
    """One point per model, one per earlier validation of a run, and the curves of the base.

    `learned` is what `learned_of` gives for the base's samples.
    """
    points = []
    for model in models:
        if not model.rows or model.rows[0]["kl_policy_ref"] is None:
            continue
        points += validation_points(model, bench, choice)
        points.append(sample_point(model.name, model.last_step, model.rows))
    judged = None
    if bench.judge:
        with bench.phase("scoring"):
            scores = bench.judge([text for texts in samples.texts for text in texts])
        judged = np.reshape(scores, samples.scores.shape)
    of_the_score, tilt = curves(samples.scores, judged)
    found = {"points": points, "best_of_n": of_the_score, "tilt": tilt}
    if learned is not None:
        by_learned = [best_of_n(samples.scores, point["n"], judged, by=learned[0]) for point in of_the_score]
        found["best_of_n_learned"] = by_learned
    return found


def learned_of(bench: Bench, samples: ReferenceSamples) -> np.ndarray:
    """Learned reward and gold reward of the base's samples: (2, prompts, N); NaN without a gold reward."""
    texts = [text for texts in samples.texts for text in texts]
    both = np.array(bench.learned(samples.scores.reshape(-1).tolist(), texts), dtype=float)
    return both.reshape(2, *samples.scores.shape)


def find_overoptimization(models: Sequence[Model], learned: np.ndarray | None) -> list[goodhart.Curve]:
    """Learned and gold reward against the distance: of the validations of each run, and of the best of n.

    `learned` is what `learned_of` gives for the base's samples.
    """
    runs = []
    for m in models:
        try:
            runs += [goodhart.of_run(m.name, read_samples(m.run.path))] if m.run else []
        except UserError as error:  # the weights may be fine
            m.notes.append(str(error))
    best = [] if learned is None else [goodhart.of_best_of_n(*learned)]
    return [curve for curve in runs if curve] + best
