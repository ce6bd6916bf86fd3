"""Every reader against damaged copies of real files: `python -m tests.faults.fuzz_readers --kind dicom --files 10000`.

A child process reads them one after another. Its address space may grow by `MEMORY_BYTES` beyond what it is once
everything is imported (the size in /proc/self/statm, then RLIMIT_AS), and a file may take `CPU_SECONDS` of processor
time (ITIMER_PROF, whose signal ends the child; time of the wall would count what other processes do), and, so that one
that only waits is found too, `WALL_SECONDS` by the clock on the wall (ITIMER_REAL). A file must give pixels of the size
that its header says, or a `ReadError` with a code of `REASONS`; where that hides a MemoryError, the reader has asked
for too much. Everything else is reported with its number; `--first NUMBER --files 1 --save FILE` brings it back.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import ReadError
from manifests.readers import MAX_PIXELS, REASONS, decoder_of, probe
from manifests.reading import Reading, Request
from tests.conftest import ROOT
from tests.faults.mutants import mutant, originals

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 5.0
WALL_SECONDS = 60.0
SUFFIXES = {"dicom": ".dcm", "nifti": ".nii.gz", "pictures": ".png"}
ENDS = {"SIGPROF": f"more than {CPU_SECONDS} s", "SIGALRM": f"waits for more than {WALL_SECONDS} s"}
"""What is told of a child that a timer has ended, by the name of the signal."""
READINGS = (
    Reading(),
    Reading(window="range", plane="coronal"),
    Reading(window=(40, 400), plane="sagittal", every=2),
    Reading(percentiles=(0, 100), volume=1),
)


def fuzz(kind: str, files: int, seed: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """Outcome of each mutant; a child that died is started again behind the file that it died of."""
    last = first + files
    while first < last:
        options = ("--kind", kind, "--files", last - first, "--seed", seed, "--first", first, "--inside")
        command = [sys.executable, "-m", "tests.faults.fuzz_readers", *map(str, options)]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as child:
            assert child.stdout is not None
            for line in child.stdout:
                outcome = json.loads(line)
                first = outcome["index"] + 1
                yield outcome
        if child.returncode and first < last:
            name = signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit {child.returncode}"
            yield {
                "index": first,
                "failure": ENDS.get(name, f"died: {name}"),
                "name": mutant(originals(kind), seed, first)[0],
            }
            first += 1


def inside(kind: str, files: int, seed: int, first: int) -> None:
    """Read mutants under limits, and write one line for each."""
    sources = originals(kind)
    _import_decoders()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"mutant{SUFFIXES[kind]}")
        for index in range(first, first + files):
            name, data = mutant(sources, seed, index)
            path.write_bytes(data)
            signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            started = time.process_time()
            found = outcome(path, data, READINGS[index % len(READINGS)])
            seconds = time.process_time() - started
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            line = {"index": index, "name": name, "seconds": seconds, "grown_kb": grown, **found}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


def outcome(path: Path, data: bytes, reading: Reading) -> dict[str, str]:
    """`result`, a code or `pixels` or `skipped`; or `failure`, which is what must not be."""
    try:
        return _read(path, data, reading)
    except ReadError as error:
        if error.reason not in REASONS:
            return {"failure": f"unknown code {error.reason}"}
        if any(isinstance(cause, MemoryError) for cause in _causes(error)):
            return {"failure": f"memory: {error.reason} {error.detail}"}
        return {"result": error.reason}
    except BaseException as error:  # noqa: BLE001  whatever it is, it is what is looked for
        return {"failure": f"{type(error).__name__}: {error}"[:300]}


def _read(path: Path, data: bytes, reading: Reading) -> dict[str, str]:
    header, decoder = probe(path, reading), decoder_of(path.name, data)
    frames = sorted({0, header.frames // 2, header.frames - 1}) if not header.skipped else [0]
    for frame in frames:
        asked = Request(frame, MAX_PIXELS, reading)
        pixels, mask = decoder.image(data, asked), decoder.mask(data, asked)
        if header.skipped:
            return {"failure": f"{header.skipped} gave a picture"}
        expected = (header.height, header.width, 3)
        if pixels.shape != expected or pixels.dtype != np.uint8 or not pixels.flags.c_contiguous:
            strides = pixels.strides
            return {"failure": f"pixels {pixels.shape} {pixels.dtype} of strides {strides}, expected {expected}"}
        if mask.shape != expected[:2] or mask.dtype != np.bool_:
            return {"failure": f"mask {mask.shape} {mask.dtype}, expected {expected[:2]}"}
    return {"result": "pixels"}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _import_decoders() -> None:
    import importlib

    names = ("nibabel", "pydicom.pixels.utils", "pydicom.pixels.processing", "libjpeg", "openjpeg", "rle", "PIL.Image")
    for name in names:
        importlib.import_module(name)
    sys.modules["PIL.Image"].init()


def main() -> int:
    """Command line; the exit code is 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=sorted(SUFFIXES), required=True)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--save", type=Path, help="write the first mutant there, and stop")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.save:
        asked.save.write_bytes(mutant(originals(asked.kind), asked.seed, asked.first)[1])
        return 0
    if asked.inside:
        inside(asked.kind, asked.files, asked.seed, asked.first)
        return 0
    return _report(asked.kind, asked.files, asked.seed, asked.first)


def _report(kind: str, files: int, seed: int, first: int) -> int:
    made_at = f"commit {_commit()}, {datetime.now(UTC):%Y-%m-%d}"
    started, counts, failures, slowest, grown = time.monotonic(), Counter[str](), 0, (0.0, -1), 0
    for found in fuzz(kind, files, seed, first):
        counts[found.get("result", "FAILED")] += 1
        slowest = max(slowest, (found.get("seconds", 0.0), found["index"]))
        grown = max(grown, found.get("grown_kb", 0))
        if failure := found.get("failure"):
            failures += 1
            sys.stdout.write(f"seed {seed} index {found['index']} of {found['name']}: {failure}\n")
            sys.stdout.flush()
    seconds = time.monotonic() - started
    sys.stdout.write(
        f"{kind}: {sum(counts.values())} mutants of {len(originals(kind))} files, seed {seed}, first {first}, "
        f"{made_at}, {seconds:.0f} s; slowest {slowest[0]:.2f} s (index {slowest[1]}), "
        f"memory grew by {grown / 1024:.0f} MB; {failures} failures\n"
    )
    sys.stdout.writelines(f"  {count:6d} {name}\n" for name, count in counts.most_common())
    return int(failures > 0)


def _commit() -> str:
    """Which code was read with; a plus follows where files differ from the commit."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
