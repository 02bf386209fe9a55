"""Metrics against published values, sacrebleu, and oracles written from the papers."""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from deft_tsds.metrics import METRICS, bootstrap, bootstrap_difference
from deft_tsds.metrics.metric import average

SHARED = Path(__file__).parents[2] / "shared" / "data" / "edit"

# The worked example of the authors' SARI script (github.com/cocoxu/simplification, SARI.py).
SOURCE = "About 95 species are currently accepted ."
REFERENCES = [
    "About 95 species are currently known .",
    "About 95 species are now accepted .",
    "95 species are now accepted .",
]
WORKED = {
    "About 95 you now get in .": 0.26828,
    "About 95 species are now agreed .": 0.58900,
    "About 95 species are currently agreed .": 0.50716,
}

words = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", ",", "red", "."]), max_size=9).map(" ".join)
answers = st.lists(words.filter(bool), min_size=1, max_size=4)
examples = st.lists(st.tuples(words, words, answers), min_size=1, max_size=6).map(
    lambda rows: tuple(zip(*rows, strict=True))
)


@pytest.mark.parametrize(("prediction", "expected"), WORKED.items())
def test_sari_gives_the_worked_values_of_the_authors(prediction: str, expected: float) -> None:
    assert METRICS["sari"]([prediction], [SOURCE], [REFERENCES]) == pytest.approx(100 * expected, abs=5e-4)


def test_sari_hf_gives_the_value_in_the_documentation_of_evaluate() -> None:
    score = METRICS["sari_hf"](["About 95 you now get in ."], [SOURCE], [REFERENCES])
    assert score == pytest.approx(26.953601953601954, abs=1e-12)


@pytest.mark.parametrize(("name", "published"), [("turk", 26.29), ("asset", 20.73)])
def test_sari_corpus_gives_the_published_identity_baseline(name: str, published: float) -> None:
    # Martin et al. 2022 (MUSS), Table 2, computed with EASSE.
    path = SHARED / f"edit_test_{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here: the shared text data does not travel with the repository")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    sources = [row["input"] for row in rows]
    score = METRICS["sari_corpus"](sources, sources, [row["references"] for row in rows])
    assert score == pytest.approx(published, abs=0.005)


def _grams(text: str, order: int) -> list[str]:
    split = text.lower().split()
    return [" ".join(split[start : start + order]) for start in range(len(split) - order + 1)]


def _over(numerator: float, denominator: float, empty: float) -> float:
    return numerator / denominator if denominator else empty


def _harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _naive_sentence_sari(prediction: str, source: str, references: tuple[str, ...], empty: float, pooled: bool):
    """Multiset arithmetic with every text repeated once a reference, as the paper and the script put it."""
    times, total = len(references), 0.0
    for order in (1, 2, 3, 4):
        pooled_references = Counter(gram for text in references for gram in _grams(text, order))
        repeated_source = Counter(_grams(source, order) * times)
        repeated_prediction = Counter(_grams(prediction, order) * times)

        keep, ought = repeated_source & repeated_prediction, repeated_source & pooled_references
        good = keep & pooled_references
        precision = _over(sum(good[gram] / keep[gram] for gram in good), len(keep), empty)
        if pooled:
            recall = _over(good.total(), ought.total(), empty)
        else:
            recall = _over(sum(good[gram] / ought[gram] for gram in good), len(ought), empty)
        total += _harmonic(precision, recall)

        gone = repeated_source - repeated_prediction
        rightly_gone = gone - pooled_references
        total += _over(sum(rightly_gone[gram] / gone[gram] for gram in rightly_gone), len(gone), empty)

        new = set(repeated_prediction) - set(repeated_source)
        wanted = set(pooled_references) - set(repeated_source)
        hits = len(new & wanted)
        total += _harmonic(_over(hits, len(new), empty), _over(hits, len(wanted), empty))
    return total / 12


@settings(deadline=None, max_examples=40)
@given(examples)
def test_sentence_sari_equals_multiset_arithmetic(rows) -> None:
    predictions, sources, references = rows
    for name, empty, pooled in (("sari", 0.0, False), ("sari_hf", 1.0, True)):
        naive = [_naive_sentence_sari(*row, empty=empty, pooled=pooled) for row in zip(*rows, strict=True)]
        assert METRICS[name](predictions, sources, references) == pytest.approx(100 * np.mean(naive), abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(words, words, st.tuples(words.filter(bool), words.filter(bool))), min_size=1, max_size=6))
def test_corpus_sari_equals_multiset_arithmetic(rows) -> None:
    total = 0.0
    for order in (1, 2, 3, 4):
        tallies = np.zeros((3, 3))  # (add, keep, delete) by (correct, of the prediction, of the references)
        for prediction, source, references in rows:
            pooled = Counter(gram for text in references for gram in _grams(text, order))
            before, after = Counter(_grams(source, order) * 2), Counter(_grams(prediction, order) * 2)
            new, wanted = set(after) - set(before), set(pooled) - set(before)
            keep, ought = before & after, before & pooled
            gone, should_go = before - after, before - pooled
            tallies[0] += len(new & wanted), len(new), len(wanted)
            tallies[1] += (keep & ought).total(), keep.total(), ought.total()
            tallies[2] += (gone & should_go).total(), gone.total(), should_go.total()
        total += sum(_harmonic(_over(c, p, 0.0), _over(c, r, 0.0)) for c, p, r in tallies)
    predictions, sources, references = zip(*rows, strict=True)
    assert METRICS["sari_corpus"](predictions, sources, references) == pytest.approx(100 * total / 12, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(examples)
def test_bleu_and_chrf_equal_sacrebleu_with_any_number_of_references(rows) -> None:
    predictions, sources, references = rows
    streams = [list(stream) for stream in zip_longest(*references)]  # shorter rows are padded with None
    for name, sacrebleu in (("bleu", BLEU()), ("chrf", CHRF())):
        expected = sacrebleu.corpus_score(list(predictions), streams).score
        assert METRICS[name](predictions, sources, references) == pytest.approx(expected, abs=1e-9)


def _longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    if not left or not right:
        return 0
    if left[-1] == right[-1]:
        return 1 + _longest_common_subsequence(left[:-1], right[:-1])
    return max(_longest_common_subsequence(left[:-1], right), _longest_common_subsequence(left, right[:-1]))


def test_rouge_l_is_the_best_f1_of_the_longest_common_subsequence() -> None:
    prediction, references = "the red cat sat down", ["a cat sat on the mat", "the cat walked down", "no"]
    best = 0.0
    for reference in references:
        common = _longest_common_subsequence(prediction.split(), reference.split())
        best = max(best, 2 * common / (len(prediction.split()) + len(reference.split())))
    assert METRICS["rouge_l"]([prediction], ["x"], [references]) == pytest.approx(100 * best, abs=1e-9)


def test_rouge_l_does_not_forgive_an_ending() -> None:
    assert METRICS["rouge_l"](["walking"], ["x"], [["walks"]]) == 0


def test_exact_match_takes_any_reference_and_sees_case_but_not_spaces() -> None:
    predictions = ["a  cat ", "a cat", "A cat", ""]
    references = [["a dog", "a cat"], ["a dog"], ["a cat"], ["a cat"]]
    assert METRICS["exact_match"](predictions, ["x"] * 4, references) == 25.0


def test_token_f1_by_hand() -> None:
    # {the, cat, sat} against {the, cat, ran, off}: 2 * 2 / (3 + 4); the other reference shares one of two.
    assert METRICS["token_f1"](["The cat sat"], ["x"], [["the cat ran off", "cat naps"]]) == pytest.approx(400 / 7)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
class TestContract:
    """What every metric owes; a new one joins by its row in METRICS."""

    predictions = ("the cat sat on a mat .", "a red mat , the cat .", "", "the mat sat on the red cat .")
    sources = ("the cat sat on the mat .", "a mat , a cat .", "the cat", "the red cat sat on the mat .")
    references = (("the cat sat on a mat .",), ("a red mat , a cat .", "a cat , a mat ."), ("a cat",), ("red cat .",))

    def test_statistics_are_one_float64_row_an_example(self, metric) -> None:
        statistics = metric.statistics(self.predictions, self.sources, self.references)
        assert statistics.ndim == 2
        assert len(statistics) == 4
        assert statistics.dtype == np.float64
        assert metric(self.predictions, self.sources, self.references) == metric.score(statistics.sum(0))

    def test_repeating_the_test_set_changes_nothing_and_order_does_not_matter(self, metric) -> None:
        score = metric(self.predictions, self.sources, self.references)
        assert metric(self.predictions * 3, self.sources * 3, self.references * 3) == pytest.approx(score, abs=1e-9)
        turned = (self.predictions[::-1], self.sources[::-1], self.references[::-1])
        assert metric(*turned) == pytest.approx(score, abs=1e-9)

    def test_counts_times_statistics_is_the_score_of_the_resample(self, metric) -> None:
        statistics = metric.statistics(self.predictions, self.sources, self.references)
        drawn = [0, 0, 3, 1]
        texts = ([column[row] for row in drawn] for column in (self.predictions, self.sources, self.references))
        counts = np.array([[2.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
        scores = metric.score(counts @ statistics)
        assert scores.shape == (2,)
        assert scores[0] == pytest.approx(metric(*texts), abs=1e-9)

    def test_scores_lie_between_0_and_100_and_a_right_answer_beats_a_wrong_one(self, metric) -> None:
        right = [answers[0] for answers in self.references]
        best = metric(right, self.sources, self.references)
        assert 0 <= metric(["zzz"] * 4, self.sources, self.references) < best <= 100 + 1e-9
        assert metric([""] * 4, self.sources, self.references) < best

    def test_bad_input_is_an_error_that_names_the_row(self, metric) -> None:
        with pytest.raises(ValueError, match="'predictions': 1, 'sources': 2"):
            metric(["a"], ["a", "b"], [["a"]])
        with pytest.raises(ValueError, match="predictions is empty"):
            metric([], [], [])
        with pytest.raises(ValueError, match=r"references\[1\] is empty"):
            metric(["a", "b"], ["a", "b"], [["a"], []])
        with pytest.raises(ValueError, match=r"references\[0\] has a blank"):
            metric(["a"], ["a"], [[" "]])
        with pytest.raises(ValueError, match=r"references\[0\] is a string"):
            metric(["a"], ["a"], ["a"])


def test_sari_of_four_thousand_rows_takes_seconds() -> None:
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"word{number}" for number in range(2000)])
    sources = [" ".join(rng.choice(vocabulary, 20)) for _ in range(4000)]
    references = [[text.replace("word1", f"new{number} ") for number in range(4)] for text in sources]
    start = time.process_time()  # not the clock on the wall: tests share their cores
    METRICS["sari"](sources, sources, references)
    assert time.process_time() - start < 20


AVERAGE = METRICS["exact_match"]  # its score is the plain mean of the rows (value, 1)


def _rows(values: np.ndarray) -> np.ndarray:
    return np.stack([values, np.ones_like(values)], axis=-1)


def test_bootstrap_has_the_width_of_the_central_limit_theorem() -> None:
    values = np.random.default_rng(0).uniform(size=2000)
    interval = bootstrap(AVERAGE, _rows(values), resamples=4000, seed=1)
    half = 100 * 1.96 * values.std() / np.sqrt(len(values))
    assert interval.value == pytest.approx(100 * values.mean())
    assert interval.high - interval.value == pytest.approx(half, rel=0.06)
    assert interval.value - interval.low == pytest.approx(half, rel=0.06)


def test_bootstrap_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = {"one": 0, "difference": 0}
    for trial in range(300):
        ease = rng.normal(0.5, 0.2, size=150)  # shared by both arms: what pairing removes
        arm_a, arm_b = (_rows(ease + rng.normal(shift, 0.1, size=150)) for shift in (0.05, 0.0))
        one = bootstrap(AVERAGE, arm_a, resamples=200, level=0.9, seed=trial)
        difference = bootstrap_difference(AVERAGE, arm_a, arm_b, resamples=200, level=0.9, seed=trial)
        covered["one"] += one.low <= 55 <= one.high
        covered["difference"] += difference.low <= 5 <= difference.high
    # 0.90 +- 3 standard errors of a binomial with 300 trials (0.052)
    assert 0.848 < covered["one"] / 300 < 0.952
    assert 0.848 < covered["difference"] / 300 < 0.952


@pytest.mark.parametrize("seeds", [3, 5, 12])
def test_intervals_cover_a_mean_that_varies_with_the_seed_too(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    hits = {"one": 0, "difference": 0, "examples alone": 0}
    for trial in range(600):
        ease = rng.normal(0.5, 0.1, size=100)
        arm_a, arm_b = (
            _rows(ease + rng.normal(shift, 0.03, size=(seeds, 1)) + rng.normal(0, 0.05, size=(seeds, 100)))
            for shift in (0.0, 0.05)
        )
        one = bootstrap(AVERAGE, arm_a, resamples=200, level=0.9, seed=trial)
        apart = bootstrap_difference(AVERAGE, arm_b, arm_a, resamples=200, level=0.9, seed=trial)
        pooled = bootstrap(AVERAGE, arm_a.mean(0), resamples=200, level=0.9, seed=trial)
        hits["one"] += one.low <= 50 <= one.high
        hits["difference"] += apart.low <= 5 <= apart.high
        hits["examples alone"] += pooled.low <= 50 <= pooled.high
    # 0.90 +- 3 standard errors of a binomial with 600 trials (0.037), and a little more above: the sum of the two parts
    # has tails that are not quite those of its seeds' part.
    assert 0.863 < hits["one"] / 600 < 0.95
    assert 0.863 < hits["difference"] / 600 < 0.95
    assert hits["examples alone"] < hits["one"] - 40  # the seeds' part is real: without it the intervals are too short


def test_pairing_makes_the_interval_of_a_difference_shorter() -> None:
    rng = np.random.default_rng(0)
    ease = rng.uniform(size=400)
    arm_a, arm_b = _rows(ease), _rows(ease - 0.01)
    interval = bootstrap_difference(AVERAGE, arm_a, arm_b, seed=0)
    assert interval == pytest.approx((1.0, 1.0, 1.0))
    alone = bootstrap(AVERAGE, arm_a, seed=0)
    assert alone.high - alone.low > 1


def test_bootstrap_is_seeded_and_does_not_depend_on_its_blocks(monkeypatch) -> None:
    values = _rows(np.random.default_rng(0).uniform(size=(3, 50)))
    first = bootstrap(AVERAGE, values, resamples=200, seed=7)
    assert bootstrap(AVERAGE, values, resamples=200, seed=7) == first
    assert bootstrap(AVERAGE, values, resamples=200, seed=8) != first
    monkeypatch.setattr(sys.modules[bootstrap.__module__], "_BLOCK_ELEMENTS", 50 * 7)
    assert bootstrap(AVERAGE, values, resamples=200, seed=7) == pytest.approx(first, abs=1e-9)


def test_difference_of_a_run_with_itself_is_zero_and_arms_may_have_different_numbers_of_seeds() -> None:
    values = _rows(np.random.default_rng(0).uniform(size=50))
    assert bootstrap_difference(AVERAGE, values, values, seed=0) == (0.0, 0.0, 0.0)
    three = np.stack([values] * 3)
    assert bootstrap_difference(AVERAGE, three, values, seed=0) == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def test_bootstrap_refuses_what_it_cannot_resample() -> None:
    rows = _rows(np.ones(5))
    with pytest.raises(ValueError, match=r"statistics has shape \(5,\)"):
        bootstrap(AVERAGE, np.ones(5), seed=0)
    with pytest.raises(ValueError, match="at least one seed and one test example"):
        bootstrap(AVERAGE, np.ones((0, 2)), seed=0)
    with pytest.raises(ValueError, match=r"level is 95"):
        bootstrap(AVERAGE, rows, level=95, seed=0)
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap(AVERAGE, rows, resamples=0, seed=0)
    with pytest.raises(ValueError, match=r"the arms have \[4, 5\] test examples"):
        bootstrap_difference(AVERAGE, rows, rows[:4], seed=0)


def test_average_is_a_percentage() -> None:
    assert average(np.array([[1.0, 4.0], [4.0, 4.0]])) == pytest.approx([25.0, 100.0])
