"""SAM2's own automatic mask generator, as tests and benchmarks compare with it."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from torchvision.transforms import Normalize, Resize

from stages.models.sam2 import Segmenter
from stages.models.sam2_architecture import instantiate_seeded, read_config, tiny_config
from stages.models.sam2_card import sam2_entry
from stages.proposals.settings import ProposalsSettings


def random_segmenter(name: str, gain: float, device: str = "cpu", precision: str = "float32") -> Segmenter:
    """Build a model with random weights whose masks and scores differ from prompt to prompt.

    Parameters
    ----------
    name : str
        A model of the registry with an architecture of the package, or `sam2-tiny-untrained`.
    gain : float
        Standard deviation of what is added to each weight of the decoder: as it starts, prompts hardly matter.
    device, precision : str
        As for `load_segmenter`.
    """
    known = sam2_entry(name)
    tiny = known.source == "random"
    config = tiny_config(known.architecture, known.image_px) if tiny else read_config(known.architecture)
    network = instantiate_seeded(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.sam_mask_decoder.parameters():
            weight += gain * torch.randn(weight.shape, generator=generator)
    card = {"precision": precision, "mean": known.mean_std[0], "std": known.mean_std[1]}
    return Segmenter(known, network, card, device)


def package_generator(model: Segmenter, settings: ProposalsSettings) -> SAM2AutomaticMaskGenerator:
    """Return the package's generator over a model's own network, with the same grid and thresholds."""
    with warnings.catch_warnings():
        # The package scripts its transforms, which newer versions of torch deprecate.
        warnings.filterwarnings("ignore", message=r".*torch\.jit")
        generator = SAM2AutomaticMaskGenerator(
            model.network,
            points_per_side=settings.points_per_side,
            pred_iou_thresh=settings.min_predicted_iou,
            stability_score_thresh=settings.min_stability,
            stability_score_offset=settings.stability_offset,
            box_nms_thresh=settings.nms_iou,
        )
    # The package's predictor knows images of 1024 px only.
    generator.predictor._bb_feat_sizes = [(model.image_px // stride,) * 2 for stride in (4, 8, 16)]
    # The package normalises as Meta's models want it.
    generator.predictor._transforms.transforms = torch.nn.Sequential(
        Resize((model.image_px, model.image_px)), Normalize(model.card["mean"], model.card["std"])
    )
    return generator


def package_masks(generator: SAM2AutomaticMaskGenerator, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Masks that the package finds and that are not empty, (n, H, W)."""
    found = [record["segmentation"] for record in generator.generate(image) if record["area"]]
    return np.stack(found) if found else np.zeros((0, *image.shape[:2]), dtype=bool)


def scores_of_grid(model: Segmenter, image: NDArray[np.uint8], points_per_side: int) -> NDArray[np.float32]:
    """Predicted IoU of every mask of a grid of points over a whole canvas, (points_per_side**2 * 3,)."""
    from stages.images import Placement
    from stages.proposals.prompts import point_grid

    grid = torch.from_numpy(point_grid(Placement(0, 0, *image.shape[:2]), points_per_side))
    features = model.encode(torch.from_numpy(image[None]))
    parts = [
        model.decode(features, p[None], torch.ones(1, len(p), 1), lambda iou: iou > 2).predicted_iou[0]
        for p in grid.split(model.prompts_per_call)
    ]
    return torch.cat(parts)[:, 1:].flatten().cpu().numpy()


def pairs(
    ours: NDArray[np.bool_], theirs: NDArray[np.bool_], least: float
) -> tuple[list[tuple[int, int]], NDArray[np.float64]]:
    """Masks of two sets that are the same, each used once, and their IoU.

    Parameters
    ----------
    ours, theirs : ndarray of bool, (n, H, W) and (m, H, W)
        Two sets.
    least : float
        Two masks are the same from this IoU on.
    """
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (ours, theirs))
    both = a @ b.T
    iou = both / np.maximum(a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - both, 1)
    found, values = [], []
    for i, j in sorted(np.argwhere(iou >= least).tolist(), key=lambda ij: -iou[ij[0], ij[1]]):
        if all(i != k and j != m for k, m in found):
            found.append((i, j))
            values.append(float(iou[i, j]))
    return found, np.array(values)
