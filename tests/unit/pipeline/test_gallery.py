"""The gallery's pictures and the facts of masks are those of the stores, by what the answers say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from manifests.types import Split
from pipeline import gallery
from pipeline.attention_heads import _masked, attended_cells
from pipeline.committed import Told, look_up, predictions
from pipeline.gallery import _right, take_pictures
from pipeline.mask_facts import mask_facts, mask_nodes
from pipeline.supplied_masks import EMPTY, take_supplied
from pipeline.workspace import Workspace
from stages.methods import ASKED
from tests.integration.pipelines import copy_source
from tests.unit.pipeline.committed_study import commit_cell, complete, ingested, reopened, scored

CORRECT = {"medfocus": 3, "masked": 1, "original": 5, "constant": 2}
"""Right answers of each method, the first of the six test images in the order of their paths."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, phantom_folder: Path) -> Workspace:
    """Both policies complete; methods answer differently."""
    workspace = ingested(tmp_path_factory.mktemp("study"), phantom_folder)
    nodes = [node for node in workspace.nodes.values() if node.stage in ("masks", "embeddings", "texts", "fusion")]
    complete(workspace, *(node.key for node in nodes))
    for node in workspace.nodes.values():
        if node.stage == "probes":
            for cell in workspace.cell_stage(node).cells():
                commit_cell(workspace, node, cell, scored(workspace, cell, 0, CORRECT[cell.method]))
    return reopened(workspace)


def pictures(study: Workspace) -> gallery.Pictures:
    committed, supplied = look_up(study), take_supplied(study)
    facts = mask_facts(study, committed, supplied)
    return take_pictures(study, mask_nodes(study, committed), committed, facts, supplied)


def by_path(study: Workspace) -> list[str]:
    rows = [row for row in study.rows("drop-001") if row.split == Split.TEST]
    return [row.image_id for row in sorted(rows, key=lambda row: row.path)]


def test_images_that_only_the_unmasked_method_gets_right_are_lost(study: Workspace) -> None:
    found = pictures(study)
    lost = {(item.policy, item.caption) for item in found.items if item.outcome == "lost"}
    assert lost == {(policy, image) for policy in ("supplied", "none") for image in by_path(study)[1:5]}
    assert not [item for item in found.items if item.outcome == "gained"]
    assert found.asked == ("masked", "original")
    for item in found.items:
        place = by_path(study).index(item.caption)
        assert (item.predicted == item.label) == (place < CORRECT["masked"])
        assert (item.without == item.label) == (place < CORRECT["original"])


def test_outcomes_count_every_test_image_of_a_policy_once(study: Workspace) -> None:
    outcomes = pictures(study).outcomes
    assert outcomes.groupby("mask")["n"].sum().to_dict() == {"supplied": 6, "none": 6}
    totals = outcomes[outcomes["mask"] == "supplied"][["both", "gained", "lost", "neither"]].sum()
    assert totals.to_dict() == {"both": 1, "gained": 0, "lost": 4, "neither": 1}
    assert outcomes["class"].tolist() == [*study.classes] * 2


def test_gallery_holds_as_many_of_a_class_and_outcome_as_there_is_room_for(
    study: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "MOST_PER_OUTCOME", 1)
    shown = pictures(study).items
    kinds = [(item.policy, item.label, item.outcome) for item in shown]
    assert len(set(kinds)) == len(kinds)


def test_answers_are_those_of_the_first_method_that_has_some_on_its_largest_subset(study: Workspace) -> None:
    told = predictions(study, look_up(study), "none", ("overlay", "masked", "medfocus"))
    assert told is not None
    assert (told.method, told.training) == ("masked", "100 %")
    labels = {("drop-001", row.row): row.label for row in study.rows("drop-001")}
    assert sum(labels[place] == name for place, name in told.classes.items()) == CORRECT["masked"]
    assert predictions(study, look_up(study), "none", ("overlay",)) is None
    assert predictions(study, look_up(study), None, ("original",)) is not None


def test_answers_and_maps_of_a_policy_are_of_one_method(study: Workspace) -> None:
    committed = look_up(study)
    attended = [(node.policy, cell.method) for node, cell in attended_cells(study, committed)]
    assert attended == [("supplied", "masked"), ("supplied", "original"), ("none", "masked")]
    for policy in ("supplied", "none"):
        told = predictions(study, committed, policy, ASKED)
        assert told is not None
        assert (policy, told.method) in attended


@pytest.mark.parametrize(
    ("methods", "attended"),
    [
        (("medfocus", "roi"), "roi"),
        (("original", "medfocus"), "medfocus"),
        (("roi+ring", "inverted", "binary"), "binary"),
        (("original", "constant", "inverted"), ""),
    ],
)
def test_map_is_of_the_first_method_asked_else_of_one_that_sees_a_right_mask(
    study: Workspace, methods: tuple[str, ...], attended: str
) -> None:
    cell = next(iter(look_up(study).cells["probes[none]"]))
    cells = [replace(cell, method=method) for method in methods]
    assert _masked(study.nodes["probes[none]"], study, cells) == attended


def test_method_under_a_wrong_mask_has_no_map_and_no_other_stands_in_for_it(study: Workspace) -> None:
    wrong = reopened(study, 'embeddings.views=["original", "masked", "inverted"]', "fusion.view=inverted")
    cell = next(iter(look_up(study).cells["probes[none]"]))
    cells = [replace(cell, method=method) for method in ("binary", "medfocus")]
    assert _masked(wrong.nodes["probes[none]"], wrong, cells) == ""


def test_copies_of_a_file_keep_the_answers_of_their_own_rows() -> None:
    own = pd.DataFrame({"drop": ["drop-001"] * 3, "row": [4, 7, 9], "image": "0a", "class": "a"})
    told = Told("masked", "100 %", {("drop-001", 4): "a", ("drop-001", 7): "b"})
    assert _right(own, told).tolist() == [True, False, pd.NA]
    assert _right(own, None).isna().all()


def test_picture_states_the_quality_of_its_mask_and_how_it_was_composed(study: Workspace) -> None:
    found = {item.policy: item for item in pictures(study).items}
    assert (found["none"].kind, found["none"].shown) == ("IoU", "masked")
    assert 0 < found["none"].quality < 0.5
    assert found["supplied"].quality is None


def test_gallery_of_many_classes_keeps_its_bound(study: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST", 7)
    assert len(pictures(study).items) == 7


def test_facts_are_those_of_the_stores(study: Workspace) -> None:
    facts = mask_facts(study, look_up(study), take_supplied(study))
    assert facts.groupby("mask").size().to_dict() == {"supplied": 18, "none": 18}
    assert facts[facts["mask"] == "supplied"]["area"].between(0.01, 0.5).all()
    assert facts[facts["mask"] == "supplied"]["iou"].isna().all()
    assert set(facts["split"]) == {"train", "test"}


def test_masks_are_compared_with_the_supplied_ones_of_some_test_images(study: Workspace) -> None:
    facts = mask_facts(study, look_up(study), take_supplied(study, most=4))
    whole = facts[(facts["mask"] == "none") & (facts["status"] == "ok")]
    compared = whole[whole["iou"].notna()]
    own = facts[facts["mask"] == "supplied"].set_index("image")
    assert len(compared) == 4
    assert set(compared["split"]) == {"test"}
    # The whole image's overlap with a mask is the mask's area.
    np.testing.assert_allclose(compared["iou"], own.loc[compared["image"], "area"], atol=0.02)


def test_empty_supplied_mask_is_not_compared_with(tmp_path: Path, phantom_folder: Path) -> None:
    source = copy_source(phantom_folder, tmp_path / "source")
    for path in (source / "masks").rglob("*.png"):
        with Image.open(path) as mask:
            Image.new("L", mask.size).save(path)
    supplied = take_supplied(ingested(tmp_path, source))
    assert supplied.found == {}
    assert {reason: len(images) for reason, images in supplied.unusable.items()} == {EMPTY: 6}
