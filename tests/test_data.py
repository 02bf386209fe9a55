"""Reading: every format gives the same examples, and every defect gets its own message before any long work."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deft_tsds.build import identity
from deft_tsds.data.examples import Examples, leakage, read_examples, split_queries

SHARED = Path(__file__).parents[2] / "shared" / "data"

# Texts that guessing readers change: a date, a number, a missing value, quotes, newlines, markup, right-to-left marks.
HOSTILE = [
    "2020-01-01 00:00:00",
    "007",
    "NA",
    "null",
    'He said "no", twice',
    "two\nlines",
    "<script>alert('x')</script>",
    "\u202eright to left\u202c",
    "a\u2028b\u0085c",
    "naïve 𝔘nicode 🙂",
    " spaces ",
    "\\n {{ template }}",
]
ROWS = [
    {"id": f"{n:03d}", "task": "one" if n % 2 else "two", "instruction": "Fix it", "input": text, "target": text[::-1]}
    for n, text in enumerate(HOSTILE)
]
FIELDS: dict[str, Any] = {"group_field": "task", "instruction_field": "instruction"}


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pool_of(groups: list[str], inputs: list[str] | None = None) -> Examples:
    inputs = inputs or [f"text {n}" for n in range(len(groups))]
    return Examples(
        ids=tuple(f"id-{n}" for n in range(len(groups))),
        inputs=tuple(inputs),
        prompts=tuple(inputs),
        targets=tuple(inputs),
        references=tuple((text,) for text in inputs),
        groups=tuple(groups),
    )


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "pool.jsonl", ROWS)


def write_as(kind: str, folder: Path) -> tuple[str, str]:
    """Write ROWS in some format; return the source and the split to read."""
    import datasets

    if kind == "jsonl":
        return str(write_lines(folder / "a.jsonl", ROWS)), "train"
    if kind == "jsonl.gz":
        path = folder / "a.jsonl.gz"
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
        return str(path), "train"
    if kind == "json":
        (folder / "a.json").write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
        return str(folder / "a.json"), "train"
    if kind == "json with lines":
        return str(write_lines(folder / "a.json", ROWS)), "train"
    if kind == "csv":
        with (folder / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
        return str(folder / "a.csv"), "train"
    data = datasets.Dataset.from_list(ROWS)
    if kind == "parquet":
        data.to_parquet(folder / "a.parquet")
        return str(folder / "a.parquet"), "train"
    if kind == "saved":
        data.save_to_disk(folder / "saved")
        return str(folder / "saved"), "train"
    if kind == "saved splits":
        datasets.DatasetDict({"validation": data}).save_to_disk(folder / "splits")
        return str(folder / "splits"), "validation"
    data.to_parquet(folder / "hub" / "edits" / "validation-00000-of-00001.parquet")
    card = (
        "---\nconfigs:\n- config_name: edits\n  data_files:\n  - split: validation\n    path: edits/validation-*\n---\n"
    )
    (folder / "hub" / "README.md").write_text(card, encoding="utf-8")
    return f"{folder / 'hub'}:edits", "validation"


KINDS = ["jsonl", "jsonl.gz", "json", "json with lines", "csv", "parquet", "saved", "saved splits", "hub layout"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_rows_as_written(kind: str, tmp_path: Path) -> None:
    source, split = write_as(kind, tmp_path)
    examples = read_examples(source, split=split, **FIELDS)
    assert examples.ids == tuple(row["id"] for row in ROWS)
    assert examples.inputs == tuple(HOSTILE)
    assert examples.prompts == tuple(f"Fix it: {text}" for text in HOSTILE)
    assert examples.targets == tuple(text[::-1] for text in HOSTILE)
    assert examples.references == tuple((text[::-1],) for text in HOSTILE)
    assert examples.groups == tuple(row["task"] for row in ROWS)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_byte_order_marks_and_line_breaks_of_spreadsheets(name: str, tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfid,input,target\r\n1,"two\r\nlines",\xc3\xa9\r\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    examples = read_examples(tmp_path / name)
    assert (examples.ids, examples.inputs, examples.targets) == (("1",), ("two\nlines",), ("é",))


def test_a_compressed_file_under_another_locale_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = write_as("jsonl.gz", tmp_path)
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale=True: "ISO-8859-1")
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: .* is ISO-8859-1, not UTF-8\. Set PYTHONUTF8=1"):
        read_examples(source, **FIELDS)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved"])
def test_a_changed_file_is_read_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = write_as(kind, tmp_path)
    before = read_examples(source, **FIELDS)
    changed = [{**row, "target": "changed"} for row in ROWS]
    monkeypatch.setattr(sys.modules[__name__], "ROWS", changed)
    write_as(kind, tmp_path)
    after = read_examples(source, **FIELDS)
    assert set(after.targets) == {"changed"}
    assert before.fingerprint() != after.fingerprint()


def test_reading_needs_neither_a_cache_folder_nor_the_network(tmp_path: Path) -> None:
    sources = [write_as(kind, tmp_path)[0] for kind in ("jsonl", "parquet", "saved")]
    (tmp_path / "a file").write_text("")
    program = (
        "import sys; from deft_tsds.data.examples import read_examples\n"
        "print({read_examples(source).fingerprint() for source in sys.argv[1:]})"
    )
    nowhere = str(tmp_path / "a file" / "cache")  # below a file: no user, not even root, can write there
    environment = {**os.environ, "HF_HOME": nowhere, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", program, *sources], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split(",")) == 1


def test_importing_the_module_leaves_datasets_alone() -> None:
    names = "('datasets', 'torch', 'transformers')"
    program = f"import sys, deft_tsds.data.examples; print([m for m in {names} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: bool(text.strip()))


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(texts, texts, st.text(), st.booleans()), min_size=1, max_size=6))
def test_any_text_survives_reading_saving_and_loading(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    rows = [(i, t, g.encode("utf-8", "ignore").decode() or "none", f) for i, t, g, f in rows]
    rows = [(i, t, g if g.strip() else "none", f) for i, t, g, f in rows]
    folder = tmp_path_factory.mktemp("any")
    source = write_lines(
        folder / "a.jsonl", [dict(zip(("input", "target", "g", "bad"), row, strict=True)) for row in rows]
    )
    examples = read_examples(source, id_field=None, group_field="g", flag_fields=("bad",))
    assert examples.inputs == tuple(row[0] for row in rows)
    assert examples.targets == tuple(row[1] for row in rows)
    assert examples.flags["bad"].tolist() == [row[3] for row in rows]
    assert len(set(examples.ids)) == len(rows)
    examples.save(folder / "saved.jsonl")
    loaded = Examples.load(folder / "saved.jsonl")
    assert loaded.rows() == examples.rows()
    assert loaded.fingerprint() == examples.fingerprint()


def test_ids_from_content(tmp_path: Path) -> None:
    pairs = [("a", "b"), ("c", "d"), ("a", "b"), ("a", "b")]
    source = write_lines(tmp_path / "a.jsonl", [{"input": x, "target": y} for x, y in pairs])
    ids = read_examples(source, id_field=None).ids
    first, second = (hashlib.sha256(f'["{x}", "{y}"]'.encode()).hexdigest()[:16] for x, y in pairs[:2])
    assert ids == (first, second, f"{first}-2", f"{first}-3")


def test_the_layout_of_the_hubs_coedit(tmp_path: Path) -> None:
    rows = [{"_id": "1", "task": "gec", "src": "Fix grammar: I likes it.", "tgt": "I like it."}]
    source = write_lines(tmp_path / "a.jsonl", rows)
    fields: dict[str, Any] = {"id_field": "_id", "input_field": "src", "target_field": "tgt", "group_field": "task"}
    examples = read_examples(source, instruction_separator=": ", **fields)
    assert examples.prompts == ("Fix grammar: I likes it.",)
    assert examples.inputs == ("I likes it.",)
    assert examples.groups == ("gec",)
    assert read_examples(source, **fields).inputs == examples.prompts
    assert read_examples(source, instruction_separator="| ", **fields).inputs == examples.prompts


def test_the_layout_of_instruction_data(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "instruction": "Add 1 and 2.", "input": "", "output": "3"},
        {"id": 2, "instruction": "Name the capital.", "input": "France", "output": "Paris"},
    ]
    source = write_lines(tmp_path / "a.jsonl", rows)
    examples = read_examples(source, input_field=("instruction", "input"), target_field="output")
    assert examples.prompts == ("Add 1 and 2.", "Name the capital.\nFrance")
    assert examples.ids == ("1", "2")


def test_a_blank_instruction_leaves_the_input_alone(tmp_path: Path) -> None:
    rows = [{"id": "1", "instruction": " ", "input": "a", "target": "b"}]
    examples = read_examples(write_lines(tmp_path / "a.jsonl", rows), instruction_field="instruction")
    assert examples.prompts == ("a",)


def test_references_give_the_target(tmp_path: Path) -> None:
    rows = [{"id": "1", "input": "a", "references": ["x", "y"]}, {"id": "2", "input": "b", "references": "z"}]
    examples = read_examples(write_lines(tmp_path / "a.jsonl", rows), references_field="references")
    assert examples.references == (("x", "y"), ("z",))
    assert examples.targets == ("x", "z")


def test_text_without_targets(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"id": "1", "text": "a"}])
    examples = read_examples(source, input_field="text", target_field=None)
    assert (examples.targets, examples.references) == (("",), ((),))


def test_where_and_limit(jsonl: Path) -> None:
    examples = read_examples(jsonl, where={"task": "one"}, limit=3, **FIELDS)
    assert examples.ids == ("001", "003", "005")


def test_rows_left_out_are_not_checked(tmp_path: Path) -> None:
    rows = [{"id": "1", "n": 2, "input": "", "target": ""}, {"id": "2", "n": 3, "input": "a", "target": "b"}]
    assert read_examples(write_lines(tmp_path / "a.jsonl", rows), where={"n": "3"}).ids == ("2",)


GOOD = {"id": "1", "input": "a", "target": "b", "task": "t", "bad": True}


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([GOOD, {**GOOD, "id": "2", "input": " \n"}], {}, r"line 2: the input \('input'\) is blank"),
        ([{**GOOD, "target": ""}], {}, "line 1: the field 'target' is blank"),
        ([{**GOOD, "input": None}], {}, "line 1: the field 'input' is null"),
        ([{**GOOD, "target": 5}], {}, "line 1: the field 'target' is int, not text"),
        ([{**GOOD, "input": "\ud800"}], {}, "line 1: the field 'input' holds half of a surrogate pair"),
        ([GOOD, {**GOOD, "input": "c"}], {}, "line 2: the id '1' also stands on line 1"),
        ([{**GOOD, "id": True}], {}, "line 1: the field 'id' is bool, not text"),
        ([{**GOOD, "bad": "perhaps"}], {"flag_fields": ["bad"]}, "'bad' is 'perhaps', neither true nor false"),
        ([GOOD], {"target_field": "tarot"}, r"no field 'tarot' \(target_field\), only 'id', .*Did you mean 'target'"),
        ([GOOD], {"group_field": "zzz"}, "no field 'zzz'.*Set group_field to one of them"),
        ([{"input": "a", "target": "b"}], {}, r"no field 'id' \(id_field\).*Or set it to None"),
        ([GOOD], {"references_field": "refs"}, r"no field 'refs' \(references_field\)"),
        ([{**GOOD, "refs": []}], {"references_field": "refs"}, "line 1: the field 'refs' is an empty list"),
        ([{**GOOD, "refs": ["x", ""]}], {"references_field": "refs"}, "entry 2 of the field 'refs' is blank"),
        ([{**GOOD, "refs": ["x", None]}], {"references_field": "refs"}, "entry 2 of the field 'refs' is null"),
        ([GOOD], {"where": {"task": "u"}}, "no row satisfies where={'task': 'u'}. In the source, task is 't'"),
        ([GOOD], {"limit": 0}, "limit is 0: give 1 or more"),
        ([GOOD], {"input_field": ()}, "input_field is empty"),
        ([], {}, "holds no rows"),
        ([[1, 2]], {}, "line 1: a list, not a JSON object"),
    ],
)
def test_bad_rows_get_their_message(rows: list, arguments: dict, message: str, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=message) as caught:
        read_examples(source, name="pool", **arguments)
    assert str(caught.value).startswith("pool: ")


def test_a_parquet_row_gets_its_number(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([GOOD, {**GOOD, "id": "2", "target": None}]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 2: the field 'target' is null"):
        read_examples(tmp_path / "a.parquet")


def test_a_name_that_is_a_pattern_reads_that_file_alone(tmp_path: Path) -> None:
    import datasets

    for name in ("a[1]", "a*", "a1"):
        datasets.Dataset.from_list([{**GOOD, "input": name}]).to_parquet(tmp_path / f"{name}.parquet")
        datasets.Dataset.from_list([GOOD]).to_parquet(tmp_path / name / "train.parquet")
    for name in ("a[1]", "a*"):
        assert read_examples(tmp_path / f"{name}.parquet").inputs == (name,)
        with pytest.raises(ValueError, match=r"for a pattern\. Rename the folder"):
            read_examples(tmp_path / name)


def test_a_pattern_reads_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        write_lines(tmp_path / f"part-{number}.jsonl", [{**GOOD, "id": str(number)}])
    assert read_examples(tmp_path / "part-*.jsonl").ids == ("0", "1", "2")
    assert list(identity(str(tmp_path / "part-*.jsonl"))) == [str(tmp_path / f"part-{n}.jsonl") for n in range(3)]
    write_lines(tmp_path / "part-1.jsonl", [{**GOOD, "id": "0"}])
    with pytest.raises(ValueError, match=r"part-1.jsonl, line 1.*'0'"):
        read_examples(tmp_path / "part-*.jsonl")


def test_missing_file_names_its_neighbours(jsonl: Path) -> None:
    with pytest.raises(ValueError, match=r"pole\.jsonl is missing.*'pool\.jsonl'"):
        read_examples(jsonl.parent / "pole.jsonl")
    with pytest.raises(ValueError, match="There is no folder"):
        read_examples(jsonl.parent / "nowhere" / "pool.jsonl")


def test_a_kind_of_file_that_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"of no kind that is read here. Give one of \.jsonl"):
        read_examples(tmp_path / "a.xlsx")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.jsonl", b'{"id": "1", "input": "a", "target": "b"}\n\n{"id": "2",\n', "line 3: not valid JSON"),
        ("a.jsonl", b'{"id": "1", "input": "\xff"}\n', "line 1: not UTF-8"),
        ("a.json", b'[{"id": "1"},', "not valid JSON"),
        ("a.json", b'[{"id": "1", "input": "a", "target": "b"}, 5]', "row 2: a int, not a JSON object"),
        ("a.csv", b"id,input,target\n1,a,b\n2,a\n", r"row 2 \(line 3\): 2 values for 3 fields"),
        ("a.csv", b'id,input,target\n1,a,"b\n', "line 2: not valid CSV"),
        ("a.csv", b"id,input,input\n", "line 1: the field 'input' comes twice"),
        ("a.csv", b"id,input,target\n", "holds no rows"),
        ("a.jsonl.gz", b"plainly not gzip", "cannot be read after line 0"),
        ("a.parquet", b"PAR1 and no more", r"a\.parquet: cannot be read"),
    ],
)
def test_broken_files_get_their_message(file: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_examples(tmp_path / file)


def test_a_truncated_gzip_file_names_the_last_line(tmp_path: Path) -> None:
    rows = "".join(json.dumps({**GOOD, "id": str(n), "input": os.urandom(40).hex()}) + "\n" for n in range(500))
    whole = gzip.compress(rows.encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: the gzip file breaks off after line \d+"):
        read_examples(tmp_path / "a.jsonl.gz")


def test_a_folder_without_the_split_lists_its_splits(tmp_path: Path) -> None:
    source, _ = write_as("saved splits", tmp_path)
    with pytest.raises(ValueError, match="there is no split 'train', only 'validation'"):
        read_examples(source)


def test_a_folder_without_data_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_to_disk"):
        read_examples(tmp_path)


def test_an_unknown_hub_name_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    def refuse(*arguments: Any, **_: Any) -> None:
        raise ConnectionError(f"Couldn't reach {arguments[0]!r} on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match=r"someone/data:small: cannot be read.*no local file or folder"):
        read_examples("someone/data:small")


def test_a_hub_name_passes_config_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load_dataset(*arguments: Any, **options: Any) -> datasets.Dataset:
        calls.append((arguments, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read_examples("someone/data:small", split="validation")) == len(ROWS)
    assert calls == [(("someone/data", "small"), {"split": "validation"})]


def test_take_keeps_order_repeats_and_flags() -> None:
    pool = Examples(**{**vars(pool_of(list("abc"))), "flags": {"bad": np.array([True, False, False])}})
    taken = pool.take(np.array([2, 0, 2]))
    assert taken.ids == ("id-2", "id-0", "id-2")
    assert taken.flags["bad"].tolist() == [False, True, False]
    assert len(pool.take([])) == 0


@pytest.mark.parametrize("indices", [[3], [-1], [0.5], [[0]], np.array([True, False, True])])
def test_take_refuses_what_is_no_row(indices: Any) -> None:
    with pytest.raises(ValueError, match="indices"):
        pool_of(list("abc")).take(indices)


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="groups has 1 rows but ids has 2"):
        Examples(**{**vars(pool_of(["a", "b"])), "groups": ("a",)})
    with pytest.raises(ValueError, match=r"flags\['bad'\] is int64"):
        Examples(**{**vars(pool_of(["a", "b"])), "flags": {"bad": np.array([0, 1])}})


def test_load_refuses_a_foreign_file(jsonl: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1: not a row that Examples\.save wrote"):
        Examples.load(jsonl)


def test_the_fingerprint_sees_every_column_and_the_order() -> None:
    pool = pool_of(["a", "b"])
    variants = [pool, pool.take([1, 0])]
    for column in ("ids", "inputs", "prompts", "targets", "groups"):
        variants.append(Examples(**{**vars(pool), column: ("new", *getattr(pool, column)[1:])}))
    variants.append(Examples(**{**vars(pool), "flags": {"bad": np.array([True, False])}}))
    assert len({variant.fingerprint() for variant in variants}) == len(variants)
    assert pool.take([0, 1]).fingerprint() == pool.fingerprint()


def test_split_queries_holds_out_rows_of_the_group() -> None:
    pool = pool_of(["a", "b"] * 20)
    queries, rest = split_queries(pool, group="b", count=5, key=jax.random.key(0))
    again, _ = split_queries(pool, group="b", count=5, key=jax.random.key(0))
    other, _ = split_queries(pool, group="b", count=5, key=jax.random.key(1))
    assert set(queries.groups) == {"b"}
    assert len(queries) == 5
    assert sorted(queries.ids + rest.ids) == sorted(pool.ids)
    assert rest.ids == tuple(name for name in pool.ids if name not in queries.ids)
    assert queries.ids == again.ids
    assert queries.ids != other.ids
    queries, rest = split_queries(pool, group=None, count=30, key=jax.random.key(0))
    assert set(queries.groups) == {"a", "b"}
    assert sorted(queries.ids + rest.ids) == sorted(pool.ids)


def test_split_queries_refuses_what_cannot_be() -> None:
    pool = pool_of(["a", "a", "b"])
    with pytest.raises(ValueError, match=r"no row has the group 'c'.*'a' \(2\), 'b' \(1\)"):
        split_queries(pool, group="c", count=1, key=jax.random.key(0))
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"count is {count}, but the group 'a' has 2 rows"):
            split_queries(pool, group="a", count=count, key=jax.random.key(0))
    with pytest.raises(ValueError, match="count is 4, but the pool has 3 rows"):
        split_queries(pool, group=None, count=4, key=jax.random.key(0))


def test_leakage_finds_equal_inputs_case_and_space_aside() -> None:
    pool = pool_of(["g"] * 4, ["The cat  sat.", "A dog ran.", "the\tCAT sat.", "The cat sat"])
    test = pool_of(["g"], ["the cat sat. "])
    assert leakage(pool, test).tolist() == [0, 2]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real text data in ../shared/data is not here")
class TestRealFiles:
    def test_the_editing_pool(self) -> None:
        pool = read_examples(SHARED / "edit" / "edit_train_pool.jsonl.gz", **FIELDS)
        assert len(pool) == 27_638
        assert len(set(pool.inputs)) == 15_852
        for path in sorted((SHARED / "edit").glob("edit_test_*.jsonl.gz")):
            test = read_examples(path, references_field="references", name=path.stem, **FIELDS)
            assert all(found[0] == target for found, target in zip(test.references, test.targets, strict=True))
            assert leakage(pool, test).size == 0

    def test_a_domain_target(self) -> None:
        source = SHARED / "domain" / "domain_target_banking77.jsonl.gz"
        fields: dict[str, Any] = {"input_field": "text", "target_field": "label", "group_field": "domain"}
        assert len(read_examples(source, where={"split": "query"}, **fields)) == 200

    def test_the_instruction_pool(self) -> None:
        source = SHARED / "instruct" / "instruct_pool.jsonl.gz"
        pool = read_examples(source, input_field=("instruction", "input"), target_field="output", group_field="source")
        assert len(pool) == 22_291
