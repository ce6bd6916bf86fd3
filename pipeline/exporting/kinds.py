"""Which exports there are: their names, the stages they show, and what they need; as data, so that it costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

PROVENANCE: Final = "provenance"
"""The one export that shows no stage: a crate about all of them."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One export."""

    stages: tuple[str, ...]
    """Stages that it can show; the first unless `--stage` says otherwise."""
    writer: str
    """`module:function` that takes a Selection and an ExportFolder, and returns counts by what was counted."""
    modules: tuple[str, ...] = ()
    """Packages that it imports, of the extra `export`."""
    reads_source: bool = False
    """Whether it reads the source files."""


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "coco": Kind(("masks", "proposals"), "pipeline.exporting.coco:write_coco", ("pycocotools",)),
        "png": Kind(("masks",), "pipeline.exporting.png:write_png"),
        "parquet": Kind(("embeddings",), "pipeline.exporting.parquet:write_parquet", ("pyarrow",)),
        "dicom-seg": Kind(
            ("masks",), "pipeline.exporting.dicom_seg:write_dicom_seg", ("highdicom",), reads_source=True
        ),
        "nifti": Kind(("masks",), "pipeline.exporting.nifti:write_nifti", reads_source=True),
    }
)
"""By the name on the command line."""
