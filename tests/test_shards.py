"""Pools in files: what is read is what was written, wherever it lies; damage is named; memory stays bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from hashed import TEXTS, Hashed

import deft_tsds as dt
from deft_tsds import shards as module
from deft_tsds.arrays import Rows, ahead, as_matrix
from deft_tsds.embed.store import write_store
from deft_tsds.shards import Shards, finite, float16_to_float32, open_shards

SIZES = (5, 1, 7, 4)


def write(folder: Path, dtype: str = "float16", sizes=SIZES, d: int = 6, seed: int = 0) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((size, d)).astype(dtype) for size in sizes]
    for number, part in enumerate(parts):
        np.save(folder / f"part-{number}.npy", part)
    return np.concatenate(parts).astype(np.float32)


def in_memory(folder: Path, name: str) -> str:
    """The same files in fsspec's object store in memory."""
    store = fsspec.filesystem("memory")
    url = f"memory://{name}"
    if store.exists(f"/{name}"):
        store.rm(f"/{name}", recursive=True)
    for path in sorted(folder.iterdir()):
        store.pipe_file(f"/{name}/{path.name}", path.read_bytes())
    return url


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest):
    """From a folder to the path that is opened: itself, or an object store's."""
    return (lambda folder: folder) if request.param == "disk" else (lambda folder: in_memory(folder, "pool"))


ROWS = [
    slice(None),
    slice(3, 5),
    slice(2, 15),
    slice(5, 6),
    slice(4, 4),
    slice(1, None, 4),
    slice(-3, None),
    np.array([16, 0, 5, 5, 7]),
    np.array([], int),
]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_rows_are_read_as_from_an_array(rows, dtype: str, place, tmp_path: Path) -> None:
    written = write(tmp_path / "pool", dtype)
    pool = open_shards(place(tmp_path / "pool"))
    assert pool.shape == written.shape
    assert len(pool) == len(written)
    read = pool[rows]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, written[rows])
    np.testing.assert_array_equal(pool.held(rows)[:], written[rows])


def test_float16_is_held_in_half_the_bytes(tmp_path: Path) -> None:
    written = write(tmp_path / "pool")
    held = open_shards(tmp_path / "pool").held(np.array([3, 9]))
    assert isinstance(held, Rows)
    assert held.shape == (2, 6)
    np.testing.assert_array_equal(held[np.array([1])], written[[9]])
    np.testing.assert_array_equal(as_matrix(held, "held")[0:1], written[[3]])


def test_files_may_differ_in_dtype_and_come_by_number(tmp_path: Path) -> None:
    parts = [np.full((2, 3), n, dtype) for n, dtype in ((2, "float16"), (10, "float64"), (11, "float32"))]
    for part in parts:
        np.save(tmp_path / f"part-{int(part[0, 0])}.npy", part)
    (tmp_path / "notes.txt").write_text("not a shard")
    pool = open_shards(tmp_path)
    np.testing.assert_array_equal(pool[:][:, 0], [2, 2, 10, 10, 11, 11])
    np.testing.assert_array_equal(pool.held(slice(1, 3))[:][:, 0], [2, 10])
    assert [len(block) for block in pool.blocks()] == [2, 2, 2]


def test_one_file_is_a_pool(place, tmp_path: Path) -> None:
    written = write(tmp_path / "pool", sizes=(9,))
    pool = open_shards(str(place(tmp_path / "pool")) + "/part-0.npy")
    np.testing.assert_array_equal(pool[2:5], written[2:5])


def test_a_store_is_opened_as_its_header_lists_it(place, tmp_path: Path) -> None:
    store = write_store(tmp_path / "pool", TEXTS, Hashed(), shard_rows=5)
    np.save(tmp_path / "pool" / "a-stray.npy", np.ones((3, 6), np.float32))
    pool = open_shards(place(tmp_path / "pool"))
    np.testing.assert_array_equal(pool[:], store.array())
    assert pool.fingerprints() == store.files.fingerprints()


def test_every_finite_float16_is_converted_exactly() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(-1, 1)
    every = every[np.isfinite(every[:, 0])]
    out = np.empty(every.shape, np.float32)
    with ThreadPoolExecutor(1) as thread:  # where a library may have told the processor to drop subnormal numbers
        thread.submit(float16_to_float32, every, out).result()
    np.testing.assert_array_equal(out.view(np.int32), every.astype(np.float32).view(np.int32))


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_float16_that_is_not_finite_is_seen(bad: float) -> None:
    rows = np.full((3, 2), 65504, np.float16)
    rows[0] = -65504
    assert finite(rows)
    rows[2, 1] = bad
    assert not finite(rows)
    assert finite(rows[:0])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("read", [lambda p: p[:], lambda p: p[8:10], lambda p: p[np.array([9, 1])]], ids=range(3))
def test_a_bad_row_is_named_where_it_is_read(read, dtype: str, place, tmp_path: Path) -> None:
    write(tmp_path / "pool", dtype)
    path = tmp_path / "pool" / "part-2.npy"
    rows = np.load(path)
    rows[3, 1] = np.nan
    np.save(path, rows)
    pool = open_shards(place(tmp_path / "pool"))
    np.testing.assert_array_equal(pool[:3].shape, (3, 6))
    with pytest.raises(ValueError, match=r"part-2\.npy, row 3 \(9 of the pool\), has a NaN or infinite value: repair"):
        read(pool)
    with pytest.raises(ValueError, match=r"part-2\.npy, row 3 \(9 of the pool\)"):
        dt.nearest_neighbors(np.ones((2, 6)), pool, 3)


def test_a_row_too_long_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 3), 1e30))
    with pytest.raises(ValueError, match=r"row 0 .*has a norm above 1e"):
        open_shards(tmp_path)[:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: p.write_bytes(p.read_bytes()[:-2]),
            r"part-1\.npy has \d+ bytes where its header .* cut off or damaged",
        ),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "cut off or damaged"),
        (lambda p: p.write_bytes(b""), r"part-1\.npy is no \.npy file"),
        (lambda p: p.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'"), r"is no \.npy file"),
        (lambda p: np.save(p, np.ones((2, 5), np.float16)), "has 5 dimensions and .*part-0.npy 6: embed all"),
        (lambda p: np.save(p, np.ones(6, np.float16)), r"has shape \(6,\)"),
        (lambda p: np.save(p, np.ones((0, 6), np.float16)), r"has shape \(0, 6\)"),
        (lambda p: np.save(p, np.ones((2, 6), int)), "has dtype int64: give float16, float32 or float64"),
        (lambda p: np.save(p, np.ones((2, 6), ">f4")), "little-endian"),
        (lambda p: np.save(p, np.asfortranarray(np.ones((2, 6), np.float16))), "column by column"),
        (lambda p: np.save(p, np.array([["a"]], object), allow_pickle=True), "has dtype object"),
    ],
)
def test_what_is_no_shard_is_refused(damage, message: str, place, tmp_path: Path) -> None:
    write(tmp_path / "pool")
    damage(tmp_path / "pool" / "part-1.npy")
    path = place(tmp_path / "pool")
    with pytest.raises(ValueError, match=message):
        open_shards(path)


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", "memory://nothing/here"):
        with pytest.raises(ValueError, match=r"has no \.npy files"):
            open_shards(path)
    with pytest.raises(ValueError, match="nosuch://x cannot be opened"):
        open_shards("nosuch://x")
    with pytest.raises(ValueError, match="leave out token"):
        open_shards(tmp_path, token="t")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.clear(), "no header of an embedding store"),
        (lambda h: h["shards"].pop(), "unfinished, 20 of 23 rows"),
        (lambda h: h["shards"][1].update(file="gone.npy"), "gone.npy is missing"),
        (lambda h: h["shards"][1].update(file="../../etc/passwd"), "passwd is missing, but"),
        (lambda h: h["shards"][1].update(bytes=7), "bytes instead of 7"),
    ],
)
def test_a_header_that_is_not_right(change, message: str, tmp_path: Path) -> None:
    write_store(tmp_path / "pool", TEXTS, Hashed(), shard_rows=5)
    path = tmp_path / "pool" / "store.json"
    header = json.loads(path.read_text())
    change(header)
    path.write_text(json.dumps(header))
    with pytest.raises(ValueError, match=message):
        open_shards(tmp_path / "pool")


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    write(tmp_path / "pool")
    pool, far = open_shards(tmp_path / "pool"), open_shards(in_memory(tmp_path / "pool", "shrinks"))
    (tmp_path / "pool" / "part-0.npy").unlink()
    fsspec.filesystem("memory").pipe_file("/shrinks/part-0.npy", b"short")
    for each in (pool, far):
        with pytest.raises(ValueError, match="changed since it was opened"):
            each[:]


def test_rows_far_apart_are_asked_for_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write(tmp_path / "pool", sizes=(400,))
    for name, size in (("_GAP_BYTES", 120), ("_RANGE_BYTES", 600), ("_REQUEST_BYTES", 2000)):
        monkeypatch.setattr(module, name, size)
    pool = open_shards(in_memory(tmp_path / "pool", "apart"))
    asked: list[int] = []
    ranges = Shards._ranges

    def counted(self, file, spans):
        asked.extend(stop - start for start, stop in spans)
        return ranges(self, file, spans)

    monkeypatch.setattr(Shards, "_ranges", counted)
    rows = np.array([390, 3, 5, 3, 120, 122, 399])
    np.testing.assert_array_equal(pool[rows], written[rows])
    assert sorted(asked) == [3 * 12, 3 * 12, 10 * 12]  # 3 to 5; 120 to 122; 390 to 399: ten rows are no gap
    asked.clear()
    np.testing.assert_array_equal(pool[::3], written[::3])
    assert max(asked) <= 600
    np.testing.assert_array_equal(pool[7:311], written[7:311])


class Counting(Shards):
    """Shards that count the rows they read."""

    read = 0

    def __getitem__(self, rows):
        found = super().__getitem__(rows)
        type(self).read += len(found)
        return found


def clustered(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(9).standard_normal((12, d))
    rows = (centers[rng.integers(12, size=n)] + 0.5 * rng.standard_normal((n, d))).astype(np.float16)
    rows[n // 2 : n // 2 + n // 20] = rows[: n // 20]
    return rows


def save_parts(folder: Path, rows: np.ndarray, ends: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.split(rows, ends)):
        np.save(folder / f"part-{number}.npy", part)


def test_the_selection_is_that_of_the_array_and_reads_the_pool_once(place, tmp_path: Path) -> None:
    rows = clustered(3000, 16)
    save_parts(tmp_path / "pool", rows, [100, 1500, 2999])
    queries = clustered(8, 16, seed=1).astype(np.float32)
    opened = open_shards(place(tmp_path / "pool"))
    Counting.read = 0
    pool = Counting(opened.files, opened._filesystem)
    settings = {"selector": dt.selectors.TSDS(neighbors=60, bandwidth=0.5), "budget": 40, "key": jax.random.key(1)}
    found, expected = dt.select(pool, queries, **settings), dt.select(rows, queries, **settings)
    np.testing.assert_array_equal(found.indices, expected.indices)
    assert found.reasons == expected.reasons
    searches = 1 + int(np.log2(found.info["neighbors_used"] / 60) > 0)
    assert Counting.read == searches * 3000 + 40 + found.info["shortlist"]  # and what explains the chosen rows


@pytest.mark.parametrize("selector", [dt.selectors.TSDS(neighbors=20, fill="nearest"), dt.selectors.Nearest()], ids=str)
def test_filling_up_from_shards(selector, tmp_path: Path) -> None:
    rows = clustered(600, 8)
    save_parts(tmp_path / "pool", rows, [250])
    queries, key = clustered(3, 8, seed=1).astype(np.float32), jax.random.key(0)
    pool = open_shards(tmp_path / "pool")
    found, expected = (dt.select(x, queries, selector=selector, budget=300, key=key) for x in (pool, rows))
    np.testing.assert_array_equal(found.indices, expected.indices)


@pytest.mark.parametrize("bandwidth", [0.5, "auto"])
@pytest.mark.parametrize("density_over", ["shortlist", "pool"])
def test_the_problem_is_that_of_the_array(bandwidth, density_over, tmp_path: Path) -> None:
    rows = clustered(2500, 16)
    save_parts(tmp_path / "pool", rows, [1000, 1001])
    queries = clustered(5, 16, seed=1).astype(np.float32)
    settings = {"neighbors": 300, "bandwidth": bandwidth, "density_over": density_over}
    found = dt.Problem.from_embeddings(open_shards(tmp_path / "pool"), queries, **settings)
    expected = dt.Problem.from_embeddings(rows, queries, **settings)
    for name in ("costs_MxK", "index_MxK", "shortlist_U", "next_cost_M"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.density_U, expected.density_U, rtol=1e-6)


def test_mini_batches_are_those_of_the_array(place, tmp_path: Path) -> None:
    rows = clustered(900, 8)
    save_parts(tmp_path / "pool", rows, [10, 500])
    settings = {"key": jax.random.key(3), "batch_size": 128, "max_iterations": 3}
    found = dt.kmeans(open_shards(place(tmp_path / "pool")), 5, **settings)
    expected = dt.kmeans(rows.astype(np.float32), 5, **settings)
    np.testing.assert_array_equal(found.labels_N, expected.labels_N)
    np.testing.assert_array_equal(found.centroids_KxD, expected.centroids_KxD)


def test_ahead_makes_one_more_than_is_worked_on_and_passes_errors_on() -> None:
    made: list[int] = []

    def make(item: int) -> int:
        if item == 4:
            raise ValueError("four")
        made.append(item)
        return 10 * item

    assert list(ahead(make, [])) == []
    assert list(ahead(make, range(3))) == [0, 10, 20]
    made.clear()
    results = ahead(make, range(9))
    assert next(results) == 0
    getattr(results, "close")()  # noqa: B009
    assert len(made) <= 2
    with pytest.raises(ValueError, match="four"):
        list(ahead(make, range(9)))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' account of a process")
def test_memory_does_not_grow_with_the_pool(tmp_path: Path) -> None:
    """The same search in 120 MB of float16 and in 30: what the process has of its own grows by a tenth of the rest."""
    rng = np.random.default_rng(0)
    for number in range(8):
        np.save(tmp_path / f"part-{number}.npy", rng.standard_normal((60_000, 128), np.float32).astype(np.float16))
    code = """
import sys, threading, time
import numpy as np
import deft_tsds as dt
opened = dt.open_shards(sys.argv[1])
pool = dt.Shards(opened.files[: int(sys.argv[2])])
queries = np.random.default_rng(1).standard_normal((64, 128))
dt.nearest_neighbors(queries[:2], queries, 5)
def own():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) * 1024
base, peak, done = own(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, own())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
dt.nearest_neighbors(queries, pool, 50, block_bytes=2**24)
done = True
thread.join()
print(max(0, peak - base))
"""
    small, large = (
        int(
            subprocess.run([sys.executable, "-c", code, tmp_path, n], capture_output=True, text=True, check=True).stdout
        )
        for n in ("2", "8")
    )
    gained = 6 * 60_000 * 128 * 4  # the copy that there must not be
    assert large < 200e6
    assert large - small < gained / 2
