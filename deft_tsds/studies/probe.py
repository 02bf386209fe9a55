"""A logistic probe on embeddings, and its macro-F1 as a metric that can be resampled."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from deft_tsds.metrics.metric import Metric, ratio

STRENGTH = 100.0
"""C of the probe, the inverse weight of its L2 penalty. Of 1, 10, 100 and 1000 (on sciie 10 and 100 alone) the best on
held-out rows of random choices from the domain pool, before any selector was compared."""

MAX_ITERATIONS = 200


def predict(train_RxD: np.ndarray, labels_R: np.ndarray, test_TxD: np.ndarray) -> np.ndarray:
    """What a multinomial logistic regression says of the test rows.

    Args:
        train_RxD: float32 rows of unit length; there may be none.
        labels_R: their labels, text.
        test_TxD: the rows to label.

    Returns:
        [T] labels. Where all training rows have one label, that label; where there are none, the empty text, which is
        wrong everywhere.
    """
    from sklearn.exceptions import ConvergenceWarning  # here, since importing it takes a second
    from sklearn.linear_model import LogisticRegression

    known = np.unique(labels_R)
    if len(known) < 2:
        return np.full(len(test_TxD), known[0] if len(known) else "")
    probe = LogisticRegression(C=STRENGTH, max_iter=MAX_ITERATIONS)
    # One thread: the matrices are small, and threads that wait for one another cost more than they bring.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the limit is part of what the probe is
        warnings.filterwarnings("ignore", message="The number of unique classes")  # a small budget has few rows a label
        return probe.fit(train_RxD, labels_R).predict(test_TxD)


def macro_f1(classes: Sequence[str]) -> Metric:
    """`MACRO_F1` over these classes alone, which can say what the statistics of a single test row are."""

    def row(prediction: str, source: str, references: Sequence[str]) -> Sequence[float]:
        return outcomes(np.array([prediction]), np.array([references[0]]), classes)[0].tolist()

    return dataclasses.replace(MACRO_F1, convention=f"macro-F1 over {len(classes)} classes, 0-100", row=row)


def outcomes(predicted_T: np.ndarray, true_T: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The statistics of `macro_f1`, float64 [T, 3 C]."""
    said, true = (np.asarray(labels)[:, None] == np.asarray(classes) for labels in (predicted_T, true_T))
    return np.concatenate([said & true, said, true], axis=1).astype(np.float64)


def _no_row(prediction: str, source: str, references: Sequence[str]) -> Sequence[float]:
    raise ValueError("a row of macro-F1 needs to know the classes: use macro_f1(classes), or `outcomes`.")


def _score(totals: np.ndarray) -> np.ndarray:
    hit, said, true = np.split(np.asarray(totals, np.float64), 3, axis=-1)
    return 100 * ratio(2 * hit, said + true).mean(axis=-1)


MACRO_F1 = Metric("macro_f1", "mean over the classes of a test set of their F1, 0-100", _no_row, _score)
"""The mean over C classes of 2 hits / (rows labelled so + rows that are so), 0 where nothing is either.

The statistics of a test row are [3 C]: for each class whether it was hit, whether it was said, whether it is true.
`outcomes` makes them for a whole test set at once; test sets may differ in their classes."""
