"""Policies of other families than GPT-2, small and random: trained, resumed, adapted, measured, played with.

pytest tests/test_families.py
"""

import json
import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

import evaluate
import play
import train
from kit.base.runs import read_metrics
from kit.lm.loading import load_tokenizer
from kit.lm.models import MINI, load_policy
from kit.measure.comparison import Model, chosen_pair, load_bench, load_measured

FAMILIES = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {}),
    "gemma3": (
        Gemma3TextConfig,
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    ),
    "gpt_neox": (GPTNeoXConfig, {}),
    "opt": (OPTConfig, {"ffn_dim": 32, "word_embed_proj_dim": 16, "dropout": 0.3}),
    "phi": (PhiConfig, {}),
    "bloom": (BloomConfig, {"n_head": 2, "n_layer": 2}),
}
SMALL = ["--prompts_per_step", "2", "--num_generations", "2", "--max_completion_length", "8", "--eval_every", "0",
         "--learning_rate", "1e-2", "--sentiment_model", "mini"]  # fmt: skip
MEASURED = ["--num_prompts", "2", "--num_samples", "1", "--max_new_tokens", "8", "--sentiment_model", "mini"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, few_validation_prompts, tmp_path_factory):
    """A folder with a random model of the family, `model`, and two runs of it: all weights (resumed), and LoRA."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = load_tokenizer(str(MINI / "policy"))
    config_class, changes = FAMILIES[request.param]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(tokenizer), "bos_token_id": None,
             "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None, "max_position_embeddings": 128}  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**{**sizes, **changes}))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    start = ["--model", str(folder / "model"), "--output_dir", str(folder), *SMALL]
    with pytest.MonkeyPatch.context() as patch:
        for flags in (
            [*start, "--max_steps", "2", "--save_steps", "1", "--run_name", "run"],
            ["--resume", str(folder / "run"), "--max_steps", "3"],
            [*start, "--max_steps", "1", "--use_peft", "--run_name", "lora"],
        ):
            patch.setattr(sys, "argv", ["train.py", *flags])
            train.main()
    return folder


def test_it_is_trained_and_resumed_and_the_kl_begins_at_0(family):
    for name, steps in (("run", 3), ("lora", 1)):
        history = read_metrics(family / name)
        assert history[-1]["step"] == steps
        assert history[0]["val/kl_policy_ref"] == pytest.approx(0, abs=1e-9)
        first = next(m for m in history if "train/kl_policy_ref" in m)
        assert first["step"] == 1 and first["train/kl_policy_ref"] == pytest.approx(0, abs=1e-9)
    assert read_metrics(family / "run")[-1]["val/kl_policy_ref"] > 1e-9


def test_what_was_saved_is_what_was_trained(family):
    """`final/` by plain from_pretrained gives the logits of the kit's own loading, and not those of the start."""
    ids = torch.arange(2, 14).view(1, -1)
    with torch.no_grad():
        plain = (
            AutoModelForCausalLM.from_pretrained(family / "run/final", dtype=torch.float32).eval()(ids).logits
        )
        ours, start, adapted = (
            load_policy(str(family / name))[0].eval()(ids).logits for name in ("run", "model", "lora")
        )
    assert torch.allclose(plain, ours, atol=1e-5)
    assert not torch.allclose(ours, start, atol=1e-4) and not torch.allclose(adapted, start, atol=1e-6)


def test_it_is_measured_and_played_with(family, monkeypatch):
    monkeypatch.setattr(evaluate, "draw", lambda *_: None)  # three seconds, and no family's concern
    paths = {name: str(family / name) for name in ("run", "lora")}
    named = [f"{name}={path}" for name, path in paths.items()]
    evaluate.main([*named, *MEASURED, "--frontier_samples", "0", "--out", str(family / "out")])
    found = {m["name"]: m for m in json.loads((family / "out/comparison.json").read_text())["models"]}
    for name in paths:
        assert not found[name]["error"]
        assert found[name]["metrics"]["kl_policy_ref"]["value"] > 0
    args = evaluate.parse(MEASURED)
    models = [Model(name, path) for name, path in paths.items()]
    bench = load_bench(args, chosen_pair(args, models))
    policies = {"base": (bench.reference, bench.tokenizer)}
    policies |= {name: load_measured(bench, path) for name, path in paths.items()}
    page = play.Play(bench, policies, models)
    *_, last = page.answer("The film", 1.0, 8, 1, 2, 0)
    assert all(name in last for name in ("base", *paths, "best of 2"))
