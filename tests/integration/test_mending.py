"""Damage, failures whose cause is gone, and leftovers: found, named, and mended without computing anything else."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from manifests.commits import committed_units
from tests.conftest import Cli
from tests.integration.pipelines import QUICK, committed, copy_source, digests
from tests.integration.test_run import Study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def masked(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A quick study whose five chunks of masks and embeddings are committed."""
    root = tmp_path_factory.mktemp("mending")
    study = Study(cli, root / "work", copy_source(phantom_folder, root / "source"))
    assert study.ingest("--chunk-items", 4).code == 0
    done = study.run("--stage", "embeddings")
    assert done.code == 0, done.err
    return study


@pytest.fixture
def study(masked: Study, tmp_path: Path) -> Study:
    """A copy of that study."""
    shutil.copytree(masked.work, tmp_path / "work")
    return Study(masked.cli, tmp_path / "work", masked.source)


def masks_of(study: Study) -> Path:
    """Store of the masks."""
    return next((study.dataset / "stages" / "masks").glob("*/drop-001"))


def flip_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def mend(study: Study, command: str, *arguments: object) -> tuple[int, str]:
    done = study.cli(command, "--workdir", study.work, *arguments)
    return done.code, done.out + done.err


def test_repair_retires_the_damaged_unit_and_a_run_recomputes_it_alone(study: Study) -> None:
    before = digests(study.dataset)
    flip_byte(next((masks_of(study) / "data.zarr" / "mask").glob("c.2.*")))
    code, said = mend(study, "verify")
    assert (code, said.count("000002")) == (4, 1)
    assert "pipeline repair" in said
    code, said = mend(study, "repair", *QUICK)
    assert code == 0
    assert "drop-001: 000002 is pending again" in said
    assert committed_units(masks_of(study)) == ("000000", "000001", "000003", "000004")
    assert study.run("--stage", "masks").code == 0
    assert committed(study.dataset) == ["masks[supplied]/drop-001/000002"]
    assert mend(study, "verify")[0] == 0
    assert digests(study.dataset) == before


@pytest.mark.parametrize("record", [b"", b"not JSON", None])
def test_unit_whose_record_cannot_be_read_is_repaired(study: Study, record: bytes | None) -> None:
    file = masks_of(study) / "commits" / "000001" / "commit.json"
    file.unlink() if record is None else file.write_bytes(record)
    code, said = mend(study, "repair", "--json")
    assert code == 0, said
    assert [repair["retired"] for repair in json.loads(said)] == [["000001"]]
    assert "000001" not in committed_units(masks_of(study))


def test_unit_of_a_later_version_is_left_alone(study: Study) -> None:
    file = masks_of(study) / "commits" / "000001" / "commit.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), "schema_version": 99}))
    code, said = mend(study, "repair")
    assert code == 4
    assert "not repaired" in said
    assert "of version 99" in said
    assert "000001" in committed_units(masks_of(study))


@pytest.mark.parametrize("lost", ["zarr.json", "mask/zarr.json"])
def test_lost_metadata_come_back_byte_for_byte_and_retire_nothing(study: Study, lost: str) -> None:
    file = masks_of(study) / "data.zarr" / lost
    before = file.read_bytes()
    file.unlink()
    code, said = mend(study, "repair", *QUICK, "--json")
    assert code == 0, said
    assert [(r["restored"], r["retired"]) for r in json.loads(said)] == [([f"data.zarr/{lost}"], [])]
    assert file.read_bytes() == before


def test_deleted_array_is_recomputed(study: Study) -> None:
    before = digests(study.dataset)
    shutil.rmtree(masks_of(study) / "data.zarr" / "mask")
    assert mend(study, "repair", *QUICK)[0] == 0
    assert committed_units(masks_of(study)) == ()
    assert study.run("--stage", "embeddings").code == 0
    assert {unit.split("/")[0] for unit in committed(study.dataset)} == {"masks[supplied]"}
    assert digests(study.dataset) == before


def test_metadata_of_another_configuration_are_left_with_a_way_out(study: Study) -> None:
    (masks_of(study) / "data.zarr" / "zarr.json").write_text("{}")
    code, said = mend(study, "repair", *QUICK, "--set", "masks.compositing=crop")
    assert code == 4
    assert "belongs to another configuration. Give repair the --config" in said
    assert len(committed_units(masks_of(study))) == 5


def test_image_that_is_back_is_computed_after_retry(study: Study, tmp_path: Path) -> None:
    source = copy_source(study.source, tmp_path / "source")
    lossy = Study(study.cli, tmp_path / "lossy", source)
    lossy.ingest("--chunk-items", 4)
    image = source / "images" / "train" / "round" / "000.png"
    image.rename(tmp_path / "away.png")
    assert lossy.run("--stage", "embeddings").code == 3
    (tmp_path / "away.png").rename(image)
    assert lossy.run("--stage", "embeddings").code == 3
    code, said = mend(lossy, "retry", "--reason", "upstream.failed", *QUICK)
    assert (code, "Reasons here: file.missing (1 images)." in said) == (2, True)
    code, said = mend(lossy, "retry", "--reason", "file.missing", *QUICK)
    assert (code, said.split(": ")[0]) == (0, "1 images with file.missing")
    assert "2 chunks are pending again (1 of masks[supplied], 1 of embeddings[supplied])" in said
    assert lossy.run("--stage", "embeddings").code == 0
    assert len(committed(lossy.dataset)) == 2
    assert digests(lossy.dataset) == digests(study.dataset)


def test_retry_says_what_there_is_to_retry(study: Study) -> None:
    before = digests(study.dataset)
    code, said = mend(study, "retry", "--reason", "file.missing", *QUICK)
    assert (code, "nothing to retry" in said) == (0, True)
    code, said = mend(study, "retry", "--reason", "file.mising", *QUICK)
    assert (code, "No image has failed" in said) == (2, True)
    assert digests(study.dataset) == before


def test_gc_lists_old_leftovers_and_deletes_them_when_asked(study: Study) -> None:
    staging = masks_of(study) / "staging"
    old, young = staging / "000001-old", staging / "000002-young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "shard").write_bytes(b"1")
    torn, fresh = (study.dataset / "drops" / f".locations.json.{name}.partial" for name in ("0ld", "new"))
    torn.write_text("{")
    fresh.write_text("{")
    for path in (old / "shard", old, torn):
        os.utime(path, (time.time() - 8 * 86400,) * 2)
    code, said = mend(study, "gc")
    assert (code, old.is_dir(), "000001-old" in said, "000002-young" in said) == (0, True, True, False)
    assert mend(study, "gc", "--days", "9", "--delete")[0] == 0
    assert old.is_dir()
    assert mend(study, "gc", "--delete")[0] == 0
    assert [path.name for path in staging.iterdir()] == ["000002-young"]
    assert (torn.exists(), fresh.exists()) == (False, True)
