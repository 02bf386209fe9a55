"""One set of searches, clusterings and selections, the same in this process and in processes on meshes of devices.

    python tests/mesh_run.py INPUTS.npz OUT.npz [--devices 8] [--accelerated] [--process 0 --port 99]

What is chosen and found goes to OUT, of process i to OUT with i in its name.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data" / "domain"
PROCESSES = 2


@functools.cache
def inputs() -> Path:
    """Embeddings of real text with exact copies and near-copies in them, and queries; N divides by no mesh."""
    import gzip
    import json

    from deft_tsds.embed.lexical import Lexical

    rng = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(400)])
    texts = [" ".join(rng.choice(words[:: 1 + number % 7], 9)) for number in range(2000)]
    asked = [" ".join(rng.choice(words[::3], 9)) for _ in range(40)]
    if SHARED.is_dir():

        def read(name: str, count: int) -> list[str]:
            with gzip.open(SHARED / name, "rt") as file:
                return [json.loads(line)["text"] for line, _ in zip(file, range(count), strict=False)]

        texts, asked = read("domain_pool.jsonl.gz", 2000), read("domain_target_sciie.jsonl.gz", 40)
    encoder = Lexical(dimension=48, max_features=4096, power_iterations=1).fit(texts, key=jax.random.key(0))
    rows_NxD = encoder.encode(texts)
    copied = rng.choice(len(rows_NxD), 331, replace=False)
    rows_NxD = np.concatenate([rows_NxD, rows_NxD[copied]])[rng.permutation(len(rows_NxD) + 331)]
    near = rng.choice(len(rows_NxD), 200, replace=False)
    rows_NxD[near[:100]] = rows_NxD[near[100:]] + 1e-5 * rng.standard_normal((100, rows_NxD.shape[1]))
    folder = Path(tempfile.mkdtemp())
    np.save(folder / "candidates.npy", rows_NxD.astype(np.float32))
    np.save(folder / "queries.npy", encoder.encode(asked))
    np.save(folder / "groups.npy", rng.integers(3, size=len(rows_NxD)))
    return folder


@functools.cache
def on_one_device() -> dict[str, np.ndarray]:
    """The results of a process with one device."""
    found = inputs() / "one.npz"
    finish(start(found))
    return dict(np.load(found))


def assert_equal_to_one(found: Path, *, densities: float = 0.0) -> None:
    """Every id, label and bit, but for densities, and what follows from them, within a share of them."""
    for name, expected in on_one_device().items():
        result = np.load(found)[name]
        if densities and name.startswith(("density", "scores-tsds")):
            np.testing.assert_allclose(result, expected, rtol=densities, err_msg=name)
        else:
            np.testing.assert_array_equal(result, expected, err_msg=name)


def start(out: Path, *options: str) -> subprocess.Popen:
    """The same in a process of its own."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, str(inputs()), str(out), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes: subprocess.Popen) -> None:
    """Wait for processes that must succeed."""
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output


def results(folder: Path) -> dict[str, Any]:
    """Everything that must not depend on the mesh, by name."""
    import deft_tsds as dt
    from deft_tsds.arrays import Rows
    from deft_tsds.running.processes import alone

    class Counted(Rows):
        """The candidates, and how many rows of them were read."""

        read = 0

        @property
        def shape(self) -> tuple[int, int]:
            return candidates_NxD.shape

        def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
            self.read += len(candidates_NxD[rows])
            return candidates_NxD[rows]

    candidates_NxD = np.load(folder / "candidates.npy", mmap_mode="r")
    queries_MxD, groups_N = np.load(folder / "queries.npy"), np.load(folder / "groups.npy")
    n, key, found = len(candidates_NxD), jax.random.key(3), {}
    searches: list[tuple[Any, int]]
    searches = [("euclidean", 7), ("euclidean", 1500), ("cosine", 60), ("dot", 60), ("cosine", n)]
    for metric, k in searches:
        search: Any = dt.nearest_neighbors(queries_MxD, candidates_NxD, k, metric=metric, block_bytes=2**17)
        found[f"{metric}-{k}-distances"], found[f"{metric}-{k}-indices"] = search
    for spherical in (False, True):
        clusters = dt.kmeans(candidates_NxD, 9, key=key, spherical=spherical, tolerance=0, max_iterations=20)
        found[f"labels-{spherical}"], found[f"iterations-{spherical}"] = clusters.labels_N, clusters.iterations
        if not spherical:
            found["centroids"] = clusters.centroids_KxD
    # More clusters than distinct points: ties everywhere, and clusters that lose all their points.
    found["labels-many"] = dt.kmeans(
        np.repeat(candidates_NxD[:30], 40, axis=0), 33, key=key, max_iterations=20
    ).labels_N
    shortlist_U = np.arange(0, n, 2)
    found["density-shortlist"] = dt.kernel_density(candidates_NxD, rows=shortlist_U, bandwidth=0.75)
    found["density-pool"] = dt.kernel_density(candidates_NxD, rows=shortlist_U, bandwidth=0.75, pool=candidates_NxD)
    found["density-all"] = dt.kernel_density(np.array(candidates_NxD[:600]), bandwidth=0.75)

    selectors = {
        "tsds": dt.selectors.TSDS(neighbors=200),
        "tsds-pool": dt.selectors.TSDS(neighbors=150, density_over="pool", bandwidth="auto", fill="nearest"),
        "tsds-filled": dt.selectors.TSDS(neighbors=20, alpha=0.9, grow=False, fill="nearest"),
        "deft": dt.selectors.DEFT(base=0.1, easy=0.3, hard=0.4, random=0.3),
        "nearest": dt.selectors.Nearest(),
        "round-robin": dt.selectors.RoundRobin(),
        "less": dt.selectors.LESS(),
    }
    for name, selector in selectors.items():
        chosen = dt.select(candidates_NxD, queries_MxD, selector=selector, budget=700, key=key, groups=groups_N)
        found[f"ids-{name}"], found[f"scores-{name}"] = chosen.indices, chosen.scores

    if jax.process_index() == 0:  # while the others go on
        with alone():
            assert dt.nearest_neighbors(queries_MxD, queries_MxD, 1).distances_MxK.max() == 0
    bad_NxD = np.array(candidates_NxD)
    bad_NxD[-1, 0] = np.nan
    for function in (dt.nearest_neighbors, lambda *_: dt.kmeans(bad_NxD, 2, key=key)):
        with pytest.raises(ValueError, match="row"):
            function(queries_MxD, bad_NxD, 1)

    counted: Any = Counted()
    dt.nearest_neighbors(queries_MxD, counted, 10)
    dt.kmeans(counted, 9, key=key, max_iterations=2)
    # Four readings of each row here: both functions look for bad rows first. k-means reads by whole blocks.
    assert counted.read <= 5 * n / jax.process_count() + 2048, counted.read
    return found


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("inputs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--accelerated", action="store_true", help="as if the devices were accelerators")
    parser.add_argument("--process", type=int)
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)
    if options.process is not None:
        jax.distributed.initialize(
            f"127.0.0.1:{options.port}",
            num_processes=PROCESSES,
            process_id=options.process,
            heartbeat_timeout_seconds=500,  # a machine with other work may stop a process for long
        )
    assert jax.device_count() == options.devices * (1 if options.process is None else PROCESSES)

    from deft_tsds.geometry import density, kmeans_programs, neighbors

    # So small that every device of a mesh has something to do.
    kmeans_programs.BLOCK_ROWS, density._POOL_ROWS, density._DEVICE_BLOCK = 128, 500, 300
    neighbors._CHUNK, neighbors._DEVICE_CHUNK = 128, 512
    if options.accelerated:
        jax.default_backend = lambda: "gpu"
    np.savez(options.out, **results(options.inputs))


if __name__ == "__main__":
    _main()
