"""What is said of images whose chunk failed, and how it is written."""

from __future__ import annotations

import csv
import io
import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.answers import Answer, Neighbour, Prediction, answer_all
from pipeline.arrivals import Arrivals
from pipeline.prediction_files import write_predictions

ABOUT: dict[str, Any] = {"classes": ["=benign", "malignant"], "threshold": 0.5}
ANSWER = Answer("=benign", (0.75, 0.25), 0.7, (Neighbour("a" * 16, "malignant", 0.9),), 0.6, unlike=True)
GOOD = Prediction("b" * 16, "mueller/1.png", "ok", "", "ok", 0.25, ANSWER)
LOST = Prediction("c" * 16, "mueller/2.png", "failed", "decode.truncated", "failed", None, None)


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "predictions.csv").read_text("utf-8"))))


def test_image_of_a_chunk_that_failed_for_good_is_absent() -> None:
    nothing = np.zeros(0)
    lost: Any = SimpleNamespace(workspace=None, files={"1.png": "a" * 16}, places={}, features=None, mask_area=nothing)
    unused: Any = None
    (prediction,) = answer_all(unused, lost, unused, unused)
    assert (prediction.status, prediction.reason, prediction.answer) == ("absent", "unit.failed", None)
    assert set(Arrivals.__dataclass_fields__) >= {"files", "places", "features", "mask_area"}


def test_table_has_the_numbers_and_nothing_where_there_is_none(tmp_path: Path) -> None:
    write_predictions(tmp_path / "out", [GOOD, LOST], ABOUT, names=False)
    good, lost = rows_of(tmp_path / "out")
    assert (good["probability"], good["p_malignant"], good["calibrated"]) == ("0.75", "0.25", "0.7")
    assert (good["nearest_1"], good["nearest_2"], good["unlike"]) == ("a" * 16, "", "1")
    assert (lost["status"], lost["reason"]) == ("failed", "decode.truncated")
    assert {lost[name] for name in ("predicted", "calibrated", "p_=benign", "mask_area", "distance", "unlike")} == {""}


def test_class_that_looks_like_a_formula_is_escaped_in_the_table_alone(tmp_path: Path) -> None:
    write_predictions(tmp_path, [GOOD], ABOUT, names=False)
    assert rows_of(tmp_path)[0]["predicted"] == "'=benign"
    assert json.loads((tmp_path / "predictions.jsonl").read_text("utf-8"))["predicted"] == "=benign"


def test_file_names_are_shown_only_where_asked_for(tmp_path: Path) -> None:
    write_predictions(tmp_path / "without", [GOOD, LOST], ABOUT, names=False)
    write_predictions(tmp_path / "with", [GOOD, LOST], ABOUT, names=True)
    assert all(b"mueller" not in file.read_bytes() for file in (tmp_path / "without").iterdir())
    assert [row["file"] for row in rows_of(tmp_path / "with")] == ["mueller/1.png", "mueller/2.png"]
    for name in ("predictions.csv", "predictions.jsonl"):
        assert stat.S_IMODE((tmp_path / "with" / name).stat().st_mode) == 0o600
