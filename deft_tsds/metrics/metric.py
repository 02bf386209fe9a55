"""What a metric is: a row of sufficient statistics for each test example, and a score of any total of such rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

_tokenizer_13a = Tokenizer13a()


@lru_cache(maxsize=2**16)
def tokens(text: str) -> tuple[str, ...]:
    """Lowercase `text` and split it by sacrebleu's 13a tokenizer, as Hugging Face's `sari` and EASSE do by default."""
    return tuple(_tokenizer_13a(text.lower()).split())


@dataclass(frozen=True)
class Metric:
    """A score on 0-100 that depends on a test set only through a sum of per-example rows.

    The score of a corpus is `score(statistics.sum(0))`; that of a bootstrap resample in which example i occurs c_i
    times is `score(c @ statistics)`, without looking at the text again.

    Attributes:
        name: the name in configs and tables.
        convention: one line that a table must state for its numbers to be comparable with others.
        row: (prediction, source, references of one example) to its s sufficient statistics.
        score: totals, float64 [..., s], to scores, float64 [...], vectorised over the leading axes.
    """

    name: str
    convention: str
    row: Callable[[str, str, Sequence[str]], Sequence[float]]
    score: Callable[[np.ndarray], np.ndarray]

    def statistics(
        self, predictions: Sequence[str], sources: Sequence[str], references: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """The sufficient statistics of each example.

        Args:
            predictions: n texts; a text may be empty, a model's right to say nothing.
            sources: n texts that the predictions edit.
            references: n sequences of one or more right answers each; their number may vary.

        Returns:
            float64 [n, s].

        Raises:
            ValueError: the lengths differ, the test set is empty, or a row has no reference or a blank one.
        """
        _check(predictions, sources, references)
        rows = [self.row(*example) for example in zip(predictions, sources, references, strict=True)]
        return np.asarray(rows, dtype=np.float64)

    def __call__(
        self, predictions: Sequence[str], sources: Sequence[str], references: Sequence[Sequence[str]]
    ) -> float:
        """The score of a whole test set, 0-100. Args and Raises as in `statistics`."""
        return float(self.score(self.statistics(predictions, sources, references).sum(0)))


def _check(predictions: Sequence[str], sources: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    lengths = {"predictions": len(predictions), "sources": len(sources), "references": len(references)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"a metric needs one source and one list of references a prediction, got {lengths}.")
    if not predictions:
        raise ValueError("predictions is empty: a test set needs at least one example.")
    for row, answers in enumerate(references):
        if isinstance(answers, str):
            raise ValueError(f"references[{row}] is a string: give a list of strings, also for a single reference.")
        if not answers:
            raise ValueError(f"references[{row}] is empty: give at least one reference, or leave the example out.")
        for answer in answers:
            if not answer.strip():
                raise ValueError(f"references[{row}] has a blank reference: remove it, or leave the example out.")


def average(totals: np.ndarray) -> np.ndarray:
    """100 times the mean of per-example values in [0, 1]; the rows are (value, 1)."""
    return 100.0 * totals[..., 0] / totals[..., 1]


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, and 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(np.shape(numerator)), where=np.asarray(denominator) > 0)
