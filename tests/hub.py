"""A Hugging Face Hub on 127.0.0.1 for the tests: what the real client asks, answered by the standard library.

A repository is a dictionary {path: bytes} in the real layout, under its real name, with random weights. What is wrong
with a repository stands in its name: `wrong/429` answers 429, see `Handler.fault`.
"""

import functools
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DistilBertConfig, DistilBertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from data import TRAIN_PROMPTS

GPT2 = "openai-community/gpt2"
SST2 = "distilbert/distilbert-base-uncased-finetuned-sst-2-english"
IMDB = "stanfordnlp/imdb"
OLD_NAMES = {"gpt2": GPT2}
UNWANTED = ("README.md", "pytorch_model.bin", "tf_model.h5", "onnx/config.json", "onnx/model.onnx")
LFS = (".safetensors", ".bin", ".h5", ".onnx", ".parquet")


@functools.cache
def digests(data: bytes) -> tuple[str, str]:
    """SHA-1 and SHA-256, taken once of each file: half a gigabyte takes seconds."""
    return hashlib.sha1(data).hexdigest(), hashlib.sha256(data).hexdigest()


def as_json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()


def gpt2_files(real_size: bool = False) -> dict[str, bytes]:
    """GPT-2's repository; its weights without the head and the prefix `transformer.`, but with masks, as published."""
    size = 50_257 if real_size else 600
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=599, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TRAIN_PROMPTS, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    vocabulary = learned["vocab"] | {f"Ġfiller{i}": i for i in range(len(learned["vocab"]), size - 1)}
    vocabulary["<|endoftext|>"] = end = size - 1
    learned["vocab"] = vocabulary
    merges = [" ".join(pair) for pair in learned["merges"]]
    whole = json.loads(tokenizer.to_str()) | {"model": learned}
    whole["added_tokens"] = [
        {"id": end, "content": "<|endoftext|>", "special": True, "normalized": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    ]
    torch.manual_seed(0)
    sizes = {} if real_size else {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    config = GPT2Config(vocab_size=size, bos_token_id=end, eos_token_id=end, **sizes)
    weights = dict(GPT2LMHeadModel(config).transformer.state_dict())
    n = config.n_positions
    mask = torch.ones(n, n, dtype=torch.bool).tril().view(1, 1, n, n)
    weights |= {f"h.{i}.attn.bias": mask.float() for i in range(config.n_layer)}
    return {
        "config.json": as_json(config.to_dict() | {"architectures": ["GPT2LMHeadModel"]}),
        "generation_config.json": as_json({"bos_token_id": end, "eos_token_id": end}),
        "vocab.json": json.dumps(vocabulary).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
        "tokenizer.json": as_json(whole),
        "tokenizer_config.json": as_json({"model_max_length": config.n_positions}),
        "model.safetensors": save({k: v.contiguous() for k, v in weights.items()}, {"format": "pt"}),
        **dict.fromkeys(UNWANTED, b"not to be fetched"),
    }


def sst2_files(real_size: bool = False) -> dict[str, bytes]:
    """DistilBERT SST-2's repository: a vocabulary, and no tokenizer.json."""
    words = sorted({word for prompt in TRAIN_PROMPTS for word in re.findall(r"[a-z]+", prompt.lower())})
    letters = "abcdefghijklmnopqrstuvwxyz"
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    entries = list(dict.fromkeys([*entries, *".,!?'-", *words]))
    entries += [f"filler{i}" for i in range(30_522 - len(entries))] if real_size else []
    torch.manual_seed(1)
    sizes = {} if real_size else {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    config = DistilBertConfig(vocab_size=len(entries), id2label=labels, **sizes)
    model = DistilBertForSequenceClassification(config)
    return {
        "config.json": as_json(config.to_dict() | {"architectures": ["DistilBertForSequenceClassification"]}),
        "vocab.txt": "\n".join([*entries, ""]).encode(),
        "tokenizer_config.json": as_json({"do_lower_case": True, "model_max_length": 512}),
        "model.safetensors": save({k: v.contiguous() for k, v in model.state_dict().items()}, {"format": "pt"}),
        **dict.fromkeys(UNWANTED, b"not to be fetched"),
    }  # fmt: skip


def imdb_files(folder: Path) -> dict[str, bytes]:
    """IMDB's repository: parquet with named labels, sorted by label."""
    names = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    texts = [f"{prompt} {word}." for word in ("dull", "fine") for prompt in TRAIN_PROMPTS[:40]]
    rows = Dataset.from_dict({"text": texts, "label": [0] * 40 + [1] * 40}, features=names)
    rows.to_parquet(folder / "train.parquet")
    train = (folder / "train.parquet").read_bytes()
    place = "plain_text/{}-00000-of-00001.parquet"
    others = {place.format(name): b"not to be fetched" for name in ("test", "unsupervised")}
    return {"README.md": b"not to be fetched", place.format("train"): train, **others}


class Hub(ThreadingHTTPServer):
    """The server. `asked` has a line for every request, such as `GET /api/models/openai-community/gpt2`."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.asked = repositories, list[str]()
        self.broken = set[str]()  # paths whose connection has been broken once
        self.half_sent = threading.Event()  # of a file of wrong/stops
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """The requests of the block, known at its end."""
        before, asked = len(self.asked), list[str]()
        yield asked
        asked += self.asked[before:]

    def commit(self, repo: str) -> str:
        """40 hexadecimal digits that change with the files."""
        files = [(name, digests(data)) for name, data in sorted(self.repositories[repo].items())]
        return hashlib.sha1(repr(files).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        bytes_asked = f" {self.headers['Range']}" if "Range" in self.headers else ""
        self.server.asked.append(f"{self.command} {path}{bytes_asked}")
        api = re.fullmatch(r"/api/(models|datasets)/([^/]+(?:/[^/]+)?)", path)
        file = re.fullmatch(r"/(datasets/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path)
        repo = api[2] if api else file[2] if file else ""
        if repo in OLD_NAMES:
            self.answer(307, Location=self.path.replace(f"/{repo}", f"/{OLD_NAMES[repo]}", 1))
        elif self.fault(repo, file[4] if file else ""):
            return
        elif repo not in self.server.repositories:  # to strangers the Hub does not say whether it exists
            self.answer(401, X_Error_Message="Invalid username or password.")
        elif api:
            self.answer(200, as_json(self.info(repo)), Content_Type="application/json")
        elif file:
            self.file(repo, file[3], file[4])
        else:
            self.answer(404)

    def info(self, repo: str) -> dict[str, Any]:
        siblings = []
        for name, data in self.server.repositories[repo].items():
            sibling = {"rfilename": name, "size": len(data), "blobId": digests(data)[0]}
            if name.endswith(LFS):
                sibling["lfs"] = {
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 1,
                }
            siblings.append(sibling)
        return {"id": repo, "sha": self.server.commit(repo), "private": False, "gated": False, "tags": [],
                "downloads": 0, "siblings": siblings}  # fmt: skip

    def file(self, repo: str, revision: str, name: str) -> None:
        data, commit = self.server.repositories[repo].get(name), self.server.commit(repo)
        if revision not in ("main", commit):
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if data is None:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        about = {
            "ETag": f'"{digests(data)[name.endswith(LFS)]}"',
            "X_Repo_Commit": commit,
            "Accept_Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked:
            first, size = int(asked[1]), len(data)
            self.answer(206, data[first:], Content_Range=f"bytes {first}-{size - 1}/{size}", **about)
        else:
            self.answer(200, data, **about)
        return None

    def fault(self, repo: str, name: str) -> bool:
        """Do what is wrong with the repository; False if there is nothing to do at this request."""
        _, _, kind = repo.partition("wrong/")
        if kind.isdigit():
            self.answer(int(kind), Retry_After="1")
        elif kind == "token":
            self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        elif kind == "page":  # a hotel's, instead of the Hub
            self.answer(200, b"<html>log in first</html>", Content_Type="text/html")
        elif kind == "silent":
            time.sleep(3)
            self.close_connection = True
        elif kind == "gated" and name:
            self.answer(403, X_Error_Code="GatedRepo")
        elif kind.startswith("file-") and name:
            self.answer(int(kind.removeprefix("file-")), Retry_After="1")
        elif kind in ("breaks", "stops") and self.command == "GET" and name == "model.safetensors":
            if self.path in self.server.broken:
                return False
            self.server.broken.add(self.path)
            data = self.server.repositories[repo][name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if kind == "stops":
                self.server.half_sent.set()
                time.sleep(30)
            self.close_connection = True
        else:
            return False
        return True
