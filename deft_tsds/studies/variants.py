"""What a study is made of: variants of one experiment, a shelf for their stages, and statistics over seeds.

A variant is the experiment with some fields set to other values. All variants of a study keep their stages in one run
folder, each stage under the fingerprint of what it was asked for: what two variants have in common is done once, what
is finished is never done again, and no variant can overwrite another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deft_tsds.config import Experiment, override
from deft_tsds.runs import Run, Stage, plain, read_json

REFERENCE = "as configured"
"""The name of the variant that changes nothing."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One cell of a study.

    Attributes:
        name: what sets it apart, for people: "objective.kde.weight=0.1", "without kde".
        experiment: the whole config of the cell.
        values: by swept path, the value there; empty where something was left out instead.
        dropped: the name of what was left out, or None.
    """

    name: str
    experiment: Experiment
    values: Mapping[str, Any]
    dropped: str | None = None


def parse_sweep(text: str) -> tuple[str, tuple[str, ...]]:
    """Read `PATH=v1,v2,...`.

    Raises:
        ValueError: no path, no values, an empty value, or one that comes twice.
    """
    path, equals, values = text.partition("=")
    found = tuple(value.strip() for value in values.split(","))
    if not (equals and path.strip() and all(found)):
        raise ValueError(f"--sweep {text!r}: write PATH=v1,v2,... such as objective.kde.weight=0,0.1,1.")
    if len(set(found)) < len(found):
        raise ValueError(f"--sweep {text!r} has a value twice.")
    return path.strip(), found


def variants(
    experiment: Experiment,
    *,
    sweeps: Mapping[str, Sequence[str]],
    drops: Sequence[str] = (),
    short: Callable[[str], str] = str,
) -> list[Variant]:
    """The experiment itself, then one variant for each entry of each mapping in `drops`, then the product of `sweeps`.

    A combination that is the experiment itself is not made a second time.

    Args:
        experiment: the reference.
        sweeps: by path of a field, the values to set it to, as they are written on a command line.
        drops: paths of mappings, each entry of which is left out in turn.
        short: makes a path short for the names of the variants.

    Raises:
        ValueError: a path in `drops` that holds no mapping of two entries or more.
        SystemExit: there is no such field (tyro prints the nearest), or a value is none for it.
    """
    # Each value is read once, by the same parser as the command line's, and then put wherever the product wants it.
    parsed = {
        path: [value_at(override(experiment, [f"--{path}", value]), path) for value in values]
        for path, values in sweeps.items()
    }
    found = [Variant(REFERENCE, experiment, {path: value_at(experiment, path) for path in sweeps})]
    for path in drops:
        whole = value_at(experiment, path)
        if not isinstance(whole, Mapping) or len(whole) < 2:
            raise ValueError(f"{path} has nothing to leave out and something to keep: name a mapping of at least two.")
        for name in whole:
            rest = {key: value for key, value in whole.items() if key != name}
            found.append(Variant(f"without {name}", with_value(experiment, path, rest), {}, name))
    for combination in itertools.product(*parsed.values()) if sweeps else ():
        values = dict(zip(parsed, combination, strict=True))
        changed = experiment
        for path, value in values.items():
            changed = with_value(changed, path, value)
        if changed != experiment:
            name = ", ".join(f"{short(path)}={value}" for path, value in values.items())
            found.append(Variant(name, changed, values))
    return found


def value_at(tree: Any, path: str) -> Any:
    """What a nested config holds at a path: fields of dataclasses, keys of mappings; `-` is as good as `_`.

    Raises:
        ValueError: there is no such field; the message lists those that there are.
    """
    for part in path.split("."):
        children = _children(tree)
        tree = children[_name_of(part, children, path)]
    return tree


def with_value(tree: Any, path: str, value: Any) -> Any:
    """The nested config with another value at a path."""
    first, _, rest = path.partition(".")
    children = _children(tree)
    name = _name_of(first, children, path)
    child = with_value(children[name], rest, value) if rest else value
    if isinstance(tree, Mapping):
        return {**tree, name: child}
    return dataclasses.replace(tree, **{name: child})


def _children(tree: Any) -> Mapping[str, Any]:
    if isinstance(tree, Mapping):
        return tree
    if dataclasses.is_dataclass(tree):
        return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    return {}


def _name_of(part: str, children: Mapping[str, Any], path: str) -> str:
    for name in children:
        if name.replace("-", "_") == part.replace("-", "_"):
            return name
    raise ValueError(f"{path}: there is no {part!r} here, but {', '.join(children) or 'a plain value'}.")


@dataclasses.dataclass(frozen=True)
class Shelf(Run):
    """A run folder for any number of variants: `do` keeps each stage under the fingerprint of its request.

    A stage that the run folder holds already, done by the experiment itself with the same request, is taken from there.
    """

    room: str = "ablation"
    """The sub-folder for what the run folder does not hold."""

    def do(
        self,
        name: str,
        work: Callable[[Path], Mapping[str, Any] | None],
        *,
        settings: Mapping[str, Any],
        upstream: Sequence[Stage] = (),
    ) -> Stage:
        """As `Run.do`."""
        request = {
            "settings": json.loads(json.dumps(plain(settings))),
            "seed": self.seed,
            "upstream": {stage.name: stage.fingerprint for stage in upstream},
            "version": importlib.metadata.version("deft-tsds"),
        }
        manifest = self.folder / name / "manifest.json"
        if manifest.exists() and {key: read_json(manifest).get(key) for key in request} == request:
            return super().do(name, work, settings=settings, upstream=upstream)
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12]
        return super().do(f"{self.room}/{name}/{digest}", work, settings=settings, upstream=upstream)


class Estimate(NamedTuple):
    """A mean over seeds, its interval, and the p-value of the hypothesis that it is 0; None where one seed was run."""

    value: float
    low: float | None
    high: float | None
    p: float | None


def estimate(values: Sequence[float], *, level: float, resplit: float = 0.0) -> Estimate:
    """The mean of values from several seeds with Student's interval. For a paired difference, give the differences.

    Args:
        values: one value a seed, [S].
        level: coverage asked for, in (0, 1).
        resplit: where each seed leaves out another random part of the same data: the part left out over the part kept.
            Such values are not independent, and the variance of their mean is taken as (1/S + resplit) s^2 instead of
            s^2 / S (Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52, 2003).

    Raises:
        ValueError: no values, one that is not finite, or a level outside (0, 1).
    """
    from scipy import stats  # half a second to import, which a run that compares nothing need not wait for

    values_S = np.asarray(values, dtype=np.float64)
    if values_S.ndim != 1 or len(values_S) == 0 or not np.isfinite(values_S).all():
        raise ValueError(f"values are {values_S.tolist()}: give one finite number for each of one seed or more.")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a coverage between 0 and 1, such as 0.95.")
    mean, count = float(values_S.mean()), len(values_S)
    if count == 1:
        return Estimate(mean, None, None, None)
    error = float(values_S.std(ddof=1)) * np.sqrt(1 / count + resplit)
    half = float(stats.t.ppf((1 + level) / 2, count - 1) * error)
    if error == 0:
        return Estimate(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    return Estimate(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, count - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down method, in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def compare(
    names: Sequence[str],
    measured: Sequence[Sequence[Mapping[str, float]]],
    *,
    level: float,
    resplit: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Means with intervals, and differences to the first cell, paired by seed and Holm-corrected over the cells.

    Args:
        names: of the C cells, the reference first.
        measured: by cell and seed, the value of each measure that could be taken there.
        level: of the intervals; a verdict is given where the corrected p-value is below 1 - level.
        resplit: by name of a measure, as in `estimate`; 0 where it is not named.

    Returns:
        For each cell `measures` (by name value, low, high, seeds) and `differences` (value, low, high, p, p_holm and
        verdict: "higher", "lower", "no difference shown", or "one seed").
    """
    cells: list[dict[str, Any]] = [{"name": name, "measures": {}, "differences": {}} for name in names]
    for measure in dict.fromkeys(measure for seeds in measured for values in seeds for measure in values):
        variance = {"level": level, "resplit": resplit.get(measure, 0.0)}
        differences = []
        for cell, seeds in zip(cells, measured, strict=True):
            values = [seed[measure] for seed in seeds if measure in seed]
            if values:
                cell["measures"][measure] = {**_interval(estimate(values, **variance)), "seeds": values}
            pairs = zip(seeds, measured[0], strict=True)
            paired = [mine[measure] - base[measure] for mine, base in pairs if measure in mine and measure in base]
            if paired and seeds is not measured[0]:
                differences.append((cell["differences"], estimate(paired, **variance)))
        tested = [found.p for _, found in differences if found.p is not None]
        adjusted = iter(holm(tested))
        for of_cell, found in differences:
            p_holm = None if found.p is None else next(adjusted)
            verdict = _verdict(found.value, p_holm, level)
            of_cell[measure] = {**_interval(found), "p": found.p, "p_holm": p_holm, "verdict": verdict}
    return cells


def _verdict(value: float, p_holm: float | None, level: float) -> str:
    if p_holm is None:
        return "one seed"
    if p_holm >= 1 - level:
        return "no difference shown"
    return "higher" if value > 0 else "lower"


def _interval(found: Estimate) -> dict[str, float | None]:
    return {"value": found.value, "low": found.low, "high": found.high}
