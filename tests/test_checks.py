"""The checks themselves, and the reference solution: values by hand, mistakes named, right answers in any style let be.

`pytest tests/test_checks.py`. Needs the solution, so it is not part of the hand-out.
"""

import math
import random
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import rewards_solution
from grading import checks, student
from grading.checks import (
    BACKWARD,
    CHECKS,
    EXERCISES,
    FORWARD,
    SHAPED,
    Mistake,
    Student,
    Unfilled,
    run_checks,
)
from grading.mistakes import PROBE, WRONG_TERMS

ROOT = Path(__file__).resolve().parent.parent
SUBMISSIONS = ROOT / "tests" / "submissions"
SOLUTION = (ROOT / "rewards_solution.py").read_text(encoding="utf-8")


def results_of(path: Path, seed: object = "test") -> dict[str, list]:
    me = Student(partial(student.call, student.load(path)))
    return {function: list(run_checks(me, function, seed)) for function in EXERCISES}


# --- the solution, by hand ---------------------------------


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_forward_by_hand():
    """pi = (1/2, 1/2), pi_ref = (1/4, 3/4): log-ratios ln 2 and ln 2/3, mean 0.143841 = KL(pi || pi_ref)."""
    values = rewards_solution.kl_penalty_forward([logs(0.5), logs(0.5)], [logs(0.25), logs(0.75)], 1.0)
    assert values == pytest.approx([0.693147, -0.405465], abs=1e-6)
    assert sum(values) / 2 == pytest.approx(0.143841, abs=1e-6)
    rows = rewards_solution.kl_penalty_forward([logs(0.5, 0.5), []], [logs(0.25, 0.5), []], 2.0)
    assert rows == pytest.approx([1.386294, 0.0], abs=1e-6)


def test_backward_by_hand():
    """w = 1/2 and 3/2, so 1/2 and -1/2: the token that pi overuses is charged, the neglected one paid."""
    values = rewards_solution.kl_penalty_backward([logs(0.5), logs(0.5)], [logs(0.25), logs(0.75)], 1.0)
    assert values == pytest.approx([0.5, -0.5])
    (value,) = rewards_solution.kl_penalty_backward([logs(0.5, 0.5)], [logs(0.25, 0.25)], 0.1)
    assert value == pytest.approx(0.1)
    (far,) = rewards_solution.kl_penalty_backward([[-800.0]], [[0.0]], 1.0)
    assert far == pytest.approx(1 - math.exp(10))
    assert rewards_solution.kl_penalty_backward([[-1.0]], [[-math.inf]], 1.0) == [1.0]


def test_shaped_reward_by_hand():
    """Repetition is 0, 1/2 (4 words, 2 of them new) or 1 - 1/low; length is 0 inside the target and -1 outside."""
    low, high = rewards_solution.TARGET_WORDS
    s, r, n = (getattr(rewards_solution, f"{name}_WEIGHT") for name in ("SENTIMENT", "REPETITION", "LENGTH"))
    cases = {
        "Great GREAT great day": 0.5 * s + 0.5 * r - n,
        "": 0.5 * s - n,
        " \n\t": 0.5 * s - n,
        " ".join(f"word{i}" for i in range(low - 1)): 0.5 * s - n,
        " ".join(f"word{i}" for i in range(low)): 0.5 * s,
        " ".join(f"word{i}" for i in range(high)): 0.5 * s,
        " ".join(f"word{i}" for i in range(high + 1)): 0.5 * s - n,
        "x " * low: 0.5 * s + (1 - 1 / low) * r,
    }
    assert rewards_solution.shaped_reward([0.5] * len(cases), list(cases)) == pytest.approx(
        list(cases.values())
    )


def test_signatures_agree():
    import inspect

    import rewards

    for function in EXERCISES:
        assert inspect.signature(getattr(rewards, function)) == inspect.signature(
            getattr(rewards_solution, function)
        )
        assert f"-k {function}" in getattr(rewards, function).__doc__


# --- the models behind the checks ---------------------------------


def two_token_tree() -> checks.Tree:
    ref, policy = {(): logs(0.25, 0.75)}, {(): logs(0.5, 0.5)}
    return checks.Tree(policy, ref, checks.enumerate_completions(vocab=2, length=1, eos=False))


def test_kl_by_hand():
    tree = two_token_tree()
    assert checks.kl(tree, tree.policy, tree.ref) == pytest.approx(0.5 * math.log(4 / 3))
    assert checks.kl(tree, tree.ref, tree.policy) == pytest.approx(0.130812, abs=1e-6)


def test_gradients_by_hand():
    """d KL(pi_ref || pi) / d logits = pi - pi_ref = (1/4, -1/4); E[f grad log pi] for f = (1, 0): (1/4, -1/4)."""
    tree = two_token_tree()
    assert checks.gradient(lambda policy: checks.kl(tree, tree.ref, policy), tree.policy) == pytest.approx(
        [0.25, -0.25]
    )
    assert checks.policy_gradient(tree, [1.0, 0.0]) == pytest.approx([0.25, -0.25])
    assert checks.policy_gradient(tree, [3.0, 3.0]) == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize(("eos", "count"), [(False, 27), (True, 1 + 2 + 4 + 8 - 0)])
def test_all_completions_are_there(eos, count):
    """V = 3, T = 3: 27 sequences; ended by token 0 there are 1 + 2 + 4 of one to three tokens, and 8 without it."""
    tree = checks.make_tree(random.Random(0), 3, 3, eos, nats=0.2)
    assert len(tree.completions) == count
    for model in (tree.policy, tree.ref):
        assert sum(math.exp(sum(row)) for row in tree.rows(model)) == pytest.approx(1)
    assert checks.kl(tree, tree.ref, tree.policy) == pytest.approx(0.2, rel=2e-3)
    weights = [
        math.exp(sum(r) - sum(p)) for p, r in zip(tree.rows(tree.policy), tree.rows(tree.ref), strict=True)
    ]
    assert max(weights) < 8


def test_policy_gradient_by_differences():
    """E[f grad log pi] is the gradient of E[f] for a constant f: compare with differences of the expectation."""
    tree = checks.make_tree(random.Random(1), 3, 3, True, nats=0.3)
    f = [random.Random(2).gauss(0, 1) for _ in tree.completions]

    def expectation(policy):
        return sum(math.exp(sum(row)) * value for row, value in zip(tree.rows(policy), f, strict=True))

    assert checks.policy_gradient(tree, f) == pytest.approx(
        checks.gradient(expectation, tree.policy), abs=1e-8
    )


@pytest.mark.parametrize(
    ("ours", "exactly", "message"),
    [
        ([1.0, 0.0], True, None),
        ([0.98, 0.19], False, None),  # cosine 0.98, length 1
        ([0.98, 0.19], True, "is not the gradient"),
        ([0.9, 0.44], False, "is not the gradient"),  # cosine 0.90
        ([0.5, 0.0], False, "0.5 times as long"),
        ([2.0, 0.0], True, "2 times as long"),
        ([-1.0, 0.0], True, "away from the reference"),
        ([-1.0, 0.0], False, "away from the reference"),
        ([0.0, 0.0], False, "is not the gradient"),
    ],
)
def test_compare_with_the_gradient_1_0(ours, exactly, message):
    if message is None:
        checks.compare(ours, [1.0, 0.0], "KL", exactly)
    else:
        with pytest.raises(Mistake, match=message):
            checks.compare(ours, [1.0, 0.0], "KL", exactly)


# --- right answers and mistakes ---------------------------------


def test_a_hundred_points():
    assert sum(check.points for check in CHECKS) == 100
    assert len({check.number for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert check.number.startswith({FORWARD: "1.", BACKWARD: "2.", SHAPED: "3."}[check.function])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "path",
    [p for p in sorted((SUBMISSIONS / "right").glob("*.py")) if "torch" not in p.name]
    + [ROOT / "rewards_solution.py"],
    ids=lambda path: path.stem,
)
def test_right_in_any_style(path, seed):
    for function, verdicts in results_of(path, seed).items():
        assert [(c.number, str(m)) for c, m in verdicts if m] == [], function


MISTAKES = [p for p in sorted((SUBMISSIONS / "mistakes").glob("*.py")) if p.stem != "forward_loops_on_empty"]


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: path.stem)
def test_a_mistake_costs_points_in_its_function_and_is_named(path, tmp_path):
    """The first line of each file says `# function: words of the hint that must come`."""
    text = path.read_text(encoding="utf-8")
    function, hint = re.match(r"# (\w+): (.*)\n", text).groups()
    file = tmp_path / "rewards.py"
    file.write_text(f"{SOLUTION}\n\n{text}", encoding="utf-8")
    results = results_of(file)
    for other in EXERCISES.keys() - {function}:
        assert not any(m for _, m in results[other])
    messages = [str(m) for _, m in results[function] if m]
    assert messages
    assert any(hint in message for message in messages), messages


TERMS = {
    FORWARD: [
        "-d", "abs(d)", "max(d, 0)", "min(d, 0)", "max(-1, min(d, 1))", "d * d / 2", "d * d", "w - 1 + d", "p * d",
        "-r * d", "-w * d", "1 - w", "1 / w", "1 / w - 1", "w", "p - r", "log(p)", "-log(p)", "-log(r)", "log(r)",
        "log(p) + log(r)", "d / log(2)",
    ],
    BACKWARD: [
        "w - 1", "1 - 1 / w", "1 / w - 1", "-w", "w", "1 / w", "-w * d", "w * d", "d", "-d", "abs(1 - w)",
        "max(1 - w, 0)", "min(1 - w, 0)", "(1 - w) ** 2", "d * d / 2", "w - 1 + d", "-w * d - w + 1", "1 / w - 1 - d",
        "-r * d", "p * d", "p - r", "log(p)", "-log(p)", "-log(r)", "1 + d", "-d - 1",
    ],
}  # fmt: skip


@pytest.mark.parametrize("function", [FORWARD, BACKWARD])
def test_the_table_of_wrong_terms(function):
    """Recompute the stored numbers; none is the right answer, and no two look alike."""
    tables = [
        [eval(term, {"p": p, "r": r, "d": math.log(p / r), "w": r / p, "log": math.log}) for p, r in PROBE]
        for term in TERMS[function]
    ]
    stored = list(WRONG_TERMS[function])
    assert len(stored) == len(tables)
    for numbers, table in zip(stored, tables, strict=True):
        assert numbers == pytest.approx(table, abs=1e-6)
    right = [math.log(p / r) if function == FORWARD else 1 - r / p for p, r in PROBE]
    tables.append(right)
    for i, one in enumerate(tables):
        for other in tables[:i]:
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 1e-3


@pytest.mark.parametrize("function", [FORWARD, BACKWARD])
def test_every_wrong_term_fails_and_is_named(function):
    """Each formula of the table as a submission: it fails, and the hint is the table's."""
    for term, hint in zip(TERMS[function], WRONG_TERMS[function].values(), strict=True):
        code = compile(term, term, "eval")

        def penalty(policy, ref, kl_coef=0.1, code=code):
            def value(a, b):
                names = {"p": math.exp(a), "r": math.exp(b), "d": a - b, "w": math.exp(min(b - a, 30.0))}
                return eval(code, {"log": math.log, **names})

            return [kl_coef * sum(map(value, p, r)) for p, r in zip(policy, ref, strict=True)]

        module = type(sys)("rewards")
        setattr(module, function, penalty)
        me = Student(partial(student.call, module))
        with pytest.raises(Mistake):
            for check in CHECKS:
                if check.function == function:
                    check.run(me, random.Random(0))
        assert checks.diagnose(me, function) == [hint], term


def test_w_log_w_drives_the_policy_away():
    """The classic: 60 exact steps on w * log w raise the KL it estimates; on 1 - w they end at 0."""
    with pytest.raises(Mistake, match=r"from 0\.150 to (\d+\.\d+)") as caught:
        module = student.load(SUBMISSIONS / "mistakes" / "backward_w_log_w.py")
        checks.backward_descent(Student(partial(student.call, module)), random.Random(0))
    assert float(re.search(r"to (\d+\.\d+)", str(caught.value)).group(1)) > 1


def test_unfilled_and_nan_earn_nothing():
    verdicts = results_of(ROOT / "rewards.py")
    assert all(isinstance(m, Unfilled) for results in verdicts.values() for _, m in results)
    nan = type(sys)("rewards")
    for function in EXERCISES:
        setattr(nan, function, lambda rows, *_, **__: [math.nan] * len(rows))
    me = Student(partial(student.call, nan))
    for function in EXERCISES:
        assert all(m for _, m in run_checks(me, function, 0))


# --- what counts as a number ---------------------------------


def replied(returned: object) -> list[float]:
    module = type(sys)("rewards")
    module.shaped_reward = lambda *_: returned
    return Student(partial(student.call, module)).values(SHAPED, [0.5, 0.5], ["a", "b"])


def test_numbers():
    import numpy as np

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
        ([0.5], "1 values for 2 completions"),
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


def test_tensors_and_bools_of_libraries_are_no_numbers():
    import numpy as np

    with pytest.raises(Mistake, match="a bool"):
        replied([0.5, np.bool_(True)])
    torch = pytest.importorskip("torch")
    with pytest.raises(Mistake, match=r"a Tensor, not a plain number.*\.item\(\)"):
        replied([torch.tensor(0.5), torch.tensor(1.0)])
    with pytest.raises(Mistake, match="a Tensor, not a list"):
        replied(torch.tensor([0.5, 1.0]))


# --- the self-check on the command line ---------------------------------


def self_check(path: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, path], cwd=path.parent, capture_output=True, text=True)


def kit_with(tmp_path: Path, source: str) -> Path:
    (tmp_path / "grading").symlink_to(ROOT / "grading")
    path = tmp_path / "rewards.py"
    main = (ROOT / "rewards.py").read_text(encoding="utf-8").partition('if __name__ == "__main__":')
    path.write_text(source + "\n\n" + main[1] + main[2], encoding="utf-8")
    return path


def test_self_check_of_the_stubs():
    started = time.monotonic()
    done = self_check(ROOT / "rewards.py")
    assert time.monotonic() - started < 3
    assert done.returncode == 1
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(line.endswith("| not implemented yet") for line in lines)


def test_self_check_of_the_solution(tmp_path):
    started = time.monotonic()
    done = self_check(kit_with(tmp_path, SOLUTION))
    assert time.monotonic() - started < 3
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("| right\n") == 3


def test_self_check_says_what_is_wrong_without_a_traceback(tmp_path):
    w_log_w = (SUBMISSIONS / "mistakes" / "backward_w_log_w.py").read_text()
    broken = "def shaped_reward(scores, completions, prompts=None):\n    return [1 / 0 for _ in scores]\n"
    path = kit_with(tmp_path, f"{SOLUTION}\n\n{w_log_w}\n\n{broken}")
    done = self_check(path)
    assert done.returncode == 1 and done.stderr == ""
    assert "kl_penalty_forward   | right" in done.stdout
    assert "kl_penalty_backward  | wrong" in done.stdout and "w * log w" in done.stdout
    text = " ".join(done.stdout.split())
    line = path.read_text().splitlines().index("    return [1 / 0 for _ in scores]") + 1
    assert re.search(
        rf"ZeroDivisionError: division by zero \(in \S+, rewards.py line {line}: return", text
    ), text


def test_self_check_of_a_file_that_does_not_import(tmp_path):
    done = self_check(kit_with(tmp_path, "import no_such_module\n"))
    assert done.returncode == 1


def test_no_answer_stands_in_what_students_get():
    """The formula of exercise 1b is nowhere in the files of the self-check."""
    for name in ("checks.py", "mistakes.py", "student.py"):
        text = re.sub(r"\s", "", (ROOT / "grading" / name).read_text(encoding="utf-8"))
        assert not re.search(r"1(\.0)?-(math\.)?exp|expm1|1(\.0)?-w", text), name
