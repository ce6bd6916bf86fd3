"""The gallery as the page shows it: pictures by outcome, each with its panels, answers and caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from stages.report import figures
from stages.report.data import GalleryItem
from stages.report.outcomes import OUTCOMES

NO_LABEL = "(no label)"
SHOWN: Final[Mapping[str, str]] = {
    "masked": "masked image",
    "overlay": "overlay",
    "binary": "mask alone",
    "crop": "crop to the mask",
    "blur": "blurred outside the mask",
}
"""What the masks stage makes of an image, by the name of the compositing."""


def shown_classes(items: Sequence[GalleryItem], classes: Sequence[str]) -> list[str]:
    """Classes of the gallery in the order of the classes, other labels last."""
    labels = dict.fromkeys((*classes, *(item.label for item in items)))
    return [label or NO_LABEL for label in labels if any(item.label == label for item in items)]


def composed(items: Sequence[GalleryItem]) -> str:
    """What the panel of the masks stage is called."""
    return ", ".join(dict.fromkeys(SHOWN[item.shown] for item in items))


def gallery_groups(items: Sequence[GalleryItem], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Items by outcome, and by class in the order of the classes; one image under all policies side by side."""
    labels = [*classes, *(item.label for item in items if item.label not in classes)]
    images = list(dict.fromkeys(item.caption for item in items))
    ordered = sorted(items, key=lambda item: (labels.index(item.label), images.index(item.caption)))
    grouped = {title: [_picture(item) for item in ordered if item.outcome == name] for name, title in OUTCOMES.items()}
    return [{"title": title, "pictures": pictures} for title, pictures in grouped.items() if pictures]


def _picture(item: GalleryItem) -> dict[str, Any]:
    panels = [(SHOWN[item.shown], item.masked)]
    if item.image is not None:
        drawn = [("image", item.image)]
        if item.proposals is not None:
            n = len(item.proposals)
            drawn.append((f"{n} proposal{'s' * (n != 1)}", figures.proposed(item.image, item.proposals)))
        panels = [*drawn, ("outline of the mask", figures.outlined(item.image, item.mask)), *panels]
        for heat in item.heats:
            panels.append((f"where {heat.method} looked", figures.heated(item.image, heat.values)))
    return {
        "item": item,
        "label": item.label or NO_LABEL,
        "quality": "" if item.quality is None else f"{item.kind} {item.quality:.2f}",
        "answers": [
            (name, said, said == item.label) for name, said in (("with", item.predicted), ("without", item.without))
        ],
        "panels": [(name, figures.thumbnail_uri(pixels)) for name, pixels in panels],
    }
