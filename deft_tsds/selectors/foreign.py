"""What another tool chose, as a selector: so that it is fine-tuned and judged beside the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import jax

from deft_tsds.selection import Pool, Selection

Kind = Literal["indices", "log_weights"]


@dataclass(frozen=True)
class Foreign:
    """Rows from a file: numbers of rows, or log importance weights to draw from (see `deft_tsds.data.exchange`)."""

    path: str
    """.npy, .txt or .pt; for log weights also the folder of DSIR's shards."""

    kind: Kind = "indices"
    """"indices": the rows themselves, as many as the budget, in the order of this very pool; "log_weights": one number
    a candidate, from which Gumbel top-k draws the budget."""

    repeats: Literal["refuse", "weigh"] = "refuse"
    """What to do with a row number that comes twice: an error, or a weight (draws with replacement, as the reference
    code of TSDS makes them)."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}: choose one of {', '.join(get_args(Kind))}.")

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        from deft_tsds.data.exchange import read_indices, read_log_weights  # here, since it imports the selectors

        if self.kind == "log_weights":
            return read_log_weights(self.path, candidates=len(pool), budget=budget, key=key)
        selection = read_indices(self.path, candidates=len(pool), repeats=self.repeats)
        if len(selection) > budget:
            raise ValueError(
                f"{self.path} names {len(selection)} rows, more than the budget of {budget}: raise the budget."
            )
        if len(selection) < budget:
            shortfall = f"{self.path} names {len(selection)} distinct rows, fewer than the budget of {budget}."
            selection.info["shortfall"] = shortfall
        return selection
