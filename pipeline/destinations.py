"""Where results may be written: not among the images that an ingest would take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from manifests.disk import place
from manifests.drops import load_drops
from manifests.errors import UsageError
from manifests.layout import DatasetPaths


def check_outside_sources(paths: DatasetPaths, outs: Iterable[Path | None], *sources: Path | None) -> None:
    """Refuse folders for results that lie in a source folder, where the next ingest would take pictures for images.

    Parameters
    ----------
    paths : DatasetPaths
        The data set; the sources of its drops, and of the images that its heads were asked about, are looked at.
    outs : Iterable[Path | None]
        Folders that the user named; None where a default is used.
    *sources : Path | None
        Further source folders, such as where one is mounted now.

    Raises
    ------
    UsageError
        If one of them is, or lies below, a source folder.
    """
    drops = (*load_drops(paths), *load_drops(paths.predictions))
    roots = {*(Path(drop.source_root) for drop in drops), *(source.resolve() for source in sources if source)}
    for out in outs:
        if out and any(out.resolve().is_relative_to(root) for root in roots):
            raise UsageError(
                f"{place(out)} lies in a source folder, where the next ingest would take its pictures for images.",
                "Name a folder outside of every source.",
            )
