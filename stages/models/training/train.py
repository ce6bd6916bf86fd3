"""Train the embedded SAM2: `python -m stages.models.training.train NAME OUT [--labelled FOLDER] [--start FILE]`.

`sam2-lite0-synthetic` sees synthetic scenes alone. `sam2-lite0` goes on from it, with the training part of BUSI mixed
in. Each step's images, views and prompts follow from the seed and the step's number, so that a training which was
stopped goes on as if it had not been, and a repetition on the same machine gives the same file.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from manifests.errors import UsageError
from stages.images import letterbox
from stages.models.checkpoints import read_state
from stages.models.sam2_architecture import instantiate_seeded
from stages.models.sam2_lite0 import lite0_config, load_trunk, trained_parts
from stages.models.training.primer import hidden_ellipses
from stages.models.training.samples import Batch, Mixture, Phase, Samples, read_labelled
from stages.models.training.scenes import draw_scene
from stages.models.training.state import save_whole
from stages.models.training.teach import Teacher

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

ARCHITECTURE: Final = "sam2.1/sam2.1_hiera_t.yaml"
WARM_UP: Final = 300
NECK_RATE: Final = 0.3
"""Learning rate of the neck, as a share of the others'."""
PRIMER_PX: Final = 128
WEIGHT_DECAY: Final = 0.01
MOST_NORM: Final = 1.0
AVERAGE: Final = 0.998
"""What is left of the weights' running mean after a step; the mean is what is shipped."""
SAVED_EVERY: Final = 250
REPORTED_EVERY: Final = 50

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one of the two models is trained."""

    primer_steps: int
    """Steps on hidden ellipses before the first phase."""
    phases: tuple[Phase, ...]
    learning_rate: float
    mixture: Mixture


RECIPES: Final[Mapping[str, Recipe]] = {
    "sam2-lite0-synthetic": Recipe(
        800, (Phase(128, 800, 12), Phase(256, 2800, 6), Phase(512, 300, 4)), 8e-4, Mixture()
    ),
    "sam2-lite0": Recipe(0, (Phase(512, 1400, 4),), 5e-4, Mixture(labelled_share=0.7, exact_boxes=0.7)),
}


class Training:
    """Weights, optimiser and running mean of one training; goes on where its folder says it stopped.

    Parameters
    ----------
    recipe : Recipe
        Sizes, steps and rates.
    samples : Samples
        Batches by step.
    seed : int
        Of all that is random.
    device : str
        Torch device.
    """

    def __init__(self, recipe: Recipe, samples: Samples, seed: int, device: str) -> None:
        self._recipe = recipe
        self._samples = samples
        self.network = build(device)
        self._teacher = Teacher(self.network, seed)
        self._parts = trained_parts(self.network)
        self._weights = [p for p in self._parts.parameters() if p.requires_grad]
        neck = {id(p) for p in self.network.image_encoder.neck.parameters()}
        groups = [
            {"params": [w for w in self._weights if id(w) not in neck], "share": 1.0},
            {"params": [w for w in self._weights if id(w) in neck], "share": NECK_RATE},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=WEIGHT_DECAY)
        self._seed = seed
        self._mean = [w.detach().clone() for w in self._weights]
        self.step = 0

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Begin with another training's weights."""
        self._parts.load_state_dict({k: v.float() for k, v in state.items()})
        self._mean = [w.detach().clone() for w in self._weights]

    def run(self, folder: Path, workers: int) -> None:
        """Train to the end; state and a record of losses are kept in the folder.

        Parameters
        ----------
        folder : Path
            Created if absent.
        workers : int
            Processes that draw samples.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._resume(folder / "state.pt")
        if self.step == 0:
            self._prime()
        loader = DataLoader(
            self._samples,
            batch_size=None,
            sampler=range(self.step, len(self._samples)),
            num_workers=workers,
            prefetch_factor=8 if workers else None,
        )
        seen: defaultdict[str, list[float]] = defaultdict(list)
        began = time.monotonic()
        for batch in loader:
            for key, value in self._learn(batch).items():
                seen[key].append(value)
            if self.step % REPORTED_EVERY == 0:
                means: dict[str, Any] = {k: round(sum(v) / len(v), 4) for k, v in seen.items()}
                means |= {"step": self.step, "seconds": round(time.monotonic() - began, 1)}
                with (folder / "progress.jsonl").open("a") as lines:
                    lines.write(json.dumps(means) + "\n")
                log.info("%s", means)
                seen.clear()
            if self.step % SAVED_EVERY == 0:
                self._save(folder / "state.pt")
        self._save(folder / "state.pt")

    def trained_state(self) -> dict[str, Tensor]:
        """Running mean of the trained weights in float16, with the buffers that belong to them."""
        state = self._parts.state_dict()
        names = [n for n, p in self._parts.named_parameters() if p.requires_grad]
        state.update(zip(names, self._mean, strict=True))
        return {k: v.half().cpu().contiguous() for k, v in state.items()}

    def _prime(self) -> None:
        """Teach what a box means, before anything is seen."""
        for step in range(self._recipe.primer_steps):
            rng = np.random.default_rng([self._seed, step])
            scene = draw_scene(self._seed, step, PRIMER_PX)
            canvas = torch.from_numpy(letterbox(scene.image, PRIMER_PX)[0])[None]
            loss, taken = self._teacher.primer_loss(canvas, hidden_ellipses(1, PRIMER_PX, rng))
            self._descend(loss, min(1.0, (step + 1) / WARM_UP))
            if (step + 1) % REPORTED_EVERY == 0:
                log.info("primer %d: loss %.3f, IoU %.3f", step + 1, float(loss.detach()), float(taken.mean()))

    def _descend(self, loss: Tensor, share: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.learning_rate * share * group["share"]
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._weights, MOST_NORM)
        self._optimizer.step()

    def _learn(self, batch: Batch) -> dict[str, float]:
        loss, quality = self._teacher.loss(batch, self.step)
        self._descend(loss, schedule(self.step, len(self._samples)))
        self.step += 1
        # Early weights are soon forgotten: a mean over few steps is short.
        keep = min(AVERAGE, self.step / (self.step + 10))
        torch._foreach_lerp_(self._mean, [w.detach() for w in self._weights], 1 - keep)
        return {"loss": float(loss.detach()), **quality}

    def _save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "parts": self._parts.state_dict(),
            "mean": self._mean,
            "optimizer": self._optimizer.state_dict(),
        }
        save_whole(state, path)

    def _resume(self, path: Path) -> None:
        if not path.exists():
            return
        state = torch.load(path, map_location=self._weights[0].device, weights_only=True)
        self._parts.load_state_dict(state["parts"])
        self._mean = state["mean"]
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        log.info("goes on from step %d", self.step)


def build(device: str) -> SAM2Base:
    """Build the network with its trunk from ImageNet and all else at a seeded start; only the latter is trained."""
    network = instantiate_seeded(lite0_config(ARCHITECTURE, 512)).to(device)
    load_trunk(network)
    trained_parts(network).requires_grad_(requires_grad=True).train()
    return network


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate: a linear rise, then half a cosine to 1 %."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def train(name: str, out: Path, options: argparse.Namespace) -> None:
    """Train one of `RECIPES` and write what is shipped.

    Raises
    ------
    UsageError
        If the recipe needs outlined images or a start, and none is given.
    """
    recipe = RECIPES[name]
    if recipe.mixture.labelled_share and not (options.labelled and options.start):
        raise UsageError(f"{name} needs outlined images and a start.", "Give --labelled FOLDER and --start FILE.")
    labelled = read_labelled(options.labelled, "train") if recipe.mixture.labelled_share else ()
    samples = Samples(recipe.phases, options.seed, labelled, recipe.mixture)
    training = Training(recipe, samples, options.seed, options.device)
    if options.start:
        training.start_from(read_state(options.start))
    training.run(options.work / name, options.workers)
    save_file(training.trained_state(), out, metadata={"model": name, "seed": str(options.seed)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=tuple(RECIPES))
    parser.add_argument("out", type=Path, help="safetensors file to write")
    parser.add_argument("--labelled", type=Path, help="folder of BUSI with its index.csv")
    parser.add_argument("--start", type=Path, help="file of the model to go on from")
    parser.add_argument("--work", type=Path, default=Path("workdir/training"), help="folder for state and progress")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw samples")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(options.name, options.out, options)


if __name__ == "__main__":
    main()
