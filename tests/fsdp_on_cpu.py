"""train.py under FSDP2 on CPU processes, for tests: Accelerate takes FSDP's settings on accelerators only, and trains
with DDP on CPUs without a word. To Accelerate this launch is one of GPUs; the rest is what runs on them, over gloo.

    torchrun --standalone --nproc_per_node 2 -m tests.fsdp_on_cpu FLAGS OF train.py
"""

# ruff: noqa: E402 - as in train.py
from kit.base.screen import quiet

quiet()

import os
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

import train
from kit.base.errors import run_main

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "GPT2Block",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
real = Accelerator.__init__


def as_on_gpus(self: Accelerator, *args: Any, **kwargs: Any) -> None:
    os.environ.update(FSDP2)  # not before: train.py refuses FSDP on CPUs
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    real(self, *args, **kwargs)


if __name__ == "__main__":
    Accelerator.__init__ = as_on_gpus
    run_main(train.main)
