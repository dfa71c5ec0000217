"""Encoders per view, with layers chosen from the shape of the view."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ardmvc_core.networks.fast_layers import BatchNorm2d, PatchConv2d
from ardmvc_core.types import ViewShapes

EncoderKind = Literal["auto", "cnn_small", "cnn_tiny", "cnn_large", "cnn_digits", "dense"]


class Encoder(nn.Module):
    """One view's network: (B, *view_shape) → (B, out_features).

    The layers are the submodule `layers`, numbered as in the published network. A latent leaves in the dtype that the
    view came in, also under `bf16_encoders`.
    """

    def __init__(self, layers: nn.Sequential, out_features: int) -> None:
        super().__init__()
        self.layers = layers
        self.out_features = out_features
        self.bf16 = False

    def forward(self, view: Tensor) -> Tensor:
        if not self.bf16:
            return self.layers(view)
        with torch.autocast(view.device.type, dtype=torch.bfloat16):
            latent = self.layers(view)
        return latent.to(view.dtype)


@dataclass(frozen=True)
class Conv:
    """One convolution, stride 1, and what follows it."""

    channels: int
    batch_norm: bool = False
    relu: bool = True
    pool: bool = False


_SMALL_BLOCK = (Conv(64), Conv(64, batch_norm=True, pool=True))
PLANS: dict[str, tuple[int, tuple[Conv, ...]]] = {  # padding, convolutions
    "cnn_small": (0, _SMALL_BLOCK * 2),
    "cnn_large": (0, _SMALL_BLOCK * 3),
    "cnn_tiny": (0, (Conv(32, batch_norm=True),) * 2 + (Conv(32, batch_norm=True, relu=False),)),
    "cnn_digits": (1, (Conv(32), Conv(32, batch_norm=True, pool=True), Conv(64, batch_norm=True, pool=True))),
}


def _conv_encoder(kind: str, view_shape: tuple[int, ...]) -> Encoder:
    """3×3 convolutions; ends flattened in channel, row, column order. Source: the four plans of `PLANS`."""
    if len(view_shape) != 3 or min(view_shape) < 1:
        raise ValueError(f"encoder {kind} needs views of shape (channels, height, width), got {view_shape}")
    padding, plan = PLANS[kind]
    channels, height, width = view_shape
    layers: list[nn.Module] = []
    for conv in plan:
        convolution = nn.Conv2d if layers else PatchConv2d
        layers.append(convolution(channels, conv.channels, kernel_size=3, padding=padding))
        channels = conv.channels
        height, width = height - 2 + 2 * padding, width - 2 + 2 * padding
        if conv.batch_norm:
            layers.append(BatchNorm2d(channels))
        if conv.pool:
            # Published order: ReLU, then pooling. Maximum and ReLU commute exactly, forward and backward, and after
            # the pooling there are four times fewer values to rectify.
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        if conv.relu:
            layers.append(nn.ReLU(inplace=True))
        if min(height, width) < 1:
            raise ValueError(f"encoder {kind} does not fit views of shape {view_shape}: nothing is left of the image")
    layers.append(nn.Flatten())
    return Encoder(nn.Sequential(*layers), channels * height * width)


def dense_encoder(view_shape: tuple[int, ...], widths: tuple[int, int]) -> Encoder:
    """Linear, BatchNorm, ReLU, Linear, ReLU for vector views; images are flattened before.

    Args:   view_shape: (D,) or (C, H, W). widths: hidden width and width of the latent.
    Raises: ValueError for another shape.
    """
    check_dense(view_shape)
    hidden, out = widths
    flatten = () if len(view_shape) == 1 else (nn.Flatten(),)
    layers = (nn.Linear(math.prod(view_shape), hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True))
    return Encoder(nn.Sequential(*flatten, *layers, nn.Linear(hidden, out), nn.ReLU(inplace=True)), out)


def check_dense(view_shape: tuple[int, ...]) -> None:
    if len(view_shape) not in (1, 3) or min(view_shape) < 1:
        raise ValueError(f"encoder dense needs views of shape (n,) or (channels, height, width), got {view_shape}")


def build_encoder(
    kind: EncoderKind, view_shape: tuple[int, ...], dense_widths: tuple[int, int] = (256, 128)
) -> Encoder:
    """Encoder of one view.

    Args:   kind: `auto` takes dense for vectors, cnn_small for images of at least 16 × 16, cnn_digits for smaller
            ones; dense flattens images, and costs little. view_shape: (C, H, W) or (D,). dense_widths: hidden and
            latent width of a dense encoder.
    Raises: ValueError, naming kind and shape, if the kind is unknown or does not fit the shape.
    Source: cnn_small, cnn_tiny, cnn_large: the published AR-DMVC networks.
    """
    if kind == "auto":
        kind = kind_for(view_shape)
    if kind == "dense":
        return dense_encoder(view_shape, dense_widths)
    if kind not in PLANS:
        raise ValueError(f"encoder must be one of auto, dense, {', '.join(sorted(PLANS))}, got {kind!r}")
    return _conv_encoder(kind, view_shape)


def kind_for(view_shape: tuple[int, ...]) -> EncoderKind:
    if len(view_shape) == 1:
        return "dense"
    if len(view_shape) != 3:
        raise ValueError(f"encoder auto needs views of shape (channels, height, width) or (n,), got {view_shape}")
    return "cnn_small" if min(view_shape[1:]) >= 16 else "cnn_digits"


def build_encoders(kind: EncoderKind, view_shapes: ViewShapes, dense_widths: tuple[int, int]) -> list[Encoder]:
    """One encoder per view, nothing shared, all with latents of one width, as the fusion needs it.

    Raises: ValueError if there are fewer than two views, an encoder does not fit, or the latent widths differ.
    """
    if len(view_shapes) < 2:
        raise ValueError(f"view_shapes must name at least two views, got {view_shapes}")
    encoders = [build_encoder(kind, shape, dense_widths) for shape in view_shapes]
    widths = [encoder.out_features for encoder in encoders]
    if len(set(widths)) > 1:
        raise ValueError(
            f"encoder {kind} must give every view a latent of the same width, "
            f"got widths {widths} for views of shapes {view_shapes}"
        )
    return encoders


@contextmanager
def bf16_encoders(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Inside, the model's encoders compute in bfloat16 under autocast; their latents still leave in the view's dtype.

    Fusion, head and losses stay as they are: sums over a batch of distances do not bear eight bits of mantissa.
    """
    encoders = [m for m in model.modules() if isinstance(m, Encoder)] if enabled else []
    before = [encoder.bf16 for encoder in encoders]
    for encoder in encoders:
        encoder.bf16 = True
    try:
        yield
    finally:
        for encoder, flag in zip(encoders, before, strict=True):
            encoder.bf16 = flag
