"""The page that shows several representations of the same texts side by side: maps, and a table of what they see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds.report import shell
from deft_tsds.report.ablation import number
from deft_tsds.report.figures import COLOURS, OTHER_COLOUR, hover_text, plotly_text
from deft_tsds.report.results import percent
from deft_tsds.studies.representations import Inspection

MEASURES = {
    "purity": (
        "purity",
        "Share of texts with the commonest label of their cluster: as many clusters as labels, spherical k-means, mean "
        "over its seeds with the lowest and highest.",
    ),
    "nmi": ("NMI", "Normalised mutual information of these clusters and the labels: 0 independent, 1 the same."),
    "silhouette": (
        "silhouette",
        "Of the labels, with cosine distances, from -1 to 1; below 0 texts lie nearer to another label than to their "
        "own.",
    ),
    "neighbor_agreement": ("nearest agrees", "Share of texts whose nearest other text has the same label."),
    "anisotropy": (
        "anisotropy",
        "Mean cosine of two different texts: near 0 where directions are spread evenly, near 1 where all lie in a "
        "narrow cone.",
    ),
    "spread": (
        "directions",
        "Participation ratio of the variances along the principal axes: as many equal directions would hold the same "
        "variance.",
    ),
    "repeated": ("repeated", "Share of texts whose vector equals that of an earlier text."),
}
"""Title and meaning of each measure, in the order of the table."""


def cells(found: Inspection) -> list[tuple[float, str]]:
    """The measures of one representation, each with its text, then its near-duplicates."""
    shown = []
    for name in MEASURES:
        value = getattr(found, name)
        if isinstance(value, list):
            mean = float(np.mean(value))
            shown.append((mean, f"{mean:.3f} [{min(value):.3f}, {max(value):.3f}]"))
        else:
            shown.append((value, percent(value) if name == "repeated" else number(value)))
    return shown + [
        (each.share, f"{percent(each.share)} (largest group {each.largest:,})") for each in found.duplicates
    ]


def headings(found: Inspection) -> list[str]:
    """The titles of `cells`."""
    return [title for title, _ in MEASURES.values()] + [f"cosine {each.cosine:g}" for each in found.duplicates]


def write_representations(
    found: Mapping[str, Inspection],
    maps: Mapping[str, np.ndarray],
    path: str | Path,
    *,
    texts: Sequence[str],
    labels: Sequence[str],
    command: Sequence[str] = (),
) -> Path:
    """Write the page.

    Args:
        found: what was measured, by the name of the representation.
        maps: float [n, 2] by the same names: where the n texts of the maps lie.
        path: the HTML file.
        texts, labels: of the n texts of the maps.
        command: what made the page.
    """
    first = next(iter(found.values()))
    plots = {f"map-{place}": map_figure(maps[name], texts, labels) for place, name in enumerate(found)}
    page = shell.render(
        "representations.html",
        filters={},
        plots=plots,
        styles=["style.css", "ablation.css", "representations.css"],
        scripts=["page.js", "sortable.js"],
        maps=list(zip(plots, found, strict=True)),
        legend=_legend(labels),
        shown=len(texts),
        first=first,
        headings=headings(first),
        table=[(name, cells(each)) for name, each in found.items()],
        meanings=list(MEASURES.values()),
        command=" ".join(command),
    )
    return shell.write(page, path)


def map_figure(points_nx2: np.ndarray, texts: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """One map: a trace a label, the commonest first; labels beyond the colours share one."""
    label_n, legend = np.asarray(labels), _legend(labels)
    known = [label for label, _ in legend if label is not None]
    traces = []
    for label, shade in legend:
        members = np.flatnonzero(~np.isin(label_n, known) if label is None else label_n == label)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plotly_text(label or "other labels", 28),
                "x": [round(float(x), 3) for x in points_nx2[members, 0]],
                "y": [round(float(y), 3) for y in points_nx2[members, 1]],
                "text": [
                    f"<b>{plotly_text(label_n[row], 40)}</b><br>{hover_text(texts[row], 220)}"
                    for row in members.tolist()
                ],
                "hoverinfo": "text",
                "marker": {"size": 4, "color": shade},
            }
        )
    axis = {"visible": False, "showgrid": False, "zeroline": False}
    layout = {
        "xaxis": axis,
        "yaxis": {**axis, "scaleanchor": "x"},
        "showlegend": False,
        "margin": {"l": 4, "r": 4, "t": 4, "b": 4},
        "hovermode": "closest",
        "dragmode": "pan",
    }
    return {"data": traces, "layout": layout}


def _legend(labels: Sequence[str]) -> list[tuple[str | None, str]]:
    """Each label with its colour, the commonest first; None stands for all that have no colour of their own."""
    names, counts = np.unique(np.asarray(labels), return_counts=True)
    ranked = [str(name) for name in names[np.argsort(-counts, kind="stable")]]
    shown: list[tuple[str | None, str]] = list(zip(ranked, COLOURS, strict=False))
    return [*shown, (None, OTHER_COLOUR)] if len(ranked) > len(COLOURS) else shown
