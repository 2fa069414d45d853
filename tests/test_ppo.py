"""PPO: its formulas against numbers worked out by hand, and the ways in which such a loop goes quietly wrong.

    python -m pytest tests/test_ppo.py

Tiny random GPT-2s, no downloads. The expected values come from the margin of this file, closed forms or
enumeration, never from the code under test.
"""

import itertools
import math
import shutil
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from baselines import ppo
from baselines.ppo import ActorCritic, Batch, PPOArguments
from kit.base.errors import UserError
from kit.base.flags import BaselineArguments
from kit.base.runs import read_config, read_metrics, read_samples
from kit.lm.models import MINI, ROOT, load_policy
from kit.lm.sampling import Completion, sample
from tests.test_reward_utils import oracle

EOS = 0


def tiny_lm(vocab: int = 3, seed: int = 0) -> GPT2LMHeadModel:
    """GPT-2 with its usual dropout of 0.1, and weights large enough for a distribution far from uniform."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=EOS, eos_token_id=EOS,
        initializer_range=0.4,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def tiny_tokenizer(vocab: int = 3) -> PreTrainedTokenizerFast:
    """Words t1, t2, ... and <eos>, which is also the padding, as in GPT-2."""
    words = {"<eos>": EOS} | {f"t{i}": i for i in range(1, vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t1"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def completion(prompt_ids: list[int], completion_ids: list[int]) -> Completion:
    return Completion("", prompt_ids, completion_ids, "", completion_ids[-1] != EOS)


def exact_log_probs(lm: GPT2LMHeadModel, prompt_ids: list[int], completion_ids: list[int]) -> list[float]:
    """One unpadded row, one token after the other: the oracle."""
    lm.eval()
    out = []
    with torch.no_grad():
        for t, token in enumerate(completion_ids):
            logits = lm(tensor([prompt_ids + completion_ids[:t]])).logits[0, -1]
            out.append(logits.log_softmax(-1)[token].item())
    return out


RAGGED = [completion([1], [2, 1, EOS]), completion([2, 1, 1, 2], [2]), completion([1, 2], [1, 1, 1, 2, 2])]


@pytest.fixture(scope="module")
def cpu() -> Accelerator:
    return Accelerator(cpu=True)


# ---------------------------------------------------------------------------------------------- formulas


def test_gae_of_a_hand_worked_episode_and_a_shorter_one_beside_it():
    # gamma = lam = 1/2, so gamma lam = 1/4.
    # Row 0: delta = (1 + .5*1 - .5, 0 + .5*.25 - 1, 2 - .25) = (1, -.875, 1.75)
    #        A_2 = 1.75, A_1 = -.875 + 1.75/4 = -.4375, A_0 = 1 - .4375/4 = .890625
    # Row 1: one token, A = 3 - 1; the 9s are padding and must not matter.
    rewards = tensor([[1.0, 0.0, 2.0], [3.0, 9.0, 9.0]])
    values = tensor([[0.5, 1.0, 0.25], [1.0, 9.0, 9.0]])
    mask = tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    advantages, returns = ppo.gae(rewards, values, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.890625, -0.4375, 1.75], [2.0, 0.0, 0.0]]
    assert returns.tolist() == [[1.390625, 0.5625, 2.0], [3.0, 0.0, 0.0]]


def test_gae_is_the_discounted_sum_of_td_errors_for_ragged_lengths():
    gamma, lam, lengths = 0.99, 0.95, [1, 4, 7, 2]
    g = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(2, 4, 7, generator=g, dtype=torch.float64)
    mask = tensor([[float(t < n) for t in range(7)] for n in lengths], dtype=torch.float64)
    advantages, _ = ppo.gae(rewards, values, mask, gamma, lam)
    for i, n in enumerate(lengths):
        r, v = rewards[i, :n].tolist(), [*values[i, :n].tolist(), 0.0]
        for t in range(n):
            expected = sum((gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k]) for k in range(t, n))
            assert advantages[i, t].item() == pytest.approx(expected, abs=1e-12)


def test_gae_with_lambda_one_is_return_minus_value():
    rewards, values = tensor([[1.0, 2.0, 4.0]]), tensor([[10.0, 20.0, 30.0]])
    advantages, returns = ppo.gae(rewards, values, torch.ones(1, 3), gamma=0.5, lam=1.0)
    assert returns.tolist() == [[1 + 2 / 2 + 4 / 4, 2 + 4 / 2, 4.0]]
    assert advantages.tolist() == [[3.0 - 10, 4.0 - 20, 4.0 - 30]]


def test_whitening_sees_real_tokens_only():
    # Real: 1, 1, 3, 3: mean 2, std 1. Were the padding counted, nothing would be 1.
    x = tensor([[1.0, 1.0, 3.0], [3.0, 500.0, -500.0]])
    mask = tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    white = ppo.whiten(x, mask)
    assert torch.allclose(white, tensor([[-1.0, -1.0, 1.0], [1.0, 0.0, 0.0]]), atol=1e-6)


def test_policy_loss_against_hand_numbers_and_its_closed_form_gradient():
    # ratio 1.5, A 2: min(3, 2.4) = 2.4, cut, gradient 0     ratio 0.5, A 2: min(1, 1.6) = 1, gradient ratio A = 1
    # ratio 0.5, A -1: min(-.5, -.8) = -.8, cut               ratio 1.5, A -1: min(-1.5, -1.2) = -1.5, gradient -1.5
    # The fifth column is padding. Mean over four: 1.1 / 4.
    old = tensor([[-1.0, -2.0, -0.5, -3.0, -1.0]])
    new = (old + tensor([[1.5, 0.5, 0.5, 1.5, 7.0]]).log()).requires_grad_()
    advantages = tensor([[2.0, 2.0, -1.0, -1.0, 50.0]])
    mask = tensor([[1.0, 1.0, 1.0, 1.0, 0.0]])
    loss = ppo.policy_loss(new, old, advantages, mask, clip=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(-1.1 / 4)
    assert torch.allclose(new.grad, tensor([[0.0, -1.0 / 4, 0.0, 1.5 / 4, 0.0]]))


def test_value_loss_against_hand_numbers_and_its_closed_form_gradient():
    # V 1, old .5, G 0: V_clip .7, max(1, .49) = 1, gradient V - G = 1
    # V .6, old 0, G 1: V_clip .2, max(.16, .64) = .64: moved too far already, gradient 0.   1/2 * 1.64 / 2
    values = tensor([[1.0, 0.6, 8.0]], requires_grad=True)
    loss = ppo.value_loss(
        values, tensor([[0.5, 0.0, 0.0]]), tensor([[0.0, 1.0, 0.0]]), tensor([[1.0, 1.0, 0.0]]), clip=0.2
    )
    loss.backward()
    assert loss.item() == pytest.approx(0.41)
    assert torch.allclose(values.grad, tensor([[0.5, 0.0, 0.0]]))


def test_explained_variance_is_one_for_perfect_zero_for_constant_values():
    returns, mask = tensor([[1.0, 2.0, 3.0, 99.0]]), tensor([[1.0, 1.0, 1.0, 0.0]])
    assert ppo.explained_variance(returns, returns, mask) == 1.0
    assert ppo.explained_variance(torch.zeros(1, 4), returns, mask) == 0.0
    # G - V = (0, 0, 1): variance 2/9; Var G = 2/3: 1 - 1/3
    assert ppo.explained_variance(tensor([[1.0, 2.0, 2.0, 0.0]]), returns, mask) == pytest.approx(2 / 3)
    assert math.isnan(ppo.explained_variance(returns, torch.ones(1, 4), mask))


def test_score_is_added_at_the_last_real_token():
    mask = tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    log_probs = tensor([[-1.0, -2.0, 5.0], [-1.0, -1.0, -1.0]])
    ref = tensor([[-3.0, -1.0, 0.0], [-1.0, -1.0, -1.5]])
    rewards = ppo.token_rewards(log_probs, ref, tensor([10.0, 20.0]), mask, kl_coef=0.5)
    assert rewards.tolist() == [[-1.0, 10.5, 0.0], [0.0, 0.0, 19.75]]


# ------------------------------------------------------------------------------------------------- traps


def test_kl_as_a_reward_has_the_gradient_of_the_kl():
    """Trap: k1 in the loss, whose gradient is 0. By enumeration of one token from a vocabulary of 4."""
    z = tensor([0.3, -1.0, 0.7, 0.1], dtype=torch.float64, requires_grad=True)
    ref = tensor([0.1, 0.5, -0.4, 0.0], dtype=torch.float64).log_softmax(-1)
    log_p = z.log_softmax(-1)
    kl_gradient = torch.autograd.grad((log_p.exp() * (log_p - ref)).sum(), z, retain_graph=True)[0]

    rows = log_p.unsqueeze(1)  # every token is a completion of length 1 ...
    p = log_p.detach().exp().unsqueeze(1)
    rewards = ppo.token_rewards(
        rows.detach(), ref.unsqueeze(1), torch.zeros(4), torch.ones(4, 1), kl_coef=1.0
    )
    loss = sum(  # ... weighted by its probability
        p[i, 0]
        * ppo.policy_loss(
            rows[i : i + 1], rows[i : i + 1].detach(), rewards[i : i + 1], torch.ones(1, 1), 0.2
        )
        for i in range(4)
    )
    assert torch.allclose(torch.autograd.grad(loss, z)[0], kl_gradient, atol=1e-12)
    assert kl_gradient.norm() > 0.1


def test_entropy_is_that_of_the_whole_distribution_and_has_its_gradient():
    """Trap: entropy by the sampled token's log-probability, whose expected gradient is 0."""
    z = tensor([0.0, math.log(3.0)], dtype=torch.float64, requires_grad=True)  # p = (1/4, 3/4)
    h = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    value = ppo.entropy(z)
    value.backward()
    assert value.item() == pytest.approx(h)
    # dH/dz_k = -p_k (log p_k + H)
    assert z.grad.tolist() == pytest.approx([-0.25 * (math.log(0.25) + h), -0.75 * (math.log(0.75) + h)])


def test_log_probs_of_ragged_rows_equal_the_unpadded_oracle():
    """Trap: padding shifts GPT-2's positions, and pad == eos hides the real EOS."""
    model = ActorCritic(tiny_lm())
    batch = Batch.of(RAGGED)
    logits, _ = model(batch, 1.0)
    log_probs = ppo.action_log_probs(logits, batch)
    for row, mask, c in zip(log_probs, batch.mask, RAGGED, strict=True):
        assert int(mask.sum()) == len(c.completion_ids)  # EOS is an action
        expected = exact_log_probs(model.lm, c.prompt_ids, c.completion_ids)
        assert row[: len(expected)].tolist() == pytest.approx(expected, abs=1e-5)
        assert not row[len(expected) :].any()


def test_dropout_is_off_so_the_ratio_is_one_before_the_first_update(cpu):
    """Trap: old log-probs with dropout off, new ones with it on."""
    lm = tiny_lm()
    assert lm.config.resid_pdrop == 0.1
    model = ActorCritic(lm)
    model.train()
    settings = PPOArguments(minibatch_size=2, ppo_epochs=1)
    rollout = ppo.collect(model, tiny_lm(seed=1).eval(), RAGGED, [1.0, 0.0, 0.5], settings, cpu)
    stats = ppo.update(model, torch.optim.SGD(model.parameters(), lr=0.0), rollout, settings, cpu, seed=0)
    assert stats["first_ratio_error"] < 1e-5
    assert stats["update_kl_k3"] == pytest.approx(0, abs=1e-6) and stats["clip_fraction"] == 0
    logits, _ = model(rollout.batch[:2], 1.0)  # the very rows, shapes and all: not even rounding differs
    assert torch.equal(ppo.action_log_probs(logits, rollout.batch[:2]), rollout.log_probs[:2])


def test_kl_reward_at_step_zero_is_exactly_zero(cpu):
    scores = [0.25, 0.5, 1.0]
    rollout = ppo.collect(ActorCritic(tiny_lm()), tiny_lm().eval(), RAGGED, scores, PPOArguments(), cpu)
    assert torch.equal(rollout.log_probs, rollout.ref_log_probs)
    assert rollout.rewards.tolist() == [[0, 0, 0.25, 0, 0], [0.5, 0, 0, 0, 0], [0, 0, 0, 0, 1.0]]


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_the_distribution_sampled_is_the_distribution_scored(temperature):
    """Trap: top-k 50 in sampling against the full softmax in scoring. 64 tokens, so a top-50 would show."""
    vocab, n = 64, 6_000
    model = ActorCritic(tiny_lm(vocab))
    with torch.no_grad():
        model.lm.lm_head.weight *= 0.3  # flatter: the 14 tokens a top-50 drops have a tenth of the mass
    drawn = sample(
        model.lm, tiny_tokenizer(vocab), ["t5 t9"], num_samples=n, max_new_tokens=1, temperature=temperature,
        batch_size=n,
    )  # fmt: skip
    counts = torch.bincount(tensor([c.completion_ids[0] for c in drawn]), minlength=vocab)
    with torch.no_grad():
        logits, _ = model(Batch.of(drawn[:1]), temperature)
    p = logits[0, 0].softmax(-1)
    assert p.sort().values[:14].sum() > 0.03
    # Pearson's statistic has mean 63 and standard deviation sqrt(2 * 63) = 11 if both are one distribution
    assert ((counts - n * p) ** 2 / (n * p)).sum() < 63 + 5 * 11


def test_nothing_after_eos_is_trained_and_padding_has_zero_gradient(cpu):
    """Trap: tokens after EOS are trained, and the reward sits on padding."""
    model = ActorCritic(tiny_lm())
    settings = PPOArguments(minibatch_size=3)
    rollout = ppo.collect(model, tiny_lm(seed=1).eval(), RAGGED, [1.0, 0.0, 0.5], settings, cpu)
    batch, mask = rollout.batch, rollout.batch.mask
    logits, values = model(batch, 1.0)
    logits.retain_grad(), values.retain_grad()
    log_probs = ppo.action_log_probs(logits, batch)
    loss = (
        ppo.policy_loss(log_probs, rollout.log_probs, rollout.advantages, mask, 0.2)
        + ppo.value_loss(values, rollout.values, rollout.returns, mask, 0.2)
        - ppo.masked_mean(ppo.entropy(logits), mask)
    )
    loss.backward()
    padding = mask == 0
    assert padding.sum() == 6
    assert not logits.grad[padding].any() and not values.grad[padding].any()
    assert (logits.grad[~padding].abs().sum(-1) > 0).all()
    assert not rollout.rewards[padding].any() and not rollout.advantages[padding].any()


def test_what_stands_in_the_padding_changes_nothing(cpu):
    model, settings = ActorCritic(tiny_lm()), PPOArguments(minibatch_size=3)
    reference = tiny_lm(seed=1).eval()
    rollout = ppo.collect(model, reference, RAGGED, [1.0, 0.0, 0.5], settings, cpu)
    wider = ppo.collect(
        model, reference, [*RAGGED, completion([1], [2] * 9)], [1.0, 0.0, 0.5, 0.0], settings, cpu
    )
    width = rollout.log_probs.shape[1]
    assert torch.allclose(wider.rewards[:3, :width], rollout.rewards, atol=1e-6)
    assert torch.allclose(wider.returns[:3, :width], rollout.returns, atol=1e-6)
    assert not wider.returns[:3, width:].any()


# ------------------------------------------------------------------------------------- a known optimum


def test_ppo_reaches_the_known_optimum_of_a_small_tree(cpu):
    """max E[R] - beta KL(pi||pi_ref) has the solution pi* ~ pi_ref exp(R / beta), here over 7 completions.

    Vocabulary {eos, t1, t2}, at most two tokens: eos; t1 or t2, then any. EOS ends an episode early, the values
    differ from state to state, and the KL has a share in every reward.
    """
    prompt, beta = [1], 0.5
    reward = {(0,): 0.2, (1, 0): 1.0, (1, 1): 0.0, (1, 2): 0.5, (2, 0): 0.0, (2, 1): 0.8, (2, 2): 0.3}
    reference, tokenizer = tiny_lm().eval(), tiny_tokenizer()
    model = ActorCritic(tiny_lm())
    tree = [(0,), *itertools.product((1, 2), (0, 1, 2))]

    def law(lm: GPT2LMHeadModel) -> torch.Tensor:
        return tensor([math.exp(sum(exact_log_probs(lm, prompt, list(x)))) for x in tree])

    p_ref = law(reference)
    assert p_ref.sum().item() == pytest.approx(1, abs=1e-5)
    optimum = p_ref * torch.exp(tensor([reward[x] for x in tree]) / beta)
    optimum /= optimum.sum()
    assert (p_ref - optimum).abs().sum() / 2 > 0.15  # there is something to learn

    settings = PPOArguments(
        minibatch_size=64, gamma=1.0, lam=0.95, kl_coef=beta, entropy_coef=0.0, target_kl=0.05
    )
    steps, lr = 40, 4e-3
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, eps=1e-5)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        drawn = sample(
            model.lm, tokenizer, ["t1"], num_samples=256, max_new_tokens=2, batch_size=256, seed=step
        )
        scores = [reward[tuple(c.completion_ids)] for c in drawn]
        rollout = ppo.collect(model, reference, drawn, scores, settings, cpu)
        ppo.update(model, optimizer, rollout, settings, cpu, seed=step)
    assert (law(model.lm) - optimum).abs().sum() / 2 < 0.05  # total variation


def uniform(vocab=3):
    lm = tiny_lm(vocab)
    with torch.no_grad():
        lm.lm_head.weight.zero_()
    return lm


def made(scores=(1.0, 0.0, 0.5), bias=0.0, **settings):
    cpu = Accelerator(cpu=True)
    model, settings = (
        ActorCritic(uniform()),
        PPOArguments(**{"minibatch_size": 3, "kl_coef": 0.0, **settings}),
    )
    model.value_head.bias.data.fill_(bias)
    return (
        model,
        settings,
        cpu,
        ppo.collect(model, uniform().eval(), RAGGED, list(scores), settings, cpu),
    )


def test_collect_by_hand():
    """Lengths 3, 1, 5; V = 0.5 everywhere, gamma = 1/2, lam = 0: A is -1/4, and R - 1/2 at the last token."""
    *_, rollout = made(bias=0.5, gamma=0.5, lam=0.0)
    assert rollout.returns[0, :3].tolist() == pytest.approx([0.25, 0.25, 1.0])
    assert rollout.returns[2].tolist() == pytest.approx([0.25] * 4 + [0.5])
    # A: -1/4 (6 times), 1/2, -1/2, 0: mean -1/6, mean square (6/16 + 1/4 + 1/4)/9 = 7/72, variance 7/72 - 1/36 = 5/72
    sd = math.sqrt(5 / 72)
    assert rollout.advantages[0, :3].tolist() == pytest.approx(
        [-1 / 12 / sd, -1 / 12 / sd, (2 / 3) / sd], rel=1e-5
    )


def test_the_loss_of_an_update_by_hand():
    """A uniform policy of 3 tokens, V = 0, gamma = lam = 1: G is the score, whitened advantages have mean 0."""
    model, settings, cpu, rollout = made(gamma=1.0, lam=1.0, ppo_epochs=3, value_coef=0.25, entropy_coef=0.5)
    stats = ppo.update(model, torch.optim.SGD(model.parameters(), lr=0.0), rollout, settings, cpu, seed=0)
    assert stats["updates"] == 3
    assert stats["policy_loss"] == pytest.approx(0, abs=1e-6)
    v = 0.5 * (3 * 1 + 5 * 0.25) / 9
    assert stats["value_loss"] == pytest.approx(v)
    assert stats["entropy"] == pytest.approx(math.log(3))
    assert stats["loss"] == pytest.approx(0.25 * v - 0.5 * math.log(3), rel=1e-5)


@pytest.mark.parametrize(("ratio", "loss"), [(1.5, -1.3), (0.5, -0.5)])
def test_clipping_in_an_update_by_hand(ratio, loss):
    """All ratios 1.5, all advantages 1, clip 0.3; values 0 that were -1, returns 1, clip 0.1: V_clip = -0.9."""
    model, settings, cpu, rollout = made(clip_range=0.3, value_clip_range=0.1, ppo_epochs=1, target_kl=0.0)
    mask = rollout.batch.mask
    rollout = replace(
        rollout,
        log_probs=rollout.log_probs - math.log(ratio) * mask,
        advantages=mask,
        values=-mask,
        returns=mask,
    )
    stats = ppo.update(model, torch.optim.SGD(model.parameters(), lr=0.0), rollout, settings, cpu, seed=0)
    assert stats["policy_loss"] == pytest.approx(loss, rel=1e-5)
    assert stats["value_loss"] == pytest.approx(0.5 * 1.9**2, rel=1e-5)
    assert stats["clip_fraction"] == 1.0 and stats["ratio"] == pytest.approx(ratio, rel=1e-5)
    assert stats["update_kl_k3"] == pytest.approx(ratio - 1 - math.log(ratio), rel=1e-4)
    assert stats["update_kl_k1"] == pytest.approx(-math.log(ratio), rel=1e-4)


def test_an_update_stops_at_its_target_kl_and_its_step_is_no_longer_than_the_norm():
    model, settings, cpu, rollout = made(ppo_epochs=5, target_kl=1e-6)
    stats = ppo.update(model, torch.optim.SGD(model.parameters(), lr=1.0), rollout, settings, cpu, seed=0)
    assert stats["updates"] == 1
    model, settings, cpu, rollout = made(ppo_epochs=1, max_grad_norm=1e-3, entropy_coef=0.0)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    stats = ppo.update(model, torch.optim.SGD(model.parameters(), lr=1.0), rollout, settings, cpu, seed=0)
    moved = (torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm().item()
    assert stats["grad_norm"] > 1e-3 and moved == pytest.approx(1e-3, rel=1e-2)
    # 0 is no clipping, as in train.py: SGD at rate 1 moves by the whole gradient
    model, settings, cpu, rollout = made(ppo_epochs=1, max_grad_norm=0.0, entropy_coef=0.0)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    ppo.update(model, torch.optim.SGD(model.parameters(), lr=1.0), rollout, settings, cpu, seed=0)
    moved = (torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm().item()
    assert moved == pytest.approx(stats["grad_norm"], rel=1e-3)


def test_what_is_logged_by_hand():
    """pi gives every token twice what pi_ref gives it: d = ln 2, w = 1/2; 9 tokens in 3 completions."""
    *_, rollout = made(gamma=1.0, lam=1.0)
    rollout = replace(
        rollout,
        ref_log_probs=rollout.log_probs - math.log(2) * rollout.batch.mask,
        values=rollout.returns / 2,
    )
    found = ppo.numbers(rollout, [0.2, 0.4, 0.9], [1.0, 0.0, 0.5], kl_coef=0.1)
    assert found["kl_policy_ref"] == pytest.approx(3 * (math.log(2) - 0.5), rel=1e-5)
    assert found["kl_policy_ref_k1"] == pytest.approx(3 * math.log(2), rel=1e-5)
    assert found["kl_penalty"] == pytest.approx(0.3 * math.log(2), rel=1e-5)
    assert (found["score"], found["shaped"], found["length_mean"]) == pytest.approx((0.5, 0.5, 3.0))
    assert found["reward"] == pytest.approx(0.5) and found["truncated_ratio"] == pytest.approx(2 / 3)
    assert found["return"] == pytest.approx(5.5 / 9)
    assert found["explained_variance"] == pytest.approx(3 / 4)  # G - V = G/2


def test_log_probs_of_rollout_and_update_have_the_temperature():
    cpu, settings = Accelerator(cpu=True), PPOArguments(minibatch_size=3, ppo_epochs=1, temperature=1.5)
    model = ActorCritic(tiny_lm())
    rollout = ppo.collect(model, tiny_lm(seed=1).eval(), RAGGED, [1.0, 0.0, 0.5], settings, cpu)
    for rows, lm in ((rollout.log_probs, tiny_lm()), (rollout.ref_log_probs, tiny_lm(seed=1))):
        for row, c in zip(rows, RAGGED, strict=True):
            right = oracle(lm, c.prompt_ids, c.completion_ids, 1.5)
            assert row[: len(right)].tolist() == pytest.approx(right, rel=1e-4)
    stats = ppo.update(model, torch.optim.SGD(model.parameters(), lr=0.0), rollout, settings, cpu, seed=0)
    assert stats["first_ratio_error"] < 1e-5


# --------------------------------------------------------------------------------------------- the script

TINY = (
    "--model mini --sentiment_model mini --max_completion_length 8 --batch_size 8 --minibatch_size 4 --ppo_epochs 2 "
    "--output_dir"
)


@pytest.fixture
def run_ppo(monkeypatch, tmp_path):
    """The script in this process, writing to tmp_path."""

    def run(flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["ppo", *f"{TINY} {tmp_path} {flags}".split()])
        ppo.main()

    return run


@pytest.mark.slow
def test_ppo_end_to_end_and_resumed(tmp_path, run_ppo, run_script):
    flags = f"{TINY} {tmp_path} --max_steps 4 --save_steps 2 --eval_every 2 --run_name whole"
    done = run_script("-m", "baselines.ppo", *flags.split())
    assert done.returncode == 0, done.stderr
    run = tmp_path / "whole"
    lines = read_metrics(run)
    assert [line["step"] for line in lines if "val/sentiment_mean" in line] == [0, 2, 4]
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4]
    # the rate of the mini models, falling to 0 after the last of four steps
    rates = [line["train/learning_rate"] for line in training]
    assert rates == pytest.approx([5e-5, 3.75e-5, 2.5e-5, 1.25e-5])
    first, second = training[:2]
    assert first["train/kl_policy_ref"] == first["train/kl_policy_ref_k1"] == first["train/kl_penalty"] == 0
    assert second["train/kl_policy_ref"] > 0
    words = AutoTokenizer.from_pretrained(MINI / "policy")("This film")["input_ids"]
    assert (
        load_policy(str(run / "checkpoint-2"))[1]("This film")["input_ids"] == words
    )  # a model like any other
    head = load_file(run / "checkpoint-2" / "value_head.safetensors")
    assert head["weight"].abs().max() > 5e-4  # from zero; Adam's first step is as long as its rate, 1e-3
    assert head["bias"].item() == pytest.approx(
        first["train/shaped"], abs=0.05
    )  # where it started; Adam moves it by 1e-3 at a time
    for line in training:
        assert line["train/first_ratio_error"] < 1e-4
        assert line["train/reward"] == pytest.approx(
            line["train/shaped"] - line["train/kl_penalty"], abs=1e-4
        )
        assert 0 <= line["train/score"] <= 1 and 0 <= line["train/clip_fraction"] <= 1
        assert 0 < line["train/entropy"] < math.log(6144)
    lengths = [8 * line["train/length_mean"] for line in training]
    assert [line["train/generated_tokens"] for line in training] == pytest.approx(
        list(itertools.accumulate(lengths))
    )
    assert read_config(run)["method"] == "ppo"
    assert {"step", "prompt", "completion", "sentiment", "ref_nll", "kl_policy_ref"} <= set(
        read_samples(run)[0]
    )

    AutoTokenizer.from_pretrained(run / "final")
    final = AutoModelForCausalLM.from_pretrained(run / "final").state_dict()
    base = AutoModelForCausalLM.from_pretrained(MINI / "policy").state_dict()
    assert any(not torch.equal(final[name], base[name].float()) for name in final)

    # As if it had been stopped in step 3 or 4
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    shutil.rmtree(cut / "final")
    shutil.rmtree(cut / "checkpoint-4")
    run_ppo(f"--resume {cut}")
    name = "final/model.safetensors"
    a, b = load_file(run / name), load_file(cut / name)
    assert all(torch.equal(a[key], b[key]) for key in a)
    timed = {"train/step_time", "train/tokens_per_second"}
    for was, now in zip(lines, read_metrics(cut), strict=True):
        assert {k: v for k, v in was.items() if k not in timed} == {
            k: v for k, v in now.items() if k not in timed
        }


@pytest.mark.slow
@pytest.mark.usefixtures("few_validation_prompts")
def test_lora_end_to_end_and_resumed(tmp_path, run_ppo):
    flags = "--use_peft --max_steps 3 --save_steps 2 --eval_every 0 --hackable_reward --reward_shaping linear"
    run_ppo(f"{flags} --run_name lora")
    run = tmp_path / "lora"
    training = [line for line in read_metrics(run) if "train/loss" in line]
    assert training[0]["train/kl_policy_ref"] == 0  # the reference is the policy less its adapter
    assert training[-1]["train/kl_policy_ref"] > 0
    assert not list(run.rglob("README.md"))  # PEFT's, an empty form
    adapter = load_file(run / "final" / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    AutoModelForCausalLM.from_pretrained(run / "final")

    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    shutil.rmtree(cut / "final")
    shutil.rmtree(cut / "checkpoint-3")
    run_ppo(f"--resume {cut}")
    again = load_file(cut / "final" / "adapter_model.safetensors")
    assert all(torch.equal(adapter[name], again[name]) for name in adapter)


def test_the_yaml_holds_the_defaults(tmp_path):
    given, defaults = (ppo.PARSER.parse(a) for a in (["--config", "configs/ppo.yaml"], []))
    assert given == defaults
    keys = yaml.safe_load((ROOT / "configs" / "ppo.yaml").read_text(encoding="utf-8"))
    chosen_by_the_model = {"max_steps", "learning_rate"}
    own = vars(PPOArguments()).keys() - vars(BaselineArguments()).keys()
    assert own - set(keys) == chosen_by_the_model


def test_flags_win_over_the_yaml():
    argv = "--config configs/ppo.yaml --kl_coef 0.3".split()
    assert ppo.PARSER.parse(argv).kl_coef == 0.3


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--max_steps 0", "--max_steps 0"),
        ("--batch_size 0", "--batch_size 0"),
        ("--gamma 1.5", "--gamma"),
        ("--kl_coef -1", "--kl_coef -1"),
        ("--temperature 0", "--temperature"),
        ("--clip_rang 0.1", "did you mean --clip_range"),
        ("--reward_shaping cubic", "invalid choice"),
        ("--merge_lora", "--use_peft"),
        ("--resume nowhere", "nowhere"),
        ("--model ./nowhere", "nowhere"),
    ],
)
def test_a_users_error_is_one_sentence(flags, says, tmp_path, run_ppo):
    with pytest.raises(UserError, match=says) as error:
        run_ppo(flags)
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())  # and leaves no empty run behind
