"""What every map stage owes the driver, on real models and phantoms; a new stage is added to the list and passes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.ingest import IngestOptions, ingest
from manifests.layout import DatasetPaths
from manifests.types import ChunkArrays, ImageRow, Status, UnitResult, expect_array
from pipeline.config import load_config
from pipeline.graph import MAP_STAGES
from pipeline.workspace import Workspace
from stages.base import MapStage
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

EVERY_STAGE = [
    "proposals.points_per_side=2",
    "embeddings.tokens=true",
    'finetune.models=["lite0"]',
    'slca.models=["lite0"]',
]
N_ROWS = 4
BAD = 2
"""Position of the row whose file is not an image."""


class Chain:
    """The stages of the embedded preset on one chunk, each computed once from those before it."""

    def __init__(self, workspace: Workspace, rows: tuple[ImageRow, ...]) -> None:
        self.workspace, self.rows = workspace, rows
        self.results: dict[str, UnitResult] = {}

    def stage(self, name: str) -> MapStage:
        return self.workspace.map_stage(next(n for n in self.workspace.nodes.values() if n.stage == name))

    def upstream(self, name: str) -> Mapping[str, ChunkArrays]:
        return {below: self.result(below).arrays for below in self.stage(name).inputs}

    def result(self, name: str) -> UnitResult:
        if name not in self.results:
            self.stage(name).load("cpu")
            self.results[name] = self.process(name)
        return self.results[name]

    def process(self, name: str, rows: slice = slice(None)) -> UnitResult:
        upstream = {k: {n: a[rows] for n, a in arrays.items()} for k, arrays in self.upstream(name).items()}
        return self.stage(name).process(self.rows[rows], self.workspace.image_source("drop-001"), upstream)


@pytest.fixture(scope="module")
def chain(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    paths = DatasetPaths(tmp_path_factory.mktemp("contract") / "phantoms")
    ingest(paths, phantom_folder, IngestOptions(dataset="phantoms", labels=phantom_folder / "labels.csv"))
    workspace = Workspace(paths, load_config(overrides=EVERY_STAGE))
    rows = list(workspace.rows("drop-001")[:N_ROWS])
    rows[BAD] = replace(rows[BAD], path="absent.png")
    return Chain(workspace, tuple(rows))


@pytest.fixture(params=MAP_STAGES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_arrays_are_what_the_specs_say_and_status_is_last(chain: Chain, name: str) -> None:
    specs, arrays = chain.stage(name).outputs(), chain.result(name).arrays
    assert specs[-1].name == "status"
    assert {s.name for s in specs} == set(arrays)
    for spec in specs:
        expect_array(spec.name, arrays[spec.name], (N_ROWS, *spec.item_shape), spec.dtype)
        assert len(spec.item_dims) == len(spec.item_shape)


def test_every_row_has_one_outcome_in_order_that_equals_its_status(chain: Chain, name: str) -> None:
    result = chain.result(name)
    assert [(i.row, i.image_id) for i in result.items] == [(r.row, r.image_id) for r in chain.rows]
    assert [i.status for i in result.items] == list(result.arrays["status"])
    assert all(bool(i.reason) == (i.status != Status.OK) for i in result.items)


def test_image_that_cannot_be_read_is_a_failed_row_of_fill_values(chain: Chain, name: str) -> None:
    result = chain.result(name)
    assert result.items[BAD].status == Status.FAILED
    assert str(chain.workspace.drops[0].source_root) not in result.items[BAD].detail
    for spec in chain.stage(name).outputs()[:-1]:
        expected = np.full(spec.item_shape, spec.fill, dtype=spec.dtype)
        np.testing.assert_array_equal(result.arrays[spec.name][BAD], expected, err_msg=spec.name)


def test_same_chunk_gives_the_same_bytes_again(chain: Chain, name: str) -> None:
    again = chain.process(name)
    for array, values in chain.result(name).arrays.items():
        np.testing.assert_array_equal(again.arrays[array], values, err_msg=array)


def test_row_alone_is_the_row_among_others(chain: Chain, name: str) -> None:
    alone = chain.process(name, slice(1, 2))
    for array, values in chain.result(name).arrays.items():
        if array in ("candidates", "fixed", "mask"):
            assert np.unpackbits(alone.arrays[array][0].astype(np.uint8) ^ values[1].astype(np.uint8)).mean() < 1e-3
        else:
            np.testing.assert_allclose(alone.arrays[array][0], values[1], rtol=1e-3, atol=1e-3, err_msg=array)


def test_identity_and_attributes_are_json_and_know_no_batch_or_place(chain: Chain, name: str) -> None:
    stage = chain.stage(name)
    identity: Any = stage.identity()
    text = json.dumps([dict(identity.settings), dict(identity.weights), dict(identity.upstream), stage.attributes()])
    assert "batch_items" not in text
    assert str(chain.workspace.paths.root) not in text
    assert len(identity.fingerprint) == 64


def test_memory_bound_grows_with_the_chunk(chain: Chain, name: str) -> None:
    stage = chain.stage(name)
    arrays = chain.result(name).arrays.values()
    assert stage.projected_bytes(N_ROWS) >= sum(a.nbytes for a in arrays)
    assert stage.projected_bytes(64) > stage.projected_bytes(8)


def test_planning_needs_no_torch() -> None:
    script = (
        "import sys; from stages import stage_class; from stages.base import StageContext; "
        "from pipeline.config import load_config; from pipeline.graph import build_graph; "
        f"wanted = {{*{MAP_STAGES!r}, 'finetune', 'slca'}}; config = load_config(overrides={EVERY_STAGE!r}); "
        "nodes = [n for n in build_graph(config) if n.stage in wanted]; "
        "made = [stage_class(n.stage)(n.settings, StageContext(dict.fromkeys(n.inputs, 'a'))) for n in nodes]; "
        "[s.identity() and (s.outputs() if n.is_map else s.cells()) for n, s in zip(nodes, made)]; "
        "assert {n.stage for n in nodes} == wanted; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
