"""The T5 against torch: logits, loss, gradients; its cache, dropout, dtypes and config against themselves."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from t5_oracle import SHAPES, batch, save_torch_t5

from deft_tsds.t5.load import _names, load_pretrained
from deft_tsds.t5.model import T5, T5Config, _position_bias, _relative_buckets, _square, shift_right

TINY = T5Config(
    vocab_size=31, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_decoder_layers=2, num_heads=3, dropout_rate=0.25
)


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return save_torch_t5(request.param, folder), load_pretrained(folder)


def _torch_logits(model, ids, mask, decoder_ids):
    ids, mask, decoder_ids = (torch.tensor(np.asarray(array)).long() for array in (ids, mask, decoder_ids))
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits.numpy()


def _logits(model, *arrays):
    return np.asarray(jax.jit(lambda *arrays: model(*arrays))(*arrays))


@pytest.mark.parametrize(("source", "target"), [(23, 11), (200, 150), (1, 1)], ids=["short", "beyond buckets", "one"])
def test_logits_equal_torch(pair, source, target):
    theirs, ours = pair
    ids, mask = batch(4, max(source, 2), seed=source)
    ids, mask = ids[:, :source], mask[:, :source]
    decoder_ids = np.random.default_rng(1).integers(0, 97, (4, target))
    expected = _torch_logits(theirs, ids, mask, decoder_ids)
    assert expected.std() > 0.5  # no agreement of zeros
    np.testing.assert_allclose(_logits(ours, ids, mask, decoder_ids), expected, atol=1e-4, rtol=0)


def test_logits_with_holes_in_the_mask_equal_torch(pair):
    theirs, ours = pair
    ids, _ = batch(4, 20)
    mask = np.random.default_rng(0).random((4, 20)) < 0.6
    mask[:, 3] = True
    decoder_ids = ids[:, :9]
    expected = _torch_logits(theirs, ids, mask, decoder_ids)
    np.testing.assert_allclose(_logits(ours, ids, mask, decoder_ids), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("remat", [False, True], ids=["", "remat"])
def test_loss_and_every_gradient_equal_torch(pair, remat):
    theirs, ours = pair
    ids, mask = batch(5, 19, seed=3)
    labels, counted = batch(5, 13, seed=4)
    labels = np.where(counted, labels, -100)

    theirs.zero_grad()
    loss = theirs(
        input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(mask), labels=torch.tensor(labels).long()
    ).loss
    loss.backward()

    graph, state = nnx.split(ours)

    def our_loss(state):
        model = nnx.merge(graph, state)
        model.remat = remat
        logits = model(ids, mask, shift_right(labels, model.config))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, labels, 0))
        return jnp.sum(losses * counted) / counted.sum()

    value, gradients = jax.jit(jax.value_and_grad(our_loss))(state)
    assert abs(float(value) - loss.item()) < 1e-5
    flat = dict(nnx.to_flat_state(gradients))
    expected = {name: weight.grad.numpy() for name, weight in theirs.named_parameters()}
    names = _names(flat)
    assert set(names) == set(expected)
    for name, (path, transposed) in names.items():
        gradient = np.asarray(flat[path][...])
        difference = np.abs((gradient.T if transposed else gradient) - expected[name]).max()
        assert difference <= 1e-3 * np.abs(expected[name]).max(), name


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (32, 64), (8, 20), (64, 1000)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_equal_torch_at_every_distance(buckets, distance, bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    config = dataclasses.replace(TINY, relative_attention_num_buckets=buckets, relative_attention_max_distance=distance)
    distances = np.arange(-5000, 5001, dtype=np.int32)
    expected = T5Attention._relative_position_bucket(torch.tensor(distances), bidirectional, buckets, distance)
    np.testing.assert_array_equal(_relative_buckets(distances, config, bidirectional=bidirectional), expected)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_square_bias_reads_the_table_at_key_minus_query(length):
    table = nnx.Param(jnp.arange(32 * 3, dtype=jnp.float32).reshape(32, 3))
    square = _square(_position_bias(table, TINY, length, bidirectional=True), length)
    distances = np.arange(length)[None, :] - np.arange(length)[:, None]
    expected = np.asarray(table[...])[_relative_buckets(distances.astype(np.int32), TINY, bidirectional=True)]
    np.testing.assert_array_equal(square, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("beams", [1, 3])
def test_steps_with_a_cache_equal_the_full_decode(pair, beams):
    _, model = pair
    ids, mask = batch(3, 15, seed=5)
    rows, length = 3 * beams, 40  # beyond the exact buckets of the decoder
    decoder_ids = np.random.default_rng(2).integers(0, 97, (rows, length)).astype(np.int32)
    full = _logits(model, np.repeat(ids, beams, 0), np.repeat(mask, beams, 0), decoder_ids)

    @jax.jit
    def steps(ids, mask, decoder_ids):
        cache = model.start(model.encode(ids, mask), mask, max_length=length + 3, beams=beams)

        def body(cache, inputs):
            logits, cache = model.step(inputs[1], inputs[0], cache)
            return cache, logits

        return jax.lax.scan(body, cache, (jnp.arange(length), decoder_ids.T))[1]

    np.testing.assert_allclose(steps(ids, mask, decoder_ids).transpose(1, 0, 2), full, atol=3e-5)


def test_padding_changes_nothing(pair):
    _, model = pair
    ids, mask = batch(4, 12, seed=6)
    decoder_ids = ids[:, :7]
    rng = np.random.default_rng(0)
    padded = np.concatenate([ids, rng.integers(0, 97, (4, 20))], axis=1)  # what stands under the mask must not matter
    longer = np.concatenate([mask, np.zeros((4, 20), bool)], axis=1)
    targets = np.concatenate([decoder_ids, rng.integers(0, 97, (4, 5))], axis=1)
    expected = _logits(model, ids, mask, decoder_ids)
    np.testing.assert_allclose(_logits(model, padded, longer, targets)[:, :7], expected, atol=2e-5)


def test_a_row_without_any_source_token_gives_numbers():
    model = T5(TINY, rngs=nnx.Rngs(0))
    assert np.isfinite(_logits(model, np.zeros((1, 4), int), np.zeros((1, 4), bool), np.zeros((1, 3), int))).all()


def test_initial_weights_have_the_scales_of_mesh_tensorflow():
    from transformers import T5Config as TorchConfig
    from transformers import T5ForConditionalGeneration

    config = T5Config(vocab_size=600, d_model=96, d_kv=16, d_ff=160, num_layers=1, num_decoder_layers=1, num_heads=4)
    flat = dict(nnx.to_flat_state(nnx.state(T5(config, rngs=nnx.Rngs(0)))))
    settings = config.to_dict()
    theirs = T5ForConditionalGeneration(TorchConfig(**settings)).state_dict()
    for name, (path, _) in _names(flat).items():
        expected, found = theirs[name].std().item(), float(flat[path][...].std())
        assert found == pytest.approx(expected, rel=0.25), name


def test_dropout_is_on_with_a_key_only():
    config = dataclasses.replace(TINY, dropout_rate=0.25)
    model = T5(config, rngs=nnx.Rngs(0))
    ids, mask = batch(2, 8, vocab_size=31)
    run = jax.jit(lambda key: model(ids, mask, ids, key=key))
    first, again, other = run(jax.random.key(1)), run(jax.random.key(1)), run(jax.random.key(2))
    plain = _logits(model, ids, mask, ids)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - plain).max() > 1e-3
    still = T5(dataclasses.replace(TINY, dropout_rate=0.0), rngs=nnx.Rngs(0))
    unchanged = jax.jit(lambda key: still(ids, mask, ids, key=key))(jax.random.key(1))
    np.testing.assert_allclose(unchanged, plain, atol=1e-5)


def test_every_dropout_site_draws_its_own_mask(monkeypatch):
    import deft_tsds.t5.model as module

    seen = []
    original = module._dropout

    def recorded(x, rate, key):
        seen.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        return original(x, rate, key)

    monkeypatch.setattr(module, "_dropout", recorded)
    model = T5(dataclasses.replace(TINY, num_layers=1), rngs=nnx.Rngs(0))
    ids, mask = batch(2, 5, vocab_size=31)
    model(ids, mask, ids, key=jax.random.key(0))
    # Per stack the embedding and the end; 4 sites in an encoder layer, 6 in a decoder layer.
    assert len(seen) == 2 * 2 + 1 * 4 + 2 * 6
    assert len(set(seen)) == len(seen)


def test_bfloat16_keeps_float32_parameters_and_logits(pair):
    _, model = pair
    ids, mask = batch(3, 11)
    graph, state = nnx.split(nnx.eval_shape(lambda: T5(model.config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)))
    half = nnx.merge(graph, nnx.state(model))  # the same parameters
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    assert jax.eval_shape(half.encode, ids, mask).dtype == jnp.bfloat16
    logits, expected = _logits(half, ids, mask, ids), _logits(model, ids, mask, ids)
    assert logits.dtype == jnp.float32
    assert np.corrcoef(np.ravel(logits), np.ravel(expected))[0, 1] > 0.99


def test_shift_right_equals_torch(pair):
    theirs, ours = pair
    labels = np.array([[5, 6, 1, -100], [7, -100, -100, -100]])
    np.testing.assert_array_equal(shift_right(labels, ours.config), theirs._shift_right(torch.tensor(labels)))


def test_config_round_trip_and_defaults_of_old_files():
    assert T5Config.from_dict(TINY.to_dict()) == TINY
    assert hash(TINY) == hash(dataclasses.replace(TINY))
    old = {"model_type": "t5", "vocab_size": 97, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    config = T5Config.from_dict(old)
    assert (config.num_decoder_layers, config.activation, config.scale_decoder_outputs) == (2, "relu", True)
    assert not T5Config.from_dict({**old, "tie_word_embeddings": False}).scale_decoder_outputs
    assert not T5Config.from_dict({**old, "model_type": "mt5"}).scale_decoder_outputs
    both = T5Config.from_dict({**old, "scale_decoder_outputs": False, "tie_word_embeddings": True})
    assert (both.scale_decoder_outputs, both.tie_word_embeddings) == (False, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": None}, "missing d_model"),
        ({"model_type": "umt5"}, "model_type 'umt5' is not supported"),
        ({"feed_forward_proj": "gated-silu"}, "activation must be 'relu' or 'gated-gelu', got 'gated-silu'"),
        ({"num_heads": 0}, "num_heads must be an integer of at least 1, got 0"),
        ({"vocab_size": "big"}, "vocab_size must be an integer of at least 1, got 'big'"),
        ({"eos_token_id": [1, 2]}, r"eos_token_id must be an integer of at least 0, got \[1, 2\]"),
        ({"eos_token_id": 31}, "eos_token_id 31 is outside vocab_size 31"),
        ({"dropout_rate": 1.0}, r"dropout_rate must be in \[0, 1\), got 1.0"),
        ({"relative_attention_max_distance": 16}, "relative_attention_max_distance more than half"),
    ],
)
def test_config_errors(change, message):
    with pytest.raises(ValueError, match=message):
        T5Config.from_dict({**TINY.to_dict(), **change})


def test_dtype_error():
    with pytest.raises(ValueError, match="dtype must be float32 or bfloat16, got float16"):
        T5(TINY, rngs=nnx.Rngs(0), dtype=jnp.float16)
