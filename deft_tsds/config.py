"""The typed experiment: one tree of frozen dataclasses, a docstring a field, from a Python file and a command line.

A config file defines `config = Experiment(...)`. Every field can be overridden on the command line by its path
(`--train.steps 500`, `--arms.deft.selector.clusters 10`). Only `build.py`, `pipeline.py`, `studies.py` and
`ablation.py` see these classes.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from deft_tsds.arrays import check_count, check_real
from deft_tsds.data.hygiene import Hygiene
from deft_tsds.embed.bart import BartCLS
from deft_tsds.embed.t5 import T5Encoder
from deft_tsds.selectors import (
    DEFT,
    DSIR,
    LESS,
    TSDS,
    ClusteredTSDS,
    Diverse,
    FacilityLocation,
    Foreign,
    Full,
    Herding,
    KCenter,
    Nearest,
    Random,
    RDSPlus,
    RoundRobin,
    SemDeDup,
    ShortlistDEFT,
    UnbalancedTransport,
)
from deft_tsds.training.tracking import Tracker
from deft_tsds.transport.problem import DensityOver


def _check_counts(section: Any, where: str, low: int, *names: str) -> None:
    """Raise ValueError unless these fields of a section are integers of at least `low`; None is left alone."""
    for name in names:
        value = getattr(section, name)
        if value is not None:
            check_count(value, f"{where}{name}", low)


@dataclass(frozen=True)
class Source:
    """Where a set of examples lies and what its fields are called."""

    path: str
    """A .jsonl, .json, .csv (each also .gz) or .parquet file, a saved `datasets` folder, a hub name ("name" or
    "name:config"), or a pattern that names several files ("part-*.jsonl")."""
    split: str = "train"
    """Split of a `datasets` folder or hub data set."""
    id_field: str | None = "id"
    """Field of the stable id; None makes ids from the content."""
    input_field: str | tuple[str, ...] = "input"
    """Field of the text to edit or answer; several are joined, blank ones left out."""
    target_field: str | None = "target"
    """Field of the wanted output; None where there are only references."""
    references_field: str | None = None
    """Field of the list of right outputs, for test sets."""
    group_field: str | None = None
    """Field of the task or group."""
    instruction_field: str | None = None
    """Field put before the input as `instruction: input`."""
    instruction_separator: str | None = None
    """Where the input field holds `instruction: input` already, as CoEDIT's does: what stands between them (": ")."""
    flag_fields: tuple[str, ...] = ()
    """Boolean fields that mark known defects; reported, never shown to a selector."""
    where: dict[str, str] = field(default_factory=dict)
    """Keep only rows whose fields have these values."""
    limit: int | None = None
    """Read at most so many rows."""


@dataclass(frozen=True)
class HeldOut:
    """Target examples taken out of the pool, at random."""

    group: str | None = None
    """The group to take them from; None takes them from all."""
    count: int = 200
    """How many; they leave the pool."""

    def __post_init__(self) -> None:
        _check_counts(self, "data.queries.", 1, "count")


@dataclass(frozen=True)
class Files:
    """Data that the user has."""

    pool: Source
    """The candidates to choose from."""
    tests: dict[str, Source]
    """Test sets by name."""
    queries: Source | HeldOut | None = None
    """The few target examples that TSDS needs."""


@dataclass(frozen=True)
class Synthetic:
    """Editing pairs made by a seeded generator, for the demo and for tests."""

    pool: int = 6000
    """Pairs in the pool."""
    queries: int = 60
    """Clean target examples, over all six kinds of edit."""
    test: int = 50
    """Test examples for each of the six kinds of edit."""
    near_duplicates: float = 0.15
    """Share of the pool that nearly repeats another pair."""
    wrong_targets: float = 0.1
    """Share of the pool whose target is wrong."""
    off_task: float = 0.15
    """Share of the pool that is no editing at all."""

    def __post_init__(self) -> None:
        _check_counts(self, "data.", 1, "pool", "test")
        _check_counts(self, "data.", 0, "queries")
        for name in ("near_duplicates", "wrong_targets", "off_task"):
            check_real(getattr(self, name), f"data.{name}", at_least=0, at_most=1)


@dataclass(frozen=True)
class Lexical:
    """Hashed word and character n-grams, TF-IDF, truncated SVD: nothing to download."""

    dimension: int = 256
    """Dimension D of the embeddings."""


@dataclass(frozen=True)
class SentenceTransformers:
    """Any sentence-transformers model (extra `encoders`)."""

    model: str
    """Folder or hub name."""
    batch_size: int = 64
    """Texts a batch."""


@dataclass(frozen=True)
class Part:
    """One of several encoders."""

    encoder: Lexical | SentenceTransformers | T5Encoder | BartCLS
    """The encoder."""
    weight: float = 1.0
    """What its squared distances and cosines count, against the other parts."""


@dataclass(frozen=True)
class Concatenated:
    """Several encoders side by side (see `deft_tsds.embed.concatenated`)."""

    parts: dict[str, Part]
    """The parts by name."""


@dataclass(frozen=True)
class OwnEmbeddings:
    """Embeddings that the user has made, one row an example, in the order of the data."""

    pool: str
    """A .npy, .npz or .parquet file or a raw memory-map, [N, D]."""
    queries: str | None = None
    """Such a file [M, D], where there are queries."""
    column: str | None = None
    """Column of .parquet files, where several hold lists of floats."""
    raw: tuple[Literal["float16", "float32", "float64"], int] | None = None
    """Dtype and D of raw memory-maps."""
    normalize: bool = True
    """Scale each row to unit length, as the defaults of the selectors expect."""


AnyEncoder = Lexical | SentenceTransformers | T5Encoder | BartCLS | Concatenated
"""What embeds texts."""
Embedding = AnyEncoder | OwnEmbeddings
"""Where embeddings come from."""


@dataclass(frozen=True)
class Ngrams:
    """Counts of hashed word n-grams, which DSIR reads. They are made where they are read, and not stored."""

    longest: int = 2
    """n-grams of 1 to so many words."""
    buckets: int = 10_000
    """Dimension D: n-grams are hashed into so many."""


@dataclass(frozen=True)
class Gradients:
    """What a step on each example would do to the model, seen at checkpoints of a short run on a random share of the
    pool (LESS, see `deft_tsds.gradients`). Tokens and dtype are those of `train`."""

    dimension: int = 1024
    """d of each checkpoint, a power of two; D is d times the checkpoints."""
    share: float = 0.05
    """Share of the pool that the short run trains on."""
    epochs: int = 4
    """Its epochs, each of which ends in a checkpoint."""
    learning_rate: float = 1e-3
    """Its peak learning rate; Adam's steps."""
    warmup: float = 0.03
    """Share of its steps in which the learning rate rises; it falls to 0 afterwards."""
    batch_size: int = 32
    """Its examples an optimiser step."""
    lora: Lora | None = None
    """Train low-rank factors, and see their gradients alone; None takes all parameters, for small models."""
    at_once: int = 16
    """Examples whose gradients are held at once, about three floats each for every trained parameter."""


@dataclass(frozen=True)
class Quality:
    """The rows of the highest score, each less what the rows before it already show (`deft_tsds.selectors.Quality`)."""

    scores: str
    """One number a candidate, higher is better: a name in `deft_tsds.data.columns`, `module:function` (called with the
    pool's `Examples`), or a .npy file."""
    diversity: float = 0.5
    """Weight of being unlike the rows chosen so far, in [0, 1]."""


@dataclass(frozen=True)
class Custom:
    """A selector of the user's own: any function `f(pool, *, budget, key) -> Selection`, or a factory of one."""

    function: str
    """`module:name`; the module lies beside the config file, or is importable from where the script is run."""
    options: dict[str, float] = field(default_factory=dict)
    """When given, `name(**options)` makes the selector; otherwise `name` is the selector."""


@dataclass(frozen=True)
class Weighted:
    """One term of an objective, with its weight."""

    weight: float
    """How much the term counts; at least 0 where the term is convex and not linear."""
    term: str
    """A name in `dt.terms`, or `module:function` of the user's own: any `f(plan, problem, **arguments)`."""
    options: dict[str, float | str] = field(default_factory=dict)
    """What the term takes beside plan and problem. A text stands for an array with something of each candidate: a name
    in `deft_tsds.data.columns`, `module:function` (called with the pool's `Examples`), or a .npy file. Embeddings
    (`candidates_UxD`, `queries_MxD`, `pool_mean_D`) are given without being named here."""


@dataclass(frozen=True)
class Transport:
    """Rows drawn by the transport plan that is best for an objective (see `deft_tsds.selectors.Transport`)."""

    objective: dict[str, Weighted]
    """The terms by name; the plan minimises their weighted sum."""
    neighbors: int = 1000
    """K, the nearest candidates that each query considers; at most all of them."""
    bandwidth: float | Literal["auto"] | None = None
    """h of the densities, for terms that look at them; None makes every density 1."""
    density_over: DensityOver = "shortlist"
    """Where near-duplicates are looked for: in the "shortlist", or in the whole "pool"."""
    tolerance: float = 1e-4
    """The gap to reach, relative to the value."""
    max_iterations: int = 2000
    """How many steps to try at most."""
    cap: float | None = None
    """The most that any probability may be, such as one over the budget."""


@dataclass(frozen=True)
class Arm:
    """One way to choose the training set."""

    selector: (
        DEFT
        | TSDS
        | ShortlistDEFT
        | ClusteredTSDS
        | Transport
        | UnbalancedTransport
        | Nearest
        | RoundRobin
        | RDSPlus
        | LESS
        | DSIR
        | Quality
        | Diverse
        | KCenter
        | FacilityLocation
        | Herding
        | SemDeDup
        | Random
        | Full
        | Foreign
        | Custom
    )
    """How to choose."""
    share: float | None = None
    """Budget as a share of the pool, in (0, 1]. Give `share` or `count`; for Full neither."""
    count: int | None = None
    """Budget as a number of examples."""
    encoder: str | None = None
    """Which of the experiment's `encoders` the selector sees; None is its `encoder`."""


@dataclass(frozen=True)
class Scratch:
    """The shape of a T5 trained from nothing, with a tokenizer trained on the pool (used when model is "scratch")."""

    vocabulary: int = 1024
    """Pieces of the tokenizer."""
    d_model: int = 96
    """Width."""
    d_ff: int = 256
    """Width of the feed-forward layer."""
    d_kv: int = 24
    """Width of a head."""
    heads: int = 4
    """Attention heads."""
    layers: int = 2
    """Layers of the encoder, and of the decoder."""
    activation: Literal["relu", "gated-gelu"] = "relu"
    """"relu" (T5 1.0) or "gated-gelu" (T5 1.1, Flan-T5)."""
    dropout: float = 0.0
    """Dropout rate."""


@dataclass(frozen=True)
class Lora:
    """Low-rank factors in place of some matrices (arXiv 2106.09685); merged into them when the model is saved."""

    rank: int = 8
    """Rank of the factors."""
    targets: tuple[str, ...] = ("q", "v")
    """Names of the matrices: q, k, v, o, wi (or wi_0, wi_1), wo."""
    alpha: float | None = None
    """The correction counts alpha / rank; None is the rank."""


@dataclass(frozen=True)
class Train:
    """Fine-tuning, the same for every arm."""

    steps: int | None = None
    """Equal optimiser steps for every arm. Give `steps` or `epochs`."""
    epochs: float | None = None
    """Equal passes over what each arm chose."""
    batch_size: int = 32
    """Examples an optimiser step."""
    accumulate: int = 1
    """Split each batch into so many parts, one after another, to save memory; the gradient is the same."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """Optimiser."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine", "rsqrt"] = "linear"
    """What it does afterwards; linear and cosine fall to 0, rsqrt falls as 1 / sqrt(step)."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, on matrices only."""
    clip: float = 1.0
    """Global gradient norm at which gradients are clipped."""
    max_input_tokens: int = 64
    """Longer prompts are cut."""
    max_target_tokens: int = 64
    """Longer targets are cut."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters, softmax and loss stay float32."""
    validation: int = 0
    """Pool rows held out, before any selection, for the validation loss."""
    validate_every: int = 100
    """Steps between validation losses."""
    patience: int | None = None
    """Stop after so many validations without a better loss, and keep the best; None trains to the end."""
    keep_best: bool = False
    """End with the parameters of the best validation loss, also without `patience`."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over the whole vocabulary, in [0, 1)."""
    z_loss: float = 0.0
    """Weight of log(Z)^2 in the loss, which keeps the logits from drifting; T5 was trained with 1e-4."""
    lora: Lora | None = None
    """Train low-rank factors and leave the model as it is; None trains all parameters."""
    side_by_side: bool = False
    """Train the replicates of an arm in one program, which is faster for small models. No early stopping then; dropout
    draws other numbers, since the batches of a step are all as wide as the widest of them."""
    profile: bool = False
    """Write a trace of three steps to finetune/<arm>/seed-<r>/profile."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between rows of metrics.jsonl."""

    def __post_init__(self) -> None:
        counts = ("batch_size", "accumulate", "max_input_tokens", "max_target_tokens", "validate_every", "save_every")
        _check_counts(self, "train.", 1, *counts, "log_every", "patience")
        _check_counts(self, "train.", 0, "validation")
        for name in ("learning_rate", "weight_decay", "z_loss"):
            check_real(getattr(self, name), f"train.{name}", at_least=0)
        check_real(self.clip, "train.clip", above=0)
        check_real(self.warmup, "train.warmup", at_least=0, at_most=1)
        if check_real(self.label_smoothing, "train.label_smoothing", at_least=0, at_most=1) == 1:
            raise ValueError("train.label_smoothing is 1: give a number below 1, or nothing is left of the target.")


@dataclass(frozen=True)
class Evaluate:
    """Generation and scores."""

    metrics: tuple[str, ...] = ("sari", "rouge_l", "exact_match", "token_f1", "bleu", "chrf")
    """Names in `deft_tsds.metrics.METRICS`; the first is the primary one."""
    beams: int = 1
    """1 is greedy decoding."""
    max_new_tokens: int = 64
    """Longest output."""
    batch_size: int = 64
    """Prompts a batch."""
    limit: int | None = None
    """Score at most so many rows of each test set."""
    resamples: int = 1000
    """Bootstrap resamples for the intervals."""
    level: float = 0.95
    """Level of the intervals."""

    def __post_init__(self) -> None:
        _check_counts(self, "evaluate.", 1, "beams", "max_new_tokens", "batch_size", "limit", "resamples")
        if check_real(self.level, "evaluate.level", above=0, at_most=1) == 1:
            raise ValueError("evaluate.level is 1: give a number below 1, such as 0.95.")


@dataclass(frozen=True)
class Experiment:
    """Choose by each arm, fine-tune, score, explain."""

    data: Files | Synthetic
    """Pool, queries and test sets."""
    arms: dict[str, Arm]
    """Ways to choose, by name; differences are reported against "random" where there is one."""
    encoder: Embedding = field(default_factory=Lexical)
    """What the selectors see, and what the report measures by."""
    encoders: dict[str, Embedding | Ngrams | Gradients] = field(default_factory=dict)
    """What single arms see in its place, by the name that they give as `encoder`."""
    hygiene: Hygiene | None = None
    """What is dropped from the pool before any selection; None drops nothing."""
    model: str = "scratch"
    """A T5 folder in Hugging Face layout, a hub name, or "scratch"."""
    scratch: Scratch = field(default_factory=Scratch)
    """Shape of the model when it is trained from scratch."""
    train: Train = field(default_factory=Train)
    """Fine-tuning."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    """Evaluation."""
    seed: int = 0
    """The one seed of the run."""
    replicates: int = 1
    """Repeat selection and fine-tuning so often, with keys folded out of the seed."""
    track: tuple[Tracker, ...] = ()
    """Where `metrics.jsonl` of each fine-tuning is copied to: "tensorboard", "wandb" (extra `tracking`). It decides no
    result; asked for later, what has been trained is copied and not trained again."""
    workdir: Path = Path("runs/unnamed")
    """The run folder."""

    def __post_init__(self) -> None:
        _check_counts(self, "", 1, "replicates")
        if not self.arms:
            raise ValueError("arms is empty: name at least one way to choose, such as {'random': Arm(Random(), ...)}.")
        for name in (*self.arms, *self.encoders):
            if not name or name in (".", "..") or set(name) & set("/\\\0"):
                raise ValueError(
                    f"the name {name!r} of an arm or encoder becomes a folder: leave out slashes and dots."
                )


AUTO = "--auto"
"""The flag that has knobs decided by the data."""

Config = TypeVar("Config")


def load(path: str | Path, arguments: Sequence[str] = ()) -> tuple[Experiment, str]:
    """As `load_as`, for an experiment; `--auto` among the arguments has its knobs decided (`automatic`), but for those
    that other arguments set."""
    rest = [argument for argument in arguments if argument != AUTO]
    return load_as(Experiment, path, rest, change=automatic if AUTO in arguments else None)


def automatic(experiment: Experiment) -> Experiment:
    """The experiment with "auto" for every knob of its arms that can be decided by the data: K and base share of DEFT,
    alpha and bandwidth of TSDS, also within other selectors, K of ClusteredTSDS, and the bandwidth of Transport."""

    def of(selector: Any) -> Any:
        if isinstance(selector, DEFT):
            return replace(selector, clusters="auto", base="auto")
        if isinstance(selector, TSDS):
            bandwidth = "auto" if selector.regularizer == "kde" else selector.bandwidth
            return replace(selector, alpha="auto", effective_size=None, bandwidth=bandwidth)
        if isinstance(selector, ShortlistDEFT):
            return replace(selector, deft=of(selector.deft))
        if isinstance(selector, ClusteredTSDS):
            return replace(selector, tsds=of(selector.tsds), clusters="auto")
        if isinstance(selector, Transport) and selector.bandwidth is not None:
            return replace(selector, bandwidth="auto")
        return selector

    arms = {name: replace(arm, selector=of(arm.selector)) for name, arm in experiment.arms.items()}
    return replace(experiment, arms=arms)


def load_as(
    kind: type[Config],
    path: str | Path,
    arguments: Sequence[str] = (),
    *,
    change: Callable[[Config], Config] | None = None,
) -> tuple[Config, str]:
    """Read `config` from a Python file, change it, and apply command-line overrides.

    Modules beside the file become importable, after all others, so that it may name the user's own functions.

    Returns:
      The config, and the docstring of the file.

    Raises:
      ValueError: there is no such file, or it defines no `config` of this kind.
      SystemExit: an override is wrong (tyro prints the nearest field), or `--help` was asked for.
    """
    path = Path(path)
    if not path.is_file():
        known = ", ".join(str(item) for item in sorted(path.parent.glob("*.py"))) or "none"
        raise ValueError(f"There is no config file {path}. Configs in {path.parent}: {known}.")
    spec = importlib.util.spec_from_file_location(f"deft_tsds_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file.")
    beside = str(path.parent.resolve())
    if beside not in sys.path:
        sys.path.append(beside)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, NameError, TypeError, AttributeError, ImportError, ValueError) as error:
        raise ValueError(_said_of(error, path)) from error
    default = getattr(module, "config", None)
    if not isinstance(default, kind):
        raise ValueError(f"{path} must define `config = {kind.__name__}(...)`; found {type(default).__name__}.")
    if change is not None:
        default = change(default)
    description = (module.__doc__ or "").strip()
    return override(
        default, arguments, description=description, program=f"{Path(sys.argv[0]).name} {path}"
    ), description


def _said_of(error: Exception, path: Path) -> str:
    """What is wrong in a config file, with the line of it where it went wrong, and the nearest name there is."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    said = (error.msg if isinstance(error, SyntaxError) else str(error)).rstrip(".")
    wrong = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", said)
    hint = ""
    if wrong and wrong[1] in globals():
        fields = [field.name for field in dataclasses.fields(globals()[wrong[1]])]
        near = difflib.get_close_matches(wrong[2], fields, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" Its fields are {', '.join(fields)}."
    if isinstance(error, NameError) and error.name is not None:
        near = difflib.get_close_matches(error.name, [name for name in globals() if name[0].isupper()], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
    if isinstance(error, ModuleNotFoundError):
        hint = " Put the module beside the config, or set PYTHONPATH to where it lies."
    return f"{path}{f', line {line}' if line else ''}: {type(error).__name__}: {said}.{hint}"


def override(config: Config, arguments: Sequence[str], *, description: str = "", program: str | None = None) -> Config:
    """The config with the fields set that the arguments name by their paths: `["--train.steps", "500"]`.

    Raises:
      SystemExit: there is no such field (tyro prints the nearest), a value is none for it, or `--help` was asked for.
    """
    return tyro.cli(
        type(config),
        args=list(arguments),
        default=config,
        description=description,
        prog=program,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
