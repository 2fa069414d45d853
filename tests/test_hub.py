"""GPT-2, DistilBERT and IMDB from a Hub, then from the cache; and a Hub that is not as it should be.

pytest tests/test_hub.py
HUB_TESTS=1 pytest tests/test_hub.py -k real_size      GPT-2 and DistilBERT in their real sizes
"""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from kit.base.runs import read_metrics
from kit.lm import hub as kit_hub
from kit.lm.hub import model_files
from kit.lm.models import FULL_NAMES, FULL_POLICY, FULL_SENTIMENT
from tests.conftest import ROOT
from tests.forks import Forks
from tests.hub import GPT2, IMDB, SST2, UNWANTED, Hub, gpt2_files, imdb_files, sst2_files

SMALL = [
    "--prompts_per_step",
    "2",
    "--num_generations",
    "2",
    "--max_completion_length",
    "6",
    "--eval_every",
    "0",
]
MEASURED = ["--num_prompts", "4", "--num_samples", "1", "--max_new_tokens", "6"]
WANTED = ("config.json", "generation_config.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
          "vocab.json", "model.safetensors")  # fmt: skip

# A real client in a Python of its own: what is said of each repository, as JSON
FETCH = """
import json, sys
from kit.base.screen import quiet
quiet()
from kit.base.errors import UserError
from kit.lm import hub
hub.TIMEOUT_SECONDS = 1.0
hub.constants.DOWNLOAD_CHUNK_SIZE = 1000  # 10 MB are more than these models have
for repo in sys.argv[1:]:
    said = "fetched"
    try:
        hub.find_on_hub(repo)
        hub.fetch_model(repo)
    except UserError as error:
        said = str(error)
    print(json.dumps([repo, said]), flush=True)
"""


def environment(url: str, home: Path) -> dict[str, str]:
    """Of a client that knows this Hub only, with its cache in `home`."""
    proxies = dict.fromkeys(("ALL_PROXY", "all_proxy", "http_proxy", "HTTP_PROXY", "HF_TOKEN"), "")
    return {**proxies, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT)}  # fmt: skip


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    gpt2 = gpt2_files()
    pickled = {name: data for name, data in gpt2.items() if name != "model.safetensors"}
    no_tokenizer = {name: gpt2[name] for name in ("config.json", "model.safetensors")}
    server = Hub(
        {
            GPT2: gpt2,
            SST2: sst2_files(),
            IMDB: imdb_files(tmp_path_factory.mktemp("imdb")),
            **dict.fromkeys(("wrong/breaks", "wrong/stops", "wrong/gated", "wrong/file-500", "wrong/file-429"), gpt2),
            "some/pickled": pickled,
            "some/tokenless": no_tokenizer,
        }
    )  # fmt: skip
    yield server
    server.shutdown()
    server.server_close()


# ---- the scripts, with an empty cache at first -----------------------------------------------------------------


@pytest.fixture(scope="module")
def scripts(hub, tmp_path_factory):
    """Each script's result, and its requests, in the order of `runs`; then the folders of cache and runs."""
    home, out = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("out")
    env = environment(hub.url, home)
    forks = Forks(**env)

    def run(*args: str):
        with hub.watched() as asked:
            done = forks.run(args, {**os.environ, **env, "COLUMNS": "110"}, ROOT, 600)
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr, asked=asked)

    train = ["train.py", "--output_dir", str(out)]
    found = {
        "train": run(*train, "--model", "gpt2", "--beta", "0.1", "--max_steps", "2", *SMALL, "--save_steps", "1",
                     "--run_name", "first"),
        "config": run(*train, "--config", "configs/gpt2.yaml", "--use_solution", "--prompts", "imdb", *SMALL,
                      "--max_steps", "1", "--run_name", "config"),
        "sft": run("-m", "baselines.sft", "--output_dir", str(out), "--model", "gpt2", "--data", "imdb", "--use_peft",
                   "--num_reviews", "8", "--batch_size", "8", "--rounds", "1", "--max_completion_length", "6",
                   "--run_name", "sft"),
        "evaluate": run("evaluate.py", f"first={out / 'first'}", f"sft={out / 'sft'}", *MEASURED, "--frontier_samples",
                        "1", "--out", str(out / "results")),
        "prompts": run("prompt_engineering.py", str(out / "config"), *MEASURED, "--out", str(out / "prompts")),
    }  # fmt: skip
    hub.repositories[GPT2]["config.json"] += b"\n"  # the revision moves
    found["resume"] = run(*train, "--resume", str(out / "first"), "--max_steps", "3")
    shutil.rmtree(home / "hub" / f"models--{GPT2.replace('/', '--')}")
    found["moved"] = run(*train, "--resume", str(out / "first"), "--max_steps", "4")
    yield SimpleNamespace(**found, home=home, out=out)
    forks.close()


@pytest.mark.slow
def test_the_first_run_fetches_both_models_once_and_says_their_sizes(scripts):
    assert scripts.train.code == 0, scripts.train.err
    for repo in (GPT2, SST2):
        assert f"fetching {repo} from the Hub, once: 1 MB\n" in scripts.train.out
    fetched = [line for line in scripts.train.asked if line.startswith("GET") and "/resolve/" in line]
    names = sorted(line.rpartition("/")[2] for line in fetched if GPT2 in line)
    assert names == sorted(WANTED)
    assert sorted(line.rpartition("/")[2] for line in fetched if SST2 in line) == sorted(
        ["config.json", "vocab.txt", "tokenizer_config.json", "model.safetensors"]
    )
    # under the name of today, and each repository was looked up once
    assert [line for line in scripts.train.asked if "/api/" in line] == [
        f"GET /api/models/{repo}" for repo in (GPT2, SST2)
    ]
    assert "policy openai-community/gpt2" in scripts.train.out


@pytest.mark.slow
def test_the_policy_begins_as_the_reference(scripts):
    for name in ("first", "config", "sft"):
        first = next(m for m in read_metrics(scripts.out / name) if "val/kl_policy_ref" in m)
        assert first["step"] == 0 and first["val/kl_policy_ref"] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "evaluate", "prompts", "resume"])
def test_nothing_is_asked_once_all_is_in_the_cache(scripts, name):
    """Not by transformers, TRL's reference, PEFT that saves adapters, nor `datasets`; whatever the Hub has by now."""
    done = getattr(scripts, name)
    assert done.code == 0, done.err
    assert done.asked == [] and "fetching" not in done.out


@pytest.mark.slow
def test_imdb_is_one_file(scripts):
    assert scripts.config.code == 0, scripts.config.err
    assert f"fetching {IMDB} from the Hub, once: 1 MB\n" in scripts.config.out
    fetched = {line.rpartition("/")[2] for line in scripts.config.asked if "/resolve/" in line}
    assert fetched == {"train-00000-of-00001.parquet"}


@pytest.mark.slow
def test_a_run_whose_model_has_moved_on_the_hub_is_not_resumed_with_the_new_one(scripts):
    assert scripts.moved.code == 2
    said = (
        f"error: --resume {scripts.out / 'first'}: changed since this run began: model {GPT2}; restore it, or"
    )
    assert said in scripts.moved.err


@pytest.mark.skipif("HUB_TESTS" not in os.environ, reason="with HUB_TESTS=1: 1.5 GB of disk, minutes")
@pytest.mark.slow
def test_gpt2_and_distilbert_in_their_real_size_train_from_the_hub_and_from_the_cache(run_script, tmp_path):
    server = Hub({GPT2: gpt2_files(real_size=True), SST2: sst2_files(real_size=True)})
    server.commit(GPT2), server.commit(SST2)  # takes seconds, once
    env = environment(server.url, tmp_path / "home")
    train = ["train.py", "--model", "gpt2", "--output_dir", str(tmp_path), "--max_steps", "2", *SMALL]
    fetched = run_script(*train, env=env, real=True)
    assert fetched.returncode == 0, fetched.stderr
    # 124.4 M and 67.0 M numbers of 4 bytes; GPT-2 has 12 masks of 1024 x 1024 besides
    assert f"fetching {GPT2} from the Hub, once: 55" in fetched.stdout
    assert f"fetching {SST2} from the Hub, once: 26" in fetched.stdout
    assert "policy openai-community/gpt2 (124.4 M)" in fetched.stdout
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    with server.watched() as asked:
        again = run_script(*train, "--run_name", "again", env=env | offline, real=True)
    assert again.returncode == 0 and asked == [], again.stderr
    first, second = (read_metrics(tmp_path / name)[0] for name in ("vanilla", "again"))
    assert first["val/kl_policy_ref"] == pytest.approx(0, abs=1e-5)
    assert first["val/sentiment_mean"] == second["val/sentiment_mean"]
    server.shutdown()
    server.server_close()


# ---- what can be wrong -----------------------------------------------------------------------------------------

FAULTS = {
    "some/unknown": "the Hub has no such public model",
    "wrong/404": "the Hub has no such public model",
    "wrong/token": "the Hub does not know your token: type hf auth login, or unset HF_TOKEN",
    "wrong/429": "the Hub has had too many requests from here (429): wait some minutes",
    "wrong/503": "the Hub has a fault of its own (503): try again later",
    "wrong/silent": "the Hub is out of reach (ReadTimeout)",
    "wrong/page": "the Hub is out of reach (JSONDecodeError)",
    "no model": "no model on the Hub can have this name",
    "wrong/gated": "it is gated: accept its terms on its page on the Hub, then type: hf auth login",
    "wrong/file-429": "the Hub has had too many requests from here (429): wait some minutes",
    "wrong/file-500": "the Hub has a fault of its own (500): try again later",
    "some/pickled": "on the Hub it has no model.safetensors: other formats may hold code",
}


@pytest.fixture(scope="module")
def fetches(hub, run_script, tmp_path_factory):
    """What the real client says of each repository; its requests; its cache."""
    home = tmp_path_factory.mktemp("home")
    with hub.watched() as asked:
        repositories = [*FAULTS, "some/tokenless", "wrong/breaks"]
        done = run_script("-c", FETCH, *repositories, env=environment(hub.url, home), real=True)
    assert done.returncode == 0, done.stderr
    said = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    return SimpleNamespace(said=said, asked=asked, home=home, err=done.stderr)


@pytest.mark.parametrize("repo", FAULTS)
def test_a_hub_with_a_fault_is_one_sentence_without_retries(fetches, repo):
    before = f"{repo}: no such folder here, not whole in the cache, and "
    assert fetches.said[repo] == f"{before}{FAULTS[repo]}; give mini or a folder"
    asked = [line for line in fetches.asked if f"/{repo}" in line]
    at_a_file = repo in ("wrong/gated", "wrong/file-429", "wrong/file-500")
    assert len(asked) == (0 if " " in repo else 1 + at_a_file)
    assert not fetches.err


def test_a_model_without_tokenizer_is_not_taken_for_whole(fetches):
    assert fetches.said["some/tokenless"].startswith(
        "some/tokenless: has no tokenizer on the Hub, or changed"
    )


def test_a_connection_that_breaks_is_taken_up_where_it_broke(fetches, hub):
    data = hub.repositories["wrong/breaks"]["model.safetensors"]
    assert fetches.said["wrong/breaks"] == "fetched"
    gets = [line for line in fetches.asked if "GET /wrong/breaks" in line and "safetensors" in line]
    first, again = (line.partition("safetensors")[2] for line in gets)
    assert not first and again == f" bytes={len(data) // 2 // 1000 * 1000}-"
    (file,) = fetches.home.glob("hub/models--wrong--breaks/snapshots/*/model.safetensors")
    assert file.read_bytes() == data


def test_a_fetch_that_is_killed_leaves_nothing_half_written_to_be_used(hub, run_script, start, tmp_path):
    env = environment(hub.url, tmp_path)
    command = [os.sys.executable, "-c", FETCH, "wrong/stops"]
    process = start(command, env={**os.environ, **env})
    assert hub.half_sent.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    half = {path.stat().st_size for path in tmp_path.rglob("*.incomplete")}
    assert half == {0} or max(half) < len(hub.repositories["wrong/stops"]["model.safetensors"])
    with hub.watched() as asked:
        done = run_script("-c", FETCH, "wrong/stops", env=env, real=True)
    assert json.loads(done.stdout.splitlines()[-1]) == ["wrong/stops", "fetched"], done.stderr
    # only what was missing
    assert [line for line in asked if line.startswith("GET") and "resolve" in line] == [
        f"GET /wrong/stops/resolve/{hub.commit('wrong/stops')}/model.safetensors"
    ]
    (file,) = tmp_path.glob("hub/*/snapshots/*/model.safetensors")
    assert load_file(file)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the Hub is out of reach (ConnectError)"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        (
            {"all_proxy": "socks5://127.0.0.1:9", "NO_PROXY": ""},
            "your SOCKS proxy needs a package: type pip install socksio, or unset ALL_PROXY",
        ),
    ],
)
def test_what_is_cached_needs_no_hub_and_what_is_not_says_why(fetches, hub, run_script, setting, said):
    env = environment(hub.url, fetches.home) | setting
    with hub.watched() as asked:
        done = run_script("-c", FETCH, "wrong/breaks", "some/other", env=env, real=True)
    cached, other = (json.loads(line)[1] for line in done.stdout.splitlines())
    assert cached == "fetched" and f"not whole in the cache, and {said}; give mini" in other
    assert asked == []


# ---- units -------------------------------------------------------------------------------------------------


def test_of_a_repository_only_safetensors_and_small_files_are_wanted():
    small = ["config.json", "merges.txt"]
    assert model_files([*UNWANTED, "model.safetensors", "merges.txt", "config.json"]) == [
        *small,
        "model.safetensors",
    ]
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    names = ["merges.txt", "config.json", index, *shards, "consolidated.safetensors"]
    assert model_files(names) == ["config.json", "merges.txt", index, *shards]


def test_a_sharded_model_is_whole_with_its_last_shard(tmp_path, monkeypatch):
    index = "model.safetensors.index.json"
    (tmp_path / index).write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    for name in ("config.json", "tokenizer.model", "1.safetensors"):
        (tmp_path / name).touch()

    def from_cache(repo, name, **_):
        return str(tmp_path / name) if (tmp_path / name).exists() else None

    monkeypatch.setattr(kit_hub, "try_to_load_from_cache", from_cache)
    assert not kit_hub.model_is_cached("some/large")
    (tmp_path / "2.safetensors").touch()
    assert kit_hub.model_is_cached("some/large")
    (tmp_path / "tokenizer.model").unlink()
    assert not kit_hub.model_is_cached("some/large")


def test_the_old_names_are_those_of_the_pair():
    assert FULL_POLICY == GPT2 and FULL_SENTIMENT == SST2
    assert FULL_NAMES == {"gpt2": GPT2, "distilbert-base-uncased-finetuned-sst-2-english": SST2}
