"""The proposals stage: every image through SAM2 once, so that no later decision needs the GPU again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from manifests.readers import BYTES_PER_PIXEL, MAX_PIXELS, ImageSource
from manifests.types import ArraySpec, ChunkArrays, ImageRow, ItemOutcome, StageIdentity, UnitResult
from stages.base import StageContext, empty_arrays, read_each, status_array
from stages.batches import Batches
from stages.images import Placement, letterbox
from stages.models.sam2_card import DECODER_BYTES, ENCODER_BYTES_PER_PIXEL, mask_source, segmenter_card
from stages.models.weights import WeightsFolder
from stages.proposals.arrays import FIXED, SCORES, UPSCALED_TOGETHER, output_specs
from stages.proposals.settings import ProposalsSettings

if TYPE_CHECKING:
    from stages.proposals.by_text import TextProposer
    from stages.proposals.propose import Proposer

LARGEST_IMAGE_BYTES = MAX_PIXELS * (BYTES_PER_PIXEL + 3)
"""One image of the readers' limit, as decoded and as RGB."""


class Proposals:
    """SAM2's candidate masks of every image, and the masks of two fixed prompts.

    Parameters
    ----------
    settings : ProposalsSettings
        Determine the results.
    context : StageContext
        Batch size and compilation, which do not change results.
    """

    name: ClassVar[str] = "proposals"
    version: ClassVar[int] = 1

    def __init__(self, settings: ProposalsSettings, context: StageContext) -> None:
        self.settings = settings
        self.context = context
        self.proposer: Proposer | TextProposer | None = None
        self.batches = Batches(context.batch_items)

    @property
    def inputs(self) -> tuple[str, ...]:
        """None: this stage reads the images."""
        return ()

    def identity(self) -> StageIdentity:
        """Settings and digests of the model's weights; imports no torch.

        Raises
        ------
        WeightsError
            If the model is unknown, makes no masks, or its file was not added.
        """
        known = mask_source(self.settings.model)
        digests = WeightsFolder().digests(known.name)
        return StageIdentity(self.name, self.version, self.settings.content(), digests)

    def outputs(self) -> tuple[ArraySpec, ...]:
        """Candidates and fixed masks as packed bits, their scores, placement, status; failed rows hold NaN scores."""
        return output_specs(self.settings)

    def attributes(self) -> Mapping[str, Any]:
        """The model's card, and the names of scores, fixed prompts and sides."""
        return {
            "card": segmenter_card(self.settings.model, self.settings.precision),
            "scores": list(SCORES),
            "fixed": list(FIXED),
            "placement": list(Placement._fields),
            "bit_order": "big",
        }

    def projected_bytes(self, chunk_items: int) -> int:
        """Results of the chunk, one batch in the encoder, one call of the decoder, and every mask of one image."""
        s = self.settings
        pixels = s.canvas_px**2
        row = sum(array.item_bytes for array in self.outputs())
        seen = mask_source(s.model).image_px ** 2
        batch = self.context.batch_items * (6 * pixels + seen * ENCODER_BYTES_PER_PIXEL)
        # Packed masks are held twice while they are joined; 12 bytes a pixel while some are upscaled and compared.
        # Three masks a point; coarse to fine, a quarter as many points come first, and a box for each region last.
        masks = (self.context.batch_items + 1) * 5 * s.points_per_side**2 * pixels // 8
        compared = UPSCALED_TOGETHER * 12 * pixels
        return chunk_items * row + batch + DECODER_BYTES["cpu"] + masks + compared + 2 * LARGEST_IMAGE_BYTES

    def load(self, device: str) -> None:
        """Load the model.

        Raises
        ------
        WeightsError
            If weights are missing, altered or of another architecture.
        """
        from stages.models.sam2 import load_segmenter
        from stages.proposals.propose import Proposer

        s = self.settings
        if s.by_text:
            from stages.models.clipseg import load_text_segmenter
            from stages.proposals.by_text import TextProposer

            self.proposer = TextProposer(load_text_segmenter(s.model, s.texts, device), s)
            return
        model = load_segmenter(s.model, device, s.precision, compiled=self.context.compiled)
        self.proposer = Proposer(model, s)

    def canary(self) -> NDArray[np.float32] | None:
        """What the loaded encoder makes of the canary, its depths joined; None for a segmenter that reads texts."""
        from stages.models.sam2 import Segmenter
        from stages.models.sam2_depths import encode_canary

        model = getattr(self.proposer, "model", None)
        return encode_canary(model) if isinstance(model, Segmenter) else None

    def process(self, rows: Sequence[ImageRow], source: ImageSource, upstream: Mapping[str, ChunkArrays]) -> UnitResult:  # noqa: ARG002
        """Propose masks for one chunk, a batch at a time; no candidate at all is a valid result."""
        proposer = self._loaded()
        arrays = empty_arrays(self.outputs(), len(rows))
        side, size = self.settings.canvas_px, self.context.batch_items
        parts: Counter[str] = Counter()

        def read(start: int) -> tuple[list[tuple[NDArray[np.uint8], Placement] | None], list[ItemOutcome]]:
            return read_each(rows[start : start + size], lambda row: letterbox(source.read(row), side))

        def propose(ready: Mapping[int, tuple[NDArray[np.uint8], Placement]]) -> None:
            proposer.seconds.clear()
            _fill(arrays, proposer, ready)
            parts.update(proposer.seconds)

        outcomes, seconds = self.batches.run(len(rows), read, propose)
        arrays["status"] = status_array(outcomes)
        return UnitResult(arrays, tuple(outcomes), {"read": seconds["read"]} | parts)

    def _loaded(self) -> Proposer | TextProposer:
        if self.proposer is None:
            raise RuntimeError("call load() before process()")
        return self.proposer


def _fill(
    arrays: dict[str, NDArray[Any]],
    proposer: Proposer | TextProposer,
    ready: Mapping[int, tuple[NDArray[np.uint8], Placement]],
) -> None:
    """Write what is proposed for a batch of readable images into their rows."""
    canvases, placements = zip(*ready.values(), strict=True)
    for row, (candidates, fixed) in zip(ready, proposer.propose(canvases, placements), strict=True):
        arrays["candidates"][row, : len(candidates)] = candidates.packed.cpu()
        arrays["candidate_scores"][row, : len(candidates)] = candidates.scores.cpu()
        arrays["fixed"][row], arrays["fixed_scores"][row] = fixed.packed.cpu(), fixed.scores.cpu()
        arrays["placement"][row] = ready[row][1].array()
