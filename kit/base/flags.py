"""The flags that all trainers share. Standard library only: --help must not wait for torch."""

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from kit.base.errors import UserError
from kit.base.files import user_path

PROJECT = os.environ.get("WANDB_PROJECT") or "rl-sentiment"
WANDB_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its --help."""
    return field(default=default, metadata={"help": help})


def at_least(low: float, settings: object, *names: str) -> None:
    """Raise `UserError` for the first flag that is below `low`, infinite or NaN."""
    for name in names:
        if not low <= getattr(settings, name) < float("inf"):
            raise UserError(f"--{name} {getattr(settings, name)}: must be at least {low}, and finite")


def above_0(settings: object, *names: str) -> None:
    """Raise `UserError` for the first flag that is given and is 0 or less, infinite or NaN."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} {value}: must be above 0, and finite")


def check_steps(settings: Any) -> None:
    """Check `--max_steps`, `--save_steps` and `--save_total_limit`. Raises `UserError`."""
    at_least(1, settings, "save_steps", "save_total_limit")
    if settings.max_steps == 0 or settings.max_steps < -1:
        raise UserError(f"--max_steps {settings.max_steps}: give at least 1")


def refuse_launcher() -> None:
    """Raises `UserError` in one of several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("the baselines run as one process; start them with python -m, without a launcher")


@dataclass
class RunArguments:
    """What is kept of a run, and where."""

    eval_every: int = setting(10, "steps between validations; 0: first and last only")
    seed: int = setting(0, "same seed, same machine, CPU: same numbers")
    output_dir: str = setting("outputs", "where run folders go")
    run_name: str | None = setting(None, "the run's folder; default: made from the flags")
    resume: str | None = setting(None, "go on with this run folder, with its flags")
    predict: str | None = setting(None, "what you expect of this run; kept, and shown in the report")
    wandb: bool = setting(False, "log to Weights & Biases too")
    wandb_project: str = setting(PROJECT, "the project on W&B or Trackio")
    report_to: Literal["none", "wandb", "trackio", "tensorboard"] = setting("none", "log there too")

    def __post_init__(self) -> None:
        at_least(0, self, "eval_every")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed}: must be at least 0 and below 2**32")
        if self.wandb and self.report_to not in ("none", "wandb"):
            raise UserError(f"--wandb and --report_to {self.report_to}: a run has one of them; keep one")
        if self.report_to in ("trackio", "tensorboard") and find_spec(self.report_to) is None:
            raise UserError(f"--report_to {self.report_to}: run pip install -r requirements-play.txt first")
        mode = os.environ.get("WANDB_MODE", "online")
        if (self.wandb or self.report_to == "wandb") and mode not in WANDB_MODES:
            raise UserError(f"WANDB_MODE={mode}: unset it, or choose one of {', '.join(WANDB_MODES)}")


@dataclass
class Arguments(RunArguments):
    """Model, prompts and reward of a run."""

    model: str = setting("auto", "the policy: auto, mini, smollm2, a Hub id, or a path")
    sentiment_model: str = setting("auto", "the classifier: auto, mini, an id, or a path")
    prompts: str = setting("builtin", "builtin, its parts fit and tuning, imdb[:FILE.parquet], or a file")
    reward_shaping: Literal["linear", "shaped", "sparse"] = setting(
        "linear", "the score, your shaped_reward, or 1 from a threshold on"
    )
    sparse_threshold: float = setting(0.8, "of sparse: the score from which it is 1")
    hackable_reward: bool = setting(False, "score by counting positive words")
    reward_model: str | None = setting(None, "score by this run of baselines.reward_model")
    negate_reward: bool = setting(False, "train for 1 - score: negative film talk")
    use_peft: bool = setting(False, "train LoRA adapters instead of all weights")
    lora_r: int = setting(16, "rank of the adapters")
    merge_lora: bool = setting(False, "final/ holds the merged model, not the adapter")
    max_completion_length: int = setting(40, "longest completion, in tokens")
    temperature: float = setting(1.0, "of sampling, and of every log-prob")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model, self.sentiment_model = user_path(self.model), user_path(self.sentiment_model)
        self.reward_model = self.reward_model and user_path(self.reward_model)
        at_least(1, self, "lora_r", "max_completion_length")
        above_0(self, "temperature")
        if self.merge_lora and not self.use_peft:
            raise UserError("--merge_lora merges LoRA adapters: it needs --use_peft")
        usual = type(self)  # a field's default is the class's attribute
        if not 0 < self.sparse_threshold <= 1:
            raise UserError(f"--sparse_threshold {self.sparse_threshold:g}: must be above 0 and at most 1")
        if self.sparse_threshold != usual.sparse_threshold and self.reward_shaping != "sparse":
            given = f"--sparse_threshold {self.sparse_threshold:g}"
            raise UserError(f"{given} is that of the sparse reward: it needs --reward_shaping sparse")
        if self.lora_r != usual.lora_r and not self.use_peft:
            raise UserError(f"--lora_r {self.lora_r} is the rank of LoRA adapters: it needs --use_peft")
        if self.reward_model and self.hackable_reward:
            raise UserError("--reward_model and --hackable_reward: each is the whole score; keep one")
        if self.reward_model and self.reward_shaping != "linear":
            why = "a learned reward is no probability; give --reward_shaping linear"
            raise UserError(f"--reward_model with --reward_shaping {self.reward_shaping}: {why}")

    def name_parts(self, learning_rate: float | None) -> list[str]:
        """What is unusual about the run, for its folder's name. `learning_rate`: None if the user gave none."""
        usual = type(self)
        parts = {
            self.reward_shaping: self.reward_shaping != usual.reward_shaping,
            f"{self.sparse_threshold:g}": self.sparse_threshold != usual.sparse_threshold,
            "hackable": self.hackable_reward,
            f"on-{Path(self.reward_model or '').name}": self.reward_model is not None,
            "negate": self.negate_reward,
            "lora" if self.lora_r == usual.lora_r else f"lora-{self.lora_r}": self.use_peft,
            f"lr-{learning_rate or 0:g}": learning_rate is not None,
            f"seed-{self.seed}": self.seed != 0,
        }
        return [name for name, unusual in parts.items() if unusual]


@dataclass
class BaselineArguments(Arguments):
    """The same flags. Only `reward_shaping` has another default, as here no exercise is to be filled in."""

    reward_shaping: Literal["linear", "shaped", "sparse"] = setting(
        "shaped", "the score, the R of configs/reward.yaml, or 1 from a threshold on"
    )
    bf16: bool = setting(False, "bfloat16 autocast (weights stay fp32)")

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_launcher()
