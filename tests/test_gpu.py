"""The benchmarks for a GPU, as far as they go without one. `pytest tests/test_gpu.py`."""

import re

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import gpu
from benchmarks.memory import COMPLETIONS, PROMPT, Counted, step
from kit.base.errors import UserError
from kit.lm.models import add_plain_head, follow_mask_positions, fuse_gelu


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


# ---- the count of benchmarks/memory.py ---------------------------------------------------------------------

CONFIG = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 2000}
# word and position embeddings; 12 d^2 + 13 d in a layer; the last layer norm. The head is the word embeddings
GPT2_NUMBERS = 2000 * 32 + 64 * 32 + 2 * (12 * 32**2 + 13 * 32) + 2 * 32
LORA_NUMBERS = 2 * 16 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)  # A and B of four matrices a layer, rank 16


def test_a_view_counts_once_and_a_freed_tensor_no_more():
    with Counted() as count:
        kept = torch.zeros(10, 100)
        view = kept[:5].T
        assert (kept + 1).sum() == 1000
        assert count.live == 4000 and 8000 <= count.peak <= 8100
        del kept
        assert count.live == 4000
        del view
        assert count.live < 100


@pytest.mark.parametrize(("lora", "trained"), [(False, GPT2_NUMBERS), (True, LORA_NUMBERS)])
def test_the_parts_of_a_step_by_hand(lora, trained):
    parts = step(GPT2Config(**CONFIG), 4, 20, lora)
    assert parts["weights"] == 4 * (GPT2_NUMBERS + lora * LORA_NUMBERS)
    assert (parts["Adam"], parts["gradients"]) == (8 * trained, 4 * trained)
    fixed = parts["weights"] + parts["reference, classifier"] + parts["Adam"]
    assert parts["peak while sampling"] == fixed + COMPLETIONS * (8 * 2 * 32 * (PROMPT + 20 + 48) + 12 * 2000)
    # At the peak of the backward pass the log-probs, which are kept, have two gradients of their size
    kept, logits = parts["kept for the backward pass"], 4 * 4 * 20 * 2000
    peak = fixed + parts["gradients"] + kept + 2 * logits
    assert parts["peak of the backward pass"] == pytest.approx(peak, rel=1e-4)


def test_the_count_without_data_is_that_of_the_trainers_forward_and_its_backward_pass():
    torch.manual_seed(0)
    policy = GPT2LMHeadModel(GPT2Config(**CONFIG, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)).train()
    follow_mask_positions(policy)
    fuse_gelu(policy)
    add_plain_head(policy, 1.0)
    for p in policy.parameters():  # of the micro-batch before
        p.grad = torch.zeros_like(p)
    ids = torch.randint(2000, (4, PROMPT + 20))
    labels = ids.masked_fill(torch.arange(PROMPT + 20) < PROMPT, -100)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0  # a shorter prompt, as in most micro-batches
    with Counted() as count:
        count.add([*policy.parameters(), *(p.grad for p in policy.parameters()), ids, labels, mask])
        before = count.live
        out = policy(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        kept = count.live - before
        count.peak = count.live
        out.log_probs.sum().backward()
    parts = step(GPT2Config(**CONFIG), 4, 20, lora=False)
    fixed = sum(parts[part] for part in ("weights", "reference, classifier", "Adam", "gradients"))
    assert before == 8 * GPT2_NUMBERS + 3 * ids.nbytes
    assert kept == pytest.approx(parts["kept for the backward pass"], rel=0.02)
    peak = parts["peak of the backward pass"] - fixed
    assert count.peak - before == pytest.approx(peak, rel=0.02)
    del out
    assert count.live == before
