"""Variational parts of Multi-VAE: sampling, divergences with capacities, and reconstruction error.

Sampling takes its noise as an argument and draws nothing itself.
Source: Xu et al. 2021 (Multi-VAE); capacities: Burgess et al. 2018, Dupont 2018 (JointVAE).
"""

import math

import torch
from torch import Tensor

_LOG_SHIFT = 1e-12
_LOG_FLOOR = -100.0


def gaussian_sample(mean: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """mean + exp(½ log_var) · noise, all (B, Z); noise: standard normal."""
    return mean + (0.5 * log_var).exp() * noise


def gumbel_softmax(probabilities: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Relaxed draw from a categorical distribution per row.

    Args:   probabilities: (B, K), rows sum to 1. uniform: (B, K) in [0, 1). temperature: > 0; near 0 the rows come
            near one-hot.
    Returns: (B, K), rows sum to 1.
    Source: Jang et al. 2017; the logarithms are shifted by 1e-12 as in the published code.
    """
    gumbel = -(-(uniform + _LOG_SHIFT).log() + _LOG_SHIFT).log()
    return (((probabilities + _LOG_SHIFT).log() + gumbel) / temperature).softmax(dim=1)


def straight_through_one_hot(probabilities: Tensor) -> Tensor:
    """One-hot of each row's largest entry, with the gradient of the row itself: (B, K) → (B, K) of exactly 0 and 1."""
    one_hot = torch.zeros_like(probabilities).scatter_(1, probabilities.argmax(dim=1, keepdim=True), 1.0)
    # The bracket is exactly 0, so that nothing is rounded.
    return one_hot + (probabilities - probabilities.detach())


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, e^log_var) ‖ N(0, 1)): (B, Z) → scalar ≥ 0, nats, summed over Z, mean over samples."""
    return 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(dim=1).mean()


def categorical_kl(probabilities: Tensor) -> Tensor:
    """KL to the uniform distribution: (B, K), rows sum to 1 → scalar in [0, log K] up to 1e-12, mean over samples."""
    negative_entropy = (probabilities * (probabilities + _LOG_SHIFT).log()).sum(dim=1).mean()
    return math.log(probabilities.shape[1]) + negative_entropy


def capacity(step: int, *, rate: float, maximum: float) -> float:
    """The divergence that a latent may have by now, nats: grows by `rate` ≥ 0 a step from 0 up to `maximum`."""
    return min(step * rate, maximum)


def clipped_bce(reconstruction: Tensor, view: Tensor) -> Tensor:
    """Binary cross-entropy, mean over all values; logarithms are at least −100.

    Args:   reconstruction, view: (B, *shape) in [0, 1].
    Returns: scalar in [0, 100], nats; no gradient where a logarithm is clipped. NaN gives NaN; torch's own function
        raises there, and on an accelerator takes the process with it.
    """
    return -(view * _clipped_log(reconstruction) + (1 - view) * _clipped_log(1 - reconstruction)).mean()


def _clipped_log(share: Tensor) -> Tensor:
    # The inner choice keeps the gradient of log 0 away: 0 · ∞ would be NaN.
    zero = share == 0
    return torch.where(zero, _LOG_FLOOR, torch.where(zero, 1.0, share).log()).clamp(min=_LOG_FLOOR)
