"""A pool that grows: the selection of a fresh run, row for row, and the old rows are not searched again."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hashed import TEXTS, Hashed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deft_tsds as dt
from deft_tsds import incremental
from deft_tsds.embed.store import write_store
from deft_tsds.geometry.neighbors import Neighbors, nearest_neighbors
from deft_tsds.incremental import Remembered, merged, reselect
from deft_tsds.shards import Shards, open_shards

KEY = jax.random.key(0)


def save(folder: Path, rows: np.ndarray, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"part-{number}.npy", rows)


def cloud(n: int, seed: int, d: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(9).standard_normal((6, d))
    return (centers[rng.integers(6, size=n)] + 0.3 * rng.standard_normal((n, d))).astype(np.float16)


def same(found: Any, expected: Any) -> None:
    """All of two selections but how long they took and what came before."""
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.weights, expected.weights)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.reasons == expected.reasons
    other = {"seconds", "churn"}
    assert {k: v for k, v in found.info.items() if k not in other} == {
        k: v for k, v in expected.info.items() if k not in other
    }


@given(
    ends=st.lists(st.integers(1, 39), min_size=1, max_size=4, unique=True).map(sorted),
    k=st.integers(1, 40),
    metric=st.sampled_from(["euclidean", "cosine", "dot"]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_merged_neighbours_are_those_of_a_fresh_search(ends, k, metric, seed) -> None:
    """Small whole numbers: many ties, many rows that are equal, in old parts and new ones."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, (40, 3)).astype(np.float32)
    queries = rng.integers(-1, 2, (5, 3)).astype(np.float32)
    bounds = [0, *ends, 40]
    found = nearest_neighbors(queries, rows[: bounds[1]], min(k, bounds[1]), metric=metric)
    for start, stop in itertools.pairwise(bounds[1:]):
        new = nearest_neighbors(queries, rows[start:stop], min(k, stop - start), metric=metric)
        found = merged(found, new, start, k)
    expected = nearest_neighbors(queries, rows, k, metric=metric)
    np.testing.assert_array_equal(found.indices_MxK, expected.indices_MxK)
    np.testing.assert_array_equal(found.distances_MxK, expected.distances_MxK)
    assert found.indices_MxK.dtype == np.int32
    assert found.distances_MxK.dtype == np.float32


@given(data=st.data(), seed=st.integers(0, 2**16), neighbors=st.integers(1, 30), exact=st.booleans())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_call_gives_what_a_fresh_run_gives(data, seed, neighbors, exact, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("grown")
    rows = cloud(120, seed)
    if exact:
        rows = np.round(rows)  # ties
    rows[60:90] = rows[20:50]  # copies of old rows among the new
    ends = sorted(data.draw(st.sets(st.integers(30, 119), min_size=1, max_size=3)))
    queries = cloud(4, seed + 1).astype(np.float32)
    choose: dict[str, Any] = {
        "selector": dt.selectors.TSDS(neighbors=neighbors, fill="nearest"),
        "budget": 12,
        "key": KEY,
    }
    for number, (start, stop) in enumerate(zip([0, *ends], [*ends, 120], strict=True)):
        save(folder / "pool", rows[start:stop], number)
        pool = open_shards(folder / "pool")
        found = reselect(pool, queries, folder=folder / "kept", **choose)
        same(found, dt.select(pool, queries, **choose))
        same(found, dt.select(rows[:stop], queries, **choose))


class Counting(Shards):
    """Shards that count the rows they give, by slices, as a search does."""

    sliced: list[tuple[str, int]] = []  # noqa: RUF012

    def __getitem__(self, rows):
        found = super().__getitem__(rows)
        if isinstance(rows, slice):
            Counting.sliced.append((self.files[0].name, len(found)))
        return found

    def since(self, file):
        return Counting(self.files[file:], self._filesystem)


def test_old_rows_are_not_read_again(tmp_path: Path) -> None:
    queries = cloud(5, 100).astype(np.float32)
    choose: dict[str, Any] = {"selector": dt.selectors.TSDS(neighbors=40, grow=False), "budget": 20, "key": KEY}
    last = None
    for number, size in enumerate((300, 50, 70)):
        save(tmp_path / "pool", cloud(size, number), number)
        Counting.sliced.clear()
        pool = Counting(open_shards(tmp_path / "pool").files)
        found = reselect(pool, queries, folder=tmp_path / "kept", **choose)
        assert Counting.sliced == [(f"part-{number}.npy", size)]
        churn = found.info["churn"]
        assert churn["searched"] == size
        assert churn["rows"] == len(pool)
        if last is None:
            assert churn["kept"] is None
            assert "none were before" in churn["message"]
        else:
            assert churn["kept"] == len(np.intersect1d(last, found.indices))
            assert churn["gained"] == len(np.setdiff1d(found.indices, last))
            assert churn["lost"] == len(np.setdiff1d(last, found.indices))
            assert churn["gained_new"] == np.count_nonzero(found.indices >= len(pool) - size)
            assert f"Searched {size} of {len(pool)} rows; {churn['kept']} rows kept" in churn["message"]
        last = found.indices
    Counting.sliced.clear()
    again = reselect(Counting(open_shards(tmp_path / "pool").files), queries, folder=tmp_path / "kept", **choose)
    assert Counting.sliced == []
    churn = again.info["churn"]
    assert (churn["searched"], churn["kept"], churn["gained"], churn["lost"]) == (0, 20, 0, 0)


def test_more_neighbours_than_were_kept_are_searched_for(tmp_path: Path) -> None:
    queries = cloud(5, 100).astype(np.float32)
    save(tmp_path / "pool", cloud(200, 0), 0)
    pool = Remembered(open_shards(tmp_path / "pool"), tmp_path / "kept")
    for k, searched in ((10, 200), (7, 200), (30, 400), (25, 400)):
        found = nearest_neighbors(queries, pool, k)
        expected = nearest_neighbors(queries, pool.shards, k)
        np.testing.assert_array_equal(found.indices_MxK, expected.indices_MxK)
        assert pool.searched == searched
    save(tmp_path / "pool", cloud(15, 1), 1)
    pool = Remembered(open_shards(tmp_path / "pool"), tmp_path / "kept")
    nearest_neighbors(queries, pool, 12)
    found = nearest_neighbors(queries, pool, 30)  # as wide as before: still kept
    np.testing.assert_array_equal(found.indices_MxK, nearest_neighbors(queries, pool.shards, 30).indices_MxK)
    assert pool.searched == 15


def test_all_rows_of_a_small_pool_are_enough_for_any_number(tmp_path: Path) -> None:
    queries = cloud(3, 100).astype(np.float32)
    save(tmp_path / "pool", cloud(6, 0), 0)
    nearest_neighbors(queries, Remembered(open_shards(tmp_path / "pool"), tmp_path / "kept"), 6)
    save(tmp_path / "pool", cloud(20, 1), 1)
    pool = Remembered(open_shards(tmp_path / "pool"), tmp_path / "kept")
    found = nearest_neighbors(queries, pool, 15)
    np.testing.assert_array_equal(found.indices_MxK, nearest_neighbors(queries, pool.shards, 15).indices_MxK)
    assert pool.searched == 20


def changed_shard(folder: Path) -> None:
    save(folder / "pool", cloud(101, 7), 0)


def inserted_shard(folder: Path) -> None:
    np.save(folder / "pool" / "a.npy", cloud(10, 7))


def removed_shard(folder: Path) -> None:
    (folder / "pool" / "part-1.npy").unlink()


def damaged_memory(folder: Path) -> None:
    path = folder / "kept" / "neighbors-euclidean.npz"
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (changed_shard, "part-0.npy has changed, moved or gone"),
        (inserted_shard, "part-0.npy has changed, moved or gone"),
        (removed_shard, "part-1.npy has changed, moved or gone"),
        (damaged_memory, "neighbors-euclidean.npz cannot be read"),
    ],
)
def test_what_is_not_the_same_pool_is_searched_anew(change, why: str, tmp_path: Path) -> None:
    queries = cloud(3, 100).astype(np.float32)
    choose: dict[str, Any] = {"selector": dt.selectors.TSDS(neighbors=20, grow=False), "budget": 8, "key": KEY}
    for number in range(2):
        save(tmp_path / "pool", cloud(100, number), number)
    reselect(open_shards(tmp_path / "pool"), queries, folder=tmp_path / "kept", **choose)
    change(tmp_path)
    pool = open_shards(tmp_path / "pool")
    found = reselect(pool, queries, folder=tmp_path / "kept", **choose)
    same(found, dt.select(pool, queries, **choose))
    assert found.info["churn"]["searched"] == len(pool)
    assert why in found.info["churn"]["message"]


def test_other_queries_begin_anew(tmp_path: Path) -> None:
    save(tmp_path / "pool", cloud(100, 0), 0)
    for seed, searched in ((1, 100), (1, 0), (2, 100)):
        pool = Remembered(open_shards(tmp_path / "pool"), tmp_path / "kept")
        nearest_neighbors(cloud(3, seed), pool, 5)
        assert pool.searched == searched
    assert "the queries are others" in pool.said


def test_a_store_grows(tmp_path: Path) -> None:
    queries = Hashed().encode(["a query", "another"])
    choose: dict[str, Any] = {"selector": dt.selectors.Nearest(), "budget": 4, "key": KEY}
    for number, searched in ((15, 15), (23, 8)):
        store = write_store(tmp_path / "pool", TEXTS[:number], Hashed(), shard_rows=5)
        pool = Remembered(store, tmp_path / "kept")
        found = nearest_neighbors(queries, pool, 6)
        assert pool.searched == searched
        np.testing.assert_array_equal(found.indices_MxK, nearest_neighbors(queries, store, 6).indices_MxK)
        same(reselect(store, queries, folder=tmp_path / "chosen", **choose), dt.select(store, queries, **choose))


def test_an_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"candidates are ndarray: give dt\.open_shards"):
        reselect(np.ones((3, 2)), np.ones((1, 2)), folder=tmp_path, selector=dt.selectors.Nearest(), budget=1, key=KEY)  # pyright: ignore[reportArgumentType]


def test_what_is_kept_is_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "neighbors-euclidean.npz"
    np.savez(path, header=np.array([{}], object), distances=np.ones(1), indices=np.ones(1))
    kept, _, why = incremental._kept(path, {}, [])
    assert kept is None
    assert "cannot be read" in why
    assert isinstance(Neighbors(np.ones((1, 1)), np.ones((1, 1))), tuple)
