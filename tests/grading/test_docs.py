"""The commands and links of all pages: each command is read by the parser of its own script, each link leads somewhere.

What the README and the exercises say is run from end to end, in order, by test_handout.py with HANDOUT_TESTS=1; here a
flag that is gone, a value that is refused, a file that was renamed is seen within seconds.
"""

import argparse
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from grading.submission import FUNCTIONS
from tests.conftest import ROOT

pytestmark = pytest.mark.whole_kit
PAGES = sorted(path for glob in ("*.md", "docs/*.md", "benchmarks/*.md") for path in ROOT.glob(glob))
COMMAND = r"(?:[A-Z_]+=\S+ )?(?:\.venv/bin/)?(?:python (?:-m [\w.]+|[\w/]+\.py)|make \w)"


class Parsed(Exception):
    """The arguments were accepted."""


def commands(text: str) -> list[str]:
    """`python ...` and `make ...` lines of the fenced blocks, and those between backticks in a sentence."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if re.match(COMMAND, line)]
    prose = " ".join(re.sub(r"^```.*?^```", "", text, flags=re.M | re.S).split())
    lines += [code for code in re.findall(r"`([^`]+)`", prose) if re.match(COMMAND, code)]
    # What stands after a # or two spaces, or in brackets, is said about the command
    return [re.split(r"\s+#|\s{2,}|\s\[|\s\.\.\.", line)[0] for line in lines]


def accept(command: str) -> None:
    """Raises AssertionError where the script of `python ...` does not take these arguments."""
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    assert words.pop(0).endswith("python"), command
    module = words.pop(0) if words[0] != "-m" else words.pop(1)
    arguments = [word for word in words if word not in ("-m", "--help")]
    if module in ("pytest", "pip", "venv", "http.server"):
        return
    if module == "play.py" and importlib.util.find_spec("gradio") is None:  # requirements-play.txt
        return
    if module.endswith(".py"):
        assert (ROOT / module).is_file(), f"{command}: no {module}"
        module = module.removesuffix(".py").replace("/", ".")
    if module == "rewards":
        assert set(arguments) <= {*FUNCTIONS, "exploits", "NAME"}, command
        return
    script = importlib.import_module(module)
    if hasattr(script, "PARSER"):
        if "--resume" in arguments:  # of a run that is not there; test_resume.py goes on with real ones
            del arguments[arguments.index("--resume") :][:2]
            arguments = [a for a in arguments if not a.startswith("outputs/") and a != "--resume"]
        script.PARSER.parse(arguments)
        return

    def parse_and_stop(self, args=None, namespace=None):
        if self.parse_known_args(args)[1]:
            self.error("unknown arguments")
        raise Parsed

    with (
        patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
        patch.object(argparse.ArgumentParser, "parse_intermixed_args", parse_and_stop),
        patch.object(sys, "argv", [module, *arguments]),
        pytest.raises(Parsed),
    ):
        script.main()


def python_commands(page: Path) -> list[str]:
    """Those of a page, and those that its `make ...` would run; an unknown target is an AssertionError."""
    found = []
    for command in dict.fromkeys(commands(page.read_text(encoding="utf-8"))):
        before, make, target = command.partition("make ")
        if not make or "python " in before:
            found.append(command)
            continue
        done = subprocess.run(["make", "-n", *shlex.split(target)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{page.name}: {command}: {done.stderr}"
        found += re.findall(r"^\.venv/bin/(python .*)", done.stdout, re.M)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one_that_its_script_takes(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(ROOT / "configs" / "ppo.yaml", tmp_path / "my.yaml")
    for command in python_commands(page):
        if "play.py" not in command:
            told(page, command)


@pytest.mark.needs("gradio")
def test_every_command_of_the_play_page_is_one_that_it_takes():
    found = [(page, line) for page in PAGES for line in python_commands(page) if "play.py" in line]
    assert found
    for page, command in found:
        told(page, command)


def told(page: Path, command: str) -> None:
    try:
        accept(command)
    except (Exception, SystemExit, pytest.fail.Exception) as error:
        pytest.fail(f"{page.name}: {command}: {type(error).__name__}: {error}")


def test_a_wrong_command_is_seen():
    text = "```sh\npython train.py --kl_typo forward   # no\n```\n\nor `make bgu N=3`, or `python -m grading.bug`.\n"
    found = commands(text)
    assert found == ["python train.py --kl_typo forward", "make bgu N=3", "python -m grading.bug"]
    for command in (
        found[0],
        found[2],
        "python trian.py",
        "python rewards.py kl_penality",
        "python -m grading.bgu 3",
    ):
        with pytest.raises((Exception, SystemExit, pytest.fail.Exception)):
            accept(command)
    accept("python -m grading.bug 3")
    accept("python train.py --kl_type forward")


def anchors(page: Path) -> set[str]:
    """GitHub's names for the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            assert re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./~%?=&#+-]*)?", target), f"{page.name}: {target}"
            continue
        name, _, heading = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name}: {target}"
        assert not heading or heading in anchors(linked), f"{page.name}: no heading for {target}"
