from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from manifests.errors import UsageError
from pipeline.phantoms import CLASSES, draw_phantom, make_phantoms
from stages.images import outline

SMALL = (96, 80)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "labels.csv").read_text().splitlines()))


def test_same_seed_gives_the_same_bytes_and_another_seed_none_of_the_images(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_phantoms(tmp_path / name, {"train": 2, "test": 1}, seed, SMALL)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert not {v for k, v in a.items() if k.startswith("images")} & set(c.values())


def test_second_call_leaves_the_files_alone(tmp_path: Path) -> None:
    make_phantoms(tmp_path, {"train": 1}, 0, SMALL)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    make_phantoms(tmp_path, {"train": 1}, 0, SMALL)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")} == before


def test_table_lists_every_image_with_its_mask_and_a_patient_of_its_own(tmp_path: Path) -> None:
    make_phantoms(tmp_path, {"train": 2, "test": 1}, 0, SMALL)
    rows = table(tmp_path)
    assert list(rows[0]) == ["file", "label", "split", "group", "mask"]
    assert {r["file"] for r in rows} | {r["mask"] for r in rows} | {"labels.csv"} == set(digests(tmp_path))
    assert len({r["group"] for r in rows}) == len(rows) == 3 * len(CLASSES)
    assert all(Path(r["file"]).parts[1:3] == (r["split"], r["label"]) for r in rows)


def test_mask_file_has_the_image_s_size_and_two_values(tmp_path: Path) -> None:
    make_phantoms(tmp_path, {"test": 1}, 0, SMALL)
    row = table(tmp_path)[0]
    with Image.open(tmp_path / row["file"]) as image, Image.open(tmp_path / row["mask"]) as mask:
        assert image.size == mask.size == SMALL
        assert set(np.unique(np.asarray(mask))) == {0, 255}


@pytest.mark.parametrize("label", CLASSES)
def test_lesion_is_darker_than_its_surroundings_and_inside_the_image(label: str) -> None:
    for number in range(4):
        image, mask = draw_phantom(label, 0, number)
        ring = binary_dilation(mask, iterations=10) & ~mask
        assert 0.01 < mask.mean() < 0.3
        assert image[mask].mean() < 0.9 * image[ring].mean()


def test_everything_but_the_lesion_is_the_same_whatever_the_class() -> None:
    drawn = [draw_phantom(label, 0, 3) for label in CLASSES]
    touched = np.logical_or.accumulate(np.logical_or.reduce([mask for _, mask in drawn]), axis=0)
    rest = ~binary_dilation(touched, iterations=24)
    assert rest.mean() > 0.3
    assert all((image[rest] == drawn[0][0][rest]).all() for image, _ in drawn)


def test_outlines_grow_more_irregular_from_round_to_spiculated() -> None:
    def irregularity(label: str) -> float:
        masks = [draw_phantom(label, 0, number)[1] for number in range(8)]
        return float(np.mean([outline(m, 1).sum() ** 2 / m.sum() for m in masks]))

    assert irregularity("round") < irregularity("lobed") < irregularity("spiculated")


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"mine\.png"):
        make_phantoms(tmp_path, {"train": 1}, 0, SMALL)


@pytest.mark.parametrize(
    ("counts", "size"), [({}, SMALL), ({"train": 0}, SMALL), ({"exam": 1}, SMALL), ({"train": 1}, (8, 8))]
)
def test_counts_and_sizes_that_cannot_be_are_refused(
    tmp_path: Path, counts: dict[str, int], size: tuple[int, int]
) -> None:
    with pytest.raises(UsageError, match="Phantoms"):
        make_phantoms(tmp_path, counts, 0, size)
    assert not list(tmp_path.iterdir())
