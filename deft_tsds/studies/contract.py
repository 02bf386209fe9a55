"""The contract of a selector as checks that anyone can run: the tests of this package, the matrix, one's own tests.

`dt.select` refuses a result that breaks the contract of `Selection`; this is what a selector of this package keeps
beside that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from deft_tsds.selection import Selection, select

CHANCES = ("probability", "inclusion")
"""Numbers of a reason that are probabilities."""


class ContractError(Exception):
    """A selector broke its contract; the message says where."""


def check_selection(selection: Selection, *, budget: int, candidates: int) -> None:
    """Raise ContractError unless a selection is whole: exactly the budget, distinct rows in the order of the pool,
    weights of mean 1, a sentence for each row, and probabilities that are some.

    Args:
        selection: what `dt.select` returned.
        budget: B, the number of rows asked for.
        candidates: N, the size of the pool.
    """
    rows = selection.indices
    for name in ("indices", "weights", "scores"):
        shape = getattr(selection, name).shape
        _require(shape == (budget,), f"{name} has shape {shape} for a budget of {budget}")
    _require(rows.dtype == np.int64, f"indices are {rows.dtype}, not int64")
    _require((np.diff(rows) > 0).all(), "rows are not distinct, or not in the order of the pool")
    _require(rows[0] >= 0 and rows[-1] < candidates, f"rows {rows[0]} to {rows[-1]} are not all among {candidates}")
    mean = float(selection.weights.mean(dtype=np.float64))
    _require(abs(mean - 1) < 1e-5 and (selection.weights >= 0).all(), f"weights of mean {mean}, or below 0")
    _require(np.isfinite(selection.scores).all(), "scores that are not finite")
    _require(len(selection.reasons) == budget, f"{len(selection.reasons)} reasons for {budget} rows")
    for row, reason in zip(rows.tolist(), selection.reasons, strict=True):
        why = reason["why"]
        _require(len(why) > 10 and why.endswith("."), f"row {row}: {why!r} is no sentence")
        for name in CHANCES:
            if name in reason:
                _require(0 <= reason[name] <= 1 + 1e-9, f"row {row}: {name} is {reason[name]}")
        # A row that was drawn could be drawn.
        _require(reason.get("inclusion", 1) > 0 or "filled" in reason, f"row {row} had no chance and was drawn")
    _require(selection.info["seconds"] >= 0, f"seconds is {selection.info['seconds']}")


def check_selector(
    candidates: Any,
    queries: Any,
    *,
    selector: Any,
    budget: int,
    key: jax.Array,
    groups: Sequence[Any] | np.ndarray | None = None,
) -> Selection:
    """Choose twice with the same key; raise ContractError unless both choices are whole and the same, bit for bit.

    Args: as `dt.select`, of which also the errors are.

    Returns:
        The choice.
    """
    first, second = (
        select(candidates, queries, selector=selector, budget=budget, key=key, groups=groups) for _ in range(2)
    )
    check_selection(first, budget=budget, candidates=len(candidates))
    for name in ("indices", "weights", "scores"):
        same = getattr(first, name).tobytes() == getattr(second, name).tobytes()
        _require(same, f"the same key gave other {name}")
    _require(first.reasons == second.reasons, "the same key gave other reasons")
    return first


def _require(holds: Any, what: str) -> None:
    if not holds:
        raise ContractError(what)
