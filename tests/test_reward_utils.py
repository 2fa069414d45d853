"""Log-probs against an unpadded oracle, KL estimators against exact enumeration, the reward against hand numbers.

python -m pytest tests/test_reward_utils.py
"""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed
from trl.trainer.utils import disable_dropout_in_model

from kit.lm import log_probs
from kit.lm.log_probs import exact_distances, reference_log_probs, token_log_probs
from reward_utils import kl_policy_ref, kl_ref_policy, make_reward_function, sparse_reward

PROMPTS = [[3], [5, 2, 7, 7, 1], [4, 4], [9, 8, 1, 2]]
COMPLETIONS = [[6], [2, 3, 10, 0], [0], [1, 5, 5, 5, 5, 9, 0]]  # one token; EOS (0) last; EOS alone; long


def oracle(model, prompt, completion, temperature=1.0):
    """Row by row, unpadded, the whole model, float64: log softmax(z / T) at the position before each token."""
    model = model.double().eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0] / temperature
    logp = logits.log_softmax(-1)
    return [logp[len(prompt) - 1 + t, token].item() for t, token in enumerate(completion)]


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("chunk_size", [1, 3, 16])
def test_log_probs_equal_the_unpadded_oracle(tiny_gpt2, temperature, chunk_size):
    rows = token_log_probs(tiny_gpt2(), PROMPTS, COMPLETIONS, temperature, chunk_size)
    assert [len(r) for r in rows] == [1, 4, 1, 7]  # every token, the first and EOS included
    for row, prompt, completion in zip(rows, PROMPTS, COMPLETIONS, strict=True):
        assert row == pytest.approx(oracle(tiny_gpt2(), prompt, completion, temperature), rel=1e-4)


def test_dropout_is_off_and_the_mode_is_put_back(tiny_gpt2):
    model = tiny_gpt2().train()
    first = token_log_probs(model, PROMPTS, COMPLETIONS)
    assert model.training and all(m.training for m in model.modules())
    assert token_log_probs(model, PROMPTS, COMPLETIONS) == first
    model.eval()
    token_log_probs(model, PROMPTS, COMPLETIONS)
    assert not model.training


def test_no_graph_is_kept_and_an_exception_restores_the_mode(tiny_gpt2):
    model = tiny_gpt2().train()
    with pytest.raises(IndexError):
        token_log_probs(model, [[1]], [[2] * 40])  # more than the 32 positions
    assert model.training
    with pytest.raises(ValueError, match="at least one prompt token"):
        token_log_probs(model, [[]], [[2]])


def test_an_empty_completion_has_no_log_probs(tiny_gpt2):
    assert token_log_probs(tiny_gpt2(), [[3], [3]], [[], [4]])[0] == []


def test_bf16_autocast_around_the_call_changes_nothing(tiny_gpt2):
    plain = token_log_probs(tiny_gpt2(), PROMPTS, COMPLETIONS)
    model = tiny_gpt2()
    forward = model.forward  # what accelerate does to a prepared model: the top forward autocasts
    model.forward = lambda *a, **k: torch.autocast("cpu", torch.bfloat16)(forward)(*a, **k)
    for row, expected in zip(token_log_probs(model, PROMPTS, COMPLETIONS), plain, strict=True):
        assert row == pytest.approx(expected, rel=1e-6)


def test_lora_reference_is_the_base_and_kl_starts_at_zero(tiny_gpt2):
    set_seed(0)
    base = tiny_gpt2()
    expected = token_log_probs(tiny_gpt2(), PROMPTS, COMPLETIONS)
    model = get_peft_model(base, LoraConfig(r=2, lora_dropout=0.3, fan_in_fan_out=True)).train()
    policy = token_log_probs(model, PROMPTS, COMPLETIONS)
    ref = reference_log_probs(model, None, PROMPTS, COMPLETIONS)
    assert max(kl_policy_ref(policy, ref)) < 1e-5
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=2.0)
    moved = token_log_probs(model, PROMPTS, COMPLETIONS)
    assert max(kl_policy_ref(moved, ref)) > 0.1  # the adapter is seen ...
    for row, base_row in zip(reference_log_probs(model, None, PROMPTS, COMPLETIONS), expected, strict=True):
        assert row == pytest.approx(base_row, rel=1e-5)  # ... and left out of the reference
    assert "lora" in repr(model).lower() and token_log_probs(model, PROMPTS, COMPLETIONS) == moved


def test_without_reference_a_full_model_is_refused(tiny_gpt2):
    with pytest.raises(ValueError, match="LoRA"):
        reference_log_probs(tiny_gpt2(), None, PROMPTS, COMPLETIONS)


# ------------------------------------------------------------------------------------- KL by enumeration

P = (0.5, 0.3, 0.2)  # pi
Q = (0.25, 0.25, 0.5)  # pi_ref
KL_PQ = 0.5 * math.log(2) + 0.3 * math.log(1.2) + 0.2 * math.log(0.4)
KL_QP = 0.25 * math.log(0.5) + 0.25 * math.log(0.25 / 0.3) + 0.5 * math.log(2.5)


def by_definition(p, q, prompt, completion, temperature):
    """sum_t sum_v p(v) log(p(v)/q(v)) in double precision, one prefix at a time."""
    total = 0.0
    for t in range(len(completion)):
        ids = torch.tensor([[*prompt, *completion[:t]]])
        with torch.no_grad():
            log_p, log_q = (
                (m.eval()(ids).logits[0, -1].double() / temperature).log_softmax(-1) for m in (p, q)
            )
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return total


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("collapsed", [False, True])
def test_exact_kl_is_the_sum_over_the_vocabulary(tiny_gpt2, temperature, collapsed):
    """Also for a policy that puts all but 1e-20 on one token, where no sampled token tells how far away it is."""
    policy, reference = tiny_gpt2(seed=1), tiny_gpt2(seed=2)
    if collapsed:
        policy.transformer.ln_f.weight.data.mul_(60.0)
    prompts, completions = [[1, 2, 3], [4], [5, 6]], [[7, 8], [9, 10, 1, 0], [3]]
    own, ref, kl_pq, kl_qp = exact_distances(policy, reference, prompts, completions, temperature)
    assert own == token_log_probs(policy, prompts, completions, temperature)
    assert ref == token_log_probs(reference, prompts, completions, temperature)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        right = by_definition(policy, reference, prompt, completion, temperature)
        assert kl_pq[i] == pytest.approx(right, rel=1e-4)
        right = by_definition(reference, policy, prompt, completion, temperature)
        assert kl_qp[i] == pytest.approx(right, rel=1e-4)
    assert not collapsed or min(kl_qp) > 20.0


def test_exact_kl_of_a_policy_with_itself_is_zero(tiny_gpt2):
    model = tiny_gpt2()
    _, _, kl_pq, kl_qp = exact_distances(model, tiny_gpt2(), [[1, 2], [3]], [[4, 5], [6]])
    assert kl_pq == kl_qp == [0.0, 0.0]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_measured_kl_is_exact_in_expectation(length):
    """Independent tokens: the KL of a completion is `length` times that of a token, in either direction."""
    sequences = list(itertools.product(range(3), repeat=length))
    policy = [[math.log(P[x]) for x in s] for s in sequences]
    ref = [[math.log(Q[x]) for x in s] for s in sequences]
    weights = [math.prod(P[x] for x in s) for s in sequences]
    forward, backward = kl_policy_ref(policy, ref), kl_ref_policy(policy, ref)
    assert math.fsum(w * k for w, k in zip(weights, forward, strict=True)) == pytest.approx(length * KL_PQ)
    assert math.fsum(w * k for w, k in zip(weights, backward, strict=True)) == pytest.approx(length * KL_QP)
    assert min(forward) >= 0 and min(backward) >= 0


def test_measured_kl_by_hand():
    # d = ln 2, w = 1/2: w - 1 + d = ln 2 - 1/2; w ln w - w + 1 = 1/2 - ln(2)/2
    assert kl_policy_ref([[math.log(0.5)]], [[math.log(0.25)]]) == pytest.approx([math.log(2) - 0.5])
    assert kl_ref_policy([[math.log(0.5)]], [[math.log(0.25)]]) == pytest.approx([0.5 - math.log(2) / 2])
    assert kl_policy_ref([[]], [[]]) == [0.0] == kl_ref_policy([[]], [[]])


def test_measured_kl_is_finite_far_away():
    for gap in (-800.0, 800.0):
        assert math.isfinite(kl_policy_ref([[gap]], [[0.0]])[0])
        assert math.isfinite(kl_ref_policy([[gap]], [[0.0]])[0])


# ------------------------------------------------------------------------------------------- the reward


class WordTokenizer:
    """Words to fixed ids; what the reward needs of a tokenizer."""

    def __call__(self, texts):
        return {"input_ids": [[1 + len(w) % 9 for w in text.split()] for text in texts]}


class Student:
    """Hand-checkable stand-ins; both keep what they were given."""

    @staticmethod
    def shaped_reward(scores, completions, prompts=None):
        Student.seen = (scores, completions, prompts)
        return [s - 0.1 * len(c.split()) for s, c in zip(scores, completions, strict=True)]

    @staticmethod
    def kl_penalty_forward(policy, ref, kl_coef=0.1):
        out = [kl_coef * len(row) for row in policy]
        policy.clear()  # a student may wreck the arguments
        return out


def score(texts):
    return [0.9 if "good" in t else 0.2 for t in texts]


def test_score_then_negate_then_shape_then_minus_penalty(tiny_gpt2):
    reward = make_reward_function(
        score,
        WordTokenizer(),
        reward_shaping="shaped",
        kl_type="forward",
        kl_coef=0.5,
        negate=True,
        reference=tiny_gpt2(seed=1),
        student=Student,
    )
    reward.policy = tiny_gpt2()
    logged = {}
    values = reward(
        ["the film", "I saw"],
        ["good", "bad bad bad"],
        [[2], [3, 4, 5]],
        log_metric=logged.__setitem__,
        trainer_state=None,
    )
    # (1 - 0.9) - 0.1 * 1 - 0.5 * 1 = -0.5 ;  (1 - 0.2) - 0.1 * 3 - 0.5 * 3 = -1.0
    assert values == pytest.approx([-0.5, -1.0])
    assert Student.seen == ([pytest.approx(0.1), 0.8], ["good", "bad bad bad"], ["the film", "I saw"])
    assert logged["score"] == pytest.approx(0.55)  # P(positive) itself, not the negated one
    assert logged["shaped"] == pytest.approx((0.0 + 0.5) / 2)
    assert logged["kl_penalty"] == pytest.approx(1.0)
    # measured on the untouched rows, though the student cleared its own
    policy = token_log_probs(tiny_gpt2(), [[4, 5], [2, 4]], [[2], [3, 4, 5]])
    ref = token_log_probs(tiny_gpt2(seed=1), [[4, 5], [2, 4]], [[2], [3, 4, 5]])
    assert logged["kl_policy_ref"] == pytest.approx(np.mean(kl_policy_ref(policy, ref)))
    assert logged["kl_ref_policy"] == pytest.approx(np.mean(kl_ref_policy(policy, ref)))


def test_the_score_sees_the_completion_alone():
    seen = []
    reward = make_reward_function(lambda texts: seen.extend(texts) or [0.5] * len(texts), WordTokenizer())
    reward(["a good film, I"], ["thought so"], [[2, 3]])
    assert seen == ["thought so"]


def test_kl_is_zero_while_policy_and_reference_agree(tiny_gpt2):
    reward = make_reward_function(score, WordTokenizer(), reference=tiny_gpt2())
    reward.policy = tiny_gpt2().train()
    logged = {}
    reward(["the film"] * 2, ["a", "b"], [[2, 3, 0], [4]], log_metric=logged.__setitem__)
    assert logged["kl_policy_ref"] == pytest.approx(0.0, abs=1e-5)
    assert logged["kl_ref_policy"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("sampled_with_log_probs", [True, False])
def test_the_penalty_gets_the_sampled_tokens_at_the_sampling_temperature(tiny_gpt2, sampled_with_log_probs):
    """Traps: the text encoded again (here three tokens for one), and log-probs that know nothing of the temperature."""
    seen = []

    class Spy:
        @staticmethod
        def kl_penalty_forward(policy, ref, kl_coef=0.1):
            seen.extend((policy, ref))
            return [0.0] * len(policy)

    reward = make_reward_function(
        score, WordTokenizer(), kl_type="forward", temperature=1.5, reference=tiny_gpt2(seed=1), student=Spy
    )
    reward.policy = tiny_gpt2()
    own, ref = (oracle(tiny_gpt2(seed=seed), [4, 5], [6, 0], temperature=1.5) for seed in (0, 1))
    reward(
        ["the film"], ["bad bad bad"], [[6, 0]], policy_log_probs=[own] if sampled_with_log_probs else None
    )
    assert seen == [[pytest.approx(own, rel=1e-4)], [pytest.approx(ref, rel=1e-4)]]


@pytest.mark.parametrize("threshold, expected", [(0.8, [0, 1, 1, 0]), (0.81, [0, 0, 1, 0]), (1.0, [0] * 4)])
def test_sparse_is_one_from_the_threshold_on(threshold, expected):
    assert sparse_reward(threshold)([0.79, 0.8, 0.81, 0.0], [""] * 4) == expected


def test_left_padding_gives_the_log_probs_of_the_same_model(tiny_gpt2):
    """TRL passes ids and mask only; without our hook GPT-2 counts the padding and is another model."""
    from kit.lm.models import follow_mask_positions

    model = tiny_gpt2().eval()
    ids = torch.tensor([[0, 0, 0, 5, 2], [3, 1, 4, 5, 2]])
    mask = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    alone = model(torch.tensor([[5, 2]])).logits[0, -1]
    padded = model(input_ids=ids, attention_mask=mask).logits[0, -1]
    assert not torch.allclose(padded, alone, rtol=1e-3)
    follow_mask_positions(model)
    torch.testing.assert_close(
        model(input_ids=ids, attention_mask=mask).logits[0, -1], alone, rtol=1e-4, atol=1e-5
    )
    full = model(torch.tensor([[3, 1, 4, 5, 2]])).logits[0, -1]
    torch.testing.assert_close(
        model(input_ids=ids, attention_mask=mask).logits[1, -1], full, rtol=1e-4, atol=1e-5
    )


def test_disabled_dropout_reaches_gpt2s_attention(tiny_gpt2):
    model = tiny_gpt2().train()
    ids = torch.tensor([[3, 1, 4, 5]])
    assert not torch.equal(model(ids).logits, model(ids).logits)
    disable_dropout_in_model(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(("kl_type", "paid"), [("none", 0.0), ("forward", 1.0), ("backward", 10.0)])
def test_kl_type_calls_the_function_of_its_name(kl_type, paid, tiny_gpt2):
    student = SimpleNamespace(
        kl_penalty_forward=lambda p, r, c: [1.0] * len(p), kl_penalty_backward=lambda p, r, c: [10.0] * len(p)
    )
    reward = make_reward_function(
        score, WordTokenizer(), kl_type=kl_type, reference=tiny_gpt2(seed=1), student=student
    )
    reward.policy = tiny_gpt2()
    assert reward(["the film"], ["good"], [[2]]) == pytest.approx([0.9 - paid])


def test_kl_estimates_far_away_by_hand():
    # d = -10: w = e^10
    assert kl_policy_ref([[-11.0]], [[-1.0]]) == pytest.approx([math.exp(10) - 1 - 10])
    assert kl_ref_policy([[-11.0]], [[-1.0]]) == pytest.approx([math.exp(10) * 10 - math.exp(10) + 1])


def test_the_head_is_fp32_under_autocast(tiny_gpt2):
    lm, hidden = tiny_gpt2(), torch.randn(3, 16)
    plain = log_probs.scaled_logits(lm, hidden, 1.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_probs.scaled_logits(lm, hidden, 1.5), plain)


def test_exact_kl_of_lora_is_to_the_policy_less_its_adapter(tiny_gpt2):
    model = get_peft_model(tiny_gpt2(), LoraConfig(r=2, fan_in_fan_out=True))
    for n, p in model.named_parameters():
        if "lora_B" in n:
            p.data.normal_(std=2.0)
    _, _, pq, _ = exact_distances(model, None, [[1, 2, 3]], [[7, 8]])
    right = by_definition(model, tiny_gpt2(), [1, 2, 3], [7, 8], 1.0)
    assert right > 0.1 and pq[0] == pytest.approx(right, rel=1e-4)
