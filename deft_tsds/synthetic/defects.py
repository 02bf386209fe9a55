"""What is wrong with real pools, put in on purpose and flagged: near-duplicates and wrong targets."""

from __future__ import annotations

import re

import numpy as np

from deft_tsds.synthetic.edit import Edit, pick
from deft_tsds.synthetic.words import INTERCHANGEABLE


def near_duplicates(original: Edit) -> list[Edit]:
    """All copies of an edit that differ in one interchangeable word, or end in another mark; the edit stays right."""
    copies = []
    texts = original.source, *original.references
    for table in INTERCHANGEABLE:
        for word in table:
            # A word that is twice in a sentence may be part of the edit: leave it.
            if all(len(re.findall(rf"\b{word}\b", text)) == 1 for text in texts):
                for other in table:
                    if other != word:
                        copies.append(_rewritten(original, rf"\b{word}\b", other))
    copies.append(_rewritten(original, r"[.?]$", "!"))
    return copies


def _rewritten(original: Edit, pattern: str, replacement: str) -> Edit:
    source, *references = (re.sub(pattern, replacement, text) for text in (original.source, *original.references))
    return Edit(source, tuple(references))


def unedited(rng: np.random.Generator, right: Edit, stranger: Edit) -> str:
    """The source, as if nothing were to be done."""
    return right.source


def misaligned(rng: np.random.Generator, right: Edit, stranger: Edit) -> str:
    """The target of another row of the same kind."""
    return stranger.references[0]


def corrupted(rng: np.random.Generator, right: Edit, stranger: Edit) -> str:
    """The target with one half of its words in random order."""
    words = right.references[0].rstrip(".?!").split()
    moved = np.sort(rng.permutation(len(words))[: (len(words) + 1) // 2])
    order = np.arange(len(words))
    order[moved] = np.roll(moved, int(rng.integers(1, len(moved))))
    return " ".join(words[position] for position in order) + "."


WRONG_TARGETS = (unedited, misaligned, corrupted)


def wrong_target(rng: np.random.Generator, right: Edit, stranger: Edit) -> str:
    """A target that is not an answer to the source, of one of three kinds."""
    target = pick(rng, WRONG_TARGETS)(rng, right, stranger)
    return right.source if target in right.references else target
