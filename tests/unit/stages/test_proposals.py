"""The proposals stage with a model whose masks are known: discs around the point it is prompted with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from manifests.errors import WeightsError
from manifests.readers import ImageSource
from manifests.types import ImageRow, Split, Status, UnitResult
from stages.base import StageContext
from stages.images import Placement, content, place
from stages.models.sam2 import Decoded
from stages.proposals import bits
from stages.proposals.candidates import ScoredMasks, best, distinct, score_masks
from stages.proposals.prompts import centre_point, content_box, point_grid
from stages.proposals.propose import Proposer
from stages.proposals.settings import ProposalsSettings
from stages.proposals.stage import Proposals

S = 64
CELLS = 16
SETTINGS = ProposalsSettings(canvas_px=S, points_per_side=2, max_candidates=6)


class Features(NamedTuple):
    images: torch.Tensor

    def of(self, index: int) -> Features:
        return Features(self.images[index : index + 1])


class Discs:
    """Discs around each prompt's first point, the single mask like the first of three; logits fall by one a pixel."""

    device = torch.device("cpu")

    def __init__(self, radii=(6.0, 8.0, 10.0), predicted=(0.9, 0.7, 0.3), prompts_per_call=3) -> None:
        self.radii, self.predicted, self.prompts_per_call = radii, predicted, prompts_per_call
        self.calls: list[tuple[int, int]] = []

    def encode(self, images):
        assert images.dtype == torch.uint8
        self.batch = len(images)
        return Features(images)

    def decode(self, features, points, labels, wanted):
        self.calls.append(tuple(labels.shape))
        at = (torch.arange(CELLS) + 0.5) * S / CELLS
        x, y = points[..., 0, :, None, None].unbind(dim=2)
        distance = (at - x) ** 2 + (at[:, None] - y) ** 2
        logits = torch.tensor(self.radii[:1] + self.radii).view(1, 1, 4, 1, 1) - distance[:, :, None].sqrt()
        predicted = torch.tensor((max(self.predicted), *self.predicted)).expand(*points.shape[:2], 4)
        return Decoded(logits[wanted(predicted)], predicted, wanted(predicted))


class Objects(Discs):
    """Discs at fixed places: a point in one has its mask, the smallest that holds it; elsewhere nothing is likely."""

    def __init__(self, *discs: tuple[float, float, float]) -> None:
        super().__init__()
        self.discs = torch.tensor(sorted(discs, key=lambda d: d[2]))
        self.points: list[tuple[float, float]] = []
        self.boxes = 0

    def decode(self, features, points, labels, wanted):
        asked = points.flatten(0, 1).mean(dim=1)
        if points.shape[2] == 1:
            self.points += [tuple(p) for p in asked.tolist()]
        else:
            self.boxes += len(asked)
        distance = (asked[:, None] - self.discs[:, :2]).norm(dim=2)
        inside = distance < self.discs[:, 2]
        hit = inside.any(dim=1)
        x, y, radius = self.discs[inside.int().argmax(dim=1)].T[..., None, None]
        at = (torch.arange(CELLS) + 0.5) * S / CELLS
        masks = radius - ((at - x) ** 2 + (at[:, None] - y) ** 2).sqrt()
        shape = (*points.shape[:2], 4)
        predicted = torch.where(hit, 0.9, 0.05)[:, None].expand(-1, 4).reshape(shape)
        logits = masks[:, None].expand(-1, 4, -1, -1).reshape(*shape, CELLS, CELLS)
        return Decoded(logits[wanted(predicted)], predicted, wanted(predicted))


def row(root: Path, name: str, number: int, size: tuple[int, int] = (S, S)) -> ImageRow:
    path = root / name
    if not path.exists():
        Image.new("RGB", size, (90, 90, 90)).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ImageRow(
        number, digest[:16], name, "", "", digest, path.stat().st_size, *size, "RGB", "a", Split.TRAIN, "g", "", ""
    )


def run(rows, root: Path, model: Discs, settings=SETTINGS, batch_items=2) -> UnitResult:
    stage = Proposals(settings, StageContext(batch_items=batch_items))
    stage.proposer = Proposer(model, settings)
    return stage.process(rows, ImageSource(root), {})


def unpack(packed):
    return np.unpackbits(np.asarray(packed), axis=-1).astype(bool)


def test_grid_lies_in_the_image_and_never_in_the_padding() -> None:
    placement = place(30, 90, S)
    points = point_grid(placement, 5)[:, 0]
    assert points.shape == (25, 2)
    x, y = points.T.astype(int)
    assert content(placement, S)[y, x].all()
    assert sorted(set(y)) == [y0 for y0 in sorted(set(y)) if placement.y0 <= y0 < placement.y0 + placement.height]


def test_grid_of_a_full_canvas_is_that_of_sam2() -> None:
    amg = pytest.importorskip("sam2.utils.amg")
    expected = amg.build_point_grid(7) * S
    np.testing.assert_allclose(point_grid(Placement(0, 0, S, S), 7)[:, 0], expected, rtol=1e-6)


def test_fixed_prompts_are_the_middle_and_the_corners_of_the_image() -> None:
    placement = Placement(10, 4, 20, 40)
    np.testing.assert_array_equal(centre_point(placement), [[[24, 20]]])
    np.testing.assert_array_equal(content_box(placement), [[[4, 10], [44, 30]]])


def test_scores_of_a_mask_match_those_counted_by_hand() -> None:
    placement = Placement(16, 0, 32, 64)
    ramp = (torch.arange(S) - 31.5).expand(1, S, S)
    found = score_masks(ramp.clone(), torch.tensor([0.8]), placement, S, stability_offset=4.0)
    predicted, stability, area, border = found.scores[0].numpy()
    assert (predicted, area) == (np.float32(0.8), 0.5)
    assert stability == np.float32(28 / 36)
    assert border == pytest.approx((32 + 32 + 30) / (2 * 64 + 2 * 30))
    np.testing.assert_array_equal(found.boxes[0], [32, 16, 64, 48])


def test_masks_are_zero_outside_the_image() -> None:
    placement = Placement(16, 0, 32, 64)
    found = score_masks(torch.ones(1, 4, 4), torch.ones(1), placement, S, stability_offset=0.5)
    np.testing.assert_array_equal(unpack(found.packed)[0], content(placement, S))
    assert found.scores[0].tolist() == [1, 1, 1, 1]


def test_empty_mask_has_stability_zero_and_no_box() -> None:
    found = score_masks(-torch.ones(1, 4, 4), torch.ones(1), Placement(0, 0, S, S), S, stability_offset=0.5)
    assert found.scores[0].tolist() == [1, 0, 0, 0]
    assert found.boxes[0].tolist() == [0, 0, 0, 0]


def test_stability_is_that_of_the_sam2_package() -> None:
    amg = pytest.importorskip("sam2.utils.amg")
    logits = torch.randn(5, S, S, generator=torch.Generator().manual_seed(1)) + 0.5
    found = score_masks(logits, torch.ones(5), Placement(0, 0, S, S), S, stability_offset=0.3)
    expected = amg.calculate_stability_score(logits, 0.0, 0.3)
    np.testing.assert_allclose(found.scores[:, 1], expected, rtol=1e-6)


def masks_at(boxes, quality) -> ScoredMasks:
    scores = torch.tensor([[q, 1, 0.1, 0] for q in quality])
    packed = torch.arange(len(boxes), dtype=torch.uint8)[:, None, None]
    return ScoredMasks(packed, scores, torch.tensor(boxes, dtype=torch.float32))


def test_of_two_overlapping_masks_the_better_stays() -> None:
    masks = masks_at([[0, 0, 10, 10], [0, 0, 10, 9], [30, 30, 40, 40]], [0.5, 0.6, 0.4])
    assert distinct(masks, 0.7).packed.ravel().tolist() == [1, 2]
    assert distinct(masks, 0.95).packed.ravel().tolist() == [1, 0, 2]


def test_ties_are_broken_by_the_order_of_the_prompts() -> None:
    masks = masks_at([[10 * i, 0, 10 * i + 9, 9] for i in range(40)] + [[0, 0, 9, 9]], [0.5] * 41)
    assert distinct(masks, 0.7).packed.ravel().tolist() == list(range(40))
    assert best(masks, 3).packed.ravel().tolist() == [0, 1, 2]


def test_best_are_those_of_predicted_iou_times_stability() -> None:
    masks = masks_at([[0, 0, 9, 9], [20, 0, 29, 9]], [0.9, 0.6])
    masks.scores[:, 1] = torch.tensor([0.5, 0.9])
    assert best(masks, 1).packed.ravel().tolist() == [1]


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_filtered_as_if_all_had_been_upscaled(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = F.interpolate(torch.randn(64, 1, 6, 6, generator=generator) * 3, (CELLS, CELLS), mode="bicubic")[:, 0]
    placement = Placement(8, 0, 48, 64)
    every = score_masks(logits, torch.rand(64, generator=generator), placement, S, 1.0)
    expected = every.take(every.scores[:, 1] >= 0.6)
    found = score_masks(logits, every.scores[:, 0], placement, S, 1.0, min_stability=0.6)
    assert 0 < len(found) < 64
    assert torch.equal(found.packed, expected.packed)
    assert torch.equal(found.scores, expected.scores)


def test_bits_are_counted_alike_on_every_device(monkeypatch) -> None:
    masks = torch.rand(5, S, S, generator=torch.Generator().manual_seed(0)) > 0.98
    masks[1], masks[2] = False, True
    packed = bits.pack(masks)
    assert torch.equal(bits.unpack(packed), masks)
    expected = bits.areas(packed), bits.boxes(packed)
    assert torch.equal(expected[0], masks.sum(dim=(1, 2)))
    monkeypatch.setattr(bits, "HAS_NUMPY", frozenset())
    assert torch.equal(bits.pack(masks), packed)
    assert torch.equal(bits.areas(packed), expected[0])
    assert torch.equal(bits.boxes(packed), expected[1])


def test_thresholds_and_limit_decide_what_is_kept(tmp_path) -> None:
    # Boxes of the discs of radius 6 and 8 overlap by less than 0.7; that of 10 is predicted below the threshold.
    predicted = (0.95, 0.6, 0.3)
    scores = run([row(tmp_path, "a.png", 0)], tmp_path, Discs(predicted=predicted)).arrays["candidate_scores"][0]
    np.testing.assert_allclose(scores[:, 0], [0.95] * 4 + [0.6] * 2)
    assert np.all(scores[:, 1] >= SETTINGS.min_stability)
    strict = SETTINGS.model_copy(update={"min_predicted_iou": 0.8})
    found = run([row(tmp_path, "a.png", 0)], tmp_path, Discs(predicted=predicted), strict)
    np.testing.assert_allclose(found.arrays["candidate_scores"][0, :, 0], [0.95] * 4 + [np.nan] * 2)


def test_unstable_masks_are_dropped(tmp_path) -> None:
    strict = SETTINGS.model_copy(update={"min_stability": 0.6})
    result = run([row(tmp_path, "a.png", 0)], tmp_path, Discs(radii=(2.0, 9.0, 9.0)), strict)
    scores = result.arrays["candidate_scores"][0]
    np.testing.assert_allclose(scores[:4, 0], 0.7)
    assert np.isnan(scores[4:]).all()


def test_stored_bits_are_the_disc_that_was_prompted(tmp_path) -> None:
    result = run([row(tmp_path, "a.png", 0)], tmp_path, Discs(radii=(10.0, 10.0, 10.0)))
    y, x = np.mgrid[:S, :S]
    disc = (y + 0.5 - 16) ** 2 + (x + 0.5 - 16) ** 2 < 10**2
    mask = unpack(result.arrays["candidates"][0, 0])
    assert (mask & disc).sum() / (mask | disc).sum() > 0.9
    assert result.arrays["candidate_scores"][0, 0, 2] == pytest.approx(mask.mean())


def test_fixed_masks_are_stored_whatever_their_scores(tmp_path) -> None:
    nothing = SETTINGS.model_copy(update={"min_predicted_iou": 1.0})
    result = run([row(tmp_path, "a.png", 0)], tmp_path, Discs(predicted=(0.1, 0.3, 0.2)), nothing)
    assert np.isnan(result.arrays["candidate_scores"]).all()
    assert not result.arrays["candidates"].any()
    np.testing.assert_allclose(result.arrays["fixed_scores"][0, :, 0], 0.3)
    assert unpack(result.arrays["fixed"][0, 0])[S // 2, S // 2]
    assert unpack(result.arrays["fixed"][0, 1])[1, 1]
    assert result.items[0].status is Status.OK


def test_mask_that_misses_the_image_is_never_kept(tmp_path) -> None:
    loose = SETTINGS.model_copy(update={"min_predicted_iou": 0.0, "min_stability": 0.0})
    result = run([row(tmp_path, "a.png", 0)], tmp_path, Discs(radii=(-1.0, -1.0, 8.0)), loose)
    kept = result.arrays["candidate_scores"][0]
    assert (kept[~np.isnan(kept[:, 0]), 2] > 0).all()
    assert (~np.isnan(kept[:, 0])).sum() == 4


def test_unreadable_image_is_a_failed_row_between_good_ones(tmp_path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows = [row(tmp_path, "a.png", 7), row(tmp_path, "bad.png", 8), row(tmp_path, "b.png", 9, (S, 32))]
    result = run(rows, tmp_path, Discs(), batch_items=2)
    assert result.arrays["status"].tolist() == [Status.OK, Status.FAILED, Status.OK]
    assert [(o.row, o.reason != "") for o in result.items] == [(7, False), (8, True), (9, False)]
    assert np.isnan(result.arrays["candidate_scores"][1]).all()
    assert not result.arrays["fixed"][1].any()
    assert result.arrays["placement"].tolist() == [[0, 0, S, S], [0, 0, 0, 0], [16, 0, 32, S]]


def test_chunk_of_unreadable_images_never_reaches_the_model(tmp_path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    model = Discs()
    result = run([row(tmp_path, "bad.png", 0)], tmp_path, model)
    assert result.arrays["status"].tolist() == [Status.FAILED]
    assert not model.calls


@pytest.mark.parametrize(("batch_items", "prompts_per_call"), [(1, 1), (3, 2), (8, 256)])
def test_batches_do_not_change_results(tmp_path, batch_items, prompts_per_call) -> None:
    rows = [row(tmp_path, f"{i}.png", i, (S - 7 * i, S)) for i in range(3)]
    expected = run(rows, tmp_path, Discs()).arrays
    found = run(rows, tmp_path, Discs(prompts_per_call=prompts_per_call), batch_items=batch_items).arrays
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


LARGE, NESTED, SMALL = (38.0, 38.0, 20.0), (40.0, 40.0, 5.5), (8.0, 24.0, 6.0)
COARSE = [(x, y) for x in range(4, S, 8) for y in range(4, S, 8)]


def lies_in(disc: tuple[float, float, float], point: tuple[float, float]) -> bool:
    return (point[0] - disc[0]) ** 2 + (point[1] - disc[1]) ** 2 < disc[2] ** 2


def found_by(model: Objects, prompting: str) -> set[int]:
    """Objects that some candidate covers, smallest first."""
    settings = SETTINGS.model_copy(update={"points_per_side": 16, "max_candidates": 64, "prompting": prompting})
    candidates, _ = next(Proposer(model, settings).propose([np.zeros((S, S, 3), np.uint8)], [Placement(0, 0, S, S)]))
    areas = bits.areas(candidates.packed).sqrt()
    expected = (torch.pi * model.discs[:, 2] ** 2).sqrt()
    return {int((expected - a).abs().argmin()) for a in areas}


def test_coarse_to_fine_finds_what_the_dense_grid_finds_and_asks_less() -> None:
    dense, sparse = (Objects(LARGE, NESTED, SMALL) for _ in range(2))
    assert found_by(dense, "dense") == found_by(sparse, "coarse-to-fine") == {0, 1, 2}
    assert len(sparse.points) < 0.75 * len(dense.points)


def test_object_in_a_large_one_is_found_between_the_coarse_points() -> None:
    assert not any(lies_in(NESTED, p) for p in COARSE)
    model = Objects(LARGE, NESTED)
    assert found_by(model, "coarse-to-fine") == {0, 1}
    assert any(lies_in(NESTED, p) for p in set(model.points) - set(COARSE))


def test_points_in_small_masks_that_are_sure_are_not_asked_again() -> None:
    model = Objects(SMALL)
    found_by(model, "coarse-to-fine")
    fine = {p for p in model.points if p[0] % 4 == 2}
    assert fine
    assert not any(lies_in((*SMALL[:2], SMALL[2] - 2), p) for p in fine)


def test_points_amid_nothing_are_not_asked_and_boxes_are_those_of_the_masks() -> None:
    model = Objects(SMALL)
    found_by(model, "coarse-to-fine")
    assert max(x for x, _ in model.points if x % 4 == 2) < S / 2
    assert model.boxes == 1 + 1
    nothing = Objects((200.0, 200.0, 1.0))
    assert found_by(nothing, "coarse-to-fine") == set()
    assert len(nothing.points) == len(COARSE) + 1


def test_arrays_are_those_that_the_stage_announces(tmp_path) -> None:
    result = run([row(tmp_path, "a.png", 0)], tmp_path, Discs())
    specs = Proposals(SETTINGS, StageContext()).outputs()
    assert [s.name for s in specs] == list(result.arrays)
    for spec in specs:
        assert result.arrays[spec.name].shape == (1, *spec.item_shape)
        assert result.arrays[spec.name].dtype == spec.dtype
    assert specs[-1].name == "status"


def test_identity_holds_settings_and_digests_but_not_the_batch_size() -> None:
    one, two = (Proposals(SETTINGS, StageContext(batch_items=b)).identity() for b in (1, 8))
    assert one.fingerprint == two.fingerprint
    assert all(len(d) == 64 for d in one.weights.values())
    other = Proposals(SETTINGS.model_copy(update={"points_per_side": 3}), StageContext()).identity()
    assert other.fingerprint != one.fingerprint


@pytest.mark.parametrize("model", ["lite0-minilm", "sam3"])
def test_model_that_is_no_sam2_is_refused_before_any_image(model) -> None:
    with pytest.raises(WeightsError):
        Proposals(ProposalsSettings(model=model), StageContext()).identity()


def test_projected_bytes_grow_with_the_chunk_by_at_least_the_results() -> None:
    stage = Proposals(SETTINGS, StageContext())
    results = sum(int(np.prod(s.item_shape)) * np.dtype(s.dtype).itemsize for s in stage.outputs())
    assert stage.projected_bytes(64) - stage.projected_bytes(32) >= 32 * results


@pytest.mark.parametrize("compiled", [False, True])
def test_model_is_compiled_where_the_context_says_so(monkeypatch, compiled) -> None:
    asked = []
    monkeypatch.setattr("stages.models.sam2.load_segmenter", lambda *given, **named: asked.append((given, named)))
    Proposals(SETTINGS, StageContext(compiled=compiled)).load("cpu")
    assert asked == [((SETTINGS.model, "cpu", "float32"), {"compiled": compiled})]


def test_processing_before_loading_is_a_clear_error(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="load"):
        Proposals(SETTINGS, StageContext()).process([], ImageSource(tmp_path), {})
