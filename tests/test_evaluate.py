"""evaluate.py: one real run, and bad flags.

pytest tests/test_evaluate.py
"""

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest

import evaluate
from kit.base.errors import UserError
from kit.base.files import output_folder
from kit.lm.models import MINI
from kit.measure.measuring import METRICS
from tests.test_comparison import make_run

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "args, sentence",
    [
        (["--num_samples", "0"], "--num_samples: 0 is below 1"),
        (["--temperature", "0"], "--temperature: 0 is not above 0"),
        (["nonsense"], "nonsense: give NAME=PATH"),
        (["a=x", "a=y"], "the name a is given twice"),
        (["base=mini"], "base is the reference model"),
        (["<b>=mini"], "give NAME=PATH"),
        (["--modl", "mini"], "unrecognized arguments: --modl"),
        (["a=./typo"], "typo: no such model folder"),
        (["--out", "README.md/x"], "cannot write there"),
        (["--out", "run"], "--out run: that is the folder of a run or a model"),
        (["--out", "run/final"], "--out run/final: that is the folder of a run or a model"),
        (["--out", "theirs"], "theirs/samples.jsonl: this file was not written by this command"),
        (["--out=~/x", "a=~/typo"], "home/typo: no such model folder"),
    ],
)
def test_bad_flags_are_one_sentence(args, sentence, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    Path("README.md").write_text("a file, no folder")
    for name in ("run/config.json", "run/final/config.json", "theirs/samples.jsonl"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text('{"step": 0}')
    with pytest.raises(UserError) as raised:
        evaluate.main(args)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def results(tmp_path_factory, run_script) -> Path:
    """One run over the reference, a copy of it, a model of another tokenizer, and two that cannot work."""
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
    run = make_run(folder / "run", model="mini/policy", temperature=1.3, kl_type="forward", kl_coef=0.3)
    (run / "final").symlink_to(MINI / "policy")
    with (run / "metrics.jsonl").open("a") as lines:
        lines.writelines(json.dumps({"step": 20 + i, "train/zero_std_groups": i / 2}) + "\n" for i in (0, 1))
    (folder / "out").mkdir()
    for kind in ("png", "svg"):
        (folder / "out" / f"training.{kind}").write_text("of an earlier comparison, by Matplotlib")
    names = ("foreign", "torn", "unfinished", "run")
    done = run_script(
        "evaluate.py", f"copy={MINI / 'policy'}", *(f"{n}={folder / n}" for n in names),
        "--out", str(folder / "out"), "--num_prompts", "4", "--num_samples", "2", "--frontier_samples", "8",
        "--max_new_tokens", "8", "--model", "mini",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "out" / "screen.txt").write_text(done.stdout)
    return folder / "out"


def test_the_script_writes_what_its_docstring_says(results):
    files = {path.name for path in results.iterdir()} - {"screen.txt"}
    assert files <= set(evaluate.WRITTEN) and {"comparison.json", "samples.jsonl", "report.html"} < files
    output_folder(str(results), evaluate.WRITTEN)  # the next comparison may be written over this one
    found = json.loads((results / "comparison.json").read_text())
    assert found["schema"] == 1
    assert set(found) == {
        "schema", "command", "created", "seconds", "settings", "provenance", "metrics", "models", "frontier",
        "overoptimization",
    }  # fmt: skip
    assert set(found["metrics"]) == set(METRICS)
    for model in found["models"]:
        assert set(model) == {
            "name", "path", "price", "verdict", "error", "notes", "metrics", "spread", "signals", "config"
        }  # fmt: skip
    samples = [json.loads(line) for line in (results / "samples.jsonl").read_text().split("\n")[:-1]]
    assert len(samples) == 4 * 4 * 2
    assert {s["model"] for s in samples} == {"base", "copy", "foreign", "run"}
    assert set(samples[0]) == {
        "model", "prompt", "sample", "completion", "tokens", "truncated", "sentiment", "judge", "fluency", "reward",
        "unique_token_ratio", "ref_nll", "kl_policy_ref", "kl_ref_policy",
    }  # fmt: skip
    for name in ("sentiment", "metrics", "frontier", "training"):
        assert (results / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (results / f"{name}.svg").read_text().startswith("<?xml")


def test_it_fails_if_no_model_can_be_measured(tmp_path, capsys):
    make_run(tmp_path / "unfinished")
    few = ["--num_prompts", "4", "--num_samples", "1", "--max_new_tokens", "2", "--frontier_samples", "0"]
    out = ["--model", "mini", "--judge", "none", "--out", str(tmp_path / "out")]
    assert evaluate.main([f"u={tmp_path / 'unfinished'}", *few, *out]) == 1
    assert "u: failed" in capsys.readouterr().out


def test_no_figure_of_an_earlier_comparison_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "plots", Mock())
    for name in ("training.svg", "training.png", "frontier.svg", "mine.svg"):
        (tmp_path / name).write_text("old")
    evaluate.draw(tmp_path, {"frontier": None, "models": []}, [], [])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.svg"]


def test_a_copy_of_the_base_is_the_base(results):
    """Same prompts, same sampler, same random stream: not one number may differ."""
    base, copy = json.loads((results / "comparison.json").read_text())["models"][:2]
    assert (base["name"], copy["name"], copy["verdict"]) == ("base", "copy", "healthy")
    assert copy["metrics"]["kl_policy_ref"]["value"] == pytest.approx(0.0, abs=1e-6)
    # captured compares a model with the base: the base has none
    assert {k: m["value"] for k, m in copy["metrics"].items() if k != "captured"} == {
        k: m["value"] for k, m in base["metrics"].items()
    }
    assert copy["metrics"]["sentiment"]["delta"] == copy["metrics"]["distinct_2"]["delta_high"] == 0.0
    assert base["metrics"]["sentiment"]["delta"] is None
    for entry in copy["metrics"].values():
        assert entry["low"] <= entry["value"] <= entry["high"]


def test_a_wrong_model_says_why_and_stops_no_other(results):
    models = {m["name"]: m for m in json.loads((results / "comparison.json").read_text())["models"]}
    assert "no usable language model" in models["torn"]["error"]
    assert "no final/ model" in models["unfinished"]["error"]
    assert models["foreign"]["error"] is None
    assert "its tokenizer is not the reference" in models["foreign"]["notes"][0]
    assert "kl_policy_ref" not in models["foreign"]["metrics"]
    assert "sentiment" in models["foreign"]["metrics"]
    screen = (results / "screen.txt").read_text()
    assert "torn: no usable language model" in screen
    assert "report.html" in screen


def test_the_frontier_of_a_run(results):
    frontier = json.loads((results / "comparison.json").read_text())["frontier"]
    assert [p["n"] for p in frontier["best_of_n"]] == [1, 2, 4, 8]
    where = {(p["model"], p["step"], p["source"]) for p in frontier["points"]}
    # Not its validations, of another temperature
    assert where == {
        ("base", None, "samples"),
        ("copy", None, "samples"),
        ("run", 21, "samples"),
    }
    assert all(p["judge"] is not None for p in frontier["points"] + frontier["tilt"])


def test_what_is_said_of_a_run(results):
    models = {m["name"]: m for m in json.loads((results / "comparison.json").read_text())["models"]}
    assert "trained with --temperature 1.3, and measured with 1.0, as all here" in models["run"]["notes"]
    (flat,) = [s["value"] for s in models["run"]["signals"] if s["name"] == "zero-variance groups"]
    assert flat == 0.25  # of 0 and 0.5, the two lines that have it
    assert (models["run"]["price"], models["copy"]["price"]) == (0.3, 0.1)
    assert (
        "`captured` uses each run's KL coefficient (copy 0.1, run 0.3)"
        in (results / "screen.txt").read_text()
    )


def test_page_of_a_real_run(results):
    page = (results / "report.html").read_text()
    assert "<script>alert" not in page
    assert "no usable language model" in page
