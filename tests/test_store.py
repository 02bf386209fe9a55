"""The store: what the encoder gives, nothing mixed, nothing damaged unseen. Kills and growth: test_store_resumed.py."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashed import TEXTS, Hashed, contents

from deft_tsds.embed import Encoder, store
from deft_tsds.embed.store import open_store, write_store
from deft_tsds.geometry.neighbors import nearest_neighbors


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


def test_the_header_is_plain_json(tmp_path: Path) -> None:
    write_store(tmp_path / "pool", TEXTS, Hashed(), shard_rows=5)
    header = json.loads((tmp_path / "pool" / "store.json").read_text())
    assert header["request"]["settings"] == {"seed": 0, "dimension": 6, "range": [1, 2]}
    for shard in header["shards"]:
        assert hashlib.sha256((tmp_path / "pool" / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
