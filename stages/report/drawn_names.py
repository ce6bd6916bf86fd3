"""Names of classes as a figure can show them: cut to fit, and numbered where its font has no glyph for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

LONGEST_NAME: Final = 18
"""Characters."""


@dataclass(frozen=True, slots=True)
class DrawnNames:
    """Names of all classes for a figure, in order."""

    names: tuple[str, ...]
    key: str
    """Sentence that says what the numbered ones are, with a space before it; empty where none is."""

    @classmethod
    def of(cls, classes: Sequence[str]) -> DrawnNames:
        """Cut long names, and replace those that the font cannot draw by `class 1`, `class 2`, ..."""
        numbered = {name: f"class {index + 1}" for index, name in enumerate(classes) if not _drawable(name)}
        told = "; ".join(f"{number} is {name}" for name, number in numbered.items())
        key = f" The figure's font lacks characters of some names: {told}." if told else ""
        return cls(tuple(numbered.get(name, short(name)) for name in classes), key)


def short(name: str) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _drawable(name: str) -> bool:
    font = _font()
    return all(font.get_char_index(ord(character)) for character in name)


@cache
def _font() -> Any:
    """The font of all text in figures."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties()))
