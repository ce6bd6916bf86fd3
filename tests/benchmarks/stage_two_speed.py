"""Stage two against the loop that people write: image files one by one through open_clip's own preprocessing and model.

`python -m tests.benchmarks.stage_two_speed [--json] [--images N]`. The loop reads PNG files of masked images, as a
first stage without a store would have left them; ours reads the masks' shard, checks its digests, and embeds batches.
Same pixels, same weights, float32, one process, all cores. Both are run three times in turns, and the medians compared.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

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

SIDE: Final = 512
REPEATS: Final = 3
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


def store_chunk(folder: Path, masks: NDArray[np.bool_], images: NDArray[np.uint8]) -> tuple[StageStore, Chunk]:
    """Commit what the masks stage makes of these images as one chunk."""
    n, stage = len(images), Masks(MasksSettings(policy="none", canvas_px=SIDE), StageContext())
    whole = Placement(0, 0, SIDE, SIDE)
    arrays = {
        "mask": masks & content(whole, SIDE),
        "masked_image": images,
        "score": np.ones(n, np.float32),
        "area_fraction": masks.mean(axis=(1, 2), dtype=np.float32),
        "ledger": np.zeros((n, len(LEDGER)), np.float32),
        "placement": np.tile(whole.array(), (n, 1)),
        "status": np.full(n, Status.OK, np.uint8),
    }
    items = tuple(ItemOutcome(i, f"{i:016x}", Status.OK) for i in range(n))
    chunk = Chunk("first", 0, 0, n)
    store = StageStore.open(folder, stage.outputs(), n, n, {"drop": "first", "fingerprint": "ab" * 32})
    publish_chunk(store, chunk, UnitResult(arrays, items, {}), {"inputs": {}})
    return store, chunk


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


def ours(store: StageStore, chunk: Chunk) -> Callable[[], NDArray[np.float32]]:
    """Return the embeddings stage on the stored chunk."""
    settings = EmbeddingsSettings(views=("masked",), compositing="masked", features="projected", canvas_px=SIDE)
    stage = Embeddings(settings, StageContext({"masks": "f" * 64}, batch_items=BATCH))
    stage.load("cpu")
    rows = [
        ImageRow(i, f"{i:016x}", "a", "", "", "0" * 64, 1, SIDE, SIDE, "RGB", "a", Split.TEST, "g", "", "")
        for i in range(len(chunk))
    ]

    def run() -> NDArray[np.float32]:
        result = stage.process(rows, ImageSource(store.root), {"masks": read_rows(store, chunk)})
        vectors: NDArray[np.float32] = result.arrays["image"][:, 0]
        return vectors

    return run


def measure(n: int) -> dict[str, Any]:
    """Compare both on n images; print a table."""
    masks, images = masked_images(n)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store, chunk = store_chunk(root / "store", masks, images)
        files = [root / f"{i}.png" for i in range(n)]
        for file, image in zip(files, images, strict=True):
            Image.fromarray(image).save(file)
        runs = {"plain": plain_loop(files), "ours": ours(store, chunk)}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        vectors = {}
        for _ in range(REPEATS):
            for name, run in runs.items():
                began = time.perf_counter()
                vectors[name] = run()
                seconds[name].append(time.perf_counter() - began)
        on_disk = sum(f.stat().st_size for f in (root / "store").rglob("*") if f.is_file())
    plain, stage_two = (float(np.median(seconds[name])) for name in ("plain", "ours"))
    spread = [p / o for p, o in zip(seconds["plain"], seconds["ours"], strict=True)]
    cosine = float((vectors["plain"] * vectors["ours"]).sum(axis=1).min())
    print(f"{n} masked images: plain loop {n / plain:.1f} images/s, stage two {n / stage_two:.1f} images/s")
    print(f"ratio {plain / stage_two:.2f} ({min(spread):.2f} .. {max(spread):.2f}), least cosine {cosine:.5f}")
    print(f"{on_disk / n / 1024:.0f} KiB an image on disk")
    return {"ratio": round(plain / stage_two, 3), "least_cosine": cosine, "images": n, "bytes_per_image": on_disk // n}


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
