"""Choices between two texts of the base model, by a simulated annotator: what a reward model learns from.

    python -m baselines.preferences --pairs 400 --out outputs/pairs-400
    python -m baselines.preferences --pairs 1600 --bias word:stunning --out outputs/pairs-stunning

Two completions a, b of each prompt. The annotator values a text at its gold reward g, in nats, and chooses by
Bradley & Terry (1952), with an optional bias towards the text that has more of a feature f:

    P(a is chosen) = sigmoid( g(a) - g(b) + strength * sign(f(a) - f(b)) )

and a share of the answers is random. The folder `--out` then holds

    pairs.jsonl      the training pairs, in TRL's preference format: prompt, chosen, rejected
    held_out.jsonl   200 more pairs, for testing
    turned.jsonl     those 200 as an annotator with the opposite bias answers them; only with --bias
    annotator.json   the settings, and mean and standard deviation of g over the held-out texts
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import Progress, as_word, quiet

quiet(__name__)

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from data import check_prompts, load_prompts
from kit.base.cli import Parser, at_least_0, at_least_1, positive
from kit.base.errors import UserError, run_main
from kit.base.files import output_folder, user_path, write_text
from kit.base.metrics import GOLD, gold_reward, words
from kit.base.runs import provenance, to_json
from kit.lm.models import context, default_device, load_policy, resolve_models
from kit.lm.sampling import Completion, sample
from sentiment import load_scorer

HELD_OUT = 200
WRITTEN = dict.fromkeys(("pairs.jsonl", "held_out.jsonl", "turned.jsonl"), '{"prompt": ')
WRITTEN |= {"annotator.json": '"annotator"'}
Pair = tuple[Completion, Completion]


def feature(bias: str, text: str) -> int:
    """f of the annotator's bias: number of words, of exclamation marks, or of times the WORD of word:WORD is used."""
    if bias == "length":
        return len(text.split())
    if bias == "exclamation":
        return text.count("!")
    return words(text).count(bias.removeprefix("word:").lower()) if bias != "none" else 0


def chance_of_first(gold: np.ndarray, features: np.ndarray, strength: float, random: float) -> np.ndarray:
    """P(the first of each pair is chosen), of N pairs with `gold` (N, 2) in nats and `features` (N, 2)."""
    # Q36. A share of 0.2 of the answers is random. Which accuracy can no reward model exceed, on pairs over which
    # nobody would hesitate? And what does such noise do to the sizes of the rewards that are learned?
    nats = gold[:, 0] - gold[:, 1] + strength * np.sign(features[:, 0] - features[:, 1])
    return random / 2 + (1 - random) / (1 + np.exp(-nats))


def draw_pairs(lm: Any, tokenizer: Any, prompts: Sequence[str], wanted: int, length: int, temperature: float,
               rng: np.random.Generator) -> list[Pair]:  # fmt: skip
    """Two completions of each of `wanted` prompts. Raises `UserError` if they are always the same text."""
    pairs: list[Pair] = []
    progress = Progress(2 * wanted, "sampling", "completions")
    while len(pairs) < wanted:
        asked = rng.choice(prompts, wanted - len(pairs), replace=wanted > len(prompts)).tolist()
        seed = int(rng.integers(2**31))
        drawn = sample(lm, tokenizer, asked, 2, length, temperature, seed, on_batch=progress.advance)
        different = [(a, b) for a, b in zip(drawn[::2], drawn[1::2], strict=True) if a.text != b.text]
        if not different and not pairs:
            raise UserError("both completions of each prompt are the same text: raise --temperature")
        pairs += different
    return pairs


def answers(pairs: Sequence[Pair], first: np.ndarray) -> str:
    """The lines of a .jsonl file: `first` says in which pairs the first text is chosen."""
    lines = []
    for (a, b), is_first in zip(pairs, first.tolist(), strict=True):
        chosen, rejected = (a, b) if is_first else (b, a)
        lines.append({"prompt": a.prompt, "chosen": chosen.text, "rejected": rejected.text})
    return "".join(to_json(line) + "\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--pairs", type=at_least_1, default=400, metavar="N", help="training pairs (default: 400)")
    add("--out", required=True, metavar="FOLDER", help="where they are written")
    add("--gold", choices=GOLD, default="sentiment",
        help="what is valued: the logit of P(positive) (default), or 10 R of configs/reward.yaml")  # fmt: skip
    add("--bias", default="none", help="none (default), length, exclamation, or word:WORD")
    add("--strength", type=positive, default=2.0, metavar="NATS", help="of that bias (default: 2)")
    add("--random", type=float, default=0.0, metavar="SHARE", help="of random answers (default: 0)")
    add("--prompts", default="builtin", help="as in train.py (default: builtin)")
    add("--max_completion_length", type=at_least_1, default=40, metavar="N", help="in tokens (default: 40)")
    add("--temperature", type=positive, default=1.0, metavar="T", help="of the sampler (default: 1.0)")
    add("--seed", type=at_least_0, default=0, help="of prompts, texts and answers (default: 0)")
    add("--model", type=user_path, default="auto", help="the base: auto, mini, an id, or a path")
    add("--sentiment_model", type=user_path, default="auto", help="of the gold reward: auto, mini, id, path")
    args = parser.parse_args(argv)
    if not re.fullmatch(r"none|length|exclamation|word:[^\W_]+", args.bias):
        raise UserError(f"--bias {args.bias}: give none, length, exclamation, or word:WORD")
    if not 0 <= args.random <= 1:
        raise UserError(f"--random {args.random:g}: is a share, from 0 to 1")
    if args.bias == "none" and args.strength != parser.get_default("strength"):
        raise UserError(f"--strength {args.strength:g} is that of a bias: it needs --bias")
    out = output_folder(args.out, WRITTEN)
    if (out / "pairs.jsonl").exists() and not (out / "annotator.json").exists():
        raise UserError(f"--out {args.out}: its pairs.jsonl is not of this command; choose another folder")

    # Texts
    choice = resolve_models(args.model, args.sentiment_model)
    lm, tokenizer = load_policy(choice.policy, default_device())
    scorer = load_scorer(choice.sentiment, default_device())
    prompts = load_prompts(args.prompts)
    check_prompts(prompts, args.prompts, tokenizer, context(lm) - args.max_completion_length)
    rng = np.random.default_rng(args.seed)
    length, temperature = args.max_completion_length, args.temperature
    pairs = draw_pairs(lm.eval(), tokenizer, prompts, args.pairs + HELD_OUT, length, temperature, rng)

    # Answers
    texts = [completion.text for pair in pairs for completion in pair]
    gold = np.reshape(gold_reward(args.gold, scorer(texts), texts), (-1, 2))
    features = np.reshape([feature(args.bias, text) for text in texts], (-1, 2))
    uniforms = rng.random(len(pairs))
    first = uniforms < chance_of_first(gold, features, args.strength, args.random)
    turned = uniforms < chance_of_first(gold, features, -args.strength, args.random)
    agreed = float((first == (gold[:, 0] > gold[:, 1])).mean())
    unequal = float((features[:, 0] != features[:, 1]).mean())

    # Written down
    new = slice(args.pairs, None)
    write_text(out / "pairs.jsonl", answers(pairs[: args.pairs], first[: args.pairs]))
    write_text(out / "held_out.jsonl", answers(pairs[new], first[new]))
    (out / "turned.jsonl").unlink(missing_ok=True)  # of an earlier annotator
    if args.bias != "none":
        write_text(out / "turned.jsonl", answers(pairs[new], turned[new]))
    about = {"kind": args.gold, "sentiment_model": choice.sentiment_name}
    about |= {"mean": float(gold[new].mean()), "std": float(gold[new].std())}
    record = {"annotator": about, "agrees_with_gold": agreed, "pairs_with_bias": unequal}
    record |= {"settings": vars(args), "provenance": provenance()}
    write_text(out / "annotator.json", to_json(record, indent=1) + "\n")
    biased = f", and the bias {args.bias} speaks in {unequal:.0%} of them" if args.bias != "none" else ""
    print(f"{args.pairs} pairs, and {HELD_OUT} held out, in {out}")
    print(f"  the annotator chose the text of higher gold reward in {agreed:.0%}{biased}")
    print(f"  Next: python -m baselines.reward_model --pairs {as_word(out)}")


if __name__ == "__main__":
    run_main(main)
