"""The figures of an evaluation: units, greyscale, and that they draw what they are given.

pytest tests/test_plots.py
"""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from kit.base.errors import UserError
from kit.measure import plots
from kit.measure.measuring import METRICS

NAMES = ["base", "vanilla", "kl"]


def point(
    model: str, step: int, kl: float, sentiment: float, judge: float | None, source: str = "samples"
) -> dict:
    return {"model": model, "step": step, "source": source, "kl": kl, "sentiment": sentiment, "judge": judge}


FRONTIER = {
    "points": [
        point("base", 0, 0.0, 0.5, 0.5),
        point("vanilla", 20, 60.0, 0.9, 0.6),
        point("vanilla", 40, 200.0, 0.97, 0.5),
        point("kl", 10, 3.0, 0.8, None, "validation"),
        point("kl", 20, 6.0, 0.9, 0.8),
    ],
    "best_of_n": [
        {"n": n, "kl": np.log(n) - (n - 1) / n, "sentiment": 0.5 + n / 40, "judge": 0.5} for n in (1, 2, 4)
    ],
    "tilt": [{"beta": b, "kl": 0.3 / b, "sentiment": 0.5 + 0.1 / b, "judge": 0.5} for b in (1.0, 0.5, 0.3)],
}
HISTORY = [{"step": s, "val/sentiment_mean": 0.5, "val/sentiment_ci_low": 0.4, "val/sentiment_ci_high": 0.6,
            "val/kl_policy_ref": s / 2, "val/length_mean": 38.0} for s in (0, 10, 20)] + [
    {"step": s, "train/reward": 0.5 + s / 50} for s in range(1, 21)
]  # fmt: skip


def figures() -> dict:
    scores = {name: np.linspace(0, 1, 9) ** (i + 1) for i, name in enumerate(NAMES)}
    panels = [
        ("Sentiment", "P(positive)", {"base": (0.5, 0.4, 0.6), "vanilla": (0.9, 0.88, 0.92)}),
        ("Length", "tokens", dict.fromkeys(NAMES, (30.0, 28.0, 31.0))),
    ]
    return {
        "sentiment": plots.sentiment_distributions(scores, {"base": [0.1, 0.9]}),
        "frontier": plots.reward_against_kl(**FRONTIER, names=NAMES),
        "training": plots.training_curves({"base": [], "vanilla": HISTORY, "kl": HISTORY[:2]}),
        "metrics": plots.metric_bars(panels, NAMES),
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[dict, Path]:
    """The four figures, and the folder they are saved in."""
    found, folder = figures(), tmp_path_factory.mktemp("figures")
    for name, figure in found.items():
        plots.save(figure, folder, name)
    return found, folder


@pytest.mark.parametrize("name", ["sentiment", "frontier", "training", "metrics"])
def test_figures_are_written_in_both_formats_and_axes_say_what_they_are(name, drawn):
    found, folder = drawn
    pixels = imread(folder / f"{name}.png")
    assert pixels.shape[1] > 800
    assert pixels[..., :3].std() > 0.05  # not a white sheet
    assert (folder / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    axes = [ax for ax in found[name].axes if ax.get_visible()]
    assert axes
    for ax in axes:
        place = ax.get_subplotspec()
        assert ax.get_xlabel() or not place.is_last_row()
        assert (
            ax.get_ylabel() or not place.is_first_col() or name == "metrics"
        )  # there the models stand on it


def test_kl_axes_state_the_formula(drawn):
    found, _ = drawn
    assert "KL(π‖π_ref), nats per completion" in found["frontier"].axes[0].get_xlabel()
    assert found["training"].axes[2].get_ylabel() == "KL(π‖π_ref), nats per completion"


def test_every_unit_is_stated():
    assert all(metric.unit for metric in METRICS.values())
    assert all(unit for _, _, unit, _ in plots.CURVES)


def test_the_same_data_give_the_same_svg(drawn, tmp_path):
    plots.save(figures()["metrics"], tmp_path, "metrics")
    assert (drawn[1] / "metrics.svg").read_bytes() == (tmp_path / "metrics.svg").read_bytes()


def test_series_differ_without_colour():
    """A grey print: no two series share marker, line and hatch, and no colour fades into the paper."""
    looks = [(s.line, s.marker, s.hatch) for s in plots.STYLES]
    for part in zip(*looks, strict=True):
        assert len(set(part)) == len(looks)
    grey = [np.dot(to_rgb(s.color), (0.299, 0.587, 0.114)) for s in plots.STYLES]
    assert max(grey) < 0.75


def test_seventeen_models_have_seventeen_looks():
    """make baselines draws five methods with three seeds, and the base."""
    looks = [plots.style(index) for index in range(17)]
    assert len({(look.color.lower(), look.marker) for look in looks}) == 17
    assert (
        plots.style(8).color == "#666666" and plots.style(8).marker == plots.style(0).marker
    )  # 0.6 of black


def test_frontier_draws_what_it_is_given(drawn):
    left, right = drawn[0]["frontier"].axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert drawn["vanilla"] == [[60.0, 0.9], [200.0, 0.97]]
    assert drawn["kl: validations"] == [[3.0, 0.8]]
    assert [200.0, 0.5] in next(
        line for line in right.lines if line.get_label() == "vanilla"
    ).get_xydata().tolist()
    assert "kl: validations" not in {line.get_label() for line in right.lines}  # no judge there: no point


def test_a_run_without_a_series_leaves_its_panel_empty():
    panel = plots.training_curves({"kl": [{"step": 0, "val/sentiment_mean": None}]}).axes[0]
    assert panel.lines == [] or len(panel.lines) == 0


def test_a_folder_that_cannot_be_written_is_one_sentence(drawn, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        plots.save(drawn[0]["metrics"], tmp_path / "missing", "metrics")
