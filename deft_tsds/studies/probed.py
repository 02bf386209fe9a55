"""Cells of a budget curve that are scored by a probe: what it learns from each choice, target by target.

The pool and the targets are those of `studies.targeted`. A cell is one arm at one budget on one target, in all seeds:
the rows of the target's own data set among those chosen train the probe, and the target's test rows score it. What
draws nothing is run once, and that run stands for every seed. A choice that knows of no target is the same for all.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds.runs import Run, atomic_write, plain, stage_key
from deft_tsds.selectors import Full, table
from deft_tsds.studies.chooser import Chooser, Contender
from deft_tsds.studies.curve import Cells, Facts
from deft_tsds.studies.gradients import GradientsOf
from deft_tsds.studies.labelled_text import LabelledText, Texts, read, with_gradients
from deft_tsds.studies.probe import MACRO_F1, outcomes, predict
from deft_tsds.studies.statistics import Runs
from deft_tsds.studies.targeted import Features, Target, array_hash
from deft_tsds.studies.targeted_table import scored_classes


@dataclass(frozen=True, kw_only=True)
class Probed(Cells):
    """Which contenders, on what text.

    Raises:
        ValueError: no contender, or one seed. `facts`, `full` and `runs` raise all that `read` raises.
    """

    contenders: dict[str, Contender]
    """Ways to choose, by name. Those that see gradients have a part in it with `with_gradients` alone."""
    up_to: dict[str, float] = field(default_factory=dict)
    """By name of a contender, the largest budget that it is asked for, where more would take too long."""
    data: LabelledText = field(default_factory=LabelledText)
    """The texts."""
    with_gradients: bool = False
    """Whether to make gradients, and measure the contenders that see them."""
    gradients: GradientsOf | None = None
    """Gradients of which T5."""
    replicates: int = 5
    """How often what is drawn is measured."""
    level: float = 0.95
    """Coverage of the intervals."""
    resamples: int = 1000
    """Of each bootstrap."""
    seed: int = 0
    """The one seed of the run."""
    workdir: Path = Path("runs/curve")
    """The run folder."""

    def __post_init__(self) -> None:
        if self.replicates < 2:
            raise ValueError(f"replicates is {self.replicates}: a verdict needs several seeds; set --replicates 5.")
        if not self._arms:
            raise ValueError("contenders has nothing but Full: name at least one way to choose fewer.")
        if self.gradients is None and any(each.sees == "gradients" for each in self._arms.values()):
            raise ValueError("a contender sees gradients: say of which T5 by `gradients`.")

    def facts(self) -> Facts:
        return Facts(
            metric=MACRO_F1,
            arms=tuple(self._arms),
            seeds=self.replicates,
            level=self.level,
            resamples=self.resamples,
            seed=self.seed,
            workdir=self.workdir,
            pool=self._size,
            how="A logistic regression on the embeddings was trained on the chosen rows of each target's own data set, "
            f"with their labels, and scored on the target's test rows. Budgets are shares of all {self._size:,} "
            "candidates, of which those data sets are a part. What draws nothing is run once, which stands for every "
            "seed.",
        )

    @property
    def _arms(self) -> dict[str, Contender]:
        return {
            name: each
            for name, each in self.contenders.items()
            if not isinstance(each.selector, Full) and (self.with_gradients or each.sees != "gradients")
        }

    @property
    def _size(self) -> int:
        return len(self._texts.pool.texts)

    @functools.cached_property
    def _run(self) -> Run:
        return Run(self.workdir, self.seed)

    @functools.cached_property
    def _texts(self) -> Texts:
        texts = read(self.data, self._run)
        for target in texts.targets:
            if target.name not in texts.pool.groups:
                raise ValueError(
                    f"the pool has no row of the target {target.name!r}: raise data.limit, or leave it out."
                )
        if self.with_gradients and self.gradients is not None:
            texts = with_gradients(texts, self.gradients, self._run)
        return texts

    @functools.cached_property
    def _features(self) -> Features:
        return Features(self._texts.pool)

    @functools.cached_property
    def _choosers(self) -> dict[tuple[str, str], Chooser]:
        return {}

    @functools.cached_property
    def _chosen(self) -> dict[str, tuple[int, dict[int, np.ndarray]]]:
        """By arm that knows no target: the budget that it was last asked for, and its rows by seed."""
        return {}

    @functools.cached_property
    def _said(self) -> dict[tuple[str, bytes], np.ndarray]:
        """What the probe of a target said, by the rows that it was trained on: often all of them."""
        return {}

    def full(self) -> Runs:
        return self._statistics("full", Contender(Full()), self._size)

    def runs(self, arm: str, budget: float) -> Runs:
        if budget > self.up_to.get(arm, 1.0):
            raise ValueError(f"not asked for more than {self.up_to[arm]:g} of the pool, which takes too long.")
        return self._statistics(arm, self._arms[arm], max(1, round(budget * self._size)))

    def _statistics(self, arm: str, contender: Contender, budget: int) -> Runs:
        """By target, float64 [S, T, 3 C]; what draws nothing is repeated."""
        found = {}
        for target in self._texts.targets:
            classes = scored_classes(self._texts.pool, target)
            said_RxT = self._predictions(arm, contender, target, budget)
            statistics = np.stack([outcomes(said_T, target.test.labels, classes) for said_T in said_RxT])
            found[target.name] = np.broadcast_to(statistics, (self.replicates, *statistics.shape[1:]))
        return found

    def _predictions(self, arm: str, contender: Contender, target: Target, budget: int) -> np.ndarray:
        """What the probe says of the test rows in each run, [R, T]: from the run folder, or made now."""
        pool, seeds = self._texts.pool, self.replicates if contender.drawn else 1

        def work(folder: Path) -> Mapping[str, Any]:
            said, own_rows = [], []
            for seed in range(seeds):
                rows = self._rows(arm, contender, target, budget, seed)
                own = rows[pool.groups[rows] == target.name]
                asked = target.name, own.tobytes()
                if asked not in self._said:
                    train = pool.embeddings_NxD[own], pool.labels[own]
                    self._said[asked] = predict(*train, target.test.embeddings_NxD)
                said.append(self._said[asked])
                own_rows.append(len(own))
            with atomic_write(folder / "predictions.npy") as temporary, temporary.open("wb") as file:
                np.save(file, np.array(said, dtype=np.str_), allow_pickle=False)
            return {"trained_on": own_rows}

        settings: dict[str, Any] = {
            "selector": plain(contender.selector),
            "size": contender.size,
            "sees": contender.sees,
            "budget": budget,
            "seeds": seeds,
            "pool": self._features.fingerprint,
            "queries": target.queries.fingerprint(),
            "test": target.test.fingerprint(),
        }
        if contender.sees == "gradients":
            settings["gradients"] = [self._features.gradients, array_hash(target.queries.gradients_NxG)]
        stage = self._run.do(f"cells/{arm}/{budget}/{target.name}", work, settings=settings)
        return np.load(stage.folder / "predictions.npy", allow_pickle=False)

    def _rows(self, arm: str, contender: Contender, target: Target, budget: int, seed: int) -> np.ndarray:
        if _knows_target(contender):
            key = stage_key(self.seed, "curve", target.name, str(seed))
            return self._chooser(arm, contender, target)(budget, key)
        held, rows = self._chosen.get(arm, (None, {}))
        if held != budget:
            rows = {}
            self._chosen[arm] = budget, rows
        if seed not in rows:
            key = stage_key(self.seed, "curve", str(seed))
            rows[seed] = self._chooser(arm, contender, self._texts.targets[0])(budget, key)
        return rows[seed]

    def _chooser(self, arm: str, contender: Contender, target: Target) -> Chooser:
        named = arm, target.name
        if named not in self._choosers:
            most = max(1, round(self.up_to.get(arm, 1.0) * self._size))
            self._choosers[named] = Chooser(contender, self._features.of(target, contender.sees), most=most)
        return self._choosers[named]


def _knows_target(contender: Contender) -> bool:
    """Whether the choice may depend on the queries."""
    blind = {entry.selector.__name__ for entry in table() if entry.target == "no"}
    return type(contender.selector).__name__ not in blind
