"""Fine-tuning against optax's own optimisers, the whole batch, and a run that nothing disturbed."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deft_tsds.runs import read_jsonl
from deft_tsds.t5.lora import add_lora
from deft_tsds.t5.model import T5, T5Config, shift_right
from deft_tsds.training.finetune import (
    ExampleOrder,
    LossTerms,
    Pairs,
    finetune,
    finetune_many,
    learning_rates,
    make_optimizer,
    tokenize_pairs,
    validation_loss,
)
from deft_tsds.training.step import token_losses, train_step

NO_TERMS = LossTerms()
CONFIG = T5Config(
    vocab_size=31, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=2, dropout_rate=0.0
)


def make_model(seed=0, **changes):
    return T5(dataclasses.replace(CONFIG, **changes), rngs=nnx.Rngs(params=jax.random.key(seed)))


def make_pairs(rows=24, seed=0, weights=None):
    rng = np.random.default_rng(seed)
    inputs = rng.integers(3, 31, (rows, 8)).astype(np.int32)
    inputs[::3, 5:] = 0
    labels = inputs[:, :6].copy()
    labels = np.pad(labels, ((0, 0), (0, 2)))
    labels[:, 5] = 1
    labels[::4, 4:] = 0
    return Pairs(inputs, labels, np.ones(rows, np.float32) if weights is None else weights, cut=0)


def plain_loss(model, batch):
    """The loss formula of the module, example by example in NumPy."""
    total = weight = 0.0
    logits = model(batch["inputs"], batch["inputs"] != 0, shift_right(batch["labels"], model.config))
    logs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    for row, labels in enumerate(batch["labels"]):
        for position, label in enumerate(labels):
            if label != 0:
                total -= batch["weights"][row] * logs[row, position, label]
                weight += batch["weights"][row]
    return total / weight


def step(model, batch, *, optimizer, accumulate=1, rate=1e-2, terms=NO_TERMS):
    """Parameters after one step, and its loss."""
    graph, params, frozen = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(jnp.copy, params)
    state, key = (params, optimizer.init(params), frozen), jax.random.key(0)
    params, _, loss = train_step(graph, optimizer, *state, batch, rate, key, terms, accumulate=accumulate)
    return params, loss


def test_loss_is_the_weighted_mean_over_target_tokens():
    batch = make_pairs(8, weights=np.linspace(0.5, 2.0, 8, dtype=np.float32)).batch(np.arange(8))
    model = make_model()
    _, loss = step(model, batch, optimizer=make_optimizer("adamw"))
    np.testing.assert_allclose(loss.mean, plain_loss(model, batch), rtol=1e-5)


def test_label_smoothing_and_z_loss_in_float64():
    """Cross-entropy against the smoothed distribution, plus z log(Z)^2, token by token."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (2, 5, 31)).astype(np.float32), rng.integers(0, 31, (2, 5))
    e, z = 0.1, 1e-2
    losses = token_losses(jnp.asarray(logits), jnp.asarray(labels), LossTerms(e, z))
    for row in range(2):
        for position in range(5):
            scores = logits[row, position].astype(np.float64)
            log_z = np.log(np.exp(scores).sum())
            aim = np.full(31, e / 31)
            aim[labels[row, position]] += 1 - e
            expected = -(aim * (scores - log_z)).sum() + z * log_z**2
            np.testing.assert_allclose(losses[row, position], expected, rtol=1e-5)


def test_loss_terms_reach_the_step_and_compile_nothing_new():
    batch = make_pairs(8).batch(np.arange(8))
    model, optimizer = make_model(), make_optimizer("adamw")
    plain = step(model, batch, optimizer=optimizer)[1].mean
    compiled: Any = train_step
    before = compiled._cache_size()
    _, loss = step(model, batch, optimizer=optimizer, terms=LossTerms(label_smoothing=0.2, z_loss=0.1))
    assert compiled._cache_size() == before
    logits = model(batch["inputs"], batch["inputs"] != 0, shift_right(batch["labels"], CONFIG))
    real = batch["labels"] != 0
    expected = np.asarray(token_losses(logits, jnp.asarray(batch["labels"]), LossTerms(0.2, 0.1)))[real].mean()
    np.testing.assert_allclose(loss.mean, expected, rtol=1e-5)
    assert abs(float(loss.mean) - float(plain)) > 0.1


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_optimizer_equals_optax(name):
    """Three updates equal those of optax.adamw and optax.adafactor (clipping out of the way)."""
    rate, params = 1e-2, {"w": jnp.linspace(-1, 1, 6).reshape(2, 3), "scale": jnp.ones(3)}
    ours = make_optimizer(name, weight_decay=0.1 if name == "adamw" else 0.0, clip=1e9)
    mask = {"w": True, "scale": False}
    theirs = optax.adamw(rate, weight_decay=0.1, mask=mask) if name == "adamw" else optax.adafactor(rate)
    a: Any = params
    b: Any = params
    state_a, state_b = ours.init(params), theirs.init(params)
    for number in range(1, 4):
        grads = jax.tree.map(lambda x, n=number: jnp.sin(x * n) + 0.1, params)
        updates, state_a = ours.update(grads, state_a, a)
        a = jax.tree.map(lambda p, u: p - rate * u, a, updates)
        updates, state_b = theirs.update(grads, state_b, b)
        b = optax.apply_updates(b, updates)
    for key in params:
        np.testing.assert_allclose(np.asarray(a[key]), np.asarray(b[key]), rtol=1e-6)


def test_accumulated_gradient_equals_the_whole_batch():
    batch = make_pairs(12, weights=np.linspace(0.5, 2.0, 12, dtype=np.float32)).batch(np.arange(12))
    optimizer = optax.identity()  # the update is the gradient
    whole, loss = step(make_model(), batch, optimizer=optimizer, rate=1.0)
    parts, loss_of_parts = step(make_model(), batch, optimizer=optimizer, accumulate=4, rate=1.0)
    np.testing.assert_allclose(loss.mean, loss_of_parts.mean, rtol=1e-6)
    np.testing.assert_allclose(loss.examples_B, loss_of_parts.examples_B, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_example_of_weight_zero_teaches_nothing():
    weights = np.ones(8, np.float32)
    weights[3] = 0
    first, second = make_pairs(8, weights=weights), make_pairs(8, weights=weights)
    second.labels_NxT[3] = 17
    results = [
        step(make_model(), pairs.batch(np.arange(8)), optimizer=make_optimizer("adamw")) for pairs in (first, second)
    ]
    for a, b in zip(jax.tree.leaves(results[0][0]), jax.tree.leaves(results[1][0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_learning_rates():
    rates = learning_rates(steps=10, peak=1.0, warmup=0.2, schedule="linear")
    np.testing.assert_allclose(rates, [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125], rtol=1e-6)
    np.testing.assert_allclose(learning_rates(steps=3, peak=2.0, warmup=0.0, schedule="constant"), 2.0)
    cosine = learning_rates(steps=4, peak=1.0, warmup=0.0, schedule="cosine")
    np.testing.assert_allclose(cosine, 0.5 * (1 + np.cos(np.pi * np.arange(4) / 4)), atol=1e-6)
    assert learning_rates(steps=1, peak=1.0, warmup=0.05, schedule="linear")[0] > 0
    rsqrt = learning_rates(steps=10, peak=1.0, warmup=0.2, schedule="rsqrt")
    np.testing.assert_allclose(rsqrt, [0.5, 1.0, *np.sqrt(2 / np.arange(2, 10))], rtol=1e-6)


def test_each_epoch_sees_each_example_once():
    lengths = np.arange(64) % 7
    order = ExampleOrder(lengths, 4, key=jax.random.key(0))
    epochs = [np.concatenate([order[step] for step in range(first, first + 16)]) for first in (0, 16)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(64))
    assert (epochs[0] != epochs[1]).any()


def test_batches_hold_examples_of_like_length_in_random_order():
    lengths = np.random.default_rng(0).permutation(800)
    order = ExampleOrder(lengths, 10, key=jax.random.key(0))
    spread = [np.ptp(lengths[order[step]]) for step in range(80)]
    assert np.mean(spread) < 800 / 8 * 1.2  # an unsorted batch of ten spreads over 9/11 of the whole range
    means = np.array([lengths[order[step]].mean() for step in range(80)])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3


def test_the_order_can_be_entered_anywhere():
    lengths = np.arange(30)
    first, second = (ExampleOrder(lengths, 4, key=jax.random.key(3)) for _ in range(2))
    expected = [first[step] for step in range(40)]
    for step in (39, 3, 17, 16):
        np.testing.assert_array_equal(second[step], expected[step])


def test_batches_are_cut_to_few_widths_and_lose_no_token():
    inputs = np.zeros((3, 80), np.int32)
    for row, length in enumerate((5, 40, 80)):
        inputs[row, :length] = 7
    pairs = Pairs(inputs, inputs[:, :50], np.ones(3, np.float32), cut=0)
    shapes = [pairs.batch(np.array(rows))["inputs"].shape[1] for rows in ([0], [0, 1], [2, 0])]
    assert shapes == [32, 64, 80]
    assert pairs.batch(np.array([1]))["labels"].shape[1] == 50
    wider = pairs.batch(np.array([0]), (96, 64))
    assert (wider["inputs"].shape, wider["labels"].shape) == ((1, 96), (1, 64))
    assert wider["inputs"].sum() == 5 * 7


def run(folder, *, steps=20, pairs=None, model=None, stop_at=None, **options):
    model = model or make_model(dropout_rate=0.1)
    rates = learning_rates(steps=steps, peak=1e-2, warmup=0.1, schedule="linear")
    settings = {"save_every": 5, "log_every": 4, "optimizer": make_optimizer("adamw"), "batch_size": 8} | options
    trained = finetune(
        model, pairs or make_pairs(), rates=rates[:stop_at], key=jax.random.key(1), folder=folder, **settings
    )
    return model, trained


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def test_a_run_that_goes_on_from_a_checkpoint_is_bit_identical(tmp_path):
    whole, whole_trained = run(tmp_path / "whole")
    run(tmp_path / "parts", stop_at=10)
    rows = read_jsonl(tmp_path / "parts" / "metrics.jsonl")
    assert rows[-1]["step"] == 10
    resumed, resumed_trained = run(tmp_path / "parts")
    assert resumed_trained == whole_trained
    for a, b in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    losses = {row["step"]: row["loss"] for row in read_jsonl(tmp_path / "whole" / "metrics.jsonl")}
    for row in read_jsonl(tmp_path / "parts" / "metrics.jsonl"):
        if row["step"] in losses:
            assert row["loss"] == losses[row["step"]]


def test_a_finished_run_gives_its_result_again(tmp_path):
    first, trained = run(tmp_path)
    second, again = run(tmp_path)
    assert again == trained
    for a, b in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_patience_keeps_the_best_parameters(tmp_path):
    """A learning rate that ruins the model: the best validation loss comes early and its parameters are kept."""
    held_out = make_pairs(8, seed=5)
    model, trained = run(
        tmp_path, steps=60, optimizer=optax.scale(20.0), validation=held_out, validate_every=2, patience=3
    )
    rows = [row for row in read_jsonl(tmp_path / "metrics.jsonl") if "validation_loss" in row]
    best = min(rows, key=lambda row: row["validation_loss"])
    assert trained.kept_step == best["step"]
    assert trained.steps == best["step"] + 6
    np.testing.assert_allclose(validation_loss(model, held_out, batch_size=8), best["validation_loss"], rtol=1e-5)


def test_validation_loss_does_not_depend_on_the_batch_size():
    model, pairs = make_model(), make_pairs(10)
    losses = [validation_loss(model, pairs, batch_size=size) for size in (3, 10, 16)]
    np.testing.assert_allclose(losses, plain_loss(model, pairs.batch(np.arange(10))), rtol=1e-5)


def test_it_learns_to_copy(tmp_path):
    pairs = make_pairs(32)
    _, trained = run(tmp_path, steps=400, pairs=pairs, model=make_model(), batch_size=32, save_every=400)
    assert trained.loss < 0.2


def test_arms_of_other_lengths_share_one_program(tmp_path):
    compiled: Any = train_step
    compiled.clear_cache()
    for number, steps in enumerate((8, 12)):
        run(tmp_path / str(number), steps=steps, pairs=make_pairs(16 + number))
    assert compiled._cache_size() == 1


def test_a_learning_rate_that_ruins_the_parameters_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match=r"an earlier step has spoiled .* Lower train\.learning_rate"):
        run(tmp_path, steps=40, optimizer=optax.scale(1e12))


def test_a_pair_without_a_finite_loss_is_named(tmp_path):
    """Token 30 has an infinite embedding and stands in one prompt alone; the output embeddings are another matrix."""
    model = make_model(tie_word_embeddings=False)
    model.embedding_VxD[...] = model.embedding_VxD[...].at[30].set(jnp.nan)
    pairs = make_pairs(24)
    for side in (pairs.inputs_NxS, pairs.labels_NxT):
        side[side == 30] = 29
    pairs.inputs_NxS[11, 2] = 30
    pairs = dataclasses.replace(pairs, ids=[f"pair-{row}" for row in range(24)])
    with pytest.raises(FloatingPointError, match=r"1 of its 8 pairs: pair-11\. Look at"):
        run(tmp_path, pairs=pairs, model=model, log_every=100, save_every=100)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_low_rank_factors_are_trained_and_nothing_else(tmp_path):
    plain = make_model()
    adapted = add_lora(plain, rank=2, key=jax.random.key(3))
    before = {path: np.asarray(leaf) for path, leaf in nnx.to_flat_state(nnx.state(adapted))}
    model, trained = run(tmp_path, model=adapted, steps=12)
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        assert (np.asarray(leaf) == before[path]).all() == (path[-1] not in ("a", "b")), path
    assert trained.loss < read_jsonl(tmp_path / "metrics.jsonl")[0]["loss"]


def test_best_parameters_are_kept_without_stopping(tmp_path):
    held_out = make_pairs(8, seed=5)
    model, trained = run(
        tmp_path, optimizer=optax.scale(20.0), validation=held_out, validate_every=2, keep_best=True, steps=12
    )
    rows = [row for row in read_jsonl(tmp_path / "metrics.jsonl") if "validation_loss" in row]
    best = min(rows, key=lambda row: row["validation_loss"])
    assert (trained.steps, trained.kept_step, trained.validation_loss) == (12, best["step"], best["validation_loss"])
    np.testing.assert_allclose(validation_loss(model, held_out, batch_size=8), best["validation_loss"], rtol=1e-5)


def test_profile_writes_a_trace_and_rows_have_the_speed(tmp_path):
    run(tmp_path, steps=8, profile=True, log_every=4)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    first, *rest = read_jsonl(tmp_path / "metrics.jsonl")
    assert "utilisation" not in first
    for row in rest:
        assert 0 < row["utilisation"] < 1
        assert row["tokens_per_second"] > 0


def run_many(folder, *, pairs, dropout, **options):
    """Two seeds, and the same runs one by one: parameters and losses of both."""
    models = [make_model(seed, dropout_rate=dropout) for seed in range(2)]
    keys = [jax.random.key(seed) for seed in (1, 2)]
    rates = learning_rates(steps=9, peak=1e-2, warmup=0.1, schedule="linear")
    settings = {"rates": rates, "batch_size": 8, "optimizer": make_optimizer("adamw"), "log_every": 1}
    settings |= {"validation": make_pairs(12, seed=7), "validate_every": 4, "accumulate": 2}
    together = finetune_many(models, pairs, keys=keys, folder=folder / "many", **settings, **options)
    for number, key in enumerate(keys):
        alone = make_model(number, dropout_rate=dropout)
        trained = finetune(alone, pairs[number], key=key, folder=folder / str(number), **settings)
        a, b = (read_jsonl(folder / where / "metrics.jsonl") for where in (f"many/{number}", str(number)))
        assert [row["step"] for row in a] == [row["step"] for row in b]
        for name in ("loss", "validation_loss"):
            found, expected = ([row[name] for row in rows if name in row] for rows in (a, b))
            np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(together[number].loss, trained.loss, atol=1e-5)
        for x, y in zip(leaves(models[number]), leaves(alone), strict=True):
            # Adam divides by the size of a gradient: where it is almost 0, the order of sums decides a whole step.
            assert np.abs(np.asarray(x) - np.asarray(y)).mean() < 1e-5
    return models, together


@pytest.mark.parametrize("vmapped", [1, 2])
def test_many_runs_at_once_are_the_runs_one_by_one(tmp_path, vmapped):
    """Two seeds on two selections of one size, with dropout: to the rounding of sums in another order."""
    run_many(tmp_path, pairs=[make_pairs(24, seed=3), make_pairs(24, seed=4)], dropout=0.1, vmapped=vmapped)


def test_many_runs_may_differ_in_size_and_width(tmp_path):
    wide = make_pairs(17, seed=4)
    inputs = np.pad(wide.inputs_NxS, ((0, 0), (0, 40)))
    inputs[:5] = 9
    run_many(tmp_path, pairs=[make_pairs(24), dataclasses.replace(wide, inputs_NxS=inputs)], dropout=0.0)


def test_many_runs_go_on_from_a_checkpoint(tmp_path):
    results = []
    for folder, stops in (("whole", [8]), ("parts", [4, 8])):
        for stop_at in stops:
            models = [make_model(seed) for seed in range(2)]
            rates = learning_rates(steps=8, peak=1e-2, warmup=0.0, schedule="linear")[:stop_at]
            finetune_many(
                models,
                [make_pairs(24)] * 2,
                keys=[jax.random.key(seed) for seed in range(2)],
                rates=rates,
                batch_size=8,
                folder=tmp_path / folder,
                optimizer=make_optimizer("adamw"),
            )
        results.append([leaf for model in models for leaf in leaves(model)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"batch_size \(8\) must be a multiple of accumulate \(3\)"):
        run(tmp_path, accumulate=3)
    with pytest.raises(ValueError, match="need validation pairs"):
        run(tmp_path, patience=2)
    with pytest.raises(ValueError, match="keep_best need validation"):
        run(tmp_path, keep_best=True)
    pairs = dataclasses.replace(make_pairs(), ids=[f"pair-{row}" for row in range(24)])
    pairs.labels_NxT[7, 1] = 31
    with pytest.raises(ValueError, match="Pair pair-7 has token 31, and the model knows 31"):
        run(tmp_path, pairs=pairs)
    with pytest.raises(ValueError, match="a training or validation set is empty"):
        run(tmp_path, validation=make_pairs(0))
    many = {"batch_size": 8, "folder": tmp_path, "optimizer": make_optimizer("adamw"), "rates": np.ones(2, np.float32)}
    keys, pairs = list(jax.random.split(jax.random.key(0))), [make_pairs()] * 2
    with pytest.raises(ValueError, match="2 models, 2 pairs, 1 keys and 2 names"):
        finetune_many([make_model(), make_model()], pairs, keys=keys[:1], **many)
    with pytest.raises(ValueError, match="model 1 is not of the shape of model 0"):
        finetune_many([make_model(), make_model(d_ff=33)], pairs, keys=keys, **many)
    bases = [add_lora(make_model(seed), rank=2, key=keys[0]) for seed in range(2)]
    with pytest.raises(ValueError, match="model 1 differs from model 0 in what is not trained"):
        finetune_many(bases, pairs, keys=keys, **many)
    with pytest.raises(ValueError, match="adamw"):
        make_optimizer("sgd")
    with pytest.raises(ValueError, match="schedule must be one of"):
        learning_rates(steps=4, peak=1.0, warmup=0.0, schedule="step")


class _Tokenizer:
    """One id a word: its length; 1 ends a text."""

    pad_token_id = 0

    def __call__(self, texts, *, verbose):
        return types.SimpleNamespace(input_ids=[[len(word) + 1 for word in text.split()] + [1] for text in texts])


def test_tokenize_pairs_pads_and_cuts_but_keeps_the_end():
    pairs = tokenize_pairs(_Tokenizer(), ["aa b ccc", "a"], ["a", "b"], max_input_tokens=3, max_target_tokens=9)
    np.testing.assert_array_equal(pairs.inputs_NxS, [[3, 2, 1], [2, 1, 0]])
    np.testing.assert_array_equal(pairs.labels_NxT, [[2, 1], [2, 1]])
    assert pairs.cut == 1
    widths: dict[str, Any] = {"max_input_tokens": 3, "max_target_tokens": 3}
    with pytest.raises(ValueError, match=r"not negative: row 1 has -1\.0"):
        tokenize_pairs(_Tokenizer(), ["a", "b"], ["c", "d"], weights=np.array([1, -1]), **widths)
    with pytest.raises(ValueError, match="ids has 1 entries for 2 pairs"):
        tokenize_pairs(_Tokenizer(), ["a", "b"], ["c", "d"], ids=["x"], **widths)
    with pytest.raises(ValueError, match="0 prompts"):
        tokenize_pairs(_Tokenizer(), [], [], max_input_tokens=3, max_target_tokens=3)
    with pytest.raises(ValueError, match="weights has 3 entries for 1 pairs"):
        tokenize_pairs(
            _Tokenizer(), ["a"], ["b"], max_input_tokens=3, max_target_tokens=3, weights=np.ones(3, np.float32)
        )
