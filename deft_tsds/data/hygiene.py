"""Before any selection: rows of the pool that repeat one another, that leak the test, or that are too short or long.

Nothing is dropped in silence: every check says how many rows it dropped, by which rule, and shows some of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from deft_tsds.arrays import as_matrix, check_count, check_real, check_same_width, row_blocks
from deft_tsds.data.minhash import similar_pairs
from deft_tsds.data.ngrams import folded, words_of
from deft_tsds.geometry.neighbors import BLOCK_BYTES, nearest_neighbors
from deft_tsds.runs import track, write_json
from deft_tsds.sampling import check_key

Near = Literal["minhash", "embedding"]

_SHOWN = 10
_SHOWN_CHARACTERS = 200

# Neighbours that a row is given at first; one whose last neighbour is still a duplicate gets four times as many.
_NEIGHBORS = 8


@dataclass(frozen=True, eq=False)
class Finding:
    """What one check dropped.

    Attributes:
        check: its name.
        rule: what it drops, as a sentence.
        rows: int64 [n], the dropped rows of the pool, ascending.
        because: for each, why: plain JSON, with the row that it repeats or the test row that it leaks.
        examples: the first ten, with the texts.
    """

    check: str
    rule: str
    rows: np.ndarray
    because: tuple[dict[str, Any], ...]
    examples: tuple[dict[str, Any], ...]


@dataclass(frozen=True, eq=False)
class Cleaned:
    """What is left of a pool, and what each check dropped, in the order in which they ran."""

    rows: np.ndarray
    """int64, the rows that are left, ascending."""
    candidates: int
    """The size of the pool before."""
    findings: tuple[Finding, ...]

    def report(self) -> dict[str, Any]:
        """Counts, rules, examples, and every dropped row with its reason, as plain JSON."""
        return {
            "candidates": self.candidates,
            "left": len(self.rows),
            "checks": [
                {
                    "check": finding.check,
                    "rule": finding.rule,
                    "dropped": len(finding.rows),
                    "examples": list(finding.examples),
                    "rows": [
                        {"row": row, **why} for row, why in zip(finding.rows.tolist(), finding.because, strict=True)
                    ],
                }
                for finding in self.findings
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, atomically."""
        write_json(path, self.report())

    def __str__(self) -> str:
        lines = [f"{self.candidates:,} rows, {len(self.rows):,} left"]
        lines += [f"  {len(finding.rows):>8,}  {finding.check}: {finding.rule}" for finding in self.findings]
        return "\n".join(lines)


@dataclass(frozen=True)
class Hygiene:
    """Checks of a pool. They run in the order of the fields, each on what those before it left."""

    shortest: int | None = None
    """Drop rows of fewer tokens."""

    longest: int | None = None
    """Drop rows of more tokens."""

    leak_words: int | None = 13
    """Drop rows that share so many consecutive words with a test text, case and punctuation aside (a test text with
    fewer words must be equal word for word); None does not look. Thirteen is the custom since Brown et al., "Language
    models are few-shot learners", arXiv 2005.14165, appendix C."""

    leak_cosine: float | None = None
    """Drop rows whose embedding has at least this cosine with one of a test set; None does not look."""

    exact: bool = True
    """Drop rows that repeat an earlier one, case and white space aside."""

    near: Near | None = "minhash"
    """Drop all but the first row of each group of near-duplicates, found by "minhash" (texts) or "embedding"; None does
    not look. A group is what pairs of near-duplicates connect."""

    jaccard: float = 0.8
    """"minhash": the share of common character 5-grams that makes a pair."""

    cosine: float = 0.95
    """"embedding": the cosine that makes a pair."""

    def __post_init__(self) -> None:
        for name in ("shortest", "longest", "leak_words"):
            if getattr(self, name) is not None:
                check_count(getattr(self, name), name, 1)
        for name in ("leak_cosine", "cosine"):
            if getattr(self, name) is not None:
                check_real(getattr(self, name), name, above=-1, at_most=1)
        check_real(self.jaccard, "jaccard", at_least=0.1, at_most=1)
        if self.near is not None and self.near not in get_args(Near):
            raise ValueError(f"near is {self.near!r}: choose one of {', '.join(get_args(Near))}, or None.")

    def __call__(
        self,
        texts: Sequence[str],
        *,
        key: jax.Array,
        tests: Mapping[str, Sequence[str]] | None = None,
        inputs: Sequence[str] | None = None,
        embeddings: np.ndarray | None = None,
        test_embeddings: Mapping[str, np.ndarray] | None = None,
        lengths: Sequence[int] | np.ndarray | None = None,
    ) -> Cleaned:
        """Clean a pool.

        Args:
            texts: [N], the pool: what the model will read, say prompt and target together.
            key: `jax.random.key(seed)`, for the hash functions of "minhash".
            tests: texts that must not leak, by name: the inputs of test sets.
            inputs: [N], what is compared with these by words; `texts` by default.
            embeddings: [N, D], for `leak_cosine` and for "embedding".
            test_embeddings: [T, D] by name, for `leak_cosine`.
            lengths: [N] tokens of each row, for `shortest` and `longest`.

        Raises:
            ValueError: no texts, a check whose input is missing, sizes that differ, or nothing left.
        """
        inputs = texts if inputs is None else inputs
        self._check(texts, check_key(key), inputs, embeddings, test_embeddings, lengths)
        left = np.arange(len(texts))
        findings = []

        def drop(check: str, rule: str, because: dict[int, dict[str, Any]]) -> None:
            nonlocal left
            rows = np.array(sorted(because), np.int64)
            examples = tuple(
                {"row": int(row), "text": texts[row][:_SHOWN_CHARACTERS], **self._shown(because[row], texts, tests)}
                for row in rows[:_SHOWN].tolist()
            )
            findings.append(Finding(check, rule, rows, tuple(because[row] for row in rows.tolist()), examples))
            left = np.setdiff1d(left, rows, assume_unique=True)

        if lengths is not None and (self.shortest is not None or self.longest is not None):
            low, high = self.shortest or 0, np.inf if self.longest is None else self.longest
            tokens_N = np.asarray(lengths)
            out = left[(tokens_N[left] < low) | (tokens_N[left] > high)]
            limits = {"fewer than": self.shortest, "more than": self.longest}
            rule = " or ".join(f"{side} {limit} tokens" for side, limit in limits.items() if limit is not None)
            drop("length", rule, {row: {"tokens": int(tokens_N[row])} for row in out.tolist()})
        if self.leak_words is not None and tests:
            rule = f"shares {self.leak_words} consecutive words with a test text, or is one that is shorter"
            drop("leak by words", rule, _shared_words(inputs, left, tests, self.leak_words))
        if self.leak_cosine is not None and embeddings is not None and test_embeddings:
            rule = f"a cosine of at least {self.leak_cosine:g} with a test row"
            drop("leak by embedding", rule, _near_tests(embeddings, left, test_embeddings, self.leak_cosine))
        if self.exact:
            firsts: dict[str, int] = {}
            repeats = {row: firsts.setdefault(folded(texts[row]), row) for row in left.tolist()}
            again = {row: {"repeats": first} for row, first in repeats.items() if first != row}
            drop("exact duplicates", "repeats an earlier row, case and white space aside", again)
        if self.near == "minhash":
            found = similar_pairs([texts[row] for row in left.tolist()], threshold=self.jaccard, key=key)
            rule = (
                f"near an earlier row: at least {self.jaccard:g} of their character 5-grams are common (a pair at just "
                f"that is missed with a probability of {found.missed:.2g})"
            )
            drop("near-duplicates by MinHash", rule, _repeats(left, found.pairs_Px2))
        if self.near == "embedding" and embeddings is not None:
            pairs_Px2 = pairs_within(embeddings[left], self.cosine)
            rule = f"near an earlier row: a cosine of at least {self.cosine:g}"
            drop("near-duplicates by embedding", rule, _repeats(left, pairs_Px2))
        if len(left) == 0:
            raise ValueError(f"no row is left:\n{Cleaned(left, len(texts), tuple(findings))}\nLoosen a check.")
        return Cleaned(left, len(texts), tuple(findings))

    def _check(self, texts, key, inputs, embeddings, test_embeddings, lengths) -> None:
        n = len(texts)
        if n == 0:
            raise ValueError("texts is empty: give at least one text.")
        if len(inputs) != n:
            raise ValueError(f"inputs has {len(inputs)} rows for {n} texts: give one for each.")
        if (self.shortest is not None or self.longest is not None) and lengths is None:
            raise ValueError("shortest and longest need lengths: give the number of tokens of each row.")
        if lengths is not None and np.shape(lengths) != (n,):
            raise ValueError(f"lengths has shape {np.shape(lengths)}: give one number for each of the {n} texts.")
        if (self.leak_cosine is not None or self.near == "embedding") and embeddings is None:
            raise ValueError("leak_cosine and near='embedding' need embeddings: give one row for each text.")
        if self.leak_cosine is not None and not test_embeddings:
            raise ValueError("leak_cosine needs test_embeddings: give those of each test set, by name.")
        if embeddings is not None:
            pool_NxD = as_matrix(embeddings, "embeddings")
            if len(pool_NxD) != n:
                raise ValueError(f"embeddings has {len(pool_NxD)} rows for {n} texts: give one row for each.")
            for name, rows in (test_embeddings or {}).items():
                check_same_width(as_matrix(rows, f"test_embeddings[{name!r}]"), pool_NxD, name, "embeddings")

    @staticmethod
    def _shown(because: dict[str, Any], texts: Sequence[str], tests: Mapping[str, Sequence[str]] | None) -> dict:
        """A reason with the text that it speaks of."""
        if "repeats" in because:
            return {**because, "other": texts[because["repeats"]][:_SHOWN_CHARACTERS]}
        if "test" in because and tests and because["test"] in tests:
            return {**because, "other": tests[because["test"]][because["test_row"]][:_SHOWN_CHARACTERS]}
        return because


def pairs_within(embeddings_NxD: np.ndarray, cosine: float) -> np.ndarray:
    """Pairs of rows that connect all rows with a cosine of at least so much, exactly; int64 [P, 2], lower row first.

    Equal rows are pairs with the first of them only; all other pairs at or above the cosine are there for one row of
    each kind.
    """
    firsts: dict[bytes, int] = {}
    copies = []
    for row in range(len(embeddings_NxD)):
        first = firsts.setdefault(np.asarray(embeddings_NxD[row]).tobytes(), row)
        if first != row:
            copies.append((first, row))
    distinct = np.array(list(firsts.values()))
    rows_UxD = np.asarray(embeddings_NxD[distinct])
    pairs = [np.array(copies, np.int64).reshape(-1, 2)]
    asked, k = np.arange(len(distinct)), min(_NEIGHBORS, len(distinct))
    while len(asked):
        found = nearest_neighbors(rows_UxD[asked], rows_UxD, k, metric="cosine")
        near_AxK = found.distances_MxK <= np.float32(1 - cosine)
        open_A = near_AxK[:, -1] & (k < len(distinct))
        at, place = np.nonzero(near_AxK & ~open_A[:, None])
        first, second = distinct[asked[at]], distinct[found.indices_MxK[at, place]]
        pairs.append(np.stack([np.minimum(first, second), np.maximum(first, second)], axis=1)[first != second])
        asked, k = asked[open_A], min(4 * k, len(distinct))
    return np.unique(np.concatenate(pairs), axis=0)


def _repeats(left: np.ndarray, pairs_Px2: np.ndarray) -> dict[int, dict[str, Any]]:
    """All but the first row of each connected group, with the first and the size of the group."""
    n = len(left)
    graph = scipy.sparse.coo_array((np.ones(len(pairs_Px2)), (pairs_Px2[:, 0], pairs_Px2[:, 1])), shape=(n, n))
    _, group_N = scipy.sparse.csgraph.connected_components(graph, directed=False)
    _, first, size = np.unique(group_N, return_index=True, return_counts=True)
    again = np.flatnonzero(first[group_N] != np.arange(n))
    return {int(left[i]): {"repeats": int(left[first[group_N[i]]]), "group_size": int(size[group_N[i]])} for i in again}


def _shared_words(
    texts: Sequence[str], left: np.ndarray, tests: Mapping[str, Sequence[str]], n: int
) -> dict[int, dict[str, Any]]:
    known: dict[tuple[str, ...], tuple[str, int]] = {}
    for name, others in tests.items():
        for row, text in enumerate(others):
            words = words_of(text)
            for ngram in _runs(words, n) if len(words) >= n else [words] if words else []:
                known.setdefault(ngram, (name, row))
    because = {}
    rows: list[int] = left.tolist()
    for row in track(rows, "leakage by words"):
        words = words_of(texts[row])
        for ngram in _runs(words, n) if len(words) >= n else [words]:
            if ngram in known:
                name, test_row = known[ngram]
                because[row] = {"test": name, "test_row": test_row, "words": " ".join(ngram)}
                break
    return because


def _runs(words: tuple[str, ...], n: int) -> list[tuple[str, ...]]:
    return [words[start : start + n] for start in range(len(words) - n + 1)]


def _near_tests(
    embeddings: np.ndarray, left: np.ndarray, tests: Mapping[str, np.ndarray], cosine: float
) -> dict[int, dict[str, Any]]:
    because: dict[int, dict[str, Any]] = {}
    for name, test_TxD in tests.items():
        for part in row_blocks(len(left), row_bytes=4 * embeddings.shape[1], budget_bytes=BLOCK_BYTES):
            found = nearest_neighbors(embeddings[left[part]], test_TxD, 1, metric="cosine")
            for place in np.flatnonzero(found.distances_MxK[:, 0] <= np.float32(1 - cosine)).tolist():
                near = {"test": name, "test_row": int(found.indices_MxK[place, 0])}
                near["cosine"] = 1 - float(found.distances_MxK[place, 0])
                because.setdefault(int(left[part][place]), near)
    return because
