"""Selections out to the trainers and tools of others, and the selections and features of others in.

What comes from outside is data and never code: arrays are read without pickle, and torch files with weights alone.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from deft_tsds.arrays import as_matrix
from deft_tsds.data.examples import Examples
from deft_tsds.embed.files import open_npy
from deft_tsds.embed.given import read_embeddings
from deft_tsds.runs import atomic_write, file_hash, write_jsonl
from deft_tsds.sampling import check_key
from deft_tsds.selection import Selection
from deft_tsds.selectors.dsir import gumbel_top_k, top_k

Layout = Literal["plain", "alpaca", "messages"]
Repeats = Literal["refuse", "weigh"]


def subset_rows(selection: Selection, examples: Examples, *, layout: Layout = "plain") -> list[dict[str, Any]]:
    """The chosen examples as rows that a trainer reads.

    Args:
        selection: rows of `examples`.
        examples: the pool that the selection was made from.
        layout: "plain" (all that is known: texts, references, group, flags, index, weight, score, and why), "alpaca"
            (`instruction`, `input`, `output`; an example without an instruction has its prompt there and an empty
            input) or "messages" (a turn of the user and one of the assistant). The last two have the `id` beside that,
            and the `weight` where weights differ.

    Returns:
        One dict of plain JSON an example, in the order of the selection; every dict has the same keys.

    Raises:
        ValueError: unknown layout, an index beyond the examples, or a layout that needs targets and has none.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout is {layout!r}: choose one of {', '.join(get_args(Layout))}.")
    weighted = bool((selection.weights != 1).any())
    rows = []
    for example, index, weight, score, reason in zip(
        examples.take(selection.indices).rows(),
        selection.indices.tolist(),
        selection.weights.tolist(),
        selection.scores.tolist(),
        selection.reasons,
        strict=True,
    ):
        if layout == "plain":
            flags = {f"flag_{name}": value for name, value in example.pop("flags").items()}
            rows.append({**example, **flags, "index": index, "weight": weight, "score": score, "why": reason["why"]})
            continue
        if not example["target"]:
            raise ValueError(f"example {example['id']!r} has no target: write it in the layout 'plain'.")
        row = _alpaca(example) if layout == "alpaca" else _messages(example)
        rows.append({"id": example["id"], **row, **({"weight": weight} if weighted else {})})
    return rows


def write_subset(selection: Selection, examples: Examples, path: str | Path, *, layout: Layout = "plain") -> None:
    """Write the chosen examples to a .jsonl or .parquet file, atomically; the rows are those of `subset_rows`.

    Raises:
        ValueError: as `subset_rows`, or another kind of file.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path} is neither .jsonl nor .parquet: choose one of them.")
    rows = subset_rows(selection, examples, layout=layout)
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
        return
    import pyarrow as pa  # here, because only this needs it
    import pyarrow.parquet

    with atomic_write(path) as temporary:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), temporary)


def write_dataset(
    selection: Selection, examples: Examples, folder: str | Path, *, layout: Layout = "plain", title: str | None = None
) -> None:
    """Write a folder that `datasets.load_dataset(folder)` and the hub read, with a card that says how it was made.

    The folder holds `data/train.parquet` (see `subset_rows`), `selection/` (what `Selection.load` reads) and
    `README.md`, the card. It appears whole or not at all.

    Args:
        selection, examples, layout: as `subset_rows`.
        folder: must not exist yet.
        title: of the card; by default the name of the folder.

    Raises:
        ValueError: as `subset_rows`, or a folder that is there already.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} is there already: remove it, or give another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "made"
        write_subset(selection, examples, made / "data" / "train.parquet", layout=layout)
        selection.save(made / "selection")
        card = _card(selection, examples, layout, title or folder.name)
        (made / "README.md").write_text(card, encoding="utf-8")
        made.rename(folder)


def read_indices(path: str | Path, *, candidates: int, repeats: Repeats = "refuse") -> Selection:
    """Read row numbers that another tool chose, such as the array that the reference code of TSDS writes.

    Args:
        path: .npy (whole numbers), .txt (one a line) or .pt (a tensor).
        candidates: N, the size of the pool that they were chosen from.
        repeats: what to do with a row that comes twice: "refuse" it, or "weigh" it by how often it comes, as
            `TSDS(replace=True)` does with its draws.

    Returns:
        A `Selection`, ascending; its info names the file and its SHA-256.

    Raises:
        ValueError: a file that is missing, broken or of another kind; no numbers; numbers that are not whole, are out
            of range or come twice. It names the file and the row.
    """
    if repeats not in get_args(Repeats):
        raise ValueError(f"repeats is {repeats!r}: choose one of {', '.join(get_args(Repeats))}.")
    path = Path(path)
    numbers = _vector(path)
    whole = numbers.astype(np.int64) if numbers.dtype.kind in "iu" else _whole(numbers, path)
    outside = (whole < 0) | (whole >= candidates)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"{path}, row {row}: {whole[row]} is not between 0 and {candidates - 1}, the rows of the pool."
        )
    rows, first, counts = np.unique(whole, return_index=True, return_counts=True)
    if repeats == "refuse" and len(rows) < len(whole):
        row = int(np.setdiff1d(np.arange(len(whole)), first)[0])
        raise ValueError(
            f"{path}, row {row}: {whole[row]} comes again; give each row once, or set repeats='weigh' if they are "
            "draws with replacement."
        )
    reasons = [
        {"why": f"Chosen by {path.name}{f', {count} times' if count > 1 else ''}.", "times": count}
        for count in counts.tolist()
    ]
    return Selection.of(rows, weights=counts, scores=counts, reasons=reasons, info={"source": _source(path)})


def read_log_weights(path: str | Path, *, candidates: int, budget: int, key: jax.Array, draw: bool = True) -> Selection:
    """Choose by log importance weights that another tool computed, such as DSIR's.

    Args:
        path: a .npy, .txt or .pt file with one number a candidate, or the folder of DSIR's shards, 0.npy, 1.npy, ...
        candidates: N, the size of the pool.
        budget: how many rows to choose.
        key: `jax.random.key(seed)`.
        draw: Gumbel top-k, as DSIR; False takes the highest weights.

    Returns:
        A `Selection`, ascending; scores are the log weights.

    Raises:
        ValueError: as `read_indices`; a number of weights that is not N, a weight that is NaN or +infinite, or fewer
            rows with a weight above 0 (a log weight above -infinity, which DSIR gives texts that are too short) than
            the budget.
    """
    path, key = Path(path), check_key(key)
    files = _shards(path) if path.is_dir() else [path]
    parts = []
    for file in files:
        part = np.asarray(_vector(file), np.float64)
        bad = np.isnan(part) | (part == np.inf)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"{file}, row {row}: the log weight is {part[row]}; it must be a number, or -infinity.")
        parts.append(part)
    log_weight_N = np.concatenate(parts)
    if len(log_weight_N) != candidates:
        raise ValueError(f"{path} has {len(log_weight_N)} log weights for {candidates} candidates: give one each.")
    possible = int(np.isfinite(log_weight_N).sum())
    if not 1 <= budget <= possible:
        raise ValueError(f"budget is {budget}, but {path} gives {possible} candidates a weight above 0.")
    rows = gumbel_top_k(log_weight_N, budget, key) if draw else top_k(log_weight_N, budget)
    reasons = [
        {
            "why": f"{'Drawn' if draw else 'Taken'} by its log weight of {weight:.4g} in {path.name}.",
            "log_weight": weight,
        }
        for weight in log_weight_N[rows].tolist()
    ]
    return Selection.of(rows, scores=log_weight_N[rows], reasons=reasons, info={"source": _source(path)})


def read_features(path: str | Path, *, rows: int, name: str = "features") -> np.ndarray:
    """Read embeddings or gradient features, one row an example: .npy and .npz as `read_embeddings`, or a .pt tensor.

    Raises:
        ValueError: as `read_embeddings`, and as `read_indices` for .pt files.
    """
    path = Path(path)
    if path.suffix != ".pt":
        return read_embeddings(path, rows=rows, name=name)
    array = _tensor(path)
    if array.ndim != 2:
        raise ValueError(f"{name}: {path} has shape {array.shape}: give a matrix [rows, dimensions].")
    if len(array) != rows:
        raise ValueError(
            f"{name}: {path} has {len(array)} rows for {rows} examples: give one row an example, in order."
        )
    return as_matrix(array, f"{name} ({path})")


def _alpaca(example: dict[str, Any]) -> dict[str, Any]:
    instruction, found, rest = example["prompt"].rpartition(f": {example['input']}")
    if found and instruction.strip() and not rest:
        return {"instruction": instruction, "input": example["input"], "output": example["target"]}
    return {"instruction": example["prompt"], "input": "", "output": example["target"]}


def _messages(example: dict[str, Any]) -> dict[str, Any]:
    turns = [("user", example["prompt"]), ("assistant", example["target"])]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _card(selection: Selection, examples: Examples, layout: Layout, title: str) -> str:
    """The README.md of a data set: how it was made, in words and as JSON."""
    from deft_tsds import __version__

    info = selection.info
    groups = Counter(examples.groups[row] for row in selection.indices.tolist())
    pool_groups = Counter(examples.groups)
    made_by = info.get("selector", "a selector that gave no name")
    if "source" in info:
        made_by = f"`{info['source']['file']}` (SHA-256 `{info['source']['sha256']}`)"
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: data/train.parquet",
        "tags:",
        "- data-selection",
        "---",
        f"# {title}",
        "",
        f"{len(selection):,} of {len(examples):,} examples, chosen by {made_by} with deft_tsds {__version__}. "
        f"Layout: {layout}. Why each one was chosen stands in `selection/chosen.jsonl`.",
        "",
        f"The pool has the fingerprint `{examples.fingerprint()}` (SHA-256 of its rows).",
        "",
        "## How it was made",
        "",
        "```json",
        json.dumps(info, indent=2, ensure_ascii=False),
        "```",
    ]
    if set(groups) != {""}:
        lines += ["", "## What it is made of", "", "| group | chosen | of |", "|---|---|---|"]
        lines += [f"| {_cell(name)} | {count:,} | {pool_groups[name]:,} |" for name, count in groups.most_common()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _source(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": file_hash(path)}


def _shards(folder: Path) -> list[Path]:
    """The .npy files of a folder by their numbers."""
    files = [file for file in folder.glob("*.npy") if file.stem.isdecimal()]
    if sorted(int(file.stem) for file in files) != list(range(len(files))) or not files:
        raise ValueError(f"{folder} does not hold 0.npy, 1.npy, ... without gaps: give the folder of all shards.")
    return sorted(files, key=lambda file: int(file.stem))


def _vector(path: Path) -> np.ndarray:
    """The numbers of a file, one-dimensional and at least one."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: check the path.")
    readers = {".npy": _npy, ".txt": _txt, ".pt": _tensor}
    if path.suffix not in readers:
        raise ValueError(f"{path} is none of .npy, .txt, .pt: save a vector of numbers as one of them.")
    numbers = readers[path.suffix](path)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf":
        raise ValueError(f"{path} is {numbers.dtype} {numbers.shape}: give a vector of numbers.")
    if len(numbers) == 0:
        raise ValueError(f"{path} is empty: give at least one number.")
    return numbers


def _npy(path: Path) -> np.ndarray:
    try:
        return np.array(open_npy(path))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}): save a plain array of numbers with numpy.save.") from error


def _txt(path: Path) -> np.ndarray:
    numbers: list[float] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text ({error.reason}): write numbers, one a line.") from error
    for row, line in enumerate(lines):
        try:
            numbers.append(float(line))
        except ValueError as error:
            raise ValueError(f"{path}, row {row}: {line[:60]!r} is no number; give one a line.") from error
    return np.array(numbers)


def _tensor(path: Path) -> np.ndarray:
    """The one tensor of a torch file, read without running anything that the file may hold."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: check the path.")
    import torch  # here, because nothing else of this module needs it

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a spoiled file raises whatever its parser raises
        raise ValueError(f"{path} cannot be read as weights alone: save one plain tensor with torch.save.") from error
    if not isinstance(loaded, torch.Tensor):
        raise ValueError(f"{path} holds a {type(loaded).__name__}: save one plain tensor with torch.save.")
    try:
        return (loaded.float() if loaded.dtype == torch.bfloat16 else loaded).detach().numpy()
    except (RuntimeError, TypeError) as error:
        kind = f"{loaded.dtype}, {loaded.layout}"
        raise ValueError(
            f"{path} holds a tensor of {kind}: save one plain tensor of numbers with torch.save."
        ) from error


def _whole(numbers: np.ndarray, path: Path) -> np.ndarray:
    bad = ~(np.isfinite(numbers) & (numbers == np.round(numbers)) & (np.abs(numbers) < 2**53))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"{path}, row {row}: {numbers[row]} is no row number; give whole numbers.")
    return numbers.astype(np.int64)
