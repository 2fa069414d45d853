"""What this kit needs of TRL's inside. After an upgrade of TRL this file says first what has moved.

python -m pytest tests/test_canary.py
"""

import inspect
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import train as script
from kit.lm.models import MINI
from kit.train.credit import CreditTrainer
from kit.train.hooks import METRIC_NAMES
from reward_utils import make_reward_function


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_calculate_rewards", ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_compute_loss", ["self", "model", "inputs"]),
    ],
)
def test_the_private_methods_that_token_credit_overrides(method, parameters):
    assert method in vars(CreditTrainer)
    assert list(inspect.signature(getattr(GRPOTrainer, method)).parameters) == parameters


def test_every_setting_that_grpo_config_names_exists(monkeypatch):
    seen = {}
    monkeypatch.setattr(script, "GRPOConfig", lambda **settings: seen.update(settings))
    script.grpo_config(script.PARSER.parse([]))
    assert seen.keys() <= vars(GRPOConfig(use_cpu=True, bf16=False)).keys()


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    """One real step on a tiny GPT-2 with --beta: what TRL logged, and how it called rollout_func and the model."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MINI / "policy")
    sizes = {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
    folder = tmp_path_factory.mktemp("policy")
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    policy, reference = (GPT2LMHeadModel.from_pretrained(folder) for _ in range(2))
    student = SimpleNamespace(kl_penalty_forward=lambda p, r, c: [0.5] * len(p))
    reward = make_reward_function(
        lambda texts: [len(text) % 7 / 7 for text in texts],
        tokenizer,
        kl_type="forward",
        reference=reference,
        student=student,
    )
    args = script.PARSER.parse(["--beta", "0.1", "--max_completion_length", "4", "--output_dir", str(folder)])
    config = script.grpo_config(args)
    config.max_steps, config.learning_rate, config.save_strategy = 1, 1e-3, "no"
    trainer = script.make_trainer(policy, tokenizer, reward, ["The film"] * 8, args, config)
    reward.policy = policy
    calls = {"rollout": [], "head": []}
    sampler, forward = trainer.rollout_func, policy.forward

    def rollouts(*given, **named):
        calls["rollout"].append((given, named))
        return sampler(*given, **named)

    def head(*given, **named):
        calls["head"].append(named)
        return forward(*given, **named)

    trainer.rollout_func, policy.forward = rollouts, head
    trainer.train()
    return SimpleNamespace(trainer=trainer, logs=trainer.state.log_history, calls=calls)


def test_every_metric_that_we_rename_is_logged(step):
    assert METRIC_NAMES.keys() <= step.logs[0].keys()


def test_the_rollout_function_is_given_the_prompts_and_the_trainer(step):
    ((given, named),) = step.calls["rollout"]
    assert given == (["The film"] * 64, step.trainer) and not named


def test_the_head_is_asked_for_the_log_probs_of_labels(step):
    trained = [call for call in step.calls["head"] if call.get("fused_lm_head")]
    assert trained and all({"input_ids", "attention_mask", "labels"} <= call.keys() for call in trained)
