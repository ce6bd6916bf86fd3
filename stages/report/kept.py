"""What every test image was answered in every fit, kept beside a report so that a later one can be compared with it.

A fit that is made anew after a new drop replaces its commit; the report alone still knows what the older one answered.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from manifests.errors import DamagedError, InventoryError

KEPT: Final = "answers.json.gz"
"""Name of the file in a report's folder."""
SCHEMA_VERSION: Final = 2
RIGHT_ONLY: Final = 1
"""Version of the file that knew whether an answer was right, and not which class it named."""
FIT: Final = ("mask", "method", "training", "seed")
IMAGE: Final = ("image_id", "label", "group", "flagged")
NONE: Final = "-"
"""The letter of an image that a fit was not asked."""
ZERO: Final = "0"
"""The letter of an answer that names the first class; that of class k is k code points on: `0`, `1`, ..., `9`, `:`."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The answers of one report."""

    classes: tuple[str, ...]
    images: pd.DataFrame
    """A row for each test image with `IMAGE`; its index names it: the image_id, and `#2`, `#3`, ... for copies."""
    fits: pd.DataFrame
    """A row for each fit with `FIT`; the seed is int64, all else are texts."""
    predicted: NDArray[np.int16]
    """(fits, images): index in `classes` of the answer, -1 where the image is not among the fit's test images."""

    @classmethod
    def of(cls, answers: pd.DataFrame, classes: Sequence[str]) -> Kept:
        """Arrange the answers of a report.

        Parameters
        ----------
        answers : DataFrame
            A row for each test image of each fit with `ANSWER_COLUMNS`.
        classes : Sequence[str]
            Class names of the data set.
        """
        firsts = answers.drop_duplicates("image").set_index("image")[[*IMAGE]]
        flagged = answers.groupby("image")["flagged"].any()
        images = firsts.assign(flagged=flagged.reindex(firsts.index).astype(bool)).sort_index(key=_natural)
        fits = answers.drop_duplicates([*FIT])[[*FIT]].reset_index(drop=True)
        predicted = np.full((len(fits), len(images)), -1, np.int16)
        rows = answers.groupby([*FIT], sort=False).ngroup()  # numbered as they first come, as `fits` is
        columns = images.index.get_indexer(pd.Index(answers["image"]))
        predicted[rows.to_numpy(), columns] = answers["predicted"].astype(np.int16)
        return cls(tuple(classes), images.set_axis(_named(images["image_id"])), fits, predicted)

    def to_bytes(self) -> bytes:
        """The file: JSON under gzip, the same bytes for the same answers."""
        texts = [_written(row) for row in self.predicted]
        content = {
            "schema_version": SCHEMA_VERSION,
            "classes": list(self.classes),
            "images": {name: self.images[name].tolist() for name in IMAGE},
            "fits": [{**fit, "answers": text} for fit, text in zip(self.fits.to_dict("records"), texts, strict=True)],
        }
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return gzip.compress(text.encode("utf-8"), mtime=0)

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Kept:
        """Read what `to_bytes` wrote.

        Parameters
        ----------
        data : bytes
            The file.
        name : str
            What it is called in an error.

        Raises
        ------
        InventoryError
            If it was made before answers kept their class.
        DamagedError
            If it is damaged or of another version.
        """
        try:
            content = json.loads(gzip.decompress(data))
            if content["schema_version"] == RIGHT_ONLY:
                raise InventoryError(
                    f"{name} was made before answers kept the class that they name.",
                    "While the report's results stand, make it again, under another name: pipeline report",
                )
            if content["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema_version {content['schema_version']}, expected {SCHEMA_VERSION}")
            images = pd.DataFrame({column: content["images"][column] for column in IMAGE}).astype({"flagged": bool})
            fits = pd.DataFrame([{column: fit[column] for column in FIT} for fit in content["fits"]], columns=[*FIT])
            rows = [_read(fit["answers"], len(content["classes"])) for fit in content["fits"]]
            predicted = np.array(rows, np.int16).reshape(len(fits), len(images))
            return cls(tuple(content["classes"]), images.set_axis(_named(images["image_id"])), fits, predicted)
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
            raise DamagedError(
                f"{name} is damaged or of another version: {error}.",
                "Delete the report's folder and make it again: pipeline report",
            ) from error

    def of_images(self, chosen: NDArray[np.bool_]) -> Kept:
        """The same answers to some of the images.

        Parameters
        ----------
        chosen : ndarray of bool, (images,)
            Which are left.
        """
        return Kept(self.classes, self.images[chosen], self.fits, self.predicted[:, chosen])

    def right(self, predicted: NDArray[np.int16]) -> NDArray[np.int8]:
        """Whether the answers of one fit are right.

        Parameters
        ----------
        predicted : ndarray of int16, (images,)
            A row of `predicted`.

        Returns
        -------
        ndarray of int8, (images,)
            1 right, 0 wrong, -1 where there is none.
        """
        truth = pd.Index(self.classes).get_indexer(pd.Index(self.images["label"]))
        return np.where(predicted < 0, -1, predicted == truth).astype(np.int8)

    def of_fits(self, mask: str, method: str, training: str) -> dict[int, NDArray[np.int16]]:
        """Row of `predicted` by seed, in the order of seeds, of one method on one amount of training data."""
        wanted = {"mask": mask, "method": method, "training": training}
        chosen = np.logical_and.reduce([self.fits[column] == value for column, value in wanted.items()])
        seeds = self.fits["seed"][chosen].sort_values()
        return {int(seed): self.predicted[row] for row, seed in zip(seeds.index, seeds, strict=True)}


def _written(predicted: NDArray[np.int16]) -> str:
    letters = np.where(predicted < 0, ord(NONE), predicted.astype(np.int32) + ord(ZERO))
    return letters.astype("<u4").tobytes().decode("utf-32-le")


def _read(letters: str, n_classes: int) -> NDArray[np.int64]:
    codes = np.frombuffer(letters.encode("utf-32-le"), "<u4").astype(np.int64)
    found = np.where(codes == ord(NONE), -1, codes - ord(ZERO))
    if ((found < -1) | (found >= n_classes) | ((found == -1) & (codes != ord(NONE)))).any():
        raise ValueError(f"answers: expected {NONE!r} or one of {n_classes} classes from {ZERO!r} on")
    return found


def _natural(images: pd.Index) -> pd.Index:
    """Sort key of the names of rows: `drop-001/9` before `drop-001/10`."""
    parts = [str(name).rpartition("/") for name in images]
    return pd.Index([f"{drop}/{row:>12}" for drop, _, row in parts])


def _named(image_ids: pd.Series) -> pd.Index:
    """The ids, each told from earlier copies of the same file, so that a pair of reports agrees on every image."""
    copy = image_ids.groupby(image_ids).cumcount() + 1
    names = [name if n == 1 else f"{name}#{n}" for name, n in zip(image_ids, copy, strict=True)]
    return pd.Index(names, name="image", dtype=object)
