"""A run folder that is not whole: what must be there is named with its stage, and what may be missing is said."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_run import GivenVectors, fake_embeddings, fake_examples
from parsed_page import Page, small_run

from deft_tsds.embed.store import write_store
from deft_tsds.report import read_run, write_report
from deft_tsds.runs import read_jsonl, write_jsonl
from deft_tsds.selection import Selection


@pytest.fixture
def small(tmp_path) -> Path:
    return small_run(tmp_path / "small")


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("experiment.json", "run"),
        ("data/pool.jsonl", "data"),
        ("table/table.json", "evaluate"),
        ("select/tsds/seed-0/selection", "select"),
    ],
)
def test_missing_mandatory_file_is_named_with_its_stage(small, path, stage):
    target = small / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(path)} is missing.*stage `{stage}`"):
        write_report(small)
    assert not (small / "report.html").exists()


@pytest.mark.parametrize(
    ("path", "section"),
    [
        ("data/queries.jsonl", "provenance"),
        ("data/tests/jfleg.jsonl", "outputs"),
        ("embed/pool/store.json", "map"),
        ("embed/pool/store.json", "typical"),
        ("embed/pool/store.json", "let-in"),
        ("embed/queries/store.json", "provenance"),
        ("finetune/deft/seed-0/metrics.jsonl", "provenance"),
        ("evaluate/deft/seed-0/predictions_jfleg.jsonl", "provenance"),
    ],
)
def test_missing_optional_file_is_said(small, path, section):
    (small / path).unlink()
    page = Page(write_report(small).read_text(encoding="utf-8"))
    assert path in page.by_id(section)["text"]
    assert path in page.by_id("provenance")["text"]


def test_a_bare_run_has_a_page(small):
    for folder in ("embed", "finetune", "data/tests"):
        shutil.rmtree(small / folder)
    (small / "data/queries.jsonl").unlink()
    for manifest in small.rglob("manifest.json"):
        manifest.unlink()
    page = Page(write_report(small).read_text(encoding="utf-8"))
    assert "no loss" in page.by_id("provenance")["text"]
    assert "manifest.json" in page.by_id("provenance")["text"]
    assert not page.all("div", role="group")


def test_vectors_that_were_stored_unscaled_are_scaled(small):
    pool = fake_examples(24)
    unit = fake_embeddings(pool)
    given = dict(zip(pool.prompts, 3 * unit, strict=True))
    shutil.rmtree(small / "embed/pool")
    write_store(small / "embed/pool", pool.prompts, GivenVectors(given), normalize=False)
    read = read_run(small).embeddings_NxD
    assert read is not None
    np.testing.assert_allclose(read, unit, atol=1e-6)


def test_artefacts_of_different_pools_are_refused(small):
    where = small / "select/deft/seed-0/selection"
    Selection.of(np.array([0, 24])).save(where)
    with pytest.raises(ValueError, match=r"example 24, and the pool has 24.*stage `select`"):
        read_run(small)
    Selection.of(np.array([0, 23])).save(where)
    rows = read_jsonl(small / "data/pool.jsonl")
    write_jsonl(small / "data/pool.jsonl", [*rows, {**rows[0], "id": "new"}])
    with pytest.raises(ValueError, match=r"24 rows and data/pool.jsonl 25.*stage `embed`"):
        read_run(small)
