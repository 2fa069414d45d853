"""The Hugging Face Hub. What lies whole in its cache on this machine is not asked for; anything else is fetched once.

The libraries would ask for every file, cached or not, and retry in silence for minutes if nobody answers. So only this
module asks: with a short limit, without retries, and with the size of what comes on the screen. The libraries then read
the cache.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import GatedRepoError, HFValidationError, OfflineModeIsEnabled
from tqdm import tqdm

from kit.base.errors import UserError, no_room
from kit.base.screen import Progress

TIMEOUT_SECONDS = 5.0
# data sets of one parquet file a split
SPLIT_FILES = {
    "stanfordnlp/imdb": "plain_text/{}-00000-of-00001.parquet",
    "stanfordnlp/sst2": "data/{}-00000-of-00001.parquet",
}
WEIGHTS, SHARDED = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")  # one is enough
ADVICE = {"model": "give mini or a folder", "dataset": "give a local parquet file"}
ASKED_OFFLINE = constants.HF_HUB_OFFLINE  # the user's HF_HUB_OFFLINE


def find_on_hub(repo: str) -> None:
    """Raises `UserError` if there is no such model in the cache, nor on the Hub."""
    with _told(repo, "model"):
        cached = model_is_cached(repo)
    if not cached:
        look_up(repo, "model")


def fetch_model(repo: str) -> None:
    """Have the model whole in the cache. From then on the libraries of this process are offline.

    Raises `UserError` if it cannot be had, or has no safetensors.
    """
    if not model_is_cached(repo):
        _fetch(repo, "model", model_files)
        if not model_is_cached(repo):
            said = f"{repo}: has no tokenizer on the Hub, or changed there just now"
            raise UserError(f"{said}; try again, or {ADVICE['model']}")
    constants.HF_HUB_OFFLINE = True  # read by huggingface_hub, and so by transformers, TRL and PEFT


def fetch_splits(repo: str, splits: Sequence[str]) -> list[str]:
    """The paths of these splits of a data set, parquet files in the cache. Raises `UserError` if one cannot be had."""
    files = [SPLIT_FILES[repo].format(split) for split in splits]
    if not all(_cached(repo, file, repo_type="dataset") for file in files):
        _fetch(repo, "dataset", lambda names: files)
    return [str(_cached(repo, file, repo_type="dataset")) for file in files]


def model_is_cached(repo: str) -> bool:
    """Does a model lie whole in the cache: config, tokenizer and all weights?"""
    weights = {WEIGHTS}
    if not _cached(repo, WEIGHTS) and (index := _cached(repo, SHARDED)):
        with open(index, encoding="utf-8") as file:  # noqa: PTH123 - a path of the cache, as text
            weights = set(json.load(file)["weight_map"].values())
    has_tokenizer = any(_cached(repo, name) for name in TOKENIZERS)
    return has_tokenizer and all(_cached(repo, name) for name in ("config.json", *weights))


def model_files(names: list[str]) -> list[str]:
    """Those files of a model on the Hub that are loaded, config.json first. Raises `UserError` without safetensors."""
    shards = [name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    weights = [WEIGHTS] if WEIGHTS in names else shards
    if not weights:
        raise UserError(f"on the Hub it has no {WEIGHTS}: other formats may hold code")
    small = [name for name in names if "/" not in name and name.endswith((".json", ".txt", ".model"))]
    return [*sorted(small, key=lambda name: name != "config.json"), *weights]


@functools.cache
def look_up(repo: str, repo_type: str) -> Any:
    """What the Hub says of a repository: commit, files, sizes. Raises `UserError` if it says nothing."""
    with _told(repo, repo_type):
        return HfApi().repo_info(repo, repo_type=repo_type, timeout=TIMEOUT_SECONDS, files_metadata=True)


def _cached(repo: str, name: str, revision: str | None = None, repo_type: str = "model") -> str | None:
    found = try_to_load_from_cache(repo, name, revision=revision, repo_type=repo_type)
    return found if isinstance(found, str) else None


def _fetch(repo: str, repo_type: str, wanted: Callable[[list[str]], list[str]]) -> None:
    """Fetch the `wanted` ones of a repository's files, all of one commit.

    A connection that breaks is taken up where it broke; of a fetch that is killed, the files that were whole are kept.
    """
    info = look_up(repo, repo_type)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    with _told(repo, repo_type):
        files = wanted(list(sizes))
        missing = [name for name in files if not _cached(repo, name, info.sha, repo_type)]
        total = math.ceil(sum(sizes.get(name, 0) for name in missing) / 1e6)
        print(f"fetching {repo} from the Hub, once: {total:,} MB", flush=True)

        class Received(tqdm):
            """A bar that draws nothing and hands on the bytes."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})

            def update(self, n: float | None = 1) -> None:
                progress.advance((n or 0) / 1e6)

        with Progress(total, f"fetching {repo}", "MB") as progress:
            for name in missing:
                # `hf_hub_download` asks the same, and would retry for minutes if it got no answer
                url = hf_hub_url(repo, name, repo_type=repo_type, revision=info.sha)
                get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS)
                hf_hub_download(repo, name, repo_type=repo_type, revision=info.sha, tqdm_class=Received)
        # Only now the cache is told that this commit is its `main`
        hf_hub_download(repo, files[0], repo_type=repo_type, etag_timeout=TIMEOUT_SECONDS)


@contextmanager
def _told(repo: str, repo_type: str) -> Iterator[None]:
    """A block that may ask the Hub. Its errors become a `UserError` of one sentence."""
    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, ASKED_OFFLINE
    try:
        yield
    except Exception as error:
        if no_room(error):
            raise
        here = "no such folder here, " if repo_type == "model" else ""
        said = f"{repo}: {here}not whole in the cache, and {why(error)}; {ADVICE[repo_type]}"
        raise UserError(said) from None
    finally:
        constants.HF_HUB_OFFLINE = offline


def why(error: Exception) -> str:
    """What kept the Hub from answering, in words."""
    response: Any = getattr(error, "response", None)
    status = 0 if response is None else response.status_code
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HFValidationError):
        return "no model on the Hub can have this name"
    if isinstance(error, GatedRepoError) or status == 403:
        return "it is gated: accept its terms on its page on the Hub, then type: hf auth login"
    if status == 401 and "credentials" in response.headers.get("X-Error-Message", ""):
        return "the Hub does not know your token: type hf auth login, or unset HF_TOKEN"
    if status in (401, 404):
        return "the Hub has no such public model"
    if status == 429:
        return "the Hub has had too many requests from here (429): wait some minutes"
    if status >= 500:
        return f"the Hub has a fault of its own ({status}): try again later"
    if isinstance(error, ImportError) and "socksio" in str(error):
        return "your SOCKS proxy needs a package: type pip install socksio, or unset ALL_PROXY"
    return f"the Hub is out of reach ({type(error).__name__})"
