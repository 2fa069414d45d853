"""kit/train/trl_settings.py: what `trl:` in a --config file hands on to TRL, and what is refused.

python -m pytest tests/test_trl_settings.py
"""

import json
import re

import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import train as script
from kit.base.errors import UserError
from kit.lm.models import MINI
from kit.train.trl_settings import extra_settings


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("top_k: 5", "top_k cannot be set: it changes what is sampled but not the log-probs"),
        ("entropy_coef: 0.1", "needs the entropy of every token"),
        ("push_to_hub: true", "push_to_hub cannot be set"),
        ("trust_remote_code: true", "code that comes with a model is never run here"),
        ("gradient_checkpointing: true", "its name is activation_checkpointing now"),
        ("scale_rewards: false", "scale_rewards is a flag of the kit"),
        ("epsilonn: 0.1", "epsilonn is no setting of TRL's; did you mean epsilon?"),
        ("epsilon: much", "invalid float value: 'much'"),
        ("use_vllm: true", "vLLM is not installed"),
        ("optim: adamw_bnb_8bit", "TRL refuses these settings"),
        ("5", "must be a mapping"),
    ],
)
def test_settings_of_trls_that_are_refused(setting, says, tmp_path):

    file = tmp_path / "a.yaml"
    file.write_text(f"trl:\n  {setting}\n")
    with pytest.raises(UserError, match=re.escape(says)):
        script.make_trainer(
            GPT2LMHeadModel(GPT2Config(vocab_size=8192, n_embd=8, n_layer=1, n_head=1)),
            AutoTokenizer.from_pretrained(MINI / "policy"),
            lambda completions, **_: [0.0] * len(completions),
            ["a"] * 64,
            args := script.PARSER.parse(["--config", str(file)]),
            script.grpo_config(args),
        )


def test_settings_of_trls_that_are_handed_on(tmp_path):

    file = tmp_path / "a.yaml"
    file.write_text(
        "trl: {adam_epsilon: 1e-7, epsilon: 0.3, activation_checkpointing: true, warmup_steps: 3}\n"
    )
    args = script.PARSER.parse(["--config", str(file)])
    config = script.grpo_config(args)
    assert (config.adam_epsilon, config.epsilon, config.warmup_steps) == (1e-7, 0.3, 3)
    assert config.activation_checkpointing and config.weight_decay == 0
    args.credit = "token"
    with pytest.raises(UserError, match="--credit token has a loss of its own: leave out epsilon under trl"):
        script.grpo_config(args)


@pytest.mark.parametrize(
    "name",
    [
        *("top_entropy_quantile", "entropy_coef", "use_adaptive_entropy", "num_train_epochs", "eval_steps"),
        *("resume_from_checkpoint", "disable_dropout", "fp16", "save_only_model", "ignore_data_skip"),
        *("use_transformers_continuous_batching", "cache_implementation", "sync_ref_model", "push_to_hub"),
        *("cast_lm_head_to_fp32", "top_k", "top_p", "min_p", "repetition_penalty", "model_init_kwargs"),
        *(
            "multi_objective_aggregation",
            "hub_token",
            "neftune_noise_alpha",
            "logging_steps",
            "auto_find_batch_size",
        ),
    ],
)
def test_what_would_make_numbers_wrong_or_run_foreign_code_is_refused(name):
    with pytest.raises(UserError, match=f"trl: {name} cannot be set: "):
        extra_settings(json.dumps({name: 1}), set(), "completion")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_iterations", 2),
        ("steps_per_generation", 8),
        ("importance_sampling_level", "sequence"),
        ("off_policy_mask_threshold", 0.5),
        ("epsilon_high", 0.3),
        ("delta", 2),
        ("use_bias_correction_kl", False),
        ("mask_truncated_completions", True),
        ("sapo_temperature_neg", 2),
    ],
)
def test_settings_of_the_loss_are_handed_on_but_not_beside_token_credit(name, value):
    text = json.dumps({name: value})
    assert extra_settings(text, set(), "completion") == {name: value}
    with pytest.raises(UserError, match=f"leave out {name} under trl"):
        extra_settings(text, set(), "token")
