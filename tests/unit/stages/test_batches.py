"""Batches that do not fit an accelerator's memory, images that cannot be read, and two chunks at once in a process."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from manifests.types import ItemOutcome, Status, UnitResult
from stages.base import StageContext
from stages.batches import OUT_OF_MEMORY, Batches
from stages.embeddings.settings import EmbeddingsSettings
from stages.embeddings.stage import Embeddings
from tests.unit.stages.test_embeddings import FakeModel, FakeSource, S, masks, rows, small_model

__all__ = ["small_model"]
WAIT_S = 20.0


class Accelerator:
    """Holds at most `room` images at once; `heavy` ones do not fit even alone, `unreadable` ones are never there."""

    def __init__(self, room: int, most: int, heavy: Sequence[int] = (), unreadable: Sequence[int] = ()) -> None:
        self.room, self.most, self.heavy, self.unreadable = room, most, heavy, unreadable
        self.sizes: list[int] = []
        self.computed: list[int] = []
        self.n_rows = 0

    def read(self, start: int) -> tuple[list[str | None], list[ItemOutcome]]:
        """One batch of names of positions."""
        at = range(start, min(start + self.most, self.n_rows))
        names = [None if i in self.unreadable else f"image {i}" for i in at]
        bad = (Status.FAILED, "decode.truncated")
        return names, [ItemOutcome(100 + i, f"{i:016x}", *(bad if i in self.unreadable else (Status.OK,))) for i in at]

    def compute(self, ready: Mapping[int, str]) -> None:
        """Take a batch, or run out of memory."""
        self.sizes.append(len(ready))
        if len(ready) > self.room or set(ready) & set(self.heavy):
            raise torch.OutOfMemoryError("no room")
        assert ready == {i: f"image {i}" for i in ready}
        self.computed += ready

    def run(self, batches: Batches, n_rows: int) -> list[ItemOutcome]:
        """A chunk through the accelerator."""
        self.n_rows = n_rows
        return batches.run(n_rows, self.read, self.compute)[0]


def reasons(items: Sequence[ItemOutcome]) -> dict[int, str]:
    """Reason of each failed row, by its position."""
    return {i: item.reason for i, item in enumerate(items) if item.status == Status.FAILED}


def test_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    accelerator = Accelerator(room=3, most=8)
    items = accelerator.run(Batches(8), 8)
    assert accelerator.sizes == [8, 4, 2, 2, 2, 2]
    assert accelerator.computed == list(range(8))
    assert reasons(items) == {}


def test_size_that_fits_is_remembered_over_batches_and_chunks() -> None:
    accelerator, batches = Accelerator(room=3, most=8), Batches(8)
    accelerator.run(batches, 16)
    assert (batches.size, accelerator.sizes.count(8), accelerator.sizes.count(4)) == (2, 1, 1)
    accelerator.sizes.clear()
    accelerator.run(batches, 8)
    assert accelerator.sizes == [2, 2, 2, 2]


def test_size_never_falls_below_one() -> None:
    accelerator, batches = Accelerator(room=0, most=4), Batches(4)
    items = accelerator.run(batches, 6)
    assert batches.size == 1
    assert min(accelerator.sizes) == 1
    assert reasons(items) == dict.fromkeys(range(6), OUT_OF_MEMORY)


def test_image_that_does_not_fit_alone_is_a_failed_row_and_all_others_are_computed() -> None:
    accelerator = Accelerator(room=8, most=8, heavy=(2, 5))
    items = accelerator.run(Batches(8), 8)
    assert reasons(items) == {2: "gpu.oom", 5: "gpu.oom"}
    assert "does not hold this image alone" in items[2].detail
    assert accelerator.computed == [0, 1, 3, 4, 6, 7]
    assert [(item.row, item.image_id) for item in items] == [(100 + i, f"{i:016x}") for i in range(8)]


def test_unreadable_images_keep_their_own_reason_and_shift_nobody_else() -> None:
    accelerator = Accelerator(room=2, most=4, heavy=(6,), unreadable=(1, 4, 7))
    items = accelerator.run(Batches(4), 9)
    assert reasons(items) == {1: "decode.truncated", 4: "decode.truncated", 6: "gpu.oom", 7: "decode.truncated"}
    assert accelerator.computed == [0, 2, 3, 5, 8]


@given(
    st.integers(0, 20), st.integers(1, 9), st.integers(1, 9), st.sets(st.integers(0, 19)), st.sets(st.integers(0, 19))
)
@settings(deadline=None, max_examples=100)
def test_every_image_that_fits_is_computed_exactly_once(
    n_rows: int, most: int, room: int, heavy: set[int], unreadable: set[int]
) -> None:
    accelerator = Accelerator(room, most, sorted(heavy), sorted(unreadable))
    items = accelerator.run(Batches(most), n_rows)
    assert accelerator.computed == [i for i in range(n_rows) if i not in heavy | unreadable]
    assert sorted(reasons(items)) == [i for i in range(n_rows) if i in heavy | unreadable]
    assert len(items) == n_rows


def test_judge_sees_every_row_at_its_position_after_it_was_computed() -> None:
    accelerator, seen = Accelerator(room=2, most=4, heavy=(3,)), []
    accelerator.n_rows = 6

    def judge(outcome: ItemOutcome, position: int) -> ItemOutcome:
        seen.append((position, outcome.row, outcome.reason, position in accelerator.computed))
        return outcome

    Batches(4).run(6, accelerator.read, accelerator.compute, judge)
    assert seen == [(i, 100 + i, OUT_OF_MEMORY if i == 3 else "", i != 3) for i in range(6)]


def test_other_errors_of_a_model_are_not_taken_for_a_lack_of_memory() -> None:
    accelerator = Accelerator(room=8, most=8)

    def broken(_ready: Mapping[int, str]) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    accelerator.n_rows = 8
    with pytest.raises(RuntimeError, match="illegal memory access"):
        Batches(8).run(8, accelerator.read, broken)


def in_two_threads(read: Any, compute: Any) -> None:
    """Two chunks of four images at once through the batches of one stage."""
    batches = Batches(2)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(batches.run, 4, read, compute) for _ in "ab"]:
            items, _ = done.result(WAIT_S)
            assert reasons(items) == {}


def test_two_chunks_are_read_at_the_same_time() -> None:
    both = threading.Barrier(2)

    def read(start: int) -> tuple[list[int], list[ItemOutcome]]:
        both.wait(WAIT_S)  # broken unless another thread reads now
        return [start, start + 1], [ItemOutcome(i, "", Status.OK) for i in (start, start + 1)]

    in_two_threads(read, lambda _ready: None)


def test_next_batch_is_read_while_one_is_computed() -> None:
    computing, read_meanwhile = threading.Event(), threading.Event()

    def read(start: int) -> tuple[list[int], list[ItemOutcome]]:
        if computing.is_set():
            read_meanwhile.set()
        return [start], [ItemOutcome(start, "", Status.OK)]

    def compute(_ready: Mapping[int, int]) -> None:
        computing.set()
        assert read_meanwhile.wait(WAIT_S)

    Batches(1).run(2, read, compute)


def test_two_chunks_are_never_computed_at_the_same_time() -> None:
    computing, together = [], []

    def read(start: int) -> tuple[list[int], list[ItemOutcome]]:
        return [start, start + 1], [ItemOutcome(i, "", Status.OK) for i in (start, start + 1)]

    def compute(ready: Mapping[int, int]) -> None:
        computing.append(ready)
        together.append(len(computing))
        time.sleep(0.05)
        computing.pop()

    in_two_threads(read, compute)
    assert together == [1, 1, 1, 1]


class SmallAccelerator(FakeModel):
    """The fake model on an accelerator that holds at most `room` images at once, and none that is `heavy`."""

    def __init__(self, room: int, heavy: int | None = None) -> None:
        super().__init__()
        self.room, self.heavy = room, heavy

    def encode_image(self, images: Sequence[NDArray[np.uint8]], features: str, *, tokens: bool) -> Any:
        if len(images) > self.room or any(
            self.heavy == image[len(image) // 2, image.shape[1] // 2, 0] for image in images
        ):
            raise torch.OutOfMemoryError("no room")
        return super().encode_image(images, features, tokens=tokens)


class ManyImages(FakeSource):
    """Every image has a colour of its own: that of its row."""

    def read(self, row: Any) -> NDArray[np.uint8]:
        return np.full((40, 80, 3), 10 * row.row, np.uint8)


def embedded(model: FakeModel) -> UnitResult:
    """Seven images through the stage, at most four at once."""
    context = StageContext(upstream={"masks": "f" * 64}, batch_items=4)
    stage = Embeddings(EmbeddingsSettings(canvas_px=S, views=("original", "roi", "masked")), context)
    stage.model = model  # type: ignore[assignment]
    return stage.process(rows(7), ManyImages(), {"masks": masks(7)})  # type: ignore[arg-type]


@pytest.mark.parametrize("room", [1, 2, 3])
def test_embeddings_are_the_same_however_little_memory_there_is(room: int) -> None:
    expected, found = embedded(FakeModel()), embedded(SmallAccelerator(room))
    assert set(found.arrays) == set(expected.arrays)
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    assert found.items == expected.items


def test_embedding_that_does_not_fit_alone_is_missing_and_the_others_are_as_ever() -> None:
    expected, found = embedded(FakeModel()), embedded(SmallAccelerator(4, heavy=90))
    assert reasons(found.items) == {2: OUT_OF_MEMORY}
    assert found.arrays["status"].tolist() == [Status.OK, Status.OK, Status.FAILED, *[Status.OK] * 4]
    assert np.isnan(found.arrays["image"][2]).all()
    others = [0, 1, 3, 4, 5, 6]
    np.testing.assert_array_equal(found.arrays["image"][others], expected.arrays["image"][others])
