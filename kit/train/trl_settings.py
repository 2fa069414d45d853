"""`trl:` in a --config file: settings of TRL's GRPOConfig that experts may hand on, and why the others are refused."""

import argparse
import difflib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NoReturn

from transformers.hf_argparser import HfArgumentParser
from trl import GRPOConfig

from kit.base.errors import UserError

# Settings of the loss: estimates of the same on-policy gradient, or bounds on it
LOSS = set(
    "epsilon epsilon_high delta num_iterations steps_per_generation importance_sampling_level "
    "mask_truncated_completions off_policy_mask_threshold use_bias_correction_kl".split()
)
LOSS_PREFIXES = ("sapo_", "vespo_")
# The optimizer and its schedule; memory, hardware, the cluster
ALLOWED = set(
    "optim optim_args weight_decay max_grad_norm lr_scheduler_type lr_scheduler_kwargs warmup_steps "
    "activation_checkpointing activation_checkpointing_kwargs tf32 deepspeed use_vllm".split()
)
ALLOWED_PREFIXES = ("adam_", "torch_compile", "fsdp", "ddp_", "vllm_")
REASONS = {
    "gradient_checkpointing": "its name is activation_checkpointing now",
    "num_train_epochs": "give --max_steps",
    "resume_from_checkpoint": "give --resume RUN",
    "eval_steps": "give --eval_every",
    "disable_dropout": "dropout is always off, so that the KL at step 0 is 0",
    "fp16": "training is in bfloat16 or float32",
    "sync_ref_model": "it would move the reference of every KL",
    "trust_remote_code": "code that comes with a model is never run here",
    "model_init_kwargs": "code that comes with a model is never run here",
}
REASONS |= dict.fromkeys(
    ("top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs"),
    "it changes what is sampled but not the log-probs, so every KL would be wrong; use --temperature",
)
REASONS |= dict.fromkeys(
    ("top_entropy_quantile", "entropy_coef", "use_adaptive_entropy"),
    "it needs the entropy of every token, and the kit has only an estimate from the sampled ones",
)


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"trl: {message}")


def extra_settings(text: str | None, kit_flags: set[str], credit: str) -> dict[str, Any]:
    """The settings in `text`, a JSON object, with the types that GRPOConfig gives them; {} for None.

    `kit_flags` are names of the kit's own flags. Raises `UserError` for a setting that may not be handed on.
    """
    try:
        given = json.loads(text) if text else {}
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise UserError("trl: must be a mapping of TRL's settings to values, such as `trl: {epsilon: 0.1}`")
    known = {f.name for f in fields(GRPOConfig)}
    argv: list[str] = []
    for name, value in given.items():
        of_loss = name in LOSS or name.startswith(LOSS_PREFIXES)
        allowed = of_loss or name in ALLOWED or name.startswith(ALLOWED_PREFIXES)
        if name in kit_flags:
            raise UserError(f"trl: {name} is a flag of the kit: give it as {name}, outside trl")
        if name not in known:
            close = "".join(f"; did you mean {n}?" for n in difflib.get_close_matches(name, known, n=1))
            raise UserError(f"trl: {name} is no setting of TRL's{close}")
        if not allowed:
            why = REASONS.get(name, "the kit sets it itself (train.py, grpo_config)")
            raise UserError(f"trl: {name} cannot be set: {why}")
        if credit == "token" and (of_loss or name == "use_vllm"):
            raise UserError(f"--credit token has a loss of its own: leave out {name} under trl")
        if value is not None:
            argv += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    if given.get("use_vllm") and importlib.util.find_spec("vllm") is None:
        raise UserError("trl: use_vllm: vLLM is not installed (it needs a GPU); leave it out, or install it")
    # YAML reads 1e-8 as a string: the values are parsed like flags
    parsed = _Parser(GRPOConfig, add_help=False, allow_abbrev=False).parse_args(argv, argparse.Namespace())
    return {name: getattr(parsed, name) for name, value in given.items() if value is not None}


@contextmanager
def refusals_of_trl() -> Iterator[None]:
    """TRL's refusals in the block, and an optimizer that is not installed, become a `UserError`."""
    try:
        yield
    except (ValueError, ImportError) as error:
        raise UserError(f"TRL refuses these settings: {' '.join(str(error).split())}") from None
