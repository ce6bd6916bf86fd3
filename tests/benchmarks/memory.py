"""Memory of a run over many images: both stages in one process, sampled while it runs.

`python -m tests.benchmarks.memory [--json] [--images N]`. Phantoms are ingested and go through proposals, masks and
embeddings inline, in chunks of 25. Memory is flat if the highest of the last third of each stage is that of its second
third: the first holds the loading of models.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.phantoms import make_phantoms

PIPELINE: Final = str(Path(sys.executable).with_name("pipeline"))
CHUNK_ITEMS: Final = 25
EVERY_S: Final = 0.25
CLASSES: Final = 3
SETTINGS: Final = ("--set", "cluster.kind=inline", "--set", "cluster.threads=2")


def resident_mib(pid: int) -> float:
    """Memory of a process that is not swapped or shared away, in MiB; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
    except FileNotFoundError:
        return 0.0
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(sizes[0]) / 1024 if sizes else 0.0


def sampled(arguments: list[str], folder: Path) -> tuple[list[float], float]:
    """Run the pipeline; memory in MiB at equal distances, and seconds."""
    began, samples = time.perf_counter(), [0.0]
    with (folder / "log.txt").open("w") as log:
        run = subprocess.Popen([PIPELINE, "run", *arguments], stdout=log, stderr=subprocess.STDOUT)
        while run.poll() is None:
            samples.append(resident_mib(run.pid))
            time.sleep(EVERY_S)
    if run.returncode:
        raise SystemExit((folder / "log.txt").read_text("utf-8"))
    return samples, time.perf_counter() - began


def measure(n: int) -> dict[str, Any]:
    """Run both stages over n phantoms and print a table."""
    numbers: dict[str, Any] = {"images": n}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        per_class = -(-n // CLASSES)
        make_phantoms(folder / "source", {"train": per_class - 8, "test": 8}, 0)
        work = ["--workdir", str(folder / "work"), "--dataset", "phantoms"]
        ingest = ["ingest", str(folder / "source"), *work, "--labels", str(folder / "source" / "labels.csv")]
        command = [PIPELINE, *ingest, "--chunk-items", str(CHUNK_ITEMS)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for stage in ("proposals", "masks", "embeddings"):
            samples, seconds = sampled(["--stage", stage, *work, *SETTINGS], folder)
            thirds = [float(np.max(part)) for part in np.array_split(samples, 3)]
            growth = thirds[2] / thirds[1]
            print(f"{stage:10} {seconds:6.0f} s, MiB by thirds {', '.join(f'{t:.0f}' for t in thirds)}: x {growth:.3f}")
            numbers[stage] = {"seconds": round(seconds, 1), "mib": [round(t) for t in thirds], "growth": growth}
    numbers["growth"] = round(max(numbers[s]["growth"] for s in ("proposals", "masks", "embeddings")), 4)
    return numbers


def main() -> None:
    """Print a table; with --json the numbers as one JSON object in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--images", type=int, default=1002, help="number of images (%(default)s)")
    options = parser.parse_args()
    numbers = measure(options.images)
    if options.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
