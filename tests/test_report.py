"""The one-page report: what it says, escaping, self-containment, and what a person does with it in a real browser.

pytest tests/test_report.py
"""

import base64
import hashlib
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kit.measure import report
from tests.browser import Browser

NASTY = '<script>alert("owned")</script><img src=x onerror=alert(1)> \x00\x1b[31m "quoted" & \u202eabc'
METRICS = {
    "sentiment": {"label": "Sentiment", "unit": "P(positive)", "meaning": "by the reward model"},
    "kl_policy_ref": {"label": "KL(π‖π_ref)", "unit": "nats/completion", "meaning": "how far from base"},
    "length": {"label": "Length", "unit": "tokens", "meaning": f"end included {NASTY}"},
}


def row(text: str, sentiment: float = 0.5, judge: float | None = 0.5, sample: int = 0, prompt: str = "The film",
        ratios: list[float] | None = None, truncated: bool = True, **more: float | None) -> dict:  # fmt: skip
    """One row as evaluate.py gives it: the tokens are the words, each with its blank; the last is the end of text."""
    tokens = re.findall(r"\s*\S+|\s+$", text) + [""] * (not truncated)
    return {"prompt": prompt, "sample": sample, "completion": text, "tokens": len(tokens), "truncated": truncated,
            "sentiment": sentiment, "judge": judge, "reward": 0.4, "unique_token_ratio": 0.9, "ref_nll": 4.1,
            "kl_policy_ref": 1.5, "kl_ref_policy": 1.2, "tokens_text": tokens,
            "log_ratios": [0.0] * len(tokens) if ratios is None else ratios, **more}  # fmt: skip


def foreign(text: str, **more) -> dict:
    """A row of a model with another tokenizer."""
    none = dict.fromkeys(("tokens_text", "log_ratios", "ref_nll", "kl_policy_ref", "kl_ref_policy"))
    return {**row(text, **more), **none}


def model(name: str, **more) -> dict:
    numbers = {"value": 0.5, "low": 0.4, "high": 0.6, "delta": 0.1, "delta_low": 0.05, "delta_high": 0.2}
    base = {"delta": None, "delta_low": None, "delta_high": None} if name == "base" else {}
    signal = {"name": "zero-variance groups", "value": 0.5, "unit": "nats/token off", "thresholds": [0.25, 0.5],
              "level": "suspicious"}  # fmt: skip
    return {"name": name, "path": f"outputs/{name}", "price": 0.05,
            "verdict": None if name == "base" else "hacked", "error": None,
            "notes": [], "metrics": {key: {**numbers, **base} for key in METRICS},
            "spread": {"length": {"std": 1.0, "min": 2.0, "max": 9.0}}, "signals": [signal] * 7,
            "config": {"method": "ppo", "argv": ["--run_name", "a b"], "x": NASTY}, **more}  # fmt: skip


def comparison(models: list[dict], num_prompts: int, num_samples: int) -> dict:
    return {
        "schema": 1, "command": f"python evaluate.py {NASTY}", "created": "2026-01-01T00:00:00+00:00",
        "seconds": {"sampling": 1.5}, "provenance": {"git_commit": "abc"}, "models": models, "metrics": METRICS,
        "settings": {"reference": "mini", "sentiment_model": "mini", "judge": "mini/judge", "prompts": "held_out",
                     "num_prompts": num_prompts, "num_samples": num_samples, "max_new_tokens": 9, "temperature": 1.0,
                     "seed": 0},
    }  # fmt: skip


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> Path:
    """Five figures of the shapes that the real ones have."""
    folder = tmp_path_factory.mktemp("figures")
    for (name, _), height in zip(report.FIGURES, (560, 350, 380, 430, 400), strict=True):
        size = f'width="756pt" height="{height}pt" viewBox="0 0 756 {height}"'
        text = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><rect width="300" height="300"/></svg>'
        (folder / f"{name}.svg").write_text(text)
    return folder


# What it says ----------------------------------------------------------------------------------------------


def test_a_token_is_shaded_by_how_many_times_as_likely_it_became():
    times = [1.0, 1.9, 2.1, 5.1, 21.0, 1 / 1.9, 1 / 2.1, 1 / 5.1, 1e-9]
    assert [report.shade(math.log(x)) for x in times] == ["", "", "p1", "p2", "p3", "", "n1", "n2", "n3"]


def test_pieces_are_tokens_with_their_log_ratios():
    assert report.pieces(row("so good", ratios=[0.5, -1.0])) == [("so", 0.5), (" good", -1.0)]
    ended = row("so good", ratios=[0.0, 0.0, 2.0], truncated=False)
    assert report.pieces(ended) == [("so", 0.0), (" good", 0.0), ("∎", 2.0)]
    # Cut in the middle of a letter: the last token shows nothing, and is not the end of the text
    cut = row("so", ratios=[1.0, 1.0]) | {"tokens_text": ["so", ""]}
    assert report.pieces(cut) == [("so", 1.0), ("", 1.0)]


def test_the_reference_and_a_foreign_tokenizer_have_no_log_ratios_to_show():
    assert report.pieces(row("so good")) == [("so good", None)]
    assert report.pieces(foreign("so good")) == [("so good", None)]


def test_an_arrow_stands_where_the_interval_of_the_change_leaves_out_zero():
    def arrow(low, high):
        return report.change({"delta_low": low, "delta_high": high})

    nan = float("nan")
    assert [arrow(0.1, 0.2), arrow(-0.2, -0.1), arrow(-0.1, 0.1)] == ["▲", "▼", ""]
    assert [arrow(None, None), arrow(nan, nan)] == ["", ""]  # the base; one prompt alone


def test_numbers_as_they_are_read():
    read = [report.number(x) for x in (None, float("nan"), 0.0, -0.0002, 0.51234, 37.46, 1234.5, -2.0)]
    assert read == ["-", "-", "0.000", "0.000", "0.512", "37.5", "1,234", "-2"]
    intervals = [(0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (None, None)]
    assert [report.change({"delta_low": a, "delta_high": b}) for a, b in intervals] == ["▲", "▼", "", ""]


def test_visible_replaces_what_html_cannot_hold_and_what_turns_text_around():
    assert (
        report.visible("a\x00\x1b\u202e\ud800\x85b\n é👩\u200d🚀") == "a" + "\ufffd" * 5 + "b\n é👩\u200d🚀"
    )


def test_side_by_side_keeps_first_samples_before_second_ones(monkeypatch):
    """3 prompts x 6 samples of 2 tokens by 2 models: 4 samples a prompt, or as many as the room allows."""
    rows = {
        name: [row(f"{name} {p}{s}", sample=s, prompt=str(p)) for p in range(3) for s in range(6)]
        for name in ("base", "kl")
    }

    def kept() -> list[tuple[str, int]]:
        return [(e["prompt"], e["sample"]) for e in report.side_by_side(rows)]

    assert kept() == [(str(p), s) for p in range(3) for s in range(4)]
    assert report.side_by_side(rows)[5]["cells"]["kl"]["completion"] == "kl 11"
    monkeypatch.setattr(report, "MAX_TOKENS", 4 * 4)  # each entry has two texts of two tokens
    assert kept() == [("0", 0), ("0", 1), ("1", 0), ("2", 0)]
    monkeypatch.setattr(report, "MAX_TOKENS", 1)
    assert kept() == [("0", 0)]


# The page --------------------------------------------------------------------------------------------------

NAMES = ["base", "vanilla", "<b onclick=alert(2)>kl</b>"]
PREDICTION = {"text": f"It will say great {NASTY}", "time": "2026-01-01 12:00"}
PROMPTS = ["The film", "A base camp", "<img src=x onerror=alert(3)>"]
TEXTS = {  # two samples of each prompt
    "base": ["bad film", "a", "plain", "b", "so so", "c"],
    "vanilla": ["good good", "good", NASTY, "fine", "good", "nice"],
    NAMES[2]: ["x", "y", "y good", "z", "", "w"],
}


@pytest.fixture(scope="module")
def page(figures) -> str:
    captured = {
        "value": -12.3,
        "low": -14.0,
        "high": -11.0,
        "delta": None,
        "delta_low": None,
        "delta_high": None,
    }
    models = [model(name) for name in NAMES]
    models[1]["metrics"] = models[1]["metrics"] | {"captured": captured}
    models[1]["config"] = models[1]["config"] | {"prediction": PREDICTION}
    models.append({"name": "torn", "path": NASTY, "verdict": None, "error": NASTY, "notes": [], "metrics": {},
                   "spread": {}, "signals": [], "config": None})  # fmt: skip
    rows = {"base": [], "vanilla": [], NAMES[2]: []}
    for i in range(6):
        here = {"prompt": PROMPTS[i // 2], "sample": i % 2}
        rows["base"].append(row(TEXTS["base"][i], 0.3, 0.2, **here))
        made = row(
            TEXTS["vanilla"][i], (0.4, 0.9, 0.7, 0.1, 0.1, 0.8)[i], (0.3, 0.1, 0.1, 0.5, 0.9, 0.5)[i], **here
        )
        made["log_ratios"] = [1.0 + k - 2 * (i == 2) for k in range(made["tokens"])]
        rows["vanilla"].append(made)
        rows[NAMES[2]].append(foreign(TEXTS[NAMES[2]][i], judge=0.5 if i == 4 else None, **here))
    return report.render(comparison(models, 3, 2), rows, figures)


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


def test_page_is_well_formed_and_links_lead_somewhere(page):
    found = Page(page)
    assert found.open == []
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"] for tag, attrs in found.tags if tag == "a"}
    assert {"#verdicts", "#captured", "#numbers", "#figures", "#completions", "#how", "#of-length"} <= targets
    assert targets <= {f"#{i}" for i in ids}


def test_page_asks_for_nothing_outside_itself(page):
    found = Page(page)
    for tag, attrs in found.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "audio", "video"}
        assert not any(key.startswith("on") or key == "style" for key in attrs), (tag, attrs)
        assert attrs.get("src", "data:").startswith("data:image/svg+xml;base64,") or "src" not in attrs
    assert "url(" not in page
    assert "@import" not in page
    images = [attrs for tag, attrs in found.tags if tag == "img"]
    assert len(images) == 5
    assert all(attrs["alt"] for attrs in images)


def test_page_allows_only_its_own_script_and_style(page):
    (policy,) = (a["content"] for _, a in Page(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'"
    for kind, pattern in (("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")):
        (body,) = re.findall(pattern, page, re.S)
        assert parts[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"


def test_text_of_models_prompts_and_names_is_text(page):
    found = Page(page)
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert page.count("<img") == 5
    assert "\x00" not in page and "\x1b" not in page and "\u202e" not in page
    text = "".join(found.text)
    assert 'alert("owned")' in text
    assert "<img src=x onerror=alert(3)>" in text
    assert "<b onclick=alert(2)>kl</b>" in text


def test_page_shows_every_sample_and_marks_tokens(page):
    found = Page(page)
    cells = [attrs for tag, attrs in found.tags if attrs.get("class") == "cell"]
    assert [c["data-model"] for c in cells] == ["0", "1", "2"] * 6
    assert (cells[1]["data-sentiment"], cells[1]["data-judge"], cells[1]["data-kl"]) == ("0.4", "0.3", "1.5")
    assert not {"data-judge", "data-kl", "data-nll"} & set(cells[2])
    tokens = [(attrs.get("class"), attrs["title"]) for tag, attrs in found.tags if tag == "i"]
    assert tokens[:3] == [("p1", "+1.00"), ("p2", "+2.00"), ("p1", "+1.00")]  # good good; good
    assert ("n1", "-1.00") in tokens
    assert len(tokens) == sum(
        len(text.split()) for text in TEXTS["vanilla"]
    )  # base and foreign ones have none


def test_page_says_everything_that_matters(page):
    text = " ".join("".join(Page(page).text).split())
    command = "python -m baselines.ppo --run_name 'a b'"
    for needed in ("hacked", "zero-variance groups", "suspicious", "(empty)", "jackknife", command):
        assert needed in text, needed


def test_prediction_stands_beside_what_came_out(page):
    text = " ".join("".join(Page(page).text).split())
    assert text.count("Predicted") == 1  # one run has one
    assert "Predicted 2026-01-01 12:00It will say great <script>" in text
    assert "Came outSentiment 0.500, KL(π‖π_ref) 0.500, Captured -12.3." in text


def test_captured_is_shown_as_it_is_and_only_where_it_is_known(page, figures):
    text = " ".join("".join(Page(page).text).split())
    assert "(J(π) - J(π_ref)) / (J* - J(π_ref))" in text
    assert "vanilla β 0.05 ◀ -12.3 -14 to -11" in text  # further left than the axis goes
    (bar,) = (attrs for tag, attrs in Page(page).tags if tag == "rect")
    assert (float(bar["x"]), float(bar["width"]), bar["class"]) == (-12.3, 12.3, "below")
    without = report.render(comparison([model("base")], 1, 1), {"base": [row("x")]}, figures)
    assert 'id="captured"' not in without and "#captured" not in without.partition("</style>")[2]


def test_five_models_beside_base_on_all_prompts_stay_under_three_megabytes(figures):
    """Six models x 64 prompts x 8 samples x 40 tokens. The figures of such a comparison add 0.85 MB."""
    words, samples = " fun" * 40, [s for _ in range(64) for s in range(8)]
    names = ["base", "a", "b", "c", "d", "e"]
    rows = {
        name: [row(words, sample=s, ratios=[-1.25, 0.1, 0.1, 0.1] * 10) for s in samples] for name in names
    }
    rows["base"] = [row(words, sample=s) for s in samples]
    text = report.render(comparison([model(n) for n in names], 64, 8), rows, figures)
    assert len(text.encode()) < 3.0e6 - 0.85e6


# In a browser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def file(page, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


def shown(browser: Browser) -> list[str]:
    """The vanilla text of every entry that is shown, in order."""
    return browser.evaluate(
        "[...document.querySelectorAll('.sample')].filter((s) => s.checkVisibility())"
        ".map((s) => s.querySelector('[data-model=\"1\"] .text').textContent.replace(/\\s*…$/, ''))"
    )


def choose(browser: Browser, name: str, value: str) -> None:
    """As a person who picks from a list: the value, and the event that comes with it."""
    browser.evaluate(
        f"(() => {{ const e = document.querySelector('.controls [name={name}]'); e.value = '{value}';"
        " e.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def write(browser: Browser, name: str, text: str) -> None:
    browser.click(f".controls [name={name}]")
    browser.evaluate("document.activeElement.select()")
    if text:
        browser.type(text)
    else:
        browser.press("Backspace")


def test_nothing_foreign_runs_and_nothing_is_asked_for(browser, file):
    browser.open(file)
    browser.click("#completions h2")
    assert browser.evaluate("document.title") == f"What RL did: {', '.join(NAMES)}, torn"
    assert browser.evaluate("[...document.images].filter((i) => i.naturalWidth > 0).length") == 5
    assert browser.problems == []
    assert browser.requests == [file]


def test_the_policy_stops_what_escaping_would_let_through(browser, page, tmp_path):
    """The same page with the markup of a completion let in: no script of it runs, nothing is loaded."""
    holed = tmp_path / "holed.html"
    holed.write_text(page.replace("</h1>", "</h1>" + NASTY.replace("\x00", ""), 1), encoding="utf-8")
    browser.open(holed.as_uri())
    assert (
        len(browser.problems) == 3
    )  # the script, the image, its handler: refused, each by the policy, and no dialog
    assert all("Content Security Policy" in p for p in browser.problems)


def test_sorting(browser, file):
    browser.open(file)
    first = [
        TEXTS["vanilla"][0],
        report.visible(NASTY),
        TEXTS["vanilla"][4],
    ]  # 0.4, 0.7, 0.1; judge 0.3, 0.1, 0.9
    assert shown(browser) == first
    choose(browser, "of", "1")
    choose(browser, "order", "-1")
    assert shown(browser) == [first[1], first[0], first[2]]
    choose(browser, "order", "1")
    assert shown(browser) == [first[2], first[0], first[1]]
    choose(browser, "key", "gap")  # 0.1, 0.6, -0.8
    choose(browser, "order", "-1")
    assert shown(browser) == [first[1], first[0], first[2]]
    choose(browser, "order", "")
    assert shown(browser) == first
    choose(browser, "key", "judge")
    choose(browser, "of", "2")  # the judge knows one of its texts: that comes first, and the others as asked
    choose(browser, "order", "-1")
    assert shown(browser) == [first[2], first[0], first[1]]
    assert browser.problems == []


def test_three_prompts_come_first_and_all_others_on_demand(browser, wide):
    browser.open(wide)
    first = (
        "document.querySelector('section').id + ' ' + document.querySelector('.controls').checkVisibility()"
    )
    assert (browser.evaluate(first), len(shown(browser))) == ("completions false", 3)
    browser.click("#everything")
    assert (browser.evaluate(first), len(shown(browser))) == ("completions true", 12)


def test_filtering_by_text_score_and_model(browser, file):
    browser.open(file)
    browser.click("#everything")
    count = "document.querySelector('[name=count]').textContent"
    first = shown(browser)
    assert browser.evaluate(count) == "3 of 6"
    write(browser, "find", "Y GOOD")
    assert shown(browser) == [first[1]]
    assert browser.evaluate(count) == "1 of 6"
    write(browser, "find", "base")  # in a prompt; the model of that name stands everywhere
    assert shown(browser) == [first[1]]
    write(browser, "find", "")
    browser.click(".controls [name=all]")
    assert len(shown(browser)) == 6
    choose(browser, "of", "1")
    write(browser, "low", "0.4")
    write(browser, "high", "0.8")
    assert shown(browser) == [
        TEXTS["vanilla"][0],
        report.visible(NASTY),
        TEXTS["vanilla"][5],
    ]  # 0.4, 0.7, 0.8
    choose(browser, "key", "judge")
    choose(browser, "of", "2")  # what the judge does not know lies between no two numbers
    assert shown(browser) == [TEXTS["vanilla"][4]]
    write(browser, "low", "")
    write(browser, "high", "")
    assert len(shown(browser)) == 6
    browser.click(".controls [name=model][value='0']")
    assert (
        browser.evaluate("[...document.querySelectorAll('.cell')].filter((c) => c.checkVisibility()).length")
        == 12
    )
    write(browser, "find", "plain")  # stands only in a text of the model that was put away
    assert shown(browser) == []
    assert browser.problems == []


def test_the_number_of_a_token_by_pointer_finger_and_keys(browser, file):
    told = "document.getElementById('token').textContent"
    browser.open(file)
    browser.hover(".cell[data-model='1'] i:nth-of-type(2)")
    good = "vanilla: “ good” log π/π_ref +2.00 nats, 7.4 times as likely as under base"
    assert browser.evaluate(told) == good
    browser.tap(".cell[data-model='1'] i")
    assert "“good” log π/π_ref +1.00 nats, 2.7 times" in browser.evaluate(told)
    browser.press("ArrowRight")  # a tap takes the focus too
    assert browser.evaluate(told) == good
    browser.open(file)
    browser.click("#everything")
    browser.click("[name=model][value='2']")
    browser.press("Tab")
    assert "“good” log π/π_ref +1.00" in browser.evaluate(told)  # all texts are one stop
    browser.press("ArrowRight")
    assert "“ good” log π/π_ref +2.00" in browser.evaluate(told)
    browser.press("ArrowRight")  # on to the next text that is shown, not to the second sample
    assert "1/2.7 as likely" in browser.evaluate(told)
    browser.press("ArrowDown")
    assert "“good” log π/π_ref +1.00" in browser.evaluate(told)
    browser.press("ArrowUp")
    browser.press("ArrowUp")
    assert browser.evaluate("document.activeElement === document.querySelector('.text i')")
    browser.press("ArrowLeft")  # nothing is before the first
    assert browser.evaluate("document.activeElement === document.querySelector('.text i')")
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.id") == "paired"
    assert browser.problems == []


def test_differences_from_base_stand_in_the_same_table(browser, file):
    browser.open(file)
    cell = "document.querySelectorAll('.numbers tbody td')[1].innerText.replace(/\\s+/g, ' ').trim()"
    assert browser.evaluate(cell) == "0.500 ▲ 0.400 to 0.600"
    browser.click("#paired")
    assert browser.evaluate(cell) == "+0.100 ▲ 0.050 to 0.200"


@pytest.fixture(scope="module", params=[1, 3, 5])
def wide(request, figures, tmp_path_factory) -> str:
    """1, 3 and 5 models beside base, a hack's long texts, a name and a path without a gap."""
    names = ["base", "hack", "kl-0.05", "a" * 40, "ppo", "sft"][: request.param + 1]
    captured = {"value": 0.4, "low": -0.7, "high": 1.4, "delta": None, "delta_low": None, "delta_high": None}
    prediction = {
        "text": "The score rises to 1 and the sentences fall apart. " * 2,
        "time": "2026-01-01T12:00:00+00:00",
    }
    models = [model(n, path="outputs/" + "x" * 40) for n in names]
    models[-1]["notes"] = ["y" * 80]
    for m in models:
        m["metrics"] = (
            m["metrics"] | {f"m{i}": m["metrics"]["length"] for i in range(16)} | {"captured": captured}
        )
        m["config"] = {"method": "grpo", "argv": ["--kl_type", "forward"], "prediction": prediction} | {
            f"setting_{i}": i for i in range(150)
        }
    data = comparison(models, 12, 2)
    data["command"] = "python evaluate.py base hack=outputs/hack"
    data["metrics"] = METRICS | {f"m{i}": METRICS["sentiment"] for i in range(16)}
    prose = " a word of a text" * 8
    words = {"hack": " stunning" * 30 + " " + "w" * 70 + " " + "!" * 20}
    rows = {n: [row(words.get(n, prose), prompt=f"Prompt {p} of this", sample=s) for p in range(12) for s in range(2)]
            for n in names}  # fmt: skip
    for made in rows["hack"]:
        made["log_ratios"] = [2.0] * made["tokens"]
    path = tmp_path_factory.mktemp("wide") / f"{request.param}.html"
    path.write_text(report.render(data, rows, figures), encoding="utf-8")
    return path.as_uri()


def test_nothing_reaches_out_of_its_place_at_any_width(browser, wide):
    boxes = "[...document.querySelectorAll('.card, .cell, .captured, .controls')]"
    beyond = f"{boxes}.filter((e) => e.scrollWidth > e.clientWidth + 1).length"
    for dark in (False, True):
        browser.open(wide, dark=dark)
        for width in (1920, 1400, 1280, 768, 390, 320):
            browser.resize(width)
            assert (browser.overflow(), browser.evaluate(beyond)) == (0, 0), width
    assert browser.problems == []


def test_dark_mode_turns_the_paper_dark_and_print_is_on_white(browser, file):
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.open(file, dark=True)
    assert browser.evaluate(paper) == "rgb(25, 25, 24)"
    browser.call(
        "Emulation.setEmulatedMedia",
        media="print",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    assert browser.evaluate(paper) == "rgb(255, 255, 255)"
    browser.call("Emulation.setEmulatedMedia", media="")


def test_print_has_at_most_six_pages_and_no_configuration(browser, wide, tmp_path):
    browser.open(wide)
    browser.pdf(tmp_path / "report.pdf")
    pages = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "report.pdf").read_bytes()))
    assert 3 <= pages <= 6
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert not browser.evaluate(
        "[...document.querySelectorAll('details, .controls, nav')].some((e) => e.checkVisibility())"
    )
    assert len(shown(browser)) == 3
    browser.call("Emulation.setEmulatedMedia", media="")
