"""Type a prompt and see the completions of several models, token by token, in your browser.

    python play.py base hack=outputs/vanilla cure=outputs/forward-0.05

A model is NAME=PATH as in evaluate.py; `base`, the reference model, always takes part. The page is served on 127.0.0.1
only and loads nothing from other machines. It needs `pip install -r requirements-play.txt`.
"""

# ruff: noqa: E402 - flags are checked, and libraries silenced, before anything heavy is imported
from kit.base.screen import quiet

quiet(__name__)

import argparse
import atexit
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from kit.base.cli import BASE, Parser, at_least_1, named_paths
from kit.base.errors import UserError, run_main, told_in_one_line
from kit.base.files import user_path


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """The flags, and the models' paths by name. Raises `UserError` for a wrong flag, or without Gradio."""
    parser = Parser("Play with the models in the browser, on this machine only.")
    add = parser.add_argument
    add("models", nargs="*", metavar="NAME=PATH", help="run folder, checkpoint, LoRA adapter, id; or: base")
    parser.add_sampling_flags()
    parser.set_defaults(num_samples=1)  # an answer should come at once
    add("--judge", type=user_path, default="auto", help="the judge: auto (bundled), none, id, or path")
    add("--port", type=at_least_1, metavar="N", help="of 127.0.0.1 (default: the first free one from 7860)")
    add("--no_browser", action="store_true", help="print the address, and open no browser")
    args = parser.parse_intermixed_args(argv)
    paths = named_paths(args.models)
    if args.port and args.port > 65_535:
        raise UserError(f"--port {args.port}: give at most 65535")
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page is made with Gradio: pip install -r requirements-play.txt")
    return args, paths


if __name__ == "__main__":  # a typo is answered before torch is imported, which takes seconds
    with told_in_one_line():
        parse(sys.argv[1:])

from markupsafe import Markup

from kit.base.runs import read_samples
from kit.lm.models import context, display_name, find_model
from kit.measure.comparison import Model, chosen_judge, chosen_pair, load_bench, load_measured, one_sentence
from kit.measure.frontier import kl_of_best
from kit.measure.measuring import POSITIVE, Bench, Row
from kit.measure.report import articles, asset, number, visible
from sentiment import word_count_score

Policy = tuple[Any, Any]  # model, tokenizer
LEGEND = """Numbers: P(positive) by the reward model and by the judge, reference NLL in nats per token, KL(π‖π_ref) in
nats, length in tokens. A token's colour is log π/π_ref: <span class="p1">at least 2 times</span>
<span class="p2">5 times</span> <span class="p3">20 times</span> as likely as under base,
<span class="n1">at most 1/2</span> <span class="n2">1/5</span> <span class="n3">1/20</span>; ∎ ends a text. Point at a
token, tap it, or use the arrow keys, to see its number."""

# ---- what the models say -----------------------------------------------------------------------------------


def note(text: object) -> str:
    """A sentence instead of an answer."""
    return Markup('<p class="note">{}</p>').format(visible(str(text)))


def streamed(bench: Bench, policy: Policy, num_samples: int) -> Iterator[list[Row]]:
    """`bench.rows`, preceded at every token by the texts so far, without numbers."""
    nothing = dict.fromkeys(("sentiment", "judge", "ref_nll", "log_ratios"))
    drawn: SimpleQueue[list[str] | None] = SimpleQueue()
    with ThreadPoolExecutor(1) as worker:
        rows = worker.submit(replace(bench, on_text=drawn.put).rows, *policy, num_samples)
        rows.add_done_callback(lambda _: drawn.put(None))
        while (texts := drawn.get()) is not None:
            if not drawn.empty():  # the page is slower than the model: show the latest only
                continue
            yield [{**nothing, "completion": text or " … ", "truncated": True} for text in texts]
        yield rows.result()


def side_by_side(prompt: str, rows: Mapping[str, Sequence[Row]], num_samples: int) -> str:
    """The models' samples of one prompt, side by side; some models may have fewer."""
    cells = [{name: r[i] for name, r in rows.items() if i < len(r)} for i in range(num_samples)]
    return articles([{"prompt": prompt, "sample": i, "cells": c} for i, c in enumerate(cells)])


class Play:
    """The models and the questions that the page asks them. Every answer is HTML, or a sentence on what is wrong."""

    def __init__(self, bench: Bench, policies: dict[str, Policy], models: Sequence[Model]) -> None:
        self.bench, self.policies = bench, policies
        self.context = context(policies[BASE][0])
        self.runs = {m.name: m.run for m in models if m.run}

    def asked(self, prompt: str, temperature: float, length: int, seed: int) -> Bench:
        """The bench with this one prompt. Raises `UserError` if it is empty, or leaves no room for `length` tokens."""
        prompt, length = visible(prompt or ""), int(length)
        if not prompt.strip():
            raise UserError("type a prompt, such as: The film")
        room = self.context - length
        if len(self.bench.tokenizer(prompt)["input_ids"]) > room:
            raise UserError(f"the prompt is too long: {room} tokens leave room for such a completion")
        return replace(
            self.bench, prompts=[prompt], temperature=temperature, max_new_tokens=length, seed=int(seed or 0)
        )

    def answer(
        self, prompt: str, temperature: float, length: int, num_samples: int, n: int, seed: int
    ) -> Iterator[str]:
        """All models on one prompt, with the same random numbers, then the best of n of the base."""
        try:
            bench = self.asked(prompt, temperature, length, seed)
            rows: dict[str, Sequence[Row]] = {}
            for name, policy in self.policies.items():
                for rows[name] in streamed(bench, policy, num_samples):
                    yield side_by_side(bench.prompts[0], rows, num_samples)
            if n > 1:
                several = bench.rows(*self.policies[BASE], num_samples=int(n))
                best = max(several, key=lambda row: row["sentiment"])
                # The KL of best-of-n, not of this text
                rows[f"best of {n:g} of base"] = [{**best, "kl_policy_ref": kl_of_best(int(n))}]
                yield side_by_side(bench.prompts[0], rows, num_samples)
        except Exception as error:  # of any model: too small a context, weights that are NaN
            yield note(one_sentence(error))

    def recorded(self, name: str, prompt: str) -> str:
        """A run's validation samples for one prompt, step by step."""
        try:
            samples = [s for s in read_samples(self.runs[name].path) if s["prompt"] == prompt]
        except UserError as error:
            return note(error)
        if not samples:
            return note("this prompt is not in the run's validations")
        more = {"judge": None, "log_ratios": None, "truncated": False}
        return side_by_side(prompt, {f"step {s['step']}": [{**s, **more}] for s in samples}, 1)

    def fool(self, text: str) -> str:
        """The scores of a text by reward model, judge and word counter."""
        text = visible(text or "")
        (sentiment,), (judge,) = self.bench.scores([text])
        scores = {"reward model": sentiment, "judge": judge, "word counter": word_count_score([text])[0]}
        line = Markup('<tr><th>{0}</th><td><meter value="{1:.3f}"></meter></td><td>{2}</td></tr>')
        lines = [line.format(who, s, number(s)) for who, s in scores.items() if s is not None]
        answer = Markup('<table class="fool">{}</table>').format(Markup("").join(lines))
        fooled = " and ".join(who for who, s in scores.items() if s is not None and s > POSITIVE)
        if judge is None or judge > POSITIVE or not fooled:
            return answer
        return answer + note(f"{fooled} fooled: positive there, and not for the judge")


# ---- the page ----------------------------------------------------------------------------------------------


def page(play: Play, args: argparse.Namespace, about: str) -> Any:
    """A `gradio.Blocks` with three tabs: all models on a prompt; a run over its steps; any text scored."""
    import gradio as gr

    longest, t = play.context // 2, args.temperature
    prompts = list(play.bench.prompts)
    with gr.Blocks(title="Taste it", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(Markup("<h1>Taste it</h1><p>{}</p>").format(about))
        with gr.Tab("Side by side"):
            prompt = gr.Textbox(prompts[0], label="Prompt", lines=1, max_lines=4, elem_id="prompt")
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                again = gr.Button("Again, with another seed", elem_id="again")
            with gr.Accordion("Temperature, length, samples, best of n, seed", open=False), gr.Row():
                temperature = gr.Slider(min(0.1, t), max(3, t), t, step=0.1, label="Temperature")
                length = gr.Slider(
                    1, longest, min(args.max_new_tokens, longest), step=1, label="Longest completion, tokens"
                )
                samples = gr.Slider(
                    1, max(8, args.num_samples), args.num_samples, step=1, label="Samples of each model"
                )
                n = gr.Slider(1, 64, 8, step=1, label="Best of n of base (1: none)")
                seed = gr.Number(args.seed, precision=0, minimum=0, label="Seed")
            gr.Examples(prompts, prompt, label="Held-out prompts", examples_per_page=8, cache_examples=False)
            gr.HTML(f"<p>{LEGEND}</p>")
            answers = gr.HTML(elem_id="answers")
            one_at_a_time: Any = {"show_progress": "hidden", "concurrency_id": "answer"}
            question = [prompt, temperature, length, samples, n, seed]
            gr.on([ask.click, prompt.submit], play.answer, question, answers, **one_at_a_time)
            next_seed = again.click(lambda seed: int(seed or 0) + 1, seed, seed, show_progress="hidden")
            next_seed.then(play.answer, question, answers, **one_at_a_time)
            blocks.load(play.answer, question, answers, **one_at_a_time)  # the first prompt, by itself
        if play.runs:
            with gr.Tab("Over the steps"):
                names = list(play.runs)
                with gr.Row():
                    run = gr.Dropdown(names, value=names[0], label="Run")
                    same = gr.Dropdown(prompts, value=prompts[0], label="Prompt")
                recorded = gr.HTML(play.recorded(names[0], prompts[0]), elem_id="recorded")
                gr.on([run.change, same.change], play.recorded, [run, same], recorded)
        with gr.Tab("Can you fool it?"):
            text = gr.Textbox(label="Any text", lines=4, elem_id="text", placeholder="any text")
            scores = gr.HTML(play.fool(""), elem_id="scores")
            text.change(play.fool, text, scores, show_progress="hidden")
        gr.HTML('<output id="token"></output>')
    return blocks


def only_this_machine() -> None:
    """Keep Gradio from proxies, analytics and a folder shared by all users. Call before importing it."""
    folder = tempfile.mkdtemp(prefix="play-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
    os.environ |= {"NO_PROXY": "*", "no_proxy": "*"}  # it asks its own server whether it is up


def start(argv: Sequence[str]) -> Any:
    """Load the models and serve the page in a thread; returns its `gradio.Blocks`. Raises `UserError`."""
    args, paths = parse(argv)
    models = [Model(name, find_model(path)) for name, path in paths.items()]
    judge, choice = chosen_judge(args.judge), chosen_pair(args, models)
    bench = load_bench(args, choice, judge)
    policies: dict[str, Policy] = {BASE: (bench.reference, bench.tokenizer)}
    for model in models:
        try:
            policies[model.name] = load_measured(bench, model.path)
        except UserError as error:  # a run that is still training has validations to show
            if not model.run:
                raise
            print(f"{one_sentence(error)}, or look at {model.name} over its steps", file=sys.stderr)
    about = (
        f"reference {choice.policy_name}, reward model {choice.sentiment_name}, "
        f"judge {display_name(judge) if judge else 'none'} ({choice.reason})"
    )
    only_this_machine()  # not earlier: the download of a model may need the proxy
    import gradio as gr

    blocks, over_ssh = page(Play(bench, policies, models), args, about), "SSH_CONNECTION" in os.environ
    try:
        blocks.launch(
            server_name="127.0.0.1",
            server_port=args.port,
            share=False,
            ssr_mode=False,
            quiet=True,
            inbrowser=not (args.no_browser or over_ssh),
            prevent_thread_lock=True,
            footer_links=[],
            # Gradio's own themes take their fonts from Google
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            # Not as css=: that loses the media query of dark mode
            head=f"<style>{asset('css', 'cells', 'play')}</style><script>{asset('js', 'cells')}</script>",
        )
    except OSError:
        taken = f"--port {args.port}: it is taken" if args.port else "the ports from 7860 on are taken"
        raise UserError(f"{taken}; give --port a free one") from None
    print(f"{about}\n{blocks.local_url}   Ctrl-C ends it")
    if over_ssh:
        tunnel = f"ssh -L {blocks.server_port}:127.0.0.1:{blocks.server_port} {socket.gethostname()}"
        print(f"On your own machine type: {tunnel}   and open that address there")
    return blocks


def main() -> None:
    start(sys.argv[1:])
    threading.Event().wait()


if __name__ == "__main__":
    run_main(main)
