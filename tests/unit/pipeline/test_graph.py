"""The graph of stages: branches, order, and what a stage pulls in."""

from __future__ import annotations

import pytest

from manifests.errors import UsageError
from pipeline.config import load_config
from pipeline.graph import build_graph, select
from stages.embeddings.settings import EmbeddingsSettings
from stages.fusion.settings import FusionSettings
from stages.probes.settings import ProbesSettings


def keys(stage: str, *overrides: str) -> list[str]:
    return [node.key for node in select(build_graph(load_config(overrides=overrides)), stage)]


def test_stage_brings_everything_it_needs_in_order() -> None:
    assert keys("fusion") == ["proposals", "masks[union]", "embeddings[union]", "texts", "fusion[union]"]
    assert keys("one") == ["proposals", "masks[union]"]


def test_supplied_masks_need_no_proposals() -> None:
    assert keys("masks", "masks.policy=supplied") == ["masks[supplied]"]
    with pytest.raises(UsageError, match="no stage 'proposals'"):
        keys("proposals", "masks.policy=supplied")


def test_tokens_are_one_node_for_all_policies() -> None:
    with pytest.raises(UsageError, match=r"no stage 'tokens'.*embeddings\.tokens"):
        keys("tokens")
    kept = ("embeddings.tokens=true", 'masks.compare=["none"]')
    assert keys("tokens", *kept) == ["tokens"]
    nodes = {n.key: n.inputs for n in build_graph(load_config(overrides=kept))}
    assert nodes["embeddings[none]"] == {"masks": "masks[none]", "tokens": "tokens"}
    assert nodes["probes[union]"]["tokens"] == "tokens"


def test_backbones_belong_to_the_baselines_alone() -> None:
    chosen = 'baselines.backbones=["resnet50-untrained"]'
    assert "probes[resnet50-untrained]" in keys("baselines", chosen)
    assert not [key for stage in ("two", "all", "probes") for key in keys(stage, chosen) if "resnet50" in key]


def test_inputs_come_before_what_needs_them() -> None:
    nodes = build_graph(load_config(overrides=['masks.compare=["supplied", "none"]']))
    place = {node.key: i for i, node in enumerate(nodes)}
    assert all(place[key] < place[node.key] for node in nodes for key in node.inputs.values())


def test_what_knows_no_mask_is_computed_in_the_first_branch_alone() -> None:
    nodes = {n.key: n for n in build_graph(load_config(overrides=['masks.compare=["supplied"]']))}
    second, probes = nodes["embeddings[supplied]"].settings, nodes["probes[supplied]"].settings
    assert isinstance(second, EmbeddingsSettings)
    assert isinstance(probes, ProbesSettings)
    assert second.views == ("masked",)
    assert probes.methods == ("medfocus", "masked")


def test_view_that_a_joined_method_reads_stays_in_every_branch() -> None:
    overrides = ['masks.compare=["none"]', 'probes.methods=["original", "original+masked", "shape"]']
    nodes = {n.key: n.settings for n in build_graph(load_config(overrides=overrides))}
    embeddings, probes = nodes["embeddings[none]"], nodes["probes[none]"]
    assert isinstance(embeddings, EmbeddingsSettings)
    assert isinstance(probes, ProbesSettings)
    assert embeddings.views == ("original", "masked")
    assert probes.methods == ("original+masked", "shape")


def test_view_that_fusion_reads_stays_in_every_branch() -> None:
    overrides = ['masks.compare=["none"]', 'embeddings.views=["original"]', "fusion.view=original"]
    config = load_config(overrides=overrides)
    settings = {n.key: n.settings for n in build_graph(config)}["embeddings[none]"]
    assert isinstance(settings, EmbeddingsSettings)
    assert settings.views == ("original",)


def test_fusion_is_trained_for_the_methods_that_need_it() -> None:
    methods = 'probes.methods=["medfocus", "medfocus-none@original", "original", "constant"]'
    nodes = build_graph(load_config(overrides=[methods, 'masks.compare=["none"]']))
    fusions = {n.key: n.settings for n in nodes if n.stage == "fusion"}
    found = {key: s.methods for key, s in fusions.items() if isinstance(s, FusionSettings)}
    assert found == {"fusion[union]": ("medfocus", "medfocus-none@original"), "fusion[none]": ("medfocus",)}


def test_unknown_stage_lists_the_stages() -> None:
    with pytest.raises(UsageError, match=r"no stage 'mask'.*masks.*all"):
        keys("mask")


def test_one_node_can_be_named_by_its_key() -> None:
    several = 'masks.compare=["none"]'
    assert keys("embeddings[none]", several) == ["masks[none]", "embeddings[none]"]
    with pytest.raises(UsageError, match=r"no stage 'embeddings\[box\]'"):
        keys("embeddings[box]", several)
