"""Spot the bug: a copy of the kit with one silent bug in it: `make bug N=3`, or `python -m grading.bug 3`.

The copy in outputs/bugs/3/ is a kit of its own: train in it, measure in it, run its tests. Your files stay. The bugs
are the unified diffs grading/bugs/N.patch: open one, or compare the copy with the kit, and you see the bug.
"""

import argparse
import re
import shutil
from pathlib import Path

from kit import ROOT
from kit.base.errors import UserError, run_main
from kit.base.files import user_path
from kit.base.screen import as_word

PATCHES = ROOT / "grading" / "bugs"
NOT_COPIED = ("outputs", "results", "dist", "wandb", "__pycache__", ".*")


class DoesNotApply(UserError):
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
    """What the copy leaves out: results, environments (of venv, uv or conda, whatever their name), dangling links."""
    left_out = shutil.ignore_patterns(*NOT_COPIED)(folder, names)
    for name in names:
        path = Path(folder, name)
        if (path / "pyvenv.cfg").exists() or (path / "conda-meta").exists() or not path.exists():
            left_out.add(name)
    return left_out


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m grading.bug", description=__doc__.split("\n")[0])
    numbers = sorted(int(path.stem) for path in PATCHES.glob("*.patch"))
    parser.add_argument("number", type=int, choices=numbers, help="which bug")
    parser.add_argument("--out", default=str(ROOT / "outputs" / "bugs"), help="copies go to OUT/NUMBER")
    args = parser.parse_args(argv)
    copy = Path(user_path(args.out)).resolve() / str(args.number)
    if copy.parent.is_relative_to(ROOT) and copy.relative_to(ROOT).parts[0] not in NOT_COPIED:
        raise UserError(f"--out {args.out}: would be copied itself; give a folder in outputs/")
    if copy.exists():
        raise UserError(f"{copy} is there already; remove it for a fresh copy")
    try:
        shutil.copytree(ROOT, copy, ignore=not_copied)
        apply((PATCHES / f"{args.number}.patch").read_text(encoding="utf-8"), copy)
    except (DoesNotApply, OSError) as error:
        shutil.rmtree(copy, ignore_errors=True)
        raise UserError(f"no copy was made: bug {args.number} does not apply: {error}") from None
    print(f"{copy}: the kit with bug {args.number}.")
    print(f"Work there in this environment; make would install another:\n  cd {as_word(copy)}")


if __name__ == "__main__":
    run_main(main)
