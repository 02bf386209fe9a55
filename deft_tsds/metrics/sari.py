"""SARI (Xu et al. 2016): how well an edit added, kept and deleted the n-grams that the references add, keep and delete.

For one order n and an n-gram g let s(g), c(g) be its counts in the source and in the prediction, and r(g) its count
averaged over the references. An edit keeps, deletes and adds

    K_C(g) = min(s, c)          D_C(g) = max(s - c, 0)       A_C = {g: c > 0, s = 0}
    K_R(g) = min(s, r)          D_R(g) = max(s - r, 0)       A_R = {g: r > 0, s = 0}

(C for the candidate, R for the references). SARI is the mean of F1 of A, F1 of K and the precision of D, over n = 1..4.
Three conventions are in use; their values differ, so they have three names here, and a table states which it shows.

- `sari`: the authors' script. Each sentence has its score and a test set the mean of them. 0/0 = 0.
      keep:   P = mean over {K_C > 0} of min(K_C, r) / K_C,     R = mean over {K_R > 0} of min(K_C, r) / K_R
      delete: P = mean over {D_C > 0} of max(D_C - r, 0) / D_C
      add:    P = |A_C & A_R| / |A_C|,                          R = |A_C & A_R| / |A_R|
- `sari_hf`: Hugging Face's `evaluate`. As above, but 0/0 = 1, so that a prediction equal to a reference is not punished
  for having nothing to add, and R of keep = sum min(K_C, r) / sum K_R.
- `sari_corpus`: EASSE. The counts are summed over the test set first; deletion is an F1 too. For each n
      keep:   P = sum min(K_C, K_R) / sum K_C,                  R = sum min(K_C, K_R) / sum K_R
      delete: P = sum min(D_C, D_R) / sum D_C,                  R = sum min(D_C, D_R) / sum D_R
      add:    P = sum |A_C & A_R| / sum |A_C|,                  R = sum |A_C & A_R| / sum |A_R|
  EASSE asks for equally many references in each row; averaging over the references, as here, gives its values then, and
  otherwise lets each example weigh the same.

All three see text lowercased and split by sacrebleu's 13a tokenizer (the default of the latter two; on text that is
tokenised already, as in the script's worked examples, it changes nothing).

References:
    Xu et al. 2016, Optimizing Statistical Machine Translation for Text Simplification, TACL 4.
    Alva-Manchego et al. 2019, EASSE: Easier Automatic Sentence Simplification Evaluation, EMNLP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from deft_tsds.metrics.metric import Metric, average, ratio, tokens

ORDERS = (1, 2, 3, 4)

_Counts = dict[tuple[str, ...], float]


def _ngrams(words: tuple[str, ...], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def _by_order(prediction: str, source: str, references: Sequence[str]) -> Iterator[tuple[_Counts, _Counts, _Counts]]:
    """Yield the counts s, c, r for n = 1..4."""
    for order in ORDERS:
        total: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            total.update(_ngrams(tokens(reference), order))
        r = {gram: count / len(references) for gram, count in total.items()}
        yield dict(_ngrams(tokens(source), order)), dict(_ngrams(tokens(prediction), order)), r


def _both(left: _Counts, right: _Counts) -> _Counts:
    """min(left, right), where positive."""
    return {gram: min(count, right[gram]) for gram, count in left.items() if gram in right}


def _beyond(left: _Counts, right: _Counts) -> _Counts:
    """max(left - right, 0), where positive."""
    excess = {gram: count - right.get(gram, 0) for gram, count in left.items()}
    return {gram: count for gram, count in excess.items() if count > 0}


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _sentence_order(s: _Counts, c: _Counts, r: _Counts, *, empty: float, pooled_recall: bool) -> float:
    """SARI of one sentence and one order; `empty` is what 0/0 means."""
    kept, to_keep = _both(s, c), _both(s, r)
    well_kept = _both(kept, r)
    keep_precision = sum(well_kept[g] / kept[g] for g in well_kept) / len(kept) if kept else empty
    if not to_keep:
        keep_recall = empty
    elif pooled_recall:
        keep_recall = sum(well_kept.values()) / sum(to_keep.values())
    else:
        keep_recall = sum(well_kept[g] / to_keep[g] for g in well_kept) / len(to_keep)

    deleted = _beyond(s, c)
    well_deleted = _beyond(deleted, r)
    delete_precision = sum(well_deleted[g] / deleted[g] for g in well_deleted) / len(deleted) if deleted else empty

    added, to_add = c.keys() - s.keys(), r.keys() - s.keys()
    add_precision = len(added & to_add) / len(added) if added else empty
    add_recall = len(added & to_add) / len(to_add) if to_add else empty

    return (_f1(add_precision, add_recall) + _f1(keep_precision, keep_recall) + delete_precision) / 3


def _sentence_row(
    prediction: str, source: str, references: Sequence[str], *, empty: float, pooled_recall: bool
) -> tuple[float, float]:
    orders = _by_order(prediction, source, references)
    scores = [_sentence_order(s, c, r, empty=empty, pooled_recall=pooled_recall) for s, c, r in orders]
    return sum(scores) / len(scores), 1.0


def _corpus_row(prediction: str, source: str, references: Sequence[str]) -> list[float]:
    """(correct, by the prediction, by the references) for add, keep, delete, for n = 1..4: 36 counts."""
    row: list[float] = []
    for s, c, r in _by_order(prediction, source, references):
        added, to_add = c.keys() - s.keys(), r.keys() - s.keys()
        row += [len(added & to_add), len(added), len(to_add)]
        for done, to_do in ((_both(s, c), _both(s, r)), (_beyond(s, c), _beyond(s, r))):
            row += [sum(_both(done, to_do).values()), sum(done.values()), sum(to_do.values())]
    return row


def _corpus_score(totals: np.ndarray) -> np.ndarray:
    counts = totals.reshape(*totals.shape[:-1], len(ORDERS), 3, 3)  # [..., n, operation, (correct, done, to do)]
    # F1 = 2 P R / (P + R) = 2 correct / (done + to do)
    f1 = ratio(2 * counts[..., 0], counts[..., 1] + counts[..., 2])
    return 100.0 * f1.mean((-2, -1))


SARI = Metric(
    name="sari",
    convention="SARI, mean over sentences, the authors' script (0/0 = 0); 13a tokens, lowercased",
    row=partial(_sentence_row, empty=0.0, pooled_recall=False),
    score=average,
)

SARI_HF = Metric(
    name="sari_hf",
    convention="SARI, mean over sentences, Hugging Face evaluate (0/0 = 1); 13a tokens, lowercased",
    row=partial(_sentence_row, empty=1.0, pooled_recall=True),
    score=average,
)

SARI_CORPUS = Metric(
    name="sari_corpus",
    convention="SARI, counts summed over the corpus, EASSE (F1 for deletion); 13a tokens, lowercased",
    row=_corpus_row,
    score=_corpus_score,
)
