"""SFT: what is kept, which tokens carry loss, and that the labels of IMDB's sorted file do not leak through.

python -m pytest tests/test_sft.py
"""

import sys
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from baselines import ppo, sft
from data import load_imdb, load_prompts
from kit.base.errors import UserError
from kit.base.flags import BaselineArguments
from kit.base.runs import read_config, read_metrics
from kit.lm.models import MINI, load_policy
from kit.lm.sampling import Completion
from kit.train.session import Session, reward_without_penalty

GOOD, BAD = "A wonderful film, number", "A dreadful film, number"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MINI / "policy")


@pytest.fixture
def sorted_imdb(tmp_path):
    """Like the real file: all negative reviews first. 20 of each."""
    texts = [f"{BAD} {i}<br />" for i in range(20)] + [f"{GOOD} {i}" for i in range(20)]
    table = pa.table({"text": texts, "label": [0] * 20 + [1] * 20})
    path = tmp_path / "reviews.parquet"
    pq.write_table(table, path)
    return str(path)


def completion(prompt_ids: list[int], completion_ids: list[int]) -> Completion:
    return Completion("", prompt_ids, completion_ids, "", truncated=True)


# --------------------------------------------------------------------------------------------------- data


def test_the_best_of_each_group_is_kept():
    rewards = [0.1, 0.9, 0.3, 0.7, 0.2, 0.7]  # two prompts, three completions each; of equals the first
    assert sft.best_of_n(rewards, n=3) == [1, 3]


def test_loss_is_on_the_sampled_tokens_alone_eos_included():
    example = sft.completion_example(completion([7, 8], [5, 6, 0]))
    assert example == {"input_ids": [7, 8, 5, 6, 0], "labels": [-100, -100, 5, 6, 0]}


def test_no_eos_is_added_to_a_truncated_completion():
    assert sft.completion_example(completion([7], [5, 6]))["input_ids"] == [7, 5, 6]


def test_sorted_imdb_gives_the_wanted_reviews_shuffled(sorted_imdb, tokenizer):
    """Trap: a slice of the sorted file is all negative."""
    texts, labels = load_imdb(sorted_imdb)
    for slice_of in (labels[:10], labels[10:20]):
        assert sum(slice_of) == 5  # every slice of even length is balanced ...
    assert all((label == 1) == text.startswith(GOOD) for text, label in zip(texts, labels, strict=True))
    assert [t for t in texts if t.startswith(GOOD)] != [f"{GOOD} {i}" for i in range(20)]  # ... and shuffled
    for wanted, start in ((1, GOOD), (0, BAD)):
        examples = sft.review_examples(texts, labels, wanted, tokenizer, max_length=64, limit=8)
        decoded = [tokenizer.decode(e["input_ids"], skip_special_tokens=True) for e in examples]
        assert len(decoded) == 8 and all(text.startswith(start) for text in decoded)
        assert not any("<br" in text for text in decoded)


def test_prompts_from_sorted_imdb_are_not_all_negative(sorted_imdb):
    """Trap: training prompts from the first rows are all starts of negative reviews."""
    prompts = load_prompts(f"imdb:{sorted_imdb}", limit=16)
    starts = {prompt.split()[1] for prompt in prompts if len(prompt.split()) > 1}
    assert starts == {"wonderful", "dreadful"}


def test_reviews_are_cut_to_the_context_and_only_whole_ones_end_with_eos(tokenizer):
    short, long = "Fine.", "fine " * 500
    examples = sft.review_examples([short, long], [1, 1], 1, tokenizer, max_length=32, limit=10)
    assert examples[0]["input_ids"] == [*tokenizer(short)["input_ids"], tokenizer.eos_token_id]
    assert len(examples[1]["input_ids"]) == 32
    assert tokenizer.eos_token_id not in examples[1]["input_ids"]
    assert all(e["labels"] == e["input_ids"] for e in examples)


def test_the_reward_sees_the_completion_without_its_prompt():
    """Trap: the reward is computed on prompt + completion, and the prompt's words are rewarded."""
    seen = []

    def score(texts):
        seen.extend(texts)
        return [0.25] * len(texts)

    reward = reward_without_penalty(
        BaselineArguments(reward_shaping="linear", negate_reward=True), score, tokenizer=None
    )
    assert reward.base_reward([" was dull."], ["The wonderful film"]) == ([0.25], [0.75])
    assert seen == [" was dull."]


def test_shaped_reward_is_the_composite():
    # 36 words, 3 of them different: R = 0.8 - 0.5 * (1 - 3/36), length inside the target, in every variant too
    reward = reward_without_penalty(BaselineArguments(), lambda texts: [0.8] * len(texts), tokenizer=None)
    assert reward.base_reward(["a good film " * 12], ["x"])[1] == pytest.approx([0.8 - 0.5 * 33 / 36])


def test_the_threshold_of_the_sparse_reward_is_the_flags():
    args = BaselineArguments(reward_shaping="sparse", sparse_threshold=0.9)
    reward = reward_without_penalty(args, lambda texts: [0.85, 0.95], tokenizer=None)
    assert reward.base_reward(["a", "b"], ["x", "x"])[1] == [0.0, 1.0]


# ----------------------------------------------------------------------------------------------- the loss


def test_the_trainers_loss_is_the_unpadded_mean_over_completion_tokens(tmp_path):
    """Padding on the right, of rows of unequal length, in the trainer's own batches: an independent sum must agree."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=8192, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
    )
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(MINI / "policy").save_pretrained(tmp_path / "model")
    model, tokenizer = load_policy(str(tmp_path / "model"))  # dropout off, although the config says 0.1
    rows = [
        completion([3], [4, 5, 0]),
        completion([6, 7, 8, 9, 10, 11], [12, 13]),
        completion([14, 15], [16] * 9),
    ]
    examples = [sft.completion_example(row) for row in rows]

    nll, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, len(row.prompt_ids) - 1 : -1]
        nll += cross_entropy(logits, torch.tensor(row.completion_ids), reduction="sum").item()
        count += len(row.completion_ids)

    settings = sft.SFTArguments(batch_size=3, learning_rate=1e-3)
    session = Mock(stopping=lambda: False, due=lambda step: False)
    callback = sft.RoundCallback(session, model, before=10, total=11)
    before = model.transformer.h[0].attn.c_attn.weight.clone()
    sft.fine_tune(model, tokenizer, examples, settings, epochs=1, seed=0, folder=tmp_path, callback=callback)
    session.check.assert_called_once_with(11, loss=pytest.approx(nll / count, abs=1e-4))
    assert session.log.call_args.args[0] == 11 and session.show.call_args.args[:2] == (11, 11)
    assert not torch.equal(model.transformer.h[0].attn.c_attn.weight, before)


class Seen(Exception):
    pass


@pytest.mark.parametrize(("flags", "wanted"), [("", 1), ("--negate_reward", 0)])
def test_reviews_of_the_class_that_the_reward_wants(flags, wanted, tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "load_imdb", lambda source: (["bad", "good"], [0, 1]))

    def examples(texts, labels, label, *_):
        raise Seen(label)

    monkeypatch.setattr(sft, "review_examples", examples)
    argv = f"sft --model mini --sentiment_model mini --data x.parquet --output_dir {tmp_path} {flags}"
    monkeypatch.setattr(sys, "argv", argv.split())
    with pytest.raises(Seen) as seen:
        sft.main()
    assert seen.value.args == (wanted,)


def test_what_is_kept_is_the_best_by_the_reward_not_by_the_score(monkeypatch):
    drawn = [
        Completion(prompt="p", prompt_ids=[7], completion_ids=[i], text=str(i), truncated=True)
        for i in range(4)
    ]
    monkeypatch.setattr(sft, "sample", lambda *_, **__: drawn)
    reward = SimpleNamespace(
        base_reward=lambda texts, prompts: ([0.9, 0.1, 0.8, 0.2], [0.1, 0.3, -0.5, -0.4])
    )
    settings = sft.SFTArguments(prompts_per_round=2, num_generations=2)
    rng = np.random.default_rng(0)
    examples, logged = sft.best_of_round(None, None, ["p", "q"], reward, settings, rng, lambda: None)
    assert [e["input_ids"] for e in examples] == [[7, 1], [7, 3]]
    assert logged == pytest.approx(
        {"score": 0.5, "shaped": -0.125, "kept_score": 0.15, "kept_shaped": -0.05, "generated_tokens": 4}
    )


# --------------------------------------------------------------------------------------------- the script


TINY = "--model mini --sentiment_model mini --max_completion_length 8 --output_dir"
ROUND = "--prompts_per_round 3 --num_generations 2 --epochs 2 --batch_size 4"  # two steps of three texts


@pytest.fixture
def run_sft(monkeypatch, tmp_path):
    """The script in this process, writing to tmp_path."""

    def run(flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["sft", *f"{TINY} {tmp_path} {flags}".split()])
        sft.main()

    return run


@pytest.mark.slow
def test_two_rounds_of_best_of_n_end_to_end_and_resumed(tmp_path, run_sft, run_script):
    flags = f"{TINY} {tmp_path} {ROUND} --rounds 2 --run_name whole"
    done = run_script("-m", "baselines.sft", *flags.split())
    assert done.returncode == 0, done.stderr
    run = tmp_path / "whole"
    lines = read_metrics(run)
    assert [line["step"] for line in lines if "val/sentiment_mean" in line] == [0, 4]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]
    assert next(line["train/learning_rate"] for line in lines if "train/loss" in line) == pytest.approx(7e-5)
    rounds = [line for line in lines if "train/kept_shaped" in line]
    assert all(line["train/kept_shaped"] >= line["train/shaped"] for line in rounds)
    assert 2 * 3 * 2 <= rounds[1]["train/generated_tokens"] <= 2 * 3 * 2 * 8
    assert lines[0]["val/kl_policy_ref"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["val/kl_policy_ref"] > 0
    assert read_config(run)["method"] == "sft"

    AutoTokenizer.from_pretrained(run / "final")
    final = AutoModelForCausalLM.from_pretrained(run / "final").state_dict()
    base = AutoModelForCausalLM.from_pretrained(MINI / "policy").state_dict()
    assert any(not torch.equal(final[name], base[name].float()) for name in final)

    # One round, then --resume for the second: the same model as without the break
    run_sft(f"{ROUND} --rounds 1 --run_name half")
    run_sft(f"--resume {tmp_path / 'half'} --rounds 2")
    name = "final/model.safetensors"
    a, b = load_file(run / name), load_file(tmp_path / "half" / name)
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
@pytest.mark.usefixtures("few_validation_prompts")
def test_reviews_from_a_file_end_to_end_with_lora(tmp_path, sorted_imdb, run_sft):
    run_sft(
        f"--data {sorted_imdb} --rounds 1 --num_reviews 8 --batch_size 4 --use_peft --merge_lora --run_name r"
    )
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "r") if "train/loss" in line]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "final")  # merged: a plain model


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--data nowhere.parquet", "nowhere.parquet"),
        ("--rounds 0", "--rounds 0"),
        ("--num_generations 1", "--num_generations 1"),
        ("--round 3", "did you mean --rounds?"),
        ("--resume nowhere", "nowhere"),
        ("--data imdb --hackable_reward", "--hackable_reward True does nothing with --data imdb"),
    ],
)
def test_a_users_error_is_one_sentence(flags, says, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sft", *flags.split(), "--output_dir", str(tmp_path)])
    with pytest.raises(UserError, match=says.replace("?", r"\?")) as error:
        sft.main()
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())  # and leaves no empty run behind


@pytest.mark.parametrize(
    ("method", "flags"),
    [(ppo, "--batch_size 4 --minibatch_size 4"), (sft, "--prompts_per_round 4 --num_generations 2")],
    ids=["ppo", "sft"],
)
def test_what_is_drawn_follows_seed_and_temperature(method, flags, tmp_path, monkeypatch):
    class Drawn(Exception):
        pass

    def spy(lm, tokenizer, prompts, num, length, temperature, seed, **__):
        raise Drawn(seed, temperature, tuple(prompts))

    def drawn(*more: str) -> tuple:
        argv = f"x --model mini --sentiment_model mini --output_dir {tmp_path} {flags}".split()
        monkeypatch.setattr(sys, "argv", [*argv, *more])
        with pytest.raises(Drawn) as seen:
            method.main()
        return seen.value.args

    monkeypatch.setattr(method, "sample", spy)
    monkeypatch.setattr(Session, "validate", lambda *_: None)
    seed, temperature, prompts = drawn()
    other_seed, hotter, other_prompts = drawn("--seed", "1", "--temperature", "1.5")
    assert (temperature, hotter) == (1.0, 1.5)
    assert seed != other_seed and prompts != other_prompts
    assert drawn("--seed", "1") == (other_seed, 1.0, other_prompts)
