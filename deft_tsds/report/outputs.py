"""Outputs side by side: a few rows of each test set, what every arm made of them, and what each changed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deft_tsds.report.view import RunView

_ROWS_A_TEST = 3
_MOST_DIFF_CHARACTERS = 1200
_LEAST_SIMILARITY = 0.3


@dataclass(frozen=True)
class Output:
    """What one arm wrote."""

    arm: str
    text: str
    edits: tuple[tuple[str, str], ...] | None
    """(kind, text) with kind "same", "insert" or "delete", against the input; None where a diff would not help."""
    copies: bool
    """Whether it is the input, unchanged."""


@dataclass(frozen=True)
class OutputRow:
    """One row of a test set with all outputs."""

    id: str
    group: str
    input: str
    references: tuple[str, ...]
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class SetOutputs:
    """The rows shown of one test set, and the share of all its rows that each arm left unchanged."""

    name: str
    size: int
    rows: tuple[OutputRow, ...]
    unchanged: tuple[tuple[str, float], ...]


def side_by_side(view: RunView) -> tuple[SetOutputs, ...]:
    """Evenly spaced rows of each test set, not picked by anyone, with the outputs of each arm's first seed."""
    shown = []
    for name, test in view.tests.items():
        written = [(arm.label, arm.predictions[name]) for arm in view.arms if name in arm.predictions]
        if not written:
            continue
        picks = np.unique(np.linspace(0, len(test) - 1, 2 * _ROWS_A_TEST + 1).astype(int)[1::2])
        rows = []
        for row in picks:
            source = test.inputs[row]
            outputs = [
                _output(label, source, by_id[test.ids[row]]) for label, by_id in written if test.ids[row] in by_id
            ]
            rows.append(OutputRow(test.ids[row], test.groups[row], source, test.references[row], tuple(outputs)))
        unchanged = []
        for label, by_id in written:
            same = [_same(by_id[i], source) for i, source in zip(test.ids, test.inputs, strict=True) if i in by_id]
            unchanged.append((label, float(np.mean(same)) if same else 0.0))
        shown.append(SetOutputs(name, len(test), tuple(rows), tuple(unchanged)))
    return tuple(shown)


def edits(source: str, output: str) -> tuple[tuple[str, str], ...] | None:
    """The words that turn `source` into `output`; None for texts that are long or have little in common.

    Returns:
      (kind, text) in reading order: joined, "same" and "delete" give the source, "same" and "insert" the output.
    """
    if max(len(source), len(output)) > _MOST_DIFF_CHARACTERS:
        return None
    before, after = _words(source), _words(output)
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    if matcher.ratio() < _LEAST_SIMILARITY:
        return None
    parts: list[tuple[str, str]] = []
    for operation, i, j, k, m in matcher.get_opcodes():
        if operation == "equal":
            parts.append(("same", "".join(before[i:j])))
            continue
        if j > i:
            parts.append(("delete", "".join(before[i:j])))
        if m > k:
            parts.append(("insert", "".join(after[k:m])))
    return tuple(parts)


def _words(text: str) -> Sequence[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def _output(arm: str, source: str, text: str) -> Output:
    copies = _same(text, source)
    return Output(arm, text, None if copies else edits(source, text), copies)


def _same(text: str, source: str) -> bool:
    """Equal but for white space, which tokenizers change."""
    return text.split() == source.split()
