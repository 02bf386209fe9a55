"""Decoding: n-best and minimal lengths against transformers, draws against their probabilities, padding, programs.

Greedy and beam search on the cross of architectures are in `test_t5_parity.py`.
"""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from t5_oracle import batch, save_torch_t5, trimmed

from deft_tsds.t5 import generate, generate_texts, load_pretrained, train_tokenizer
from deft_tsds.t5.decode import draw
from deft_tsds.t5.generate import _bucket
from deft_tsds.t5.model import T5, T5Config


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flan")
    return save_torch_t5("flan", folder), load_pretrained(folder)


@pytest.fixture(scope="module")
def flan(pair):
    return pair[1]


def _torch_generate(model, ids, mask, **options):
    arrays = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask).long()}
    return model.generate(**arrays, do_sample=False, **options).numpy()[:, 1:]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length_penalty": 2.0},
        {"length_penalty": -0.5, "min_new_tokens": 8},
        {"early_stopping": True},
        {"early_stopping": "never", "length_penalty": 0.6},
    ],
    ids=str,
)
def test_the_four_best_of_four_beams_are_those_of_transformers(pair, options):
    theirs, ours = pair
    ids, mask = batch(32, 21, seed=2)
    options = {"max_new_tokens": 15, "num_beams": 4, **options}
    expected = _torch_generate(theirs, ids, mask, num_return_sequences=4, **options)
    found = generate(ours, ids, mask, num_return=4, **options)
    assert found.shape[:2] == (32, 4)
    assert len({len(row) for row in trimmed(expected)}) > 3
    assert trimmed(found.reshape(32 * 4, -1)) == trimmed(expected)
    if not options.get("early_stopping"):
        best = generate(ours, ids, mask, **options)
        assert trimmed(best) == trimmed(found[:, 0])


def test_min_new_tokens_is_that_of_transformers(pair):
    theirs, ours = pair
    ids, mask = batch(32, 21, seed=1)
    options: dict[str, Any] = {"max_new_tokens": 16, "min_new_tokens": 9}
    expected = _torch_generate(theirs, ids, mask, **options)
    assert min(map(len, trimmed(expected))) == 10  # nine others, then the end
    np.testing.assert_array_equal(generate(ours, ids, mask, **options), expected)


def test_beams_find_what_exhaustive_search_finds():
    config = T5Config(vocab_size=5, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_decoder_layers=1, num_heads=2)
    model = T5(config, rngs=nnx.Rngs(3))
    model.decoder.norm.scale_D[...] = model.decoder.norm.scale_D[...] * 3
    ids, mask = batch(2, 6, vocab_size=5)
    length = 3
    every = np.array(list(itertools.product(range(5), repeat=length)), np.int32)
    found = generate(model, ids, mask, max_new_tokens=length, num_beams=125, length_penalty=0.0)
    for row in range(2):
        sources = (np.repeat(array[row : row + 1], len(every), 0) for array in (ids, mask))
        inputs = np.concatenate([np.zeros((len(every), 1), np.int32), every[:, :-1]], axis=1)
        log_p = jax.nn.log_softmax(jax.jit(lambda *arrays: model(*arrays))(*sources, inputs))
        steps = np.take_along_axis(np.asarray(log_p), every[:, :, None], axis=2)[:, :, 0]
        after_end = np.cumsum(every == 1, axis=1) - (every == 1) > 0
        scores = np.where(after_end, 0.0, steps).sum(axis=1)
        best = trimmed(every[np.argmax(scores)][None])[0]
        assert trimmed(found[row : row + 1])[0][: len(best)] == best


@pytest.mark.parametrize("num_beams", [1, 3])
def test_padding_and_neighbours_change_nothing(flan, num_beams):
    ids, mask = batch(6, 14, seed=3)
    together = generate(flan, ids, mask, max_new_tokens=12, num_beams=num_beams)
    padded = np.pad(ids, ((0, 0), (0, 10)), constant_values=7), np.pad(mask, ((0, 0), (0, 10)))
    assert trimmed(generate(flan, *padded, max_new_tokens=12, num_beams=num_beams)) == trimmed(together)
    alone = [generate(flan, ids[i : i + 1], mask[i : i + 1], max_new_tokens=12, num_beams=num_beams) for i in range(6)]
    assert [trimmed(row)[0] for row in alone] == trimmed(together)


def test_rows_that_ended_emit_padding_and_the_loop_stops_with_the_last(flan):
    ids, mask = batch(32, 21, seed=1)
    tokens = generate(flan, ids, mask, max_new_tokens=30)
    rows = [row for row, kept in zip(tokens, trimmed(tokens), strict=True) if len(kept) < 30]
    assert rows
    for row in rows:
        assert (row[list(row).index(1) + 1 :] == 0).all()
    short = [i for i, row in enumerate(trimmed(tokens)) if len(row) < 10]
    few = generate(flan, ids[short], mask[short], max_new_tokens=30)
    assert few.shape[1] == max(len(row) for row in trimmed(few)) < 10


def test_models_of_one_architecture_share_a_program(monkeypatch):
    traces = []
    encode = T5.encode
    monkeypatch.setattr(T5, "encode", lambda self, *args: (traces.append(self.config), encode(self, *args))[1])
    config = T5Config(vocab_size=29, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_decoder_layers=1, num_heads=2)
    models = [T5(config, rngs=nnx.Rngs(seed)) for seed in range(3)]
    ids, mask = batch(2, 6, vocab_size=29)
    greedy = [generate(model, ids, mask, max_new_tokens=5) for model in models]
    assert traces == [config]
    for length_penalty, model in enumerate(models):
        generate(model, ids, mask, max_new_tokens=5, num_beams=2, length_penalty=length_penalty)
    assert traces == [config, config]
    # Nor does a program depend on a length within its bucket, or on any number that is no shape.
    for length in (3, 16):
        generate(models[0], ids[:, :length], mask[:, :length], max_new_tokens=length, min_new_tokens=2)
    assert traces == [config, config]
    for temperature, top_p in ((0.5, 0.9), (2.0, 0.3)):
        generate(models[0], ids, mask, max_new_tokens=5, key=jax.random.key(1), temperature=temperature, top_p=top_p)
    assert traces == [config, config, config]
    assert len({tokens.tobytes() for tokens in greedy}) > 1


def test_buckets_are_few_and_never_too_short():
    assert [_bucket(length) for length in (1, 16, 17, 64, 65, 97, 129, 200, 512)] == [
        16, 16, 32, 64, 96, 128, 192, 256, 512,
    ]  # fmt: skip
    assert all(length <= _bucket(length) <= max(length + 15, 1.5 * length) for length in range(1, 2000))
    assert len({_bucket(length) for length in range(1, 1025)}) <= 12


def test_texts_come_back_in_order_whatever_the_batch(tmp_path):
    texts = [f"word {'very ' * (i * 7 % 23)}long {i}" for i in range(11)]
    tokenizer = train_tokenizer(texts, vocab_size=270)
    config = T5Config(
        vocab_size=len(tokenizer) + 3, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=4,
        tie_word_embeddings=False, scale_decoder_outputs=False,
    )  # fmt: skip
    model = T5(config, rngs=nnx.Rngs(0))
    options: dict[str, Any] = {"max_input_tokens": 40, "max_new_tokens": 6}
    answers = generate_texts(model, tokenizer, texts, batch_size=4, **options)
    assert len(set(answers)) > 3
    assert answers == generate_texts(model, tokenizer, texts, batch_size=11, **options)
    drawn = generate_texts(model, tokenizer, texts, batch_size=4, key=jax.random.key(0), **options)
    assert drawn == generate_texts(model, tokenizer, texts, batch_size=11, key=jax.random.key(0), **options) != answers
    for i in (0, 5):
        rows = tokenizer([texts[i]], truncation=True, max_length=40, return_tensors="np")
        tokens = generate(model, rows["input_ids"], rows["attention_mask"], max_new_tokens=6)
        assert answers[i] == tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]
    assert generate_texts(model, tokenizer, [], batch_size=4, **options) == []
    assert len(generate_texts(model, tokenizer, ["", "a"], batch_size=1, **options)) == 2


def test_a_few_prompts_are_padded_to_few_rows(flan, monkeypatch):
    """Not to a whole batch; nor has the last batch of many a shape of its own."""
    model, seen = flan, []
    tokenizer: Any = _Lengths()

    def shapes(model, ids_BxS, mask_BxS, **options):
        seen.append(ids_BxS.shape[0])
        return np.ones((len(ids_BxS), 2), np.int32)

    monkeypatch.setattr(importlib.import_module("deft_tsds.t5.generate"), "generate", shapes)
    for prompts, batch_size, expected in ((3, 64, [16]), (17, 64, [32]), (3, 2, [2, 2]), (70, 64, [64, 64])):
        seen.clear()
        answers = generate_texts(
            model, tokenizer, ["a b"] * prompts, batch_size=batch_size, max_input_tokens=8, max_new_tokens=2
        )
        assert (len(answers), seen) == (prompts, expected)


class _Lengths:
    """Stands for a tokenizer: a token for each word."""

    def __len__(self) -> int:
        return 2

    def __call__(self, texts, **options):
        return {"input_ids": [[1] * len(text.split()) for text in texts]}

    def batch_decode(self, tokens, **options):
        return ["x"] * len(tokens)


def _probabilities(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """float64: softmax of the scaled logits, cut to the top k, of these to the top p, normalised."""
    p = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    order = np.argsort(-p)
    kept = order if top_k is None else order[:top_k]
    if top_p is not None:
        share = p[kept] / p[kept].sum()
        kept = kept[: 1 + np.searchsorted(np.cumsum(share), top_p)]
    found = np.zeros_like(p)
    found[kept] = p[kept] / p[kept].sum()
    return found


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.6, None, None), (1.7, 5, None), (1.0, None, 0.7), (1.3, 8, 0.8)],
)
def test_draws_have_the_filtered_probabilities(temperature, top_k, top_p):
    draws = 40_000
    logits = np.random.default_rng(0).normal(0, 1.5, 13).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), draws)
    drawn = draw(jnp.tile(logits, (draws, 1)), keys, temperature, top_k, top_p)
    expected = _probabilities(logits, temperature, top_k, top_p)
    found = np.bincount(drawn, minlength=13) / draws
    assert 2 <= np.count_nonzero(expected) <= (top_k or 13)
    assert (found[expected == 0] == 0).all()
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws)).all()


def test_sampling_narrows_to_greedy(flan):
    ids, mask = batch(8, 14, seed=3)
    greedy = generate(flan, ids, mask, max_new_tokens=12)
    key = jax.random.key(5)
    narrow: list[dict[str, Any]] = [{"top_k": 1}, {"temperature": 1e-4}, {"top_p": 1e-4}]
    for options in narrow:
        np.testing.assert_array_equal(generate(flan, ids, mask, max_new_tokens=12, key=key, **options), greedy)
    assert (generate(flan, ids, mask, max_new_tokens=12, key=key)[:, :8] != greedy[:, :8]).any()


def test_what_a_row_draws_depends_on_its_key_alone(flan):
    ids, mask = batch(8, 14, seed=3)
    keys = jax.random.split(jax.random.key(5), 8)

    def answers(rows, keys, **options):
        return generate(flan, ids[rows], mask[rows], max_new_tokens=12, key=keys, **options)

    every = slice(None)
    together = answers(every, keys)
    np.testing.assert_array_equal(answers(every, keys), together)
    order = np.random.default_rng(0).permutation(8)
    assert trimmed(answers(order, keys[order])) == [trimmed(together)[row] for row in order]
    assert trimmed(answers(every, keys[::-1])) != trimmed(together)
    three = answers(every, keys, num_return=3)
    assert three.shape[:2] == (8, 3)
    assert trimmed(three[:, 0]) == trimmed(together)
    assert trimmed(three[:, 1]) != trimmed(three[:, 2])
    one = generate(flan, ids, mask, max_new_tokens=12, key=jax.random.key(5))
    numbered = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(5), row))(np.arange(8))
    assert trimmed(one) == trimmed(answers(every, numbered))
    assert trimmed(one) != trimmed(generate(flan, ids, mask, max_new_tokens=12, key=jax.random.key(6)))
    twins = generate(flan, ids[[0] * 8], mask[[0] * 8], max_new_tokens=12, key=jax.random.key(5))
    assert len({tuple(row) for row in trimmed(twins)}) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids_BxS": np.zeros((2, 0), int)}, r"non-empty and of one shape \[B, S\], got \(2, 0\), \(2, 4\)"),
        ({"ids_BxS": np.zeros(4, int)}, r"got \(4,\), \(2, 4\)"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"min_new_tokens": 4}, r"min_new_tokens must be in \[0, 3\], got 4"),
        ({"num_return": 0}, "num_return must be at least 1, got 0"),
        ({"num_return": 3, "num_beams": 2}, "num_return 3 needs as many beams, or a key; num_beams is 2"),
        ({"temperature": 0.5}, "temperature, top_k and top_p are for drawing: give a key"),
        ({"key": jax.random.key(0), "num_beams": 2}, "num_beams or a key, not both"),
        ({"key": jax.random.key(0), "temperature": 0.0}, r"temperature must be above 0.*got 0\.0, None and None"),
        ({"key": jax.random.key(0), "top_p": 1.5}, r"top_p in \(0, 1\].*and 1\.5"),
        ({"key": jax.random.key(0), "top_k": 0}, "top_k at least 1.* 0 and None"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, r"must be jax\.random\.key\(seed\) or 2 of them"),
        ({"key": np.zeros(2, np.uint32)}, r"must be jax\.random\.key\(seed\) or 2 of them, got uint32"),
        ({"prefix_BxP": np.ones((3, 2), int)}, r"prefix must be a matrix with a row for each of the 2, got \(3, 2\)"),
        ({"early_stopping": "always"}, "early_stopping must be True, False or 'never', got 'always'"),
    ],
)
def test_generate_errors(flan, change, message):
    arguments = {"ids_BxS": np.ones((2, 4), int), "mask_BxS": np.ones((2, 4), bool), "max_new_tokens": 3, **change}
    with pytest.raises(ValueError, match=message):
        generate(flan, **arguments)


def test_generate_texts_errors(flan):
    tokenizer = train_tokenizer(["a b c"], vocab_size=300)
    options: dict[str, Any] = {"max_input_tokens": 8, "max_new_tokens": 3, "batch_size": 2}
    with pytest.raises(ValueError, match=r"the tokenizer has 2\d\d tokens, the model 97 embeddings"):
        generate_texts(flan, tokenizer, ["a"], **options)
    with pytest.raises(ValueError, match="num_return is for `generate`"):
        generate_texts(flan, tokenizer, ["a"], num_return=2, **options)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        generate_texts(flan, tokenizer, ["a"], **{**options, "batch_size": 0})
