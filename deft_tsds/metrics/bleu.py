"""Corpus BLEU (Papineni et al. 2002) from sufficient statistics, equal to sacrebleu's default BLEU.

A row holds the length of the prediction, the length of the reference nearest to it, and for n = 1..4 the number of
predicted n-grams that a reference confirms (each at most as often as the reference that has it most) and of all. Each
row uses the references that it has: what sacrebleu computes when shorter rows are padded with None.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics.bleu import BLEU as SacreBLEU

from deft_tsds.metrics.metric import Metric, ratio

_ORDER = 4
# effective_order changes only the score of the single sentence, which is not used; without it sacrebleu warns.
_sacrebleu = SacreBLEU(effective_order=True)


def _row(prediction: str, source: str, references: Sequence[str]) -> list[float]:
    statistics = _sacrebleu.sentence_score(prediction, list(references))
    return [statistics.sys_len, statistics.ref_len, *statistics.counts, *statistics.totals]


def _score(totals: np.ndarray) -> np.ndarray:
    """100 min(1, exp(1 - r/c)) exp(mean_n log p_n); the k-th p_n without a match becomes 1 / (2^k total_n)."""
    predicted, expected = totals[..., 0], totals[..., 1]
    correct, total = totals[..., 2 : 2 + _ORDER], totals[..., 2 + _ORDER :]
    missing = correct == 0
    smoothed = np.where(missing, 2.0 ** -np.cumsum(missing, axis=-1), correct)
    precision = ratio(smoothed, total)
    # No match at all, or a corpus too short for a single 4-gram, scores 0.
    scored = ~missing.all(-1) & (total > 0).all(-1)
    log_precision = np.log(np.where(scored[..., None], precision, 1.0)).mean(-1)
    log_brevity = np.minimum(0.0, 1.0 - ratio(expected, predicted))
    return np.where(scored, 100.0 * np.exp(log_brevity + log_precision), 0.0)


BLEU = Metric(
    name="bleu",
    convention="corpus BLEU-4 as sacrebleu: 13a tokens, mixed case, exponential smoothing, all references",
    row=_row,
    score=_score,
)
