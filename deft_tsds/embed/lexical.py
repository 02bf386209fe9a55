"""The encoder that needs nothing downloaded: hashed n-grams, TF-IDF, truncated SVD (latent semantic analysis).

Deerwester et al., Indexing by Latent Semantic Analysis, 1990; the randomized SVD is Halko et al., arXiv 0909.4061.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.sparse

from deft_tsds.arrays import check_count, normalize_rows
from deft_tsds.embed.files import read_npz
from deft_tsds.runs import atomic_write

# A projection shorter than this is rounding noise of unit-length TF-IDF rows in float32, not a direction.
_NOISE = 1e-5
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Lexical:
    """The recipe of a lexical encoder; `fit` learns one from a pool.

    Word and character n-grams are hashed, each kind into `hash_features` columns of its own. With n_c the number of
    times that column c occurs in a text and df_c the number of the N texts that have it, the text's TF-IDF row is

        x_c = (1 + ln n_c) (1 + ln((1 + N) / (1 + df_c))),   x <- x / |x|,

    and its vector is x V / |x V|, V the leading right singular vectors of the pool's TF-IDF matrix.

    Args:
        dimension: D. A pool with fewer texts, n-grams or independent rows than this gives as many dimensions as its
            matrix has singular values above rounding error.
        word_ngrams: shortest and longest word n-gram.
        char_ngrams: shortest and longest character n-gram, taken inside words with a space at both ends.
        hash_features: columns of each hash.
        max_features: columns kept, those of the most texts; of equals, the lower column. It bounds the saved V.
        power_iterations: of the randomized SVD; more are slower and closer to the exact one.

    Raises:
        ValueError: a number below 1, or an n-gram range that runs backwards.
    """

    dimension: int = 256
    word_ngrams: tuple[int, int] = (1, 2)
    char_ngrams: tuple[int, int] = (3, 5)
    hash_features: int = 2**18
    max_features: int = 2**16
    power_iterations: int = 2

    def __post_init__(self) -> None:
        for name in ("dimension", "hash_features", "max_features"):
            check_count(getattr(self, name), name, 1)
        check_count(self.power_iterations, "power_iterations", 0)
        for name in ("word_ngrams", "char_ngrams"):
            shortest, longest = getattr(self, name)
            check_count(shortest, f"the shortest of {name}", 0)
            check_count(longest, f"the longest of {name}", 0)
            if not 1 <= shortest <= longest:
                raise ValueError(f"{name} is {(shortest, longest)}: give the shortest, at least 1, then the longest.")

    def fit(self, texts: Sequence[str], *, key: jax.Array) -> LexicalEncoder:
        """Learn columns, document frequencies and singular vectors.

        Args:
            texts: the pool, N texts.
            key: JAX random key, for the start of the randomized SVD.

        Returns:
            The encoder.

        Raises:
            ValueError: no texts, or none with a single n-gram.
        """
        from sklearn.utils.extmath import randomized_svd
        from threadpoolctl import threadpool_limits

        if not texts:
            raise ValueError("texts is empty: give at least one text to fit the lexical encoder on.")
        counts = self._counts(texts)
        frequency = np.bincount(counts.indices, minlength=2 * self.hash_features)
        by_frequency = np.argsort(-frequency, kind="stable")[: self.max_features]
        columns = np.sort(by_frequency[frequency[by_frequency] > 0])
        if columns.size == 0:
            raise ValueError("texts has no n-gram in any row: give texts with letters, digits or signs in them.")
        inverse_frequency = 1.0 + np.log((1 + len(texts)) / (1 + frequency[columns]))
        weights_NxF = _tf_idf(counts[:, columns], inverse_frequency.astype(np.float32))
        size = max(len(texts), columns.size)
        seed = np.random.default_rng(np.asarray(jax.random.key_data(key))).integers(2**31)
        options: dict[str, Any] = {"n_iter": self.power_iterations, "power_iteration_normalizer": "LU"}
        # One BLAS thread: the same bits whatever the number of cores, and no slower, since most of the work is sparse.
        with threadpool_limits(limits=1, user_api="blas"):
            _, values, vectors_RxF = randomized_svd(
                weights_NxF, min(self.dimension, len(texts), columns.size), random_state=int(seed), **options
            )
        rank = np.count_nonzero(values > values[0] * size * np.finfo(np.float32).eps)
        return LexicalEncoder(
            recipe=self,
            columns_F=columns.astype(np.int64),
            inverse_frequency_F=inverse_frequency.astype(np.float32),
            vectors_FxD=np.ascontiguousarray(vectors_RxF[:rank].T, dtype=np.float32),
        )

    def _counts(self, texts: Sequence[str]) -> scipy.sparse.csr_array:
        from sklearn.feature_extraction.text import HashingVectorizer

        shared: dict[str, Any] = {
            "n_features": self.hash_features,
            "alternate_sign": False,
            "norm": None,
            "dtype": np.float32,
        }
        words = HashingVectorizer(ngram_range=self.word_ngrams, token_pattern=r"\b\w+\b", **shared)
        characters = HashingVectorizer(analyzer="char_wb", ngram_range=self.char_ngrams, **shared)
        return scipy.sparse.csr_array(scipy.sparse.hstack([words.transform(texts), characters.transform(texts)]))


@dataclass(frozen=True, eq=False)
class LexicalEncoder:
    """A fitted lexical encoder: made by `Lexical.fit` or `LexicalEncoder.load`.

    Args:
        recipe: what it was fitted with.
        columns_F: int64 [F], the hashed columns that are kept, ascending.
        inverse_frequency_F: float32 [F], their inverse document frequencies.
        vectors_FxD: float32 [F, D], the singular vectors V.
    """

    recipe: Lexical
    columns_F: np.ndarray
    inverse_frequency_F: np.ndarray
    vectors_FxD: np.ndarray

    @property
    def name(self) -> str:
        return "lexical"

    def settings(self) -> dict[str, Any]:
        recipe = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self.recipe).items()}
        return {**recipe, "fitted": self._fingerprint}

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for array in (self.columns_F, self.inverse_frequency_F, self.vectors_FxD):
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _check(self) -> None:
        """Raise ValueError where the arrays do not fit one another or the recipe."""
        columns_F, frequency_F, vectors_FxD = self.columns_F, self.inverse_frequency_F, self.vectors_FxD
        kinds = (columns_F.dtype, frequency_F.dtype, vectors_FxD.dtype)
        if kinds != (np.int64, np.float32, np.float32):
            raise ValueError(f"its arrays are {', '.join(map(str, kinds))}, not int64, float32, float32")
        if columns_F.ndim != 1 or frequency_F.shape != columns_F.shape or vectors_FxD.ndim != 2:
            raise ValueError(f"its arrays have shapes {columns_F.shape}, {frequency_F.shape} and {vectors_FxD.shape}")
        if not len(columns_F) or len(vectors_FxD) != len(columns_F) or not vectors_FxD.shape[1]:
            raise ValueError(f"it has {len(columns_F)} columns and vectors of shape {vectors_FxD.shape}")
        if columns_F[0] < 0 or columns_F[-1] >= 2 * self.recipe.hash_features or (np.diff(columns_F) <= 0).any():
            raise ValueError("its columns do not ascend within those of the recipe")
        if not (np.isfinite(frequency_F).all() and np.isfinite(vectors_FxD).all()):
            raise ValueError("its arrays hold NaN or infinite values")

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts; each row depends on its own text alone.

        Args:
            texts: n texts.

        Returns:
            float32 [n, D], rows of unit length. A text that shares no n-gram with the pool has no direction: its row
            is zero.
        """
        rows_nxD = np.zeros((len(texts), self.vectors_FxD.shape[1]), dtype=np.float32)
        for start in range(0, len(texts), _ROWS_AT_ONCE):
            counts = self.recipe._counts(texts[start : start + _ROWS_AT_ONCE])[:, self.columns_F]
            rows_nxD[start : start + _ROWS_AT_ONCE] = _tf_idf(counts, self.inverse_frequency_F) @ self.vectors_FxD
        rows_nxD[np.linalg.norm(rows_nxD, axis=1) < _NOISE] = 0.0
        return normalize_rows(rows_nxD)

    def save(self, path: str | Path) -> None:
        """Write the encoder as one .npz file, atomically and without pickle."""
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                recipe=np.array(json.dumps(dataclasses.asdict(self.recipe))),
                columns=self.columns_F,
                inverse_frequency=self.inverse_frequency_F,
                vectors=self.vectors_FxD,
            )

    @classmethod
    def load(cls, path: str | Path) -> LexicalEncoder:
        """Read what `save` wrote: the same vectors, bit for bit.

        Raises:
            ValueError: a file that is broken or that `save` did not write.
        """
        try:
            saved = read_npz(Path(path))
            recipe: dict[str, Any] = json.loads(str(saved["recipe"]))
            recipe |= {key: tuple(recipe[key]) for key in ("word_ngrams", "char_ngrams")}
            made = cls(
                recipe=Lexical(**recipe),
                columns_F=saved["columns"],
                inverse_frequency_F=saved["inverse_frequency"],
                vectors_FxD=saved["vectors"],
            )
            made._check()
            return made
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} holds no lexical encoder ({error}). Fit it again and save it.") from error


def _tf_idf(counts: scipy.sparse.csr_array, inverse_frequency_F: np.ndarray) -> scipy.sparse.csr_array:
    """Turn counts into TF-IDF rows of unit length; a row without counts stays empty."""
    weights = counts.copy()
    weights.data = (1.0 + np.log(weights.data)) * inverse_frequency_F[weights.indices]
    lengths = np.sqrt(np.asarray(weights.multiply(weights).sum(axis=1)).ravel())
    weights.data /= np.repeat(np.where(lengths > 0, lengths, 1.0), np.diff(weights.indptr)).astype(np.float32)
    return weights
