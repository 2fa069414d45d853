"""The student's functions in a training: they are loaded, checked and called; a mistake is one sentence."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

from grading.self_check import what_is_wrong
from grading.submission import Mistake, Student, Unfilled, call, explain
from kit.base.errors import UserError
from kit.base.metrics import composite_reward

MAX_VALUE = 1e18  # of a reward's part: GRPO squares rewards in float32, which ends at 3e38


def load_student(
    use_solution: bool = False,
    kl_type: str = "none",
    reward_shaping: str = "linear",
    unchecked: bool = False,
    preference: bool = False,
) -> Any:
    """The module rewards.py; with `use_solution` ours; None if the settings use none of its functions.

    Ours has the functions of rewards_solution.py, but the composite R as `shaped_reward`. The functions in use are
    tried on one token each and checked, which takes a second, before any model is loaded.

    Raises `UserError` if the import fails, or such a function is missing, not written, or (unless `unchecked`) wrong.
    """
    trials: dict[str, tuple] = {}  # a function's name -> the arguments of its trial call
    if kl_type != "none":
        trials[f"kl_penalty_{kl_type}"] = ([[-1.0]], [[-1.5]], 1.0)
    if reward_shaping == "shaped":
        trials["shaped_reward"] = ([0.5], ["a film"], ["This was"])
    if preference:
        trials["preference_loss"] = ([1.0], [0.5])
    if not trials:
        return None
    name = "rewards_solution" if use_solution else "rewards"
    found = importlib.util.find_spec(name)
    if found is None:
        hint = "; leave out --use_solution, and your rewards.py is used" if use_solution else ""
        raise UserError(f"there is no {name}.py beside train.py{hint}")
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UserError(f"{name}.py does not run: {explain(error, str(found.origin))}") from None
    for function_name, arguments in trials.items():
        function: Any = getattr(module, function_name, None)
        if not isinstance(inspect.unwrap(function), FunctionType):  # messages name the file of its code
            raise UserError(f"{name}.py has no function {function_name}; keep the stubs' names and their def")
        checked(function, *arguments)
    if use_solution:
        # R with the weights of configs/reward.yaml, as in SFT and PPO; the solution has constants, for the grader
        return SimpleNamespace(**{**vars(module), "shaped_reward": composite_reward})
    if not unchecked and (wrong := what_is_wrong(module, trials)):
        raise UserError(f"{wrong[0]} (python rewards.py says more; --unchecked trains all the same)")
    return module


def checked(function: Callable[..., list[float]], *arguments: Any) -> list[float]:
    """`function` of copies of the `arguments`: one finite number for each row of the first.

    Raises `UserError`, which names function, file and line, if it fails or returns something else.
    """
    name, code = function.__name__, inspect.unwrap(function).__code__
    asked: Any = SimpleNamespace(__file__=code.co_filename, **{name: function})
    where = f"{name} ({Path(code.co_filename).name}, line {code.co_firstlineno})"
    try:
        # Q10. A NaN ends the run. What would the policy learn if such a completion got the reward 0 instead,
        # while a penalty makes most rewards negative?
        values = Student(partial(call, asked)).values(name, *arguments)
    except Unfilled:
        raise UserError(f"{where} is not written yet: fill it, then check with python rewards.py") from None
    except Mistake as mistake:
        raise UserError(f"{where}: {mistake}") from None
    for row, value in enumerate(values):
        if abs(value) > MAX_VALUE:
            raise UserError(f"{where}: value {row} is {value:.3g}; float32 needs values below {MAX_VALUE:g}")
    return values
