"""Every selector on every representation: each pair a choice that keeps the contract, or a reason why there is none.

A pair that makes no sense is known before it is tried (`nonsense`); anything else that goes wrong is a failure, and
said to be one. Each cell is a stage of the run folder, and each representation is embedded once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds import build
from deft_tsds import config as cfg
from deft_tsds.arrays import row_blocks
from deft_tsds.data.columns import input_words
from deft_tsds.data.examples import Examples, read_examples
from deft_tsds.data.ngrams import NgramCounts
from deft_tsds.embed.folders import untrained
from deft_tsds.embed.store import open_store, write_store
from deft_tsds.runs import Run, Stage, atomic_write, file_hash, plain, stage_key, track, write_json
from deft_tsds.selectors import DEFT, DSIR, Foreign, Full, Quality, Transport, table
from deft_tsds.studies.contract import ContractError, check_selector
from deft_tsds.studies.gradients import GradientsOf, make_gradients
from deft_tsds.transport import terms
from deft_tsds.transport.objective import Objective

Representation = cfg.Embedding | cfg.Ngrams | GradientsOf


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Which representations meet the selectors, and on what text."""

    pool: cfg.Source
    """The candidates; `limit` makes them a slice."""
    queries: cfg.Source
    """The examples of the target."""
    representations: dict[str, Representation]
    """The representations by name."""
    budget: int = 100
    """Rows to choose."""
    selectors: tuple[str, ...] = tuple(entry.selector.__name__ for entry in table())
    """The selectors by name; all there are."""
    foreign: str | None = None
    """A file with what another tool chose, for `Foreign`."""
    seed: int = 0
    """The one seed of the run."""
    workdir: Path = Path("runs/matrix")
    """The run folder."""


@dataclasses.dataclass(frozen=True, eq=False)
class Represented:
    """Pool and queries as one representation shows them."""

    pool_NxD: Any
    """float32 [N, D], or `Rows`."""
    queries_MxD: Any
    fingerprint: str

    @property
    def counts(self) -> bool:
        """Whether no value is negative, as counts are."""
        return all(
            rows[part].min() >= 0
            for rows in (self.pool_NxD, self.queries_MxD)
            for part in row_blocks(len(rows), row_bytes=4 * rows.shape[1])
        )


def fill(matrix: Matrix) -> dict[str, Any]:
    """Run what is missing of a matrix.

    Returns:
        Plain JSON: the sizes, `representations` by name (dimension, settings, and what of the model is `untrained`, or
        None), and the `cells`, each with
        `representation`, `selector`, `status` and, by status,
            "chosen": `own`, the share of chosen rows of the queries' own groups (None
                where pool and queries have no group in common);
            "no sense": the `reason`;
            "failed": the `reason`, in the words of the error.

    Raises:
        ValueError: data or embeddings that cannot be read, an encoder that cannot be made, an unknown selector, a
            budget above the pool.
    """
    run = Run(matrix.workdir, matrix.seed)
    pool, queries = texts_of(matrix).values()
    if not 1 <= matrix.budget <= len(pool):
        raise ValueError(f"budget is {matrix.budget}, but the pool has {len(pool)} rows to choose from.")
    kinds = {entry.selector.__name__: entry.selector for entry in table()}
    if unknown := sorted({*matrix.selectors} - {*kinds}):
        raise ValueError(f"selectors has {', '.join(unknown)}: choose among {', '.join(kinds)}.")
    own_N = np.isin(np.array(pool.groups), list({*queries.groups} - {""}))
    cells, shown = [], {}
    for name, config in track(list(matrix.representations.items()), "representations"):
        seen = represent(config, pool, queries, run, name)
        folder = getattr(config, "model", None)
        shown[name] = {
            "dimension": seen.pool_NxD.shape[1],
            "untrained": None if folder is None else untrained(folder),
            **plain(config),
        }
        counts = seen.counts
        for kind in track(matrix.selectors, name):
            reason = nonsense(kinds[kind], counts=counts, foreign=matrix.foreign)
            cell = {"status": "no sense", "reason": reason}
            if reason is None:
                cell = _cell(run, seen, kinds[kind], matrix, pool, own_N, f"{name}/{kind}")
            cells.append({"representation": name, "selector": kind, **cell})
    return {
        "candidates": len(pool),
        "queries": len(queries),
        "budget": matrix.budget,
        "representations": shown,
        "cells": cells,
    }


def texts_of(matrix: Matrix) -> dict[str, Examples]:
    """The examples: "pool" and "queries"."""
    sources = {"pool": matrix.pool, "queries": matrix.queries}
    return {name: read_examples(source.path, name=name, **_options(source)) for name, source in sources.items()}


def represent(config: Representation, pool: Examples, queries: Examples, run: Run, name: str) -> Represented:
    """The embeddings of pool and queries, from their stores where they have been made."""
    texts = hashlib.sha256(json.dumps([pool.prompts, queries.prompts]).encode()).hexdigest()
    if isinstance(config, cfg.Ngrams):
        options = {"longest": config.longest, "buckets": config.buckets}
        counts = [NgramCounts(each.prompts, **options) for each in (pool, queries)]
        return Represented(*counts, fingerprint=f"{plain(config)} {texts}")
    if isinstance(config, GradientsOf):
        return _stored(make_gradients(config, pool, {"queries": queries}, run=run, stage=f"embeddings/{name}"))

    def work(folder: Path) -> None:
        if isinstance(config, cfg.OwnEmbeddings):
            for side, given in build.given_embeddings(config, {"pool": len(pool), "queries": len(queries)}).items():
                write_store(folder / side, given.texts, given, normalize=config.normalize)
            return
        encoder = build.encoder(config, pool, path=folder / "encoder.npz", key=stage_key(run.seed, "embed"))
        for side, examples in {"pool": pool, "queries": queries}.items():
            write_store(folder / side, examples.prompts, encoder, ids=examples.ids)

    settings = {"encoder": config, "files": build.encoder_identity(config), "texts": texts}
    return _stored(run.do(f"embeddings/{name}", work, settings=settings))


def _stored(stage: Stage) -> Represented:
    pool_NxD, queries_MxD = (open_store(stage.folder / side).array() for side in ("pool", "queries"))
    return Represented(pool_NxD, queries_MxD, stage.fingerprint)


def nonsense(kind: type, *, counts: bool, foreign: str | None) -> str | None:
    """Why a selector makes no sense on a representation, or None.

    Args:
        kind: the class of the selector.
        counts: whether the representation has no negative value.
        foreign: the file that `Foreign` is given.
    """
    if kind is DSIR and not counts:
        return "DSIR reads counts of n-grams, and these rows have negative values."
    if kind is Foreign and foreign is None:
        return "Foreign is what another tool chose, whatever the representation, and no file of one was given."
    return None


def make(kind: type, pool: Examples, *, budget: int, foreign: str | None) -> Any:
    """The selector with its defaults, but for four: DEFT's base set is 0.3 of the budget, since 0.3 of the pool may be
    above it; Quality goes by the number of words; Transport has the costs of TSDS with its repulsion of
    near-duplicates; and Foreign reads its file."""
    if kind is DEFT:
        return DEFT(base=0.3 * budget / len(pool))
    if kind is Quality:
        return Quality(input_words(pool))
    if kind is Transport:
        objective = Objective.of(align=(1.0, terms.transport_cost), kde=(0.5, terms.kde_repulsion))
        return Transport(objective, bandwidth=0.75)
    return Foreign(str(foreign)) if kind is Foreign else kind()


def _cell(
    run: Run, seen: Represented, kind: type, matrix: Matrix, pool: Examples, own_N: np.ndarray, name: str
) -> dict[str, Any]:
    budget = len(pool) if kind is Full else matrix.budget

    def work(folder: Path) -> dict[str, Any]:
        chosen = check_selector(
            seen.pool_NxD,
            seen.queries_MxD,
            selector=make(kind, pool, budget=budget, foreign=matrix.foreign),
            budget=budget,
            key=stage_key(run.seed, "matrix"),
            groups=np.array(pool.groups),
        )
        own = float(own_N[chosen.indices].mean()) if own_N.any() else None
        return {"status": "chosen", "own": own}

    settings: dict[str, Any] = {"representation": seen.fingerprint, "budget": budget, "groups": list(pool.groups)}
    if kind is Foreign and matrix.foreign is not None:
        settings["foreign"] = file_hash(Path(matrix.foreign))
    try:
        return dict(run.do(f"cells/{name}", work, settings=settings).results)
    except (ValueError, ContractError) as error:  # not kept: it is tried again
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}"}


def write_matrix(found: Mapping[str, Any], folder: Path) -> str:
    """Write `matrix.json` and `matrix.md`; return the Markdown."""
    text = markdown(found) + "\n"
    with atomic_write(folder / "matrix.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(folder / "matrix.json", found)
    return text


def markdown(found: Mapping[str, Any]) -> str:
    """The matrix as a table, with the reasons below it."""
    names = list(found["representations"])
    cells = {(cell["selector"], cell["representation"]): cell for cell in found["cells"]}
    reasons = list(dict.fromkeys(cell["reason"] for cell in found["cells"] if "reason" in cell))
    apart = {name: found["representations"][name]["untrained"] for name in names}
    marks = {name: "*" if apart[name] else "" for name in names}
    dimensions = [f"{name}{marks[name]} [{found['representations'][name]['dimension']}]" for name in names]
    lines = [
        f"{found['budget']:,} of {found['candidates']:,} rows, {found['queries']:,} queries; [D]. A number: the choice "
        "keeps the contract, and so much of it is from the queries' own group. A number in brackets: there is no "
        "choice, for the reason below.",
        "",
        "| selector | " + " | ".join(dimensions) + " |",
        "|---|" + "--:|" * len(names),
    ]
    for kind in dict.fromkeys(cell["selector"] for cell in found["cells"]):
        shown = [_shown(cells[kind, name], reasons) for name in names]
        lines.append(f"| {kind} | " + " | ".join(shown) + " |")
    lines += [""] + [f"- {_number(reason, reasons)}: {reason}" for reason in reasons]
    lines += [f"- {name}*: {what}" for name, what in apart.items() if what]
    return "\n".join(lines).rstrip()


def _shown(cell: Mapping[str, Any], reasons: Sequence[str]) -> str:
    if cell["status"] == "chosen":
        return "chosen" if cell["own"] is None else f"{cell['own']:.2f}"
    return ("FAILED " if cell["status"] == "failed" else "") + _number(cell["reason"], reasons)


def _number(reason: str, reasons: Sequence[str]) -> str:
    return f"({reasons.index(reason) + 1})"


def _options(source: cfg.Source) -> dict[str, Any]:
    return {field.name: getattr(source, field.name) for field in dataclasses.fields(source) if field.name != "path"}
