"""A language model that the kit did not train: SmolLM2-135M-Instruct with four settings; docs/results.md gets a table.

    python -m benchmarks.smollm2     an hour on two cores; docs/install.md says how to get the model

Every run has the flags of configs/smollm2.yaml, seed 0 and the reference solution; evaluate.py measures four
completions of each held-out prompt. It can be stopped and started again at any time.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import quiet

quiet(__name__)

from collections.abc import Sequence
from typing import Any

from kit import ROOT
from kit.base.cli import BASE, Parser
from kit.base.errors import run_main
from kit.lm.models import smollm2_file
from kit.measure.measuring import METRICS
from kit.train.sweep import Training, cells, evaluated, finish_runs, markdown, write_between

RUNS, PAGE = ROOT / "outputs" / "smollm2", ROOT / "docs" / "results.md"
FORWARD = ["--kl_type=forward", "--kl_coef=0.05"]
SETTINGS: dict[str, list[str]] = {
    "no-penalty": [],
    "forward": FORWARD,
    "shaped": [*FORWARD, "--reward_shaping=shaped"],
    # its reference is the policy without adapters: TRL cannot load one from the model's file
    "token-credit": ["--credit=token", "--beta=0.1", "--use_peft", "--learning_rate=1e-3"],
}
TRAIN = ["train.py", "--config=configs/smollm2.yaml", "--use_solution"]
DIGITS = {"sentiment": 2, "judge": 2, "kl_policy_ref": 1, "distinct_2": 2, "length": 0, "captured": 2}


def table(compared: Sequence[dict[str, Any]]) -> str:
    """Markdown, a row for each of the `models` of a comparison.json."""
    rows = []
    for model in compared:
        flags = " ".join(SETTINGS.get(model["name"], [])).replace("=", " ")
        shown = f"`{flags}`" if flags else "(base)" if model["name"] == BASE else "(no flag)"
        numbers = {key: found["value"] for key, found in model["metrics"].items()}
        rows.append([shown, *cells([numbers], DIGITS), model["verdict"] or ""])
    titles = [METRICS[key].label for key in DIGITS]
    return markdown(["`--config configs/smollm2.yaml` ...", *titles, "Verdict"], rows)


def main() -> None:
    Parser(__doc__.splitlines()[0]).parse_args()
    smollm2_file()  # raises if the packages are missing
    folders = {name: RUNS / name for name in SETTINGS}
    wanted = [Training([*TRAIN, *flags], folders[name], seed=0) for name, flags in SETTINGS.items()]
    finish_runs(wanted, 2, RUNS / "log.txt")

    named = [f"{name}={folder}" for name, folder in folders.items()]
    found = evaluated([BASE, *named], RUNS / "comparison", "--num_samples=4", "--max_new_tokens=24")
    text = table(found["models"])
    write_between(PAGE, "written by benchmarks.smollm2", text)
    print(f"\n{text}\nin {PAGE}")


if __name__ == "__main__":
    run_main(main)
