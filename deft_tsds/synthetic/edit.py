"""An edit is a sentence and its right answers; it is written once, as plain words and swaps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

# Stands for "a" or "an", whichever the next word asks for once the edit is done.
A = "a(n)"


class Edit(NamedTuple):
    """A source text and its one or two right answers, the first of which is the training target."""

    source: str
    references: tuple[str, ...]


class Swap(NamedTuple):
    """Words that the edit changes: as they are before, as they should be, and another right way if there is one."""

    before: str
    after: str
    also: str | None = None


def edit(*pieces: str | Swap) -> Edit:
    """Write a source and its references from pieces: text that stays, and swaps."""
    swaps = [piece if isinstance(piece, Swap) else Swap(piece, piece) for piece in pieces]
    source = write(*(swap.before for swap in swaps))
    target = write(*(swap.after for swap in swaps))
    other = write(*(swap.after if swap.also is None else swap.also for swap in swaps))
    return Edit(source, (target,) if other == target else (target, other))


def write(*words: str) -> str:
    """Join words to text: spaces, articles, punctuation, capital letters."""
    text = " ".join(" ".join(words).split())
    text = re.sub(r"\ba\(n\) (?=[aeiouAEIOU])", "an ", text).replace(A, "a")
    text = re.sub(r" ([.,!?:])", r"\1", text)
    return re.sub(r"(^|[.!?] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def some(rng: np.random.Generator, swaps: Sequence[Swap]) -> list[Swap]:
    """Leave each swap to be made with probability one half, at least one of them; the others are done already."""
    made = rng.random(len(swaps)) < 0.5
    made[rng.integers(len(swaps))] = True
    return [swap if keep else Swap(swap.after, swap.after) for swap, keep in zip(swaps, made, strict=True)]
