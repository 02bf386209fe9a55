"""T5 in Flax NNX, in one file: T5 1.0 (relu, tied), T5 1.1 / Flan-T5 / mT5 / ByT5 (gated gelu, untied).

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer"
(arXiv 1910.10683); the gated feed-forward is Shazeer 2020 (arXiv 2002.05202). What sets T5 apart from the Transformer:

- RMSNorm before each sub-layer: no mean is subtracted and there is no bias.
- Attention scores are not divided by sqrt(K); the initialisation of the queries holds that factor.
- Positions enter only as a bias on the scores: one learned table [buckets, H] for a stack, shared by its layers.

Axes in names: B rows, S source positions, T target positions, D model width, F feed-forward width, H heads,
K width of a head, V vocabulary, N beams that share a source row, R = B N decoder rows, P relative positions.
Parameters are float32. The layers compute in `dtype`; norms, softmax and logits are float32 at least.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

MASKED = -1e9  # finite, so that a row whose mask is all zero gives numbers and not NaN

_POSITIVE_FIELDS = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
)
_TOKEN_FIELDS = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
_REQUIRED_KEYS = ("model_type", "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")

# The released sizes: d_model, d_kv, d_ff, num_layers, num_decoder_layers, num_heads.
_T5 = {
    "small": (512, 64, 2048, 6, 6, 8),
    "base": (768, 64, 3072, 12, 12, 12),
    "large": (1024, 64, 4096, 24, 24, 16),
    "3b": (1024, 128, 16384, 24, 24, 32),
    "11b": (1024, 128, 65536, 24, 24, 128),
}
_T5_1_1 = {
    "small": (512, 64, 1024, 8, 8, 6),
    "base": (768, 64, 2048, 12, 12, 12),
    "large": (1024, 64, 2816, 24, 24, 16),
    "xl": (2048, 64, 5120, 24, 24, 32),
    "xxl": (4096, 64, 10240, 24, 24, 64),
}
_BYT5 = {
    "small": (1472, 64, 3584, 12, 4, 6),
    "base": (1536, 64, 3968, 18, 6, 12),
    "large": (1536, 64, 3840, 36, 12, 16),
    "xl": (2560, 64, 6720, 36, 12, 32),
    "xxl": (4672, 64, 12352, 36, 12, 64),
}
_FAMILIES = {
    "t5": (_T5, 32128),
    "t5-v1_1": (_T5_1_1, 32128),
    "flan-t5": (_T5_1_1, 32128),
    "mt5": (_T5_1_1, 250112),
    "byt5": (_BYT5, 384),
}
SIZES = {
    f"{family}-{size}": (vocab_size, *shape)
    for family, (sizes, vocab_size) in _FAMILIES.items()
    for size, shape in sizes.items()
}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The shape of a T5, with the field names of a Hugging Face `config.json`.

    `activation` is "relu" (T5 1.0) or "gated-gelu" (T5 1.1, Flan-T5, mT5, ByT5). `scale_decoder_outputs` multiplies the
    decoder's states by d_model ** -0.5 before the logits, as T5 1.0 does with its tied embeddings.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    activation: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0

    def __post_init__(self) -> None:
        for name in _POSITIVE_FIELDS + _TOKEN_FIELDS:
            value = getattr(self, name)
            least = 1 if name in _POSITIVE_FIELDS else 0
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"T5Config: {name} must be an integer of at least {least}, got {value!r}.")
            if value >= 2**31:
                raise ValueError(f"T5Config: {name} must be below 2**31, got {value}.")
        for name in _TOKEN_FIELDS:
            if getattr(self, name) >= self.vocab_size:
                raise ValueError(f"T5Config: {name} {getattr(self, name)} is outside vocab_size {self.vocab_size}.")
        if self.activation not in ("relu", "gated-gelu"):
            raise ValueError(f"T5Config: activation must be 'relu' or 'gated-gelu', got {self.activation!r}.")
        for name, below in (("dropout_rate", 1.0), ("layer_norm_epsilon", math.inf)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < below:
                raise ValueError(f"T5Config: {name} must be in [0, {below:g}), got {value!r}.")
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets % 4 or distance <= buckets // 2:
            raise ValueError(
                "T5Config: relative_attention_num_buckets must be a multiple of 4 and relative_attention_max_distance "
                f"more than half of it, got {buckets} and {distance}."
            )

    @classmethod
    def of(cls, name: str) -> T5Config:
        """The shape of a released model: t5-small, t5-v1_1-base, flan-t5-xl, mt5-large, byt5-small and the like."""
        if name not in SIZES:
            raise ValueError(f"T5Config: there is no size {name!r}; the sizes are {', '.join(SIZES)}.")
        first = name.rpartition("-")[0] == "t5"  # T5 1.0; later ones gate the feed-forward and untie the output
        activation = "relu" if first else "gated-gelu"
        return cls(*SIZES[name], activation=activation, tie_word_embeddings=first, scale_decoder_outputs=first)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> T5Config:
        """Read the dictionary of a Hugging Face `config.json` of model type t5 or mt5.

        Raises:
            ValueError: a key that defines the shape is missing, or the file describes another kind of model.
        """
        missing = [key for key in _REQUIRED_KEYS if config.get(key) is None]
        if missing:
            raise ValueError(f"T5 config: missing {', '.join(missing)}. Is this the config.json of a T5?")
        model_type = config["model_type"]
        if model_type not in ("t5", "mt5"):
            raise ValueError(f"T5 config: model_type {model_type!r} is not supported; use a 't5' or 'mt5' checkpoint.")
        activation = config.get("feed_forward_proj", "relu" if model_type == "t5" else "gated-gelu")
        tied = bool(config.get("tie_word_embeddings", True))
        values = {
            field.name: config[field.name] for field in dataclasses.fields(cls) if config.get(field.name) is not None
        }
        values.update(
            activation=activation,
            tie_word_embeddings=tied,
            # Files from before this key said it by the tie alone; mT5 never scales.
            scale_decoder_outputs=bool(config.get("scale_decoder_outputs", tied and model_type == "t5")),
        )
        values.setdefault("num_decoder_layers", config["num_layers"])
        values.setdefault("decoder_start_token_id", values.get("pad_token_id", cls.pad_token_id))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` from which transformers builds the same model."""
        values = dataclasses.asdict(self)
        activation = values.pop("activation")
        return {
            "architectures": ["T5ForConditionalGeneration"],
            "model_type": "t5",
            **values,
            "feed_forward_proj": activation,
            "dense_act_fn": "gelu_new" if activation == "gated-gelu" else "relu",
            "is_gated_act": activation == "gated-gelu",
            "is_encoder_decoder": True,
            "use_cache": True,
        }


def shift_right(labels_BxT: ArrayLike, config: T5Config) -> jax.Array:
    """The decoder's input for `labels`: the start token, then the labels without the last; -100 becomes padding."""
    labels_BxT = jnp.asarray(labels_BxT)
    start_Bx1 = jnp.full_like(labels_BxT[:, :1], config.decoder_start_token_id)
    shifted_BxT = jnp.concatenate([start_Bx1, labels_BxT[:, :-1]], axis=1)
    return jnp.where(shifted_BxT == -100, config.pad_token_id, shifted_BxT)


def _relative_buckets(distances_P: np.ndarray, config: T5Config, *, bidirectional: bool) -> np.ndarray:
    """Bucket of each distance (key position - query position); section 2.1 of the paper.

    Half of the buckets hold one distance each, the other half grow logarithmically up to the maximal distance, beyond
    which all share the last. An encoder spends one half of all buckets on keys to the right; a decoder has none there.
    Float32 in NumPy gives torch's buckets on every boundary; XLA's logarithm need not.
    """
    buckets = config.relative_attention_num_buckets
    offset_P = np.zeros_like(distances_P)
    if bidirectional:
        buckets //= 2
        offset_P = np.where(distances_P > 0, buckets, 0)
        distances_P = np.abs(distances_P)
    else:
        distances_P = np.maximum(-distances_P, 0)
    exact = buckets // 2
    ratio_P = np.maximum(distances_P, exact).astype(np.float32) / np.float32(exact)
    scale = np.float32(math.log(config.relative_attention_max_distance / exact))
    far_P = exact + (np.log(ratio_P) / scale * np.float32(buckets - exact)).astype(distances_P.dtype)
    return offset_P + np.where(distances_P < exact, distances_P, np.minimum(far_P, buckets - 1))


def _position_bias(table: nnx.Param, config: T5Config, length: int, *, bidirectional: bool) -> jax.Array:
    """Bias [H, P] of the P = 2 length distances 1 - length .. length."""
    distances_P = np.arange(1 - length, length + 1, dtype=np.int32)
    return table[...][_relative_buckets(distances_P, config, bidirectional=bidirectional)].T


def _square(bias_HxP: jax.Array, length: int) -> jax.Array:
    """The bias [H, query, key] of all pairs from the bias of their distances.

    Row q is the slice of distances -q .. length - 1 - q, one step left of the row above. Equal rows of P, read with
    a stride of P - 1, are those slices; their gradient is a sum, where that of a gather would be a slow scatter.
    """
    heads, distances = bias_HxP.shape
    rows = jnp.broadcast_to(bias_HxP[:, None], (heads, length, distances)).reshape(heads, -1)
    skewed = rows[:, length - 1 : length * distances - 1]
    return skewed.reshape(heads, length, distances - 1)[:, :, :length]


def _mask_bias(mask_BxS: ArrayLike) -> jax.Array:
    return jnp.where(jnp.asarray(mask_BxS, bool), 0.0, MASKED)[:, None, None, :]


def _fold(key: jax.Array | None, number: int) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, number)


def _dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), jnp.zeros((), x.dtype))


Projection = nnx.Param | Callable[[jax.Array], jax.Array]
"""A matrix [in, out], or a module that was put in its place (`lora.py`)."""


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], deviation: float) -> nnx.Param:
    return nnx.Param(deviation * jax.random.normal(rngs.params(), shape, jnp.float32))


def _at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


@jax.custom_vjp
def _matmul(x: jax.Array, weight_IxO: jax.Array) -> jax.Array:
    """x @ weight, whose gradient is inputs by cotangents, [I, O].

    JAX's own rule multiplies cotangents by inputs, [O, I], and turns the product: on CPU that takes XLA up to twice as
    long, since it runs by another kernel.
    """
    return x @ weight_IxO


def _matmul_backward(saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight_IxO = saved
    rows = tuple(range(x.ndim - 1))
    return cotangent @ weight_IxO.T, jnp.tensordot(x, cotangent, (rows, rows))


_matmul.defvjp(lambda x, weight_IxO: (x @ weight_IxO, (x, weight_IxO)), _matmul_backward)


def _project(x: jax.Array, weight: Projection) -> jax.Array:
    return _matmul(x, weight[...].astype(x.dtype)) if isinstance(weight, nnx.Variable) else weight(x)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale, in float32 at least."""

    def __init__(self, config: T5Config):
        self.epsilon = config.layer_norm_epsilon
        self.scale_D = nnx.Param(jnp.ones(config.d_model, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(_at_least_float32(x.dtype))
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return (wide * inverse * self.scale_D[...]).astype(x.dtype)


class Attention(nnx.Module):
    """softmax(Q K^T + bias) V with heads, for self and cross attention alike."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        width, heads, head_width = config.d_model, config.num_heads, config.d_kv
        self.heads, self.dropout_rate = heads, config.dropout_rate
        self.q = _normal(rngs, (width, heads * head_width), (width * head_width) ** -0.5)
        self.k = _normal(rngs, (width, heads * head_width), width**-0.5)
        self.v = _normal(rngs, (width, heads * head_width), width**-0.5)
        self.o = _normal(rngs, (heads * head_width, width), (heads * head_width) ** -0.5)

    def _heads(self, x_BxSxD: jax.Array, weight: Projection) -> jax.Array:
        x_BxSxHK = _project(x_BxSxD, weight)
        return x_BxSxHK.reshape(*x_BxSxHK.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)

    def keys_values(self, x_BxSxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What can be attended to: keys and values, each [B, H, S, K]."""
        return self._heads(x_BxSxD, self.k), self._heads(x_BxSxD, self.v)

    def __call__(
        self,
        x_BxTxD: jax.Array,
        keys_BxHxSxK: jax.Array,
        values_BxHxSxK: jax.Array,
        bias: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        queries_BxHxTxK = self._heads(x_BxTxD, self.q)
        wide = _at_least_float32(x_BxTxD.dtype)
        scores_BxHxTxS = jnp.einsum("bhtk,bhsk->bhts", queries_BxHxTxK, keys_BxHxSxK, preferred_element_type=wide)
        weights_BxHxTxS = jax.nn.softmax(scores_BxHxTxS + bias).astype(x_BxTxD.dtype)
        weights_BxHxTxS = _dropout(weights_BxHxTxS, self.dropout_rate, key)
        mixed_BxTxHxK = jnp.einsum("bhts,bhsk->bthk", weights_BxHxTxS, values_BxHxSxK)
        return _project(mixed_BxTxHxK.reshape(*x_BxTxD.shape[:2], -1), self.o)


class FeedForward(nnx.Module):
    """relu(x W_i) W_o, or (gelu(x W_0) * x W_1) W_o with the tanh form of gelu."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        width, inner = config.d_model, config.d_ff
        self.dropout_rate, self.gated = config.dropout_rate, config.activation == "gated-gelu"
        if self.gated:
            self.wi_0 = _normal(rngs, (width, inner), width**-0.5)
            self.wi_1 = _normal(rngs, (width, inner), width**-0.5)
        else:
            self.wi = _normal(rngs, (width, inner), width**-0.5)
        self.wo = _normal(rngs, (inner, width), inner**-0.5)

    def __call__(self, x_BxTxD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        if self.gated:
            gate_BxTxF = jax.nn.gelu(_project(x_BxTxD, self.wi_0), approximate=True)
            inner_BxTxF = gate_BxTxF * _project(x_BxTxD, self.wi_1)
        else:
            inner_BxTxF = jax.nn.relu(_project(x_BxTxD, self.wi))
        return _project(_dropout(inner_BxTxF, self.dropout_rate, key), self.wo)


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each with a norm before it and a residual around it."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.dropout_rate = config.dropout_rate
        self.attention_norm = RMSNorm(config)
        self.attention = Attention(config, rngs=rngs)
        self.feed_forward_norm = RMSNorm(config)
        self.feed_forward = FeedForward(config, rngs=rngs)

    def __call__(self, x_BxSxD: jax.Array, bias_BxHxSxS: jax.Array, key: jax.Array | None = None) -> jax.Array:
        normed_BxSxD = self.attention_norm(x_BxSxD)
        keys_values = self.attention.keys_values(normed_BxSxD)
        update_BxSxD = self.attention(normed_BxSxD, *keys_values, bias_BxHxSxS, _fold(key, 0))
        x_BxSxD += _dropout(update_BxSxD, self.dropout_rate, _fold(key, 1))
        update_BxSxD = self.feed_forward(self.feed_forward_norm(x_BxSxD), _fold(key, 2))
        return x_BxSxD + _dropout(update_BxSxD, self.dropout_rate, _fold(key, 3))


KeysValues = tuple[jax.Array, jax.Array]


class DecoderLayer(nnx.Module):
    """Causal self-attention, attention to the source, feed-forward."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.dropout_rate = config.dropout_rate
        self.attention_norm = RMSNorm(config)
        self.attention = Attention(config, rngs=rngs)
        self.cross_norm = RMSNorm(config)
        self.cross_attention = Attention(config, rngs=rngs)
        self.feed_forward_norm = RMSNorm(config)
        self.feed_forward = FeedForward(config, rngs=rngs)

    def __call__(
        self,
        x_RxTxD: jax.Array,
        bias: jax.Array,
        source: KeysValues,
        source_bias_Bx1x1xS: jax.Array,
        key: jax.Array | None = None,
        *,
        past: tuple[jax.Array, KeysValues] | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """The new states, and the self-attention's keys and values: those of `past`, (position, old), and these."""
        normed_RxTxD = self.attention_norm(x_RxTxD)
        keys, values = self.attention.keys_values(normed_RxTxD)
        if past is not None:
            position, (old_keys, old_values) = past
            keys = jax.lax.dynamic_update_slice_in_dim(old_keys, keys, position, axis=2)
            values = jax.lax.dynamic_update_slice_in_dim(old_values, values, position, axis=2)
        update_RxTxD = self.attention(normed_RxTxD, keys, values, bias, _fold(key, 0))
        x_RxTxD += _dropout(update_RxTxD, self.dropout_rate, _fold(key, 1))
        # From here on no target position looks at another, so the N beams of a source row can stand in one row.
        x_BxNTxD = x_RxTxD.reshape(source[0].shape[0], -1, x_RxTxD.shape[-1])
        update_BxNTxD = self.cross_attention(self.cross_norm(x_BxNTxD), *source, source_bias_Bx1x1xS, _fold(key, 2))
        x_BxNTxD += _dropout(update_BxNTxD, self.dropout_rate, _fold(key, 3))
        update_BxNTxD = self.feed_forward(self.feed_forward_norm(x_BxNTxD), _fold(key, 4))
        x_BxNTxD += _dropout(update_BxNTxD, self.dropout_rate, _fold(key, 5))
        return x_BxNTxD.reshape(x_RxTxD.shape), (keys, values)


def _decode_layer(layer: DecoderLayer, x_BxTxD, bias_HxTxT, states_BxSxD, source_bias_Bx1x1xS, key) -> jax.Array:
    source = layer.cross_attention.keys_values(states_BxSxD)
    return layer(x_BxTxD, bias_HxTxT, source, source_bias_Bx1x1xS, key)[0]


class Stack(nnx.Module):
    """The layers of an encoder or a decoder, their position table and the last norm."""

    def __init__(self, config: T5Config, layer: Callable[..., Any], count: int, *, rngs: nnx.Rngs):
        shape = (config.relative_attention_num_buckets, config.num_heads)
        self.position_table = _normal(rngs, shape, config.d_model**-0.5)
        self.layers = nnx.List([layer(config, rngs=rngs) for _ in range(count)])
        self.norm = RMSNorm(config)


class Cache(NamedTuple):
    """All that a decoding step reads beside the parameters; `T5.step` returns it with one position more.

    past: for each layer the self-attention's keys and values, each [R, H, T, K]: the part that beams reorder.
    source: for each layer the cross-attention's keys and values, each [B, H, S, K], computed once.
    output_DxV: the output embedding in the compute dtype, turned: a product with few rows reads it as it lies.
    """

    past: tuple[KeysValues, ...]
    source: tuple[KeysValues, ...]
    source_bias_Bx1x1xS: jax.Array
    position_bias_HxP: jax.Array
    output_DxV: jax.Array


class T5(nnx.Module):
    """The encoder-decoder with its embeddings.

    Args:
        config: the shape.
        rngs: gives the initial parameters (stream `params`), in the scheme of Mesh TensorFlow; nothing of it is kept.
        dtype: float32 or bfloat16, what the layers compute in, or float64 (under `jax.enable_x64`) for comparisons.
            Initial parameters are float32; norms, softmax and logits are float32 at least.
        remat: recompute each layer in the backward pass: memory of one layer's activations, a third more time.

    `key` in the methods below turns dropout on; each site takes its own key by `fold_in`. Masks are 1 (or True) where a
    token counts and 0 at padding, which may stand anywhere.
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, remat: bool = False):
        dtype = jnp.dtype(dtype)
        if dtype not in (jnp.float32, jnp.bfloat16, jnp.float64):
            raise ValueError(f"T5: dtype must be float32, bfloat16 or float64, got {dtype.name}.")
        self.config, self.dtype, self.remat = config, dtype, remat
        self.embedding_VxD = _normal(rngs, (config.vocab_size, config.d_model), 1.0)
        self.encoder = Stack(config, EncoderLayer, config.num_layers, rngs=rngs)
        self.decoder = Stack(config, DecoderLayer, config.num_decoder_layers, rngs=rngs)
        tied = config.tie_word_embeddings
        self.lm_head_VxD = None if tied else _normal(rngs, (config.vocab_size, config.d_model), 1.0)

    def __call__(
        self, ids_BxS: ArrayLike, mask_BxS: ArrayLike, decoder_ids_BxT: ArrayLike, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Logits [B, T, V], float32, of the token that follows each of `decoder_ids`."""
        return self.decode(decoder_ids_BxT, self.encode(ids_BxS, mask_BxS, key=key), mask_BxS, key=key)

    def encode(self, ids_BxS: ArrayLike, mask_BxS: ArrayLike, *, key: jax.Array | None = None) -> jax.Array:
        """The encoder's states [B, S, D] in the compute dtype."""
        key = _fold(key, 0)
        x_BxSxD = self._embed(ids_BxS, key)
        length = x_BxSxD.shape[1]
        bias_HxP = _position_bias(self.encoder.position_table, self.config, length, bidirectional=True)
        bias_BxHxSxS = _square(bias_HxP, length) + _mask_bias(mask_BxS)
        for number, layer in enumerate(self.encoder.layers, start=1):
            x_BxSxD = self._run(layer, x_BxSxD, bias_BxHxSxS, _fold(key, number))
        return _dropout(self.encoder.norm(x_BxSxD), self.config.dropout_rate, _fold(key, len(self.encoder.layers) + 1))

    def decode(
        self,
        decoder_ids_BxT: ArrayLike,
        states_BxSxD: jax.Array,
        mask_BxS: ArrayLike,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits [B, T, V], float32. Each position sees the positions before it and the source under its mask."""
        key = _fold(key, 1)
        x_BxTxD = self._embed(decoder_ids_BxT, key)
        length = x_BxTxD.shape[1]
        bias_HxP = _position_bias(self.decoder.position_table, self.config, length, bidirectional=False)
        bias_HxTxT = jnp.where(np.tri(length, dtype=bool), _square(bias_HxP, length), MASKED)
        source_bias = _mask_bias(mask_BxS)
        for number, layer in enumerate(self.decoder.layers, start=1):
            x_BxTxD = self._run(
                _decode_layer, layer, x_BxTxD, bias_HxTxT, states_BxSxD, source_bias, _fold(key, number)
            )
        x_BxTxD = self._last(x_BxTxD, _fold(key, len(self.decoder.layers) + 1))
        wide = _at_least_float32(self.dtype)
        return jnp.einsum("btd,vd->btv", x_BxTxD, self._output(), preferred_element_type=wide)

    def start(self, states_BxSxD: jax.Array, mask_BxS: ArrayLike, *, max_length: int, beams: int = 1) -> Cache:
        """An empty cache for at most `max_length` steps of `beams` decoder rows for each source row."""
        rows = states_BxSxD.shape[0] * beams
        shape = (rows, self.config.num_heads, max_length, self.config.d_kv)
        bias_HxP = _position_bias(self.decoder.position_table, self.config, max_length, bidirectional=False)
        layers = tuple(self.decoder.layers)
        return Cache(
            past=tuple((jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)) for _ in layers),
            source=tuple(layer.cross_attention.keys_values(states_BxSxD) for layer in layers),
            source_bias_Bx1x1xS=_mask_bias(mask_BxS),
            position_bias_HxP=bias_HxP,
            output_DxV=self._output().T,
        )

    def step(self, ids_R: jax.Array, position: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Logits [R, V] after one more token a row, and the cache that holds it.

        `decode` one position at a time: `position` is a traced scalar, 0 for the start token. Row b N + n is beam n of
        source row b.
        """
        length = cache.past[0][0].shape[2]
        x_Rx1xD = self._embed(ids_R[:, None], None)
        # Distances k - position for k = 0 .. length - 1 lie side by side in the table of all distances.
        bias_HxT = jax.lax.dynamic_slice_in_dim(cache.position_bias_HxP, length - 1 - position, length, axis=1)
        bias_Hx1xT = jnp.where(jnp.arange(length) <= position, bias_HxT, MASKED)[:, None]
        past = []
        for layer, layer_past, source in zip(self.decoder.layers, cache.past, cache.source, strict=True):
            x_Rx1xD, layer_past = layer(
                x_Rx1xD, bias_Hx1xT, source, cache.source_bias_Bx1x1xS, past=(position, layer_past)
            )
            past.append(layer_past)
        wide = _at_least_float32(self.dtype)
        logits_RxV = jnp.matmul(self._last(x_Rx1xD, None)[:, 0], cache.output_DxV, preferred_element_type=wide)
        return logits_RxV, cache._replace(past=tuple(past))

    def _embed(self, ids: ArrayLike, key: jax.Array | None) -> jax.Array:
        x = self.embedding_VxD[...][jnp.asarray(ids)].astype(self.dtype)
        return _dropout(x, self.config.dropout_rate, _fold(key, 0))

    def _last(self, x_BxTxD: jax.Array, key: jax.Array | None) -> jax.Array:
        """The decoder's states as the output embedding takes them."""
        x_BxTxD = _dropout(self.decoder.norm(x_BxTxD), self.config.dropout_rate, key)
        return x_BxTxD * self.config.d_model**-0.5 if self.config.scale_decoder_outputs else x_BxTxD

    def _output(self) -> jax.Array:
        """The output embedding [V, D] in the compute dtype."""
        return (self.embedding_VxD if self.lm_head_VxD is None else self.lm_head_VxD)[...].astype(self.dtype)

    def _run(self, function: Any, *arguments: Any) -> jax.Array:
        return jax.checkpoint(function)(*arguments) if self.remat else function(*arguments)
