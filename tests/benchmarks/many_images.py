"""Whether an image of ten thousand costs more than one of a thousand, in ingest and in the map stages.

`python -m tests.benchmarks.many_images [--json]`. Noise of 8 x 8 px on a canvas of 64, no masks, and a model that gives
one vector for all: what is left is our own work for each image. Processor time, so that neighbours on the machine weigh
less.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from manifests.errors import ExitCode
from manifests.ingest import IngestOptions, ingest
from manifests.layout import DatasetPaths
from pipeline.config import load_config
from pipeline.runner import Runner, RunOptions
from pipeline.workspace import Workspace

SETTINGS = ("canvas_px=64", "masks.policy=none", "cluster.kind=inline")
FEW, MANY = 1_000, 10_000


class FlatModel:
    """One vector for every image, whatever it shows."""

    def encode_image(self, images: Any, *_: Any, **__: Any) -> Any:
        """Unit vectors of the embedded model's length."""
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


def go_through(root: Path, n: int) -> tuple[Workspace, dict[str, float]]:
    """Ingest so many images and compute masks and embeddings; processor seconds an image of each step."""
    source = make_images(root / "source", n)
    paths, seconds = DatasetPaths(root / "work" / "many"), {}
    began = time.process_time()
    ingest(paths, source, IngestOptions(dataset="many"))
    seconds["ingest"] = (time.process_time() - began) / n
    config = load_config(overrides=SETTINGS)
    with patch("stages.models.clip.load_clip", lambda *_, **__: FlatModel()):
        for stage in ("masks", "embeddings"):
            began = time.process_time()
            outcome = Runner(paths, config, RunOptions(stage=stage)).run()
            seconds[stage] = (time.process_time() - began) / n
            if outcome.exit_code is not ExitCode.DONE:
                raise RuntimeError(f"{stage} of {n} images ended with {outcome.exit_code.name}")
    return Workspace(paths, config), seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {}
    for n in (FEW, MANY):
        with tempfile.TemporaryDirectory(prefix="many-") as folder:
            found[n] = go_through(Path(folder), n)[1]
    ratios = {step: found[MANY][step] / found[FEW][step] for step in found[FEW]}
    if options.json:
        print(json.dumps({"ratios": ratios, "seconds_an_image": found}))
        return
    for step, ratio in ratios.items():
        few, many = (1000 * found[n][step] for n in (FEW, MANY))
        print(f"{step:10} {few:6.2f} ms an image of {FEW}, {many:6.2f} ms of {MANY}: {ratio:.2f}")


if __name__ == "__main__":
    main()
