"""What may be changed about a targeted selection: the number of candidates, of queries, of near-duplicates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from deft_tsds.arrays import check_count, check_real, normalize_rows
from deft_tsds.sampling import generator_of
from deft_tsds.studies.targeted import Labelled

_LETTERS = "abcdefghijklmnopqrstuvwxyz"

Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts to float32 [n, D], rows of unit length."""


@dataclasses.dataclass(frozen=True)
class Copies:
    """Near-duplicates that are planted in a pool: a random share of its rows, repeated with small changes."""

    share: float
    """Share of the candidates that are repeated, in (0, 1]."""
    times: int
    """How often: a repeated row stands in the pool `times` + 1 times."""
    noise: float = 0.05
    """Length of the random vector that moves the embedding of each copy, before it is scaled to length 1 again."""
    edits: int | None = None
    """Single letters of each copy's text that are changed, left out, put in or exchanged with the next; the text is
    then embedded like any other, and `noise` has no part in it. None leaves the text as it is."""

    def __post_init__(self) -> None:
        check_real(self.share, "share", above=0, at_most=1)
        check_count(self.times, "times", 1)
        check_real(self.noise, "noise", at_least=0)
        if self.edits is not None:
            check_count(self.edits, "edits", 1)


@dataclasses.dataclass(frozen=True)
class Condition:
    """How the pool or the queries of a study differ from what was read; by default not at all."""

    candidates: int | None = None
    """Only so many of the candidates, drawn at random."""
    queries: int | None = None
    """Only so many of each target's queries, drawn at random, others in each seed."""
    copies: Copies | None = None
    """Near-duplicates that are planted, after `candidates` are drawn."""


def changed(pool: Labelled, condition: Condition, *, key: jax.Array, encode: Encode | None) -> Labelled:
    """The pool under a condition. Of the same key fewer candidates are among more, and the same rows are repeated
    however often. `origins_N` of the result says which rows are copies of which.

    Raises:
        ValueError: more candidates than there are, or edits where texts cannot be embedded.
    """
    subset_key, copies_key = jax.random.split(key)
    if condition.candidates is not None:
        check_count(condition.candidates, "candidates", 1, len(pool.texts))
        order = np.asarray(jax.random.permutation(subset_key, len(pool.texts)))
        pool = pool.take(np.sort(order[: condition.candidates]))
    n, copies = len(pool.texts), condition.copies
    if copies is None:
        return dataclasses.replace(pool, origins_N=np.arange(n))
    if copies.edits is not None and encode is None:
        raise ValueError("edits need an encoder that embeds the changed texts: give one in place of `embeddings`.")
    rng = generator_of(copies_key)
    repeated = np.sort(rng.permutation(n)[: max(1, round(copies.share * n))])
    origins_C = np.tile(repeated, copies.times)
    texts, embeddings_CxD = pool.take(origins_C).texts, pool.embeddings_NxD[origins_C]
    if copies.edits is not None and encode is not None:
        texts = tuple(edited(text, copies.edits, rng) for text in texts)
        embeddings_CxD = encode(texts)
    else:
        moves_CxD = rng.standard_normal(embeddings_CxD.shape, dtype=np.float32)
        embeddings_CxD = normalize_rows(embeddings_CxD + copies.noise * normalize_rows(moves_CxD))
    everything = pool.take(np.concatenate([np.arange(n), origins_C]))
    return dataclasses.replace(
        everything,
        texts=pool.texts + texts,
        embeddings_NxD=np.concatenate([pool.embeddings_NxD, embeddings_CxD]),
        origins_N=np.concatenate([np.arange(n), origins_C]),
    )


def edited(text: str, edits: int, rng: np.random.Generator) -> str:
    """The text with so many small slips of the hand: a letter changed, left out, put in, or exchanged with the next."""
    letters = list(text)
    for _ in range(edits):
        place, slip = int(rng.integers(len(letters))), int(rng.integers(4))
        letter = _LETTERS[rng.integers(len(_LETTERS))]
        if slip == 0:
            letters[place] = letter
        elif slip == 1 and len(letters) > 1:
            del letters[place]
        elif slip == 2 and place + 1 < len(letters):
            letters[place : place + 2] = letters[place : place + 2][::-1]
        else:
            letters.insert(place, letter)
    return "".join(letters)
