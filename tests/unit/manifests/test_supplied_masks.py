"""Masks that come with the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manifests.errors import ReadError
from manifests.fingerprint import digest_bytes
from manifests.readers import ImageSource, mask_key
from manifests.types import ImageRow
from tests.unit.manifests.pictures import encode, image_of, put, row

CANARY = "DOE-JANE-1969"


def masked(root: Path, mask: bytes, name: str = "m.png", **fields: Any) -> tuple[ImageSource, ImageRow]:
    put(root, name, mask)
    values = {"mask_path": name, "mask_sha256": digest_bytes(mask), "width": 3, "height": 1}
    return ImageSource(root), row("a.png", **{**values, **fields})


MASKS: list[tuple[Image.Image, str, dict[str, Any], list[bool]]] = [
    (image_of("1", [0, 255, 0]), "PNG", {}, [False, True, False]),
    (image_of("L", [0, 1, 255]), "PNG", {}, [False, True, True]),
    (image_of("RGB", [(0, 0, 0), (0, 0, 1), (9, 0, 0)]), "PNG", {}, [False, True, True]),
    (image_of("RGBA", [(0, 0, 0, 255), (7, 0, 0, 0), (0, 0, 0, 0)]), "PNG", {}, [False, True, False]),
    (image_of("RGBA", [(0, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 9)]), "PNG", {}, [True, False, True]),
    (image_of("RGBA", [(5, 5, 5, 255)] * 3), "PNG", {}, [True] * 3),
    (image_of("I;16", [0, 1, 65535]), "PNG", {}, [False, True, True]),
    (image_of("F", [0, 0.1, -1]), "TIFF", {}, [False, True, True]),
]


@pytest.mark.parametrize(("image", "kind", "options", "expected"), MASKS)
def test_mask_is_true_where_a_channel_is_not_zero(tmp_path, image, kind, options, expected):
    source, item = masked(tmp_path, encode(image, kind, **options))
    mask = source.read_mask(item)
    assert mask.dtype == np.bool_
    assert mask.tolist() == [expected]


def test_palette_mask_is_read_by_colour(tmp_path):
    image = image_of("P", [0, 1, 2])
    image.putpalette([0, 0, 0, 255, 255, 255, 0, 0, 0])
    source, item = masked(tmp_path, encode(image))
    assert source.read_mask(item).tolist() == [[False, True, False]]


def test_jpeg_mask_keeps_no_compression_noise(tmp_path):
    drawn = np.zeros((40, 40), np.uint8)
    drawn[10:23, 7:30] = 255
    source, item = masked(tmp_path, encode(drawn, "JPEG", quality=50), "m.jpg", width=40, height=40)
    assert np.array_equal(source.read_mask(item), drawn > 0)


def test_mask_orientation_is_respected(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    source, item = masked(tmp_path, encode(np.array([[0], [0], [255]], np.uint8), exif=exif))
    assert source.read_mask(item).tolist() == [[True, False, False]]


def test_mask_of_another_size_is_refused_with_both_sizes(tmp_path):
    source, item = masked(tmp_path, encode(Image.new("L", (4, 2))))
    with pytest.raises(ReadError) as caught:
        source.read_mask(item)
    assert (caught.value.reason, caught.value.detail) == ("mask.size", "mask 4 x 2 px, image 3 x 1 px")


def test_row_without_mask_says_so(tmp_path):
    with pytest.raises(ReadError, match=r"mask\.missing"):
        ImageSource(tmp_path).read_mask(row("a.png"))


def test_damaged_mask_is_told_apart_from_a_damaged_image(tmp_path):
    source, item = masked(tmp_path, b"text")
    with pytest.raises(ReadError, match=r"decode\.unreadable: mask:"):
        source.read_mask(item)


def test_renamed_mask_is_read_where_it_is_now(tmp_path):
    _, item = masked(tmp_path, encode(Image.new("L", (3, 1), 1)), "new.png", mask_path="old.png")
    assert ImageSource(tmp_path, {mask_key(item): "new.png"}).read_mask(item).all()


def test_mask_with_nan_is_refused(tmp_path):
    source, item = masked(tmp_path, encode(np.array([[0, np.nan, 1]], np.float32), "TIFF"))
    with pytest.raises(ReadError, match=r"decode\.nonfinite"):
        source.read_mask(item)


def test_edited_mask_is_refused_before_it_is_decoded(tmp_path):
    source, item = masked(tmp_path, encode(Image.new("L", (3, 1), 1)))
    for edited in (encode(Image.new("L", (3, 1), 2)), b"text"):
        put(tmp_path, "m.png", edited)
        with pytest.raises(ReadError) as caught:
            source.read_mask(item)
        assert (caught.value.reason, caught.value.detail) == ("mask.changed", "restore the mask that was ingested")


def test_mask_that_was_unreadable_at_ingest_is_not_trusted_later(tmp_path):
    source, item = masked(tmp_path, encode(Image.new("L", (3, 1), 1)), mask_sha256="")
    with pytest.raises(ReadError, match=r"mask\.changed: unreadable when it was ingested"):
        source.read_mask(item)


def test_missing_mask_keeps_the_code_of_reading(tmp_path):
    source, item = masked(tmp_path, encode(Image.new("L", (3, 1), 1)))
    (tmp_path / "m.png").unlink()
    with pytest.raises(ReadError, match=r"file\.missing: mask: no such file"):
        source.read_mask(item)
