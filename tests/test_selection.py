"""`select` and `Selection`: what goes in is checked, what comes out is checked, what is written is read back."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deft_tsds as dt
from deft_tsds import Pool, Selection
from deft_tsds.cost import PlanCost, StageCost
from deft_tsds.runs import read_jsonl

KEY = jax.random.key(0)
POOL = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def first(pool, *, budget, key):
    return Selection.of(np.arange(budget))


def never(pool, *, budget, key):
    raise AssertionError("the selector ran before the input was checked")


def choose(selector=first, candidates=POOL, budget: int | None = 3, key=KEY, **options):
    return dt.select(candidates, selector=selector, budget=budget, key=key, **options)


def returning(**changes):
    """A selector whose result differs from a right one in the named fields."""

    def wrong(pool, *, budget, key):
        return dataclasses.replace(Selection.of(np.arange(budget)), **changes)

    return wrong


def test_a_function_is_a_selector():
    selection = choose(groups=list("abcabcabcabc"), costs=np.arange(1, 13))
    np.testing.assert_array_equal(selection.indices, [0, 1, 2])
    np.testing.assert_array_equal(selection.weights, [1, 1, 1])
    info = selection.info
    assert info.pop("seconds") >= 0
    assert info == {"selector": "first", "parameters": {}, "budget": 3, "candidates": 12, "chosen": 3, "cost": 6.0}


@dataclass(frozen=True)
class Mine:
    power: float = 2.0
    terms: tuple = (np.sin,)
    needs_queries = True

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        score = -(np.linalg.norm(pool.embeddings_NxD, axis=1) ** self.power)
        rows = np.argsort(-score)[:budget]
        return Selection.of(rows, scores=score[rows], weights=np.arange(1, budget + 1))


def test_a_users_own_class_in_ten_lines():
    selection = choose(Mine(), queries=POOL[:1])
    assert selection.info["selector"] == "Mine"
    assert selection.info["parameters"] == {"power": 2.0, "terms": [repr(np.sin)]}
    np.testing.assert_allclose(selection.weights, [0.5, 1, 1.5])
    with pytest.raises(ValueError, match="Mine needs queries"):
        choose(Mine())


def test_a_partial_is_a_selector():
    def last(pool, *, budget, key, skip):
        return Selection.of(np.arange(len(pool) - skip - budget, len(pool) - skip))

    selection = choose(functools.partial(last, skip=2))
    np.testing.assert_array_equal(selection.indices, [7, 8, 9])
    assert selection.info["selector"] == "last"
    assert selection.info["parameters"] == {"skip": 2}


@pytest.mark.parametrize("kind", ["float64", "jax", "list", "memmap", "float16"])
def test_kinds_of_arrays(kind, tmp_path):
    candidates: Any = POOL
    if kind == "jax":
        candidates = jnp.asarray(POOL)
    elif kind == "list":
        candidates = POOL.tolist()
    elif kind == "memmap":
        np.save(tmp_path / "pool.npy", POOL)
        candidates = np.load(tmp_path / "pool.npy", mmap_mode="r")
    else:
        candidates = POOL.astype(kind)
    seen = []

    def look(pool, *, budget, key):
        seen.append(pool)
        return first(pool, budget=budget, key=key)

    choose(look, candidates=candidates)
    assert seen[0].embeddings_NxD.dtype == np.float32
    np.testing.assert_allclose(seen[0].embeddings_NxD, POOL, rtol=1e-3)
    with pytest.raises(ValueError, match="read-only"):
        seen[0].embeddings_NxD[0] = 0


def test_input_is_checked_before_any_work():
    def fails(message, **options):
        with pytest.raises(ValueError, match=message):
            choose(never, **options)

    bad = POOL.copy()
    bad[7, 2] = np.nan
    fails("candidates, row 7, has a NaN", candidates=bad)
    fails("queries, row 7, has a NaN", queries=bad)
    fails("queries has 2 dimensions but candidates has 3", queries=POOL[:, :2])
    fails("candidates is empty", candidates=POOL[:0])
    fails("budget is 0", budget=0)
    fails(r"budget is 2\.5", budget=2.5)
    fails("budget is 13, but there are only 12 candidates", budget=13)
    fails(r"groups has shape \(5,\): give one label for each of the 12", groups=list("abcde"))
    fails(r"costs has shape \(1,\)", costs=[1])
    fails("costs, row 3, is -1", costs=[1, 1, 1, -1] * 3)
    fails("key must be a single JAX random key", key=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": np.array([0, 1, 12])}, "wrong returned indices from 0 to 12, but the pool has rows 0 to 11"),
        ({"indices": np.array([-1, 1, 2])}, "indices from -1"),
        ({"indices": np.array([4, 1, 4])}, "row 4 2 times"),
        ({"indices": [0, 1, 2]}, "not an int64 vector"),
        ({"indices": np.arange(4)}, "returned 4 rows for a budget of 3"),
        ({"indices": np.arange(2)}, "returned 2 rows for a budget of 3"),
        ({"indices": np.array([], np.int64)}, "no rows"),
        ({"weights": np.ones(2, np.float32)}, "weights that are not a float32 vector of length 3"),
        ({"weights": np.full(3, 2, np.float32)}, "mean is not 1"),
        ({"weights": np.array([-1, 2, 2], np.float32)}, "negative"),
        ({"scores": np.array([0, np.nan, 0], np.float32)}, "scores that are NaN or infinite at index 1"),
        ({"reasons": ({"why": "x"},)}, "1 reasons for 3 rows"),
        ({"reasons": ({"why": "x"}, {}, {"why": "x"})}, 'no sentence under "why" in the reason of row 1'),
        ({"reasons": ({"why": "x", "n": np.int64(1)},) * 3}, "the reason of row 0 that wrong gave is not plain JSON"),
        ({"reasons": ({"why": "x", "n": float("nan")},) * 3}, "not plain JSON"),
        ({"info": {1: "x"}}, "the info that wrong gave does not survive JSON"),
        ({"info": {"x": (1, 2)}}, "lists instead of tuples"),
    ],
)
def test_a_wrong_selector_is_named(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        choose(returning(**changes))
    assert "wrong" in str(error.value)


def test_a_selector_that_returns_no_selection():
    with pytest.raises(ValueError, match="returned ndarray: it must return a Selection"):
        choose(lambda pool, *, budget, key: np.arange(budget))  # type: ignore[arg-type]


def test_fewer_rows_with_a_stated_shortfall():
    def short(pool, *, budget, key):
        return Selection.of([5], info={"shortfall": "only one was any good"})

    assert choose(short).info["chosen"] == 1


def cheap(pool, *, budget, key):
    """Takes the first rows that the cost budget allows; asked for rows, all of them."""
    assert pool.cost_budget is None or budget == len(pool)
    return Selection.of(np.flatnonzero(np.cumsum(pool.costs_N) <= (pool.cost_budget or np.inf)))


cheap.takes_cost_budget = True  # type: ignore[attr-defined]


def test_cost_budget():
    costs = np.arange(1, 13)
    selection = choose(cheap, budget=None, costs=costs, cost_budget=11)
    np.testing.assert_array_equal(selection.indices, [0, 1, 2, 3])  # 1 + 2 + 3 + 4, and 5 more would be too much
    assert (selection.info["cost"], selection.info["cost_budget"]) == (10, 11)
    assert "budget" not in selection.info
    cases: list[tuple[str, dict[str, Any]]] = [
        ("exactly one of them", {"selector": cheap, "costs": costs, "cost_budget": 11}),
        ("exactly one of them", {"selector": cheap, "costs": costs, "budget": None}),
        ("cost_budget needs costs", {"selector": cheap, "budget": None, "cost_budget": 11}),
        ("cost_budget is 0", {"selector": cheap, "budget": None, "costs": costs, "cost_budget": 0}),
        ("never counts rows and knows no costs", {"selector": never, "budget": None, "costs": costs, "cost_budget": 1}),
    ]
    for message, options in cases:
        with pytest.raises(ValueError, match=message):
            choose(**options)

    def dear(pool, *, budget, key):
        return Selection.of([11])

    dear.takes_cost_budget = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="dear returned rows that cost 12, above the cost_budget of 11"):
        choose(dear, budget=None, costs=costs, cost_budget=11)


@dataclass(frozen=True)
class Hungry:
    """Needs a gigabyte, and says so."""

    def cost(self, pool, budget):
        return PlanCost((StageCost("eating", 10**9, 10 * len(pool) * budget),))

    def __call__(self, pool, *, budget, key):
        return first(pool, budget=budget, key=key)


def test_memory_budget_refuses_before_any_work(monkeypatch):
    monkeypatch.setattr(Hungry, "__call__", never)
    with pytest.raises(ValueError, match="Hungry would need about 1 GB") as error:
        choose(Hungry(), memory_budget=10**9 - 1)
    assert "0.000" not in str(error.value)
    for part in (
        "memory_budget allows",
        "eating",
        "1.000",
        "peak, and sum",
        "upper bounds. Lower what the largest stage",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="memory_budget is 0"):
        choose(memory_budget=0)


def test_memory_budget_is_by_default_what_is_available(monkeypatch):
    assert choose(Hungry(), memory_budget=10**9).info["chosen"] == 3
    monkeypatch.setattr("deft_tsds.selection.available_memory", lambda: 10**9 - 1)
    with pytest.raises(ValueError, match="is available on this machine"):
        choose(Hungry())
    assert choose(first).info["chosen"] == 3  # says nothing of its cost
    monkeypatch.setattr("deft_tsds.selection.available_memory", lambda: None)
    assert choose(Hungry()).info["chosen"] == 3
    monkeypatch.setattr(Hungry, "cost", lambda self, pool, budget: 10**9)
    with pytest.raises(ValueError, match="the method cost of Hungry returned int"):
        choose(Hungry())
    monkeypatch.setattr(Hungry, "cost", 5.0)  # a parameter of that name is no method
    assert choose(Hungry()).info["chosen"] == 3


def test_parameters_of_selectors_within_selectors():
    @dataclass(frozen=True)
    class Outer:
        inner: Any = dataclasses.field(default_factory=Mine)
        __call__ = staticmethod(first)

    assert choose(Outer()).info["parameters"] == {"inner": {"power": 2.0, "terms": [repr(np.sin)]}}


def test_selection_of_errors():
    with pytest.raises(ValueError, match="whole numbers"):
        Selection.of([0.5])
    with pytest.raises(ValueError, match="not all 0"):
        Selection.of([1, 2], weights=[0, 0])


def assert_same(a: Selection, b: Selection) -> None:
    for name in ("indices", "weights", "scores"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        assert x.tobytes() == y.tobytes()
    assert a.reasons == b.reasons
    assert a.info == b.info


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8),
    st.text(),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_save_and_load_are_exact(tmp_path_factory, scores, text, number):
    folder = tmp_path_factory.mktemp("selection")
    selection = Selection.of(
        np.arange(len(scores)) * 10**12,
        weights=np.arange(1, len(scores) + 1) ** 1.5,
        scores=scores,
        reasons=[{"why": text, "n": number, "list": [{"a": None, "b": True}]}] * len(scores),
        info={"text": text, "number": number},
    )
    selection.save(folder)
    assert_same(selection, Selection.load(folder))
    selection.save(folder)  # again, over the old one
    assert_same(selection, Selection.load(folder))


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"holds no finished selection: info\.json is missing"):
        Selection.load(tmp_path / "nowhere")
    folder = tmp_path / "chosen"
    choose().save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["chosen.jsonl", "info.json"]
    whole = (folder / "chosen.jsonl").read_bytes()
    for damaged in (whole[:-20], whole[: whole.rindex(b'{"index')], b"", whole.replace(b'"index": 2', b'"index": 9')):
        (folder / "chosen.jsonl").write_bytes(damaged)
        with pytest.raises(ValueError, match="is cut off or was changed"):
            Selection.load(folder)
    (folder / "chosen.jsonl").unlink()
    with pytest.raises(ValueError, match=r"chosen\.jsonl is missing"):
        Selection.load(folder)
    choose().save(folder)
    header = (folder / "info.json").read_text()
    (folder / "info.json").write_text(header[:30])
    with pytest.raises(ValueError, match="not valid JSON"):
        Selection.load(folder)
    (folder / "info.json").write_text("[]")
    with pytest.raises(ValueError, match="is cut off or was changed"):
        Selection.load(folder)


def test_interrupted_save_is_not_taken_for_whole(tmp_path, monkeypatch):
    choose().save(tmp_path)

    def killed(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr("deft_tsds.selection.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        choose(budget=5).save(tmp_path)
    with pytest.raises(ValueError, match="no finished selection"):
        Selection.load(tmp_path)


class Texts:
    """The part of `Examples` that `to_jsonl` needs."""

    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def take(self, indices):
        return Texts([self.texts[i] for i in indices])

    def rows(self):
        return [{"id": text, "target": text.upper()} for text in self.texts]


def test_to_jsonl(tmp_path):
    selection = Selection.of([2, 0], scores=[1.5, 0.5], weights=[1, 3], reasons=[{"why": "a"}, {"why": "b"}])
    selection.to_jsonl(Texts(["x", "y", "z"]), tmp_path / "out.jsonl")  # type: ignore[arg-type]
    assert read_jsonl(tmp_path / "out.jsonl") == [
        {"id": "z", "target": "Z", "selection": {"index": 2, "weight": 0.5, "score": 1.5, "reason": {"why": "a"}}},
        {"id": "x", "target": "X", "selection": {"index": 0, "weight": 1.5, "score": 0.5, "reason": {"why": "b"}}},
    ]
    with pytest.raises(ValueError, match="names row 2, but there are only 2 examples"):
        selection.to_jsonl(Texts(["x", "y"]), tmp_path / "out.jsonl")  # type: ignore[arg-type]


def test_info_file_is_plain(tmp_path):
    choose().save(tmp_path)
    header = json.loads((tmp_path / "info.json").read_text())
    assert header["count"] == 3
    assert header["info"]["selector"] == "first"
