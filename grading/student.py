"""Load a student's `rewards.py`, call one of its functions, and put what happened into plain data.

Used by the self-check in the student's own process and by the grader's sandboxed worker, which gets a copy of this
file: standard library only, and nothing in here knows a right answer.
"""

import copy
import linecache
import numbers
import sys
import types
from pathlib import Path


def load(path: str | Path) -> types.ModuleType:
    """Execute the file as a module of its own. Whatever the file raises comes through."""
    source = Path(path).read_text(encoding="utf-8-sig")
    module = types.ModuleType("rewards")
    module.__file__ = str(path)
    before = sys.modules.get("rewards")
    sys.modules["rewards"] = module  # dataclasses, and a file that imports itself, look here
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    finally:
        if before is not None:
            sys.modules["rewards"] = before
    return module


def call(module: types.ModuleType, name: str, args: list, kwargs: dict) -> dict:
    """Call `module.name(*args, **kwargs)` on copies and describe the outcome; never raises.

    Returns one of
        {"unfilled": True}                   the stub is still there
        {"error": str}                       what was raised, in which function, file and line
        {"kind": str}                        what came back is no list: the name of its type
        {"kind": str, "values": list, "arguments": list}
    with one entry of `values` per element: an int or a float, or the name of its type where it is no number. A
    tuple or one-dimensional array is listed too, `kind` tells; `arguments` are the arguments after the call.
    """
    args = copy.deepcopy(args)
    try:
        function = getattr(module, name, None)
        if function is None:
            return {"error": f"there is no function named {name} in the file"}
        returned = function(*args, **kwargs)
        kind = type(returned).__name__
        if kind == "ndarray" and returned.ndim == 1:
            returned = list(returned)
        if not isinstance(returned, list | tuple):
            return {"kind": kind}
        return {"kind": kind, "values": [_number(value) for value in returned], "arguments": args}
    except NotImplementedError:
        return {"unfilled": True}
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: they are the student's here
        return {"error": explain(error, getattr(module, "__file__", ""))}


def _number(value: object) -> int | float | str:
    """A real number as it is (Python's or numpy's, but no bool), and the type's name for anything else."""
    if type(value) is int:
        return value if abs(value) < 1e300 else "an int too large for a float"
    if isinstance(value, float):
        return float.__float__(value)
    if type(value).__module__ == "numpy" and isinstance(value, numbers.Real):
        return float(value)
    return f"a {type(value).__name__}"


def explain(error: BaseException, path: str) -> str:
    """One line for a student's exception: its type and message, and the function, file and line it came from."""
    try:
        message = " ".join(str(error).split())[:200]
    except Exception:  # a __str__ of the student's own
        message = ""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({Path(path).name}, line {error.lineno})"
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == path:
            frames.append((traceback.tb_frame.f_code.co_name, traceback.tb_lineno))
        traceback = traceback.tb_next
    if not frames:
        return text
    function, line = frames[-1]
    code = linecache.getline(path, line).strip()
    return f"{text} (in {function}, {Path(path).name} line {line}{': ' + code if code else ''})"
