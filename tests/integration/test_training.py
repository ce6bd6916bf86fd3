"""The training of the embedded SAM2: samples, losses, and that it learns, stops and goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from manifests.errors import UsageError
from stages.models.training.losses import mask_losses, object_loss, true_iou
from stages.models.training.samples import HELD_OUT_SEED, STRIDE, Mixture, Phase, Samples, read_labelled
from stages.models.training.train import RECIPES, Recipe, Training, main, schedule

SMALL = Recipe(2, (Phase(64, 3, 2), Phase(128, 3, 2)), 1e-3, Mixture())


def samples(seed: int = 0) -> Samples:
    return Samples(SMALL.phases, seed, (), Mixture())


def outlined(folder: Path, *, mask_px: int = 80) -> Path:
    folder.mkdir()
    image = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    mask = np.zeros((mask_px, mask_px), np.uint8)
    mask[20:50, 30:60] = 255
    Image.fromarray(image).save(folder / "a.png")
    Image.fromarray(mask).save(folder / "m.png")
    (folder / "index.csv").write_text("file,mask,clean_split\na.png,m.png,train\nmissing.png,missing.png,test\n")
    return folder


def test_a_step_gives_the_same_batch_again_and_another_step_another() -> None:
    first, again, other = samples()[1], samples()[1], samples()[2]
    assert torch.equal(first.canvases, again.canvases)
    assert torch.equal(first.boxes.points, again.boxes.points)
    assert torch.equal(first.clicks.truth, again.clicks.truth)
    assert not torch.equal(first.canvases, other.canvases[:, : first.canvases.shape[1]])


def test_clicks_lie_in_their_objects_and_boxes_around_them() -> None:
    batch = Samples((Phase(128, 1, 4),), 3, (), Mixture())[0]
    cells = (batch.clicks.points[:, 0] / STRIDE).long()
    covered = batch.clicks.truth[torch.arange(len(cells)), cells[:, 1], cells[:, 0]]
    assert bool((covered > 0).all())
    assert batch.boxes.points.shape[1:] == (2, 2)
    assert bool((batch.boxes.points[:, 1] > batch.boxes.points[:, 0]).all())


def test_held_out_scenes_cannot_be_trained_on() -> None:
    with pytest.raises(UsageError, match="held out"):
        samples(HELD_OUT_SEED)


def test_only_the_named_split_is_read(tmp_path: Path) -> None:
    (labelled,) = read_labelled(outlined(tmp_path / "set"), "train")
    assert labelled.image.shape == (80, 80, 3)
    assert labelled.masks.sum() == 900


def test_outlined_set_that_cannot_be_is_refused(tmp_path: Path) -> None:
    folder = outlined(tmp_path / "set", mask_px=90)
    with pytest.raises(UsageError, match=r"m\.png is \(90, 90\)"):
        read_labelled(folder, "train")
    with pytest.raises(UsageError, match="no row of split val"):
        read_labelled(folder, "val")
    with pytest.raises(UsageError, match="does not exist"):
        read_labelled(tmp_path / "absent", "train")


def test_right_mask_costs_nothing_and_only_the_best_of_three_is_taught() -> None:
    truth = torch.zeros(1, 16, 16)
    truth[:, 4:9, 4:9] = 1
    right = (truth * 40 - 20)[:, None]
    assert float(mask_losses(right, truth)) < 0.01
    logits = torch.cat((right, -right, right * 0.05, -right), dim=1).requires_grad_()
    loss, taken = object_loss(logits, torch.tensor([[0.5, 0.1, 0.9, 0.3]]), torch.zeros(1, 1), truth)
    (gradient,) = torch.autograd.grad(loss, logits)
    taught = gradient.abs().amax(dim=(-2, -1))[0] > 1e-9
    assert taught[1:].tolist() == [False, True, False]
    assert float(taken) == 1.0
    assert true_iou(-right, truth).tolist() == [[0.0]]


def test_predicted_iou_is_taught_for_every_mask() -> None:
    truth = torch.zeros(1, 16, 16)
    truth[:, 4:9, 4:9] = 1
    predicted = torch.full((1, 4), 0.5, requires_grad=True)
    loss, _ = object_loss((truth * 40 - 20)[:, None].repeat(1, 4, 1, 1), predicted, torch.zeros(1, 1), truth)
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert bool((gradient < 0).all())


def test_training_that_was_stopped_ends_with_the_same_weights(tmp_path: Path) -> None:
    through = Training(SMALL, samples(), 0, "cpu")
    through.run(tmp_path / "through", workers=0)
    stopped = Training(SMALL, Samples(SMALL.phases[:1], 0, (), Mixture()), 0, "cpu")
    # The rate follows from the length of the whole training, so that the stopped one must know it.
    stopped._samples = samples()
    stopped._prime()
    for step in range(3):
        stopped._learn(samples()[step])
    (tmp_path / "stopped").mkdir()
    stopped._save(tmp_path / "stopped" / "state.pt")
    resumed = Training(SMALL, samples(), 0, "cpu")
    resumed.run(tmp_path / "stopped", workers=0)
    expected, got = through.trained_state(), resumed.trained_state()
    assert all(torch.equal(expected[k], got[k]) for k in expected)


def test_it_learns_a_batch_by_heart() -> None:
    training = Training(
        Recipe(2, (Phase(128, 1000, 2),), 2e-3, Mixture()), Samples((Phase(128, 1000, 2),), 1, (), Mixture()), 0, "cpu"
    )
    batch = training._samples[0]
    losses = [training._learn(batch)["loss"] for _ in range(40)]
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])


def test_trunk_stays_as_it_was() -> None:
    training = Training(SMALL, samples(), 0, "cpu")
    before = {k: v.clone() for k, v in training.network.image_encoder.trunk.state_dict().items()}
    training._learn(training._samples[0])
    after = training.network.image_encoder.trunk.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_rate_rises_then_falls() -> None:
    rates = [schedule(step, 2000) for step in (0, 299, 1000, 1999)]
    assert rates[0] < 0.01
    assert rates[1] == 1
    assert rates[1] > rates[2] > rates[3] > 0


def test_recipe_with_outlined_images_asks_for_them(tmp_path: Path) -> None:
    assert RECIPES["sam2-lite0"].mixture.labelled_share > 0
    with pytest.raises(UsageError, match="--labelled"):
        main(["sam2-lite0", str(tmp_path / "out.safetensors"), "--work", str(tmp_path)])
