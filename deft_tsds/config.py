"""The typed experiment: one tree of frozen dataclasses, a docstring a field, from a Python file and a command line.

A config file defines `config = Experiment(...)`. Every field can be overridden on the command line by its path
(`--train.steps 500`, `--arms.deft.selector.clusters 10`). Only `build.py`, `pipeline.py`, `studies.py` and
`ablation.py` see these classes.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

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


@dataclass(frozen=True)
class Source:
    """Where a set of examples lies and what its fields are called."""

    path: str
    """A .jsonl, .json, .csv (each also .gz) or .parquet file, a saved `datasets` folder, or a hub name ("name" or
    "name:config")."""
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
    spec.loader.exec_module(module)
    default = getattr(module, "config", None)
    if not isinstance(default, kind):
        raise ValueError(f"{path} must define `config = {kind.__name__}(...)`; found {type(default).__name__}.")
    if change is not None:
        default = change(default)
    description = (module.__doc__ or "").strip()
    return override(
        default, arguments, description=description, program=f"{Path(sys.argv[0]).name} {path}"
    ), description


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
