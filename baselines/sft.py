"""Supervised fine-tuning on the same task, with TRL's SFTTrainer: the baseline that RL has to beat.

    python -m baselines.sft                              best-of-n, on the mini models, offline
    python -m baselines.sft --data imdb                  positive film reviews from the Hub
    python -m baselines.sft --data reviews.parquet       the same from a file (columns text, label)

The two methods differ in where the good text comes from:

best_of_n  Rejection sampling (RAFT, Dong et al. 2023, arXiv 2304.06767). Each round samples n completions of every
           prompt from the current model, keeps the best of each n by train.py's reward without its KL penalty, and
           fine-tunes on those. The loss is on the completion's sampled ids only. No EOS is added where the length
           limit cut a sample off: that would teach to stop in mid-sentence. Nothing lowers the probability of bad
           text, and there is no KL term.
imdb       Positive reviews (negative ones with --negate_reward), loss on every token. The file is sorted by label, so
           load_imdb takes both classes in turn. Each review is cut to the model's context; EOS ends those that fit.

Rows are padded on the right, where GPT-2's default positions 0, 1, 2, ... are right. Dropout is off.
"""

# ruff: noqa: E402 - flags are checked, and libraries silenced, before anything heavy is imported
from kit.base.screen import Progress, quiet

quiet(__name__)

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.base.cli import KitParser
from kit.base.errors import UserError, run_main, told_in_one_line
from kit.base.flags import BaselineArguments, above_0, at_least, setting

# ---- settings ----------------------------------------------------------------------------------------------


@dataclass
class SFTArguments(BaselineArguments):
    """The flags of this script. configs/sft.yaml holds SFT's own numbers, to copy and change."""

    data: str = setting("best_of_n", "best_of_n, imdb, or a parquet file with columns text and label")
    rounds: int = setting(4, "best_of_n: sample and fine-tune this often; imdb: passes over the reviews")
    prompts_per_round: int = setting(100, "best_of_n: prompts, of which one completion each is kept")
    num_generations: int = setting(8, "best_of_n: completions of each prompt, the n")
    num_reviews: int = setting(2000, "imdb: reviews of the wanted class, at most")
    max_length: int = setting(0, "imdb: longest review in tokens; 0: the model's context")
    epochs: int = setting(2, "best_of_n: passes over the kept completions of a round")
    batch_size: int = setting(16, "texts to a gradient step")
    learning_rate: float | None = setting(None, "a round's, falls from: 7e-5 for mini, else 1e-5; LoRA: x 5")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "rounds", "prompts_per_round", "num_reviews", "epochs", "batch_size")
        at_least(2, self, "num_generations")
        at_least(0, self, "max_length")
        above_0(self, "learning_rate")
        of_reviews = ["num_reviews", "max_length"]
        of_samples = ["prompts_per_round", "num_generations", "epochs"]
        of_samples += ["reward_shaping", "hackable_reward", "reward_model"]
        for name in of_reviews if self.data == "best_of_n" else of_samples:
            if (value := getattr(self, name)) != getattr(type(self), name):
                raise UserError(f"--{name} {value} does nothing with --data {self.data}: leave it out")


PARSER = KitParser(SFTArguments, __doc__)
if __name__ == "__main__":
    with told_in_one_line():
        PARSER.parse()

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from data import load_imdb
from kit.base.files import digest
from kit.lm.models import context
from kit.lm.sampling import Completion, sample
from kit.train.processes import refuse_idle_gpus
from kit.train.session import LanguageModel, Session, reward_without_penalty
from reward_utils import RewardFunction

IGNORED = -100  # a label that has no loss
Example = dict[str, list[int]]  # input_ids and labels, of equal length

# ---- data --------------------------------------------------------------------------------------------------


def best_of_n(rewards: Sequence[float], n: int) -> list[int]:
    """Index of the best of each group of n consecutive completions; the first of equals."""
    # Q29. Suppose imitation were perfect. What are four rounds of best-of-8 in one word, and how many nats
    # from the base do they end?
    groups = np.asarray(rewards).reshape(-1, n)  # (prompts, n)
    return (groups.argmax(1) + n * np.arange(len(groups))).tolist()


def completion_example(completion: Completion) -> Example:
    """The sampled ids of prompt and completion, with the loss on the completion, its EOS included."""
    prompt, sampled = completion.prompt_ids, completion.completion_ids
    return {"input_ids": [*prompt, *sampled], "labels": [IGNORED] * len(prompt) + list(sampled)}


def review_examples(
    texts: Sequence[str],
    labels: Sequence[int],
    wanted: int,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    limit: int,
) -> list[Example]:
    """The first `limit` reviews with label `wanted`, cut to `max_length` tokens; EOS ends the whole ones."""
    examples = []
    for text in [t for t, label in zip(texts, labels, strict=True) if label == wanted][:limit]:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id][:max_length]
        if len(ids) > 1:  # one token alone has nothing to predict
            examples.append({"input_ids": ids, "labels": list(ids)})
    return examples


def best_of_round(
    lm: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    reward: RewardFunction,
    args: SFTArguments,
    rng: np.random.Generator,
    stop_if_asked: Callable[[], None],
) -> tuple[list[Example], dict[str, float]]:
    """Sample n completions of some prompts from `lm`: (the best of each n, the numbers to log).

    `stop_if_asked` is called after every batch of completions, and may raise.
    """
    kept = args.prompts_per_round
    progress = Progress(kept * args.num_generations, "sampling", "completions")

    def on_batch(completions: int) -> None:
        progress.advance(completions)
        stop_if_asked()

    asked = rng.choice(prompts, kept, replace=kept > len(prompts)).tolist()
    n, length, seed = args.num_generations, args.max_completion_length, int(rng.integers(2**31))
    completions = sample(lm, tokenizer, asked, n, length, args.temperature, seed, on_batch=on_batch)
    scores, shaped = reward.base_reward([c.text for c in completions], [c.prompt for c in completions])
    best = best_of_n(shaped, n)
    return [completion_example(completions[i]) for i in best], {
        "score": float(np.mean(scores)),
        "shaped": float(np.mean(shaped)),
        "kept_score": float(np.mean([scores[i] for i in best])),
        "kept_shaped": float(np.mean([shaped[i] for i in best])),
        "generated_tokens": sum(len(c.completion_ids) for c in completions),
    }


# ---- training ----------------------------------------------------------------------------------------------


class RoundCallback(TrainerCallback):
    """The gradient steps of one round: checked, logged and shown, counted over all rounds."""

    def __init__(self, session: Session, lm: LanguageModel, before: int, total: int) -> None:
        self.session, self.lm, self.before, self.total = session, lm, before, total

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.session.check_gradient(self.before + state.global_step + 1, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.session.check_weights(self.before + state.global_step, model)
        control.should_training_stop |= self.session.stopping()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        step = self.before + state.global_step
        self.session.check(step, loss=logs["loss"])
        self.session.log(step, {key: logs[key] for key in ("loss", "grad_norm", "learning_rate")})
        self.session.show(step, self.total, f"loss {logs['loss']:.3f}")
        if self.session.due(step) and step != self.total:
            self.session.validate(self.lm, step)


def fine_tune(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    args: SFTArguments,
    epochs: int,
    seed: int,
    folder: Path,
    callback: RoundCallback,
) -> None:
    """One round: minimise the mean -log p of the labelled tokens of `examples`, in place."""
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="linear",
            seed=seed,
            dataset_kwargs={"skip_prepare_dataset": True},  # token ids and labels are ready
            gradient_checkpointing=False,
            bf16=args.bf16,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.config.use_cache = True  # the trainer turned it off


# ---- the run -----------------------------------------------------------------------------------------------


def main() -> None:
    args: SFTArguments = PARSER.parse()
    refuse_idle_gpus()
    session = Session("sft", args, PARSER.argv)
    data = re.sub(r"[^\w.+=-]+", "-", Path(args.data).stem)
    name = args.run_name or "-".join(["sft", data, *args.name_parts(args.learning_rate)])
    session.refuse_finished(session.state.get("rounds", 0), args.rounds, "rounds")
    args.learning_rate = session.rate(args.learning_rate, mini=7e-5, full=1e-5)
    lm, tokenizer, reference = session.load_models()
    prompts = session.load_prompts(lm, tokenizer)
    reward = reward_without_penalty(args, session.score, tokenizer)

    # The data, and the number of steps
    sampled_data = args.data == "best_of_n"
    examples: list[Example] = []
    if sampled_data:
        kept, epochs = args.prompts_per_round, args.epochs
        source = f"best of {args.num_generations} for each of {kept} prompts"
    else:
        wanted, length = 0 if args.negate_reward else 1, min(args.max_length or context(lm), context(lm))
        reviews = load_imdb(None if args.data == "imdb" else args.data)
        examples = review_examples(*reviews, wanted, tokenizer, length, args.num_reviews)
        if not examples:
            raise UserError(f"--data {args.data}: no review with label {wanted} in it")
        kept, epochs = len(examples), 1
        source = f"{kept} reviews"
        session.digests["data"] = digest(examples)
    steps_per_round = math.ceil(kept / args.batch_size) * epochs
    total = args.rounds * steps_per_round

    run = session.open_run(name)
    plan = f"{args.rounds} rounds of {steps_per_round} steps on the {source}, learning rate {args.learning_rate:g}"
    session.begin(lm, tokenizer, reference, reward, plan)

    # Every draw is a function of (seed, round), so a resumed run draws what the uninterrupted run drew
    step, generated_tokens = session.first_step, session.state.get("generated_tokens", 0)
    with session.training(lm, tokenizer, "Compare: python evaluate.py base sft={run}"):
        session.start(lm)
        for number in range(session.state.get("rounds", 0), args.rounds):
            rng = np.random.default_rng([args.seed, number])
            if sampled_data:
                examples, sampled = best_of_round(
                    lm, tokenizer, prompts, reward, args, rng, session.stop_if_asked
                )
                generated_tokens += sampled["generated_tokens"]
                # under the step that uses it, as in train.py
                session.log(step + 1, sampled | {"generated_tokens": generated_tokens})
                found = f"R {sampled['shaped']:.3f}, of those kept {sampled['kept_shaped']:.3f}"
                print(f"round {number + 1}/{args.rounds} | {found} | {generated_tokens} tokens", flush=True)
            callback = RoundCallback(session, lm, step, total)
            fine_tune(lm, tokenizer, examples, args, epochs, int(rng.integers(2**31)), run.path, callback)
            step += steps_per_round
            if session.last_step < step:  # stopped; a resumed run begins this round again
                break
            if step == total:
                session.validate(lm, step)
            state = {"rounds": number + 1, "generated_tokens": generated_tokens}
            session.save_checkpoint(step, lm, tokenizer, state, keep=1)


if __name__ == "__main__":
    run_main(main)
