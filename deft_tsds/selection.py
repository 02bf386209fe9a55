"""The contract of selection: a `Pool` goes in, a `Selection` comes out, and `select` checks both sides.

A selector is any callable `selector(pool, *, budget, key) -> Selection`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from deft_tsds.arrays import Rows, as_matrix, check_count, check_same_width
from deft_tsds.cost import PlanCost, available_memory
from deft_tsds.geometry.mesh import as_shared_matrix, mesh_of
from deft_tsds.runs import read_json, read_jsonl, write_json, write_jsonl
from deft_tsds.sampling import check_costs, check_key

if TYPE_CHECKING:
    from deft_tsds.data.examples import Examples

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """What a selector chooses from. Made by `Pool.of`, which checks it; its arrays are read-only.

    Attributes:
        embeddings_NxD: float32, one row a candidate; may be a memory-map.
        queries_MxD: float32, one row an example of the target task, or None.
        groups_N: the task of each candidate (any labels), or None.
        costs_N: float64 > 0, what each candidate costs in training (say, tokens), or None.
        cost_budget: how much the chosen rows may cost together, or None where a number of rows is asked for.
        query_groups_M: the subtask of each query (any labels), or None.

    Example:
        >>> pool = dt.Pool.of(np.eye(4, 3), groups=["a", "a", "b", "b"])
        >>> len(pool), pool.embeddings_NxD.shape, pool.queries_MxD is None
        (4, (4, 3), True)
    """

    embeddings_NxD: np.ndarray
    queries_MxD: np.ndarray | None = None
    groups_N: np.ndarray | None = None
    costs_N: np.ndarray | None = None
    cost_budget: int | None = None
    query_groups_M: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        candidates,
        queries=None,
        *,
        groups: Sequence | np.ndarray | None = None,
        query_groups: Sequence | np.ndarray | None = None,
        costs: Sequence | np.ndarray | None = None,
        cost_budget: int | None = None,
    ) -> Pool:
        """Check the arguments and make a pool of them. Raises ValueError that names the argument and the row."""
        embeddings_NxD = as_shared_matrix(candidates, "candidates", mesh_of(None))
        n = len(embeddings_NxD)
        queries_MxD = None
        if queries is not None:
            queries_MxD = as_matrix(queries, "queries")
            check_same_width(queries_MxD, embeddings_NxD, "queries", "candidates")
        groups_N = None
        if groups is not None:
            groups_N = np.asarray(groups)
            if groups_N.shape != (n,):
                raise ValueError(f"groups has shape {groups_N.shape}: give one label for each of the {n} candidates.")
        query_groups_M = None
        if query_groups is not None:
            query_groups_M, m = np.asarray(query_groups), 0 if queries_MxD is None else len(queries_MxD)
            if query_groups_M.shape != (m,):
                shape = query_groups_M.shape
                raise ValueError(f"query_groups has shape {shape}: give one label for each of the {m} queries.")
        costs_N = None if costs is None else check_costs(costs, n)
        if cost_budget is not None:
            cost_budget = check_count(cost_budget, "cost_budget", 1)
            if costs_N is None:
                raise ValueError("cost_budget needs costs: give what each candidate costs, say its tokens.")
        return cls(
            _read_only(embeddings_NxD),
            _read_only(queries_MxD),
            _read_only(groups_N),
            _read_only(costs_N),
            cost_budget,
            _read_only(query_groups_M),
        )

    def draw_budget(self, budget: int) -> dict[str, Any]:
        """The budget as arguments of `sample`: so many rows, or, with a cost budget, so many units of cost."""
        if self.cost_budget is None:
            return {"budget": budget}
        return {"budget": self.cost_budget, "costs": self.costs_N}

    def __len__(self) -> int:
        return len(self.embeddings_NxD)


class Selector(Protocol):
    """Chooses `budget` rows of a pool.

    A class may set `needs_queries = True` to have their absence reported early, `takes_cost_budget = True` if it keeps
    to `pool.cost_budget` (then `budget` is N), and have a method `cost(pool, budget) -> PlanCost`, by which `select`
    knows before the work whether memory will hold it.
    """

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """The chosen rows, and why each was chosen. `Selection.of` fills in what a selector has nothing to say about.

    Attributes:
        indices: int64 [B], distinct rows of the pool.
        weights: float32 [B], how much each row should count in training; mean 1.
        scores: float32 [B], the selector's own score; higher is more wanted.
        reasons: one dict a row, plain JSON: a sentence under "why", and the numbers behind it.
        info: plain JSON about the whole selection. A selector that returns fewer rows than the budget says why under
            "shortfall".

    Example:
        >>> chosen = dt.Selection.of(np.array([3, 7]), weights=[1.0, 3.0])
        >>> chosen.indices, chosen.weights
        (array([3, 7]), array([0.5, 1.5], dtype=float32))
    """

    indices: np.ndarray
    weights: np.ndarray
    scores: np.ndarray
    reasons: tuple[dict[str, Any], ...]
    info: dict[str, Any]

    @classmethod
    def of(
        cls,
        indices,
        *,
        weights=None,
        scores=None,
        reasons: Sequence[dict[str, Any]] | None = None,
        info: dict[str, Any] | None = None,
    ) -> Selection:
        """Make a selection. Weights are scaled to mean 1 and default to 1, scores to 0, reasons to a plain sentence."""
        rows = np.asarray(indices)
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise ValueError(f"indices must be a vector of whole numbers, not {rows.dtype} {rows.shape}.")
        if len(rows) and rows.min() < 0:
            row = int(np.argmin(rows))
            raise ValueError(f"indices, row {row}, is {rows[row]}: rows are counted from 0.")
        for name, given in (("weights", weights), ("scores", scores), ("reasons", reasons)):
            if given is not None and len(given) != len(rows):
                raise ValueError(f"{name} has {len(given)} entries for {len(rows)} indices: give one for each.")
        weight = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
        if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.sum() > 0):
            raise ValueError("weights must be finite, >= 0, and not all 0.")
        if reasons is None:
            reasons = [{"why": "Chosen by a selector that gives no reasons."}] * len(rows)
        return cls(
            indices=rows.astype(np.int64),
            weights=(weight / weight.mean()).astype(np.float32),
            scores=np.zeros(len(rows), np.float32) if scores is None else np.asarray(scores, np.float32),
            reasons=tuple(dict(reason) for reason in reasons),
            info=dict(info or {}),
        )

    def __len__(self) -> int:
        return len(self.indices)

    def save(self, folder: str | Path) -> None:
        """Write `chosen.jsonl` (one row a choice) and then `info.json`, whose presence says that both are whole."""
        folder = Path(folder)
        (folder / "info.json").unlink(missing_ok=True)  # an older one must not vouch for the rows written now
        write_jsonl(folder / "chosen.jsonl", self._rows())
        digest = hashlib.sha256((folder / "chosen.jsonl").read_bytes()).hexdigest()
        write_json(folder / "info.json", {"count": len(self), "chosen_sha256": digest, "info": self.info})

    @classmethod
    def load(cls, folder: str | Path) -> Selection:
        """Read what `save` wrote, bit for bit. Raises ValueError for a folder that is missing, unfinished or
        changed."""
        folder = Path(folder)
        for name in ("info.json", "chosen.jsonl"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} holds no finished selection: {name} is missing. Make the selection again.")
        header = read_json(folder / "info.json")
        digest = hashlib.sha256((folder / "chosen.jsonl").read_bytes()).hexdigest()
        if not isinstance(header, dict) or header.get("chosen_sha256") != digest:
            raise ValueError(
                f"{folder}/chosen.jsonl is cut off or was changed later (info.json has another SHA-256): "
                "make the selection again."
            )
        if not isinstance(header.get("info"), dict):
            raise ValueError(f"{folder}/info.json has no object `info`: make the selection again.")
        rows = read_jsonl(folder / "chosen.jsonl")
        seen: set[int] = set()
        for number, row in enumerate(rows, start=1):
            where = f"{folder}/chosen.jsonl, line {number}"
            _check_row(row, where)
            if row["index"] in seen:
                raise ValueError(f"{where}: row {row['index']} is there already. Make the selection again.")
            seen.add(row["index"])
        return cls(
            indices=np.array([row["index"] for row in rows], np.int64),
            weights=np.array([row["weight"] for row in rows], np.float32),
            scores=np.array([row["score"] for row in rows], np.float32),
            reasons=tuple(row["reason"] for row in rows),
            info=header["info"],
        )

    def to_jsonl(self, examples: Examples, path: str | Path) -> None:
        """Write the chosen examples, a line each: the text, and beside it, under "selection", its index, weight, score
        and reason."""
        if len(self) and int(self.indices.max()) >= len(examples):
            raise ValueError(
                f"the selection names row {int(self.indices.max())}, but there are only {len(examples)} examples: give "
                "the examples of the pool that it was made from."
            )
        texts = examples.take(self.indices).rows()
        write_jsonl(path, [{**text, "selection": row} for text, row in zip(texts, self._rows(), strict=True)])

    def _rows(self) -> list[dict[str, Any]]:
        # A float32 is written as the float64 of equal value, so reading it back is exact.
        columns = zip(self.indices.tolist(), self.weights.tolist(), self.scores.tolist(), self.reasons, strict=True)
        return [{"index": i, "weight": w, "score": s, "reason": reason} for i, w, s, reason in columns]


def select(
    candidates,
    queries=None,
    *,
    selector: Selector,
    budget: int | None = None,
    key: jax.Array,
    groups: Sequence | np.ndarray | None = None,
    query_groups: Sequence | np.ndarray | None = None,
    costs: Sequence | np.ndarray | None = None,
    cost_budget: int | None = None,
    memory_budget: int | None = None,
) -> Selection:
    """Choose `budget` of the candidates, or as many as cost `cost_budget` together.

    Everything is checked before the selector starts, and what it returns is checked after.

    A budget in tokens is an argument of its own and not a kind of `budget`, since a selector that counts rows would
    take 100,000 tokens for 100,000 rows: those that keep to a cost budget say so, and `select` refuses the others.

    Args:
        candidates: [N, D] embeddings: NumPy, JAX or a memory-map.
        queries: [M, D] embeddings of examples of the target task, for selectors that need them.
        selector: `selector(pool, *, budget, key) -> Selection`, say `dt.selectors.DEFT()`.
        budget: how many to choose, 1 <= budget <= N. Give this or `cost_budget`.
        key: `jax.random.key(seed)`; the same key gives the same selection.
        groups: [N] task labels, for selectors that stratify.
        query_groups: [M] labels of the queries' subtasks, for selectors that take the best subtask.
        costs: [N] what each candidate costs, > 0; `info["cost"]` is the sum over the chosen.
        cost_budget: how much the chosen rows may cost together, never more (see `sample` for how near they come).
        memory_budget: bytes that the selector may need beyond its input; by default what the machine has available
            (`deft_tsds.cost.available_memory`). Selectors with a method `cost` are held to it.

    Returns:
        The `Selection`; its info also holds the selector's name and parameters, budget, pool size and seconds.

    Raises:
        ValueError: bad input; a memory budget that cannot hold the plan, with the table of `plan_cost`; or a selector
            that returned something else than distinct rows within the budget.

    Example:
        >>> embeddings = np.random.default_rng(0).normal(size=(100, 8))
        >>> selector = dt.selectors.DEFT(clusters=3, base=0.05)
        >>> chosen = dt.select(embeddings, selector=selector, budget=10, key=jax.random.key(0))
        >>> chosen.indices.shape, chosen.weights.shape, len(chosen.reasons)
        ((10,), (10,), 10)
    """
    pool = Pool.of(candidates, queries, groups=groups, query_groups=query_groups, costs=costs, cost_budget=cost_budget)
    name = _name(selector)
    if (budget is None) == (cost_budget is None):
        raise ValueError("give budget (a number of rows) or cost_budget (with costs), exactly one of them.")
    if cost_budget is not None and not getattr(selector, "takes_cost_budget", False):
        raise ValueError(f"{name} counts rows and knows no costs: give budget, or a selector that takes a cost_budget.")
    budget = len(pool) if budget is None else check_count(budget, "budget", 1)
    if budget > len(pool):
        raise ValueError(f"budget is {budget}, but there are only {len(pool)} candidates: lower it to at most that.")
    key = check_key(key)
    if getattr(selector, "needs_queries", False) and pool.queries_MxD is None:
        raise ValueError(
            f"{name} needs queries: give embeddings of a few examples of the target task, of the same "
            f"{pool.embeddings_NxD.shape[1]} dimensions as the candidates."
        )
    _check_memory(selector, name, pool, budget, memory_budget)

    start = time.perf_counter()
    selection = selector(pool, budget=budget, key=key)
    seconds = time.perf_counter() - start

    _check_result(selection, name, budget, pool)
    info = {
        **selection.info,
        "selector": name,
        "parameters": _parameters(selector),
        "budget" if cost_budget is None else "cost_budget": budget if cost_budget is None else pool.cost_budget,
        "candidates": len(pool),
        "chosen": len(selection),
        "seconds": seconds,
    }
    if pool.costs_N is not None:
        info["cost"] = float(pool.costs_N[selection.indices].sum())
    return dataclasses.replace(selection, info=info)


def _check_memory(selector: Any, name: str, pool: Pool, budget: int, memory_budget: int | None) -> None:
    """Refuse, before any work, what the memory cannot hold, as far as the selector says what it needs."""
    if memory_budget is not None:
        memory_budget = check_count(memory_budget, "memory_budget", 1)
    cost = getattr(selector, "cost", None)
    if not callable(cost):
        return
    plan = cost(pool, budget)
    if not isinstance(plan, PlanCost):
        raise ValueError(f"the method cost of {name} returned {type(plan).__name__}: it must return a PlanCost.")
    limit = available_memory() if memory_budget is None else memory_budget
    if limit is not None and plan.bytes > limit:
        whose = "is available on this machine" if memory_budget is None else "memory_budget allows"
        raise ValueError(
            f"{name} would need about {plan.bytes / 1e9:.3g} GB beyond its input, and {limit / 1e9:.3g} GB {whose}:\n"
            f"{plan}\nThese are upper bounds. Lower what the largest stage grows with (neighbors, queries, rows), "
            "or give a larger memory_budget, where neighbourhoods overlap much or memory may be swapped."
        )


def _check_result(selection: Any, name: str, budget: int, pool: Pool) -> None:
    """A selector may be anyone's: hold it to the contract, and name it where it breaks it."""
    n = len(pool)
    if not isinstance(selection, Selection):
        raise ValueError(f"{name} returned {type(selection).__name__}: it must return a Selection (see Selection.of).")
    rows = selection.indices
    if not (isinstance(rows, np.ndarray) and rows.ndim == 1 and rows.dtype == np.int64):
        raise ValueError(f"{name} returned indices that are not an int64 vector: make the result with Selection.of.")
    if len(rows) == 0:
        raise ValueError(f"{name} returned no rows for a budget of {budget}.")
    if rows.min() < 0 or rows.max() >= n:
        raise ValueError(
            f"{name} returned indices from {rows.min()} to {rows.max()}, but the pool has rows 0 to {n - 1}."
        )
    values, counts = np.unique(rows, return_counts=True)
    if counts.max() > 1:
        row = values[np.argmax(counts)]
        raise ValueError(f"{name} returned row {row} {counts.max()} times: give each row once, with a higher weight.")
    if pool.cost_budget is not None and pool.costs_N is not None:
        spent = float(pool.costs_N[rows].sum())
        if spent > pool.cost_budget * (1 + 1e-12):
            raise ValueError(f"{name} returned rows that cost {spent:g}, above the cost_budget of {pool.cost_budget}.")
    elif len(rows) > budget or (len(rows) < budget and "shortfall" not in selection.info):
        raise ValueError(
            f"{name} returned {len(rows)} rows for a budget of {budget}: give as many, or fewer and say why under "
            'info["shortfall"].'
        )
    for column in ("weights", "scores"):
        numbers = getattr(selection, column)
        if not (isinstance(numbers, np.ndarray) and numbers.shape == rows.shape and numbers.dtype == np.float32):
            raise ValueError(f"{name} returned {column} that are not a float32 vector of length {len(rows)}.")
        if not np.isfinite(numbers).all():
            raise ValueError(
                f"{name} returned {column} that are NaN or infinite at index {rows[~np.isfinite(numbers)][0]}."
            )
    if (selection.weights < 0).any() or abs(float(selection.weights.mean(dtype=np.float64)) - 1) > 1e-3:
        raise ValueError(f"{name} returned weights that are negative or whose mean is not 1: Selection.of scales them.")
    if len(selection.reasons) != len(rows):
        raise ValueError(f"{name} returned {len(selection.reasons)} reasons for {len(rows)} rows: give one a row.")
    for row, reason in zip(rows, selection.reasons, strict=True):
        if not (isinstance(reason, dict) and isinstance(reason.get("why"), str)):
            raise ValueError(f'{name} gave no sentence under "why" in the reason of row {row}.')
        _check_json(reason, f"the reason of row {row} that {name} gave")
    _check_json(selection.info, f"the info that {name} gave")


def _check_row(row: Any, where: str) -> None:
    """Raise ValueError for a row of `chosen.jsonl` that `Selection.save` did not write."""
    if not isinstance(row, dict) or set(row) != {"index", "weight", "score", "reason"}:
        raise ValueError(f"{where}: not a row with index, weight, score and reason. Make the selection again.")
    index, reason = row["index"], row["reason"]
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 2**63:
        raise ValueError(f"{where}: the index is {str(index)[:60]}, no row number. Make the selection again.")
    for name in ("weight", "score"):
        number = row[name]
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not abs(number) <= _LARGEST_FLOAT32:
            raise ValueError(f"{where}: the {name} is {str(number)[:60]}, no number. Make the selection again.")
    if not isinstance(reason, dict) or not isinstance(reason.get("why"), str):
        raise ValueError(f'{where}: the reason has no sentence under "why". Make the selection again.')


def _check_json(value: Any, what: str) -> None:
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what} is not plain JSON ({error}): use str, int, float, bool, None, list and dict."
        ) from error
    if not same:
        raise ValueError(
            f"{what} does not survive JSON: use lists instead of tuples, and strings as the keys of dicts."
        )


def _name(selector: Any) -> str:
    if isinstance(selector, functools.partial):
        return _name(selector.func)
    return getattr(selector, "__name__", type(selector).__name__)


def _parameters(selector: Any) -> dict[str, Any]:
    """Fields of a dataclass (and of those in it), keywords of a partial; what JSON cannot hold is written as its
    repr."""
    values: dict[str, Any] = {}
    if isinstance(selector, functools.partial):
        values = selector.keywords
    elif dataclasses.is_dataclass(selector):
        values = {field.name: getattr(selector, field.name) for field in dataclasses.fields(selector)}
    return json.loads(json.dumps(values, default=_plain))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return repr(value)


def _read_only(array: Any) -> Any:
    """A view that a selector cannot write through; the caller's array stays as it is."""
    if array is None or isinstance(array, Rows):  # rows on disk, or sparse ones, are read block by block into copies
        return array
    view = array.view()
    view.flags.writeable = False
    return view
