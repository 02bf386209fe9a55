"""The pages in headless Chromium: they work from file://, by keyboard, on a phone, in print, and pass axe."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from chromium import browser, opened
from fake_run import write_fake_run
from parsed_page import hostile_run

from deft_tsds.report import write_comparison, write_report
from deft_tsds.report.curve import write_curve

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """Every kind of page that this file looks at, by name; "hostile" and "against" hold nothing but attacks."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [write_fake_run(folder / "one"), write_fake_run(folder / "two", seed=3)]
    attacks = [hostile_run(folder / "bad"), hostile_run(folder / "worse")]
    return {
        "run": write_report(runs[0]),
        "hostile": write_report(attacks[0]),
        "compared": write_comparison(runs, folder / "compared.html", command=["report.py", *map(str, runs)]),
        "against": write_comparison(attacks, folder / "against.html"),
        "curve": write_curve(curve_table(), folder / "curve.html", command=["curve.py"]),
    }


def curve_table() -> dict[str, Any]:
    """A budget curve of two arms, made up."""

    def estimate(value: float) -> dict[str, Any]:
        interval = {"value": value, "low": value - 1, "high": value + 1}
        return {**interval, "by_test": {"jfleg": interval, "asset <b>": interval}}

    budgets = [0.05, 0.2, 0.5]
    arms = {}
    for name, gain in (("deft", 2.0), ("random <b>", 0.0)):
        points = [
            {
                "budget": budget,
                "count": round(240 * budget),
                "score": estimate(50 + gain + 3 * math.log(budget)),
                "to_full": estimate(3 * math.log(budget)),
                "p_holm": 0.2,
                "enough": budget > 0.3,
                "sentence": "better than random: not shown",
            }
            for budget in budgets
        ]
        savings = [[0.0, 0.0], [1.0, 0.5], [2.0, 0.8]]
        arms[name] = {"points": points, "savings": savings, "verdict": "50% is enough", "notes": []}
    return {
        "arms": arms,
        "budgets": budgets,
        "metric": "sari",
        "tests": ["jfleg", "asset <b>"],
        "seeds": 3,
        "level": 0.95,
        "margin": 1.0,
        "pool": 240,
        "how": "Every arm was trained for the same 100 steps.",
        "full": estimate(51.0),
        "copy": estimate(20.0),
        "notice": None,
    }


def draw_all(page: Any) -> None:
    """Bring every figure that is shown near the screen, and wait until it is drawn."""
    for figure in page.query_selector_all("[data-figure]"):
        if figure.is_visible():
            figure.scroll_into_view_if_needed()
            figure.wait_for_selector(".main-svg")
    page.evaluate("scrollTo(0, 0)")


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("run", "light"), ("run", "dark"), ("compared", "dark"), ("curve", "light")],
)
def test_a_page_has_no_error_asks_for_nothing_and_passes_axe(chromium, pages, name, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python to run the checker"
    )
    with opened(chromium, pages[name], color_scheme=scheme, reduced_motion="reduce", bypass_csp=True) as found:
        draw_all(found.page)
        # axe is a script of the test, which the policy of the page would not run; the policy has tests of its own.
        checked = axe.Axe().run(found.page, options={"runOnly": {"type": "tag", "values": RULES}})
        assert checked.violations_count == 0, json.dumps(checked.response["violations"], indent=1)[:4000]
        assert (found.errors, found.requests) == ([], [])


@pytest.mark.parametrize("name", ["run", "hostile", "compared", "against", "curve"])
def test_a_page_works_under_its_policy_and_fits_a_phone(chromium, pages, name):
    with opened(chromium, pages[name], width=320, height=640) as found:
        draw_all(found.page)
        assert found.page.evaluate("document.documentElement.scrollWidth") <= 320
        # What sticks out of the screen must lie in something that scrolls by itself.
        outside = found.page.evaluate(
            """() => [...document.querySelectorAll("main *, header *, nav *, footer *")].filter((e) =>
                 e.getBoundingClientRect().right > innerWidth + 1 && e.checkVisibility()
                 && !e.closest(".scroll, svg, .sr")
               ).map((e) => `${e.tagName} ${e.className} ${e.textContent.slice(0, 40)}`)"""
        )
        assert outside == []
        assert (found.errors, found.requests) == ([], [])


def test_no_attack_ran(chromium, pages):
    for name in ("hostile", "against", "curve"):
        with opened(chromium, pages[name]) as found:
            said = []
            found.page.on("dialog", lambda dialog, said=said: (said.append(dialog.message), dialog.dismiss()))
            draw_all(found.page)
            for summary in found.page.query_selector_all("summary"):
                if summary.is_visible():
                    summary.click()
            for figure in found.page.query_selector_all("[data-figure]"):
                if figure.is_visible():
                    figure.hover()
            assert said == []
            assert found.page.query_selector("main img, main script, main b b") is None
            assert (found.errors, found.requests) == ([], [])


def test_the_policy_stops_what_is_not_of_the_page(chromium, pages):
    with opened(chromium, pages["run"]) as found:
        found.page.evaluate(
            """() => { const s = document.createElement("script"); s.textContent = "window.ran = 1";
                 document.body.append(s);
                 const i = new Image(); i.src = "https://example.org/x.png"; document.body.append(i);
                 fetch("https://example.org/").catch(() => {}); }"""
        )
        found.page.wait_for_timeout(200)
        assert found.page.evaluate("window.ran") is None
        assert any("Content Security Policy" in error for error in found.errors)
        assert len(found.errors) >= 3


def test_a_table_sorts_by_keyboard_and_says_how(chromium, pages):
    with opened(chromium, pages["compared"]) as found:
        heading = found.page.locator("#scores table").first.locator("thead th").nth(1)
        heading.locator("button").focus()

        def column() -> list[float]:
            cells = found.page.locator("#scores table").first.locator("tbody tr td:nth-child(2)").all()
            return [float(cell.get_attribute("data-value")) for cell in cells]

        found.page.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == "ascending"
        assert column() == sorted(column())
        found.page.keyboard.press("Space")
        assert heading.get_attribute("aria-sort") == "descending"
        assert column() == sorted(column(), reverse=True)
        first = found.page.locator("#scores table").first.locator("thead th").first
        first.locator("button").click()
        assert first.get_attribute("aria-sort") == "ascending"
        assert heading.get_attribute("aria-sort") is None


def test_empty_cells_stay_last_however_a_column_is_sorted(chromium, pages):
    with opened(chromium, pages["curve"]) as found:
        heading = found.page.locator("#points thead th").nth(5)
        for _ in range(2):
            heading.locator("button").click()
            texts = found.page.locator("#points tbody tr td:nth-child(6)").all_text_contents()
            assert texts[-2:] == ["–", "–"]
            assert "–" not in texts[:-2]


def test_the_first_stop_of_the_keyboard_is_the_skip_link_and_focus_shows(chromium, pages):
    for name in ("run", "curve"):
        with opened(chromium, pages[name]) as found:
            found.page.keyboard.press("Tab")
            assert found.page.evaluate("document.activeElement.className") == "skip"
            assert found.page.locator(".skip").bounding_box()["x"] >= 0
            found.page.keyboard.press("Enter")
            assert "#" in found.page.url
            for _ in range(8):
                found.page.keyboard.press("Tab")
                outline = found.page.evaluate(
                    """() => { const e = document.activeElement;
                         if (e === document.body) return "the end";
                         const shown = e.matches(".switch input") ? e.nextElementSibling : e;
                         return getComputedStyle(shown).outlineStyle; }"""
                )
                assert outline != "none", found.page.evaluate("document.activeElement.outerHTML.slice(0, 200)")


def fan(page: Any) -> int:
    """How many lines the transport picture shows."""
    return page.evaluate(
        """() => document.querySelector("[data-figure=served]").data.filter((t) => t.name === "serves it")
             .reduce((sum, t) => sum + t.x.filter((x) => x === null).length, 0)"""
    )


def test_enter_on_a_target_opens_its_examples_and_draws_their_lines(chromium, pages):
    with opened(chromium, pages["run"]) as found:
        page = found.page
        page.locator("[data-figure=served]").scroll_into_view_if_needed()
        page.wait_for_selector("[data-figure=served] .main-svg")
        assert fan(page) == 0
        target = page.locator("details.query").first
        target.locator("summary").focus()
        page.keyboard.press("Enter")
        page.wait_for_timeout(200)
        assert target.get_attribute("open") is not None
        examples = target.locator("ol.choices > li").count()
        assert fan(page) == examples > 0
        assert "mass" in target.inner_text()
        other = page.locator("details.query").nth(1)
        other.locator("summary").click()
        page.wait_for_timeout(200)
        assert target.get_attribute("open") is None  # one at a time
        assert fan(page) == other.locator("ol.choices > li").count()
        other.locator("summary").press("Space")
        page.wait_for_timeout(200)
        assert fan(page) == 0
        assert found.errors == []


def test_a_click_on_a_target_of_the_picture_opens_it_in_the_list(chromium, pages):
    with opened(chromium, pages["run"]) as found:
        page = found.page
        page.locator("[data-figure=served]").scroll_into_view_if_needed()
        page.wait_for_selector("[data-figure=served] .main-svg")
        box = page.locator("[data-figure=served] .trace.scatter").nth(1).locator("path.point").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(100)
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector("details.query[open]")
        assert page.evaluate("document.activeElement.parentElement.matches('details.query[open]')")
        assert found.errors == []


def test_print_shows_whole_tables_in_dark_ink_and_all_figures(chromium, pages, tmp_path):
    with opened(chromium, pages["run"], color_scheme="dark") as found:
        found.page.pdf(path=tmp_path / "page.pdf", format="A4")
        found.page.wait_for_timeout(300)
        assert (tmp_path / "page.pdf").stat().st_size > 20_000
        found.page.emulate_media(media="print", color_scheme="dark")
        found.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        ink, paper = found.page.evaluate(
            "['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])"
        )
        assert ink == "rgb(29, 27, 24)"
        assert paper == "rgb(251, 250, 247)"
        assert found.page.locator("nav").is_hidden()
        letters = found.page.locator("[data-figure=loss] .xtitle").evaluate("(e) => getComputedStyle(e).fill")
        assert letters == ink
        drawn = found.page.evaluate("document.querySelectorAll('[data-figure] .main-svg').length")
        assert drawn >= found.page.locator("[data-figure]").count()
        assert found.errors == []


def test_without_javascript_every_panel_is_shown(chromium, pages):
    with opened(chromium, pages["compared"], java_script_enabled=False) as found:
        panels = found.page.locator("[data-panel]")
        assert panels.count() > 3
        assert all(panel.is_visible() for panel in panels.all())
        assert not found.page.locator("fieldset").first.is_visible()


def test_the_cloud_of_a_large_pool_is_drawn_behind_the_texts(chromium, tmp_path, monkeypatch):
    monkeypatch.setattr("deft_tsds.report.map2d.MOST_POINTS", 60)
    page_of_many = write_report(write_fake_run(tmp_path / "many", seeds=(0,)))
    with opened(chromium, page_of_many) as found:
        draw_all(found.page)
        image = "document.querySelector('[data-figure=map]').layout.images[0]"
        before = found.page.evaluate(f"{image}.source")
        assert before.startswith("data:image/png")
        assert found.page.locator("[data-figure=map] image").count() == 1
        found.page.locator("#map-arm input:checked").focus()
        found.page.keyboard.press("ArrowRight")
        found.page.wait_for_timeout(300)
        assert found.page.evaluate(f"{image}.source") != before  # another arm, other points
        assert (found.errors, found.requests) == ([], [])
