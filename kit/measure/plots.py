"""The figures of an evaluation: data in, `Figure` out.

Every series has its own colour (Okabe & Ito, for colour-blind readers), line style, marker and hatch (for grey prints).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure  # no pyplot: no global state, and no window on any machine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kit.base.errors import UserError
from kit.measure.goodhart import REWARDS, Curve, Fit, fit

KL_LABEL = "KL(π‖π_ref), nats per completion"
RC = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True, "axes.titlesize": 9.5}


class Style(NamedTuple):
    color: str
    line: str | tuple[int, tuple[int, ...]]
    marker: str
    hatch: str

    @property
    def pen(self) -> dict[str, Any]:
        """The look of a line, for `Axes.plot`."""
        return {"color": self.color, "ls": self.line, "marker": self.marker}


STYLES = (
    Style("#000000", "-", "o", ""),
    Style("#E69F00", (0, (5, 1)), "s", "//"),
    Style("#0072B2", (0, (1, 1)), "^", "\\\\"),
    Style("#D55E00", (0, (5, 1, 1, 1)), "D", "xx"),
    Style("#009E73", (0, (3, 1, 1, 1, 1, 1)), "v", ".."),
    Style("#CC79A7", (0, (8, 2)), "P", "--"),
    Style("#56B4E9", (0, (2, 3)), "X", "++"),
    Style("#7F7F7F", (0, (6, 2, 2, 2)), "*", "oo"),
)

CURVES = (  # key in metrics.jsonl, title, unit, limits
    ("val/sentiment_mean", "Sentiment, held-out prompts", "P(positive)", (0.0, 1.0)),
    ("train/reward", "Training reward, as trained", "reward per completion", None),
    ("val/kl_policy_ref", "Distance from the base model", KL_LABEL, None),
    ("val/ref_nll", "Surprise of the base model", "reference NLL, nats per token", None),
    ("val/distinct_2", "Diversity", "distinct-2, share of word pairs", (0.0, 1.0)),
    ("val/length_mean", "Length", "tokens per completion", None),
)


def style(index: int) -> Style:
    """The look of series `index`; 0 is the base model in every figure. The ninth series is a paler first."""
    times, place = divmod(index, len(STYLES))
    look = STYLES[place]
    shade = 1 - (1 - np.array(to_rgb(look.color))) * 0.6**times
    return look._replace(color=to_hex(shade), hatch=look.hatch * (times + 1))


def save(figure: Figure, folder: Path, name: str) -> None:
    """`folder/name.png` and `folder/name.svg`. Raises `UserError` if they cannot be written."""
    try:
        with mpl.rc_context({"svg.hashsalt": name}):  # the same data give the same file
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=150)
    except OSError as error:
        raise UserError(f"{folder}: the plot {name} cannot be written ({error.strerror})") from None


def grid(rows: int, columns: int, size: tuple[float, float], **kwargs: Any) -> tuple[Figure, np.ndarray]:
    """A figure and its (rows, columns) axes. `size` is in inches."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    return figure, axes


def legend_above(figure: Figure, axes: Axes) -> None:
    """The legend of `axes`, above the whole figure."""
    look: dict[str, Any] = {"loc": "outside upper center", "ncols": 4, "frameon": False, "handlelength": 4}
    figure.legend(*axes.get_legend_handles_labels(), **look)


def join(ax: Axes, points: Iterable[Mapping[str, Any]], x: str, y: str, **look: Any) -> None:
    """A line through the points that have a `y`; nothing if none has."""
    known = [(p[x], p[y]) for p in points if p.get(y) is not None]
    if known:
        ax.plot(*zip(*known, strict=True), **look)


def sentiment_distributions(
    sentiment: Mapping[str, Sequence[float]], judge: Mapping[str, Sequence[float]]
) -> Figure:
    """One row per model: the histogram of P(positive) by the reward model, and by the judge.

    `judge` may lack a model. If the bars move to the right and the outline stays, the reward model is fooled.
    """
    figure, axes = grid(len(sentiment), 1, (10.5, 0.9 + 1.15 * len(sentiment)), sharex=True)
    bins = np.linspace(0.0, 1.0, 21)
    for row, (name, scores) in enumerate(sentiment.items()):
        ax, look = axes[row, 0], style(row)
        percent = [100.0 / len(scores)] * len(scores)
        ax.hist(scores, bins, weights=percent, color=look.color, alpha=0.45, hatch=look.hatch)
        ax.axvline(float(np.mean(scores)), color=look.color, lw=2)
        title = f"{name}: reward model {np.mean(scores):.2f}"
        if name in judge:
            percent = [100.0 / len(judge[name])] * len(judge[name])
            ax.hist(judge[name], bins, weights=percent, histtype="step", color="black", lw=1.3)
            ax.axvline(float(np.mean(judge[name])), color="black", lw=1.3, ls=":")
            title += f", judge {np.mean(judge[name]):.2f}"
        ax.set_title(f"{title} (means: vertical lines)", loc="left")
        ax.set_ylabel("% of texts")
        ax.set_xlim(0, 1)
    axes[-1, 0].set_xlabel("P(positive) of a completion. Filled: reward model. Outline: independent judge")
    return figure


def training_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], start: int = 0) -> Figure:
    """Runs over each other, from the lines of their `metrics.jsonl`; the band is the 95 % interval.

    `start` is the series number of the first run, so that a run looks alike in all figures.
    """
    figure, axes = grid(2, 3, (10.5, 6.0), sharex=True)
    for ax, (key, title, unit, limits) in zip(axes.flat, CURVES, strict=True):
        for index, (name, rows) in enumerate(runs.items(), start=start):
            look = style(index)
            size = 4 if sum(r.get(key) is not None for r in rows) <= 20 else 0
            join(ax, rows, "step", key, ms=size, lw=1.6, label=name, **look.pen)
            low, high = key.replace("_mean", "_ci_low"), key.replace("_mean", "_ci_high")
            band = [(r["step"], r[low], r[high]) for r in rows if low != key and r.get(low) is not None]
            if band:
                ax.fill_between(*zip(*band, strict=True), color=look.color, alpha=0.15, lw=0)
        ax.set_title(title, loc="left")
        ax.set_ylabel(unit)
        if limits:
            ax.set_ylim(*limits)
    for ax in axes[-1]:
        ax.set_xlabel("training step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    # A run may have no line in the first panel: take the fullest legend
    legend_above(figure, max(axes.flat, key=lambda ax: len(ax.get_legend_handles_labels()[0])))
    return figure


def reward_against_kl(
    points: Sequence[Mapping[str, Any]],
    best_of_n: Sequence[Mapping[str, float]],
    tilt: Sequence[Mapping[str, float]],
    names: Sequence[str],
    best_of_n_learned: Sequence[Mapping[str, float]] = (),
) -> Figure:
    """Score against KL(pi||pi_ref): left by the reward model, right by the judge (Gao et al. 2022).

    The points are those of `frontier` in comparison.json; `names` fixes the look of each model. The horizontal axis is
    linear up to 1 nat and logarithmic beyond: best-of-n stays below 2 nats, and a hacked run is above 100.
    """
    figure, axes = grid(1, 2, (10.5, 4.9), sharex=True, sharey=True)
    drawn = [*points, *best_of_n, *tilt, *best_of_n_learned]
    top = max([0.5, *(p["kl"] for p in drawn)])
    bottom = min([0.5, *(p[key] for p in drawn for key in ("sentiment", "judge") if p[key] is not None)])
    for ax, key, title in (
        (axes[0, 0], "sentiment", "What the reward model says"),
        (axes[0, 1], "judge", "What the judge says"),
    ):
        for curve, line, marker, label in (
            (tilt, "-", "", "π* ∝ π_ref exp(r/β), the limit"),
            (best_of_n, "--", ".", "best of n of the base"),
            (best_of_n_learned, ":", "x", "best of n by the learned reward"),
        ):
            join(ax, curve, "kl", key, color="0.45", ls=line, marker=marker, lw=2.2, label=label)
        if key == "sentiment":
            for p in best_of_n[1:]:
                ax.annotate(f"{p['n']:.0f}", (p["kl"], p[key]), textcoords="offset points", xytext=(4, -9),
                            fontsize=7, color="0.35")  # fmt: skip
        for index, name in enumerate(names):
            look = style(index)
            for source, size, face, label in (
                ("samples", 7, look.color, name),
                ("validation", 5, "white", f"{name}: validations"),
            ):
                mine = [p for p in points if (p["model"], p["source"]) == (name, source)]
                mine.sort(key=lambda p: (p["step"] is None, p["step"]))
                join(ax, mine, "kl", key, lw=1.0, ms=size, mfc=face, label=label, **look.pen)
        ax.set_xscale("symlog", linthresh=1.0, linscale=1.0)
        ax.set_xlim(0, top * 1.3)
        ticks = (0, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
        ax.set_xticks([t for t in ticks if t <= top * 1.3])
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.set_ylim(max(0.0, bottom - 0.08), 1.02)
        ax.set_xlabel(f"{KL_LABEL} (linear to 1, logarithmic beyond)")
        ax.set_title(title, loc="left")
    axes[0, 0].set_ylabel("P(positive), mean over completions")
    if not any(p["judge"] is not None for p in points):
        axes[0, 1].text(0.5, 0.5, "no judge", transform=axes[0, 1].transAxes, ha="center")
    legend_above(figure, axes[0, 0])
    return figure


def points_and_fit(ax: Axes, curve: Curve, reward: str, look: Style, label: str) -> tuple[Line2D, Fit | None]:
    """The measured points of one reward, hollow if it is the learned one, and Gao's fit as a line."""
    face, line = ("none", "--") if reward == "proxy" else (look.color, "-")
    if found := fit(curve, reward):
        x = np.linspace(0, curve.delta.max(), 200)
        ax.plot(x, found(x), color=look.color, ls=line, lw=1.4)
    pen: dict[str, Any] = {"color": look.color, "ls": "", "marker": look.marker, "mfc": face, "ms": 4}
    (points,) = ax.plot(curve.delta, curve.rewards[reward].mean(axis=1), label=label, **pen)
    return points, found


def overoptimization(curves: Sequence[Curve], names: Sequence[str]) -> Figure:
    """Learned and gold reward against sqrt(KL(pi||pi_ref)): left of policies in training, right of best of n.

    Points are measured, lines Gao's fits; `names` fixes the look of each model. A vertical line: the gold fit turns.
    """
    figure, axes = grid(1, 2, (10.5, 5.2), sharey=True)
    for ax, kind, title in (
        (axes[0, 0], "rl", "Training: R = δ (α - β log δ)"),
        (axes[0, 1], "bon", "Best of n: R = δ (α - β δ)"),
    ):
        for curve in (c for c in curves if c.kind == kind):
            look = style(names.index(curve.name) if curve.name in names else -1)
            for key, word in REWARDS.items():
                points, found = points_and_fit(ax, curve, key, look, f"{curve.name}: {word} reward")
                if found:
                    (a, a0, a1), (b, b0, b1), (turn, *_) = found.as_dict().values()
                    fitted = f"α {a:.2f} [{a0:.2f}, {a1:.2f}], β {b:.2f} [{b0:.2f}, {b1:.2f}]"
                    if key == "gold" and turn < curve.delta.max():
                        fitted += f", turns at δ {turn:.1f}"
                        ax.axvline(turn, color=look.color, lw=0.8, ls=":")
                    points.set_label(f"{points.get_label()}\n{fitted}")
        ax.set_title(title, loc="left")
        ax.set_xlabel("δ = √KL(π‖π_ref), KL in nats per completion")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=7, loc="best")
    axes[0, 0].set_ylabel("gain over the base, in std of the base's samples")
    return figure


def metric_bars(
    panels: Sequence[tuple[str, str, Mapping[str, tuple[float, float, float]]]], names: Sequence[str]
) -> Figure:
    """One panel per metric: `(title, unit, {model: (value, low, high)})`; whiskers are 95 % intervals.

    A model without a value has no bar but keeps its place.
    """
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (2.7 * columns + 1.0, rows * (0.9 + 0.3 * len(names)) + 0.3)
    figure, axes = grid(rows, columns, size, sharey=True)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (title, unit, values) in zip(axes.flat, panels, strict=False):
        for row, name in enumerate(names):
            if name not in values:
                place = ax.get_yaxis_transform()
                ax.text(0.02, row, "not measured", transform=place, va="center", fontsize=7)
                continue
            value, low, high = values[name]
            look = style(row)
            ax.barh(row, value, color=look.color, alpha=0.5, hatch=look.hatch, edgecolor="black", lw=0.6)
            # Nothing is drawn if the ends are NaN
            ax.plot([low, high], [row, row], color="black", lw=1.5, marker="|", ms=6)
        ax.set_title(title, loc="left")
        ax.set_xlabel(unit)
        ax.set_yticks(range(len(names)), names)
        ax.margins(x=0.08)
    for ax in axes[:, 0]:
        ax.set_ylim(len(names) - 0.4, -0.6)  # the first model on top
    return figure
