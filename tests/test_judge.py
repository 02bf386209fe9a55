"""Human evaluation without a browser: fair assignments, blind pages, answers read with suspicion, right results."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from fake_run import write_fake_run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_agreement import simulated

from deft_tsds.data.examples import Examples
from deft_tsds.judging.assignment import assign, balanced_sides
from deft_tsds.judging.collecting import read_answers, results, rows, sentence, unblind
from deft_tsds.judging.making import QUESTIONS, Question, Study, make
from deft_tsds.judging.written import Written, from_files, from_run, read_predictions
from deft_tsds.report.annotate import annotation_page, write_study
from deft_tsds.report.judged import notes, write_judged
from deft_tsds.runs import read_json, read_jsonl, write_json, write_jsonl

HOSTILE = "</script><script>alert(1)</script> <!-- \u202eright to left\u202c {{ 7 * 7 }} & \x00 \x1b"


def written(size: int, *, systems: tuple[str, ...] = ("old", "new"), tasks: int = 2, same: int = 0) -> list[Written]:
    """Examples of several tasks; on the first `same` of them all systems write the same."""
    return [
        Written(
            example=f"e{row}",
            task=f"task-{row % tasks}",
            input=f"this is the input with number {row}",
            outputs={name: f"one two three four five {row} {'' if row < same else name}" for name in systems},
        )
        for row in range(size)
    ]


def answer(study: Study, rater: str, choose) -> dict:
    """What a rater exports who answers every item as `choose(item as shown)` says: a, b or tie."""
    said = {
        item.id: {"accurate_a": "yes", "accurate_b": "no" if item.kind == "reversed" else "yes", "better": choose(item)}
        for item in study.shown(rater)
    }
    return {"study": study.id, "rater": rater, "answers": said}


def side(item, system: str) -> str:
    """The side of a system; of a check, the right answer."""
    if item.kind == "same":
        return "tie"
    return "ab"[item.systems.index("kept" if item.kind == "reversed" else system)]


def collected(study: Study, folder: Path, choose, **options):
    paths = []
    for place, rater in enumerate(study.order):
        paths.append(folder / f"{rater}.json")
        write_json(paths[-1], answer(study, rater, lambda item, place=place: choose(item, place)))
    return results(study, read_answers(study, paths), resamples=200, **options)


# Who judges what


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 7), st.data())
def test_assignments_are_balanced_and_overlap(items, raters, data):
    overlap = data.draw(st.integers(0, items))
    found = assign(items, raters, overlap=overlap, rng=np.random.default_rng(0))
    assert len(found) == items
    assert len({len(row) for row in found}) == 1
    assert all(row == sorted(set(row)) for row in found)
    loads = Counter(itertools.chain(*found))
    assert max(loads.values()) - min(loads[rater] for rater in range(raters)) <= 1
    shared = Counter(pair for row in found for pair in itertools.combinations(row, 2))
    assert all(shared[pair] >= overlap for pair in itertools.combinations(range(raters), 2))
    if overlap == 0:
        assert len(found[0]) == 1


def test_pairs_of_raters_meet_equally_often():
    found = assign(60, 4, overlap=10, rng=np.random.default_rng(1))
    shared = Counter(pair for row in found for pair in itertools.combinations(row, 2))
    assert set(shared.values()) == {10}  # 60 items, two raters each, six pairs
    assert {len(row) for row in found} == {2}


@pytest.mark.parametrize("bad", [{"overlap": 6}, {"overlap": -1}, {"raters": 0}, {"items": 0}])
def test_assignments_refuse(bad):
    with pytest.raises(ValueError, match=r"overlap is|must be at least 1"):
        assign(**{"items": 5, "raters": 2, "overlap": 1, "rng": np.random.default_rng(0), **bad})


@settings(deadline=None, max_examples=100)
@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 20))), st.integers(0, 5))
def test_sides_are_balanced_for_every_rater_and_every_item(pairs, seed):
    pairs = sorted(pairs)
    sides = balanced_sides(pairs, rng=np.random.default_rng(seed))
    assert len(sides) == len(pairs)
    apart = defaultdict(int)
    for (rater, item), turned in zip(pairs, sides, strict=True):
        apart["rater", rater] += 1 if turned else -1
        apart["item", item] += 1 if turned else -1
    assert all(abs(value) <= 1 for value in apart.values())


def test_sides_are_drawn():
    pairs = list(itertools.product(range(3), range(20)))
    drawn = [balanced_sides(pairs, rng=np.random.default_rng(seed)) for seed in range(200)]
    assert np.all(np.abs(np.mean(drawn, axis=0) - 0.5) < 0.15)


def test_a_study_is_balanced_in_tasks_sides_and_checks():
    study = make(written(90, tasks=3), items=30, raters=3, overlap=10, checks=4)
    pairs = [item for item in study.items.values() if item.kind == "pair"]
    assert Counter(item.task for item in pairs) == {f"task-{number}": 10 for number in range(3)}
    assert Counter(item.kind for item in study.items.values())["reversed"] == 2
    used = {item.example for item in pairs}
    for rater in study.order:
        shown = [item for item in study.shown(rater) if item.kind == "pair"]
        assert len(shown) == 20
        assert Counter(item.systems for item in shown) == {("old", "new"): 10, ("new", "old"): 10}
        checks = [item for item in study.shown(rater) if item.kind != "pair"]
        assert len(checks) == 4
        assert not {item.example for item in checks} & used
        for item in checks:
            assert item.texts[item.systems.index("kept")] == item.input
            assert sorted(item.texts[0].split()) == sorted(item.texts[1].split())
            assert (item.texts[0] == item.texts[1]) == (item.kind == "same")
    assert len({tuple(row) for row in study.order.values()}) == 3
    again = make(written(90, tasks=3), items=30, raters=3, overlap=10, checks=4)
    assert again == study
    assert make(written(90, tasks=3), items=30, raters=3, overlap=10, checks=4, seed=1).id != study.id


def test_three_systems_are_compared_in_pairs():
    study = make(written(40, systems=("a1", "a2", "a3")), items=10, raters=2, checks=0)
    assert Counter(item.systems for item in study.items.values()) == {
        ("a1", "a2"): 10,
        ("a1", "a3"): 10,
        ("a2", "a3"): 10,
    }
    assert {len(row) for row in study.order.values()} == {30}


def test_equal_outputs_are_skipped_or_drawn_as_ties():
    texts = written(40, same=20)
    study = make(texts, items=20, raters=1, checks=0)
    assert {item.example for item in study.items.values()} == {f"e{row}" for row in range(20, 40)}
    assert (study.pairs[0].same, study.pairs[0].examples, study.pairs[0].draws) == (20, 40, ())
    with pytest.raises(ValueError, match=r"different texts on 20 of 40 examples: ask for 1 to 20"):
        make(texts, items=21, raters=1, checks=0)
    drawn = make(texts, items=40, raters=1, checks=0, identical="draw")
    assert {example for example, _ in drawn.pairs[0].draws} == {f"e{row}" for row in range(20)}
    assert len(drawn.items) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 0}, "items is 0"),
        ({"overlap": 11}, "overlap is 11"),
        ({"checks": 31}, "only 30 examples"),
        ({"checks": -1}, "checks is -1"),
        ({"questions": []}, "ask one at least"),
        ({"questions": [QUESTIONS[0]]}, "of kind which"),
        ({"questions": [QUESTIONS[1], QUESTIONS[1]]}, "a name of its own"),
        ({"questions": [Question("Bad name", "which", "?")]}, "give a name"),
    ],
)
def test_studies_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        make(written(40), **{"items": 10, "raters": 2, **options})


@pytest.mark.parametrize("texts", [[], written(9, systems=("only",)), written(9, systems=("tie", "other"))])
def test_studies_need_two_systems(texts):
    with pytest.raises(ValueError, match="systems are"):
        make(texts, items=1, raters=1)


# What raters get, and what they do not


def test_pages_are_blind_and_hold_hostile_text():
    texts = written(30, systems=("secret_old", "secret_new"))
    texts = [
        dataclasses.replace(
            one,
            example=f"secret-{one.example}",
            input=HOSTILE + "\ud800",
            outputs={name: f"{HOSTILE} {place}" for place, name in enumerate(one.outputs)},
        )
        for one in texts
    ]
    study = make(texts, items=8, raters=2, checks=2, questions=[*QUESTIONS, Question("odd", "which", HOSTILE)])
    for rater in study.order:
        page = annotation_page(study, rater)
        assert "secret" not in page
        assert "task-" not in page
        assert "<script>alert" not in page
        assert "49" not in page.split('id="questions"')[1].split("</form>")[0]
        data = json.loads(page.split('id="study">')[1].split("</script>")[0])
        assert set(data) == {"study", "rater", "fields", "items"}
        assert all(set(item) == {"id", "input", "a", "b"} for item in data["items"])
        assert [item["id"] for item in data["items"]] == list(study.order[rater])
        assert data["items"][0]["input"] == HOSTILE + "\ud800"
        assert page == annotation_page(study, rater)
        page.encode()


def test_a_study_is_written_whole_and_read_back(tmp_path):
    study = make(written(40, same=10), items=12, raters=3, overlap=4, checks=2, identical="draw")
    write_study(study, tmp_path / "study")
    assert Study.load(tmp_path / "study") == study
    assert sorted(path.name for path in (tmp_path / "study/raters").iterdir()) == [
        f"rater-{number}.html" for number in (1, 2, 3)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["study"]
    with pytest.raises(ValueError, match="is there already"):
        write_study(study, tmp_path / "study")
    assignment = read_jsonl(tmp_path / "study/assignment.jsonl")
    write_jsonl(tmp_path / "study/assignment.jsonl", assignment[1:])
    with pytest.raises(ValueError, match="not as they were made"):
        Study.load(tmp_path / "study")
    with pytest.raises(ValueError, match="holds no study"):
        Study.load(tmp_path)


def test_predictions_of_a_run_and_of_files(tmp_path):
    run = write_fake_run(tmp_path / "run")
    found = from_run(run, ["deft", "random"], replicate=1)
    assert len(found) == 60
    predicted = {
        row["id"]: row["prediction"] for row in read_jsonl(run / "evaluate/deft/seed-1/predictions_jfleg.jsonl")
    }
    jfleg = {one.example: one.outputs["deft"] for one in found if one.example.startswith("jfleg/")}
    assert jfleg == {f"jfleg/{name}": text for name, text in predicted.items()}
    examples = Examples.load(run / "data/tests/jfleg.jsonl")
    assert [one.task for one in found if one.example.startswith("jfleg/")] == list(examples.groups)

    path = run / "evaluate/deft/seed-1/predictions_jfleg.jsonl"
    same = from_files(examples, {"deft": path, "again": path})
    assert [one.example for one in same] == list(examples.ids)
    assert {one.outputs["again"] for one in same} == set(predicted.values())
    write_jsonl(path, read_jsonl(path)[1:])
    with pytest.raises(ValueError, match=r"deft has no prediction for 1 examples, such as 'jfleg-00000'"):
        from_files(examples, {"deft": path})
    write_jsonl(path, [{"id": "x", "prediction": None}])
    with pytest.raises(ValueError, match="line 1: write"):
        from_files(examples, {"deft": path})
    write_jsonl(path, [{"id": "x", "prediction": "é"}])
    assert read_predictions(path) == {"x": "é"}
    path.write_text('{"id": "x", "prediction": "\\ud800"}')
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        read_predictions(path)
    with pytest.raises(ValueError, match="There is no"):
        from_run(run, ["deft", "missing"])
    with pytest.raises(ValueError, match="a run folder whose pipeline has run"):
        from_run(tmp_path, ["deft"])


# What comes back


@pytest.fixture(scope="module")
def study() -> Study:
    return make(written(60), items=20, raters=3, checks=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: [], "is not what a page exports"),
        (lambda given: {**given, "extra": 1}, "is not what a page exports"),
        (lambda given: {**given, "study": "other"}, "answers study 'other'"),
        (lambda given: {**given, "study": {"$ne": 1}}, "answers study"),
        (lambda given: {**given, "rater": "rater-9"}, "there is no rater 'rater-9', only rater-1"),
        (lambda given: {**given, "rater": ["rater-1"]}, "there is no rater"),
        (lambda given: {**given, "answers": "x" * 10_000}, r"answers is 'x+\.\.\.: it must be an object"),
        (lambda given: {**given, "answers": {**given["answers"], HOSTILE: {}}}, "was not given the item"),
        (lambda given: _said(given, "yes"), "is no object of answers"),
        (lambda given: _said(given, {"better": "new"}), "'better' is 'new'; its answers are a, tie, b"),
        (lambda given: _said(given, {"better": ["a"]}), r"'better' is \['a'\]"),
        (lambda given: _said(given, {"worse": "a"}), "'worse' is 'a'; ask for accurate_a, accurate_b, better"),
        (lambda given: _said(given, {"better": "a"}), "has not answered 1 of 24 items"),
        (lambda given: {**given, "answers": {}}, "has not answered 24 of 24 items"),
    ],
)
def test_answers_that_no_page_gave_are_refused(study, tmp_path, change, message):
    path = tmp_path / "one.json"
    path.write_text(json.dumps(change(answer(study, "rater-1", lambda item: "a"))))
    with pytest.raises(ValueError, match=message) as caught:
        read_answers(study, [path])
    assert "one.json" in str(caught.value)
    assert len(str(caught.value)) < 400


def _said(given: dict, said) -> dict:
    first = next(iter(given["answers"]))
    return {**given, "answers": {**given["answers"], first: said}}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\udcff", '{"study": NaN}'])
def test_broken_files_are_refused(study, tmp_path, text):
    path = tmp_path / "one.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"cannot be read as JSON|is not what a page exports"):
        read_answers(study, [path])


def test_a_rater_answers_once_and_somebody_answers(study, tmp_path):
    for name in ("one.json", "two.json"):
        write_json(tmp_path / name, answer(study, "rater-1", lambda item: "a"))
    with pytest.raises(ValueError, match=r"two\.json and .*one\.json are both of rater-1"):
        read_answers(study, [tmp_path / "one.json", tmp_path / "two.json"])
    with pytest.raises(ValueError, match="there are no answers"):
        read_answers(study, [])


def test_unfinished_answers_are_taken_when_asked_for(study, tmp_path):
    given = answer(study, "rater-2", lambda item: side(item, "new"))
    last = list(given["answers"])[-1]
    given["answers"][last].pop("better")
    write_json(tmp_path / "two.json", given)
    answers = read_answers(study, [tmp_path / "two.json"], partial=True)
    assert len(answers["rater-2"]) == 23
    found = results(study, answers, resamples=50)
    assert found["absent"] == ["rater-1", "rater-3"]
    assert any("No answers came from rater-1, rater-3" in note for note in notes(found))


def test_sides_are_turned_back(study, tmp_path):
    found = collected(study, tmp_path, lambda item, _: side(item, "new"))
    (pair,) = found["pairs"]
    better = pair["questions"]["better"]
    assert pair["systems"] == ["old", "new"]
    assert (better["value"], better["items"]) == (0, 20)
    assert better["said"] == {"old": 0, "tie": 0, "new": 60}
    assert better["verdict"].startswith("old better than new: no, worse, 0% [0%, ")
    assert better["high"] > 0.1  # twenty items of twenty are no certainty
    assert found["agreement"]["better"]["fleiss"]["value"] is None  # always the same: nothing beyond chance
    assert found["disagreements"] == []
    assert all(rater["right"] == rater["checks"] == 4 for rater in found["raters"])
    assert {name: one["value"] for name, one in found["each"]["accurate"].items()} == {"old": 1, "new": 1}


def test_a_side_that_is_always_preferred_says_nothing_of_systems(study, tmp_path):
    found = collected(study, tmp_path, lambda item, _: "a" if item.kind == "pair" else side(item, "new"))
    assert found["pairs"][0]["questions"]["better"]["value"] == pytest.approx(0.5, abs=0.05)


def test_results_by_hand(tmp_path):
    """Two raters, four items of two tasks, one known disagreement, one example counted as a tie unseen."""
    texts = written(5, same=1)
    study = make(texts, items=5, raters=2, checks=0, identical="draw")

    def choose(item, place):
        if item.example == "e1":
            return "tie" if place else side(item, "old")
        return side(item, "old" if item.example in ("e2", "e4") else "new")

    found = collected(study, tmp_path, choose)
    better = found["pairs"][0]["questions"]["better"]
    assert better["value"] == pytest.approx((0.5 + 0.75 + 1 + 0 + 1) / 5)  # e0 to e4, for old
    assert better["items"] == 5
    assert better["tasks"]["task-1"]["value"] == pytest.approx((0.75 + 0) / 2)
    assert better["tasks"]["task-0"]["items"] == 3
    assert better["said"] == {"old": 5, "tie": 1, "new": 2}
    (row,) = found["disagreements"]
    assert (row["example"], row["differing"]) == ("e1", 1)
    assert row["said"]["rater-1"]["which"] == {"better": "old"}
    assert row["said"]["rater-2"]["which"] == {"better": "tie"}
    (cohen,) = found["agreement"]["better"]["cohen"]
    assert cohen["rows"] == 4
    chance = (3 * 2 + 1 * 1) / 16  # old: 3 and 2 of 4, new: 1 and 1
    assert cohen["value"] == pytest.approx((0.75 - chance) / (1 - chance))
    assert "1 of 5 examples: 1 of them were drawn" in " ".join(notes(found))


def test_raters_who_do_not_read_are_left_out(study, tmp_path):
    found = collected(study, tmp_path, lambda item, place: side(item, "old") if place else "a")
    dropped = {rater["name"]: rater["dropped"] for rater in found["raters"]}
    assert dropped == {"rater-1": True, "rater-2": False, "rater-3": False}
    assert found["pairs"][0]["questions"]["better"]["value"] == 1
    assert any(note.startswith("rater-1 is left out") for note in notes(found))
    assert [one["raters"] for one in found["agreement"]["better"]["cohen"]] == [["rater-2", "rater-3"]]
    kept = collected(study, tmp_path, lambda item, place: side(item, "old") if place else "a", attention=0.0)
    assert kept["pairs"][0]["questions"]["better"]["value"] < 1
    with pytest.raises(ValueError, match="no rater got 75%"):
        collected(study, tmp_path, lambda item, _: "a")
    with pytest.raises(ValueError, match="attention is 2"):
        collected(study, tmp_path, lambda item, _: "a", attention=2)


def test_simulated_raters_of_known_kappa(tmp_path):
    """Three raters who agree at kappa 0.49 and prefer the new system in 60% of what is no tie."""
    study = make(written(500), items=400, raters=3, checks=2)
    shares = [0.32, 0.2, 0.48]  # old, tie, new
    ratings = simulated(np.random.default_rng(7), rows=400, raters=3, kappa=0.49, shares=shares)
    place_of = {name: place for place, name in enumerate(study.items)}

    def choose(item, rater):
        if item.kind != "pair":
            return side(item, "new")
        said = ratings[place_of[item.id], rater]
        return "tie" if said == 1 else side(item, "old" if said == 0 else "new")

    found = collected(study, tmp_path, choose)
    better, kappas = found["pairs"][0]["questions"]["better"], found["agreement"]["better"]
    assert better["low"] < 0.42 < better["high"] < 0.5
    assert kappas["fleiss"]["low"] < 0.49 < kappas["fleiss"]["high"]
    assert kappas["fleiss"]["high"] - kappas["fleiss"]["low"] < 0.15
    assert len(kappas["cohen"]) == 3
    assert all(abs(one["value"] - 0.49) < 0.1 for one in kappas["cohen"])
    assert "no, worse" in better["verdict"]


def test_intervals_of_several_pairs_hold_together(tmp_path):
    rng = np.random.default_rng(8)
    draws = {f"e{row}": rng.random() < 0.5 for row in range(40)}
    texts = written(40, systems=("a1", "a2", "a3"))
    two = make([dataclasses.replace(one, outputs=dict(list(one.outputs.items())[:2])) for one in texts], items=40,
               raters=1, checks=0)  # fmt: skip
    three = make(texts, items=40, raters=1, checks=0)

    def choose(item, _):
        return side(item, sorted(item.systems)[draws[item.example]])

    alone = collected(two, tmp_path, choose)["pairs"][0]["questions"]["better"]
    among = collected(three, tmp_path, choose)["pairs"][0]["questions"]["better"]
    assert alone["value"] == among["value"]
    assert among["high"] - among["low"] > 1.1 * (alone["high"] - alone["low"])


def test_verdicts_in_words():
    found = {"value": 0.6, "low": 0.51, "high": 0.69, "items": 80}

    def said(raters: int = 2, **change) -> str:
        return sentence(("x", "y"), {**found, **change}, raters=raters, level=0.95)

    assert said(1) == "x better than y: yes, 60% [51%, 69%] of 80 items, ties as halves, 1 rater"
    assert ": not shown, " in said(low=0.5)
    assert ": no, worse, " in said(high=0.49, low=0.4)
    assert "too few items to say" in said(items=5)  # five of five are not significant at 5%, six of six are
    assert ": yes, " in said(items=6)
    assert "nothing was judged" in said(value=None)


def test_the_page_of_the_results_escapes_what_it_shows(tmp_path):
    texts = [
        dataclasses.replace(one, input=HOSTILE, task=HOSTILE, outputs={HOSTILE: "x", "plain": HOSTILE + one.example})
        for one in written(12)
    ]
    study = make(texts, items=6, raters=2, checks=0, questions=[*QUESTIONS[:1], Question("better", "which", HOSTILE)])
    found = collected(study, tmp_path, lambda item, _: "a")  # on either side
    page = write_judged(found, tmp_path / "judged.html", command=["x", HOSTILE]).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert len(found["disagreements"]) == 6


def test_the_script_from_make_to_collect(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("judge", Path(__file__).parents[1] / "scripts" / "judge.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "judge", script)  # tyro looks its annotations up there
    spec.loader.exec_module(script)
    run = write_fake_run(tmp_path / "run")

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["judge.py", *map(str, arguments)])
        script.main()
        return capsys.readouterr().err

    out = tmp_path / "study"
    said = call("make", run, "--systems", "deft", "random", "--items", 12, "--checks", 2, "--out", out)
    assert "deft and random wrote the same on" in said
    study = Study.load(out)
    for place, rater in enumerate(study.order):
        given = answer(study, rater, lambda item, place=place: side(item, "deft" if place else "random"))
        write_json(out / f"answers/{rater}.json", given)
    said = call("collect", out)
    assert "better: deft better than random: " in said.replace("\n", " ")
    found = read_json(out / "results/results.json")
    assert found["pairs"][0]["questions"]["better"]["said"] == {"deft": 24, "tie": 0, "random": 12}
    judgments = read_jsonl(out / "results/judgments.jsonl")
    assert judgments == rows(unblind(study, read_answers(study, sorted((out / "answers").glob("*.json")))))
    assert (out / "results/judged.html").is_file()
    assert "240" in call("power", "--preference", 0.6, "--ties", 0.2)

    write_jsonl(tmp_path / "test.jsonl", [{"id": f"{n}", "input": f"text {n}"} for n in range(5)])
    for name in ("x", "y"):
        predictions = [{"id": f"{n}", "prediction": f"{name} {n}"} for n in range(5)]
        write_jsonl(tmp_path / f"{name}.jsonl", predictions)
    files = [f"{name}={tmp_path / name}.jsonl" for name in ("x", "y")]
    call("make", tmp_path / "test.jsonl", "--systems", *files, "--items", 5, "--checks", 0, "--raters", 1,
         "--questions", "fluent:each:Is it fluent?", "--out", tmp_path / "other")  # fmt: skip
    other = Study.load(tmp_path / "other")
    assert list(other.fields) == ["fluent_a", "fluent_b"]
    fluent = {item.id: {"fluent_a": "yes", "fluent_b": "no"} for item in other.shown("rater-1")}
    write_json(tmp_path / "other/answers/x.json", {"study": other.id, "rater": "rater-1", "answers": fluent})
    assert "fluent" in call("collect", tmp_path / "other")
    with pytest.raises(SystemExit):
        call("make", tmp_path / "test.jsonl", "--systems", *files, "--questions", "x:y", "--out", tmp_path / "z")
    assert "write NAME:KIND:TEXT" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call("make", tmp_path / "test.jsonl", "--systems", "x", "y", "--out", tmp_path / "z")
    assert "write NAME=FILE" in capsys.readouterr().err
