"""Several processes: launches that are refused, and whole weights under FSDP, which shards them."""

import os

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOConfig

from kit.base.errors import UserError
from kit.base.flags import Arguments
from kit.lm.log_probs import LanguageModel


def refuse_idle_gpus(otherwise: str = "") -> None:
    """Raises `UserError` for one process that sees several GPUs: the trainers would split its batches over them."""
    if (n := torch.cuda.device_count()) > 1 and "WORLD_SIZE" not in os.environ:
        raise UserError(f"{n} GPUs are visible to one process: set CUDA_VISIBLE_DEVICES=0{otherwise}")


def refuse_launch(args: Arguments, settings: GRPOConfig) -> None:
    """Raises `UserError` for launches of several processes that would not do what was meant."""
    if not settings.use_cpu:
        refuse_idle_gpus(f", or start torchrun --nproc_per_node {torch.cuda.device_count()} train.py ...")
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" or is_deepspeed_zero3_enabled():
        raise UserError("ZeRO-3 leaves no process the whole weights, which sampling needs here; use FSDP2")
    if settings.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        if settings.use_cpu:
            raise UserError("FSDP needs GPUs: on CPUs Accelerate would train without it; leave it out")
        flags = {"--use_peft": args.use_peft, "--beta": settings.beta, "--resume": args.resume}
        for flag in (name for name, given in flags.items() if given):
            raise UserError(f"{flag} does not work with FSDP here; leave it out, or start without FSDP")


def follow(policy: LanguageModel, trained: torch.nn.Module) -> None:
    """Copy FSDP's sharded weights of `trained` to `policy`, in all processes at once; without FSDP, do nothing."""
    if isinstance(trained, FSDPModule):
        policy.load_state_dict(get_model_state_dict(trained, options=StateDictOptions(full_state_dict=True)))
