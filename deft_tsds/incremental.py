"""New shards arrive: a selection from all rows, for which those that were there are not searched again.

    selection = dt.reselect(dt.open_shards("pool"), queries, folder="runs/daily", selector=dt.selectors.TSDS(), ...)

The neighbours of every query among the old rows are kept in the folder. A pool whose first files are the old ones needs
a search of its new rows alone: the k nearest of all rows are among the k nearest of the old and the k nearest of the
new, and since a distance depends on its two rows only, merging them gives what a search of everything would, to the
bit. New rows have higher numbers, so that ties go to the old ones, as they must.

Densities, the plan and the draw are made anew from the merged neighbours: a density is a sum over the shortlist, and a
sum corrected by what came and went would not be the one that a fresh run rounds to. They depend on the shortlist, which
does not grow with the pool. So the selection is the one of `dt.select` on the whole pool, row for row.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deft_tsds.arrays import Rows
from deft_tsds.embed.store import Store
from deft_tsds.geometry.neighbors import Metric, Neighbors, nearest_neighbors
from deft_tsds.runs import atomic_write, read_json, write_json
from deft_tsds.selection import Selection, Selector, select
from deft_tsds.shards import Shards

FORMAT = 1


def reselect(
    candidates: Shards | Store,
    queries: Any,
    *,
    folder: str | Path,
    selector: Selector,
    budget: int | None = None,
    key: jax.Array,
    **options: Any,
) -> Selection:
    """`dt.select` from a pool that grows: the same rows, without a search of those that an earlier call has searched.

    Args:
        candidates: `Shards` or a `Store`; the pool of the last call, or that with files added at its end.
        queries: [M, D], those of the last call; others begin anew.
        folder: where neighbours and chosen rows are kept between the calls. One for each kind of selection: calls with
            other selectors or budgets would tell of a churn between them.
        selector, budget, key, options: as `dt.select`.

    Returns:
        The `Selection` of `dt.select`. Its info has "churn":
            searched: rows that were searched, and of how many ("rows"): the new ones, or all, where `message` says why;
            kept, gained, lost: rows chosen by this call and the last, by this one alone, by the last one alone; None
                where there was no last one of the same pool;
            gained_new: those gained that were not in the pool then;
            message: one sentence for people.

    Raises:
        ValueError: as `dt.select`; candidates that are not in files.

    Example:
        >>> import tempfile
        >>> points = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        >>> options = {"selector": dt.selectors.TSDS(neighbors=20), "budget": 2, "key": jax.random.key(0)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/part-0.npy", points[:40])
        ...     first = dt.reselect(dt.open_shards(folder), points[:2], folder=f"{folder}/kept", **options)
        ...     np.save(f"{folder}/part-1.npy", points[40:])
        ...     then = dt.reselect(dt.open_shards(folder), points[:2], folder=f"{folder}/kept", **options)
        >>> then.info["churn"]["searched"], then.info["churn"]["rows"]
        (20, 60)
    """
    folder = Path(folder)
    pool = Remembered(candidates, folder)
    selection = select(pool, queries, selector=selector, budget=budget, key=key, **options)
    prints = pool.shards.fingerprints()
    before = _last_chosen(folder / "chosen.json", prints)
    churn: dict[str, Any] = {"rows": len(pool), "searched": pool.searched}
    churn |= {"kept": None, "gained": None, "lost": None, "gained_new": None}
    said = [pool.said] if pool.said else []
    if before is None:
        said.append("no earlier choice from the same files to compare with")
    else:
        then, rows = before
        gained = np.setdiff1d(selection.indices, then)
        churn["kept"] = len(selection) - len(gained)
        churn["gained"], churn["lost"] = len(gained), len(then) - churn["kept"]
        churn["gained_new"] = int(np.count_nonzero(gained >= rows))
        said.append(
            f"{churn['kept']} rows kept, {churn['gained']} gained ({churn['gained_new']} of them new in the pool), "
            f"{churn['lost']} lost"
        )
    churn["message"] = f"Searched {pool.searched} of {len(pool)} rows; {'; '.join(said)}."
    write_json(
        folder / "chosen.json",
        {"format": FORMAT, "files": prints, "rows": len(pool), "chosen": selection.indices.tolist()},
    )
    selection.info["churn"] = churn
    return selection


class Remembered(Rows):
    """A pool in files whose neighbours are kept in a folder: `nearest_neighbors` asks it before it searches.

    Attributes:
        shards: the files.
        searched: rows that were searched so far.
        said: why not only new rows were; "" where they were.
    """

    checked = True

    def __init__(self, candidates: Shards | Store, folder: str | Path):
        if not isinstance(candidates, Shards | Store):
            raise ValueError(f"candidates are {type(candidates).__name__}: give dt.open_shards(...) or a store.")
        self.shards = candidates if isinstance(candidates, Shards) else candidates.files
        self.folder = Path(folder)
        self.searched, self.said = 0, ""

    @property
    def shape(self) -> tuple[int, int]:
        return self.shards.shape

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.shards[rows]

    def held(self, rows: slice | np.ndarray) -> np.ndarray | Rows:
        return self.shards.held(rows)

    def known_neighbors(self, queries_MxD: np.ndarray, k: int, metric: Metric) -> Neighbors:
        """The k nearest rows: those kept, merged with those of the files that came since; all that is then kept."""
        prints = self.shards.fingerprints()
        path = self.folder / f"neighbors-{metric}.npz"
        asked = {"format": FORMAT, "metric": metric, "queries": _hash(queries_MxD)}
        kept, files, why = _kept(path, asked, prints)
        old = sum(file.rows for file in self.shards.files[:files])
        if kept is not None and kept.distances_MxK.shape[1] < min(k, old):
            kept, files, why = None, 0, f"{k} neighbours are more than the {kept.distances_MxK.shape[1]} kept"
        if kept is None:
            self.said = f"all of them, since {why}"
            found = nearest_neighbors(queries_MxD, self.shards, k, metric=metric)
            self.searched += len(self)
        elif files < len(prints):
            new = self.shards.since(files)
            # As many as were kept, so that what is kept serves the next call as far as it served this one.
            wide = max(k, kept.distances_MxK.shape[1])
            found = merged(kept, nearest_neighbors(queries_MxD, new, min(wide, len(new)), metric=metric), old, wide)
            self.searched += len(new)
        else:
            found = kept
        if found is not kept:
            _keep(path, found, {**asked, "files": prints})
        return Neighbors(
            np.ascontiguousarray(found.distances_MxK[:, :k]), np.ascontiguousarray(found.indices_MxK[:, :k])
        )


def merged(old: Neighbors, new: Neighbors, first_new: int, k: int) -> Neighbors:
    """The k nearest of old rows and new ones, which come after them: row 0 of `new` is row `first_new` of all.

    Args:
        old: distances [M, A] and indices, of which the first A or more nearest old rows are known.
        new: distances [M, B] and indices among the new rows.
        first_new: the number of old rows.
        k: how many to return; A + B where that is fewer.
    """
    distances_MxW = np.hstack([old.distances_MxK, new.distances_MxK])
    indices_MxW = np.hstack([old.indices_MxK, new.indices_MxK + np.int32(first_new)])
    # Stable: either side is in order, ties by lower index, and every index on the left is below those on the right.
    order_MxK = np.argsort(distances_MxW, axis=1, kind="stable")[:, :k]
    return Neighbors(np.take_along_axis(distances_MxW, order_MxK, 1), np.take_along_axis(indices_MxW, order_MxK, 1))


def _keep(path: Path, found: Neighbors, header: dict[str, Any]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, distances=found.distances_MxK, indices=found.indices_MxK, header=np.array(json.dumps(header)))


def _kept(path: Path, asked: dict[str, Any], prints: list[str]) -> tuple[Neighbors | None, int, str]:
    """What is kept, of how many of the files, and "" or why nothing of it is of use."""
    if not path.exists():
        return None, 0, "none were before"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(str(arrays["header"]))
            kept = Neighbors(arrays["distances"], arrays["indices"])
            files = header.pop("files")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        return None, 0, f"{path.name} cannot be read ({error})"
    if header != asked:
        return None, 0, "the queries are others" if header.get("queries") != asked["queries"] else "the format is old"
    if files != prints[: len(files)]:
        changed = next((a for a, b in zip(files, [*prints, ""], strict=False) if a != b), files[-1])
        return None, 0, f"{json.loads(changed)[0]} has changed, moved or gone"
    return kept, len(files), ""


def _last_chosen(path: Path, prints: list[str]) -> tuple[np.ndarray, int] | None:
    """The rows that the last call chose and the rows that it chose from; None where the pool has become another."""
    if not path.exists():
        return None
    last = read_json(path)
    if not isinstance(last, dict) or last.get("format") != FORMAT or last["files"] != prints[: len(last["files"])]:
        return None
    return np.array(last["chosen"], np.int64), last["rows"]


def _hash(queries_MxD: np.ndarray) -> str:
    digest = hashlib.sha256(json.dumps(list(queries_MxD.shape)).encode())
    digest.update(np.ascontiguousarray(queries_MxD[:]).data)
    return digest.hexdigest()
