"""Greedy, beam and sampled generation: what `decode.py` is asked for, checked and padded to a few lengths; texts."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from deft_tsds.runs import progress_bar
from deft_tsds.t5.decode import Drawing, EarlyStopping, beam_search, decode
from deft_tsds.t5.model import T5

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        tokens_BxNxT, used = beam_search(
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
            drawing = Drawing(
                keys_R=_row_keys(key, rows, answers),
                temperature=np.float32(temperature),
                top_p=None if top_p is None else np.float32(top_p),
            )
        tokens_RxT, used = decode(*arguments, drawing, length=length, answers=answers, top_k=top_k)
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

    Prompts are sorted by length and padded to a few lengths, and few of them to few rows, so that few programs are
    compiled and little is computed on padding. Prompts longer than `max_input_tokens` are cut there. The progress bar
    shows tokens a second.

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
    batch_size = min(batch_size, _bucket(len(rows)))  # a few prompts need no whole batch
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


def _row_keys(key: jax.Array, rows: int, answers: int) -> jax.Array:
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys_B = key if key.ndim else fold(key, jnp.arange(rows))
    return jax.vmap(fold, in_axes=(0, None))(keys_B, jnp.arange(answers)).reshape(-1)
