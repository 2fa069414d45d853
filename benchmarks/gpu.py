"""GPT-2 and DistilBERT on one GPU: steps, memory under a cap, bf16, generation. Under eight minutes.

    python -m benchmarks.gpu --write     into docs/speed.md
    python -m benchmarks.gpu --smoke     all of it on the CPU in tiny sizes: does it run?

Without cache and Hub, random weights of the same sizes take the models' place. A step then costs the same, as long as
no completion ends early; the KL of bf16 is another.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import quiet

quiet(__name__)

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import train
from benchmarks.step_time import PAGE, VARIANTS, in_a_process, quartiles, time_variant, timed
from data import HELD_OUT_PROMPTS
from kit import ROOT
from kit.base.cli import Parser
from kit.base.errors import UserError, run_main
from kit.base.runs import read_metrics
from kit.lm.loading import load_tokenizer
from kit.lm.models import MINI, ModelChoice, default_device, load_policy, load_reference, resolve_models
from kit.lm.sampling import rollout
from kit.measure.measuring import Bench
from kit.train.sweep import markdown, write_between
from sentiment import load_scorer

CARD, CONTEXT = 8 * 2**30, 0.6 * 2**30  # bytes of the small card, and of it what CUDA's own context takes
COMPLETIONS, TOKENS = 64, 40
SMOKE = ["--prompts_per_step", "2", "--num_generations", "2", "--max_completion_length", "4"]


def random_pair(folder: Path, tiny: bool) -> ModelChoice:
    """Random weights in the sizes of GPT-2 and DistilBERT (`tiny`: much smaller), with the mini pair's tokenizers."""
    policy, scorer = (load_tokenizer(MINI / name) for name in ("policy", "sentiment"))
    torch.manual_seed(0)
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(policy)} if tiny else {}
    end = {"bos_token_id": policy.eos_token_id, "eos_token_id": policy.eos_token_id}
    GPT2LMHeadModel(GPT2Config(**small, **end)).save_pretrained(folder / "policy")
    policy.save_pretrained(folder / "policy")
    small = {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2} if tiny else {}
    config = DistilBertConfig(**small, id2label={0: "negative", 1: "positive"})
    DistilBertForSequenceClassification(config).save_pretrained(folder / "sentiment")
    scorer.save_pretrained(folder / "sentiment")
    return ModelChoice(str(folder / "policy"), str(folder / "sentiment"), "random weights")


def full_pair(folder: Path) -> ModelChoice:
    """GPT-2 and DistilBERT, or random weights of their sizes."""
    try:
        return replace(resolve_models("gpt2"), reason="GPT-2 and DistilBERT")
    except UserError as error:
        print(f"{error}; random weights of the same sizes instead", file=sys.stderr)
        return random_pair(folder, tiny=False)


def memory_under_a_cap(choice: ModelChoice, flags: Sequence[str]) -> float | None:
    """Peak MB of three steps of configs/gpt2.yaml on a card of 8 GB; None if it is not enough."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction((CARD - CONTEXT) / torch.cuda.mem_get_info()[1])
    variant = VARIANTS[3] if "--use_peft" in flags else VARIANTS[2]
    models = ["--model", choice.policy, "--sentiment_model", choice.sentiment]
    flags = ["--config", str(ROOT / "configs" / "gpt2.yaml"), *models, *flags]
    try:
        return time_variant(variant, choice, 1, flags)["memory"][0]
    except torch.OutOfMemoryError:
        return None


def kl_before_the_first_update(choice: ModelChoice, bf16: bool, flags: Sequence[str]) -> float:
    """KL(pi||pi_ref) of the first step's completions, in nats: 0 but for rounding."""
    with tempfile.TemporaryDirectory() as folder:
        models = ["--model", choice.policy, "--sentiment_model", choice.sentiment]
        size = ["--max_steps", "1", "--eval_every", "0", "--bf16", str(bf16), "--output_dir", folder]
        sys.argv = ["train.py", *models, *size, *flags, "--run_name", "bf16"]
        train.main()
        return next(m["train/kl_policy_ref"] for m in read_metrics(Path(folder, "bf16")) if m["step"] == 1)


def seconds(work: Callable[[], object], repeats: int = 5) -> list[float]:
    """The time of each call but the first, on the GPU too."""
    times: list[float] = []
    once = timed(work, times)
    for _ in range(repeats + 1):
        once()
    return times[1:]


def generation(choice: ModelChoice) -> dict[str, list[float]]:
    """Seconds of 64 completions of 40 tokens, by the kit and by transformers; and of an answer of the play page."""
    device = default_device()
    policy, tokenizer = load_policy(choice.policy, device)
    policy.eval()
    prompts = list(HELD_OUT_PROMPTS[:COMPLETIONS])
    ids = tokenizer(prompts)["input_ids"]
    padded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(device)
    draws = torch.rand(COMPLETIONS, TOKENS)
    length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    scorer, judge = load_scorer(choice.sentiment, device), load_scorer(str(MINI / "judge"), device)
    reference = load_reference(choice.policy, device)
    bench = Bench(prompts[:1], scorer, reference, tokenizer, TOKENS, 1.0, 0, judge=judge)
    with torch.no_grad():
        return {
            "kit": seconds(lambda: rollout(policy, ids, draws, ends=set())),
            "generate": seconds(lambda: policy.generate(**padded, do_sample=True, top_k=0, **length)),
            "play": seconds(lambda: bench.rows(policy, tokenizer)),
        }


def measured(choice: ModelChoice, steps: int, call: Callable, more: Sequence[str] = ()) -> str:
    """Markdown of everything. `call` runs a function with its arguments; `more` flags go to every training."""
    found = {variant: call(time_variant, variant, choice, steps, more) for variant in VARIANTS}
    drawn = call(generation, choice)
    bare, generated = (median(column) for column in (found[VARIANTS[0]]["step"], drawn["generate"]))
    rows = []
    for variant, columns in found.items():
        step, peak = median(columns["step"]), f"{columns['memory'][0]:,.0f} MB"
        ratios = [f"{step / bare:.2f} x", f"{step / generated:.2f} x"]
        rows.append([variant, quartiles(columns["step"]), *ratios, peak])
    others = [
        [f"{COMPLETIONS} completions of {TOKENS} tokens, the kit's sampler", f"{quartiles(drawn['kit'])} s"],
        ["the same, `generate`", f"{quartiles(drawn['generate'])} s"],
        ["a model's answer on the play page", f"{1 / median(drawn['play']):.1f} a second"],
    ]
    for precision, bf16 in (("fp32", False), ("bf16", True)):
        kl = call(kl_before_the_first_update, choice, bf16, more)
        others.append([f"KL(π‖π_ref) before the first update, {precision}", f"{kl:.1e} nats"])
    for batch, lora in ((16, False), (8, False), (16, True)):
        flags = ["--per_device_train_batch_size", str(batch), *["--use_peft"] * lora, *more]
        peak = call(memory_under_a_cap, choice, flags)
        what = f"`configs/gpt2.yaml` on 8 GB, batch {batch}{', LoRA' * lora}"
        others.append([what, "out of memory" if peak is None else f"{peak:,.0f} MB"])
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return (
        f"{machine}, {choice.reason}; {COMPLETIONS} completions of at most {TOKENS} tokens; median [quartiles] of "
        f"{steps} steps.\n\n"
        + markdown(["step", "seconds", "against bare TRL", "against `generate`", "peak memory"], rows)
        + "\n"
        + markdown(["what", "measured"], others)
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__.splitlines()[0])
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--write", action="store_true", help="write to docs/speed.md")
    kind.add_argument(
        "--smoke", action="store_true", help="tiny random models on the CPU; times mean nothing"
    )
    args = parser.parse_args(argv)
    if not (args.smoke or torch.cuda.is_available()):
        raise UserError("no GPU here; --smoke tries all of it on the CPU, in tiny sizes")
    with tempfile.TemporaryDirectory() as folder:
        if args.smoke:
            pair = random_pair(Path(folder), tiny=True)
            text = measured(pair, 1, lambda function, *given: function(*given), SMOKE)
        else:
            text = measured(full_pair(Path(folder)), 10, in_a_process)
    print(f"\n{text}")
    if args.write:
        write_between(PAGE, "written by benchmarks.gpu", text)


if __name__ == "__main__":
    run_main(main)
