"""The composite loss L = lambda L_c + (1 - lambda) L_e of MedFocusCLIP (arXiv 2501.03839, section 2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(similarity: Tensor, labels: Tensor) -> Tensor:
    """Multi-positive InfoNCE between images and class texts, both directions averaged.

    Image to text is a cross-entropy over all texts. Text to image runs over the classes present in the batch, with
    uniform targets over the images of each; CLIP's diagonal loss would take images of one class for negatives of each
    other, because there are far fewer texts than images.

    Parameters
    ----------
    similarity : Tensor of float32, (B, K)
        tau times the cosines of fused vectors with the bank of class texts.
    labels : Tensor of int64, (B,)
        Class index of each image.

    Returns
    -------
    Tensor
        Scalar.
    """
    positives = F.one_hot(labels, similarity.shape[1]).to(similarity.dtype)
    counts = positives.sum(dim=0)
    by_class = -(positives * similarity.log_softmax(dim=0)).sum(dim=0) / counts.clamp(min=1)
    text_to_image = by_class.sum() / (counts > 0).sum()
    return (F.cross_entropy(similarity, labels) + text_to_image) / 2
