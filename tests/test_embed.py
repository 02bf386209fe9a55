"""Encoders: the lexical one against scikit-learn's own pipeline, the sentence-transformers one against the library."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deft_tsds.embed import Encoder, Fittable
from deft_tsds.embed import sentence_transformers as st_module
from deft_tsds.embed.lexical import Lexical, LexicalEncoder
from deft_tsds.embed.sentence_transformers import SentenceTransformers
from deft_tsds.embed.store import write_store

KEY = jax.random.key(0)
WORDS = (
    *("the", "a", "cat", "dog", "house", "tree", "runs", "sleeps", "quickly", "slowly", "under", "over"),
    *("big", "small", "red", "blue", "and", "but", "never", "often"),
)
SMALL = Lexical(dimension=12, hash_features=2**12, max_features=2**13, power_iterations=8)


def sentences(count: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, size=generator.integers(4, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def fitted() -> LexicalEncoder:
    return SMALL.fit(sentences(80), key=KEY)


def test_the_contracts(fitted: LexicalEncoder) -> None:
    assert isinstance(SMALL, Fittable)
    assert isinstance(fitted, Encoder)


def test_against_the_pipeline_of_scikit_learn(fitted: LexicalEncoder) -> None:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import Normalizer

    hashing: dict[str, Any] = {"n_features": 2**12, "norm": None, "alternate_sign": False}
    words = HashingVectorizer(ngram_range=(1, 2), token_pattern=r"\b\w+\b", **hashing)
    characters = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), **hashing)
    oracle = make_pipeline(
        make_union(words, characters),
        TfidfTransformer(sublinear_tf=True),
        TruncatedSVD(12, algorithm="arpack", random_state=0),
        Normalizer(),
    )
    oracle.fit(sentences(80))
    for texts in (sentences(80), sentences(10, seed=1)):
        rows, expected = fitted.encode(texts), oracle.transform(texts)
        assert rows.dtype == np.float32
        # Singular vectors are unique up to sign, so the angles between rows are what must agree.
        np.testing.assert_allclose(rows @ rows.T, expected @ expected.T, atol=2e-4)


def test_max_features_keeps_the_columns_of_the_most_texts() -> None:
    few = Lexical(dimension=4, max_features=30, hash_features=2**12)
    encoder = few.fit(sentences(80), key=KEY)
    counts = few._counts(sentences(80)).toarray()
    frequency = (counts > 0).sum(axis=0)
    assert encoder.columns_F.size == 30
    assert (np.diff(encoder.columns_F) > 0).all()
    dropped = np.setdiff1d(np.arange(counts.shape[1]), encoder.columns_F)
    assert frequency[encoder.columns_F].min() >= frequency[dropped].max()


def test_rows_have_unit_length_and_depend_on_their_own_text_alone(fitted: LexicalEncoder) -> None:
    texts = sentences(50, seed=2)
    rows = fitted.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(rows, np.concatenate([fitted.encode([text]) for text in texts]))
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(rows[order], fitted.encode([texts[row] for row in order]))


def test_the_same_key_gives_the_same_bits(fitted: LexicalEncoder) -> None:
    again = SMALL.fit(sentences(80), key=KEY)
    np.testing.assert_array_equal(again.vectors_FxD, fitted.vectors_FxD)
    assert again.settings() == fitted.settings()
    assert SMALL.fit(sentences(79), key=KEY).settings() != fitted.settings()


def test_saved_and_loaded_it_embeds_queries_bit_for_bit(fitted: LexicalEncoder, tmp_path: Path) -> None:
    fitted.save(tmp_path / "lexical.npz")
    loaded = LexicalEncoder.load(tmp_path / "lexical.npz")
    queries = sentences(9, seed=3)
    assert loaded.recipe == SMALL
    assert loaded.settings() == fitted.settings()
    np.testing.assert_array_equal(loaded.encode(queries), fitted.encode(queries))
    fitted.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "lexical.npz").read_bytes()


def test_a_broken_state_is_refused(fitted: LexicalEncoder, tmp_path: Path) -> None:
    fitted.save(tmp_path / "whole.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:2000])
    np.savez(tmp_path / "other.npz", columns=np.zeros(3))
    for file in ("cut.npz", "other.npz"):
        with pytest.raises(ValueError, match=r"holds no lexical encoder.*Fit it again"):
            LexicalEncoder.load(tmp_path / file)


@pytest.mark.parametrize(
    ("texts", "dimension"),
    [
        (["one text"], 1),
        (["one text"] * 7, 1),
        (["first text here", "second thing there", "first text here"], 2),
        (["a"], 1),
    ],
)
def test_small_pools_give_as_many_dimensions_as_they_have(texts: list[str], dimension: int) -> None:
    encoder = Lexical(hash_features=2**12).fit(texts, key=KEY)
    rows = encoder.encode(texts)
    assert rows.shape == (len(texts), dimension)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_a_text_without_known_ngrams_is_zero(fitted: LexicalEncoder) -> None:
    wide = Lexical(dimension=12).fit(sentences(80), key=KEY)  # wide hashes: no collision lends it an n-gram
    assert not wide.encode(["日本語", "", "  "]).any()


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_any_text_gives_unit_or_zero_rows(texts: list[str], fitted: LexicalEncoder) -> None:
    norms = np.linalg.norm(fitted.encode(texts), axis=1)
    assert (np.isclose(norms, 1, atol=1e-5) | (norms == 0)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dimension": 0}, "dimension is 0"),
        ({"hash_features": 0}, "hash_features is 0"),
        ({"word_ngrams": (2, 1)}, r"word_ngrams is \(2, 1\)"),
        ({"char_ngrams": (0, 2)}, r"char_ngrams is \(0, 2\)"),
        ({"power_iterations": -1}, "power_iterations is -1"),
    ],
)
def test_a_recipe_that_makes_no_sense(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lexical(**arguments)


def test_a_pool_that_teaches_nothing() -> None:
    with pytest.raises(ValueError, match="texts is empty"):
        SMALL.fit([], key=KEY)
    with pytest.raises(ValueError, match="no n-gram in any row"):
        SMALL.fit(["", "  "], key=KEY)


def test_another_fit_is_refused_by_the_store(fitted: LexicalEncoder, tmp_path: Path) -> None:
    pool = sentences(80)
    rows = write_store(tmp_path / "pool", pool, fitted, shard_rows=32).array()
    np.testing.assert_allclose(rows, fitted.encode(pool), atol=1e-6)
    with pytest.raises(ValueError, match=r"settings\.fitted differ"):
        write_store(tmp_path / "pool", pool, SMALL.fit(sentences(79), key=KEY), shard_rows=32)


def test_near_duplicates_are_near() -> None:
    encoder = Lexical(dimension=64).fit(sentences(300), key=KEY)
    text, near, far = encoder.encode(
        ["the big cat runs under the red house", "the big cats run under the red house", "but never often slowly"]
    )
    assert text @ near > 0.7
    assert text @ near > text @ far + 0.3


def test_a_missing_package_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(st_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'pip install "deft-tsds\[encoders\]"'):
        SentenceTransformers("any")


def test_it_gives_what_the_library_gives(tiny_sentence_transformer: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = sentences(20)
    expected = SentenceTransformer(str(tiny_sentence_transformer), device="cpu").encode(texts)
    raw = SentenceTransformers(str(tiny_sentence_transformer), normalize=False, device="cpu")
    unit = SentenceTransformers(str(tiny_sentence_transformer), normalize=True, device="cpu", batch_size=3)
    assert isinstance(raw, Encoder)
    np.testing.assert_allclose(raw.encode(texts), expected, atol=1e-6)
    np.testing.assert_allclose(
        unit.encode(texts), expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6
    )


def test_its_batches_are_sorted_by_tokens(tiny_sentence_transformer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = SentenceTransformers(str(tiny_sentence_transformer), device="cpu", batch_size=4)
    # Words cost a token a letter here, and unknown ones a single token however long they are.
    texts = ["a", "日" * 90, "cat " * 9, "ab " * 3, "語" * 70, "dog " * 5, "the cat", "b" * 40, "c", "x y z"]
    plain, seen = encoder._model.encode, []

    def encode(batch: list[str], **options: Any) -> np.ndarray:
        seen.append(batch)
        return plain(batch, **options)

    monkeypatch.setattr(encoder._model, "encode", encode)
    rows = encoder.encode(texts)
    counts = [len(encoder._model.tokenizer(text)["input_ids"]) for batch in seen for text in batch]
    assert [len(batch) for batch in seen] == [4, 4, 2]
    assert counts == sorted(counts, reverse=True)
    np.testing.assert_allclose(rows, plain(texts, normalize_embeddings=True), atol=1e-6)
    assert encoder.encode([]).shape == (0, 16)


def test_its_settings_follow_weights_not_paths(tiny_sentence_transformer: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    moved = tmp_path / "model"
    shutil.copytree(tiny_sentence_transformer, moved)
    here = SentenceTransformers(str(tiny_sentence_transformer), device="cpu").settings()
    assert SentenceTransformers(str(moved), device="cpu", batch_size=2).settings() == here
    assert SentenceTransformers(str(moved), device="cpu", normalize=False).settings() != here
    model: Any = SentenceTransformer(str(moved), device="cpu")
    model[1] = type(model[1])(16, "cls")
    model.save(str(moved))
    assert SentenceTransformers(str(moved), device="cpu").settings() != here


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be loaded"):
        SentenceTransformers(str(tmp_path / "none")).settings()
