"""The benchmark for a GPU, as far as it goes without one. `pytest tests/test_gpu.py`."""

import re

import pytest
import torch

from benchmarks import gpu
from kit.base.errors import UserError


@pytest.mark.slow
@pytest.mark.usefixtures("few_validation_prompts")
def test_all_of_it_runs_on_the_cpu_in_tiny_sizes_and_writes_its_table(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main(["--smoke"])
    text = capsys.readouterr().out.partition("CPU, random weights; 64 completions of at most 40 tokens")[2]
    table = {
        row[0]: row[1:] for row in (line.strip("| ").split(" | ") for line in text.splitlines()) if row[1:]
    }
    assert set(gpu.VARIANTS) <= table.keys()
    assert table["bare TRL"][1] == "1.00 x" and all("MB" in table[name][3] for name in gpu.VARIANTS)
    assert float(table["KL(π‖π_ref) before the first update, fp32"][0].split()[0]) == pytest.approx(
        0, abs=1e-6
    )
    bf16 = float(table["KL(π‖π_ref) before the first update, bf16"][0].split()[0])
    assert bf16 == pytest.approx(0, abs=0.5)
    caps = [cells[0] for what, cells in table.items() if "on 8 GB" in what]
    assert len(caps) == 3 and all(re.fullmatch(r"[\d,]+ MB", cell) for cell in caps)
    assert table["a model's answer on the play page"][0].endswith(" a second")


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU here; --smoke"):
        gpu.main([])


def test_a_card_that_is_too_small_is_a_row_of_the_table(monkeypatch):
    def too_much(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "time_variant", too_much)
    assert gpu.memory_under_a_cap(gpu.ModelChoice("p", "s", ""), []) is None
