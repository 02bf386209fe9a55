"""What a choice is made of: its groups, its flagged rows, its near-duplicates, each against the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from deft_tsds.report.view import ArmView, RunView
from deft_tsds.runs import track

NEAR_DUPLICATE_COSINE = 0.95
_BLOCK = 1024
_MOST_COSINES = 1_000_000_000
_MOST_GROUPS = 24


@dataclass(frozen=True)
class Share:
    """A share of what an arm chose: the mean over seeds, with the least and the most of them."""

    mean: float
    low: float
    high: float
    ratio: float | None
    """Against the same share of the pool; None where the pool has none."""

    @property
    def varies(self) -> bool:
        """Whether the seeds differ at all."""
        return self.high > self.low


@dataclass(frozen=True)
class ShareRow:
    """One property: its share of the pool, and of what each arm chose."""

    name: str
    count: int | None
    """Rows of the pool that have it; None where it is a property of a set and not of a row."""
    pool: float
    arms: tuple[Share, ...]


def group_shares(view: RunView) -> tuple[ShareRow, ...]:
    """Share of each group, the largest group of the pool first; beyond 24 groups the small ones are one row."""
    groups = np.array([group or "(no group)" for group in view.pool.groups])
    names, labels_N, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    kept, rest = order[:_MOST_GROUPS], order[_MOST_GROUPS:]
    rows = [_row(view.arms, str(names[group]), labels_N == group) for group in kept]
    if rest.size:
        rows.append(_row(view.arms, f"({rest.size} smaller groups)", np.isin(labels_N, rest)))
    return tuple(rows)


def flag_shares(view: RunView) -> tuple[ShareRow, ...]:
    """Share of rows that carry each flag."""
    return tuple(_row(view.arms, name, has_N) for name, has_N in view.pool.flags.items())


def largest(rows: Sequence[ShareRow]) -> float:
    """The largest share in these rows, which the bars are scaled to; 1 where all are 0."""
    return max((share for row in rows for share in (row.pool, *(arm.mean for arm in row.arms))), default=0.0) or 1.0


def near_duplicate_shares(view: RunView, *, key: jax.Array) -> ShareRow | None:
    """Share of chosen rows that have another chosen row at cosine >= 0.95; None without embeddings.

    Args:
      view: the run.
      key: a PRNG key, used only where a set is too large to be measured whole.
    """
    embeddings_NxD = view.embeddings_NxD
    if embeddings_NxD is None:
        return None
    everything = np.arange(len(view.pool))
    pool = near_duplicate_share(embeddings_NxD, everything, key=key)
    runs = [(arm, selection) for arm in view.arms for selection in arm.selections.values()]
    measured: dict[str, list[float]] = {arm.name: [] for arm in view.arms}
    for arm, selection in track(runs, "near-duplicates"):
        indices = np.asarray(selection.indices)
        same = indices.size == everything.size and np.array_equal(np.sort(indices), everything)
        measured[arm.name].append(pool if same else near_duplicate_share(embeddings_NxD, indices, key=key))
    shares = tuple(_share(values, pool) for values in measured.values())
    return ShareRow("near-duplicate mass, measured", None, pool, shares)


def near_duplicate_share(
    embeddings_NxD: np.ndarray, indices: np.ndarray, *, key: jax.Array, threshold: float = NEAR_DUPLICATE_COSINE
) -> float:
    """Share of `indices` that have another entry of `indices` at cosine >= `threshold`.

    Exact up to about 31,000 entries, in blocks; above that, a random sample of the entries is compared with all of them
    (at most 10^9 cosines), which is unbiased. An index that occurs twice is its own near-duplicate.

    Args:
      embeddings_NxD: float32, rows of unit length.
      indices: int [n], rows of the pool.
      key: a PRNG key for the sample.
      threshold: the cosine from which two rows count as near-duplicates.
    """
    points_nxD = np.asarray(embeddings_NxD[indices], dtype=np.float32)
    size = probes = len(points_nxD)
    if size * size > _MOST_COSINES:
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        points_nxD = points_nxD[rng.permutation(size)]  # the first rows are now a random sample
        probes = _MOST_COSINES // size
    has_other_n = np.zeros(size, dtype=bool)
    for start in range(0, probes, _BLOCK):
        stop = min(start + _BLOCK, probes)
        close = points_nxD[start:stop] @ points_nxD[start:].T >= threshold
        np.fill_diagonal(close, False)
        # Pairs with earlier rows were seen from their side.
        has_other_n[start:stop] |= close.any(axis=1)
        has_other_n[start:] |= close.any(axis=0)
    return float(has_other_n[:probes].mean())


def _row(arms: Sequence[ArmView], name: str, has_N: np.ndarray) -> ShareRow:
    pool = float(has_N.mean())
    shares = [
        _share([float(has_N[np.asarray(selection.indices)].mean()) for selection in arm.selections.values()], pool)
        for arm in arms
    ]
    return ShareRow(name, int(has_N.sum()), pool, tuple(shares))


def _share(values: Sequence[float], pool: float) -> Share:
    mean = float(np.mean(values))
    return Share(mean, min(values), max(values), mean / pool if pool > 0 else None)
