"""This package's files that decide what a report shows of the same results."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

NAMES: Final = (
    *("answers", "committed", "fit_tables", "gallery", "lineage", "map_points", "mask_facts", "results"),
    "supplied_masks",
)
"""Modules that gather it; those whose name begins with `attention` are more of them."""


def report_sources() -> list[Traversable]:
    """Files of those modules."""
    found = {file.name.removesuffix(".py"): file for file in files(__package__).iterdir() if file.name.endswith(".py")}
    return [file for name, file in found.items() if name in NAMES or name.startswith("attention")]
