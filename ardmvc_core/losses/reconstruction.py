"""Reconstruction of views by autoencoders: the error, and what an autoencoder is given to reconstruct from."""

from typing import Literal

import torch
from torch import Generator, Tensor

from ardmvc_core.types import Views

ReconstructionMode = Literal["ae", "dae", "mae"]

_MASKED_SHARE = 0.3


def mean_squared_error(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Squared error, mean over all elements: samples, channels and pixels alike.

    Args:   reconstruction, target: (B, *shape), any values.
    Returns: scalar ≥ 0.
    Raises: ValueError if the shapes differ (broadcasting would hide it).
    """
    if reconstruction.shape != target.shape:
        shapes = f"{tuple(reconstruction.shape)} and {tuple(target.shape)}"
        raise ValueError(f"reconstruction and target must have the same shape, got {shapes}")
    return (reconstruction - target).square().mean()


def corrupted(views: Views, mode: ReconstructionMode, generator: Generator) -> Views:
    """What the autoencoders see; what they are to return is the clean views in every mode.

    Args:   views: V × (B, *shape_v). mode: `ae` leaves them as they are, `dae` adds N(0, 1) noise and does not clip,
            `mae` sets each value to zero with probability 0.3. generator: on the views' device; `ae` draws nothing.
    Returns: V × (B, *shape_v), new tensors unless the mode is `ae`.
    Raises: ValueError if the mode is none of the three.
    Source: Xu et al. 2023 (SEM); Vincent et al. 2008 (denoising and masking).
    """
    if mode == "ae":
        return views
    if mode == "dae":
        return tuple(view + _normal(view, generator) for view in views)
    if mode == "mae":
        return tuple(view * (_uniform(view, generator) >= _MASKED_SHARE) for view in views)
    raise ValueError(f"mode must be one of ae, dae, mae, got {mode!r}")


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _uniform(like: Tensor, generator: Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)
