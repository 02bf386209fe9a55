"""A blind comparison of systems by people: which items are judged, by whom, and on which side each system stands.

Two systems are compared at a time, on examples drawn evenly from the tasks. Attention checks are mixed in, whose answer
is known: the input beside its words in reverse order (the input is better), or the input twice (a tie). What a rater
gets (`deft_tsds.report.annotate`) holds texts and opaque ids; what they stand for is in `key.json` and
`assignment.jsonl`, which stay with whoever runs the study.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deft_tsds.judging.assignment import assign, balanced_sides
from deft_tsds.judging.written import Written
from deft_tsds.runs import plain, read_json, read_jsonl, write_json, write_jsonl

LEAST_WORDS = 6
"""Different words that an input needs for its reverse to be no text."""


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of every item: `each` of the two edits (yes or no), or `which` of them (one, or a tie)."""

    name: str
    kind: Literal["each", "which"]
    text: str

    @property
    def fields(self) -> dict[str, tuple[str, ...]]:
        """The names of its answers, and what each may be."""
        if self.kind == "each":
            return {f"{self.name}_a": ("yes", "no"), f"{self.name}_b": ("yes", "no")}
        return {self.name: ("a", "tie", "b")}


QUESTIONS = (Question("accurate", "each", "Is it accurate?"), Question("better", "which", "Which is better?"))


@dataclasses.dataclass(frozen=True)
class Item:
    """Two texts to judge. Of a check, the first is the better one, or equal to the second."""

    id: str
    kind: Literal["pair", "reversed", "same"]
    example: str
    task: str
    input: str
    systems: tuple[str, str]
    texts: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Compared:
    """Two systems, and how many of the examples they have in common on which they wrote the same."""

    systems: tuple[str, str]
    examples: int
    same: int
    draws: tuple[tuple[str, str], ...]
    """(example, task) of those among the drawn that count as a tie without being shown."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A study as it was made.

    Attributes:
        id: of its content; pages and answers carry it.
        order: for each rater the ids of the items in the order shown, each with whether its second text is side A.
    """

    id: str
    questions: tuple[Question, ...]
    pairs: tuple[Compared, ...]
    items: Mapping[str, Item]
    order: Mapping[str, Mapping[str, bool]]

    @property
    def fields(self) -> dict[str, tuple[str, ...]]:
        """The names of all answers to an item, and what each may be."""
        return {name: options for question in self.questions for name, options in question.fields.items()}

    @property
    def which(self) -> str | None:
        """The question that attention checks are judged by."""
        return next((question.name for question in self.questions if question.kind == "which"), None)

    def shown(self, rater: str) -> list[Item]:
        """The items of a rater in the order shown, systems and texts in that of the sides."""
        return [
            dataclasses.replace(item, systems=item.systems[::-1], texts=item.texts[::-1]) if swapped else item
            for item, swapped in ((self.items[name], swapped) for name, swapped in self.order[rater].items())
        ]

    def save(self, folder: Path) -> None:
        """Write `key.json` (what each item is) and `assignment.jsonl` (a row a judgment: rater, item, systems)."""
        write_jsonl(
            folder / "assignment.jsonl",
            (
                {"rater": rater, "item": item.id, "a": item.systems[0], "b": item.systems[1]}
                for rater in self.order
                for item in self.shown(rater)
            ),
        )
        key = {"questions": self.questions, "pairs": self.pairs, "items": list(self.items.values())}
        write_json(folder / "key.json", {"study": self.id, **{name: plain(value) for name, value in key.items()}})

    @classmethod
    def load(cls, folder: Path) -> Study:
        """Read what `save` wrote.

        Raises:
            ValueError: there is no study, or its files do not belong together.
        """
        if not (folder / "key.json").is_file() or not (folder / "assignment.jsonl").is_file():
            raise ValueError(f"{folder} holds no study: it needs the key.json and assignment.jsonl that `make` wrote.")
        key, rows = read_json(folder / "key.json"), read_jsonl(folder / "assignment.jsonl")
        try:
            study, made = cls._read(key, rows), key["study"]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            study, made = None, None
        if study is None or study.id != made:
            raise ValueError(
                f"{folder}: key.json and assignment.jsonl are not as they were made. Restore them: answers cannot be "
                "read without them."
            )
        return study

    @classmethod
    def _read(cls, key: Any, rows: Sequence[Any]) -> Study:
        """The study of these files; any error of a wrong type where somebody has changed them."""
        items = {row["id"]: Item(**_tuples(row)) for row in key["items"]}
        order: dict[str, dict[str, bool]] = defaultdict(dict)
        for row in rows:
            order[row["rater"]][row["item"]] = row["a"] != items[row["item"]].systems[0]
        return cls.of(
            tuple(Question(**_tuples(row)) for row in key["questions"]),
            tuple(Compared(**_tuples(row)) for row in key["pairs"]),
            items,
            order,
        )

    @classmethod
    def of(
        cls,
        questions: tuple[Question, ...],
        pairs: tuple[Compared, ...],
        items: Mapping[str, Item],
        order: Mapping[str, Mapping[str, bool]],
    ) -> Study:
        """The study with these parts; its id is the beginning of their SHA-256."""
        parts = json.dumps(plain([questions, pairs, items, order]))
        return cls(hashlib.sha256(parts.encode()).hexdigest()[:12], questions, pairs, items, order)


def make(
    written: Sequence[Written],
    *,
    items: int,
    raters: int,
    overlap: int | None = None,
    checks: int = 6,
    identical: Literal["skip", "draw"] = "skip",
    questions: Sequence[Question] = QUESTIONS,
    seed: int = 0,
) -> Study:
    """Draw items and attention checks, and give them to raters.

    Args:
        written: examples with the outputs of two systems or more; every two systems are compared.
        items: examples for every two systems.
        raters: how many people there are.
        overlap: items that every two raters share, at least; None for all of them.
        checks: attention checks that every rater gets.
        identical: examples on which two systems wrote the same (white space aside): "skip" them, so that the study
            says which is better where they differ; or "draw" them as they come and count them as ties unseen.
        questions: what is asked.
        seed: of the numpy Generator that draws everything.

    Raises:
        ValueError: fewer than two systems, questions that cannot be asked, or too few examples.
    """
    systems = _systems(written)
    questions = _checked(questions, checks)
    rng = np.random.default_rng(seed)
    ranked = _evenly(written, rng)
    ids = iter(lambda: rng.bytes(8).hex(), "")
    found: dict[str, Item] = {}
    pairs, drawn = [], set()
    for first, second in itertools.combinations(systems, 2):
        same = {one.example for one in written if _equal(one.outputs[first], one.outputs[second])}
        eligible = [one for one in ranked if identical == "draw" or one.example not in same]
        if items < 1 or len(eligible) < items:
            raise ValueError(
                f"items is {items}, and {first} and {second} wrote different texts on {len(written) - len(same)} of "
                f"{len(written)} examples: ask for 1 to {len(eligible)}."
            )
        draws = []
        for one in eligible[:items]:
            drawn.add(one.example)
            if one.example in same:
                draws.append((one.example, one.task))
                continue
            texts = (one.outputs[first], one.outputs[second])
            item = Item(next(ids), "pair", one.example, one.task, one.input, (first, second), texts)
            found[item.id] = item
        pairs.append(Compared((first, second), len(written), len(same), tuple(draws)))
    if not found:
        raise ValueError(f"all {items} examples drawn are ones on which the systems wrote the same: nothing to judge.")
    given = assign(len(found), raters, overlap=len(found) if overlap is None else overlap, rng=rng)
    judged = [(rater, item) for item, row in zip(found, given, strict=True) for rater in row]
    for check in _checks([one for one in ranked if one.example not in drawn], checks, ids):
        found[check.id] = check
        judged += [(rater, check.id) for rater in range(raters)]
    swapped: dict[tuple[int, str], bool] = {}
    for kind in dict.fromkeys((item.kind, item.systems) for item in found.values()):
        alike = [pair for pair in judged if (found[pair[1]].kind, found[pair[1]].systems) == kind]
        swapped |= zip(alike, balanced_sides(alike, rng=rng), strict=True)
    order = {}
    for rater in range(raters):
        mine = [item for of, item in judged if of == rater]
        order[f"rater-{rater + 1}"] = {mine[n]: swapped[rater, mine[n]] for n in rng.permutation(len(mine))}
    return Study.of(questions, tuple(pairs), found, order)


def _systems(written: Sequence[Written]) -> list[str]:
    systems = list(written[0].outputs) if written else []
    if len(systems) < 2 or "tie" in systems:
        raise ValueError(f"systems are {systems}: give two or more, none called tie, with at least one example.")
    return systems


def _checked(questions: Sequence[Question], checks: int) -> tuple[Question, ...]:
    names = [name for question in questions for name in question.fields]
    for question in questions:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", question.name) or question.kind not in ("each", "which"):
            raise ValueError(f"question {question}: give a name of a-z, 0-9 and _, and the kind each or which.")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"questions ask for {names}: ask one at least, and give each a name of its own.")
    if checks < 0 or (checks and all(question.kind == "each" for question in questions)):
        raise ValueError(f"checks is {checks}: their answer is that to a question of kind which. Ask one, or give 0.")
    return tuple(questions)


def _evenly(written: Sequence[Written], rng: np.random.Generator) -> list[Written]:
    """In random order, the tasks taking turns, so that any beginning has as many of each as there are."""
    turns: dict[str, int] = defaultdict(int)
    ranked = []
    for place in rng.permutation(len(written)).tolist():
        task = written[place].task
        ranked.append((turns[task], rng.random(), written[place]))
        turns[task] += 1
    return [one for *_, one in sorted(ranked, key=lambda row: row[:2])]


def _checks(spare: Sequence[Written], count: int, ids: Iterator[str]) -> list[Item]:
    """Checks on examples that are not judged otherwise: the input against its reverse and against itself, by turns."""
    long = [one for one in spare if len(set(one.input.split())) >= LEAST_WORDS]
    if len(long) < count:
        raise ValueError(
            f"checks is {count}, but beside the items only {len(long)} examples have an input of {LEAST_WORDS} "
            "different words or more: ask for fewer checks or items."
        )
    made: list[Item] = []
    for one in long[:count]:
        kind, other = ("same", one.input) if len(made) % 2 else ("reversed", " ".join(one.input.split()[::-1]))
        made.append(Item(next(ids), kind, one.example, one.task, one.input, ("kept", kind), (one.input, other)))
    return made


def _equal(one: str, other: str) -> bool:
    return one.split() == other.split()


def _tuples(value: Any) -> Any:
    """What `plain` made of a dataclass, as its arguments: lists as tuples, without the name of its class."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return (
        {name: _tuples(item) for name, item in value.items() if name != "class"} if isinstance(value, dict) else value
    )
