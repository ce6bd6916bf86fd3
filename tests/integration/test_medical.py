"""A study of volumes that were ingested with a window and a plane of their own, from masks to exports."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.conftest import Cli
from tests.integration.pipelines import QUICK

pytestmark = pytest.mark.slow

READING = ("--set", "reading.window=[100,200]", "--set", "reading.plane=coronal", "--set", "reading.every=2")
AFFINE = np.array([[-1.0, 0.1, 0, 5], [0.1, 1, 0, -3], [0, 0, 2, 1], [0, 0, 0, 1]])
SHAPE = (24, 6, 20)


@pytest.fixture(scope="module")
def work(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two volumes of each of two classes for training and one for testing, with masks, in chunks of five slices."""
    root = tmp_path_factory.mktemp("volumes")
    random = np.random.default_rng(0)
    for number, place in enumerate(("train/a", "train/a", "train/b", "train/b", "test/a", "test/b")):
        values = random.integers(0, 200, SHAPE).astype(np.int16)
        mask = np.zeros(SHAPE, np.uint8)
        mask[4:16, :, 5 : 9 + number] = 1
        folder = root / "source" / place
        folder.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, AFFINE), folder / f"{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask, AFFINE), folder / f"{number}_mask.nii.gz")
    done = cli("ingest", root / "source", "--dataset", "mri", "--workdir", root, "--chunk-items", 5, *READING)
    assert done.code == 0, done.err
    assert "18 images in 4 chunks" in done.out
    return root


def test_run_needs_not_be_told_again_how_images_are_read(cli: Cli, work: Path) -> None:
    for cluster in ("inline", "local"):
        done = cli("run", "--stage", "masks", "--workdir", work, "--cluster", cluster, "--workers", 2, *QUICK)
        assert done.code == 0, done.err
    done = cli("run", "--stage", "probes", "--workdir", work, "--cluster", "inline", *QUICK, *READING)
    assert done.code == 0, done.err


def test_run_that_asks_for_another_reading_is_refused(cli: Cli, work: Path) -> None:
    done = cli("run", "--stage", "masks", "--workdir", work, *QUICK, "--set", "reading.plane=axial")
    assert done.code == 2
    assert "reading.plane = 'axial', not 'coronal'" in done.err


def test_masks_come_back_as_volumes_in_the_source_s_space(cli: Cli, work: Path) -> None:
    assert cli("run", "--stage", "masks", "--workdir", work, "--cluster", "inline", *QUICK).code == 0
    done = cli("export", "nifti", work / "out", "--workdir", work, *QUICK)
    assert done.code == 0, done.err
    volumes = [nibabel.load(file) for file in sorted((work / "out").glob("*.nii.gz"))]
    assert len(volumes) == 6
    for volume in volumes:
        assert np.allclose(volume.affine, AFFINE, atol=1e-4)
        shown = np.asarray(volume.dataobj).any(axis=(0, 2))
        # Coronal slices run along the second axis, from the front: every other one was ingested.
        assert shown.tolist() == [False, True] * 3
        inside = np.asarray(volume.dataobj)[:, 1, :]
        assert inside[4:16, 5:9].all()
        assert inside[:4].sum() == inside[16:].sum() == 0


def test_new_volumes_are_read_as_the_study_s_were(cli: Cli, work: Path) -> None:
    assert cli("run", "--stage", "probes", "--workdir", work, "--cluster", "inline", *QUICK).code == 0
    source = work / "source" / "test" / "a"
    done = cli("predict", source, "--workdir", work, "--cell", "original-100-0", "--out", work / "told", *QUICK)
    assert done.code == 0, done.err
    told = (work / "told" / "predictions.csv").read_text().splitlines()
    assert len(told) == 1 + 3
