"""The benchmark that trains all of a study's CoCoOp cells together makes of each what the pipeline makes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.benchmarks import gpu_cocoop
from tests.conftest import Cli

pytestmark = pytest.mark.slow

SETTINGS = tuple(
    part
    for setting in (
        *("masks.policy=none", "study.fractions=[0.5, 1.0]", "study.seeds=[0, 1]"),
        *('baselines.methods=["zero-shot", "cocoop"]', "baselines.cocoop_epochs=2"),
    )
    for part in ("--set", setting)
)


def test_cells_trained_together_predict_what_the_pipeline_commits(
    cli: Cli, phantom_folder: Path, tmp_path: Path
) -> None:
    dataset, labels = tmp_path / "work" / "phantoms", phantom_folder / "labels.csv"
    where = ("--dataset", "phantoms", "--workdir", dataset.parent)
    assert cli("ingest", phantom_folder, "--labels", labels, *where).code == 0
    done = cli("run", "--stage", "baselines", "--cluster", "inline", *where, *SETTINGS)
    assert done.code == 0, done.err
    gpu_cocoop.main([str(dataset), "--device", "cpu", "--out", str(tmp_path / "all.csv"), *SETTINGS])
    cells = pd.read_csv(tmp_path / "all.csv").groupby(["fraction", "shots", "seed"])
    assert len(cells) == 4
    for (fraction, _, seed), own in cells:
        unit = f"cocoop-{100 * fraction:g}-{seed}"
        (file,) = dataset.glob(f"stages/baselines/*/commits/{unit}/predictions.csv")
        committed = pd.read_csv(file)
        assert len(committed) == 6
        pd.testing.assert_frame_equal(own[committed.columns].reset_index(drop=True), committed, atol=1e-4, rtol=0)
