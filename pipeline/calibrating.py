"""The temperature of a committed head: its own fit repeated on inner folds, and asked about what each left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from manifests.disk import make_private, write_atomic
from manifests.fingerprint import digest_json
from manifests.forgetting import WITHDRAWALS
from manifests.types import Cell, Split
from pipeline.head import Head
from stages.base import StageData
from stages.methods import variant_of
from stages.prediction.calibration import fit_temperature
from stages.probes.linear import LinearProbe
from stages.probes.stage import Probes
from stages.splits import Indices, class_indices, inner_folds

VERSION: Final = 1
"""Raised whenever another temperature would be fitted."""
Folds = Sequence[tuple[Indices, Indices]]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How sure a head may be."""

    temperature: float = 1.0
    folds: int = 0
    """Inner folds that it was fitted on; 0 where the training subset cannot be folded, and then T is 1."""
    n_images: int = 0
    """Images that were held out once each."""


def calibration_of(head: Head) -> Calibration:
    """The temperature of a head: as it was fitted when it was asked first, else fitted and kept."""
    said = {
        "version": VERSION,
        "cell": head.cell.unit,
        "fingerprint": head.workspace.fingerprint(head.node),
        "artifacts": dict(head.commit.digests),
        WITHDRAWALS: [record.withdrawal_id for record in head.workspace.withdrawals],
    }
    file = head.workspace.paths.predictions.calibration(digest_json(said)) / "provenance.json"
    if file.is_file():
        return Calibration(**json.loads(file.read_bytes())["calibration"])
    fitted = calibrate(head)
    make_private(file.parent)
    write_atomic(file, json.dumps({**said, "calibration": asdict(fitted)}, indent=1) + "\n")
    return fitted


def calibrate(head: Head) -> Calibration:
    """Fit the temperature on out-of-fold logits of the training subset; the same head gives the same temperature."""
    labels = class_indices(head.data, head.subset, head.classes)
    groups = [head.data.rows[i].group_id for i in head.subset.tolist()]
    folds = inner_folds(labels, groups, head.stage.settings.folds, head.cell.seed)
    if folds is None or len(np.unique(labels)) < 2:
        return Calibration()
    with threadpool_limits(head.workspace.config.cluster.threads):
        logits = out_of_fold_logits(head, folds)
    return Calibration(fit_temperature(logits, labels), len(folds), len(labels))


def out_of_fold_logits(head: Head, folds: Folds) -> NDArray[np.float64]:
    """Logits of each image of the training subset by a head that was fitted without its fold, (n_train, K).

    The fusion of MedFocusCLIP is trained anew for each fold as well: M of an image whose label took part in the
    training is separated better than that of a new image, and a temperature from it would be too low. C and lambda are
    those that the cell chose.
    """
    strength = head.commit.metrics.get("C")
    settings = head.stage.settings.model_copy(update={"C": strength} if strength else {})
    probes, whole = Probes(settings, head.stage.context), Cell(head.cell.method, 1.0, head.cell.seed)
    logits = np.zeros((len(head.subset), len(head.classes)))
    with TemporaryDirectory(prefix="medfocus-") as scratch:
        for number, (seen, held) in enumerate(folds):
            data = _split(head.data, head.subset[seen], head.subset[held])
            if variant_of(head.cell.method):
                data = _fused(head, data, whole, Path(scratch) / f"fusion-{number}")
            out = Path(scratch) / f"probe-{number}"
            out.mkdir()
            probes.fit(whole, data, out)
            features = probes.features(head.cell.method, data, head.subset[held])
            logits[held] = LinearProbe.load(out / "coef.safetensors").logits(features)
    return logits


def _split(data: StageData, train: Indices, test: Indices) -> StageData:
    """The same images, of which these alone are for training and those for testing."""
    splits = dict.fromkeys(train.tolist(), Split.TRAIN) | dict.fromkeys(test.tolist(), Split.TEST)
    rows = tuple(replace(row, split=splits.get(i, Split.NONE)) for i, row in enumerate(data.rows))
    return replace(data, rows=rows)


def _fused(head: Head, data: StageData, cell: Cell, out: Path) -> StageData:
    """The same data with a fusion that was trained on them."""
    from stages.fusion.stage import Fusion

    node = head.workspace.nodes[head.node.inputs["fusion"]]
    stage, commit = cast("Fusion", head.workspace.cell_stage(node)), head.workspace.commit(node, head.cell.unit)
    chosen = commit.metrics.get("contrastive_weight") if commit else None
    settings = stage.settings.model_copy(update={} if chosen is None else {"contrastive_weight": chosen})
    out.mkdir()
    Fusion(settings, stage.context).fit(cell, data, out)
    return replace(data, artifacts={**data.artifacts, "fusion": out})
