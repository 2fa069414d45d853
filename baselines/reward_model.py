"""A reward model, learned from choices between two texts, with TRL's RewardTrainer: the proxy of exercise 8.

    python -m baselines.reward_model --pairs outputs/pairs-400       a folder of baselines.preferences
    python -m baselines.reward_model --pairs choices.jsonl           people's choices: prompt, chosen, rejected
    python train.py --reward_model outputs/rm-400                    then train a policy on it

An encoder of the judge's size with one number s(x) at its end. The loss is your `preference_loss` of s(chosen) and
s(rejected); as everywhere here, only the completion is scored. Choices say nothing about the scale and the origin of s,
so at the end the last layer is rescaled: on the held-out texts s has mean 0 and standard deviation 1.

From a file every tenth pair is held out. The encoder begins with the judge's weights, so after that the judge is no
independent witness; the gold reward is.
"""

# ruff: noqa: E402 - flags are checked, and libraries silenced, before anything heavy is imported
from kit.base.screen import quiet

quiet(__name__)

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from kit.base.cli import KitParser
from kit.base.errors import UserError, run_main, told_in_one_line
from kit.base.files import digest, read_text, user_path
from kit.base.flags import RunArguments, above_0, at_least, refuse_launcher, setting

# ---- settings ----------------------------------------------------------------------------------------------


@dataclass
class RewardModelArguments(RunArguments):
    """The flags of this script."""

    pairs: str | None = setting(None, "a folder of baselines.preferences, or a .jsonl file of choices")
    use_solution: bool = setting(False, "rewards_solution.py instead of rewards.py")
    unchecked: bool = setting(False, "train with your loss even if the self-check says it is wrong")
    epochs: int = setting(3, "passes over the pairs")
    batch_size: int = setting(16, "pairs in one gradient step")
    learning_rate: float = setting(3e-4, "decays linearly")
    eval_every: int = setting(50, "steps between validations; 0: first and last only")
    save_steps: int = setting(100, "steps between checkpoints, for --resume")
    save_total_limit: int = setting(2, "checkpoints kept")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs is None:
            raise UserError("--pairs FOLDER is needed: make it with python -m baselines.preferences")
        at_least(1, self, "epochs", "batch_size", "save_steps", "save_total_limit")
        above_0(self, "learning_rate")
        refuse_launcher()


PARSER = KitParser(RewardModelArguments, __doc__)
if __name__ == "__main__":
    with told_in_one_line():
        PARSER.parse()

import numpy as np
import torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import RewardConfig, RewardTrainer

from data import load_pairs
from kit.base.metrics import mean_estimate
from kit.base.student import checked, load_student
from kit.lm.models import MINI
from kit.train.hooks import StepCallback, run_trainer
from kit.train.processes import refuse_idle_gpus
from kit.train.session import RunSession, fingerprint, source_digest
from sentiment import Classifier, RewardModel, clean, load_classifier

JUDGE = MINI / "judge"
Pairs = list[dict[str, str]]
Loss = Callable[[list[float], list[float]], list[float]]

# ---- the pairs ---------------------------------------------------------------------------------------------


def load_sets(source: str) -> tuple[Pairs, dict[str, Pairs], dict[str, Any] | None]:
    """(training pairs, {name of an accuracy: the pairs it is measured on}, the simulated annotator or None).

    Raises `UserError`.
    """
    path = Path(user_path(source))
    if not path.is_dir():
        pairs = load_pairs(path)
        if len(pairs) < 2:
            raise UserError(f"--pairs {path}: one pair is too few: every tenth is held out")
        return [p for i, p in enumerate(pairs) if i % 10], {"accuracy": pairs[::10]}, None
    try:
        annotator = json.loads(read_text(path / "annotator.json", "--pairs"))["annotator"]
        annotator = {key: annotator[key] for key in ("kind", "sentiment_model", "mean", "std")}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--pairs {path}: annotator.json is damaged; make the folder again") from None
    sets = {"accuracy": load_pairs(path / "held_out.jsonl")}
    if (turned := path / "turned.jsonl").is_file():
        sets["accuracy_turned"] = load_pairs(turned)
    return load_pairs(path / "pairs.jsonl"), sets, annotator


def texts_of(pairs: Pairs) -> list[str]:
    return [pair[key] for pair in pairs for key in ("chosen", "rejected")]


# ---- the model and its loss --------------------------------------------------------------------------------


def load_encoder() -> Classifier:
    """The bundled judge with a new last layer of one number."""
    advice = "copy mini/judge of the kit anew"
    return load_classifier(str(JUDGE), "judge", advice, num_labels=1, ignore_mismatched_sizes=True)


@torch.no_grad()
def standardise(proxy: RewardModel, texts: Sequence[str]) -> None:
    """Rescale the last layer: s has mean 0 and standard deviation 1 on `texts`. No order of two texts changes."""
    scores, layer = np.array(proxy(texts)), proxy.model.classifier.out_proj
    std = max(float(scores.std()), 1e-6)
    layer.weight.div_(std)
    layer.bias.sub_(float(scores.mean())).div_(std)


H = 1e-3  # of central differences, in nats: an error of 1e-8, in float64


def with_gradient(loss: Loss, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """The mean of `loss`, a function of plain numbers, over the scores (N,) of N pairs, with its gradient.

    Each pair's loss depends on its two scores alone, so its slopes are differences of two calls.
    """
    c, r = chosen.detach().double().tolist(), rejected.detach().double().tolist()

    def slopes(up: list[float], down: list[float]) -> torch.Tensor:
        return chosen.new_tensor([(a - b) / (2 * H) for a, b in zip(up, down, strict=True)])

    of_chosen = slopes(loss([s + H for s in c], r), loss([s - H for s in c], r))
    of_rejected = slopes(loss(c, [s + H for s in r]), loss(c, [s - H for s in r]))
    # terms of value 0, whose gradients are the slopes
    flow = of_chosen * (chosen - chosen.detach()) + of_rejected * (rejected - rejected.detach())
    return (chosen.new_tensor(loss(c, r)) + flow).mean()


class PreferenceTrainer(RewardTrainer):
    """TRL's trainer with the student's loss in place of its own."""

    def __init__(self, loss: Loss, **kwargs: Any) -> None:
        self.loss = loss
        super().__init__(**kwargs)
        # No README.md beside every checkpoint: it would say "a fine-tuned version of None"
        self.create_model_card = lambda *_, **__: None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # TRL's own also logs accuracy and margin
        _, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = with_gradient(self.loss, *outputs.logits.squeeze(-1).chunk(2))
        return (loss, outputs) if return_outputs else loss


# ---- measuring ---------------------------------------------------------------------------------------------


@dataclass
class HeldOut:
    """The share of held-out pairs in which the chosen text has the higher score, with a 95 % interval."""

    session: RunSession
    proxy: RewardModel
    sets: dict[str, Pairs]

    def run(self, model: torch.nn.Module, step: int) -> None:
        said: list[str] = []
        metrics: dict[str, float] = {}
        for name, pairs in self.sets.items():
            scores = np.reshape(self.proxy(texts_of(pairs)), (-1, 2))
            share = mean_estimate((scores[:, 0] > scores[:, 1])[:, None])
            low, high = share.interval()
            metrics |= {f"val/{name}": share.value, f"val/{name}_ci_low": low, f"val/{name}_ci_high": high}
            turned = " with the bias turned round" if name == "accuracy_turned" else ""
            said.append(f"accuracy{turned} {share.value:.3f} [{low:.2f}, {high:.2f}]")
        self.session.run.log(step, metrics)
        self.session.tracker.log(step, metrics)
        print(f"val  {step:>4} | {' | '.join(said)}", flush=True)


class Steps(StepCallback):
    """What TRL logs, under its own names."""

    every: ClassVar = 10  # hundreds of short steps
    names: ClassVar = {name: name for name in ("loss", "accuracy", "margin", "grad_norm", "learning_rate")}
    shown: ClassVar = {"loss": "loss {:.3f}", "accuracy": "accuracy {:.2f}", "margin": "margin {:.2f}"}


# ---- the run -----------------------------------------------------------------------------------------------


def main() -> None:
    args: RewardModelArguments = PARSER.parse()
    refuse_idle_gpus()
    student = load_student(args.use_solution, unchecked=args.unchecked, preference=True)
    pairs, sets, annotator = load_sets(str(args.pairs))
    steps = math.ceil(len(pairs) * args.epochs / args.batch_size)
    session = RunSession("reward_model", args, PARSER.argv, {})
    if session.checkpoint and session.first_step >= steps and session.run.final.is_dir():
        raise UserError(f"--resume {session.run.path}: it is finished; to learn more, start a new run")

    encoder = load_encoder()
    model, tokenizer = encoder.model.to(session.device), encoder.tokenizer
    model.config.annotator = annotator
    proxy = RewardModel(model, tokenizer)

    def ids(text: str) -> list[int]:
        return tokenizer(clean(text), truncation=True, max_length=proxy.max_length)["input_ids"]

    # Passes over the pairs, each in another order, as one epoch: a resumed run finds its place again
    rng = random.Random(args.seed)
    order = chain.from_iterable(rng.sample(pairs, len(pairs)) for _ in range(args.epochs))
    rows = [{"chosen_ids": ids(pair["chosen"]), "rejected_ids": ids(pair["rejected"])} for pair in order]

    where = Path(str(args.pairs))
    parts = [f"rm-{(where.name if where.is_dir() else where.stem).removeprefix('pairs-')}"]
    parts += [f"seed-{args.seed}"] if args.seed else []
    run = session.open_run(args.run_name or "-".join(parts))
    session.digests |= {"pairs": digest([pairs, sets]), "encoder": fingerprint(str(JUDGE))}
    session.digests |= source_digest(student.preference_loss)
    session.config["num_pairs"] = len(pairs)
    session.record()
    session.validation = HeldOut(session, proxy, sets)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"reward model on mini/judge ({size:.1f} M), on {session.device}")
    plan = f"{steps} steps of {args.batch_size} of {len(pairs)} pairs, learning rate {args.learning_rate:g}"
    print(f"run {run.path}, {plan}\n", flush=True)

    trainer = PreferenceTrainer(
        partial(checked, student.preference_loss),
        model=model,
        args=RewardConfig(
            output_dir=str(run.path),
            seed=args.seed,
            max_steps=steps,
            per_device_train_batch_size=args.batch_size,
            train_sampling_strategy="sequential",
            max_length=None,  # the texts are cut already; TRL would leave out the long ones
            learning_rate=args.learning_rate,
            lr_scheduler_type="linear",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=args.save_steps,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Steps(session, model, keep=args.save_total_limit)],
    )
    trainer.remove_callback(PrinterCallback)
    with session.training(model, tokenizer, "Next: python train.py --reward_model {run} --predict '...'"):
        run_trainer(trainer, session, model, steps)
        if not session.stopping():
            standardise(proxy, texts_of(sets["accuracy"]))


if __name__ == "__main__":
    run_main(main)
