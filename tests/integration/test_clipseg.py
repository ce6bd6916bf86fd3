"""CLIPSeg as a mask source: transformers' own numbers, one candidate a text, files that must fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from manifests.errors import WeightsError
from pipeline.config import load_config
from stages.base import StageContext
from stages.images import Placement
from stages.models import clipseg, weights
from stages.models.weights import WeightsFolder
from stages.proposals.by_text import TextProposer
from stages.proposals.settings import ProposalsSettings
from stages.proposals.stage import Proposals

TEXTS = ("a lesion", "an organ")
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
PLACE = Placement(32, 0, 192, 256)
SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.ENVIRONMENT, str(tmp_path / "weights"))
    vision = {**SMALL, "num_hidden_layers": 10, "patch_size": 16, "image_size": 224}
    sizes = {**clipseg.SIZES, "vision_config": vision, "text_config": {**SMALL, "num_hidden_layers": 2}}
    monkeypatch.setattr(clipseg, "SIZES", {**sizes, "projection_dim": 64, "decoder_intermediate_size": 64})


def added(folder: Path, **changed: torch.Tensor) -> Any:
    theirs = clipseg.build()
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    save_file({**theirs.state_dict(), **changed}, folder / "model.safetensors")
    WeightsFolder().add("clipseg", folder / "model.safetensors")
    return theirs


def test_logits_are_those_of_transformers(tmp_path: Path) -> None:
    theirs = added(tmp_path)
    ours = clipseg.load_text_segmenter("clipseg", TEXTS, "cpu")
    found = ours.logits(list(IMAGES))
    assert found.shape == (2, 2, 352, 352)
    squares = torch.stack([clipseg.resize(torch.tensor(image), 352) for image in IMAGES])
    mean, std = (torch.tensor(ours.card[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    pixels = (squares.float() / 255 - mean) / std
    ids = clipseg.open_clip.get_tokenizer(clipseg.TOKENIZER)(list(TEXTS))
    with torch.no_grad():
        for index in range(2):
            twice = pixels[index : index + 1].expand(2, -1, -1, -1)
            expected = theirs(input_ids=ids, pixel_values=twice, interpolate_pos_encoding=True).logits
            torch.testing.assert_close(found[index], expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    assert (found[0, 0] - found[0, 1]).abs().max() > 1e-5 * found.abs().max()


def test_file_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.safetensors and CLIPSeg.*unexpected: stranger"):
        added(tmp_path, stranger=torch.zeros(1))
    with pytest.raises(WeightsError, match=r"clipseg are not here.*CIDAS/clipseg-rd64-refined"):
        clipseg.load_text_segmenter("clipseg", TEXTS, "cpu")


class Drawn:
    """Stands in for a loaded model: fixed chances for two texts, the second everywhere below an even chance."""

    def logits(self, canvases: list[np.ndarray]) -> torch.Tensor:
        found = torch.full((len(canvases), 2, 88, 88), -6.0)
        found[:, 0, 30:50, 20:60] = 2.0
        found[:, 1, 30:60, 20:60] = -0.5
        return found


def settings(**changes: Any) -> ProposalsSettings:
    return ProposalsSettings(model="clipseg", canvas_px=256, texts=TEXTS, **changes)


def test_each_text_gives_a_candidate_where_its_chance_is_high() -> None:
    proposer = TextProposer(Drawn(), settings())  # type: ignore[arg-type]
    (candidates, fixed), _ = proposer.propose(list(IMAGES), [PLACE, PLACE])
    assert len(candidates) == 1
    assert float(candidates.scores[0, 0]) == pytest.approx(float(torch.sigmoid(torch.tensor(2.0))), abs=1e-3)
    mask = np.unpackbits(candidates.packed[0].numpy(), axis=1).astype(bool)
    assert mask[100, 120]
    assert not mask[200, 120]
    assert not fixed.packed.any()
    loose = settings(text_threshold=0.3, min_predicted_iou=0.3, min_stability=0, nms_iou=1.0)
    lower = TextProposer(Drawn(), loose)  # type: ignore[arg-type]
    assert len(next(lower.propose(list(IMAGES), [PLACE, PLACE]))[0]) == 2


def test_texts_are_in_the_fingerprint_of_clipseg_alone(tmp_path: Path) -> None:
    added(tmp_path)

    def print_of(**changes: Any) -> str:
        return Proposals(ProposalsSettings(**changes), StageContext()).identity().fingerprint

    assert print_of() == print_of(texts=("another",))
    assert print_of(model="clipseg") != print_of(model="clipseg", texts=("another",))
    assert "texts" not in Proposals(ProposalsSettings(), StageContext()).identity().settings


def test_it_is_one_line_of_configuration(tmp_path: Path) -> None:
    added(tmp_path)
    config = load_config(overrides=["proposals.model=clipseg"])
    stage = Proposals(config.proposals, StageContext())
    stage.load("cpu")
    assert stage.attributes()["card"]["image_px"] == 352
    assert stage.projected_bytes(8) > stage.projected_bytes(4)
