"""A study read in Python: arrays are those of the store, in the order of the rows, and what is not there is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import zarr

from manifests.errors import ConfigError, InventoryError, PipelineError, StoreError, UsageError
from pipeline import api
from tests.conftest import ROOT, Cli
from tests.integration.pipelines import QUICK, copy_source
from tests.integration.test_run import Study
from tests.unit.test_docs import blocks

pytestmark = pytest.mark.slow

SETTINGS = QUICK[1::2]
EXAMPLE = ROOT / "docs" / "examples" / "notebook.py"
OF_THE_DEMO = """overrides=['masks.compare=["supplied"]']"""


@pytest.fixture(scope="module")
def made(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Masks and embeddings of two drops, the second of one image that cannot be read."""
    root = tmp_path_factory.mktemp("api")
    study = Study(cli, root / "workdir" / "demo", copy_source(phantom_folder, root / "source"))
    assert study.ingest("--chunk-items", 7).code == 0
    (study.source / "images" / "broken.png").write_bytes(b"no picture")
    with (study.source / "labels.csv").open("a") as stream:
        stream.write("images/broken.png,round,test,,\n")
    assert study.ingest().code == 0
    assert study.run("--stage", "embeddings").code == 3
    return study


@pytest.fixture
def study(made: Study) -> api.OpenedStudy:
    return open_store(made)


def open_store(made: Study, more: Sequence[str] = ()) -> api.OpenedStudy:
    return api.open_store(made.work, "phantoms", overrides=(*SETTINGS, *more))


def test_rows_tell_id_label_split_and_what_became_of_each_image(study: api.OpenedStudy) -> None:
    rows = api.images(study)
    assert len(rows) == 19
    assert rows["masks[supplied]"].value_counts().to_dict() == {"ok": 18, "failed": 1}
    assert rows["image_id"].str.fullmatch("[0-9a-f]{16}").all()
    assert set(api.images(study, split="test")["split"]) == {"test"}
    assert study.classes == ("lobed", "round", "spiculated")
    assert not {"path", "mask_path", "sha256"} & set(rows.columns)


def test_masks_are_those_of_the_store_and_read_when_computed(made: Study, study: api.OpenedStudy) -> None:
    masks = api.masks(study)
    assert (masks.shape, masks.dtype) == ((19, 512, 512), np.dtype(bool))
    stores = [next((made.dataset / "stages" / "masks").glob(f"*/{d}/data.zarr")) for d in ("drop-001", "drop-002")]
    whole = np.concatenate([np.asarray(zarr.open_group(store, mode="r")["mask"]) for store in stores])
    assert (masks.compute() == whole).all()
    rows = api.images(study)
    chosen = np.flatnonzero(rows["split"] == "test")
    assert (api.masks(study, split="test").compute() == whole[chosen]).all()
    assert masks.numblocks == (4, 1, 1)


def test_native_masks_have_the_size_of_their_images(study: api.OpenedStudy) -> None:
    found = dict(api.native_masks(study, split="train"))
    rows = api.images(study, split="train")
    assert list(found) == list(rows["image_id"])
    assert {mask.shape for mask in found.values()} == {(256, 320)}


def test_embeddings_come_with_their_rows_and_nan_where_an_image_failed(study: api.OpenedStudy) -> None:
    vectors, rows = api.embeddings(study, "masked")
    assert len(vectors) == len(rows) == 19
    failed = (rows["embeddings[supplied]"] == "failed").to_numpy()
    assert np.isnan(vectors[failed]).all()
    assert np.linalg.norm(vectors[~failed], axis=1) == pytest.approx(1, abs=1e-5)
    train = api.embeddings(study, "masked", split="train")
    assert (train.vectors == vectors[rows["split"] == "train"]).all()


def test_withdrawn_image_is_in_no_answer(made: Study, tmp_path: Path) -> None:
    copy = made.copied(tmp_path / "work")
    image = str(api.images(open_store(copy))["image_id"][0])
    assert copy.cli("withdraw", "--image", image, "--reason", "test", "--workdir", copy.work).code == 0
    study = open_store(copy)
    assert image not in set(api.images(study)["image_id"])
    with pytest.raises(StoreError, match=r"1 of 4 chunks of masks\[supplied\] are not committed"):
        api.masks(study)
    assert copy.run("--stage", "embeddings").code == 3
    assert len(api.masks(study)) == len(api.embeddings(study).vectors) == 18


def test_chunk_that_is_damaged_is_refused_when_it_is_computed(made: Study, tmp_path: Path) -> None:
    copy = made.copied(tmp_path / "work")
    masks = api.masks(open_store(copy))
    shard = next((copy.dataset / "stages" / "masks").glob("*/drop-001/data.zarr/mask/c.1.0.0"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match=r"c\.1\.0\.0 is missing or not what was committed"):
        masks.compute()
    assert masks[:7].compute().any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda made: api.open_store(made.work, "other"), InventoryError, r"no data set 'other'.*known: phantoms"),
        (lambda made: open_store(made, ["masks.polcy=top1"]), ConfigError, "polcy"),
        (lambda made: api.images(open_store(made), split="dev"), UsageError, r"no split 'dev'.*train, val, test"),
        (lambda made: api.masks(open_store(made), policy="top1"), UsageError, r"no mask policy 'top1'; it has: supp"),
        (lambda made: api.embeddings(open_store(made), "roi"), UsageError, r"no view 'roi'; it has: original, masked"),
        (
            lambda made: api.masks(open_store(made, ["masks.policy=none"])),
            StoreError,
            r"4 of 4 chunks of masks\[none\] are not committed.*pipeline run --stage masks",
        ),
        (
            lambda made: api.embeddings(open_store(made, ['embeddings.views=["original", "masked", "roi"]']), "roi"),
            StoreError,
            r"4 of 4 chunks of embeddings\[supplied\].*pipeline run --stage embeddings",
        ),
    ],
)
def test_what_is_not_there_is_named(made: Study, call: object, error: type[PipelineError], message: str) -> None:
    with pytest.raises(error, match=message):
        call(made)  # type: ignore[operator]


def test_stage_that_has_not_run_is_absent_in_the_rows(made: Study) -> None:
    rows = api.images(open_store(made, ["masks.policy=none"]))
    assert set(rows["masks[none]"]) == {"absent"}


def test_predictions_come_as_rows_without_file_names_unless_asked_for(made: Study, tmp_path: Path) -> None:
    copy = made.copied(tmp_path / "work")
    assert copy.run("--stage", "probes", "--set", "masks.policy=none").code == 3
    study = open_store(copy, ["masks.policy=none", "cluster.kind=inline"])
    told = api.predict(study, made.source / "images" / "test")
    assert len(told) == 6
    assert set(told["predicted"]) <= set(study.classes)
    assert "file" not in told.columns
    assert api.predict(study, made.source / "images" / "test", names=True)["file"].is_unique


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_notebook_runs_on_a_study(made: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    program = EXAMPLE.read_text("utf-8")
    assert program.count(OF_THE_DEMO) == 1
    monkeypatch.chdir(made.work.parent.parent)
    exec(compile(program.replace(OF_THE_DEMO, f"overrides={SETTINGS}"), EXAMPLE.name, "exec"), {})
    assert Path("mask_areas.png").stat().st_size > 1000
    assert "of 7 test images right" in capsys.readouterr().out


def test_code_of_the_page_runs(made: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    program = "\n".join(blocks(ROOT / "docs" / "api.md", "python"))
    assert program.count(OF_THE_DEMO) == 1
    monkeypatch.chdir(made.work.parent.parent)
    exec(compile(program.replace(OF_THE_DEMO, f"overrides={SETTINGS}"), "api.md", "exec"), {})
    assert "(19, 512, 512)" in capsys.readouterr().out
