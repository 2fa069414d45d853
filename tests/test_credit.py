"""kit/train/credit.py: values and advantages by hand, the loss and its gradient by enumeration, and real runs.

pytest tests/test_credit.py
"""

import itertools
import shutil
import sys
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import tensor
from trl import GRPOTrainer

import train as script
from kit.base.runs import read_metrics
from kit.lm.models import MINI
from kit.train.credit import CreditTrainer, credit, later, prefix_values
from tests.test_reward_utils import by_definition, oracle

# ------------------------------------------------------------------------------------ by hand


@pytest.mark.parametrize(
    ("trace", "expected"),
    [(0.0, [0.1, -0.4, 0.8]), (0.5, [0.1, 0.0, 0.8]), (1.0, [0.5, 0.4, 0.8])],
)
def test_a_block_is_credited_with_its_own_difference_and_less_and_less_of_the_later_ones(trace, expected):
    # differences +0.1, -0.4, +0.8; with 0.5: 0.8, then -0.4 + 0.4, then 0.1 + 0
    values = np.array([[0.5, 0.6, 0.2, 1.0]])
    assert credit(values, trace)[0] == pytest.approx(expected, abs=1e-12)


def test_values_are_the_fit_to_the_others_and_the_score_so_far():
    rewards = np.array([[0.0, 1.0], [1.0, 1.0]])  # two groups of two
    so_far = np.full((2, 2, 1), np.nan)
    so_far[0, 0, 0], so_far[1, 1, 0] = 0.2, 0.6  # only these two had not ended after the first block
    values = prefix_values(rewards, so_far)
    # V_0: others 1, 0, 1, 1, mean 3/4: Sxx = 3/4, Sxy = (1/4)(-3/4) + (-3/4)(1/4) + 2 (1/4)(1/4) = -1/4;
    # the slope is Sxy / (Sxx + 1/2) = -1/5
    assert values[..., 0].ravel() == pytest.approx([0.7, 0.9, 0.7, 0.7], rel=1e-9)
    # V_1: y = 0, 1 with x = (1, 0.2), (1, 0.6): the first of x is constant; Sxx = 0.08, Sxy = 0.2
    slope = 0.2 / 0.58
    assert values[0, 0, 1] == pytest.approx(0.5 - 0.2 * slope, rel=1e-9)
    assert values[1, 1, 1] == pytest.approx(0.5 + 0.2 * slope, rel=1e-9)
    # one that has ended has its reward, and so has everyone at the end
    assert (values[0, 1, 1], values[1, 0, 1]) == (1.0, 1.0)
    assert np.array_equal(values[..., 2], rewards)


def test_the_others_of_the_group_count_after_every_block():
    # others 1, 0, 0, 1 against rewards 0, 1, 1, 0: Sxx = 1, Sxy = -1, slope -1 / (1 + 1/2); the scores say nothing
    values = prefix_values(np.array([[0.0, 1.0], [1.0, 0.0]]), np.full((2, 2, 1), 0.3))
    assert values[..., 1].ravel() == pytest.approx([1 / 6, 5 / 6, 5 / 6, 1 / 6], rel=1e-9)


def bare_trainer(**attributes) -> CreditTrainer:
    """A `CreditTrainer` without a training around it."""
    trainer = CreditTrainer.__new__(CreditTrainer)
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def loss_trainer(policy, reference, price: float, temperature: float = 1.0) -> CreditTrainer:
    """A trainer with what its loss needs."""
    return bare_trainer(
        reward_funcs=[SimpleNamespace(policy=policy, reference=reference)],
        temperature=temperature,
        price=price,
        _metrics={"train": defaultdict(list)},
        accelerator=SimpleNamespace(autocast=nullcontext),
    )


def test_completions_of_one_block_are_scored_once_and_nothing_empty_is():
    """A student's shaped_reward is never called with a batch of nothing."""
    trainer = bare_trainer(
        reward_funcs=[SimpleNamespace(base_reward=None)],
        processing_class=SimpleNamespace(batch_decode=lambda rows, skip_special_tokens: []),
        num_generations=2,
        credit_lambda=1.0,
    )
    advantages = trainer._credit(np.array([0.0, 1.0]), ["p", "p"], [[1] * 4, [2] * 2])
    # others: 1 and 0, slope -1/2 / (1/2 + 1/2) = -1/2, so V_0 = 1/4 and 3/4
    assert advantages.tolist() == [[-0.25] * 4, [0.25] * 4]


def test_every_token_of_a_block_gets_its_credit_and_the_texts_so_far_are_scored_without_their_prompts():
    asked = []

    def base_reward(texts, prompts):
        asked.extend(zip(texts, prompts, strict=True))
        return [], [float(len(t)) for t in texts]

    trainer = bare_trainer(
        reward_funcs=[SimpleNamespace(base_reward=base_reward)],
        processing_class=SimpleNamespace(
            batch_decode=lambda rows, skip_special_tokens: ["x" * len(r) for r in rows]
        ),
        num_generations=2,
        credit_lambda=1.0,
    )
    advantages = trainer._credit(np.array([0.0, 1.0]), ["p", "p"], [[1] * 9, [2] * 4])
    # nine tokens: looks after 4 and 8; four tokens: none
    assert asked == [("xxxx", "p"), ("x" * 8, "p")]
    assert advantages.shape == (2, 9)
    # others: 1 and 0, slope -1/2 / (1/2 + 1/2) = -1/2, so V_0 = 1/4 and 3/4; alone, V_1 and V_2 of the first are its 0
    assert advantages[0].tolist() == pytest.approx([-0.25] * 4 + [0.0] * 5)
    assert advantages[1, :4].tolist() == pytest.approx([0.25] * 4)


def test_completions_of_one_block_are_paid_against_the_others_of_their_group():
    trainer = bare_trainer(
        reward_funcs=[SimpleNamespace(base_reward=lambda texts, prompts: ([], []))],
        processing_class=SimpleNamespace(batch_decode=lambda rows, skip_special_tokens: []),
        num_generations=2,
        credit_lambda=0.9,
    )
    # no look at all; V_0 as above, 1/4 and 3/4
    advantages = trainer._credit(np.array([0.0, 1.0]), ["p", "p"], [[1] * 4, [2]])
    assert advantages[0].tolist() == pytest.approx([-0.25] * 4) and advantages[1, 0] == pytest.approx(0.25)


def test_lambda_and_price_are_those_that_were_given_and_trls_own_kl_term_is_off(monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "__init__", lambda self, args: setattr(self, "args", args))
    trainer = CreditTrainer(0.7, SimpleNamespace(beta=0.3))
    assert (trainer.credit_lambda, trainer.price, trainer.beta) == (0.7, 0.3, 0.0)


# ------------------------------------------------------------------------------------ the loss


def test_what_comes_later_is_compared_with_the_others_that_are_as_long():
    k = torch.tensor([1.0, 2.0, 4.0, 3.0, 5.0, 0.5])  # completions of 3, 2 and 1 tokens
    # what comes later: 6 4 0, 5 0, 0; at the first place against (5 + 0)/2, (6 + 0)/2, (6 + 5)/2; at the second
    # 4 against 0 and 0 against 4; at the third nobody else is left
    assert later(k, [3, 2, 1]).tolist() == pytest.approx([3.5, 4.0, 0.0, 2.0, -4.0, -5.5])
    assert later(k[:3], [3]).tolist() == [6.0, 4.0, 0.0]


def test_the_expected_gradient_is_that_of_the_objective_by_enumeration(tiny_gpt2):
    """All completions of two tokens over a vocabulary of 5, each with its probability, an advantage a token.

    The expectation over pi of the loss's gradient is that of -sum_x pi(x) sum_t A_t log pi(x_t) [pi(x) held] plus
    beta KL(pi||pi_ref) = beta sum_x pi(x) log(pi(x) / pi_ref(x)), nothing held.
    """
    policy, reference = tiny_gpt2(seed=1, vocab_size=5).eval(), tiny_gpt2(seed=2, vocab_size=5).eval()
    beta, prompt = 0.3, [1, 2, 3]
    trainer = loss_trainer(policy, reference, price=beta)

    def log_softmax(model, ids):
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)

    expected = torch.zeros(())
    own, ref = log_softmax(policy, prompt), log_softmax(reference, prompt).detach()
    for first in range(5):
        own2, ref2 = log_softmax(policy, [*prompt, first]), log_softmax(reference, [*prompt, first]).detach()
        for second in range(5):
            log_p, log_q = own[first] + own2[second], ref[first] + ref2[second]
            paid = (0.7 + first / 10) * own[first] + (0.4 + second / 10) * own2[second]
            expected = expected - log_p.exp().detach() * paid + beta * log_p.exp() * (log_p - log_q)
    expected.backward()
    wanted = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()

    for first, second in itertools.product(range(5), repeat=2):
        with torch.no_grad():
            p = log_softmax(policy, prompt)[first] + log_softmax(policy, [*prompt, first])[second]
        # padded as TRL pads: prompts on the left, completions on the right
        inputs = {
            "prompt_ids": torch.tensor([[0, *prompt]]),
            "prompt_mask": torch.tensor([[0, 1, 1, 1]]),
            "completion_ids": torch.tensor([[first, second, 0]]),
            "completion_mask": torch.tensor([[1, 1, 0]]),
            "advantages": torch.tensor([[0.7 + first / 10, 0.4 + second / 10, 9.0]]),
            "num_items_in_batch": torch.tensor(1.0),
        }
        (p.exp() * trainer._compute_loss(policy, inputs)).backward()
    for parameter, grad in zip(policy.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, grad, rtol=1e-4, atol=1e-6 * grad.abs().max().item() + 1e-8)
    assert len(trainer._metrics["train"]["kl"]) == 25


def test_a_look_moves_the_value_by_its_score():
    """Two groups of two completions of 5 tokens, so one look at each, which sees 0.2 or 0.6; lambda 0."""
    looks = {"aaaa": 0.2, "bbbb": 0.6, "cccc": 0.2, "dddd": 0.6}
    trainer = bare_trainer(
        reward_funcs=[SimpleNamespace(base_reward=lambda texts, prompts: ([], [looks[t] for t in texts]))],
        processing_class=SimpleNamespace(
            batch_decode=lambda rows, skip_special_tokens: ["abcd"[r[0]] * len(r) for r in rows]
        ),
        num_generations=2,
        credit_lambda=0.0,
    )
    asked = []
    base = trainer.reward_funcs[0].base_reward
    trainer.reward_funcs[0].base_reward = lambda t, p: (asked.extend(p), base(t, p))[1]
    adv = trainer._credit(np.array([0.0, 0.0, 1.0, 1.0]), ["p", "p", "q", "q"], [[i] * 5 for i in range(4)])
    # rewards 0 0 | 1 1, others the same: mean 1/2, Sxx = Sxy = 1: V_0 = 1/2 -+ 1/2 * 1 / 1.5 = 1/6, 5/6
    # V_1: x = (others, look), centred (-+1/2, -+0.2): cross products S_11 = 1, S_12 = 0, S_22 = 0.16; Sxy = (1, 0);
    # slopes 1/1.5 and 0: V_1 = V_0.
    assert adv[:, 0].tolist() == pytest.approx([0.0] * 4, abs=1e-6)
    assert adv[:, 4].tolist() == pytest.approx([-1 / 6, -1 / 6, 1 / 6, 1 / 6], rel=1e-5)
    assert asked == ["p", "p", "q", "q"]
    adv = trainer._credit(np.array([0.0, 1.0, 0.0, 1.0]), ["p", "p", "q", "q"], [[i] * 5 for i in range(4)])
    # others 1 0 1 0: V_0 slope -1/1.5, V_0 = 1/2 - (1/2)(2/3) = 1/6 , 5/6. With the looks centred -0.2, 0.2, -0.2, 0.2:
    # S = [[1.5, -0.4], [-0.4, 0.66]], Sxy = (-1, 0.4); det 0.83; slopes (-0.66 + 0.16)/0.83, (0.6 - 0.4)/0.83
    a, b = -0.5 / 0.83, 0.2 / 0.83
    v1 = 0.5 + 0.5 * a - 0.2 * b
    assert adv[:, 0].tolist() == pytest.approx([v1 - 1 / 6, 1 / 6 - v1] * 2, rel=1e-4)
    assert adv[:, 4].tolist() == pytest.approx([-v1, v1] * 2, rel=1e-4)


def batch_of_two():
    """Two completions, of three tokens and of one, padded as TRL pads."""
    return {
        "prompt_ids": tensor([[1, 2], [0, 3]]),
        "prompt_mask": tensor([[1, 1], [0, 1]]),
        "completion_ids": tensor([[4, 5, 6], [7, 0, 0]]),
        "completion_mask": tensor([[1, 1, 1], [1, 0, 0]]),
        "advantages": tensor([[1.0, 2.0, 4.0], [8.0, 90.0, 90.0]]),
        "num_items_in_batch": tensor(2.0),
    }


def test_every_row_has_its_own_advantages_and_the_loss_is_a_mean_over_the_items(tiny_gpt2):
    policy, reference = tiny_gpt2(seed=1).eval(), tiny_gpt2(seed=2).eval()
    free = loss_trainer(policy, reference, price=0.0)
    assert free._compute_loss(policy, batch_of_two()).item() == pytest.approx(-(1 + 2 + 4 + 8) / 2)
    warm = loss_trainer(policy, reference, price=1.0, temperature=2.0)
    warm._compute_loss(policy, batch_of_two())
    total = by_definition(policy, reference, [1, 2], [4, 5, 6], 2.0) + by_definition(
        policy, reference, [3], [7], 2.0
    )
    assert warm._metrics["train"]["kl"][0] == pytest.approx(total / 4, rel=1e-4)
    nll = (
        -sum(oracle(tiny_gpt2(seed=1), [1, 2], [4, 5, 6], 2.0)) - oracle(tiny_gpt2(seed=1), [3], [7], 2.0)[0]
    )
    assert warm._metrics["train"]["entropy"][0] == pytest.approx(nll / 4, rel=1e-4)


def test_each_token_pushes_by_its_own_advantage(tiny_gpt2):
    policy, reference = tiny_gpt2(seed=1).eval(), tiny_gpt2(seed=2).eval()
    loss_trainer(policy, reference, price=0.0)._compute_loss(policy, batch_of_two()).backward()
    got = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    lp = policy(tensor([[1, 2, 4, 5, 6]])).logits[0, 1:4].log_softmax(-1)
    lq = policy(tensor([[3, 7]])).logits[0, 0].log_softmax(-1)
    (-(1 * lp[0, 4] + 2 * lp[1, 5] + 4 * lp[2, 6] + 8 * lq[7]) / 2).backward()
    for g, p in zip(got, policy.parameters(), strict=True):
        assert torch.allclose(g, p.grad, rtol=1e-4, atol=1e-5 * p.grad.abs().max().item() + 1e-8)


# ------------------------------------------------------------------------------------ real runs, tiny

TINY = "--model mini --sentiment_model mini --max_completion_length 10 --eval_every 0 --prompts_per_step 2"
TINY += " --num_generations 4 --max_steps 2 --credit token --beta 0.1"


@pytest.fixture
def train(few_validation_prompts, monkeypatch):
    """train.py in this process."""

    def run(*flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py", *flags])
        script.main()

    return run


def trained_lines(folder) -> list[dict]:
    """Of two steps: the KL in the loss is 0 before the first update, and not after it."""
    lines = [m for m in read_metrics(folder) if "train/trl_kl" in m]
    assert [m["step"] for m in lines] == [1, 2]
    assert lines[0]["train/trl_kl"] == pytest.approx(0, abs=1e-6) and lines[1]["train/trl_kl"] > 0
    return lines


def test_a_lora_run_with_token_credit_trains_and_resumes_to_the_same_bytes(train, tmp_path):
    run, weights = tmp_path / "r", "final/adapter_model.safetensors"
    flags = ["--use_peft", "--save_steps", "1", "--output_dir", str(tmp_path), "--run_name", "r"]
    train(*TINY.split(), *flags)
    trained = (run / weights).read_bytes()
    lines = trained_lines(run)
    # the last checkpoint and what came of it are taken away, and made again
    shutil.rmtree(run / "checkpoint-2")
    shutil.rmtree(run / "final")
    train("--resume", str(run))
    assert (run / weights).read_bytes() == trained
    assert trained_lines(run)[1]["train/trl_kl"] == lines[1]["train/trl_kl"]


def test_all_weights_train_with_token_credit_whatever_the_reward_is(train, tmp_path):
    shaping = ["--negate_reward", "--reward_shaping", "sparse", "--run_name", "r"]
    train(*TINY.split(), *shaping, "--output_dir", str(tmp_path))
    trained_lines(tmp_path / "r")
    before, after = (
        load_file(folder / "model.safetensors") for folder in (MINI / "policy", tmp_path / "r/final")
    )
    assert any(not torch.equal(after[name], before[name].float()) for name in after)
