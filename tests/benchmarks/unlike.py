"""How far `predict` finds images that a breast study has seen nothing like: the figures of `docs/predict.md`.

`python -m tests.benchmarks.unlike [--every N]`. The clean split of BUSI is the study (embedded models, method
`original`, which no mask changes); it is asked about copies of its test images under other names, and about `X_RAYS`
chest X-rays, evenly from the test part of chest_xray_pneumonia. `--every` takes each n-th image of all, for a quick
look. The sets lie in MEDFOCUS_DATA, or in shared/data beside the checkout.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.benchmarks.segmentation.cases import set_folder
from tests.conftest import ROOT

X_RAYS: Final = 50
SETTINGS: Final = ("masks.policy=none", "study.fractions=[1.0]", "study.seeds=[0]", 'probes.methods=["original"]')


def table(file: Path) -> list[dict[str, str]]:
    """Rows of a CSV."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def pipeline(*arguments: object) -> None:
    """Run one command of the pipeline."""
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def copied(files: list[Path], folder: Path) -> Path:
    """A folder of copies that are named by number."""
    folder.mkdir()
    for number, file in enumerate(files):
        shutil.copy(file, folder / f"{number:04d}{file.suffix}")
    return folder


def answers(busi: Path, x_rays: list[Path], every: int, scratch: Path) -> dict[str, list[dict[str, str]]]:
    """What the study says of its test images and of the X-rays, a row an image."""
    rows = [row for row in table(busi / "index.csv") if row["clean_split"]][::every]
    with (scratch / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "label", "split"))
        writer.writerows((row["file"], row["class"], row["clean_split"]) for row in rows)
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    work = ("--workdir", scratch / "work")
    pipeline("ingest", busi, "--dataset", "busi", "--labels", scratch / "labels.csv", *work)
    pipeline("run", "--stage", "probes", *work, *settings)
    test = [busi / row["file"] for row in rows if row["clean_split"] == "test"]
    found = {}
    for name, files in {"test images": test, "X-rays": x_rays}.items():
        out = scratch / f"answers to {name}"
        pipeline("predict", copied(files, scratch / name), "--out", out, *work, *settings)
        found[name] = table(out / "predictions.csv")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    every = parser.parse_args().every
    busi, chest = set_folder("busi"), set_folder("chest") / "test"
    if not (busi.is_dir() and chest.is_dir()):
        print("The image sets are not here; MEDFOCUS_DATA names their folder.")
        return
    x_rays = sorted(chest.rglob("*.jpg"))
    x_rays = x_rays[:: len(x_rays) // X_RAYS][:X_RAYS][::every]
    with tempfile.TemporaryDirectory() as scratch:
        found = answers(busi, x_rays, every, Path(scratch))
    for name, rows in found.items():
        distances = [float(row["distance"]) for row in rows]
        unlike = sum(row["unlike"] == "1" for row in rows)
        print(
            f"{len(rows)} {name}: {unlike} unlike; distance {min(distances):.2f} to {max(distances):.2f},"
            f" threshold {float(rows[0]['threshold']):.2f}"
        )


if __name__ == "__main__":
    main()
