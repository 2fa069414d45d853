"""benchmarks/results.py: its table, its samples and its marks, from run folders written by hand.

pytest tests/test_results.py
"""

import json

import pytest

from benchmarks import results
from kit.errors import UserError
from kit.sweep import write_between
from train import PARSER


def measured(folder, sentiment: float, verdict: str | None, **others: float) -> None:
    """A run folder's measured.json, with these numbers, and texts of which the judge says nothing."""
    rest = {"kl_policy_ref": 2.0, "kl_ref_policy": 3.0, "ref_nll": 4.0, "distinct_2": 0.5, "length": 30.0}
    values = {"sentiment": sentiment, "judge": 0.6, **rest} | ({"captured": 0.25} if verdict else {}) | others
    folder.mkdir(exist_ok=True)
    record = {"verdict": verdict, "metrics": {key: {"value": value} for key, value in values.items()}}
    (folder / "measured.json").write_text(json.dumps(record | {"signals": []}))
    texts = [{"sentiment": s, "judge": 0.5} for s in (0.0, 1.0)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """vanilla with two finished seeds, forward-0.05 with one, and one that was stopped."""
    monkeypatch.setattr(results, "RUNS", tmp_path)
    measured(tmp_path / "base", 0.5, None)
    for name, ends, sentiment, others in (  # (base: distinct-2 0.5, length 30)
        ("vanilla-0", True, 1.0, {"distinct_2": 0.1, "length": 9.0}),  # two alarming
        ("vanilla-1", True, 0.9, {"distinct_2": 0.1}),  # one
        ("forward-0.05-0", True, 0.8, {}),
        ("forward-0.05-1", False, 0.1, {}),
    ):
        folder = tmp_path / name
        (folder / "final" if ends else folder).mkdir(parents=True)
        measured(folder, sentiment, "of other limits", **others)
        samples = [
            {"step": step, "prompt": prompt, "completion": f"is | {step} " + "x" * 120, "sentiment": 0.25}
            for step in (0, 2)
            for prompt in results.SAMPLED
        ]
        (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    return tmp_path


def test_the_table_has_means_over_finished_seeds(runs):
    _, rule, base, vanilla, forward = results.table(seeds=3).splitlines()
    assert len(rule.split(" | ")) == len(base.split(" | ")) == 11
    # the base has captured nothing by definition, and no verdict
    assert base == "| (base) |  | 0.50 | 0.60 | 2.0 | 3.0 | 4.00 | 0.50 | 30 |  |  |"
    # (1.0 + 0.9) / 2
    assert vanilla.startswith("| (no flag) | 2 | 0.95 [0.90, 1.00] |")
    assert vanilla.endswith("| 0.25 [0.25, 0.25] | 1 drifting, 1 hacked |")
    assert forward.startswith("| `--kl_type forward --kl_coef 0.05` | 1 | 0.80 |")
    assert forward.endswith("| 0.25 | 1 healthy |")


def test_experiments_that_differ_by_a_number_are_a_family():
    names = ["vanilla", "forward-0.02", "forward-1", "rate-1e-4", "both", "both-lambda-0", "both-lambda-1"]
    assert results.families([*names, "group-4"]) == {
        "vanilla": ["vanilla"],
        "forward": ["forward-0.02", "forward-1"],
        "rate-1e-4": ["rate-1e-4"],
        "both": ["both"],
        "both-lambda": ["both-lambda-0", "both-lambda-1"],
        "group-4": ["group-4"],
    }


def test_the_readme_s_samples_are_those_of_seed_0_cut_and_without_bars(runs):
    lines = results.samples_table().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| base",
        "| no penalty",
        "| KL(pi\\|\\|pi_ref) penalty",
    ]
    assert "is \\| 0 ... [0.25]" in lines[2] and "is \\| 2 ... [0.25]" in lines[3]


def test_only_what_stands_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- m -->\nold\n<!-- /m -->\nz\n")
    write_between(page, "m", "new\n")
    assert page.read_text() == "a\n<!-- m -->\nnew\n<!-- /m -->\nz\n"
    with pytest.raises(UserError, match="has no <!-- n -->"):
        write_between(page, "n", "new\n")


@pytest.mark.parametrize("page", [results.PAGE, results.README])
def test_the_pages_have_their_marks(page):
    mark = {"results.md": "written", "README.md": "samples"}[page.name]
    assert page.read_text().count(f"{mark} by make results -->") == 2


@pytest.mark.parametrize("name", list(results.EXPERIMENTS))
def test_every_experiment_is_a_command_that_train_takes(name, monkeypatch):
    monkeypatch.chdir(results.ROOT)
    _, *flags = results.command(name, steps=None)
    ours, settings = PARSER.parse(flags)
    assert ours.use_solution and settings.prompts_per_step * settings.num_generations == 64
