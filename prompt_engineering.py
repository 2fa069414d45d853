"""Can a prompt prefix do what RL did? The base and the trained model, each with and without a prefix.

    python prompt_engineering.py outputs/vanilla
    python prompt_engineering.py outputs/forward-0.05 --score shaped --prefix "A critic in tears of joy writes: "

Add your own prefixes with --prefix, or to PREFIXES below. Only the completion is scored: a prefix full of praise would
otherwise score for itself. The best prefix is chosen on one half of the prompts and measured on the other, because the
best of many looks better than it is on the prompts that chose it.

Prints a table and a conclusion, and writes both to OUT/prompt_engineering.json.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import Progress, clock, quiet, table

quiet(__name__)

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data import check_prompts
from kit.base.cli import Parser
from kit.base.errors import UserError, run_main
from kit.base.files import output_folder, user_path, write_text
from kit.base.metrics import Estimate, mean_estimate
from kit.base.runs import to_json
from kit.base.student import load_student
from kit.lm.models import context, display_name, find_model
from kit.measure.comparison import Model, chosen_pair, load_bench, load_measured
from kit.measure.measuring import Bench
from reward_utils import RewardFunction, make_reward_function

# Q32. Some of these begin a text, others talk to the writer. Which suit a model that only continues texts, which
# an instruct model, and why?
PREFIXES: tuple[str, ...] = (
    "I loved every minute of this film. ",
    "A masterpiece! ",
    "10/10, highly recommended. ",
    "Here is a glowing, enthusiastic review: ",
    "Write something kind. ",
    # yours
)
NO_PREFIX = ""
FILE = "prompt_engineering.json"
Scores = Mapping[str, np.ndarray]  # prefix -> scores (num_prompts, num) of one model
Policy = tuple[Any, Any]  # model, tokenizer


def prefix_scores(
    bench: Bench, policy: Policy, prefixes: Sequence[str], reward: RewardFunction, num: int
) -> Scores:
    """Sample `num` completions of every prompt after each prefix, and score them without it."""
    scores = {}
    for prefix in prefixes:
        prompts = [prefix + prompt for prompt in bench.prompts]
        texts = [c.text for c in bench.sample(*policy, num, prompts)]
        with bench.phase("scoring"):
            _, values = reward.base_reward(texts, [prompt for prompt in bench.prompts for _ in range(num)])
        scores[prefix] = np.reshape(values, (len(bench.prompts), num))
    return scores


def gains(base: Scores, trained: Scores) -> tuple[dict[str, Estimate], dict[str, str]]:
    """({"prefix", "rl", "both": gain over bare base, odd prompts}, {"base", "trained": best prefix, even ones})."""

    def best(scores: Scores) -> str:
        return max((p for p in scores if p != NO_PREFIX), key=lambda p: scores[p][::2].mean())

    # Q30. Say that all five prefixes are equally good, and each mean has a standard error of 0.05. How much
    # better than it is does the best of them look, on the prompts that chose it?
    chosen = {"base": best(base), "trained": best(trained)}
    bare = mean_estimate(base[NO_PREFIX][1::2])
    return {
        "prefix": mean_estimate(base[chosen["base"]][1::2]) - bare,
        "rl": mean_estimate(trained[NO_PREFIX][1::2]) - bare,
        "both": mean_estimate(trained[chosen["trained"]][1::2]) - bare,
    }, chosen


def conclusion(gain: Mapping[str, Estimate]) -> str:
    """Who won, from the paired differences: a difference counts if its 95 % interval leaves out zero."""

    def said(a: str, b: str, better: str, worse: str, same: str) -> str:
        delta = gain[a] - gain[b]
        low, high = delta.interval()
        return f"{better if low > 0 else worse if high < 0 else same} ({shown(delta, '+')})"

    apart = "RL and the best prefix cannot be told apart"
    opening = said("rl", "prefix", "RL beats the best prefix", "The best prefix beats RL", apart)
    better, name = ("prefix", "the prefix alone") if opening.startswith("The best") else ("rl", "RL alone")
    beat, worse = f"both together beat {name}", f"both together are worse than {name}"
    nothing = f"both together add nothing to {name} that can be told from noise"
    ending = said("both", better, beat, worse, nothing)
    return f"{opening}; {ending}."


def shown(estimate: Estimate, sign: str = "") -> str:
    """`0.750 [0.730, 0.770]`: the value and its 95 % interval; `sign` "+" for differences."""
    return "{:{f}} [{:{f}}, {:{f}}]".format(estimate.value, *estimate.interval(), f=f"{sign}.3f")


def with_interval(estimate: Estimate) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), (estimate.value, *estimate.interval()), strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("Can a prompt prefix do what RL did? Base and trained model, with and without prefixes.")
    add = parser.add_argument
    add("trained", type=user_path, metavar="PATH", help="run folder, checkpoint, adapter, or id")
    add("--prefix", action="append", default=[], metavar="TEXT", help="one more prefix; may be repeated")
    add("--score", choices=("sentiment", "shaped"), default="sentiment", help="shaped: your shaped_reward")
    add("--use_solution", action="store_true", help="take shaped_reward from rewards_solution.py")
    add("--out", default="results", metavar="FOLDER", help=f"where {FILE} goes (default: results)")
    parser.add_sampling_flags()
    args = parser.parse_args(argv)
    args.trained = find_model(args.trained)
    out = output_folder(args.out, {FILE: '"settings"'}) / FILE

    if args.use_solution and args.score != "shaped":
        raise UserError("--use_solution takes a shaped_reward: it needs --score shaped")
    model = Model("trained", args.trained)
    choice, negated = chosen_pair(args, [model]), bool(model.settings.get("negate_reward"))
    shaping = "shaped" if args.score == "shaped" else "linear"
    student = load_student(args.use_solution, reward_shaping=shaping)
    bench = load_bench(args, choice)
    if len(bench.prompts) < 4:
        raise UserError(f"{len(bench.prompts)} prompts are too few: half choose the prefix, half measure it")
    prefixes = list(dict.fromkeys([NO_PREFIX, *PREFIXES, *args.prefix]))
    if len(prefixes) < 2:
        raise UserError("there is no prefix to try: give one with --prefix, or add it to PREFIXES")
    reward = make_reward_function(
        bench.scorer, bench.tokenizer, reward_shaping=shaping, negate=negated, student=student
    )
    policies = (bench.reference, bench.tokenizer), load_measured(bench, args.trained)
    for lm, tokenizer in policies:
        for prefix in prefixes:
            what = f"{args.prompts} after the prefix {prefix[:40]!r}"
            room = context(lm) - bench.max_new_tokens
            check_prompts([prefix + prompt for prompt in bench.prompts], what, tokenizer, room)
    what = f"score {args.score}{' of 1 - P(positive)' * negated} of the completion alone"
    print(
        f"base {choice.policy_name}, trained {display_name(args.trained)}, {what} "
        f"({choice.sentiment_name}): {len(bench.prompts)} prompts x {args.num_samples} samples, seed {args.seed}"
    )
    total = len(policies) * len(prefixes) * len(bench.prompts) * args.num_samples
    with Progress(total, "sampling", "completions") as bench.progress:
        scores = [prefix_scores(bench, p, prefixes, reward, args.num_samples) for p in policies]

    gain, chosen = gains(*scores)
    base, trained = ({p: mean_estimate(found[p]) for p in prefixes} for found in scores)
    rows = [(shown(base[p]), shown(trained[p]), repr(p) if p else "(no prefix)") for p in prefixes]
    print(table(("base", "trained", "prefix (mean score, 95 % interval over prompts)"), rows))
    print(f"Gain over the bare base on the {len(bench.prompts) // 2} prompts that did not choose the prefix:")
    print(f"  {shown(gain['prefix'], '+')}  best prefix {chosen['base']!r}\n  {shown(gain['rl'], '+')}  RL")
    print(f"  {shown(gain['both'], '+')}  RL and prefix {chosen['trained']!r}")
    verdict = conclusion(gain)
    print(verdict)
    record = {
        "settings": vars(args) | {"model": choice.policy_name, "sentiment_model": choice.sentiment_name},
        "table": [
            {"prefix": p, "model": name, **with_interval(e)}
            for name, found in (("base", base), ("trained", trained))
            for p, e in found.items()
        ],
        "best_prefix": chosen,
        "gain": {name: with_interval(e) for name, e in gain.items()},
        "conclusion": verdict,
    }
    write_text(out, to_json(record, indent=1) + "\n")
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in bench.seconds.items())
    print(f"{clock(sum(bench.seconds.values()))} in all: {spent}\n{out}")


if __name__ == "__main__":
    run_main(main)
