"""The one-page report: data in, HTML out. One file without links to anything: it opens from disk, offline."""

import base64
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kit.verdict import LEVELS

FIGURES = (  # file name, caption
    ("sentiment", "Scores of the completions. Filled bars: the reward model that training used. Black outline: a judge "
     "no training saw. Bars on the right with an outline that stays on the left are Goodhart's law."),
    ("frontier", "Score against KL(π‖π_ref). The grey curves need no training: best of n base samples, "
     "KL = log n - (n-1)/n, and π* ∝ π_ref exp(r/β), the best any policy can do for its KL (estimated from the base's "
     "samples, as far as they carry). The nearer a run keeps to them on the left, and the higher it stands on "
     "the right, the better."),
    ("training", "Training, from each run's metrics.jsonl. Bands: 95 % intervals over prompts."),
    ("metrics", "The metrics side by side. Whiskers: 95 % intervals over prompts."),
)  # fmt: skip
SHADES = (0.04, 0.10, 0.20)  # change of P(positive) from which a word gets a light, medium, dark shade
MARKS = {"healthy": "●", "drifting": "▲", "hacked": "■", "undecided": "?"}


def word_effects(scorer: Any, texts: Sequence[str]) -> list[list[tuple[str, float | None]]]:
    """What each word does to its text's score: P(positive) of the text less that of the text without the word.

    N texts -> N lists of (piece, effect); pieces joined are the text again, blanks have effect None. Costs one
    score per word, in one call.
    """
    pieces = [re.findall(r"\s+|\S+", text) for text in texts]
    at = [(t, i) for t, parts in enumerate(pieces) for i, part in enumerate(parts) if not part.isspace()]
    without = ["".join(pieces[t][:i] + pieces[t][i + 1 :]) for t, i in at]
    scores = scorer([*texts, *without])
    effect = {key: scores[key[0]] - score for key, score in zip(at, scores[len(texts) :], strict=True)}
    return [[(part, effect.get((t, i))) for i, part in enumerate(parts)] for t, parts in enumerate(pieces)]


def shade(effect: float | None) -> str:
    """CSS class of a word: p1..p3 for words that raise the score, n1..n3 for those that lower it, or none."""
    level = sum(abs(effect or 0.0) >= limit for limit in SHADES)
    return f"{'p' if (effect or 0) > 0 else 'n'}{level}" if level else ""


def visible(text: str) -> str:
    """Text with U+FFFD for what HTML cannot hold (controls, lone surrogates) and for marks that turn text around."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]", "\ufffd", text)


def number(value: float | None) -> str:
    """Three significant digits, but no exponents: 0.00123, 0.512, 37.5, 1,234."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"


def change(entry: Mapping[str, float | None]) -> str:
    """An arrow where the paired interval of the difference from base leaves out zero."""
    low, high = entry["delta_low"], entry["delta_high"]
    if low is None or high is None or low <= 0.0 <= high:
        return ""
    return "▲" if low > 0 else "▼"


def run_command(config: Mapping[str, Any]) -> str:
    """The command that made a run."""
    script = {"grpo": ["train.py"], "sft": ["-m", "baselines.sft"], "ppo": ["-m", "baselines.ppo"]}
    method = str(config.get("method"))
    return shlex.join(["python", *script.get(method, [method]), *map(str, config.get("argv") or [])])


def side_by_side(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], scorer: Any, num_coloured: int
) -> list[dict[str, Any]]:
    """Per prompt the first completion of every model, with coloured words for the first `num_coloured` prompts."""
    first = {name: [r for r in model_rows if r["sample"] == 0] for name, model_rows in rows.items()}
    texts = [r["completion"] for model_rows in first.values() for r in model_rows[:num_coloured]]
    coloured = iter(word_effects(scorer, texts) if texts else ())
    words = {
        name: [
            next(coloured) if i < num_coloured else [(r["completion"], None)]
            for i, r in enumerate(model_rows)
        ]
        for name, model_rows in first.items()
    }
    prompts = [r["prompt"] for r in next(iter(first.values()))]
    return [
        {"prompt": prompt,
         "cells": [{"model": name, "row": first[name][i], "words": words[name][i]} for name in first]}
        for i, prompt in enumerate(prompts)
    ]  # fmt: skip


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def render(
    comparison: Mapping[str, Any],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    figures: Path,
    scorer: Any,
    num_coloured: int,
) -> str:
    """The page for one `comparison.json`.

    `rows` are the lines of samples.jsonl by model; `figures` the folder with the SVG files (one that is not there
    is left out). Everything from outside is escaped, and the page's own policy lets only its own script and
    style run: a completion may contain `<script>`.
    """
    here = Path(__file__).parent
    style, script = ((here / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    images = [
        {
            "name": name,
            "caption": caption,
            "data": base64.b64encode((figures / f"{name}.svg").read_bytes()).decode(),
        }
        for name, caption in FIGURES
        if (figures / f"{name}.svg").is_file()
    ]
    env = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        finalize=lambda value: (
            visible(value) if type(value) is str else value
        ),  # before escaping; not our markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(number=number, change=change, shade=shade, command=run_command, mark=MARKS.get)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    )
    return env.get_template("report.html").render(
        c=comparison, pairs=side_by_side(rows, scorer, num_coloured), figures=images, style=style, script=script,
        policy=policy, num_coloured=num_coloured, levels=LEVELS,
    )  # fmt: skip
