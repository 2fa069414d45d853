"""Build dist/handout.zip, the kit for students: `make handout`, or `make handout VARIANT=3`.

The zip has the files that git tracks, less LEFT_OUT. Of the pages and the Makefile, students do not get the blocks
between `<!-- instructors: not in the hand-out -->` and `<!-- /instructors -->` (in the Makefile: the same words after
a #), and only they get the text of `<!-- students: ... -->`. Tests that need the solution, empty stubs or the kit's own
prompts carry the mark `whole_kit`: they are in the zip and skip themselves there (`tests/conftest.py`).
A variant (`variants.py`) changes what could be copied from last year. Before anything is written, the files are
searched for answers and for what trained models wrote. The same files and the same variant give the same bytes.
"""

import argparse
import ast
import re
import subprocess
from pathlib import Path

from grading.archive import Files, write_zip
from grading.variants import apply_variant
from kit import ROOT
from kit.base.errors import UserError, run_main
from kit.base.files import refuse_foreign, user_path

TOP = "rl-sentiment-exercise"  # the folder inside the zip
LEFT_OUT = re.compile(
    r"rewards_solution\.py|docs/(answers|instructors|speed|scaling|reliability|verdict)\.md|docs/speed\.png"
    r"|grading/(attacks|challenge|folder|grade|handout|sandbox|variants|worker)\.py|grading/gradescope/.*"
    r"|tests/(grading|submissions)/.*"
    # They train with the solution, or are about more scripts than students have.
    r"|benchmarks/.*|baselines/compare\.py|kit/train/sweep\.py"
    r"|tests/(test_)?(compare|soak|stopped|bad_input|reward_model|results|verdict_measured|hub|families|gpu)\.py"
    # What trained models did; tables and samples are cut from the pages.
    r"|docs/(frontier|results|verdict|methods|baselines_frontier|hack_and_cure|overoptimization|play)\.png"
    r"|CHANGELOG\.md|CONTRIBUTING\.md|\.pre-commit-config\.yaml|\..*/.*"
)
MARK = r"^(?:<!--|#) {}(?: -->)?\n"
INSTRUCTORS = re.compile(
    MARK.format("instructors: not in the hand-out") + ".*?" + MARK.format("/instructors"), re.M | re.S
)
STUDENTS = re.compile(r"<!-- students: (.*?) -->", re.S)
# The answer of exercise 1b, as code or in words, with its spaces taken out.
ANSWER = re.compile(r"(?<![\w.])1(\.0)?[-−](w(?!\w)|w_|weight|(\w+\.)?exp\()")
SELF_CHECK = "__init__ checks exploits loopholes mistakes self_check submission trees"
NEEDED = ("rewards.py", "kit/base/errors.py", *(f"grading/{name}.py" for name in SELF_CHECK.split()))
# A block that `make results` writes: tables and samples of trained models.
RESULTS = re.compile(r"<!-- .*by make results -->")


class Leak(UserError):
    """A file that students would get holds what is not for them, or a file they need is missing."""


def tracked(root: Path) -> list[tuple[str, bool]]:
    """Names that git tracks below `root`, each with whether it is executable."""
    command = ["git", "-c", f"safe.directory={root}", "ls-files", "-s", "-z"]
    listing = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode()
    entries = (entry.split("\t", 1) for entry in listing.split("\0") if entry)
    return [(name, meta[:6] == "100755") for meta, name in entries if meta.startswith("100")]  # no links


def collect(root: Path, variant: int = 0) -> Files:
    """The files of the hand-out; raises Leak and PlaceMissing."""
    files: Files = {}
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
    """A page or the Makefile without the instructors' blocks and with the words for students; raises Leak."""
    edition = STUDENTS.sub(r"\1", INSTRUCTORS.sub("", text))
    if re.search(r"(<!--|#) (/?instructors|students:)", edition):
        raise Leak(f"{name} has an instructors' or a students' block without its end or its beginning")
    return edition if edition == text else edition.rstrip() + "\n"


def check(files: Files) -> None:
    """Raise Leak if a file has an answer or results, the stubs are filled in, or the self-check would not run."""
    missing = [name for name in NEEDED if name not in files]
    if missing:
        raise Leak(f"the self-check would not run: git does not track {', '.join(missing)}")
    for stub in ast.parse(files["rewards.py"][0]).body:
        if isinstance(stub, ast.FunctionDef) and [type(node) for node in stub.body] != [ast.Expr, ast.Raise]:
            raise Leak(f"{stub.name} in rewards.py is filled in")
    for name, (contents, _) in files.items():
        try:
            text = contents.decode("utf-8")
        except UnicodeDecodeError:
            continue  # weights, pictures
        if found := ANSWER.search(re.sub(r"\s", "", text)):
            raise Leak(f"{name} gives away exercise 1b: it says {found.group()!r}")
        if name.endswith(".md") and (found := RESULTS.search(text)):
            raise Leak(f"{name} shows what trained models did: {found.group()}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m grading.handout", description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=str(ROOT / "dist" / "handout.zip"), help="the file to write")
    parser.add_argument("--variant", type=int, default=0, help="the year's; 0: the kit as it stands")
    args = parser.parse_args(argv)
    out = Path(user_path(args.out))
    refuse_foreign(out, TOP, "--out")
    try:
        files = collect(ROOT, args.variant)
        write_zip(out, {f"{TOP}/{name}": entry for name, entry in files.items()})
    except Leak as leak:
        raise Leak(f"no hand-out was written: {leak}") from None
    except subprocess.CalledProcessError:
        raise UserError("no hand-out was written: it has what git tracks, and git lists nothing") from None
    except OSError as error:
        raise UserError(f"no hand-out was written: {error.filename}: {error.strerror}") from None
    print(f"{out}: variant {args.variant}, {len(files)} files, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_main(main)
