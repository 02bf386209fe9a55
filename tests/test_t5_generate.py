"""Greedy and beam search against transformers to the token; padding, batches and compiled programs."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from t5_oracle import SHAPES, batch, save_torch_t5, trimmed

from deft_tsds.t5 import generate, generate_texts, load_pretrained, load_tokenizer, train_tokenizer
from deft_tsds.t5.generate import _bucket
from deft_tsds.t5.model import T5, T5Config

SHARED = Path(__file__).parents[2] / "shared"
NANO = SHARED / "models" / "t5-nano"


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return save_torch_t5(request.param, folder), load_pretrained(folder)


@pytest.fixture(scope="module")
def flan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flan")
    save_torch_t5("flan", folder)
    return load_pretrained(folder)


def _torch_generate(model, ids, mask, **options):
    arrays = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask).long()}
    return model.generate(**arrays, do_sample=False, **options).numpy()[:, 1:]


def test_greedy_is_token_identical_to_transformers(pair):
    theirs, ours = pair
    ids, mask = batch(32, 21, seed=1)
    expected = _torch_generate(theirs, ids, mask, max_new_tokens=30)
    found = generate(ours, ids, mask, max_new_tokens=30)
    lengths = {len(row) for row in trimmed(expected)}
    assert len(lengths) > 3  # rows that end early, late and never
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length_penalty": 2.0},
        {"length_penalty": -0.5},
        {"early_stopping": True},
        {"early_stopping": "never", "length_penalty": 0.6},
    ],
    ids=str,
)
def test_four_beams_are_token_identical_to_transformers(pair, options):
    theirs, ours = pair
    ids, mask = batch(32, 21, seed=2)
    expected = trimmed(_torch_generate(theirs, ids, mask, max_new_tokens=20, num_beams=4, **options))
    found = trimmed(generate(ours, ids, mask, max_new_tokens=20, num_beams=4, **options))
    assert len({len(row) for row in expected}) > 3
    assert found == expected


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
    options = {"max_input_tokens": 40, "max_new_tokens": 6}
    answers = generate_texts(model, tokenizer, texts, batch_size=4, **options)
    assert len(set(answers)) > 3
    assert answers == generate_texts(model, tokenizer, texts, batch_size=11, **options)
    for i in (0, 5):
        rows = tokenizer([texts[i]], truncation=True, max_length=40, return_tensors="np")
        tokens = generate(model, rows["input_ids"], rows["attention_mask"], max_new_tokens=6)
        assert answers[i] == tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]
    assert generate_texts(model, tokenizer, [], batch_size=4, **options) == []
    assert len(generate_texts(model, tokenizer, ["", "a"], batch_size=1, **options)) == 2


@pytest.mark.skipif(not NANO.is_dir(), reason=f"{NANO} is not on this machine")
def test_a_real_model_agrees_with_torch_on_real_sentences():
    from transformers import T5ForConditionalGeneration

    theirs, ours = T5ForConditionalGeneration.from_pretrained(NANO).eval(), load_pretrained(NANO)
    with gzip.open(SHARED / "data" / "edit" / "edit_test_turk.jsonl.gz", "rt") as file:
        sentences = [json.loads(line)["input"] for line in itertools.islice(file, 50)]
    rows = load_tokenizer(NANO)(sentences, padding=True, truncation=True, max_length=64, return_tensors="np")
    ids, mask = rows["input_ids"], rows["attention_mask"]
    expected = _torch_generate(theirs, ids, mask, max_new_tokens=40)
    np.testing.assert_array_equal(generate(ours, ids, mask, max_new_tokens=40), expected)
    with torch.no_grad():
        tokens, counted = torch.tensor(ids), torch.tensor(mask)
        logits = theirs(input_ids=tokens, attention_mask=counted, decoder_input_ids=tokens[:, :24]).logits.numpy()
    found = np.asarray(jax.jit(lambda *arrays: ours(*arrays))(ids, mask, ids[:, :24]))
    # Logits here reach 18, where torch's own two attention kernels differ by 1.6e-4: 1e-4 at unit scale.
    np.testing.assert_allclose(found, logits, atol=1e-4 * logits.std(), rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids_BxS": np.zeros((2, 0), int)}, r"non-empty and of one shape \[B, S\], got \(2, 0\), \(2, 4\)"),
        ({"ids_BxS": np.zeros(4, int)}, r"got \(4,\), \(2, 4\)"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"early_stopping": "always"}, "early_stopping must be True, False or 'never', got 'always'"),
    ],
)
def test_generate_errors(flan, change, message):
    arguments = {"ids_BxS": np.ones((2, 4), int), "mask_BxS": np.ones((2, 4), bool), "max_new_tokens": 3, **change}
    with pytest.raises(ValueError, match=message):
        generate(flan, **arguments)


def test_generate_texts_errors(flan):
    tokenizer = train_tokenizer(["a b c"], vocab_size=300)
    options = {"max_input_tokens": 8, "max_new_tokens": 3, "batch_size": 2}
    with pytest.raises(ValueError, match=r"the tokenizer has 2\d\d tokens, the model 97 embeddings"):
        generate_texts(flan, tokenizer, ["a"], **options)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        generate_texts(flan, tokenizer, ["a"], **{**options, "batch_size": 0})
