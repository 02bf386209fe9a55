"""What several systems wrote for the same examples: of the arms of a run, or from files of predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from deft_tsds.data.examples import Examples
from deft_tsds.runs import read_jsonl


@dataclasses.dataclass(frozen=True)
class Written:
    """An example of a task, and what each system made of it."""

    example: str
    task: str
    input: str
    outputs: Mapping[str, str]


def from_run(folder: Path, arms: Sequence[str], *, replicate: int = 0) -> list[Written]:
    """What arms of a run folder made of its test sets; the task is the example's group, or else its test set.

    Raises:
        ValueError: an arm that was not evaluated, or a prediction that is missing.
    """
    written, tests = [], sorted((folder / "data" / "tests").glob("*.jsonl"))
    if not tests:
        raise ValueError(f"{folder} holds no data/tests/*.jsonl: give a run folder whose pipeline has run.")
    for path in tests:
        examples = Examples.load(path)
        outputs = {
            arm: read_predictions(folder / f"evaluate/{arm}/seed-{replicate}/predictions_{path.name}") for arm in arms
        }
        written += _written(examples, outputs, default=path.stem, prefix=f"{path.stem}/")
    return written


def from_files(examples: Examples, predictions: Mapping[str, Path]) -> list[Written]:
    """What the systems of prediction files (JSON lines of id and prediction) made of examples.

    Raises:
        ValueError: a file that is missing or broken, or a prediction that is missing.
    """
    return _written(
        examples, {name: read_predictions(path) for name, path in predictions.items()}, default="all", prefix=""
    )


def read_predictions(path: Path) -> dict[str, str]:
    """The predictions of one file, by the id of the example."""
    if not path.is_file():
        raise ValueError(f"There is no {path}: name a system that was evaluated.")
    found: dict[str, str] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        texts = (row.get("id"), row.get("prediction")) if isinstance(row, dict) else (None, None)
        if not isinstance(texts[0], str) or not isinstance(texts[1], str) or texts[0] in found:
            raise ValueError(f'{path}, line {number}: write {{"id": text, "prediction": text}}, each id once.')
        if any("\ud800" <= letter <= "\udfff" for letter in texts[1]):
            raise ValueError(f"{path}, line {number}: the prediction holds half of a surrogate pair. Remove it.")
        found[texts[0]] = texts[1]
    return found


def _written(
    examples: Examples, outputs: Mapping[str, Mapping[str, str]], *, default: str, prefix: str
) -> list[Written]:
    for name, by_id in outputs.items():
        missing = [example for example in examples.ids if example not in by_id]
        if missing:
            raise ValueError(f"{name} has no prediction for {len(missing)} examples, such as {missing[0]!r}.")
    rows = zip(examples.ids, examples.groups, examples.inputs, strict=True)
    return [
        Written(prefix + example, group or default, text, {name: by_id[example] for name, by_id in outputs.items()})
        for example, group, text in rows
    ]
