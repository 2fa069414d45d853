"""Zip what is handed in: `make handin`, or `python -m grading.handin --run outputs/best report.pdf`.

handin.zip has rewards.py, exploits.txt and answers.md (if they are there), the files that are named, and for exercise 6
of one run its config.json, metrics.jsonl and the weights of its final/. Standard library only.
"""

import argparse
from pathlib import Path

from grading.archive import Files, write_zip
from grading.exploits import NAME
from kit import ROOT
from kit.base.errors import UserError, run_main
from kit.base.files import refuse_foreign, user_path

TOP = "handin"  # the folder inside the zip
MAX_MB = 30  # of the zip
FINAL = (("model.safetensors", "config.json"), ("adapter_model.safetensors", "adapter_config.json"))


def files_of_run(run: Path) -> list[Path]:
    """What exercise 6 needs of a run. Raises UserError if it did not finish."""
    for names in FINAL:
        files = [run / "config.json", run / "metrics.jsonl", *(run / "final" / name for name in names)]
        if all(map(Path.is_file, files)):
            return files
    raise UserError(f"--run {run}: no finished run there; give its folder, which has config.json and final/")


def collect(named: list[Path], run: Path | None) -> Files:
    """{name in the zip: the file}. Raises UserError for a file that is missing, or two of one name."""
    always = [ROOT / "rewards.py", *filter(Path.is_file, (ROOT / NAME, ROOT / "answers.md"))]
    paths = [(path, path.name) for path in dict.fromkeys([*always, *(path.resolve() for path in named)])]
    if run is not None:
        paths += [(path, f"run/{path.relative_to(run).as_posix()}") for path in files_of_run(run)]
    files: Files = {}
    for path, name in paths:
        if f"{TOP}/{name}" in files:
            raise UserError(f"two files are named {name}; rename one of them")
        try:
            files[f"{TOP}/{name}"] = (path.read_bytes(), False)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); name the files to hand in") from None
    return files


def main() -> None:
    parser = argparse.ArgumentParser("python -m grading.handin", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=user_path, help="more files, such as report.pdf")
    parser.add_argument("--run", type=user_path, help="the run folder of exercise 6")
    parser.add_argument(
        "--out", type=user_path, default=ROOT / "dist" / "handin.zip", help="the file to write"
    )
    args = parser.parse_args()
    out = Path(args.out)
    refuse_foreign(out, f"{TOP}/", "--out")
    files = collect([Path(name) for name in args.files], Path(args.run) if args.run else None)
    write_zip(out, files, MAX_MB)
    for name, (contents, _) in sorted(files.items()):
        print(f"{len(contents):>12,}  {name.removeprefix(f'{TOP}/')}")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_main(main)
