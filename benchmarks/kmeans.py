"""k-means beside scikit-learn and faiss: iterations of Lloyd, greedy k-means++, whole fits, mini-batches.

    python benchmarks/kmeans.py                                   # N = 20k, 80k, 200k
    python benchmarks/kmeans.py --sizes 500000 --clusters 100     # the large case

"22 iterations" run from one fixed start at tolerance 0 and count all that a call does, reading and centring included;
"one of them" is a twentieth of what they take longer than 2 iterations. The data overlap (a low-rank Gaussian with
noise), so that no contender stops before: well separated clusters would end after five. "fit" goes from its own
k-means++ start to convergence at each library's own settings, on the clustered data of `measure`; faiss has no
k-means++ and no stop, so it has no fit. k-means++ of scikit-learn for many clusters is timed on 10 of them with the
same number of trials, and scaled by the number of draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import tyro
from measure import CACHE, Timing, clustered, compare, gemm_flops, print_table

DIMENSIONS = 768
ITERATIONS = 20


def overlapping(n: int, d: int) -> str:
    """A float32 [n, d] file of unit rows of decaying spectrum: Lloyd moves on for a hundred iterations."""
    path = CACHE / f"overlapping-{n}-{d}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        axes = np.random.default_rng(0).standard_normal((64, d), dtype=np.float32)
        rng = np.random.default_rng(n)
        decay = 1 / np.sqrt(1 + np.arange(64, dtype=np.float32))
        points = (rng.standard_normal((n, 64), dtype=np.float32) * decay) @ axes
        points += rng.standard_normal((n, d), dtype=np.float32)
        np.save(path, points / np.linalg.norm(points, axis=1, keepdims=True))
    return str(path)


def _start(points: np.ndarray, k: int) -> np.ndarray:
    return points[np.random.default_rng(0).choice(len(points), k, replace=False)]


def ours_iterations(path: str, k: int, iterations: int) -> Callable[[], Any]:
    import jax

    from deft_tsds import kmeans

    points = np.load(path, allow_pickle=False)
    options: dict[str, Any] = {"init": _start(points, k), "tolerance": 0, "max_iterations": iterations}
    return lambda: kmeans(points, k, key=jax.random.key(0), **options)


def sklearn_iterations(path: str, k: int, iterations: int) -> Callable[[], Any]:
    from sklearn.cluster import KMeans

    points = np.load(path, allow_pickle=False)
    options: dict[str, Any] = {"init": _start(points, k), "n_init": 1}
    model = KMeans(k, tol=0, max_iter=iterations, algorithm="lloyd", **options)
    return lambda: model.fit(points)


def faiss_iterations(path: str, k: int, iterations: int) -> Callable[[], Any]:
    import faiss

    points = np.load(path, allow_pickle=False)
    start = _start(points, k)

    def call():
        model = faiss.Kmeans(points.shape[1], k, niter=iterations, max_points_per_centroid=len(points))
        model.train(points, init_centroids=start)
        return model.index.search(points, 1)  # the labels, which the others return too

    return call


def ours_seed(path: str, k: int, few: int, trials: int) -> Callable[[], Any]:
    """The compiled seeding alone, as scikit-learn's function is: the points are centred and on the device, and their
    squared lengths known to either."""
    import importlib

    import jax

    from deft_tsds.geometry.kmeans_mesh import draws, moments, plus_plus
    from deft_tsds.geometry.mesh import candidates_mesh

    module = importlib.import_module("deft_tsds.geometry.kmeans")
    points = np.load(path, allow_pickle=False)
    matrix = module._on_device(points, module._Frame.of(points, False))
    one = candidates_mesh(jax.local_devices()[:1])

    with jax.enable_x64(True):
        squares, *_, largest = moments(matrix, mesh=one)
    given = *draws(np.random.default_rng(0), len(points), k), matrix, squares, np.asarray(largest), len(points)

    def call():
        with jax.enable_x64(True):
            return plus_plus(*given, k, mesh=one).block_until_ready()

    return call


def sklearn_seed(path: str, k: int, few: int, trials: int) -> Callable[[], Any]:
    from sklearn.cluster import kmeans_plusplus

    points = np.load(path, allow_pickle=False)
    squares = np.einsum("nd,nd->n", points, points)
    return lambda: kmeans_plusplus(points, few, random_state=0, n_local_trials=trials, x_squared_norms=squares)


def ours_fit(path: str, k: int, batch_size: int | None = None) -> Callable[[], Any]:
    import jax

    from deft_tsds import kmeans

    points = (
        np.load(path, allow_pickle=False) if batch_size is None else np.load(path, mmap_mode="r", allow_pickle=False)
    )
    return lambda: kmeans(points, k, key=jax.random.key(0), batch_size=batch_size)


def sklearn_fit(path: str, k: int, batch_size: int | None = None) -> Callable[[], Any]:
    from sklearn.cluster import KMeans, MiniBatchKMeans

    points = np.load(path, allow_pickle=False)
    options: dict[str, Any] = {"n_init": 1, "random_state": 0}
    if batch_size is None:
        model = KMeans(k, algorithm="lloyd", **options)
    else:
        model = MiniBatchKMeans(k, batch_size=batch_size, **options)
    return lambda: model.fit(points)


def main(
    sizes: tuple[int, ...] = (20_000, 80_000, 200_000),
    clusters: tuple[int, ...] = (7, 100),
    parts: tuple[Literal["iterations", "k-means++", "fit"], ...] = ("iterations", "k-means++", "fit"),
    rounds: int = 2,
):
    """Print one table.

    Args:
        sizes: numbers of points N.
        clusters: numbers of clusters K.
        parts: which of the lines.
        rounds: how often each contender runs in a fresh process; the best counts.
    """
    limit = gemm_flops()
    rows = []

    def time(what: str, peers: str, case: dict[str, Any]) -> dict[str, Timing]:
        function = what.split()[-1].replace("k-means++", "seed")
        names = {name: f"kmeans:{name}_{function}" for name in ["ours", *peers.split()]}
        return compare(names, case, rounds=rounds, calls=4 if function == "iterations" else 2)

    def add(n: int, k: int, what: str, found: dict[str, Timing], flops: float = 0, scale: float = 1) -> None:
        """One line; `scale` is what the peers' seconds are multiplied by."""
        ours, *peers = found.values()
        row = [f"{n:,}", str(k), what, f"{ours.seconds:.3f}", f"{ours.first_seconds:.2f}"]
        row += [f"{ours.peak_bytes / 2**20:.0f}", f"{ours.seconds * limit / flops:.1f}" if flops else ""]
        for timing in peers:
            seconds = scale * timing.seconds
            row += [f"{seconds:.3f}", f"{ours.seconds / seconds:.2f}", f"{timing.peak_bytes / 2**20:.0f}"]
        rows.append(row + [""] * (len(columns) - len(row)))

    columns = ["N", "K", "what", "s", "first s", "MB", "/ GEMM", "sklearn s", "ratio", "MB", "faiss s", "ratio", "MB"]
    for n in sizes:
        wide, apart = overlapping(n, DIMENSIONS), str(clustered(n, DIMENSIONS))
        for k in clusters:
            flops = 2.0 * n * DIMENSIONS * k
            if "iterations" in parts:
                many, few = (
                    time("iterations", "sklearn faiss", {"path": wide, "k": k, "iterations": count})
                    for count in (ITERATIONS + 2, 2)
                )
                add(n, k, f"{ITERATIONS + 2} iterations", many, (ITERATIONS + 2) * flops)
                one = {
                    name: replace(timing, seconds=(timing.seconds - few[name].seconds) / ITERATIONS)
                    for name, timing in many.items()
                }
                add(n, k, "one of them", one, flops)
            if "k-means++" in parts:
                trials, centres = 2 + int(np.log(k)), min(k, 10)
                case = {"path": wide, "k": k, "few": centres, "trials": trials}
                add(n, k, "k-means++", time("k-means++", "sklearn", case), trials * flops, (k - 1) / (centres - 1))
            for batch_size in (None, 4096) if "fit" in parts else ():
                what = "fit" if batch_size is None else "fit, batches of 4,096"
                add(n, k, what, time("fit", "sklearn", {"path": apart, "k": k, "batch_size": batch_size}))
    print_table(f"k-means, D = {DIMENSIONS}, float32; GEMM limit {limit / 1e9:.0f} GFLOP/s", columns, rows)


if __name__ == "__main__":
    tyro.cli(main)
