"""One step of training: images through the frozen trunk, prompts of every kind through neck, prompt encoder, decoder.

The decoder's own `predict_masks` is called, because its `forward` gives either the single mask or the three of the
multimask output, and all four are taught. Corrections are clicks where the first answer was wrong, given together with
that answer as the dense prompt, as SAM2 is used by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.models.sam2_card import CORNERS, INSIDE, NOTHING
from stages.models.training.losses import beside_loss, object_loss
from stages.models.training.prompts import correction
from stages.models.training.samples import STRIDE, Batch, Prompts

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

MOST_LOGIT: Final = 32.0
"""Logits of a dense prompt are cut off here, as SAM2 does."""


class Encoded(NamedTuple):
    """B images after the neck."""

    embedding: Tensor
    """(B, C, S / 16, S / 16)."""
    fine: Tensor
    """(B, C / 8, S / 4, S / 4)."""
    middle: Tensor
    """(B, C / 4, S / 8, S / 8)."""


class Answer(NamedTuple):
    """What the decoder says to P prompts."""

    logits: Tensor
    """(P, 4, S / 4, S / 4) float32: the single mask, then the three of the multimask output."""
    predicted_iou: Tensor
    """(P, 4) float32."""
    presence: Tensor
    """(P, 1) float32, object score before the sigmoid."""


class Teacher:
    """Computes the loss of a batch.

    Parameters
    ----------
    network : SAM2Base
        Its trunk is frozen.
    seed : int
        Of the corrections.
    """

    def __init__(self, network: SAM2Base, seed: int) -> None:
        self._network = network
        self._seed = seed
        self._device = next(network.parameters()).device

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """Sum of the losses of all kinds of prompts.

        Parameters
        ----------
        batch : Batch
            On the CPU.
        step : int
            Together with the seed decides the corrections.

        Returns
        -------
        loss : Tensor of float, ()
            With its graph.
        quality : Mapping[str, float]
            Mean IoU of the masks that a user would take, by kind of prompt; predicted IoU beside objects.
        """
        self._set_size(batch.canvases.shape[1])
        with self._autocast():
            encoded = self._encode(batch.canvases.to(self._device))
            answers = {
                "click": (batch.clicks, (INSIDE,), 1.0),
                "box": (batch.boxes, CORNERS, 1.0),
                "none": (batch.unprompted, (NOTHING,), 0.25),
            }
            total, quality = torch.zeros((), device=self._device), {}
            for kind, (prompts, labels, weight) in answers.items():
                if len(prompts.image):
                    answer = self._answer(encoded, prompts, torch.tensor([labels]).expand(len(prompts.image), -1))
                    loss, taken = object_loss(*answer, prompts.truth.to(self._device))
                    total, quality[kind] = total + weight * loss, float(taken.mean())
                    if kind == "click":
                        first = answer
            corrected = self._corrected(encoded, batch.clicks, first, step) if "click" in quality else None
            if corrected is not None:
                total, quality["corrected"] = total + 0.5 * corrected[0], float(corrected[1].mean())
            if len(batch.beside.image):
                answer = self._answer(encoded, batch.beside, torch.full((len(batch.beside.image), 1), INSIDE))
                total = total + beside_loss(answer.predicted_iou, answer.presence)
                quality["beside"] = float(answer.predicted_iou.detach()[:, 1:].max(dim=1).values.mean())
        return total, quality

    def primer_loss(self, canvases: Tensor, boxes: Prompts) -> tuple[Tensor, Tensor]:
        """Loss of boxes alone, (), and the IoU of the masks that a user would take, (P,).

        Parameters
        ----------
        canvases : Tensor of uint8, (B, S, S, 3)
            Images that need not show the objects.
        boxes : Prompts
            On these images.
        """
        self._set_size(canvases.shape[1])
        labels = torch.tensor([CORNERS]).expand(len(boxes.image), -1)
        answer = self._answer(self._encode(canvases.to(self._device)), boxes, labels)
        return object_loss(*answer, boxes.truth.to(self._device))

    def _encode(self, canvases: Tensor) -> Encoded:
        pixels = canvases.permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            maps = [m.float() for m in self._network.image_encoder.trunk(pixels)]
        pyramid, _ = self._network.image_encoder.neck(maps)
        decoder = self._network.sam_mask_decoder
        return Encoded(pyramid[2], decoder.conv_s0(pyramid[0]), decoder.conv_s1(pyramid[1]))

    def _answer(self, encoded: Encoded, prompts: Prompts, labels: Tensor, masks: Tensor | None = None) -> Answer:
        prompt, image = self._network.sam_prompt_encoder, prompts.image.to(self._device)
        points = prompts.points.to(self._device), labels.to(self._device)
        sparse, dense = prompt(points=points, boxes=None, masks=masks)
        logits, predicted_iou, _, presence = self._network.sam_mask_decoder.predict_masks(
            image_embeddings=encoded.embedding.index_select(0, image),
            image_pe=prompt.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=[encoded.fine.index_select(0, image), encoded.middle.index_select(0, image)],
        )
        return Answer(logits.float(), predicted_iou.float(), presence.float())

    def _corrected(self, encoded: Encoded, clicks: Prompts, first: Answer, step: int) -> tuple[Tensor, Tensor] | None:
        """Loss after one or two more clicks on one object of each image; None if all are too small to be drawn."""
        rng = np.random.default_rng([self._seed, step])
        large = torch.nonzero((clicks.truth > 0.5).flatten(1).any(dim=1))[:, 0].numpy()
        if not len(large):
            return None
        chosen = torch.from_numpy(large[np.unique(clicks.image.numpy()[large], return_index=True)[1]])
        on_device = chosen.to(self._device)
        best = first.predicted_iou[on_device, 1:].argmax(dim=1) + 1
        masks, truth = first.logits.detach()[on_device, best], clicks.truth[chosen]
        points, labels = clicks.points[chosen], torch.full((len(chosen), 1), INSIDE)
        for _ in range(int(rng.integers(1, 3))):
            pairs = zip((truth > 0.5).numpy(), (masks > 0).cpu().numpy(), strict=True)
            places, kinds = zip(*(correction(wanted, given, rng) for wanted, given in pairs), strict=True)
            points = torch.cat((points, torch.from_numpy(np.stack(places))[:, None] * STRIDE), dim=1)
            labels = torch.cat((labels, torch.tensor(kinds)[:, None]), dim=1)
            dense = masks[:, None].clamp(-MOST_LOGIT, MOST_LOGIT) if rng.random() < 0.5 else None
            answer = self._answer(encoded, Prompts(clicks.image[chosen], points, truth), labels, dense)
            masks = answer.logits.detach()[:, 0]
        return object_loss(*answer, truth.to(self._device))

    def _set_size(self, image_px: int) -> None:
        """Let the prompt encoder know how large the images are: positions are shares of the side."""
        prompt = self._network.sam_prompt_encoder
        prompt.input_image_size = (image_px, image_px)
        prompt.image_embedding_size = (image_px // 16, image_px // 16)

    def _autocast(self) -> AbstractContextManager[Any]:
        """On a CPU float32: many emulate bfloat16, at a tenth of the speed."""
        if self._device.type == "cpu":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)
