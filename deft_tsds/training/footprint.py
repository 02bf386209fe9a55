"""What training a T5 costs, before anything runs: parameters, bytes, floating-point operations, seconds.

Letters as in `t5/model.py`: B rows, S source and T target positions, D model width, F feed-forward width, A = H K the
width of all heads together, V vocabulary. A matrix [I, O] costs 2 I O operations for each position that it meets.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from deft_tsds.t5.model import T5Config
from deft_tsds.training.optimizers import make_optimizer

FLOAT = 4
"""Bytes of a parameter, a gradient, a moment: all float32."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Accelerators of one kind, with their published peaks."""

    name: str
    chips: int
    flops: float
    """bfloat16 FLOP/s of one chip, dense."""
    memory: float
    """Bytes of one chip."""


# TPU v5e: cloud.google.com/tpu/docs/v5e, "System architecture": 197 TFLOP/s bf16 and 16 GB of HBM a chip.
# H100 SXM: NVIDIA's H100 data sheet: 1,979 TFLOP/s bf16 with sparsity, so 989 dense, and 80 GB.
MACHINES = (
    Machine("v5e-8", 8, 197e12, 16e9),
    Machine("v5e-256", 256, 197e12, 16e9),
    Machine("H100", 1, 989e12, 80e9),
)


def _t5(d_model: int, d_ff: int, heads: int) -> T5Config:
    return T5Config(
        vocab_size=32128,
        d_model=d_model,
        d_kv=64,
        d_ff=d_ff,
        num_layers=24,
        num_decoder_layers=24,
        num_heads=heads,
        activation="gated-gelu",
        tie_word_embeddings=False,
        scale_decoder_outputs=False,
    )


MODELS = {"large": _t5(1024, 2816, 16), "XL": _t5(2048, 5120, 32), "XXL": _t5(4096, 10240, 64)}
"""T5 1.1 and Flan-T5."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """The batch of one step, or of one part of it: rows, source positions, target positions."""

    rows: int
    source: int
    target: int


def parameters(config: T5Config) -> dict[str, int]:
    """Numbers in the model by part."""
    d, a = config.d_model, config.num_heads * config.d_kv
    attention, feed_forward = 4 * d * a, (3 if config.activation == "gated-gelu" else 2) * d * config.d_ff
    table = config.relative_attention_num_buckets * config.num_heads
    return {
        "embeddings": config.vocab_size * d * (1 if config.tie_word_embeddings else 2),
        "encoder": config.num_layers * (attention + feed_forward + 2 * d) + table + d,
        "decoder": config.num_decoder_layers * (2 * attention + feed_forward + 3 * d) + table + d,
    }


def lora_parameters(config: T5Config, *, rank: int) -> int:
    """Numbers in low-rank factors of every q and v."""
    attentions = config.num_layers + 2 * config.num_decoder_layers
    return attentions * 2 * rank * (config.d_model + config.num_heads * config.d_kv)


def optimizer_bytes(config: T5Config, name: str) -> int:
    """Bytes of the moments: two numbers a parameter for "adamw", a row and a column a matrix for "adafactor"."""
    d, a, f, v = config.d_model, config.num_heads * config.d_kv, config.d_ff, config.vocab_size
    attentions = config.num_layers + 2 * config.num_decoder_layers
    layers = config.num_layers + config.num_decoder_layers
    gates = 2 if config.activation == "gated-gelu" else 1
    table, norms = (config.relative_attention_num_buckets, config.num_heads), layers + attentions + 2
    counts = {(d, a): 4 * attentions, (d, f): (gates + 1) * layers, table: 2, (d,): norms}
    counts[v, d] = 1 if config.tie_word_embeddings else 2
    moments = {shape: jax.eval_shape(make_optimizer(name).init, jnp.zeros(shape, jnp.float32)) for shape in counts}
    return sum(
        count * sum(leaf.size for leaf in jax.tree.leaves(moments[shape])) * FLOAT for shape, count in counts.items()
    )


def forward_flops(config: T5Config, shape: Shape) -> float:
    """Operations of the matrix products of one forward pass; the causal half of the scores is computed, so counted."""
    d, a, f = config.d_model, config.num_heads * config.d_kv, config.d_ff
    matrices = 3 if config.activation == "gated-gelu" else 2
    source, target = shape.rows * shape.source, shape.rows * shape.target
    encoder = source * (2 * (4 * d * a + matrices * d * f) + 4 * a * shape.source)
    decoder = target * (2 * (6 * d * a + matrices * d * f) + 4 * a * (shape.target + shape.source))
    decoder += source * 2 * 2 * d * a  # keys and values of the source
    logits = target * 2 * d * config.vocab_size
    return config.num_layers * encoder + config.num_decoder_layers * decoder + logits


def step_flops(config: T5Config, shape: Shape, *, lora: bool = False, remat: bool = False) -> float:
    """Operations of one training step: forward, gradients of the activations, gradients of the matrices.

    With `lora` the last of these all but vanishes; with `remat` the forward pass is taken twice.
    """
    return forward_flops(config, shape) * (1 + 1 + (not lora) + remat)


def activation_bytes(config: T5Config, shape: Shape, *, item: int, remat: bool) -> float:
    """Bytes kept from the forward for the backward pass, without dropout; `item` is the size of the compute dtype.

    A layer keeps, of each attention, input and normed input, queries, keys, values, mixed values, and the scores twice
    in float32 (exponentials and their quotients); of its feed-forward, input and normed input and what goes into and
    comes out of the activation (relu 2 F; gated gelu 6 F, with the parts of its tanh). So it is what XLA's memory
    analysis finds in float32. With `remat` a layer keeps its input alone, and one layer at a time has the rest. Logits
    are float32 and have a gradient of their size.
    """
    d, a, f, h = config.d_model, config.num_heads * config.d_kv, config.d_ff, config.num_heads
    inner = 6 if config.activation == "gated-gelu" else 2
    s, t, b = shape.source, shape.target, shape.rows

    def layer(queries: int, *keys: int) -> float:
        attentions = sum(item * (queries * (2 * d + 2 * a) + k * 2 * a) + 2 * FLOAT * h * queries * k for k in keys)
        return b * (attentions + item * queries * (2 * d + inner * f))

    encoder, decoder = layer(s, s), layer(t, t, s)
    logits = 2 * FLOAT * b * t * config.vocab_size
    if not remat:
        return config.num_layers * encoder + config.num_decoder_layers * decoder + logits
    inputs = item * b * d * (config.num_layers * s + config.num_decoder_layers * t)
    return inputs + max(encoder, decoder) + logits


def cache_bytes(config: T5Config, shape: Shape, *, beams: int, item: int) -> float:
    """Bytes of the keys and values of decoding: of the target for each beam, of the source once."""
    a = config.num_heads * config.d_kv
    return 2 * item * config.num_decoder_layers * a * shape.rows * (beams * shape.target + shape.source)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one chip: bytes by what they hold, and seconds of a step. Communication between chips is not counted."""

    parameters: float
    gradients: float
    moments: float
    copies: float
    """The matrices in bfloat16, gathered whole: of one layer with remat; of all without, kept for the backward pass."""
    activations: float
    seconds: float

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.moments + self.copies + self.activations


def estimate(
    config: T5Config,
    machine: Machine,
    shape: Shape,
    *,
    optimizer: str,
    remat: bool,
    rows_at_once: int,
    utilisation: float,
    rank: int = 8,
) -> Estimate:
    """Training in bfloat16 on float32 parameters, all of it split over the chips.

    Args:
      shape: the batch of a step, over all chips.
      optimizer: "adamw", "adafactor", or "lora" (AdamW on factors of `rank`, the model frozen).
      rows_at_once: rows that a chip computes at once; the rest of its share waits (gradient accumulation).
      utilisation: share of the peak that is reached.
    """
    count, parts = sum(parameters(config).values()), parameters(config)
    trained = lora_parameters(config, rank=rank) if optimizer == "lora" else count
    moments = 2 * FLOAT * trained if optimizer == "lora" else optimizer_bytes(config, optimizer)
    half = 2  # bytes of bfloat16
    largest = max(parts["decoder"] / config.num_decoder_layers, config.vocab_size * config.d_model)
    share = -(-shape.rows // machine.chips)
    rows = min(rows_at_once, share)
    flops = step_flops(config, shape, lora=optimizer == "lora", remat=remat)
    return Estimate(
        parameters=FLOAT * (count + (trained if optimizer == "lora" else 0)) / machine.chips,
        gradients=(1 + (rows < share)) * FLOAT * trained / machine.chips,  # a part's, and the sum of the parts
        moments=moments / machine.chips,
        copies=half * (largest if remat else count),
        activations=activation_bytes(config, dataclasses.replace(shape, rows=rows), item=half, remat=remat),
        seconds=flops / (machine.chips * machine.flops * utilisation),
    )
