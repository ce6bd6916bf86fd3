"""Pillow without mercy: whatever it only warns about, or pads with grey, is a `ReadError`.

Three settings of Pillow are global to the process and may have been changed by another library: whether truncated
images pass, the pixel limit, and the warnings filter. They are set while any thread is inside `opened_image` and put
back when the last one leaves.
"""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from manifests.errors import ReadError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM")
"""What Pillow may try: no format that runs a program (EPS) or allocates its canvas on opening (WebP)."""

HARMLESS = ("Metadata Warning", "Image appears to be a malformed MPO", "Possibly corrupt EXIF MakerNote")
"""Beginnings of warnings that say nothing about pixels, size or orientation."""

DAMAGED_TAGS = ("Corrupt EXIF", "Possibly corrupt EXIF", "Tag data larger", "Tag offset too large")
"""Beginnings of warnings after which tags, such as the orientation, may be missing."""

DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Warning,
)
"""What Pillow's decoders raise for damaged files."""


class _StrictSettings:
    """Counts the threads inside; the first one in sets, the last one out restores."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._restore = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._set()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._restore.close()

    def _set(self) -> None:
        self._restore.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("error", module=r"PIL\.")
        for beginning in HARMLESS:
            warnings.filterwarnings("ignore", message=beginning, module=r"PIL\.")
        warnings.filterwarnings("ignore", module=r"(manifests\.dicom_files|pydicom|pylibjpeg|libjpeg|openjpeg)\b")
        self._restore.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
        self._restore.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        # The reader's own limit, which is checked before decoding, takes the place of Pillow's.
        Image.MAX_IMAGE_PIXELS = None


STRICT = _StrictSettings()
"""For all decoders, pydicom's too, whose warnings about unusual files are passed over: what matters is an error."""


@contextmanager
def opened_image(stream: BinaryIO) -> Iterator[Image.Image]:
    """Open an image of one frame for as long as the block runs, with strict settings.

    Parameters
    ----------
    stream : BinaryIO
        Seekable, at its beginning.

    Raises
    ------
    ReadError
        With a code of `manifests.readers.REASONS`, also for what Pillow raises inside the block.
    """
    with STRICT:
        try:
            with Image.open(stream, formats=FORMATS) as image:
                _check_frames(image)
                yield image
        except UnidentifiedImageError as error:
            raise _unidentified(stream) from error
        except DECODE_ERRORS as error:
            raise _as_read_error(error) from error


def _check_frames(image: Image.Image) -> None:
    if 0 in image.size:
        raise ReadError("decode.size", f"{image.width} x {image.height} px")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ReadError("decode.frames", f"{frames} frames")


def _unidentified(stream: BinaryIO) -> ReadError:
    stream.seek(0)
    head = stream.read(24)
    if not head:
        return ReadError("decode.empty", "0 bytes")
    if head.startswith(b"\x89PNG") and len(head) == 24 and 0 in struct.unpack(">II", head[16:]):
        return ReadError("decode.size", "{} x {} px".format(*struct.unpack(">II", head[16:])))
    return ReadError("decode.unreadable", "not an image of a known format")


def _as_read_error(error: Exception) -> ReadError:
    """Code for what a decoder raised; the text is Pillow's, which names no file when it reads a stream."""
    text = str(error) or type(error).__name__
    if "truncated" in text.lower():
        return ReadError("decode.truncated", text)
    if isinstance(error, Warning) and text.startswith(DAMAGED_TAGS):
        return ReadError("decode.metadata", text)
    return ReadError("decode.unreadable", text)
