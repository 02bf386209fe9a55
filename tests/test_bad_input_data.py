"""Bad data, embeddings, selections and judgments: each is refused at once, with where it is and what to do."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
from refused import Bad, changed, check, lines, table, text

from deft_tsds.data.examples import Examples, read_examples, split_queries
from deft_tsds.data.exchange import read_features, read_indices, read_log_weights, write_subset
from deft_tsds.data.hygiene import Hygiene
from deft_tsds.data.ngrams import NgramCounts
from deft_tsds.embed.concatenated import Concatenated
from deft_tsds.embed.given import read_embeddings
from deft_tsds.embed.lexical import Lexical, LexicalEncoder
from deft_tsds.embed.store import open_store, write_store
from deft_tsds.judging.collecting import read_answers
from deft_tsds.judging.making import Study, make
from deft_tsds.judging.written import Written, read_predictions
from deft_tsds.selection import Selection

GOOD = {"id": "1", "input": "a", "target": "b", "task": "t"}
KEY = jax.random.key(0)
EXAMPLES = Examples(("a", "b"), ("x", "y"), ("x", "y"), ("u", "v"), (("u",), ("v",)), ("g", "h"))
MATRIX = np.arange(6, dtype=np.float32).reshape(3, 2)


def rows(*given: Any, **options: Any):
    return lambda folder: read_examples(lines(folder / "a.jsonl", *given), **options)


def file(name: str, content: str | bytes, **options: Any):
    return lambda folder: read_examples(text(folder / name, content), **options)


def saved(change, **options: Any):
    """A folder of `save_to_disk`, changed."""

    def do(folder: Path) -> None:
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset.from_list([GOOD]).save_to_disk(str(folder / "saved"))
        change(folder / "saved")
        read_examples(folder / "saved", **options)

    return do


def laid_out(card: str, **files: str):
    """A folder laid out like a hub data set, with this card."""

    def do(folder: Path) -> None:
        text(folder / "set/README.md", f"---\n{card}\n---\n# A set\n")
        text(folder / "secret.jsonl", json.dumps(GOOD))
        read_examples(folder / "set")

    return do


DATA = [
    Bad("a row that is null", rows(GOOD, None), "a.jsonl, line 2: null", "a JSON object with named fields"),
    Bad("a row that is a text", rows("x"), "a.jsonl, line 1: a str", "a JSON object with named fields"),
    Bad("two objects on a line", file("a.jsonl", '{"a": 1}{"a": 2}\n'), "a.jsonl, line 1", "one whole JSON object"),
    Bad("half an object", file("a.jsonl", '{"id": "1", "inp'), "a.jsonl, line 1", "one whole JSON object"),
    Bad("an object over two lines", file("a.jsonl", '{"id": "1",\n "input": "a"}'), "line 1", "one whole JSON object"),
    Bad("deep nesting", file("a.jsonl", "[" * 10**5), "a.jsonl, line 1", "one whole JSON object"),
    Bad(
        "a number of 5,000 digits",
        file("a.jsonl", '{"id": ' + "1" * 5000 + "}"),
        "a.jsonl, line 1",
        "whole JSON object",
    ),
    Bad("JSON that ends early", file("a.json", '[{"id": "1"}'), "a.json: not valid JSON", "Give an array of objects"),
    Bad("an array of arrays", file("a.json", "[[1]]"), "a.json, row 1: a list", "a JSON object with named fields"),
    Bad("an empty array", file("a.json", "[]"), "a.json holds no rows", "at least one example"),
    Bad("an empty file", file("a.jsonl", ""), "a.jsonl holds no rows", "at least one example"),
    Bad("blank lines alone", file("a.jsonl", "\n \n"), "a.jsonl holds no rows", "at least one example"),
    Bad("UTF-16", file("a.jsonl", "{}".encode("utf-16")), "a.jsonl, line 1: not UTF-8", "Convert the file to UTF-8"),
    Bad("Latin-1 on line 3", file("a.csv", b"id,input\n1,a\n2,\xe9\n"), "a.csv, line 3: not UTF-8", "to UTF-8"),
    Bad("a gzip cut off", file("a.jsonl.gz", gzip.compress(b"{}\n" * 999)[:30]), "a.jsonl.gz", "Copy or download"),
    Bad("a gzip of garbage", file("a.csv.gz", gzip.compress(b"\xff\n")), "a.csv.gz, line 1: not UTF-8", "to UTF-8"),
    Bad(
        "a gzip whose checksum is wrong",
        file("a.csv.gz", gzip.compress(b"id\n1\n")[:-8] + b"12345678"),
        "a.csv.gz",
        "Copy or download",
    ),
    Bad("a CSV row too long", file("a.csv", "id,input,target\n1,a,b,c\n"), "row 1 (line 2): 4 values", "double quotes"),
    Bad("a CSV without its fields", file("a.csv", "1,a,b\n2,c,d\n"), "a.csv, row 1", "Set input_field to one of them"),
    Bad(
        "a CSV with semicolons", file("a.csv", "id;input;target\n1;a;b\n"), "no field 'input'", "Set input_field to one"
    ),
    Bad("a CSV with NUL", file("a.csv", b"id,input,target\n1,\x00,\n"), "a.csv", "the field 'target' is blank"),
    Bad("another kind of file", file("a.xlsx", b"PK"), "a.xlsx is of no kind", "Give one of .jsonl"),
    Bad("a file without suffix", file("pool", "{}"), "pool is of no kind", "a folder, or a hub name"),
    Bad("a parquet cut off", file("a.parquet", b"PAR1" + b"\0" * 50 + b"PAR1"), "a.parquet", "a whole parquet file"),
    Bad("an empty folder", lambda folder: read_examples(folder), "cannot be read", "save_to_disk"),
    Bad("no such folder", lambda f: read_examples(f / "no/pool.jsonl"), "pool.jsonl is missing", "check the path"),
    Bad(
        "a name nearly right",
        lambda f: (lines(f / "pool.jsonl", GOOD), read_examples(f / "pol.jsonl")),
        "pol.jsonl is missing",
        "nearest names are 'pool.jsonl'",
    ),
    Bad(
        "an input that is a list",
        rows({**GOOD, "input": ["a"]}),
        "line 1: the field 'input' is list",
        "Write it as text",
    ),
    Bad("an input that is an object", rows({**GOOD, "input": {}}), "line 1: the field 'input' is dict", "as text"),
    Bad(
        "a target that is null",
        rows(GOOD, {**GOOD, "id": "2", "target": None}),
        "line 2: the field 'target' is null",
        "Drop the row",
    ),
    Bad("an id that is null", rows({**GOOD, "id": None}), "line 1: the field 'id' is null", "Drop the row"),
    Bad("an id that is a float", rows({**GOOD, "id": 1.5}), "line 1: the field 'id' is float", "Write it as text"),
    Bad(
        "an id that is NaN",
        file("a.jsonl", '{"id": NaN, "input": "a", "target": "b"}'),
        "line 1: the field 'id' is float",
        "Write it as text",
    ),
    Bad("a blank id", rows({**GOOD, "id": " "}), "line 1: the field 'id' is blank", "name another id_field"),
    Bad("a blank group", rows({**GOOD, "task": ""}, group_field="task"), "the field 'task' is blank", "group_field"),
    Bad(
        "a group that is a list", rows({**GOOD, "task": ["t"]}, group_field="task"), "the field 'task' is list", "text"
    ),
    Bad(
        "an instruction that is null",
        rows({**GOOD, "do": None}, instruction_field="do"),
        "the field 'do' is null",
        "Drop the row",
    ),
    Bad(
        "a reference that is a number",
        rows({**GOOD, "refs": ["x", 2]}, references_field="refs"),
        "entry 2 of the field 'refs' is int",
        "Write it as text",
    ),
    Bad(
        "a flag that is null",
        rows({**GOOD, "bad": None}, flag_fields=["bad"]),
        "line 1: the field 'bad' is None",
        "drop the flag",
    ),
    Bad("a `where` of a field that is not there", rows(GOOD, where={"tsk": "t"}), "no field 'tsk' (where)", "'task'"),
    Bad("a `where` that no row has", rows({**GOOD, "task": 3}, where={"task": "4"}), "no row satisfies", "task is '3'"),
    Bad("a `where` that is no mapping", rows(GOOD, where="task=t"), "where is 'task=t'", "give a mapping"),
    Bad("a limit that is no whole number", rows(GOOD, limit=1.5), "limit is 1.5", "give an integer"),
    Bad("a limit as text", rows(GOOD, limit="5"), "limit is '5'", "give an integer"),
    Bad("a negative limit", rows(GOOD, limit=-1), "limit is -1", "give 1 or more"),
    Bad("flag fields as one text", rows(GOOD, flag_fields="bad"), "flag_fields is 'bad'", "give a list of names"),
    Bad("no input field", rows(GOOD, input_field=None), "input_field is None", "name at least one field"),
    Bad(
        "a saved folder without its split",
        saved(lambda f: _as_dict(f), split="test"),
        "no split 'test', only 'train'",
        "Save the folder again",
    ),
    Bad(
        "a saved folder whose state is a list",
        saved(lambda f: text(f / "state.json", "[]")),
        "saved",
        "Save the folder again",
    ),
    Bad(
        "a saved folder without its data",
        saved(lambda f: [p.unlink() for p in f.glob("*.arrow")]),
        "cannot be read",
        "Save the folder again",
    ),
    Bad("a saved folder whose texts lie outside it", lambda f: _outside(f), "cannot be read", "Save the folder again"),
    Bad(
        "a saved folder that names a file elsewhere",
        saved(lambda f: changed(f / "state.json", _data_files=[{"filename": "../../x.arrow"}])),
        "state.json names '../../x.arrow', which leads out",
        "Copy what is meant into the folder",
    ),
    Bad(
        "a saved folder that names an absolute path",
        saved(lambda f: changed(f / "state.json", _data_files=[{"filename": "/etc/passwd"}])),
        "state.json names '/etc/passwd'",
        "Copy what is meant into the folder",
    ),
    Bad(
        "a saved folder with a link out of it",
        saved(lambda f: _link_out(f)),
        "which leads out of",
        "Copy what is meant",
    ),
    Bad(
        "a saved folder with splits elsewhere",
        saved(lambda f: text(f / "dataset_dict.json", '{"splits": [".."]}')),
        "dataset_dict.json names '..'",
        "Copy what is meant",
    ),
    Bad(
        "a card that names data elsewhere",
        laid_out("configs:\n- config_name: default\n  data_files: ../secret.jsonl"),
        "README.md names '../secret.jsonl', which leads out",
        "Copy what is meant into the folder",
    ),
    Bad(
        "a card that names an absolute path",
        laid_out("configs:\n- config_name: a\n  data_files:\n  - split: train\n    path: /etc/passwd"),
        "README.md names '/etc/passwd'",
        "Copy what is meant",
    ),
    Bad(
        "a card that names an address",
        laid_out("configs:\n- config_name: a\n  data_files: https://example.org/x.csv"),
        "README.md names 'https://example.org/x.csv'",
        "copy the data into it",
    ),
    Bad(
        "a card that names a folder elsewhere",
        laid_out("configs:\n- config_name: a\n  data_dir: ../.."),
        "README.md names '../..'",
        "Copy what is meant",
    ),
    Bad("a card that is no YAML", laid_out("configs: [[["), "cannot be read", "laid out like a hub data set"),
    Bad(
        "Examples.load of other rows",
        lambda f: Examples.load(lines(f / "a.jsonl", GOOD)),
        "a.jsonl, line 1",
        "Read other files with read_examples",
    ),
    Bad(
        "Examples.load of ids that are numbers",
        lambda f: _own_rows(f, id=5),
        "a.jsonl, line 2: 'id' is int",
        "Read other files with read_examples",
    ),
    Bad(
        "Examples.load of flags that are a list",
        lambda f: _own_rows(f, flags=["x"]),
        "a.jsonl, line 2",
        "Read other files with read_examples",
    ),
    Bad(
        "Examples.load of references that are a text",
        lambda f: _own_rows(f, references="u"),
        "line 2: 'references'",
        "Read other files with read_examples",
    ),
    Bad(
        "queries: more than there are",
        lambda _: split_queries(EXAMPLES, group="g", count=2, key=KEY),
        "count is 2",
        "give 1 to that",
    ),
    Bad(
        "queries: a group that there is not",
        lambda _: split_queries(EXAMPLES, group="k", count=1, key=KEY),
        "no row has the group 'k'",
        "The groups, with their rows, are 'g' (1)",
    ),
    Bad("n-grams of no texts", lambda _: NgramCounts([]), "texts is empty", "give at least one text"),
    Bad("n-grams of length 0", lambda _: NgramCounts(["a"], longest=0), "longest is 0", "give an integer at least 1"),
    Bad("hygiene: a cosine of 2", lambda _: Hygiene(cosine=2.0), "cosine is 2", "at most 1"),
    Bad("hygiene: a Jaccard of 0", lambda _: Hygiene(jaccard=0.0), "jaccard is 0", "at least 0.1"),
    Bad(
        "hygiene: a check there is not",
        lambda _: Hygiene(near=cast(Any, "simhash")),
        "near is 'simhash'",
        "choose one of minhash",
    ),
    Bad(
        "hygiene: lengths that are missing", lambda _: Hygiene(longest=9)(["a"], key=KEY), "need lengths", "of each row"
    ),
    Bad(
        "hygiene: embeddings of other rows",
        lambda _: Hygiene()(["a"], key=KEY, embeddings=MATRIX),
        "embeddings has 3 rows for 1 texts",
        "give one row for each",
    ),
    Bad(
        "hygiene: nothing left", lambda _: Hygiene(longest=1)(["a b"], key=KEY, lengths=[5]), "no row is left", "Loosen"
    ),
]


def _as_dict(folder: Path) -> None:
    import shutil

    import datasets

    shutil.rmtree(folder)
    datasets.DatasetDict({"train": datasets.Dataset.from_list([GOOD])}).save_to_disk(str(folder))


def _outside(folder: Path) -> None:
    import datasets

    datasets.Dataset.from_list([{**GOOD, "input": "a" * 777}]).save_to_disk(str(folder / "saved"))
    data = next((folder / "saved").glob("*.arrow"))
    right, wrong = struct.pack("<ii", 0, 777), struct.pack("<ii", 0, 788465576)
    before, _, after = data.read_bytes().rpartition(right)
    data.write_bytes(before + wrong + after)
    read_examples(folder / "saved")


def _link_out(folder: Path) -> None:
    data = next(folder.glob("*.arrow"))
    moved = folder.parent / "elsewhere.arrow"
    data.rename(moved)
    data.symlink_to(moved)


def _own_rows(folder: Path, **changes: Any) -> None:
    EXAMPLES.save(folder / "a.jsonl")
    first, second = (json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines())
    Examples.load(lines(folder / "a.jsonl", first, second | changes))


def array(value: np.ndarray, name: str = "e.npy", rows: int = 3, **options: Any):
    def do(folder: Path) -> None:
        (np.savez if name.endswith("z") else np.save)(folder / name, value, allow_pickle=value.dtype == object)
        read_embeddings(folder / name, rows=rows, **options)

    return do


def npy(header: str, body: bytes = b"\0" * 24, name: str = "e.npy"):
    """A .npy file of this header."""
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + body
    return lambda folder: read_embeddings(text(folder / name, content), rows=3)


class Two:
    """An encoder of the length."""

    name = "two"

    def settings(self) -> dict[str, Any]:
        return {}

    def encode(self, texts) -> np.ndarray:
        return np.array([[len(one), 1] for one in texts], np.float32)


def store(change):
    """A store of three rows in two shards, changed; its header is given as JSON."""

    def do(folder: Path) -> None:
        write_store(folder / "store", ["a", "bb", "ccc"], Two(), shard_rows=2, normalize=False)
        path = folder / "store/store.json"
        header = json.loads(path.read_text())
        header = change(header, folder / "store") or header
        path.write_text(json.dumps(header))
        open_store(folder / "store").array()

    return do


def shard(**changes: Any):
    return store(lambda header, _: header["shards"][0].update(changes))


def lexical(**changes: Any):
    """A fitted lexical encoder with other arrays in its file."""

    def do(folder: Path) -> None:
        texts = ["one two three", "three four five", "five six one"]
        Lexical(dimension=2).fit(texts, key=KEY).save(folder / "l.npz")
        with np.load(folder / "l.npz", allow_pickle=False) as found:
            arrays = dict(found) | changes
        np.savez(folder / "l.npz", **arrays)
        LexicalEncoder.load(folder / "l.npz")

    return do


EMBEDDINGS = [
    Bad(
        "a folder in place of a file",
        lambda f: ((f / "e.npy").mkdir(), read_embeddings(f / "e.npy", rows=3)),
        "e.npy is a folder",
        "give the file",
    ),
    Bad(
        "a pickle in a .npy",
        array(np.array([[1, "a"]] * 3, object)),
        "e.npy cannot be read",
        "Save one array of floats",
    ),
    Bad(
        "a pickle alone", lambda f: read_embeddings(text(f / "e.npy", b"\x80\x04]\x94."), rows=3), "e.npy", "numpy.save"
    ),
    Bad("complex numbers", array(MATRIX.astype(complex)), "e.npy is complex128", "give float16, float32 or float64"),
    Bad("whole numbers", array(MATRIX.astype(int)), "e.npy is int64", "give float16, float32 or float64"),
    Bad("a vector", array(MATRIX[:, 0]), "e.npy has shape (3,)", "give a matrix [rows, dimensions]"),
    Bad(
        "another number of rows",
        array(MATRIX, rows=4),
        "e.npy has 3 rows for 4 examples",
        "one row an example, in order",
    ),
    Bad("no columns", array(MATRIX[:, :0]), "e.npy", "give at least one dimension"),
    Bad("NaN in row 1", array(np.where(np.arange(3)[:, None] == 1, np.nan, MATRIX)), "e.npy), row 1", "repair or drop"),
    Bad("a row too long for float32", array(MATRIX * 1e30), "e.npy), row 0", "scale the rows down"),
    Bad(
        "two arrays in a .npz",
        lambda f: (np.savez(f / "e.npz", a=MATRIX, b=MATRIX), read_embeddings(f / "e.npz", rows=3)),
        "e.npz cannot be read (it holds 2 arrays",
        "keep one",
    ),
    Bad(
        "a .npz cut off", lambda f: read_embeddings(text(f / "e.npz", b"PK\x03\x04abc"), rows=3), "e.npz", "numpy.save"
    ),
    Bad(
        "a .npz that promises more than it holds",
        lambda f: _bomb(f),
        "says that it has 4000000000000 bytes",
        "numpy.save",
    ),
    Bad(
        "a header of an array too large",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3000000000, 900), }"),
        "e.npy cannot be read",
        "Save one array of floats",
    ),
    Bad(
        "a header with a negative shape",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 2), }"),
        "e.npy",
        "Save one array of floats",
    ),
    Bad("a header that is no Python", npy("{'descr': ((("), "e.npy cannot be read", "Save one array of floats"),
    Bad("a header that runs code", npy("__import__('os').system('true')"), "e.npy cannot be read", "Save one array"),
    Bad("a header without shape", npy("{'descr': '<f4', 'fortran_order': False}"), "e.npy cannot be read", "Save one"),
    Bad(
        "a number too large for a size",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1" + "0" * 30 + ", 2), }"),
        "e.npy cannot be read",
        "Save one array of floats",
    ),
    Bad(
        "a store that is a file",
        lambda f: open_store(text(f / "store", "x")),
        "holds no embedding store",
        "write_store",
    ),
    Bad(
        "a store whose header is a list",
        store(lambda *_: [1]),
        "store.json is no header",
        "Delete the folder and embed",
    ),
    Bad("a store of another format", store(lambda h, _: h["request"].update(format=99)), "has format 99", "reads 1"),
    Bad(
        "a store that names a shard elsewhere",
        shard(file="../../secret.npy"),
        "names '../../secret.npy'",
        "Copy the store whole",
    ),
    Bad(
        "a store that names an absolute path", shard(file="/etc/passwd"), "names '/etc/passwd'", "Copy the store whole"
    ),
    Bad(
        "a store with a link for a shard",
        store(lambda h, f: _link_shard(f)),
        "names 'shard-00000.npy'",
        "Copy the store",
    ),
    Bad(
        "a store that lists a shard twice",
        store(lambda h, _: h["shards"].append(h["shards"][0])),
        "listed twice",
        "embed anew",
    ),
    Bad("a store with rows below one", shard(rows=-2), "shard 0.rows is -2", "embed anew"),
    Bad("a store whose rows are a list", shard(rows=[2]), "shard 0.rows is [2]", "embed anew"),
    Bad("a store whose dimension is text", store(lambda h, _: h.update(dimension="2")), "dimension is 2", "embed anew"),
    Bad(
        "a store without settings",
        store(lambda h, _: h["request"].pop("settings")),
        "store.json is no header",
        "embed anew",
    ),
    Bad(
        "a shard of other rows than listed",
        store(lambda h, f: _other_shard(h, f)),
        "float32 (1, 2) instead of",
        "run write_store again",
    ),
    Bad(
        "a shard that is a pickle",
        store(lambda h, f: _pickled_shard(h, f)),
        "shard-00000.npy is damaged",
        "write_store",
    ),
    Bad("one text for a store", lambda f: write_store(f / "s", [], Two()), "texts is empty", "at least one text"),
    Bad(
        "a lexical encoder that is missing",
        lambda f: LexicalEncoder.load(f / "no.npz"),
        "no.npz holds no lexical",
        "Fit it again and save it",
    ),
    Bad(
        "a lexical encoder of other sizes",
        lexical(vectors=np.ones((2, 2), np.float32)),
        "vectors of shape (2, 2)",
        "Fit it again",
    ),
    Bad(
        "a lexical encoder with NaN", lexical(inverse_frequency=np.full(1, np.nan, np.float32)), "l.npz", "Fit it again"
    ),
    Bad("a lexical encoder whose recipe is a list", lexical(recipe=np.array("[]")), "l.npz", "Fit it again"),
    Bad(
        "encoders side by side without one",
        lambda _: Concatenated([], []),
        "parts is empty",
        "give at least one encoder",
    ),
]


def _bomb(folder: Path) -> None:
    import zipfile

    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 10**6
    with zipfile.ZipFile(folder / "e.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("e.npy", content)
    read_embeddings(folder / "e.npz", rows=3)


def _link_shard(folder: Path) -> None:
    moved = folder.parent / "elsewhere.npy"
    (folder / "shard-00000.npy").rename(moved)
    (folder / "shard-00000.npy").symlink_to(moved)


def _other_shard(header: dict[str, Any], folder: Path) -> None:
    np.save(folder / "shard-00000.npy", np.ones((1, 2), np.float32))
    header["shards"][0]["bytes"] = (folder / "shard-00000.npy").stat().st_size


def _pickled_shard(header: dict[str, Any], folder: Path) -> None:
    np.save(folder / "shard-00000.npy", np.array([[{}]], object), allow_pickle=True)
    header["shards"][0]["bytes"] = (folder / "shard-00000.npy").stat().st_size


def indices(content: str | bytes | np.ndarray, name: str = "i.txt", **options: Any):
    def do(folder: Path) -> None:
        if isinstance(content, np.ndarray):
            buffer = io.BytesIO()
            np.save(buffer, content)
            read_indices(text(folder / name, buffer.getvalue()), candidates=5, **options)
        else:
            read_indices(text(folder / name, content), candidates=5, **options)

    return do


def log_weights(content: str):
    return lambda folder: read_log_weights(text(folder / "w.txt", content), candidates=3, budget=2, key=KEY)


def torch_file(value: str):
    """What this expression gives, saved by torch."""

    def do(folder: Path) -> None:
        import torch

        torch.save(eval(value, {"torch": torch}), folder / "t.pt")
        read_features(folder / "t.pt", rows=3)

    return do


def selection(change):
    """A saved selection, changed, with the hash of what stands there."""

    def do(folder: Path) -> None:
        import hashlib

        Selection.of([4, 1], info={"selector": "s"}).save(folder / "chosen")
        path = folder / "chosen/chosen.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()]
        lines(path, *(change(found) or found))
        changed(folder / "chosen/info.json", chosen_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        Selection.load(folder / "chosen")

    return do


CHOICES = [
    Bad("row numbers that are not UTF-8", indices(b"1\n\xff\n"), "i.txt", "one a line"),
    Bad("a row number that is a word", indices("1\ntwo\n"), "i.txt, row 1: 'two' is no number", "give one a line"),
    Bad("a blank line among row numbers", indices("1\n\n2\n"), "i.txt, row 1", "give one a line"),
    Bad("half a row number", indices("1\n1.5\n"), "i.txt, row 1: 1.5 is no row number", "give whole numbers"),
    Bad("an infinite row number", indices("inf\n"), "i.txt, row 0: inf is no row number", "give whole numbers"),
    Bad(
        "a row number beyond the pool",
        indices("1\n5\n"),
        "i.txt, row 1: 5 is not between 0 and 4",
        "the rows of the pool",
    ),
    Bad("a negative row number", indices("-1\n"), "i.txt, row 0: -1", "the rows of the pool"),
    Bad("a row number twice", indices("3\n3\n"), "i.txt, row 1: 3 comes again", "set repeats='weigh'"),
    Bad("no row numbers", indices(""), "i.txt is empty", "give at least one number"),
    Bad("row numbers in a matrix", indices(np.ones((2, 2), int), "i.npy"), "i.npy is int64 (2, 2)", "give a vector"),
    Bad("row numbers that are texts", indices(np.array(["a"]), "i.npy"), "i.npy is <U1", "give a vector of numbers"),
    Bad("row numbers as a pickle", indices(b"\x80\x04K\x01.", "i.npy"), "i.npy cannot be read", "with numpy.save"),
    Bad("row numbers in another file", indices("1", "i.json"), "i.json is none of", "save a vector"),
    Bad(
        "row numbers that are too large",
        indices(np.array([2**64 - 1], np.uint64), "i.npy"),
        "i.npy, row 0",
        "of the pool",
    ),
    Bad("log weights of +infinity", log_weights("0\ninf\n1\n"), "w.txt, row 1: the log weight is inf", "or -infinity"),
    Bad("log weights for other rows", log_weights("0\n1\n"), "w.txt has 2 log weights for 3", "give one each"),
    Bad(
        "fewer weights than the budget", log_weights("0\n-inf\n-inf\n"), "budget is 2", "1 candidates a weight above 0"
    ),
    Bad("a tensor that is sparse", torch_file("torch.eye(3).to_sparse()"), "t.pt", "save one plain tensor"),
    Bad("a tensor of complex numbers", torch_file("torch.ones(3, 2, dtype=torch.complex64)"), "t.pt", "real numbers"),
    Bad("a list of tensors", torch_file("[torch.ones(3, 2)]"), "t.pt holds a list", "save one plain tensor"),
    Bad("a tensor of other rows", torch_file("torch.ones(2, 2)"), "t.pt has 2 rows for 3", "one row an example"),
    Bad("a scalar tensor", torch_file("torch.tensor(1.0)"), "t.pt", "give a matrix"),
    Bad(
        "a selection whose row is a list",
        selection(lambda f: [[1], f[1]]),
        "chosen.jsonl, line 1",
        "Make the selection again",
    ),
    Bad(
        "a selection whose index is text",
        selection(lambda f: f[1].update(index="1")),
        "line 2: the index is 1",
        "again",
    ),
    Bad(
        "a selection whose index is negative",
        selection(lambda f: f[0].update(index=-4)),
        "line 1: the index is -4",
        "again",
    ),
    Bad(
        "a selection whose weight is null",
        selection(lambda f: f[0].update(weight=None)),
        "line 1: the weight is None",
        "Make the selection again",
    ),
    Bad(
        "a selection whose score is too large",
        selection(lambda f: f[0].update(score=1e300)),
        "the score is 1e+300",
        "again",
    ),
    Bad("a selection without a reason", selection(lambda f: f[0].update(reason={})), "line 1: the reason", "again"),
    Bad("a selection with a row twice", selection(lambda f: f[1].update(index=4)), "line 2: row 4", "again"),
    Bad(
        "a selection written to another kind",
        lambda f: write_subset(Selection.of([0]), EXAMPLES, f / "s.csv"),
        "s.csv is neither",
        "choose one of them",
    ),
    Bad(
        "a selection of other examples",
        lambda f: Selection.of([7]).to_jsonl(EXAMPLES, f / "s.jsonl"),
        "names row 7",
        "give the examples of the pool",
    ),
    Bad("negative row numbers in a selection", lambda _: Selection.of([-1]), "indices, row 0, is -1", "from 0"),
    Bad(
        "weights of another number",
        lambda _: Selection.of([1, 2], weights=[1.0]),
        "weights has 1 entries for 2",
        "one for each",
    ),
    Bad(
        "reasons of another number",
        lambda _: Selection.of([1], reasons=[]),
        "reasons has 0 entries for 1",
        "one for each",
    ),
]


def study() -> Study:
    written = [
        Written(f"e{n}", "gec", f"one two three four five six {n}", {"new": f"new {n}", "old": f"old {n}"})
        for n in range(8)
    ]
    return make(written, items=3, raters=1, checks=2, seed=0)


def answers(change):
    def do(folder: Path) -> None:
        made = study()
        rater, order = next(iter(made.order.items()))
        said = {item: {field: options[0] for field, options in made.fields.items()} for item in order}
        given = {"study": made.id, "rater": rater, "answers": said}
        given = change(given) or given
        read_answers(made, [text(folder / "r.json", json.dumps(given))])

    return do


def kept(change):
    """A study on disk, changed."""

    def do(folder: Path) -> None:
        study().save(folder / "study")
        change(folder / "study")
        Study.load(folder / "study")

    return do


JUDGING = [
    Bad(
        "an export that is a list",
        answers(lambda g: [g]),
        "r.json is not what a page exports",
        "study, rater and answers",
    ),
    Bad(
        "an export of another study", answers(lambda g: g.update(study="x")), "r.json answers study 'x'", "Take it out"
    ),
    Bad(
        "a rater that there is not",
        answers(lambda g: g.update(rater="eve")),
        "r.json: there is no rater 'eve'",
        "rater-1",
    ),
    Bad(
        "a rater that is a list",
        answers(lambda g: g.update(rater=["a"])),
        "r.json: there is no rater ['a']",
        "only rater-1",
    ),
    Bad(
        "answers that are a list",
        answers(lambda g: g.update(answers=[])),
        "r.json: answers is []",
        "an entry for each item",
    ),
    Bad(
        "an item of others",
        answers(lambda g: g["answers"].update(x={})),
        "r.json: rater-1 was not given the item 'x'",
        "item",
    ),
    Bad(
        "an item without answers",
        answers(lambda g: g["answers"].popitem() and None),
        "has not answered 1 of 5",
        "--partial",
    ),
    Bad(
        "an export with half an object",
        lambda f: read_answers(study(), [text(f / "r.json", '{"study"')]),
        "r.json",
        "Export it again",
    ),
    Bad("a key that is a list", kept(lambda f: text(f / "key.json", "[]")), "study: key.json", "Restore them"),
    Bad("a key without items", kept(lambda f: changed(f / "key.json", items=None)), "study: key.json", "Restore them"),
    Bad(
        "a key whose items are numbers", kept(lambda f: changed(f / "key.json", items=[1])), "key.json", "Restore them"
    ),
    Bad(
        "an assignment of other items",
        kept(lambda f: lines(f / "assignment.jsonl", {"rater": "a", "item": "b", "a": "c"})),
        "assignment.jsonl",
        "Restore them",
    ),
    Bad(
        "an assignment of numbers", kept(lambda f: lines(f / "assignment.jsonl", 5)), "assignment.jsonl", "Restore them"
    ),
    Bad(
        "predictions without ids",
        lambda f: read_predictions(lines(f / "p.jsonl", {"prediction": "x"})),
        "p.jsonl, line 1",
        'write {"id": text',
    ),
    Bad(
        "predictions that are numbers",
        lambda f: read_predictions(lines(f / "p.jsonl", {"id": "a", "prediction": 1})),
        "p.jsonl, line 1",
        '"prediction": text',
    ),
    Bad(
        "a prediction twice",
        lambda f: read_predictions(lines(f / "p.jsonl", *[{"id": "a", "prediction": "x"}] * 2)),
        "p.jsonl, line 2",
        "each id once",
    ),
]


@table(DATA)
def test_bad_data(bad, tmp_path, capsys):
    check(bad, tmp_path, capsys)


@table(EMBEDDINGS)
def test_bad_embeddings(bad, tmp_path, capsys):
    check(bad, tmp_path, capsys)


@table(CHOICES)
def test_bad_choices(bad, tmp_path, capsys):
    check(bad, tmp_path, capsys)


@table(JUDGING)
def test_bad_judging(bad, tmp_path, capsys):
    check(bad, tmp_path, capsys)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = lines(tmp_path / "a.jsonl", GOOD)
    path.chmod(0)
    with pytest.raises(ValueError, match=r"a\.jsonl.*cannot be read"):
        read_examples(path)
