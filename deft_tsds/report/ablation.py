"""The page of an ablation: one self-contained file with a plot for each swept field and a table that can be sorted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deft_tsds.report import shell
from deft_tsds.report.figures import OTHER_COLOUR, colour, plotly_text
from deft_tsds.report.results import metric_label, percent

_TITLES = {
    "held_out_distance": (
        "held-out distance",
        "Mean distance from a left-out target example to the nearest chosen one; lower is nearer.",
    ),
    "diversity": ("diversity", "One minus the mean cosine of two chosen examples."),
    "near_duplicates": ("near-duplicates", "Share of the chosen with another chosen example at cosine 0.95 or more."),
    "effective_size": ("effective size", "1 / sum of squared probabilities: so many equally likely candidates."),
    "overlap": (
        "overlap",
        "Jaccard index of the chosen with another draw of the reference; the reference's own says how alike two draws "
        "are.",
    ),
}


def title(measure: str) -> str:
    """A measure for a reader: "held-out distance", "term kde", "SARI, all tests"."""
    kind, _, name = measure.partition(".")
    if kind == "term":
        return f"term {name}"
    return f"{metric_label(kind)}, {'all tests' if name == 'all' else name}" if name else _TITLES[measure][0]


def meaning(measure: str) -> str:
    """One sentence on what a measure is."""
    kind, _, name = measure.partition(".")
    if kind == "term":
        return f"The term {name} at the plan, without its weight; also where it is left out of the objective."
    return "The score after fine-tuning on the choice." if name else _TITLES[measure][1]


def measures(table: Mapping[str, Any]) -> list[str]:
    """All measures of a table, each once: scores, what is known of the choice, terms."""
    found = dict.fromkeys(measure for cell in table["cells"] for measure in cell["measures"])
    scores = [measure for measure in found if measure in table["copy"]]
    choice = [measure for measure in _TITLES if measure in found]
    return [*scores, *choice, *(measure for measure in found if measure.startswith("term."))]


def headings(table: Mapping[str, Any]) -> dict[str, str]:
    """The measures that fit on a terminal, with their titles: the mean score, and all but terms and single tests."""
    kept = [name for name in measures(table) if name in _TITLES or name.endswith(".all")]
    return {name: title(name) for name in kept}


def write_ablation(table: Mapping[str, Any], path: str | Path, *, command: Sequence[str] = ()) -> Path:
    """Write the page of what `deft_tsds.studies.ablation.ablate` returned; `command` is what made it."""
    shown = measures(table)
    figures: dict[str, Any] = {}
    sweeps, drops = [], []
    for swept in table["paths"]:
        plots = {f"sweep-{swept}-{name}": sweep_figure(table, swept, name) for name in shown}
        figures |= plots
        sweeps.append((swept, list(plots)))
    for name in shown:
        if plot := drop_figure(table, name):
            figures[f"drop-{name}"] = plot
            drops.append(f"drop-{name}")
    page = shell.render(
        "ablation.html",
        filters={
            "number": number,
            "interval": interval,
            "short": _short,
            "percent": percent,
            "title": title,
            "meaning": meaning,
        },
        plots=figures,
        styles=["style.css", "ablation.css"],
        scripts=["page.js", "sortable.js"],
        notices=[table["notice"]],
        table=table,
        measures=shown,
        headline=headline(table, shown[0]),
        sweeps=sweeps,
        drops=drops,
        groups=list(table["pool"]["groups"].items())[:24],
        command=" ".join(command),
    )
    return shell.write(page, path)


def number(value: float, sign: bool = False) -> str:
    """A number with three or four figures: 0.0132, 273, +1.8."""
    digits = 3 if value == 0 or not math.isfinite(value) else max(0, 3 - math.floor(math.log10(abs(value))) - 1)
    return f"{value:{'+' if sign else ''}.{min(digits, 6)}f}"


def interval(found: Mapping[str, Any]) -> str:
    """[low, high], or what there is instead of an interval."""
    return "(one seed)" if found["low"] is None else f"[{number(found['low'])}, {number(found['high'])}]"


def headline(table: Mapping[str, Any], measure: str) -> list[str]:
    """The findings on one measure, in sentences: which cells are shown to differ from the reference, and which not."""
    reference, *others = table["cells"]
    value = reference["measures"][measure]
    sentences = [f"{reference['name'].capitalize()}: {title(measure)} {number(value['value'])} {interval(value)}."]
    silent = []
    for cell in others:
        found = cell["differences"].get(measure)
        if found and found["verdict"] in ("higher", "lower"):
            sentences.append(f"{cell['name']}: {found['verdict']}, {number(found['value'], True)} {interval(found)}.")
        else:
            silent.append(cell["name"])
    if silent:
        why = "one seed shows none" if table["seeds"] == 1 else "no difference shown"
        names = "; ".join([*silent[:12], *(["…"] if len(silent) > 12 else [])])
        sentences.append(f"{len(silent)} of {len(others)} cells, {why}: {names}.")
    return sentences


def sweep_figure(table: Mapping[str, Any], path: str, measure: str) -> dict[str, Any]:
    """A measure against a swept field, values evenly spaced in their order; a line for each value of other fields."""
    cells = [cell for cell in table["cells"] if cell["dropped"] is None and measure in cell["measures"]]
    lines: dict[str, list[Any]] = {}
    for cell in cells:
        others = ", ".join(f"{_short(p)}={v}" for p, v in cell["values"].items() if p != path)
        lines.setdefault(others, []).append(cell)
    order = [_label(value) for value in sorted((cell["values"][path] for cell in cells), key=_order)]
    reference = table["cells"][0]
    traces = []
    for place, (others, members) in enumerate(lines.items()):
        members = sorted(members, key=lambda cell: _order(cell["values"][path]))
        values = [cell["measures"][measure] for cell in members]
        shade = colour(place)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plotly_text(others),
                "showlegend": len(lines) > 1,
                "x": [_label(cell["values"][path]) for cell in members],
                "y": [value["value"] for value in values],
                "error_y": _bars(values),
                "line": {"color": shade, "width": 1.6},
                "marker": {
                    "color": shade,
                    "size": [10 if cell is reference else 6 for cell in members],
                    "symbol": ["diamond" if cell is reference else "circle" for cell in members],
                },
                "text": [
                    plotly_text(f"{cell['name']}: {number(v['value'])} {interval(v)}", 120)
                    for cell, v in zip(members, values, strict=True)
                ],
                "hoverinfo": "text",
            }
        )
    return {
        "data": traces,
        "layout": {
            "xaxis": {
                "type": "category",
                "categoryorder": "array",
                "categoryarray": list(dict.fromkeys(order)),
                "title": {"text": plotly_text(_short(path))},
            },
            "yaxis": {"title": {"text": plotly_text(title(measure))}},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"l": 56, "r": 12, "t": 12, "b": 44},
        },
    }


def drop_figure(table: Mapping[str, Any], measure: str) -> dict[str, Any] | None:
    """The paired difference to the reference for each term that is left out; None where there is none."""
    cells = [cell for cell in table["cells"] if cell["dropped"] is not None and measure in cell["differences"]]
    if not cells:
        return None
    values = [cell["differences"][measure] for cell in cells]
    shown = [value["verdict"] in ("higher", "lower") for value in values]
    labels = [plotly_text(cell["name"], 40) for cell in cells]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [value["value"] for value in values],
        "y": labels,
        "error_x": _bars(values),
        "marker": {"color": colour(1), "size": 9, "symbol": ["circle" if each else "circle-open" for each in shown]},
        "text": [
            plotly_text(f"{cell['name']}: {number(v['value'], True)} {interval(v)}, {v['verdict']}", 120)
            for cell, v in zip(cells, values, strict=True)
        ],
        "hoverinfo": "text",
        "showlegend": False,
    }
    return {
        "data": [trace],
        "layout": {
            "xaxis": {
                "title": {"text": plotly_text(title(measure))},
                "nticks": 4,
                "zeroline": True,
                "zerolinecolor": OTHER_COLOUR,
                "zerolinewidth": 1.5,
            },
            "yaxis": {"type": "category", "autorange": "reversed"},
            "margin": {"l": 90, "r": 12, "t": 12, "b": 44},
        },
    }


def _bars(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Error bars in Plotly's form; none where there is no interval."""
    has = all(value["low"] is not None for value in values)
    return {
        "type": "data",
        "visible": has,
        "symmetric": False,
        "array": [value["high"] - value["value"] for value in values] if has else [],
        "arrayminus": [value["value"] - value["low"] for value in values] if has else [],
        "thickness": 1.4,
        "width": 4,
    }


def _short(path: str) -> str:
    """The end of a path, from the objective or the selector on."""
    return (path.partition(".selector.")[2] or path).removeprefix("objective.")


def _order(value: Any) -> tuple[int, float, str]:
    """The order of swept values for a reader: numbers by size, then all else by its text."""
    return (0, float(value), "") if _is_number(value) else (1, 0.0, str(value))


def _label(value: Any) -> str:
    return plotly_text(f"{value:g}" if _is_number(value) else str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
