"""Copies of pictures that the audit must find, pictures that only resemble each other, shortcuts and shifts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from manifests.audit import Audit, flagged
from manifests.drops import load_audit, load_drops, load_looks, load_rows
from manifests.errors import InventoryError
from manifests.ingest import IngestOptions, IngestReport, ingest
from manifests.layout import DatasetPaths, Workdir
from manifests.looks import VARIANTS, Looks, look, no_looks, variants
from manifests.readers import ImageSource
from manifests.twins import Pair, find_pairs, name_twins
from manifests.types import ImageRow, Split
from tests.unit.manifests.pictures import encode, put, row


def scene(seed: int, size: tuple[int, int] = (90, 120)) -> NDArray[np.uint8]:
    """A smooth grey picture of a seed's own, with some detail."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=size), 9) + 0.15 * gaussian_filter(rng.normal(size=size), 2)
    field -= field.min()
    return (30 + 190 * field / field.max()).astype(np.uint8)


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    return encode(pixels, "JPEG", quality=60)


ALTERED = {
    "re-encoded": lambda a: jpeg(a),
    "mirrored": lambda a: jpeg(a[:, ::-1]),
    "upside down": lambda a: encode(a[::-1]),
    "turned by 180": lambda a: encode(a[::-1, ::-1]),
    "turned by 90": lambda a: encode(np.rot90(a, -1)),
    "turned by 270": lambda a: encode(np.rot90(a)),
    "transposed": lambda a: encode(a.T),
    "darker": lambda a: jpeg((a * 0.6).astype(np.uint8)),
    "brighter": lambda a: encode((a * 0.8 + 50).astype(np.uint8)),
    "smaller": lambda a: encode(Image.fromarray(a).resize((80, 60))),
}


@pytest.fixture
def paths(tmp_path: Path) -> DatasetPaths:
    return Workdir(tmp_path / "work").dataset("set")


def take(paths: DatasetPaths, source: Path, **options: Any) -> IngestReport:
    return ingest(paths, source, IngestOptions(dataset="set", **options))


def audit_of(report: IngestReport) -> Audit:
    assert report.audit is not None
    return report.audit


def looks_of(pictures: dict[str, bytes], tmp_path: Path) -> tuple[list[ImageRow], Looks]:
    rows = [row(name, data) for name, data in pictures.items()]
    for name, data in pictures.items():
        put(tmp_path, name, data)
    return rows, look(rows, ImageSource(tmp_path))[0]


@pytest.mark.parametrize("how", ALTERED)
def test_altered_copy_of_a_training_image_is_flagged_in_test_and_nothing_else(paths, tmp_path, how):
    source = tmp_path / "source"
    for seed in range(12):
        put(source, f"train/a/{seed}.png", encode(scene(seed)))
        put(source, f"test/a/{seed}.png", encode(scene(100 + seed)))
    put(source, "test/a/leak.png", ALTERED[how](scene(3)))
    report = take(paths, source)
    rows = load_rows(paths, load_drops(paths)[0])
    marked = flagged(rows, load_audit(paths, load_drops(paths)[0]).twins)
    assert {r.path for r in rows if r.image_id in marked} == {"test/a/leak.png"}
    assert report.leaking == 1
    (twin,) = audit_of(report).twins
    assert twin.correlation >= 0.99
    assert twin.how == (how if how in VARIANTS else "same")


def test_variants_are_what_their_names_say():
    picture = scene(1, (32, 32))
    named = dict(zip(VARIANTS, variants(picture), strict=True))
    assert (named["turned by 90"] == np.rot90(picture, -1)).all()
    assert (named["turned by 270"] == np.rot90(picture)).all()
    assert (named["turned by 180"] == np.rot90(picture, 2)).all()
    assert (named["mirrored"] == np.fliplr(picture)).all()
    assert (named["upside down"] == np.flipud(picture)).all()
    assert (named["transposed and turned by 180"] == np.rot90(picture.T, 2)).all()


def test_same_pixels_in_another_format_are_told_as_such(tmp_path):
    pictures = {"1.png": encode(scene(1)), "2.bmp": encode(scene(1), "BMP"), "3.png": encode(scene(2))}
    rows, looks = looks_of(pictures, tmp_path)
    (twin,) = name_twins(rows, find_pairs(rows, looks))
    assert {twin.image_id, twin.other_id} == {rows[0].image_id, rows[1].image_id}
    assert (twin.how, twin.correlation) == ("pixels", 1.0)


def test_black_images_are_twins_by_pixels_only(tmp_path):
    black, grey = np.zeros((40, 40), np.uint8), np.full((40, 40), 9, np.uint8)
    pictures = {"1.png": encode(black), "2.bmp": encode(black, "BMP"), "3.png": encode(grey)}
    rows, looks = looks_of(pictures, tmp_path)
    assert [(p.first, p.second, p.how) for p in set(find_pairs(rows, looks))] == [(0, 1, "pixels")]


def test_unreadable_image_has_no_twin(tmp_path):
    rows, looks = looks_of({"1.png": encode(scene(1))[:400], "2.png": encode(scene(2))[:400]}, tmp_path)
    assert not looks.seen.any()
    assert list(find_pairs(rows, looks)) == []


def test_many_copies_of_one_picture_keep_few_pairs_and_every_finding(tmp_path):
    n = 40
    rows = [row(f"{i}.png", bytes([i]), split=Split.TEST if i == n - 1 else Split.TRAIN, label="a") for i in range(n)]
    looks = no_looks(n)
    looks.seen[:] = True
    looks.thumbnails[:] = scene(1, (32, 32))
    twins = name_twins(rows, find_pairs(rows, looks))
    assert len(twins) <= 2 * n
    assert flagged(rows, twins) == {rows[-1].image_id}
    assert {name for t in twins for name in (t.image_id, t.other_id)} == {r.image_id for r in rows}


def test_nearest_twin_is_kept_and_equal_bytes_are_no_twins():
    rows = [row(str(i), bytes([i])) for i in range(3)]
    rows.append(row("copy of 0", bytes([0])))
    pairs = [Pair(0, 1, "same", 0.991), Pair(0, 2, "same", 0.999), Pair(1, 2, "same", 0.995), Pair(0, 3, "same", 1.0)]
    found = {(t.image_id, t.other_id) for t in name_twins(rows, iter(pairs))}
    assert found == {(rows[0].image_id, rows[2].image_id), (rows[1].image_id, rows[2].image_id)}


def test_later_drop_is_compared_with_earlier_ones_and_tells_the_worst(paths, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for seed in range(3):
        put(first, f"train/a/{seed}.png", encode(scene(seed)))
        put(first, f"test/a/{seed}.png", encode(scene(50 + seed)))
    assert take(paths, first).leaking == 0
    put(second, "train/a/x.png", jpeg(scene(51)[:, ::-1]))
    put(second, "train/a/y.png", jpeg(scene(90)))
    report = take(paths, second)
    assert (report.pictures_known, report.leaking, report.leaking_earlier) == (1, 1, 1)
    (twin,) = audit_of(report).twins
    assert twin.how == "mirrored"


def test_earlier_drop_without_looks_is_looked_at_again_or_counted(paths, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    put(first, "test/a/0.png", encode(scene(1)))
    put(first, "train/a/1.png", encode(scene(2)))
    take(paths, first)
    (paths.drop("drop-001") / "looks.npz").unlink()
    put(second, "train/a/x.png", jpeg(scene(1)))
    put(second, "train/a/y.png", jpeg(scene(3)))
    assert audit_of(take(paths, second)).not_compared == 0
    third = tmp_path / "third"
    put(third, "train/a/z.png", jpeg(scene(2)))
    put(third, "train/a/w.png", jpeg(scene(7)))
    (first / "test/a/0.png").unlink()
    audit = audit_of(take(paths, third))
    assert audit.not_compared == 1
    assert len(audit.twins) == 1


def test_looks_read_back_and_damage_is_refused(paths, tmp_path):
    source = tmp_path / "source"
    for seed in range(3):
        put(source, f"train/a/{seed}.png", encode(scene(seed)))
    take(paths, source)
    (drop,) = load_drops(paths)
    looks = load_looks(paths, drop)
    assert looks is not None
    again = look(load_rows(paths, drop), ImageSource(source))[0]
    assert all((getattr(looks, n) == getattr(again, n)).all() for n in Looks.__dataclass_fields__)
    file = paths.drop(drop.drop_id) / "looks.npz"
    assert file.stat().st_mode & 0o077 == 0
    data = file.read_bytes()
    for torn in (data[: len(data) // 2], b"", no_looks(2).to_bytes()):
        file.write_bytes(torn)
        with pytest.raises(InventoryError, match=r"looks\.npz"):
            load_looks(paths, drop)


def test_masks_posing_as_images_are_told_by_their_pixels(paths, tmp_path):
    source = tmp_path / "source"
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:44] = 255
    put(source, "a/outline.jpg", encode(mask, "JPEG", quality=90))
    put(source, "a/photo.png", encode(scene(1)))
    put(source, "a/black.png", encode(np.zeros((64, 64), np.uint8)))
    audit = audit_of(take(paths, source))
    named = {r.image_id: r.path for r in load_rows(paths, load_drops(paths)[0])}
    assert [named[i] for i in audit.masks_as_images] == ["a/outline.jpg"]


def marked(seed: int, label: str) -> NDArray[np.uint8]:
    """A picture whose margin gives its class away, as a burned-in marker does."""
    picture = scene(seed)
    picture[:6, :40] = 255 if label == "a" else 0
    return picture


def test_classes_that_margins_give_away_are_reported(paths, tmp_path):
    source = tmp_path / "source"
    for seed in range(40):
        put(source, f"{'ab'[seed % 2]}/{seed}.png", encode(marked(seed, "ab"[seed % 2])))
    found = {c.probed: c for c in audit_of(take(paths, source)).confounds}
    assert found["margins"].balanced_accuracy > 0.95
    assert found["margins"].is_confounded
    assert found["margins"].chance == 0.5


def test_classes_that_nothing_gives_away_are_not_reported(paths, tmp_path):
    source = tmp_path / "source"
    for seed in range(60):
        put(source, f"{'ab'[seed % 2]}/{seed}.png", encode(scene(seed)))
    audit = audit_of(take(paths, source))
    assert [c.probed for c in audit.confounds] == ["margins", "grey levels"]
    assert not audit.confounded


def test_copies_of_few_pictures_do_not_make_a_shortcut(paths, tmp_path):
    source = tmp_path / "source"
    for seed in range(40):
        label = "ab"[seed % 2]
        picture = (scene(seed % 4) * (0.6 + 0.01 * seed)).astype(np.uint8)
        put(source, f"{label}/{seed}.png", encode(picture))
    assert audit_of(take(paths, source)).confounds == (), "two pictures a class are too few to tell"


def test_shift_of_classes_and_brightness_is_told(paths, tmp_path):
    first, same, other = (tmp_path / name for name in ("first", "same", "other"))
    for seed in range(80):
        put(first, f"{'ab'[seed % 2]}/{seed}.png", encode(scene(seed)))
        put(same, f"{'ab'[seed % 2]}/{seed}.png", encode(scene(200 + seed)))
        put(other, f"{'ab'[seed % 16 == 0]}/{seed}.png", encode((scene(400 + seed) * 0.7).astype(np.uint8)))
    assert audit_of(take(paths, first)).shifts == ()
    assert [s.is_notable for s in audit_of(take(paths, same)).shifts] == [False, False]
    assert {s.of: s.is_notable for s in audit_of(take(paths, other)).shifts} == {"classes": True, "grey levels": True}


def test_changed_file_is_told_apart_from_a_new_one(paths, tmp_path):
    source = tmp_path / "source"
    put(source, "a/1.png", encode(scene(1)))
    put(source, "a/2.png", encode(scene(2)))
    take(paths, source)
    put(source, "a/1.png", encode(scene(5)))
    put(source, "a/3.png", encode(scene(6)))
    report = take(paths, source)
    assert (report.new, report.changed, report.vanished) == (2, 1, 1)
