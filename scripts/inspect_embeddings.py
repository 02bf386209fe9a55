"""See what each of several representations makes of the same texts, before choosing anything by one of them.

    python scripts/inspect_embeddings.py ../shared/data/domain/domain_pool.jsonl.gz --group dataset --out runs/seen \\
        --encoders lexical MiniLM=sentence-transformers:FOLDER states=t5-mean:FOLDER own=embeddings:FILE.npy

The data is a file of examples, or a config file, whose pool and encoder are then looked at. An encoder is
[NAME=]KIND[:MODEL]: lexical, sentence-transformers:MODEL, t5-mean:MODEL (averaged states), t5-position:MODEL (RDS+),
t5-sentence:MODEL (Sentence-T5), bart:MODEL, or embeddings:FILE with a row for every example of the data.
Writes `table.json` and `representations.html` into `--out`, beside the embeddings; a run that was stopped goes on.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.table import Table

from deft_tsds import build, config
from deft_tsds.cli import plain_errors
from deft_tsds.data.examples import Examples, read_examples
from deft_tsds.embed.given import read_embeddings
from deft_tsds.embed.store import write_store
from deft_tsds.report.map2d import plane, proportional_sample
from deft_tsds.report.representations import cells, headings, write_representations
from deft_tsds.runs import console, stage_key, track, write_json
from deft_tsds.studies.representations import inspect

KINDS = {
    "sentence-transformers": config.SentenceTransformers,
    "t5-mean": lambda model: config.T5Encoder(model, "mean"),
    "t5-position": lambda model: config.T5Encoder(model, "position"),
    "t5-sentence": lambda model: config.T5Encoder(model, "sentence"),
    "bart": config.BartCLS,
    "embeddings": config.OwnEmbeddings,
}


@dataclass(frozen=True)
class Settings:
    """What to look at."""

    data: tyro.conf.Positional[Path]
    """A file of examples (.jsonl, .json, .csv, .parquet, also .gz), or a config file (.py)."""
    out: Path
    """Folder to write."""
    encoders: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=]KIND[:MODEL] ...")] = ("lexical",)
    """Representations to compare, beside the config's own where there is one."""
    text: str = "text"
    """Field of the text."""
    group: str = "task"
    """Field of the label that judges."""
    rows: int = 2000
    """Rows to look at, drawn in proportion to the labels."""
    map_rows: int = 1000
    """Rows of the maps, of these."""
    seeds: int = 5
    """How often k-means starts."""
    seed: int = 0
    """Fixes the draws."""


def read(settings: Settings) -> tuple[Examples, dict[str, Any]]:
    """All examples, and the encoders by name."""
    encoders: dict[str, Any] = {}
    if settings.data.suffix == ".py":
        experiment, _ = config.load(settings.data)
        key = stage_key(experiment.seed, "data")
        pool = build.corpus(experiment.data, validation=0, folder=settings.out / "data", key=key).pool
        encoders["the config's"] = experiment.encoder
    else:
        pool = read_examples(settings.data, input_field=settings.text, target_field=None, group_field=settings.group)
    for given in settings.encoders:
        name, named, kind = given.partition("=") if "=" in given.partition(":")[0] else (given, "", given)
        kind, _, model = kind.partition(":")
        if kind != "lexical" and (kind not in KINDS or not model):
            raise ValueError(f"--encoders {given}: write [NAME=]KIND:MODEL, KIND one of lexical, {', '.join(KINDS)}.")
        if name in encoders:
            raise ValueError(f"--encoders names {name} twice: give each a NAME= of its own.")
        encoders[name if named else kind] = config.Lexical() if kind == "lexical" else KINDS[kind](model)
    return pool, encoders


def embed(encoder: Any, pool: Examples, rows: np.ndarray, folder: Path, settings: Settings) -> np.ndarray:
    """The embeddings of some rows of the pool."""
    if isinstance(encoder, config.OwnEmbeddings):
        options: dict[str, Any] = {"column": encoder.column, "raw": encoder.raw}
        return read_embeddings(encoder.pool, rows=len(pool), **options)[rows]
    texts = pool.take(rows)
    made = build.encoder(encoder, texts, path=folder / "encoder.npz", key=stage_key(settings.seed, "encoder"))
    return write_store(folder / "store", texts.prompts, made, ids=texts.ids).array()


def main(settings: Settings) -> None:
    pool, encoders = read(settings)
    groups = np.array(pool.groups)
    rows = proportional_sample([groups], settings.rows, key=stage_key(settings.seed, "rows"))
    shown = proportional_sample([groups[rows]], settings.map_rows, key=stage_key(settings.seed, "map"))
    found, maps = {}, {}
    for place, (name, encoder) in enumerate(track(list(encoders.items()), "Inspecting")):
        embedded = embed(encoder, pool, rows, settings.out / f"encoder-{place}", settings)
        found[name] = inspect(
            embedded, groups[rows].tolist(), key=stage_key(settings.seed, "inspect"), seeds=settings.seeds
        )
        maps[name] = plane(np.asarray(embedded)[shown], key=stage_key(settings.seed, "plane"))
    write_json(settings.out / "table.json", {name: asdict(each) for name, each in found.items()})
    page = write_representations(
        found,
        maps,
        settings.out / "representations.html",
        texts=[pool.prompts[row] for row in rows[shown]],
        labels=groups[rows[shown]].tolist(),
        command=sys.argv,
    )
    table = Table("", *found, title=f"{len(rows):,} texts, {len(set(groups[rows]))} labels", title_justify="left")
    columns = [[text for _, text in cells(each)] for each in found.values()]
    for heading, *line in zip(headings(next(iter(found.values()))), *columns, strict=True):
        table.add_row(heading, *line)
    console.print(table)
    console.print(f"page: {page}", soft_wrap=True)


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Settings, description=__doc__))
