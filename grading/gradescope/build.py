"""Build dist/gradescope.zip, the autograder to upload to Gradescope: `make gradescope`.

It holds the checks and the grader, a few dozen kB; no torch, no models, and no solution that could be stolen.
"""

import argparse
from pathlib import Path

from grading.archive import write_zip
from kit import ROOT
from kit.base.errors import run_main
from kit.base.files import refuse_foreign, user_path

GRADER = "__init__ checks grade loopholes mistakes sandbox submission trees worker"
KIT = "kit/__init__.py kit/base/__init__.py kit/base/errors.py kit/base/files.py"
FILES = {name: f"grading/gradescope/{name}" for name in ("setup.sh", "run_autograder")}
FILES |= {module: module for module in (*(f"grading/{name}.py" for name in GRADER.split()), *KIT.split())}


def main() -> None:
    parser = argparse.ArgumentParser("python -m grading.gradescope.build", description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=str(ROOT / "dist" / "gradescope.zip"), help="the file to write")
    out = Path(user_path(parser.parse_args().out))
    refuse_foreign(out, "grading/__init__.py", "--out")
    contents = {name: ((ROOT / path).read_bytes(), not name.endswith(".py")) for name, path in FILES.items()}
    write_zip(out, contents)
    print(f"{out}: {len(contents)} files, {out.stat().st_size / 1000:.0f} kB; points of the assignment: 100")


if __name__ == "__main__":
    run_main(main)
