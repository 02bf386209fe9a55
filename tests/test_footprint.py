"""The arithmetic of `footprint` against the model itself, optax, and XLA's own memory analysis."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deft_tsds.t5.lora import add_lora
from deft_tsds.t5.model import T5, T5Config
from deft_tsds.training.footprint import (
    MACHINES,
    MODELS,
    Shape,
    activation_bytes,
    cache_bytes,
    estimate,
    forward_flops,
    lora_parameters,
    optimizer_bytes,
    parameters,
    step_flops,
)
from deft_tsds.training.optimizers import make_optimizer
from deft_tsds.training.step import LossTerms, summed_loss

SIZES: dict[str, Any] = {"vocab_size": 256, "d_model": 32, "d_kv": 8, "d_ff": 80, "num_heads": 4}
SMALL = {
    "relu": T5Config(**SIZES, num_layers=3, num_decoder_layers=2, dropout_rate=0.0),
    "gated": T5Config(
        **SIZES,
        num_layers=2,
        num_decoder_layers=3,
        dropout_rate=0.0,
        activation="gated-gelu",
        tie_word_embeddings=False,
    ),
}
SHAPE = Shape(rows=8, source=64, target=48)


def abstract(config, **options):
    """The model without numbers, split."""
    return nnx.split(nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(params=jax.random.key(0)), **options)))


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def batch():
    ids = lambda width: jax.ShapeDtypeStruct((SHAPE.rows, width), jnp.int32)  # noqa: E731
    weights = jax.ShapeDtypeStruct((SHAPE.rows,), jnp.float32)
    return {"inputs": ids(SHAPE.source), "labels": ids(SHAPE.target), "weights": weights}


@pytest.mark.parametrize("config", [*MODELS.values(), *SMALL.values()], ids=[*MODELS, *SMALL])
def test_parameters_and_moments_are_those_of_the_model(config):
    _, params = abstract(config)
    assert sum(parameters(config).values()) == size(params)
    for name in ("adamw", "adafactor"):
        moments = jax.eval_shape(make_optimizer(name).init, params)
        exact = 4 * size(moments)
        # Each matrix of the estimate brings its own step counter.
        assert abs(optimizer_bytes(config, name) - exact) < 4 * 5000


def test_released_sizes():
    """Flan-T5 and T5 1.1 as counted by their model cards: 783M, 2.85B, 11.1B."""
    assert [round(sum(parameters(config).values()) / 1e6) for config in MODELS.values()] == [783, 2850, 11135]


def test_lora_parameters_are_those_of_the_model():
    config = SMALL["gated"]
    adapted = add_lora(T5(config, rngs=nnx.Rngs(params=jax.random.key(0))), rank=3, key=jax.random.key(1))
    assert lora_parameters(config, rank=3) == size(nnx.state(adapted, nnx.LoRAParam))


@pytest.mark.parametrize("name", SMALL)
def test_flops_are_those_of_the_products_in_the_program(name):
    """Every dot_general of the forward pass, counted from its shapes."""
    graph, params = abstract(SMALL[name])

    def loss(params, batch):
        return summed_loss(nnx.merge(graph, params), batch, None, LossTerms())[0]

    def products(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                left, out = equation.invars[0].aval, equation.outvars[0].aval
                total += 2 * out.size * int(np.prod([left.shape[axis] for axis in contracted]))
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                total += products(inner) if hasattr(inner, "eqns") else 0
        return total

    forward = products(jax.make_jaxpr(loss)(params, batch()).jaxpr)
    assert forward == forward_flops(SMALL[name], SHAPE)
    # The backward pass has two products for each; none is needed for the gradient of token ids.
    both = products(jax.make_jaxpr(jax.grad(loss))(params, batch()).jaxpr)
    np.testing.assert_allclose(both, step_flops(SMALL[name], SHAPE), rtol=1e-6)
    assert step_flops(SMALL[name], SHAPE, lora=True) == 2 * forward
    assert step_flops(SMALL[name], SHAPE, remat=True) == 4 * forward


@pytest.mark.parametrize("name", SMALL)
def test_activations_are_within_a_fifth_of_what_xla_allocates(name):
    graph, params = abstract(SMALL[name])
    gradient = jax.jit(jax.grad(lambda p, b: summed_loss(nnx.merge(graph, p), b, None, LossTerms())[0]))
    compiled: Any = gradient.lower(params, batch()).compile()
    allocated = compiled.memory_analysis().temp_size_in_bytes
    expected = activation_bytes(SMALL[name], SHAPE, item=4, remat=False)
    assert 0.8 < expected / allocated < 1.2, (expected, allocated)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_remat_a_layer_keeps_its_input(dtype):
    """What JAX hands from the forward to the backward pass, without the parameters. (XLA's CPU compiler merges the two
    forward passes again, so that its memory analysis shows nothing of remat.)"""
    config = dataclasses.replace(SMALL["gated"], num_layers=12, num_decoder_layers=12, vocab_size=32)
    graph, params = abstract(config, dtype=jnp.dtype(dtype), remat=True)

    def residuals(params, batch):
        return jax.vjp(lambda p: summed_loss(nnx.merge(graph, p), batch, None, LossTerms())[0], params)[1]

    known = {leaf.shape for leaf in jax.tree.leaves(params)}
    kept = [leaf for leaf in jax.tree.leaves(jax.eval_shape(residuals, params, batch())) if leaf.shape not in known]
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in kept)
    item = jnp.dtype(dtype).itemsize
    expected = activation_bytes(config, SHAPE, item=item, remat=True)
    assert 0.5 < total / expected < 1.2, (total, expected)
    assert expected < activation_bytes(config, SHAPE, item=item, remat=False) / 2


def test_cache_is_that_of_the_model():
    config = SMALL["relu"]
    model = T5(config, rngs=nnx.Rngs(params=jax.random.key(0)))
    states = jnp.zeros((SHAPE.rows, SHAPE.source, config.d_model))
    mask = np.ones((SHAPE.rows, SHAPE.source))
    cache = jax.eval_shape(lambda: model.start(states, mask, max_length=SHAPE.target, beams=3))
    assert cache_bytes(config, SHAPE, beams=3, item=4) == 4 * (size(cache.past) + size(cache.source))


def test_estimates_follow_their_parts():
    v5e_8, v5e_256, h100 = MACHINES
    settings = {"rows_at_once": 8, "utilisation": 0.5}
    shape = Shape(256, 512, 128)
    few, many = (
        estimate(MODELS["XL"], machine, shape, optimizer="adamw", remat=True, **settings)
        for machine in (v5e_8, v5e_256)
    )
    assert few.parameters == 32 * many.parameters
    assert few.seconds == pytest.approx(32 * many.seconds)
    one = estimate(MODELS["XL"], h100, shape, optimizer="lora", remat=True, **settings)
    assert (
        one.total < h100.memory < estimate(MODELS["XXL"], h100, shape, optimizer="adamw", remat=True, **settings).total
    )


def test_the_script_prints_every_case():
    script = Path(__file__).parents[1] / "scripts" / "plan.py"
    done = subprocess.run([sys.executable, script, "--source", "128"], capture_output=True, text=True, check=True)
    for name in (*MODELS, *(machine.name for machine in MACHINES)):
        assert name in done.stdout
