"""Several processes: which launches are refused, and whole weights where FSDP has laid them in pieces."""

import os

import torch
from peft import PeftModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOConfig

from kit.base.errors import UserError
from kit.base.flags import Arguments


def refuse_idle_gpus(otherwise: str = "") -> None:
    """One process with several GPUs in sight, over which the trainers would split its batches. Raises `UserError`."""
    if torch.cuda.device_count() > 1 and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"{torch.cuda.device_count()} GPUs are visible to one process: set CUDA_VISIBLE_DEVICES=0{otherwise}"
        )


def refuse_launch(ours: Arguments, settings: GRPOConfig) -> None:
    """Ways to start several processes that would not do what was meant. Raises `UserError`."""
    if not settings.use_cpu:
        refuse_idle_gpus(
            f", or start it with torchrun --nproc_per_node {torch.cuda.device_count()} train.py ..."
        )
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" or is_deepspeed_zero3_enabled():
        raise UserError("ZeRO-3 leaves no process the whole weights, which sampling needs here; use FSDP2")
    if settings.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        if settings.use_cpu:
            raise UserError("FSDP needs GPUs: on CPUs Accelerate would train without it; leave it out")
        flags = {"--use_peft": ours.use_peft, "--beta": settings.beta, "--resume": ours.resume}
        for flag in (name for name, given in flags.items() if given):
            raise UserError(
                f"{flag} does not go together with FSDP here; leave it out, or start without FSDP"
            )


def follow(policy: PreTrainedModel | PeftModel, trained: torch.nn.Module) -> None:
    """Give `policy` the weights of `trained` where that is another model, in FSDP's pieces. All processes at once."""
    if isinstance(trained, FSDPModule):
        policy.load_state_dict(get_model_state_dict(trained, options=StateDictOptions(full_state_dict=True)))
