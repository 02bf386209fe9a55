"""Texts as counts of hashed word n-grams, as DSIR sees them; and what a text is with case and the like aside."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import scipy.sparse

from deft_tsds.arrays import Rows, check_count
from deft_tsds.runs import track

# Words, and runs of other signs: NLTK's WordPunctTokenizer, which the published code of DSIR uses.
_WORD_OR_SIGNS = re.compile(r"\w+|[^\w\s]+")
_WORD = re.compile(r"\w+")


class NgramCounts(Rows):
    """How often each hashed n-gram occurs in each text: float32 [N, buckets], sparse in memory, dense where it is read.

    The features of DSIR (arXiv 2302.03169, section 3), as its published code makes them: the text in lower case, words
    and runs of signs, n-grams of every length up to `longest` joined by a space, and as bucket the SHA-256 of an
    n-gram modulo `buckets`. It is a representation like any other, so any selector can read it.
    """

    def __init__(self, texts: Sequence[str], *, longest: int = 2, buckets: int = 10_000):
        """Count the n-grams of texts.

        Args:
            texts: N texts, at least one.
            longest: n-grams of 1 to so many words.
            buckets: F, the number of buckets.

        Raises:
            ValueError: no texts, or a number below 1.
        """
        check_count(longest, "longest", 1)
        check_count(buckets, "buckets", 1)
        if not texts:
            raise ValueError("texts is empty: give at least one text.")
        bucket_of = lru_cache(maxsize=2**20)(lambda ngram: _bucket(ngram, buckets))
        columns, ends = [], [0]
        for text in track(texts, "counting n-grams"):
            row = [bucket_of(ngram) for ngram in _ngrams(_WORD_OR_SIGNS.findall(text.lower()), longest)]
            columns.append(np.array(row, np.int32))
            ends.append(ends[-1] + len(row))
        flat = np.concatenate(columns)
        self._shape = (len(texts), buckets)
        self.counts_NxF = scipy.sparse.csr_array((np.ones(len(flat), np.float32), flat, ends), shape=self._shape)
        self.counts_NxF.sum_duplicates()

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.counts_NxF[rows].toarray()


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, case and punctuation aside."""
    return tuple(_WORD.findall(text.casefold()))


def folded(text: str) -> str:
    """A text, case and white space aside."""
    return " ".join(text.split()).casefold()


def _ngrams(words: list[str], longest: int) -> Iterator[str]:
    yield from words
    for n in range(2, longest + 1):
        for start in range(len(words) - n + 1):
            yield " ".join(words[start : start + n])


def _bucket(ngram: str, buckets: int) -> int:
    return int(hashlib.sha256(ngram.encode("utf-8", "surrogatepass")).hexdigest(), 16) % buckets
