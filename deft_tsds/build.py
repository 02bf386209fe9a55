"""From the config's dataclasses to the objects that do the work. Names like `module:function` are resolved here.

Everything that can be wrong with a config is found here, in seconds, before any long work.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import nnx

from deft_tsds import config as cfg
from deft_tsds import synthetic
from deft_tsds.data import columns
from deft_tsds.data.examples import Examples, read_examples, split_queries
from deft_tsds.data.sources import pattern_files
from deft_tsds.embed import Encoder
from deft_tsds.embed.concatenated import Concatenated
from deft_tsds.embed.files import open_npy
from deft_tsds.embed.given import Given
from deft_tsds.embed.lexical import Lexical, LexicalEncoder
from deft_tsds.embed.sentence_transformers import SentenceTransformers
from deft_tsds.gradients.projection import check_dimension
from deft_tsds.metrics import METRICS
from deft_tsds.runs import console, file_hash
from deft_tsds.selectors import DSIR, Foreign, Quality, Transport
from deft_tsds.t5.load import load_pretrained, load_tokenizer
from deft_tsds.t5.model import T5, T5Config
from deft_tsds.transport import terms
from deft_tsds.transport.objective import Objective, Term

BOUND_LATER = frozenset({"candidates_UxD", "queries_MxD", "pool_mean_D"})
"""Arguments of terms that `selectors.Transport` gives, once the problem is known."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The examples of a run: the pool to choose from, the target queries, held-out pairs, and the test sets."""

    pool: Examples
    queries: Examples | None
    validation: Examples | None
    tests: dict[str, Examples]


def corpus(data: cfg.Files | cfg.Synthetic, *, validation: int, folder: Path, key: jax.Array) -> Corpus:
    """Read (or make) the examples and hold out queries and validation rows from the pool.

    Args:
      data: the config's data section.
      validation: pool rows to hold out for the validation loss.
      folder: where synthetic text is written before it is read like any other.
      key: fixes the synthetic text and which rows are held out.
    """
    text_key, query_key, validation_key = jax.random.split(key, 3)
    if isinstance(data, cfg.Synthetic):
        data = _synthetic_files(data, folder, text_key)
    pool = read(data.pool, "data.pool")
    tests = {name: read(source, f"data.tests.{name}") for name, source in data.tests.items()}
    if not tests:
        raise ValueError("data.tests is empty: name at least one test set, or nothing can be scored.")
    queries = None
    if isinstance(data.queries, cfg.HeldOut):
        queries, pool = split_queries(pool, group=data.queries.group, count=data.queries.count, key=query_key)
    elif data.queries is not None:
        queries = read(data.queries, "data.queries")
    held_out = None
    if validation:
        if not 0 < validation < len(pool):
            raise ValueError(f"train.validation is {validation}; it must lie between 1 and the pool's {len(pool)} - 1.")
        order = np.asarray(jax.random.permutation(validation_key, len(pool)))
        held_out, pool = pool.take(np.sort(order[:validation])), pool.take(np.sort(order[validation:]))
    return Corpus(pool, queries, held_out, tests)


def read(source: cfg.Source, name: str) -> Examples:
    """The examples of a source, called `name` in errors."""
    options = {field.name: getattr(source, field.name) for field in dataclasses.fields(source) if field.name != "path"}
    return read_examples(source.path, name=name, **options)


def _synthetic_files(data: cfg.Synthetic, folder: Path, key: jax.Array) -> cfg.Files:
    synthetic.write_editing(
        folder,
        num_pool=data.pool,
        num_test=data.test,
        num_queries=data.queries,
        key=key,
        near_duplicates=data.near_duplicates,
        wrong_targets=data.wrong_targets,
        off_task=data.off_task,
    )
    fields: dict[str, Any] = {"group_field": "task", "instruction_field": "instruction"}
    flags = ("near_duplicate", "wrong_target", "off_task")
    tests = sorted((folder / "tests").glob("*.jsonl"))
    return cfg.Files(
        pool=cfg.Source(str(folder / "pool.jsonl"), flag_fields=flags, **fields),
        queries=cfg.Source(str(folder / "queries.jsonl"), **fields),
        tests={
            path.stem: cfg.Source(str(path), target_field=None, references_field="references", **fields)
            for path in tests
        },
    )


def identity(*paths: str | None) -> dict[str, str]:
    """SHA-256 of each local file or folder, so that a changed one is not mistaken for the old; hub names have none.

    A pattern counts as the files that it names."""
    given = [path for path in paths if path is not None]
    named = [str(file) for path in given for file in (pattern_files(path) or [path]) if Path(file).exists()]
    return {path: _hash_as_of(Path(path), _stamps(Path(path))) for path in named}


@functools.cache
def _hash_as_of(path: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """`file_hash`, once for each state of the files: the variants of a study name the same ones again and again."""
    del stamps
    return file_hash(path)


def _stamps(path: Path) -> tuple[tuple[str, int, int], ...]:
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    return tuple((str(item), item.stat().st_size, item.stat().st_mtime_ns) for item in files)


def data_identity(data: cfg.Files | cfg.Synthetic) -> dict[str, str]:
    """The `identity` of every file that the data section names."""
    if isinstance(data, cfg.Synthetic):
        return {}
    sources = [data.pool, data.queries, *data.tests.values()]
    return identity(*(source.path for source in sources if isinstance(source, cfg.Source)))


def selector_identity(config: Any) -> dict[str, str]:
    """The `identity` of every file that a selector's section names: the user's modules and arrays.

    What a module imports in its turn is not looked at.
    """
    if isinstance(config, Foreign):
        return identity(config.path)
    named = [config.function] if isinstance(config, cfg.Custom) else []
    named += [config.scores] if isinstance(config, cfg.Quality) else []
    if isinstance(config, cfg.Transport):
        for section in config.objective.values():
            named += [section.term, *(value for value in section.options.values() if isinstance(value, str))]
    found = {}
    for name in named:
        if name.endswith(".npy"):
            found |= identity(name)
        elif ":" in name:
            source = _own_module(name).__file__
            if source is not None:  # a built-in module has no file
                found[name] = file_hash(Path(source))
    return found


def encoder_identity(config: cfg.Embedding) -> dict[str, str]:
    """The `identity` of every file that the encoder section names."""
    if isinstance(config, cfg.Concatenated):
        found = [encoder_identity(part.encoder) for part in config.parts.values()]
        return {path: sha256 for each in found for path, sha256 in each.items()}
    if isinstance(config, cfg.OwnEmbeddings):
        return identity(config.pool, config.queries)
    return {} if isinstance(config, cfg.Lexical) else identity(config.model)


def encoder(config: cfg.AnyEncoder, pool: Examples, *, path: Path, key: jax.Array) -> Encoder:
    """The encoder that a config names; what it learns from the pool is kept at `path`, where a resumed run finds it.

    A part of several keeps it beside that path, under its own name.
    """
    if isinstance(config, cfg.Concatenated):
        parts = {
            name: encoder(part.encoder, pool, path=path.with_name(f"{path.stem}-{name}{path.suffix}"), key=key)
            for name, part in config.parts.items()
        }
        return Concatenated(list(parts.values()), [part.weight for part in config.parts.values()])
    if isinstance(config, cfg.SentenceTransformers):
        return sentence_transformers(config)
    if not isinstance(config, cfg.Lexical):
        return config
    if not path.exists():
        Lexical(dimension=config.dimension).fit(pool.prompts, key=key).save(path)
    return LexicalEncoder.load(path)


def sentence_transformers(config: cfg.SentenceTransformers) -> SentenceTransformers:
    """The sentence-transformers encoder; ValueError where the package is missing."""
    return SentenceTransformers(config.model, batch_size=config.batch_size)


def given_embeddings(config: cfg.OwnEmbeddings, sizes: Mapping[str, int]) -> dict[str, Given]:
    """The user's own embeddings of pool and queries, checked against the number of examples.

    Raises:
      ValueError: as `read_embeddings`; embeddings of queries that there are not, or none of those that there are.
    """
    paths = {"pool": config.pool, "queries": config.queries}
    if (config.queries is None) != (sizes["queries"] == 0):
        raise ValueError(
            f"encoder.queries is {config.queries} and there are {sizes['queries']} queries: "
            "give embeddings for the queries if data.queries names some, and only then."
        )
    return {
        name: Given(path, rows=sizes[name], name=f"encoder.{name}", column=config.column, raw=config.raw)
        for name, path in paths.items()
        if path is not None
    }


def selector(config: Any, *, name: str, pool: Callable[[], Examples]) -> Callable[..., Any]:
    """The selector of an arm; functions of the user's own are imported, and said so before they run.

    Args:
        config: the selector's section of the config.
        name: of the arm, for messages.
        pool: gives the pool's examples; called only where a term has something to ask of them.
    """
    if isinstance(config, cfg.Transport):
        options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        where = f"arms.{name}.selector.objective"
        return Transport(**{**options, "objective": objective(config.objective, where=where, pool=pool)})
    if isinstance(config, cfg.Quality):
        scores_N = _column(config.scores, "scores_N", f"arms.{name}.selector.scores", pool)
        return Quality(scores_N, diversity=config.diversity)
    if not isinstance(config, cfg.Custom):
        return config
    found = _own(config.function)
    made = found(**config.options) if config.options else found
    if not callable(made):
        raise ValueError(f"{config.function} gave {made!r}, which is no function (pool, *, budget, key) -> Selection.")
    return made


def objective(config: Mapping[str, cfg.Weighted], *, where: str, pool: Callable[[], Examples]) -> Objective:
    """The objective of a config: names become functions, texts among the options become arrays.

    Raises:
        ValueError: a term or column that does not exist, one that needs what it is not given, an array that is not one
            row a candidate, and all that `Objective.of` raises; the message begins with the path of the term.
    """
    functions = {key: _term(section.term, f"{where}.{key}") for key, section in config.items()}
    weighted = {}
    for key, section in config.items():
        path = f"{where}.{key}"
        arguments = {
            option: _column(value, option, f"{path}.options.{option}", pool) if isinstance(value, str) else value
            for option, value in section.options.items()
        }
        _check_arguments(functions[key], arguments, path)
        weighted[key] = (section.weight, Term(functions[key], arguments))
    try:
        return Objective.of(**weighted)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _term(name: str, path: str) -> Callable[..., Any]:
    if ":" in name:
        return _own(name)
    known = {function.__name__: function for function in terms.CONVEX}
    if name not in known:
        raise ValueError(
            f"{path}.term is {name!r}: give module:function, or one of {', '.join(sorted(known))}."
            f"{_nearest(name, known)}"
        )
    return known[name]


def _column(value: str, option: str, path: str, pool: Callable[[], Examples]) -> np.ndarray:
    if value.endswith(".npy"):
        try:
            array = np.array(open_npy(Path(value)))
        except ValueError as error:
            raise ValueError(f"{path}: {value} cannot be read ({error}). Save one array with numpy.save.") from error
    else:
        known = columns.COLUMNS
        if ":" not in value and value not in known:
            raise ValueError(
                f"{path} is {value!r}: give module:function, a .npy file, or one of {', '.join(sorted(known))}."
                f"{_nearest(value, known)}"
            )
        found = _own(value) if ":" in value else known[value]
        array = np.asarray(found(pool()))
    if option.partition("_")[2].startswith("N") and (array.ndim == 0 or len(array) != len(pool())):
        raise ValueError(
            f"{path}: {value} gave an array of shape {array.shape}: one row for each of {len(pool())} candidates."
        )
    return array


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _check_arguments(function: Callable[..., Any], given: Mapping[str, Any], path: str) -> None:
    """Raise where a term lacks an argument that neither its options nor the selector will give it."""
    parameters = list(inspect.signature(function).parameters.values())[2:]
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.name not in given
        and parameter.name not in BOUND_LATER
    ]
    if missing:
        raise ValueError(f"{path} needs {', '.join(missing)}: give options={{{missing[0]!r}: ...}} (see Weighted).")


@functools.cache
def _announce(name: str) -> None:
    console.print(f"runs your code: {name}", markup=False, soft_wrap=True)


def _own(name: str) -> Any:
    """What the user's own `module:attribute` is; that its code is going to run is said once, before it does."""
    _announce(name)
    return resolve(name)


def _own_module(name: str) -> ModuleType:
    """The module of the user's own `module:attribute`, as `_own`."""
    _announce(name)
    return _module(name)


def resolve(name: str) -> Any:
    """Import `module:attribute`. The name must be the user's: from a config or the command line, never out of data.

    Raises:
      ValueError: the name has no colon, the module cannot be imported, or it lacks the attribute.
    """
    module, attribute = _module(name), name.partition(":")[2]
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        raise ValueError(
            f"The module {module.__name__!r} has no {attribute!r}, which {name!r} names."
            f"{f' Did you mean {near[0]!r}?' if near else ''}"
        )
    return getattr(module, attribute)


def _module(name: str) -> ModuleType:
    module_name, _, attribute = name.partition(":")
    parts = [*module_name.split("."), attribute]
    if not all(part.isidentifier() for part in parts):
        raise ValueError(f"{name!r} must be written as module:function.")
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"Cannot import {error.name!r} for {name!r}: set PYTHONPATH to where it lies.") from error
    except (ImportError, SyntaxError) as error:
        raise ValueError(f"Cannot import {module_name!r} for {name!r} ({type(error).__name__}: {error}).") from error


def budget(arm: cfg.Arm, pool_size: int, *, name: str) -> int:
    """The number of examples that an arm may choose.

    Raises:
      ValueError: not exactly one of `share` and `count` (none for Full), or out of range.
    """
    if isinstance(arm.selector, cfg.Full):
        if arm.share not in (None, 1.0) or arm.count is not None:
            raise ValueError(f"arms.{name}: Full takes the whole pool; leave share and count out.")
        return pool_size
    if (arm.share is None) == (arm.count is None):
        raise ValueError(f"arms.{name}: give either share (of the pool) or count, exactly one of them.")
    if arm.count is not None:
        if not 1 <= arm.count <= pool_size:
            raise ValueError(f"arms.{name}.count is {arm.count}, but the pool has {pool_size} examples to choose from.")
        return arm.count
    if arm.share is None or not 0 < arm.share <= 1:
        raise ValueError(f"arms.{name}.share is {arm.share}; it must lie in (0, 1].")
    return max(1, round(arm.share * pool_size))


def check_encoders(experiment: cfg.Experiment, sizes: Mapping[str, Any]) -> None:
    """Raise ValueError for an arm that sees what there is not or cannot read it, and for an encoder that cannot be."""
    for name, arm in experiment.arms.items():
        if arm.encoder is not None and arm.encoder not in experiment.encoders:
            raise ValueError(
                f"arms.{name}.encoder is {arm.encoder!r}, and encoders has {sorted(experiment.encoders)}."
                f"{_nearest(arm.encoder, experiment.encoders)}"
            )
        if isinstance(arm.selector, DSIR) and not isinstance(experiment.encoders.get(arm.encoder or ""), cfg.Ngrams):
            raise ValueError(
                f"arms.{name}: DSIR reads counts of n-grams: set encoders={{'ngrams': Ngrams()}} and the arm's "
                "encoder='ngrams'."
            )
    for name, config in {"": experiment.encoder, **experiment.encoders}.items():
        if isinstance(config, cfg.OwnEmbeddings):
            given_embeddings(config, sizes)
        if isinstance(config, cfg.SentenceTransformers):
            sentence_transformers(config)
        if isinstance(config, cfg.Gradients):
            check_dimension(config.dimension)
            if not 0 < config.share <= 1 or config.epochs < 1:
                raise ValueError(f"encoders.{name}: share must lie in (0, 1] and epochs be at least 1.")
    hygiene = experiment.hygiene
    by_embedding = hygiene is not None and (hygiene.near == "embedding" or hygiene.leak_cosine is not None)
    if by_embedding and isinstance(experiment.encoder, cfg.OwnEmbeddings):
        raise ValueError("hygiene by embedding embeds the test sets too: set another encoder than OwnEmbeddings.")


def steps(train: cfg.Train, examples: int) -> int:
    """Optimiser steps for an arm that chose so many examples: the same steps, or the same epochs, for every arm."""
    if (train.steps is None) == (train.epochs is None):
        raise ValueError(
            f"Give train.steps (now {train.steps}) or train.epochs (now {train.epochs}), exactly one of them; "
            "`--train.steps None` takes one away."
        )
    count = train.steps if train.steps is not None else math.ceil((train.epochs or 0) * examples / train.batch_size)
    if count < 1:
        raise ValueError(f"train.steps or train.epochs leaves {count} steps to train.")
    return count


def check_train(train: cfg.Train) -> None:
    """Raise ValueError for settings of the fine-tuning that do not go together."""
    steps(train, examples=1)
    if train.side_by_side and (train.patience is not None or train.keep_best):
        raise ValueError("train.side_by_side has no early stopping: set train.patience to None, keep_best to False.")


def check_metrics(names: tuple[str, ...]) -> None:
    """Raise ValueError for a metric that does not exist."""
    unknown = sorted(set(names) - set(METRICS))
    if unknown or not names:
        raise ValueError(f"evaluate.metrics: unknown {unknown}; there are {sorted(METRICS)}.")


def scratch_model(shape: cfg.Scratch, *, vocabulary: int, dtype: str, key: jax.Array) -> T5:
    """A T5 of the given shape with random parameters."""
    t5_config = T5Config(
        vocab_size=vocabulary,
        d_model=shape.d_model,
        d_kv=shape.d_kv,
        d_ff=shape.d_ff,
        num_layers=shape.layers,
        num_decoder_layers=shape.layers,
        num_heads=shape.heads,
        activation=shape.activation,
        dropout_rate=shape.dropout,
    )
    return T5(t5_config, rngs=nnx.Rngs(params=key), dtype=np.dtype(dtype) if dtype == "float32" else jax.numpy.bfloat16)


def pretrained(name: str, *, dtype: str) -> tuple[T5, Any]:
    """The model and the tokenizer in a folder or of a hub name."""
    return load_pretrained(name, dtype=jax.numpy.dtype(dtype)), load_tokenizer(name)


@functools.cache
def check_pretrained(name: str, *, dtype: str) -> None:
    """Raise ValueError where `pretrained` would; a model that has been found good is not read again."""
    pretrained(name, dtype=dtype)
