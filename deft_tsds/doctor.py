"""Is this machine fit? Versions, devices, disk, memory, threads, text; and every operation against its oracle.

The oracles are plain and slow: loops in float64 NumPy, a linear program, published values. The cases are tiny, so that
all of it takes about two seconds once the libraries are imported, nearly all of them compilation. What is asked is
not whether the code is right (the tests ask that) but whether it is right here, with this BLAS, this JAX and this
device.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import locale
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

State = Literal["ok", "note", "problem"]

LEAST_DISK, SOME_DISK = 1e9, 10e9
LEAST_MEMORY, SOME_MEMORY = 1e9, 4e9
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Finding(NamedTuple):
    """One line of the table. A note costs speed or comfort; a problem will stop a run, or spoil it."""

    name: str
    state: State
    found: str
    mend: str = ""


def machine(workdir: str | Path = "runs") -> Iterator[Finding]:
    """Look at the machine and yield what is found, one thing after another.

    Args:
      workdir: where runs will be written; the nearest folder above it that exists is looked at.
    """
    yield python()
    yield from packages()
    yield from devices()
    yield from folder(Path(workdir))
    yield memory()
    yield threads()
    yield browser()
    yield from text()


def self_tests() -> list[Finding]:
    """Every operation against its oracle."""
    with ThreadPoolExecutor(3) as several:  # most of the time is compilation, one processor's work at a time
        return list(several.map(self_test, ORACLES, ORACLES.values()))


def project() -> dict[str, Any]:
    """What deft-tsds asks for: `requires-python`, `dependencies` with extras. From the checkout's pyproject.toml where
    this is one, else from what was installed."""
    source = Path(__file__).parents[1] / "pyproject.toml"
    if source.is_file():
        declared = tomllib.loads(source.read_text(encoding="utf-8")).get("project", {})
        if declared.get("name") == "deft-tsds":
            extras = declared.get("optional-dependencies", {})
            optional = [f'{line}; extra == "{extra}"' for extra, lines in extras.items() for line in lines]
            return {"python": declared["requires-python"], "dependencies": [*declared["dependencies"], *optional]}
    installed = importlib.metadata.metadata("deft-tsds")
    return {
        "python": installed["Requires-Python"],
        "dependencies": importlib.metadata.requires("deft-tsds") or [],
    }


def python() -> Finding:
    """This Python against `requires-python`."""
    from packaging.specifiers import SpecifierSet

    here, wanted = platform.python_version(), project()["python"]
    if SpecifierSet(wanted).contains(here, prereleases=True):
        return Finding("Python", "ok", f"{here}, {sys.executable}")
    return Finding("Python", "problem", f"{here} is not {wanted}", "make the virtual environment by a newer Python")


def packages() -> Iterator[Finding]:
    """Installed versions against the bounds of the project; those of extras only where they are installed."""
    from packaging.requirements import Requirement

    good, seen = set(), set()
    for line in project()["dependencies"]:
        wanted = Requirement(line)
        extra = re.search(r"extra == ['\"]([\w-]+)", line)
        if wanted.name == "deft-tsds" or (wanted.marker and not extra and not wanted.marker.evaluate()):
            continue
        cure = f"pip install '{wanted.name}{wanted.specifier}'"
        try:
            here = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            if not extra:
                yield Finding(wanted.name, "problem", "not installed", cure)
            continue
        if wanted.specifier.contains(here, prereleases=True):
            good.add(wanted.name)
        elif line not in seen:
            said = f"{here} is not {wanted.specifier}" + (f" (extra {extra[1]})" if extra else "")
            yield Finding(wanted.name, "note" if extra else "problem", said, cure)
        seen.add(line)
    versions = []
    for name in ("deft-tsds", "jax", "jaxlib", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    if not versions or not versions[0].startswith("deft-tsds"):
        yield Finding("deft-tsds", "problem", "used from a folder and not installed", "pip install --editable .")
    yield Finding("packages", "ok", f"{len(good)} within their bounds; {', '.join(versions)}")


def devices() -> Iterator[Finding]:
    """Each device of JAX by a product on it, and accelerators that JAX does not see."""
    try:
        found = jax.local_devices()
    except RuntimeError as error:  # a platform that was asked for and is not there
        yield Finding("devices", "problem", str(error).splitlines()[0], "unset JAX_PLATFORMS, or mend the driver")
        return
    a = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    for device in found:
        name = f"device {device}"
        try:
            x = jax.device_put(a, device)
            product = np.asarray(jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST))
        except Exception as error:  # whatever a driver raises
            yield Finding(name, "problem", f"{type(error).__name__}: {error}", "look at the driver and at jax[...]")
            continue
        if not np.array_equal(product, a @ a.T):
            yield Finding(
                name, "problem", "a product of small integers is wrong", "this device, or its driver, is broken"
            )
            continue
        limit = (device.memory_stats() or {}).get("bytes_limit")
        yield Finding(name, "ok", device.device_kind + (f", {limit / 1e9:.1f} GB" if limit else ""))
    if all(device.platform == "cpu" for device in found):
        forced = os.environ.get("JAX_PLATFORMS")
        for path, kind, extra in (("/dev/nvidia0", "An NVIDIA GPU", "cuda"), ("/dev/accel0", "A TPU", "tpu")):
            if Path(path).exists():
                cure = "unset JAX_PLATFORMS" if forced else f"pip install 'deft-tsds[{extra}]'"
                yield Finding("accelerator", "note", f"{kind} is here ({path}) and JAX does not see it", cure)


def folder(workdir: Path) -> Iterator[Finding]:
    """Room, and whether files can be written, synced, renamed and named in any script."""
    where = workdir.absolute()
    while not where.exists():
        where = where.parent
    free = shutil.disk_usage(where).free
    state: State = "problem" if free < LEAST_DISK else "note" if free < SOME_DISK else "ok"
    cure = "" if state == "ok" else "free some, or give another --workdir: checkpoints of a small T5 take some 1 GB"
    yield Finding("disk", state, f"{free / 1e9:.1f} GB free at {where}", cure)
    try:
        from deft_tsds.runs import read_json, write_json

        with tempfile.TemporaryDirectory(dir=where, prefix=".doctor-") as temporary:
            path, words = Path(temporary) / "é日本.json", {"text": "é日本\u2028"}
            write_json(path, words)
            if read_json(path) != words or [item.name for item in Path(temporary).iterdir()] != [path.name]:
                raise OSError("what is read is not what was written")
    except (OSError, UnicodeError, ValueError) as error:
        yield Finding("writing", "problem", f"{where}: {error}", "give a --workdir that can be written")
    else:
        yield Finding("writing", "ok", "atomic, synced, names in UTF-8")


def memory() -> Finding:
    from deft_tsds.cost import available_memory

    available = available_memory()
    if available is None:
        return Finding("memory", "note", "the system does not say", "give `select` a memory_budget")
    state: State = "problem" if available < LEAST_MEMORY else "note" if available < SOME_MEMORY else "ok"
    cure = "" if state == "ok" else "close something; `dt.plan_cost` says what a selection needs"
    return Finding("memory", state, f"{available / 1e9:.1f} GB available", cure)


def threads() -> Finding:
    """Threads of each BLAS and OpenMP that is loaded, against the processors that this process may use."""
    from threadpoolctl import threadpool_info

    from deft_tsds.arrays import usable_cpus

    importlib.import_module("scipy.linalg")  # its own BLAS, where it has one
    cpus = usable_cpus()
    pools = [pool for pool in threadpool_info() if pool.get("num_threads")]
    if not pools:
        return Finding("threads", "note", f"{cpus} processors; no BLAS that can be asked", "")
    words = ", ".join(sorted({f"{pool['internal_api']} {pool['num_threads']}" for pool in pools}))
    if any(pool["num_threads"] > cpus for pool in pools):
        cure = f"export OMP_NUM_THREADS={cpus} OPENBLAS_NUM_THREADS={cpus}: too many threads take turns"
        return Finding("threads", "note", f"{cpus} processors; {words}", cure)
    if cpus > 1 and all(pool["num_threads"] == 1 for pool in pools):
        return Finding(
            "threads", "note", f"{cpus} processors; {words}", "unset OMP_NUM_THREADS: one thread works alone"
        )
    return Finding("threads", "ok", f"{cpus} processors; {words}")


def browser() -> Finding:
    for name in BROWSERS:
        if path := shutil.which(name):
            return Finding("browser", "ok", path)
    return Finding("browser", "note", "no Chromium: only the tests of the pages want it", "apt-get install chromium")


def text() -> Iterator[Finding]:
    """Names of files and standard output in UTF-8."""
    names = sys.getfilesystemencoding().lower()
    cure = "export LC_ALL=C.UTF-8 PYTHONUTF8=1"
    state: State = "ok" if names == "utf-8" else "problem"
    yield Finding("locale", state, f"{locale.getencoding()}; names of files in {names}", "" if state == "ok" else cure)
    shown = (sys.stdout.encoding or "none").lower()
    if shown.replace("-", "") != "utf8":
        yield Finding("output", "note", f"standard output is {shown}: tables lose their lines", cure)


def self_test(name: str, oracle: Callable[[], str]) -> Finding:
    """Run one comparison; it returns what it compared, or raises."""
    began = time.perf_counter()
    try:
        said = oracle()
    except Exception as error:  # anything is a finding here
        words = " ".join(str(error).split())
        cure = "compare the versions above with pyproject.toml; if they agree, report this with the table"
        return Finding(name, "problem", f"{type(error).__name__}: {words}"[:300], cure)
    return Finding(name, "ok", f"{said} ({time.perf_counter() - began:.2f} s)")


def _near(found: Any, expected: Any, tolerance: float, what: str) -> float:
    """The largest difference relative to the largest value; raises where it is above the tolerance."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        raise ArithmeticError(f"{what} has shape {found.shape}, expected {expected.shape}")
    off = float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
    if not off <= tolerance:
        raise ArithmeticError(f"{what} is off by {off:.3g} of its size, more than {tolerance:g}")
    return off


def _same(found: Any, expected: Any, what: str) -> None:
    if not np.array_equal(found, expected):
        raise ArithmeticError(f"{what}: {found!r}, expected {expected!r}")


def _points(n: int, d: int, seed: int) -> np.ndarray:
    """Some clusters, with exact copies among them."""
    rng = np.random.default_rng(seed)
    points_NxD = (2 * rng.normal(size=(5, d))[rng.integers(5, size=n)] + rng.normal(size=(n, d))).astype(np.float32)
    copies = 1 + n // 8
    points_NxD[n - copies :] = points_NxD[:copies]
    return points_NxD


def _distances(x_AxD: np.ndarray, y_BxD: np.ndarray) -> np.ndarray:
    """All of them, each by itself, in float64."""
    return np.linalg.norm(x_AxD[:, None].astype(np.float64) - y_BxD[None].astype(np.float64), axis=2)


def neighbors() -> str:
    from deft_tsds.geometry.neighbors import nearest_neighbors

    pool_NxD, queries_MxD = _points(400, 12, 0), _points(24, 12, 1)
    found = nearest_neighbors(queries_MxD, pool_NxD, 10)
    all_MxN = _distances(queries_MxD, pool_NxD).astype(np.float32)
    order_MxN = np.argsort(all_MxN, axis=1, kind="stable")
    _same(found.indices_MxK, order_MxN[:, :10], "ids of the neighbours")
    off = _near(found.distances_MxK, np.take_along_axis(all_MxN, order_MxN[:, :10], 1), 1e-6, "their distances")
    return f"ids equal NumPy in float64, ties included; distances to {off:.0e}"


def density() -> str:
    from deft_tsds.geometry.density import kernel_density

    points_UxD = _points(400, 12, 2)
    expected_U = np.maximum(0, 1 - (_distances(points_UxD, points_UxD) / 4.0) ** 2).sum(1)
    off = _near(kernel_density(points_UxD, bandwidth=4.0), expected_U, 1e-5, "the density")
    return f"equals NumPy in float64 to {off:.0e}"


def clusters() -> str:
    from deft_tsds.geometry.kmeans import kmeans

    points_NxD = _points(120, 6, 3)  # as many as `choice` has, whose k-means is the same program then
    start_KxD = points_NxD[:6].copy()
    found = kmeans(points_NxD, 6, key=jax.random.key(0), init=start_KxD, tolerance=0.0)
    centroids_KxD = start_KxD
    for _ in range(100):
        labels_N = (_distances(points_NxD, centroids_KxD)).argmin(1)
        moved_KxD = np.stack([points_NxD[labels_N == c].astype(np.float64).mean(0) for c in range(6)]).astype(
            np.float32
        )
        if np.array_equal(moved_KxD, centroids_KxD):
            break
        centroids_KxD = moved_KxD
    _same(found.labels_N, labels_N, "labels")
    off = _near(found.centroids_KxD, centroids_KxD, 1e-5, "centroids")
    return f"labels equal Lloyd's in a plain loop; centroids to {off:.0e}"


def transport() -> str:
    """Problem RT, the optimum of G_kde and of G_uniform, by HiGHS."""
    from scipy.optimize import linprog

    from deft_tsds.transport.problem import Problem
    from deft_tsds.transport.tsds import tsds

    m, n, alpha, scale = 3, 9, 0.6, 5.0
    pool_NxD, queries_MxD = _points(n, 3, 4), _points(m, 3, 5)
    problem = Problem.from_embeddings(pool_NxD, queries_MxD, neighbors=n, bandwidth=3.0)
    costs_MxN, rho_N = np.empty((m, n)), np.empty(n)
    np.put_along_axis(costs_MxN, problem.shortlist_U[problem.index_MxK], problem.costs_MxK.astype(np.float64), 1)
    rho_N[problem.shortlist_U] = problem.density_U
    worst = 0.0
    regularizers: list[tuple[Literal["kde", "uniform"], np.ndarray]] = [("kde", rho_N), ("uniform", np.ones(n))]
    for regularizer, weight_N in regularizers:
        # min alpha/C <r, d> / M + (1 - alpha) t, with rows of r summing to 1, and rho_j |r_ij - (1/rho_j)/Z| <= t
        scaled = np.diag(np.tile(weight_N, m))
        bound = np.full(m * n, 1 / np.sum(1 / weight_N))
        program = linprog(
            np.append(alpha / scale / m * costs_MxN.ravel(), 1 - alpha),
            A_ub=np.hstack([np.vstack([scaled, -scaled]), -np.ones((2 * m * n, 1))]),
            b_ub=np.concatenate([bound, -bound]),
            A_eq=np.hstack([np.kron(np.eye(m), np.ones(n)), np.zeros((m, 1))]),
            b_eq=np.ones(m),
            method="highs",
        )
        plan = tsds(problem, alpha=alpha, scale=scale, regularizer=regularizer)
        worst = max(worst, _near(plan.info["value"], program.fun, 1e-7, f"the optimum of {regularizer}"))
        _near(plan.mass_MxK.sum(1), problem.query_weights_M, 1e-12, "rows of the plan")
    return f"optima of kde and uniform equal a linear program's to {worst:.0e}"


def sinkhorn() -> str:
    from deft_tsds.transport import terms
    from deft_tsds.transport.objective import Objective
    from deft_tsds.transport.problem import Problem
    from deft_tsds.transport.solve import solve

    m, n, epsilon = 4, 8, 0.5
    problem = Problem.from_embeddings(_points(n, 3, 6), _points(m, 3, 7), neighbors=n)
    wanted_N = np.arange(1.0, n + 1) / (n * (n + 1) / 2)
    costs_MxN = np.empty((m, n))
    np.put_along_axis(costs_MxN, problem.shortlist_U[problem.index_MxK], problem.costs_MxK.astype(np.float64), 1)
    objective = Objective.of(cost=(1.0, terms.transport_cost), entropy=(epsilon, terms.entropy))
    plan, _ = solve(problem, objective, marginal=wanted_N)
    rows = _near(np.asarray(plan.mass_MxK).sum(1), problem.query_weights_M, 1e-6, "rows")
    columns = _near(plan.probabilities(), wanted_N, 1e-3, "columns")
    kernel_MxN, u_M = np.exp(-costs_MxN / epsilon), np.ones(m)
    for _ in range(200):
        v_N = wanted_N / (u_M @ kernel_MxN)
        u_M = problem.query_weights_M / (kernel_MxN @ v_N)
    mass_MxN = np.empty((m, n))
    np.put_along_axis(mass_MxN, problem.shortlist_U[problem.index_MxK], np.asarray(plan.mass_MxK), 1)
    _near(mass_MxN, u_M[:, None] * kernel_MxN * v_N, 1e-3, "the plan")
    return f"the plan is a plain loop's; marginals to {max(rows, columns):.0e}"


def draws() -> str:
    """The law of `sample` without replacement: pi_j = min(1, c p_j)."""
    from deft_tsds.sampling import sample

    p_N, budget, times = np.array([0.5, 0.2, 0.1, 0.1, 0.06, 0.04]), 3, 40
    low, high = 0.0, 1e3
    for _ in range(80):
        c = (low + high) / 2
        low, high = (c, high) if np.minimum(1, c * p_N).sum() < budget else (low, c)
    chance_N, counts_N = np.minimum(1, low * p_N), np.zeros(len(p_N))
    for seed in range(times):
        rows = sample(p_N, budget, key=jax.random.key(seed))
        _same(len(set(rows.tolist())), budget, "distinct rows of a draw")
        counts_N[rows] += 1
    deviation = np.sqrt(times * chance_N * (1 - chance_N)) + 1e-9
    worst = float(np.max(np.abs(counts_N - times * chance_N) / deviation))
    if worst > 4.5:
        raise ArithmeticError(f"{times} draws leave their law by {worst:.1f} standard deviations")
    return f"{times} draws within {worst:.1f} standard deviations of pi = min(1, c p)"


def choice() -> str:
    """`select` by DEFT and TSDS: the budget to the row, and the same rows for the same key."""
    from deft_tsds.selection import select
    from deft_tsds.selectors import DEFT, TSDS
    from deft_tsds.studies.contract import check_selection

    pool_NxD, queries_MxD = _points(120, 6, 8), _points(5, 6, 9)
    for selector in (DEFT(clusters=3, base=0.1), TSDS(bandwidth=2.0, neighbors=40)):
        first, again = (
            select(pool_NxD, queries_MxD, selector=selector, budget=20, key=jax.random.key(1)) for _ in range(2)
        )
        check_selection(first, budget=20, candidates=120)
        _same(again.indices, first.indices, "the rows of a second selection by the same key")
    return "DEFT and TSDS keep the contract, twice alike"


def sari() -> str:
    """The worked example of the authors' script (github.com/cocoxu/simplification)."""
    from deft_tsds.metrics import METRICS

    source = "About 95 species are currently accepted ."
    references = [
        f"{words} ." for words in ("About 95 species are currently known", "About 95 species are now accepted")
    ]
    references.append("95 species are now accepted .")
    published = {
        "About 95 you now get in .": 26.828,
        "About 95 species are now agreed .": 58.900,
        "About 95 species are currently agreed .": 50.716,
    }
    for prediction, expected in published.items():
        _near(METRICS["sari"]([prediction], [source], [references]) / 100, expected / 100, 6e-6, "SARI")
    return "the three values that its authors publish"


T5_LOGITS = (0.088162, -0.822482, -0.331273, -0.320528)
"""Logits of `t5_case` as transformers 5.23 on torch 2.13 computes them: `tests/test_doctor.py` computes them again."""


def t5_case() -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """A T5 of one layer whose weights are a formula, and source ids, mask and decoder ids."""
    from flax import nnx

    from deft_tsds.t5.model import T5, T5Config

    sizes: dict[str, Any] = {"vocab_size": 23, "d_model": 12, "d_kv": 4, "d_ff": 16, "num_heads": 3}
    config = T5Config(**sizes, num_layers=1, num_decoder_layers=1, dropout_rate=0.0)
    model = nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(params=jax.random.key(0))))
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    filled, place = [], 0
    for leaf in leaves:
        count = int(np.prod(leaf.shape))
        waves = np.sin(1.7 * (place + np.arange(count)) ** 1.1)
        values = (1.0 if len(leaf.shape) == 1 else 0.0) + 0.5 * waves.reshape(leaf.shape)
        filled.append(jnp.asarray(values.astype(np.float32)))
        place += count
    ids_BxS = np.array([[5, 9, 2, 17, 1, 0], [3, 22, 1, 0, 0, 0]], np.int32)
    decoder_ids_BxT = np.array([[0, 7, 4, 11], [0, 19, 2, 6]], np.int32)
    return nnx.merge(graph, jax.tree.unflatten(tree, filled)), ids_BxS, (ids_BxS > 0).astype(np.int32), decoder_ids_BxT


def t5_values(logits_BxTxV: np.ndarray) -> np.ndarray:
    """The few logits that are compared."""
    return np.asarray(logits_BxTxV)[[0, 0, 1, 1], [0, 3, 1, 3], [1, 22, 7, 12]]


def t5() -> str:
    from flax import nnx

    model, ids_BxS, mask_BxS, decoder_ids_BxT = t5_case()
    graph, state = nnx.split(model)
    forward = jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs))
    logits = np.asarray(forward(state, ids_BxS, mask_BxS, decoder_ids_BxT))
    off = _near(t5_values(logits), T5_LOGITS, 1e-5, "logits")
    other = np.where(mask_BxS == 1, ids_BxS, 13).astype(np.int32)  # what stands at padding must not matter
    later = decoder_ids_BxT.copy()
    later[:, -1] = 8  # nor what comes after
    changed = np.asarray(forward(state, other, mask_BxS, later))
    _near(changed[:, :-1], logits[:, :-1], 1e-6, "logits before a changed token, with other padding")
    return f"logits equal transformers' on torch to {off:.0e}; padding and later tokens change none"


ORACLES: dict[str, Callable[[], str]] = {
    "neighbours": neighbors,
    "density": density,
    "k-means": clusters,
    "problem RT": transport,
    "Sinkhorn": sinkhorn,
    "sample": draws,
    "select": choice,
    "SARI": sari,
    "T5": t5,
}


def import_everything() -> None:
    """Import what the self-tests use, so that their seconds are their own."""
    for name in ("flax.nnx", "ott.solvers.linear.sinkhorn", "scipy.optimize", "scipy.special", "sklearn", "sacrebleu"):
        importlib.import_module(name)
    for name in ("metrics", "selectors", "studies.contract", "t5.model", "transport.solve"):
        importlib.import_module(f"deft_tsds.{name}")
