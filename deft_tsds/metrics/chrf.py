"""Corpus chrF2 (Popović 2015) from sufficient statistics, equal to sacrebleu's default CHRF.

A row holds for n = 1..6 the number of character n-grams of the prediction, of its best reference, and of both; white
space is left out. The best reference of a row is the one with the highest chrF2 for that row alone, among those that
the row has: what sacrebleu computes when shorter rows are padded with None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from deft_tsds.metrics.metric import Metric, ratio

_ORDER = 6
_BETA = 2


def _ngrams(text: str) -> list[Counter[str]]:
    characters = "".join(text.split())
    return [
        Counter(characters[start : start + order] for start in range(len(characters) - order + 1))
        for order in range(1, _ORDER + 1)
    ]


def _row(prediction: str, source: str, references: Sequence[str]) -> list[float]:
    predicted = _ngrams(prediction)
    rows = []
    for reference in references:
        row = []
        for ours, theirs in zip(predicted, _ngrams(reference), strict=True):
            # sacrebleu drops the order of a row whose reference is too short for it.
            row += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
        rows.append(row)
    return rows[int(np.argmax(_score(np.asarray(rows, dtype=np.float64))))]


def _score(totals: np.ndarray) -> np.ndarray:
    """100 (1 + beta^2) P R / (beta^2 P + R), P and R averaged over the orders that both texts have."""
    counts = totals.reshape(*totals.shape[:-1], _ORDER, 3)
    predicted, expected, common = counts[..., 0], counts[..., 1], counts[..., 2]
    present = (predicted > 0) & (expected > 0)
    orders = present.sum(-1)
    precision = ratio(np.where(present, ratio(common, predicted), 0.0).sum(-1), orders)
    recall = ratio(np.where(present, ratio(common, expected), 0.0).sum(-1), orders)
    return 100.0 * ratio((1 + _BETA**2) * precision * recall, _BETA**2 * precision + recall)


CHRF = Metric(
    name="chrf",
    convention="corpus chrF2 as sacrebleu: 6 character orders, no word orders, no white space, best reference",
    row=_row,
    score=_score,
)
