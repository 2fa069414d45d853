"""What stands on the screen, and that a script says what it lacks.

pytest tests/test_screen.py
"""

import ast
import io
import os
import runpy
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import kit
from kit.base import screen
from kit.base.errors import on_stop_signals, secure_screen
from kit.base.screen import Progress, as_word, clock, one_line, table
from tests.conftest import ROOT


def test_clock_and_cells():
    assert [clock(s) for s in (0, 59.6, 75, 3725)] == ["0:00", "1:00", "1:15", "1:02:05"]
    assert one_line("a\nb\x1b[2J", 20) == "a\\nb?[2J"
    assert one_line("abcdef", 4) == "abc…"
    assert [as_word(Path("a", name)) for name in ("b", "b c")] == [
        str(Path("a", "b")),
        f'"{Path("a", "b c")}"',
    ]
    assert table(("n", "text"), [("1", "x"), ("10", "y")]).splitlines()[1] == "   1  x"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_of_progress_that_is_left_early_ends_before_what_comes_next(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    now = [0.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    with pytest.raises(ValueError), Progress(4, "sampling", "texts") as progress:
        now[0] = 10.0
        progress.advance(1)
        progress.doing("scoring")
        raise ValueError
    progress.doing("figures")  # nothing more is drawn
    shown = "sampling 1/4 texts | 0:10 | eta 0:30", "scoring 1/4 texts | 0:10 | eta 0:30"
    assert sys.stderr.getvalue() == "".join(f"\r\033[K{line}" for line in shown) + "\n"


def test_a_line_of_progress_that_is_full_has_ended_already(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(1, "sampling", "texts") as progress:
        progress.advance(1)
    assert sys.stderr.getvalue().count("\n") == 1


# ---- a screen that takes nothing ---------------------------------------------------------------------------


@pytest.fixture
def broken(request) -> int:
    """A file descriptor that cannot be written to."""
    if request.param == "full disk":
        return os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe() if request.param == "closed pipe" else os.openpty()
    os.close(reader)
    return writer


@pytest.mark.parametrize("broken", ["closed pipe", "closed terminal", "full disk"], indirect=True)
@pytest.mark.parametrize("buffering", [-1, 0], ids=["buffered", "python -u"])
def test_a_print_that_nobody_takes_ends_nothing(broken, buffering, monkeypatch):
    file = os.fdopen(broken, "wb", buffering)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, write_through=not buffering))
    with pytest.raises(OSError):
        print("x" * 100_000, flush=True)
    secure_screen()
    print("x" * 100_000, flush=True)
    assert sys.stdout.fileno() == broken and not sys.stdout.isatty()


def test_a_character_that_the_screen_lacks_is_a_question_mark(monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w", encoding="latin-1"))
    monkeypatch.setattr(sys, "stderr", None)  # closed by who started the script
    secure_screen()
    secure_screen()  # the second changes nothing
    print("né π \udc80")
    print("nowhere", file=sys.stderr)
    assert os.read(reader, 100) == b"n\xe9 ? ?\n" and not sys.stderr.isatty()
    os.close(reader)


def test_with_a_closed_pipe_the_work_is_done_and_the_status_is_its_own():
    """Python itself would complain of the pipe at its end, with status 120."""
    code = "from kit.base.errors import run_main; run_main(lambda: print('x' * 9999) or 3)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 3


# ---- signals -----------------------------------------------------------------------------------------------


def test_a_closed_terminal_is_a_stop_signal_once_and_with_nohup_none():
    got, old = [], signal.getsignal(signal.SIGHUP)
    before = on_stop_signals(lambda signum, frame: got.append(signum))
    try:
        for signum in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), signum)
        assert got == [signal.SIGHUP, signal.SIGTERM, signal.SIGINT] and before[signal.SIGHUP] == old
        assert signal.SIGHUP not in on_stop_signals(before[signal.SIGINT])  # it is ignored by now
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


# ---- what a script needs -----------------------------------------------------------------------------------

PINS = "# the stack\ntorch==2.13.0\ntransformers==5.23.0\ntrl==1.16.0\nnumpy==2.4.6\nPyYAML==6.0.3\n"
GOOD = {"torch": "2.13.0+cpu", "transformers": "5.23.0", "trl": "1.16.0", "numpy": "2.4.6", "PyYAML": "6.0.3"}
INSTALL = "type: python -m pip install -r requirements.txt (or make train, which makes .venv)"


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        (GOOD, ""),
        (GOOD | {"trl": "1.16.4", "numpy": "3.0", "torch": "2.14.1"}, ""),
        (GOOD | {"trl": "1.17.0"}, f"trl 1.17.0 is installed and 1.16 is needed; {INSTALL}"),
        (
            GOOD | {"transformers": "4.57.1"},
            f"transformers 4.57.1 is installed and 5.23 is needed; {INSTALL}",
        ),
        (GOOD | {"numpy": "1.26.4"}, f"numpy 1.26.4 is installed and 2.4 is needed; {INSTALL}"),
        ({k: v for k, v in GOOD.items() if k != "trl"}, f"not installed: trl; {INSTALL}"),
        (
            {"torch": "2.9"},
            f"not installed: transformers, trl, numpy and 1 more; torch 2.9 is installed and 2.13 is needed; {INSTALL}",
        ),
    ],
)
def test_packages_that_are_missing_or_of_another_version(installed, said, tmp_path, monkeypatch):
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    (tmp_path / "requirements.txt").write_text(PINS)
    monkeypatch.delenv("KIT_CANARY", raising=False)
    monkeypatch.setattr(kit, "ROOT", tmp_path)
    monkeypatch.setattr(metadata, "version", version)
    assert kit.wrong_packages() == said
    (tmp_path / ".venv").mkdir()  # which is not the Python that runs this
    there = "the environment in .venv is not active: type .venv/bin/python for python"
    assert kit.wrong_packages() == said.replace(INSTALL, there)


@pytest.mark.parametrize(("trl", "refused"), [("1.17.0", False), ("2.0", False), ("1.15.9", True)])
def test_make_canary_takes_newer_packages_and_no_older(trl, refused, monkeypatch):
    monkeypatch.setenv("KIT_CANARY", "1")
    monkeypatch.setattr(metadata, "version", lambda name: trl if name == "trl" else "9999.0")
    assert kit.wrong_packages().startswith(f"trl {trl} is installed") == refused


def test_an_older_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 12))
    with pytest.raises(
        SystemExit, match=r"^error: this is Python [\d.]+, and 3.11 or newer is needed; [^\n]+$"
    ):
        runpy.run_path(kit.__file__)


SCRIPTS = [
    path
    for pattern in ("*.py", "kit/*/*.py", "baselines/*.py", "benchmarks/*.py", "grading/**/*.py")
    for path in sorted(ROOT.glob(pattern))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", [*SCRIPTS, Path(kit.__file__)], ids=lambda path: path.stem)
def test_a_script_asks_for_what_it_needs_before_it_imports_it(path):
    """Python 3.8 can read it. All that it imports before `quiet` is the standard library, or the grader's."""
    free = sys.stdlib_module_names | {"grading", "submission"}
    leaves = ("kit", "kit.base.screen", "kit.base.errors", "kit.base.files")
    for node in ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8)).body:
        if isinstance(node, ast.Expr) and ast.unparse(node) == "quiet(__name__)":
            break
        if isinstance(node, ast.Import):
            assert {name.name.partition(".")[0] for name in node.names} <= free
        if isinstance(node, ast.ImportFrom):
            assert node.module in leaves or node.module.partition(".")[0] in free
