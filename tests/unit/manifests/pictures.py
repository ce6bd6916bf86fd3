"""Small pictures of every kind, made in the test itself."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from manifests.errors import ReadError
from manifests.fingerprint import digest_bytes
from manifests.readers import REASONS, ImageSource
from manifests.types import ImageRow, Split


def encode(pixels: NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """File bytes of an array or a Pillow image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(seed: int, height: int = 6, width: int = 9) -> NDArray[np.uint8]:
    """RGB noise of a seed's own."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(root: Path, relative: str, content: bytes | int = 0) -> Path:
    """Write a file below a folder; an int stands for a PNG of noise of that seed."""
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(noise(content)) if isinstance(content, int) else content)
    return path


def png(size: tuple[int, int], depth: int = 8, colour: int = 2, data: bytes = b"", late: bytes = b"") -> bytes:
    """A PNG written chunk by chunk: width and height, bit depth, colour type, scan lines, chunks after the pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + late + chunk(b"IEND")


def chunk(name: bytes, data: bytes = b"") -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def row(path: str, data: bytes | None = None, **fields: Any) -> ImageRow:
    """A row of a file with these bytes."""
    sha256 = digest_bytes(path.encode() if data is None else data)
    values: dict[str, Any] = {
        "row": 0,
        "image_id": sha256[:16],
        "path": path,
        "mask_path": "",
        "mask_sha256": "",
        "sha256": sha256,
        "bytes": len(data or b""),
        "width": 9,
        "height": 6,
        "mode": "RGB",
        "label": "",
        "split": Split.NONE,
        "group_id": sha256[:16],
        "duplicate_of": "",
        "transforms": "",
    }
    return ImageRow(**{**values, **fields})


def read(root: Path, data: bytes, name: str = "a.png") -> Any:
    """Write the bytes and read them back as an image."""
    put(root, name, data)
    return ImageSource(root).read(row(name, data))


def refused(root: Path, data: bytes, name: str = "a.png", **source: Any) -> ReadError:
    """Write the bytes and return why they are refused as an image."""
    put(root, name, data)
    with pytest.raises(ReadError) as caught:
        ImageSource(root, **source).read(row(name, data))
    assert caught.value.reason in REASONS
    return caught.value


def image_of(mode: str, pixels: list[Any]) -> Image.Image:
    """A Pillow image of one row of pixels."""
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image
