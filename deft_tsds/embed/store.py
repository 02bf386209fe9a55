"""Embeddings on disk: written shard by shard, resumed after a kill, hashed, and never mixed.

A store is a folder with `store.json` and `shard-00000.npy`, `shard-00001.npy`, ...: float32 [rows, D] each, no pickle.
`store.json` lists the finished shards with their hashes; a shard that is not listed does not count. A store grows by
new shards alone: those that are there are never written again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds.arrays import Rows, check_count, normalize_rows
from deft_tsds.embed import Encoder
from deft_tsds.runs import atomic_write, read_json, track, write_json
from deft_tsds.shards import Shards, shards_of

FORMAT = 1
_SHARD_NAME = re.compile(r"shard-\d{5,}\.npy", re.ASCII)
# Texts handed to the encoder at once: enough to sort by length, few enough for a bar that moves.
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class Shard:
    """One finished file of a store: its name, its rows, its size in bytes and its SHA-256."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Store(Rows):
    """A complete store: N embeddings of dimension D, row i for text i. Made by `write_store` and `open_store`.

    Args:
        folder: where it lies.
        encoder: name of the encoder.
        settings: settings of the encoder.
        texts: SHA-256 of the texts, in order.
        ids: SHA-256 of the ids, in order; None where none were given.
        rows: N.
        dimension: D.
        normalized: whether each row was scaled to unit length.
        shards: the files, in order.
    """

    folder: Path
    encoder: str
    settings: dict[str, Any]
    texts: str
    ids: str | None
    rows: int
    dimension: int
    normalized: bool
    shards: tuple[Shard, ...]

    checked = True  # as it is read

    @property
    def shape(self) -> tuple[int, int]:
        return (self.rows, self.dimension)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield each shard in order as a read-only memory-map, float32 [rows, D]."""
        return self.files.blocks()

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Read some rows, by a slice or by row numbers >= 0 in any order: float32, in memory unless one shard has a
        slice whole. So a store can stand where functions read a memory-map in blocks."""
        return self.files[rows]

    @cached_property
    def files(self) -> Shards:
        """The same rows as plain files, each of them what `store.json` says."""
        files = []
        for shard in self.shards:
            path, wanted = self.folder / shard.file, (shard.rows, self.dimension)
            try:
                (file,) = shards_of([(str(path), {"size": shard.bytes, "stamp": shard.sha256})]).files
            except ValueError as error:
                raise ValueError(_damaged(path, f"it cannot be read ({error})")) from error
            if file.dtype != "<f4" or (file.rows, file.dimension) != wanted:
                found = f"{np.dtype(file.dtype)} {(file.rows, file.dimension)}"
                raise ValueError(_damaged(path, f"it is {found} instead of float32 {wanted}"))
            files.append(file)
        return Shards(files)

    def array(self) -> np.ndarray:
        """Read the whole store: float32 [N, D], in memory."""
        return self.files[np.arange(self.rows)]

    def fingerprint(self) -> str:
        """SHA-256 of the contents, in hexadecimal, from the hashes of the shards."""
        listed = [self.texts, self.ids, self.normalized, [shard.sha256 for shard in self.shards]]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    def verify(self) -> None:
        """Read every byte and compare the hashes.

        Raises:
            ValueError: a shard whose bytes have changed; it names the shard.
        """
        for shard in track(self.shards, f"Verifying {self.folder.name}"):
            if _file_hash(self.folder / shard.file) != shard.sha256:
                raise ValueError(_damaged(self.folder / shard.file, "its hash is not the one in store.json"))


def write_store(
    folder: str | Path,
    texts: Sequence[str],
    encoder: Encoder,
    *,
    ids: Sequence[str] | None = None,
    shard_rows: int = 8192,
    normalize: bool = True,
) -> Store:
    """Embed texts into a store; go on after the last finished shard where an earlier call was killed.

    Texts that begin with those of a store grow it: the new ones are embedded into new shards. (Where shards begin then
    depends on how the store grew, and so does the rounding of an encoder that looks at texts in batches.)

    Args:
        folder: the folder of the store; made if it is missing.
        texts: N texts.
        encoder: what embeds them. It is given the same pieces of `texts` in every call, resumed or not, so that a
            deterministic encoder gives the same bytes.
        ids: N ids of the texts, hashed into `store.json` so that rows cannot be mistaken for those of other examples.
        shard_rows: rows a shard: what a kill can cost.
        normalize: scale each row to unit L2 length. A row of zeros stays zero.

    Returns:
        The complete store.

    Raises:
        ValueError: no texts; ids of another number; a store in `folder` that these texts and ids do not begin with, or
            with another encoder, other settings or another shard size; a damaged shard; an encoder whose output is not
            finite float32 [n, D].
    """
    folder = Path(folder)
    check_count(shard_rows, "shard_rows", 1)
    if not texts:
        raise ValueError("texts is empty: give at least one text to embed.")
    if ids is not None and len(ids) != len(texts):
        raise ValueError(f"ids has {len(ids)} entries for {len(texts)} texts: give one id a text.")
    request = _request(texts, ids, encoder, shard_rows=shard_rows, normalize=normalize)
    finished: dict[str, Shard] = {}
    dimension, grown_at = None, []
    if (folder / "store.json").exists():
        header = _read_header(folder)
        dimension, grown_at, there = header["dimension"], header["grown_at"], header["request"]
        known = there["rows"]
        if known < len(texts):
            begin = {
                "rows": known,
                "texts": _texts_hash(texts[:known]),
                "ids": None if ids is None else _texts_hash(ids[:known]),
            }
            _refuse_other(folder, there, request | begin)
            grown_at = [*grown_at, known]
        else:
            _refuse_other(folder, there, request)
        finished = {shard.file: shard for shard in header["shards"] if (folder / shard.file).is_file()}
        for shard in finished.values():
            _check_size(folder, shard)

    pieces = [
        (name, slice(start, min(start + _ROWS_AT_ONCE, shard.stop)), shard.stop)
        for name, shard in _layout([0, *grown_at, len(texts)], shard_rows).items()
        if name not in finished
        for start in range(shard.start, shard.stop, _ROWS_AT_ONCE)
    ]
    collected: list[np.ndarray] = []
    for name, piece, end in track(pieces, f"Embedding {folder.name}"):
        rows = _encoded(encoder, texts, piece)
        if dimension not in (None, rows.shape[1]):
            raise ValueError(
                f"The encoder {encoder.name!r} gave {rows.shape[1]} dimensions after {dimension}: keep to one."
            )
        dimension = rows.shape[1]
        collected.append(normalize_rows(rows) if normalize else rows)
        if piece.stop < end:
            continue
        rows = np.concatenate(collected)
        collected.clear()
        with atomic_write(folder / name) as temporary:
            with temporary.open("wb") as file:
                np.save(file, rows, allow_pickle=False)
            shard = Shard(name, len(rows), temporary.stat().st_size, _file_hash(temporary))
        finished[name] = shard
        shards = [asdict(finished[name]) for name in sorted(finished)]
        write_json(
            folder / "store.json",
            {"request": request, "dimension": dimension, "grown_at": grown_at, "shards": shards},
        )
    return open_store(folder)


def open_store(folder: str | Path) -> Store:
    """Open a complete store and check the size of every shard (`Store.verify` checks every byte).

    Raises:
        ValueError: no store, an unfinished one, or a shard that is missing or of the wrong size.
    """
    folder = Path(folder)
    if not (folder / "store.json").is_file():
        raise ValueError(f"{folder} holds no embedding store (no store.json). Write one with write_store.")
    header = _read_header(folder)
    request, shards = header["request"], header["shards"]
    for shard in shards:
        if not (folder / shard.file).is_file():
            raise ValueError(f"{folder / shard.file} is missing. Run write_store again: it makes that shard anew.")
        _check_size(folder, shard)
    done = sum(shard.rows for shard in shards)
    if done != request["rows"]:
        raise ValueError(f"{folder} is unfinished: {done} of {request['rows']} rows. Run write_store again to go on.")
    return Store(
        folder=folder,
        encoder=request["encoder"],
        settings=request["settings"],
        texts=request["texts"],
        ids=request["ids"],
        rows=request["rows"],
        dimension=header["dimension"],
        normalized=request["normalized"],
        shards=tuple(shards),
    )


def _request(
    texts: Sequence[str], ids: Sequence[str] | None, encoder: Encoder, *, shard_rows: int, normalize: bool
) -> dict[str, Any]:
    """What a store is the answer to."""
    return {
        "format": FORMAT,
        "encoder": encoder.name,
        "settings": json.loads(json.dumps(encoder.settings())),
        "texts": _texts_hash(texts),
        "ids": None if ids is None else _texts_hash(ids),
        "rows": len(texts),
        "shard_rows": shard_rows,
        "normalized": normalize,
    }


def _layout(ends: Sequence[int], shard_rows: int) -> dict[str, slice]:
    """The shards by name: `ends` are 0, the rows at each growth, and all rows; no shard reaches over one of them."""
    spans = [
        slice(first, min(first + shard_rows, end))
        for start, end in itertools.pairwise(ends)
        for first in range(start, end, shard_rows)
    ]
    return {f"shard-{number:05d}.npy": span for number, span in enumerate(spans)}


def _encoded(encoder: Encoder, texts: Sequence[str], piece: slice) -> np.ndarray:
    rows = np.asarray(encoder.encode(texts[piece]))
    if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != piece.stop - piece.start:
        raise ValueError(
            f"The encoder {encoder.name!r} gave {rows.dtype} {rows.shape} for {piece.stop - piece.start} texts: "
            "it must give float32 [texts, D]."
        )
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        row = piece.start + int(np.argmax(bad))
        raise ValueError(
            f"The encoder {encoder.name!r} gave a NaN or infinite vector for row {row} ({texts[row][:60]!r}): drop "
            "that text or use another encoder."
        )
    return rows


def _refuse_other(folder: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = [key for key in wanted if key != "settings" and there.get(key) != wanted[key]]
    old, new = there.get("settings", {}), wanted["settings"]
    different += [f"settings.{key}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if different:
        grow = f" To grow it, give its own {there.get('rows')} texts and ids first." if "texts" in different else ""
        raise ValueError(
            f"{folder} holds embeddings of another request: {', '.join(different)} differ. Embeddings are never mixed: "
            f"choose another folder, or delete this one.{grow}"
        )


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / "store.json"
    header = read_json(path)
    try:
        if header["request"]["format"] != FORMAT:
            raise ValueError(f"{path} has format {header['request']['format']}; this version reads {FORMAT}.")
        header = {"grown_at": [], **header, "shards": [Shard(**shard) for shard in header["shards"]]}
        _check_header(header)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no header of an embedding store ({error}). Delete the folder and embed anew."
        ) from error
    for shard in header["shards"]:
        if not _SHARD_NAME.fullmatch(shard.file) or (folder / shard.file).is_symlink():
            raise ValueError(
                f"{path} names {shard.file[:80]!r}, which is no file of the store itself (shard-00000.npy and so on): "
                "nothing outside its folder is read. Copy the store whole, or embed anew."
            )
    return header


def _check_header(header: dict[str, Any]) -> None:
    """Raise TypeError for a value of another kind than `write_store` writes."""
    request = header["request"]
    texts = {"encoder": request["encoder"], "texts": request["texts"], "ids": request["ids"] or ""}
    texts |= {f"shard {n}.{key}": getattr(s, key) for n, s in enumerate(header["shards"]) for key in ("file", "sha256")}
    counts = {"rows": request["rows"], "shard_rows": request["shard_rows"], "dimension": header["dimension"]}
    counts |= {f"shard {n}.{key}": getattr(s, key) for n, s in enumerate(header["shards"]) for key in ("rows", "bytes")}
    counts |= {f"grown_at {n}": at for n, at in enumerate(header["grown_at"])}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise TypeError(f"{name} is {str(value)[:60]}, not text")
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise TypeError(f"{name} is {str(value)[:60]}, not a whole number of at least 1")
    if not isinstance(request["settings"], dict) or not isinstance(request["normalized"], bool):
        raise TypeError("settings is no object, or normalized is neither true nor false")
    for shard in header["shards"]:
        if shard.bytes < 4 * shard.rows * header["dimension"]:
            raise TypeError(f"{shard.bytes} bytes are too few for {shard.rows} rows of {header['dimension']} numbers")
    if len({shard.file for shard in header["shards"]}) < len(header["shards"]):
        raise TypeError("a shard is listed twice")
    if any(later <= earlier for earlier, later in itertools.pairwise(header["grown_at"])):
        raise TypeError("grown_at does not ascend")


def _check_size(folder: Path, shard: Shard) -> None:
    size = (folder / shard.file).stat().st_size
    if size != shard.bytes:
        raise ValueError(_damaged(folder / shard.file, f"it has {size} bytes instead of {shard.bytes}"))


def _damaged(path: Path, problem: str) -> str:
    return f"{path} is damaged: {problem}. Delete that file and run write_store again: it makes that shard anew."


def _texts_hash(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
