"""Time of the report of a large study.

`python -m tests.benchmarks.report_speed [--json]` times what is made of the data: tables, tests, figures, the map, page
and twin. Synthetic answers of twelve methods, five fractions and five seeds on 1,311 test images of four classes, as in
the brain MRI set, with a map of 1,500 points in two views.

`--full` times the whole command `pipeline report`, with the look-up of everything committed, the gallery, and where the
classifiers looked: of a real study of 1,311 test phantoms and twelve methods, which it runs first (about 15 minutes).
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.phantoms import CLASSES as PHANTOMS
from pipeline.phantoms import make_phantoms
from stages.report.data import FAILURE_COLUMNS, ReportData
from stages.report.diagnostics import probability_columns
from stages.report.embedding_map import MapPoints
from stages.report.page import write_report
from stages.report.tables import METHODS
from stages.scores import wilson

CLASSES: Final = ("glioma", "meningioma", "no tumour", "pituitary")
SHOWN: Final = (*list(METHODS)[:9], "inverted", "shuffled", "constant")
UNMASKED: Final = ("original", "constant")
FRACTIONS: Final = (0.05, 0.1, 0.25, 0.5, 1.0)
SEEDS: Final = range(5)
N_TRAIN, N_TEST, N_POINTS, FEATURES, THUMBNAIL_PX = 5712, 1311, 1500, 1280, 32
GOAL_S: Final = 60
VIEWS: Final = ("original", "masked", "overlay", "crop", "blur", "roi", "ring", "inverted", "random-box", "shuffled")
METHODS_OF_STUDY: Final = ("medfocus", *VIEWS, "constant")


def study() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Scores, answers, and the probabilities of the largest subset, which are drawn at random."""
    random = np.random.default_rng(0)
    truth = random.integers(len(CLASSES), size=N_TEST)
    scores, answers, probabilities = [], [], []
    for method, fraction, seed in itertools.product(SHOWN, FRACTIONS, SEEDS):
        logits = random.normal(size=(N_TEST, len(CLASSES)))
        logits[np.arange(N_TEST), truth] += 1 + fraction + 0.1 * SHOWN.index(method)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        training = f"{100 * fraction:g} %"
        cell = {"mask": "" if method in UNMASKED else "union", "method": method, "training": training, "seed": seed}
        predicted = shares.argmax(axis=1)
        images = {"image": [f"drop-001/{row}" for row in range(N_TEST)]}
        told = {"image_id": [f"{row:016x}" for row in range(N_TEST)], "label": [CLASSES[index] for index in truth]}
        told |= {"group": images["image"], "flagged": False, "correct": predicted == truth, "predicted": predicted}
        answers.append(pd.DataFrame({**cell, **images, **told}))
        scores.append({**cell, "n_train": int(fraction * N_TRAIN), **score(predicted == truth)})
        if fraction == FRACTIONS[-1]:
            columns = dict(zip(probability_columns(CLASSES), shares.T, strict=True))
            probabilities.append(pd.DataFrame({**cell, **images, "truth": truth, "predicted": predicted, **columns}))
    return pd.DataFrame(scores), pd.concat(answers, ignore_index=True), pd.concat(probabilities, ignore_index=True)


def score(right: NDArray[np.bool_]) -> dict[str, Any]:
    """Columns of one fit; only the counts are what the answers give."""
    correct = int(right.sum())
    low, high = wilson(correct, N_TEST)
    shares = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "auroc"), correct / N_TEST)
    counts = {"correct": correct, "n_test": N_TEST, "correct_unflagged": correct, "n_test_unflagged": N_TEST}
    return {**counts, **shares, "ece": 0.1, "brier": 0.3, "interval_low": low, "interval_high": high}


def points() -> MapPoints:
    """Vectors around a centre a class."""
    random = np.random.default_rng(1)
    labels = random.integers(len(CLASSES), size=N_POINTS)
    centres = random.normal(size=(len(CLASSES), FEATURES))
    vectors = {
        view: (centres[labels] + 2 * random.normal(size=(N_POINTS, FEATURES))).astype(np.float32)
        for view in ("original", "masked")
    }
    return MapPoints(
        images=[f"{index:016x}" for index in range(N_POINTS)],
        labels=[CLASSES[label] for label in labels],
        splits=["test" if index < N_TEST else "train" for index in range(N_POINTS)],
        groups=[str(index) for index in range(N_POINTS)],
        vectors=vectors,
        thumbnails=random.integers(256, size=(N_POINTS, THUMBNAIL_PX, THUMBNAIL_PX), dtype=np.uint8),
        n_all=N_TRAIN + N_TEST,
    )


def report() -> ReportData:
    """What the report shows, without a gallery."""
    scores, answers, probabilities = study()
    parts = {"mask": "union", "split": "test", "n": N_TEST // len(CLASSES), "ok": N_TEST // len(CLASSES)}
    rows = [{**parts, "class": name, "fallback": 0, "failed": 0, "mean_area": 0.2} for name in CLASSES]
    return ReportData(
        dataset="synthetic",
        drops=[{"id": "drop-001", "n_items": N_TRAIN + N_TEST, "created": "2026-01-01T00:00:00+00:00"}],
        classes=CLASSES,
        command="pipeline report",
        fingerprint="0" * 64,
        created="2026-01-01T00:00:00+00:00",
        scores=scores,
        answers=answers,
        probabilities=probabilities,
        cards=[],
        ledger=pd.DataFrame(rows),
        failures=pd.DataFrame(columns=FAILURE_COLUMNS),
        gallery=[],
        points=points(),
    )


def whole(n_test: int) -> dict[str, float]:
    """Run a study on phantoms, and time `pipeline report` of it."""
    settings = [
        'masks.policy="supplied"',
        f"embeddings.views={json.dumps(VIEWS)}",
        f"probes.methods={json.dumps(METHODS_OF_STUDY)}",
    ]
    chosen = [word for setting in settings for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        source, work = Path(folder) / "phantoms", Path(folder) / "work"
        make_phantoms(source, {"train": 40, "test": n_test // len(PHANTOMS)}, seed=0, size_px=(128, 128))
        labels = ("--labels", str(source / "labels.csv"), "--dataset", "phantoms")
        pipeline("ingest", str(source), *labels, "--workdir", str(work))
        pipeline("run", "--stage", "probes", "--workdir", str(work), *chosen)
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        pipeline("report", "--workdir", str(work), *chosen)
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        size = max(page.stat().st_size for page in work.rglob("index.html"))
    print(f"{n_test} test images, {len(METHODS_OF_STUDY)} methods: {seconds:.1f} s (goal {GOAL_S} s)")
    print(f"processor time {busy:.1f} s, page of {size / 1e6:.1f} MB")
    return {"seconds": round(seconds, 2), "processor_seconds": round(busy, 2), "page_bytes": size}


def pipeline(*arguments: str) -> None:
    """One command; its output goes to stderr."""
    subprocess.run([sys.executable, "-m", "pipeline", *arguments], check=True, stdout=sys.stderr)


def main() -> None:
    """Print the seconds; with --json one JSON object in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--full", action="store_true", help="time the command on a study that is run first")
    parser.add_argument("--images", type=int, default=N_TEST, help="test images of that study")
    options = parser.parse_args()
    if options.full:
        told = whole(options.images)
        if options.json:
            print(json.dumps(told))
        return
    data = report()
    with tempfile.TemporaryDirectory() as folder:
        began, busy = time.perf_counter(), time.process_time()
        page = write_report(data, Path(folder))
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        size = page.stat().st_size
    print(
        f"{len(data.scores)} fits, {len(data.answers):,} answers, {N_POINTS} points: {seconds:.1f} s (goal {GOAL_S} s)"
    )
    print(f"processor time {busy:.1f} s, page of {size / 1e6:.1f} MB")
    if options.json:
        print(json.dumps({"seconds": round(seconds, 2), "processor_seconds": round(busy, 2), "page_bytes": size}))


if __name__ == "__main__":
    main()
