"""Greedy and beam decoding with a key-value cache, compiled once for a shape and an architecture.

The parameters are an argument of the compiled program, so that the next model of the same architecture runs it as it
is. Beam search follows transformers (`GenerationMixin._beam_search`) to the token: 2 n candidates a step, finished
hypotheses ranked by log p / length ** length_penalty, and its rules for when a row can no longer improve.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from deft_tsds.runs import track
from deft_tsds.t5.model import T5, Cache

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
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
) -> np.ndarray:
    """The most likely continuation of each row: greedy, or by beam search.

    Args:
        model: any `T5`; models of one architecture and dtype share a compiled program.
        ids_BxS, mask_BxS: source tokens and 1 where they count; padding changes nothing.
        max_new_tokens: at most this many tokens a row, the end token among them.
        num_beams: 1 is greedy.
        length_penalty: hypotheses are ranked by log p / length ** length_penalty.
        early_stopping: True ends a row at `num_beams` finished hypotheses; False when the best open one, ended now,
            could not beat the worst finished one; "never" when no length could.

    Returns:
        int32 [B, T], T <= max_new_tokens, without the start token: each row ends with the end token, then padding,
        unless max_new_tokens cut it.

    Raises:
        ValueError: the arrays are no equal non-empty matrices, or a number is below 1.
    """
    ids_BxS, mask_BxS = np.asarray(ids_BxS), np.asarray(mask_BxS)
    if ids_BxS.ndim != 2 or 0 in ids_BxS.shape or ids_BxS.shape != mask_BxS.shape:
        raise ValueError(
            f"generate: ids and mask must be non-empty and of one shape [B, S], got {ids_BxS.shape}, {mask_BxS.shape}."
        )
    for name, value in (("max_new_tokens", max_new_tokens), ("num_beams", num_beams)):
        if value < 1:
            raise ValueError(f"generate: {name} must be at least 1, got {value}.")
    if early_stopping not in (True, False, "never"):
        raise ValueError(f"generate: early_stopping must be True, False or 'never', got {early_stopping!r}.")
    graph, state = nnx.split(model)
    ids_BxS, mask_BxS = ids_BxS.astype(np.int32), mask_BxS.astype(bool)
    if num_beams == 1:
        tokens_BxT, length = _greedy(graph, state, ids_BxS, mask_BxS, max_new_tokens=max_new_tokens)
    else:
        tokens_BxT, length = _beam(
            graph,
            state,
            ids_BxS,
            mask_BxS,
            np.float32(length_penalty),
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            early_stopping=early_stopping,
        )
    return np.asarray(tokens_BxT)[:, : int(length)]


def generate_texts(
    model: T5,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_input_tokens: int,
    max_new_tokens: int,
    batch_size: int,
    num_beams: int = 1,
) -> list[str]:
    """What the model answers to each prompt, in the order of the prompts.

    Prompts are sorted by length and padded to a few lengths, so that few programs are compiled and little is computed
    on padding. Prompts longer than `max_input_tokens` are cut there.

    Raises:
        ValueError: the tokenizer has more tokens than the model has embeddings, or a number is below 1.
    """
    for name, value in (("max_input_tokens", max_input_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"generate_texts: {name} must be at least 1, got {value}.")
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
    for first in track(range(0, len(rows), batch_size), "generate"):
        batch = order[first : first + batch_size]
        full = batch + batch[:1] * (batch_size - len(batch))  # the last batch is filled up: no shape of its own
        ids_BxS = np.full((batch_size, _bucket(len(rows[batch[0]]))), config.pad_token_id, np.int32)
        mask_BxS = np.zeros(ids_BxS.shape, bool)
        for line, row in enumerate(full):
            ids_BxS[line, : len(rows[row])] = rows[row]
            mask_BxS[line, : len(rows[row])] = True
        tokens = generate(model, ids_BxS, mask_BxS, max_new_tokens=max_new_tokens, num_beams=num_beams)
        answers = tokenizer.batch_decode(tokens[: len(batch)], skip_special_tokens=True)
        for row, answer in zip(batch, answers, strict=True):
            texts[row] = answer
    return texts


def _bucket(length: int) -> int:
    """The padded length: multiples of 16 up to 64, then two lengths for each power of two (96, 128, 192, 256, ...)."""
    step = max(_SMALLEST_BUCKET, 1 << max((length - 1).bit_length() - 2, 0))
    return max(-(-length // step), 1) * step


@functools.partial(jax.jit, static_argnames=("graph", "max_new_tokens"))
def _greedy(
    graph: nnx.GraphDef, state: nnx.State, ids_BxS: jax.Array, mask_BxS: jax.Array, *, max_new_tokens: int
) -> tuple[jax.Array, jax.Array]:
    """Tokens [B, T] and how many of the T columns were decoded."""
    model: T5 = nnx.merge(graph, state)
    config, rows = model.config, ids_BxS.shape[0]
    cache = model.start(model.encode(ids_BxS, mask_BxS), mask_BxS, max_length=max_new_tokens)

    def unfinished(carry):
        position, _, done_B, _, _ = carry
        return (position < max_new_tokens) & ~jnp.all(done_B)

    def advance(carry):
        position, last_B, done_B, tokens_BxT, cache = carry
        logits_BxV, cache = model.step(last_B, position, cache)
        next_B = jnp.where(done_B, config.pad_token_id, jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32))
        tokens_BxT = jax.lax.dynamic_update_slice_in_dim(tokens_BxT, next_B[:, None], position, axis=1)
        return position + 1, next_B, done_B | (next_B == config.eos_token_id), tokens_BxT, cache

    tokens_BxT = jnp.full((rows, max_new_tokens), config.pad_token_id, jnp.int32)
    start_B = jnp.full(rows, config.decoder_start_token_id, jnp.int32)
    length, _, _, tokens_BxT, _ = jax.lax.while_loop(
        unfinished, advance, (jnp.int32(0), start_B, jnp.zeros(rows, bool), tokens_BxT, cache)
    )
    return tokens_BxT, length


class _Beams(NamedTuple):
    """The state of the search. n = num_beams; T = max_new_tokens; scores of open beams are log p, unpenalised."""

    position: jax.Array
    open_tokens_BxnxT: jax.Array
    open_scores_Bxn: jax.Array
    ended_tokens_BxnxT: jax.Array
    ended_scores_Bxn: jax.Array
    ended_Bxn: jax.Array
    can_improve_B: jax.Array
    cache: Cache


@functools.partial(jax.jit, static_argnames=("graph", "max_new_tokens", "num_beams", "early_stopping"))
def _beam(
    graph: nnx.GraphDef,
    state: nnx.State,
    ids_BxS: jax.Array,
    mask_BxS: jax.Array,
    length_penalty: jax.Array,
    *,
    max_new_tokens: int,
    num_beams: int,
    early_stopping: EarlyStopping,
) -> tuple[jax.Array, jax.Array]:
    """The best hypothesis of each row, tokens [B, T], and the longest length among them."""
    model: T5 = nnx.merge(graph, state)
    config, rows, n = model.config, ids_BxS.shape[0], num_beams
    first_row_B = jnp.arange(rows)[:, None] * n

    def unfinished(beams: _Beams):
        all_ended = jnp.all(beams.ended_Bxn) if early_stopping is True else False
        return (beams.position < max_new_tokens) & jnp.any(beams.can_improve_B) & ~jnp.asarray(all_ended)

    def advance(beams: _Beams) -> _Beams:
        position, length = beams.position, (beams.position + 1).astype(jnp.float32)
        before = jax.lax.dynamic_index_in_dim(beams.open_tokens_BxnxT, jnp.maximum(position - 1, 0), 2, keepdims=False)
        last_Bxn = jnp.where(position == 0, config.decoder_start_token_id, before)
        logits_RxV, cache = model.step(last_Bxn.reshape(-1), position, beams.cache)
        scores_BxnxV = jax.nn.log_softmax(logits_RxV).reshape(rows, n, -1) + beams.open_scores_Bxn[:, :, None]
        # 2 n candidates: even if every beam ends in one of them, n open ones are left.
        scores_Bx2n, choice_Bx2n = jax.lax.top_k(scores_BxnxV.reshape(rows, -1), 2 * n)
        parent_Bx2n, token_Bx2n = jnp.divmod(choice_Bx2n, config.vocab_size)
        tokens_Bx2nxT = jnp.take_along_axis(beams.open_tokens_BxnxT, parent_Bx2n[:, :, None], axis=1)
        tokens_Bx2nxT = jax.lax.dynamic_update_slice_in_dim(tokens_Bx2nxT, token_Bx2n[:, :, None], position, axis=2)
        ends_Bx2n = (token_Bx2n == config.eos_token_id) | (position + 1 == max_new_tokens)

        open_scores_Bxn, kept_Bxn = jax.lax.top_k(scores_Bx2n + ends_Bx2n * _LOST, n)
        rows_R = (first_row_B + jnp.take_along_axis(parent_Bx2n, kept_Bxn, axis=1)).reshape(-1)

        # Only the best n candidates may end; a full row takes no more under early_stopping, nor one past improving.
        ending_Bx2n = ends_Bx2n & (jnp.arange(2 * n) < n)
        closed_Bx1 = ~beams.can_improve_B[:, None]
        if early_stopping is True:
            closed_Bx1 |= jnp.all(beams.ended_Bxn, axis=1, keepdims=True)
        final_Bx2n = scores_Bx2n / length**length_penalty + closed_Bx1 * _LOST + ~ending_Bx2n * _LOST
        merged_Bx3n = jnp.concatenate([beams.ended_scores_Bxn, final_Bx2n], axis=1)
        ended_scores_Bxn, best_Bxn = jax.lax.top_k(merged_Bx3n, n)
        ended_Bxn = jnp.take_along_axis(jnp.concatenate([beams.ended_Bxn, ending_Bx2n], axis=1), best_Bxn, axis=1)
        merged_Bx3nxT = jnp.concatenate([beams.ended_tokens_BxnxT, tokens_Bx2nxT], axis=1)

        hoped_length = jnp.where(length_penalty > 0, max_new_tokens, length) if early_stopping == "never" else length
        hope_B = open_scores_Bxn[:, 0] / hoped_length**length_penalty
        worst_Bxn = jnp.where(ended_Bxn, jnp.min(ended_scores_Bxn, axis=1, keepdims=True), _LOST)
        return _Beams(
            position=position + 1,
            open_tokens_BxnxT=jnp.take_along_axis(tokens_Bx2nxT, kept_Bxn[:, :, None], axis=1),
            open_scores_Bxn=open_scores_Bxn,
            ended_tokens_BxnxT=jnp.take_along_axis(merged_Bx3nxT, best_Bxn[:, :, None], axis=1),
            ended_scores_Bxn=ended_scores_Bxn,
            ended_Bxn=ended_Bxn,
            can_improve_B=beams.can_improve_B & jnp.any(hope_B[:, None] > worst_Bxn, axis=1),
            cache=cache._replace(past=jax.tree.map(lambda x_RxHxTxK: x_RxHxTxK[rows_R], cache.past)),
        )

    states_BxSxD = model.encode(ids_BxS, mask_BxS)
    no_tokens_BxnxT = jnp.full((rows, n, max_new_tokens), config.pad_token_id, jnp.int32)
    lost_Bxn = jnp.full((rows, n), _LOST, jnp.float32)
    beams = jax.lax.while_loop(
        unfinished,
        advance,
        _Beams(
            position=jnp.int32(0),
            open_tokens_BxnxT=no_tokens_BxnxT,
            open_scores_Bxn=lost_Bxn.at[:, 0].set(0.0),  # equal beams at first: only one may branch
            ended_tokens_BxnxT=no_tokens_BxnxT,
            ended_scores_Bxn=lost_Bxn,
            ended_Bxn=jnp.zeros((rows, n), bool),
            can_improve_B=jnp.ones(rows, bool),
            cache=model.start(states_BxSxD, mask_BxS, max_length=max_new_tokens, beams=n),
        ),
    )
    best_BxT = beams.ended_tokens_BxnxT[:, 0]
    is_end_BxT = best_BxT == config.eos_token_id
    length_B = jnp.where(jnp.any(is_end_BxT, axis=1), jnp.argmax(is_end_BxT, axis=1) + 1, beams.position)
    return best_BxT, jnp.max(length_B)
