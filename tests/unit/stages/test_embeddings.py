from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from manifests.errors import ReadError, StoreError
from manifests.types import ImageRow, Split, Status, UnitResult
from stages.base import StageContext
from stages.embeddings import stage as module
from stages.embeddings import tokens as tokens_module
from stages.embeddings.settings import EmbeddingsSettings, TokensSettings
from stages.embeddings.stage import Embeddings
from stages.embeddings.tokens import Tokens
from stages.images import Placement, composite, content, letterbox, place
from stages.models.card import architecture_config, check_same_card, feature_dims
from stages.models.registry import entry
from stages.shape import mask_shape
from stages.views import cell_coverage, donors, model_box, random_box, token_weights

S = 64
GRID = (2, 2)
IMAGE = np.random.default_rng(5).integers(1, 256, (40, 80, 3), dtype=np.uint8)
CANVAS, PLACEMENT = letterbox(IMAGE, S)
LEFT = content(PLACEMENT, S) & (np.arange(S) < S // 2)


class FakeModel:
    """Token = mean colour of a quarter of what it is shown, and 1; vector = mean of the tokens, in unit length."""

    def __init__(self) -> None:
        self.passes: list[tuple[int, bool]] = []
        self.seen: list[NDArray[np.uint8]] = []

    def encode_image(self, images: Sequence[NDArray[np.uint8]], _features: str, *, tokens: bool) -> Any:
        self.passes.append((len(images), tokens))
        self.seen += images
        cells = np.stack([self.cells(i) for i in images])
        vectors = cells.mean(axis=1)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return SimpleNamespace(vectors=vectors, tokens=cells if tokens else None, grid=GRID)

    def cells(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        halves = [part for half in np.array_split(image, 2) for part in np.array_split(half, 2, axis=1)]
        return np.array([[*part.mean(axis=(0, 1)), 1] for part in halves], np.float32)


class FakeSource:
    """Hands out one image; an error is raised."""

    def __init__(self, image: Any = IMAGE) -> None:
        self.image, self.reads = image, 0

    def read(self, _row: ImageRow) -> NDArray[np.uint8]:
        self.reads += 1
        if isinstance(self.image, ReadError):
            raise self.image
        return self.image


class FakeWeights:
    """Digests without files."""

    def digests(self, name: str) -> dict[str, str]:
        return {name: "0" * 64}


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for patched in (module, tokens_module):
        monkeypatch.setattr(patched, "feature_dims", lambda _name: {"trunk": 4, "projected": 2})
        monkeypatch.setattr(patched, "token_grid", lambda _name: GRID)
        monkeypatch.setattr(patched, "WeightsFolder", FakeWeights)


def rows(n: int) -> list[ImageRow]:
    return [
        ImageRow(7 + i, f"{i:016x}", "a.png", "", "", "0" * 64, 1, 80, 40, "RGB", "x", Split.TEST, "g", "", "")
        for i in range(n)
    ]


def masks(n: int, mask: NDArray[np.bool_] = LEFT, status: Status = Status.OK) -> dict[str, NDArray[Any]]:
    return {
        "mask": np.stack([mask] * n),
        "masked_image": np.stack([composite(CANVAS, mask, "masked", PLACEMENT)] * n),
        "shape": np.stack([mask_shape(mask, PLACEMENT)] * n),
        "placement": np.stack([PLACEMENT.array()] * n),
        "status": np.full(n, status, np.uint8),
    }


def embed(
    upstream: dict[str, NDArray[Any]], source: Any = None, model: FakeModel | None = None, **changes: Any
) -> UnitResult:
    context = StageContext(upstream={"masks": "f" * 64}, batch_items=2)
    stage = Embeddings(EmbeddingsSettings(canvas_px=S, **changes), context)
    stage.model = model or FakeModel()  # type: ignore[assignment]
    return stage.process(rows(len(upstream["status"])), source or FakeSource(), {"masks": upstream})


def colour(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    vector = FakeModel().cells(image).mean(axis=0)
    return vector / np.linalg.norm(vector)


def test_views_stand_in_the_asked_order() -> None:
    image = embed(masks(1), views=("masked", "original")).arrays["image"]
    assert image.shape == (1, 2, 4)
    np.testing.assert_allclose(image[0, 0], colour(masks(1)["masked_image"][0]), rtol=1e-6)
    np.testing.assert_allclose(image[0, 1], colour(CANVAS), rtol=1e-6)


def test_stored_masked_image_needs_no_source() -> None:
    source = FakeSource(ReadError("file.missing"))
    result = embed(masks(3), source, views=("masked",), compositing="masked")
    assert source.reads == 0
    assert [i.status for i in result.items] == [Status.OK] * 3


@pytest.mark.parametrize("stored", [None, "overlay"])
def test_view_in_another_compositing_is_composed_anew(stored: str | None) -> None:
    model, upstream = FakeModel(), masks(1)
    upstream["masked_image"] = np.zeros_like(upstream["masked_image"])
    embed(upstream, model=model, views=("masked",), compositing=stored)
    np.testing.assert_array_equal(model.seen[0], composite(CANVAS, LEFT, "masked", PLACEMENT))


def test_roi_ring_and_original_share_one_pass() -> None:
    model = FakeModel()
    embed(masks(3), model=model, views=("roi", "ring", "original"))
    assert model.passes == [(2, True), (1, True)]


def test_roi_is_the_mean_of_the_tokens_under_the_mask() -> None:
    result = embed(masks(1), views=("roi", "ring"), resize="squash")
    cells = FakeModel().cells(CANVAS[PLACEMENT.slices])
    left, right = cells[[0, 2]].mean(axis=0), cells[[1, 3]].mean(axis=0)
    np.testing.assert_allclose(result.arrays["image"][0, 0], left / np.linalg.norm(left), rtol=1e-5)
    np.testing.assert_allclose(result.arrays["image"][0, 1], right / np.linalg.norm(right), rtol=1e-5)


def test_ring_of_a_full_mask_is_the_whole_image() -> None:
    result = embed(masks(1, content(PLACEMENT, S)), views=("ring", "original"))
    assert result.items[0].status == Status.OK
    np.testing.assert_array_equal(*result.arrays["image"][0])


def test_crop_fills_a_canvas_of_its_own_that_is_used_whole() -> None:
    model = FakeModel()
    embed(masks(1), model=model, views=("crop", "original"), resize="squash")
    assert [i.shape for i in model.seen] == [(S, S, 3), (S // 2, S, 3)]


def test_fallback_stays_fallback_and_shows_the_whole_image() -> None:
    upstream = masks(1, np.zeros((S, S), bool), Status.FALLBACK)
    result = embed(upstream, views=("binary", "crop"))
    assert (result.items[0].status, result.items[0].reason) == (Status.FALLBACK, "mask.fallback")
    assert result.arrays["status"].tolist() == [Status.FALLBACK]
    np.testing.assert_allclose(result.arrays["image"][0, 1], colour(CANVAS), rtol=1e-6)


def test_controls_are_composed_with_wrong_masks() -> None:
    model = FakeModel()
    result = embed(masks(1), model=model, views=("inverted", "random-box"), compositing="masked")
    whole = content(PLACEMENT, S)
    np.testing.assert_array_equal(model.seen[0], composite(CANVAS, whole & ~LEFT, "masked", PLACEMENT))
    box = random_box(LEFT & whole, PLACEMENT, 0)
    np.testing.assert_array_equal(model.seen[1], composite(CANVAS, box, "masked", PLACEMENT))
    assert result.items[0].status == Status.OK


def test_inverted_mask_of_a_fallback_shows_the_whole_image() -> None:
    model = FakeModel()
    embed(masks(1, status=Status.FALLBACK), model=model, views=("inverted",))
    np.testing.assert_array_equal(model.seen[0], CANVAS)


def test_shuffled_shows_the_mask_of_another_patient_where_this_image_lies() -> None:
    upstream, model = masks(2), FakeModel()
    tall = Placement(0, 16, S, 32)
    upstream["mask"][1] = content(tall, S) & (np.arange(S)[:, None] < S // 4)
    upstream["placement"][1] = tall.array()
    patients = [replace(row, group_id=group) for row, group in zip(rows(2), "ab", strict=True)]
    stage = Embeddings(EmbeddingsSettings(canvas_px=S, views=("shuffled",)), StageContext(upstream={"masks": ""}))
    stage.model = model  # type: ignore[assignment]
    result = stage.process(patients, FakeSource(), {"masks": upstream})  # type: ignore[arg-type]
    upper_quarter = content(PLACEMENT, S) & (np.arange(S)[:, None] < PLACEMENT.y0 + PLACEMENT.height // 4)
    np.testing.assert_array_equal(model.seen[0], composite(CANVAS, upper_quarter, "masked", PLACEMENT))
    assert [i.reason for i in result.items] == ["", "placement.changed"]  # the second image is not tall


@pytest.mark.parametrize(
    ("groups", "usable", "expected"),
    [("abc", "111", [1, 2, 0]), ("aabb", "1111", [2, 2, 0, 0]), ("abc", "101", [2, 2, 0]), ("aaa", "111", [0, 1, 2])],
)
def test_donor_is_the_next_image_of_another_patient_that_has_a_mask(groups: str, usable: str, expected: Any) -> None:
    assert donors(groups, np.array([c == "1" for c in usable])) == expected


def test_attention_is_turned_away_from_what_lies_outside_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    class Transformer(FakeModel):
        def encode_image(self, images: Any, features: str, *, tokens: bool, bias: Any = None) -> Any:
            self.bias = bias
            return super().encode_image(images, features, tokens=tokens)

    monkeypatch.setattr("stages.embeddings.settings.has_attention", lambda _name: True)
    model = Transformer()
    embed(masks(1), model=model, views=("attn-bias",), resize="squash", attention_bias=3.0, attention_blocks=2)
    np.testing.assert_array_equal(model.seen[0], CANVAS[PLACEMENT.slices])
    np.testing.assert_allclose(model.bias.values, [[0, -3, 0, -3]], atol=1e-6)  # the mask is the left half
    assert model.bias.blocks == 2
    embed(masks(1, np.zeros((S, S), bool), Status.FALLBACK), model=model, views=("attn-bias",))
    np.testing.assert_array_equal(model.bias.values, np.zeros((1, 4)))  # shown whole, whatever the padding


def test_attention_bias_needs_a_model_with_attention() -> None:
    with pytest.raises(ValueError, match=r"lite0-minilm has no attention"):
        EmbeddingsSettings(views=("attn-bias",))
    assert EmbeddingsSettings(views=("attn-bias",), model="clip-vit-b-32").attention_bias == 4.0


def test_lone_image_sees_its_own_mask_turned_round() -> None:
    model = FakeModel()
    embed(masks(1), model=model, views=("shuffled",))
    whole = content(PLACEMENT, S)
    np.testing.assert_array_equal(model.seen[0], composite(CANVAS, whole & ~LEFT, "masked", PLACEMENT))


def test_pooled_controls_take_the_same_tokens_under_the_wrong_mask() -> None:
    result = embed(masks(1), views=("roi", "roi-shuffled", "ring"), resize="squash")
    roi, shuffled, ring = result.arrays["image"][0]
    np.testing.assert_allclose(shuffled, ring, rtol=1e-5)
    assert not np.allclose(shuffled, roi)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 50), st.integers(0, 9))
def test_random_box_has_the_area_of_the_mask_and_lies_in_the_image(seed, height, width, y) -> None:
    placement = Placement(4, 6, 40, 50)
    mask = np.zeros((S, S), dtype=bool)
    mask[4 + y : 4 + y + height, 6 : 6 + width] = True
    box = random_box(mask, placement, seed)
    rows_, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
    assert not (box & ~content(placement, S)).any()
    assert box.sum() == len(rows_) * len(columns)
    assert abs(int(box.sum()) - int(mask.sum())) <= max(len(rows_), len(columns))
    np.testing.assert_array_equal(box, random_box(mask, placement, seed))


def test_random_boxes_lie_in_many_places() -> None:
    boxes = {random_box(LEFT & content(PLACEMENT, S), PLACEMENT, seed).tobytes() for seed in range(20)}
    assert len(boxes) > 3


def test_shape_of_the_mask_is_handed_on() -> None:
    found = embed(masks(2)).arrays["shape"]
    np.testing.assert_array_equal(found, np.stack([mask_shape(LEFT, PLACEMENT)] * 2))


def test_row_that_failed_upstream_is_neither_read_nor_encoded() -> None:
    upstream, source, model = masks(3), FakeSource(), FakeModel()
    upstream["status"][1] = Status.FAILED
    result = embed(upstream, source, model, views=("original",))
    assert [i.reason for i in result.items] == ["", "upstream.failed", ""]
    assert (source.reads, sum(n for n, _ in model.passes)) == (2, 2)
    assert np.isnan(result.arrays["image"][1]).all()
    assert np.isfinite(result.arrays["image"][[0, 2]]).all()


def test_unreadable_image_is_a_failed_row() -> None:
    result = embed(masks(1), FakeSource(ReadError("decode.truncated")), views=("original", "masked"))
    assert [(i.row, i.status, i.reason) for i in result.items] == [(7, Status.FAILED, "decode.truncated")]


def test_image_of_another_shape_than_its_mask_is_a_failed_row() -> None:
    result = embed(masks(1), FakeSource(IMAGE[:, :50]), views=("original",))
    assert result.items[0].reason == "placement.changed"


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_vector_without_direction_is_a_failed_row(bad: float) -> None:
    class Broken(FakeModel):
        def encode_image(self, images: Any, features: str, *, tokens: bool) -> Any:
            encoding = super().encode_image(images, features, tokens=tokens)
            encoding.vectors[0] = bad
            return encoding

    result = embed(masks(2), model=Broken(), views=("original",))
    assert [i.reason for i in result.items] == ["embedding.nonfinite", ""]
    assert np.isnan(result.arrays["image"][0]).all()


def kept_tokens(n: int, source: Any = None, resize: str = "letterbox") -> UnitResult:
    stage = Tokens(TokensSettings(canvas_px=S, resize=resize), StageContext(batch_items=2))  # type: ignore[arg-type]
    stage.model = FakeModel()  # type: ignore[assignment]
    return stage.process(rows(n), source or FakeSource(), {})


@pytest.mark.parametrize("resize", ["letterbox", "squash"])
def test_kept_tokens_give_the_same_vectors_without_model_or_source(resize: str) -> None:
    views = ("original", "roi", "ring", "roi-random-box")
    expected = embed(masks(3), views=views, resize=resize)
    settings = EmbeddingsSettings(canvas_px=S, views=views, resize=resize, tokens=True)  # type: ignore[arg-type]
    stage = Embeddings(settings, StageContext(upstream={"masks": "", "tokens": ""}, batch_items=2))
    stage.load("cpu")
    upstream = {"masks": masks(3), "tokens": dict(kept_tokens(3, resize=resize).arrays)}
    source = FakeSource(ReadError("file.missing"))
    found = stage.process(rows(3), source, upstream)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.arrays["image"], expected.arrays["image"], atol=1e-3)
    np.testing.assert_array_equal(found.arrays["image"][:, 0], expected.arrays["image"][:, 0])
    assert (source.reads, stage.model) == (0, None)


def test_views_that_are_no_pooling_are_encoded_beside_kept_tokens() -> None:
    settings = EmbeddingsSettings(canvas_px=S, views=("original", "crop", "roi"), tokens=True)
    stage, model = Embeddings(settings, StageContext(upstream={"masks": "", "tokens": ""})), FakeModel()
    stage.model = model  # type: ignore[assignment]
    upstream = {"masks": masks(2), "tokens": dict(kept_tokens(2).arrays)}
    stage.process(rows(2), FakeSource(), upstream)  # type: ignore[arg-type]
    assert model.passes == [(2, False)]


def test_image_whose_tokens_failed_is_a_failed_row() -> None:
    tokens = kept_tokens(2)
    tokens.arrays["status"][0] = Status.FAILED
    stage = Embeddings(
        EmbeddingsSettings(canvas_px=S, views=("roi",), tokens=True), StageContext(upstream={"masks": "", "tokens": ""})
    )
    result = stage.process(rows(2), FakeSource(), {"masks": masks(2), "tokens": tokens.arrays})  # type: ignore[arg-type]
    assert [i.reason for i in result.items] == ["upstream.failed", ""]
    assert np.isnan(result.arrays["image"][0]).all()


def test_tokens_are_the_models_own_in_half_precision() -> None:
    result = kept_tokens(3)
    assert (result.arrays["tokens"].shape, result.arrays["tokens"].dtype) == ((3, 4, 4), np.float16)
    np.testing.assert_allclose(result.arrays["tokens"][0], FakeModel().cells(CANVAS), rtol=1e-3)
    np.testing.assert_allclose(result.arrays["image"][0], colour(CANVAS), rtol=1e-6)
    failed = kept_tokens(1, FakeSource(ReadError("decode.truncated")))
    assert failed.items[0].reason == "decode.truncated"
    assert np.isnan(failed.arrays["tokens"]).all()


def test_outputs_are_what_process_returns() -> None:
    for stage, arrays in (
        (Embeddings(EmbeddingsSettings(canvas_px=S), StageContext()), embed(masks(2)).arrays),
        (Tokens(TokensSettings(canvas_px=S), StageContext()), kept_tokens(2).arrays),
    ):
        specs = stage.outputs()
        assert {s.name for s in specs} == arrays.keys()
        assert all(arrays[s.name].shape == (2, *s.item_shape) and arrays[s.name].dtype == s.dtype for s in specs)


def test_mask_of_another_canvas_is_refused() -> None:
    stage = Embeddings(EmbeddingsSettings(canvas_px=128), StageContext(upstream={"masks": ""}))
    with pytest.raises(ValueError, match=r"masks.mask: expected \(1, 128, 128\) bool"):
        stage.process(rows(1), FakeSource(), {"masks": masks(1)})  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"resize": "crop"}, {"features": "projected"}, {"views": ("original",)}])
def test_settings_that_change_vectors_change_the_fingerprint(change: dict[str, Any]) -> None:
    context = StageContext(upstream={"masks": "a"}, batch_items=8)
    plain = Embeddings(EmbeddingsSettings(), context).identity().fingerprint
    assert Embeddings(EmbeddingsSettings(**change), context).identity().fingerprint != plain
    assert Embeddings(EmbeddingsSettings(), StageContext({"masks": "a"}, batch_items=1)).identity().fingerprint == plain
    assert Embeddings(EmbeddingsSettings(), StageContext({"masks": "b"})).identity().fingerprint != plain


@pytest.mark.parametrize(
    ("resize", "box"), [("letterbox", (0, 0, 64, 64)), ("squash", (16, 0, 32, 64)), ("crop", (16, 16, 32, 32))]
)
def test_model_sees_its_part_of_the_canvas(resize: str, box: tuple[int, ...]) -> None:
    assert model_box(place(40, 80, S), S, resize) == Placement(*box)


def test_coverage_is_exact_where_cells_cut_pixels() -> None:
    region = np.zeros((3, 5), bool)
    region[1, 2] = True
    np.testing.assert_allclose(cell_coverage(region, (2, 2)), [0.25 / 3.75] * 4, rtol=1e-6)


def test_padding_is_neither_inside_nor_outside() -> None:
    weights = token_weights(np.ones((S, S), bool), PLACEMENT, Placement(0, 0, S, S), (4, 4))
    np.testing.assert_allclose(weights["roi"].reshape(4, 4)[:, 0], [0, 1, 1, 0])
    assert not weights["ring"].any()


def test_vectors_of_two_models_do_not_mix() -> None:
    card = {"name": "a", "weights": {"f": "0"}, "mean": [0.5], "features": "trunk", "dtype": "float32"}
    check_same_card(card, card | {"mean": (0.5,), "dtype": "bfloat16"})
    for change in ({"weights": {"f": "1"}}, {"features": "projected"}, {"mean": [0.4]}):
        with pytest.raises(StoreError, match=next(iter(change))):
            check_same_card(card, card | change)


@pytest.mark.parametrize(
    ("name", "trunk", "projected"),
    [("clip-vit-b-32", 768, 512), ("clip-vit-b-16", 768, 512), ("clip-vit-l-14", 1024, 768)],
)
def test_openai_models_have_quickgelu_and_the_published_widths(name: str, trunk: int, projected: int) -> None:
    assert architecture_config(entry(name).architecture)["quick_gelu"] is True
    assert feature_dims(name) == {"trunk": trunk, "projected": projected}


@pytest.mark.parametrize("compiled", [False, True])
def test_tower_is_compiled_where_the_context_says_so(monkeypatch, compiled) -> None:
    asked = []
    monkeypatch.setattr("stages.models.clip.load_clip", lambda *given, **named: asked.append((given, named)))
    Embeddings(EmbeddingsSettings(), StageContext({"masks": "a"}, compiled=compiled)).load("cpu")
    assert asked == [((EmbeddingsSettings().model, "cpu", "float32"), {"compiled": compiled})]
