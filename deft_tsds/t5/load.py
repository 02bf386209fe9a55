"""Hugging Face folders in and out: weights (safetensors), config, tokenizer.

`TENSORS` is the whole mapping of names. A name is read or written by it or it is an error: no tensor is skipped in
silence, none is left at its initial value.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deft_tsds.embed.folders import within
from deft_tsds.runs import atomic_write, read_json, write_json
from deft_tsds.t5.lora import merge_lora
from deft_tsds.t5.model import T5, T5Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# Hugging Face's name, our path, whether the matrix is transposed (torch keeps [out, in], we [in, out]); {i} is a layer.
# Rows that a config does not use (wi beside wi_0 and wi_1, the untied lm_head) have no parameter and drop out.
TENSORS = (
    ("shared.weight", "embedding_VxD", False),
    ("lm_head.weight", "lm_head_VxD", False),
    ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "encoder.position_table", False),
    ("encoder.block.{i}.layer.0.layer_norm.weight", "encoder.layers.{i}.attention_norm.scale_D", False),
    ("encoder.block.{i}.layer.0.SelfAttention.q.weight", "encoder.layers.{i}.attention.q", True),
    ("encoder.block.{i}.layer.0.SelfAttention.k.weight", "encoder.layers.{i}.attention.k", True),
    ("encoder.block.{i}.layer.0.SelfAttention.v.weight", "encoder.layers.{i}.attention.v", True),
    ("encoder.block.{i}.layer.0.SelfAttention.o.weight", "encoder.layers.{i}.attention.o", True),
    ("encoder.block.{i}.layer.1.layer_norm.weight", "encoder.layers.{i}.feed_forward_norm.scale_D", False),
    ("encoder.block.{i}.layer.1.DenseReluDense.wi.weight", "encoder.layers.{i}.feed_forward.wi", True),
    ("encoder.block.{i}.layer.1.DenseReluDense.wi_0.weight", "encoder.layers.{i}.feed_forward.wi_0", True),
    ("encoder.block.{i}.layer.1.DenseReluDense.wi_1.weight", "encoder.layers.{i}.feed_forward.wi_1", True),
    ("encoder.block.{i}.layer.1.DenseReluDense.wo.weight", "encoder.layers.{i}.feed_forward.wo", True),
    ("encoder.final_layer_norm.weight", "encoder.norm.scale_D", False),
    ("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "decoder.position_table", False),
    ("decoder.block.{i}.layer.0.layer_norm.weight", "decoder.layers.{i}.attention_norm.scale_D", False),
    ("decoder.block.{i}.layer.0.SelfAttention.q.weight", "decoder.layers.{i}.attention.q", True),
    ("decoder.block.{i}.layer.0.SelfAttention.k.weight", "decoder.layers.{i}.attention.k", True),
    ("decoder.block.{i}.layer.0.SelfAttention.v.weight", "decoder.layers.{i}.attention.v", True),
    ("decoder.block.{i}.layer.0.SelfAttention.o.weight", "decoder.layers.{i}.attention.o", True),
    ("decoder.block.{i}.layer.1.layer_norm.weight", "decoder.layers.{i}.cross_norm.scale_D", False),
    ("decoder.block.{i}.layer.1.EncDecAttention.q.weight", "decoder.layers.{i}.cross_attention.q", True),
    ("decoder.block.{i}.layer.1.EncDecAttention.k.weight", "decoder.layers.{i}.cross_attention.k", True),
    ("decoder.block.{i}.layer.1.EncDecAttention.v.weight", "decoder.layers.{i}.cross_attention.v", True),
    ("decoder.block.{i}.layer.1.EncDecAttention.o.weight", "decoder.layers.{i}.cross_attention.o", True),
    ("decoder.block.{i}.layer.2.layer_norm.weight", "decoder.layers.{i}.feed_forward_norm.scale_D", False),
    ("decoder.block.{i}.layer.2.DenseReluDense.wi.weight", "decoder.layers.{i}.feed_forward.wi", True),
    ("decoder.block.{i}.layer.2.DenseReluDense.wi_0.weight", "decoder.layers.{i}.feed_forward.wi_0", True),
    ("decoder.block.{i}.layer.2.DenseReluDense.wi_1.weight", "decoder.layers.{i}.feed_forward.wi_1", True),
    ("decoder.block.{i}.layer.2.DenseReluDense.wo.weight", "decoder.layers.{i}.feed_forward.wo", True),
    ("decoder.final_layer_norm.weight", "decoder.norm.scale_D", False),
)
# Copies of shared.weight that some released files hold: they must be equal to it.
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Written by the first T5 conversions; the cross-attention of T5 has no position bias.
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)

_HUB_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json")


def load_pretrained(folder_or_hub_name: str | Path, *, dtype: DTypeLike = jnp.float32, remat: bool = False) -> T5:
    """Load a T5, T5 1.1, Flan-T5, mT5 or ByT5 from a Hugging Face folder or hub name.

    The folder holds `config.json` and `model.safetensors`, or shards with `model.safetensors.index.json`. Parameters
    become float32, whatever the file holds. The model is untied if the file has an `lm_head.weight` that is not a copy
    of `shared.weight`, whatever the config says: transformers 5 writes `tie_word_embeddings: true` for both.

    Args:
        folder_or_hub_name: a local folder, or "owner/name" on the Hugging Face hub.
        dtype, remat: as in `T5`.

    Raises:
        ValueError: no such folder and no such hub name; a file is missing, truncated or a pickle; a tensor is missing,
            unknown, or of another shape than the config says.
    """
    folder = _local_folder(folder_or_hub_name)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json. Give a folder that save_pretrained of transformers wrote.")
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no JSON object. Give a folder that save_pretrained of transformers wrote.")
    config = T5Config.from_dict(settings)
    tensors = _read_tensors(folder)
    tied = _is_tied(tensors, says_untied=settings.get("tie_word_embeddings") is False, folder=folder)
    config = dataclasses.replace(config, tie_word_embeddings=tied)

    check_layers(config, tensors, folder)
    graph, state = nnx.split(nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0), dtype=dtype, remat=remat)))
    parameters = dict(nnx.to_flat_state(state))
    names = _names(parameters)
    known = {*names, *UNUSED, "lm_head.weight"}
    for kind, found in (("has no tensor", set(names) - set(tensors)), ("has unknown tensors", set(tensors) - known)):
        if found:
            listed = ", ".join(sorted(found)[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
            raise ValueError(f"{folder} {kind} {listed}. Its config.json describes another model than its weights.")
    for name, (path, transposed) in names.items():
        tensor = tensors.pop(name).astype(np.float32)
        if not np.isfinite(tensor).all():
            raise ValueError(
                f"{folder}: tensor {name} holds NaN or infinite values. Copy or download the weights again."
            )
        tensor = tensor.T if transposed else tensor
        expected = parameters[path].shape
        if tensor.shape != expected:
            shapes = [list(shape[::-1] if transposed else shape) for shape in (tensor.shape, expected)]
            raise ValueError(f"{folder}: tensor {name} has shape {shapes[0]}, config.json says {shapes[1]}.")
        parameters[path] = parameters[path].replace(jnp.asarray(tensor))
    return nnx.merge(graph, nnx.from_flat_state(parameters))


def save_pretrained(model: T5, folder: str | Path, *, max_shard_bytes: int = 5 * 10**9) -> None:
    """Write `config.json`, `generation_config.json` and `model.safetensors` that transformers and we load alike.

    `transformers.T5ForConditionalGeneration.from_pretrained(folder)` gives the same logits. Tensors are float32;
    low-rank factors are merged into their matrices. Save the tokenizer beside it with
    `tokenizer.save_pretrained(folder)`, and say what trained the model with `write_model_card`.

    Args:
        model: any `T5`.
        folder: made if need be; weights that an earlier save left there are replaced.
        max_shard_bytes: a larger model becomes several files and `model.safetensors.index.json`; never more than one
            of them is in memory.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    folder = Path(folder)
    parameters = dict(nnx.to_flat_state(nnx.state(merge_lora(model), nnx.Param)))
    names = _names(parameters)
    plan = split_state_dict_into_shards_factory(
        {name: parameters[path] for name, (path, _) in names.items()},
        get_storage_size=lambda parameter: 4 * parameter.size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, shard in plan.filename_to_tensors.items():
        tensors = {}
        for name in shard:
            path, transposed = names[name]
            tensor = np.asarray(jax.device_get(parameters[path][...]), np.float32)
            tensors[name] = np.ascontiguousarray(tensor.T if transposed else tensor)
        with atomic_write(folder / file) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
    if plan.is_sharded:
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename},
        )
    written = {*plan.filename_to_tensors, *(["model.safetensors.index.json"] if plan.is_sharded else [])}
    for pattern in ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"):
        for old in folder.glob(pattern):
            if old.name not in written:
                old.unlink()
    config = model.config
    token_ids = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
    write_json(folder / "generation_config.json", {name: getattr(config, name) for name in token_ids})
    write_json(folder / "config.json", {**config.to_dict(), "dtype": "float32"})


def load_tokenizer(folder_or_hub_name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder or hub name, by transformers; code from the folder is never run.

    Raises:
        ValueError: no such folder and no such hub name, or no tokenizer in it.
    """
    from transformers import AutoTokenizer

    folder = _local_folder(folder_or_hub_name)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ValueError(f"{folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)}). Save one with save_pretrained.")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizers raises a bare Exception, and transformers trusts the types in its files
        said = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"The tokenizer in {folder} cannot be read ({said}). Copy or download it again, or save one with "
            "save_pretrained."
        ) from error


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: pad 0, eos 1, unk 2, and `</s>` after every text.

    The 256 bytes are in its vocabulary, so that every text decodes to itself and unk (there for T5's layout) never
    occurs. BPE and not T5's Unigram: the Unigram trainer of `tokenizers` gives another vocabulary each time.

    Args:
        texts: what to learn from; the order does not matter beyond ties.
        vocab_size: at most this many tokens, at least 259; fewer where the texts have no more pairs to merge.

    Raises:
        ValueError: vocab_size is below 259, or there is no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = list(texts)
    special = ["<pad>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if not any(texts):
        raise ValueError("train_tokenizer: texts is empty; give at least one text that is not.")
    if vocab_size < len(special) + len(alphabet):
        least = len(special) + len(alphabet)
        raise ValueError(f"train_tokenizer: vocab_size is {vocab_size}; the bytes and special tokens need {least}.")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=int(1e9),
    )


def check_layers(config: T5Config, tensors: Collection[str], folder: Path) -> None:
    """Raise ValueError where a config has more layers than the weights could fill, before so many are built."""
    layers = config.num_layers + config.num_decoder_layers
    if layers > len(tensors):
        raise ValueError(
            f"{folder} has {len(tensors)} tensors for the {layers} layers of its config.json, which describes another "
            "model than its weights. Copy or download both again."
        )


def _names(parameters: Mapping[tuple, Any]) -> dict[str, tuple[tuple, bool]]:
    """The rows of `TENSORS` for these parameters: Hugging Face's name to (our path, transposed)."""
    layers = 1 + max((part for path in parameters for part in path if isinstance(part, int)), default=0)
    names = {}
    for template, path_template, transposed in TENSORS:
        for i in range(layers if "{i}" in template else 1):
            path = tuple(int(part) if part.isdigit() else part for part in path_template.format(i=i).split("."))
            if path in parameters:
                names[template.format(i=i)] = (path, transposed)
    return names


def _is_tied(tensors: dict[str, np.ndarray], *, says_untied: bool, folder: Path) -> bool:
    """Drop the copies of `shared.weight`, which must be equal to it; whether the output embedding is one of them."""
    copies = {name: tensors.pop(name) for name in COPIES if name in tensors}
    if copies:
        tensors.setdefault("shared.weight", next(iter(copies.values())))
    for name, copy in copies.items():
        if not np.array_equal(copy, tensors["shared.weight"]):
            raise ValueError(f"{folder}: tensor {name} differs from shared.weight; T5 shares one input embedding.")
    if "lm_head.weight" not in tensors or "shared.weight" not in tensors:
        return "lm_head.weight" not in tensors
    return not says_untied and np.array_equal(tensors["lm_head.weight"], tensors["shared.weight"])


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        with _open_tensors(single) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if index.is_file():
        found = read_json(index)
        weight_map = found.get("weight_map") if isinstance(found, dict) else None
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ValueError(
                f"{index} has no weight_map from tensors to files; it is no index of safetensors shards. Copy or "
                "download it again."
            )
        tensors = {}
        for shard in sorted(set(weight_map.values())):
            if Path(shard).name != shard or not within(folder, shard, index).is_file():
                raise ValueError(f"{index} names the shard {shard!r}, which is not in {folder}. Copy all shards.")
            with _open_tensors(folder / shard) as file:
                for name in (name for name, home in weight_map.items() if home == shard):
                    tensors[name] = file.get_tensor(name)
        return tensors
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ValueError(
            f"{folder} has {pickles[0]} and no model.safetensors. A .bin file is a pickle, which can run any code "
            "when it is read, so it is refused. Convert it where you trust it: "
            f"T5ForConditionalGeneration.from_pretrained({str(folder)!r}).save_pretrained(NEW_FOLDER) in transformers."
        )
    raise ValueError(f"{folder} has no model.safetensors and no model.safetensors.index.json.")


@contextlib.contextmanager
def _open_tensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}). It may be truncated: copy or download it again.") from error


def _local_folder(folder_or_hub_name: str | Path) -> Path:
    """The folder itself, or the local snapshot of a hub name."""
    folder = Path(folder_or_hub_name).expanduser()
    if folder.is_dir():
        return folder
    name = str(folder_or_hub_name)
    if isinstance(folder_or_hub_name, Path) or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"There is no folder {name}. Give one, or a hub name like google/flan-t5-base.")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} is no local folder, and the Hugging Face hub did not give it ({type(error).__name__}: {error}). "
            "Check the name and the network, or give a folder with config.json and model.safetensors."
        ) from error
