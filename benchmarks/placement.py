"""Exercise 7 by training: six estimators of a KL, in the reward and in the loss. Writes a table of docs/results.md.

    python -m benchmarks.placement                     three seeds of twelve places and of no term: half an hour
    python -m benchmarks.placement --only "k3 loss"

The term of a completion is sum_t f_t, with d = log pi - log pi_ref of a sampled token and w = pi_ref/pi = exp(-d):

    k1 = d    k2 = d^2/2    k3 = w - 1 + d    w log w    1 - w    exact = sum_v pi(v|x<t) log(pi(v|x<t) / pi_ref(v|x<t))

In the reward it is a number; in the loss it is differentiated, with the samples fixed:

    reward   A = r - c sum_t f_t - (mean of the group)     loss = E[-A sum_t log pi(x_t)]
    loss     A = r - (mean of the group)                   loss = E[-A sum_t log pi(x_t) + c sum_t f_t]

Advantages are not divided by a standard deviation: the same c would then weigh differently in the two places. The
command can be stopped and started again at any time.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import Progress, quiet

quiet(__name__)

import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from data import HELD_OUT_PROMPTS, TRAIN_PROMPTS
from kit import ROOT
from kit.base.cli import Parser, at_least_1
from kit.base.errors import run_main
from kit.base.runs import read_lines, to_json
from kit.lm.log_probs import Chunk, chunks, next_token_log_softmax
from kit.lm.models import load_policy, load_reference, resolve_models
from kit.lm.sampling import end_tokens, rollout
from kit.measure.measuring import METRICS, Bench, estimates
from kit.train.sweep import cells, markdown, write_between
from sentiment import load_scorer

KEPT, PAGE = ROOT / "outputs" / "placement.jsonl", ROOT / "docs" / "results.md"
ESTIMATORS = ("k1", "k2", "k3", "w log w", "1 - w", "exact")
PLACES = {"none": ("", "")} | {f"{f} {at}": (f, at) for f, at in product(ESTIMATORS, ("reward", "loss"))}
PROMPTS, GROUP, TOKENS = 4, 8, 24  # a step: 32 completions
STEPS, RATE, PRICE = 40, 3e-4, 0.1  # train.py's rate, which falls to 0, and its --kl_coef
SETTINGS = [PROMPTS, GROUP, TOKENS, STEPS, RATE, PRICE]  # kept with every row: others make other numbers
MAX_LOG_WEIGHT = 10.0  # of w, as in the reference solution
DIGITS = {"sentiment": 2, "kl_policy_ref": 1, "kl_ref_policy": 1, "length": 0}


def estimate(name: str, log_p: Tensor, log_q: Tensor, sampled: Tensor) -> Tensor:
    """f of N tokens: (N, V) log-probs of the policy and of the reference, (N,) token ids -> (N,) nats."""
    if name == "exact":
        return kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    d = (log_p - log_q).gather(-1, sampled[:, None]).squeeze(-1)
    w = (-d).clamp(max=MAX_LOG_WEIGHT).exp()
    return {"k1": d, "k2": d**2 / 2, "k3": w - 1 + d, "w log w": -w * d, "1 - w": 1 - w}[name]


def term_loss(name: str, place: str, log_p: Tensor, log_q: Tensor, chunk: Chunk, score: Tensor) -> Tensor:
    """The loss above of a chunk of B completions. The log-probs are (N, V), for all tokens of the chunk; `score` (B,)
    has groups of `GROUP` side by side."""
    chosen = log_p.gather(-1, chunk.sampled[:, None]).squeeze(-1)
    places = torch.tensor(chunk.rows).argsort()  # a chunk has the shortest first

    def summed(f: Tensor) -> Tensor:  # sum_t, (N,) -> (B,)
        return torch.stack([part.sum() for part in f.split(chunk.lengths)])[places]

    f = torch.zeros_like(score) if not name else summed(estimate(name, log_p, log_q, chunk.sampled))
    reward = score - PRICE * f.detach() if place == "reward" else score
    groups = reward.view(-1, GROUP)
    advantage = (groups - groups.mean(1, keepdim=True)).flatten()
    loss = -(advantage * summed(chosen)).mean()
    return loss + PRICE * f.mean() if place == "loss" else loss


def train(where: str, seed: int, steps: int = STEPS) -> dict[str, float]:
    """Train one run; returns its metrics on the held-out prompts."""
    name, place = PLACES[where]
    choice = resolve_models("mini", "mini")
    policy, tokenizer = load_policy(choice.policy)
    reference, score = load_reference(choice.policy, torch.device("cpu")), load_scorer(choice.sentiment)
    ends, rng, uniforms = end_tokens(policy, tokenizer), random.Random(seed), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=0.0)
    policy.eval()  # no dropout
    for step in range(steps):
        prompts = [prompt for prompt in rng.sample(TRAIN_PROMPTS, PROMPTS) for _ in range(GROUP)]
        prompt_ids = tokenizer(prompts)["input_ids"]
        drawn = torch.from_numpy(uniforms.random((len(prompts), TOKENS), dtype=np.float32))
        completion_ids, _ = rollout(policy, prompt_ids, drawn, ends)
        scores = torch.tensor(score(tokenizer.batch_decode(completion_ids, skip_special_tokens=True)))
        (chunk,) = chunks(prompt_ids, completion_ids, len(prompts))
        log_p = next_token_log_softmax(policy, chunk, 1.0)
        with torch.no_grad():
            log_q = next_token_log_softmax(reference, chunk, 1.0)
        loss = term_loss(name, place, log_p, log_q, chunk, scores)
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    bench = Bench(HELD_OUT_PROMPTS, score, reference, tokenizer, TOKENS, temperature=1.0, seed=1)
    found = estimates(bench.rows(policy, tokenizer, 2), 2)
    return {key: found[key].value for key in DIGITS}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each place, the mean over seeds with the lowest and the highest."""
    header = ["Estimator", "Place", "Seeds", *(METRICS[key].label for key in DIGITS)]
    lines = []
    for where, (name, place) in PLACES.items():
        if mine := [row for row in rows if row["where"] == where]:
            lines.append([name or "(no term)", place, str(len(mine)), *cells(mine, DIGITS)])
    return markdown(header, lines)


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of runs with today's settings."""
    rows = read_lines(file) if file.exists() else []
    return [row for row in rows if row.get("settings") == SETTINGS]


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", type=at_least_1, default=3, metavar="N", help="seeds 0 ... N-1 (default: 3)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=PLACES, metavar="PLACE", help='such as "k3 loss"; none: no term'
    )
    args = parser.parse_args(argv)
    KEPT.parent.mkdir(exist_ok=True)
    done = {(row["where"], row["seed"]) for row in read(KEPT)}
    todo = [(where, seed) for seed in range(args.seeds) for where in args.only or PLACES]
    todo = [pair for pair in todo if pair not in done]
    with Progress(len(todo), "training", "runs") as progress:
        for where, seed in todo:
            row = {"where": where, "seed": seed, "settings": SETTINGS, **train(where, seed)}
            with KEPT.open("a", encoding="utf-8") as file:
                file.write(to_json(row) + "\n")
            progress.advance()
    text = table(read(KEPT))
    write_between(PAGE, "written by benchmarks/placement.py", text)
    print(f"\n{text}\nin {PAGE}")


if __name__ == "__main__":
    run_main(main)
