"""Running a file and calling its functions; what counts as a number. `pytest tests/grading/test_submission.py`."""

import math
import types

import numpy as np
import pytest

from grading import submission
from grading.submission import FORWARD, SHAPED, Broken, Mistake, Student
from tests.grading.conftest import student_of


def replied(returned: object) -> list[float]:
    module = types.ModuleType("rewards")
    module.shaped_reward = lambda *_: returned
    return student_of(module).values(SHAPED, [0.5, 0.5], ["a", "b"])


def test_numbers():
    assert replied([1, 0.5]) == [1.0, 0.5]
    assert replied([np.float64(0.25), np.float32(0.5)]) == [0.25, 0.5]
    assert replied(list(np.arange(2))) == [0.0, 1.0]
    assert replied((0.5, 1)) == [0.5, 1.0]
    assert replied(np.array([0.5, 1.0])) == [0.5, 1.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "None"),
        (0.5, "a float, not a list"),
        ("ab", "a str, not a list"),
        ({0: 1, 1: 2}, "a dict, not a list"),
        ((x for x in (1.0, 2.0)), "a generator, not a list"),
        ([0.5], "1 value for 2 completions"),
        ([0.5, True], "a bool"),
        ([0.5, "1"], "a str"),
        ([0.5, None], "a NoneType"),
        ([0.5, [1.0]], "a list"),
        ([0.5, 1j], "a complex"),
        ([0.5, math.nan], "nan"),
        ([0.5, -math.inf], "-inf"),
        ([0.5, 10**400], "too large"),
    ],
)
def test_what_is_no_number(returned, message):
    with pytest.raises(Mistake, match=message):
        replied(returned)


def test_an_integer_in_a_forged_reply_is_not_too_large_to_be_named():
    """`call` lets none through, but what comes out of the sandbox need not be from `call`."""
    student = Student(lambda *_: {"kind": "list", "values": [0, -(10**400)]})
    with pytest.raises(Mistake, match="Value 1 of the returned list is an int too large for a float"):
        student.values(SHAPED, [0.5, 0.5], ["a", "b"])


def test_a_call_that_did_not_come_to_an_end_is_not_made_again():
    asked = []

    def ask(name: str, args: list, kwargs: dict) -> dict:
        asked.append(name)
        return (
            {"lost": "took too long"}
            if name == SHAPED
            else {"kind": "list", "values": [1.0], "arguments": args}
        )

    student = Student(ask)
    for _ in range(2):
        with pytest.raises(Broken, match="took too long"):
            student.values(SHAPED, [0.5], ["a"])
        assert student.values(FORWARD, [[-1.0]], [[-1.5]]) == [1.0]
    assert asked == [SHAPED, FORWARD, FORWARD]


def test_tensors_and_bools_of_libraries_are_no_numbers():
    with pytest.raises(Mistake, match="a bool"):
        replied([0.5, np.bool_(True)])
    torch = pytest.importorskip("torch")
    with pytest.raises(Mistake, match=r"a Tensor, not a plain number.*\.item\(\)"):
        replied([torch.tensor(0.5), torch.tensor(1.0)])
    with pytest.raises(Mistake, match="a Tensor, not a list"):
        replied(torch.tensor([0.5, 1.0]))


def test_the_import_hook_knows_the_standard_library_and_numpy():
    for name in ("math", "os.path", "xml.etree.ElementTree", "numpy", "numpy.linalg", "rewards"):
        assert submission.PlainImports.find_spec(name) is None
    for name in ("torch", "torch.nn", "pandas", "no_such_module", "grading"):
        with pytest.raises(ModuleNotFoundError, match=f"imports {name.split('.')[0]}, but it is graded with"):
            submission.PlainImports.find_spec(name)
