"""Embedding short texts: the store beside sentence-transformers' own `encode`, our T5 encoder beside transformers'.

    python benchmarks/embedding.py --model FOLDER --data ../shared/data/domain/domain_pool.jsonl.gz --rounds 1
    python benchmarks/embedding.py --what t5 --model FOLDER --data ... --texts 3000

"store" writes a whole store (texts and weights hashed, shards flushed to disk) with any sentence-transformers model;
its peer gives the same texts to `SentenceTransformer.encode` in one call. Then the store is written once more, killed
half-way (SIGKILL), resumed, and its bytes compared with those of the store that was timed: for each text three times
the work of embedding it. "t5" averages the states of a T5's encoder;
its peer is T5EncoderModel of transformers with torch, which gets batches of the same size, sorted by length too and
padded to their longest text. Both peers tokenize. Models are loaded before the clock starts; "first" is the first call
and holds our compilation.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from measure import compare, print_table


@dataclass(frozen=True)
class Settings:
    """What to time."""

    model: str
    """Folder of a sentence-transformers model ("store") or of a T5 ("t5")."""
    data: str
    """JSON lines with a field `text`, compressed with gzip."""
    what: Literal["store", "t5"] = "store"
    """Which pair to time."""
    texts: int | None = None
    """Texts, from the beginning of the file; None takes all."""
    batch_size: int = 32
    """Texts a batch, for both."""
    rounds: int = 2
    """How often each contender gets a process of its own."""
    calls: int = 1
    """Calls timed in each process; the best counts."""


def _texts(data: str, texts: int | None) -> list[str]:
    with gzip.open(data, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in itertools.islice(file, texts)]


def store(model: str, data: str, texts: int, batch_size: int, folder: str) -> Callable[[], Any]:
    """`write_store` into `folder`, in eight shards or more, on top of whatever a killed process left there."""
    from deft_tsds.embed.sentence_transformers import SentenceTransformers
    from deft_tsds.embed.store import write_store

    encoder, read = SentenceTransformers(model, batch_size=batch_size), _texts(data, texts)
    encoder.encode(read[:batch_size])
    return lambda: write_store(folder, read, encoder, shard_rows=min(8192, -(-texts // 8)))


def fresh_store(folder: str, **case: Any) -> Callable[[], Any]:
    """The same into a new folder."""
    write = store(folder=folder, **case)

    def call() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        write()

    return call


def encode(model: str, data: str, texts: int, batch_size: int, folder: str) -> Callable[[], Any]:
    """`SentenceTransformer.encode` in one call; it writes nothing."""
    from sentence_transformers import SentenceTransformer

    del folder
    loaded, read = SentenceTransformer(model), _texts(data, texts)
    loaded.encode(read[:batch_size])
    return lambda: loaded.encode(read, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=True)


def killed_and_resumed(case: dict[str, Any], whole: Path, folder: Path) -> str:
    """Write a store in a process of its own, kill it when half of the shards are there, run it again; say whether each
    byte is that of the store `whole`."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent)))}
    program = "import embedding, json, sys; embedding.store(**json.loads(sys.argv[1]))()"
    command = [sys.executable, "-c", program, json.dumps(case | {"folder": str(folder)})]
    expected = sorted(path.name for path in whole.iterdir())
    shards = sum(name.endswith(".npy") for name in expected)
    process = subprocess.Popen(command, env=environment)
    while len(list(folder.glob("shard-*.npy"))) < shards // 2:
        if process.poll() is not None:
            raise RuntimeError("it ended before it could be killed: give more texts.")
        time.sleep(0.1)
    process.kill()
    process.wait()
    kept = len(list(folder.glob("shard-*.npy")))
    subprocess.run(command, env=environment, check=True)
    found = sorted(path.name for path in folder.iterdir())
    same = found == expected and all((folder / name).read_bytes() == (whole / name).read_bytes() for name in found)
    return f"killed with {kept} of {shards} shards, resumed: {'the same bytes' if same else 'OTHER BYTES'}"


def ours(model: str, data: str, texts: int, batch_size: int) -> Callable[[], Any]:
    """`T5Encoder.encode`, compiled in its first call."""
    from deft_tsds.embed.t5 import T5Encoder

    encoder, read = T5Encoder(model, "mean", max_tokens=256, batch_size=batch_size), _texts(data, texts)
    encoder.settings()
    return lambda: encoder.encode(read)


def torch_states(model: str, data: str, texts: int, batch_size: int) -> Callable[[], Any]:
    """The same average by T5EncoderModel."""
    import torch
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer, read = AutoTokenizer.from_pretrained(model), _texts(data, texts)
    loaded: Any = T5EncoderModel.from_pretrained(model).eval()

    def call() -> np.ndarray:
        ids = tokenizer(read, truncation=True, max_length=256)["input_ids"]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        rows = np.empty((len(ids), loaded.config.d_model), np.float32)
        with torch.inference_mode():
            for first in range(0, len(order), batch_size):
                batch = order[first : first + batch_size]
                padded = tokenizer.pad({"input_ids": [ids[row] for row in batch]}, return_tensors="pt")
                states = loaded(padded["input_ids"], attention_mask=padded["attention_mask"]).last_hidden_state
                mask = padded["attention_mask"][:, :, None]
                rows[batch] = ((states * mask).sum(1) / mask.sum(1)).numpy()
        return rows

    return call


def main(settings: Settings) -> None:
    """Time both and print the table."""
    pairs = {
        "store": {"write_store": "embedding:fresh_store", "sentence-transformers": "embedding:encode"},
        "t5": {"T5Encoder": "embedding:ours", "transformers, torch": "embedding:torch_states"},
    }
    contenders = pairs[settings.what]
    case: dict[str, Any] = {name: getattr(settings, name) for name in ("model", "data", "texts", "batch_size")}
    case["texts"] = texts = len(_texts(settings.data, settings.texts))
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        if settings.what == "store":
            case["folder"] = str(whole)
        found = compare(contenders, case, rounds=settings.rounds, calls=settings.calls)
        mine, peer = (found[name] for name in contenders)
        print_table(
            f"{texts:,} texts, batches of {settings.batch_size}; speed of the first / the second: "
            f"{peer.seconds / mine.seconds:.2f}",
            ["", "texts/s", "s", "first, s", "peak MB"],
            [
                [
                    name,
                    f"{texts / t.seconds:,.0f}",
                    f"{t.seconds:.2f}",
                    f"{t.first_seconds:.2f}",
                    f"{t.peak_bytes / 1e6:,.0f}",
                ]
                for name, t in found.items()
            ],
        )
        if settings.what == "store":
            print(killed_and_resumed(case, whole, killed))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
