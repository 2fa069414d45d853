"""The notebook: committed without outputs; its set-up, part by part; and all of it, twice, on the mini models.

pytest tests/test_notebook.py
NOTEBOOK_TESTS=1 pytest -n 0 tests/test_notebook.py     and with an environment of its own: minutes, a package index
"""

import http.server
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "colab.ipynb"
SET_UP = 'COURSE = ""'
SHORTER = {
    "STEPS = 10": "STEPS = 2",
    "--eval_every 5": "--eval_every 0 --prompts_per_step 2 --num_generations 2",
    "--num_prompts 32": "--num_prompts 4",
    "--frontier_samples 8": "--frontier_samples 2",
}


def read(**changes: str) -> nbformat.NotebookNode:
    """The notebook with fewer steps and prompts, and each text of `changes`, which stands in it once, made another."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for long, short in (SHORTER | changes).items():
        (cell,) = (c for c in notebook.cells if long in c.source)
        assert cell.source.count(long) == 1
        cell.source = cell.source.replace(long, short)
    return notebook


def test_it_is_valid_and_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


# ---- the set-up cell, in this process ----------------------------------------------------------------------


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """Where the notebook is run: an empty folder. The home folder is another."""
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def set_up(course: object, **changes: str) -> dict:
    """The names of the set-up cell, run with this address."""
    (cell,) = (
        c for c in read(**{SET_UP: f"COURSE = {str(course)!r}"}, **changes).cells if "COURSE =" in c.source
    )
    names: dict = {}
    exec(cell.source, names)
    return names


def small_kit(folder: Path, requirements: str = "") -> Path:
    """As much of the kit as the set-up cell looks at."""
    (folder / "kit").mkdir(parents=True)
    shutil.copy(ROOT / "kit" / "__init__.py", folder / "kit")
    (folder / "requirements.txt").write_text(requirements)
    return folder


def zipped(kit: Path) -> Path:
    return Path(shutil.make_archive(str(kit), "zip", kit.parent, kit.name))


def sentence(course: object, **changes: str) -> str:
    """What the set-up cell stops with: one line, and none of a traceback."""
    with pytest.raises(Exception, match=r"\w") as stopped:
        set_up(course, **changes)
    assert type(stopped.value).__name__ == "Stop"
    (line,) = stopped.value._render_traceback_()
    assert "\n" not in line and line.endswith(".")
    return line


@pytest.mark.parametrize("kind", ["git", "zip", "url of a zip", "drive"])
def test_the_course_is_fetched_once(kind, tmp_path, work):
    kit = small_kit(tmp_path / "a course")
    home, changes = work, {}
    if kind == "git":
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
            subprocess.run(["git", *command], cwd=kit, check=True)
        address = kit.as_uri()
    elif kind == "url of a zip":
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(zipped(kit).parent))
        server = http.server.HTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.handle_request, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a%20course.zip?dl=1"
    else:
        address = zipped(kit)
    if kind == "drive":
        home = tmp_path / "a drive"
        home.mkdir()
        changes = {"/content/drive/MyDrive": str(home)}
    names = set_up(address, **changes)
    assert names["KIT"] == home / "course" and names["PYTHON"] == sys.executable
    (home / "course" / "rewards.py").write_text("mine")
    shutil.rmtree(kit)
    set_up("", **changes)  # a second time, and with an empty field: what is there is taken
    assert (home / "course" / "rewards.py").read_text() == "mine"
    assert {path.name for path in home.iterdir()} == {"course"}


def test_in_the_courses_own_folder_nothing_is_fetched(tmp_path, work, monkeypatch):
    (small_kit(tmp_path / "kit") / "notebooks").mkdir()
    for place in ("kit", "kit/notebooks"):
        monkeypatch.chdir(tmp_path / place)
        names = set_up("")
        assert names["KIT"] == tmp_path / "kit" and names["PYTHON"] == sys.executable


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("  ", "COURSE is empty"),
        ("no such folder", "COURSE: no kit could be fetched from no such folder (fatal: "),
        ("missing.zip", "No such file"),
        ("http://127.0.0.1:1/kit.zip", "refused"),
        ("text.zip", "not a zip file"),
        ("other.zip", "(there is none in it)"),
    ],
)
def test_a_wrong_address_is_one_sentence(address, why, work):
    Path("text.zip").write_text("a page that asks for a password")
    with zipfile.ZipFile("other.zip", "w") as other:
        other.writestr("train.py", "")
    assert why in sentence(address)
    assert not (work / "course").exists()


def fake_uv(folder: Path, monkeypatch, status: int = 0) -> Path:
    """A `uv` that notes its arguments in the file returned, and makes a Python that has every package."""
    folder.mkdir()
    (folder / "uv").write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/log\ntest {status} = 0 || exit {status}\n'
        'test "$1" = venv || exit 0\nmkdir -p "$5/bin"\n'
        'printf "#!/bin/sh\\n" > "$5/bin/python"\nchmod +x "$5/bin/python"\n'
    )
    (folder / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder / "log"


@pytest.mark.parametrize("version", [(3, 12, 1), (3, 10, 13)])
def test_uv_makes_an_environment_once(version, tmp_path, work, monkeypatch):
    course = zipped(small_kit(tmp_path / "kit", "torch==99.0\n"))
    log = fake_uv(tmp_path / "bin", monkeypatch)
    monkeypatch.setattr(sys, "version_info", version)
    python = tmp_path / "home" / "course-environment" / "bin" / "python"
    for _ in range(2):
        assert set_up(course)["PYTHON"] == python
        supplied = sys.executable if version >= (3, 11) else "3.12"
        assert log.read_text().splitlines() == [
            f"venv -q --python {supplied} {python.parent.parent}",
            f"pip install -q --python {python} -r {work / 'course' / 'requirements.txt'}",
        ]


@pytest.mark.parametrize("with_uv", [True, False])
def test_an_old_python_without_another_is_one_sentence(with_uv, tmp_path, work, monkeypatch):
    course = zipped(small_kit(tmp_path / "kit", "torch==99.0\n"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PATH", "/bin")
    if with_uv:
        fake_uv(tmp_path / "bin", monkeypatch, status=2)
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.13")
    assert sentence(course).startswith("This Python is 3.10.13, and no newer one could be had")


def test_without_uv_the_kernels_pip_installs_for_the_environment(tmp_path, work, monkeypatch):
    course = zipped(small_kit(tmp_path / "kit", "tiny-package-of-this-test==1.0\n"))
    with zipfile.ZipFile(tmp_path / "tiny_package_of_this_test-1.0-py3-none-any.whl", "w") as wheel:
        info = "tiny_package_of_this_test-1.0.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-package-of-this-test\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PATH", "/nowhere")
    for name, value in (("NO_INDEX", "1"), ("CONFIG_FILE", os.devnull), ("FIND_LINKS", str(tmp_path))):
        monkeypatch.setenv(f"PIP_{name}", value)
    assert set_up(course)["PYTHON"] == tmp_path / "home" / "course-environment" / "bin" / "python"
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("tiny-package-of-this-test")


def test_lines_come_one_by_one_and_a_redrawn_one_in_its_last_state(tmp_path, work, monkeypatch, capsys):
    for name in ("PYTHONPATH", "MPLBACKEND", "UV_SYSTEM_PYTHON"):
        monkeypatch.setenv(name, "the kernel's")
    names = set_up(zipped(small_kit(tmp_path / "kit")))
    capsys.readouterr()
    names["run"](
        "-c", "import os; print('1 %\\r50 %\\r100 %'); print(*{'PYTHONPATH', 'MPLBACKEND'} & {*os.environ})"
    )
    assert capsys.readouterr().out.splitlines()[1:] == ["100 %", ""]
    started, seen = time.monotonic(), []
    monkeypatch.setitem(names, "print", lambda line: seen.append(time.monotonic() - started))
    names["stream"](sys.executable, "-c", "import time; print('first'); time.sleep(1); print('last')")
    assert seen[1] - seen[0] > 0.5
    with pytest.raises(names["Stop"], match="did not finish"):
        names["stream"](sys.executable, "-c", "raise SystemExit(3)")


# ---- all of it, in a kernel --------------------------------------------------------------------------------


class Kernel:
    """A kernel in which the notebook can be run again and again."""

    def __init__(self, folder: Path, name: str = "python3") -> None:
        self.notebook = read()
        resources = {"metadata": {"path": str(folder)}}
        self.client = nbclient.NotebookClient(
            self.notebook, timeout=1700, kernel_name=name, resources=resources
        )

    def cell(self, source: str) -> list:
        """The outputs of a cell. Raises nbclient's CellExecutionError with the traceback of one that fails."""
        self.notebook.cells.append(cell := nbformat.v4.new_code_cell(source))
        try:
            self.client.execute_cell(cell, len(self.notebook.cells) - 1)
        finally:
            self.outputs = cell.outputs
        return cell.outputs

    def run_all(self, course: object) -> tuple[str, list]:
        """What was printed, and what was displayed. Leaves out sentiment.py, which has tests of its own."""
        outputs = []
        for cell in read(**{SET_UP: f"COURSE = {str(course)!r}"}).cells:
            if cell.cell_type == "code" and "sentiment.py" not in cell.source:
                outputs += self.cell(cell.source)
        return "".join(o.text for o in outputs if o.output_type == "stream"), [
            o.data for o in outputs if o.output_type == "display_data"
        ]


def test_the_stop_button_stops_the_command_which_says_its_last_word(tmp_path, work):
    kernel = Kernel(work)
    set_up_cell = kernel.notebook.cells[1].source
    command = (
        "import os, signal\ntry:\n  os.killpg(0, signal.SIGINT); signal.pause()\nexcept KeyboardInterrupt:\n"
    )
    command += "  raise SystemExit('how to go on')"  # the signal goes to the group, as from Jupyter
    with kernel.client.setup_kernel():
        course = str(zipped(small_kit(tmp_path / "kit")))
        kernel.cell(set_up_cell.replace(SET_UP, f"COURSE = {course!r}"))
        with pytest.raises(nbclient.exceptions.CellExecutionError, match="did not finish"):
            kernel.cell(f"run('-c', {command!r})")
        *said, error = kernel.outputs
        assert "".join(o.text for o in said).endswith("how to go on\n") and error.ename == "Stop"
        (alive,) = kernel.cell("print('alive')")
        assert alive.text == "alive\n"


def check_twice(kernel: Kernel, course: object, kit: Path) -> None:
    """The empty field, then *Run all* two times."""
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        kernel.run_all("")
    (error,) = kernel.outputs
    assert error.output_type == "error" and len(error.traceback) == 1
    assert error.traceback[0].startswith("COURSE is empty: ")

    said, shown = kernel.run_all(course)
    assert "policy mini/policy" in said
    written = not subprocess.run([sys.executable, "rewards.py", "kl_penalty_forward"], cwd=ROOT).returncode
    assert ("No second model yet" not in said) == written
    runs = ["hack2", "kl2"] if written else ["hack2"]
    assert sorted(p.name for p in (kit / "outputs").iterdir()) == runs
    assert sum("image/png" in data for data in shown) == 3
    (report,) = (data["text/html"] for data in shown if "text/html" in data)
    assert "<iframe srcdoc=" in report and len(report) > 100_000

    files = {
        path: path.stat().st_mtime_ns for name in ("outputs", "results") for path in (kit / name).rglob("*")
    }
    again, shown_again = kernel.run_all(course)
    assert "outputs/hack2 is finished, and stays" in again
    assert "fetching" not in again and "making" not in again
    assert "$ python train.py" not in again and "$ python evaluate.py" not in again
    assert len(shown_again) == len(shown)
    assert files == {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_it_runs_top_to_bottom_and_once_more(tmp_path, work, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the mini models, on any machine
    with zipfile.ZipFile(tmp_path / "kit.zip", "w") as archive:
        folders = [ROOT / name for name in ("kit", "mini", "configs", "grading")]
        for path in [
            *ROOT.glob("*.py"),
            ROOT / "requirements.txt",
            *(p for f in folders for p in f.rglob("*")),
        ]:
            if "__pycache__" not in path.parts:
                archive.write(path, Path("course-of-a-year", path.relative_to(ROOT)))
    kernel = Kernel(work)
    with kernel.client.setup_kernel():
        check_twice(kernel, tmp_path / "kit.zip", work / "course")


@pytest.mark.slow
@pytest.mark.whole_kit
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    "NOTEBOOK_TESTS" not in os.environ, reason="minutes, gigabytes: NOTEBOOK_TESTS=1 make test"
)
def test_a_kernel_with_other_packages_keeps_them(tmp_path, work, monkeypatch):
    """An older numpy and another torch (a stub, first in PYTHONPATH) are imported; uv installs what is pinned."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    other = tmp_path / "kernel"
    subprocess.run([sys.executable, "-m", "venv", other], check=True)
    subprocess.run([other / "bin" / "pip", "install", "-q", "numpy==1.26.4", "ipykernel"], check=True)
    (tmp_path / "first" / "torch").mkdir(parents=True)
    (tmp_path / "first" / "torch" / "__init__.py").write_text("__version__ = '1.0'\n")
    spec = {
        "argv": [str(other / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "hosted",
        "language": "python",
        "env": {
            "PYTHONPATH": str(tmp_path / "first"),
            "UV_SYSTEM_PYTHON": "true",
            "UV_CONSTRAINT": "/no/file",
        },
    }
    (tmp_path / "jupyter" / "kernels" / "hosted").mkdir(parents=True)
    (tmp_path / "jupyter" / "kernels" / "hosted" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    before = sorted(other.rglob("*.dist-info"))
    kernel = Kernel(work, "hosted")
    numpy_now = "import numpy, torch, importlib.metadata as m; print(numpy.__version__, torch.__version__, "
    numpy_now += "m.version('numpy'), numpy.linalg.inv(numpy.eye(2) * 2).sum())"
    try:
        with kernel.client.setup_kernel():
            was = kernel.cell(numpy_now)[0].text
            check_twice(kernel, ROOT.as_uri(), work / "course")
            assert kernel.cell(numpy_now)[0].text == was == "1.26.4 1.0 1.26.4 1.0\n"
        assert sorted(other.rglob("*.dist-info")) == before
    finally:
        shutil.rmtree(tmp_path / "home")  # gigabytes
