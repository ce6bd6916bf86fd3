"""The page of what changed between two reports in a real browser, with names that want to harm it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.report.change_page import write_comparison
from tests.browser.conftest import LEFTWARD, LONG, NAMES, QUOTES, SCHEMES, SCRIPT, WIDTHS, Open
from tests.unit.stages.test_changes import Right, comparison, kept

EACH_LOOK = pytest.mark.parametrize(("width_px", "scheme"), [(w, s) for w in WIDTHS for s in SCHEMES])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on which one accuracy of two changed by more than chance explains, on partly other test images."""
    before: Right = {(SCRIPT, LONG, "100 %"): [[False] * 30] * 2, ("", QUOTES, "5 %"): [[True] * 30] * 2}
    now: Right = {**before, (SCRIPT, LONG, "100 %"): [[True] * 28] * 2, (LEFTWARD, "crop", "5 %"): [[True]]}
    found = comparison(kept(before, classes=NAMES), kept(now, first=2, classes=NAMES), SCRIPT, Settings=[*NAMES])
    return write_comparison(found, tmp_path_factory.mktemp("compare"))


def test_page_asks_for_nothing_but_itself_and_complains_of_nothing(open_report: Open, report: Path) -> None:
    opened = open_report()
    opened.page.wait_for_load_state("networkidle")
    assert opened.requests == [report.as_uri()]
    assert opened.complaints == []


def test_answer_stands_above_the_table_whose_first_row_changed(open_report: Open) -> None:
    page = open_report().page
    assert "1 of 2 accuracies changed by more than chance explains (up)" in page.locator("#answer").inner_text()
    first = page.locator("table.sortable").first.locator("tbody tr").first
    assert "beyond chance" in first.inner_text()
    assert first.locator("td.changed").count() == 1
    assert page.locator("ul.ids li").count() == 20


def test_heading_sorts(open_report: Open) -> None:
    page = open_report().page
    table = page.locator("table.sortable").first
    table.locator("thead th").nth(4).get_by_role("button").click()
    table.locator("thead th").nth(4).get_by_role("button").click()
    values = table.locator("tbody tr td:nth-child(5)").evaluate_all("cells => cells.map(cell => cell.dataset.value)")
    assert values == ["0.0", "+100.0"]


@EACH_LOOK
def test_page_is_no_wider_than_the_window(open_report: Open, width_px: int, scheme: str) -> None:
    page = open_report(width_px, scheme).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width_px


@EACH_LOOK
def test_axe_finds_no_serious_fault(open_report: Open, width_px: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (the extra dev)")
    faults = axe.Axe().run(open_report(width_px, scheme).page).response["violations"]
    severe = [fault for fault in faults if fault["impact"] in ("serious", "critical")]
    assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in severe] == []


def test_everything_is_there_without_scripts(open_report: Open) -> None:
    page = open_report(scripted=False).page
    assert all(table.is_visible() for table in page.locator("table.sortable").all())
    assert not page.get_by_text("Click a heading to sort").is_visible()
