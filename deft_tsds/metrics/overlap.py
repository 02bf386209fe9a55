"""Overlap of a prediction with its best reference, averaged over examples: exact match, token F1, ROUGE-L."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from deft_tsds.metrics.metric import Metric, average, tokens


def _exact_match_row(prediction: str, source: str, references: Sequence[str]) -> tuple[float, float]:
    predicted = prediction.split()
    return float(any(predicted == reference.split() for reference in references)), 1.0


def _token_f1(prediction: str, reference: str) -> float:
    """F1 of two bags of tokens, 2 |P & R| / (|P| + |R|)."""
    predicted, expected = tokens(prediction), tokens(reference)
    common = (Counter(predicted) & Counter(expected)).total()
    return 2 * common / (len(predicted) + len(expected))


def _token_f1_row(prediction: str, source: str, references: Sequence[str]) -> tuple[float, float]:
    return max(_token_f1(prediction, reference) for reference in references), 1.0


@cache
def _rouge_scorer() -> Any:
    # rouge_score brings nltk, seconds to import: only who asks for ROUGE-L pays.
    from rouge_score.rouge_scorer import RougeScorer

    # The stemmer would forgive "she walk" for "she walks": exactly what a grammar edit is about.
    return RougeScorer(["rougeL"], use_stemmer=False)


def _rouge_l_row(prediction: str, source: str, references: Sequence[str]) -> tuple[float, float]:
    return float(_rouge_scorer().score_multi(references, prediction)["rougeL"].fmeasure), 1.0


EXACT_MATCH = Metric(
    name="exact_match",
    convention="equal to any reference up to white space, case matters",
    row=_exact_match_row,
    score=average,
)

TOKEN_F1 = Metric(
    name="token_f1",
    convention="bag-of-tokens F1, best reference, mean over examples; 13a tokens, lowercased",
    row=_token_f1_row,
    score=average,
)

ROUGE_L = Metric(
    name="rouge_l",
    convention="rouge-score ROUGE-L F1, best reference, mean over examples; use_stemmer=False",
    row=_rouge_l_row,
    score=average,
)
