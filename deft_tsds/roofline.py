"""How long TSDS would take, and why: a roofline of each stage on a machine, from sizes and rates alone.

A stage keeps several resources busy, each for its work over its rate. Where they work at once (a pod: storage, hosts,
links and chips pass blocks on), the stage takes as long as the busiest, the bottleneck; where one pair of cores does
all (a laptop), it takes their sum. The search is a pipeline of blocks with one read ahead: its first block is read
before any work, its last is worked on after all reading.

What is counted, for N candidates of D numbers, M queries, K neighbours, U shortlisted:

    search        storage: N D numbers as kept, once. Hosts: decoded to float32, 4 N D bytes written and read, twice.
                  Links to the chips: 4 N D bytes. Products: 2 M N (D + 1), times the passes that float32 takes. Memory
                  of the chips: candidates once for every tile of 512 queries, and M N scores written, compared and
                  marked. Between chips: the M K keys of 8 bytes of every chip, gathered.
    gather        the shortlist read once more: U rows where they are far apart, all N where they lie close (a store
                  answers slowly, so that what lies between two rows is read with them).
    density       cells: 4 U G D and a sketch of U D^2 / 2, with G cells; pairs: `near` U^2 D, `near` the share of the
                  shortlist's pairs that no bound rules out (it depends on the data: 1 is the worst, 0.03 was measured).
    plan, draw    on one host: 60 bytes for each of M K places, 64 for each of N probabilities.

Nothing is counted for latency, compilation, waiting for each other, or a selection of the smallest scores that needs
more than one look at them: real times lie above. `scripts/scale.py` sets the prediction beside what was measured here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_TILE = 512
_CELL, _CELLS = 250, 512
_BLOCK_BYTES = 256 * 2**20
_SURVIVOR_COST = 250  # as in geometry.neighbors: more neighbours than N / 250 are found by products in float64
_CLOSE_BYTES = 2**20  # as in shards: rows of a far store that lie closer are read with what is between them


@dataclass(frozen=True)
class Sizes:
    """A selection."""

    candidates: int
    queries: int
    dimensions: int = 384
    neighbors: int = 5000
    item: int = 2
    """Bytes of a number as it is kept."""
    shortlist: int | None = None
    """U; by default its upper bound min(N, M K)."""
    near: float = 0.03
    """Share of the shortlist's pairs that are measured."""

    @property
    def u(self) -> int:
        bound = min(self.candidates, self.queries * self.neighbors)
        return bound if self.shortlist is None else self.shortlist

    @property
    def stored(self) -> int:
        return self.candidates * self.dimensions * self.item


@dataclass(frozen=True)
class Machine:
    """Rates in units a second: of a chip, of a host, or of a link of one of them."""

    name: str
    chips: int
    hosts: int
    products: float
    """Operations of a chip in one pass."""
    memory: float
    """Bytes of a chip's memory."""
    storage: float
    """Bytes that a host reads from where the pool lies."""
    host_memory: float
    """Bytes of a host's memory."""
    to_chips: float = math.inf
    """Bytes from a host to all its chips together."""
    between: float = math.inf
    """Bytes that a chip takes in from others."""
    passes: float = 1.0
    """Products of the chip's width that one float32 product takes."""
    double: float = 0.0
    """Operations in float64, where a search for many neighbours uses that; 0 where it never does."""
    far: bool = True
    """Whether the pool lies in a store that answers slowly."""
    overlaps: bool = True
    """Whether its resources work at the same time."""
    chip_bytes: float = 16e9
    host_bytes: float = 512 * 2**30
    price: float = 0.0
    """Of a chip for an hour."""


# cloud.google.com/tpu/docs/v5e: 197 TFLOP/s bfloat16, 16 GB at 819 GB/s, 400 GB/s between chips both ways together,
# 8 chips a host, 512 GiB a host, 2 x 100 Gbit/s a host. A float32 product at HIGHEST precision is six of bfloat16.
# Assumptions: 2.5 GB/s a host from the object store (a tenth of its network), 32 GB/s from a host to its chips,
# 100 GB/s of a host's memory, 1.20 dollars for a chip-hour on demand.
V5E_256 = Machine(
    name="v5e-256",
    chips=256,
    hosts=32,
    products=197e12,
    memory=819e9,
    storage=2.5e9,
    host_memory=100e9,
    to_chips=32e9,
    between=200e9,
    passes=6,
    price=1.20,
)


@dataclass(frozen=True)
class Stage:
    """One stage: the seconds for which each resource is busy, and the seconds that it takes."""

    name: str
    busy: dict[str, float]
    seconds: float

    @property
    def bottleneck(self) -> str:
        return max(self.busy, key=lambda name: self.busy[name])


@dataclass(frozen=True)
class Prediction:
    """All stages, and what a chip and a host hold at the worst."""

    stages: tuple[Stage, ...]
    chip_bytes: float
    host_bytes: float
    cost: float

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


def predict(sizes: Sizes, machine: Machine, *, density_chips: int | None = None) -> Prediction:
    """The roofline of a selection.

    Args:
        sizes: N, M, D, K and what the data decide.
        machine: its rates.
        density_chips: how many chips share the density; all by default.
    """
    n, m, d, k, u = sizes.candidates, sizes.queries, sizes.dimensions, min(sizes.neighbors, sizes.candidates), sizes.u
    wide = machine.double > 0 and k * _SURVIVOR_COST > n
    score = 8 if wide else 4
    rate = machine.double if wide else machine.products / machine.passes
    pool = 4 * n * d
    search = {
        "storage": sizes.stored / (machine.hosts * machine.storage),
        "host memory": 4 * pool / (machine.hosts * machine.host_memory),
        "host to chips": pool / (machine.hosts * machine.to_chips),
        "products": 2 * m * n * (d + 1) / (machine.chips * rate),
        "chip memory": (-(-m // _TILE) * pool + (2 * score + 3) * m * n) / (machine.chips * machine.memory),
        "between chips": machine.chips * 8 * m * k / machine.between,
    }
    blocks = max(1, math.ceil(pool / (machine.hosts * _BLOCK_BYTES)))
    stages = [Stage("search", search, _pipeline(search, blocks, machine.overlaps))]

    # Rows at random are near each other in a far store as soon as their mean distance is less than the gap read over.
    dense = machine.far and sizes.stored / u < _CLOSE_BYTES
    read = sizes.stored if dense else u * d * sizes.item
    gather = {
        "storage": read / (machine.hosts * machine.storage),
        "host memory": 4 * u * d * 4 / machine.host_memory,
    }
    stages.append(Stage("gather", gather, _together(gather, machine.overlaps)))

    cells = max(1, min(_CELLS, u // _CELL, 4 * math.isqrt(u) // 5))
    chips = machine.chips if density_chips is None else density_chips
    work = 4.0 * u * cells * d + u * d * d / 2 + sizes.near * u * u * d
    pairs = sizes.near * u * u / 2
    density = {
        "products": work * machine.passes / (chips * machine.products),
        "chip memory": (4 * u * (cells + 2 * d) + 12 * pairs) / (chips * machine.memory),
    }
    stages.append(Stage("density", density, _together(density, machine.overlaps)))

    draw = {"host memory": (60 * m * k + 64 * n) / machine.host_memory}
    stages.append(Stage("plan, draw", draw, draw["host memory"]))

    seconds = sum(stage.seconds for stage in stages)
    chip_bytes = max(2 * _BLOCK_BYTES * machine.hosts / machine.chips, 8 * m * k, 4 * u * d / chips)
    host_bytes = max(4 * u * (2.5 * d + cells / 2), 24 * m * k + 64 * n)
    return Prediction(tuple(stages), chip_bytes, host_bytes, seconds * machine.chips * machine.price / 3600)


def _pipeline(busy: dict[str, float], blocks: int, overlaps: bool) -> float:
    """Blocks that are read while the one before is worked on."""
    if not overlaps:
        return sum(busy.values())
    once = busy["between chips"]  # at the end
    read = busy["storage"] / blocks
    work = max(seconds for name, seconds in busy.items() if name not in ("storage", "between chips")) / blocks
    return read + (blocks - 1) * max(read, work) + work + once


def _together(busy: dict[str, float], overlaps: bool) -> float:
    return max(busy.values()) if overlaps else sum(busy.values())
