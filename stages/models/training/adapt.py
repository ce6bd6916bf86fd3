"""Train an adapter: `python -m stages.models.training.adapt KIND BASE OUT --labelled FOLDER [--device cuda]`.

KIND is sam-adapter or samed, BASE a SAM2 of the registry. The adapted model answers an image, without a prompt, with
one mask: all objects of an outlined image together. Images without an object are not shown, as in the methods' own
training on pairs of image and mask. Each step follows from the seed and its number, and a training that was stopped
goes on where its folder says.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.models.adapters import attach
from stages.models.registry import ADAPTERS, AdapterKind, ModelEntry
from stages.models.sam2 import assemble
from stages.models.sam2_card import NOTHING, sam2_entry
from stages.models.training.augment import Labelled, random_view
from stages.models.training.losses import true_iou
from stages.models.training.samples import STRIDE, Phase, read_labelled
from stages.models.training.state import save_whole
from stages.models.weights import WeightsFolder

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

NEW_RATE: Final = 1e-3
"""Learning rate of the parts that an adapter adds."""
DECODER_RATE: Final = 2e-4
"""Of what it trains of the mask decoder."""
WEIGHT_DECAY: Final = 0.01
WARM_UP: Final = 50
MOST_NORM: Final = 1.0
REPORTED_EVERY: Final = 25
SAVED_EVERY: Final = 100

log = logging.getLogger(__name__)


def mask_loss(kind: AdapterKind, logits: Tensor, truth: Tensor) -> Tensor:
    """The loss of each method: BCE + (1 - soft IoU), or 0.2 BCE + 0.8 dice.

    Parameters
    ----------
    kind : str
        `sam-adapter` or `samed`.
    logits, truth : Tensor of float, (B, h, w)
        Truth is the share of each cell that the objects cover, 0..1.

    Returns
    -------
    Tensor of float, ()
    """
    shown = torch.sigmoid(logits)
    crossentropy = F.binary_cross_entropy_with_logits(logits, truth)
    both = (shown * truth).sum(dim=(1, 2))
    total = (shown + truth).sum(dim=(1, 2))
    if kind == "sam-adapter":
        return crossentropy + (1 - (both + 1) / (total - both + 1)).mean()
    return 0.2 * crossentropy + 0.8 * (1 - (2 * both + 1) / (total + 1)).mean()


@dataclass(frozen=True, slots=True)
class Course:
    """What is trained, and how long."""

    kind: AdapterKind
    phases: tuple[Phase, ...]
    seed: int


class AdapterTraining:
    """Trains one adapter.

    Parameters
    ----------
    network : SAM2Base
        Loaded, its trunk not streamlined; the adapter is attached here.
    known : ModelEntry
        What the registry says of it.
    course : Course
        Kind, sizes, steps and seed.
    labelled : Sequence[Labelled]
        Outlined images; those without an object are left out.
    """

    def __init__(self, network: SAM2Base, known: ModelEntry, course: Course, labelled: Sequence[Labelled]) -> None:
        self.network: Any = network
        self._course = course
        self._labelled = [one for one in labelled if len(one.masks)]
        self.parameters = attach(network, course.kind)
        new = [p for name, p in self.parameters.items() if not name.startswith("sam_mask_decoder.") or "lora_" in name]
        known_new = {id(p) for p in new}
        groups = [
            {"params": new, "top": NEW_RATE},
            {"params": [p for p in self.parameters.values() if id(p) not in known_new], "top": DECODER_RATE},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=NEW_RATE, weight_decay=WEIGHT_DECAY)
        self._device = next(network.parameters()).device
        self._mean, self._std = (torch.tensor(v, device=self._device).view(1, 3, 1, 1) for v in known.mean_std)
        self.step = 0

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self._course.phases)

    def run(self, folder: Path) -> None:
        """Train to the end; state and a record of losses are kept in the folder, which is created if absent."""
        folder.mkdir(parents=True, exist_ok=True)
        self._resume(folder / "state.pt")
        seen: list[tuple[float, float]] = []
        began = time.monotonic()
        while self.step < self.steps:
            seen.append(self._learn())
            if self.step % REPORTED_EVERY == 0:
                loss, iou = (sum(v) / len(seen) for v in zip(*seen, strict=True))
                line = {"step": self.step, "loss": round(loss, 4), "iou": round(iou, 4)}
                with (folder / "progress.jsonl").open("a") as lines:
                    lines.write(json.dumps(line | {"seconds": round(time.monotonic() - began, 1)}) + "\n")
                log.info("%s", line)
                seen.clear()
            if self.step % SAVED_EVERY == 0 or self.step == self.steps:
                self._save(folder / "state.pt")

    def trained_state(self) -> dict[str, Tensor]:
        """What the adapter's file holds, in float16."""
        return {name: p.detach().half().cpu().contiguous() for name, p in self.parameters.items()}

    def _learn(self) -> tuple[float, float]:
        """One step; returns loss and mean IoU."""
        phase = self._phase()
        rng = np.random.default_rng([self._course.seed, self.step])
        chosen = [self._labelled[i] for i in rng.integers(len(self._labelled), size=phase.images)]
        views = [random_view(one, phase.image_px, rng) for one in chosen]
        canvases = torch.from_numpy(np.stack([view.canvas for view in views]))
        masks = torch.from_numpy(np.stack([view.masks.any(axis=0) for view in views])).float()
        truth = F.avg_pool2d(masks[:, None], STRIDE)[:, 0].to(self._device)
        logits, predicted_iou = self.answer(canvases)
        found = true_iou(logits[:, None], truth)[:, 0]
        loss = mask_loss(self._course.kind, logits, truth) + F.l1_loss(predicted_iou, found)
        share = min(1.0, (self.step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group in self._optimizer.param_groups:
            group["lr"] = group["top"] * share
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters.values(), MOST_NORM)
        self._optimizer.step()
        self.step += 1
        return float(loss.detach()), float(found.mean())

    def answer(self, canvases: Tensor) -> tuple[Tensor, Tensor]:
        """The single mask without a prompt, (B, S / 4, S / 4) logits, and its predicted IoU, (B,).

        Parameters
        ----------
        canvases : Tensor of uint8, (B, S, S, 3)
            RGB.
        """
        network, side = self.network, canvases.shape[1]
        prompt, decoder = network.sam_prompt_encoder, network.sam_mask_decoder
        prompt.input_image_size, prompt.image_embedding_size = (side, side), (side // 16, side // 16)
        pixels = canvases.to(self._device).permute(0, 3, 1, 2).float().div(255)
        maps = network.forward_image((pixels - self._mean) / self._std)["backbone_fpn"]
        n_images = len(canvases)
        points = torch.zeros(n_images, 1, 2, device=self._device)
        labels = torch.full((n_images, 1), NOTHING, device=self._device)
        sparse, dense = prompt(points=(points, labels), boxes=None, masks=None)
        logits, predicted_iou, _, _ = decoder.predict_masks(
            image_embeddings=maps[-1] + network.no_mem_embed.view(1, -1, 1, 1),
            image_pe=prompt.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=maps[:-1],
        )
        return logits[:, 0].float(), predicted_iou[:, 0].float()

    def _phase(self) -> Phase:
        step = self.step
        for phase in self._course.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        raise IndexError(f"step {self.step} of {self.steps}")

    def _save(self, path: Path) -> None:
        parameters = {name: p.detach() for name, p in self.parameters.items()}
        state = {"step": self.step, "parameters": parameters, "optimizer": self._optimizer.state_dict()}
        save_whole(state, path)

    def _resume(self, path: Path) -> None:
        if not path.exists():
            return
        state = torch.load(path, map_location=self._device, weights_only=True)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        log.info("goes on from step %d", self.step)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=tuple(ADAPTERS))
    parser.add_argument("base", help="SAM2 of the registry that is adapted")
    parser.add_argument("out", type=Path, help="safetensors file to write")
    parser.add_argument("--labelled", type=Path, required=True, help="folder with index.csv: file, mask, clean_split")
    parser.add_argument("--work", type=Path, default=Path("workdir/training"), help="folder for state and progress")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, nargs=2, default=(900, 300), help="at half the model's size, and at it")
    parser.add_argument("--images", type=int, default=4, help="images of a step")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    known = sam2_entry(options.base)
    path = None if known.source == "random" else WeightsFolder().verified_path(known.name)
    network: Any = assemble(known, path, streamlined=False).to(options.device)
    half = Phase(known.image_px // 2, options.steps[0], options.images)
    whole = Phase(known.image_px, options.steps[1], options.images)
    training = AdapterTraining(
        network, known, Course(options.kind, (half, whole), options.seed), read_labelled(options.labelled, "train")
    )
    training.run(options.work / f"{options.kind}-{known.name}")
    save_file(training.trained_state(), options.out, metadata={"model": f"{options.kind}:{known.name}"})


if __name__ == "__main__":
    main()
