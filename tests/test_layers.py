"""Imports point downwards only: CONTRIBUTING.md has the map. `pytest tests/test_layers.py`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Lowest first. What stands in one tuple may import from the rows before it and from itself.
LAYERS = [
    ("kit.base", "grading"),
    ("kit.lm",),
    ("data", "sentiment", "reward_utils"),
    ("kit.measure",),
    ("kit.train",),
    ("train", "evaluate", "play", "prompt_engineering", "baselines"),
]


def layer_of(module: str) -> int | None:
    """The row of LAYERS that a module belongs to."""
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return number
    return None


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


FILES = [
    p
    for p in [*ROOT.glob("*.py"), *ROOT.glob("kit/*/*.py"), *ROOT.glob("baselines/*.py")]
    if p.stem != "__init__"
]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_module_imports_nothing_from_above(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    own = layer_of(module)
    if own is not None:
        above = sorted(
            {name for name in imports(path) if (other := layer_of(name)) is not None and other > own}
        )
        assert not above, f"{module} imports {', '.join(above)}"
    # no script imports a script
    scripts = {"train", "evaluate", "play", "prompt_engineering"}
    assert module not in scripts or not scripts & set(imports(path))
