"""Greedy, beam and sampled decoding with a key-value cache, compiled once for a bucket of lengths and an architecture.

The parameters, and every number that is no shape, are arguments of the compiled program: the next model of the same
architecture runs it as it is, and so does another temperature. Beam search follows transformers
(`GenerationMixin._beam_search`) to the token: 2 n candidates a step, finished hypotheses ranked by
log p / length ** length_penalty, and its rules for when a row can no longer improve.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from deft_tsds.runs import progress_bar
from deft_tsds.t5.model import T5, Cache, T5Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EarlyStopping = bool | Literal["never"]

_LOST = -1e9  # the score of what must not win; a number that transformers uses too, since ties are ranked by it
_SMALLEST_BUCKET = 16


def generate(
    model: T5,
    ids_BxS: ArrayLike,
    mask_BxS: ArrayLike,
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    prefix_BxP: ArrayLike | None = None,
    num_return: int | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    key: jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> np.ndarray:
    """Continuations of each row: the most likely one token by token, the best of a beam search, or drawn with a key.

    Args:
        model: any `T5`; models of one architecture and dtype share a compiled program.
        ids_BxS, mask_BxS: source tokens and 1 where they count; padding changes nothing.
        max_new_tokens: at most this many tokens a row, the end token among them.
        min_new_tokens: the end token cannot come before so many other tokens.
        prefix_BxP: tokens that every answer begins with; they are not returned and count for no length.
        num_return: give so many answers a row: the best beams in order, or independent draws. Needs beams or a key.
        num_beams: 1 is greedy.
        length_penalty: hypotheses are ranked by log p / length ** length_penalty.
        early_stopping: True ends a row at `num_beams` finished hypotheses; False when the best open one, ended now,
            could not beat the worst finished one; "never" when no length could.
        key: draw each token instead, from softmax(logits / temperature). One key, or an array of B keys, one a row;
            what a row draws depends on its key alone (of one key, on the row's number too).
        temperature: above 0; towards 0 the draw becomes greedy.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the fewest tokens, likeliest first, whose probabilities reach it (of those in `top_k`);
            Holtzman et al. 2020 (arXiv 1904.09751), section 3.1.

    Returns:
        int32 [B, T], or [B, num_return, T]; T <= max_new_tokens, without the start token and the prefix. Each row ends
        with the end token, then padding, unless max_new_tokens cut it.

    Raises:
        ValueError: the arrays are no equal non-empty matrices, or a number is outside its range.
    """
    ids_BxS, mask_BxS = np.asarray(ids_BxS), np.asarray(mask_BxS)
    if ids_BxS.ndim != 2 or 0 in ids_BxS.shape or ids_BxS.shape != mask_BxS.shape:
        raise ValueError(
            f"generate: ids and mask must be non-empty and of one shape [B, S], got {ids_BxS.shape}, {mask_BxS.shape}."
        )
    rows, answers = len(ids_BxS), 1 if num_return is None else num_return
    for name, value in (("max_new_tokens", max_new_tokens), ("num_beams", num_beams), ("num_return", answers)):
        if value < 1:
            raise ValueError(f"generate: {name} must be at least 1, got {value}.")
    if not 0 <= min_new_tokens <= max_new_tokens:
        raise ValueError(f"generate: min_new_tokens must be in [0, {max_new_tokens}], got {min_new_tokens}.")
    if early_stopping not in (True, False, "never"):
        raise ValueError(f"generate: early_stopping must be True, False or 'never', got {early_stopping!r}.")
    if key is None:
        if (temperature, top_k, top_p) != (1.0, None, None):
            raise ValueError("generate: temperature, top_k and top_p are for drawing: give a key.")
        if answers > num_beams:
            raise ValueError(f"generate: num_return {answers} needs as many beams, or a key; num_beams is {num_beams}.")
    else:
        if num_beams > 1:
            raise ValueError("generate: give num_beams or a key, not both.")
        if not temperature > 0 or (top_k is not None and top_k < 1) or not (top_p is None or 0 < top_p <= 1):
            raise ValueError(
                "generate: temperature must be above 0, top_k at least 1 and top_p in (0, 1], "
                f"got {temperature}, {top_k} and {top_p}."
            )
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), (rows,)):
            raise ValueError(
                f"generate: key must be jax.random.key(seed) or {rows} of them, got {key.dtype}{key.shape}."
            )
    start_Bx1 = np.full((rows, 1), model.config.decoder_start_token_id)
    prefix_BxP = start_Bx1[:, :0] if prefix_BxP is None else np.asarray(prefix_BxP)
    if prefix_BxP.ndim != 2 or len(prefix_BxP) != rows:
        raise ValueError(
            f"generate: prefix must be a matrix with a row for each of the {rows}, got {prefix_BxP.shape}."
        )

    padding = ((0, 0), (0, _bucket(ids_BxS.shape[1]) - ids_BxS.shape[1]))
    ids_BxS = np.pad(ids_BxS.astype(np.int32), padding, constant_values=model.config.pad_token_id)
    mask_BxS = np.pad(mask_BxS.astype(bool), padding)
    prompt_BxP = np.concatenate([start_Bx1, prefix_BxP], axis=1).astype(np.int32)
    arguments = (*nnx.split(model), ids_BxS, mask_BxS, prompt_BxP, np.int32(max_new_tokens), np.int32(min_new_tokens))
    length = _bucket(max_new_tokens)
    if num_beams > 1:
        tokens_BxNxT, used = _beam(
            *arguments,
            np.float32(length_penalty),
            length=length,
            answers=answers,
            num_beams=num_beams,
            early_stopping=early_stopping,
        )
    else:
        drawing = None
        if key is not None:
            drawing = _Drawing(
                keys_R=_row_keys(key, rows, answers),
                temperature=np.float32(temperature),
                top_p=None if top_p is None else np.float32(top_p),
            )
        tokens_RxT, used = _decode(*arguments, drawing, length=length, answers=answers, top_k=top_k)
        tokens_BxNxT = tokens_RxT.reshape(rows, answers, length)
    tokens_BxNxT = np.asarray(tokens_BxNxT)[:, :, : int(used)]
    return tokens_BxNxT[:, 0] if num_return is None else tokens_BxNxT


def generate_texts(
    model: T5,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_input_tokens: int,
    max_new_tokens: int,
    batch_size: int,
    key: jax.Array | None = None,
    **options: Any,
) -> list[str]:
    """What the model answers to each prompt, in the order of the prompts.

    Prompts are sorted by length and padded to a few lengths, so that few programs are compiled and little is computed
    on padding. Prompts longer than `max_input_tokens` are cut there. The progress bar shows tokens a second.

    Args:
        key: draw the answers; what a prompt draws depends on its place in `prompts`, not on the batch size.
        options: what else `generate` takes for one answer a row, such as `num_beams` or `top_p`.

    Raises:
        ValueError: the tokenizer has more tokens than the model has embeddings, or a number is below 1.
    """
    for name, value in (("max_input_tokens", max_input_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"generate_texts: {name} must be at least 1, got {value}.")
    for name in {"num_return", "prefix_BxP"} & set(options):
        raise ValueError(f"generate_texts: {name} is for `generate`; here every prompt gets one text.")
    config = model.config
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"generate_texts: the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size} embeddings. "
            "Use the tokenizer that was saved with the model."
        )
    if not prompts:
        return []
    rows = tokenizer(list(prompts), truncation=True, max_length=max_input_tokens)["input_ids"]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))  # longest first: out of memory shows at once
    texts = [""] * len(rows)
    written, began = 0, time.perf_counter()
    with progress_bar() as bar:
        task = bar.add_task("generate", total=len(rows), note="")
        for first in range(0, len(rows), batch_size):
            batch = order[first : first + batch_size]
            full = batch + batch[:1] * (batch_size - len(batch))  # the last batch is filled up: no shape of its own
            ids_BxS = np.full((batch_size, len(rows[batch[0]])), config.pad_token_id, np.int32)
            mask_BxS = np.zeros(ids_BxS.shape, bool)
            for line, row in enumerate(full):
                ids_BxS[line, : len(rows[row])] = rows[row]
                mask_BxS[line, : len(rows[row])] = True
            keys = None if key is None else jax.vmap(functools.partial(jax.random.fold_in, key))(np.array(full))
            tokens = generate(model, ids_BxS, mask_BxS, max_new_tokens=max_new_tokens, key=keys, **options)
            answers = tokenizer.batch_decode(tokens[: len(batch)], skip_special_tokens=True)
            for row, answer in zip(batch, answers, strict=True):
                texts[row] = answer
            written += np.count_nonzero(tokens[: len(batch)] != config.pad_token_id)
            bar.update(task, advance=len(batch), note=f"{written / (time.perf_counter() - began):,.0f} tokens/s")
    return texts


def _bucket(length: int) -> int:
    """The padded length: multiples of 16 up to 64, then two lengths for each power of two (96, 128, 192, 256, ...)."""
    step = max(_SMALLEST_BUCKET, 1 << max((length - 1).bit_length() - 2, 0))
    return max(-(-length // step), 1) * step


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


class _Drawing(NamedTuple):
    """How tokens are drawn; a key for each of the R = B answers decoder rows."""

    keys_R: jax.Array
    temperature: np.float32
    top_p: np.float32 | None


def _row_keys(key: jax.Array, rows: int, answers: int) -> jax.Array:
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys_B = key if key.ndim else fold(key, jnp.arange(rows))
    return jax.vmap(fold, in_axes=(0, None))(keys_B, jnp.arange(answers)).reshape(-1)


def _draw(
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
def _decode(
    graph: nnx.GraphDef,
    state: nnx.State,
    ids_BxS: jax.Array,
    mask_BxS: jax.Array,
    prompt_BxP: jax.Array,
    max_new_tokens: jax.Array,
    min_new_tokens: jax.Array,
    drawing: _Drawing | None,
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
            next_R = _draw(logits_RxV, keys_R, drawing.temperature, top_k, drawing.top_p)
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
def _beam(
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
