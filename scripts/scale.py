"""How long TSDS takes at any size, by a roofline: here, beside what was measured; and on a pod. Arithmetic only.

    python scripts/scale.py                                  # a pod: 150 million and 10 billion examples
    python scripts/scale.py --measured FILE                  # this machine: its rates are measured first (10 s)
    python scripts/scale.py --measured - --rates 180e9 90e9 27e9
    python scripts/scale.py --price 0.6 --storage 10e9

FILE holds a line of JSON a run, as `benchmarks/larger_than_memory.py` prints them, with "queries" and "neighbors" where
they are not 200 and 5,000. The README's growth table is there already.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from deft_tsds.arrays import usable_cpus
from deft_tsds.roofline import V5E_256, Machine, Prediction, Sizes, predict


@dataclass(frozen=True)
class Settings:
    """What to predict."""

    measured: Path | None = None
    """Runs on this machine to set beside the prediction; "-" has the README's alone."""
    rates: tuple[float, float, float] | None = None
    """Of this machine, where they were measured at another time: operations a second of float32 products and of
    float64 ones, bytes a second of a copy. Other work beside this makes them too low."""
    candidates: tuple[int, ...] = (150_000_000, 10_000_000_000)
    """N, on the pod."""
    queries: tuple[int, ...] = (1_000, 10_000)
    """M, on the pod."""
    neighbors: int = 5_000
    """K."""
    dimensions: int = 384
    """D."""
    near: float = 0.03
    """Share of the shortlist's pairs whose distance is taken."""
    price: float = V5E_256.price
    """Dollars for a chip-hour. An assumption."""
    storage: float = V5E_256.storage
    """Bytes a second that a host reads from the object store. An assumption."""
    parameters: float = 22e6
    """Of the encoder, for the time to embed."""
    tokens: int = 128
    """Of an example, for the time to embed."""
    utilisation: float = 0.4
    """Share of the chips' peak that embedding reaches. A guess."""


README_GROWTH = [
    {"rows": n, "queries": 1000, "item": 4, "shortlist": n, "seconds": {"neighbours": search, "density": density}}
    for n, search, density in ((100_000, 2.7, 2.3), (500_000, 9.7, 21.9), (1_000_000, 16.3, 61.4))
]
"""README, "Speed": M = 1,000, K = 5,000, float32 memory-map; nearly every row is shortlisted."""


def best(work: Callable[[], object], rounds: int = 4) -> float:
    """Seconds of the fastest of some calls."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measured_rates() -> tuple[float, float, float]:
    """Products in both widths, and a copy by all cores."""
    rng = np.random.default_rng(0)
    rates = {}
    for dtype in (np.float32, np.float64):
        a = rng.standard_normal((512, 384)).astype(dtype)
        b = rng.standard_normal((4096, 384)).astype(dtype)
        out = np.empty((512, 4096), dtype)
        rates[dtype] = 2 * out.size * 384 / best(lambda a=a, b=b, out=out: np.matmul(a, b.T, out=out), 40)
    parts = [(np.ones(2**24, np.float32), np.empty(2**24, np.float32)) for _ in range(usable_cpus())]
    with ThreadPoolExecutor(len(parts)) as threads:
        seconds = best(lambda: list(threads.map(lambda pair: np.copyto(pair[1], pair[0]), parts)))
    copy = sum(2 * source.nbytes for source, _ in parts) / seconds
    return rates[np.float32], rates[np.float64], copy


def this_machine(rates: tuple[float, float, float] | None) -> Machine:
    """This machine by its rates, which are measured where none are given."""
    single, double, copy = rates or measured_rates()
    return Machine(
        name=f"this machine ({single / 1e9:.0f} and {double / 1e9:.0f} GFLOP/s, {copy / 1e9:.0f} GB/s)",
        chips=1,
        hosts=1,
        products=single,
        double=double,
        memory=copy,
        host_memory=copy,
        storage=copy / 2,  # from the page cache: a copy
        far=False,
        overlaps=False,
    )


def here(settings: Settings, console: Console) -> None:
    """Predicted over measured, for every run."""
    machine = this_machine(settings.rates)
    runs = list(README_GROWTH)
    if settings.measured is not None and str(settings.measured) != "-":
        runs += [json.loads(line) for line in settings.measured.read_text().splitlines() if line.startswith("{")]

    def sizes(run: dict, near: float) -> Sizes:
        m, k = run.get("queries", 200), run.get("neighbors", settings.neighbors)
        return Sizes(run["rows"], m, settings.dimensions, k, run.get("item", 2), run["shortlist"], near)

    def density(run: dict, near: float) -> float:
        return next(stage.seconds for stage in predict(sizes(run, near), machine).stages if stage.name == "density")

    # The one number that the data decide, from one run: the largest of the README.
    fixed, slope = density(README_GROWTH[-1], 0.0), density(README_GROWTH[-1], 1.0)
    near = (README_GROWTH[-1]["seconds"]["density"] - fixed) / (slope - fixed)
    table = Table("N", "M", "U", "search s", "measured", "ratio", "density s", "measured", "ratio")
    table.title = f"{machine.name}\nnear = {near:.4f}, fitted to the density at N = 1,000,000 of the README"
    table.title_justify = "left"
    for run in runs:
        found = {stage.name: stage.seconds for stage in predict(sizes(run, near), machine).stages}
        search, sums = run["seconds"]["neighbours"], run["seconds"]["density"]
        table.add_row(
            f"{run['rows']:,}",
            f"{run.get('queries', 200):,}",
            f"{run['shortlist']:,}",
            f"{found['search']:.1f}",
            f"{search:.1f}",
            f"{found['search'] / search:.2f}",
            f"{found['density']:.1f}",
            f"{sums:.1f}",
            f"{found['density'] / sums:.2f}",
        )
    console.print(table)


def pod(settings: Settings, console: Console) -> None:
    """Seconds by resource, memory and cost, on v5e-256."""
    machine = dataclasses.replace(V5E_256, price=settings.price, storage=settings.storage)
    table = Table("N", "M", "stage", "seconds", "bottleneck", "busy seconds by resource")
    table.title = (
        f"{machine.name}: K = {settings.neighbors:,}, D = {settings.dimensions}, float16, near = {settings.near:g}, "
        f"{machine.storage / 1e9:g} GB/s a host from storage, {machine.price:g} dollars a chip-hour"
    )
    table.title_justify = "left"
    for n in settings.candidates:
        embed = (
            2 * settings.parameters * settings.tokens * n / (machine.chips * machine.products * settings.utilisation)
        )
        table.add_row(
            f"{n:,}", "", "embed, once", f"{embed:,.0f}", "products", f"{dollars(embed, machine):,.2f} dollars"
        )
        for m in settings.queries:
            sizes = Sizes(n, m, settings.dimensions, settings.neighbors, near=settings.near)
            found = predict(sizes, machine)
            for stage in found.stages:
                busy = ", ".join(f"{name} {seconds:.3g}" for name, seconds in stage.busy.items())
                table.add_row("", f"{m:,}", stage.name, f"{stage.seconds:,.2f}", stage.bottleneck, busy)
            table.add_row("", f"{m:,}", "all", f"{found.seconds:,.1f}", "", summary(sizes, found, machine))
            alone = next(s for s in predict(sizes, machine, density_chips=1).stages if s.name == "density")
            table.add_row("", "", "density, one chip", f"{alone.seconds:,.0f}", alone.bottleneck, "")
        table.add_section()
    console.print(table)


def dollars(seconds: float, machine: Machine) -> float:
    return seconds * machine.chips * machine.price / 3600


def summary(sizes: Sizes, found: Prediction, machine: Machine) -> str:
    fits = found.host_bytes <= machine.host_bytes and found.chip_bytes <= machine.chip_bytes
    held = f"a chip holds {found.chip_bytes / 1e9:.1f} GB, a host {found.host_bytes / 1e9:,.0f} GB"
    kept = f"{sizes.stored / 1e9:,.0f} GB kept; U = {sizes.u:,}"
    return f"{found.cost:,.2f} dollars; {kept}; {held}: {'fits' if fits else 'DOES NOT FIT'}"


def main(settings: Settings) -> None:
    console = Console(width=170)
    if settings.measured is not None:
        here(settings, console)
    else:
        pod(settings, console)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
