"""The self-check: `python rewards.py` for a student, `what_is_wrong` for a script that is about to use the functions.

    python rewards.py                            all exercises
    python rewards.py kl_penalty_forward         one of them
    python rewards.py exploits                   the attacks of exercise 2 on one's own reward, with the bundled models
    python -m grading.self_check FILE.py         a file that lost the last lines of rewards.py

The checks are the grader's (`checks.py`). They run in the student's own process, which can import no more than the
grader's. A call that takes more than a few seconds is stopped and named. Standard library only, but for the exploits.
"""

import random
import re
import sys
import textwrap
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import NoReturn

from grading.checks import EXERCISES, run_checks
from grading.exploits import NAME, WANTED, Exploit, attack, scored, texts_in
from grading.loopholes import PROMPT, StillPays, earnings, table
from grading.submission import (
    PLAIN,
    PREFERENCE,
    REQUIRED,
    SHAPED,
    Mistake,
    PlainImports,
    Student,
    Unfilled,
    call,
    explain,
    load,
    place,
)
from kit.base.errors import UserError, run_main
from kit.base.files import read_text

EXPLOITS = "exploits"  # what a student types for them
SECONDS = 5.0  # for one call of a student's function; a right one needs a millisecond
IN_ALL = 8.0  # of computing, for all calls of a function: the grader stops it after ten
SEED = "self-check"


# ---- asking in this process --------------------------------------------------------------------------------


def in_time(work: Callable[[], dict], path: str) -> dict:
    """The reply `work()`, which must not raise an `Exception`.

    After SECONDS it is {"lost": str}, which names the line of `path` that is running. The clock stops while somebody
    debugs the code at a terminal. `work` runs in a thread, which every system has. One long operation inside Python's
    C code (a huge power of integers, say) cannot be interrupted.
    """
    replies: list[dict] = []

    def run() -> None:
        with suppress(KeyboardInterrupt):  # raised by the code itself: Ctrl-C goes to the main thread
            replies.append(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    while being_debugged(thread):
        thread.join(SECONDS)
    if replies:
        return replies[0]
    if not thread.is_alive():
        return {"lost": "it raised KeyboardInterrupt"}
    where = place([(frame, frame.f_lineno) for frame in frames_of(thread)], path)
    stop(thread)
    return {"lost": f"still running after {SECONDS:g} seconds: does the loop end?{where}"}


def frames_of(thread: threading.Thread) -> list[FrameType]:
    """What the thread is doing now, the innermost call first."""
    frame = sys._current_frames().get(thread.ident or 0)
    return [frame for frame, _ in traceback.walk_stack(frame)] if frame else []


def being_debugged(thread: threading.Thread) -> bool:
    """A `breakpoint()` waits for somebody at a terminal, or an editor's debugger has stopped the code."""
    inside = {frame.f_globals.get("__name__") for frame in frames_of(thread)}
    return "pydevd" in inside or ("pdb" in inside and sys.stdin is not None and sys.stdin.isatty())


def stop(thread: threading.Thread) -> None:
    """Have the thread end at its next line of Python: it would slow down everything that follows."""
    import ctypes  # 10 ms that a right file need not wait for

    ident = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))


def student_of(module: ModuleType) -> Student:
    """The functions of a module, called in this process."""
    path, spent = getattr(module, "__file__", None) or "", defaultdict[str, float](float)

    def ask(name: str, args: list, kwargs: dict) -> dict:
        if spent[name] > IN_ALL:
            why = f"all checks together take more than {IN_ALL:g} seconds, and would not end in the grader"
            return {"lost": why}
        before = time.process_time()  # which stands still at a breakpoint
        reply = in_time(lambda: call(module, name, args, kwargs), path)
        spent[name] += time.process_time() - before
        return reply

    return Student(ask)


def what_is_wrong(module: ModuleType, functions: Iterable[str]) -> list[str]:
    """One sentence or a few for everything the checks find wrong with these functions; empty if all is right.

    About a second for all of them. A loophole of a shaped reward is no error.
    """
    student, wrong = student_of(module), []
    for function in functions:
        mistakes = [mistake for _, mistake in run_checks(student, function, SEED) if mistake]
        said = said_once(mistake for mistake in mistakes if not isinstance(mistake, StillPays))
        wrong += [f"{function}: {message}" for message in said]
    return wrong


def said_once(mistakes: Iterable[Mistake]) -> list[str]:
    """The messages, less those that repeat an earlier one or repeat it with other numbers."""
    said, without_numbers = [], ""
    for message in map(str, mistakes):
        plain = re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", message)
        if plain not in without_numbers:
            said.append(message)
            without_numbers += f"{plain}\n"
    return said


# ---- for a student -----------------------------------------------------------------------------------------


@contextmanager
def as_when_graded() -> Iterator[None]:
    """Only what the grader has can be imported, whatever this Python has and has imported already.

    An import that costs no points there (in a `try`, or below `if __name__ == "__main__":`) costs nothing here.
    """
    foreign = [name for name in sys.modules if name.partition(".")[0] not in PLAIN | {"__main__"}]
    hidden = {name: sys.modules.pop(name) for name in foreign}
    sys.meta_path.insert(0, PlainImports)
    try:
        yield
    finally:
        sys.meta_path.remove(PlainImports)
        sys.modules.update(hidden)


def check_function(student: Student, function: str) -> bool:
    """Print what the checks say about one function; True if it is right, or optional and not written."""
    results = list(run_checks(student, function, SEED))
    mistakes = [mistake for _, mistake in results if mistake]
    passed = f"{len(results) - len(mistakes)} of {len(results)} checks passed"
    if not mistakes:
        state = "right"
    elif isinstance(mistakes[0], Unfilled):
        state, mistakes = "optional, " * (function == PREFERENCE) + str(mistakes[0]), []
    elif all(isinstance(mistake, StillPays) for mistake in mistakes):
        state = f"{passed}: it has a loophole"
    else:
        state = f"wrong: {passed}"
    print(f"exercise {EXERCISES[function]:<3} {function:<20} | {state}")
    for message in said_once(mistakes):
        print(textwrap.fill(message, 100, initial_indent="    - ", subsequent_indent="      "))
    if function == SHAPED:
        with suppress(Mistake):  # said above
            print(textwrap.indent("\n".join(table(earnings(student, random.Random(SEED)))), "      "))
    return state == "right" or state.startswith("optional")


def exploits_of(path: str) -> list[Exploit]:
    """The scored texts of the exploits.txt beside a student's file. Raises UserError."""
    file = Path(path).with_name(NAME)
    if not file.is_file():
        raise UserError(
            f"there is no {file}: write your texts there, one a line, each going on from {PROMPT!r}"
        )
    try:
        return scored(texts_in(read_text(file, "the texts of")))
    except Mistake as mistake:
        raise UserError(str(mistake)) from None


def check_exploits(student: Student, texts: list[Exploit]) -> bool:
    """Print which texts the student's shaped reward overpays; True if there are enough."""
    try:
        found, lines = attack(student, texts)
    except Mistake as mistake:
        found, lines = 0, [f"{SHAPED}: {mistake}"]
    print("\n".join(lines))
    return found >= WANTED


def self_check(path: str, functions: Iterable[str] = tuple(EXERCISES)) -> int:
    """Print what is right and what is wrong; 0 if all is right, else 1. Raises UserError for a bad exploits.txt."""

    def work() -> dict:
        try:
            return {"module": load(path)}
        except (Exception, SystemExit) as error:
            return {"error": explain(error, path)}

    name = Path(path).name
    texts = exploits_of(path) if EXPLOITS in functions else []  # before torch is hidden
    with as_when_graded():
        reply = in_time(work, path)
        module = reply.get("module")
        if not Path(path).is_file():
            print(f"There is no file {path}.")
        elif module is None:
            print(f"{name} does not run: {reply.get('error') or reply['lost']}")
        elif not any(isinstance(value, FunctionType) for value in vars(module).values()):
            print(f"{name} has no function: is it saved? It should have {', '.join(REQUIRED)}.")
        else:
            student = student_of(module)
            right = [
                check_exploits(student, texts) if function == EXPLOITS else check_function(student, function)
                for function in functions
            ]
            return 0 if all(right) else 1
    return 1


def main(path: str | None = None) -> NoReturn:
    """The command line; `rewards.py` gives its own path. Ends the process."""

    def check() -> None:
        arguments = sys.argv[1:]
        if path is None and not arguments:
            raise UserError("name the file to check: python -m grading.self_check rewards.py")
        file = path or arguments.pop(0)
        for name in arguments:
            if name not in (*EXERCISES, EXPLOITS):
                raise UserError(f"there is no exercise {name}: name {', '.join(EXERCISES)}, or none for all")
        raise SystemExit(self_check(file, arguments or EXERCISES))

    run_main(check)


if __name__ == "__main__":
    main()
