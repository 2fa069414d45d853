"""Does a long training grow? The resident memory of one, every 50 steps, seen from outside.

python -m benchmarks.growth                       500 tiny steps, all weights
python -m benchmarks.growth --use_peft            more flags are train.py's
"""

import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from kit.errors import told_in_one_line
from kit.models import ROOT

EVERY = 50
STEPS = 500
TINY = (
    f"--model mini --sentiment_model mini --max_steps {STEPS} --max_completion_length 8 --prompts_per_step 2"
)
TINY += " --num_generations 2 --eval_every 0 --save_steps 1000"


def resident(pid: int) -> float:
    """MB, as /proc has it (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1e3


def measure(flags: list[str], folder: Path) -> dict[int, float]:
    """{step: MB} of a training with these flags."""
    command = [
        sys.executable,
        "train.py",
        *TINY.split(),
        "--output_dir",
        str(folder),
        "--run_name",
        "run",
        *flags,
    ]
    log, found = folder / "run" / "metrics.jsonl", {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as training:
        while training.poll() is None:
            time.sleep(0.05)
            step = log.read_text().count('"train/reward"') if log.exists() else 0
            if step and step % EVERY == 0 and step not in found:
                with suppress(OSError, IndexError):  # it has just ended
                    found[step] = resident(training.pid)
                    print(f"step {step:>4}  {found[step]:6.0f} MB", flush=True)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = measure(sys.argv[1:], Path(folder))
    first, last = min(found), max(found)
    growth = (found[last] - found[first]) / (last - first) * 100
    print(f"{growth:+.1f} MB per 100 steps from step {first} to {last}")


if __name__ == "__main__":
    with told_in_one_line():
        main()
