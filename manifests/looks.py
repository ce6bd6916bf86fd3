"""What images look like, small: enough to find copies of a picture, mirrored, turned or brightened ones too."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manifests.errors import InventoryError, ReadError
from manifests.fingerprint import digest_bytes
from manifests.readers import ImageSource
from manifests.types import ImageRow

T = TypeVar("T", bound=np.generic)

THUMBNAIL_PX = 32
HASHED_PX = 64
"""Side of the square that perceptual hashes are made of."""
VARIANTS = (
    "same",
    "mirrored",
    "upside down",
    "turned by 180",
    "transposed",
    "turned by 90",
    "turned by 270",
    "transposed and turned by 180",
)
"""How one picture can lie on another, in the order of `variants`; turns are clockwise, in degrees."""
NEAR_END = 12
"""Grey levels from black or white that still count as such: JPEG leaves no plain ones."""
MASK_SHARE = 0.995
"""Share of pixels near black or white, both present, above which an image is as two-valued as a mask."""


@dataclass(frozen=True, slots=True)
class Looks:
    """Looks of N images, in the order of a drop's rows."""

    seen: NDArray[np.bool_]
    """(N,); False where the image could not be read: its other values are 0."""
    pixels: NDArray[np.uint8]
    """(N, 32), sha256 of width, height and the RGB pixels."""
    hashes: NDArray[np.uint64]
    """(N, 8), 64-bit perceptual hash (DCT) of the picture in each of its `VARIANTS`."""
    thumbnails: NDArray[np.uint8]
    """(N, 32, 32), grey, squashed to a square."""
    two_valued: NDArray[np.bool_]
    """(N,), black and white like a mask."""

    def __len__(self) -> int:
        return len(self.seen)

    def to_bytes(self) -> bytes:
        """A compressed NumPy archive."""
        out = io.BytesIO()
        np.savez_compressed(out, **{name: getattr(self, name) for name in Looks.__dataclass_fields__})
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, n_items: int) -> Looks:
        """Read what `to_bytes` wrote.

        Raises
        ------
        InventoryError
            If it is damaged or holds another number of images.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                looks = cls(**{name: archive[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InventoryError("looks.npz is damaged.", "Delete it: it is made anew from the source.") from error
        if len(looks) != n_items:
            raise InventoryError(
                f"looks.npz holds {len(looks)} images, its drop {n_items}.",
                "Delete it: it is made anew from the source.",
            )
        return looks

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Looks:
        """Some of these images."""
        return Looks(**{name: getattr(self, name)[rows] for name in Looks.__dataclass_fields__})

    def without(self, rows: NDArray[np.bool_]) -> Looks:
        """The same with some rows blank, (N,), as if they could not be read."""
        arrays = {name: np.array(getattr(self, name)) for name in Looks.__dataclass_fields__}
        for array in arrays.values():
            array[rows] = 0
        return Looks(**arrays)

    def together(self, others: Looks) -> Looks:
        """These images, then others."""
        fields = Looks.__dataclass_fields__
        return Looks(**{name: np.concatenate([getattr(self, name), getattr(others, name)]) for name in fields})


def no_looks(n_items: int = 0) -> Looks:
    """Looks of images none of which could be read."""
    side = THUMBNAIL_PX
    return Looks(
        np.zeros(n_items, np.bool_),
        np.zeros((n_items, 32), np.uint8),
        np.zeros((n_items, len(VARIANTS)), np.uint64),
        np.zeros((n_items, side, side), np.uint8),
        np.zeros(n_items, np.bool_),
    )


def look(
    rows: Sequence[ImageRow], source: ImageSource, on_file: Callable[[int, int], None] | None = None
) -> tuple[Looks, dict[str, str]]:
    """Decode every image once and keep what it looks like.

    Parameters
    ----------
    rows : Sequence[ImageRow]
        Rows of one drop.
    source : ImageSource
        Where their files are.
    on_file : Callable[[int, int], None], optional
        Called after every image with the number of images done and of all images.

    Returns
    -------
    Looks
        One for every row.
    dict[str, str]
        Code of why an image cannot be decoded, by image_id.
    """
    looks, reasons = no_looks(len(rows)), {}
    threads = os.cpu_count() or 1
    # Pillow decodes without the interpreter's lock; the pool keeps no more images than threads in memory.
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(rows), 64):
            found = pool.map(lambda row: _look(row, source), rows[start : start + 64])
            for position, seen in enumerate(found, start):
                if isinstance(seen, str):
                    reasons[rows[position].image_id] = seen
                    continue
                looks.seen[position] = True
                looks.pixels[position], looks.hashes[position], looks.thumbnails[position] = seen[:3]
                looks.two_valued[position] = seen[3]
                if on_file is not None:
                    on_file(position + 1, len(rows))
    return looks, reasons


def _look(
    row: ImageRow, source: ImageSource
) -> tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint8], bool] | str:
    try:
        rgb = source.read(row)
    except ReadError as error:
        return error.reason
    height, width = rgb.shape[:2]
    digest = digest_bytes(f"{width}x{height}:".encode() + rgb.tobytes())
    grey = Image.fromarray(rgb).convert("L")
    square = np.asarray(grey.resize((HASHED_PX, HASHED_PX), Image.Resampling.BOX))
    thumbnail = np.asarray(Image.fromarray(square).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX))
    return np.frombuffer(bytes.fromhex(digest), np.uint8), _hashes(square), thumbnail, _is_two_valued(np.asarray(grey))


def variants(picture: NDArray[T]) -> tuple[NDArray[T], ...]:
    """A square picture, (..., S, S), in each of its eight positions, in the order of `VARIANTS`."""
    turned = picture.swapaxes(-1, -2)
    return tuple(p for a in (picture, turned) for p in (a, a[..., :, ::-1], a[..., ::-1, :], a[..., ::-1, ::-1]))


def _hashes(square: NDArray[np.uint8]) -> NDArray[np.uint64]:
    import imagehash

    bits = [imagehash.phash(Image.fromarray(np.ascontiguousarray(v))).hash.reshape(-1) for v in variants(square)]
    return np.packbits(np.array(bits), axis=1).view(np.uint64)[:, 0]


def _is_two_valued(grey: NDArray[np.uint8]) -> bool:
    dark, light = float((grey <= NEAR_END).mean()), float((grey >= 255 - NEAR_END).mean())
    return dark > 0 and light > 0 and dark + light >= MASK_SHARE
