"""The data of the studies that choose by a few queries and judge by a probe: a pool of several data sets, and targets.

The files are JSON lines with id, text, label, dataset and split: `domain_pool.jsonl.gz` holds the candidates, and
`domain_target_NAME.jsonl.gz` the rows of a target, of which those with split `query` choose and those with `test`
judge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deft_tsds import build
from deft_tsds import config as cfg
from deft_tsds.arrays import normalize_rows
from deft_tsds.data.examples import Examples, read_examples
from deft_tsds.embed import Encoder
from deft_tsds.embed.given import read_embeddings
from deft_tsds.embed.store import open_store, write_store
from deft_tsds.runs import Run, stage_key
from deft_tsds.studies.conditions import Encode
from deft_tsds.studies.gradients import GradientsOf, make_gradients
from deft_tsds.studies.targeted import Labelled, Target

POOL = "domain_pool"


@dataclass(frozen=True)
class LabelledText:
    """Where the texts lie, and how they are embedded."""

    folder: Path = Path("../shared/data/domain")
    """Folder with domain_pool.jsonl.gz and domain_target_NAME.jsonl.gz."""
    targets: tuple[str, ...] = ("banking77", "chemprot", "sciie", "stackoverflow")
    """Names of targets."""
    encoder: cfg.AnyEncoder = field(
        default_factory=lambda: cfg.SentenceTransformers("sentence-transformers/all-MiniLM-L6-v2")
    )
    """What embeds the texts."""
    embeddings: Path | None = None
    """Folder with a .npy for each file, domain_pool.npy and so on, in place of the encoder."""
    limit: int | None = None
    """Only so many of the candidates, the first ones; the files are shuffled."""


@dataclass(frozen=True, eq=False)
class Texts:
    """What was read.

    Attributes:
        pool: the candidates.
        targets: queries and test rows by target.
        examples: the candidates as examples, and the queries of each target by its name, for their gradients.
        encode: embeds other texts as the pool was, float32 rows of unit length; None where the vectors were given.
    """

    pool: Labelled
    targets: tuple[Target, ...]
    examples: Examples
    queries: dict[str, Examples]
    encode: Encode | None


def read(data: LabelledText, run: Run) -> Texts:
    """Read the files and embed them, or find them embedded in the run folder.

    Raises:
        ValueError: a file that is missing or broken, embeddings of another number of rows, a limit below 1.
    """
    if data.limit is not None and data.limit < 1:
        raise ValueError(f"limit is {data.limit}: give 1 or more, or None for all candidates.")
    files = {POOL: _examples(data, POOL, group_field="dataset")}
    files |= {name: _examples(data, f"domain_target_{name}", group_field="split") for name in data.targets}
    kept = np.arange(len(files[POOL]))[: data.limit]
    encode: Encode | None = None
    if data.embeddings is not None:
        embedded = {name: _given(data.embeddings, name, len(rows)) for name, rows in files.items()}
        files[POOL], embedded[POOL] = files[POOL].take(kept), embedded[POOL][: len(kept)]
    else:
        files[POOL] = files[POOL].take(kept)
        encoder, embedded = _embed(data.encoder, files, run)

        def embed_more(texts: Sequence[str]) -> np.ndarray:
            return normalize_rows(encoder.encode(texts))

        encode = embed_more

    pool = Labelled(
        files[POOL].inputs, np.array(files[POOL].targets), np.array(files[POOL].groups), np.asarray(embedded[POOL])
    )
    targets, queries = [], {}
    for name in data.targets:
        rows, split = files[name], np.array(files[name].groups)
        everything = Labelled(rows.inputs, np.array(rows.targets), split, np.asarray(embedded[name]))
        targets.append(Target(name, everything.take(split == "query"), everything.take(split == "test")))
        queries[name] = rows.take(np.flatnonzero(split == "query"))
    return Texts(pool, tuple(targets), files[POOL], queries, encode)


def with_gradients(texts: Texts, gradients: GradientsOf, run: Run) -> Texts:
    """The same with the gradients of pool and queries, each text the input and its label the target."""
    folder = make_gradients(gradients, texts.examples, texts.queries, run=run, stage="gradients").folder
    targets = []
    for target in texts.targets:
        seen = dataclasses.replace(target.queries, gradients_NxG=open_store(folder / target.name).array())
        targets.append(dataclasses.replace(target, queries=seen))
    pool = dataclasses.replace(texts.pool, gradients_NxG=open_store(folder / "pool").array())
    return dataclasses.replace(texts, pool=pool, targets=tuple(targets))


def _examples(data: LabelledText, name: str, *, group_field: str) -> Examples:
    path = data.folder / f"{name}.jsonl.gz"
    return read_examples(path, input_field="text", target_field="label", group_field=group_field, name=name)


def _given(folder: Path, name: str, rows: int) -> np.ndarray:
    file = name if name == POOL else f"domain_target_{name}"
    return read_embeddings(folder / f"{file}.npy", rows=rows, name=file)


def _embed(config: cfg.AnyEncoder, files: dict[str, Examples], run: Run) -> tuple[Encoder, dict[str, np.ndarray]]:
    """The encoder, and float32 [N, D] of each file from its store in the run folder."""
    key = stage_key(run.seed, "encoder")

    def work(folder: Path) -> None:
        encoder = build.encoder(config, files[POOL], path=folder / "encoder.npz", key=key)
        for name, rows in files.items():
            write_store(folder / name, rows.inputs, encoder, ids=rows.ids)

    texts = {name: rows.fingerprint() for name, rows in files.items()}
    settings = {"encoder": config, "files": build.encoder_identity(config), "texts": texts}
    folder = run.do("embeddings", work, settings=settings).folder
    encoder = build.encoder(config, files[POOL], path=folder / "encoder.npz", key=key)
    return encoder, {name: open_store(folder / name).array() for name in files}
