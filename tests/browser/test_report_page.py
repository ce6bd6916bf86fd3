"""The report's page in a real browser: what it shows, what it does, and that it asks nobody for anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.browser.conftest import LEFTWARD, N_POINTS, NAMES, SCHEMES, SCRIPT, WIDTHS, Open

EACH_LOOK = pytest.mark.parametrize(("width_px", "scheme"), [(w, s) for w in WIDTHS for s in SCHEMES])


def test_page_asks_for_nothing_but_itself_and_complains_of_nothing(open_report: Open, report: Path) -> None:
    opened = open_report()
    opened.page.mouse.wheel(0, 20_000)
    opened.page.wait_for_load_state("networkidle")
    assert opened.requests == [report.as_uri()]
    assert opened.complaints == []


def test_every_picture_is_drawn(open_report: Open) -> None:
    page = open_report().page
    page.evaluate("() => { for (const image of document.images) image.loading = 'eager'; }")
    page.wait_for_function("() => [...document.images].every((image) => image.complete)")
    assert page.evaluate("() => [...document.images].filter((image) => !image.naturalWidth).length") == 0


def test_heading_sorts_numbers_descending_then_ascending(open_report: Open) -> None:
    page = open_report().page
    table = page.locator("table.sortable").first
    heading = table.locator("thead th").nth(3)
    cells = table.locator("tbody tr td:nth-child(4)")
    seen = []
    for order in ("descending", "ascending"):
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == order
        seen.append(cells.evaluate_all("cells => cells.map(cell => Number.parseFloat(cell.dataset.value))"))
    assert seen == [[80, 60, 50], [50, 60, 80]]


def test_only_one_heading_says_that_it_is_sorted_and_names_sort_as_text(open_report: Open) -> None:
    page = open_report().page
    table = page.locator("table.sortable").first
    for column in (2, 0):
        table.locator("thead th").nth(column).get_by_role("button").click()
    assert table.locator("th[aria-sort]").count() == 1
    assert table.locator("tbody th").all_inner_texts() == ["original", "medfocus", "constant"]


def test_heading_sorts_by_keyboard_too(open_report: Open) -> None:
    page = open_report().page
    heading = page.locator("table.sortable").first.locator("thead th").nth(2)
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"


def test_picture_enlarges_arrow_moves_on_and_escape_closes(open_report: Open) -> None:
    opened = open_report()
    page, viewer = opened.page, opened.page.locator("#viewer")
    assert not viewer.is_visible()
    small = page.locator("figure.picture img").first
    small.scroll_into_view_if_needed()
    before = small.bounding_box()["width"]
    page.locator("figure.picture button").first.click()
    assert viewer.locator(".position").inner_text() == "1 of 8"
    assert viewer.locator("img").first.bounding_box()["width"] > 1.5 * before
    page.keyboard.press("ArrowRight")
    assert viewer.locator(".position").inner_text() == "2 of 8"
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    assert viewer.locator(".position").inner_text() == "8 of 8"
    assert viewer.locator(".told").inner_text().startswith(LEFTWARD)
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert opened.complaints == []


@pytest.mark.parametrize("media", ["screen", "print"])
@pytest.mark.parametrize("width_px", WIDTHS)
def test_every_panel_stands_above_its_name(open_report: Open, width_px: int, media: str) -> None:
    page = open_report(width_px).page
    page.emulate_media(media=media)
    picture = page.locator("figure.picture").first
    panels, names = picture.locator(".panel img"), picture.locator(".panel .name")
    assert names.all_inner_texts() == panels.evaluate_all("images => images.map(image => image.alt)")
    assert "where medfocus looked" in names.all_inner_texts()
    for panel, name in zip(panels.all(), names.all(), strict=True):
        above, below = panel.bounding_box(), name.bounding_box()
        assert below["height"] > 8
        assert below["y"] >= above["y"] + above["height"]
        assert below["width"] <= above["width"] + 1


def test_classes_are_chosen_and_the_viewer_visits_them_alone(open_report: Open) -> None:
    opened = open_report()
    page, viewer = opened.page, opened.page.locator("#viewer")
    chosen = page.locator(".filter button").filter(has_text="alert(1)")
    chosen.click()
    assert chosen.get_attribute("aria-pressed") == "true"
    assert page.locator(".filter button[aria-pressed=true]").count() == 1
    visible = page.locator("figure.picture:visible")
    assert visible.evaluate_all("figures => figures.map(figure => figure.dataset.label)") == [SCRIPT] * 2
    visible.nth(1).get_by_role("button").click()
    assert viewer.locator(".position").inner_text() == "2 of 2"
    page.keyboard.press("ArrowRight")
    assert viewer.locator(".position").inner_text() == "1 of 2"
    page.keyboard.press("Escape")
    page.locator(".filter button").first.click()
    assert page.locator("figure.picture:visible").count() == 8
    assert opened.complaints == []


def test_group_without_a_picture_of_the_chosen_class_is_hidden(open_report: Open) -> None:
    page = open_report().page
    assert page.locator(".outcome h3:visible").count() == 2
    page.locator(".filter button").filter(has_text=LEFTWARD).click()
    assert page.locator(".outcome h3:visible").all_inner_texts() == ["Worst masks not shown above"]


def test_pointer_on_the_map_shows_that_image(open_report: Open) -> None:
    opened = open_report()
    page, tip = opened.page, opened.page.locator(".tip")
    page.locator("#interactive svg[role=application]").first.scroll_into_view_if_needed()
    box = page.locator("#interactive .maps figure").first.locator("path").nth(7).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert tip.inner_text() == f"image-07\n{NAMES[3]}\ntraining"
    drawn = "canvas => [...canvas.getContext('2d').getImageData(64, 64, 1, 1).data]"
    assert tip.locator("canvas").evaluate(drawn)[:3] == pytest.approx([200] * 3, abs=8)
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    assert opened.complaints == []


def test_outliers_stand_beside_their_thumbnails(open_report: Open) -> None:
    opened = open_report()
    rows = opened.page.locator(".pictured tbody th")
    opened.page.wait_for_function("() => document.querySelector('.pictured canvas')")
    assert rows.locator("canvas").count() == rows.count() > 0
    drawn = "canvas => [...canvas.getContext('2d').getImageData(32, 32, 1, 1).data]"
    assert rows.locator("canvas").first.evaluate(drawn)[:3] == pytest.approx([200] * 3, abs=8)
    assert opened.complaints == []


def test_folded_details_are_open_in_print(open_report: Open) -> None:
    page = open_report().page
    page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0


def test_arrow_keys_visit_the_points_of_a_map(open_report: Open) -> None:
    page = open_report().page
    tip, chart = page.locator(".tip span"), page.locator("#interactive svg[role=application]").nth(1)
    chart.focus()
    visited = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
        visited.append(tip.inner_text().splitlines()[0])
    assert visited == ["image-00", "image-01", "image-00", f"image-{N_POINTS - 1}"]
    assert chart.locator("path.at").count() == 1
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_point_shows_inside_a_small_window(open_report: Open) -> None:
    page = open_report(390).page
    page.locator("#interactive svg[role=application]").first.focus()
    for _ in range(N_POINTS):
        page.keyboard.press("ArrowRight")
        box = page.locator(".tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


def test_hostile_names_are_text_wherever_they_stand(open_report: Open) -> None:
    opened = open_report()
    page = opened.page
    masks = "[aria-label='Masks by split and class']"
    for place in ("h1", "#interactive .legend", "figure.picture figcaption >> nth=0", masks):
        assert SCRIPT in page.locator(place).inner_text(), place
    shown = page.locator("body").inner_text()
    assert all(re.sub(r"\s+", " ", name) in re.sub(r"\s+", " ", shown) for name in NAMES)
    assert page.locator("script").count() == 2, "the data of the map, and the page's own"
    assert page.locator("[onerror]").count() == 0
    assert opened.complaints == []


@EACH_LOOK
def test_page_is_no_wider_than_the_window(open_report: Open, width_px: int, scheme: str) -> None:
    page = open_report(width_px, scheme).page
    page.evaluate("() => { for (const part of document.querySelectorAll('details')) part.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") <= width_px
    page.locator("figure.picture button").first.click()
    assert page.evaluate("document.getElementById('viewer').scrollWidth") <= width_px


@EACH_LOOK
def test_axe_finds_no_serious_fault(open_report: Open, width_px: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (the extra dev)")
    page = open_report(width_px, scheme).page
    page.evaluate("() => { for (const part of document.querySelectorAll('details')) part.open = true; }")
    page.locator("#interactive svg[role=application]").first.focus()
    page.keyboard.press("ArrowRight")
    faults = axe.Axe().run(page).response["violations"]
    severe = [fault for fault in faults if fault["impact"] in ("serious", "critical")]
    assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in severe] == []


def test_everything_is_there_without_scripts(open_report: Open) -> None:
    opened = open_report(scripted=False)
    page = opened.page
    assert page.locator("table.sortable").first.is_visible()
    assert page.locator("table.sortable").first.locator("tbody tr").count() == 3
    assert page.locator("#printed-map img").is_visible()
    assert page.locator("img.figure").count() == 7
    assert all(figure.is_visible() for figure in page.locator("img.figure").all())
    assert page.locator("figure.picture").first.is_visible()
    assert not page.locator("#interactive").is_visible()
    assert not page.get_by_text("Click a heading to sort").is_visible()


def test_static_map_gives_way_to_the_one_that_can_be_visited(open_report: Open) -> None:
    page = open_report().page
    assert page.locator("#interactive").is_visible()
    assert not page.locator("#printed-map").is_visible()


def test_print_has_the_static_map_and_nothing_to_click(open_report: Open, tmp_path: Path) -> None:
    page = open_report(scheme="dark").page
    page.pdf(path=tmp_path / "report.pdf", format="A4", print_background=True)
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")
    assert (tmp_path / "report.pdf").stat().st_size > 20_000
    page.emulate_media(media="print", color_scheme="light")
    for hidden in ("nav", "#interactive", "#viewer", ".scripted"):
        assert not page.locator(hidden).first.is_visible(), hidden
    assert page.locator("#printed-map img").is_visible()
    assert page.locator("table.sortable").first.is_visible()
