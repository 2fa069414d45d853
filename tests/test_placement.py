"""benchmarks/placement.py: estimates by hand, and the gradient of each place on a batch that is its own expectation.

pytest tests/test_placement.py
"""

import json
import math

import pytest
import torch

from benchmarks.placement import GROUP, PRICE, SETTINGS, estimate, read, term_loss
from kit.lm.log_probs import Chunk

# One token of three, likely enough for a group of 8 to hold each exactly as often as it should: 4, 2 and 2 times
PI, REF = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
TOKENS = [0, 0, 0, 0, 1, 1, 2, 2]
D = [math.log(p / q) for p, q in zip(PI, REF, strict=True)]
KL = sum(p * d for p, d in zip(PI, D, strict=True))


def batch(order: list[int]) -> Chunk:
    """The group of 8 in one chunk, its rows standing in this order."""
    sampled = torch.tensor([TOKENS[i] for i in order])
    empty = torch.empty(0)
    return Chunk(order, empty, empty, empty, sampled, [1] * GROUP)


def gradient(name: str, place: str, score: list[float], order: list[int]) -> list[float]:
    """Of the loss, in the three logits."""
    logits = torch.tensor(PI).log().requires_grad_()
    log_p = logits.log_softmax(-1).expand(GROUP, 3)
    log_q = torch.tensor(REF).log().expand(GROUP, 3)
    term_loss(name, place, log_p, log_q, batch(order), torch.tensor(score)).backward()
    return logits.grad.tolist()


def test_the_six_estimates_of_one_token():
    log_p, log_q = torch.tensor([PI]).log(), torch.tensor([REF]).log()
    by_hand = {  # d = log 2, w = 1/2
        "k1": math.log(2),
        "k2": math.log(2) ** 2 / 2,
        "k3": 0.5 - 1 + math.log(2),
        "w log w": -0.5 * math.log(2),
        "1 - w": 0.5,
        "exact": 0.5 * math.log(2) - 0.25 * math.log(2),
    }
    for name, value in by_hand.items():
        assert estimate(name, log_p, log_q, torch.tensor([0])).item() == pytest.approx(value, rel=1e-5), name


TO_PI = [p * (d - KL) for p, d in zip(PI, D, strict=True)]  # grad KL(pi||pi_ref) in the logits
TO_REF = [p - q for p, q in zip(PI, REF, strict=True)]  # grad KL(pi_ref||pi)


@pytest.mark.parametrize(
    ("name", "place", "expected"),
    [
        ("k1", "reward", TO_PI),
        ("k1", "loss", [0, 0, 0]),
        ("k2", "loss", TO_PI),
        ("k3", "loss", TO_REF),
        ("1 - w", "reward", TO_REF),
        ("1 - w", "loss", [-g for g in TO_REF]),
        ("exact", "loss", TO_PI),
        ("exact", "reward", [0, 0, 0]),
    ],
)
def test_what_each_place_teaches_about_one_token(name, place, expected):
    found = gradient(name, place, [0.0] * GROUP, list(range(GROUP)))
    assert found == pytest.approx([PRICE * g for g in expected], abs=1e-7)


@pytest.mark.parametrize("order", [list(range(8)), [7, 6, 5, 4, 3, 2, 1, 0], [3, 7, 0, 5, 1, 6, 2, 4]])
def test_a_completion_has_its_own_score_whatever_the_order_of_the_chunk(order):
    # only token 2 scores: -E[r (grad log pi)] = -pi_2 (1[a = 2] - pi_a)
    found = gradient("", "", [float(token == 2) for token in TOKENS], order)
    assert found == pytest.approx([0.25 * 0.5, 0.25 * 0.25, -0.25 * 0.75], rel=1e-5)


def test_rows_of_other_settings_are_not_read(tmp_path):
    rows = [{"where": "k1 loss", "seed": 0, "settings": SETTINGS}, {"where": "k1 loss", "seed": 1}]
    rows.append({"where": "k1 loss", "seed": 2, "settings": [*SETTINGS[:-1], 0.5]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["seed"] for row in read(tmp_path / "rows.jsonl")] == [0]
    assert read(tmp_path / "none.jsonl") == []
