"""The embedded model with its real weights, and open_clip's vision transformers with random ones."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import Conv2dSame
from torch import Tensor

from manifests.errors import WeightsError
from manifests.fingerprint import digest_file
from manifests.readers import ImageSource
from manifests.types import ImageRow, Split
from stages.base import StageContext
from stages.embeddings.settings import EmbeddingsSettings, TokensSettings
from stages.embeddings.stage import Embeddings
from stages.embeddings.tokens import Tokens
from stages.images import Placement, composite
from stages.masks.settings import MasksSettings
from stages.masks.stage import Masks
from stages.models import card, open_clip_files, room, weights
from stages.models.clip import ClipModel, load_clip, resize
from stages.models.converted import Converted
from stages.models.lite0 import load_lite0_state, mirrored, streamline
from stages.models.lite0_minilm import minilm_folder
from stages.models.make_heads import class_prompts
from stages.models.towers import Bias, VitTower
from stages.models.weights import WeightsFolder

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
TINY = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
TINY_NAME = "open_clip:tiny-quickgelu"


@pytest.fixture(scope="module", autouse=True)
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A weights folder of this module's own; conversion happens once in it."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(weights.ENVIRONMENT, str(folder))
        yield folder


@pytest.fixture(scope="module")
def lite0(weights_folder: Path) -> ClipModel:
    return load_clip("lite0-minilm", "cpu", "float32")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A QuickGELU vision transformer of open_clip's that is small enough for a test, with random weights."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quickgelu", TINY)
    for module in (card, open_clip_files):
        monkeypatch.setattr(module, "architecture_config", lambda _name: TINY)
    torch.manual_seed(0)
    return open_clip_files.build("tiny-quickgelu")


def save(model: Any, path: Path, **changed: Tensor) -> Path:
    save_file({**{k: v.contiguous() for k, v in model.state_dict().items()}, **changed}, path)
    return path


def test_imagenet_names_find_their_rows_of_the_classifier(lite0: ClipModel) -> None:
    rows = load_lite0_state()["classifier.weight"]
    chosen = torch.arange(0, 1000, 5)
    prompts = class_prompts()
    bank = lite0.encode_text([prompts[i][0] for i in chosen.tolist()], "trunk")
    scores = bank @ torch.nn.functional.normalize(rows - rows.mean(dim=0), dim=1).T
    assert (scores.argmax(dim=1) == chosen).float().mean() > 0.85


def test_vectors_do_not_depend_on_the_batch(lite0: ClipModel) -> None:
    together = lite0.encode_image(IMAGES, "trunk", tokens=True)
    alone = [lite0.encode_image(IMAGES[i : i + 1], "trunk", tokens=True) for i in range(8)]
    torch.testing.assert_close(torch.cat([e.vectors for e in alone]), together.vectors, atol=1e-4, rtol=0)
    assert together.tokens is not None
    torch.testing.assert_close(together.tokens.norm(dim=2) > 0, torch.ones(8, 49, dtype=torch.bool))


def test_mean_of_tokens_is_the_vector(lite0: ClipModel) -> None:
    for features in ("trunk", "projected"):
        encoding = lite0.encode_image(IMAGES[:2], features, tokens=True)  # type: ignore[arg-type]
        assert encoding.tokens is not None
        pooled = torch.nn.functional.normalize(encoding.tokens.mean(dim=1), dim=1)
        torch.testing.assert_close(pooled, encoding.vectors, atol=1e-5, rtol=0)


def test_texts_lifted_into_trunk_space_rank_as_projected_ones(lite0: ClipModel) -> None:
    texts = ["a photo of a cat", "an X-ray of a chest", "a truck"]
    trunk = lite0.encode_image(IMAGES, "trunk", tokens=False).vectors @ lite0.encode_text(texts, "trunk").T
    projected = lite0.encode_image(IMAGES, "projected", tokens=False).vectors @ lite0.encode_text(texts, "projected").T
    ratio = trunk / projected
    torch.testing.assert_close(ratio, ratio[:, :1].expand(-1, 3), atol=1e-3, rtol=1e-3)
    assert (ratio > 0).all()
    assert (ratio <= 1 + 1e-4).all()


def test_towers_are_those_of_open_clips_own_model(lite0: ClipModel) -> None:
    text = {**card.LITE0_MINILM["text_cfg"], "hf_model_name": str(minilm_folder()), "hf_model_pretrained": False}
    model = open_clip.CustomTextCLIP(**{**card.LITE0_MINILM, "text_cfg": text}).eval()
    model.load_state_dict(Converted("lite0-minilm", WeightsFolder()).tensors(""))
    preprocess = open_clip.image_transform(224, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    tokens = open_clip.tokenizer.HFTokenizer(str(minilm_folder()), context_length=64)(["a photo of a cat"])
    with torch.inference_mode():
        image = model.encode_image(preprocess(Image.fromarray(IMAGES[0]))[None], normalize=True)
        name = model.encode_text(tokens, normalize=True)
    ours = lite0.encode_image(IMAGES[:1], "projected", tokens=False).vectors
    torch.testing.assert_close(ours, image, atol=1e-3, rtol=0)
    torch.testing.assert_close(lite0.encode_text(["a photo of a cat"], "projected"), name, atol=1e-5, rtol=0)


def test_resize_is_pillows_to_one_grey_level() -> None:
    image = IMAGES[0, :, :50]
    expected = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
    ours = resize(torch.tensor(image), 224).permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - expected).max() <= 1


def test_bfloat16_is_close_to_float32(lite0: ClipModel) -> None:
    half = load_clip("lite0-minilm", "cpu", "bfloat16").encode_image(IMAGES[:2], "trunk", tokens=False).vectors
    assert half.dtype == torch.float32
    assert ((half * lite0.encode_image(IMAGES[:2], "trunk", tokens=False).vectors).sum(dim=1) > 0.995).all()


def test_nothing_is_asked_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a socket was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    model = load_clip("lite0-minilm", "cpu", "float32")
    assert model.encode_text(["a"], "trunk").shape == (1, 1280)


def test_second_load_reads_the_kept_file(lite0: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.models.converted.convert", lambda *_: pytest.fail("converted again"))
    again = load_clip("lite0-minilm", "cpu", "float32").encode_image(IMAGES[:1], "trunk", tokens=False).vectors
    assert torch.equal(again, lite0.encode_image(IMAGES[:1], "trunk", tokens=False).vectors)


def test_damaged_kept_file_is_made_again(tmp_path: Path) -> None:
    Converted("lite0-minilm", WeightsFolder(tmp_path))
    (file,) = (tmp_path / "derived").glob("*.safetensors")
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    Converted("lite0-minilm", WeightsFolder(tmp_path))
    assert file.read_bytes() == before
    assert len(list(file.parent.iterdir())) == 2


def test_folder_that_cannot_be_written_only_costs_the_conversion(tmp_path: Path) -> None:
    (tmp_path / "derived").write_text("a file where the folder should be")
    weights = Converted("lite0-minilm", WeightsFolder(tmp_path))
    assert weights.tensors("visual.head.")["proj.weight"].shape == (256, 1280)


def test_altered_heads_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "lite0_minilm_heads.safetensors"
    heads = load_file(shutil.copy(weights.SHIPPED / name, tmp_path / name))
    save_file(heads | {"logit_scale": torch.tensor(0.0)}, tmp_path / name)
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    with pytest.raises(WeightsError, match="altered"):
        Converted("lite0-minilm", WeightsFolder(tmp_path / "empty"))


def test_batch_is_cut_to_free_memory_beforehand(lite0: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lite0.encode_image(IMAGES, "trunk", tokens=False).vectors
    tower, sizes = lite0._image, []

    def counted(pixels: Tensor, _bias: None) -> Any:
        sizes.append(len(pixels))
        return tower(pixels)

    monkeypatch.setattr(lite0, "_image", counted)
    monkeypatch.setattr(room, "free_bytes", lambda device: 3 * card.ACTIVATION_BYTES / room.SHARE)
    torch.testing.assert_close(lite0.encode_image(IMAGES, "trunk", tokens=False).vectors, expected, atol=1e-4, rtol=0)
    assert sizes == [3, 3, 2]


def test_vit_from_a_local_file_is_open_clips(tiny: Any, tmp_path: Path) -> None:
    with torch.inference_mode():
        preprocess = open_clip.image_transform(32, is_train=False)
        expected = tiny.encode_image(preprocess(Image.fromarray(IMAGES[0]))[None], normalize=True)
        name = tiny.encode_text(open_clip.tokenize(["a cat"]), normalize=True)
    WeightsFolder().add(TINY_NAME, save(tiny, tmp_path / "tiny.safetensors"))
    model = load_clip(TINY_NAME, "cpu", "float32")
    ours = model.encode_image(IMAGES[:1], "projected", tokens=False).vectors
    torch.testing.assert_close(ours, expected, atol=5e-3, rtol=0)
    torch.testing.assert_close(model.encode_text(["a cat"], "projected"), name, atol=1e-5, rtol=0)
    assert (model.card["activation"], model.card["dims"]) == ("quickgelu", {"trunk": 64, "projected": 32})


def test_vit_trunk_times_projection_is_projected(tiny: Any, tmp_path: Path) -> None:
    proj = tiny.visual.proj.detach().clone()
    WeightsFolder().add(TINY_NAME, save(tiny, tmp_path / "tiny.safetensors"))
    model = load_clip(TINY_NAME, "cpu", "float32")
    trunk, projected = (model.encode_image(IMAGES[:3], f, tokens=True) for f in ("trunk", "projected"))  # type: ignore[arg-type]
    lifted = torch.nn.functional.normalize(trunk.vectors @ proj, dim=1)
    torch.testing.assert_close(lifted, projected.vectors, atol=1e-5, rtol=0)
    assert trunk.tokens is not None
    torch.testing.assert_close(trunk.tokens @ proj, projected.tokens, atol=1e-4, rtol=0)
    assert (trunk.grid, trunk.tokens.shape) == ((2, 2), (3, 4, 64))


def test_attention_bias_turns_the_last_blocks_away_from_a_patch(tiny: Any, tmp_path: Path) -> None:
    WeightsFolder().add(TINY_NAME, save(tiny, tmp_path / "tiny.safetensors"))
    model = load_clip(TINY_NAME, "cpu", "float32")
    plain = model.encode_image(IMAGES[:2], "trunk", tokens=False).vectors
    values = torch.zeros(2, 4)
    same = model.encode_image(IMAGES[:2], "trunk", tokens=False, bias=Bias(values, 2)).vectors
    torch.testing.assert_close(same, plain, atol=1e-6, rtol=0)
    values[1, 3] = -3.0
    biased = model.encode_image(IMAGES[:2], "trunk", tokens=False, bias=Bias(values, 1)).vectors
    torch.testing.assert_close(biased[0], plain[0], atol=1e-6, rtol=0)
    assert (biased[1] - plain[1]).abs().max() > 1e-4
    assert torch.equal(model.encode_image(IMAGES[:2], "trunk", tokens=False).vectors, plain)  # nothing is left behind

    block = tiny.visual.transformer.resblocks[-1]
    seen = []
    hook = block.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    pixels = torch.randn(1, 3, *tiny.visual.image_size)
    tower = VitTower(tiny.visual.eval())
    with torch.no_grad():
        pooled = tower(pixels, Bias(values[1:], 1)).pooled
        hook.remove()
        x = seen[0]
        q, k, v = torch.nn.functional.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(
            3, -1
        )
        logits = (q @ k.mT / 8)[0] + torch.nn.functional.pad(values[1], (1, 0))
        x = x + block.attn.out_proj(logits.softmax(dim=-1) @ v[0])
        x = x + block.mlp(block.ln_2(x))
        torch.testing.assert_close(pooled, tower.visual.ln_post(x[:, 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("key", "shape"), [("visual.positional_embedding", (10, 64)), ("visual.proj", (64, 16))])
def test_file_of_another_architecture_is_refused(tiny: Any, tmp_path: Path, key: str, shape: tuple[int, int]) -> None:
    file = save(tiny, tmp_path / "other.safetensors", **{key: torch.zeros(shape)})
    with pytest.raises(WeightsError, match=key):
        WeightsFolder(tmp_path / "w").add(TINY_NAME, file)


def test_archive_that_holds_code_is_refused(tiny: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ViT-B-32.pt", "w") as archive:
        archive.writestr("ViT-B-32/code/__torch__.py", "")
    with pytest.raises(WeightsError, match="TorchScript archive"):
        WeightsFolder(tmp_path / "w").add(TINY_NAME, tmp_path / "ViT-B-32.pt")


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32", "roberta-ViT-B-32", "ViT-B-33"])
def test_architecture_without_defined_features_is_refused(name: str) -> None:
    with pytest.raises(WeightsError, match=name):
        card.feature_dims(f"open_clip:{name}")


def test_identity_and_outputs_need_no_torch() -> None:
    code = (
        "import sys; from stages.base import StageContext\n"
        "from stages.embeddings.settings import EmbeddingsSettings\n"
        "from stages.embeddings.stage import Embeddings\n"
        "stage = Embeddings(EmbeddingsSettings(), StageContext({'masks': 'a'}))\n"
        "stage.identity(), stage.outputs(), stage.attributes(), stage.projected_bytes(64)\n"
        "sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_declared_outputs_are_what_the_model_gives(lite0: ClipModel) -> None:
    stage = Embeddings(EmbeddingsSettings(), StageContext())
    image, tokens = stage.outputs()[0], Tokens(TokensSettings(), StageContext()).outputs()[0]
    encoding = lite0.encode_image(IMAGES[:1], "trunk", tokens=True)
    assert encoding.tokens is not None
    assert (encoding.vectors.shape[1], tuple(encoding.tokens.shape[1:])) == (image.item_shape[1], tokens.item_shape)
    assert stage.attributes()["card"] == {**lite0.card, "features": "trunk"}


def test_clip_rank_takes_the_candidate_whose_crop_is_most_like_the_prompts(lite0: ClipModel, tmp_path: Path) -> None:
    side, prompts = 128, ("a tabby cat", "an animal")
    image = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    image[:64, :64] = np.linspace(0, 255, 64, dtype=np.uint8)[:, None]
    masks = np.zeros((20, side, side), dtype=bool)
    for k, mask in enumerate(masks):
        mask[5 * k : 5 * k + 24, 4 * k : 4 * k + 30] = True
    packed = np.packbits(masks, axis=-1)
    Image.fromarray(image).save(tmp_path / "a.png")
    digest = digest_file(tmp_path / "a.png")
    row = ImageRow(0, digest[:16], "a.png", "", "", digest, 1, side, side, "RGB", "a", Split.TRAIN, "g", "", "")
    given = {
        "candidates": packed[None],
        "candidate_scores": np.tile(np.float32([0.9, 0.9, 0.05, 0.0]), (1, len(masks), 1)),
        "fixed": packed[None, :2],
        "fixed_scores": np.ones((1, 2, 4), np.float32),
        "placement": np.array([[0, 0, side, side]], np.int32),
        "status": np.zeros(1, np.uint8),
    }
    settings = MasksSettings(policy="clip-rank", clip_prompts=prompts, canvas_px=side)
    stage = Masks(settings, StageContext({"proposals": "f" * 64}))
    stage.load("cpu")
    found = stage.process([row], ImageSource(tmp_path), {"proposals": given}).arrays["mask"][0]
    placement = Placement(0, 0, side, side)
    crops = [composite(composite(image, m, "masked", placement), m, "crop", placement) for m in masks]
    likeness = lite0.encode_image(crops, "projected", tokens=False).vectors @ lite0.encode_text(prompts, "projected").T
    best = int(likeness.mean(dim=1).argmax())
    assert float(likeness.mean(dim=1).std()) > 1e-3
    np.testing.assert_array_equal(found, masks[best])
    assert stage.projected_bytes(1) > Masks(MasksSettings(canvas_px=side), StageContext()).projected_bytes(1)


@pytest.mark.parametrize("side", [64, 224])
def test_streamlined_trunk_gives_the_same_maps(side: int) -> None:
    torch.manual_seed(0)
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True).eval()
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 1.5)
    pixels = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        expected = net(pixels)
        streamline(net)
        assert not any(isinstance(m, torch.nn.BatchNorm2d | Conv2dSame) for m in net.modules())
        for ours, theirs in zip(net(mirrored(pixels)), expected, strict=True):
            torch.testing.assert_close(mirrored(ours), theirs, atol=1e-4 * float(theirs.std()), rtol=1e-4)


@pytest.mark.slow
def test_compiled_tower_gives_the_same_vectors(lite0: ClipModel) -> None:
    compiled = load_clip("lite0-minilm", "cpu", "float32", compiled=True)
    assert isinstance(compiled._image, torch._dynamo.OptimizedModule)
    expected, found = (m.encode_image(IMAGES[:4], "trunk", tokens=False).vectors for m in (lite0, compiled))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.full((8, 8, 3), np.nan),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((8, 8, 3), np.int16),
        np.zeros((8, 8, 3), bool),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8), np.uint8),
    ],
    ids=lambda image: f"{image.dtype}{image.shape}",
)
def test_image_of_another_form_is_refused_with_both_sides(lite0, image):
    with pytest.raises(ValueError, match=rf"\(H, W, 3\) uint8, got \({', '.join(map(str, image.shape))}\)"):
        lite0.encode_image([image], "trunk", tokens=False)


def test_views_with_negative_strides_are_read_like_their_copies(lite0):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)[::-1, ::2]
    one, other = (lite0.encode_image([i], "trunk", tokens=False).vectors for i in (image, image.copy()))
    assert torch.equal(one, other)
