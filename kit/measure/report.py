"""The one-page report: data in, HTML out. One file without links to anything: it opens from disk, offline."""

import base64
import functools
import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

FIGURES = (  # file name, caption
    ("sentiment", "Scores of the completions. Filled bars: the reward model. Outline: a judge that no training used. "
     "If the bars move to the right and the outline stays, suspect a hack."),
    ("frontier", "Score against KL(π‖π_ref). The grey curves need no training: best of n base samples, "
     "KL = log n - (n-1)/n, and π* ∝ π_ref exp(r/β), the best score for its KL (estimated from the base's samples). "
     "Good runs are near these curves on the left, and high on the right."),
    ("overoptimization", "The learned reward (open markers, dashed) and the gold reward behind it (filled, solid), by "
     "the distance from the base. Lines: the fits of Gao et al. 2022, with 95 % intervals over prompts. Dotted: there "
     "the gold reward turns; from there on, training for the learned one does harm."),
    ("training", "Training, from each run's metrics.jsonl. Bands: 95 % intervals over prompts."),
    ("metrics", "The metrics side by side. Whiskers: 95 % intervals over prompts."),
)  # fmt: skip
HERE = Path(__file__).parent
SHADES = tuple(map(math.log, (2, 5, 20)))  # |log pi/pi_ref| of a token with a light, medium, dark shade
MARKS = {"healthy": "●", "drifting": "▲", "hacked": "■", "undecided": "?"}
MAX_SAMPLES = 4  # of one prompt
MAX_TOKENS = 64_000  # of all models; six models x 64 prompts x 4 samples x 40 tokens are 3 MB


def shade(log_ratio: float) -> str:
    """CSS class of a token: p1..p3 if the policy says it more often than the reference, n1..n3 if less, or none."""
    level = sum(abs(log_ratio) >= limit for limit in SHADES)
    return f"{'p' if log_ratio > 0 else 'n'}{level}" if level else ""


def pieces(row: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """A completion as (token, log pi/pi_ref in nats); the end of the text is a token too: ∎.

    The reference itself, and a model with another tokenizer, give one piece with None.
    """
    if not any(row["log_ratios"] or ()):
        return [(row["completion"], None)]
    tokens = list(row["tokens_text"])
    if not tokens[-1] and not row["truncated"]:
        tokens[-1] = "∎"
    return list(zip(tokens, row["log_ratios"], strict=True))


def visible(text: str) -> str:
    """Text with U+FFFD for controls and lone surrogates, which HTML cannot hold, and for marks that reverse text."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]", "\ufffd", text)


def number(value: float | None) -> str:
    """Three significant digits, but no exponents: 0.00123, 0.512, 37.5, 1,234."""
    if value is None or math.isnan(value):
        return "-"
    value += 0.0 if abs(value) >= 0.0005 else -value  # no -0.000
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"


def change(entry: Mapping[str, float | None]) -> str:
    """An arrow where the paired interval of the difference from base leaves out zero."""
    low, high = entry["delta_low"], entry["delta_high"]
    if low is None or high is None:
        return ""
    return "▲" if low > 0 else "▼" if high < 0 else ""  # NaN, of a single prompt, says neither


def run_command(config: Mapping[str, Any]) -> str:
    """The command that made a run."""
    script = {"grpo": ["train.py"], "sft": ["-m", "baselines.sft"], "ppo": ["-m", "baselines.ppo"]}
    script["reward_model"] = ["-m", "baselines.reward_model"]
    method = str(config.get("method"))
    return shlex.join(["python", *script.get(method, [method]), *map(str, config.get("argv") or [])])


def side_by_side(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The completions of all models for the same prompt and the same random numbers, prompt by prompt.

    At most `MAX_SAMPLES` of a prompt and `MAX_TOKENS` in all: every prompt's first sample comes before any second.
    """
    together = list(enumerate(zip(*rows.values(), strict=True)))
    kept: dict[int, dict[str, Any]] = {}
    room = MAX_TOKENS
    for i, made in sorted(together, key=lambda pair: pair[1][0]["sample"]):
        room -= sum(r["tokens"] for r in made)
        sample = made[0]["sample"]
        if sample >= MAX_SAMPLES or (kept and room < 0):
            break
        kept[i] = {"prompt": made[0]["prompt"], "sample": sample, "cells": dict(zip(rows, made, strict=True))}
    return [kept[i] for i in sorted(kept)]


def asset(kind: str, *names: str) -> str:
    """The styles or scripts `names`, one after the other, as they lie in this folder."""
    return "".join((HERE / f"{name}.{kind}").read_text(encoding="utf-8") for name in names)


@functools.cache
def environment() -> Environment:
    """Templates of this folder. Whatever they are given is text, and is escaped."""
    env = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        # Before escaping; our own markup is of another type
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {f.__name__: f for f in (number, change, shade, pieces, run_command)}
    env.filters |= {"mark": MARKS.get, "json": functools.partial(json.dumps, indent=1, ensure_ascii=False)}
    return env


def articles(samples: Sequence[Mapping[str, Any]]) -> str:
    """The markup of what `side_by_side` gives, for a page with the style and the script called cells."""
    module: Any = environment().get_template("cells.html").module
    # The arrow keys start at the first token. Text cannot be taken for one: its < are escaped
    return str(module.articles(samples)).replace("<i ", '<i tabindex="0" ', 1)


def render(comparison: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> str:
    """The page for one `comparison.json`.

    `rows` are the rows of `Bench.rows` by model. `out` is the folder with the SVG files; a missing one is left out.
    A completion may contain `<script>`: text is escaped, and the page's policy lets only its own script and style run.
    """
    style, script = asset("css", "cells", "report"), asset("js", "cells", "report")
    images = [
        {"caption": caption, "data": base64.b64encode((out / f"{name}.svg").read_bytes()).decode()}
        for name, caption in FIGURES
        if (out / f"{name}.svg").is_file()
    ]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return environment().get_template("report.html").render(
        c=comparison,
        samples=side_by_side(rows),
        figures=images,
        style=style,
        script=script,
        policy="default-src 'none'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'".format(*digests),
    )  # fmt: skip
