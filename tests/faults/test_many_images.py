"""Ten thousand images, tiny ones, through ingest and the map stages with a model that costs nothing."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manifests.errors import ExitCode
from manifests.ingest import IngestOptions, IngestReport, ingest
from manifests.layout import DatasetPaths
from pipeline.config import load_config
from pipeline.overview import status_rows
from pipeline.runner import Runner, RunOptions
from pipeline.workspace import Workspace

pytestmark = pytest.mark.slow

SETTINGS = ("canvas_px=64", "masks.policy=none", "cluster.kind=inline")
MOST_GROWTH = 2.5
"""Processor time that an image of many may take more than one of few: neighbours on the machine make it vary."""


class FlatModel:
    """One vector for every image, whatever it shows."""

    def encode_image(self, images: Any, *_: Any, **__: Any) -> Any:
        vectors = np.tile(np.eye(1, 1280, dtype=np.float32), (len(images), 1))
        return SimpleNamespace(vectors=vectors, tokens=None, grid=(1, 1))


def make_images(folder: Path, n: int) -> Path:
    """Noise of 8 x 8 px, an eighth of it for the test, two classes."""
    pixels = np.random.default_rng(n).integers(0, 256, (n, 8, 8), dtype=np.uint8)
    for split in ("train", "test"):
        for label in "ab":
            (folder / split / label).mkdir(parents=True)
    for number, picture in enumerate(pixels):
        split = "test" if number % 8 == 0 else "train"
        Image.fromarray(picture).save(folder / split / "ab"[number % 2] / f"{number:05d}.png")
    return folder


def go_through(root: Path, n: int) -> tuple[IngestReport, Workspace, dict[str, float]]:
    """Ingest so many images and compute masks and embeddings; processor seconds an image of each step."""
    source = make_images(root / "source", n)
    paths = DatasetPaths(root / "work" / "many")
    seconds = {}
    began = time.process_time()
    report = ingest(paths, source, IngestOptions(dataset="many"))
    seconds["ingest"] = (time.process_time() - began) / n
    config = load_config(overrides=SETTINGS)
    for stage in ("masks", "embeddings"):
        began = time.process_time()
        outcome = Runner(paths, config, RunOptions(stage=stage)).run()
        seconds[stage] = (time.process_time() - began) / n
        assert outcome.exit_code is ExitCode.DONE
    return report, Workspace(paths, config), seconds


def test_ten_thousand_images_cost_no_more_each_than_a_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.models.clip.load_clip", lambda *_, **__: FlatModel())
    few = go_through(tmp_path / "few", 1_000)[2]
    report, workspace, many = go_through(tmp_path / "many", 10_000)
    assert report.new == 10_000
    maps = [row for row in status_rows(workspace) if row["drop"]]
    assert [(row["committed"], row["pending"], row["images"]) for row in maps] == [(157, 0, {"ok": 10_000})] * 2
    assert {step: many[step] < MOST_GROWTH * few[step] for step in few} == dict.fromkeys(few, True), (few, many)
