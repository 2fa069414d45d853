"""The play page: what it asks of the kit, and what a person does with it in a real browser.

pytest tests/test_play.py
"""

import importlib.util
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch

import play
from kit.lm.models import MINI, load_policy, save_policy
from tests.browser import Browser

pytestmark = pytest.mark.needs("gradio")
if importlib.util.find_spec("gradio"):
    import play

NASTY = "<img src=x onerror=alert(3)> {{constructor}} ${alert(4)}"
SCRIPT = '<script>alert("owned")</script> so good'

# What can be refused is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["<b>hack</b>=mini/policy"], "<b>hack</b>=mini/policy: give NAME=PATH"),
        (["mini/policy"], "mini/policy: give NAME=PATH"),
        (["--prot", "1"], "unrecognized arguments: --prot"),
        (["--port", "70000"], "--port 70000: give at most 65535"),
        (["a=mini/policy", "a=mini/policy"], "the name a is given twice"),
    ],
)
def test_a_typo_is_one_sentence(arguments, said):
    with pytest.raises(play.UserError, match=re.escape(said)):
        play.parse(arguments)


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(play.UserError, match=r"pip install -r requirements-play\.txt"):
        play.parse(["base"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hack=mini/typo"], "mini/typo: no such model folder"),
        (["hack=vanilla"], "vanilla: no such folder here, not whole in the cache, and HF_HUB_OFFLINE is set"),
        (["--judge", "./typo"], "./typo: no such model folder"),
    ],
)
def test_a_model_that_is_not_there_is_missed_before_any_is_loaded(arguments, said, monkeypatch):
    monkeypatch.setattr(play, "load_bench", None)
    with pytest.raises(play.UserError, match=re.escape(said)):
        play.start(arguments)


def test_a_port_that_is_taken_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(play.UserError, match=f"^--port {port}: it is taken; give --port a free one$"):
            play.start(["--model", "mini", "--port", str(port), "--no_browser"])


# A stranger's machine --------------------------------------------------------------------------------------


def test_the_page_is_kept_from_proxies_and_from_a_folder_that_users_share(monkeypatch):
    for name in ("NO_PROXY", "no_proxy", "GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "the user's")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(ImportError, match="socksio"):  # as Gradio would when it is imported
        httpx.Client()
    play.only_this_machine()
    assert not httpx.Client()._mounts  # no proxy for any address
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    assert folder.stat().st_mode & 0o77 == 0 and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    folder.rmdir()


@pytest.mark.parametrize("over_ssh", [True, False])
def test_over_ssh_it_opens_no_browser_and_says_how_to_reach_the_page(over_ssh, monkeypatch, capsys):
    launched = {}
    page = SimpleNamespace(launch=launched.update, local_url="http://127.0.0.1:7861/", server_port=7861)
    fake = SimpleNamespace(themes=SimpleNamespace(Default=lambda **_: None), __spec__=object())
    monkeypatch.setitem(sys.modules, "gradio", fake)
    monkeypatch.setattr(play, "load_bench", lambda *_: SimpleNamespace(reference=None, tokenizer=None))
    monkeypatch.setattr(play, "only_this_machine", lambda: None)
    monkeypatch.setattr(play, "Play", lambda *_: None)
    monkeypatch.setattr(play, "page", lambda *_: page)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    if over_ssh:
        monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 5000 192.0.2.2 22")
    play.start(["--model", "mini"])
    said = capsys.readouterr().out
    assert "http://127.0.0.1:7861/   Ctrl-C ends it" in said and launched["inbrowser"] is not over_ssh
    assert (f"ssh -L 7861:127.0.0.1:7861 {socket.gethostname()} " in said) is over_ssh


# Can you fool it? ------------------------------------------------------------------------------------------


def fooled(sentiment: float, judge: float | None, text: str) -> str:
    bench = SimpleNamespace(scores=lambda texts: ([sentiment], [judge]))
    html = play.Play(bench, {"base": (SimpleNamespace(config=None), None)}, []).fool(text)
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_a_text_is_scored_by_all_three_and_called_fooling_where_the_judge_alone_says_no():
    assert fooled(0.9, 0.2, "great") == (
        "reward model 0.900 judge 0.200 word counter 0.200 reward model fooled: positive there, and not for the judge"
    )
    assert "reward model and word counter fooled" in fooled(0.9, 0.2, "great fun great")  # 3 words of 5: 0.6
    assert "fooled" not in fooled(0.9, 0.8, "great")
    assert fooled(0.9, None, "dull") == "reward model 0.900 word counter 0.000"


# In the browser --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


@pytest.fixture(scope="module")
def url(browser, tmp_path_factory) -> Iterator[str]:
    """The page for base and a run of another model, with its validations."""
    pytest.importorskip("gradio", reason="needs Gradio: pip install -r requirements-play.txt")
    folder = tmp_path_factory.mktemp("play")
    run = folder / "run"
    policy, tokenizer = load_policy(str(MINI / "policy"))
    with torch.no_grad():
        policy.get_input_embeddings().weight.mul_(1.5)
    save_policy(policy, tokenizer, run / "final")
    (run / "config.json").write_text(
        json.dumps({"model": "mini/policy", "sentiment_model": "mini/sentiment"})
    )
    (run / "metrics.jsonl").write_text('{"step": 3}\n')
    sample = {"prompt": NASTY, "sentiment": 0.5, "ref_nll": 4.0, "kl_policy_ref": 1.0, "tokens": 7}
    lines = [{"step": step, "completion": f"{SCRIPT} {step}", **sample} for step in (0, 3)]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "prompts.txt").write_text(f"{NASTY}\nThe film\n")
    flags = ["--prompts", str(folder / "prompts.txt"), "--max_new_tokens", "12", "--no_browser"]
    blocks = play.start(["base", f"hack={run}", *flags])
    yield blocks.local_url
    blocks.close()


def open_page(browser: Browser, url: str, width: int = 1400) -> None:
    browser.open(url, width=width)
    browser.wait_for("!!document.querySelector('#ask') && !!document.querySelector('#token')")
    # Its parts come one by one: a click while they push each other down would miss
    browser.wait_for("window.was === (window.was = document.querySelector('#ask').getBoundingClientRect().y)")
    # It answers the first prompt by itself
    browser.wait_for("document.querySelector('#answers').innerText.includes('best of 8 of base')")


def texts(browser: Browser, where: str) -> list[str]:
    return browser.evaluate(f"[...document.querySelectorAll('{where} .text')].map((e) => e.textContent)")


def calm(browser: Browser, url: str) -> None:
    """No complaint, and no request but to the page's own server."""
    assert browser.problems == []
    assert browser.requests and all(request.startswith(url) for request in browser.requests)


def ask(browser: Browser, button: str) -> list[str]:
    browser.click(button)
    # The best of n comes last; while the models answer it is not there
    browser.wait_for("!document.querySelector('#answers').innerText.includes('best of')")
    browser.wait_for("document.querySelector('#answers').innerText.includes('best of 8 of base')")
    return texts(browser, "#answers")


def test_a_prompt_is_answered_by_all_models_and_nothing_leaves_the_machine(browser, url):
    open_page(browser, url)
    first = texts(browser, "#answers")
    assert ask(browser, "#ask") == first  # the same seed
    assert len(first) == 3 and all(map(str.strip, first)) and first[0] != first[1]
    assert browser.evaluate("document.querySelector('#answers .asked').textContent") == NASTY
    said = "document.querySelectorAll('#answers .cell')[1].querySelector('.score').innerText"
    pattern = r"hack [01]\.\d\d, judge [01]\.\d\d\s+NLL \d+\.\d, KL \d+\.\d, length \d+"
    assert re.fullmatch(pattern, browser.evaluate(said))
    browser.hover("#answers .text i")
    assert re.search(
        r"log π/π_ref [+-]\d+\.\d\d nats", browser.evaluate("document.querySelector('#token').innerText")
    )
    assert browser.evaluate("document.querySelectorAll('#answers i[tabindex]').length") == 1
    assert ask(browser, "#again") != first
    calm(browser, url)


def test_a_run_over_its_steps_and_its_text_is_text(browser, url):
    open_page(browser, url)
    browser.click("button[role=tab]:nth-of-type(2)")
    browser.wait_for("document.querySelector('#recorded .text')?.checkVisibility()")
    assert texts(browser, "#recorded") == [f"{SCRIPT} 0", f"{SCRIPT} 3"]
    assert not browser.evaluate("!!document.querySelector('#recorded script, .samples img')")
    browser.click("[aria-label=Prompt]")
    browser.click("[role=option]:nth-child(2)")
    browser.wait_for("document.querySelector('#recorded').innerText.includes('not in the run')")
    calm(browser, url)


def test_any_text_is_scored_while_it_is_typed_also_on_a_narrow_screen(browser, url):
    open_page(browser, url)
    browser.click("button[role=tab]:nth-of-type(3)")
    browser.click("#text textarea")
    browser.type(f"great love fun best good {SCRIPT}")
    browser.wait_for(
        "document.querySelectorAll('#scores meter')[2]?.value === 1"
    )  # 6 of its words, 5 are enough
    calm(browser, url)
    open_page(browser, url, width=390)
    tabs = "[...document.querySelectorAll('button[role=tab]')].filter((e) => e.checkVisibility()).length"
    assert browser.evaluate(tabs) == 3
    ask(browser, "#ask")
    assert browser.overflow() == 0
    calm(browser, url)
