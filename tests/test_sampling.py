"""The sampler against the distribution that is scored.

pytest tests/test_sampling.py
"""

import math

import pytest
import torch
from peft import get_peft_model
from transformers import AutoTokenizer, GenerationConfig

from kit.lm.log_probs import token_log_probs
from kit.lm.models import MINI, load_policy, lora_config
from kit.lm.sampling import draw, rollout, sample


class LetterTokenizer:
    """Prompts of digits to ids; decodes to digits without EOS (0)."""

    eos_token_id = pad_token_id = 0

    def __call__(self, texts, **_):
        return {"input_ids": [[int(c) for c in text] for text in texts]}

    def decode(self, ids, skip_special_tokens):
        return "".join(str(i) for i in ids if i)

    def batch_decode(self, rows, skip_special_tokens):
        return [self.decode(ids, skip_special_tokens) for ids in rows]


def test_sampling_has_its_own_random_stream_and_keeps_eos(tiny_gpt2):
    model, tokenizer = tiny_gpt2().train(), LetterTokenizer()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    completions = sample(
        model, tokenizer, ["12", "3", "4567"], num_samples=20, max_new_tokens=6, batch_size=7
    )
    assert torch.equal(torch.rand(3), expected)  # the global stream did not move
    assert model.training
    assert [c.prompt for c in completions] == ["12"] * 20 + ["3"] * 20 + ["4567"] * 20
    assert {tuple(c.prompt_ids) for c in completions} == {(1, 2), (3,), (4, 5, 6, 7)}
    ended = [c for c in completions if 0 in c.completion_ids]
    assert ended and all(c.completion_ids.index(0) == len(c.completion_ids) - 1 for c in ended)
    assert all(c.truncated == (0 not in c.completion_ids) for c in completions)
    assert all(len(c.completion_ids) == 6 for c in completions if c.truncated)
    again = sample(model, tokenizer, ["12", "3", "4567"], num_samples=20, max_new_tokens=6, batch_size=7)
    assert again == completions


def test_texts_are_told_as_they_grow_and_stand_still_once_they_have_ended(tiny_gpt2):
    told: list[list[str]] = []
    flags = {"num_samples": 4, "max_new_tokens": 6, "seed": 1}
    completions = sample(
        tiny_gpt2(vocab_size=4), LetterTokenizer(), ["12", "3"], on_text=told.append, **flags
    )
    assert any(not c.truncated for c in completions)
    longest = max(len(c.completion_ids) for c in completions)
    assert len(told) == longest
    for length, texts in enumerate(told, start=1):
        assert texts == ["".join(str(i) for i in c.completion_ids[:length] if i) for c in completions]
    assert completions == sample(tiny_gpt2(vocab_size=4), LetterTokenizer(), ["12", "3"], **flags)


def test_samples_follow_the_scored_distribution(tiny_gpt2):
    """First tokens of 4,000 samples at temperature 1.5 against softmax(z / 1.5): no top-k, no top-p."""
    model = tiny_gpt2(vocab_size=5)
    ids = [
        c.completion_ids[0]
        for c in sample(
            model,
            LetterTokenizer(),
            ["12"],
            num_samples=4000,
            max_new_tokens=1,
            temperature=1.5,
            batch_size=4000,
        )
    ]
    with torch.no_grad():
        p = (model.eval()(torch.tensor([[1, 2]])).logits[0, -1] / 1.5).softmax(-1)
    for token in range(5):
        sd = math.sqrt(p[token] * (1 - p[token]) / 4000)
        assert ids.count(token) / 4000 == pytest.approx(p[token].item(), abs=4 * sd)


# ---- one draw ----------------------------------------------------------------------------------------------


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Pearson's statistic of N draws against N p."""
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_draws_follow_the_softmax(temperature):
    """16 tokens, 200,000 draws: below 37.7 for 15 degrees of freedom in 999 of 1,000 right samplers."""
    generator = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(16, generator=generator)
    logits[15] = 3.0  # the last token is a likely one: an index past the end must not swallow it
    n = 200_000
    tokens, log_probs = draw(logits.expand(n, -1) / temperature, torch.rand(n, generator=generator))
    weights = [math.exp(float(z) / temperature) for z in logits]
    right = torch.tensor([w / sum(weights) for w in weights])
    assert chi_square(torch.bincount(tokens, minlength=16).float(), right) < 37.7
    assert torch.allclose(log_probs, right.log()[tokens], atol=1e-5)


def test_a_draw_at_both_ends_of_the_unit_interval():
    """By hand: p = (0, 1/4, 3/4, 0). Nothing of probability 0 is ever drawn, whatever the rounding."""
    logits = torch.tensor([-math.inf, 0.0, math.log(3.0), -math.inf]).expand(5, -1)
    uniform = torch.tensor([0.0, 0.2499, 0.2501, 0.75, 1.0 - 2.0**-24])
    tokens, log_probs = draw(logits, uniform)
    assert tokens.tolist() == [1, 1, 2, 2, 2]
    assert log_probs.exp().tolist() == pytest.approx([0.25, 0.25, 0.75, 0.75, 0.75])


def test_all_mass_on_one_token_of_a_large_vocabulary():
    logits = torch.zeros(3, 50_257)
    logits[0, 0] = logits[1, 50_256] = logits[2, 777] = 200.0
    for uniform in (0.0, 0.5, 1.0 - 2.0**-24):
        tokens, log_probs = draw(logits, torch.full((3,), uniform))
        assert tokens.tolist() == [0, 50_256, 777] and log_probs.tolist() == [0.0, 0.0, 0.0]


def test_the_largest_uniform_number_never_passes_the_end():
    """10,000 totals: a token of probability 0 stands last, and an index past the end would be an error."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10_000, 9, generator=generator)
    logits[:, -1] = -math.inf
    tokens, _ = draw(logits, torch.full((10_000,), 1.0 - 2.0**-24))
    assert tokens.max() == 7


# ---- a rollout ---------------------------------------------------------------------------------------------

PROMPTS = [[3], [4, 5, 6, 7], [4, 5, 6, 7], [1, 2], [8, 9, 10, 1, 2, 3]]


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("kind", ["full", "LoRA"])
@pytest.mark.parametrize("length", [1, 9])
def test_the_log_probs_that_come_with_a_sample_are_the_oracles(tiny_gpt2, kind, temperature, length):
    """Uneven prompts, repeated ones, rows that end early and are left out, completions of one token."""
    model = tiny_gpt2()
    if kind == "LoRA":
        model = get_peft_model(model, lora_config(4, model))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first: then the adapter does nothing
                parameter.data.normal_(std=0.3)
    uniforms = torch.rand(len(PROMPTS), length, generator=torch.Generator().manual_seed(1))
    ids, log_probs = rollout(model, PROMPTS, uniforms, {0, 7}, temperature)
    assert length == 1 or len({len(row) for row in ids}) > 2
    oracle = token_log_probs(model, PROMPTS, ids, temperature)
    for row, right in zip(log_probs, oracle, strict=True):
        assert row == pytest.approx(right, abs=1e-5)


def test_what_is_drawn_depends_on_its_own_row_alone(tiny_gpt2):
    """Neither on the size of the batch, nor on its neighbours' prompts or ends."""
    model = tiny_gpt2()
    uniforms = torch.rand(len(PROMPTS), 9, generator=torch.Generator().manual_seed(1))
    together, _ = rollout(model, PROMPTS, uniforms, {0, 7})
    alone = [rollout(model, [p], u[None], {0, 7})[0][0] for p, u in zip(PROMPTS, uniforms, strict=True)]
    assert together == alone
    args = (model, LetterTokenizer(), ["12", "3", "4567"], 5, 9)
    small, large = (sample(*args, batch_size=size) for size in (4, 64))
    assert [c.completion_ids for c in small] == [c.completion_ids for c in large]


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 5.0},
        {"min_p": 0.5},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(100, 6144))},
        {"min_new_tokens": 30},
        {"top_k": 1},
        {"temperature": 0.1},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_a_models_generation_config_changes_nothing(setting, tmp_path):
    """A policy saved with such a setting is sampled like the one without it: from what is scored."""
    plain, tokenizer = load_policy(str(MINI / "policy"))
    plain.generation_config = GenerationConfig(do_sample=True, eos_token_id=tokenizer.eos_token_id, **setting)
    plain.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(MINI / "policy").save_pretrained(tmp_path)
    changed, _ = load_policy(str(tmp_path))
    assert changed.generation_config.to_diff_dict().keys() <= {
        "eos_token_id",
        "pad_token_id",
        "transformers_version",
    }
    prompts = ["This movie", "The acting"]
    assert sample(changed, tokenizer, prompts, max_new_tokens=12) == sample(
        plain, tokenizer, prompts, max_new_tokens=12
    )


def test_a_policy_with_nan_weights_draws_nothing(tiny_gpt2):
    model = tiny_gpt2()
    model.transformer.ln_f.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        rollout(model, [[1]], torch.rand(1, 3), {0})
