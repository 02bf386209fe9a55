"""How long the report of a large pool takes to load in headless Chromium, beside the same points on a page by Plotly.

    python benchmarks/report_page.py                       # a made-up run of 100,000 examples
    python benchmarks/report_page.py --points 20000 --rounds 5
    python benchmarks/report_page.py --page runs/demo/report/report.html

Times count from the start of the navigation to file://. "interactive" is the end of DOMContentLoaded: every table, link
and switch works. "map" is the second frame after the map is drawn, the page having been opened at it. The peers are one
figure of all points in five groups as `plotly.io.write_html` writes it, by SVG and by WebGL, which headless Chromium
without a GPU does in software.
"""

from __future__ import annotations

import importlib
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import print_table

# Notes when the map has been drawn and its frame was shown; part of no page.
_WATCH = """
const look = () => document.querySelector("SELECTOR")
  ? requestAnimationFrame(() => requestAnimationFrame(() => { window.drawnAt = performance.now(); }))
  : requestAnimationFrame(look);
requestAnimationFrame(look);
"""


@dataclass(frozen=True)
class Settings:
    """What to load, and how often."""

    points: int = 100_000
    """Examples of the made-up pool."""
    rounds: int = 5
    """How often each page is loaded, in a browser context of its own; the median is shown."""
    page: Path | None = None
    """A report that is there already, in place of a made-up one; then there is no peer."""


def report(folder: Path, points: int) -> Path:
    """The page of a made-up run, the same that the tests make up."""
    from deft_tsds.report import write_report

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    fake = importlib.import_module("fake_run")
    return write_report(fake.write_fake_run(folder / "run", pool=fake.fake_examples(points), seeds=(0,)))


def by_plotly(folder: Path, points: int, kind: str) -> Path:
    """The same number of points, as Plotly writes a page."""
    from plotly import graph_objects

    rng = np.random.default_rng(0)
    where = rng.standard_normal((points, 2)).round(3)
    figure = graph_objects.Figure()
    for group in range(5):
        x, y = where[group::5].T
        figure.add_trace({"type": kind, "mode": "markers", "x": x, "y": y, "marker": {"size": 3}})
    path = folder / f"{kind}.html"
    figure.write_html(path, include_plotlyjs=True)
    return path


def load(started: Any, path: Path, selector: str) -> tuple[float, float]:
    """Seconds to interactive, and to the map."""
    context = started.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(_WATCH.replace("SELECTOR", selector))
    page = context.new_page()
    page.goto(f"{path.resolve().as_uri()}#map", wait_until="load")
    # Asked again and again, since the policy of a report allows no waiting for an expression, which would be `eval`.
    while (drawn := page.evaluate("window.drawnAt")) is None:
        page.wait_for_timeout(20)
    interactive = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    context.close()
    return interactive / 1000, drawn / 1000


def main(settings: Settings) -> None:
    """Load the pages in turns and print the table."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        raise SystemExit("no Chromium on the PATH: install chromium or google-chrome.")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        folder = Path(name)
        ours = settings.page or report(folder, settings.points)
        pages = {"report": (ours, "[data-figure=map] .main-svg")}
        if settings.page is None:
            pages["Plotly, SVG"] = (by_plotly(folder, settings.points, "scatter"), ".main-svg .points")
            pages["Plotly, WebGL"] = (by_plotly(folder, settings.points, "scattergl"), ".gl-canvas")
        found: dict[str, list[Sequence[float]]] = {name: [] for name in pages}
        for _ in range(settings.rounds):
            for name, (path, selector) in pages.items():
                found[name].append(load(started, path, selector))
        rows = []
        for name, (path, _) in pages.items():
            interactive, drawn = (statistics.median(times) for times in zip(*found[name], strict=True))
            rows.append([name, f"{interactive:.2f}", f"{drawn:.2f}", f"{path.stat().st_size / 1e6:.1f}"])
        what = f"{settings.points:,} points" if settings.page is None else str(settings.page)
        print_table(f"{what}, median of {settings.rounds} loads", ["page", "interactive s", "map s", "MB"], rows)
        started.close()


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings, description=__doc__))
