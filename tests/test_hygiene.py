"""Duplicates, leaks and lengths, against brute force; and that every dropped row is accounted for."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import brute_distances

from deft_tsds.data.hygiene import Hygiene, pairs_within
from deft_tsds.data.minhash import similar_pairs

KEY = jax.random.key(0)
SHARED = Path(__file__).parents[2] / "shared" / "data" / "domain"

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "rug", "with"]
WORDS += ["for", "bird", "fish", "near", "far", "quickly", "slowly", "never", "always"]


def sentences(n, seed=0, length=14):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, length)) for _ in range(n)]


def shingles(text):
    text = " ".join(text.split()).casefold()
    return {text[i : i + 5] for i in range(max(1, len(text) - 4))}


def jaccard(a, b):
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def near_copies(n=150, seed=0):
    """Sentences, and for a third of them a copy with one or two words replaced."""
    texts = sentences(n, seed)
    rng = np.random.default_rng(seed)
    for i in range(n // 3):
        words = texts[i].split()
        for place in rng.choice(len(words), 1 + i % 2, replace=False):
            words[place] = str(rng.choice(WORDS))
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 1.0])
def test_minhash_against_all_pairs(threshold):
    texts = near_copies()
    found = similar_pairs(texts, threshold=threshold, key=KEY)
    expected = {
        (i, j): jaccard(texts[i], texts[j])
        for i, j in itertools.combinations(range(len(texts)), 2)
        if jaccard(texts[i], texts[j]) >= threshold
    }
    reported = dict(zip(map(tuple, found.pairs_Px2.tolist()), found.jaccard_P.tolist(), strict=True))
    assert set(reported) <= set(expected)
    assert all(reported[pair] == expected[pair] for pair in reported)
    assert found.missed <= 0.01
    # Each missed with a probability of at most `missed`: so many more than expected has a chance below 1e-4.
    missed = len(expected) - len(reported)
    assert missed <= found.missed * len(expected) + 4 * np.sqrt(found.missed * len(expected)) + 1


def test_minhash_of_odd_texts():
    texts = ["", "abc", "ABC ", "abcd", "", "élan vital", "ÉLAN  vital", "\ud800 lone"]
    found = similar_pairs(texts, threshold=1.0, key=KEY)
    assert set(map(tuple, found.pairs_Px2.tolist())) == {(0, 4), (1, 2), (5, 6)}
    with pytest.raises(ValueError, match=r"threshold is 0\.05"):
        similar_pairs(texts, threshold=0.05, key=KEY)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab c", max_size=9), min_size=1, max_size=12))
def test_minhash_reports_no_pair_below_the_threshold(texts):
    found = similar_pairs(texts, threshold=0.5, key=KEY)
    assert all(jaccard(texts[i], texts[j]) >= 0.5 for i, j in found.pairs_Px2)
    for i, j in itertools.combinations(range(len(texts)), 2):
        if shingles(texts[i]) == shingles(texts[j]):  # equal sets have equal signatures
            assert [i, j] in found.pairs_Px2.tolist()


def components(n, pairs):
    group = list(range(n))
    for i, j in pairs:
        a, b = sorted((group[i], group[j]))
        group = [a if g == b else g for g in group]
    return group


def test_pairs_within_connect_what_all_pairs_connect():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4)).astype(np.float32)
    x[40:80] = x[0] + 0.01 * rng.normal(size=(40, 4))  # more near-duplicates than the first search asks for
    x[100:110] = x[5]
    for cosine in (0.8, 0.99):
        near = np.argwhere(np.triu(1 - brute_distances(x, x, "cosine") >= cosine, 1))
        assert components(120, pairs_within(x, cosine)) == components(120, near)


def test_exact_and_near_duplicates_by_text():
    texts = near_copies()
    texts[20] = "  " + texts[3].upper()
    cleaned = Hygiene(leak_words=None)(texts, key=KEY)
    exact, near = cleaned.findings
    assert exact.rows.tolist() == [20]
    assert exact.because == ({"repeats": 3},)
    left = [row for row in range(len(texts)) if row != 20]
    pairs = [(i, j) for i, j in itertools.combinations(left, 2) if jaccard(texts[i], texts[j]) >= 0.8]
    group = components(len(texts), pairs)
    assert near.rows.tolist() == [row for row in left if group[row] != row]
    for row, because in zip(near.rows.tolist(), near.because, strict=True):
        assert because["repeats"] == group[row]
        assert because["group_size"] == sum(g == group[row] for g in group)
    assert cleaned.rows.tolist() == [row for row in left if group[row] == row]


def test_duplicates_by_embedding():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6)).astype(np.float32)
    x[30:40] = x[:10] + 0.01 * rng.normal(size=(10, 6))
    cleaned = Hygiene(near="embedding", cosine=0.99, leak_words=None)(sentences(50), key=KEY, embeddings=x)
    group = components(50, np.argwhere(np.triu(1 - brute_distances(x, x, "cosine") >= 0.99, 1)))
    assert cleaned.rows.tolist() == [row for row in range(50) if group[row] == row]
    assert cleaned.findings[-1].because[0] == {"repeats": 0, "group_size": 2}


def plain_leaks(texts, tests, n):
    """Every run of n words of every pair, compared one by one."""

    def words(text):
        return "".join(c if c.isalnum() else " " for c in text.casefold()).split()

    leaks = []
    for row, text in enumerate(texts):
        w = words(text)
        for test in tests:
            t = words(test)
            if len(t) < n:
                hit = w == t and bool(t)
            else:
                hit = any(w[i : i + n] == t[j : j + n] for i in range(len(w) - n + 1) for j in range(len(t) - n + 1))
            if hit:
                leaks.append(row)
                break
    return leaks


def test_leaks_by_words():
    tests = [*sentences(20, seed=5, length=16), "A short one!", "", "!?"]
    texts = sentences(40, seed=6, length=20)
    texts[3] = "Before it, " + tests[2].upper().replace(" ", ", ") + " after it."
    texts[4] = " ".join(tests[7].split()[2:15])  # 13 of its words
    texts[5] = " ".join(tests[7].split()[2:14])  # only 12
    texts[6] = "a SHORT one"
    texts[7] = "a short one more"
    texts[8] = "..."
    cleaned = Hygiene(exact=False, near=None)(texts, key=KEY, tests={"exam": tests})
    (leaks,) = cleaned.findings
    assert leaks.rows.tolist() == plain_leaks(texts, tests, 13) == [3, 4, 6]
    assert leaks.because[1]["test"] == "exam"
    assert leaks.because[1]["test_row"] == 7
    assert leaks.because[1]["words"] == texts[4]
    assert leaks.examples[1]["other"] == tests[7]
    three = Hygiene(exact=False, near=None, leak_words=3)(texts, key=KEY, tests={"exam": tests[:2]})
    assert three.findings[0].rows.tolist() == plain_leaks(texts, tests[:2], 3)


def test_leaks_by_embedding():
    rng = np.random.default_rng(0)
    x, tests = rng.normal(size=(60, 4)), rng.normal(size=(9, 4))
    options = {"embeddings": x, "test_embeddings": {"exam": tests[:4], "queries": tests[4:]}}
    cleaned = Hygiene(exact=False, near=None, leak_words=None, leak_cosine=0.8)(sentences(60), key=KEY, **options)
    cosine = 1 - brute_distances(x, tests, "cosine")
    (leaks,) = cleaned.findings
    assert leaks.rows.tolist() == np.flatnonzero((cosine >= 0.8).any(axis=1)).tolist()
    assert 0 < len(leaks.rows) < 60
    for row, because in zip(leaks.rows, leaks.because, strict=True):
        place = because["test_row"] + (4 if because["test"] == "queries" else 0)
        assert because["cosine"] == pytest.approx(cosine[row, place], abs=1e-6)


def test_lengths():
    lengths = np.array([3, 10, 50, 7, 2])
    keep = {"leak_words": None, "exact": False, "near": None}
    cleaned = Hygiene(shortest=3, longest=10, **keep)(sentences(5), key=KEY, lengths=lengths)
    assert cleaned.rows.tolist() == [0, 1, 3]
    (finding,) = cleaned.findings
    assert finding.rule == "fewer than 3 tokens or more than 10 tokens"
    assert finding.because == ({"tokens": 50}, {"tokens": 2})


def test_checks_follow_one_another_and_the_report_accounts_for_every_row(tmp_path):
    """A row that an earlier check dropped does not stand for its duplicates later."""
    texts = [*sentences(30, seed=1), *sentences(4, seed=2)]
    texts[10] = texts[30]  # leaks, as row 30 does
    texts[11] = texts[0]
    lengths = [len(text.split()) for text in texts]
    lengths[0] = 999  # so row 11 is now the first of its kind
    hygiene = Hygiene(longest=100)
    cleaned = hygiene(texts, key=KEY, tests={"exam": sentences(4, seed=2)}, lengths=lengths)
    assert [(finding.check, len(finding.rows)) for finding in cleaned.findings] == [
        ("length", 1),
        ("leak by words", 5),
        ("exact duplicates", 0),
        ("near-duplicates by MinHash", 0),
    ]
    dropped = np.concatenate([finding.rows for finding in cleaned.findings])
    assert sorted([*dropped.tolist(), *cleaned.rows.tolist()]) == list(range(34))
    assert 11 in cleaned.rows
    cleaned.save(tmp_path / "hygiene.json")
    report = json.loads((tmp_path / "hygiene.json").read_text())
    assert (report["candidates"], report["left"]) == (34, 28)
    assert [check["dropped"] for check in report["checks"]] == [1, 5, 0, 0]
    assert report["checks"][1]["examples"][0]["other"] == texts[30]
    assert "34 rows, 28 left" in str(cleaned)
    assert "5  leak by words: shares 13 consecutive words" in str(cleaned)


def test_refusals():
    texts = sentences(4)
    x = np.ones((4, 2))
    cases = [
        (Hygiene(), {"texts": []}, "texts is empty"),
        (Hygiene(longest=3), {}, "need lengths"),
        (Hygiene(longest=3), {"lengths": [1, 2]}, r"lengths has shape \(2,\)"),
        (Hygiene(near="embedding"), {}, "need embeddings"),
        (Hygiene(leak_cosine=0.9), {"embeddings": x}, "needs test_embeddings"),
        (Hygiene(near="embedding"), {"embeddings": x[:3]}, "embeddings has 3 rows for 4 texts"),
        (Hygiene(near="embedding"), {"embeddings": x * np.nan}, "embeddings, row 0, has a NaN"),
        (Hygiene(leak_cosine=0.9), {"embeddings": x, "test_embeddings": {"t": np.ones((1, 3))}}, "3 dimensions"),
        (Hygiene(shortest=99), {"lengths": [1] * 4}, "no row is left:\n4 rows, 0 left"),
    ]
    for hygiene, options, message in cases:
        with pytest.raises(ValueError, match=message):
            hygiene(**{"texts": texts, "key": KEY, **options})
    for options, message in [
        ({"shortest": 0}, "shortest is 0"),
        ({"leak_words": 0}, "leak_words is 0"),
        ({"leak_cosine": 2}, "leak_cosine is 2"),
        ({"jaccard": 0}, "jaccard is 0"),
        ({"near": "both"}, "near is 'both': choose one of minhash, embedding, or None"),
    ]:
        with pytest.raises(ValueError, match=message):
            Hygiene(**options)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real text data in ../shared/data is not here")
def test_real_text():
    with gzip.open(SHARED / "domain_pool.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 4000)]
    texts = [row.get("text") or row["input"] for row in rows]
    found = similar_pairs(texts, threshold=0.8, key=KEY)
    assert all(jaccard(texts[i], texts[j]) == s for (i, j), s in zip(found.pairs_Px2, found.jaccard_P, strict=True))
    again = similar_pairs(texts, threshold=0.8, key=jax.random.key(1))
    both = set(map(tuple, found.pairs_Px2.tolist())) ^ set(map(tuple, again.pairs_Px2.tolist()))
    assert len(both) <= 1 + 0.02 * len(found.pairs_Px2)  # other hash functions find the same pairs
