"""Tokenized pairs, and which of them make up the batch of each step.

The order of the examples is a Grain data set with random access: the step number *is* the input position, so that a
checkpoint at step s says what comes next. Batches hold pairs of like length and are cut to a few widths, which saves
half of the work on ordinary text and compiles a handful of programs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import grain
import jax
import numpy as np

T = TypeVar("T")

_WIDTH_STEP = 32  # batches are cut to multiples of it: more would compile more programs, fewer would compute on padding
_BATCHES_SORTED = 8  # batches whose examples are drawn together and grouped by length
_AHEAD = 2  # batches made before they are asked for


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Tokenized pairs, padded with the pad id to one width a side.

    Attributes:
      inputs_NxS: int32 prompt ids.
      labels_NxT: int32 target ids.
      weights_N: float32 weight of each pair in the loss.
      cut: number of prompts or targets that were longer than allowed.
      pad_token_id: fills the rows at the end.
      ids: the name of each pair in messages; their row numbers without it.
    """

    inputs_NxS: np.ndarray
    labels_NxT: np.ndarray
    weights_N: np.ndarray
    cut: int
    pad_token_id: int = 0
    ids: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.inputs_NxS)

    @cached_property
    def sides_Nx2(self) -> np.ndarray:
        """Tokens of each pair's prompt and target."""
        pad = self.pad_token_id
        return np.stack([(self.inputs_NxS != pad).sum(1), (self.labels_NxT != pad).sum(1)], axis=1)

    @property
    def lengths_N(self) -> np.ndarray:
        """Tokens of each pair, both sides together."""
        return self.sides_Nx2.sum(1)

    def widths(self, rows: np.ndarray) -> tuple[int, int]:
        """Widths of the two sides of a batch: the least multiples of `_WIDTH_STEP` that lose no token of `rows`."""
        longest = self.sides_Nx2[rows].max(0)
        rounded = -(-longest // _WIDTH_STEP) * _WIDTH_STEP
        return min(int(rounded[0]), self.inputs_NxS.shape[1]), min(int(rounded[1]), self.labels_NxT.shape[1])

    def batch(self, rows: np.ndarray, widths: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        """The pairs of some rows, cut or padded to `widths` (their own by default)."""
        source, target = widths or self.widths(rows)
        return {
            "inputs": _to_width(self.inputs_NxS[rows], source, self.pad_token_id),
            "labels": _to_width(self.labels_NxT[rows], target, self.pad_token_id),
            "weights": self.weights_N[rows],
        }

    def names(self, rows: np.ndarray) -> list[str]:
        """How messages call these rows."""
        numbers: list[int] = rows.tolist()
        return [str(row) if self.ids is None else self.ids[row] for row in numbers]


def _to_width(ids_BxS: np.ndarray, width: int, pad_token_id: int) -> np.ndarray:
    missing = max(width - ids_BxS.shape[1], 0)
    return np.pad(ids_BxS[:, :width], ((0, 0), (0, missing)), constant_values=pad_token_id)


def tokenize_pairs(
    tokenizer: Any,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    max_input_tokens: int,
    max_target_tokens: int,
    weights: np.ndarray | None = None,
    ids: Sequence[str] | None = None,
) -> Pairs:
    """Tokenize prompts and targets to fixed widths (the longest row, at most the given limits).

    Raises:
      ValueError: no pairs; a weight or an id for each pair is not given; a weight is negative or not finite.
    """
    if not prompts or len(prompts) != len(targets):
        raise ValueError(f"Fine-tuning needs pairs: got {len(prompts)} prompts and {len(targets)} targets.")
    if weights is None:
        weights = np.ones(len(prompts), np.float32)
    for name, given in (("weights", weights), ("ids", ids)):
        if given is not None and len(given) != len(prompts):
            raise ValueError(f"{name} has {len(given)} entries for {len(prompts)} pairs.")
    weights_N = np.asarray(weights, np.float32)
    wrong = np.flatnonzero(~(np.isfinite(weights_N) & (weights_N >= 0)))
    if len(wrong):
        raise ValueError(f"weights must be finite and not negative: row {wrong[0]} has {weights_N[wrong[0]]}.")
    sides, cut = [], 0
    for texts, limit in ((prompts, max_input_tokens), (targets, max_target_tokens)):
        rows = tokenizer(list(texts), verbose=False).input_ids  # too long a text is counted, not warned of
        cut += sum(len(row) > limit for row in rows)
        # The end-of-sequence token stays when a text is cut.
        rows = [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in rows]
        padded = np.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id, np.int32)
        for padded_row, row in zip(padded, rows, strict=True):
            padded_row[: len(row)] = row
        sides.append(padded)
    return Pairs(*sides, weights_N=weights_N, cut=cut, pad_token_id=tokenizer.pad_token_id, ids=ids)


class ExampleOrder:
    """Row numbers of the batch of each step, `order[step]` for any step: shuffled anew each epoch, without end.

    The rows of eight batches at a time are drawn by a shuffled Grain data set, sorted by length, cut into batches, and
    the batches shuffled: a batch holds pairs of like length, in random order of lengths.
    """

    def __init__(self, lengths_N: np.ndarray, batch_size: int, *, key: jax.Array):
        self._lengths_N, self._batch_size = lengths_N, batch_size
        self._seed = int(jax.random.bits(key, dtype=np.uint32))
        self._rows = grain.MapDataset.range(len(lengths_N)).seed(self._seed).shuffle().repeat()
        self._last: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __getitem__(self, step: int) -> np.ndarray:
        """int64 [batch_size]"""
        group, place = divmod(step, _BATCHES_SORTED)
        last = self._last  # one read: the thread that prefetches asks as well
        if last[0] != group:
            self._last = last = (group, self._group(group))
        return last[1][place]

    def _group(self, group: int) -> np.ndarray:
        size = _BATCHES_SORTED * self._batch_size
        rows = np.array([self._rows[position] for position in range(group * size, (group + 1) * size)])
        rows = rows[np.argsort(self._lengths_N[rows], kind="stable")].reshape(_BATCHES_SORTED, self._batch_size)
        return np.random.default_rng((self._seed, group)).permutation(rows)


class _Steps:
    """`make(step)` as a source of Grain."""

    def __init__(self, make: Callable[[int], Any], stop: int):
        self._make, self._stop = make, stop

    def __len__(self) -> int:
        return self._stop

    def __getitem__(self, index: int) -> Any:
        return self._make(index)


def ahead(make: Callable[[int], T], start: int, stop: int) -> Iterator[T]:
    """`make(step)` for start <= step < stop, in order, made in another thread before they are asked for."""
    if start >= stop:
        return iter(())
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
    return iter(grain.MapDataset.source(_Steps(make, stop))[start:].to_iter_dataset(options))
