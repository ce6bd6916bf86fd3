"""How much each proposal looks like what a few words say: CLIP on its masked crop, as SaLIP does (arXiv 2404.06362)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from stages.canary import canary_image
from stages.images import Placement, composite
from stages.masks.policies import ImageProposals, usable
from stages.masks.settings import CROPS_TOGETHER, MasksSettings
from stages.models.clip import ClipModel, load_clip


class Ranker:
    """A loaded CLIP and the mean direction of its prompts.

    Parameters
    ----------
    settings : MasksSettings
        Model, prompts and the limits of usable candidates.
    device : str
        Torch device.

    Raises
    ------
    WeightsError
        If weights are missing, altered or of another architecture.
    """

    def __init__(self, settings: MasksSettings, device: str) -> None:
        self._settings = settings
        self._model: ClipModel = load_clip(settings.clip_model, device, "float32")
        self._direction = self._model.encode_text(settings.clip_prompts, "projected").mean(dim=0)

    def canary(self) -> NDArray[np.float32]:
        """What the loaded image tower makes of the canary, (D,)."""
        return np.asarray(self._model.encode_image([canary_image()], "projected", tokens=False).vectors[0])

    def similarity(
        self, canvas: NDArray[np.uint8], proposals: ImageProposals, placement: Placement
    ) -> NDArray[np.float32]:
        """Mean cosine of each usable candidate's masked crop with the prompts; NaN for the others.

        Parameters
        ----------
        canvas : ndarray of uint8, (S, S, 3)
            The image.
        proposals : ImageProposals
            Its candidates.
        placement : Placement
            Where it lies.

        Returns
        -------
        ndarray of float32, (K,)
        """
        kept = usable(proposals.candidate_scores, self._settings)
        found = np.full(len(kept), np.nan, np.float32)
        crops = [_crop(canvas, candidate, placement) for candidate in proposals.candidates[kept]]
        if crops:
            batches = (crops[i : i + CROPS_TOGETHER] for i in range(0, len(crops), CROPS_TOGETHER))
            vectors = [self._model.encode_image(batch, "projected", tokens=False).vectors for batch in batches]
            found[kept] = (torch.cat(vectors) @ self._direction).numpy()
        return found


def _crop(canvas: NDArray[np.uint8], candidate: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
    mask = np.unpackbits(candidate, axis=-1).astype(bool)
    return composite(composite(canvas, mask, "masked", placement), mask, "crop", placement)
