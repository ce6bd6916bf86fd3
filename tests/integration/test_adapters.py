"""SAM-Adapter and SAMed: they start as the model that they adapt, answer each image by itself, and load strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from manifests.errors import ConfigError, WeightsError
from pipeline.config import load_config
from stages.images import Placement
from stages.models import weights
from stages.models.adapters import attach, high_pass, load_adapter
from stages.models.registry import AdapterKind, entry
from stages.models.sam2 import Segmenter, assemble, load_segmenter, single_mask
from stages.models.sam2_card import NOTHING, segmenter_card
from stages.models.training.adapt import AdapterTraining, Course, mask_loss
from stages.models.training.augment import Labelled
from stages.models.training.samples import Phase
from stages.models.weights import WeightsFolder
from stages.proposals.propose import Proposer
from stages.proposals.settings import ProposalsSettings

KINDS: tuple[AdapterKind, ...] = ("sam-adapter", "samed")
TINY, LITE0 = "sam2-tiny-untrained", "sam2-lite0"
PX = 128


@pytest.fixture(autouse=True)
def weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(weights.ENVIRONMENT, str(tmp_path / "weights"))
    return tmp_path / "weights"


def unadapted(base: str) -> Any:
    known = entry(base)
    path = None if known.source == "random" else WeightsFolder().verified_path(base)
    return assemble(known, path, streamlined=False)


def adapter_file(base: str, kind: AdapterKind, path: Path, noise: float = 0.0, **changed: torch.Tensor) -> Path:
    """A file as training writes it, its values moved by some noise."""
    generator = torch.Generator().manual_seed(1)
    state = {
        name: (p.detach() + noise * torch.randn(p.shape, generator=generator)).half().contiguous()
        for name, p in attach(unadapted(base), kind).items()
    }
    save_file(state | changed, path)
    return path


def added(base: str, kind: AdapterKind, folder: Path, noise: float = 0.0) -> str:
    name = f"{kind}:{base}"
    WeightsFolder().add(name, adapter_file(base, kind, folder / "adapter.safetensors", noise))
    return name


def adapted(base: str, kind: AdapterKind, folder: Path, noise: float = 0.0) -> Segmenter:
    """A model with a new adapter, as it is loaded."""
    network, file = unadapted(base), adapter_file(base, kind, folder / "adapter.safetensors", noise)
    load_adapter(network, kind, load_file(file), "the file of this test")
    return Segmenter(entry(base), network, segmenter_card(base, "float32"), "cpu")


def canvases(n: int, side: int = 256) -> torch.Tensor:
    coarse = np.random.default_rng(0).integers(0, 256, (n, side // 16, side // 16, 3), dtype=np.uint8)
    return torch.from_numpy(coarse.repeat(16, axis=1).repeat(16, axis=2))


def answer(model: Segmenter, images: torch.Tensor) -> torch.Tensor:
    nowhere = torch.zeros(len(images), 1, 1, 2)
    labels = torch.full((len(images), 1, 1), NOTHING)
    return model.decode(model.encode(images), nowhere, labels, single_mask).logits


def outlined(n: int) -> list[Labelled]:
    """Grey images with one bright disc."""
    y, x = np.mgrid[:96, :96]
    found = []
    for seed in range(n):
        random = np.random.default_rng(seed)
        disc = (x - random.integers(30, 66)) ** 2 + (y - random.integers(30, 66)) ** 2 < random.integers(12, 24) ** 2
        image = random.integers(60, 90, (96, 96), dtype=np.uint8)
        image[disc] += 130
        found.append(Labelled(np.stack([image] * 3, axis=-1), disc[None], (True,)))
    return found


def training(kind: AdapterKind, steps: int) -> AdapterTraining:
    course = Course(kind, (Phase(PX, steps, 2),), seed=0)
    return AdapterTraining(unadapted(LITE0), entry(LITE0), course, outlined(6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", [TINY, LITE0])
def test_new_adapter_changes_nothing_and_a_moved_one_does(base, kind, tmp_path):
    expected = answer(load_segmenter(base, "cpu"), canvases(1))
    fresh = answer(adapted(base, kind, tmp_path), canvases(1))
    scale = float(expected.abs().max())
    torch.testing.assert_close(fresh, expected, atol=2e-2 * scale, rtol=0)  # its file is in float16
    moved = answer(adapted(base, kind, tmp_path, noise=0.05), canvases(1))
    assert (moved - expected).abs().max() > 5e-2 * scale


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", [TINY, LITE0])
def test_image_alone_is_answered_as_among_others(base, kind, tmp_path):
    model, images = adapted(base, kind, tmp_path, noise=0.05), canvases(3)
    network, pixels = model.network, model.normalised(images)
    together = network.forward_image(pixels)["backbone_fpn"]
    for index in range(3):
        for alone, among in zip(
            network.forward_image(pixels[index : index + 1])["backbone_fpn"], together, strict=True
        ):
            torch.testing.assert_close(alone[0], among[index], atol=1e-3 * float(among.abs().max()), rtol=0)
    masks = answer(model, images)
    for index in range(3):
        alone = answer(model, images[index : index + 1])
        torch.testing.assert_close(alone[0], masks[index], atol=1e-3 * float(masks.abs().max()), rtol=0)
    assert (masks[0] - masks[1]).abs().max() > 1e-2 * masks.abs().max()


def test_lora_is_folded_into_the_weights(tmp_path):
    network = load_segmenter(added(TINY, "samed", tmp_path, noise=0.05), "cpu").network
    assert not any(isinstance(m, LoraLayer) for m in network.modules())
    moved = [
        name
        for (name, own), base in zip(network.named_parameters(), unadapted(TINY).parameters(), strict=True)
        if (own - base).abs().max() > 1e-3
    ]
    assert {n for n in moved if n.startswith("image_encoder.")} == {
        f"image_encoder.trunk.blocks.{i}.attn.qkv.weight" for i in range(8)
    }
    in_transformer = {n.rsplit(".", 2)[-2] for n in moved if ".transformer." in n}
    assert in_transformer == {"q_proj", "v_proj"}
    assert all(not p.requires_grad for p in network.parameters())


def test_high_pass_takes_the_middle_of_the_spectrum_out():
    flat = torch.full((2, 3, 32, 48), 0.7)
    assert high_pass(flat).abs().max() < 1e-5
    checkered = (torch.arange(32)[:, None] + torch.arange(48)) % 2 * 2.0 - 1
    torch.testing.assert_close(high_pass((flat + checkered)[:1])[0, 0], torch.ones(32, 48), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_file_that_does_not_fit_is_refused_by_name(kind, tmp_path):
    name, fitting = f"{kind}:{TINY}", adapter_file(TINY, kind, tmp_path / "fits.safetensors")
    state = load_file(fitting)
    first, *rest = sorted(state)
    save_file({key: state[key] for key in rest}, tmp_path / "short.safetensors")
    with pytest.raises(WeightsError, match=rf"short\.safetensors.*{kind}:{TINY}.*missing: {first}"):
        WeightsFolder().add(name, tmp_path / "short.safetensors")
    save_file(state | {"stranger": torch.zeros(1)}, tmp_path / "long.safetensors")
    with pytest.raises(WeightsError, match="unexpected: stranger"):
        WeightsFolder().add(name, tmp_path / "long.safetensors")
    save_file(state | {first: torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=rf"of another shape: {first} \(3,\)"):
        WeightsFolder().add(name, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=f"{kind}:{TINY} are not here"):
        load_segmenter(name, "cpu")


def test_name_of_an_adapter_needs_a_sam2(tmp_path):
    for name in ("samed:lite0-minilm", "samed:sam-vit-b", "samed:samed:sam2-lite0", "samed:nothing"):
        with pytest.raises(WeightsError, match="There is no model named"):
            entry(name)
    added(TINY, "samed", tmp_path)
    assert f"samed:{TINY}" in {row.name for row in WeightsFolder().list_models()}


@pytest.mark.parametrize("kind", KINDS)
def test_card_and_digests_name_the_adapter_and_what_it_adapts(kind):
    name = f"{kind}:{LITE0}"
    digests = WeightsFolder().check(name)
    assert set(WeightsFolder().digests(LITE0)) < set(digests)
    assert name in digests
    card = segmenter_card(name, "float32")
    assert "BUSI" in card["note"]
    assert load_segmenter(name, "cpu").card == card
    assert card["weights"] == digests


def test_adapted_model_is_one_line_of_configuration_and_takes_no_prompt():
    assert load_config(overrides=["proposals.model=sam-adapter:sam2-lite0"]).proposals.prompting == "unprompted"
    assert load_config().proposals.prompting == "dense"
    with pytest.raises(ConfigError, match=r"samed:sam2-lite0 takes no prompt.*'dense'"):
        load_config(overrides=["proposals.model=samed:sam2-lite0", "proposals.prompting=dense"])


@pytest.mark.parametrize("model", [TINY, LITE0])
def test_unprompted_there_is_one_candidate_an_image_at_most(model):
    settings = ProposalsSettings(model=model, prompting="unprompted", canvas_px=256)
    proposer = Proposer(load_segmenter(model, "cpu"), settings)
    whole = Placement(0, 0, 256, 256)
    found = [c for c, _ in proposer.propose(list(canvases(2).numpy()), [whole, whole])]
    assert [len(c) for c in found] == [1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_and_leaves_the_rest_as_it_was(kind, tmp_path):
    taught = training(kind, 60)
    before = {name: p.detach().clone() for name, p in taught.network.named_parameters()}
    taught.run(tmp_path / "work")
    lines = (tmp_path / "work" / "progress.jsonl").read_text().splitlines()
    first, last = (float(line.split('"loss": ')[1].split(",")[0]) for line in (lines[0], lines[-1]))
    assert last < first
    changed = {n for n, p in taught.network.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert changed <= set(taught.parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_training_that_was_stopped_goes_on_as_if_it_had_not_been(kind, tmp_path):
    straight, stopped, again = (training(kind, steps) for steps in (4, 4, 4))
    straight.run(tmp_path / "straight")
    while stopped.step < 2:
        stopped._learn()
    (tmp_path / "halves").mkdir()
    stopped._save(tmp_path / "halves" / "state.pt")
    again.run(tmp_path / "halves")
    for name, value in straight.trained_state().items():
        assert torch.equal(value, again.trained_state()[name]), name


def test_images_without_an_object_are_not_shown():
    empty = Labelled(np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8), bool), ())
    course = Course("samed", (Phase(PX, 1, 1),), 0)
    assert len(AdapterTraining(unadapted(LITE0), entry(LITE0), course, [*outlined(2), empty])._labelled) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_least_for_the_right_mask(kind):
    truth = torch.zeros(1, 8, 8)
    truth[:, 2:5, 2:5] = 1
    right, half, wrong = ((2 * t - 1) * 10 for t in (truth, truth * (torch.arange(8) > 3), 1 - truth))
    losses = [float(mask_loss(kind, logits, truth)) for logits in (right, half, wrong)]
    assert losses[0] < 0.05 < losses[1] < losses[2]
