"""The composite loss L = lambda L_c + (1 - lambda) L_e of MedFocusCLIP (arXiv 2501.03839, section 2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(m: Tensor, texts: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Multi-positive InfoNCE between images and class texts, both directions averaged.

    Image to text is a cross-entropy over all texts. Text to image runs over the classes present in the batch, with
    uniform targets over the images of each; CLIP's diagonal loss would take images of one class for negatives of each
    other, because there are far fewer texts than images.

    Parameters
    ----------
    m : Tensor of float32, (B, D)
        Fused vectors; scaled to unit length here.
    texts : Tensor of float32, (K, D)
        Bank of class texts, L2-normalised.
    labels : Tensor of int64, (B,)
        Class index of each image.
    temperature : float
        tau.

    Returns
    -------
    Tensor
        Scalar.
    """
    similarity = temperature * F.normalize(m, dim=1) @ texts.T
    positives = F.one_hot(labels, len(texts)).to(similarity.dtype)
    counts = positives.sum(dim=0)
    by_class = -(positives * similarity.log_softmax(dim=0)).sum(dim=0) / counts.clamp(min=1)
    text_to_image = by_class.sum() / (counts > 0).sum()
    return (F.cross_entropy(similarity, labels) + text_to_image) / 2
