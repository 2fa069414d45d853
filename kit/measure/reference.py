"""Scored samples of the reference: what the best attainable J* is estimated from.

    python -m kit.measure.reference     draw those of the bundled pair again, into mini/reference_samples*.json.gz

Two sets of 64 prompts (held-out and tuning) x 64 samples: four minutes on two cores. Those of the bundled pair come
with the kit. They are used as long as models, prompts and sampling settings are those they were drawn with.
"""

# ruff: noqa: E402 - libraries are silenced before they are imported
from kit.base.screen import Progress, quiet

quiet(__name__)

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import HELD_OUT_PROMPTS, TUNING_PROMPTS
from kit.base.cli import Parser
from kit.base.errors import run_main
from kit.base.files import refuse_pointer
from kit.lm.loading import told_as
from kit.lm.models import MINI, ModelChoice, load_policy, resolve_models
from kit.measure.measuring import Bench
from sentiment import load_scorer

HELD_OUT, TUNING = MINI / "reference_samples.json.gz", MINI / "reference_samples_tuning.json.gz"
# The bias of J* falls as 1/N: on the bundled pair at beta 0.1 it is -0.014 with 16 samples a prompt, -0.004 with 64
NUM_SAMPLES = 64
SEED = 20_240_301  # neither training's nor validation's stream


@dataclass(frozen=True)
class ReferenceSamples:
    """`texts` and their P(positive) `scores` (prompts, N), N completions of every prompt by pi_ref."""

    texts: list[list[str]]
    scores: np.ndarray


def draw_samples(bench: Bench, num_samples: int) -> ReferenceSamples:
    """`num_samples` completions of each of the bench's prompts from its reference, scored."""
    assert bench.reference is not None
    completions = bench.sample(bench.reference, bench.tokenizer, num_samples)
    texts = [c.text for c in completions]
    with bench.phase("scoring"):
        scores = np.reshape(bench.scorer(texts), (-1, num_samples))
    return ReferenceSamples([texts[i : i + num_samples] for i in range(0, len(texts), num_samples)], scores)


def kept_samples(choice: ModelChoice, bench: Bench) -> ReferenceSamples | None:
    """The samples that come with the bundled pair; None if models, prompts or sampling settings are others."""
    for file in (HELD_OUT, TUNING):
        if choice.mini and file.is_file():
            drawn_with, samples = read_kept(file)
            if drawn_with == fingerprint(choice, bench):
                return samples
    return None


def read_kept(file: Path = HELD_OUT) -> tuple[str, ReferenceSamples]:
    """(the `fingerprint` they were drawn with, the samples of the bundled pair)."""
    data = file.read_bytes()
    refuse_pointer(data, str(file))
    with told_as(f"{file} is damaged", "get it again, or make it with python -m kit.measure.reference"):
        kept = json.loads(gzip.decompress(data))
        return kept["drawn_with"], ReferenceSamples(kept["texts"], np.array(kept["scores"]))


def fingerprint(choice: ModelChoice, bench: Bench) -> str:
    """A digest of everything the samples and their scores depend on: weights, prompts, length, temperature."""
    digest = hashlib.sha256()
    for folder in (choice.policy, choice.sentiment):
        weights = Path(folder) / "model.safetensors"
        digest.update(hashlib.sha256(weights.read_bytes() if weights.is_file() else folder.encode()).digest())
    digest.update(json.dumps([list(bench.prompts), bench.max_new_tokens, bench.temperature]).encode())
    return digest.hexdigest()


def main() -> None:
    Parser(__doc__.splitlines()[0]).parse_args()
    choice = resolve_models("mini", "mini")
    reference, tokenizer = load_policy(choice.policy)
    scorer = load_scorer(choice.sentiment)
    for file, prompts in ((HELD_OUT, HELD_OUT_PROMPTS), (TUNING, TUNING_PROMPTS)):
        bench = Bench(prompts, scorer, reference.eval(), tokenizer, 40, 1.0, SEED)
        bench.progress = Progress(len(prompts) * NUM_SAMPLES, "sampling", "completions")
        drawn = draw_samples(bench, NUM_SAMPLES)
        record = {
            "drawn_with": fingerprint(choice, bench),
            "scores": [[round(float(s), 5) for s in row] for row in drawn.scores],
            "texts": drawn.texts,
        }
        file.write_bytes(gzip.compress(json.dumps(record, ensure_ascii=False).encode(), 9, mtime=0))
        print(f"{file.name}: {drawn.scores.size:,} completions, mean score {drawn.scores.mean():.3f}")


if __name__ == "__main__":
    run_main(main)
