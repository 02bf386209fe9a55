"""The matrix of representations and selectors, on sixty short texts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from pools import KEY, pool_of

import deft_tsds as dt
from deft_tsds.config import Gradients, Ngrams, OwnEmbeddings, SentenceTransformers, Source, load_as
from deft_tsds.embed.given import Given
from deft_tsds.embed.store import write_store
from deft_tsds.runs import write_jsonl
from deft_tsds.selection import Selection
from deft_tsds.selectors import DSIR, Nearest, table
from deft_tsds.studies import matrix as matrix_module
from deft_tsds.studies.gradients import GradientsOf
from deft_tsds.studies.matrix import Matrix, fill, markdown, nonsense, write_matrix
from deft_tsds.t5 import T5, T5Config
from deft_tsds.t5.load import save_pretrained, train_tokenizer

CONFIG = Path(__file__).parents[1] / "configs" / "studies" / "matrix.py"
NAMES = [entry.selector.__name__ for entry in table()]
BUDGET = 20


@pytest.fixture(scope="module", name="setting")
def _setting(tmp_path_factory):
    """A matrix over the user's own embeddings and over counts, and the folder of its data."""
    folder = tmp_path_factory.mktemp("matrix")
    candidates, near, groups = pool_of()
    np.save(folder / "pool.npy", candidates)
    np.save(folder / "queries.npy", near)
    np.save(folder / "foreign.npy", np.arange(0, 2 * BUDGET, 2))
    rng = np.random.default_rng(0)
    words = np.array(["apple", "pear", "plum", "fig", "date", "lime"])
    texts = [" ".join(rng.choice(words, 1 + row % 4)) + f" {row}" for row in range(len(groups))]
    rows = [
        {"id": str(i), "text": text, "label": f"label {i % 3}", "group": group}
        for i, (text, group) in enumerate(zip(texts, groups.tolist(), strict=True))
    ]
    write_jsonl(folder / "pool.jsonl", rows)
    write_jsonl(folder / "queries.jsonl", [{**row, "group": "task 1"} for row in rows[:4]])
    pool, queries = (
        Source(str(folder / f"{name}.jsonl"), input_field="text", target_field="label", group_field="group")
        for name in ("pool", "queries")
    )
    own = OwnEmbeddings(str(folder / "pool.npy"), str(folder / "queries.npy"), normalize=False)
    return Matrix(
        pool=pool,
        queries=queries,
        representations={"own": own, "counts": Ngrams(buckets=16)},
        budget=BUDGET,
        workdir=folder / "run",
    )


@pytest.fixture(scope="module", name="found")
def _found(setting):
    return fill(setting)


def test_every_cell_is_a_choice_or_a_reason(found):
    cells = {(cell["selector"], cell["representation"]): cell for cell in found["cells"]}
    assert list(cells) == [(kind, name) for name in ("own", "counts") for kind in NAMES]
    without = {pair for pair, cell in cells.items() if cell["status"] == "no sense"}
    assert without == {("DSIR", "own"), ("Foreign", "own"), ("Foreign", "counts")}
    assert {cell["status"] for pair, cell in cells.items() if pair not in without} == {"chosen"}
    assert "counts of n-grams" in cells["DSIR", "own"]["reason"]


def test_the_share_of_the_queries_own_group(setting, found):
    candidates, queries, groups = pool_of()
    chosen = dt.select(candidates, queries, selector=Nearest(), budget=BUDGET, key=KEY).indices
    cell = next(c for c in found["cells"] if (c["selector"], c["representation"]) == ("Nearest", "own"))
    assert cell["own"] == np.mean(groups[chosen] == "task 1")
    full = next(c for c in found["cells"] if c["selector"] == "Full")
    assert full["own"] == pytest.approx(np.mean(groups == "task 1"))


def test_a_matrix_that_was_stopped_goes_on(setting, found, monkeypatch):
    folder = setting.workdir / "cells" / "own"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("manifest.json")}
    (folder / "Nearest" / "manifest.json").unlink()  # killed before its end
    monkeypatch.setattr(matrix_module, "write_store", None)  # nothing is embedded again
    assert fill(setting) == found
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("manifest.json")}
    assert [path.parent.name for path in before if before[path] != after[path]] == ["Nearest"]


def test_what_another_tool_chose(setting):
    foreign = str(setting.workdir.parent / "foreign.npy")
    found = fill(dataclasses.replace(setting, foreign=foreign, selectors=("Foreign",)))
    assert [cell["status"] for cell in found["cells"]] == ["chosen", "chosen"]


def test_failures_are_no_reasons(setting, monkeypatch, tmp_path):
    """A selector that refuses, or breaks its contract, is a failure, and tried again by the next call."""
    made = {"refuses": None, "breaks": None}

    def refuses(pool, *, budget, key):
        raise ValueError("no such luck")

    def breaks(pool, *, budget, key):
        return Selection.of(np.arange(budget), reasons=[{"why": "because"}] * budget)

    made = {Nearest: refuses, DSIR: breaks}
    monkeypatch.setattr(matrix_module, "make", lambda kind, pool, budget, foreign: made[kind])
    broken = dataclasses.replace(setting, selectors=("Nearest", "DSIR"), workdir=tmp_path)
    broken = dataclasses.replace(broken, representations={"counts": Ngrams(buckets=16)})
    cells = fill(broken)["cells"]
    assert [cell["status"] for cell in cells] == ["failed", "failed"]
    assert cells[0]["reason"] == "ValueError: no such luck"
    assert cells[1]["reason"] == "ContractError: row 0: 'because' is no sentence"
    assert "FAILED (1)" in markdown(fill(broken))
    monkeypatch.undo()
    assert [cell["status"] for cell in fill(broken)["cells"]] == ["chosen", "chosen"]


def test_the_page(setting, found, tmp_path):
    text = write_matrix(found, tmp_path)
    assert text == (tmp_path / "matrix.md").read_text()
    assert json.loads((tmp_path / "matrix.json").read_text()) == found
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[0] == "| selector | own [5] | counts [16] |"
    assert [line.split(" | ")[0][2:] for line in lines[1:]] == NAMES
    assert next(line for line in lines if "DSIR" in line).startswith("| DSIR | (1) | ")
    assert text.splitlines()[-2].startswith("- (1): DSIR reads counts")


@pytest.fixture(name="model")
def _model(tmp_path):
    """A folder with a T5 that nobody has trained, and says so."""
    folder = tmp_path / "t5"
    tokenizer = train_tokenizer(["apple pear plum", "label 0"], vocab_size=270)
    tokenizer.save_pretrained(folder)
    sizes: dict[str, Any] = {
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 8,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
    }
    save_pretrained(T5(T5Config(vocab_size=len(tokenizer), **sizes), rngs=nnx.Rngs(0)), folder)
    (folder / "UNTRAINED").write_text("all of it is random.\n")
    return folder


def test_gradients_of_a_model_that_is_untrained(setting, model, monkeypatch):
    """What the study gives to `write_gradients` (test_gradients.py), and what it makes of the stores."""
    seen = {}

    def stand_in(folder, t5, pool, targets, tokenized, **options):
        seen.update(options, width=t5.config.d_model, pairs=tokenized(pool), names=list(targets))
        for name, examples in {"pool": pool, **targets}.items():
            np.save(folder / f"{name}.npy", np.random.default_rng(0).normal(size=(len(examples), 7)))
            given = Given(folder / f"{name}.npy", rows=len(examples), name=name)
            write_store(folder / name, given.texts, given)

    monkeypatch.setattr("deft_tsds.studies.gradients.write_gradients", stand_in)
    config = GradientsOf(str(model), Gradients(epochs=3), max_target_tokens=4)
    small = dataclasses.replace(
        setting, representations={"gradients": config}, selectors=("LESS", "DSIR"), workdir=model.parent / "run"
    )
    found = fill(small)
    assert (seen["epochs"], seen["width"], seen["names"]) == (3, 8, ["queries"])
    assert seen["pairs"].labels_NxT.shape == (60, 4)
    assert [cell["status"] for cell in found["cells"]] == ["chosen", "no sense"]
    assert found["representations"]["gradients"]["untrained"] == "all of it is random."
    text = markdown(found)
    assert "| selector | gradients* [7] |" in text
    assert text.endswith("- gradients*: all of it is random.")
    seen.clear()
    assert fill(small) == found
    assert not seen  # made once


def test_wrong_settings(setting):
    with pytest.raises(ValueError, match="selectors has Nearst: choose among TSDS"):
        fill(dataclasses.replace(setting, selectors=("Nearst",)))
    with pytest.raises(ValueError, match="budget is 61, but the pool has 60"):
        fill(dataclasses.replace(setting, budget=61))
    assert nonsense(DSIR, counts=True, foreign=None) is None


def test_the_config_file():
    config, description = load_as(
        Matrix, "configs/studies/matrix.py", ["--budget", "50", "--representations.minilm.model", "m"]
    )
    assert config.budget == 50
    assert config.representations["minilm"] == SentenceTransformers("m")
    assert config.selectors == tuple(NAMES)
    assert len(config.representations) == 8 + 2
    assert "scripts/matrix.py configs/studies/matrix.py" in description
