"""A store that several processes write together: each embeds its share of the pieces, the first puts them together.

The pieces are those that one process would give to the encoder, so that the store is the same to the byte. A piece that
is on disk when a run is killed is not embedded again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds.embed import Encoder
from deft_tsds.embed.store import _ROWS_AT_ONCE, write_store
from deft_tsds.running import processes
from deft_tsds.running.files import atomic_write
from deft_tsds.runs import track


def write_shared_store(
    folder: Path, texts: Sequence[str], encoder: Encoder, *, ids: Sequence[str], shard_rows: int = 8192
) -> None:
    """`write_store` by all processes of the run: every one calls it with the same arguments.

    Args:
      folder: the folder of the store, which all processes see.
      texts: N texts.
      encoder: equal in every process.
      ids: N ids of the texts.
      shard_rows: as of `write_store`.

    Raises:
      ValueError: as `write_store`.
    """
    if processes.count() == 1 or (folder / "store.json").exists():
        if processes.is_writer():
            write_store(folder, texts, encoder, ids=ids, shard_rows=shard_rows)
        return
    rooms = folder.with_name(f"{folder.name}-pieces")
    rows = min(_ROWS_AT_ONCE, shard_rows)
    starts = range(0, len(texts), rows)
    for start in track(starts[processes.index() :: processes.count()], f"Embedding {folder.name}"):
        piece = texts[start : start + rows]
        if not (path := rooms / _name(piece)).exists():
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.save(file, encoder.encode(piece), allow_pickle=False)
    processes.barrier(f"{folder}: embedded")
    if processes.is_writer():
        write_store(folder, texts, _Embedded(encoder, rooms), ids=ids, shard_rows=shard_rows)
        shutil.rmtree(rooms)
    processes.barrier(f"{folder}: stored")


class _Embedded:
    """The encoder, as far as what it gave has been written down."""

    def __init__(self, encoder: Encoder, rooms: Path):
        self.name, self._encoder, self._rooms = encoder.name, encoder, rooms

    def settings(self) -> dict[str, Any]:
        return self._encoder.settings()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        path = self._rooms / _name(texts)
        return np.load(path, allow_pickle=False) if path.exists() else self._encoder.encode(texts)


def _name(piece: Sequence[str]) -> str:
    """Equal pieces have equal vectors, and so one file."""
    return f"{hashlib.sha256(json.dumps(list(piece)).encode()).hexdigest()[:32]}.npy"
