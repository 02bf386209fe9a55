"""What a study is made of: variants of one experiment, and a shelf for their stages.

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
from typing import Any

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
