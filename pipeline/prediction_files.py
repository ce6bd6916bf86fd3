"""Predictions on disk: a table, the same as JSON lines, and what they came from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from manifests.disk import make_private, write_atomic
from manifests.forgetting import WITHDRAWALS
from manifests.inventory_file import escaped
from pipeline.answers import Likeness, Prediction
from pipeline.calibrating import Calibration
from pipeline.head import Head
from stages.prediction.neighbours import QUANTILE, K

TABLE: Final = "predictions.csv"
LINES: Final = "predictions.jsonl"
ABOUT: Final = "provenance.json"
"""Named as a report's, so that `gc` finds what was computed before a withdrawal."""
BEFORE: Final = ("image_id", "status", "reason", "predicted", "probability", "calibrated")
BETWEEN: Final = ("mask_status", "mask_area")
AFTER: Final = ("distance", "threshold", "unlike")


def provenance(head: Head, calibration: Calibration, likeness: Likeness) -> dict[str, Any]:
    """Which head said it, and the numbers that hold for all images; the same whenever it is asked."""
    return {
        "dataset": head.workspace.paths.name,
        "cell": head.name,
        "fingerprint": head.workspace.fingerprint(head.node),
        "artifacts": dict(head.commit.digests),
        "classes": list(head.classes),
        "n_train": len(head.subset),
        "temperature": calibration.temperature,
        "temperature_folds": calibration.folds,
        "view_of_distances": likeness.view,
        "neighbour": K,
        "n_compared": len(likeness.training),
        "threshold": _number(likeness.threshold),
        "quantile": QUANTILE,
        WITHDRAWALS: [record.withdrawal_id for record in head.workspace.withdrawals],
    }


def write_predictions(out: Path, predictions: Sequence[Prediction], about: Mapping[str, Any], *, names: bool) -> None:
    """Write predictions.csv, predictions.jsonl and, last, provenance.json, each whole or not at all.

    Parameters
    ----------
    out : Path
        Folder; created for its owner alone if absent.
    predictions : Sequence[Prediction]
        One an image, or one a file if `names`.
    about : Mapping[str, Any]
        From `provenance`.
    names : bool
        Whether the files' paths in the source are shown, which may name patients.

    Raises
    ------
    StoreError
        If the disk is full, read-only, forbidden or failing.
    """
    make_private(out)
    records = [record_of(prediction, about, names=names) for prediction in predictions]
    write_atomic(out / TABLE, _table(records, about["classes"], names=names))
    write_atomic(out / LINES, "".join(json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in records))
    for file in (out / TABLE, out / LINES) if names else ():
        file.chmod(0o600)
    write_atomic(out / ABOUT, json.dumps(dict(about), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def record_of(prediction: Prediction, about: Mapping[str, Any], *, names: bool) -> dict[str, Any]:
    """One prediction as JSON values; what could not be computed is null."""
    answer = prediction.answer
    record: dict[str, Any] = {"file": prediction.file} if names else {}
    record |= {name: getattr(prediction, name) for name in ("image_id", "status", "reason")}
    record |= {"predicted": answer.predicted if answer else None}
    record |= {"probability": max(answer.probabilities) if answer else None}
    record |= {"calibrated": answer.calibrated if answer else None}
    record |= {"probabilities": dict(zip(about["classes"], answer.probabilities, strict=True)) if answer else {}}
    record |= {name: getattr(prediction, name) for name in BETWEEN}
    near = answer.nearest if answer else ()
    record |= {"nearest": [{"image_id": n.image_id, "label": n.label, "similarity": n.similarity} for n in near]}
    record |= {"distance": answer.distance if answer else None, "threshold": about["threshold"]}
    return record | {"unlike": answer.unlike if answer else None}


def _table(records: Sequence[Mapping[str, Any]], classes: Sequence[str], *, names: bool) -> str:
    """One line a record; texts that a spreadsheet would run as a formula get an apostrophe before them."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    near = [f"nearest_{i}{part}" for i in range(1, K + 1) for part in ("", "_label", "_similarity")]
    file = ("file",) if names else ()
    writer.writerow((*file, *BEFORE, *(f"p_{name}" for name in classes), *BETWEEN, *near, *AFTER))
    for record in records:
        writer.writerow([_cell(value) for value in _values(record, classes, names=names)])
    return text.getvalue()


def _values(record: Mapping[str, Any], classes: Sequence[str], *, names: bool) -> Iterator[Any]:
    if names:
        yield record["file"]
    yield from (record[name] for name in BEFORE)
    yield from (record["probabilities"].get(name) for name in classes)
    yield from (record[name] for name in BETWEEN)
    near = record["nearest"]
    for i in range(K):
        yield from near[i].values() if i < len(near) else (None, None, None)
    yield from (record[name] for name in AFTER)


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return escaped(value)
    return int(value) if isinstance(value, bool) else value


def _number(value: float) -> float | None:
    return value if value != float("inf") else None
