"""The map of a report: places, what lies far off, labels to look at again, and what the page is given."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.report.embedding_map import MapPoints, atlas, doubted, neighbourhood, outliers, project
from stages.report.map_view import Map, places_of
from tests.unit.stages.test_report import page

EVIL = "</script><b>"
EQUAL = np.ones((60, 8), np.float32)


@pytest.fixture(scope="module")
def points() -> MapPoints:
    """Two clusters of thirty images, one of which carries the other cluster's label; the last lies alone."""
    random = np.random.default_rng(0)
    centres = np.eye(8, dtype=np.float32)[[0] * 30 + [1] * 30]
    vectors = centres + random.normal(0, 0.05, (60, 8)).astype(np.float32)
    vectors[59] = np.eye(8)[5]
    labels = ["a"] * 30 + ["b"] * 30
    labels[3] = "b"
    return MapPoints(
        images=[f"{i:02}" for i in range(60)],
        labels=labels,
        splits=["test" if i % 3 else "train" for i in range(60)],
        groups=[str(i) for i in range(60)],
        vectors={"original": vectors, "masked": vectors[::-1].copy()},
        thumbnails=np.repeat(np.arange(60, dtype=np.uint8)[:, None, None] * 4, 8, axis=1).repeat(8, axis=2),
        n_all=70,
    )


def test_neighbours_stay_neighbours_and_places_do_not_change(points: MapPoints) -> None:
    places = project(points.vectors["original"])
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    assert places.shape == (60, 2)
    assert np.median(apart[:30, :30]) < np.median(apart[:30, 30:59]) / 2
    assert np.array_equal(places, project(points.vectors["original"]))


def test_outlier_is_the_image_that_lies_alone(points: MapPoints) -> None:
    assert outliers(neighbourhood(points, "original"))["image"].iloc[0] == "59"


def test_label_that_all_neighbours_contradict_is_doubted(points: MapPoints) -> None:
    found = doubted(neighbourhood(points, "original"))
    assert found[["image", "label", "neighbours"]].iloc[0].tolist() == ["03", "b", "a"]
    assert len(found) == 1


def test_images_of_one_group_are_not_each_other_s_neighbours(points: MapPoints) -> None:
    together = replace(points, groups=["one"] * 30 + list(points.groups[30:]))
    assert neighbourhood(together, "original")["neighbours"].iloc[5] == "b"


def test_image_without_a_label_is_not_doubted(points: MapPoints) -> None:
    unlabelled = replace(points, labels=["" if i == 3 else label for i, label in enumerate(points.labels)])
    assert doubted(neighbourhood(unlabelled, "original")).empty


def test_neighbours_without_a_label_contradict_none(points: MapPoints) -> None:
    labels = ["" if i < 30 and i != 3 else label for i, label in enumerate(points.labels)]
    found = neighbourhood(replace(points, labels=labels), "original")
    assert found.loc[3, ["counted", "neighbours", "share"]].tolist() == [10, "b", 1.0]
    nobody = neighbourhood(replace(points, labels=["a"] + [""] * 59), "original")
    assert doubted(nobody).empty
    assert nobody.loc[0, ["counted", "neighbours", "share"]].tolist() == [0, "", 0.0]


def test_images_of_the_same_group_are_not_counted_where_others_are_few(points: MapPoints) -> None:
    together = replace(points, groups=["one"] * 57 + list(points.groups[57:]), labels=["a", *["b"] * 56, *"aaa"])
    found = neighbourhood(together, "original")
    assert found.loc[1, ["label", "counted", "neighbours", "share"]].tolist() == ["b", 3, "a", 1.0]
    assert np.isfinite(found["distance"]).all()
    alone = neighbourhood(replace(points, groups=["one"] * 60), "original")
    assert doubted(alone).empty
    assert outliers(alone).empty


def test_atlas_holds_each_thumbnail_in_its_place(points: MapPoints) -> None:
    uri, side = atlas(points)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert (sheet.shape, side) == ((2 * 8, 40 * 8), 8)
    assert abs(int(sheet[12, 4 + 8 * 2]) - 42 * 4) < 6


def mapped(points: MapPoints) -> Map | None:
    return Map.of(points, places_of(points), ("a", "b"))


def test_page_is_given_places_in_the_unit_square_and_nothing_that_ends_its_script(points: MapPoints) -> None:
    shown = mapped(replace(points, labels=[EVIL, *points.labels[1:]]))
    assert shown is not None
    assert "<" not in shown.content
    content = json.loads(str(shown.content))
    places = np.array(content["views"]["masked"])
    assert (places.min(), places.max()) == (0, 1)
    assert content["names"] == ["a", "b", EVIL]
    assert shown.left_out == 10
    assert isinstance(shown.plot.numbers, pd.DataFrame)
    assert len(shown.plot.numbers) == 2 * 60


def test_three_images_make_a_map(points: MapPoints) -> None:
    few = {name: vectors[:3] for name, vectors in points.vectors.items()}
    small = replace(points, images=points.images[:3], labels=points.labels[:3], splits=points.splits[:3], vectors=few)
    small = replace(small, groups=points.groups[:3], thumbnails=points.thumbnails[:3])
    shown = mapped(small)
    assert shown is not None
    assert len(shown.outliers.rows) == 3


def test_equal_vectors_are_refused_before_the_projection_dies_of_them() -> None:
    with pytest.raises(ValueError, match="directions that differ"):
        project(np.ones((6, 8), np.float32) * np.arange(1, 7, dtype=np.float32)[:, None])


@pytest.mark.parametrize(
    "vectors",
    [np.eye(8)[[0, 0, 0, 1, 1, 1]], np.eye(8)[[0] * 59 + [1]], np.eye(2)[[0, 0, 1]], [[1.0], [-1.0], [1.0]]],
    ids=["two kinds", "one other", "three images", "one entry"],
)
def test_few_different_vectors_have_places(vectors: list[list[float]]) -> None:
    places = project(np.array(vectors, np.float32))
    assert places.shape == (len(vectors), 2)
    assert np.isfinite(places).all()


def test_view_whose_vectors_are_equal_is_left_off_the_map_and_named(points: MapPoints) -> None:
    shown = mapped(replace(points, vectors={"binary": EQUAL, **points.vectors}))
    assert shown is not None
    assert list(json.loads(str(shown.content))["views"]) == ["original", "masked"]
    assert "The view binary is not on the map: its vectors of all images are equal." in shown.plot.text
    assert shown.view == "original"


def test_page_without_a_view_that_differs_says_why_it_has_no_map(points: MapPoints) -> None:
    flat = replace(points, vectors={"binary": EQUAL})
    assert mapped(flat) is None
    assert "There is no map: the encoder gives all 60 images equal vectors (binary)." in page(points=flat)


def test_page_names_the_view_by_which_images_lie_far_off(points: MapPoints) -> None:
    html = page(points=replace(points, vectors={"masked": points.vectors["masked"]}))
    assert "(one minus cosine, view masked)" in html
