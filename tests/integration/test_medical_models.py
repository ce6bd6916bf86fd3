"""Two-tower models of medicine: small random ones in the format of their authors, loaded and compared with theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from open_clip.hf_model import ClsLastHiddenStatePooler
from torch import Tensor, nn
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, SwinConfig, SwinModel

from manifests.errors import WeightsError
from stages.baselines.prompts import Prompts
from stages.models import medical, weights
from stages.models.card import model_card
from stages.models.clip import load_clip
from stages.models.registry import names
from stages.models.weights import WeightsFolder

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "lesion", "\u2028", "##ion", "Edema", "edema", ".")
SMALL_BERT = {"hidden_size": 768, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}
SMALL_SWIN = {"embed_dim": 96, "depths": [1, 1, 1, 1], "num_heads": [3, 6, 12, 24]}
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
TEXTS = ("a photo of a lesion", "Edema .")
VOCABULARIES = {"biomedclip": "pubmedbert-vocabulary"}
EVERY = names("medical")


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.ENVIRONMENT, str(tmp_path / "weights"))
    monkeypatch.setattr(medical, "BERT", SMALL_BERT)
    monkeypatch.setattr(medical, "SWIN", SMALL_SWIN)


def bert(*, pooler: bool) -> Any:
    return BertModel(BertConfig(vocab_size=len(WORDS), **SMALL_BERT), add_pooling_layer=pooler)


def swin() -> Any:
    return SwinModel(SwinConfig(image_size=224, patch_size=4, window_size=7, **SMALL_SWIN))


class Theirs(nn.Module):
    """A model with the modules of the authors' code, and so the keys of their files."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.logit_scale = name, nn.Parameter(torch.ones([]))
        for key, module in self.modules_of(name).items():
            self._at(key, module)
        generator = torch.Generator().manual_seed(len(name))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.05, generator=generator)

    @staticmethod
    def modules_of(name: str) -> Mapping[str, nn.Module]:
        if name == "biomedclip":
            projection = nn.Sequential(nn.Linear(768, 640, bias=False), nn.GELU(), nn.Linear(640, 512, bias=False))
            return {
                "visual.trunk": timm.create_model("vit_base_patch16_224", num_classes=0),
                "visual.head.proj": nn.Linear(768, 512, bias=False),
                "text.transformer": bert(pooler=False),
                "text.proj": projection,
            }
        if name.startswith("medclip"):
            resnet = torchvision.models.resnet50(weights=None)
            resnet.fc = nn.Linear(2048, 512, bias=False)
            of_vit = {"vision_model.model": swin(), "vision_model.projection_head": nn.Linear(768, 512, bias=False)}
            vision = of_vit if name == "medclip-vit" else {"vision_model.model": resnet}
            head = nn.Linear(768, 512, bias=name == "medclip-resnet")
            return vision | {"text_model.model": bert(pooler=True), "text_model.projection_head": head}
        resnet = torchvision.models.resnet50(weights=None)
        del resnet.fc
        swins = name == "cxr-clip-swin"
        trunk = {"image_encoder.image_encoder": swin()} if swins else {"image_encoder.resnet": resnet}
        return trunk | {
            "image_projection.projection": nn.Linear(768 if swins else 2048, 512),
            "text_encoder.text_encoder": bert(pooler=True),
            "text_projection.projection": nn.Linear(768, 512),
        }

    def _at(self, path: str, module: nn.Module) -> None:
        at: nn.Module = self
        *above, last = path.split(".")
        for part in above:
            at = getattr(at, part, None) or at.add_module(part, nn.Module()) or getattr(at, part)
        at.add_module(last, module)

    def vector_of_image(self, pixels: Tensor) -> Tensor:
        """Their vector of an image, after the projection."""
        found = {key: self.get_submodule(key) for key in self.modules_of(self.name)}
        if self.name == "biomedclip":
            return found["visual.head.proj"](found["visual.trunk"](pixels))
        if self.name == "medclip-vit":
            return found["vision_model.projection_head"](found["vision_model.model"](pixels).pooler_output)
        if self.name == "medclip-resnet":
            return found["vision_model.model"](pixels)
        if self.name == "cxr-clip-swin":
            first = found["image_encoder.image_encoder"](pixels).last_hidden_state[:, 0]
            return found["image_projection.projection"](first)
        resnet: Any = found["image_encoder.resnet"]
        body = nn.Sequential(*list(resnet.children()))  # without fc, in the order in which they run
        return found["image_projection.projection"](body(pixels).flatten(1))

    def vector_of_text(self, ids: list[int]) -> Tensor:
        """Their vector of one text."""
        tokens = torch.tensor([ids])
        if self.name == "biomedclip":
            tower: Any = self.text
            out = tower.transformer(tokens)
            return tower.proj(ClsLastHiddenStatePooler()(out, torch.ones_like(tokens)))[0]
        if self.name.startswith("medclip"):
            hidden = self.get_submodule("text_model.model")(tokens, output_hidden_states=True).hidden_states
            stacked = torch.stack([hidden[1], hidden[2], hidden[-1]]).permute(1, 0, 2, 3)
            return self.get_submodule("text_model.projection_head")(stacked.mean(2).mean(1))[0]
        last = self.get_submodule("text_encoder.text_encoder")(tokens).last_hidden_state
        return self.get_submodule("text_projection.projection")(last[0, -1])


def vocabulary(path: Path, words: tuple[str, ...] = WORDS) -> Path:
    path.write_text("\n".join(words) + "\n", "utf-8")
    return path


def added(name: str, folder: Path) -> Theirs:
    theirs = Theirs(name).eval().requires_grad_(requires_grad=False)
    state = theirs.state_dict()
    position_ids = next(key for key in state if key.endswith("embeddings.word_embeddings.weight"))
    state[position_ids.replace("word_embeddings.weight", "position_ids")] = torch.arange(512)[None]
    torch.save({"model": state}, folder / "model.bin")
    WeightsFolder().add(name, folder / "model.bin")
    of_text = VOCABULARIES.get(name, "bioclinicalbert-vocabulary")
    WeightsFolder().add(of_text, vocabulary(folder / "vocab.txt"))
    return theirs


@pytest.mark.parametrize("name", EVERY)
def test_vectors_are_those_of_the_authors_code(name: str, tmp_path: Path) -> None:
    theirs = added(name, tmp_path)
    model = load_clip(name, "cpu", "float32")
    mean, std = (torch.tensor(model.card[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = theirs.vector_of_image((torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 255 - mean) / std)
    found = model.encode_image(IMAGES, "projected", tokens=True)
    torch.testing.assert_close(found.vectors, nn.functional.normalize(expected, dim=1), atol=1e-5, rtol=1e-4)
    assert found.tokens is not None
    assert found.tokens.shape == (2, found.grid[0] * found.grid[1], 512)
    trunk = model.encode_image(IMAGES, "trunk", tokens=False).vectors
    assert trunk.shape[1] == model.card["dims"]["trunk"]
    ids = [[2, 4, 5, 6, 4, 7, 3], [2, 11 if name == "biomedclip" else 10, 12, 3]]
    with torch.no_grad():
        texts = torch.stack([theirs.vector_of_text(one) for one in ids])
    ours = model.encode_text(TEXTS, "projected")
    torch.testing.assert_close(ours, nn.functional.normalize(texts, dim=1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["biomedclip", "medclip-vit", "cxr-clip-swin"])
def test_text_alone_is_the_text_among_longer_ones(name: str, tmp_path: Path) -> None:
    added(name, tmp_path)
    model = load_clip(name, "cpu", "float32")
    alone, among = model.encode_text(TEXTS[1:], "projected")[0], model.encode_text(TEXTS, "projected")[1]
    torch.testing.assert_close(alone, among, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["biomedclip", "medclip-vit", "cxr-clip-swin"])
def test_coop_on_its_text_tower_begins_as_zero_shot_and_learns(name: str, tmp_path: Path) -> None:
    added(name, tmp_path)
    model = load_clip(name, "cpu", "float32")
    learner = Prompts(model, ["lesion", "Edema"], "a photo of a", "projected", 100.0)
    words = model.encode_text(["a photo of a lesion.", "a photo of a Edema."], "projected").clone()
    images = nn.functional.normalize(torch.randn((5, 512), generator=torch.Generator().manual_seed(0)), dim=1)
    torch.testing.assert_close(learner(images), 100 * images @ words.T, atol=1e-5, rtol=0)
    learner(images).square().sum().backward()
    assert learner.context.grad is not None
    assert learner.context.grad.abs().max() > 0


def test_wrong_files_are_refused_by_name(tmp_path: Path) -> None:
    added("medclip-vit", tmp_path)
    with pytest.raises(WeightsError, match=r"model\.bin and biomedclip do not fit each other: missing: image\."):
        WeightsFolder().add("biomedclip", tmp_path / "model.bin")
    with pytest.raises(WeightsError, match=r"model\.bin: expected a file that ends in \.txt"):
        WeightsFolder().add("pubmedbert-vocabulary", tmp_path / "model.bin")
    with pytest.raises(WeightsError, match=r"few\.txt is no vocabulary of a BERT: it lacks \[PAD\], \[UNK\]"):
        WeightsFolder().add("pubmedbert-vocabulary", vocabulary(tmp_path / "few.txt", ("[CLS]", "[SEP]", "a")))
    with pytest.raises(WeightsError, match=r"does not begin with \[PAD\]"):
        WeightsFolder().add("pubmedbert-vocabulary", vocabulary(tmp_path / "late.txt", (*WORDS[1:], WORDS[0])))
    with pytest.raises(WeightsError, match="holds a word piece twice"):
        WeightsFolder().add("pubmedbert-vocabulary", vocabulary(tmp_path / "twice.txt", (*WORDS, "a")))
    WeightsFolder().add("bioclinicalbert-vocabulary", vocabulary(tmp_path / "long.txt", (*WORDS, "more")))
    with pytest.raises(WeightsError, match=r"bioclinicalbert-vocabulary has 14 word pieces, medclip-vit knows 13"):
        load_clip("medclip-vit", "cpu", "float32").encode_text(TEXTS, "projected")


def test_altered_file_is_named_with_both_digests(tmp_path: Path) -> None:
    added("medclip-vit", tmp_path)
    record = WeightsFolder().record("medclip-vit")
    kept = WeightsFolder().root / record.file
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(
        WeightsError, match=rf"{record.file} was altered: sha256 [0-9a-f]{{64}}, expected {record.sha256}"
    ):
        load_clip("medclip-vit", "cpu", "float32")


def test_model_without_its_vocabulary_says_what_to_add(tmp_path: Path) -> None:
    theirs = Theirs("medclip-vit")
    torch.save(theirs.state_dict(), tmp_path / "model.bin")
    WeightsFolder().add("medclip-vit", tmp_path / "model.bin")
    with pytest.raises(WeightsError, match=r"bioclinicalbert-vocabulary are not here.*vocab\.txt from emilyalsentzer"):
        model_card("medclip-vit", "float32")


def test_clip_in_the_format_of_transformers_is_openais(tmp_path: Path) -> None:
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "patch_size": 32}
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=512)
    theirs = CLIPModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.03, generator=generator)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    WeightsFolder().add("pubmedclip-vit-b-32", tmp_path / "pytorch_model.bin")
    model = load_clip("pubmedclip-vit-b-32", "cpu", "float32")
    mean, std = (torch.tensor(model.card[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    pixels = (torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        image = theirs.visual_projection(theirs.vision_model(pixels).pooler_output)
        ids = model.text_tower.tokenize(TEXTS)
        hidden = theirs.text_model(ids).last_hidden_state
        words = theirs.text_projection(hidden[torch.arange(2), ids.argmax(dim=1)])
    found = model.encode_image(IMAGES, "projected", tokens=False).vectors
    torch.testing.assert_close(found, nn.functional.normalize(image, dim=1), atol=1e-4, rtol=1e-3)
    ours = model.encode_text(TEXTS, "projected")
    torch.testing.assert_close(ours, nn.functional.normalize(words, dim=1), atol=1e-4, rtol=1e-3)
