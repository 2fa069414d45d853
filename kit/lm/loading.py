"""Shared by all loading: library errors in one sentence, tokenizers, files that must be there first."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kit.base.errors import UserError, no_room
from kit.base.files import refuse_pointer
from kit.lm.hub import fetch_model

Tokenizer: TypeAlias = PreTrainedTokenizerBase


@contextmanager
def told_as(what: str, advice: str) -> Iterator[None]:
    """A library's error in the block becomes a `UserError`: `what`, the first line of the error, `advice`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or no_room(error):
            raise
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{what} ({said}); {advice}") from None


def load_tokenizer(spec: str | Path, **where: str) -> Tokenizer:
    """The tokenizer at `spec`, a Hugging Face id or a folder (`gguf_file`: in this file of it).

    Raises `UserError` if its files are missing, as transformers would silently make an empty one.
    """
    tokenizer = AutoTokenizer.from_pretrained(spec, trust_remote_code=False, **where)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise UserError(f"{spec}: there is a model but no tokenizer; put its tokenizer files there")
    return tokenizer


def have_files(spec: str) -> None:
    """Fetch a model of the Hub, unless it is in the cache. Raises `UserError` for that, or for a Git LFS pointer."""
    if not Path(spec).exists():
        fetch_model(spec)
    for file in filter(Path.is_file, Path(spec).glob("*")):
        with file.open("rb") as opened:
            refuse_pointer(opened.read(100), str(file))
