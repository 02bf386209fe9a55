"""What goes out can be read by others and by us; what comes in is checked, and never run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest

import deft_tsds as dt
from deft_tsds import Selection
from deft_tsds.data.examples import Examples, read_examples
from deft_tsds.data.exchange import (
    read_features,
    read_indices,
    read_log_weights,
    subset_rows,
    write_dataset,
    write_subset,
)
from deft_tsds.selectors import Foreign, Nearest

KEY = jax.random.key(0)


def examples_of(n=12) -> Examples:
    inputs = tuple(f"text {i}" for i in range(n))
    return Examples(
        ids=tuple(f"id{i}" for i in range(n)),
        inputs=inputs,
        prompts=tuple(f"Fix: {text}" if i % 2 else text for i, text in enumerate(inputs)),
        targets=tuple(f"Text {i}." for i in range(n)),
        references=tuple((f"Text {i}.",) for i in range(n)),
        groups=tuple("odd | one" if i % 2 else "even" for i in range(n)),
        flags={"near_duplicate": np.arange(n) == 3},
    )


def selection_of(weights=None) -> Selection:
    reasons = [{"why": f"It is row {i}.", "number": i} for i in (2, 3, 7)]
    info = {"selector": "Mine", "budget": 3}
    return Selection.of(np.array([2, 3, 7]), weights=weights, scores=[1.0, 2.0, 3.0], reasons=reasons, info=info)


# Out


def test_rows_by_layout():
    plain = subset_rows(selection_of(), examples_of())
    assert plain[1] == {
        "id": "id3",
        "input": "text 3",
        "prompt": "Fix: text 3",
        "target": "Text 3.",
        "references": ["Text 3."],
        "group": "odd | one",
        "flag_near_duplicate": True,
        "index": 3,
        "weight": 1.0,
        "score": 2.0,
        "why": "It is row 3.",
    }
    alpaca = subset_rows(selection_of(), examples_of(), layout="alpaca")
    assert alpaca[0] == {"id": "id2", "instruction": "text 2", "input": "", "output": "Text 2."}
    assert alpaca[1] == {"id": "id3", "instruction": "Fix", "input": "text 3", "output": "Text 3."}
    messages = subset_rows(selection_of([1, 1, 4]), examples_of(), layout="messages")
    assert messages[1] == {
        "id": "id3",
        "messages": [{"role": "user", "content": "Fix: text 3"}, {"role": "assistant", "content": "Text 3."}],
        "weight": 0.5,
    }


def test_layouts_refuse():
    with pytest.raises(ValueError, match="layout is 'chatml': choose one of plain, alpaca, messages"):
        subset_rows(selection_of(), examples_of(), layout="chatml")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="indices holds 7: there are rows 0 to 4"):
        subset_rows(selection_of(), examples_of(5))
    bare = Examples(("a",), ("x",), ("x",), ("",), ((),), ("",))
    one = Selection.of(np.array([0]))
    with pytest.raises(ValueError, match="example 'a' has no target"):
        subset_rows(one, bare, layout="messages")
    assert subset_rows(one, bare)[0]["target"] == ""
    with pytest.raises(ValueError, match=r"neither \.jsonl nor \.parquet"):
        write_subset(one, bare, "chosen.csv")


@pytest.mark.parametrize("layout", ["plain", "alpaca", "messages"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files_hold_the_rows(tmp_path, layout, suffix):
    path = tmp_path / f"chosen.{suffix}"
    write_subset(selection_of(), examples_of(), path, layout=layout)
    if suffix == "jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(path).to_pylist()
    assert rows == subset_rows(selection_of(), examples_of(), layout=layout)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_plain_files_are_read_back_as_examples(tmp_path):
    for suffix in ("jsonl", "parquet"):
        write_subset(selection_of(), examples_of(), tmp_path / f"chosen.{suffix}")
        back = read_examples(tmp_path / f"chosen.{suffix}", group_field="group", flag_fields=["flag_near_duplicate"])
        assert back.ids == ("id2", "id3", "id7")
        assert back.targets == ("Text 2.", "Text 3.", "Text 7.")
        assert back.flags["flag_near_duplicate"].tolist() == [False, True, False]


def test_dataset_with_a_card(tmp_path):
    from datasets import load_dataset

    folder = tmp_path / "subset"
    write_dataset(selection_of(), examples_of(), folder, layout="messages", title="Three rows")
    loaded = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == subset_rows(selection_of(), examples_of(), layout="messages")
    assert Selection.load(folder / "selection").reasons == selection_of().reasons
    card = (folder / "README.md").read_text()
    assert "# Three rows" in card
    assert "3 of 12 examples, chosen by Mine" in card
    assert examples_of().fingerprint() in card
    assert '"budget": 3' in card
    assert "| odd \\| one | 2 | 6 |" in card
    with pytest.raises(ValueError, match="is there already"):
        write_dataset(selection_of(), examples_of(), folder)


def test_a_dataset_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr("deft_tsds.data.exchange._card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_dataset(selection_of(), examples_of(), tmp_path / "subset")
    assert list(tmp_path.iterdir()) == []


# In


def saved(folder: Path, kind: str, numbers) -> Path:
    path = folder / f"chosen.{kind}"
    if kind == "npy":
        np.save(path, np.array(numbers))
    elif kind == "txt":
        path.write_text("".join(f"{number}\n" for number in numbers))
    else:
        import torch

        torch.save(torch.tensor(numbers), path)
    return path


@pytest.mark.parametrize("kind", ["npy", "txt", "pt"])
def test_indices_of_others(tmp_path, kind):
    path = saved(tmp_path, kind, [7, 2, 3])
    selection = read_indices(path, candidates=12)
    assert selection.indices.tolist() == [2, 3, 7]
    assert selection.weights.tolist() == [1, 1, 1]
    assert selection.info["source"]["file"] == path.name
    repeated = read_indices(saved(tmp_path, kind, [7, 2, 7, 7]), candidates=12, repeats="weigh")
    assert repeated.indices.tolist() == [2, 7]
    assert repeated.weights.tolist() == [0.5, 1.5]
    assert repeated.reasons[1]["why"] == f"Chosen by {path.name}, 3 times."


@pytest.mark.parametrize("kind", ["npy", "txt", "pt"])
@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([0, 5, 12], r"row 2: 12(\.0)? is not between 0 and 11"),
        ([0, -1], "row 1: -1 is not between 0 and 11"),
        ([4, 5, 4, 5], "row 2: 4 comes again; give each row once, or set repeats='weigh'"),
        ([1.0, 2.5], "row 1: 2.5 is no row number"),
        ([1.0, float("nan")], "row 1: nan is no row number"),
    ],
)
def test_indices_that_cannot_be(tmp_path, kind, numbers, message):
    path = saved(tmp_path, kind, numbers)
    with pytest.raises(ValueError, match=rf"{path.name}, {message}"):
        read_indices(path, candidates=12)


def test_files_that_cannot_be(tmp_path):
    def refused(path, message):
        with pytest.raises(ValueError, match=message):
            read_indices(path, candidates=12)

    refused(tmp_path / "none.npy", "none.npy is missing")
    refused(saved(tmp_path, "npy", np.ones((2, 2))), r"is float64 \(2, 2\): give a vector")
    refused(saved(tmp_path, "npy", np.array([], int)), "is empty")
    refused(saved(tmp_path, "npy", np.array([True])), "is bool")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused(tmp_path / "objects.npy", "cannot be read")
    (tmp_path / "cut.npy").write_bytes(saved(tmp_path, "npy", [1, 2, 3]).read_bytes()[:-5])
    refused(tmp_path / "cut.npy", "cannot be read")
    (tmp_path / "words.txt").write_text("1\ntwo\n")
    refused(tmp_path / "words.txt", "words.txt, row 1: 'two' is no number")
    (tmp_path / "chosen.csv").write_text("1\n")
    refused(tmp_path / "chosen.csv", "none of .npy, .txt, .pt")
    with pytest.raises(ValueError, match="repeats is 'drop'"):
        read_indices(tmp_path / "x.npy", candidates=3, repeats="drop")  # pyright: ignore[reportArgumentType]


class _Armed:
    """Unpickling this writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_torch_files_run_nothing(tmp_path):
    import torch

    trap = tmp_path / "sprung"
    torch.save({"x": _Armed(trap)}, tmp_path / "armed.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Armed(trap)))
    for name in ("armed.pt", "plain.pt"):
        with pytest.raises(ValueError, match="cannot be read as weights alone"):
            read_indices(tmp_path / name, candidates=12)
    assert not trap.exists()
    torch.save({"x": torch.ones(3)}, tmp_path / "dict.pt")
    with pytest.raises(ValueError, match="holds a dict"):
        read_features(tmp_path / "dict.pt", rows=3)


def test_features_of_others(tmp_path):
    import torch

    features = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    torch.save(torch.tensor(features), tmp_path / "features.pt")
    torch.save(torch.tensor(features).bfloat16(), tmp_path / "short.pt")
    np.testing.assert_array_equal(read_features(tmp_path / "features.npy", rows=5), features)
    np.testing.assert_array_equal(read_features(tmp_path / "features.pt", rows=5), features)
    np.testing.assert_allclose(read_features(tmp_path / "short.pt", rows=5), features, rtol=2**-8)
    for name in ("features.npy", "features.pt"):
        with pytest.raises(ValueError, match=f"{name} has 5 rows for 6 examples"):
            read_features(tmp_path / name, rows=6)
    features[2, 1] = np.nan
    torch.save(torch.tensor(features), tmp_path / "features.pt")
    with pytest.raises(ValueError, match=r"features.pt\), row 2, has a NaN or infinite value"):
        read_features(tmp_path / "features.pt", rows=5)


def test_log_weights_of_others(tmp_path):
    weights = np.array([0.0, 5.0, -np.inf, 5.0, 2.0])
    path = tmp_path / "weights.npy"
    np.save(path, weights)
    top = read_log_weights(path, candidates=5, budget=2, key=KEY, draw=False)
    assert top.indices.tolist() == [1, 3]
    assert top.scores.tolist() == [5, 5]
    drawn = [read_log_weights(path, candidates=5, budget=4, key=jax.random.key(s)).indices.tolist() for s in range(3)]
    assert drawn == [[0, 1, 3, 4]] * 3  # what has no weight is never drawn
    some = {tuple(read_log_weights(path, candidates=5, budget=1, key=jax.random.key(s)).indices) for s in range(9)}
    assert some == {(1,), (3,)}

    shards = tmp_path / "shards"
    shards.mkdir()
    order = np.arange(24.0)
    for number in range(12):  # by number, not by name: 10 comes after 9
        np.save(shards / f"{number}.npy", order[2 * number : 2 * number + 2])
    assert read_log_weights(shards, candidates=24, budget=2, key=KEY, draw=False).indices.tolist() == [22, 23]
    (shards / "3.npy").unlink()
    with pytest.raises(ValueError, match=r"does not hold 0\.npy, 1\.npy, \.\.\. without gaps"):
        read_log_weights(shards, candidates=24, budget=2, key=KEY)

    with pytest.raises(ValueError, match="has 5 log weights for 6 candidates"):
        read_log_weights(path, candidates=6, budget=2, key=KEY)
    with pytest.raises(ValueError, match=r"budget is 5, but .* gives 4 candidates a weight above 0"):
        read_log_weights(path, candidates=5, budget=5, key=KEY)
    np.save(path, np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match=r"weights.npy, row 1: the log weight is nan"):
        read_log_weights(path, candidates=2, budget=1, key=KEY)
    with pytest.raises(ValueError, match="key must be"):
        read_log_weights(path, candidates=2, budget=1, key=0)  # pyright: ignore[reportArgumentType]


def test_a_foreign_choice_is_a_selector(tmp_path):
    rng = np.random.default_rng(0)
    candidates, queries = rng.normal(size=(12, 3)), rng.normal(size=(2, 3))
    ours = dt.select(candidates, queries, selector=Nearest(), budget=4, key=KEY)
    path = str(saved(tmp_path, "npy", ours.indices[::-1]))
    theirs = dt.select(candidates, selector=Foreign(path), budget=4, key=KEY)
    np.testing.assert_array_equal(theirs.indices, ours.indices)
    assert theirs.info["selector"] == "Foreign"
    assert theirs.info["source"]["file"] == "chosen.npy"
    assert "names 4 distinct rows" in dt.select(candidates, selector=Foreign(path), budget=6, key=KEY).info["shortfall"]
    with pytest.raises(ValueError, match="names 4 rows, more than the budget of 3"):
        dt.select(candidates, selector=Foreign(path), budget=3, key=KEY)
    with pytest.raises(ValueError, match="is not between 0 and 4"):
        dt.select(candidates[:5], selector=Foreign(path), budget=5, key=KEY)
    np.save(path, rng.normal(size=12))
    assert len(dt.select(candidates, selector=Foreign(path, kind="log_weights"), budget=5, key=KEY)) == 5
    with pytest.raises(ValueError, match="kind is 'scores'"):
        Foreign(path, kind="scores")  # pyright: ignore[reportArgumentType]
