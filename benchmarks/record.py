"""Three steps of every method and one comparison: does a change of the code change a number?

    python -m benchmarks.record outputs/before                             about 8 minutes on one core
    python -m benchmarks.record outputs/after --against outputs/before     after the change, on the same machine

Compared are metrics.jsonl and samples.jsonl (without times), the weights in final/, and comparison.json.
"""

# ruff: noqa: E402 - what is missing is said before it is imported
from kit.base.screen import quiet

quiet(__name__)

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from kit.base.cli import Parser
from kit.base.errors import UserError, run_main

STEPS = ["--max_steps", "3", "--model", "mini", "--sentiment_model", "mini"]
RUNS = {
    "vanilla": ["train.py", *STEPS],
    "forward": ["train.py", *STEPS, "--kl_type", "forward", "--kl_coef", "0.05", "--use_solution"],
    "lora": ["train.py", *STEPS, "--use_peft", "--reward_shaping", "shaped", "--use_solution"],
    "token": ["train.py", *STEPS, "--credit", "token", "--beta", "0.1"],
    "beta": ["train.py", *STEPS, "--beta", "0.1"],
    "ppo": ["-m", "baselines.ppo", *STEPS],
    "sft": ["-m", "baselines.sft", *STEPS[2:], "--rounds", "1", "--prompts_per_round", "64"],
}


def without_times(value: Any) -> Any:
    """A line of metrics.jsonl or samples.jsonl without what a clock gave."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if "time" not in k and "second" not in k}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def digest(path: Path) -> str:
    """SHA-256 of the numbers in a file."""
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        data = json.dumps([without_times(json.loads(line)) for line in data.splitlines()]).encode()
    if path.name == "comparison.json":  # paths, versions and flags may change with the code
        keys, models = ("name", "metrics", "signals", "verdict"), json.loads(data)["models"]
        data = json.dumps([{key: model[key] for key in keys} for model in models]).encode()
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    parser = Parser(__doc__ or "")
    parser.add_argument("out", type=Path, help="a new folder for the runs")
    parser.add_argument("--against", type=Path, help="the folder of an earlier record")
    args = parser.parse_args()
    if args.out.exists():
        raise UserError(f"{args.out} exists: name a new folder")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pairs = [f"{name}={args.out / name}" for name in RUNS]
    compare = ["evaluate.py", "base", *pairs, "--num_samples", "1", "--out", str(args.out / "comparison")]
    for name, command in [*RUNS.items(), ("comparison", compare)]:
        print(name, flush=True)
        where = ["--output_dir", str(args.out), "--run_name", name] if name in RUNS else []
        done = subprocess.run([sys.executable, *command, *where], env=env, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{name} ended with status {done.returncode}: {done.stderr[-2000:]}")
    files = [p for name in RUNS for p in sorted((args.out / name).glob("*.jsonl"))]
    files += [p for name in RUNS for p in sorted((args.out / name / "final").glob("*.safetensors"))]
    files.append(args.out / "comparison" / "comparison.json")
    digests = {p.relative_to(args.out).as_posix(): digest(p) for p in files}
    (args.out / "record.json").write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
    if args.against:
        before = json.loads((args.against / "record.json").read_text(encoding="utf-8"))
        changed = [name for name in before.keys() | digests.keys() if before.get(name) != digests.get(name)]
        if changed:
            raise UserError(f"not the same numbers: {', '.join(sorted(changed))}")
        print(f"{len(digests)} files hold the same numbers as in {args.against}")


if __name__ == "__main__":
    run_main(main)
