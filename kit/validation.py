"""Validation on held-out prompts: the same prompts, sampler and random stream at every step and for every method."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from data import HELD_OUT_PROMPTS
from kit.metrics import bootstrap_interval, composite_reward, distinct_n, repetition
from kit.runs import Run
from kit.sampling import sample
from kit.screen import table
from kit.tracking import Tracker
from reward_utils import Scorer, kl_policy_ref, kl_ref_policy, reference_log_probs, token_log_probs

VALIDATION_SEED = 20_240_229  # its own stream: how often we validate changes nothing in training
POSITIVE = 0.5  # a completion is called positive above this P(positive)
SHOWN_SAMPLES = 4


class Validation:
    """Measures a policy on the held-out prompts, writes what it found, and shows it.

    `scorer` is the sentiment classifier, `score` the reward's own score if that is another one (the hackable
    counter): a reward that rises while the classifier's does not is the point of that exercise.
    `reference` is pi_ref; None means a LoRA policy, whose base is the reference.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        scorer: Scorer,
        reference: PreTrainedModel | None,
        run: Run,
        tracker: Tracker | None = None,
        score: Scorer | None = None,
        prompts: Sequence[str] = HELD_OUT_PROMPTS,
        max_new_tokens: int = 40,
        temperature: float = 1.0,
    ) -> None:
        self.tokenizer, self.scorer, self.score, self.reference = tokenizer, scorer, score, reference
        self.run_folder, self.tracker, self.prompts = run, tracker, list(prompts)
        self.max_new_tokens, self.temperature = max_new_tokens, temperature

    def run(self, model: PreTrainedModel | PeftModel, step: int) -> dict[str, float]:
        """Measure `model`, log the `val/*` metrics and every sample at `step`, print one line and four samples."""
        metrics, rows = self.measure(model)
        self.run_folder.log(step, metrics)
        self.run_folder.log_samples(step, rows)
        if self.tracker is not None:
            self.tracker.log(step, metrics)
            self.tracker.log_samples(step, rows)
        print(self.line(step, metrics))
        print(self.sample_table(rows), flush=True)
        return metrics

    def measure(self, model: PreTrainedModel | PeftModel) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """(val/* metrics, one row per completion). KLs in nats per completion, NLL in nats per token."""
        completions = sample(
            model,
            self.tokenizer,
            self.prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=VALIDATION_SEED,
        )
        texts = [c.text for c in completions]
        prompt_ids = [c.prompt_ids for c in completions]
        ids = [c.completion_ids for c in completions]
        sentiment = self.scorer(texts)
        policy = token_log_probs(model, prompt_ids, ids, self.temperature)
        ref = reference_log_probs(model, self.reference, prompt_ids, ids, self.temperature)
        kl_forward, kl_backward = kl_policy_ref(policy, ref), kl_ref_policy(policy, ref)
        tokens = [len(row) for row in ids]
        ci_low, ci_high = bootstrap_interval(sentiment)
        metrics = {
            "val/sentiment_mean": statistics.fmean(sentiment),
            "val/sentiment_ci_low": ci_low,
            "val/sentiment_ci_high": ci_high,
            "val/sentiment_std": statistics.pstdev(sentiment),
            "val/sentiment_min": min(sentiment),
            "val/sentiment_median": statistics.median(sentiment),
            "val/sentiment_max": max(sentiment),
            "val/positive_ratio": statistics.fmean(s > POSITIVE for s in sentiment),
            "val/composite_reward": statistics.fmean(composite_reward(sentiment, texts)),
            "val/distinct_1": distinct_n(texts, 1),
            "val/distinct_2": distinct_n(texts, 2),
            "val/repetition": statistics.fmean(map(repetition, texts)),
            # - sum log pi_ref / tokens: over all tokens, so that a long completion weighs as long as it is
            "val/ref_nll": -math.fsum(x for row in ref for x in row) / sum(tokens),
            "val/kl_policy_ref": statistics.fmean(kl_forward),
            "val/kl_ref_policy": statistics.fmean(kl_backward),
            "val/length_mean": statistics.fmean(tokens),
            "val/empty_ratio": statistics.fmean(not text.strip() for text in texts),
            "val/truncated_ratio": statistics.fmean(c.truncated for c in completions),
        }
        if self.score is not None:
            metrics["val/score_mean"] = statistics.fmean(self.score(texts))
        rows = [
            {
                "prompt": c.prompt,
                "completion": c.text,
                "sentiment": sentiment[i],
                "ref_nll": -math.fsum(ref[i]) / tokens[i],
                "kl_policy_ref": kl_forward[i],
                "tokens": tokens[i],
            }
            for i, c in enumerate(completions)
        ]
        return metrics, rows

    @staticmethod
    def line(step: int, m: dict[str, float]) -> str:
        """The validation on one line."""
        hacked_score = f" | counted {m['val/score_mean']:.3f}" if "val/score_mean" in m else ""
        return (
            f"val  {step:>4} | sentiment {m['val/sentiment_mean']:.3f} "
            f"[{m['val/sentiment_ci_low']:.2f}, {m['val/sentiment_ci_high']:.2f}]{hacked_score} | "
            f"KL {m['val/kl_policy_ref']:.1f} | ref NLL {m['val/ref_nll']:.2f} | "
            f"distinct-2 {m['val/distinct_2']:.2f} | repeated {m['val/repetition']:.2f} | "
            f"length {m['val/length_mean']:.0f} | empty {m['val/empty_ratio']:.0%}"
        )

    @staticmethod
    def sample_table(rows: Sequence[dict[str, Any]]) -> str:
        """Four samples, the same prompts each time: under hacking log pi_ref falls while the score rises."""
        every = max(len(rows) // SHOWN_SAMPLES, 1)
        cells = [
            (
                f"{r['sentiment']:.2f}",
                f"{-r['ref_nll'] * r['tokens']:.0f}",
                f"{r['prompt']} ▸{r['completion']}",
            )
            for r in rows[every // 2 :: every][:SHOWN_SAMPLES]
        ]
        return table(("score", "log pi_ref", "prompt ▸ completion"), cells)


class ValidationCallback(TrainerCallback):
    """Validates before the first step, every `eval_every` steps and at the end, each step once.

    It runs after the step's own line is logged and before its checkpoint is saved. `policy` gives the model in
    training. With `eval_every` 0 only the first and the last step are measured.
    """

    def __init__(
        self, validation: Validation, policy: Callable[[], PreTrainedModel], eval_every: int
    ) -> None:
        self.validation, self.policy, self.eval_every = validation, policy, eval_every
        self.last_step = -1

    def _validate(self, state: TrainerState, due: bool = True) -> None:
        if due and state.is_world_process_zero and state.global_step != self.last_step:
            self.last_step = state.global_step
            self.validation.run(self.policy(), state.global_step)

    def _due(self, state: TrainerState) -> bool:
        return self.eval_every > 0 and state.global_step % self.eval_every == 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_
    ) -> None:
        if state.global_step > 0:  # resumed: this step was measured before its checkpoint was saved
            self.last_step = state.global_step
        self._validate(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_) -> None:
        if not control.should_log:  # else on_log comes next, and its line belongs above ours
            self._validate(state, self._due(state))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_) -> None:
        self._validate(state, self._due(state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_
    ) -> None:
        self._validate(state)
