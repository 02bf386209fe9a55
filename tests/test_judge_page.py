"""The rater's page and the page of the results in a real browser, opened from file://."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import browser as chromium
from chromium import opened
from test_agreement import simulated
from test_judge import HOSTILE, side, written

from deft_tsds.judging.collecting import read_answers, results
from deft_tsds.judging.making import QUESTIONS, Item, Question, Study, make
from deft_tsds.judging.written import Written
from deft_tsds.report.annotate import write_study
from deft_tsds.report.judged import write_judged

TEN_KB = "x" * 10_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def study(tmp_path) -> Study:
    made = make(written(40), items=6, raters=2, checks=2)
    write_study(made, tmp_path / "study")
    return made


def on_page(page) -> tuple[str, str, str]:
    """The input and the two texts that are shown."""
    return tuple(page.evaluate("['input', 'a', 'b'].map((part) => document.getElementById(part).textContent)"))


def judge(page, items: list[Item], answers: dict[str, tuple[str, str, str]]) -> None:
    """Press the keys of the answers to these items, from the one shown on."""
    for item in items:
        assert on_page(page) == (item.input, *item.texts)
        for key in answers[item.id]:
            page.keyboard.press(key)
        page.keyboard.press("Enter")


def export(page, path: Path) -> Path:
    with page.expect_download() as download:
        page.locator("#export").click()
    download.value.save_as(path)
    return path


def test_raters_of_known_kappa_end_to_end(browser, tmp_path):
    """Three raters press keys, close the page half-way, come back, and export; what is collected holds the truth."""
    study = make(written(60), items=40, raters=3, checks=2)
    folder = write_study(study, tmp_path / "study")
    shares = [0.5, 0.2, 0.3]  # old, tie, new
    rng = np.random.default_rng(0)
    ratings = simulated(rng, rows=40, raters=3, kappa=0.6, shares=shares)
    accurate = {"old": simulated(rng, rows=40, raters=3, kappa=0.6, shares=[0.3, 0.7]),
                "new": simulated(rng, rows=40, raters=3, kappa=0.6, shares=[0.5, 0.5])}  # fmt: skip
    place_of = {name: place for place, name in enumerate(study.items)}
    paths = []
    for rater, name in enumerate(study.order):
        said = {}
        for item in study.shown(name):
            place = place_of[item.id]
            if item.kind != "pair":
                said[item.id] = ("y", "y", side(item, "")[0])
                continue
            better = "t" if ratings[place, rater] == 1 else side(item, "old" if ratings[place, rater] == 0 else "new")
            said[item.id] = (*("ny"[accurate[system][place, rater]] for system in item.systems), better)
        items = study.shown(name)
        with opened(browser, folder / f"raters/{name}.html") as found:
            judge(found.page, items[:20], said)
            found.page.keyboard.press(said[items[20].id][0])  # one answer of three, then the page goes
            found.page.reload()
            assert found.page.locator("#where").text_content() == "Item 21 of 42"
            assert found.page.locator("#count").text_content() == "20 of 42 answered"
            assert found.page.locator("[aria-current]").get_attribute("data-field") == "accurate_b"
            for key in said[items[20].id][1:]:
                found.page.keyboard.press(key)
            found.page.keyboard.press("Enter")
            judge(found.page, items[21:], said)
            assert "All 42 items answered" in found.page.locator("#count").text_content()
            paths.append(export(found.page, tmp_path / f"{name}.json"))
            assert found.errors == []
            assert found.requests == []
    collected = results(study, read_answers(study, paths))
    counted = dict(zip(("old", "tie", "new"), np.bincount(ratings.ravel()).tolist(), strict=True))
    assert collected["pairs"][0]["questions"]["better"]["said"] == counted
    assert collected["each"]["accurate"]["new"]["value"] == pytest.approx(accurate["new"].mean())
    for question in ("better", "accurate"):
        kappa = collected["agreement"][question]["fleiss"]
        assert kappa["low"] < 0.6 < kappa["high"] < 0.9
    assert all(rater["right"] == 2 for rater in collected["raters"])


def test_an_answer_can_be_changed_by_key_click_and_arrow(browser, study, tmp_path):
    first, second = study.shown("rater-1")[:2]
    with opened(browser, tmp_path / "study/raters/rater-1.html") as found:
        page = found.page
        page.keyboard.press("Enter")  # not all is answered: nothing happens
        assert on_page(page)[0] == first.input
        assert page.locator("#next").is_disabled()
        assert page.locator("#back").is_disabled()
        for key in "qynB":
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        assert on_page(page)[0] == second.input
        assert page.locator("#questions input:checked").count() == 0
        page.keyboard.press("Backspace")
        assert on_page(page)[0] == first.input
        page.locator("#field-accurate_b label", has_text="yes").click()
        page.locator("#field-better input[value=b]").focus()
        page.keyboard.press("ArrowUp")
        page.locator("summary").click()
        page.locator("#keys").uncheck()
        page.keyboard.press("y")
        assert page.locator("#count").text_content() == "1 of 8 answered"
        given = json.loads(export(page, tmp_path / "one.json").read_text())
        assert given["answers"] == {first.id: {"accurate_a": "yes", "accurate_b": "yes", "better": "tie"}}
        assert (given["study"], given["rater"]) == (study.id, "rater-1")
        assert found.errors == []


def test_two_tabs_hold_the_same_answers(browser, study, tmp_path):
    with opened(browser, tmp_path / "study/raters/rater-2.html") as found:
        other = found.page.context.new_page()
        other.goto(found.page.url)
        for key in "yya":
            found.page.keyboard.press(key)
        other.wait_for_function("document.getElementById('count').textContent.startsWith('1 of')")
        assert other.locator("#questions input:checked").count() == 3


@pytest.mark.parametrize(
    "refuse",
    [
        "Object.defineProperty(window, 'localStorage', {get() {throw new DOMException('no', 'SecurityError')}})",
        "Storage.prototype.setItem = () => {throw new DOMException('full', 'QuotaExceededError')}",
    ],
)
def test_where_the_browser_keeps_nothing_the_page_says_so_and_goes_on(browser, study, tmp_path, refuse):
    with opened(browser, tmp_path / "study/raters/rater-1.html") as found:
        found.page.add_init_script(refuse)
        found.page.reload()
        judge(found.page, study.shown("rater-1"), {item: ("y", "n", "t") for item in study.items})
        assert "keeps nothing" in found.page.locator("#notice").text_content()
        answers = read_answers(study, [export(found.page, tmp_path / "one.json")])
        assert all(said["better"] == "tie" for said in answers["rater-1"].values())
        assert found.errors == []


@pytest.mark.parametrize("text", ["{", "null", '{"ITEM": null}', '{"ITEM": {"constructor": "a"}}'])
def test_broken_stored_answers_are_said_and_left(browser, study, tmp_path, text):
    item = study.shown("rater-1")[0]
    with opened(browser, tmp_path / "study/raters/rater-1.html") as found:
        place = f"deft_tsds/{study.id}/rater-1"
        found.page.evaluate(
            "([place, text]) => localStorage.setItem(place, text)", [place, text.replace("ITEM", item.id)]
        )
        found.page.reload()
        assert "You begin anew" in found.page.locator("#notice").text_content()
        judge(found.page, [item], {item.id: ("y", "y", "a")})
        assert found.errors == []


def test_stored_answers_to_other_things_are_not_taken(browser, study, tmp_path):
    item = study.shown("rater-1")[0]
    with opened(browser, tmp_path / "study/raters/rater-1.html") as found:
        kept = {"other": {"better": "a"}, item.id: {"better": "c", "worse": "a", "accurate_a": "no"}}
        place = f"deft_tsds/{study.id}/rater-1"
        found.page.evaluate("([place, text]) => localStorage.setItem(place, text)", [place, json.dumps(kept)])
        found.page.reload()
        assert found.page.locator("#questions input:checked").count() == 1
        given = json.loads(export(found.page, tmp_path / "one.json").read_text())
        assert given["answers"] == {item.id: {"accurate_a": "no"}}


def hostile_study() -> Study:
    """Scripts, marks that turn the direction, and tokens of 10 kB, in every place where text of others stands."""
    texts = [
        Written(f"{HOSTILE}{row}", HOSTILE, HOSTILE + TEN_KB, {"old": TEN_KB + HOSTILE, "new": HOSTILE})
        for row in range(4)
    ]
    questions = [QUESTIONS[0], Question("better", "which", HOSTILE + TEN_KB[:500])]
    return make(texts, items=4, raters=2, checks=0, questions=questions)


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (1280, "light")])
@pytest.mark.parametrize("kind", ["plain", "hostile"])
def test_pages_are_accessible_and_fit(browser, tmp_path, kind, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    study = hostile_study() if kind == "hostile" else make(written(40), items=4, raters=2, checks=0)
    folder = write_study(study, tmp_path / "study")
    paths = []
    for name in study.order:
        with opened(browser, folder / f"raters/{name}.html", width=width, color_scheme=scheme) as found:
            found.page.on("dialog", lambda dialog: found.errors.append(f"dialog: {dialog.message}"))
            for place in range(4):
                for key in ("y", "n", "abt"[place % 3], "Enter"):
                    found.page.keyboard.press(key)
            if not paths:
                found.page.locator("summary").click()
                check(found, width, Axe())
                found.page.screenshot(path=tmp_path / f"annotate-{kind}-{width}-{scheme}.png", full_page=True)
            paths.append(export(found.page, tmp_path / f"{name}.json"))
    shown = results(study, read_answers(study, paths), attention=0, resamples=50)
    page = write_judged(shown, tmp_path / "judged.html", command=["python", "scripts/judge.py", HOSTILE])
    with opened(browser, page, width=width, color_scheme=scheme) as found:
        found.page.on("dialog", lambda dialog: found.errors.append(f"dialog: {dialog.message}"))
        for summary in found.page.locator("summary").all():
            summary.click()
        check(found, width, Axe())
        found.page.screenshot(path=tmp_path / f"judged-{kind}-{width}-{scheme}.png", full_page=True)


def check(found, width: int, axe) -> None:
    """Nothing wrong: no error, no request, no side-ways scrolling, no serious breach of accessibility."""
    assert found.errors == []
    assert found.requests == []
    assert found.page.evaluate("document.scrollingElement.scrollWidth") <= width
    serious = [one for one in axe.run(found.page).response["violations"] if one["impact"] in ("serious", "critical")]
    assert serious == [], [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in serious]


def test_right_to_left_text_stays_in_its_box(browser, tmp_path):
    """Text that turns the direction turns nothing outside of its box; Hebrew is read from the right."""
    texts = [Written(f"e{row}", "t", "\u202eabc", {"old": "שלום", "new": f"\u202b{row}"}) for row in range(2)]
    folder = write_study(make(texts, items=2, raters=1, checks=0), tmp_path / "study")
    with opened(browser, folder / "raters/rater-1.html") as found:
        directions = "['input', 'a', 'b'].map((id) => getComputedStyle(document.getElementById(id)).direction)"
        assert "rtl" in found.page.evaluate(directions)
        outside = "getComputedStyle(document.getElementById('where')).direction"
        assert found.page.evaluate(outside) == "ltr"
        assert found.page.locator("#where").text_content() == "Item 1 of 2"
