"""What the two baselines share with train.py: its flags, under the same names, and its reward."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from kit.errors import UserError
from kit.metrics import composite_reward
from reward_utils import RewardFunction, Scorer, make_reward_function


def setting(default: Any, help: str) -> Any:
    """A dataclass field that explains itself in --help."""
    return field(default=default, metadata={"help": help})


@dataclass
class RunArguments:
    """Flags that mean what they mean in train.py. One default differs: `shaped`."""

    model: str = setting("auto", "the policy: auto, mini, a Hugging Face id, or a path")
    sentiment_model: str = setting("auto", "the classifier: auto, mini, an id, or a path")
    prompts: str = setting("builtin", "builtin, imdb, imdb:FILE.parquet, or a text file, one prompt a line")
    reward_shaping: Literal["linear", "shaped", "sparse"] = setting(
        "shaped",
        "the score as it is, the composite R of configs/reward.yaml, or 1 if the score >= 0.8 else 0",
    )
    hackable_reward: bool = setting(False, "score by counting positive words")
    negate_reward: bool = setting(False, "train for 1 - score: negative film talk")
    use_peft: bool = setting(False, "train LoRA adapters instead of all weights")
    lora_r: int = setting(16, "rank of the adapters")
    merge_lora: bool = setting(False, "final/ holds the merged model, not the adapter")
    max_completion_length: int = setting(40, "longest completion, in tokens")
    temperature: float = setting(1.0, "of sampling, and of every log-prob")
    eval_every: int = setting(10, "steps between validations; 0: first and last only")
    output_dir: str = setting("outputs", "where run folders go")
    run_name: str | None = setting(None, "the run's folder; default: made from the flags")
    seed: int = setting(0, "same seed, same machine, CPU: same numbers")
    wandb: bool = setting(False, "log to Weights & Biases too")
    wandb_project: str = setting("rl-sentiment", "the W&B project")
    resume: str | None = setting(None, "go on with this run folder, with its flags")

    def __post_init__(self) -> None:
        at_least(1, self, "lora_r", "max_completion_length")
        at_least(0, self, "eval_every", "seed")
        if self.temperature <= 0:
            raise UserError(f"--temperature {self.temperature}: must be above 0")
        if self.merge_lora and not self.use_peft:
            raise UserError("--merge_lora merges LoRA adapters: it needs --use_peft")


def at_least(low: float, settings: object, *names: str) -> None:
    """Raise `UserError` for the first flag below `low` (or NaN)."""
    for name in names:
        if not getattr(settings, name) >= low:
            raise UserError(f"--{name} {getattr(settings, name)}: must be at least {low}")


def reward_function(ours: RunArguments, score: Scorer, tokenizer: PreTrainedTokenizerBase) -> RewardFunction:
    """The kit's reward without a KL penalty; `shaped` is the composite R, for there is no exercise to fill here."""

    def shaped_reward(scores: Sequence[float], texts: Sequence[str], prompts: object = None) -> list[float]:
        return composite_reward(scores, texts)

    return make_reward_function(
        score,
        tokenizer,
        reward_shaping=ours.reward_shaping,
        negate=ours.negate_reward,
        student=SimpleNamespace(shaped_reward=shaped_reward),
    )
