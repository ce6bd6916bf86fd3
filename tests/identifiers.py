"""Identifiers of a patient who does not exist, planted in files of every kind, and a search of every byte for them."""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import html
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from PIL import Image

NAME, GIVEN = "Quixworth", "Zebulöna"
UID_ROOT = "1.2.826.0.1.3680043.10.97310"
IDENTIFIERS: Mapping[str, str] = {
    "family name": NAME,
    "given name": GIVEN,
    "id": "PID77QX31Z9",
    "birth date": "19370213",
    "accession": "ACC7Q1X99831",
    "institution": "Quizzleby Infirmary",
    "device serial": "SNQZ448817X",
    "study id": "STYQZ5512",
    "referring physician": "Drablowitz",
    "private element": "PRIVQZSECRET81",
    "text in a picture file": "TXTQZCHUNK62",
    "text in a volume": "VOLQZ60417",
    "UIDs": UID_ROOT,
}
"""Each occurs nowhere else, in whatever spelling."""
DATA_URI = re.compile(rb"base64,([A-Za-z0-9+/=\s]{16,})")
DATE = re.compile(r"(\d{4})(\d{2})(\d{2})")
"""How DICOM writes a date; other files write it with hyphens."""
PARQUET = b"PAR1"
PNG = b"\x89PNG\r\n\x1a\n"


class Search:
    """Looks for identifiers in plain, UTF-16, UTF-32, JSON, HTML, URL, hex and base64 spelling, in any case of letters.

    The unsalted sha256 of an identifier counts as a spelling: it can be guessed.

    Parameters
    ----------
    identifiers : Mapping[str, str]
        What is looked for, by what it is.
    """

    def __init__(self, identifiers: Mapping[str, str] = IDENTIFIERS) -> None:
        self._folded: dict[bytes, str] = {}
        self._exact: dict[bytes, str] = {}
        self._numbers: dict[re.Pattern[bytes], str] = {}
        for what, word in identifiers.items():
            for text in {word, word.lower(), word.upper(), DATE.sub(r"\1-\2-\3", word)}:
                self._add(what, text)

    def _add(self, what: str, text: str) -> None:
        plain = {text.encode(code) for code in ("utf-8", "latin-1", "utf-16-le", "utf-16-be", "utf-32-le")}
        plain |= {json.dumps(text)[1:-1].encode(), quote(text).encode(), html.escape(text).encode("utf-8")}
        hexes = {binascii.hexlify(spelling) for spelling in plain}
        hexes |= {hashlib.sha256(text.encode()).hexdigest()[:16].encode()}
        self._exact |= dict.fromkeys((b64 for spelling in plain for b64 in _base64(spelling)), what)
        if text.isdigit():  # else chance would find it among the digits of a float or of a digest
            plain.remove(text.encode())
            self._numbers[re.compile(rb"(?<![0-9a-fA-F.])" + text.encode() + rb"(?![0-9a-fA-F])")] = what
        self._folded |= dict.fromkeys((spelling.lower() for spelling in plain | hexes), what)

    def of_bytes(self, data: bytes) -> set[str]:
        """What is found in some bytes as they are."""
        folded = data.lower()
        found = {what for spelling, what in self._folded.items() if spelling in folded}
        found |= {what for spelling, what in self._exact.items() if spelling in data}
        return found | {what for pattern, what in self._numbers.items() if pattern.search(data)}

    def of_text(self, text: str) -> set[str]:
        """What is found in a text, such as what a command printed."""
        return self.of_bytes(text.encode("utf-8", "surrogateescape"))

    def of_folder(self, folder: Path, passed: Iterable[str] = ()) -> list[str]:
        """What is found in names, files and arrays below a folder, packed ones unpacked: `where: what`, sorted.

        Parameters
        ----------
        folder : Path
            The folder.
        passed : Iterable[str]
            Names of folders that are passed over.
        """
        left_out = set(passed)
        paths = [p for p in sorted(folder.rglob("*")) if not left_out & set(p.relative_to(folder).parts)]
        found: set[str] = set()
        for path in paths:
            where = path.relative_to(folder).as_posix()
            parts = [("name", where.encode()), *(_parts(path.read_bytes()) if path.is_file() else ())]
            if path.is_dir() and (path / "zarr.json").is_file():
                parts += _of_zarr(path)
            found |= {f"{where} ({part}): {what}" for part, data in parts for what in self.of_bytes(data)}
        return sorted(found)


def _base64(spelling: bytes) -> Iterator[bytes]:
    """The characters that only these bytes can give, at each of the three places where a group can begin."""
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + spelling)
        start, stop = -(-8 * before // 6), (before + len(spelling)) * 8 // 6
        yield coded[start:stop]


def _parts(data: bytes, name: str = "bytes") -> Iterator[tuple[str, bytes]]:
    """Bytes, and whatever is packed in them."""
    yield name, data
    if data.startswith(b"\x1f\x8b"):
        yield from _parts(gzip.decompress(data), f"{name}/gzip")
    elif data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield from _parts(member.encode() + b"\n" + archive.read(member), f"{name}/{member}")
    elif data.startswith(PARQUET):
        yield from ((f"{name}/{part}", content) for part, content in _of_parquet(data))
    elif data.startswith(PNG):
        yield from ((f"{name}/{kind}", content) for kind, content in _png_chunks(data))
    for number, coded in enumerate(DATA_URI.findall(data)):
        yield from _parts(base64.b64decode(coded), f"{name}/embedded-{number}")


def _of_parquet(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Metadata and columns of a table, decompressed by pyarrow."""
    table = pq.read_table(io.BytesIO(data))
    for key, value in (table.schema.metadata or {}).items():
        yield "metadata", key + b"\n" + value
    for name, column in zip(table.column_names, table.columns, strict=True):
        yield "name of a column", name.encode()
        if pa.types.is_nested(column.type):
            yield from ((name, buffer.to_pybytes()) for part in column.chunks for buffer in part.buffers() if buffer)
        else:
            yield name, "\n".join(map(str, column.to_pylist())).encode()


def _png_chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Texts of a PNG file that are compressed, inflated, and its pixels."""
    at = len(PNG)
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8].decode("latin-1")
        content = data[at + 8 : at + 8 + length]
        at += 12 + length
        if kind in ("zTXt", "iTXt", "iCCP"):
            for start in range(len(content) - 1):  # wherever the compressed part begins
                if content[start] == 0x78:
                    yield kind, _inflated(content[start:])
    with Image.open(io.BytesIO(data)) as image:
        yield "pixels", image.tobytes()


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data)
    except zlib.error:
        return b""


def _of_zarr(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Attributes of a group or array, and all values of an array, decompressed by zarr itself."""
    node = zarr.open(folder, mode="r")
    yield "attributes", json.dumps(dict(node.attrs), ensure_ascii=False).encode("utf-8")
    if isinstance(node, zarr.Array):
        values = np.asarray(node[...])
        is_text = values.dtype.kind in "OTSU"
        yield "values", "\n".join(map(str, values.ravel())).encode("utf-8") if is_text else values.tobytes()


def loose_modes(folder: Path) -> list[str]:
    """Files below a folder that are not of mode 600, and folders that are not of mode 700, the folder included."""
    wanted = {path: 0o700 if path.is_dir() else 0o600 for path in (folder, *folder.rglob("*"))}
    modes = {path: path.stat().st_mode & 0o777 for path in wanted}
    return [f"{path.name}: {modes[path]:o}" for path in wanted if modes[path] != wanted[path]]
