"""Decoders per view: the way back from a latent to a view."""

import math

from torch import Tensor, nn

from ardmvc_core.networks.encoders import PLANS, Conv, EncoderKind, check_dense, kind_for

_BLOCK_BACK = (None, Conv(64), Conv(64, batch_norm=True))

_WAYS_BACK: dict[str, tuple[Conv | None, ...]] = {  # None doubles the size; the last convolution, to C, is not named
    "cnn_small": (*_BLOCK_BACK, None, Conv(64)),
    "cnn_large": (*_BLOCK_BACK * 3, Conv(64)),
    "cnn_tiny": (Conv(32, batch_norm=True),) * 2,
    "cnn_digits": (None, Conv(32, batch_norm=True)) * 2,
}


class Decoder(nn.Module):
    """One view's way back: (B, in_features) → (B, *view_shape). The submodule `layers` is numbered as published."""

    def __init__(self, layers: nn.Sequential, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = layers
        self.latent_shape = latent_shape

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent.unflatten(1, self.latent_shape))


def _conv_decoder(kind: str, view_shape: tuple[int, ...]) -> Decoder:
    """The way back of the encoder `kind`, ending in a sigmoid: nearest up-sampling and transposed convolutions.

    Where that does not give the view's own size (pooling has rounded it away), the image is resized before the sigmoid.
    """
    padding, plan = PLANS[kind]
    height, width = view_shape[1:]
    for conv in plan:
        height, width = height - 2 + 2 * padding, width - 2 + 2 * padding
        if conv.pool:
            height, width = height // 2, width // 2
    channels = plan[-1].channels
    latent_shape = (channels, height, width)
    layers: list[nn.Module] = []
    for part in _WAYS_BACK[kind]:
        if part is None:
            layers.append(nn.Upsample(scale_factor=2))
            height, width = 2 * height, 2 * width
            continue
        layers.append(nn.ConvTranspose2d(channels, part.channels, kernel_size=3, padding=padding))
        height, width = height + 2 - 2 * padding, width + 2 - 2 * padding
        channels = part.channels
        layers += [nn.BatchNorm2d(channels)] if part.batch_norm else []
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.ConvTranspose2d(channels, view_shape[0], kernel_size=3, padding=padding))
    if (height + 2 - 2 * padding, width + 2 - 2 * padding) != tuple(view_shape[1:]):
        layers.append(nn.Upsample(size=tuple(view_shape[1:])))
    return Decoder(nn.Sequential(*layers, nn.Sigmoid()), latent_shape)


def dense_decoder(view_shape: tuple[int, ...], widths: tuple[int, int], *, sigmoid: bool = False) -> Decoder:
    """Mirror of `dense_encoder`: Linear, BatchNorm, ReLU, Linear, and a sigmoid for images and where one is asked for.

    Raises: ValueError as `dense_encoder`.
    """
    check_dense(view_shape)
    hidden, latent = widths
    layers: list[nn.Module] = [
        nn.Linear(latent, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, math.prod(view_shape)),
    ]
    is_image = len(view_shape) == 3
    layers += [nn.Sigmoid()] if sigmoid or is_image else []
    layers += [nn.Unflatten(1, view_shape)] if is_image else []
    return Decoder(nn.Sequential(*layers), (latent,))


def build_decoder(
    kind: EncoderKind, view_shape: tuple[int, ...], dense_widths: tuple[int, int] = (256, 128), *, sigmoid: bool = False
) -> Decoder:
    """Decoder that fits `build_encoder` of the same arguments; images always end in a sigmoid.

    Args:   sigmoid: whether dense decoders do too, for losses that need values in [0, 1].
    Raises: ValueError as `build_encoder`.
    """
    if kind == "auto":
        kind = kind_for(view_shape)
    return (
        dense_decoder(view_shape, dense_widths, sigmoid=sigmoid) if kind == "dense" else _conv_decoder(kind, view_shape)
    )
