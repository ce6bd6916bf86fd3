"""Both stages with a model as a user runs them on one GPU: images a second, and the share of time that it is busy.

`python -m tests.benchmarks.gpu_pipeline SOURCE [--labels CSV --columns C] [--set K=V ...]`: each setting of `VARIANTS`
in a work folder of its own. Without SOURCE it is the demo, to its end. Seconds are those from the first unit's planning
to the last commit of a node, so that the start of the worker and the loading of the model count; `steady` leaves out
the first unit. The GPU is asked ten times a second by nvidia-smi how busy it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

VARIANTS: Final = {
    "as it comes": (),
    "bfloat16, 32 at once": (
        "proposals.precision=bfloat16",
        "embeddings.precision=bfloat16",
        "cluster.batch_items=32",
    ),
}
QUERY: Final = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "100")


class Sampler:
    """Asks the GPU how busy it is, with the time of each answer."""

    def __enter__(self) -> Sampler:
        self.samples: list[tuple[float, float, float]] = []
        self._process = subprocess.Popen(QUERY, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()

    def _read(self) -> None:
        if self._process.stdout is None:
            raise RuntimeError("nvidia-smi says nothing")
        for line in self._process.stdout:
            busy, used = (float(part) for part in line.split(","))
            self.samples.append((time.time(), busy, used))

    def between(self, begin: float, end: float) -> tuple[float, float]:
        """Mean share of time busy, in percent, and most memory used, in MiB."""
        inside = [(busy, used) for at, busy, used in self.samples if begin <= at <= end] or [(float("nan"),) * 2]
        return sum(busy for busy, _ in inside) / len(inside), max(used for _, used in inside)


def pipeline(*arguments: object) -> None:
    """Run a command of the pipeline."""
    subprocess.run([sys.executable, "-m", "pipeline", *map(str, arguments)], check=True, env=os.environ)


def measured(dataset: Path, sampler: Sampler, seen: set[str]) -> list[dict[str, Any]]:
    """One row for each map node that runs not yet seen have committed."""
    rows = []
    for folder in sorted((dataset / "runs").iterdir()):
        if folder.name in seen:
            continue
        seen.add(folder.name)
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        for planned in (event for event in events if event["event"] == "planned" and event["units"]):
            done = [e for e in events if e["event"] == "committed" and e["unit"].startswith(planned["node"] + "/")]
            times = [datetime.fromisoformat(event["time"]).timestamp() for event in (planned, *done)]
            counts = [sum(event["images"].values()) for event in done]
            if len(done) < 2 or not sum(counts):
                continue
            steady = (sum(counts) - counts[0]) / (times[-1] - times[1])
            busy, used = sampler.between(times[1], times[-1])
            rows.append(
                {
                    "node": planned["node"],
                    "images": sum(counts),
                    "per_s": sum(counts) / (times[-1] - times[0]),
                    "steady_per_s": steady,
                    "busy_percent": busy,
                    "memory_mib": used,
                    "device": done[0]["device"],
                }
            )
    return rows


def show(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print a line for each node."""
    print(name, flush=True)
    for row in rows:
        speed = f"{row['per_s']:>7.1f} / s  {row['steady_per_s']:>7.1f} / s after the first unit"
        gpu = f"busy {row['busy_percent']:.0f} %  {row['memory_mib']:.0f} MiB  {row['device']}"
        print(f"  {row['node']:<22} {row['images']:>6} images  {speed}  {gpu}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Ingest, run stage one and the embeddings under each variant, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--columns", default="")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    found: dict[str, list[dict[str, Any]]] = {}
    settings = [part for text in asked.set for part in ("--set", text)]
    if asked.source is None:
        with tempfile.TemporaryDirectory() as folder, Sampler() as sampler:
            pipeline("demo", "--workdir", folder, *settings)
            found["demo"] = measured(Path(folder) / "phantoms-0", sampler, set())
        show("demo", found["demo"])
    for name, variant in VARIANTS.items() if asked.source else ():
        with tempfile.TemporaryDirectory() as folder, Sampler() as sampler:
            more = ["--labels", asked.labels, "--columns", asked.columns] if asked.labels else []
            pipeline("ingest", asked.source, "--dataset", "speed", "--workdir", folder, *more)
            seen: set[str] = set()
            found[name] = []
            for stage in ("one", "embeddings"):
                changed = [part for text in variant for part in ("--set", text)]
                pipeline("run", "--stage", stage, "--workdir", folder, *changed, *settings)
                found[name] += measured(Path(folder) / "speed", sampler, seen)
        show(name, found[name])
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
