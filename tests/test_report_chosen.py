"""What was chosen, against plain counts: shares, near-duplicates, typicality, the outputs side by side."""

from __future__ import annotations

from collections import Counter

import jax
import numpy as np
import pytest
from fake_run import write_fake_run
from hypothesis import given, settings
from hypothesis import strategies as st

from deft_tsds.report import read_run
from deft_tsds.report.composition import flag_shares, group_shares, near_duplicate_share
from deft_tsds.report.outputs import edits, side_by_side
from deft_tsds.report.typicality import extremes, typicality
from deft_tsds.report.view import RunView
from deft_tsds.runs import read_jsonl

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def view(tmp_path_factory) -> RunView:
    return read_run(write_fake_run(tmp_path_factory.mktemp("runs") / "demo"))


def test_group_and_flag_shares_against_counters(view):
    pool = Counter(view.pool.groups)
    rows = group_shares(view)
    assert [row.name for row in rows] == [
        name for name, _ in sorted(pool.items(), key=lambda item: (-item[1], item[0]))
    ]
    for row in rows:
        assert row.pool == pytest.approx(pool[row.name] / len(view.pool))
        for arm, share in zip(view.arms, row.arms, strict=True):
            by_seed = [
                Counter(view.pool.groups[index] for index in selection.indices)[row.name] / len(selection.indices)
                for selection in arm.selections.values()
            ]
            assert share.mean == pytest.approx(np.mean(by_seed))
            assert (share.low, share.high) == pytest.approx((min(by_seed), max(by_seed)))
            assert share.ratio == pytest.approx(share.mean / row.pool)
    flagged = {row.name: row for row in flag_shares(view)}
    chosen = view.arms[2].first.indices
    expected = np.mean([view.pool.flags["off_task"][index] for index in chosen])
    assert flagged["off_task"].arms[2].low <= expected <= flagged["off_task"].arms[2].high


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 40), threshold=st.floats(0.0, 0.99))
def test_near_duplicate_share_against_brute_force(seed, rows, threshold):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((50, 3))
    unit = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    indices = rng.integers(50, size=rows)  # some twice
    cosines = unit[indices].astype(np.float64) @ unit[indices].astype(np.float64).T
    pairs = [(i, j) for i in range(rows) for j in range(rows) if i != j and abs(cosines[i, j] - threshold) < 1e-5]
    if pairs:
        return  # float32 and float64 may differ on a cosine that lies on the threshold
    expected = np.mean([any(cosines[i, j] >= threshold for j in range(rows) if j != i) for i in range(rows)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deft_tsds.report.composition._BLOCK", 7)  # several blocks even here
        assert near_duplicate_share(unit, indices, key=KEY, threshold=threshold) == pytest.approx(expected)


def test_near_duplicate_share_of_many_rows_is_sampled_without_bias(monkeypatch):
    rng = np.random.default_rng(0)
    unit = np.eye(3000, 4000, dtype=np.float32)
    unit[:900] = unit[rng.integers(0, 5, size=900)]
    monkeypatch.setattr("deft_tsds.report.composition._MOST_COSINES", 3000 * 1000)
    share = near_duplicate_share(unit, np.arange(3000), key=KEY)
    assert share == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 1000))


def test_typicality_against_a_loop(view):
    embeddings = np.asarray(view.embeddings_NxD, dtype=np.float64)
    measured = typicality(view.embeddings_NxD, view.pool.groups)
    for row in range(0, len(view.pool), 17):
        own = [embeddings[i] for i in range(len(view.pool)) if view.pool.groups[i] == view.pool.groups[row]]
        mean = np.mean(own, axis=0)
        cosine = embeddings[row] @ mean / (np.linalg.norm(embeddings[row]) * np.linalg.norm(mean))
        assert measured[row] == pytest.approx(cosine, abs=1e-5)
    opposite = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    assert typicality(opposite, ("a", "a")).tolist() == [0, 0]


def test_extremes_are_twenty_of_the_chosen_in_order(view):
    measured = typicality(view.embeddings_NxD, view.pool.groups)
    for arm, extreme in zip(view.arms, extremes(view, measured), strict=True):
        chosen = sorted(measured[arm.first.indices])
        shown = min(20, len(chosen) // 2)
        assert [c.typicality for c in extreme.least] == pytest.approx(chosen[:shown])
        assert [c.typicality for c in extreme.most] == pytest.approx(chosen[::-1][:shown])
        assert not {c.id for c in extreme.most} & {c.id for c in extreme.least}
        position = list(arm.first.indices).index(view.pool.ids.index(extreme.most[0].id))
        assert extreme.most[0].reason == arm.first.reasons[position]["why"]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(["the", "a", "cat", "sat,", "on"]), max_size=12), st.randoms(use_true_random=False))
def test_edits_rebuild_both_texts(tokens, random):
    source = " ".join(tokens)
    output = " ".join(token for token in tokens if random.random() < 0.8)
    parts = edits(source, output)
    if parts is not None:
        assert "".join(text for kind, text in parts if kind != "insert") == source
        assert "".join(text for kind, text in parts if kind != "delete") == output


def test_side_by_side_counts_copies(view):
    shown = side_by_side(view)
    assert [outputs.name for outputs in shown] == ["jfleg", "asset", "wnc"]
    jfleg = shown[0]
    assert [row.id for row in jfleg.rows] == ["jfleg-00003", "jfleg-00009", "jfleg-00015"]
    rows = read_jsonl(view.folder / "evaluate/deft/seed-0/predictions_jfleg.jsonl")
    same = np.mean([row["prediction"] == text for row, text in zip(rows, view.tests["jfleg"].inputs, strict=True)])
    assert dict(jfleg.unchanged)["DEFT"] == pytest.approx(same)
    for row in jfleg.rows:
        for output in row.outputs:
            assert output.copies == (output.text == row.input)
