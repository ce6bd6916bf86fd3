from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from manifests.errors import ReadError
from manifests.readers import ImageSource
from manifests.types import ImageRow, Split, StageIdentity, Status, UnitResult
from stages.base import StageContext
from stages.images import content, letterbox, place
from stages.masks.policies import FROM_PROPOSALS, ImageProposals, finish, usable
from stages.masks.settings import MasksSettings
from stages.masks.stage import Masks

S = 64
IMAGE = np.random.default_rng(3).integers(1, 256, (40, 80, 3), dtype=np.uint8)
PLACEMENT = place(40, 80, S)
ABSENT = (np.nan, np.nan, np.nan, np.nan)


def square(y: int, x: int, side: int) -> NDArray[np.bool_]:
    mask = np.zeros((S, S), bool)
    mask[y : y + side, x : x + side] = True
    return mask


A, B, C = square(20, 8, 8), square(24, 12, 8), square(20, 40, 16)


def packed(*masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.packbits(np.stack(masks), axis=-1)


def proposals(*scores: tuple[float, ...]) -> ImageProposals:
    fixed_scores = np.array([(0.5, 0.5, 0.1, 0.0), (1.0, 0.25, 0.1, 0.0)], np.float32)
    masks = (A, B, C)[: len(scores)]
    return ImageProposals(packed(*masks), np.array(scores, np.float32), packed(B, C), fixed_scores)


class FakeSource:
    """Hands out arrays by path; an error is raised."""

    def __init__(self, image: Any = IMAGE, mask: Any = None) -> None:
        self.image, self.mask = image, mask

    def read(self, _row: ImageRow) -> NDArray[np.uint8]:
        if isinstance(self.image, ReadError):
            raise self.image
        return self.image

    def read_mask(self, _row: ImageRow) -> NDArray[np.bool_]:
        return self.mask


def row(number: int = 0, mask_path: str = "") -> ImageRow:
    mask_sha256 = "1" * 64 if mask_path else ""
    return ImageRow(
        number,
        f"{number:016x}",
        "a.png",
        mask_path,
        mask_sha256,
        "0" * 64,
        1,
        80,
        40,
        "RGB",
        "x",
        Split.TEST,
        "g",
        "",
        "",
    )


def upstream(of_image: ImageProposals, status: Status = Status.OK) -> dict[str, dict[str, NDArray[Any]]]:
    arrays = {
        "candidates": of_image.candidates[None],
        "candidate_scores": of_image.candidate_scores[None],
        "fixed": of_image.fixed[None],
        "fixed_scores": of_image.fixed_scores[None],
        "placement": PLACEMENT.array()[None],
        "status": np.array([status], np.uint8),
    }
    return {"proposals": arrays}


def run(policy: str, source: Any, mask_path: str = "", given: Any = None, **settings: Any) -> UnitResult:
    stage = Masks(MasksSettings(policy=policy, canvas_px=S, **settings), StageContext({"proposals": "f" * 64}))
    return stage.process([row(7, mask_path)], source, given or {})


GOOD = proposals((0.9, 0.8, 0.03, 0.0), (0.7, 1.0, 0.03, 0.0), (0.6, 0.9, 0.12, 0.1))


def test_union_covers_every_usable_candidate() -> None:
    chosen = FROM_PROPOSALS["union"](GOOD, MasksSettings())
    assert (chosen.mask == (A | B | C)).all()
    assert chosen.score == pytest.approx((0.72 + 0.7 + 0.54) / 3)
    assert chosen.stability == pytest.approx(0.9)


@pytest.mark.parametrize(
    "worse", [(0.9, 0.9, 0.0001, 0.0), (0.9, 0.9, 0.95, 0.0), (0.9, 0.9, 0.2, 0.6), ABSENT, (np.nan, 0.9, 0.2, 0.1)]
)
def test_tiny_full_border_and_absent_candidates_are_not_used(worse: tuple[float, ...]) -> None:
    of_image = proposals((0.9, 0.8, 0.03, 0.0), worse)
    assert usable(of_image.candidate_scores, MasksSettings()).tolist() == [True, False]
    assert (FROM_PROPOSALS["union"](of_image, MasksSettings()).mask == A).all()


def test_top1_takes_the_best_product_among_usable_candidates() -> None:
    of_image = proposals((0.9, 0.5, 0.03, 0.0), (0.7, 0.7, 0.03, 0.0), (1.0, 1.0, 0.95, 0.0))
    chosen = FROM_PROPOSALS["top1"](of_image, MasksSettings())
    assert (chosen.mask == B).all()
    assert chosen.score == pytest.approx(0.49)
    assert chosen.margin == pytest.approx(0.04)


def test_only_usable_candidate_has_no_margin() -> None:
    assert np.isnan(FROM_PROPOSALS["top1"](proposals((0.9, 0.5, 0.03, 0.0)), MasksSettings()).margin)


def test_saliency_is_where_most_of_the_weight_agrees() -> None:
    of_image = proposals((0.9, 0.9, 0.03, 0.0), (0.9, 0.9, 0.03, 0.0), (0.3, 0.5, 0.12, 0.1))
    chosen = FROM_PROPOSALS["saliency"](of_image, MasksSettings())
    assert (chosen.mask == (A | B)).all()
    assert chosen.margin > 0
    weak = proposals((0.9, 0.9, 0.03, 0.0), (0.4, 0.5, 0.03, 0.0))
    assert (FROM_PROPOSALS["saliency"](weak, MasksSettings()).mask == A).all()
    assert not FROM_PROPOSALS["saliency"](proposals(ABSENT), MasksSettings()).mask.any()


def test_clip_rank_takes_the_most_similar_usable_candidates() -> None:
    similar = replace(GOOD, similarity=np.array([0.1, 0.3, 0.2], np.float32))
    one, two = (FROM_PROPOSALS["clip-rank"](similar, MasksSettings(clip_top=n)) for n in (1, 2))
    assert (one.mask == B).all()
    assert (two.mask == (B | C)).all()
    assert (one.margin, two.margin) == (pytest.approx(0.1), pytest.approx(0.1))
    unusable = replace(
        proposals((0.9, 0.8, 0.95, 0.0), (0.9, 0.8, 0.03, 0.0)), similarity=np.array([np.nan, 0.1], np.float32)
    )
    assert (FROM_PROPOSALS["clip-rank"](unusable, MasksSettings()).mask == B).all()
    with pytest.raises(ValueError, match="similarity"):
        FROM_PROPOSALS["clip-rank"](GOOD, MasksSettings())


def test_ledger_counts_proposals_and_describes_the_mask() -> None:
    result = run("top1", FakeSource(), given=upstream(proposals((0.9, 0.8, 0.03, 0.0), (0.9, 0.9, 0.95, 0.0), ABSENT)))
    stage = Masks(MasksSettings(policy="top1"), StageContext({"proposals": "f" * 64}))
    ledger = dict(zip(stage.attributes()["ledger"], result.arrays["ledger"][0], strict=True))
    assert (ledger["candidates"], ledger["usable"], ledger["border_fraction"]) == (2, 1, 0)
    assert ledger["stability"] == np.float32(0.8)
    whole = run("none", FakeSource()).arrays["ledger"][0]
    assert whole[2] == 1
    assert np.isnan(whole[[0, 1, 3, 4]]).all()


def test_fixed_prompts_give_their_own_masks_whatever_the_candidates() -> None:
    of_image = proposals(ABSENT)
    center, box = (FROM_PROPOSALS[name](of_image, MasksSettings()) for name in ("center", "box"))
    assert (center.mask == B).all()
    assert (box.mask == C).all()
    assert (center.score, box.score) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((S, S), bool), "mask.empty"),
        (~content(PLACEMENT, S), "mask.empty"),
        (square(30, 30, 1), "mask.tiny"),
        (content(PLACEMENT, S), "mask.full"),
        (A, ""),
    ],
)
def test_useless_mask_becomes_the_whole_image(mask: NDArray[np.bool_], reason: str) -> None:
    final = finish(mask, PLACEMENT, MasksSettings())
    assert final.reason == reason
    assert (final.mask == (content(PLACEMENT, S) if reason else mask)).all()


def test_area_is_a_share_of_the_image_not_of_the_canvas() -> None:
    half = content(PLACEMENT, S)
    half[:, : S // 2] = False
    assert finish(half, PLACEMENT, MasksSettings()).area_fraction == 0.5


def test_stage_stores_the_policy_s_mask_and_masked_image() -> None:
    result = run("union", FakeSource(), given=upstream(GOOD))
    canvas, _ = letterbox(IMAGE, S)
    assert (result.arrays["mask"][0] == (A | B | C)).all()
    assert (result.arrays["masked_image"][0] == canvas * (A | B | C)[..., None]).all()
    assert result.arrays["placement"][0].tolist() == list(PLACEMENT)
    assert result.items[0].status == result.arrays["status"][0] == Status.OK


def test_image_without_candidates_falls_back_and_is_not_black() -> None:
    result = run("union", FakeSource(), given=upstream(proposals(ABSENT)))
    assert (result.items[0].row, result.items[0].status, result.items[0].reason) == (7, Status.FALLBACK, "mask.empty")
    assert (result.arrays["masked_image"][0] == letterbox(IMAGE, S)[0]).all()
    assert result.arrays["status"][0] == Status.FALLBACK
    assert np.isnan(result.arrays["score"][0])


def test_supplied_mask_is_letterboxed_like_its_image() -> None:
    mask = IMAGE[..., 0] > 128
    result = run("supplied", FakeSource(mask=mask), "m.png")
    assert (result.arrays["mask"][0] == letterbox(mask, S)[0]).all()
    assert result.arrays["score"][0] == 1
    assert result.items[0].status == Status.OK


def test_black_supplied_mask_falls_back() -> None:
    result = run("supplied", FakeSource(mask=np.zeros((40, 80), bool)), "m.png")
    assert (result.items[0].status, result.items[0].reason) == (Status.FALLBACK, "mask.empty")
    assert result.arrays["mask"][0].any()


def test_missing_supplied_mask_falls_back() -> None:
    result = run("supplied", FakeSource())
    assert (result.items[0].status, result.items[0].reason) == (Status.FALLBACK, "mask.missing")
    assert (result.arrays["mask"][0] == content(PLACEMENT, S)).all()


def test_supplied_mask_of_another_size_fails_the_row_and_names_both_sizes(tmp_path: Path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    Image.fromarray(np.full((41, 80), 255, np.uint8)).save(tmp_path / "m.png")
    sha256, mask_sha256 = (hashlib.sha256((tmp_path / f"{n}.png").read_bytes()).hexdigest() for n in "am")
    of_file = replace(row(7, "m.png"), sha256=sha256, mask_sha256=mask_sha256)
    stage = Masks(MasksSettings(policy="supplied", canvas_px=S), StageContext())
    result = stage.process([of_file], ImageSource(tmp_path), {})
    assert (result.items[0].status, result.items[0].reason) == (Status.FAILED, "mask.size")
    assert "80 x 41" in result.items[0].detail
    assert "80 x 40" in result.items[0].detail


def test_policy_none_uses_the_whole_image_without_a_warning() -> None:
    result = run("none", FakeSource())
    assert (result.arrays["masked_image"][0] == letterbox(IMAGE, S)[0]).all()
    assert (result.items[0].status, result.arrays["area_fraction"][0], result.arrays["score"][0]) == (Status.OK, 1, 1)


def test_unreadable_image_is_a_failed_row_of_fill_values() -> None:
    result = run("none", FakeSource(image=ReadError("decode.truncated")))
    assert (result.items[0].status, result.items[0].reason) == (Status.FAILED, "decode.truncated")
    assert not result.arrays["mask"].any()
    assert np.isnan(result.arrays["area_fraction"][0])


def test_row_that_failed_upstream_stays_failed() -> None:
    result = run("union", FakeSource(), given=upstream(GOOD, Status.FAILED))
    assert (result.items[0].status, result.items[0].reason) == (Status.FAILED, "upstream.failed")
    assert not result.arrays["masked_image"].any()


def test_proposals_of_another_canvas_are_refused() -> None:
    stage = Masks(MasksSettings(canvas_px=128), StageContext({"proposals": "f" * 64}))
    with pytest.raises(ValueError, match="candidates: expected"):
        stage.process([row()], FakeSource(), upstream(GOOD))  # type: ignore[arg-type]


def test_proposals_of_an_image_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"proposals.placement: expected"):
        run("union", FakeSource(image=IMAGE.transpose(1, 0, 2)), given=upstream(GOOD))


def test_only_policies_that_use_proposals_ask_for_them() -> None:
    asks = {p: Masks(MasksSettings(policy=p), StageContext()).inputs for p in ("union", "box", "none", "supplied")}  # type: ignore[arg-type]
    assert asks == {"union": ("proposals",), "box": ("proposals",), "none": (), "supplied": ()}


def test_fingerprint_follows_policy_and_proposals() -> None:
    def fingerprint(policy: str, proposals: str) -> str:
        return Masks(MasksSettings(policy=policy), StageContext({"proposals": proposals})).identity().fingerprint  # type: ignore[arg-type]

    distinct = {fingerprint("union", "a" * 64), fingerprint("top1", "a" * 64), fingerprint("union", "b" * 64)}
    assert len(distinct) == 3


def test_only_clip_rank_depends_on_the_model_that_ranks() -> None:
    def identity(policy: str, prompts: tuple[str, ...]) -> StageIdentity:
        settings = MasksSettings(policy=policy, clip_prompts=prompts)  # type: ignore[arg-type]
        return Masks(settings, StageContext({"proposals": "f" * 64})).identity()

    assert identity("union", ("a",)).fingerprint == identity("union", ("b",)).fingerprint
    assert identity("clip-rank", ("a",)).fingerprint != identity("clip-rank", ("b",)).fingerprint
    assert identity("clip-rank", ("a",)).weights


@pytest.mark.parametrize("policy", ["union", "none"])
def test_arrays_match_their_specs(policy: str) -> None:
    stage = Masks(MasksSettings(policy=policy, canvas_px=S), StageContext({"proposals": "f" * 64}))  # type: ignore[arg-type]
    result = stage.process([row()], FakeSource(), upstream(GOOD))  # type: ignore[arg-type]
    assert list(result.arrays) == [spec.name for spec in stage.outputs()]
    for spec in stage.outputs():
        array = result.arrays[spec.name]
        assert (array.shape, array.dtype) == ((1, *spec.item_shape), np.dtype(spec.dtype))
