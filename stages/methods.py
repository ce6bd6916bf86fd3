"""What the name of a method asks for: views of the images, and a variant of the fusion."""

from __future__ import annotations

import re
from typing import Final, Literal

PictureView = Literal["original", "masked", "overlay", "binary", "crop", "blur", "inverted", "random-box", "shuffled"]
"""Views that are pictures of their own, so that a classifier can be trained on them."""
FOCUS: Final = "medfocus"
VARIANTS: Final = ("text-attn", "concat-mlp", "hadamard", "logits", "none")
"""Forms of F(T, I); the first goes without saying."""
ASKED: Final = ("masked", "overlay", "crop", "blur", "roi", "attn-bias", FOCUS)
"""Methods that see the mask, in the order in which the question is asked of them: first those that differ from
`original` in the mask alone."""
TOKENS: Final = "tokens"
"""In place of views: the tokens of the original image."""
WITHOUT_VIEW: Final = ("shape", "constant")
"""Methods that see no vector of an image."""
FORMS: Final = (
    f"{', '.join(WITHOUT_VIEW)}, VIEWS, or {FOCUS}[-VARIANT][@VIEWS]; VIEWS are views joined by +, after @ also "
    f"{TOKENS}; VARIANT is {', '.join(VARIANTS[1:])}"
)
TRAINED: Final = ("finetune", "slca", "clip-lora")
"""What is trained on pictures, `FORM[@VIEW]`; without a view it sees the original image."""
_TRAINED = re.compile(rf"(?:{'|'.join(TRAINED)})(?:@(?P<views>.+))?")
_FOCUS = re.compile(rf"{FOCUS}(?:-(?P<variant>{'|'.join(VARIANTS)}))?(?:@(?P<views>.+))?")


def check_method(method: str) -> str:
    """The name itself.

    Raises
    ------
    ValueError
        If it starts like MedFocusCLIP and is none of its forms, or has another `@`.
    """
    if not _FOCUS.fullmatch(method) and (method.startswith(FOCUS) or "@" in method):
        raise ValueError(f"{method!r} is no method; one is {FORMS}")
    return method


def variant_of(method: str) -> str | None:
    """Form of F that a method's features come from; None for a method without fusion."""
    found = _FOCUS.fullmatch(method)
    return (found["variant"] or VARIANTS[0]) if found else None


def views_of(method: str, default: str | None = None) -> tuple[str, ...]:
    """Views whose vectors a method joins: `roi+ring` and `medfocus@roi+ring` have two, `shape` none.

    Parameters
    ----------
    method : str
        Name of the method.
    default : str, optional
        View of a MedFocusCLIP method that names none.
    """
    if method in WITHOUT_VIEW:
        return ()
    if trained := _TRAINED.fullmatch(method):
        return (trained["views"] or "original",)
    found = _FOCUS.fullmatch(method)
    joined = (found["views"] or default or "") if found else method
    return tuple(joined.split("+")) if joined else ()


def sees_masks(method: str) -> bool:
    """Whether a method's results depend on masks."""
    return method != "constant" and views_of(method) not in (("original",), (TOKENS,))
