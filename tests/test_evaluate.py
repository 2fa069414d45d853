"""Evaluation: metrics by hand, the frontier by enumeration, the verdict's rules, and one real run.

pytest tests/test_evaluate.py
"""

import itertools
import json
import math
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

import evaluate
from kit.comparison import METRICS, Model, estimates, trained_with, validation_points
from kit.errors import UserError
from kit.frontier import best_of_n, curves, tilt
from kit.metrics import (
    Estimate,
    compression_ratio,
    corpus_estimate,
    distinct_n,
    mean_estimate,
    ngram_groups,
    num_unique,
    self_bleu,
    unique_ratio,
)
from kit.models import MINI
from kit.verdict import judge_slope, signals, verdict

ROOT = Path(__file__).resolve().parent.parent


# Estimates and their intervals -----------------------------------------------------------------------------


def test_mean_estimate_is_the_mean_and_its_replicates_resample_prompts():
    found = mean_estimate([[0.0, 1.0], [2.0, 3.0]])
    assert found.value == 1.5
    # Two prompts of means 0.5 and 2.5: a draw is one of 0.5, 1.5, 2.5, with probability 1/4, 1/2, 1/4
    values, counts = np.unique(found.replicates, return_counts=True)
    assert values.tolist() == [0.5, 1.5, 2.5]
    assert counts / 2000 == pytest.approx([0.25, 0.5, 0.25], abs=0.04)
    assert found.interval() == (0.5, 2.5)


def test_mean_estimate_leaves_out_nan_and_weighs():
    assert mean_estimate([[math.nan, 1.0], [2.0, 3.0]]).value == 2.0
    # 3 tokens at 1 nat and 1 token at 5 nats: 8 / 4
    assert mean_estimate([[1.0], [5.0]], weights=[[3], [1]]).value == 2.0
    assert math.isnan(mean_estimate([[math.nan], [math.nan]]).value)


def test_differences_are_paired():
    """A model that is exactly 0.1 above base on every prompt is 0.1 above base, with no doubt at all."""
    base = np.random.default_rng(0).random((20, 3))
    delta = mean_estimate(base + 0.1) - mean_estimate(base)
    assert delta.value == pytest.approx(0.1)
    assert delta.interval() == pytest.approx((0.1, 0.1))


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    found = corpus_estimate(values.tolist(), lambda some: float(np.mean(some)))
    error = np.std(values, ddof=1) / 2  # s / sqrt(n)
    assert found.interval() == pytest.approx((4.0 - 1.959964 * error, 4.0 + 1.959964 * error), rel=1e-6)


def test_a_corpus_number_lies_in_its_own_interval_and_a_bootstrap_of_it_would_not():
    rng = np.random.default_rng(1)
    groups = [[" ".join(f"w{i}" for i in rng.zipf(1.3, 30) % 2000)] for _ in range(40)]
    ids = ngram_groups(groups, 1)
    found = corpus_estimate(ids, unique_ratio)
    low, high = found.interval()
    assert low < found.value < high
    redrawn = [unique_ratio([ids[i] for i in rng.integers(40, size=40)]) for _ in range(300)]
    assert np.quantile(redrawn, 0.975) < found.value


def test_one_prompt_has_no_interval():
    assert all(map(math.isnan, mean_estimate([[1.0, 2.0]]).interval()))
    assert all(map(math.isnan, corpus_estimate([np.array([1])], num_unique).interval()))


# Diversity -------------------------------------------------------------------------------------------------


def test_ngram_ids_count_what_distinct_n_counts():
    groups = [["a b a", "A b."], ["c", ""]]
    texts = [text for group in groups for text in group]
    for n in (1, 2, 3):
        assert unique_ratio(ngram_groups(groups, n)) == distinct_n(texts, n)
    assert num_unique(ngram_groups(groups, 1)) == 4  # a b . c
    assert unique_ratio(ngram_groups(groups, 2)) == 3 / 4  # (a b) (b a) | (a b) (b .)
    assert unique_ratio(ngram_groups([[""]], 1)) == 0.0


def test_self_bleu_by_hand():
    # "a b c d e" against "a b c d f": precisions 4/5, 3/4, 2/3, 1/2; equal lengths, no penalty
    by_hand = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu(["a b c d e", "a b c d f"]) == pytest.approx([by_hand, by_hand])
    assert self_bleu(["a b c d", "a b c d"]) == pytest.approx([1.0, 1.0])


def test_self_bleu_clips_smooths_and_penalises_brevity():
    # "a a a" against "a b c d": one a counts; no pair matches (0.1 / 2), no triple (0.1 / 1), no 4-gram (0.1 / 1);
    # brevity exp(1 - 4/3)
    by_hand = math.exp(1 - 4 / 3) * (1 / 3 * 0.1 / 2 * 0.1 * 0.1) ** 0.25
    assert self_bleu(["a a a", "a b c d"])[0] == pytest.approx(by_hand)
    # A count is clipped at the most any other text has, not at what they have together
    three = self_bleu(["a a a", "a x y", "a a z"], max_n=1)
    assert three[0] == pytest.approx(2 / 3)


def test_self_bleu_without_text_or_company():
    assert math.isnan(self_bleu(["alone"])[0])
    scores = self_bleu(["", "a b c d", "a b c d"])
    assert math.isnan(scores[0])
    assert scores[1] == pytest.approx(1.0)


def test_compression_ratio_is_bytes_in_over_bytes_out():
    texts = ["great " * 50, "é"]
    raw = (texts[0] + "\n" + "é").encode()
    assert compression_ratio(texts) == len(raw) / len(zlib.compress(raw, 9))
    assert compression_ratio(["great " * 50]) > 3 * compression_ratio(
        ["the quick brown fox jumps over a lazy dog"]
    )
    assert compression_ratio([]) == compression_ratio([""]) == 0.0


# The frontier ----------------------------------------------------------------------------------------------


def test_best_of_n_is_the_mean_over_all_subsets():
    rewards = np.array([[0.3, 0.9, 0.1, 0.5], [0.2, 0.2, 0.8, 0.0]])
    judge = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 7.0, 8.0]])
    for n in (1, 2, 3, 4):
        point = best_of_n(rewards, n, judge)
        best = [max(s, key=lambda i: row[i]) for row in rewards for s in itertools.combinations(range(4), n)]
        row_of = np.repeat([0, 1], len(best) // 2)
        assert point.reward == pytest.approx(np.mean(rewards[row_of, best]))
        assert point.value == pytest.approx(np.mean(judge[row_of, best]))
        assert point.kl == pytest.approx(math.log(n) - (n - 1) / n)
    with pytest.raises(ValueError, match="best of 5 needs at least 5"):
        best_of_n(rewards, 5)


def test_best_of_n_kl_is_exact_by_enumeration():
    """Without ties, the best of 2 of k equally likely texts is text number i with probability (2i-1)/k^2."""
    k = 4000
    p = (2 * np.arange(1, k + 1) - 1) / k**2
    exact = float((p * np.log(p * k)).sum())
    assert best_of_n(np.zeros((1, 2)), 2).kl == pytest.approx(exact, rel=1e-3)


def test_tilt_is_exact_when_the_samples_are_the_whole_distribution():
    """Four equally likely texts: the tilted distribution, its reward and its KL can be written out."""
    rewards, beta = np.array([0.0, 0.25, 0.5, 1.0]), 0.5
    p = np.exp(rewards / beta) / np.exp(rewards / beta).sum()
    point = tilt(rewards[None], beta, values=rewards[None] ** 2)
    assert point.reward == pytest.approx(p @ rewards)
    assert point.value == pytest.approx(p @ rewards**2)
    assert point.kl == pytest.approx(float(p @ np.log(p / 0.25)))
    assert point.effective_samples == pytest.approx(1 / float(p @ p))


def test_no_distribution_beats_the_tilt_at_its_own_kl():
    rng = np.random.default_rng(0)
    rewards = rng.random(5)
    point = tilt(rewards[None], 0.2)
    for _ in range(500):
        q = rng.dirichlet(np.ones(5) * rng.uniform(0.2, 5))
        if float(q @ np.log(q * 5)) <= point.kl:
            assert q @ rewards <= point.reward + 1e-12


def test_tilt_survives_small_beta():
    point = tilt(np.array([[0.0, 1.0, 0.5]]), 1e-4)
    assert (point.reward, point.kl, point.effective_samples) == pytest.approx((1.0, math.log(3), 1.0))


def test_curves_stop_where_the_weights_rest_on_too_few_samples():
    rewards = np.random.default_rng(0).random((20, 16))
    best, tilted = curves(rewards)
    assert [p.setting for p in best] == [1, 2, 4, 8, 16]
    assert all(p.effective_samples >= 4 for p in tilted)
    assert len(tilted) > 5
    assert [p.kl for p in tilted] == sorted(p.kl for p in tilted)
    assert best[0].reward == pytest.approx(rewards.mean())


# The verdict -----------------------------------------------------------------------------------------------


def numbers(**values: float) -> dict[str, Estimate]:
    return {key: Estimate(value, np.zeros(2)) for key, value in values.items()}


BASE = numbers(
    sentiment=0.5, judge=0.5, distinct_2=0.9, compression_ratio=2.0, length=38.0, ref_nll=4.0, empty_ratio=0.0
)


def test_a_model_like_its_base_is_healthy():
    found = signals(BASE, BASE, zero_std_groups=0.0)
    assert verdict(found) == "healthy"
    assert [s.name for s in found] == [
        "judge gap", "distinct-2", "compression", "length", "reference NLL", "empty", "zero-variance groups"
    ]  # fmt: skip
    assert [s.value for s in found] == [0, 1, 1, 1, 0, 0, 0]


def test_collapse_is_hacked():
    """great great great: the proxy is sure, the judge is not, and the words are always the same."""
    model = BASE | numbers(sentiment=0.97, judge=0.55, distinct_2=0.06, compression_ratio=12.0, ref_nll=6.4)
    found = {s.name: s for s in signals(model, BASE, 0.6)}
    assert verdict(list(found.values())) == "hacked"
    assert found["judge gap"].value == pytest.approx(0.42)
    assert found["distinct-2"].value == pytest.approx(0.0667, abs=1e-4)
    assert found["reference NLL"].value == pytest.approx(2.4)
    assert {s.level for n, s in found.items() if n not in ("length", "empty")} == {"alarming"}


@pytest.mark.parametrize(
    "change",
    [
        {"sentiment": 1.0},
        {"distinct_2": 0},
        {"compression_ratio": 50},
        {"ref_nll": 9},
        {"length": 1},
        {"empty_ratio": 1},
    ],
)
def test_no_signal_decides_alone(change):
    found = signals(BASE | numbers(**change), BASE)
    assert sum(s.level == "alarming" for s in found) == 1
    assert verdict(found) == "healthy"


def test_two_suspicious_signals_are_drifting():
    assert verdict(signals(BASE | numbers(distinct_2=0.7, ref_nll=4.6), BASE)) == "drifting"
    assert verdict(signals(BASE | numbers(distinct_2=0.1, ref_nll=4.6), BASE)) == "drifting"


def test_text_too_likely_for_the_base_is_as_odd_as_text_too_unlikely():
    levels = [signals(BASE | numbers(ref_nll=nll), BASE)[4].level for nll in (2.9, 3.4, 4.0, 4.6, 5.1)]
    assert levels == ["alarming", "suspicious", "ok", "suspicious", "alarming"]


@pytest.mark.parametrize(
    "sentiment, judge, gap",
    [
        (0.9, 0.9, 0),
        (0.9, 0.6, 0.3),
        (0.9, 0.2, 0.4),
        (0.6, 0.9, 0),
        (0.1, 0.1, 0),
        (0.1, 0.5, 0.4),
        (0.5, 0.9, 0),
    ],
)
def test_the_judge_gap_is_the_part_of_the_gain_that_the_judge_does_not_see(sentiment, judge, gap):
    """In the direction of training: with a negated reward both scores fall together, and that is no gap."""
    assert signals(BASE | numbers(sentiment=sentiment, judge=judge), BASE)[0].value == pytest.approx(
        gap, abs=1e-9
    )


def test_a_weak_judge_is_measured_by_its_own_scale():
    """On base texts it moves by 0.25 where the reward model moves by 1: a gain of 0.1 confirms one of 0.4."""
    sentiment = [0.0, 1.0, 0.0, 1.0]
    assert judge_slope(sentiment, [0.3, 0.6, 0.5, 0.7]) == pytest.approx(0.25)
    assert judge_slope(sentiment, sentiment) == pytest.approx(1.0)
    assert judge_slope([0.5, 0.5], [0.1, 0.9]) == 0.0
    model = BASE | numbers(sentiment=0.9, judge=0.55)
    assert signals(model, BASE, slope=0.25)[0].value == pytest.approx(0.4 - 0.05 / 0.25)
    assert "judge gap" not in {s.name for s in signals(model, BASE, slope=0.05)}


def test_too_few_signals_are_no_verdict():
    assert verdict(signals(numbers(distinct_2=0.1, length=1.0), BASE)) == "undecided"


# Rows to numbers -------------------------------------------------------------------------------------------


def row(completion: str, **values) -> dict:
    given = {"prompt": "P", "sample": 0, "tokens": 4, "truncated": False, "sentiment": 0.5, "judge": None}
    ratios = {
        "reward": 0.5,
        "unique_token_ratio": 1.0,
        "ref_nll": 4.0,
        "kl_policy_ref": 0.0,
        "kl_ref_policy": 0.0,
    }
    return given | ratios | {"completion": completion} | values


def test_estimates_by_hand():
    rows = [
        row("a b", sentiment=0.2, tokens=3, ref_nll=2.0),
        row("a a", sentiment=0.6, tokens=1, ref_nll=6.0, truncated=True),
        row("", sentiment=0.5, tokens=1, ref_nll=1.0),
        row("c d", sentiment=0.9, tokens=3, ref_nll=1.0),
    ]
    found = {key: e.value for key, e in estimates(rows, num_samples=2).items()}
    assert found["sentiment"] == pytest.approx(0.55)
    assert found["positive_ratio"] == 0.5  # above 0.5, not at it
    assert found["ref_nll"] == pytest.approx((3 * 2 + 6 + 1 + 3) / 8)  # over tokens, not over completions
    assert found["ref_perplexity"] == pytest.approx(math.exp(2.0))
    assert found["repetition"] == pytest.approx(0.5 / 4)
    assert found["distinct_1"] == pytest.approx(4 / 6)
    assert found["vocabulary"] == 4
    assert found["empty_ratio"] == found["truncated_ratio"] == 0.25
    assert found["length"] == 2.0
    assert "judge" not in found
    assert set(found) < set(METRICS)


def test_a_strange_tokenizer_leaves_out_what_needs_the_reference():
    rows = [row("a b", ref_nll=None, kl_policy_ref=None, kl_ref_policy=None) for _ in range(4)]
    assert not {"ref_nll", "ref_perplexity", "kl_policy_ref", "kl_ref_policy"} & set(estimates(rows, 2))


# Run folders -----------------------------------------------------------------------------------------------


def make_run(folder: Path, **config) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"method": "grpo", **config}))
    lines = [
        {"step": s, "val/sentiment_mean": 0.5 + s / 100, "val/kl_policy_ref": s / 10} for s in (0, 10, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_validations_stand_in_for_checkpoints(tmp_path):
    model = Model("m", str(make_run(tmp_path / "run")))
    points = validation_points(model)
    assert [(p["step"], p["kl"], p["sentiment"]) for p in points] == [
        (0, 0.0, 0.5),
        (10, 1.0, 0.6),
    ]  # 20: sampled anew
    (tmp_path / "run" / "checkpoint-10").mkdir()
    (tmp_path / "run" / "checkpoint-20").mkdir()
    assert [step for step, _ in model.earlier_checkpoints()] == [10]


def test_auto_is_what_the_runs_were_trained_with(tmp_path):
    a = Model("a", str(make_run(tmp_path / "a", model="gpt2")))
    b = Model("b", str(make_run(tmp_path / "b", model="mini/policy")))
    assert trained_with("auto", "model", [a]) == "gpt2"
    assert trained_with("auto", "model", [b]) == str(ROOT / "mini" / "policy")
    assert trained_with("auto", "model", [a, b]) == "auto"
    assert trained_with("mini", "model", [a]) == "mini"


def test_a_broken_run_file_is_a_note(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 0}\n{"st')
    model = Model("m", str(run))
    assert "line 2" in model.notes[0]
    assert model.history == []


# The script ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["--num_samples", "0"], "--num_samples: 0 is below 1"),
        (["--temperature", "0"], "--temperature: 0 is not above 0"),
        (["nonsense"], "nonsense: give NAME=PATH"),
        (["a=x", "a=y"], "the name a is given twice"),
        (["a=x", "--grpo", "y", "grpo=z"], "the name grpo is given twice"),
        (["base=mini"], "base is the reference model"),
        (["<b>=mini"], "give NAME=PATH"),
        (["--modl", "mini"], "unrecognized arguments: --modl"),
        (["--out", "README.md/x"], "cannot write there"),
    ],
)
def test_bad_flags_are_one_sentence(args, sentence, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("a file, no folder")
    with pytest.raises(UserError) as raised:
        evaluate.main(args)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """One run over the reference, a copy of it, a model of another tokenizer, and three that cannot work."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("evaluate")
    shutil.copytree(MINI / "policy", folder / "torn")
    weights = folder / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    tokenizer = AutoTokenizer.from_pretrained(MINI / "policy")
    tokenizer.add_tokens(["<script>alert(1)</script>"])
    tokenizer.save_pretrained(folder / "foreign")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=8, n_layer=1, n_head=1, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder / "foreign")
    make_run(folder / "unfinished")
    names = ("foreign", "torn", "missing", "unfinished")
    done = subprocess.run(
        [sys.executable, "evaluate.py", f"copy={MINI / 'policy'}", *(f"{n}={folder / n}" for n in names),
         "--out", str(folder / "out"), "--num_prompts", "4", "--num_samples", "2", "--frontier_samples", "8",
         "--max_new_tokens", "8", "--model", "mini"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "out" / "screen.txt").write_text(done.stdout)
    return folder / "out"


def test_the_script_writes_what_its_docstring_says(results):
    found = json.loads((results / "comparison.json").read_text())
    assert found["schema"] == 1
    assert set(found) == {
        "schema", "command", "created", "seconds", "settings", "provenance", "metrics", "models", "frontier"
    }  # fmt: skip
    assert set(found["metrics"]) == set(METRICS)
    for model in found["models"]:
        assert set(model) == {
            "name", "path", "verdict", "error", "notes", "metrics", "spread", "signals", "config"
        }  # fmt: skip
    samples = [json.loads(line) for line in (results / "samples.jsonl").read_text().split("\n")[:-1]]
    assert len(samples) == 3 * 4 * 2
    assert {s["model"] for s in samples} == {"base", "copy", "foreign"}
    figures = {f"{name}.{kind}" for name in ("sentiment", "metrics", "frontier") for kind in ("png", "svg")}
    assert figures < {p.name for p in results.iterdir()}


def test_a_copy_of_the_base_is_the_base(results):
    """Same prompts, same sampler, same random stream: not one number may differ."""
    base, copy = json.loads((results / "comparison.json").read_text())["models"][:2]
    assert (base["name"], copy["name"], copy["verdict"]) == ("base", "copy", "healthy")
    assert copy["metrics"]["kl_policy_ref"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert {k: m["value"] for k, m in copy["metrics"].items()} == {
        k: m["value"] for k, m in base["metrics"].items()
    }
    assert copy["metrics"]["sentiment"]["delta"] == copy["metrics"]["distinct_2"]["delta_high"] == 0.0
    assert base["metrics"]["sentiment"]["delta"] is None
    for entry in copy["metrics"].values():
        assert entry["low"] <= entry["value"] <= entry["high"]


def test_a_wrong_model_says_why_and_stops_no_other(results):
    models = {m["name"]: m for m in json.loads((results / "comparison.json").read_text())["models"]}
    assert "no complete language model" in models["torn"]["error"]
    assert "no such folder" in models["missing"]["error"]
    assert "no final/ model" in models["unfinished"]["error"]
    assert models["foreign"]["error"] is None
    assert "its tokenizer is not the reference" in models["foreign"]["notes"][0]
    assert "kl_policy_ref" not in models["foreign"]["metrics"]
    assert "sentiment" in models["foreign"]["metrics"]
    screen = (results / "screen.txt").read_text()
    assert "torn: no complete language model" in screen
    assert "report.html" in screen


def test_the_frontier_of_a_run(results):
    frontier = json.loads((results / "comparison.json").read_text())["frontier"]
    assert [p["n"] for p in frontier["best_of_n"]] == [1, 2, 4, 8]
    assert {p["model"] for p in frontier["points"]} == {"base", "copy"}
    assert all(p["judge"] is not None for p in frontier["points"] + frontier["tilt"])


def test_page_of_a_real_run(results):
    page = (results / "report.html").read_text()
    assert "<script>alert" not in page
    assert "no such folder" in page
