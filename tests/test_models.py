"""Which model, and from where.

pytest tests/test_models.py
"""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import AutoModelForSequenceClassification

from kit.errors import UserError
from kit.models import HUB_TIMEOUT_SECONDS, MINI, load_policy, resolve_models
from sentiment import load_scorer


def test_a_named_model_is_never_swapped(tmp_path, monkeypatch):
    assert resolve_models("mini", "mini").policy.endswith("policy")
    assert resolve_models().reason  # and it says why
    with pytest.raises(UserError, match="no such model folder"):
        resolve_models(str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(UserError, match="outputs/typo: no such model folder"):
        resolve_models("outputs/typo")
    with pytest.raises(UserError, match="some-name is not in the cache, and the Hub is out of reach"):
        resolve_models("some-name", "mini")
    with pytest.raises(UserError, match="no complete language model at some-name"):
        load_policy("some-name")


def test_the_hub_is_asked_once_and_what_is_cached_is_not_asked_for(monkeypatch):
    asked = []

    def answer(error=None):
        def model_info(self, repo_id, timeout):
            asked.append((repo_id, timeout))
            if error is not None:
                raise error

        monkeypatch.setattr("kit.models.HfApi.model_info", model_info)

    answer()
    assert resolve_models("some-name", "mini").policy == "some-name"
    assert asked == [("some-name", HUB_TIMEOUT_SECONDS)]
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    answer(RepositoryNotFoundError("404", response=response))
    with pytest.raises(
        UserError, match="some-name: no such folder here, and no such public model on the Hub"
    ):
        resolve_models("some-name", "mini")
    monkeypatch.setattr("kit.models.try_to_load_from_cache", lambda repo, name: "cached/config.json")
    assert resolve_models("some-name", "mini").policy == "some-name"
    assert len(asked) == 2


def test_a_model_without_tokenizer_is_refused(tmp_path, tiny_gpt2):
    tiny_gpt2().save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match="a model but no tokenizer"):
        load_policy(str(tmp_path / "policy"))
    AutoModelForSequenceClassification.from_pretrained(MINI / "sentiment").save_pretrained(
        tmp_path / "scorer"
    )
    with pytest.raises(UserError, match="a model but no tokenizer"):
        load_scorer(str(tmp_path / "scorer"))


def test_half_written_model_is_one_sentence(tmp_path, tiny_gpt2):
    tiny_gpt2().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match="no complete language model"):
        load_policy(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="did not finish"):
        load_policy(str(tmp_path))
