"""What stands on the screen.

pytest tests/test_screen.py
"""

import io
import sys

import pytest

from kit import screen
from kit.screen import Progress, clock, one_line, table


def test_clock_and_cells():
    assert [clock(s) for s in (0, 59.6, 75, 3725)] == ["0:00", "1:00", "1:15", "1:02:05"]
    assert one_line("a\nb\x1b[2J", 20) == "a\\nb?[2J"
    assert one_line("abcdef", 4) == "abc…"
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
