"""The T5 against itself: its cache, dropout, remat, dtypes, sizes and config (against torch: `test_t5_parity.py`)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
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


def _logits(model, *arrays):
    return np.asarray(jax.jit(lambda *arrays: model(*arrays))(*arrays))


def test_remat_changes_no_gradient():
    ids, mask = batch(3, 9, vocab_size=31)
    key = jax.random.key(3)  # the dropout of the backward pass is that of the forward pass

    def gradients(remat):
        graph, state = nnx.split(T5(TINY, rngs=nnx.Rngs(0), remat=remat))
        return jax.jit(jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(ids, mask, ids, key=key) ** 2)))(state)

    for plain, again in zip(*map(jax.tree.leaves, (gradients(False), gradients(True))), strict=True):
        np.testing.assert_allclose(again, plain, atol=1e-5 * float(jnp.abs(plain).max()))


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


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("t5-small", 60_506_624),
        ("t5-11b", 11_307_321_344),
        ("flan-t5-base", 247_577_856),
        ("t5-v1_1-xl", 2_849_757_184),
        ("mt5-small", 300_176_768),
        ("byt5-small", 299_637_760),
    ],
)
def test_named_sizes_have_the_parameters_of_the_released_models(name, parameters):
    state = nnx.state(nnx.eval_shape(lambda: T5(T5Config.of(name), rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == parameters


def test_unknown_size_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no size 't5-tiny'; the sizes are t5-small, .*byt5-xxl"):
        T5Config.of("t5-tiny")


def test_dtype_error():
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16 or float64, got float16"):
        T5(TINY, rngs=nnx.Rngs(0), dtype=jnp.float16)
