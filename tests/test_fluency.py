"""kit/measure/fluency.py against log-probs taken one text at a time.

pytest tests/test_fluency.py
"""

import pytest
import torch

from kit.lm.models import MINI, load_policy
from kit.measure.fluency import load_fluency


def test_nats_per_byte_are_those_of_the_text_alone_and_an_empty_one_has_none():
    score = load_fluency("mini", torch.device("cpu"))
    lm, tokenizer = load_policy(str(MINI / "policy"))
    prompt, texts = "The film was", [" great, and fun.", "", " caf\u00e9"]
    assert score([prompt] * 2, ["", ""]) == [None, None]  # of a policy that always stops at once
    found = score([prompt] * 3, texts)
    assert found[1] is None
    for text, value in ((texts[0], found[0]), (texts[2], found[2])):
        start = tokenizer(prompt)["input_ids"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            log_p = lm.eval()(torch.tensor([start + ids])).logits[0].float().log_softmax(-1)
        total = sum(log_p[len(start) + t - 1, token].item() for t, token in enumerate(ids))
        assert value == pytest.approx(-total / len(text.encode()), rel=1e-4)
