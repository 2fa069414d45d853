"""The notebook: committed without outputs, and it runs top to bottom on the mini models, whether or not the penalty of
exercise 1a is written.

pytest tests/test_notebook.py
"""

import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "demo.ipynb"


def test_it_is_valid_and_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.slow
def test_it_runs_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the mini models, on any machine
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = (c for c in notebook.cells if 'Path("outputs")' in c.source)
    cell.source = cell.source.replace('Path("outputs")', f"Path({str(tmp_path)!r})")
    for long, short in (('"--max_steps", 10', '"--max_steps", 2'), ("    32,", "    8,")):  # steps, prompts
        (cell,) = (c for c in notebook.cells if long in c.source)
        cell.source = cell.source.replace(long, short)
    client = nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()  # raises with the traceback of a cell that fails
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    text = "".join(o.text for o in outputs if o.output_type == "stream")
    images = [o for o in outputs if o.output_type == "display_data" and "image/png" in o.data]
    assert len(images) == 3
    assert "policy mini/policy, classifier mini/sentiment" in text
    written = not subprocess.run([sys.executable, "rewards.py", "kl_penalty_forward"], cwd=ROOT).returncode
    models = {"hacked", "kl"} if written else {"hacked"}
    assert ("No second model yet" not in text) == written
    assert all(f"\n{name:>8}: " in text for name in models)
    (work,) = tmp_path.glob("notebook-*")
    assert (work / "results" / "report.html").stat().st_size > 100_000
    assert {p.name for p in work.iterdir()} == {*models, "results"}
