"""A submission from both sides: run its file, call one of its functions, and read what came back.

`load` and `call` run in the process of the student's code: in the self-check the student's own, in the grader the
sandboxed worker, which gets a copy of this file and nothing else of the kit. `call` puts what happened into plain data,
a reply; `Student`, on the other side, reads replies. Standard library only, and no right answer is in here.
"""

import copy
import linecache
import math
import numbers
import sys
import traceback
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

# What a submission may import: the kit's own Python has torch too, Gradescope's has not.
PLAIN = sys.stdlib_module_names | {"numpy", "rewards"}
GRADED_WITH = "it is graded with Python's standard library and numpy alone"

FORWARD, BACKWARD, SHAPED = REQUIRED = ("kl_penalty_forward", "kl_penalty_backward", "shaped_reward")
PREFERENCE = "preference_loss"  # optional: its points are a bonus
FUNCTIONS = (*REQUIRED, PREFERENCE)

# Arithmetic in float32 inside a submission is right: log-probs near -5 then carry errors of 3e-7.
TOLERANCE = 1e-5

TOO_LARGE = "an int too large for a float"
Pair = tuple[float, float]  # (log pi, log pi_ref) of a token


# ---- beside the student's code -----------------------------------------------------------------------------


class NotPlain(ModuleNotFoundError):
    """An import of something that the grader's Python need not have."""


class PlainImports:
    """An import hook that refuses all but the standard library and numpy, so that every Python grades the same."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """None, and the next finder is asked; raises NotPlain for other packages."""
        top = name.partition(".")[0]
        if top not in PLAIN:
            raise NotPlain(f"it imports {top}, but {GRADED_WITH}", name=name)


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
    """Call `module.name(*args, **kwargs)` on copies and describe the outcome. Raises KeyboardInterrupt alone.

    Returns one of
        {"unfilled": str}                     the stub is still there
        {"error": str}                        what was raised, in which function, file and line
        {"kind": str}                         what came back is no list: the name of its type
        {"kind": str, "values": list, "arguments": list}
    with one entry of `values` per element: an int or a float, or the name of its type where it is no number. A
    tuple or one-dimensional array is listed too, `kind` tells; `arguments` are the arguments after the call.
    """
    args = copy.deepcopy(args)
    try:
        function = getattr(module, name, None)
        if function is None and name == PREFERENCE:
            return {"unfilled": "not implemented yet"}
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
        return {"unfilled": "not implemented yet"}
    except (Exception, SystemExit) as error:  # KeyboardInterrupt is the user's Ctrl-C in a training
        return {"error": explain(error, getattr(module, "__file__", ""))}


def _number(value: object) -> int | float | str:
    """A real number as it is (Python's or numpy's, but no bool), and the type's name for anything else."""
    if type(value) is int:
        return value if abs(value) < 1e300 else TOO_LARGE
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
    if isinstance(error, NotPlain):
        text = message
    elif isinstance(error, SyntaxError):
        file = Path(str(error.filename or path)).name  # it may be in a file that this one imports
        return f"{type(error).__name__}: {error.msg} ({file}, line {error.lineno})"
    else:
        text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return text + place(reversed(list(traceback.walk_tb(error.__traceback__))), path)


def place(frames: Iterable[tuple[types.FrameType, int]], path: str) -> str:
    """` (in FUNCTION, FILE line N: CODE)` of the first frame that runs code of `path`; empty if there is none."""
    for frame, line in frames:
        if frame.f_code.co_filename == path:
            code = linecache.getline(path, line).strip()
            said = f" (in {frame.f_code.co_name}, {Path(path).name} line {line}"
            return f"{said}: {code})" if code else f"{said})"
    return ""


# ---- reading the reply -------------------------------------------------------------------------------------


class Mistake(Exception):
    """A check that was not passed; the message is the hint a student reads."""


class Unfilled(Mistake):
    """The stub is still there; the message says so."""


class Broken(Mistake):
    """The student's code gave no answer at all: it raised, hung or died."""


@dataclass
class Student:
    """The functions under test; `ask(name, args, kwargs)` returns a reply as `call` makes it.

    Or it returns {"lost": str}: the call did not come to an end. That function is then not called again.
    """

    ask: Callable[[str, list, dict], dict]
    lost: dict[str, dict] = field(default_factory=dict)

    def reply(self, name: str, *args: list, **kwargs: float) -> dict:
        reply = self.lost.get(name) or self.ask(name, list(args), kwargs)
        if "lost" in reply:
            self.lost[name] = reply
        for outcome, mistake in (("unfilled", Unfilled), ("error", Broken), ("lost", Broken)):
            if outcome in reply:
                raise mistake(str(reply[outcome]))
        return reply

    def values(self, name: str, *args: list, **kwargs: float) -> list[float]:
        """One finite number for each row of the first argument, or a `Mistake` that says what came instead."""
        reply, rows = self.reply(name, *args, **kwargs), len(args[0])
        kind, values = reply.get("kind"), reply.get("values")
        if not isinstance(values, list):
            raise Mistake(wrong_kind(kind))
        if len(values) != rows:
            counts = f"{len(values)} value{'s' * (len(values) != 1)} for {rows} completion{'s' * (rows != 1)}"
            raise Mistake(f"It returned {counts}: one float for each, please.")
        for row, value in enumerate(values):
            if type(value) not in (int, float):
                what = f"{value}, not a plain number: return Python floats (.item() or .tolist() make them)"
                raise Mistake(f"Value {row} of the returned list is {what}.")
            if not -1.7e308 < value < 1.7e308:  # nor NaN, nor an integer no float can hold
                shown = f"{value:.5g}" if type(value) is float else TOO_LARGE
                raise Mistake(f"Value {row} of the returned list is {shown}: every value must be finite.")
        return [float(value) for value in values]

    def penalties(self, name: str, pairs: list[list[Pair]], kl_coef: float = 1.0) -> list[float]:
        """A KL penalty on completions given as rows of (log pi, log pi_ref), one pair a token."""
        policy = [[a for a, _ in row] for row in pairs]
        ref = [[b for _, b in row] for row in pairs]
        return self.values(name, policy, ref, kl_coef=kl_coef)


def wrong_kind(kind: object) -> str:
    """What to say where something came back that is no list; the same words for every call."""
    what = "None (is a return statement missing?)" if kind == "NoneType" else f"a {kind}, not a list"
    return f"It returned {what}: return a plain list, one float for each completion."


def close(a: float, b: float) -> bool:
    """Equal up to float32 rounding; an overflow to inf equals nothing."""
    return math.isfinite(a - b) and abs(a - b) <= TOLERANCE * max(1.0, abs(a), abs(b))


def all_close(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b, strict=True))
