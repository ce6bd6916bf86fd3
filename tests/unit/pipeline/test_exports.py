"""What exports hold, of a small study without any model."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from manifests import disk
from manifests.commits import publish_chunk, read_rows, retire
from manifests.errors import InventoryError, StoreError, UsageError
from manifests.ingest import IngestOptions, ingest
from manifests.layout import DatasetPaths
from manifests.types import Chunk, ImageRow, ItemOutcome, Status, UnitResult
from manifests.withdrawals import withdraw
from pipeline.config import load_config
from pipeline.destinations import check_outside_sources
from pipeline.exporting.command import ExportOptions, do_export
from pipeline.mending import do_gc
from pipeline.plan import input_digests
from pipeline.predict import PredictOptions, do_predict
from pipeline.workspace import Workspace
from stages.base import empty_arrays, status_array
from stages.images import Placement, place, unletterbox
from tests.stores import Stopped, stop_at
from tests.unit.manifests.niftis import nifti
from tests.unit.pipeline.committed_study import commit_chunks, complete, ingested, reopened
from tests.unit.pipeline.files_of_scanners import CT, IN_THE_PATIENT, US_MANY, commit_masks, dicom_file

# Of pycocotools' decoder under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

Export = Callable[..., Path]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, phantom_folder: Path) -> Workspace:
    """Masks of both policies are committed, nothing else; tests add results of other settings."""
    work = tmp_path_factory.mktemp("exports")
    return complete(ingested(work, phantom_folder), "masks[supplied]", "masks[none]")


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Masks of DICOM files, one of them of frames that give an object each, and of two volumes."""
    root = tmp_path_factory.mktemp("scanned")
    source = root / "source"
    source.mkdir()
    dicom_file(source / "slice.dcm", CT, (37, 91), **IN_THE_PATIENT)
    dicom_file(source / "cine.dcm", US_MANY, (3, 21, 40))
    for number in range(2):
        voxels = np.random.default_rng(number).random((9, 12, 4)).astype(np.float32)
        (source / f"{number}.nii").write_bytes(nifti(voxels))
    paths = DatasetPaths(root / "work" / "scans")
    ingest(paths, source, IngestOptions(dataset="scans", chunk_items=3))
    workspace = Workspace(paths, load_config(overrides=("canvas_px=64", "masks.policy=supplied")))
    commit_masks(workspace, "masks[supplied]")
    return workspace


@pytest.fixture
def export(study: Workspace, scanned: Workspace, tmp_path: Path) -> Export:
    """Export into a folder of the test's and return it."""

    def call(kind: str, stage: str | None = None, split: str | None = None, name: str = "out") -> Path:
        workspace = scanned if kind in ("dicom-seg", "nifti") else study
        do_export(workspace, kind, ExportOptions(tmp_path / name, stage, split), as_json=False)
        return tmp_path / name

    return call


def masks_of(workspace: Workspace, key: str = "masks[supplied]") -> dict[str, tuple[ImageRow, int, NDArray[np.bool_]]]:
    """Row, status and native mask of every image, straight from the store."""
    found = {}
    node = workspace.nodes[key]
    for chunk in workspace.drops[0].chunks():
        arrays = read_rows(workspace.store(node, chunk.drop), chunk)
        for index, row in enumerate(workspace.chunk_rows(chunk)):
            placement = Placement.of(arrays["placement"][index])
            mask = unletterbox(arrays["mask"][index], placement, row.height, row.width)
            found[row.image_id] = (row, int(arrays["status"][index]), mask)
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def index_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "index.csv").open(newline="") as stream:
        return {line["image_id"]: line for line in csv.DictReader(stream)}


def test_coco_gives_the_committed_masks_pixel_by_pixel(study: Workspace, export: Export) -> None:
    opened = COCO(export("coco") / "instances.json")
    expected = {name: found for name, found in masks_of(study).items() if found[1] == Status.OK}
    assert {image["file_name"] for image in opened.imgs.values()} == set(expected)
    for annotation in opened.anns.values():
        image = opened.imgs[annotation["image_id"]]
        row, _, mask = expected[image["file_name"]]
        assert (image["width"], image["height"], image["split"]) == (row.width, row.height, row.split.value)
        assert np.array_equal(opened.annToMask(annotation).astype(bool), mask)
        assert annotation["area"] == mask.sum()
        ys, xs = np.nonzero(mask)
        assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert opened.cats[annotation["category_id"]]["name"] == row.label
    assert len(opened.anns) == len(expected) > 0


def test_png_masks_are_the_committed_ones_and_the_index_lists_every_image(study: Workspace, export: Export) -> None:
    out = export("png")
    lines = index_of(out)
    for name, (row, status, mask) in masks_of(study).items():
        with Image.open(out / lines[name]["file"]) as picture:
            assert picture.mode == "L"
            assert np.array_equal(np.asarray(picture), mask * np.uint8(255))
        assert lines[name] == {
            "image_id": name,
            "label": row.label,
            "split": row.split.value,
            "status": Status(status).name.lower(),
            "file": f"{name}.png",
        }
    assert len(lines) == 18


def test_another_policy_and_one_split_can_be_exported(study: Workspace, export: Export) -> None:
    lines = index_of(export("png", "masks[none]", "test"))
    assert {line["split"] for line in lines.values()} == {"test"}
    assert len(lines) == 6
    name = next(iter(lines))
    with Image.open(export("png", "masks[none]", "test") / f"{name}.png") as picture:
        assert np.asarray(picture).all()


def test_failed_image_has_no_file_and_is_listed(study: Workspace, export: Export, tmp_path: Path) -> None:
    workspace = reopened(study, "masks.min_area_fraction=0.002")
    node, gone = workspace.nodes["masks[supplied]"], workspace.rows("drop-001")[5]
    for chunk in workspace.drops[0].chunks():
        stage, source = workspace.map_stage(node), workspace.image_source(chunk.drop, (gone.image_id,))
        result = stage.process(workspace.chunk_rows(chunk), source, {})
        publish_chunk(workspace.store(node, chunk.drop), chunk, result, {"inputs": {}})
    do_export(workspace, "png", ExportOptions(tmp_path / "png"), as_json=False)
    line = index_of(tmp_path / "png")[gone.image_id]
    assert (line["status"], line["file"]) == ("failed", "")
    assert not (tmp_path / "png" / f"{gone.image_id}.png").exists()
    assert json.loads((tmp_path / "png" / "export.json").read_text())["counts"]["failed"] == 1


def test_proposals_are_annotations_with_scores(study: Workspace, tmp_path: Path) -> None:
    workspace = reopened(study, "masks.policy=union", "masks.compare=[]", "proposals.max_candidates=3")
    node = workspace.nodes["proposals"]
    for chunk in workspace.drops[0].chunks():
        publish_chunk(workspace.store(node, chunk.drop), chunk, two_candidates(workspace, chunk), {"inputs": {}})
    do_export(workspace, "coco", ExportOptions(tmp_path / "out", "proposals"), as_json=False)
    opened = COCO(tmp_path / "out" / "instances.json")
    assert (len(opened.imgs), len(opened.anns)) == (18, 36)
    annotation = opened.loadAnns(opened.getAnnIds(imgIds=[4]))[0]
    assert annotation["score"] == pytest.approx(0.5 * 0.75)
    assert annotation["stability"] == 0.75
    assert opened.loadCats(annotation["category_id"])[0]["name"] == "region"
    row = workspace.rows("drop-001")[3]
    assert coco_mask.decode(annotation["segmentation"]).shape == (row.height, row.width)


def two_candidates(workspace: Workspace, chunk: Chunk) -> UnitResult:
    """Two of at most three candidates an image: its middle, and its upper half."""
    rows = workspace.chunk_rows(chunk)
    items = tuple(ItemOutcome(row.row, row.image_id, Status.OK) for row in rows)
    specs = workspace.map_stage(workspace.nodes["proposals"]).outputs()
    arrays = {**empty_arrays(specs, len(rows)), "status": status_array(items)}
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 24:40, 24:40], masks[1, 12:32] = True, True
    for index, row in enumerate(rows):
        arrays["candidates"][index, :2] = np.packbits(masks, axis=-1)
        arrays["candidate_scores"][index, :2] = [[0.5, 0.75, 0.1, 0.0], [0.25, 0.5, 0.4, 0.5]]
        arrays["placement"][index] = place(row.height, row.width, 64).array()
    return UnitResult(arrays, items)


def test_parquet_reads_back_equal_and_says_which_model_made_the_vectors(study: Workspace, tmp_path: Path) -> None:
    workspace = complete(study, "embeddings[supplied]")
    do_export(workspace, "parquet", ExportOptions(tmp_path / "out"), as_json=False)
    file = pq.ParquetFile(tmp_path / "out" / "embeddings.parquet")
    assert file.num_row_groups == len(workspace.drops[0].chunks())
    table = file.read()
    node = workspace.nodes["embeddings[supplied]"]
    store = workspace.store(node, "drop-001")
    told = json.loads(table.schema.metadata[b"medfocus"])
    assert (told["card"], told["fingerprint"]) == (dict(store.attributes["card"]), workspace.fingerprint(node))
    stored = np.concatenate([read_rows(store, c, ["image"])["image"] for c in workspace.drops[0].chunks()])
    for number, view in enumerate(told["views"]):
        column = table.column(view).combine_chunks()
        assert np.array_equal(column.flatten().to_numpy().reshape(18, -1), stored[:, number], equal_nan=True)
    rows = workspace.rows("drop-001")
    for name in ("image_id", "row", "label", "split", "group_id"):
        assert table.column(name).to_pylist() == [getattr(row, name) for row in rows]


def test_vectors_of_an_image_that_failed_are_null(study: Workspace, tmp_path: Path) -> None:
    workspace = complete(reopened(study, "embeddings.resize=squash"), "masks[supplied]")
    node = workspace.nodes["embeddings[supplied]"]
    store = workspace.store(node, "drop-001")
    for chunk in workspace.drops[0].chunks():
        statuses = [Status.FAILED if row.row == 6 else Status.OK for row in workspace.chunk_rows(chunk)]
        rows = zip(workspace.chunk_rows(chunk), statuses, strict=True)
        items = tuple(
            ItemOutcome(row.row, row.image_id, status, "" if status == Status.OK else "upstream.failed")
            for row, status in rows
        )
        arrays = {**empty_arrays(store.specs, len(items)), "status": status_array(items)}
        publish_chunk(store, chunk, UnitResult(arrays, items), {"inputs": input_digests(workspace, node, chunk)})
    do_export(workspace, "parquet", ExportOptions(tmp_path / "out"), as_json=False)
    table = pq.read_table(tmp_path / "out" / "embeddings.parquet")
    assert [i for i, vector in enumerate(table["original"].to_pylist()) if vector is None] == [6]
    assert table["status"].to_pylist()[5:8] == ["ok", "failed", "ok"]


def test_repeated_export_writes_nothing_anew(export: Export) -> None:
    first = {name: (file.stat().st_ino) for name in ("png", "coco") for file in export(name, name=name).glob("*.*g")}
    assert first == {name: (f.stat().st_ino) for name in ("png", "coco") for f in export(name, name=name).glob("*.*g")}


@pytest.mark.parametrize(("kind", "stops"), [("png", 6), ("coco", 4), ("dicom-seg", 4), ("nifti", 3)])
def test_stopped_export_goes_on_to_the_same_bytes(
    kind: str, stops: int, export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = files_of(export(kind, name="whole"))
    for step in range(1, stops + 1):
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(Stopped):
                export(kind, name="stopped")
        half = {n: b for n, b in files_of(tmp_path / "stopped").items() if n in whole and n != "export.json"}
        assert half == {name: whole[name] for name in half}
    assert files_of(export(kind, name="stopped")) == whole


def stop_after(patch: pytest.MonkeyPatch, passes: int) -> None:
    """Stop at the so-many-th file that is whole and has no name yet."""
    seen: list[str] = []

    def checkpoint(step: str) -> None:
        seen.append(step)
        if len(seen) == passes:
            raise Stopped(step)

    patch.setattr(disk, "checkpoint", checkpoint)


def test_leftovers_of_a_kill_are_cleared_away(export: Export, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".instances.json.ab{disk.PARTIAL}").write_text("{")
    names = {path.name for path in export("coco").iterdir()}
    assert names == {"export.json", "instances.json"}


def test_folder_of_another_export_is_refused_and_left_alone(export: Export, tmp_path: Path) -> None:
    before = files_of(export("png"))
    for kind, stage, split in (("coco", None, None), ("png", "masks[none]", None), ("png", None, "test")):
        with pytest.raises(StoreError, match=r"holds another export: its (kind|stage|split) is"):
            export(kind, stage, split)
    assert files_of(tmp_path / "out") == before


def test_folder_with_other_files_is_refused(export: Export, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"holds other files, such as thesis\.tex"):
        export("png")


def test_incomplete_stage_is_refused_and_nothing_is_written(study: Workspace, tmp_path: Path) -> None:
    workspace = reopened(study, "masks.compositing=crop")
    commit_chunks(workspace, workspace.nodes["masks[supplied]"], only=(0, 2))
    with pytest.raises(InventoryError, match=r"3 units of masks\[supplied\].*pipeline run --stage masks"):
        do_export(workspace, "coco", ExportOptions(tmp_path / "out"), as_json=False)
    assert not (tmp_path / "out").exists()


def test_package_that_is_not_installed_is_told_with_its_extra(
    export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UsageError, match=r"needs pycocotools.*medfocus\[export\]"):
        export("coco")
    assert not (tmp_path / "out").exists()


def test_two_exports_into_one_folder_give_the_files_of_one(
    export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = files_of(export("coco", name="whole"))
    stop_at(monkeypatch, "partial", lambda: export("coco"))
    export("coco")
    assert files_of(tmp_path / "out") == whole


def test_split_without_images_gives_files_that_hold_none(export: Export) -> None:
    assert COCO(export("coco", split="val") / "instances.json").anns == {}


@pytest.mark.parametrize(
    ("kind", "stage", "split", "told"),
    [
        ("gif", None, None, "coco, png, parquet"),
        ("png", "embeddings", None, r"masks, masks\[supplied\], masks\[none\]"),
        ("png", None, "tests", "train, val, test"),
        ("provenance", "masks", None, "Leave --stage"),
    ],
)
def test_what_cannot_be_exported_is_told(export: Export, kind: str, stage: str, split: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        export(kind, stage, split)


def test_withdrawn_image_is_in_no_later_export_and_gc_takes_the_earlier_one(
    phantom_folder: Path, tmp_path: Path
) -> None:
    study = complete(ingested(tmp_path / "work", phantom_folder), "masks[supplied]")
    node, gone = study.nodes["masks[supplied]"], study.rows("drop-001")[0].image_id
    do_export(study, "png", ExportOptions(), as_json=False)
    (earlier,) = study.paths.exports.iterdir()
    withdraw(study.paths, "consent revoked", image_ids=(gone,))
    retire(study.root(node, "drop-001"), "000000")
    later = reopened(study)
    commit_chunks(later, later.nodes["masks[supplied]"], only=(0,))
    do_export(later, "png", ExportOptions(), as_json=False)
    (newer,) = set(study.paths.exports.iterdir()) - {earlier}
    assert gone in index_of(earlier)
    assert gone not in index_of(newer)
    assert not (newer / f"{gone}.png").exists()
    do_gc(study.paths, 0, delete=True, as_json=False)
    assert list(study.paths.exports.iterdir()) == [newer]


@pytest.mark.parametrize("kind", ["png", "provenance"])
def test_export_into_a_source_is_refused_before_anything_is_written(
    study: Workspace, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "link").symlink_to(study.drops[0].source_root)
    for source in (Path(study.drops[0].source_root), tmp_path / "link"):
        with pytest.raises(UsageError, match="lies in a source folder"):
            do_export(study, kind, ExportOptions(source / "out"), as_json=False)
        assert not (source / "out").exists()


def test_results_may_not_lie_where_predicted_images_or_a_mounted_source_are(study: Workspace, tmp_path: Path) -> None:
    check_outside_sources(study.paths, [None, tmp_path / "out"], tmp_path / "scans")
    with pytest.raises(UsageError, match="lies in a source folder"):
        check_outside_sources(study.paths, [None, tmp_path / "scans" / "out"], tmp_path / "scans")


@pytest.mark.parametrize("option", ["out", "overlay"])
def test_predictions_into_their_source_are_refused(study: Workspace, tmp_path: Path, option: str) -> None:
    options = PredictOptions(tmp_path, **{option: tmp_path / "new"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="lies in a source folder"):
        do_predict(study, options, as_json=False)
