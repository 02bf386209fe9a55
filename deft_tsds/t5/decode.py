"""The compiled programs of decoding: one token after another, and beam search, both with a key-value cache.

The parameters, and every number that is no shape, are arguments of a program: the next model of the same architecture
runs it as it is, and so does another temperature. Beam search follows transformers (`GenerationMixin._beam_search`) to
the token: 2 n candidates a step, finished hypotheses ranked by log p / length ** length_penalty, and its rules for when
a row can no longer improve.

Axes beside those of `model.py`: R decoder rows, `answers` or `num_beams` for each of B source rows; T = `length`, a
bucket of at least `max_new_tokens` columns; n beams.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from deft_tsds.t5.model import T5, Cache, T5Config

EarlyStopping = bool | Literal["never"]

_LOST = -1e9  # the score of what must not win; a number that transformers uses too, since ties are ranked by it


@functools.cache
def _compiler_options() -> dict[str, Any] | None:
    """What makes a step of few rows faster on CPU, in XLA 0.10.2: T5-small, 8 rows, 19 ms instead of 29.

    Its YNN kernels pack a weight anew for every product and, with two products at once, get in each other's way; Eigen
    reads the weight where it lies. An XLA without these options compiles as it likes: the results are the same.
    """
    if jax.default_backend() != "cpu":
        return None
    options = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_enable_concurrency_optimized_scheduler": False}
    try:
        jax.jit(jnp.negative, compiler_options=options)(0.0)
    except jax.errors.JaxRuntimeError:
        return None
    return options


def _jit(*static_argnames: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`jax.jit` with `_compiler_options`, which are asked for in the first call: importing starts no backend."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.cache
        def jitted() -> Callable[..., Any]:
            return jax.jit(function, static_argnames=static_argnames, compiler_options=_compiler_options())

        return functools.wraps(function)(lambda *args, **kwargs: jitted()(*args, **kwargs))

    return decorate


class Drawing(NamedTuple):
    """How tokens are drawn; a key for each of the R = B answers decoder rows."""

    keys_R: jax.Array
    temperature: np.float32
    top_p: np.float32 | None


def draw(
    logits_RxV: jax.Array, keys_R: jax.Array, temperature: ArrayLike, top_k: int | None, top_p: ArrayLike | None
) -> jax.Array:
    """A token for each row from softmax(logits / temperature), cut to its `top_k` and of these to its `top_p`."""
    logits_RxV = logits_RxV / temperature
    if top_k is None and top_p is None:
        return jax.vmap(jax.random.categorical)(keys_R, logits_RxV)
    vocabulary = logits_RxV.shape[1]
    logits_RxC, tokens_RxC = jax.lax.top_k(logits_RxV, vocabulary if top_k is None else min(top_k, vocabulary))
    if top_p is not None:
        p_RxC = jax.nn.softmax(logits_RxC)
        logits_RxC = jnp.where(jnp.cumsum(p_RxC, axis=1) - p_RxC < top_p, logits_RxC, -jnp.inf)
    place_R = jax.vmap(jax.random.categorical)(keys_R, logits_RxC)
    return jnp.take_along_axis(tokens_RxC, place_R[:, None], axis=1)[:, 0]


def _start(
    model: T5, ids_BxS: jax.Array, mask_BxS: jax.Array, prompt_BxP: jax.Array, *, length: int, beams: int
) -> tuple[Cache, jax.Array]:
    """The cache that holds all of the prompt but its last token, and the decoder rows [R] of that one."""
    prompt_RxP = jnp.repeat(prompt_BxP, beams, axis=0)
    before = prompt_RxP.shape[1] - 1
    cache = model.start(model.encode(ids_BxS, mask_BxS), mask_BxS, max_length=before + length, beams=beams)
    if before:
        cache = jax.lax.fori_loop(
            0, before, lambda place, cache: model.step(prompt_RxP[:, place], place, cache)[1], cache
        )
    return cache, prompt_RxP[:, -1]


def _not_yet(scores_RxV: jax.Array, config: T5Config, too_early: jax.Array) -> jax.Array:
    """The scores without the end token, where it is too early for that."""
    is_end_V = jnp.arange(scores_RxV.shape[-1]) == config.eos_token_id
    return jnp.where(too_early & is_end_V, -jnp.inf, scores_RxV)


@_jit("graph", "length", "answers", "top_k")
def decode(
    graph: nnx.GraphDef,
    state: nnx.State,
    ids_BxS: jax.Array,
    mask_BxS: jax.Array,
    prompt_BxP: jax.Array,
    max_new_tokens: jax.Array,
    min_new_tokens: jax.Array,
    drawing: Drawing | None,
    *,
    length: int,
    answers: int,
    top_k: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Tokens [R, length], and how many of the columns were decoded; greedy without `drawing`."""
    model: T5 = nnx.merge(graph, state)
    config = model.config
    cache, last_R = _start(model, ids_BxS, mask_BxS, prompt_BxP, length=length, beams=answers)
    before = prompt_BxP.shape[1] - 1

    def unfinished(carry):
        position, _, done_R, _, _ = carry
        return (position < max_new_tokens) & ~jnp.all(done_R)

    def advance(carry):
        position, last_R, done_R, tokens_RxT, cache = carry
        logits_RxV, cache = model.step(last_R, before + position, cache)
        logits_RxV = _not_yet(logits_RxV, config, position < min_new_tokens)
        if drawing is None:
            next_R = jnp.argmax(logits_RxV, axis=-1)
        else:
            keys_R = jax.vmap(jax.random.fold_in, in_axes=(0, None))(drawing.keys_R, position)
            next_R = draw(logits_RxV, keys_R, drawing.temperature, top_k, drawing.top_p)
        next_R = jnp.where(done_R, config.pad_token_id, next_R.astype(jnp.int32))
        tokens_RxT = jax.lax.dynamic_update_slice_in_dim(tokens_RxT, next_R[:, None], position, axis=1)
        return position + 1, next_R, done_R | (next_R == config.eos_token_id), tokens_RxT, cache

    tokens_RxT = jnp.full((len(last_R), length), config.pad_token_id, jnp.int32)
    used, _, _, tokens_RxT, _ = jax.lax.while_loop(
        unfinished, advance, (jnp.int32(0), last_R, jnp.zeros(len(last_R), bool), tokens_RxT, cache)
    )
    return tokens_RxT, used


class _Beams(NamedTuple):
    """The state of the search. n = num_beams; T = length; scores of open beams are log p, unpenalised."""

    position: jax.Array
    last_R: jax.Array
    open_tokens_BxnxT: jax.Array
    open_scores_Bxn: jax.Array
    ended_tokens_BxnxT: jax.Array
    ended_scores_Bxn: jax.Array
    ended_Bxn: jax.Array
    can_improve_B: jax.Array
    cache: Cache


@_jit("graph", "length", "answers", "num_beams", "early_stopping")
def beam_search(
    graph: nnx.GraphDef,
    state: nnx.State,
    ids_BxS: jax.Array,
    mask_BxS: jax.Array,
    prompt_BxP: jax.Array,
    max_new_tokens: jax.Array,
    min_new_tokens: jax.Array,
    length_penalty: jax.Array,
    *,
    length: int,
    answers: int,
    num_beams: int,
    early_stopping: EarlyStopping,
) -> tuple[jax.Array, jax.Array]:
    """The best hypotheses of each row in order, tokens [B, answers, T], and the longest length among them."""
    model: T5 = nnx.merge(graph, state)
    config, rows, n = model.config, ids_BxS.shape[0], num_beams
    first_row_Bx1 = jnp.arange(rows)[:, None] * n
    cache, last_R = _start(model, ids_BxS, mask_BxS, prompt_BxP, length=length, beams=n)
    before = prompt_BxP.shape[1] - 1

    def unfinished(beams: _Beams):
        all_ended = jnp.all(beams.ended_Bxn) if early_stopping is True else False
        return (beams.position < max_new_tokens) & jnp.any(beams.can_improve_B) & ~jnp.asarray(all_ended)

    def advance(beams: _Beams) -> _Beams:
        position, written = beams.position, (beams.position + 1).astype(jnp.float32)
        logits_RxV, cache = model.step(beams.last_R, before + position, beams.cache)
        log_p_RxV = _not_yet(jax.nn.log_softmax(logits_RxV), config, position < min_new_tokens)
        scores_BxnxV = log_p_RxV.reshape(rows, n, -1) + beams.open_scores_Bxn[:, :, None]
        # 2 n candidates: even if every beam ends in one of them, n open ones are left.
        scores_Bx2n, choice_Bx2n = jax.lax.top_k(scores_BxnxV.reshape(rows, -1), 2 * n)
        parent_Bx2n, token_Bx2n = jnp.divmod(choice_Bx2n, config.vocab_size)
        tokens_Bx2nxT = jnp.take_along_axis(beams.open_tokens_BxnxT, parent_Bx2n[:, :, None], axis=1)
        tokens_Bx2nxT = jax.lax.dynamic_update_slice_in_dim(tokens_Bx2nxT, token_Bx2n[:, :, None], position, axis=2)
        ends_Bx2n = (token_Bx2n == config.eos_token_id) | (position + 1 == max_new_tokens)

        open_scores_Bxn, kept_Bxn = jax.lax.top_k(scores_Bx2n + ends_Bx2n * _LOST, n)
        rows_R = (first_row_Bx1 + jnp.take_along_axis(parent_Bx2n, kept_Bxn, axis=1)).reshape(-1)

        # Only the best n candidates may end; a full row takes no more under early_stopping, nor one past improving.
        ending_Bx2n = ends_Bx2n & (jnp.arange(2 * n) < n)
        closed_Bx1 = ~beams.can_improve_B[:, None]
        if early_stopping is True:
            closed_Bx1 |= jnp.all(beams.ended_Bxn, axis=1, keepdims=True)
        final_Bx2n = scores_Bx2n / written**length_penalty + closed_Bx1 * _LOST + ~ending_Bx2n * _LOST
        merged_Bx3n = jnp.concatenate([beams.ended_scores_Bxn, final_Bx2n], axis=1)
        ended_scores_Bxn, best_Bxn = jax.lax.top_k(merged_Bx3n, n)
        ended_Bxn = jnp.take_along_axis(jnp.concatenate([beams.ended_Bxn, ending_Bx2n], axis=1), best_Bxn, axis=1)
        merged_Bx3nxT = jnp.concatenate([beams.ended_tokens_BxnxT, tokens_Bx2nxT], axis=1)

        hoped_length = jnp.where(length_penalty > 0, max_new_tokens, written) if early_stopping == "never" else written
        hope_B = open_scores_Bxn[:, 0] / hoped_length**length_penalty
        worst_Bxn = jnp.where(ended_Bxn, jnp.min(ended_scores_Bxn, axis=1, keepdims=True), _LOST)
        return _Beams(
            position=position + 1,
            last_R=jnp.take_along_axis(token_Bx2n, kept_Bxn, axis=1).reshape(-1),
            open_tokens_BxnxT=jnp.take_along_axis(tokens_Bx2nxT, kept_Bxn[:, :, None], axis=1),
            open_scores_Bxn=open_scores_Bxn,
            ended_tokens_BxnxT=jnp.take_along_axis(merged_Bx3nxT, best_Bxn[:, :, None], axis=1),
            ended_scores_Bxn=ended_scores_Bxn,
            ended_Bxn=ended_Bxn,
            can_improve_B=beams.can_improve_B & jnp.any(hope_B[:, None] > worst_Bxn, axis=1),
            cache=cache._replace(past=jax.tree.map(lambda x_RxHxTxK: x_RxHxTxK[rows_R], cache.past)),
        )

    no_tokens_BxnxT = jnp.full((rows, n, length), config.pad_token_id, jnp.int32)
    lost_Bxn = jnp.full((rows, n), _LOST, jnp.float32)
    beams = jax.lax.while_loop(
        unfinished,
        advance,
        _Beams(
            position=jnp.int32(0),
            last_R=last_R,
            open_tokens_BxnxT=no_tokens_BxnxT,
            open_scores_Bxn=lost_Bxn.at[:, 0].set(0.0),  # equal beams at first: only one may branch
            ended_tokens_BxnxT=no_tokens_BxnxT,
            ended_scores_Bxn=lost_Bxn,
            ended_Bxn=jnp.zeros((rows, n), bool),
            can_improve_B=jnp.ones(rows, bool),
            cache=cache,
        ),
    )
    best_BxNxT = beams.ended_tokens_BxnxT[:, :answers]
    is_end_BxNxT = best_BxNxT == config.eos_token_id
    length_BxN = jnp.where(jnp.any(is_end_BxNxT, axis=2), jnp.argmax(is_end_BxNxT, axis=2) + 1, beams.position)
    return best_BxNxT, jnp.max(length_BxN)
