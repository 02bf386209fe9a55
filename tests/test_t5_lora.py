"""Low-rank adaptation against float64 NumPy, what it trains, and its way back to transformers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from t5_oracle import batch, save_torch_t5

from deft_tsds.t5 import T5, T5Config, add_lora, load_pretrained, merge_lora, save_pretrained, shift_right
from deft_tsds.t5.lora import LowRank

CONFIG = T5Config(
    vocab_size=97, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_decoder_layers=1, num_heads=5, dropout_rate=0.0
)
IDS, MASK = batch(3, 9)


@pytest.fixture(scope="module")
def model():
    return T5(CONFIG, rngs=nnx.Rngs(0))


@jax.jit(static_argnames="graph")
def _run(graph, *states):
    return nnx.merge(graph, *states)(IDS, MASK, IDS)


def _logits(model):
    return np.asarray(_run(*nnx.split(model)))


def _noisy(model, seed: int):
    """The same with random B, which starts at zero."""
    graph, factors, rest = nnx.split(model, nnx.LoRAParam, ...)
    leaves, tree = jax.tree.flatten(factors)
    rng = np.random.default_rng(seed)
    leaves = [leaf + rng.normal(0, 0.2, leaf.shape).astype(np.float32) for leaf in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves), rest)


def test_a_projection_equals_its_formula_in_float64():
    rng = np.random.default_rng(0)
    w, a, b, x = (rng.normal(size=shape) for shape in ((7, 5), (7, 3), (3, 5), (4, 7)))
    projection = LowRank(nnx.Param(jnp.float32(w)), rank=3, alpha=6.0, key=jax.random.key(0))
    assert (projection.a.shape, projection.b.shape) == (a.shape, b.shape)
    projection.a[...], projection.b[...] = jnp.float32(a), jnp.float32(b)
    expected = x @ w + 6.0 / 3 * (x @ a @ b)
    np.testing.assert_allclose(projection(jnp.float32(x)), expected, atol=1e-5)
    np.testing.assert_allclose(projection.merged()[...], w + 2 * a @ b, atol=1e-5)


def test_adding_changes_no_number_and_merging_gives_the_same_architecture(model):
    before = _logits(model)
    adapted = add_lora(model, rank=2, key=jax.random.key(1), targets=("q", "v", "wo"), alpha=3.0)
    np.testing.assert_array_equal(_logits(adapted), before)
    noisy = _noisy(adapted, 0)
    changed = _logits(noisy)
    assert np.abs(changed - before).max() > 0.1
    merged = merge_lora(noisy)
    assert nnx.split(merged)[0] == nnx.split(model)[0]
    np.testing.assert_allclose(_logits(merged), changed, atol=1e-4)
    np.testing.assert_array_equal(_logits(model), before)
    np.testing.assert_array_equal(_logits(merge_lora(model)), before)


def test_one_filter_separates_what_is_trained(model):
    adapted = add_lora(model, rank=2, key=jax.random.key(1))
    graph, trained, frozen = nnx.split(adapted, nnx.LoRAParam, ...)
    # q and v of 2 encoder attentions and 2 decoder ones, A [12, 2] and B [2, 20] each.
    assert sorted({leaf.shape for leaf in jax.tree.leaves(trained)}) == [(2, 20), (12, 2)]
    assert len(jax.tree.leaves(trained)) == 2 * 2 * 4
    jax.tree.map(
        np.testing.assert_array_equal,
        sorted(map(np.ravel, jax.tree.leaves(frozen)), key=np.ndarray.tobytes),
        sorted(map(np.ravel, jax.tree.leaves(nnx.state(model))), key=np.ndarray.tobytes),
    )
    firsts = [leaf for leaf in jax.tree.leaves(trained) if leaf.shape == (12, 2)]
    assert len({np.asarray(leaf).tobytes() for leaf in firsts}) == len(firsts)  # each matrix draws its own
    assert graph == nnx.split(add_lora(model, rank=2, key=jax.random.key(2)), nnx.LoRAParam, ...)[0]


def test_seeds_by_vmap_are_the_seeds_one_by_one(model):
    keys = jax.random.split(jax.random.key(7), 3)

    def factors(key):
        return nnx.split(add_lora(model, rank=2, key=key), nnx.LoRAParam, ...)[1]

    together = jax.vmap(factors)(keys)
    for number, key in enumerate(keys):
        jax.tree.map(
            lambda many, one, number=number: np.testing.assert_allclose(many[number], one, rtol=1e-6),
            together,
            factors(key),
        )


def test_bfloat16_computes_in_bfloat16(model):
    half = T5(CONFIG, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    adapted = _noisy(add_lora(half, rank=2, key=jax.random.key(1)), 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(adapted))} == {jnp.dtype("float32")}
    assert jax.eval_shape(adapted.encode, IDS, MASK).dtype == jnp.bfloat16


def test_trained_merged_and_exported_gives_transformers_the_same_logits(tmp_path):
    from transformers import T5ForConditionalGeneration

    save_torch_t5("flan", tmp_path / "before")
    model = load_pretrained(tmp_path / "before")
    graph, trained, frozen = nnx.split(add_lora(model, rank=4, key=jax.random.key(0)), nnx.LoRAParam, ...)
    optimizer = optax.adam(0.02)

    @jax.jit
    def step(trained, moments):
        def loss(trained):
            logits = nnx.merge(graph, trained, frozen)(IDS, MASK, shift_right(IDS, model.config))
            return optax.softmax_cross_entropy_with_integer_labels(logits, IDS).mean(where=MASK)

        value, gradients = jax.value_and_grad(loss)(trained)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(trained, updates), moments, value

    moments, losses = optimizer.init(trained), []
    for _ in range(30):
        trained, moments, loss = step(trained, moments)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    tuned = nnx.merge(graph, trained, frozen)
    save_pretrained(tuned, tmp_path / "after")
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path / "after").eval()
    with torch.no_grad():
        ids = torch.tensor(IDS).long()
        expected = theirs(input_ids=ids, attention_mask=torch.tensor(MASK), decoder_input_ids=ids).logits.numpy()
    np.testing.assert_allclose(_logits(tuned), expected, atol=1e-4, rtol=0)
    assert load_pretrained(tmp_path / "after").config == model.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, r"rank must be at least 1 and alpha positive, got 0 and 0\.0"),
        ({"alpha": -1.0}, "got 2 and -1.0"),
        ({"targets": ("q", "wi_0")}, r"targets must be among \['k', 'o', 'q', 'v', 'wi', 'wo'\], got \['q', 'wi_0'\]"),
        ({"targets": ()}, r"got \[\]"),
    ],
)
def test_errors(model, change, message):
    with pytest.raises(ValueError, match=message):
        add_lora(model, **{"rank": 2, "key": jax.random.key(0), **change})


def test_a_second_adaptation_is_refused(model):
    adapted = add_lora(model, rank=2, key=jax.random.key(0), targets=("k",))
    with pytest.raises(ValueError, match="has low-rank factors already"):
        add_lora(adapted, rank=2, key=jax.random.key(0))
