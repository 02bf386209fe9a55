"""Near-duplicate texts by MinHash: pairs whose sets of character 5-grams overlap by a given share.

The share of positions at which two signatures agree estimates the Jaccard similarity of the sets. Signatures are cut
into bands; two texts that agree on a whole band are a candidate pair, and every candidate pair is then measured on the
sets themselves, so that no pair below the threshold is reported. A pair at the threshold is missed with a known
probability, at most 1%; one above it, with less.

References:
    Broder, "On the resemblance and containment of documents", 1997.
    Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4 (bands).
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from deft_tsds.arrays import check_real
from deft_tsds.data.ngrams import folded
from deft_tsds.runs import track
from deft_tsds.sampling import generator_of

_SHINGLE = 5
_HASHES = 128
_MISSED = 0.01
_TEXTS_AT_ONCE = 20_000


class SimilarPairs(NamedTuple):
    """Pairs of texts, the lower row first, with their Jaccard similarity; and how likely one at the threshold is
    missed."""

    pairs_Px2: np.ndarray
    jaccard_P: np.ndarray
    missed: float


def similar_pairs(texts: Sequence[str], *, threshold: float, key: jax.Array) -> SimilarPairs:
    """Find the pairs of texts with |A & B| / |A | B| >= threshold, A and B their sets of character 5-grams.

    Case and white space are put aside first. A text shorter than five characters is one 5-gram.

    Args:
        texts: N texts.
        threshold: in [0.1, 1].
        key: `jax.random.key(seed)`, for the hash functions.

    Returns:
        `SimilarPairs`: int64 [P, 2] in ascending order, float64 [P], and a probability.
    """
    check_real(threshold, "threshold", at_least=0.1, at_most=1)
    rows = _band_rows(threshold)
    bands = _HASHES // rows
    signatures_NxH = _signatures(texts, generator_of(key))
    candidates: set[tuple[int, int]] = set()
    for band in track(range(bands), "comparing texts"):
        part = np.ascontiguousarray(signatures_NxH[:, band * rows : (band + 1) * rows])
        values = part.view(np.dtype((np.void, part.itemsize * rows))).ravel()
        order = np.argsort(values, kind="stable")
        ends = np.flatnonzero(np.append(values[order][1:] != values[order][:-1], True)) + 1
        for start, end in zip(np.append(0, ends[:-1]).tolist(), ends.tolist(), strict=True):
            if end - start > 1:
                candidates.update(itertools.combinations(order[start:end].tolist(), 2))
    found = []
    for first, second in sorted(candidates):
        a, b = _shingles(texts[first]), _shingles(texts[second])
        jaccard = len(a & b) / len(a | b)
        if jaccard >= threshold:
            found.append((first, second, jaccard))
    pairs_Px2 = np.array([pair[:2] for pair in found], np.int64).reshape(-1, 2)
    return SimilarPairs(pairs_Px2, np.array([pair[2] for pair in found]), _miss(threshold, rows))


def _shingles(text: str) -> set[str]:
    text = folded(text)
    return {text[start : start + _SHINGLE] for start in range(max(1, len(text) - _SHINGLE + 1))}


def _signatures(texts: Sequence[str], generator: np.random.Generator) -> np.ndarray:
    """The least value of each of H hash functions over the 5-grams of each text, uint32 [N, H].

    Multiply-shift hashing of a CRC-32 (Dietzfelbinger et al., "A reliable randomized algorithm for the closest-pair
    problem", 1997).
    """
    odd_H = generator.integers(2**63, size=_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    plus_H = generator.integers(2**63, size=_HASHES, dtype=np.uint64)
    signatures_NxH = np.empty((len(texts), _HASHES), np.uint32)
    for first in track(range(0, len(texts), _TEXTS_AT_ONCE), "signatures of texts"):
        hashed = [
            np.array([zlib.crc32(gram.encode("utf-8", "surrogatepass")) for gram in _shingles(text)], np.uint64)
            for text in texts[first : first + _TEXTS_AT_ONCE]
        ]
        starts = np.cumsum([0, *(len(grams) for grams in hashed[:-1])])
        flat = np.concatenate(hashed)
        for h, (odd, plus) in enumerate(zip(odd_H, plus_H, strict=True)):
            values = ((flat * odd + plus) >> np.uint64(32)).astype(np.uint32)
            signatures_NxH[first : first + len(hashed), h] = np.minimum.reduceat(values, starts)
    return signatures_NxH


def _band_rows(threshold: float) -> int:
    """The longest bands, which make the fewest candidates, that miss few enough pairs at the threshold."""
    return max(rows for rows in range(1, _HASHES + 1) if rows == 1 or _miss(threshold, rows) <= _MISSED)


def _miss(threshold: float, rows: int) -> float:
    """The probability that two texts of this similarity agree on no band."""
    return (1 - threshold**rows) ** (_HASHES // rows)
