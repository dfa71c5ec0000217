"""EAMC's two ways of aligning views: the attention's kernel and the discriminators' game.

Source: Zhou and Shen, "End-to-End Adversarial-Attention Network for Multi-Modal Clustering", CVPR 2020.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ardmvc_core.losses.ddc import gaussian_kernel


def attention_alignment(fused: Tensor, latents: tuple[Tensor, ...], weights: Tensor, rel_sigma: float = 0.15) -> Tensor:
    """Squared Frobenius distance of the fused kernel from the weighted sum of the views' kernels.

    Args:   fused: (B, D). latents: V × (B, D_v). weights: (V,). rel_sigma: > 0, of every kernel's own width, which is
            a constant for differentiation.
    Returns: scalar ≥ 0, the sum over B² entries: it grows with the square of the batch.
    Raises: ValueError if there is not one weight per view.
    """
    if weights.shape != (len(latents),):
        raise ValueError(f"weights must have shape ({len(latents)},), one per view, got {tuple(weights.shape)}")
    kernels = [weight * gaussian_kernel(latent, rel_sigma) for weight, latent in zip(weights, latents, strict=True)]
    return (gaussian_kernel(fused, rel_sigma) - torch.stack(kernels).sum(dim=0)).square().sum()


def generator_loss(other: Tensor) -> Tensor:
    """What the encoders of all views but the first minimise: −log of the scores that the discriminators give them.

    Args:   other: (V − 1, B) logits, row i of discriminator i for view i + 1.
    Returns: scalar ≥ 0, nats: mean over the batch, sum over the discriminators.
    Source: as published, but from logits: where a score saturates the loss goes on growing, and with it the gradient.
    """
    return softplus(-other).mean(dim=1).sum()


def discriminator_loss(first: Tensor, other: Tensor) -> Tensor:
    """What the discriminators minimise: −log of the first view's scores, −log(1 − score) of the others'.

    Args:   first, other: (V − 1, B) logits, row i of discriminator i for view 0 and for view i + 1.
    Returns: scalar ≥ 0, nats: mean over the batch, sum over the discriminators.
    Raises: ValueError if the shapes differ.
    """
    if first.shape != other.shape:
        raise ValueError(f"first and other must have the same shape, got {tuple(first.shape)} and {tuple(other.shape)}")
    return (softplus(-first) + softplus(other)).mean(dim=1).sum()
