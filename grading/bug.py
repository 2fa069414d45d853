"""Spot the bug: a copy of the kit with one silent bug in it: `make bug N=3`, or `python -m grading.bug 3`.

The copy lies in outputs/bugs/3/ and is a kit of its own: train in it, measure in it, run its tests. Nothing of yours is
changed. The bugs are grading/bugs/N.patch, unified diffs under bare numbers: neither their names nor this file say what
they do, and whoever opens one, or compares the copy with the kit, does so on purpose.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

from grading.questions import is_environment

ROOT = Path(__file__).resolve().parent.parent
PATCHES = ROOT / "grading" / "bugs"
NOT_COPIED = ("outputs", "results", "dist", "wandb", "__pycache__", ".*")


class DoesNotApply(Exception):
    """The code has changed under a patch; the message says where."""


def apply(patch: str, root: Path) -> None:
    """A unified diff, applied to the files below `root`; raises DoesNotApply, and then has changed nothing.

    Each hunk is found by its lines and not by their numbers, so it must be there exactly once.
    """
    changed: dict[Path, str] = {}
    for name, hunks in re.findall(r"^--- a/(\S+)\n\+\+\+ b/\1\n((?:[-+ @].*\n)+?)(?=---|\Z)", patch, re.M):
        path = root / name
        text = changed[path] if path in changed else path.read_text(encoding="utf-8")
        for hunk in re.split(r"^@@.*\n", hunks, flags=re.M)[1:]:
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] != "+")
            new = "".join(line[1:] for line in lines if line[0] != "-")
            if text.count(old) != 1:
                raise DoesNotApply(f"{name} no longer has these lines, or has them twice:\n{old}")
            text = text.replace(old, new)
        changed[path] = text
    if not changed:
        raise DoesNotApply("it holds no change")
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8")


def not_copied(folder: str, names: list[str]) -> set[str]:
    environments = {name for name in names if is_environment(Path(folder, name))}
    return environments | shutil.ignore_patterns(*NOT_COPIED)(folder, names)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m grading.bug", description=__doc__.split("\n")[0])
    numbers = sorted(int(path.stem) for path in PATCHES.glob("*.patch"))
    parser.add_argument("number", type=int, choices=numbers, help="which bug")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "bugs", help="copies go to OUT/NUMBER")
    args = parser.parse_args(argv)
    copy = args.out / str(args.number)
    if copy.exists():
        parser.error(f"{copy} is there already; remove it for a fresh copy")
    try:
        shutil.copytree(ROOT, copy, ignore=not_copied)
        apply((PATCHES / f"{args.number}.patch").read_text(encoding="utf-8"), copy)
    except (DoesNotApply, OSError) as error:
        shutil.rmtree(copy, ignore_errors=True)
        print(f"No copy was made: bug {args.number} does not apply: {error}", file=sys.stderr)
        return 1
    print(
        f"{copy}: the kit with bug {args.number}. Work there, in this environment (make would install another):"
    )
    print(f"  cd {copy}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
