"""What stands on the screen.

pytest tests/test_screen.py
"""

from kit.screen import clock, one_line, table


def test_clock_and_cells():
    assert [clock(s) for s in (0, 59.6, 75, 3725)] == ["0:00", "1:00", "1:15", "1:02:05"]
    assert one_line("a\nb\x1b[2J", 20) == "a\\nb?[2J"
    assert one_line("abcdef", 4) == "abc…"
    assert table(("n", "text"), [("1", "x"), ("10", "y")]).splitlines()[1] == "   1  x"
