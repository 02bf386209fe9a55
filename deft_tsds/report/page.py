"""From a run folder to report.html: the page is one file, needs no network, and trusts no text of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deft_tsds.report import composition, figures, results, shell
from deft_tsds.report.coverage import coverage
from deft_tsds.report.difference import chosen_by, difference, overlaps, pairs
from deft_tsds.report.intervals import interval_plot
from deft_tsds.report.map2d import MOST_QUERIES, PoolMap, pool_map, proportional_sample
from deft_tsds.report.map_figures import map_figure, served_figure
from deft_tsds.report.outputs import side_by_side
from deft_tsds.report.served import served
from deft_tsds.report.settings import flat
from deft_tsds.report.typicality import extremes, typicality
from deft_tsds.report.view import ArmView, RunView, read_run
from deft_tsds.runs import stage_key


def write_report(run: str | Path, path: str | Path | None = None) -> Path:
    """Write the page of a run folder.

    Args:
      run: the run folder; only its artefacts are read.
      path: where to write; RUN/report.html by default.

    Returns:
      The path of the page.

    Raises:
      ValueError: a mandatory artefact is missing; the message names it and the stage to run.
    """
    view = read_run(run)
    page = render(view)
    return shell.write(page, path if path is not None else view.folder / "report.html")


def render(view: RunView) -> str:
    """The page of a run, as HTML."""
    key = stage_key(int(view.experiment["config"].get("seed", view.experiment["seeds"][0])), "report")
    mapped = pool_map(view, key=jax.random.fold_in(key, 0))
    near_duplicates = composition.near_duplicate_shares(view, key=jax.random.fold_in(key, 1))
    groups = composition.group_shares(view)
    defects = (composition.flag_shares(view), (near_duplicates,) if near_duplicates else ())
    choices = ()
    if view.embeddings_NxD is not None:
        choices = extremes(view, typicality(view.embeddings_NxD, view.pool.groups))
    query_rows = _query_rows(view, mapped, key=jax.random.fold_in(key, 2))
    serving = served(view, query_rows)
    covered = coverage(view)
    choosing = [arm for arm in view.arms if not arm.is_whole(len(view.pool))]
    numbers_N = np.arange(len(view.pool))
    chosen = [chosen_by(view, arm, arm.label, numbers_N) for arm in choosing]
    plots: dict[str, Any] = {"loss": figures.loss_figure(view.arms)}
    plots["map"] = map_figure(view, mapped) if mapped else None
    plots["served"] = served_figure(view, mapped, serving) if mapped and mapped.query_rows.size and serving else None
    plots["coverage"] = None
    if covered and covered.arms and view.queries:
        plots["coverage"] = figures.coverage_figure(covered, view.queries.inputs, query_rows)
    return shell.render(
        "page.html",
        filters={
            "percent": results.percent,
            "number": results.format_number,
            "duration": duration,
            "size": size,
        },
        styles=["style.css"],
        scripts=["page.js", "map.js", "served.js", "sortable.js"],
        notices=[view.experiment.get("notice")],
        view=view,
        experiment=view.experiment,
        arms=view.arms,
        tables=results.metric_tables(view),
        headline=results.headline(view),
        level=results.percent(view.table.get("level", 0.95)),
        intervals=interval_plot(view),
        plots=plots,
        mapped=_about_map(view, mapped) if mapped else None,
        groups=groups,
        group_scale=composition.largest(groups),
        defects=defects,
        defect_scale=composition.largest([*defects[0], *defects[1]]),
        near_duplicates=near_duplicates,
        threshold=composition.NEAR_DUPLICATE_COSINE,
        extremes=choices,
        opening=_opening(view, view.arms),
        opening_choosing=_opening(view, choosing),
        stages=_stages(view),
        served=serving,
        coverage=covered,
        covered=query_rows.size,
        overlapping=[each.label for each in chosen],
        overlaps=overlaps(chosen, len(view.pool)),
        differences=[difference(*two) for two in pairs(chosen, _opening(view, choosing))],
        outputs=side_by_side(view),
        versions=_versions(view),
        config=flat(view.experiment["config"]),
    )


def duration(seconds: float) -> str:
    """Seconds for a reader: 0.4 s, 12 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(number: float) -> str:
    """Bytes for a reader, in decimal units: 812 MB, 1.4 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            value = number / scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{number:.0f} B"


def _opening(view: RunView, arms: Sequence[ArmView]) -> int:
    """The arm that a switch opens with: the first that neither takes the whole pool nor draws at random."""
    chooses = (
        number for number, arm in enumerate(arms) if arm.selector != "Random" and not arm.is_whole(len(view.pool))
    )
    return next(chooses, 0)


def _query_rows(view: RunView, mapped: PoolMap | None, *, key: jax.Array) -> np.ndarray:
    """The queries that the page lists: those of the map, where there is one, else as many by chance."""
    if mapped and mapped.query_rows.size:
        return mapped.query_rows
    return proportional_sample([np.zeros(len(view.queries or ()))], MOST_QUERIES, key=key)


def _about_map(view: RunView, mapped: PoolMap) -> dict[str, Any]:
    """What the caption of the map says; the arms are those of `map_figure`."""
    choosing = [arm for arm in view.arms if not arm.is_whole(len(view.pool))]
    rows = np.concatenate([mapped.rows, mapped.placed_rows])
    return {
        "points": rows.size,
        "texts": mapped.rows.size,
        "all": rows.size == len(view.pool),
        "queries": mapped.query_rows.size,
        "arms": [(arm.label, int(np.isin(rows, arm.first.indices).sum())) for arm in choosing],
        "opening": _opening(view, choosing),
    }


def _stages(view: RunView) -> tuple[dict[str, Any], ...]:
    """Time and memory summed up by kind of stage: "finetune" stands for all of its arms and seeds."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for manifest in view.manifests:
        kinds.setdefault(manifest["folder"].split("/")[0], []).append(manifest)
    stages = []
    for kind, manifests in kinds.items():
        seconds = [manifest.get("seconds") or 0.0 for manifest in manifests]
        memory = max(manifest.get("peak_memory_bytes") or 0 for manifest in manifests)
        stages.append(
            {"name": kind, "count": len(manifests), "total": sum(seconds), "longest": max(seconds), "memory": memory}
        )
    return tuple(stages)


def _versions(view: RunView) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Every version that any stage ran with; more than one for a package that changed between stages."""
    found: dict[str, dict[str, None]] = {}
    for manifest in view.manifests:
        for name, version in (manifest.get("versions") or {}).items():
            found.setdefault(name, {})[str(version)] = None
    return tuple((name, tuple(versions)) for name, versions in sorted(found.items()))
