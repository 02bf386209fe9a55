"""Texts by the states of a T5's encoder, in JAX: averaged (Flan-T5), weighted by position (RDS+), Sentence-T5.

Three of the representations that the papers compare are one computation with another pooling. With h_1 ... h_n the
last hidden states of the encoder at the n real tokens of a text, the end token among them,

    mean:       x = sum_i h_i / n                            DEFT's "averaged Flan-T5" (arXiv 2310.16776)
    position:   x = sum_i i h_i / sum_i i                    RDS+ (Ivison et al., arXiv 2503.01807, section 3.1)
    sentence:   x = W mean / |W mean|                        Sentence-T5 (Ni et al., arXiv 2108.08877), DEFT's choice

RDS+ takes the model that will be fine-tuned, and was made for decoders: there the last positions alone have read the
whole text, which is why they weigh more. A T5 reads with its encoder, whose states have all read the whole text, so
that here the weights are a choice without that reason; `scripts/inspect_embeddings.py` shows what they do. The
decoder's states are not used: they need a target, which queries and plain texts do not have.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from deft_tsds.arrays import check_count
from deft_tsds.embed.folders import folder_hash, model_folder, open_weights, read_settings, weight_files, within
from deft_tsds.runs import read_json
from deft_tsds.t5.load import COPIES, TENSORS, check_layers, load_tokenizer
from deft_tsds.t5.model import T5, T5Config
from deft_tsds.training.sharding import DATA, make_mesh

Pooling = Literal["mean", "position", "sentence"]

_MOST_TOKENS = 512  # where the folder sets no limit of its own


@dataclass(frozen=True)
class T5Encoder:
    """An encoder by folder or hub name of a T5; the model is loaded when it is first needed.

    Batches are sorted by length and padded to a few lengths: one program is compiled for each, and little is computed
    on padding. A batch is spread over all local devices. Padding and the other texts of a batch change a vector in
    rounding only.

    Args:
        model: T5, T5 1.1, Flan-T5, mT5 or ByT5 in Hugging Face's layout; for "sentence" a sentence-transformers folder.
        pooling: "mean", "position" or "sentence" (see above).
        max_tokens: longer texts are cut; None takes the folder's limit, and 512 where it has none.
        batch_size: texts a batch.
        dtype: "float32" or "bfloat16", what the layers compute in. The pooling is float32.

    Raises:
        ValueError: a pooling or dtype that there is not, or a count below 1.
    """

    model: str
    pooling: Pooling = "mean"
    max_tokens: int | None = None
    batch_size: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name, known in (("pooling", get_args(Pooling)), ("dtype", ("float32", "bfloat16"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(known)}.")
        check_count(self.batch_size, "batch_size", 1)
        if self.max_tokens is not None:
            check_count(self.max_tokens, "max_tokens", 1)

    @property
    def name(self) -> str:
        return "t5"

    def settings(self) -> dict[str, Any]:
        """What decides the vectors. The model counts by the hash of its files; batch size and device by rounding."""
        return {
            "pooling": self.pooling,
            "max_tokens": self._loaded.max_tokens,
            "dtype": self.dtype,
            "files": self._hash,
        }

    @cached_property
    def _hash(self) -> str:
        return folder_hash(model_folder(self.model))

    @cached_property
    def _loaded(self) -> _Loaded:
        folder = model_folder(self.model)
        head = _sentence_head(folder) if self.pooling == "sentence" else _Head(folder)
        model = load_encoder(head.transformer, dtype=self.dtype)
        tokenizer = load_tokenizer(head.transformer)
        if len(tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"{self.model}: the tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size} "
                "embeddings. Use the tokenizer that was saved with the model."
            )
        limits = [self.max_tokens] if self.max_tokens else [head.max_tokens, tokenizer.model_max_length, _MOST_TOKENS]
        mesh = make_mesh(jax.local_devices(), shards=1)
        graph, state = nnx.split(model)
        return _Loaded(
            tokenizer=tokenizer,
            max_tokens=int(min(limit for limit in limits if limit)),
            graph=graph,
            state=jax.device_put(state, NamedSharding(mesh, P())),
            dense_DxE=None if head.dense_DxE is None else jax.device_put(head.dense_DxE, NamedSharding(mesh, P())),
            normalize=head.normalize,
            rows=NamedSharding(mesh, P(DATA)),
            pad=model.config.pad_token_id,
        )

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts.

        Args:
            texts: n texts.

        Returns:
            float32 [n, D]; of unit length where a sentence-transformers folder says so, else as long as they come.
        """
        loaded = self._loaded
        cut: dict[str, Any] = {"truncation": True, "max_length": loaded.max_tokens}
        ids = [np.array(row, np.int32) for row in loaded.tokenizer(list(texts), **cut)["input_ids"]] if texts else []
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))  # longest first: out of memory shows at once
        devices = loaded.rows.mesh.size
        size = -(-min(self.batch_size, max(len(ids), 1)) // devices) * devices
        found = []
        for first in range(0, len(order), size):
            batch = order[first : first + size]
            ids_BxS = np.full((size, _padded(len(ids[batch[0]]))), loaded.pad, np.int32)
            lengths_B = np.ones(size, np.int32)  # rows that fill up the last batch hold one padding token
            for line, row in enumerate(batch):
                ids_BxS[line, : len(ids[row])] = ids[row]
                lengths_B[line] = len(ids[row])
            if found:  # the next batch was filled meanwhile, but two computed at once slow each other down on a CPU
                found[-1][1].block_until_ready()
            rows_BxE = _embed(
                loaded.graph,
                loaded.state,
                loaded.dense_DxE,
                *jax.device_put((ids_BxS, lengths_B), loaded.rows),
                by_position=self.pooling == "position",
                normalize=loaded.normalize,
            )
            found.append((batch, rows_BxE))
        width = found[0][1].shape[1] if found else 0
        rows_nxE = np.empty((len(ids), width), np.float32)
        for batch, rows_BxE in found:
            rows_nxE[batch] = np.asarray(rows_BxE)[: len(batch)]
        return rows_nxE


class _Loaded(NamedTuple):
    """The model on its devices, and what goes with it."""

    tokenizer: Any
    max_tokens: int
    graph: Any
    state: Any
    dense_DxE: jax.Array | None
    normalize: bool
    rows: NamedSharding
    pad: int


class _Head(NamedTuple):
    """Where the transformer lies, and what a sentence-transformers folder puts behind the mean of its states."""

    transformer: Path
    dense_DxE: np.ndarray | None = None
    normalize: bool = False
    max_tokens: int | None = None


def _padded(length: int) -> int:
    """The padded length: multiples of 4 up to 32, then four lengths for each power of two (40, 48, 56, 64, 80, ...)."""
    step = 1 << max((length - 1).bit_length() - 3, 2)
    return -(-length // step) * step


@functools.partial(jax.jit, static_argnames=("graph", "by_position", "normalize"))
def _embed(graph, state, dense_DxE, ids_BxS, lengths_B, *, by_position: bool, normalize: bool) -> jax.Array:
    """float32 [B, D or E]: the pooled states of the first `lengths` tokens of each row."""
    places_S = jnp.arange(ids_BxS.shape[1])
    mask_BxS = places_S < lengths_B[:, None]
    states_BxSxD = nnx.merge(graph, state).encode(ids_BxS, mask_BxS).astype(jnp.float32)
    weights_BxS = mask_BxS * (1.0 + places_S if by_position else 1.0)
    weights_BxS /= jnp.sum(weights_BxS, axis=1, keepdims=True)
    rows = jnp.einsum("bs,bsd->bd", weights_BxS, states_BxSxD, precision="highest")
    if dense_DxE is not None:
        rows = jnp.matmul(rows, dense_DxE, precision="highest")
    if normalize:
        rows /= jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


def load_encoder(folder: Path, *, dtype: str = "float32") -> T5:
    """A T5 without its decoder, from a folder of a whole T5 or of its encoder alone; only the encoder's half is read.

    Args:
        folder: config.json and model*.safetensors.
        dtype: "float32" or "bfloat16".

    Returns:
        A T5 whose `encode` works; it has no decoder. Parameters are float32.

    Raises:
        ValueError: a file is missing, truncated or a pickle; a tensor is missing or of another shape than the config
            says.
    """
    config = T5Config.from_dict(read_settings(folder / "config.json"))

    def encoder() -> T5:
        model = T5(config, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype))
        del model.decoder, model.lm_head_VxD
        return model

    stored_names = set()
    for file in weight_files(folder):
        with open_weights(file) as tensors:
            stored_names.update(tensors.keys())
    check_layers(config, stored_names, folder)
    graph, state = nnx.split(nnx.eval_shape(encoder))
    parameters = dict(nnx.to_flat_state(state))
    wanted = {}
    for template, path, transposed in TENSORS:
        for layer in range(config.num_layers if "{i}" in template else 1):
            ours = tuple(int(part) if part.isdigit() else part for part in path.format(i=layer).split("."))
            if ours in parameters:
                wanted[template.format(i=layer)] = (ours, transposed)
    found = set()
    for file in weight_files(folder):
        with open_weights(file) as tensors:
            for stored in tensors.keys():  # noqa: SIM118 (no mapping)
                name = "shared.weight" if stored in COPIES else stored
                if name not in wanted or name in found:
                    continue
                ours, transposed = wanted[name]
                tensor = tensors.get_tensor(stored).astype(np.float32)
                tensor = tensor.T if transposed else tensor
                if tensor.shape != parameters[ours].shape:
                    raise ValueError(
                        f"{file}: tensor {stored} has shape {list(tensor.shape)} where config.json says "
                        f"{list(parameters[ours].shape)}{' (transposed)' if transposed else ''}."
                    )
                parameters[ours] = parameters[ours].replace(jnp.asarray(tensor))
                found.add(name)
    if missing := sorted(set(wanted) - found):
        raise ValueError(f"{folder} lacks {len(missing)} tensors of a T5 encoder: {', '.join(missing[:5])}.")
    return nnx.merge(graph, nnx.from_flat_state(parameters))


def _module_list(folder: Path) -> list[tuple[str, Path]]:
    """The name of the type and the folder of each module that `modules.json` names; no type is imported."""
    path, found = folder / "modules.json", read_json(folder / "modules.json")
    if not isinstance(found, list) or not all(isinstance(part, dict) for part in found):
        raise ValueError(f"{path} is no list of modules: give a folder that SentenceTransformer.save wrote.")
    parts = [(part.get("type"), part.get("path")) for part in found]
    for number, part in enumerate(parts):
        if not all(isinstance(text, str) for text in part):
            raise ValueError(f"{path}, module {number}, has no type and path: copy or download the folder again.")
    return [(str(kind).rpartition(".")[2], within(folder, str(where), path)) for kind, where in parts]


def _sentence_head(folder: Path) -> _Head:
    """Read a sentence-transformers folder: a T5, the mean of its states, a linear map, unit length; nothing else.

    Raises:
        ValueError: no such folder, or one whose modules compute anything else.
    """
    if not (folder / "modules.json").is_file():
        raise ValueError(
            f"{folder} has no modules.json: the pooling 'sentence' needs a folder that SentenceTransformer.save wrote. "
            "For a plain T5 take 'mean' or 'position'."
        )
    modules = _module_list(folder)
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in (
        [],
        ["Dense"],
        ["Normalize"],
        ["Dense", "Normalize"],
    ):
        raise ValueError(
            f"{folder} is a chain of {', '.join(kinds)}; Sentence-T5 is Transformer, Pooling, Dense, Normalize. Use "
            "the sentence-transformers encoder."
        )
    where = dict(modules)
    pooling = read_settings(where["Pooling"] / "config.json")
    on = [
        name for name, value in pooling.items() if name.startswith("pooling_mode_") and value
    ]  # as older versions say
    if pooling.get("pooling_mode", on) not in ("mean", ["mean"], ["pooling_mode_mean_tokens"]):
        raise ValueError(f"{where['Pooling']} does not take the mean: use the sentence-transformers encoder.")
    dense_DxE = None
    if "Dense" in where:
        dense = read_settings(where["Dense"] / "config.json")
        linear = str(dense.get("activation_function")).endswith("Identity")
        if dense.get("bias") or dense.get("use_residual") or not linear:
            raise ValueError(
                f"{where['Dense']} is no plain matrix (bias, activation or residual): use the sentence-transformers "
                "encoder."
            )
        with open_weights(weight_files(where["Dense"])[0]) as tensors:
            dense_DxE = np.ascontiguousarray(tensors.get_tensor("linear.weight").astype(np.float32).T)
    said = where["Transformer"] / "sentence_bert_config.json"
    limits = read_settings(said) if said.is_file() else {}
    longest = limits.get("max_seq_length")
    if longest is not None:
        check_count(longest, f"{said}: max_seq_length", 1)
    if limits.get("do_lower_case"):
        raise ValueError(f"{folder} lowers the case of texts: use the sentence-transformers encoder.")
    return _Head(where["Transformer"], dense_DxE, "Normalize" in where, longest)
