"""Files and hub data sets to `Examples`: text pairs with stable ids, checked row by row before anything long begins.

jsonl, json and csv are parsed by the standard library, exactly as they were written and with line numbers for the
errors: the Arrow readers guess types, and turn the text "2020-01-01" into a date, the id "007" into 7, and "NA" into
nothing. Parquet files, saved folders and hub names, which carry their types, go through Hugging Face `datasets`.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import json
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import jax
import numpy as np

from deft_tsds.runs import read_jsonl, track, write_jsonl

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
"""The files that `read_examples` reads."""

Row = tuple[str, dict[str, Any]]  # where it stands ("line 3"), what it holds


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
            if not isinstance(row, dict) or set(row) != columns or set(row["flags"]) != set(rows[0]["flags"]):
                raise ValueError(
                    f"{path}, line {number}: not a row that Examples.save wrote. Read other files with read_examples."
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
            and the input alone elsewhere. None where the input holds the instruction, as in the hub's grammarly/coedit.
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
    if limit is not None and limit < 1:
        raise ValueError(f"{name}: limit is {limit}: give 1 or more, or None for all rows.")
    input_fields = (input_field,) if isinstance(input_field, str) else tuple(input_field)
    if not input_fields:
        raise ValueError(f"{name}: input_field is empty: name at least one field.")
    wanted = dict(where or {})
    positions: dict[str, str] = {}
    copies: Counter[str] = Counter()
    others: dict[str, Counter[str]] = {key: Counter() for key in wanted}
    columns: list[tuple[str, str, str, str, tuple[str, ...], str]] = []
    flags: dict[str, list[bool]] = {flag: [] for flag in flag_fields}

    for position, values in track(_rows(source, split, name), f"Reading {name}"):
        row = _Row(values, f"{name}: {source}, {position}")
        found = {key: _as_text(row.value(key, "where")) for key in wanted}
        if found != wanted:
            for key, value in found.items():
                others[key][value] += 1
            continue
        text = "\n".join(part for part in (row.text(key, "input_field") for key in input_fields) if part.strip())
        if not text:
            raise row.error(
                f"the input ({_listed(input_fields)}) is blank", "Drop the row, or name another input_field"
            )
        instruction = "" if instruction_field is None else row.text(instruction_field, "instruction_field")
        prompt = f"{instruction}: {text}" if instruction.strip() else text
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
        there = "; ".join(f"{key} is {_listed([v for v, _ in seen.most_common(10)])}" for key, seen in others.items())
        raise ValueError(f"{name}: {source}: no row satisfies where={wanted}. In the source, {there}.")
    if not columns:
        raise ValueError(f"{name}: {source} holds no rows: give a source with at least one example.")
    arrays = {flag: np.array(column, dtype=np.bool_) for flag, column in flags.items()}
    return Examples(*zip(*columns, strict=True), flags=arrays)


def split_queries(examples: Examples, *, group: str, count: int, key: jax.Array) -> tuple[Examples, Examples]:
    """Hold out `count` random rows of one group as the target examples.

    Rows of the rest may still share their input with a query (several references of one sentence): see `leakage`.

    Args:
        examples: the pool, N rows.
        group: the group to take them from.
        count: how many, 1 to the size of the group.
        key: JAX random key.

    Returns:
        The queries [count] and the rest [N - count], both in pool order.

    Raises:
        ValueError: an unknown group, or one with fewer than `count` rows.
    """
    members = np.array([row for row, name in enumerate(examples.groups) if name == group], dtype=np.int64)
    if members.size == 0:
        sizes = ", ".join(f"{name!r} ({size})" for name, size in Counter(examples.groups).most_common())
        raise ValueError(f"queries: no row has the group {group!r}. The groups, with their rows, are {sizes}.")
    if not 1 <= count <= members.size:
        raise ValueError(f"queries: count is {count}, but the group {group!r} has {members.size} rows: give 1 to that.")
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
                f"{self.position}: there is no field {key!r} ({argument}), only {_listed(self.values)}. {hint}{none}"
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


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _rows(source: str | Path, split: str, name: str) -> Iterator[Row]:
    """Yield each row of any source with its position; every failure to read is a ValueError that names the source."""
    path = Path(source).expanduser()
    kind = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if path.is_dir():
        return _folder_rows(path, None, split, name)
    if path.is_file():
        if kind is None:
            raise ValueError(
                f"{name}: {source} is of no kind that is read here. Give one of {', '.join(SUFFIXES)}, a folder, or a "
                "hub name."
            )
        if kind == ".parquet":
            return _parquet_rows(path, name)
        return _text_file_rows(path, kind.removesuffix(".gz"), name)
    folder, _, config = str(path).rpartition(":")
    if folder and Path(folder).is_dir():
        return _folder_rows(Path(folder), config, split, name)
    if kind is not None or isinstance(source, Path) or str(source).startswith(("/", ".", "~")):
        raise ValueError(f"{name}: {source} is missing. {_near_files(path)}")
    dataset, _, config = str(source).partition(":")
    return _hub_rows(dataset, config or None, split, name)


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either: check the path."
    there = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, there, n=3)
    if near:
        return f"In that folder, the nearest names are {_listed(near)}."
    return f"In that folder there are {_listed(there[:10])}." if there else "That folder is empty."


def _text_file_rows(path: Path, kind: str, name: str) -> Iterator[Row]:
    compressed = path.name.lower().endswith(".gz")
    with gzip.open(path, "rb") if compressed else path.open("rb") as file:
        lines = _decoded_lines(cast(BinaryIO, file), f"{name}: {path}")
        if kind == ".csv":
            yield from _csv_rows(lines, f"{name}: {path}")
        elif kind == ".json":
            yield from _json_rows(lines, f"{name}: {path}")
        else:
            yield from _jsonl_rows(enumerate(lines, start=1), f"{name}: {path}")


def _decoded_lines(file: BinaryIO, source: str) -> Iterator[str]:
    # Splitting bytes at "\n" only: str.splitlines would also split at U+2028, which JSON texts may hold.
    number = 0
    try:
        for number, line in enumerate(file, start=1):
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}, line {number}: not UTF-8 ({error.reason}). Convert the file to UTF-8.") from error
    except EOFError as error:
        raise ValueError(
            f"{source}: the gzip file breaks off after line {number}. Copy or download it again."
        ) from error
    except (OSError, zlib.error) as error:
        raise ValueError(
            f"{source}: cannot be read after line {number} ({error}). Copy or download it again."
        ) from error


def _jsonl_rows(numbered_lines: Iterable[tuple[int, str]], source: str) -> Iterator[Row]:
    for number, line in numbered_lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(
                f"{source}, line {number}: not valid JSON ({error}). Each line must be one whole JSON object."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{source}, line {number}: a {type(row).__name__}, not a JSON object with named fields.")
        yield f"line {number}", row


def _json_rows(lines: Iterator[str], source: str) -> Iterator[Row]:
    """One array of objects; or, as other readers allow under this suffix, one object a line."""
    text = list(lines)
    if not "".join(text[:1]).lstrip().startswith("["):
        yield from _jsonl_rows(enumerate(text, start=1), source)
        return
    try:
        rows = json.loads("".join(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{source}: not valid JSON ({error}). Give an array of objects.") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{source}, row {number}: a {type(row).__name__}, not a JSON object with named fields.")
        yield f"row {number}", row


def _csv_rows(lines: Iterator[str], source: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a long text is no error; the module's own limit is 131,072 characters
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        repeated = [field for field, count in Counter(header).items() if count > 1]
        if repeated:
            raise ValueError(f"{source}, line 1: the field {repeated[0]!r} comes twice. Rename one of them.")
        for number, values in enumerate(filter(None, reader), start=1):
            if len(values) != len(header):
                raise ValueError(
                    f"{source}, row {number} (line {reader.line_num}): {len(values)} values for {len(header)} fields. "
                    'Put texts that hold a comma, a quote or a newline in double quotes, with "" for a quote.'
                )
            yield f"row {number} (line {reader.line_num})", dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise ValueError(f"{source}, line {reader.line_num}: not valid CSV ({error}).") from error


def _parquet_rows(path: Path, name: str) -> Iterator[Row]:
    import datasets

    with tempfile.TemporaryDirectory() as cache:  # streaming reads the file itself; the cache gets only lock files
        yield from _dataset_rows(
            lambda: datasets.load_dataset(
                "parquet", data_files={"train": [str(path)]}, split="train", streaming=True, cache_dir=cache
            ),
            f"{name}: {path}",
            "Check that it is a whole parquet file",
        )


def _folder_rows(path: Path, config: str | None, split: str, name: str) -> Iterator[Row]:
    import datasets

    source = f"{name}: {path}"
    if any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
        way_out = "Save the folder again with datasets' save_to_disk"
        yield from _dataset_rows(lambda: _saved_split(path, split, source), source, way_out)
        return
    with tempfile.TemporaryDirectory() as cache:
        yield from _dataset_rows(
            lambda: datasets.load_dataset(
                str(path.resolve()), name=config, split=split, streaming=True, cache_dir=cache
            ),
            source,
            "Give a folder saved by datasets' save_to_disk, or one laid out like a hub data set, and one of its splits",
        )


def _saved_split(path: Path, split: str, source: str) -> Any:
    import datasets

    saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.Dataset):
        return saved
    if split not in saved:
        raise ValueError(f"there is no split {split!r}, only {_listed(map(str, saved))}")
    return saved[split]


def _hub_rows(dataset: str, config: str | None, split: str, name: str) -> Iterator[Row]:
    import datasets

    return _dataset_rows(
        lambda: datasets.load_dataset(dataset, config, split=split),
        f"{name}: {dataset}" + (f":{config}" if config else ""),
        "It is no local file or folder, so it was taken for a hub name: check the name, the config, the split and the "
        "network; a data set that was read once can be read again offline",
    )


def _dataset_rows(load: Callable[[], Any], source: str, way_out: str) -> Iterator[Row]:
    from datasets.exceptions import DatasetsError

    number = 0
    try:
        for number, row in enumerate(load(), start=1):
            yield f"row {number}", row
    except (OSError, ValueError, DatasetsError) as error:
        after = f" after row {number}" if number else ""
        raise ValueError(f"{source}: cannot be read{after} ({error}). {way_out}.") from error
