"""Bad input, end to end: a bad image is a row with a reason and the run goes on; anything else is one clear line."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Cli, Finished
from tests.integration.pipelines import QUICK, add_row, copy_source

pytestmark = pytest.mark.slow


def ingest(cli: Cli, source: Path, work: Path, *more: object) -> Finished:
    labels = source / "labels.csv"
    return cli("ingest", source, "--dataset", "d", "--labels", labels, "--workdir", work, "--chunk-items", 8, *more)


def run(cli: Cli, work: Path, *more: object) -> Finished:
    return cli("run", "--workdir", work, "--cluster", "inline", *QUICK, *more)


@pytest.fixture
def source(phantom_folder: Path, tmp_path: Path) -> Path:
    return copy_source(phantom_folder, tmp_path / "source")


def bad_images(source: Path) -> dict[str, str]:
    """Add one image of every bad kind to the training set of `round`; expected reason by file name."""
    folder = source / "images" / "train" / "round"
    good = (folder / "000.png").read_bytes()
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.png").write_text("<html>not found</html>")
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    Image.open(folder / "000.png").convert("RGB").save(folder / "whole.jpg", quality=90)
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "whole.jpg").unlink()
    Image.new("1", (40000, 40000)).save(folder / "bomb.png")
    expected = {
        "zero.png": "decode.empty",
        "text.png": "decode.unreadable",
        "cut.png": "decode.truncated",
        "cut.jpg": "decode.truncated",
        "bomb.png": "decode.too_large",
    }
    for name in expected:
        add_row(source, folder / name, "round", "train", "")
    return expected


def test_bad_images_are_rows_with_reasons_and_the_run_goes_on(cli: Cli, source: Path, tmp_path: Path) -> None:
    expected = bad_images(source)
    assert ingest(cli, source, tmp_path / "work").code == 0
    done = run(cli, tmp_path / "work", "--json")
    assert done.code == 3, done.err
    assert done.json["failed_images"] == dict(Counter(expected.values()))
    assert done.json["committed"]["probes[supplied]"] == 16
    status = cli("status", "--workdir", tmp_path / "work", "--json", *QUICK).json
    assert status[1]["images"] == {"ok": 18, "failed": len(expected)}
    again = run(cli, tmp_path / "work")
    assert again.code == 3
    assert "images without a result: 2 (decode.truncated)" in again.out


def test_sixteen_bit_png_is_read_by_its_range(cli: Cli, source: Path, tmp_path: Path) -> None:
    folder = source / "images" / "train" / "round"
    ramp = np.linspace(0, 65535, 320 * 256).astype(np.uint16).reshape(256, 320)
    Image.fromarray(ramp).save(folder / "deep.png")
    add_row(source, folder / "deep.png", "round", "train", "")
    ingest(cli, source, tmp_path / "work")
    assert run(cli, tmp_path / "work", "--stage", "masks", "--set", "masks.policy=none").code == 0
    with next((tmp_path / "work" / "d" / "drops").rglob("inventory.csv")).open(newline="") as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    assert "gray16" in rows["images/train/round/deep.png"]["transforms"]


def test_mask_of_another_size_fails_its_image_alone(cli: Cli, source: Path, tmp_path: Path) -> None:
    mask = next((source / "masks" / "train" / "round").glob("000*"))
    Image.new("L", (10, 10), 255).save(mask)
    ingest(cli, source, tmp_path / "work")
    done = run(cli, tmp_path / "work", "--json", "--stage", "masks")
    assert done.code == 3
    assert done.json["failed_images"] == {"mask.size": 1}


def test_empty_folder_says_what_was_looked_for(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = cli("ingest", tmp_path / "empty", "--dataset", "d", "--workdir", tmp_path / "work")
    assert done.code == 4
    assert len(done.err.strip().splitlines()) == 2
    assert not (tmp_path / "work" / "d" / "drops").exists()


def test_one_file_in_two_splits_is_refused_when_strict_and_else_flagged(cli: Cli, source: Path, tmp_path: Path) -> None:
    copy = source / "images" / "test" / "round" / "leak.png"
    shutil.copy(source / "images" / "train" / "round" / "000.png", copy)
    add_row(source, copy, "round", "test", "")
    refused = ingest(cli, source, tmp_path / "work", "--strict")
    assert refused.code == 4
    assert "--strict" in refused.err
    told = ingest(cli, source, tmp_path / "work")
    assert told.code == 0
    assert "test images that are in train too: 1;" in told.out
    assert run(cli, tmp_path / "work", "--set", "masks.policy=none").code == 0
    scores = json.loads(next((tmp_path / "work" / "d").rglob("original-100-0/scores.json")).read_text())
    assert (scores["n_test"], scores["n_test_unflagged"]) == (7, 6)


def test_class_with_one_image_is_reported_and_studied(cli: Cli, source: Path, tmp_path: Path) -> None:
    lone = source / "images" / "train" / "rare.png"
    Image.open(source / "images" / "train" / "round" / "000.png").rotate(90).save(lone)
    add_row(source, lone, "rare", "train", "")
    done = ingest(cli, source, tmp_path / "work", "--json")
    assert "rare" in json.dumps(done.json["audit"])
    assert run(cli, tmp_path / "work").code == 0


def test_missing_checkpoint_ends_the_run_before_any_image(cli: Cli, source: Path, tmp_path: Path) -> None:
    ingest(cli, source, tmp_path / "work")
    done = run(cli, tmp_path / "work", "--set", "masks.policy=union", "--set", "proposals.model=sam2.1_hiera_tiny")
    assert done.code == 2
    assert done.err.strip().splitlines()[-2].startswith("error: ")
    assert "pipeline weights add sam2.1_hiera_tiny" in done.err


def test_altered_checkpoint_is_refused_by_its_digest(cli: Cli, source: Path, tmp_path: Path) -> None:
    import torch

    from stages.models.sam2_architecture import instantiate_seeded, read_config
    from stages.models.weights import WeightsFolder

    folder = tmp_path / "weights"
    network = instantiate_seeded(read_config("sam2.1/sam2.1_hiera_t.yaml"))
    torch.save({"model": network.state_dict()}, tmp_path / "tiny.pt")
    env = {"MEDFOCUS_WEIGHTS": str(folder)}
    assert cli("weights", "add", "sam2.1_hiera_tiny", tmp_path / "tiny.pt", env=env).code == 0
    kept = WeightsFolder(folder).locate("sam2.1_hiera_tiny")
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    ingest(cli, source, tmp_path / "work")
    settings = ("--set", "masks.policy=union", "--set", "proposals.model=sam2.1_hiera_tiny")
    done = cli("run", "--workdir", tmp_path / "work", "--cluster", "inline", *QUICK, *settings, env=env)
    assert done.code == 2
    assert "sha256" in done.err
    assert "Traceback" not in done.err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of six MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("this user cannot mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_is_one_line_and_the_run_resumes_when_there_is_room(cli: Cli, source: Path, small_disk: Path) -> None:
    assert ingest(cli, source, small_disk).code == 0
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    ballast.write_bytes(b"\0" * (free - 300_000))
    done = run(cli, small_disk, "--stage", "masks")
    assert done.code == 4, done.err
    assert "No space left on device" in done.err
    assert "Traceback" not in done.err
    assert cli("verify", "--workdir", small_disk).code == 0
    ballast.unlink()
    assert run(cli, small_disk, "--stage", "masks").code == 0


def test_read_only_work_folder_is_one_line(cli: Cli, source: Path, small_disk: Path) -> None:
    assert ingest(cli, source, small_disk).code == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = run(cli, small_disk, "--stage", "masks")
    assert done.code == 4
    assert "Read-only file system" in done.err
    assert len(done.err.strip().splitlines()) == 2


def test_damaged_inventory_is_refused(cli: Cli, source: Path, tmp_path: Path) -> None:
    ingest(cli, source, tmp_path / "work")
    inventory = next((tmp_path / "work").rglob("inventory.csv"))
    inventory.write_text(inventory.read_text().replace("round", "lobed", 1))
    done = run(cli, tmp_path / "work")
    assert done.code == 4
    assert "inventory" in done.err
