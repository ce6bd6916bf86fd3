"""Every pixel format, every damaged file, every orientation."""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from manifests import readers
from manifests.errors import ReadError
from manifests.readers import REASONS, ImageSource, probe
from tests.unit.manifests.pictures import chunk, encode, noise, png, put, read, refused, row

CANARY = "DOE-JANE-1969"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_every_exif_orientation_is_turned_upright(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noise(1), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    rgb = read(tmp_path, data)
    header = probe(tmp_path / "a.png")
    assert np.array_equal(rgb, expected)
    assert (header.height, header.width) == rgb.shape[:2]
    assert header.transforms == f"exif-{orientation}"


def test_png_orientation_after_the_pixels_counts_without_decoding(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    late = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    data = png((2, 1), data=b"\0" + bytes([1, 2, 3, 4, 5, 6]), late=late)
    assert read(tmp_path, data).tolist() == [[[1, 2, 3]], [[4, 5, 6]]]
    header = probe(tmp_path / "a.png")
    assert (header.width, header.height, header.transforms) == (1, 2, "exif-6")


def test_orientation_of_no_meaning_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 99
    assert np.array_equal(read(tmp_path, encode(noise(1), exif=exif)), noise(1))


@pytest.mark.parametrize(("data", "reason"), [(b"", "decode.empty"), (b"<html>no</html>", "decode.unreadable")])
def test_file_that_is_no_image_has_its_code(tmp_path, data, reason):
    assert refused(tmp_path, data).reason == reason


@pytest.mark.parametrize("share", [0.5, 0.99])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP"])
def test_truncated_image_is_refused_even_if_another_library_allows_it(tmp_path, monkeypatch, kind, share):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encode(noise(2, 60, 80), kind)
    assert refused(tmp_path, data[: int(len(data) * share)]).reason == "decode.truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_png_without_its_last_chunk_is_truncated(tmp_path):
    assert refused(tmp_path, encode(noise(3))[:-12]).reason == "decode.truncated"


def test_settings_of_pillow_are_restored_when_the_last_thread_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 123)
    data = encode(noise(4, 200, 200))
    put(tmp_path, "a.png", data)
    threads = [threading.Thread(target=ImageSource(tmp_path).read, args=(row("a.png", data),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Image.MAX_IMAGE_PIXELS == 123


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_decompression_bomb_is_refused_before_decoding(tmp_path, monkeypatch, side):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    error = refused(tmp_path, png((side, side), data=b""), max_pixels=99_999_999)
    assert error.reason == "decode.too_large"
    assert f"{side} x {side}" in error.detail


def test_header_of_a_huge_image_is_still_recorded(tmp_path):
    assert probe(put(tmp_path, "a.png", png((20_000, 20_000)))).width == 20_000


def test_file_of_too_many_bytes_is_refused(tmp_path):
    data = encode(noise(1)) + bytes(900)
    assert refused(tmp_path, data, max_pixels=100).reason == "decode.too_large"


@pytest.mark.parametrize(("name", "kind"), [("a.tif", "TIFF"), ("a.gif", "GIF"), ("a.png", "PNG"), ("a.jpg", "MPO")])
def test_several_frames_are_refused(tmp_path, name, kind):
    frames = [Image.fromarray(noise(seed)) for seed in (1, 2)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert refused(tmp_path, data, name).reason == "decode.frames"
    with pytest.raises(ReadError, match=r"decode\.frames"):
        probe(tmp_path / name)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_image_without_pixels_is_refused(tmp_path, size):
    assert refused(tmp_path, png(size)).reason == "decode.size"


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (33, 17), (40_000, 1)])
def test_odd_sizes_are_read(tmp_path, size):
    assert read(tmp_path, encode(Image.new("L", size, 5))).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("name", ["a.dcm", "A.DCM", "b.nii", "b.nii.gz"])
def test_what_is_only_named_like_dicom_or_nifti_is_refused(tmp_path, name):
    assert refused(tmp_path, b"DICM", name).reason == "decode.unreadable"
    assert refused(tmp_path, b"", name).reason == "decode.empty"
    (tmp_path / name).write_bytes(b"DICM")
    with pytest.raises(ReadError, match=r"decode\.unreadable"):
        probe(tmp_path / name)


def test_png_named_jpg_and_file_without_suffix_are_read_by_content(tmp_path):
    for name in ("a.jpg", "IM-0001"):
        assert np.array_equal(read(tmp_path, encode(noise(5)), name), noise(5))


def test_damaged_exif_is_refused_because_orientation_is_unknown(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x0f\x01\x02\0\xff\0\0\0\x10\0\0\0"
    assert refused(tmp_path, encode(noise(1), "JPEG", exif=exif), "a.jpg").reason == "decode.metadata"


def test_changed_bytes_are_refused(tmp_path):
    put(tmp_path, "a.png", 1)
    with pytest.raises(ReadError, match="changed"):
        ImageSource(tmp_path).read(row("a.png", encode(noise(2))))


def test_flipped_bit_in_a_jpeg_is_changed(tmp_path):
    data = bytearray(encode(noise(6, 64, 64), "JPEG"))
    original = row("a.jpg", bytes(data))
    data[len(data) // 2] ^= 1
    put(tmp_path, "a.jpg", bytes(data))
    with pytest.raises(ReadError, match="changed"):
        ImageSource(tmp_path).read(original)


def test_missing_file_folder_and_dangling_link_have_codes(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    reasons = {}
    for name in ("absent.png", "folder.png", "link.png"):
        with pytest.raises(ReadError) as caught:
            ImageSource(tmp_path).read(row(name))
        reasons[name] = caught.value.reason
    assert reasons == {"absent.png": "file.missing", "folder.png": "file.irregular", "link.png": "file.missing"}


def test_pipe_named_like_an_image_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ReadError, match=r"file\.irregular"):
        probe(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("error", "reason"), [(PermissionError(13, "no"), "file.permission"), (OSError(5, "EIO"), "file.unreadable")]
)
def test_what_the_system_refuses_has_a_code_and_no_path(tmp_path, monkeypatch, error, reason):
    put(tmp_path, f"{CANARY}.png", 1)

    def refuse(self: Path, *_: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ReadError) as caught:
        probe(tmp_path / f"{CANARY}.png")
    assert caught.value.reason == reason
    assert CANARY not in str(caught.value)


def test_no_message_holds_the_path(tmp_path):
    broken = [b"", b"text", encode(noise(1))[:60], png((0, 1)), encode(noise(1), "TIFF")[:50], b"II*\0"]
    for number, data in enumerate(broken):
        error = refused(tmp_path / CANARY, data, f"{CANARY}-{number}.png")
        with pytest.raises(ReadError) as caught:
            probe(tmp_path / CANARY / f"absent-{CANARY}.png")
        assert CANARY not in f"{error} {error.detail} {caught.value}"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "PPM"])
def test_damaged_bytes_never_raise_anything_else(tmp_path, kind):
    random, whole, reasons = np.random.default_rng(7), encode(noise(8, 20, 20), kind), set()
    for _ in range(60):
        data = bytearray(whole)
        for position in random.integers(0, min(len(data), 200), 4):
            data[position] = random.integers(0, 256)
        put(tmp_path, "a", bytes(data))
        with contextlib.suppress(ReadError):
            assert ImageSource(tmp_path, max_pixels=10**6).read(row("a", bytes(data))).dtype == np.uint8
            continue
        reasons.add(refused(tmp_path, bytes(data), "a", max_pixels=10**6).reason)
    assert reasons


def test_renamed_file_is_read_where_it_is_now(tmp_path):
    data = encode(noise(9))
    moved = row("old.png", data)
    put(tmp_path, "sub/new name.png", data)
    assert np.array_equal(ImageSource(tmp_path, {moved.image_id: "sub/new name.png"}).read(moved), noise(9))


def test_reasons_explain_every_code_that_the_readers_raise():
    package = Path(readers.__file__).parent
    names = {file.name for file in package.glob("*.py")} - {"readers.py"}
    others = "".join((package / name).read_text() for name in sorted(names))
    own = Path(readers.__file__).read_text()
    told = own.replace(own[own.index("REASONS: Mapping") : own.index("Every code of a failed image")], "")
    raised = set(re.findall(r'ReadError\(\s*"([a-z_.]+)"', others + told))
    assert raised <= set(REASONS)
    never = set(REASONS) - raised - {"withdrawn", "poison", "upstream.failed"}
    assert never == set(), "a code that nothing raises"
    assert all(meaning and not meaning.endswith(".") for meaning in REASONS.values())
