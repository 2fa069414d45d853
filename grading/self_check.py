"""The self-check: `python rewards.py` for a student, `what_is_wrong` for a script that is about to use the functions.

    python rewards.py                            all three exercises
    python rewards.py kl_penalty_forward         one of them
    python -m grading.self_check FILE.py         a file that lost the last lines of rewards.py

The checks are the grader's (`checks.py`), here in the student's own process, which then can import no more than the
grader's. Each call of a student's function has a few seconds, so that an endless loop is named and not waited for.
Standard library only.
"""

import linecache
import random
import re
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NoReturn, TypeVar

from grading.checks import EXERCISES, run_checks
from grading.loopholes import StillPays, earnings, still_pay, table
from grading.submission import (
    PLAIN,
    SHAPED,
    Mistake,
    PlainImports,
    Student,
    Unfilled,
    call,
    explain,
    load,
)

SECONDS = 5.0  # for one call of a student's function; a right one needs a millisecond
SEED = "self-check"

T = TypeVar("T")


# ---- asking in this process --------------------------------------------------------------------------------


class TooSlow(Exception):
    """Something of the student's did not come to an end; the message says where it was."""


def in_time(work: Callable[[], T], path: str) -> T:
    """`work()`, which must not raise; TooSlow after SECONDS, with the function and line of `path` that is running.

    It runs in a thread of its own, as that works on every system. What keeps the interpreter busy for long without a
    line of Python (one huge power of integers, say) cannot be interrupted this way.
    """
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    if results:
        return results[0]
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code.co_filename != path:
        frame = frame.f_back
    where = ""
    if frame is not None:
        code = linecache.getline(path, frame.f_lineno).strip()
        where = f" (in {frame.f_code.co_name}, {Path(path).name} line {frame.f_lineno}: {code})"
    stop(thread)
    raise TooSlow(f"still running after {SECONDS:g} seconds: does the loop end?{where}")


def stop(thread: threading.Thread) -> None:
    """Have the thread end at its next line of Python: it would slow down everything that follows."""
    import ctypes  # 10 ms that a right file need not wait for

    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
    )


def student_of(module: ModuleType) -> Student:
    """The functions of a module, called in this process; one that was too slow once is not called again."""
    path, slow = getattr(module, "__file__", None) or "", {}

    def ask(name: str, args: list, kwargs: dict) -> dict:
        if name not in slow:
            try:
                return in_time(lambda: call(module, name, args, kwargs), path)
            except TooSlow as error:
                slow[name] = {"error": str(error)}
        return slow[name]

    return Student(ask)


def module_from(path: str) -> ModuleType | str:
    """The file, executed; or a sentence on why it cannot be."""

    def work() -> ModuleType | str:
        try:
            return load(path)
        except FileNotFoundError:
            return f"There is no file {path}."
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}."
        except (Exception, SystemExit) as error:
            return f"{Path(path).name} does not run: {explain(error, path)}"

    try:
        return in_time(work, path)
    except TooSlow as error:
        return f"{Path(path).name} does not run: {error}"


# ---- for a script ------------------------------------------------------------------------------------------


def what_is_wrong(source: ModuleType | str | Path, functions: Iterable[str]) -> list[str]:
    """One sentence or a few for everything the checks find wrong with these functions; empty where all is right.

    `source` is the module, or its file, that has them; `functions` are names like `kl_penalty_forward`. About a second
    for all three. Loopholes of a shaped reward are no errors: `still_paying` names those.
    """
    module = source if isinstance(source, ModuleType) else module_from(str(source))
    if isinstance(module, str):
        return [module]
    student = student_of(module)
    wrong = []
    for function in functions:
        mistakes = [mistake for _, mistake in run_checks(student, function, SEED) if mistake]
        wrong += [
            f"{function}: {said}" for said in said_once(m for m in mistakes if not isinstance(m, StillPays))
        ]
    return wrong


def still_paying(source: ModuleType | str | Path) -> list[str]:
    """The texts, by kind, that earn as much as honest praise under `shaped_reward`; empty where that cannot be told."""
    module = source if isinstance(source, ModuleType) else module_from(str(source))
    try:
        return [] if isinstance(module, str) else still_pay(earnings(student_of(module), random.Random(SEED)))
    except Mistake:
        return []


def said_once(mistakes: Iterable[Mistake]) -> list[str]:
    """The messages without those that say again, with other numbers at most, what an earlier one has said."""
    said: list[str] = []
    for message in map(str, mistakes):
        if without_numbers(message) not in without_numbers("\n".join(said)):
            said.append(message)
    return said


def without_numbers(text: str) -> str:
    return re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", text)


# ---- for a student -----------------------------------------------------------------------------------------


@contextmanager
def as_when_graded() -> Iterator[None]:
    """Only what grades a submission can be imported, whatever this Python has, and has imported already.

    So an import that costs nothing there (in a `try`, or below `if __name__ == "__main__":`) costs nothing here.
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
    """Print what the checks say about one function; True where it is right."""
    results = list(run_checks(student, function, SEED))
    mistakes = [mistake for _, mistake in results if mistake]
    passed = f"{len(results) - len(mistakes)} of {len(results)} checks passed"
    if not mistakes:
        state = "right"
    elif isinstance(mistakes[0], Unfilled):
        state, mistakes = str(mistakes[0]), []
    elif all(isinstance(mistake, StillPays) for mistake in mistakes):
        state = f"{passed}: it has a loophole"
    else:
        state = f"wrong: {passed}"
    print(f"exercise {EXERCISES[function]:<3} {function:<20} | {state}")
    for message in said_once(mistakes):
        print(textwrap.fill(message, 100, initial_indent="    - ", subsequent_indent="      "))
    if function == SHAPED:
        try:
            lines = table(earnings(student, random.Random(SEED)))
        except Mistake:
            lines = []  # said above
        print(*(f"      {line}" for line in lines), sep="\n", end="\n" * bool(lines))
    return state == "right"


def self_check(path: str, functions: Iterable[str] = tuple(EXERCISES)) -> int:
    """Print what is right and what is wrong; 0 where all is right, else 1."""
    with as_when_graded():
        module = module_from(path)
        if isinstance(module, str):
            print(module)
            return 1
        if not any(isinstance(value, FunctionType) for value in vars(module).values()):
            print(f"{Path(path).name} has no function: is it saved? It should have {', '.join(EXERCISES)}.")
            return 1
        student = student_of(module)
        right = [check_function(student, function) for function in functions]
        return 0 if all(right) else 1


def main(path: str | None = None) -> NoReturn:
    """The command line; `rewards.py` gives its own path. Ends the process."""
    arguments = sys.argv[1:]
    if path is None and not arguments:
        print("Name the file to check: python -m grading.self_check rewards.py", file=sys.stderr)
        raise SystemExit(2)
    path = path or arguments.pop(0)
    for name in arguments:
        if name not in EXERCISES:
            print(
                f"There is no exercise {name}: name {', '.join(EXERCISES)}, or none for all.", file=sys.stderr
            )
            raise SystemExit(2)
    try:
        raise SystemExit(self_check(path, arguments or EXERCISES))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
