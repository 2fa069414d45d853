"""Freed memory is used again: counted in page faults, in a process of its own.

python -m pytest tests/test_memory.py
"""

import platform
import subprocess
import sys

import pytest

from kit.lm.models import ROOT

FAULTS_OF_FIFTY_TENSORS = """
import resource
from kit.lm.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    bytearray(40 << 20)  # every page is written; glibc itself keeps what is smaller than 32 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back at once")
def test_a_freed_tensor_is_the_next_ones_memory():
    default, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS_OF_FIFTY_TENSORS.format(keep=keep)],
                cwd=ROOT, check=True, capture_output=True, text=True,
            ).stdout
        )
        for keep in (False, True)
    )  # fmt: skip
    assert kept < default / 10  # 50 times the pages of a tensor, and once
