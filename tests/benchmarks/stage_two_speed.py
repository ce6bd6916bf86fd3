"""Stage two against the loop that people write: image files one by one through open_clip's own preprocessing and model.

`python -m tests.benchmarks.stage_two_speed [--json] [--images N]`. The loop reads PNG files of masked images, as a
first stage without a store would have left them, with all cores for every image; stage two reads the masks' shards,
checks their digests and embeds batches, in one process a core, as the pipeline does. Same pixels, same weights,
float32. All are run once untimed, then three times in turns, and the medians compared; where there is a C++ compiler,
stage two also with `cluster.compiled`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

from manifests.commits import publish_chunk, read_rows
from manifests.readers import ImageSource
from manifests.store import StageStore
from manifests.types import Chunk, ImageRow, ItemOutcome, Split, Status, UnitResult
from stages.base import StageContext
from stages.embeddings.settings import EmbeddingsSettings
from stages.embeddings.stage import Embeddings
from stages.images import Placement, content
from stages.masks.settings import MasksSettings
from stages.masks.stage import LEDGER, Masks
from stages.models.card import LITE0_MINILM
from stages.models.converted import Converted
from stages.models.lite0_minilm import minilm_folder
from stages.models.training.samples import HELD_OUT_SEED
from stages.models.training.scenes import draw_scene
from stages.models.weights import WeightsFolder
from stages.shape import SHAPE

SIDE: Final = 512
REPEATS: Final = 3
CORES: Final = len(os.sched_getaffinity(0))
BATCH: Final = 8


def masked_images(n: int) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Masks, (n, S, S), and masked images, (n, S, S, 3), of synthetic scenes."""
    masks, images = np.zeros((n, SIDE, SIDE), dtype=bool), np.zeros((n, SIDE, SIDE, 3), np.uint8)
    for number in range(n):
        scene = draw_scene(HELD_OUT_SEED, number, SIDE)
        height, width = scene.image.shape[:2]
        masks[number, :height, :width] = scene.masks.any(axis=0)
        images[number, :height, :width] = scene.image * scene.masks.any(axis=0)[..., None]
    return masks, images


def open_store(folder: Path, n: int) -> StageStore:
    """Open, or create, what the masks stage commits of n images, a chunk a core."""
    stage = Masks(MasksSettings(policy="none", canvas_px=SIDE), StageContext())
    return StageStore.open(folder, stage.outputs(), n, n // CORES, {"drop": "first", "fingerprint": "ab" * 32})


def chunks_of(n: int) -> list[Chunk]:
    """Equal chunks, one a core."""
    size = n // CORES
    return [Chunk("first", number, number * size, (number + 1) * size) for number in range(CORES)]


def store_images(folder: Path, masks: NDArray[np.bool_], images: NDArray[np.uint8]) -> None:
    """Commit what the masks stage makes of these images."""
    store, whole = open_store(folder, len(images)), Placement(0, 0, SIDE, SIDE)
    for chunk in chunks_of(len(images)):
        n, rows = len(chunk), slice(chunk.start, chunk.stop)
        arrays = {
            "mask": masks[rows] & content(whole, SIDE),
            "masked_image": images[rows],
            "score": np.ones(n, np.float32),
            "area_fraction": masks[rows].mean(axis=(1, 2), dtype=np.float32),
            "ledger": np.zeros((n, len(LEDGER)), np.float32),
            "shape": np.zeros((n, len(SHAPE)), np.float32),
            "placement": np.tile(whole.array(), (n, 1)),
            "status": np.full(n, Status.OK, np.uint8),
        }
        items = tuple(ItemOutcome(i, f"{i:016x}", Status.OK) for i in range(chunk.start, chunk.stop))
        publish_chunk(store, chunk, UnitResult(arrays, items, {}), {"inputs": {}})


def plain_loop(files: list[Path]) -> Callable[[], NDArray[np.float32]]:
    """Return the reference: open_clip's own model and preprocessing, file by file."""
    text = {**LITE0_MINILM["text_cfg"], "hf_model_name": str(minilm_folder()), "hf_model_pretrained": False}
    model = open_clip.CustomTextCLIP(**{**LITE0_MINILM, "text_cfg": text}).eval()
    model.load_state_dict(Converted("lite0-minilm", WeightsFolder()).tensors(""))
    preprocess = open_clip.image_transform(224, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3)

    @torch.inference_mode()
    def run() -> NDArray[np.float32]:
        vectors = [model.encode_image(preprocess(Image.open(file))[None], normalize=True) for file in files]
        return torch.cat(vectors).numpy()

    return run


class Worker:
    """One process of stage two, with one thread, as the pipeline has one a core; lives in the process alone."""

    store: ClassVar[StageStore]
    stage: ClassVar[Embeddings]

    @classmethod
    def start(cls, folder: Path, n: int, compiled: bool) -> None:
        """Open the store and load the model."""
        torch.set_num_threads(1)
        cls.store = open_store(folder, n)
        settings = EmbeddingsSettings(views=("masked",), compositing="masked", features="projected", canvas_px=SIDE)
        cls.stage = Embeddings(settings, StageContext({"masks": "f" * 64}, batch_items=BATCH, compiled=compiled))
        cls.stage.load("cpu")

    @classmethod
    def embed(cls, chunk: Chunk) -> NDArray[np.float32]:
        """Read one chunk, digests checked, and embed it."""
        rows = [
            ImageRow(i, f"{i:016x}", "a", "", "", "0" * 64, 1, SIDE, SIDE, "RGB", "a", Split.TEST, "g", "", "")
            for i in range(chunk.start, chunk.stop)
        ]
        result = cls.stage.process(rows, ImageSource(cls.store.root), {"masks": read_rows(cls.store, chunk)})
        vectors: NDArray[np.float32] = result.arrays["image"][:, 0]
        return vectors


def workers(folder: Path, n: int, *, compiled: bool) -> ProcessPoolExecutor:
    """Processes of stage two, a core each."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(CORES, context, initializer=Worker.start, initargs=(folder, n, compiled))


def stage_two(pool: ProcessPoolExecutor, n: int) -> Callable[[], NDArray[np.float32]]:
    """Return stage two on the stored chunks."""
    return lambda: np.concatenate(list(pool.map(Worker.embed, chunks_of(n))))


def measure(n: int) -> dict[str, Any]:
    """Compare both on n images; print a table."""
    n -= n % CORES
    masks, images = masked_images(n)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store_images(root / "store", masks, images)
        files = [root / f"{i}.png" for i in range(n)]
        for file, image in zip(files, images, strict=True):
            Image.fromarray(image).save(file)
        runs = {"plain": plain_loop(files)}
        for name in ("ours", "compiled") if shutil.which("c++") else ("ours",):
            pool = stack.enter_context(workers(root / "store", n, compiled=name == "compiled"))
            runs[name] = stage_two(pool, n)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        began = time.perf_counter()
        vectors = {name: run() for name, run in runs.items()}
        print(f"loading, warm-up and compilation: {time.perf_counter() - began:.0f} s")
        for _ in range(REPEATS):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - began)
        on_disk = sum(f.stat().st_size for f in (root / "store").rglob("*") if f.is_file())
    numbers: dict[str, Any] = {"images": n, "bytes_per_image": on_disk // n}
    print(f"{n} masked images, {on_disk / n / 1024:.0f} KiB an image on disk")
    for name, key in (("plain", "plain_ratio"), ("ours", "ratio"), ("compiled", "compiled_ratio")):
        if name in runs:
            each = np.array(seconds["plain"]) / seconds[name]
            ratio = float(np.median(seconds["plain"]) / np.median(seconds[name]))
            cosine = float((vectors["plain"] * vectors[name]).sum(axis=1).min())
            speed = n / float(np.median(seconds[name]))
            print(f"{name:8} {speed:6.1f} images/s, ratio {ratio:.2f} ({each.min():.2f} .. {each.max():.2f}), ", end="")
            print(f"least cosine {cosine:.5f}")
            numbers |= {key: round(ratio, 3), f"{name}_cosine": cosine}
    return numbers


def main() -> None:
    """Print a table; with --json the numbers as one JSON object in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--images", type=int, default=128, help="number of images (%(default)s)")
    options = parser.parse_args()
    numbers = measure(options.images)
    if options.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
