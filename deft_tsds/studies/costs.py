"""What a selection costs: seconds and memory, each contender in a process of its own; and what is worth its cost."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from deft_tsds.runs import Run, plain, stage_key, track
from deft_tsds.studies.chooser import Chooser, Contender
from deft_tsds.studies.statistics import estimate
from deft_tsds.studies.targeted import Features, Labelled, Target
from deft_tsds.studies.targeted_table import LEVEL


def measure_costs(
    pool: Labelled, target: Target, contenders: Mapping[str, Contender], run: Run, *, budget: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Time every contender on one target, from its representation to a `Selection` with reasons.

    The representation is made before, but for the counts of n-grams. The first call compiles, and is told apart.

    Returns:
        By contender: `seconds` of a later call with Student's interval over `rounds`, `first_seconds`, and
        `peak_bytes`, the most memory that the process held in the calls above what it held before them (None where the
        system does not say).
    """
    found, fingerprint = {}, pool.fingerprint()
    for name, contender in track(list(contenders.items()), "timing"):

        def work(folder: Path, contender: Contender = contender) -> dict[str, Any]:
            del folder
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
                return apart.submit(_time, pool, target, contender, budget, rounds, run.seed).result()

        settings = {
            "selector": plain(contender.selector),
            "size": contender.size,
            "sees": contender.sees,
            "budget": budget,
            "rounds": rounds,
            "target": target.name,
            "pool": fingerprint,
        }
        found[name] = dict(run.do(f"costs/{name}", work, settings=settings).results)
    return found


def _time(pool: Labelled, target: Target, contender: Contender, budget: int, rounds: int, seed: int) -> dict[str, Any]:
    before, seconds = _high_water_bytes(reset=True), []
    for call in range(1 + rounds):
        key, start = stage_key(seed, "costs", str(call)), time.perf_counter()
        Chooser(contender, Features(pool).of(target, contender.sees)).select(budget, key)
        seconds.append(time.perf_counter() - start)
    after = _high_water_bytes()
    return {
        "seconds": estimate(seconds[1:], level=LEVEL)._asdict(),
        "first_seconds": seconds[0],
        "peak_bytes": None if before is None or after is None else after - before,
    }


def _high_water_bytes(reset: bool = False) -> int | None:
    """The most memory this process has held; Linux lets it set the mark back to what it holds now, others do not."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])


def on_the_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of (cost, quality) points, whether none is at most as costly and at least as good, and better in one of them."""
    return [
        not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points) for cost, quality in points
    ]
