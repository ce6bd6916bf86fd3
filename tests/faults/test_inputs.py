"""Hostile and changing input, end to end: bombs, forbidden files, strange names, empty images, edits on the way."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from PIL import Image

from manifests.drops import load_audit, load_drops, load_rows
from manifests.errors import InventoryError
from manifests.ingest import IngestOptions, ingest
from manifests.layout import DatasetPaths
from manifests.pseudonyms import read_salt
from manifests.readers import MAX_PIXELS, ImageSource, probe
from manifests.types import ImageRow, Status
from pipeline.config import load_config
from pipeline.workspace import Workspace
from stages.base import StageContext
from stages.images import Placement, letterbox
from stages.masks.settings import MasksSettings
from stages.masks.stage import Masks
from tests.conftest import ROOT, Cli, Finished
from tests.faults.test_disk import nobody, open_to_all
from tests.integration.pipelines import QUICK, add_row, committed, copy_source, digests, with_proposals
from tests.unit.manifests.pictures import chunk, encode, image_of, noise, png, put, read
from tests.unit.manifests.test_inventory import NAMES
from tests.unit.manifests.test_pixels import retagged

HEADER = ("file", "label", "split", "group", "mask")
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Study:
    """A source folder, with labels.csv or not, and the work folder that its runs write to."""

    cli: Cli
    source: Path
    work: Path
    settings: tuple[str, ...] = QUICK

    @property
    def dataset(self) -> Path:
        return self.work / "d"

    def ingest(self, *more: object) -> Finished:
        labels = self.source / "labels.csv"
        listed = ("--labels", labels) if labels.exists() else ()
        return self.cli("ingest", self.source, "--dataset", "d", *listed, "--workdir", self.work, *more)

    def run(self, *more: object) -> Finished:
        return self.cli("run", "--workdir", self.work, "--cluster", "inline", *self.settings, *more)

    def rows(self, drop: int = 0) -> tuple[ImageRow, ...]:
        paths = DatasetPaths(self.dataset)
        return load_rows(paths, load_drops(paths)[drop])

    def array(self, stage: str, name: str) -> NDArray[Any]:
        """An array of the only store of a stage in drop-001; rows without a result hold the fill value."""
        (store,) = (self.dataset / "stages" / stage).glob("*/drop-001/data.zarr")
        return np.asarray(zarr.open_group(store, mode="r")[name])


def write_labels(source: Path, rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Write labels.csv: file, label, split and mask of each image."""
    with (source / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([HEADER, *((file, label, split, "", mask) for file, label, split, mask in rows)])


# Input that changes between stages, and between a killed run and its resume.

EDITED = "images/train/round/000.png"


def uncompressed(file: Path, pixel: int | None = None) -> None:
    """Save a picture anew so that its size in bytes does not depend on its pixels; one pixel may be set."""
    with Image.open(file) as image:
        pixels = np.array(image)
    if pixel is not None:
        pixels[0, 0] = pixel
    Image.fromarray(pixels).save(file, compress_level=0)


@pytest.fixture(scope="module")
def masked(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of six chunks that was run as far as its masks."""
    root = tmp_path_factory.mktemp("masked")
    study = Study(cli, copy_source(phantom_folder, root / "source"), root / "work")
    uncompressed(study.source / EDITED)
    assert study.ingest("--chunk-items", 3).code == 0
    assert study.run("--stage", "masks").code == 0
    return study


@pytest.fixture(scope="module")
def undisturbed(masked: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The same study, run as far as its embeddings, which nobody disturbed."""
    work = tmp_path_factory.mktemp("undisturbed") / "work"
    shutil.copytree(masked.work, work)
    study = replace(masked, work=work)
    assert study.run("--stage", "embeddings").code == 0
    return study


@pytest.mark.slow
def test_file_edited_between_two_stages_is_a_failed_row_and_touches_no_other(
    masked: Study, undisturbed: Study, tmp_path: Path
) -> None:
    shutil.copytree(masked.work, tmp_path / "work")
    study = replace(masked, source=copy_source(masked.source, tmp_path / "source"), work=tmp_path / "work")
    file = study.source / EDITED
    before = file.stat()
    uncompressed(file, pixel=255)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    masks = digests(study.dataset)
    done = study.run("--stage", "embeddings", "--source", study.source, "--json")
    assert (done.code, done.json["failed_images"]) == (3, {"changed": 1}), done.err
    assert {store: files for store, files in digests(study.dataset).items() if store in masks} == masks
    edited = np.array([r.path == EDITED for r in study.rows()])
    assert study.array("embeddings", "status").tolist() == np.where(edited, Status.FAILED, Status.OK).tolist()
    vectors = study.array("embeddings", "image")
    assert np.isnan(vectors[edited]).all()
    np.testing.assert_allclose(vectors[~edited], undisturbed.array("embeddings", "image")[~edited], atol=1e-4)


DEADLY = """
import os, signal
from pipeline import execute
publish = execute.publish_chunk
def deadly(store, chunk, *rest):
    won = publish(store, chunk, *rest)
    if chunk.index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return won
execute.publish_chunk = deadly
from pipeline.cli import main
main()
"""
"""A run that is killed after its second commit."""


def killed_after_two_chunks(study: Study) -> None:
    """Start a run that SIGKILLs its process as soon as two chunks of masks are committed."""
    arguments = ("run", "--workdir", str(study.work), "--cluster", "inline", *QUICK, "--stage", "embeddings")
    done = subprocess.run([sys.executable, "-c", DEADLY, *arguments], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
def test_killed_run_goes_on_over_added_removed_and_renamed_files(undisturbed: Study, tmp_path: Path) -> None:
    study = replace(undisturbed, source=copy_source(undisturbed.source, tmp_path / "source"), work=tmp_path / "work")
    study.ingest("--chunk-items", 3)
    killed_after_two_chunks(study)
    done_before = digests(study.dataset)
    assert len(done_before) == 2
    rows = study.rows()
    removed, renamed = rows[-1], rows[-2]
    listed = (study.source / "labels.csv").read_text().replace(renamed.path, "images/aaa.png")
    (study.source / "labels.csv").write_text("".join(x for x in listed.splitlines(True) if removed.path not in x))
    (study.source / removed.path).unlink()
    (study.source / renamed.path).rename(study.source / "images" / "aaa.png")
    put(study.source, "images/new.png", encode(noise(3, 64, 64)))
    add_row(study.source, study.source / "images" / "new.png", "round", "train", "")
    ingested = study.ingest("--json").json
    assert (ingested["new"], ingested["renamed"], ingested["vanished"]) == (1, 1, 1)
    done = study.run("--stage", "embeddings", "--json")
    assert (done.code, done.json["failed_images"]) == (3, {"file.missing": 1}), done.err
    assert study.rows() == rows
    now, expected = digests(study.dataset), digests(undisturbed.dataset)
    assert {unit: now[unit] for unit in done_before} == done_before
    kept = {unit.rsplit("/", 1)[1] for unit in done_before}
    again = [unit.rsplit("/", 1)[1] for unit in committed(study.dataset) if unit.startswith("masks[supplied]/drop-001")]
    assert (len(again), kept & set(again)) == (6 - len(kept), set())
    assert {u: f for u, f in now.items() if "drop-001" in u and not u.endswith("000005")} == {
        u: f for u, f in expected.items() if not u.endswith("000005")
    }
    for stage, name in (("masks", "mask"), ("embeddings", "image")):
        np.testing.assert_array_equal(study.array(stage, name)[:-1], undisturbed.array(stage, name)[:-1])
    assert study.array("embeddings", "status").tolist() == [Status.OK] * 17 + [Status.FAILED]


def test_order_in_which_a_file_system_lists_a_folder_changes_no_row(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names = phantom_folder / "images", Path.iterdir
    found = []
    for number in range(3):
        rng = np.random.default_rng(number)
        monkeypatch.setattr(Path, "iterdir", lambda self, rng=rng: iter(rng.permutation(list(names(self)))))
        paths = DatasetPaths(tmp_path / str(number))
        ingest(paths, folder, IngestOptions(dataset="d"))
        found.append(load_rows(paths, load_drops(paths)[0]))
    assert found[0] == found[1] == found[2]


# Images that show nothing, or are hardly images, through the real models.

FLAT: dict[str, NDArray[np.uint8]] = {
    "black": np.zeros((48, 64), np.uint8),
    "white": np.full((48, 64), 255, np.uint8),
    "constant": np.full((64, 48), 97, np.uint8),
    "noise": np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8),
}
THIN: dict[str, NDArray[np.uint8]] = {
    name: np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    for name, shape in {"1x1": (1, 1), "1x4000": (4000, 1), "4000x1": (1, 4000), "40000x2": (2, 40000)}.items()
}


@pytest.fixture(scope="module")
def extremes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training and a test image of each extreme kind, with a mask of its left or upper half; two classes."""
    source, rows = tmp_path_factory.mktemp("extremes"), []
    for label, pictures in (("flat", FLAT), ("thin", THIN)):
        for name, pixels in pictures.items():
            mask = np.zeros_like(pixels)
            mask[: -(-len(mask) // 2) if mask.shape[1] == 1 else None, : -(-mask.shape[1] // 2)] = 255
            put(source, f"masks/{name}.png", encode(mask))
            for split, kind in (("train", "PNG"), ("test", "BMP")):
                file = f"{split}-{name}.{kind.lower()}"
                put(source, file, encode(pixels, kind))
                rows.append((file, label, split, f"masks/{name}.png"))
    write_labels(source, rows)
    return source


@pytest.fixture(scope="module", params=["supplied", "union"])
def extreme_study(
    request: pytest.FixtureRequest, cli: Cli, extremes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    """All stages on the extreme images, with supplied masks and with those of the embedded SAM2."""
    settings = QUICK if request.param == "supplied" else with_proposals()
    study = Study(cli, extremes, tmp_path_factory.mktemp("work"), settings)
    assert study.ingest().code == 0
    done = study.run("--json")
    assert (done.code, done.json["failed_images"]) == (0, {}), done.err
    return study


@pytest.mark.slow
def test_flat_and_thin_images_have_a_result_and_finite_vectors(extreme_study: Study) -> None:
    for stage in ("masks", "embeddings"):
        assert set(extreme_study.array(stage, "status")) <= {Status.OK, Status.FALLBACK}
    vectors = extreme_study.array("embeddings", "image")
    assert vectors.shape[0] == 16
    assert np.isfinite(vectors).all()
    assert (np.linalg.norm(vectors, axis=-1) > 1e-3).all()


@pytest.mark.slow
def test_mask_of_a_flat_or_thin_image_lies_in_the_image_and_is_not_empty(extreme_study: Study) -> None:
    masks, placements = extreme_study.array("masks", "mask"), extreme_study.array("masks", "placement")
    for item, mask, stored in zip(extreme_study.rows(), masks, placements, strict=True):
        whole, placement = letterbox(np.ones((item.height, item.width), bool), mask.shape[0])
        assert Placement.of(stored) == placement, item.path
        assert mask.any(), item.path
        assert not (mask & ~whole).any(), item.path


@pytest.mark.slow
def test_black_white_and_thin_images_are_counted_and_scored_like_others(extreme_study: Study) -> None:
    status = extreme_study.cli("status", "--workdir", extreme_study.work, "--json", *extreme_study.settings).json
    counted = [stage["images"] for stage in status if stage["images"]]
    assert len(counted) >= 2
    for images in counted:
        assert set(images) <= {"ok", "fallback"}
        assert sum(images.values()) == 16
    found = list(extreme_study.dataset.rglob("original-100-0/predictions.csv"))
    (answers,) = (list(csv.DictReader(file.read_text().splitlines())) for file in found)
    assert len(answers) == 8
    assert all(np.isfinite(float(answer["p_flat"])) for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("extreme_study", ["supplied"], indirect=True)
def test_supplied_half_of_a_flat_or_thin_image_is_half_of_it(extreme_study: Study) -> None:
    areas = extreme_study.array("masks", "area_fraction")
    for item, area in zip(extreme_study.rows(), areas, strict=True):
        assert area == pytest.approx(1 if item.width * item.height == 1 else 0.5, abs=0.01), item.path


# What is no file, may not be read, or promises more than memory holds.


def header_of(kind: str, side: int) -> bytes:
    """A file whose header claims a square of this side, and that holds next to nothing."""
    data = encode(Image.new("L", (1, 1)), kind)
    if kind == "PPM":
        return data.replace(b"1 1", b"%d %d" % (side, side))
    if kind == "TIFF":
        width, height = (data.index(struct.pack("<HHII", tag, 4, 1, 1)) + 8 for tag in (256, 257))
        return with_number(with_number(data, width, "<I", side), height, "<I", side)
    position, code = {"BMP": (18, "<i"), "GIF": (6, "<H"), "JPEG": (data.find(b"\xff\xc0") + 5, ">H")}[kind]
    return with_number(with_number(data, position, code, side), position + struct.calcsize(code), code, side)


def with_number(data: bytes, position: int, code: str, value: int) -> bytes:
    return data[:position] + struct.pack(code, value) + data[position + struct.calcsize(code) :]


def frame_of(side: int) -> bytes:
    """A GIF of one pixel whose only frame claims a square of this side."""
    data = encode(Image.new("L", (1, 1)), "GIF")
    position = data.rindex(b",\0\0\0\0\1\0\1\0") + 5
    return with_number(with_number(data, position, "<H", side), position + 2, "<H", side)


def swollen(name: bytes, head: bytes) -> bytes:
    """A PNG of one pixel with a chunk beside it that unpacks to 200 MB."""
    data = png((1, 1), data=bytes(4))
    return data[:33] + chunk(name, head + zlib.compress(bytes(200_000_000))) + data[33:]


BOMBS: dict[str, Callable[[], bytes]] = {
    "just.png": lambda: png((10_000, 10_000), 1, 0, bytes(10_000 * 1251)),
    "huge.png": lambda: png((20_000, 20_000), 1, 0, bytes(20_000 * 2501)),
    "huge.tif": lambda: header_of("TIFF", 60_000),
    "huge.gif": lambda: header_of("GIF", 60_000),
    "frame.gif": lambda: frame_of(60_000),
    "huge.bmp": lambda: header_of("BMP", 60_000),
    "huge.jpg": lambda: header_of("JPEG", 60_000),
    "huge.pgm": lambda: header_of("PPM", 60_000),
}
CHUNKS: dict[str, Callable[[], bytes]] = {
    "text.png": lambda: swollen(b"zTXt", b"a\0\0"),
    "profile.png": lambda: swollen(b"iCCP", b"a\0\0"),
}
IN_LITTLE_MEMORY = """
import json, re, resource, sys
from pathlib import Path
from manifests.errors import ReadError
from manifests.readers import ImageSource, probe
from tests.unit.manifests.pictures import row

MIB = 1 << 20
folder = Path(sys.argv[1])

def told(action):
    try:
        action()
    except ReadError as error:
        return error.reason
    return "read"

def size(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def look(name):
    data = (folder / name).read_bytes()
    item = row(name, data, mask_path=name, mask_sha256=row(name, data).sha256, width=1, height=1)
    source = ImageSource(folder)
    return [told(lambda: probe(folder / name)), told(lambda: source.read(item)), told(lambda: source.read_mask(item))]

for suffix in ("png", "tif", "gif", "bmp", "jpg", "pgm"):
    look("good." + suffix)
before = size("VmHWM")
resource.setrlimit(resource.RLIMIT_AS, (size("VmSize") + 64 * MIB,) * 2)
try:
    bytearray(80 * MIB)
except MemoryError:
    print(json.dumps({name: look(name) for name in sys.argv[2:]}), (size("VmHWM") - before) // MIB)
"""


def looked_at(folder: Path, files: dict[str, Callable[[], bytes]]) -> tuple[dict[str, list[str]], int]:
    """What a process that may take 64 MiB more says of each file as header, image and mask; MiB that it took."""
    for name, make in files.items():
        put(folder, name, make())
    for kind, suffix in (("PNG",) * 2, ("TIFF", "tif"), ("GIF",) * 2, ("BMP",) * 2, ("JPEG", "jpg"), ("PPM", "pgm")):
        put(folder, f"good.{suffix.lower()}", encode(Image.new("L", (1, 1)), kind))
    arguments = [sys.executable, "-c", IN_LITTLE_MEMORY, str(folder), *files]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found, _, mib = done.stdout.rpartition(" ")
    return json.loads(found), int(mib)


def test_bomb_of_every_format_is_refused_as_image_and_as_mask_in_little_memory(tmp_path: Path) -> None:
    found, mib = looked_at(tmp_path, BOMBS)
    assert found == {name: ["read", "decode.too_large", "decode.too_large"] for name in BOMBS}
    assert mib < 32


def test_chunk_that_swells_beside_the_pixels_is_refused_in_little_memory(tmp_path: Path) -> None:
    found, mib = looked_at(tmp_path, CHUNKS)
    assert found == {name: ["decode.unreadable"] * 3 for name in CHUNKS}
    assert mib < 32


def test_limit_is_that_of_pillow_so_that_ten_thousand_squared_is_refused() -> None:
    assert MAX_PIXELS == ImageSource(Path()).max_pixels == 89_478_485 < 10_000**2


@pytest.mark.slow
def test_folder_dead_link_and_bombs_are_rows_with_reasons_and_the_run_goes_on(
    cli: Cli, phantom_folder: Path, tmp_path: Path
) -> None:
    study = Study(cli, copy_source(phantom_folder, tmp_path / "source"), tmp_path / "work")
    (study.source / "x.png").mkdir()
    put(study.source, "target.png", 1)
    (study.source / "link.png").symlink_to("target.png")
    for name in ("just.png", "huge.gif", "huge.tif"):
        put(study.source, name, BOMBS[name]())
    put(study.source, "good.png", encode(noise(2, 64, 64)))
    for name in ("x.png", "link.png", "huge.gif", "huge.tif", "good.png"):
        mask = "just.png" if name == "good.png" else ""
        add_row(study.source, study.source / name, "round", "train", mask)
    ingested = study.ingest("--json")
    assert ingested.code == 0, ingested.err
    (study.source / "target.png").unlink()
    done = study.run("--json")
    assert done.code == 3, done.err
    assert done.json["failed_images"] == {"file.irregular": 1, "file.missing": 1, "decode.too_large": 3}
    assert done.json["committed"]["probes[supplied]"] == 16
    assert "Traceback" not in done.err


@pytest.mark.parametrize("listed", [False, True])
def test_link_to_nothing_is_a_row_of_the_inventory(tmp_path: Path, listed: bool) -> None:
    source = tmp_path / "source"
    put(source, "a/1.png", 1)
    (source / "a/2.png").symlink_to("nowhere.png")
    if listed:
        write_labels(source, [("a/1.png", "a", "train", ""), ("a/2.png", "a", "train", "")])
    paths = DatasetPaths(tmp_path / "work")
    report = ingest(paths, source, IngestOptions(dataset="d", labels=source / "labels.csv" if listed else None))
    assert report.audit is not None
    assert list(report.audit.unreadable.values()) == ["file.missing"]


@pytest.fixture
def forbidden(tmp_path: Path) -> Path:
    """Two good images, one that only its owner's superuser may read, and one whose mask is like that."""
    source, work = tmp_path / "source", tmp_path / "work"
    for number in range(4):
        put(source, f"{number}.png", number)
    put(source, "mask.png", encode(np.eye(6, 9, dtype=np.uint8)))
    put(source, "secret.png", encode(np.eye(6, 9, dtype=np.uint8)))
    masks = ["mask.png", "mask.png", "mask.png", "secret.png"]
    write_labels(source, [(f"{n}.png", "a", "train", mask) for n, mask in enumerate(masks)])
    for name in ("1.png", "secret.png"):
        (source / name).chmod(0)
    work.mkdir()
    if os.geteuid() == 0:
        os.chown(work, 65534, -1)
    open_to_all(tmp_path)
    source.chmod(0o755)
    # What Python imports late must be there before: nobody may not be able to read the interpreter's own files.
    ingest(DatasetPaths(tmp_path / "first"), source, IngestOptions(dataset="d", labels=source / "labels.csv"))
    return source


def test_file_that_this_user_may_not_read_is_a_row_with_its_reason(
    forbidden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = DatasetPaths(tmp_path / "work" / "d")
    read_salt()  # as root, so that what Python imports for it is there
    monkeypatch.setenv("MEDFOCUS_SALT_FILE", str(tmp_path / "work" / "salt"))
    with nobody():
        report = ingest(paths, forbidden, IngestOptions(dataset="d", labels=forbidden / "labels.csv"))
    (forbidden / "2.png").chmod(0)
    rows = {item.path: item for item in load_rows(paths, load_drops(paths)[0])}
    assert (rows["1.png"].sha256, rows["1.png"].width) == ("", 0)
    assert report.audit is not None
    assert report.audit.unreadable == {rows["1.png"].image_id: "file.permission"}
    source = Workspace(paths, load_config()).image_source("drop-001")
    stage = Masks(MasksSettings(policy="supplied", canvas_px=64), StageContext())
    with nobody():
        result = stage.process([rows[f"{n}.png"] for n in range(4)], source, {})
    reasons = [item.reason for item in result.items]
    assert reasons == ["", "file.permission", "file.permission", "file.permission"]
    assert [("mask" in item.detail) for item in result.items] == [False, False, False, True]
    assert not any(str(tmp_path) in item.detail for item in result.items)


# Names that break shells, CSV files and spreadsheets.

CLASSES = ("-x", "=1+1", "new\nline", "q'\"uote", "$(id); `id` & %s", "e\u0301 " + "y" * 240)


@pytest.fixture
def strange(phantom_folder: Path, tmp_path: Path) -> Path:
    """Six classes of two training and one test phantom, all with hostile names."""
    source = tmp_path / "source"
    files = sorted((phantom_folder / "images").rglob("*.png"))
    assert len(files) == 3 * len(CLASSES)
    for number, file in enumerate(files):
        split = ("train", "train", "test")[number % 3]
        put(source, f"{split}/{CLASSES[number // 3]}/{NAMES[number % len(NAMES)]}", file.read_bytes())
    return source


@pytest.mark.slow
def test_strange_file_and_class_names_go_through_the_whole_study(cli: Cli, strange: Path, tmp_path: Path) -> None:
    study = Study(cli, strange, tmp_path / "work")
    assert study.ingest().code == 0
    done = study.run("--json", "--set", "masks.policy=none")
    assert (done.code, done.json["failed_images"]) == (0, {}), done.err
    expected = {normalize("NFC", name) for name in CLASSES}
    assert {item.path for item in study.rows()} == {p.relative_to(strange).as_posix() for p in strange.rglob("*.png")}
    with next(study.dataset.rglob("original-100-0/predictions.csv")).open(newline="", encoding="utf-8") as stream:
        answers = list(csv.DictReader(stream))
    assert {answer["label"].removeprefix("'") for answer in answers} == expected
    assert {name.removeprefix("p_") for name in answers[0] if name.startswith("p_")} == expected
    assert {item.name for item in tmp_path.iterdir()} == {"source", "work"}


def test_csv_of_strange_names_gives_the_rows_and_masks_of_the_folders(strange: Path, tmp_path: Path) -> None:
    files = sorted(path.relative_to(strange).as_posix() for path in strange.rglob("*.png"))
    folders, table = DatasetPaths(tmp_path / "folders"), DatasetPaths(tmp_path / "table")
    ingest(folders, strange, IngestOptions(dataset="d"))
    write_labels(strange, [(f, f.split("/")[1], f.split("/")[0], f) for f in files])
    ingest(table, strange, IngestOptions(dataset="d", labels=strange / "labels.csv"))
    rows = load_rows(table, load_drops(table)[0])
    assert tuple(replace(r, mask_path="", mask_sha256="") for r in rows) == load_rows(folders, load_drops(folders)[0])
    for item in rows:
        assert ImageSource(strange).read_mask(item).shape == ImageSource(strange).read(item).shape[:2]


# Pixel formats and positions.


def flat_jpeg(samples: Sequence[int], transform: int | None) -> bytes:
    """A JPEG of 8 x 8 px of one colour, written bit by bit from its stored samples; `transform` is that of Adobe."""
    bits = ""
    for sample in samples:
        level = sample - 128  # the quantiser of 8 makes the coefficient the level itself
        size = abs(level).bit_length()
        bits += f"{size:04b}" + (f"{level if level > 0 else level + (1 << size) - 1:0{size}b}" if size else "") + "0"
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    ids = range(1, len(samples) + 1)
    parts = [(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))] if transform is not None else []
    parts += [
        (0xDB, bytes([0]) + bytes([8] * 64)),
        (0xC0, bytes([8, 0, 8, 0, 8, len(samples)]) + b"".join(bytes([i, 0x11, 0]) for i in ids)),
        (0xC4, bytes([0x00, 0, 0, 0, 9]) + bytes(12) + bytes(range(9))),  # nine sizes of four bits
        (0xC4, bytes([0x10, 1]) + bytes(15) + bytes([0])),  # one code of one bit: end of block
        (0xDA, bytes([len(samples)]) + b"".join(bytes([i, 0]) for i in ids) + bytes([0, 63, 0])),
    ]
    body = b"".join(bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data for marker, data in parts)
    return b"\xff\xd8" + body + scan + b"\xff\xd9"


@pytest.mark.parametrize(
    ("samples", "transform", "expected", "codes"),
    [
        pytest.param((200,), None, (200, 200, 200), "gray", id="gray"),
        pytest.param((76, 85, 255), None, (254, 0, 0), "", id="YCbCr"),
        pytest.param((76, 85, 255), 1, (254, 0, 0), "", id="YCbCr of Adobe"),
        pytest.param((10, 200, 90), 0, (10, 200, 90), "", id="RGB of Adobe"),
        pytest.param((0, 255, 255, 204), 0, (0, 204, 204), "cmyk", id="CMYK, whose 0 is full ink"),
        pytest.param((255, 255, 255, 0), 0, (0, 0, 0), "cmyk", id="CMYK black"),
        pytest.param((76, 85, 255, 204), 2, (0, 204, 204), "cmyk", id="YCCK"),
    ],
)
def test_each_colour_space_of_jpeg_has_its_golden_colour(
    tmp_path: Path, samples: tuple[int, ...], transform: int | None, expected: tuple[int, ...], codes: str
) -> None:
    rgb = read(tmp_path, flat_jpeg(samples, transform), "a.jpg")
    assert rgb.shape == (8, 8, 3)
    assert np.abs(rgb.astype(int) - expected).max() <= 2
    assert probe(tmp_path / "a.jpg").transforms == codes


def test_premultiplied_tiff_over_black_is_the_colour_that_is_stored(tmp_path: Path) -> None:
    stored = [(51, 2, 0, 51), (200, 100, 50, 255), (60, 120, 7, 128), (9, 9, 9, 0)]
    rgb = read(tmp_path, retagged(encode(image_of("RGBA", stored), "TIFF"), 338, 1), "a.tif")
    expected = np.array([*(pixel[:3] for pixel in stored[:3]), (0, 0, 0)])
    assert np.abs(rgb[0].astype(int) - expected).max() <= 1
    assert probe(tmp_path / "a.tif").transforms == "alpha-black"


AS_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera that was held so stores an upright picture."""


def stored_as(picture: NDArray[np.uint8], orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(Image.fromarray(picture).transpose(AS_STORED[orientation]), kind, exif=exif)


@pytest.mark.slow
def test_turned_images_with_turned_masks_give_the_masks_and_vectors_of_the_upright_pair(
    cli: Cli, tmp_path: Path
) -> None:
    study = Study(cli, tmp_path / "source", tmp_path / "work")
    picture, mask = noise(5, 60, 90), np.zeros((60, 90), np.uint8)
    mask[5:40, 10:30], mask[30:40, 30:70] = 255, 255
    put(study.source, "upright.png", encode(picture))
    put(study.source, "masks/upright.png", encode(mask))
    rows = [("upright.png", "a", "train", "masks/upright.png")]
    for orientation in AS_STORED:
        kind, of_mask = ("PNG", "TIFF") if orientation % 2 else ("TIFF", "PNG")
        name = f"{orientation}.{kind.lower()}"
        put(study.source, name, stored_as(picture, orientation, kind))
        put(study.source, f"masks/{orientation}.{of_mask.lower()}", stored_as(mask, orientation, of_mask))
        rows.append((name, "a", "train", f"masks/{orientation}.{of_mask.lower()}"))
    put(study.source, "mixed.png", stored_as(picture, 6, "PNG"))
    write_labels(study.source, [*rows, ("mixed.png", "a", "train", "masks/upright.png")])
    assert study.ingest().code == 0
    assert study.run("--stage", "embeddings").code == 0
    paths = [item.path for item in study.rows()]
    upright = paths.index("upright.png")
    for name in ("mask", "masked_image", "placement"):
        array = study.array("masks", name)
        for path, values in zip(paths, array, strict=True):
            np.testing.assert_array_equal(values, array[upright], err_msg=f"{name} of {path}")
    vectors = study.array("embeddings", "image")
    np.testing.assert_allclose(vectors, np.broadcast_to(vectors[upright], vectors.shape), atol=1e-4)
    areas = study.array("masks", "area_fraction")
    assert areas[upright] == pytest.approx((mask > 0).mean(), abs=0.01)
    assert study.array("masks", "status").tolist() == [Status.OK] * len(paths)


# One picture in two formats and two splits.


@pytest.mark.slow
def test_one_picture_as_png_in_train_and_bmp_in_test_is_flagged_and_refused_when_strict(
    cli: Cli, phantom_folder: Path, tmp_path: Path
) -> None:
    study = Study(cli, copy_source(phantom_folder, tmp_path / "source"), tmp_path / "work")
    with Image.open(study.source / EDITED) as image:
        copy = put(study.source, "images/test/copy.bmp", encode(image, "BMP"))
    add_row(study.source, copy, "round", "test", "")
    strict = IngestOptions(dataset="d", labels=study.source / "labels.csv", strict=True)
    with pytest.raises(InventoryError, match="1 validation or test images share their file, picture or patient"):
        ingest(DatasetPaths(study.dataset), study.source, strict)
    assert "test images that are in train too: 1;" in study.ingest().out
    ids = {item.path: item.image_id for item in study.rows()}
    leak = ids["images/test/copy.bmp"]
    audit = load_audit(DatasetPaths(study.dataset), load_drops(DatasetPaths(study.dataset))[0])
    assert [(t.how, {t.image_id, t.other_id}) for t in audit.twins if t.how == "pixels"] == [
        ("pixels", {leak, ids[EDITED]})
    ]
    assert audit.leaks == (leak,)
    assert study.run("--set", "masks.policy=none").code == 0
    with next(study.dataset.rglob("original-100-0/predictions.csv")).open(newline="") as stream:
        flags = {answer["image_id"]: answer["flagged"] for answer in csv.DictReader(stream)}
    assert {image_id for image_id, flag in flags.items() if flag == "1"} == {leak}
