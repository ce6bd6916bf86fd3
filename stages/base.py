"""The two stage protocols and what the driver hands to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from manifests.errors import ReadError
from manifests.readers import ImageSource
from manifests.twins import Twin
from manifests.types import (
    ArraySpec,
    Cell,
    ChunkArrays,
    ImageRow,
    ItemOutcome,
    StageIdentity,
    Status,
    UnitResult,
)

S = TypeVar("S")
T = TypeVar("T")


class Settings(BaseModel):
    """Base of every settings table: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def some_and_distinct(value: tuple[T, ...]) -> tuple[T, ...]:
    """Refuse an empty tuple and one that holds something twice: a validator of settings."""
    if not value or len(set(value)) != len(value):
        raise ValueError(f"at least one, none twice, got {list(value)}")
    return value


class StudySettings(Settings):
    """Which cells are fitted; outside every fingerprint, because each cell is a unit of its own."""

    fractions: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
    """Shares of each class's training groups, in (0, 1]."""
    shots: tuple[int, ...] = ()
    """Training images a class, beside the fractions."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    published: Literal["none", "covid", "lung", "brain", "breast"] = "none"
    """Table of the MedFocusCLIP paper that the report shows beside these results."""

    def cells(self, methods: Iterable[str]) -> tuple[Cell, ...]:
        """Every method with every number of shots, fraction and seed."""
        shares = (*((0.0, shots) for shots in self.shots), *((fraction, 0) for fraction in self.fractions))
        return tuple(Cell(m, f, seed, shots) for m in methods for f, shots in shares for seed in self.seeds)

    @field_validator("fractions")
    @classmethod
    def _in_unit_interval(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < f <= 1 for f in value):
            raise ValueError(f"every fraction lies above 0 and not above 1, got {list(value)}")
        return value

    @field_validator("shots")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(k < 1 for k in value):
            raise ValueError(f"every number of shots is 1 or more, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _some_training(self) -> Self:
        if not (self.fractions or self.shots):
            raise ValueError("fractions or shots: at least one")
        return self

    @field_validator("seeds")
    @classmethod
    def _not_empty(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or any(s < 0 for s in value):
            raise ValueError(f"at least one seed, none negative, got {list(value)}")
        return value


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage is built with besides its own settings."""

    upstream: Mapping[str, str] = field(default_factory=dict)
    """Full fingerprint of every input by stage name."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the class index."""
    study: StudySettings = field(default_factory=StudySettings)
    batch_items: int = 8
    """Images that go through a model at once; outside the fingerprint."""
    compiled: bool = False
    """Image encoders go through torch.compile; outside the fingerprint."""


@dataclass(frozen=True, slots=True)
class StageData:
    """Committed features of all drops, as a cell stage sees them."""

    rows: tuple[ImageRow, ...]
    """Rows of all drops in order of arrival, N in all."""
    drops: tuple[str, ...]
    """Drop of each row, N."""
    status: NDArray[np.uint8]
    """`Status` of each row in the map stage that feeds the cells, (N,)."""
    arrays: ChunkArrays
    """Arrays of that map stage over all drops; the first axis is N."""
    attributes: Mapping[str, Any]
    """Attributes of that map stage's group, such as `views` and `card`."""
    artifacts: Mapping[str, Path]
    """Folder with the committed artifacts of each upstream cell, by stage name; read only."""
    device: str = "cpu"
    """Torch device that a training may use."""
    twins: tuple[Twin, ...] = ()
    """Pairs of images that show the same picture, as the audit found them."""


class MapStage(Protocol):
    """Turn one chunk into arrays. Built from settings on the worker; may hold a loaded model."""

    name: ClassVar[str]
    version: ClassVar[int]

    def __init__(self, settings: Any, context: StageContext) -> None: ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Map stages whose arrays `process` needs."""
        ...

    def identity(self) -> StageIdentity:
        """Everything that determines the results; imports no torch."""
        ...

    def outputs(self) -> tuple[ArraySpec, ...]:
        """One spec for every array that `process` returns; `status` is the last."""
        ...

    def attributes(self) -> Mapping[str, Any]:
        """Group attributes of the store: JSON values such as the model's card or the names of views."""
        ...

    def projected_bytes(self, chunk_items: int) -> int:
        """Upper bound of the memory that one chunk needs beside the model, in bytes."""
        ...

    def load(self, device: str) -> None:
        """Load the model once for this process.

        Raises
        ------
        WeightsError
            If weights are missing, altered or of another architecture.
        """
        ...

    def canary(self) -> NDArray[np.float32] | None:
        """What the loaded model makes of `stages.canary.canary_image`, (D,); None if there is no model."""
        ...

    def process(self, rows: Sequence[ImageRow], source: ImageSource, upstream: Mapping[str, ChunkArrays]) -> UnitResult:
        """Compute one chunk; an image that cannot be read is a failed row, never an exception."""
        ...


class CellStage(Protocol):
    """Fit one cell on committed features and write its artifacts into `out`, which is renamed when done."""

    name: ClassVar[str]
    version: ClassVar[int]

    def __init__(self, settings: Any, context: StageContext) -> None: ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Stages that must be complete before; the arrays of the map stages among them fill `StageData.arrays`."""
        ...

    def identity(self) -> StageIdentity:
        """Everything that determines the results; imports no torch."""
        ...

    def cells(self) -> tuple[Cell, ...]:
        """Every cell that this study asks for."""
        ...

    def needs(self, cell: Cell) -> Mapping[str, Cell]:
        """Cell of each upstream cell stage whose artifacts this cell reads."""
        ...

    def reads(self, cell: Cell) -> tuple[str, ...]:
        """Arrays of the map stage that `fit` finds in `StageData.arrays`, `status` among them."""
        ...

    def fit(self, cell: Cell, data: StageData, out: Path) -> Mapping[str, float]:
        """Fit the cell, write artifacts into `out`, return what the commit record shows (JSON numbers)."""
        ...


def failed(row: ImageRow, error: ReadError) -> ItemOutcome:
    """Outcome of an image that cannot be read."""
    return ItemOutcome(row.row, row.image_id, Status.FAILED, error.reason, error.detail)


def read_each(
    rows: Sequence[ImageRow], read: Callable[[ImageRow], T], upstream_status: NDArray[np.uint8] | None = None
) -> tuple[list[T | None], list[ItemOutcome]]:
    """Read one thing per row; what cannot be read, or failed upstream, is None with a failed outcome.

    Parameters
    ----------
    rows : Sequence[ImageRow]
        Rows of the chunk.
    read : Callable[[ImageRow], T]
        Raises `ReadError` for an image that cannot be read.
    upstream_status : ndarray of uint8, (len(rows),), optional
        Rows that are FAILED there are not read again.

    Returns
    -------
    tuple[list[T | None], list[ItemOutcome]]
        One entry a row each; outcomes of readable rows are OK.
    """
    things: list[T | None] = []
    outcomes: list[ItemOutcome] = []
    for position, row in enumerate(rows):
        try:
            if upstream_status is not None and upstream_status[position] == Status.FAILED:
                raise ReadError("upstream.failed", "an earlier stage could not use this image")
            things.append(read(row))
            outcomes.append(ItemOutcome(row.row, row.image_id, Status.OK))
        except ReadError as error:
            things.append(None)
            outcomes.append(failed(row, error))
    return things, outcomes


def ahead(make: Callable[[S], T], things: Iterable[S]) -> Iterator[T]:
    """What is made of each thing, in order, while the next one is made in a thread: reading overlaps computing."""
    left = iter(things)
    with ThreadPoolExecutor(1, "read") as pool:
        pending: deque[Future[T]] = deque(pool.submit(make, thing) for thing in islice(left, 1))
        while pending:
            made = pending.popleft()
            pending.extend(pool.submit(make, thing) for thing in islice(left, 1))
            yield made.result()


def status_array(outcomes: Sequence[ItemOutcome]) -> NDArray[np.uint8]:
    """Status of each outcome, (len(outcomes),) uint8."""
    return np.array([o.status for o in outcomes], dtype=np.uint8)


def empty_arrays(specs: Sequence[ArraySpec], n_items: int) -> dict[str, NDArray[Any]]:
    """Arrays of `n_items` rows that hold the fill value of each spec."""
    return {s.name: np.full((n_items, *s.item_shape), s.fill, dtype=s.dtype) for s in specs}
