"""Gradient features: against loops, torch, optax and an explicit matrix of signs; how the projection errs."""

import dataclasses
import functools
import os
import socket
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import nnx
from t5_oracle import batch, save_torch_t5
from training_run import finish

from deft_tsds.config import Gradients, Lora
from deft_tsds.data.examples import Examples
from deft_tsds.embed import Encoder
from deft_tsds.embed.store import open_store, write_store
from deft_tsds.gradients import Checkpoint, GradientEncoder, project, warm_up, write_gradients
from deft_tsds.gradients.features import example_gradients, features
from deft_tsds.gradients.projection import _hadamard
from deft_tsds.selection import select
from deft_tsds.selectors import LESS
from deft_tsds.t5 import T5, T5Config, add_lora, load_pretrained
from deft_tsds.t5.load import _names
from deft_tsds.t5.model import shift_right
from deft_tsds.training.finetune import Pairs, finetune, learning_rates, make_optimizer, trained_part
from deft_tsds.training.step import LossTerms, train_step

CONFIG = T5Config(
    vocab_size=97, d_model=12, d_kv=4, d_ff=20, num_layers=1, num_decoder_layers=1, num_heads=3, dropout_rate=0.0
)
RATES = learning_rates(steps=9, peak=1e-2, warmup=0.1, schedule="linear")
PROJECT = jax.jit(project, static_argnames="dimension")


def make_model() -> T5:
    return T5(CONFIG, rngs=nnx.Rngs(0))


def make_pairs(rows: int = 21, seed: int = 0) -> Pairs:
    """Pairs of many lengths; all batches are of one width, so that few programs are compiled."""
    inputs, labels = batch(rows, 16, seed=seed)[0], batch(rows, 8, seed=seed + 1)[0]
    return Pairs(inputs, labels, np.ones(rows, np.float32), cut=0)


def warm(folder: Path, model: T5, **options: Any) -> list[Checkpoint]:
    settings: dict[str, Any] = {"rates": RATES, "checkpoints": 3, "batch_size": 8, "key": jax.random.key(1)}
    return warm_up(model, make_pairs(), folder=folder, **{**settings, **options})


@pytest.fixture(scope="module", params=["all parameters", "low rank"])
def warmed(request, tmp_path_factory) -> tuple[T5, list[Checkpoint]]:
    model = make_model()
    if request.param == "low rank":
        model = add_lora(model, rank=2, key=jax.random.key(3), alpha=4.0)
    return model, warm(tmp_path_factory.mktemp("warm"), model)


def flat(tree: Any, rows: int | None = None) -> np.ndarray:
    """All leaves side by side, float64 [P] or [rows, P]."""
    shape = (-1,) if rows is None else (rows, -1)
    return np.concatenate([np.asarray(leaf, np.float64).reshape(shape) for leaf in jax.tree.leaves(tree)], axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def one_gradient(graph, params, frozen, inputs_S, labels_T):
    """The gradient of one example, its loss written out."""

    def loss(params):
        logits = nnx.merge(graph, params, frozen)(
            inputs_S[None], inputs_S[None] != 0, shift_right(labels_T[None], CONFIG)
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[0], labels_T)
        return jnp.mean(losses, where=labels_T != 0)

    return jax.grad(loss)(params)


def exact_directions(model: T5, checkpoint: Checkpoint, pairs: Pairs, rows: np.ndarray, *, adam: bool) -> np.ndarray:
    """What is projected, float64 [rows, P], by a loop over single examples and Adam's formula."""
    graph, _, frozen = trained_part(model)
    found = []
    for row in rows:
        gradient = flat(one_gradient(graph, checkpoint.params, frozen, pairs.inputs_NxS[row], pairs.labels_NxT[row]))
        if adam:
            step = int(np.asarray(checkpoint.adam.count)) + 1
            m = (0.9 * flat(checkpoint.adam.mu) + 0.1 * gradient) / (1 - 0.9**step)
            v = (0.999 * flat(checkpoint.adam.nu) + 0.001 * gradient**2) / (1 - 0.999**step)
            gradient = m / (np.sqrt(v) + 1e-8)
        found.append(gradient)
    return np.array(found)


# Per-example gradients and Adam's step.


def test_gradients_equal_a_loop_over_single_examples(warmed):
    model, checkpoints = warmed
    pairs, rows = make_pairs(), np.arange(8)
    graph, _, frozen = trained_part(model)
    ours = example_gradients(graph, frozen, checkpoints[0].params, pairs.inputs_NxS[rows], pairs.labels_NxT[rows])
    expected = exact_directions(model, checkpoints[0], pairs, rows, adam=False)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_gradients_equal_torch(tmp_path):
    import torch

    theirs = save_torch_t5("t5", tmp_path).double()
    graph, params, frozen = trained_part(load_pretrained(tmp_path))
    (inputs, mask), labels = batch(3, 9), batch(3, 7, seed=5)[0]
    ours_BxP = example_gradients(graph, frozen, params, inputs, labels)
    ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(params)])[:-1]
    leaves = [
        part.reshape(3, *leaf.shape)
        for part, leaf in zip(np.split(ours_BxP, ends, axis=1), jax.tree.leaves(params), strict=True)
    ]
    ours = dict(nnx.to_flat_state(jax.tree.unflatten(jax.tree.structure(params), leaves)))
    for row in range(3):
        theirs.zero_grad()
        wanted = np.where(labels[row] != 0, labels[row], -100)[None]
        ids, seen, wanted = (torch.tensor(array).long() for array in (inputs[row][None], mask[row][None], wanted))
        theirs(input_ids=ids, attention_mask=seen, labels=wanted).loss.backward()
        there = {name: np.asarray(weight.grad) for name, weight in theirs.named_parameters()}
        for name, (path, transposed) in _names(ours).items():
            gradient = np.asarray(ours[path][row])
            np.testing.assert_allclose(
                gradient.T if transposed else gradient, there[name], atol=1e-4 * np.abs(there[name]).max(), err_msg=name
            )


def test_adam_is_the_step_that_the_training_would_take(warmed):
    """Against one `train_step` on the example alone, from the checkpoint's own moments, with optax as it trains."""
    model, checkpoints = warmed
    graph, _, frozen = trained_part(model)
    optimizer, pairs, row = make_optimizer("adamw", clip=1e9), make_pairs(), 4
    last = checkpoints[-1]
    exact = exact_directions(model, last, pairs, np.array([row]), adam=True)[0]
    moments = jax.tree.map(
        lambda state: last.adam if isinstance(state, optax.ScaleByAdamState) else state,
        optimizer.init(last.params),
        is_leaf=lambda state: isinstance(state, optax.ScaleByAdamState),
    )
    state = jax.tree.map(jnp.array, (last.params, moments))
    one = {**pairs.batch(np.array([row])), "weights": np.ones(1, np.float32)}
    after, _, _ = train_step(graph, optimizer, *state, frozen, one, 1.0, jax.random.key(0), LossTerms())
    taken = flat(last.params) - flat(after)
    assert np.abs(taken).max() > 0.1
    np.testing.assert_allclose(exact, taken, atol=2e-4)  # parameters of 1 in float32, less a step
    # LESS's own formula, without bias correction and with eps inside the root, points the same way.
    gradient = exact_directions(model, last, pairs, np.array([row]), adam=False)[0]
    m, v = 0.9 * flat(last.adam.mu) + 0.1 * gradient, 0.999 * flat(last.adam.nu) + 0.001 * gradient**2
    published = m / np.sqrt(v + 1e-8)
    cosine = published @ exact / np.linalg.norm(published) / np.linalg.norm(exact)
    assert cosine > 0.99  # they differ where moments are near eps


# The projection.


@pytest.mark.parametrize("dimension", [32, 64])
def test_the_projection_is_a_matrix_of_signs(dimension):
    length = 5 * dimension + 7
    matrix_Pxd = np.asarray(PROJECT(jnp.eye(length), jax.random.key(0), dimension=dimension))
    np.testing.assert_allclose(np.abs(matrix_Pxd), dimension**-0.5, rtol=1e-6)
    assert abs(np.mean(np.sign(matrix_Pxd))) < 4 / np.sqrt(2 * length)  # 2 P bits decide all of them
    x = np.random.default_rng(0).normal(size=(3, length)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, 999)))
    for given in (x, padded):
        ours = PROJECT(given, jax.random.key(0), dimension=dimension)
        np.testing.assert_allclose(ours, x @ matrix_Pxd, atol=1e-5)
    other = np.asarray(PROJECT(jnp.eye(length), jax.random.key(1), dimension=dimension))
    assert 0.4 < np.mean(np.sign(other) == np.sign(matrix_Pxd)) < 0.6


def test_the_matrix_has_orthogonal_blocks():
    dimension = 64
    block = np.asarray(PROJECT(jnp.eye(dimension), jax.random.key(3), dimension=dimension))
    np.testing.assert_allclose(block @ block.T, np.eye(dimension), atol=1e-5)
    for size in (4, 8, 32):
        np.testing.assert_array_equal(_hadamard(size) @ _hadamard(size).T, size * np.eye(size))


def vectors(kind: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of unit vectors that a projection may find hard."""
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(2, length))
    if kind == "alike":
        y = x + 0.3 * y
    if kind == "few coordinates":  # ten hold nearly all, as where few parameters matter
        x, y = (np.where(rng.random(length) < 10 / length, vector, 1e-3 * vector) for vector in (x, y))
        y[:] += x
    if kind == "one column":  # of a matrix as wide as the projection: a hash by position would collide
        x, y = (np.where(np.arange(length) % 512 == 3, vector, 0) for vector in (x, y))
    if kind == "equal":
        y = x
    return x / np.linalg.norm(x), y / np.linalg.norm(y)


@pytest.mark.parametrize("kind", ["independent", "alike", "few coordinates", "one column", "equal"])
def test_inner_products_are_unbiased_with_the_stated_variance(kind):
    """Over 400 keys: the mean by a z-test and the variance by a chi-square test (inflated by the kurtosis seen), each
    at a two-sided level of 1e-4; and no error beyond the Johnson-Lindenstrauss radius."""
    length, dimension, draws = 20_000, 512, 400
    x, y = vectors(kind, length)
    both = jnp.asarray(np.stack([x, y]), jnp.float32)
    keys = jax.random.split(jax.random.key(11), draws)
    found = np.array([PROJECT(both, key, dimension=dimension) for key in keys], np.float64)
    errors = np.sum(found[:, 0] * found[:, 1], axis=1) - x @ y
    blocks = [np.pad(vector, (0, -length % dimension)).reshape(-1, dimension) for vector in (x, y)]
    squared_x, squared_y = (np.sum(block**2, axis=1) for block in blocks)
    within = np.sum(blocks[0] * blocks[1], axis=1)
    variance = squared_x.sum() * squared_y.sum() - squared_x @ squared_y + within.sum() ** 2 - within @ within
    variance /= dimension
    assert variance <= (1 + (x @ y) ** 2) / dimension
    z = scipy.stats.norm.isf(1e-4 / 2)
    assert abs(errors.mean()) < z * np.sqrt(variance / draws)
    kurtosis = max(3.0, scipy.stats.kurtosis(errors, fisher=False))
    assert abs(errors.var() / variance - 1) < z * np.sqrt((kurtosis - 1) / draws)
    # Errors are sums of products of signs, with tails exp(-t) in t standard deviations at worst: at t = 12 all 400 stay
    # within with a chance of 1 - 400 exp(-12) > 0.997; the draws are fixed, so this never wavers.
    assert np.abs(errors).max() < 12 * np.sqrt(variance)


def test_all_distances_are_kept_within_the_johnson_lindenstrauss_bound():
    """Dasgupta and Gupta: d >= 4 ln(n^2 / p) / (e^2 / 2 - e^3 / 3) keeps every squared distance of n points within
    1 +- e with probability 1 - p, for Gaussian and sign matrices (Achlioptas 2003, theorem 1.1)."""
    n, dimension, failure = 30, 2048, 1e-3
    points = np.random.default_rng(0).standard_t(2, size=(n, 30_000)).astype(np.float32)  # heavy tails
    grid = np.linspace(0.01, 1, 991)
    e = grid[4 * np.log(n * n / failure) / (grid**2 / 2 - grid**3 / 3) <= dimension][0]
    mapped = np.asarray(PROJECT(points, jax.random.key(5), dimension=dimension))
    first, second = np.triu_indices(n, 1)
    ratio = np.sum((mapped[first] - mapped[second]) ** 2, 1) / np.sum((points[first] - points[second]) ** 2, 1)
    assert 0.1 < e < 0.3
    assert np.abs(ratio - 1).max() < e
    assert np.abs(ratio - 1).max() > e / 20  # it is a projection, and not the points themselves


@pytest.mark.parametrize("dimension", [0, 16, 100, 513])
def test_a_dimension_that_is_no_power_of_two(dimension):
    with pytest.raises(ValueError, match=f"dimension is {dimension}: give a power of two"):
        project(jnp.ones((1, 9)), jax.random.key(0), dimension=dimension)


def test_no_projection_matrix_and_few_gradients_in_memory():
    batch_size, parameters, dimension = 8, 200_000, 1024
    adam = optax.scale_by_adam().init(jnp.zeros(parameters))
    gradients = jnp.zeros((batch_size, parameters))
    compiled: Any = features.lower(gradients, adam, jax.random.key(0), dimension=dimension).compile()
    held = compiled.memory_analysis().temp_size_in_bytes
    assert held < 3 * gradients.nbytes + 2**24  # their steps, and a piece of the projection
    assert held < 4 * parameters * dimension / 10  # no matrix of the projection


# The warm-up run.


def test_the_parts_are_one_run(tmp_path):
    """Parameters and moments after all parts, against one undisturbed fine-tuning; rates are means of each part."""
    model, whole = make_model(), make_model()
    found = warm(tmp_path / "parts", model)
    finetune(
        whole,
        make_pairs(),
        rates=RATES,
        batch_size=8,
        key=jax.random.key(1),
        folder=tmp_path / "whole",
        optimizer=make_optimizer("adamw"),
    )
    np.testing.assert_array_equal(flat(found[-1].params), flat(nnx.state(whole, nnx.Param)))
    np.testing.assert_array_equal(flat(nnx.state(model, nnx.Param)), flat(found[-1].params))
    assert [int(np.asarray(checkpoint.adam.count)) for checkpoint in found] == [3, 6, 9]
    np.testing.assert_allclose([c.rate for c in found], RATES.reshape(3, 3).mean(1), rtol=1e-6)
    assert np.abs(flat(found[0].params) - flat(found[1].params)).max() > 1e-4


def test_a_killed_warm_up_goes_on_and_a_finished_one_is_read_back(tmp_path, monkeypatch):
    undisturbed = warm(tmp_path / "whole", make_model())
    module = sys.modules["deft_tsds.gradients.warmup"]
    calls = []

    def killed(*args, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return finetune(*args, **options)

    monkeypatch.setattr(module, "finetune", killed)
    with pytest.raises(KeyboardInterrupt):
        warm(tmp_path / "killed", make_model())
    monkeypatch.undo()
    for _ in range(2):
        again = warm(tmp_path / "killed", make_model())
        for ours, expected in zip(again, undisturbed, strict=True):
            np.testing.assert_array_equal(flat((ours.params, ours.adam)), flat((expected.params, expected.adam)))
            assert ours.rate == expected.rate


def test_more_checkpoints_than_steps(tmp_path):
    with pytest.raises(ValueError, match="checkpoints is 10: give 1 to 9, the number of steps"):
        warm(tmp_path, make_model(), checkpoints=10)


# The features.


def encoder(model: T5, checkpoints: list[Checkpoint], pairs: Pairs | None = None, **options: Any) -> GradientEncoder:
    settings: dict[str, Any] = {"direction": "adam", "dimension": 1024, "key": jax.random.key(9), "batch_size": 8}
    return GradientEncoder(model, checkpoints, pairs or make_pairs(), **{**settings, **options})


def test_the_dot_product_of_two_rows_is_the_influence(warmed):
    """Against definition 3.1 in float64 without any projection, within the bound of the projection."""
    model, checkpoints = warmed
    pool, target = make_pairs(), make_pairs(4, seed=50)
    for_pool = encoder(model, checkpoints, pool)
    assert isinstance(for_pool, Encoder)
    pool_NxD = for_pool.encode(for_pool.texts)
    target_MxD = encoder(model, checkpoints, target, direction="gradient").encode(["0", "1", "2", "3"])
    assert pool_NxD.shape == (21, 3 * 1024)
    assert pool_NxD.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(pool_NxD, axis=1), 1, rtol=1e-5)
    rates = np.array([checkpoint.rate for checkpoint in checkpoints])
    expected, rows = np.zeros((6, 4)), np.arange(6)
    for number, (rate, checkpoint) in enumerate(zip(rates, checkpoints, strict=True)):
        steps = exact_directions(model, checkpoint, pool, rows, adam=True)
        gradients = exact_directions(model, checkpoint, target, np.arange(4), adam=False)
        both = np.concatenate([steps, gradients])
        both /= np.linalg.norm(both, axis=1, keepdims=True)
        expected += rate / rates.sum() * both[:6] @ both[6:].T
        projected = PROJECT(np.float32(both), jax.random.fold_in(jax.random.key(9), number), dimension=1024)
        projected *= np.sqrt(rate / rates.sum()) / np.linalg.norm(projected, axis=1, keepdims=True)
        here = slice(1024 * number, 1024 * (number + 1))
        np.testing.assert_allclose(np.concatenate([pool_NxD[:6, here], target_MxD[:, here]]), projected, atol=2e-4)
    assert np.ptp(expected) > 0.1
    assert np.abs(pool_NxD[:6] @ target_MxD.T - expected).max() < 5 * np.sqrt(2 / 1024)


def test_less_prefers_what_repeats_its_target(warmed):
    """The selector on the features: pairs that are the target's own come first."""
    model, checkpoints = warmed
    pairs = make_pairs()
    pool = encoder(model, checkpoints, pairs)
    pool_NxD = pool.encode(pool.texts)
    wanted = ["3", "11", "17"]
    target_MxD = encoder(model, checkpoints, pairs, direction="gradient").encode(wanted)
    selector = LESS(subtasks=("a", "b", "c"))
    chosen = select(pool_NxD, target_MxD, selector=selector, budget=6, key=jax.random.key(0))
    assert len({3, 11, 17} & set(chosen.indices.tolist())) >= 2


def test_rows_do_not_depend_on_batches_or_neighbours(warmed):
    model, checkpoints = warmed
    whole = encoder(model, checkpoints).encode([str(row) for row in range(21)])
    some = encoder(model, checkpoints).encode(["20", "2", "7"])
    np.testing.assert_allclose(some, whole[[20, 2, 7]], atol=2e-4)


def test_a_killed_store_ends_with_the_same_bytes(warmed, tmp_path):
    model, checkpoints = warmed
    ours = encoder(model, checkpoints)
    whole = write_store(tmp_path / "whole", ours.texts, ours, shard_rows=8)

    class Dies(GradientEncoder):
        def encode(self, texts):
            if "8" in texts:
                raise KeyboardInterrupt
            return super().encode(texts)

    options: dict[str, Any] = {"direction": "adam", "dimension": 1024, "key": jax.random.key(9), "batch_size": 8}
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "killed", ours.texts, Dies(model, checkpoints, make_pairs(), **options), shard_rows=8)
    again = write_store(tmp_path / "killed", ours.texts, ours, shard_rows=8)
    assert again.fingerprint() == whole.fingerprint()
    other = encoder(model, checkpoints, direction="gradient")
    with pytest.raises(ValueError, match=r"settings\.direction"):
        write_store(tmp_path / "killed", other.texts, other, shard_rows=8)


def test_settings_follow_what_decides_the_rows(warmed):
    model, checkpoints = warmed
    same = encoder(model, checkpoints).settings()
    assert same == encoder(model, checkpoints).settings()
    others = [
        encoder(model, checkpoints[:2]),
        encoder(model, checkpoints, make_pairs(seed=9)),
        encoder(model, checkpoints, key=jax.random.key(8)),
        encoder(model, checkpoints, dimension=512),
    ]
    assert all(other.settings() != same for other in others)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "sgd"}, "direction is 'sgd'"),
        ({"dimension": 1000}, "dimension is 1000"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_arguments(warmed, options, message):
    model, checkpoints = warmed
    with pytest.raises(ValueError, match=message):
        encoder(model, checkpoints, **options)


def test_no_checkpoints(warmed):
    with pytest.raises(ValueError, match="checkpoints: give at least one"):
        encoder(warmed[0], [])


# The stores of a pool and its targets.

HOW = Gradients(1024, share=0.4, epochs=2, learning_rate=1e-2, batch_size=8, lora=Lora(rank=2, alpha=4.0), at_once=8)


def examples(rows: range, target: str = "t") -> Examples:
    """Examples whose ids are rows of `make_pairs`."""
    names = tuple(str(row) for row in rows)
    same: dict[str, Any] = {
        "inputs": names,
        "prompts": names,
        "targets": (target,) * len(rows),
        "groups": ("",) * len(rows),
    }
    return Examples(ids=names, references=((),) * len(rows), **same)


def tokenized(some: Examples) -> Pairs:
    whole, rows = make_pairs(), [int(name) for name in some.ids]
    return Pairs(whole.inputs_NxS[rows], whole.labels_NxT[rows], whole.weights_N[rows], cut=0, ids=some.ids)


def stores(folder: Path, pool: Examples, targets: Mapping[str, Examples], **others: Any):
    options: dict[str, Any] = {"key": jax.random.key(4), **dataclasses.asdict(HOW), **others}
    return write_gradients(folder, make_model(), pool, targets, tokenized, **options)


def test_the_stores_are_those_of_the_parts(tmp_path):
    """The short run sees a share of the pool; Adam's steps for the pool, plain gradients for targets, one key."""
    pool, target = examples(range(21)), examples(range(3, 6))
    found = stores(tmp_path, pool, {"task": target})
    share_key, lora_key, train_key, key = jax.random.split(jax.random.key(4), 4)
    rows = np.sort(np.asarray(jax.random.permutation(share_key, 21))[:8]).tolist()
    model = add_lora(make_model(), rank=2, alpha=4.0, key=lora_key)
    rates = learning_rates(steps=2, peak=1e-2, warmup=0.03, schedule="linear")
    options: dict[str, Any] = {"checkpoints": 2, "batch_size": 8, "key": train_key, "folder": tmp_path / "by hand"}
    checkpoints = warm_up(model, tokenized(pool.take(rows)), rates=rates, **options)
    directions: dict[str, Any] = {"pool": "adam", "task": "gradient"}
    assert list(found) == list(directions)
    for name, some in {"pool": pool, "task": target}.items():
        options = {"direction": directions[name], "dimension": 1024, "key": key, "batch_size": 8}
        by_hand = GradientEncoder(model, checkpoints, tokenized(some), **options)
        np.testing.assert_array_equal(found[name].array(), by_hand.encode(by_hand.texts))
        assert found[name].settings == by_hand.settings()


def test_a_gradient_needs_a_target(tmp_path):
    for pool, task, name in (
        (examples(range(4), ""), examples(range(2)), "pool"),
        (examples(range(4)), examples(range(2), ""), "task"),
    ):
        with pytest.raises(
            ValueError, match=rf"{name}, row 0 \('0'\), has no target, and a gradient is that of a loss"
        ):
            stores(tmp_path, pool, {"task": task})


ON_DEVICES = """\
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
import optax
from deft_tsds.training.sharding import make_mesh
from test_gradients import Checkpoint, encoder, make_model, trained_part
model = make_model()
params = trained_part(model)[1]
adam = optax.scale_by_adam().init(params)
checkpoints = [Checkpoint(params, adam._replace(mu=params, nu=jax.tree.map(abs, params)), rate=1.0)]
one, many = encoder(model, checkpoints), encoder(model, checkpoints, mesh=make_mesh())
np.testing.assert_allclose(many.encode(many.texts), one.encode(one.texts), atol=2e-4)
"""


def test_eight_devices_give_the_rows_of_one():
    root = Path(__file__).parents[1]
    code = ON_DEVICES.format(root=str(root), tests=str(root / "tests"))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_devices_that_do_not_divide_the_batch(warmed):
    mesh = types.SimpleNamespace(size=3)
    with pytest.raises(ValueError, match="batch_size is 8: give a multiple of the 3 devices"):
        encoder(*warmed, mesh=mesh)


ON_PROCESSES = """\
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(
    "127.0.0.1:" + sys.argv[1], num_processes=2, process_id=int(sys.argv[2]), heartbeat_timeout_seconds=500
)
from pathlib import Path
from deft_tsds.gradients import stores as written
from deft_tsds.training.sharding import make_mesh
from test_gradients import examples, stores
written.SHARD_ROWS = 4  # a part for either process
found = stores(Path(sys.argv[3]), examples(range(21)), {{"task": examples(range(3, 6))}}, mesh=make_mesh(shards=2))
assert {{name: store.rows for name, store in found.items()}} == {{"pool": 21, "task": 3}}
"""


def test_two_processes_train_together_and_share_the_examples_out(tmp_path, monkeypatch):
    """The features of one process, up to the order of sums in the short run; all texts embedded, none twice."""
    monkeypatch.setattr("deft_tsds.gradients.stores.SHARD_ROWS", 4)
    alone = stores(tmp_path / "alone", examples(range(21)), {"task": examples(range(3, 6))})
    tests = Path(__file__).parent
    code = ON_PROCESSES.format(root=str(tests.parent), tests=str(tests))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    finish(
        *(
            subprocess.Popen(
                [sys.executable, "-c", code, port, str(number), str(tmp_path / "together")],
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
        )
    )
    for name, store in alone.items():
        found = open_store(tmp_path / "together" / name)
        assert [shard.rows for shard in found.shards] == [shard.rows for shard in store.shards]
        np.testing.assert_allclose(found.array(), store.array(), atol=2e-3)
        assert not (tmp_path / "together" / f"{name}-pieces").exists()
