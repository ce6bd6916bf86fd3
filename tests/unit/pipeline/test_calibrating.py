"""The temperature of a head comes from images that took no part in its fit, in the fusion neither."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from manifests.types import Cell
from pipeline.calibrating import Calibration, calibrate, out_of_fold_logits
from pipeline.head import Head
from stages.base import StageData
from stages.fusion.settings import FusionSettings
from stages.fusion.stage import Fusion
from stages.probes.linear import LinearProbe
from stages.probes.settings import ProbesSettings
from stages.probes.stage import Probes
from stages.splits import train_indices
from tests.unit.stages.small_study import CLASSES, context, image_rows, study_data

COUNTS = {"benign": (6, 3), "malignant": (6, 3), "normal": (6, 3)}
FUSION = FusionSettings(view="masked", epochs=5)


def head(folder: Path, method: str, data: StageData | None = None) -> Head:
    """A head as it is loaded, of a study that lies in memory."""
    data = data or study_data(image_rows(COUNTS), folder=folder)
    fusion, cell = Fusion(FUSION, context()), Cell(method, 1.0, 0)
    workspace: Any = SimpleNamespace(
        nodes={"fusion": "fusion"},
        classes=CLASSES,
        config=SimpleNamespace(cluster=SimpleNamespace(threads=1)),
        cell_stage=lambda _: fusion,
        commit=lambda *_: SimpleNamespace(metrics={"contrastive_weight": 0.5}),
    )
    node: Any = SimpleNamespace(inputs={"fusion": "fusion"})
    commit: Any = SimpleNamespace(metrics={"C": 10.0})
    unused: Any = None
    probe: LinearProbe = unused
    return Head(
        workspace, node, cell, commit, Probes(ProbesSettings(), context()), probe, data, train_indices(data, cell)
    )


@pytest.mark.parametrize("method", ["masked", "medfocus-concat-mlp@masked"])
def test_label_of_a_held_out_image_does_not_change_what_is_said_of_it(tmp_path: Path, method: str) -> None:
    honest = head(tmp_path, method)
    held = np.arange(0, len(honest.subset), 3)
    folds = [(np.setdiff1d(np.arange(len(honest.subset)), held), held)]
    position = int(honest.subset[held[0]])
    rows = list(honest.data.rows)
    rows[position] = replace(rows[position], label="normal" if rows[position].label != "normal" else "benign")
    lied = head(tmp_path, method, replace(honest.data, rows=tuple(rows)))
    np.testing.assert_array_equal(out_of_fold_logits(honest, folds)[held], out_of_fold_logits(lied, folds)[held])


def test_temperature_is_the_same_each_time_and_says_its_folds(tmp_path: Path) -> None:
    first, again = (
        calibrate(head(tmp_path, "masked")),
        calibrate(head(tmp_path / "again", "masked", head_data(tmp_path))),
    )
    assert first == again
    assert (first.folds, first.n_images) == (5, 18)


def head_data(folder: Path) -> StageData:
    data = study_data(image_rows(COUNTS))
    return replace(data, artifacts={"texts": folder / "texts"})


def test_class_with_one_patient_leaves_the_temperature_at_one(tmp_path: Path) -> None:
    data = study_data(image_rows({**COUNTS, "normal": (1, 3)}), folder=tmp_path)
    assert calibrate(head(tmp_path, "masked", data)) == Calibration(1.0, 0, 0)
