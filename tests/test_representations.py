"""What a representation sees, against scikit-learn and plain loops; the page; the script on a small file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scipy.sparse.csgraph
from hypothesis import given, settings
from hypothesis import strategies as st

from deft_tsds.report.representations import cells, headings, map_figure, write_representations
from deft_tsds.runs import read_json, write_jsonl
from deft_tsds.studies.representations import (
    COSINES,
    Inspection,
    anisotropy,
    inspect,
    near_groups,
    participation_ratio,
    purity,
)

KEY = jax.random.key(0)
ROOT = Path(__file__).parents[1]


def blobs(spread: float, *, rows: int = 90, width: int = 6, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Three directions with noise, and the name of each row's; rows 1 and 2 repeat row 0, of another name each."""
    rng = np.random.default_rng(seed)
    label = np.arange(rows) % 3
    x = np.eye(width)[label] + spread * rng.standard_normal((rows, width))
    x[1] = x[2] = x[0]
    return x.astype(np.float32), [f"label {number}" for number in label]


@pytest.fixture(scope="module")
def found() -> Inspection:
    return inspect(*blobs(0.3), key=KEY, seeds=3)


def test_against_scikit_learn_and_loops(found: Inspection) -> None:
    from sklearn.metrics import normalized_mutual_info_score, silhouette_samples
    from sklearn.metrics.cluster import contingency_matrix

    from deft_tsds.geometry.kmeans import kmeans

    x, labels = blobs(0.3)
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float64)
    cosines = unit @ unit.T
    different = ~np.eye(len(x), dtype=bool)
    assert (found.rows, found.dimension, found.labels) == (90, 6, 3)
    np.testing.assert_allclose(found.anisotropy, cosines[different].mean(), atol=1e-6)
    variances = np.linalg.eigvalsh(np.cov(unit.T))
    np.testing.assert_allclose(found.spread, variances.sum() ** 2 / (variances**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(
        found.silhouette, np.asarray(silhouette_samples(unit, labels, metric="cosine")).mean(), atol=1e-5
    )
    agree = 0
    for row in range(len(x)):
        others = [(-cosines[row, other], other) for other in range(len(x)) if other != row]
        agree += labels[row] == labels[min(others, key=lambda pair: (round(pair[0], 6), pair[1]))[1]]
    np.testing.assert_allclose(found.neighbor_agreement, agree / len(x))
    for seed in range(3):
        clusters = kmeans(unit, 3, key=jax.random.fold_in(KEY, seed), spherical=True).labels_N
        np.testing.assert_allclose(found.nmi[seed], normalized_mutual_info_score(labels, clusters), atol=1e-9)
        np.testing.assert_allclose(found.purity[seed], contingency_matrix(labels, clusters).max(0).sum() / 90)
    assert found.repeated == pytest.approx(2 / 90)
    for each, cosine in zip(found.duplicates, COSINES, strict=True):
        near = (cosines >= cosine) & different
        _, group = scipy.sparse.csgraph.connected_components(near)
        sizes = np.bincount(group)
        assert each.cosine == cosine
        assert each.share == pytest.approx(near.any(axis=1).mean())
        assert (each.groups, each.largest) == ((sizes > 1).sum(), sizes.max())
    assert found.duplicates[0].largest > 3  # or the groups would be the three equal rows alone


def test_better_separated_labels_score_higher(found: Inspection) -> None:
    near, _ = blobs(0.02), None
    clear = inspect(*near, key=KEY, seeds=1)
    for name in ("silhouette", "neighbor_agreement"):
        assert getattr(clear, name) > getattr(found, name)
    assert np.mean(clear.nmi) > np.mean(found.nmi)
    assert clear.purity == [pytest.approx(88 / 90)]  # rows 1 and 2 lie with the label of row 0


def test_scale_rotation_and_order_change_nothing(found: Inspection) -> None:
    x, labels = blobs(0.3)
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    order = np.concatenate([[0, 1, 2], 3 + rng.permutation(87)])  # the equal rows first: they are told apart by order
    scaled = (x * rng.uniform(0.5, 2.0, (90, 1)))[order] @ rotation
    scaled[1] = scaled[2] = scaled[0]
    again = inspect(scaled, [labels[row] for row in order], key=KEY, seeds=1)
    for name in ("silhouette", "neighbor_agreement", "anisotropy", "spread"):
        assert getattr(again, name) == pytest.approx(getattr(found, name), abs=1e-4)
    assert again.duplicates == found.duplicates


def test_a_narrow_cone_and_one_direction() -> None:
    x, labels = blobs(0.3)
    cone = x + np.full(6, 5.0, np.float32)
    assert inspect(cone, labels, key=KEY, seeds=1).anisotropy > 0.95
    assert participation_ratio(np.outer([1.0, 2.0, 4.0], [1.0, -1.0])) == pytest.approx(1.0)
    assert participation_ratio(np.ones((4, 3))) == 0.0
    wide = np.random.default_rng(0).standard_normal((5, 40))  # more columns than rows: from the products of rows
    variances = np.linalg.eigvalsh(np.cov(wide.T))
    assert participation_ratio(wide) == pytest.approx(variances.sum() ** 2 / (variances**2).sum())
    assert anisotropy(np.eye(4)) == 0.0


def test_zero_rows_and_equal_rows_are_measured() -> None:
    zeros = np.zeros((6, 3), np.float32)
    zeros[:2, 0] = 1.0
    seen = inspect(zeros, ["a", "a", "b", "b", "b", "b"], key=KEY, seeds=1)
    assert seen.anisotropy == pytest.approx(1 / 15)
    assert [(each.groups, each.largest) for each in seen.duplicates] == [(1, 2)] * 3
    same = inspect(np.ones((5, 2)), ["a", "b", "a", "b", "a"], key=KEY, seeds=1)
    assert (same.anisotropy, same.spread, same.repeated) == (pytest.approx(1.0), 0.0, pytest.approx(0.8))
    assert [each.largest for each in same.duplicates] == [5, 5, 5]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=30))
def test_purity_by_counting(pairs: list[tuple[int, int]]) -> None:
    labels, clusters = (np.array(side) for side in zip(*pairs, strict=True))
    right = 0
    for cluster in set(clusters.tolist()):
        inside = labels[clusters == cluster].tolist()
        right += max(inside.count(label) for label in inside)
    assert purity(labels, clusters) == right / len(pairs)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.6, 0.9]), st.sampled_from([1, 3, 1024]))
def test_groups_are_connected_components(seed: int, cosine: float, at_once: int) -> None:
    from deft_tsds.studies import representations

    rng = np.random.default_rng(seed)
    x = rng.standard_normal((int(rng.integers(0, 25)), 3))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(representations, "_ROWS_AT_ONCE", at_once)
        group = near_groups(unit, cosine)
    _, expected = scipy.sparse.csgraph.connected_components(unit @ unit.T >= cosine) if len(x) else (0, [])
    _, numbers = np.unique(group, return_index=True)
    assert (np.diff(numbers) > 0).all()  # numbered by their first row
    np.testing.assert_array_equal(group[:, None] == group, np.array(expected)[:, None] == np.array(expected))


@pytest.mark.parametrize(
    ("labels", "change", "message"),
    [
        (["a"] * 90, {}, "labels has 1 different ones for 90 rows"),
        ([str(n) for n in range(90)], {}, "labels has 90 different ones"),
        (["a", "b"], {}, "labels has 2 entries for 90 rows"),
        (["a", "b"] * 45, {"seeds": 0}, "seeds is 0"),
    ],
)
def test_what_cannot_be_measured(labels: list[str], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect(blobs(0.3)[0], labels, key=KEY, **change)


def test_the_page_shows_every_representation_and_trusts_no_text(found: Inspection, tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><b>%{x}"
    labels = [f"group {n}" for n in range(12)] + [hostile]
    points = np.arange(26.0).reshape(13, 2)
    path = write_representations(
        {"one": found, hostile: found},
        {"one": points, hostile: -points},
        tmp_path / "page.html",
        texts=[hostile] * 13,
        labels=labels,
        command=["inspect.py", hostile],
    )
    page = path.read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "default-src" in page
    assert page.count('class="plot square"') == 2
    assert not re.search(r"(src|href)=\"https?:", page.partition("<script")[0])  # Plotly holds links as texts
    for heading in headings(found):
        assert heading in page
    for _, text in cells(found):
        assert page.count(text) >= 2
    figure = map_figure(points, ["text"] * 13, labels)
    assert [len(trace["x"]) for trace in figure["data"]] == [1] * 10 + [3]  # ten colours, and the others together
    assert figure["data"][-1]["name"] == "other labels"


def test_the_script_from_a_file_to_a_page(tmp_path: Path) -> None:
    words = {"red": "cat dog tree house", "blue": "stock bond price market"}
    rng = np.random.default_rng(0)
    rows = [
        {"id": str(n), "words": " ".join(rng.choice(words[group].split(), 5)), "kind": group}
        for n, group in enumerate(["red", "blue"] * 20)
    ]
    write_jsonl(tmp_path / "data.jsonl", rows)
    np.save(tmp_path / "own.npy", rng.standard_normal((40, 4)).astype(np.float32))
    command = [sys.executable, str(ROOT / "scripts" / "inspect_embeddings.py"), str(tmp_path / "data.jsonl")]
    command += f"--text words --group kind --rows 30 --map-rows 20 --seeds 2 --out {tmp_path / 'out'}".split()
    done = subprocess.run(
        [*command, "--encoders", "lexical", f"mine=embeddings:{tmp_path / 'own.npy'}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    table = read_json(tmp_path / "out" / "table.json")
    assert list(table) == ["lexical", "mine"]
    assert table["lexical"]["rows"] == 30
    assert table["lexical"]["neighbor_agreement"] == 1.0
    assert table["mine"]["neighbor_agreement"] < 0.9
    assert (tmp_path / "out" / "representations.html").is_file()


def test_the_script_names_a_wrong_encoder(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", [{"id": str(n), "text": "a b", "task": "t"} for n in range(3)])
    script = str(ROOT / "scripts" / "inspect_embeddings.py")
    done = subprocess.run(
        [sys.executable, script, str(tmp_path / "data.jsonl"), "--out", str(tmp_path), "--encoders", "t5:x"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "write [NAME=]KIND:MODEL" in " ".join(done.stderr.split())
