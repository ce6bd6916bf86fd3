"""The search for identifiers finds them wherever a test of privacy could overlook them, and nothing by chance."""

from __future__ import annotations

import base64
import datetime
import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from tests.identifiers import GIVEN, IDENTIFIERS, NAME, UID_ROOT, Search, loose_modes
from tests.planted import texts

IN_PIECES = f"{NAME[:5]}!{NAME[3:]}?" * 99 + NAME
"""A text in which Snappy puts the name together from what went before."""


def in_a_log(folder: Path) -> None:
    (folder / "log.txt").write_text(f"12:00:01 INFO reading {NAME.upper()}.png")


def in_utf16(folder: Path) -> None:
    (folder / "log.txt").write_bytes(f"reading {GIVEN}".encode("utf-16"))


def in_latin1(folder: Path) -> None:
    (folder / "log.txt").write_bytes(f"reading {GIVEN}".encode("latin-1"))


def in_a_json_escape(folder: Path) -> None:
    (folder / "run.json").write_text('{"who": "Zebul\\u00f6na"}')


def in_base64(folder: Path) -> None:
    (folder / "page.html").write_bytes(b"x" + base64.b64encode(f"ab{NAME}.png".encode()))


def in_hex(folder: Path) -> None:
    (folder / "events.jsonl").write_text(IDENTIFIERS["birth date"].encode().hex())


def as_a_date(folder: Path) -> None:
    (folder / "table.csv").write_text("1,19370213,0.5")


def as_a_date_with_hyphens(folder: Path) -> None:
    (folder / "table.csv").write_text("1,1937-02-13,0.5")


def as_an_unsalted_hash(folder: Path) -> None:
    (folder / "table.csv").write_text(hashlib.sha256(IDENTIFIERS["id"].encode()).hexdigest())


def in_the_name_of_a_folder(folder: Path) -> None:
    (folder / f"{UID_ROOT}.7").mkdir()


def in_a_gzip(folder: Path) -> None:
    (folder / "log.gz").write_bytes(gzip.compress(NAME.encode()))


def in_an_archive_of_numpy(folder: Path) -> None:
    np.savez_compressed(folder / "looks.npz", names=np.array([f"{NAME}.png"]))


def in_a_compressed_text_of_a_picture(folder: Path) -> None:
    Image.new("L", (4, 4)).save(folder / "thumbnail.png", pnginfo=texts())


def in_a_picture_inside_a_page(folder: Path) -> None:
    in_a_compressed_text_of_a_picture(folder)
    data = base64.b64encode((folder / "thumbnail.png").read_bytes())
    (folder / "thumbnail.png").unlink()
    (folder / "index.html").write_bytes(b'<img src="data:image/png;base64,' + data + b'">')


def in_a_column_of_parquet(folder: Path) -> None:
    packed(folder / "embeddings.parquet", pa.table({"label": [IN_PIECES, "x"]}))


def packed(file: Path, table: pa.Table) -> None:
    pq.write_table(table, file, compression="snappy", use_dictionary=False, write_statistics=False)
    assert NAME.encode() not in file.read_bytes()


def in_a_date_of_parquet(folder: Path) -> None:
    born = datetime.date.fromisoformat(IDENTIFIERS["birth date"])
    pq.write_table(pa.table({"day": [born]}), folder / "embeddings.parquet")


def in_the_metadata_of_parquet(folder: Path) -> None:
    table = pa.table({"label": ["x"]}).replace_schema_metadata({"source": f"/scans/{NAME}"})
    pq.write_table(table, folder / "embeddings.parquet")


def in_vectors_of_parquet(folder: Path) -> None:
    values = np.frombuffer(IN_PIECES.encode(), np.uint8)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), len(values))
    packed(folder / "embeddings.parquet", pa.table({"original": vectors}))


def in_pixels(folder: Path) -> None:
    values = np.frombuffer(NAME.encode(), np.uint8).reshape(1, -1)
    Image.fromarray(values).save(folder / "thumbnail.png")


def in_an_array(folder: Path) -> None:
    zarr.create_array(folder / "data.zarr", data=np.frombuffer(NAME.encode(), np.uint8))


def in_an_array_of_texts(folder: Path) -> None:
    zarr.create_array(folder / "data.zarr", data=np.array([NAME, "x"], dtype="U16"))


PLANTS = (
    in_a_log,
    in_utf16,
    in_latin1,
    in_a_json_escape,
    in_base64,
    in_hex,
    as_a_date,
    as_a_date_with_hyphens,
    as_an_unsalted_hash,
    in_the_name_of_a_folder,
    in_a_gzip,
    in_an_archive_of_numpy,
    in_a_compressed_text_of_a_picture,
    in_a_picture_inside_a_page,
    in_a_column_of_parquet,
    in_a_date_of_parquet,
    in_the_metadata_of_parquet,
    in_vectors_of_parquet,
    in_pixels,
    in_an_array,
    in_an_array_of_texts,
)


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_identifier_is_found(plant: Callable[[Path], None], tmp_path: Path) -> None:
    assert Search().of_folder(tmp_path) == []
    plant(tmp_path)
    assert Search().of_folder(tmp_path) != []


def test_digits_of_floats_and_digests_are_no_birth_date() -> None:
    assert Search().of_text("0.19370213 a19370213b 119370213") == set()


def test_modes_that_let_others_in_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "drops"
    folder.mkdir(mode=0o700)
    (folder / "drop.json").touch(mode=0o600)
    assert loose_modes(folder) == []
    (folder / "drop.json").chmod(0o640)
    assert loose_modes(folder) == ["drop.json: 640"]
