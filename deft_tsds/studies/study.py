"""A study: a config that says what to compare, one command that fills in what is missing, one table at the end."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deft_tsds.runs import atomic_write, write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study(abc.ABC):
    """What `scripts/experiment.py` runs. Each cell is a stage of the run folder: a study that was stopped goes on."""

    seed: int = 0
    """The one seed of the run."""
    workdir: Path = Path("runs/study")
    """The run folder."""

    @abc.abstractmethod
    def fill(self) -> dict[str, Any]:
        """Run what is missing, and return everything that the table says as plain JSON."""

    @abc.abstractmethod
    def markdown(self, found: Mapping[str, Any]) -> str:
        """The table as Markdown."""

    def figures(self, found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Plotly figures by title, as plain JSON; none by default."""
        del found
        return {}

    def write(self) -> str:
        """Fill the table and write `table.json`, `table.md` and, with figures, `figures.html`; return the Markdown."""
        found = self.fill()
        text = self.markdown(found) + "\n"
        write_json(self.workdir / "table.json", found)
        with atomic_write(self.workdir / "table.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
        if figures := self.figures(found):
            write_figures(figures, self.workdir / "figures.html")
        return text


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is words and whose others are numbers."""
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "--:|" * (len(titles) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def shown(found: Mapping[str, Any] | None, digits: int = 1, sign: str = "") -> str:
    """A value with its interval: "53.2 [52.0, 54.1]"; alone where a single seed has none to give, or nothing varies."""
    if found is None:
        return "–"
    ends = [None if found[end] is None else round(found[end], digits) + 0.0 for end in ("value", "low", "high")]
    value, low, high = ("" if end is None else f"{end:{sign}.{digits}f}" for end in ends)
    return value if low == high else f"{value} [{low}, {high}]"


def write_figures(figures: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One self-contained HTML file with the figures one below another."""
    import plotly.io  # a second to import

    parts = []
    for place, (title, figure) in enumerate(figures.items()):
        layout = {**figure["layout"], "title": {"text": title}}
        whole = {"data": figure["data"], "layout": layout}
        parts.append(plotly.io.to_html(whole, full_html=False, include_plotlyjs=place == 0, validate=True))
    with atomic_write(path) as temporary:
        temporary.write_text(f'<!doctype html><meta charset="utf-8">{"".join(parts)}\n', encoding="utf-8")
