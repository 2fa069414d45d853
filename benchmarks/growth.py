"""Does a long training grow? The resident memory of one, every 50 steps, read from /proc (Linux).

python -m benchmarks.growth                       500 tiny steps, all weights
python -m benchmarks.growth --use_peft
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from kit.models import ROOT

EVERY = 50
TINY = (
    "--model mini --sentiment_model mini --max_completion_length 8 --prompts_per_step 2 --num_generations 2"
)


def resident(pid: int) -> float:
    """MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def measure(flags: list[str], folder: Path) -> dict[int, float]:
    """{step: MiB} of a training with these flags."""
    command = [sys.executable, "train.py", *flags, "--output_dir", str(folder), "--run_name", "run"]
    log, found = folder / "run" / "metrics.jsonl", {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as training:
        while training.poll() is None:
            time.sleep(0.05)
            step = log.read_text(encoding="utf-8").count('"train/reward"') if log.exists() else 0
            if step and step % EVERY == 0 and step not in found:
                with suppress(OSError, IndexError):  # it has just ended
                    found[step] = resident(training.pid)
                    print(f"step {step:>4}  {found[step]:6.0f} MiB", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max_steps", type=int, default=500, help="at least 100")
    parser.add_argument("--eval_every", type=int, default=0, help="as train.py's, and the two below")
    parser.add_argument("--save_steps", type=int, default=1000)
    parser.add_argument("--use_peft", action="store_true")
    args = parser.parse_args()
    flags = TINY.split()
    for name in ("max_steps", "eval_every", "save_steps"):
        flags += [f"--{name}", str(getattr(args, name))]
    with tempfile.TemporaryDirectory() as folder:
        found = measure([*flags, "--use_peft"] if args.use_peft else flags, Path(folder))
    first, last = min(found), max(found)
    growth = (found[last] - found[first]) / (last - first) * 100
    print(f"{growth:+.1f} MiB per 100 steps from step {first} to {last}")


if __name__ == "__main__":
    main()
