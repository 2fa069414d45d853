"""Build dist/handout.zip, the kit for students, and dist/handout.manifest: `make handout`, or `make handout VARIANT=3`.

The files are those that git tracks, less LEFT_OUT. Of the pages and the Makefile, students get all but the blocks
between `<!-- instructors: not in the hand-out -->` and `<!-- /instructors -->` (in the Makefile: the same words after
a #), and they alone see the text of `<!-- students: ... -->`. Tests that need the solution, empty stubs or these very
prompts carry the mark `whole_kit`: they are in the zip, and skip themselves there (`tests/conftest.py`).
A variant (`variants.py`) changes what could be copied from last year. The result is searched for answers before
anything is written. The same files and the same variant give the same bytes.
"""

import argparse
import ast
import hashlib
import re
import subprocess
import sys
from pathlib import Path

from grading.archive import write_zip
from grading.variants import PlaceMissing, apply_variant

ROOT = Path(__file__).resolve().parent.parent
TOP = "rl-sentiment-exercise"  # the folder inside the zip
LEFT_OUT = re.compile(
    "|".join(
        (
            r"rewards_solution\.py|docs/(answers|instructors|speed|scaling|reliability|verdict)\.md|docs/speed\.png",
            r"grading/(archive|grade|handout|sandbox|variants|worker)\.py|grading/gradescope/.*",
            r"tests/(grading|submissions)/.*",
            # They train with the solution, or are about more scripts than students have.
            r"benchmarks/.*|baselines/compare\.py|kit/sweep\.py",
            r"tests/(test_)?(compare|soak|stopped|bad_input|results|placement|verdict_measured)\.py",
            # Results; the tables are cut from the pages.
            r"docs/(frontier|results|verdict|methods|baselines_frontier)\.png",
            r"CHANGELOG\.md|CONTRIBUTING\.md|\.pre-commit-config\.yaml|\..*/.*",
        )
    )
)
INSTRUCTORS = re.compile(
    r"^(?:<!--|#) instructors: not in the hand-out(?: -->)?\n.*?^(?:<!--|#) /instructors(?: -->)?\n",
    re.M | re.S,
)
STUDENTS = re.compile(r"<!-- students: (.*?) -->", re.S)
# The answer of exercise 1b, as code or in words, with its spaces taken out.
ANSWER = re.compile(r"(?<![\w.])1(\.0)?[-−](w(?!\w)|w_|weight|(\w+\.)?exp\()")
SELF_CHECK = (
    "rewards.py",
    "grading/__init__.py",
    "grading/checks.py",
    "grading/loopholes.py",
    "grading/mistakes.py",
    "grading/self_check.py",
    "grading/submission.py",
    "grading/trees.py",
)


class Leak(Exception):
    """A file that students would get holds what is not for them, or a file they need is missing."""


def tracked(root: Path) -> list[tuple[str, bool]]:
    """Names that git tracks below `root`, each with whether it is executable."""
    listing = subprocess.run(
        ["git", "-c", f"safe.directory={root}", "ls-files", "-s", "-z"],
        cwd=root,
        capture_output=True,
        check=True,
    ).stdout.decode()
    entries = (entry.split("\t", 1) for entry in listing.split("\0") if entry)
    return [
        (name, meta.startswith("100755"))
        for meta, name in entries
        if not meta.startswith(("120000", "160000"))
    ]


def collect(root: Path, variant: int = 0) -> dict[str, tuple[bytes, bool]]:
    """{name: (contents, executable)} of the hand-out; raises Leak and PlaceMissing."""
    files = {}
    for name, executable in tracked(root):
        if LEFT_OUT.fullmatch(name):
            continue
        contents = (root / name).read_bytes()
        if name.endswith(".md") or name == "Makefile":
            contents = for_students(name, contents.decode("utf-8")).encode("utf-8")
        files[name] = (contents, executable)
    files = apply_variant(files, variant)
    check(files)
    return files


def for_students(name: str, text: str) -> str:
    """A page, or the Makefile, without the instructors' blocks and with the words for students; raises Leak."""
    edition = STUDENTS.sub(r"\1", INSTRUCTORS.sub("", text))
    if re.search(r"(<!--|#) (/?instructors|students:)", edition):
        raise Leak(
            f"{name} has an instructors' or a students' block with no end, or an end with no beginning"
        )
    return edition if edition == text else edition.rstrip() + "\n"


def check(files: dict[str, tuple[bytes, bool]]) -> None:
    """Raise Leak where an answer stands in a file, the stubs are filled in, or the self-check would not run."""
    missing = [name for name in SELF_CHECK if name not in files]
    if missing:
        raise Leak(f"the self-check would not run: git does not track {', '.join(missing)}")
    stubs = [node for node in ast.parse(files["rewards.py"][0]).body if isinstance(node, ast.FunctionDef)]
    for stub in stubs:
        if len(stub.body) != 2 or not isinstance(stub.body[1], ast.Raise):
            raise Leak(f"{stub.name} in rewards.py is filled in")
    for name, (contents, _) in files.items():
        try:
            found = ANSWER.search(re.sub(r"\s", "", contents.decode("utf-8")))
        except UnicodeDecodeError:
            continue  # weights, pictures
        if found:
            raise Leak(f"{name} gives away exercise 1b: it says {found.group()!r}")


def manifest(files: dict[str, tuple[bytes, bool]]) -> str:
    """One line a file: sha256, size in bytes, name."""
    return "".join(
        f"{hashlib.sha256(contents).hexdigest()}  {len(contents):>9}  {name}\n"
        for name, (contents, _) in sorted(files.items())
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m grading.handout", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "handout.zip", help="the file to write")
    parser.add_argument("--variant", type=int, default=0, help="the year's; 0: the kit as it stands")
    args = parser.parse_args(argv)
    out, variant = args.out, args.variant
    try:
        files = collect(ROOT, variant)
        write_zip(out, {f"{TOP}/{name}": entry for name, entry in files.items()})
        out.with_suffix(".manifest").write_text(manifest(files), encoding="utf-8")
    except (Leak, PlaceMissing) as error:
        print(f"No hand-out was written: {error}.", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError:
        print(
            "No hand-out was written: it is made of the files git tracks, and git lists none here.",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(f"No hand-out was written: {error.filename}: {error.strerror}.", file=sys.stderr)
        return 1
    size = f"{len(files)} files, {out.stat().st_size / 1e6:.1f} MB"
    print(f"{out}: variant {variant}, {size}; list in {out.with_suffix('.manifest').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
