"""Exercise 6: measure a class's runs on prompts that no student has seen, into a leaderboard.

    python -m grading.challenge runs/ --prompts new_prompts.txt --csv leaderboard.csv

runs/ has a folder for each student, with the unpacked zip of `make handin`, or a run folder. Of a run only numbers are
taken, from safetensors: the weights of the bundled policy, or LoRA adapters on it with their rank and alpha. Config,
tokenizer and code are the kit's own, and nothing in a folder is executed. Every run is measured at the KL coefficient
of the exercise, and ranked by the lower end of the 95 % interval of `captured`. Two runs are tied if the interval of
their paired difference holds 0. What is hacked or cannot be measured stands at the end, with the reason.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import Progress, quiet, table

quiet(__name__)

import json
import math
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from data import HELD_OUT_PROMPTS, TRAIN_PROMPTS, load_prompts
from grading.folder import NOT_A_STUDENT, write_new_csv
from grading.sandbox import Refused, no_formula, plain, read_plain
from kit.base.cli import BASE, Parser, at_least_0, at_least_1
from kit.base.errors import UserError, run_main
from kit.base.files import user_path, writing
from kit.base.metrics import Estimate
from kit.lm.models import MINI, lora_config, resolve_models
from kit.measure.comparison import Model, base_slope, captured_by, compared, load_bench, measure
from kit.measure.reference import NUM_SAMPLES, draw_samples
from kit.measure.verdict import HACKED, LEVELS

NUMBERS = ("captured", "low", "high", "kl", "sentiment", "judge")
FIELDS = ("rank", "run", *NUMBERS, "verdict", "tied_with", "reason")
PLACES = ("final", "run/final", "handin/run/final")  # below a student's folder
MIN_PROMPTS = 16  # fewer say nothing about the next one
ADAPTER = re.compile(r"base_model\.model\.(transformer\.h\..+)\.lora_([AB])\.weight")
# Of an adapter's config these may differ from what the kit writes; all but rank, alpha and use_rslora are set here.
OURS = "base_model_name_or_path target_modules lora_dropout inference_mode revision peft_version".split()
FREE = {*OURS, "r", "lora_alpha", "use_rslora"}
Shapes = dict[str, tuple[int, ...]]

# ---- a run, made safe --------------------------------------------------------------------------------------


def shapes_in(file: Path) -> Shapes:
    """The tensors of a safetensors file; raises Refused if it is torn."""
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}
    except SafetensorError as error:
        raise Refused(f"torn: {file.name} is no whole safetensors file ({error})") from None


def stage(folder: Path, place: Path, reference: PreTrainedModel) -> None:
    """Make in `place` a model of a student's numbers and the kit's own config; raises Refused, with the reason."""
    final = next((folder / name for name in PLACES if (folder / name).is_dir()), None)
    if final is None:
        raise Refused(
            "torn: there is no folder final/ with a trained model" if folder.is_dir() else "it is no folder"
        )
    if final.resolve() != folder.resolve() / final.relative_to(folder):
        raise Refused("foreign: final/ is a link to another place")
    ours = shapes_in(MINI / "policy" / "model.safetensors")
    name = "adapter_model.safetensors" if (final / "adapter_config.json").exists() else "model.safetensors"
    largest = 4 * sum(map(math.prod, ours.values())) + (1 << 20)  # fp32, and the names of the tensors
    (place / name).write_bytes(read_plain(final / name, largest, "too large for a run from mini/policy"))
    theirs = shapes_in(place / name)
    if name.startswith("adapter"):
        stage_adapter(final, place, theirs, ours, reference)
        return
    if theirs != ours:
        odd = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        raise Refused(f"foreign: not the tensors of mini/policy, {odd[0]} for one")
    for file in (MINI / "policy").glob("*.json"):
        shutil.copy(file, place)


def stage_adapter(final: Path, place: Path, theirs: Shapes, ours: Shapes, reference: PreTrainedModel) -> None:
    """An adapter_config.json of the kit's own, for LoRA adapters on mini/policy; raises Refused for any other."""
    try:
        said = json.loads(
            read_plain(final / "adapter_config.json", 64 << 10, "that is no adapter of the kit")
        )
        alpha, base = float(said["lora_alpha"]), PureWindowsPath(said["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise Refused("torn: adapter_config.json cannot be read") from None
    if base.parts[-2:] != ("mini", "policy"):
        raise Refused("foreign: the adapters are not on mini/policy")
    places = {key: ADAPTER.fullmatch(key) for key in theirs}
    modules = sorted({match[1] for match in places.values() if match})
    ranks = {theirs[key][:1] for key, match in places.items() if match and match[2] == "A"}
    expected: Shapes = {}
    for module in modules:
        matrix = ours.get(f"{module}.weight", ())  # GPT-2's are (in, out)
        for rank in ranks:
            expected[f"base_model.model.{module}.lora_A.weight"] = (*rank, *matrix[:1])
            expected[f"base_model.model.{module}.lora_B.weight"] = (*matrix[1:], *rank)
    if len(ranks) != 1 or ranks & {(), (0,)} or theirs != expected:
        raise Refused("foreign: the adapters are no LoRA matrices of one rank on those of mini/policy")
    config = lora_config(ranks.pop()[0], reference)
    config.target_modules, config.lora_alpha = set(modules), alpha
    config.use_rslora = said.get("use_rslora") is True
    config.base_model_name_or_path = str(MINI / "policy")
    known = config.to_dict()
    odd = [key for key, value in said.items() if key not in FREE and value != known.get(key)]
    if odd or not 0 < alpha < 1e6:
        raise Refused(f"foreign: {odd[0] if odd else 'lora_alpha'} in adapter_config.json is not the kit's")
    config.save_pretrained(place)


# ---- the table ---------------------------------------------------------------------------------------------


def tied(one: Estimate, other: Estimate) -> bool:
    """The 95 % interval of the paired difference holds 0."""
    low, high = (one - other).interval()
    return low <= 0.0 <= high


def ranked(rows: list[dict[str, Any]], shares: dict[str, Estimate]) -> list[dict[str, Any]]:
    """Sound runs by the lower end of their interval, with rank and ties; then the hacked; then those not measured."""
    sound = sorted((row for row in rows if not row["reason"]), key=lambda row: -row["low"])
    hacked = sorted((row for row in rows if row["reason"] and "low" in row), key=lambda row: -row["low"])
    for rank, row in enumerate(sound, 1):
        mine = shares[row["run"]]
        others = (other["run"] for other in sound if other is not row)
        row |= {"rank": rank, "tied_with": ", ".join(name for name in others if tied(mine, shares[name]))}
    return [*sound, *hacked, *(row for row in rows if row["reason"] and "low" not in row)]


def show(rows: list[dict[str, Any]]) -> None:
    shown = []
    for row in (row for row in rows if "low" in row):
        tie = f", tied with {row['tied_with']}" if row.get("tied_with") else ""
        numbers = [f"{row[key]:.2f}" for key in NUMBERS]
        shown.append([str(row.get("rank", "-")), *numbers, f"{row['run']}: {row['verdict']}{tie}"])
    print(table(["rank", "capt.", "low", "high", "KL", "sent.", "judge", "run: verdict"], shown))
    for row in (row for row in rows if row["reason"]):
        print(f"{row['run']}: {row['reason']}")


def write(rows: list[dict[str, Any]], out: Path) -> Path:
    def cell(value: object) -> str:
        return f"{value:.4f}" if isinstance(value, float) else no_formula(str(value))

    return write_new_csv(out, [FIELDS, *([cell(row.get(field, "")) for field in FIELDS] for row in rows)])


# ---- the command line --------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> Any:
    parser = Parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", type=user_path, help="a folder with a folder for each student")
    add("--prompts", required=True, type=user_path, metavar="FILE",
        help="new openers, one a line; none of the kit's")  # fmt: skip
    add("--csv", default="leaderboard.csv", type=user_path, metavar="FILE", help="the table")
    add("--num_samples", type=at_least_1, default=4, metavar="N",
        help="completions per prompt and run (default: 4)")  # fmt: skip
    add("--frontier_samples", type=at_least_1, default=NUM_SAMPLES, metavar="N",
        help=f"completions of the base per prompt, for J* (default: {NUM_SAMPLES})")  # fmt: skip
    add("--seed", type=at_least_0, default=0, help="of the sampler (default: 0)")
    # what exercise 6 and its runs have
    parser.set_defaults(num_prompts=None, max_new_tokens=40, temperature=1.0, batch_size=128)
    return parser.parse_args(argv)


def check_prompts_are_new(file: str) -> None:
    """Raises `UserError` for a prompt of the kit, and for fewer than MIN_PROMPTS."""
    if not Path(file).is_file():
        raise UserError(f"--prompts {file}: no such file; write new openers there, one a line")
    kits = {" ".join(prompt.lower().split()) for prompt in (*TRAIN_PROMPTS, *HELD_OUT_PROMPTS)}
    prompts = {" ".join(prompt.lower().split()) for prompt in load_prompts(file)}
    if known := sorted(prompts & kits):
        raise UserError(f"--prompts {file}: students have {known[0]!r}, a prompt of the kit; replace it")
    if len(prompts) < MIN_PROMPTS:
        raise UserError(f"--prompts {file}: has {len(prompts)} different prompts; {MIN_PROMPTS} are needed")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    runs, out = Path(args.runs), Path(args.csv)
    if not runs.is_dir():
        raise UserError(f"{runs} is no folder")
    folders = [entry for entry in sorted(runs.iterdir()) if not NOT_A_STUDENT.fullmatch(entry.name)]
    if not folders:
        raise UserError(f"{runs} is empty: unpack each student's zip into a folder of its own there")
    with writing(f"--csv {out}"):
        tempfile.TemporaryFile(dir=out.parent).close()  # before the hours of measuring
    check_prompts_are_new(args.prompts)
    choice = resolve_models("mini", "mini")
    bench = load_bench(args, choice, judge=str(MINI / "judge"))
    assert bench.reference is not None
    each = len(bench.prompts)
    total = each * (args.frontier_samples + args.num_samples * (1 + len(folders)))

    rows: list[dict[str, Any]] = []
    shares: dict[str, Estimate] = {}
    with Progress(total, "sampling", "completions") as bench.progress:
        base = Model(BASE, choice.policy)
        measure(base, bench, args.num_samples)
        slope, samples = base_slope(base), draw_samples(bench, args.frontier_samples)
        for folder in folders:
            name = plain(folder.name)
            while any(row["run"] == name for row in rows):  # two that differ in what is shown as ?
                name += "?"
            row: dict[str, Any] = {"run": name, "reason": ""}
            rows.append(row)
            with tempfile.TemporaryDirectory() as clean:
                place = Path(clean) / "final"  # `Model` also looks into the folder above
                place.mkdir()
                try:
                    stage(folder, place, bench.reference)
                except (Refused, OSError) as error:
                    row["reason"] = plain(error)
                    bench.progress.advance(each * args.num_samples)
                    continue
                model = Model(f"run {folder.name}", str(place))  # whatever its name, it is not the base
                measure(model, bench, args.num_samples)
            found = compared(model, base, slope, None, args.num_samples)
            share = captured_by(model, samples, args.num_samples) if model.rows else None
            if share is None or not all(map(math.isfinite, share.interval())):
                why = model.error or "its numbers are not finite"
                why = plain(why).replace(str(place), "final/").partition("; give")[0]
                row["reason"] = f"not measured: {why}"
                continue
            shares[name] = share
            low, high = share.interval()
            row |= {"captured": share.value, "low": low, "high": high, "verdict": found["verdict"]}
            row |= {"kl": found["metrics"]["kl_policy_ref"]["value"]}
            row |= {key: found["metrics"][key]["value"] for key in ("sentiment", "judge")}
            if found["verdict"] == HACKED:
                alarming = [s for s in found["signals"] if s["level"] == LEVELS[-1]]
                row["reason"] = "hacked: " + ", ".join(
                    f"{s['name']} {s['value']:.2f} {s['unit']}" for s in alarming
                )
    rows = ranked(rows, shares)
    show(rows)
    out = write(rows, out)
    print(f"{each} prompts x {args.num_samples} samples, seed {args.seed}: {out}")


if __name__ == "__main__":
    run_main(main)
