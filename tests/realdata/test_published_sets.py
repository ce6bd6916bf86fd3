"""Published image sets, end to end: figures below what plain features reach mean a bug."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli

pytestmark = [pytest.mark.slow, pytest.mark.realdata]

DATA = Path(os.environ.get("MEDFOCUS_DATA", ROOT.parent / "shared" / "data"))
SETTINGS = ("--set", "masks.policy=none", "--set", "study.fractions=[1.0]", "--set", "study.seeds=[0]")


def data_set(name: str) -> Path:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not here; MEDFOCUS_DATA names the folder of the image sets")
    return folder


def test_covid_set_leaks_and_plain_features_reach_what_they_must(cli: Cli, tmp_path: Path) -> None:
    source = data_set("covid19_xray")
    ingest = ("ingest", source, "--dataset", "covid", "--workdir", tmp_path)
    refused = cli(*ingest, "--strict")
    assert refused.code == 4
    assert "classes can be told from margins" in refused.err
    assert "test images that are in train too: 8;" in cli(*ingest).out
    methods = ("--set", 'probes.methods=["original"]')
    done = cli("run", "--stage", "probes", "--workdir", tmp_path, *SETTINGS, *methods)
    assert done.code == 0, done.err
    scores = json.loads(next(tmp_path.rglob("original-100-0/scores.json")).read_text())
    assert (scores["n_train"], scores["n_test"], scores["n_test_unflagged"]) == (251, 66, 58)
    assert scores["correct"] >= 61
