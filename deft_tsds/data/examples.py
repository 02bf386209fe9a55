"""Text pairs with stable ids, checked row by row before anything long begins."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deft_tsds.arrays import check_count
from deft_tsds.data.sources import listed, read_rows
from deft_tsds.runs import read_jsonl, track, write_jsonl


@dataclass(frozen=True, eq=False)
class Examples:
    """Text pairs as columns of equal length N.

    Args:
        ids: stable names of the examples.
        inputs: the source texts, without instruction.
        prompts: what the model reads: `instruction + ": " + input`, or the input alone.
        targets: the wanted outputs; for test sets the first reference; "" for data without any.
        references: all right outputs of each example, the target first.
        groups: task or domain of each example; "" for data without groups.
        flags: bool [N] by name: known defects, which are reported and never shown to a selector.

    Raises:
        ValueError: columns of different lengths, or a flag that is not bool [N].
    """

    ids: tuple[str, ...]
    inputs: tuple[str, ...]
    prompts: tuple[str, ...]
    targets: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]
    flags: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for column in ("inputs", "prompts", "targets", "references", "groups"):
            if len(getattr(self, column)) != len(self.ids):
                raise ValueError(f"{column} has {len(getattr(self, column))} rows but ids has {len(self.ids)}.")
        for name, flag in self.flags.items():
            if flag.dtype != np.bool_ or flag.shape != (len(self.ids),):
                raise ValueError(f"flags[{name!r}] is {flag.dtype} {flag.shape}: give bool [{len(self.ids)}].")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """Return the rows at `indices` (int [n], from 0), in that order; an index may come twice."""
        positions = np.asarray(indices, dtype=np.int64 if len(indices) == 0 else None)
        if positions.ndim != 1 or not np.issubdtype(positions.dtype, np.integer):
            raise ValueError(f"indices is {positions.dtype} {positions.shape}: give whole numbers [n].")
        outside = positions[(positions < 0) | (positions >= len(self))]
        if outside.size:
            raise ValueError(f"indices holds {outside[0]}: there are rows 0 to {len(self) - 1}.")
        rows = positions.tolist()
        return Examples(
            ids=tuple(self.ids[row] for row in rows),
            inputs=tuple(self.inputs[row] for row in rows),
            prompts=tuple(self.prompts[row] for row in rows),
            targets=tuple(self.targets[row] for row in rows),
            references=tuple(self.references[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            flags={name: flag[positions] for name, flag in self.flags.items()},
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return one JSON-ready dict an example, as `save` writes it."""
        return [
            {
                "id": self.ids[row],
                "input": self.inputs[row],
                "prompt": self.prompts[row],
                "target": self.targets[row],
                "references": list(self.references[row]),
                "group": self.groups[row],
                "flags": {name: bool(flag[row]) for name, flag in self.flags.items()},
            }
            for row in range(len(self))
        ]

    def save(self, path: str | Path) -> None:
        """Write the examples as JSON lines, atomically."""
        write_jsonl(path, self.rows())

    @classmethod
    def load(cls, path: str | Path) -> Examples:
        """Read what `save` wrote.

        Raises:
            ValueError: a line that `save` did not write.
        """
        rows = read_jsonl(path)
        columns = {"id", "input", "prompt", "target", "references", "group", "flags"}
        for number, row in enumerate(rows, start=1):
            wrong = not isinstance(row, dict) or set(row) != columns or _wrong_column(row)
            if wrong or set(row["flags"]) != set(rows[0]["flags"]):
                said = f"{wrong}, " if isinstance(wrong, str) else ""
                raise ValueError(
                    f"{path}, line {number}: {said}not a row that Examples.save wrote. Read other files with "
                    "read_examples."
                )
        return cls(
            ids=tuple(row["id"] for row in rows),
            inputs=tuple(row["input"] for row in rows),
            prompts=tuple(row["prompt"] for row in rows),
            targets=tuple(row["target"] for row in rows),
            references=tuple(tuple(row["references"]) for row in rows),
            groups=tuple(row["group"] for row in rows),
            flags={name: np.array([row["flags"][name] for row in rows]) for name in (rows[0]["flags"] if rows else ())},
        )

    def fingerprint(self) -> str:
        """SHA-256 of the contents, in hexadecimal: equal for equal rows in equal order."""
        digest = hashlib.sha256()
        for row in self.rows():
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()


def read_examples(
    source: str | Path,
    *,
    split: str = "train",
    id_field: str | None = "id",
    input_field: str | Sequence[str] = "input",
    target_field: str | None = "target",
    references_field: str | None = None,
    group_field: str | None = None,
    instruction_field: str | None = None,
    instruction_separator: str | None = None,
    flag_fields: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
    limit: int | None = None,
    name: str = "data",
) -> Examples:
    """Read text pairs and check every row that is kept.

    Args:
        source: a .jsonl, .json, .csv (each also .gz) or .parquet file; a folder written by datasets' `save_to_disk`; a
            folder laid out like a hub data set, "folder" or "folder:config"; or a hub name, "name" or "name:config".
            A hub name goes through the cache of `datasets`, so that it can be read offline later; files and folders
            are read afresh each time and leave no cache behind.
        split: split of a folder or hub data set.
        id_field: field of the id, text or whole number. None makes ids from the content: 16 hexadecimal digits of the
            SHA-256 of prompt and target; the second copy of a repeated row gets "-2", the third "-3".
        input_field: field of the input; or several, whose non-blank texts are joined by a newline
            (`("instruction", "input")` for instruction data, where one of them is often empty).
        target_field: field of the target; not read where `references_field` is given; None for text without targets.
        references_field: field of the references, a text or a list of texts; the first one is the target.
        group_field: field of the task or domain, text or whole number.
        instruction_field: field of the instruction. The prompt is `instruction + ": " + input` where it is not blank,
            and the input alone elsewhere.
        instruction_separator: where the input field holds `instruction + separator + input`, as `src` of the hub's
            grammarly/coedit does with ": ": the prompt is the whole, and the input what follows the first separator.
        flag_fields: fields of true or false (also "true", "false", "1", "0").
        where: keep only rows whose fields have these values, compared as text. Rows left out are not checked.
        limit: keep at most so many rows, the first ones.
        name: what the data is called in errors.

    Returns:
        Examples [N], N >= 1, in source order.

    Raises:
        ValueError: a source that is missing, empty, broken or of an unknown kind; a field that is missing; a text that
            is null, blank or no text; an id that comes twice; a `where` that no row satisfies; `limit` < 1. It names
            the source and the row.
    """
    if limit is not None and check_count(limit, f"{name}: limit", -(2**63)) < 1:
        raise ValueError(f"{name}: limit is {limit}: give 1 or more, or None for all rows.")
    input_fields = (input_field,) if isinstance(input_field, str) else tuple(input_field or ())
    if not input_fields:
        said = "empty" if input_field == () or input_field == [] else repr(input_field)
        raise ValueError(f"{name}: input_field is {said}: name at least one field.")
    if isinstance(flag_fields, str):
        raise ValueError(f"{name}: flag_fields is {flag_fields!r}: give a list of names, [{flag_fields!r}].")
    if where is not None and not isinstance(where, Mapping):
        raise ValueError(f"{name}: where is {where!r}: give a mapping from fields to their values.")
    wanted = {key: _as_text(value) for key, value in (where or {}).items()}
    positions: dict[str, str] = {}
    copies: Counter[str] = Counter()
    others: dict[str, Counter[str]] = {key: Counter() for key in wanted}
    columns: list[tuple[str, str, str, str, tuple[str, ...], str]] = []
    flags: dict[str, list[bool]] = {flag: [] for flag in flag_fields}

    for position, values in track(read_rows(source, split, name), f"Reading {name}"):
        row = _Row(values, f"{name}: {source}, {position}")
        found = {key: _as_text(row.value(key, "where")) for key in wanted}
        if found != wanted:
            for key, value in found.items():
                others[key][value] += 1
            continue
        text = "\n".join(part for part in (row.text(key, "input_field") for key in input_fields) if part.strip())
        if not text:
            raise row.error(f"the input ({listed(input_fields)}) is blank", "Drop the row, or name another input_field")
        instruction = "" if instruction_field is None else row.text(instruction_field, "instruction_field")
        prompt = f"{instruction}: {text}" if instruction.strip() else text
        if instruction_separator is not None:
            _, separator, rest = text.partition(instruction_separator)
            text = rest if separator and rest.strip() else text
        if references_field is not None:
            references = row.texts(references_field, "references_field")
        elif target_field is not None:
            references = (row.filled(target_field, "target_field"),)
        else:
            references = ()
        target = references[0] if references else ""
        group = "" if group_field is None else row.label(group_field, "group_field")

        if id_field is not None:
            example_id = row.label(id_field, "id_field")
            if example_id in positions:
                raise row.error(
                    f"the id {example_id!r} also stands on {positions[example_id]}",
                    "Give each row an id of its own, or set id_field to None to make ids from the content",
                )
        else:
            digest = hashlib.sha256(json.dumps([prompt, target]).encode()).hexdigest()[:16]
            copies[digest] += 1
            example_id = digest if copies[digest] == 1 else f"{digest}-{copies[digest]}"
        positions[example_id] = position
        columns.append((example_id, text, prompt, target, references, group))
        for flag in flag_fields:
            flags[flag].append(row.flag(flag))
        if len(columns) == limit:
            break

    if not columns and any(others.values()):
        there = "; ".join(f"{key} is {listed([v for v, _ in seen.most_common(10)])}" for key, seen in others.items())
        raise ValueError(f"{name}: {source}: no row satisfies where={wanted}. In the source, {there}.")
    if not columns:
        raise ValueError(f"{name}: {source} holds no rows: give a source with at least one example.")
    arrays = {flag: np.array(column, dtype=np.bool_) for flag, column in flags.items()}
    return Examples(*zip(*columns, strict=True), flags=arrays)


def split_queries(examples: Examples, *, group: str | None, count: int, key: jax.Array) -> tuple[Examples, Examples]:
    """Hold out `count` random rows of one group, or of all, as the target examples.

    Rows of the rest may still share their input with a query (several references of one sentence): see `leakage`.

    Args:
        examples: the pool, N rows.
        group: the group to take them from; None takes them from the whole pool.
        count: how many, 1 to the size of the group.
        key: JAX random key.

    Returns:
        The queries [count] and the rest [N - count], both in pool order.

    Raises:
        ValueError: an unknown group, or one with fewer than `count` rows.
    """
    members = np.arange(len(examples))
    if group is not None:
        members = np.array([row for row, name in enumerate(examples.groups) if name == group], dtype=np.int64)
    if members.size == 0:
        sizes = ", ".join(f"{name!r} ({size})" for name, size in Counter(examples.groups).most_common())
        raise ValueError(f"queries: no row has the group {group!r}. The groups, with their rows, are {sizes}.")
    if not 1 <= count <= members.size:
        whole = "the pool" if group is None else f"the group {group!r}"
        raise ValueError(f"queries: count is {count}, but {whole} has {members.size} rows: give 1 to that.")
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    chosen = np.sort(generator.choice(members, size=count, replace=False))
    return examples.take(chosen), examples.take(np.setdiff1d(np.arange(len(examples)), chosen))


def leakage(pool: Examples, test: Examples) -> np.ndarray:
    """Find the pool rows whose input is also a test input, case and white space aside.

    Returns:
        int64 [n], rows of `pool`, ascending.
    """
    known = {_folded(text) for text in test.inputs}
    return np.array([row for row, text in enumerate(pool.inputs) if _folded(text) in known], dtype=np.int64)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


@dataclass(frozen=True)
class _Row:
    """One row of a source, and where it stands; `argument` is the one that named the field."""

    values: dict[str, Any]
    position: str

    def error(self, problem: str, way_out: str) -> ValueError:
        return ValueError(f"{self.position}: {problem}. {way_out}.")

    def value(self, key: str, argument: str) -> Any:
        if key not in self.values:
            near = difflib.get_close_matches(key, self.values, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Set {argument} to one of them."
            none = " Or set it to None." if argument in ("id_field", "target_field") else ""
            raise ValueError(
                f"{self.position}: there is no field {key!r} ({argument}), only {listed(self.values)}. {hint}{none}"
            )
        return self.values[key]

    def text(self, key: str, argument: str) -> str:
        return self._checked(self.value(key, argument), f"the field {key!r}")

    def filled(self, key: str, argument: str) -> str:
        text = self.text(key, argument)
        if not text.strip():
            raise self.error(f"the field {key!r} is blank", f"Drop the row, or name another {argument}")
        return text

    def texts(self, key: str, argument: str) -> tuple[str, ...]:
        value = self.value(key, argument)
        if not isinstance(value, list):
            return (self.filled(key, argument),)
        if not value:
            raise self.error(f"the field {key!r} is an empty list", "Drop the row, or give it a reference")
        texts = tuple(self._checked(item, f"entry {n} of the field {key!r}") for n, item in enumerate(value, start=1))
        for number, text in enumerate(texts, start=1):
            if not text.strip():
                raise self.error(f"entry {number} of the field {key!r} is blank", "Drop that reference")
        return texts

    def label(self, key: str, argument: str) -> str:
        value = self.value(key, argument)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.filled(key, argument)

    def flag(self, key: str) -> bool:
        value = self.value(key, "flag_fields")
        known = {"true": True, "1": True, "false": False, "0": False}
        if _as_text(value).lower() not in known:
            raise self.error(f"the field {key!r} is {value!r}, neither true nor false", "Repair it, or drop the flag")
        return known[_as_text(value).lower()]

    def _checked(self, value: Any, what: str) -> str:
        if value is None:
            raise self.error(f"{what} is null", "Drop the row, or write an empty text where that is meant")
        if not isinstance(value, str):
            raise self.error(f"{what} is {type(value).__name__}, not text", "Write it as text, or name another field")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.error(
                f"{what} holds half of a surrogate pair at character {error.start + 1}", "Remove that character"
            ) from error
        return value


def _wrong_column(row: Mapping[str, Any]) -> str | None:
    """Which column of a saved row holds another kind of value than `Examples.rows` gives."""
    for name in ("id", "input", "prompt", "target", "group"):
        if not isinstance(row[name], str):
            return f"{name!r} is {type(row[name]).__name__}"
    if not isinstance(row["references"], list) or not all(isinstance(text, str) for text in row["references"]):
        return "'references' is no list of texts"
    if not isinstance(row["flags"], dict) or not all(isinstance(flag, bool) for flag in row["flags"].values()):
        return "'flags' is no object of true and false"
    return None


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)
