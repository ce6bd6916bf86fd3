"""How long `plan` and `status` take on a large data set, from the shell's prompt to the last line.

`python -m tests.benchmarks.plan_speed [--json] [--rows N]`. The manifest is synthetic: one drop of N rows (100,000) in
chunks of 64, with masks and embeddings committed for every chunk (arrays of fill values), and then with every tenth
chunk of the embeddings missing. Each command runs three times in a process of its own; the median counts. What a
process needs to start is measured by `pipeline drops` on a data set of ten rows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from manifests.audit import check
from manifests.commits import publish_chunk
from manifests.drops import Drop, audit_digest, write_drop
from manifests.fingerprint import digest_bytes
from manifests.inventory_file import format_rows
from manifests.layout import DatasetPaths
from manifests.looks import no_looks
from manifests.types import ImageRow, ItemOutcome, Split, Status, UnitResult
from pipeline.config import load_config
from pipeline.graph import Node
from pipeline.plan import input_digests
from pipeline.workspace import Workspace
from stages.base import empty_arrays, status_array

SETTINGS = ("canvas_px=64", "masks.policy=supplied", 'embeddings.views=["original", "masked"]')
RUNS = 3


def make_drop(paths: DatasetPaths, n_rows: int) -> None:
    """A drop whose images are nowhere: nothing that is measured reads one."""
    rows = []
    for number in range(n_rows):
        sha256 = digest_bytes(str(number).encode())
        split = Split.TEST if number % 5 == 0 else Split.TRAIN
        rows.append(
            ImageRow(
                row=number,
                image_id=sha256[:16],
                path=f"{split}/class-{number % 4}/{number:06d}.png",
                mask_path=f"masks/{number:06d}.png",
                mask_sha256=sha256,
                sha256=sha256,
                bytes=10_000,
                width=224,
                height=224,
                mode="L",
                label=f"class-{number % 4}",
                split=split,
                group_id=sha256[:16],
                duplicate_of="",
                transforms="",
            )
        )
    audit = check(rows)
    drop = Drop(
        drop_id="drop-001",
        dataset=paths.name,
        source_root="/nowhere",
        n_items=n_rows,
        chunk_items=64,
        classes=tuple(f"class-{k}" for k in range(4)),
        inventory_sha256=digest_bytes(format_rows(rows)),
        audit_sha256=audit_digest(audit),
        created="2026-01-01T00:00:00+00:00",
    )
    write_drop(paths, drop, rows, audit, no_looks(n_rows))


def commit_all(workspace: Workspace, node: Node, *, leave_out: int = 0) -> None:
    """Commit fill values for every chunk; with `leave_out` not for every so many-th."""
    (drop,) = workspace.drops
    stage, store = workspace.map_stage(node), workspace.store(node, drop.drop_id)
    workspace.write_identity(node)
    for chunk in drop.chunks():
        if leave_out and chunk.index % leave_out == 0:
            continue
        rows = workspace.chunk_rows(chunk)
        items = tuple(ItemOutcome(row.row, row.image_id, Status.OK) for row in rows)
        arrays = {**empty_arrays(stage.outputs(), len(rows)), "status": status_array(items)}
        publish_chunk(store, chunk, UnitResult(arrays, items), {"inputs": input_digests(workspace, node, chunk)})


def seconds(workdir: Path, command: str, *more: str) -> float:
    """Median time of a command."""
    words = [sys.executable, "-c", "from pipeline.cli import main; main()", command, "--workdir", str(workdir), *more]
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure(n_rows: int) -> dict[str, float]:
    """Build the data set, and time the commands."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        small, large = DatasetPaths(Path(folder, "small", "set")), DatasetPaths(Path(folder, "large", "set"))
        make_drop(small, 10)
        make_drop(large, n_rows)
        workspace = Workspace(large, load_config(overrides=SETTINGS))
        masks, embeddings = (n for n in workspace.nodes.values() if n.stage in ("masks", "embeddings"))
        commit_all(workspace, masks)
        commit_all(workspace, embeddings, leave_out=10)
        stage = ("--stage", "embeddings")
        found = {
            "start": seconds(small.root.parent, "drops"),
            "plan_with_gaps": seconds(large.root.parent, "plan", *stage, *settings),
            "status_with_gaps": seconds(large.root.parent, "status", *settings),
        }
        shutil.rmtree(workspace.paths.root / "stages" / "embeddings")
        commit_all(Workspace(large, load_config(overrides=SETTINGS)), embeddings)
        found["plan"] = seconds(large.root.parent, "plan", *settings)
        found["status"] = seconds(large.root.parent, "status", *settings)
        found["drops"] = seconds(large.root.parent, "drops")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    found = measure(options.rows)
    if not options.json:
        for name, value in found.items():
            print(f"{name:18} {value:6.2f} s")
        return
    slowest = max(value for name, value in found.items() if name.startswith(("plan", "status")))
    print(json.dumps({f"seconds_{options.rows // 1000}k": round(slowest, 3), "seconds": found}))


if __name__ == "__main__":
    main()
