"""Rows of any source, one after another, each with the place where it stands. Hugging Face `datasets` reads them all.

Parquet files, saved folders and hub names carry their types. Text files do not, and the JSON and CSV builders of
`datasets` 5.2 guess them: the text "2020-01-01" becomes a date, the id "007" the number 7, 2**70 is 1.18e21, a field
that is absent is null, a CSV row that is too short is filled with "" and, where every row has one value too many, the
last is dropped. So text files are read by its text builder, which gives their lines, and the lines are parsed here as
what they say. Line breaks within a quoted CSV text come out as "\n", whichever they were.
"""

from __future__ import annotations

import csv
import difflib
import glob
import gzip
import json
import locale
import re
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from deft_tsds.embed.folders import within
from deft_tsds.runs import read_json

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
"""The files that `read_rows` reads."""

Row = tuple[str, dict[str, Any]]  # where it stands ("line 3"), what it holds


def listed(names: Iterable[str]) -> str:
    """Names for an error message: 'a', 'b'."""
    return ", ".join(repr(name) for name in names)


def read_rows(source: str | Path, split: str, name: str) -> Iterator[Row]:
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
    if parts := pattern_files(source):
        return _pattern_rows(parts, split, name)
    folder, _, config = str(path).rpartition(":")
    if folder and Path(folder).is_dir():
        return _folder_rows(Path(folder), config, split, name)
    if kind is not None or isinstance(source, Path) or str(source).startswith(("/", ".", "~")):
        raise ValueError(f"{name}: {source} is missing. {_near_files(path)}")
    dataset, _, config = str(source).partition(":")
    return _hub_rows(dataset, config or None, split, name)


def pattern_files(source: str | Path) -> list[Path]:
    """The files that a pattern such as "part-*.jsonl.gz" names, sorted; none for any other source."""
    path = str(Path(source).expanduser())
    if not glob.has_magic(path) or Path(path).exists():
        return []
    return sorted(Path(found) for found in glob.glob(path))


def _pattern_rows(files: Iterable[Path], split: str, name: str) -> Iterator[Row]:
    for file in files:
        for position, row in read_rows(file, split, name):
            yield f"{file.name}, {position}", row


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent} either: check the path."
    there = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, there, n=3)
    if near:
        return f"In that folder, the nearest names are {listed(near)}."
    return f"In that folder there are {listed(there[:10])}." if there else "That folder is empty."


def _text_file_rows(path: Path, kind: str, name: str) -> Iterator[Row]:
    lines = _lines(path, f"{name}: {path}")
    if kind == ".csv":
        yield from _csv_rows(lines, f"{name}: {path}")
    elif kind == ".json":
        yield from _json_rows(lines, f"{name}: {path}")
    else:
        yield from _jsonl_rows(enumerate(lines, start=1), f"{name}: {path}")


def _datasets() -> Any:
    """The library, kept from telling the hub of each local file that is read, which also waits for the network."""
    import datasets
    import datasets.config

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    return datasets


def _lines(path: Path, source: str) -> Iterator[str]:
    datasets = _datasets()
    compressed = path.name.lower().endswith(".gz")
    if compressed and locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8"):
        raise ValueError(
            f"{source}: `datasets` reads .gz files in the encoding of the locale, and that is "
            f"{locale.getpreferredencoding(False)}, not UTF-8. Set PYTHONUTF8=1, or unpack the file."
        )
    try:
        with tempfile.TemporaryDirectory() as cache:  # streaming reads the file itself; the cache gets only lock files
            for number, row in enumerate(
                datasets.load_dataset(
                    "text",
                    data_files=glob.escape(str(path)),
                    split="train",
                    streaming=True,
                    keep_linebreaks=True,
                    encoding="utf-8-sig",
                    cache_dir=cache,
                )
            ):
                yield row["text"] if number else row["text"].removeprefix("\ufeff")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        _raise_where_it_breaks(path, compressed, source, error)


def _raise_where_it_breaks(path: Path, compressed: bool, source: str, error: Exception) -> NoReturn:
    """Say on which line: `datasets` reads millions of characters at once, so that its own error cannot."""
    number = 0
    try:
        with gzip.open(path, "rb") if compressed else path.open("rb") as file:
            for line in file:
                number += 1
                line.decode()
    except UnicodeDecodeError as byte:
        raise ValueError(f"{source}, line {number}: not UTF-8 ({byte.reason}). Convert the file to UTF-8.") from byte
    except EOFError as end:
        raise ValueError(f"{source}: the gzip file breaks off after line {number}. Copy or download it again.") from end
    except (OSError, zlib.error) as failure:
        error = failure
    raise ValueError(f"{source}: cannot be read after line {number} ({error}). Copy or download it again.") from error


def _jsonl_rows(numbered_lines: Iterable[tuple[int, str]], source: str) -> Iterator[Row]:
    for number, line in numbered_lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # a number may have too many digits
            raise ValueError(
                f"{source}, line {number}: not valid JSON ({error}). Each line must be one whole JSON object."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{source}, line {number}: {_kind(row)}, not a JSON object with named fields.")
        yield f"line {number}", row


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _json_rows(lines: Iterator[str], source: str) -> Iterator[Row]:
    """One array of objects; or, as other readers allow under this suffix, one object a line."""
    text = list(lines)
    if not "".join(text[:1]).lstrip().startswith("["):
        yield from _jsonl_rows(enumerate(text, start=1), source)
        return
    try:
        rows = json.loads("".join(text))
    except (ValueError, RecursionError) as error:  # a number may have too many digits
        raise ValueError(f"{source}: not valid JSON ({error}). Give an array of objects.") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{source}, row {number}: {_kind(row)}, not a JSON object with named fields.")
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
    datasets = _datasets()
    with tempfile.TemporaryDirectory() as cache:  # streaming reads the file itself; the cache gets only lock files
        yield from _dataset_rows(
            lambda: datasets.load_dataset(
                "parquet", data_files=glob.escape(str(path)), split="train", streaming=True, cache_dir=cache
            ),
            f"{name}: {path}",
            "Check that it is a whole parquet file",
        )


def _folder_rows(path: Path, config: str | None, split: str, name: str) -> Iterator[Row]:
    datasets = _datasets()
    source = f"{name}: {path}"
    if any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
        way_out = "Save the folder again with datasets' save_to_disk"
        yield from _dataset_rows(lambda: _saved_split(path, split, source), source, way_out)
        return
    if glob.escape(str(path.resolve())) != str(path.resolve()):
        raise ValueError(f"{source}: `datasets` takes *, ? and [ in its path for a pattern. Rename the folder.")
    with tempfile.TemporaryDirectory() as cache:

        def laid_out() -> Any:
            _check_card(path)
            return datasets.load_dataset(str(path.resolve()), name=config, split=split, streaming=True, cache_dir=cache)

        yield from _dataset_rows(
            laid_out,
            source,
            "Give a folder saved by datasets' save_to_disk, or one laid out like a hub data set, and one of its splits",
        )


def _saved_split(path: Path, split: str, source: str) -> Any:
    datasets = _datasets()
    _check_names(path)
    saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.Dataset):
        return saved
    if split not in saved:
        raise ValueError(f"there is no split {split!r}, only {listed(map(str, saved))}")
    return saved[split]


def _check_names(folder: Path) -> None:
    """Raise ValueError where a saved folder names a file or a split that is not in it, or a file of it is damaged."""
    parts = [folder]
    if (folder / "dataset_dict.json").is_file():
        splits = read_json(folder / "dataset_dict.json")["splits"]
        parts = [within(folder, str(split), folder / "dataset_dict.json") for split in splits]
    for part in parts:
        state = part / "state.json"
        for file in read_json(state)["_data_files"] if state.is_file() else ():
            _check_arrow(within(part, str(file["filename"]), state))


def _check_arrow(path: Path) -> None:
    """Raise ValueError for an Arrow file whose texts lie outside it: read by `datasets`, they crash the process."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        for batch in pa.ipc.open_stream(file):
            batch.validate(full=True)


def _check_card(folder: Path) -> None:
    """Raise ValueError where the card of a folder names data that is not in it."""
    import yaml

    for card in (folder / "README.md", folder / ".huggingface.yaml"):
        if not card.is_file():
            continue
        text = card.read_text(encoding="utf-8")
        for name in _named_data(yaml.safe_load(text if card.suffix == ".yaml" else _front_matter(text))):
            if "://" in name or name.startswith("~"):
                raise ValueError(f"{card} names {name[:80]!r}, which is not in the folder: copy the data into it")
            within(folder, name, card)


def _front_matter(text: str) -> str:
    """What stands between the first two lines `---` of a card."""
    begun, _, rest = text.removeprefix("\ufeff").partition("\n")
    return re.split(r"(?m)^---\s*$", rest, maxsplit=1)[0] if begun.strip() == "---" else ""


def _named_data(value: Any, named: bool = False) -> Iterator[str]:
    """Every text within the entries `data_files` and `data_dir` of a card, wherever they stand."""
    if isinstance(value, str) and named:
        yield value
    items = (
        value.items() if isinstance(value, dict) else ((None, one) for one in value) if isinstance(value, list) else ()
    )
    for key, item in items:
        inside = key in ("data_files", "data_dir") or (named and key != "split")
        yield from _named_data(item, inside)


def _hub_rows(dataset: str, config: str | None, split: str, name: str) -> Iterator[Row]:
    import datasets

    return _dataset_rows(
        lambda: datasets.load_dataset(dataset, config, split=split),
        f"{name}: {dataset}" + (f":{config}" if config else ""),
        "It is no local file or folder, so it was taken for a hub name: check the name, the config, the split and the "
        "network; a data set that was read once can be read again offline",
    )


def _dataset_rows(load: Callable[[], Any], source: str, way_out: str) -> Iterator[Row]:
    number = 0
    try:
        for number, row in enumerate(load(), start=1):
            yield f"row {number}", row
    except Exception as error:  # the library trusts its own files: a spoiled one raises whatever its parsing raises
        after, said = f" after row {number}" if number else "", str(error)
        if not isinstance(error, (OSError, ValueError)):
            said = f"{type(error).__name__}: {said}"
        raise ValueError(f"{source}: cannot be read{after} ({said}). {way_out}.") from error
