"""Build dist/gradescope.zip, the autograder to upload to Gradescope: `make gradescope`.

It holds the checks and the grader, a few dozen kB; no torch, no models, and no solution that could be stolen.
"""

import argparse
import sys
from pathlib import Path

from grading.archive import write_zip

ROOT = Path(__file__).resolve().parent.parent.parent
GRADER = (
    "__init__.py",
    "checks.py",
    "grade.py",
    "loopholes.py",
    "mistakes.py",
    "sandbox.py",
    "submission.py",
    "trees.py",
    "worker.py",
)
FILES = {
    "setup.sh": "grading/gradescope/setup.sh",
    "run_autograder": "grading/gradescope/run_autograder",
    **{f"grading/{name}": f"grading/{name}" for name in GRADER},
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m grading.gradescope.build", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "dist" / "gradescope.zip", help="the file to write"
    )
    out = parser.parse_args().out
    contents = {name: ((ROOT / path).read_bytes(), not name.endswith(".py")) for name, path in FILES.items()}
    try:
        write_zip(out, contents)
    except OSError as error:
        print(f"Cannot write {out}: {error.strerror}.", file=sys.stderr)
        return 1
    print(f"{out}: {len(contents)} files, {out.stat().st_size / 1000:.0f} kB; points of the assignment: 100")
    return 0


if __name__ == "__main__":
    sys.exit(main())
