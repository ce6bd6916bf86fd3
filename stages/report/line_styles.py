"""Lines of the learning curve that can be told apart: marker and dashes by method, colour by mask policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette (jfly.uni-koeln.de/color), told apart by every common kind of colour vision."""
MARKERS: Final = ("o", "^", "D", "v", "P", "X", "<", ">", "p", "*", "d")
DASHES: Final[tuple[Any, ...]] = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))
"""Their number and that of the markers have no common factor, so that 44 methods differ in one or the other."""
FILLS: Final = ("full", "left", "top", "right", "bottom")
"""Of markers, by policy, once its colours are used up."""


@dataclass(frozen=True, slots=True)
class LineStyle:
    """How one method is drawn under one mask policy."""

    colour: str
    marker: str
    dashes: Any
    """As matplotlib's `linestyle`."""
    fill: str = "full"
    """Of the marker; hollow where a method sees no mask."""


WITHOUT_MASK: Final = {
    "original": LineStyle("#000000", "s", "-"),
    "constant": LineStyle("#777777", "", ":"),
}
"""What the others are measured by."""
NO_POLICY: Final = "#555555"
"""Colour of other methods that see no mask, where colours tell policies apart."""


def line_styles(pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], LineStyle]:
    """A style of its own for each (mask, method); where there is one policy, colours tell methods apart too."""
    masks = list(dict.fromkeys(mask for mask, _ in pairs if mask))
    methods = [m for m in dict.fromkeys(method for _, method in pairs) if m not in WITHOUT_MASK]
    return {(mask, method): _style(mask, method, masks, methods) for mask, method in pairs}


def _style(mask: str, method: str, masks: Sequence[str], methods: Sequence[str]) -> LineStyle:
    if method in WITHOUT_MASK:
        return WITHOUT_MASK[method]
    turn = methods.index(method)
    cycle, policy = divmod(masks.index(mask), len(COLOURS)) if mask else (0, 0)
    colour = COLOURS[policy] if mask else NO_POLICY
    if len(masks) < 2:
        colour = COLOURS[turn % len(COLOURS)]
    fill = FILLS[cycle % len(FILLS)] if mask else "none"
    return LineStyle(colour, MARKERS[turn % len(MARKERS)], DASHES[turn % len(DASHES)], fill)
