"""Greedy and beam decoding with T5 against `generate` of transformers (torch), float32, the same random weights.

    python benchmarks/decoding.py                          # T5-small (60M), batch 8, 64 source tokens, 64 new ones
    python benchmarks/decoding.py --beams 1 4 --rounds 5

Both decode exactly `new_tokens` tokens (the end token is forbidden before). "floor" is the time in which the weights
that a step reads (the decoder's and the output embedding's, once a step) pass through memory at the speed at which
this machine, in this run, sums a large array.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import CACHE, compare, print_table


@dataclass(frozen=True)
class Settings:
    """Which cases to time."""

    size: str = "t5-small"
    """A name of `T5Config.of`."""
    batch: int = 8
    """Rows."""
    source_tokens: int = 64
    """Tokens of each source."""
    new_tokens: int = 64
    """Tokens that are decoded."""
    beams: tuple[int, ...] = (1,)
    """Numbers of beams; 1 is greedy."""
    rounds: int = 3
    """How often each contender gets a process of its own."""


def _folder(size: str) -> Path:
    """A model of this size with random weights, saved once."""
    from flax import nnx

    from deft_tsds.t5 import T5, T5Config, save_pretrained

    folder = CACHE / size
    if not (folder / "config.json").exists():
        save_pretrained(T5(T5Config.of(size), rngs=nnx.Rngs(0)), folder)
    return folder


def _ids(batch: int, source_tokens: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 30_000, (batch, source_tokens))


def ours(folder: str, batch: int, source_tokens: int, new_tokens: int, beams: int) -> Callable[[], Any]:
    """`generate`, compiled in its first call."""
    from deft_tsds.t5 import generate, load_pretrained

    model, ids = load_pretrained(folder), _ids(batch, source_tokens)
    return functools.partial(
        generate, model, ids, ids > 0, max_new_tokens=new_tokens, min_new_tokens=new_tokens, num_beams=beams
    )


def transformers(folder: str, batch: int, source_tokens: int, new_tokens: int, beams: int) -> Callable[[], Any]:
    """`T5ForConditionalGeneration.generate` as it comes."""
    import torch
    from transformers import T5ForConditionalGeneration

    model: Any = T5ForConditionalGeneration.from_pretrained(folder)
    model.eval()
    ids = torch.tensor(_ids(batch, source_tokens))
    settings = {"do_sample": False, "num_beams": beams, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    return functools.partial(model.generate, input_ids=ids, attention_mask=torch.ones_like(ids), **settings)


def reading() -> Callable[[], Any]:
    """Sum a gigabyte: as fast as memory gives numbers to all cores."""
    import jax

    x = jax.numpy.ones(2**28, jax.numpy.float32)
    total = jax.jit(jax.numpy.sum)
    return lambda: total(x).block_until_ready()


def main(settings: Settings) -> None:
    """Time all cases and print the table."""
    from deft_tsds.t5 import T5Config

    config = T5Config.of(settings.size)
    attention, ffn = config.d_model * config.num_heads * config.d_kv, config.d_model * config.d_ff
    matrices = 3 if config.activation == "gated-gelu" else 2
    layer = 4 * attention + 2 * attention + matrices * ffn  # of the cross-attention q and o: k and v are read once
    step_bytes = 4 * (config.num_decoder_layers * layer + config.vocab_size * config.d_model)
    bytes_per_second = 2**30 / compare({"sum": "decoding:reading"}, {}, rounds=2, calls=5)["sum"].seconds
    folder, table = str(_folder(settings.size)), []
    for beams in settings.beams:
        case = {
            "folder": folder,
            "batch": settings.batch,
            "source_tokens": settings.source_tokens,
            "new_tokens": settings.new_tokens,
            "beams": beams,
        }
        contenders = {"ours": "decoding:ours", "transformers": "decoding:transformers"}
        found = compare(contenders, case, rounds=settings.rounds, calls=3)
        mine, peer = found["ours"], found["transformers"]
        floor = settings.new_tokens * step_bytes / bytes_per_second
        tokens = settings.batch * settings.new_tokens
        table.append(
            [
                f"{beams}",
                f"{mine.seconds:.2f}",
                f"{mine.first_seconds - mine.seconds:.1f}",
                f"{tokens / mine.seconds:,.0f}",
                f"{peer.seconds:.2f}",
                f"{tokens / peer.seconds:,.0f}",
                f"{mine.seconds / peer.seconds:.2f}",
                f"{floor:.2f}",
                f"{floor / mine.seconds:.0%}",
            ]
        )
    title = (
        f"{settings.size}, batch {settings.batch}, {settings.source_tokens} source, {settings.new_tokens} new tokens; "
        f"a step reads {step_bytes / 1e6:.0f} MB, memory gives {bytes_per_second / 1e9:.1f} GB/s"
    )
    columns = ["beams", "ours s", "compile s", "tokens/s", "transformers s", "tokens/s", "ratio", "floor s", "of floor"]
    print_table(title, columns, table)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings, description=__doc__))
