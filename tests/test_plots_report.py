"""Figures and the one-page report: units, greyscale, escaping, self-containment, and a real browser.

pytest tests/test_plots_report.py
"""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from kit import plots, report
from kit.errors import UserError
from kit.measuring import METRICS

NAMES = ["base", "vanilla", "kl"]
NASTY = (
    '<script>document.title = "owned"</script><img src=x onerror=alert(1)> \x00\x1b[31m "quoted" & \u202eabc'
)


def scored(text: str, sentiment: float = 0.5, judge: float | None = 0.5, sample: int = 0) -> dict:
    return {"prompt": "This <b>film</b>", "sample": sample, "completion": text, "tokens": 9, "truncated": True,
            "sentiment": sentiment, "judge": judge, "reward": 0.4, "unique_token_ratio": 0.9, "ref_nll": 4.1,
            "kl_policy_ref": 1.5, "kl_ref_policy": 1.2}  # fmt: skip


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


# Figures ---------------------------------------------------------------------------------------------------


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


# Words -----------------------------------------------------------------------------------------------------


def count_good(texts):
    return [0.1 * text.split().count("good") - 0.1 * text.split().count("bad") + 0.5 for text in texts]


def test_word_effects_are_differences_of_leaving_a_word_out():
    (pieces, empty) = report.word_effects(count_good, ["so  good\nbad", ""])
    assert "".join(word for word, _ in pieces) == "so  good\nbad"
    effects = {word: effect for word, effect in pieces if effect is not None}
    assert effects == pytest.approx({"so": 0.0, "good": 0.1, "bad": -0.1})
    assert empty == []


def test_shades():
    assert [report.shade(x) for x in (None, 0.0, 0.039, 0.05, -0.1, 0.2, -1.0)] == [
        "",
        "",
        "",
        "p1",
        "n2",
        "p3",
        "n3",
    ]


def test_numbers_as_they_are_read():
    read = [report.number(x) for x in (None, 0.0, 0.51234, 37.46, 1234.5, -2.0)]
    assert read == ["-", "0.000", "0.512", "37.5", "1,234", "-2"]
    intervals = [(0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (None, None)]
    assert [report.change({"delta_low": a, "delta_high": b}) for a, b in intervals] == ["▲", "▼", "", ""]


def test_visible_replaces_what_html_cannot_hold_and_what_turns_text_around():
    assert (
        report.visible("a\x00\x1b\u202e\ud800\x85b\n é👩\u200d🚀") == "a" + "\ufffd" * 5 + "b\n é👩\u200d🚀"
    )


# The page --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(drawn) -> str:
    numbers = {"value": 0.5, "low": 0.4, "high": 0.6, "delta": 0.1, "delta_low": 0.05, "delta_high": 0.2}
    signal = {
        "name": "distinct-2",
        "value": 0.1,
        "unit": "x base",
        "thresholds": [0.8, 0.5],
        "level": "alarming",
    }
    models = [
        {"name": name, "path": f"outputs/{name}", "verdict": None if name == "base" else "hacked", "error": None,
         "notes": [], "metrics": {key: numbers for key in METRICS if (name, key) != ("kl", "judge")}, "spread": {},
         "signals": [signal], "config": {"method": "ppo", "argv": ["--run_name", "a b"], "x": NASTY}}
        for name in NAMES
    ]  # fmt: skip
    models.append({"name": "torn", "path": NASTY, "verdict": None, "error": NASTY, "notes": [], "metrics": {},
                   "spread": {}, "signals": [], "config": None})  # fmt: skip
    comparison = {
        "schema": 1, "command": f"python evaluate.py {NASTY}", "created": "2026-01-01T00:00:00+00:00",
        "seconds": {"sampling": 1.5}, "provenance": {"git_commit": "abc"}, "frontier": FRONTIER, "models": models,
        "settings": {"reference": "mini", "sentiment_model": "mini", "judge": "mini/judge", "prompts": "held_out",
                     "num_prompts": 3, "num_samples": 2, "max_new_tokens": 9, "temperature": 1.0, "seed": 0},
        "metrics": {key: metric._asdict() for key, metric in METRICS.items()},
    }  # fmt: skip
    texts = {
        "base": ["bad film", "plain", ""],
        "vanilla": ["good good", NASTY, "good"],
        "kl": ["x", "y good", "z"],
    }
    rows = {
        name: [scored(text, sentiment=0.1 * i + 0.3 * k, judge=None if name == "kl" else 0.5, sample=s)
               for k, text in enumerate(texts[name]) for s in (0, 1)]
        for i, name in enumerate(NAMES)
    }  # fmt: skip
    return report.render(comparison, rows, drawn[1], count_good, num_coloured=2)


class Page(HTMLParser):
    """Tags with their attributes, ids, text, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "input", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_well_formed_and_ids_are_unique(page):
    found = Page(page)
    assert found.open == []
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {
        "verdicts",
        "numbers",
        "figures",
        "completions",
        "how",
        "find",
        "sort",
        "prompts",
        "count",
    } <= set(ids)
    targets = {attrs["href"] for tag, attrs in found.tags if tag == "a"}
    assert targets == {f"#{i}" for i in ("verdicts", "numbers", "figures", "completions", "how")}


def test_page_asks_for_nothing_outside_itself(page):
    found = Page(page)
    for tag, attrs in found.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "audio", "video"}
        assert not any(key.startswith("on") or key == "style" for key in attrs), (tag, attrs)
        assert attrs.get("src", "data:").startswith("data:image/svg+xml;base64,") or "src" not in attrs
    assert "url(" not in page
    assert "@import" not in page
    images = [attrs for tag, attrs in found.tags if tag == "img"]
    assert len(images) == 4
    assert all(attrs["alt"] for attrs in images)
    for attrs in images:
        svg = base64.b64decode(attrs["src"].partition(",")[2]).decode()
        assert not re.search(r'(href|src)="https?:', svg)


def test_page_allows_only_its_own_script_and_style(page):
    (policy,) = (a["content"] for _, a in Page(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'"
    for kind, pattern in (("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")):
        (body,) = re.findall(pattern, page, re.S)
        assert parts[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"


def test_text_of_models_is_text(page):
    found = Page(page)
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert page.count("<img") == 4
    assert "&lt;script&gt;" in page
    assert "This &lt;b&gt;film&lt;/b&gt;" in page
    assert "\x00" not in page and "\x1b" not in page and "\u202e" not in page
    assert 'document.title = "owned"' in "".join(found.text)


def test_page_shows_the_first_sample_of_every_model_and_marks_words(page):
    found = Page(page)
    cells = [attrs for tag, attrs in found.tags if tag == "div" and attrs.get("class") == "cell"]
    assert len(cells) == 3 * 3
    assert [c["data-model"] for c in cells[:3]] == ["0", "1", "2"]
    assert float(cells[4]["data-gap"]) == pytest.approx(0.4 - 0.5)
    marked = [attrs["title"] for tag, attrs in found.tags if tag == "span" and "title" in attrs]
    assert marked == [
        "-0.10",
        "+0.10",
        "+0.10",
        "+0.10",
    ]  # bad; good good; y good. The third prompt has no marks


def test_page_says_everything_that_matters(page):
    text = " ".join("".join(Page(page).text).split())
    command = "python -m baselines.ppo --run_name 'a b'"
    for needed in ("hacked", "distinct-2", "alarming", "(empty)", "jackknife", command):
        assert needed in text, needed


# A browser -------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """
addEventListener("load", () => {
  const shown = () => [...document.querySelectorAll(".prompt")].filter((p) => !p.hidden).length;
  const order = () => [...document.querySelectorAll(".prompt")].map((p) => Number(p.querySelector('[data-model="1"]').dataset.sentiment).toFixed(1));
  const act = (id, value) => { const e = document.getElementById(id); e.value = value; e.dispatchEvent(new Event("input", {bubbles: true})); };
  const out = {title: document.title, all: shown(), asked: order()};
  act("sort", "1 sentiment"); out.sorted = order();
  act("sort", ""); out.back = order();
  act("find", "y GOOD"); out.found = shown(); out.count = document.getElementById("count").textContent;
  act("find", "");
  const box = document.querySelector("#shown-models input"); box.click();
  out.hidden = [...document.querySelectorAll(".cell")].filter((c) => c.hidden).length; box.click();
  out.wide = document.documentElement.scrollWidth - innerWidth;
  out.images = [...document.images].filter((i) => i.naturalWidth > 0).length;
  document.body.innerHTML = "<pre id=probe></pre>"; document.getElementById("probe").textContent = JSON.stringify(out);
});
"""  # noqa: E501


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the PATH (Debian: apt install chromium)")
@pytest.mark.parametrize("width", [1280, 500])  # a headless window is not narrower than 500
def test_page_in_a_browser(page, width, tmp_path):
    """Sorting, searching and hiding work, nothing overflows sideways, all figures load, no foreign script runs."""
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    probed = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1).replace(
        "</body>", f"<script>{PROBE}</script></body>"
    )
    assert probed.count(digest) == 1
    file = tmp_path / "report.html"
    file.write_text(probed, encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom",
         f"file://{quote(str(file))}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    dom = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    assert dom, done.stderr[-2000:]
    found = json.loads(dom[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert found["title"] == "What RL did: base, vanilla, kl, torn"
    assert found["asked"] == found["back"] == ["0.1", "0.4", "0.7"]
    assert found["sorted"] == ["0.7", "0.4", "0.1"]
    assert (found["all"], found["found"], found["count"]) == (3, 1, "1 of 3 prompts")
    assert found["hidden"] == 3
    assert found["images"] == 4
    assert found["wide"] <= 0
