"""Encoders per view, fusion and clustering head: the parts that the models put together."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ardmvc_core.networks.fast_layers import BatchNorm2d, PatchConv2d
from ardmvc_core.types import Views, ViewShapes

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
class _Conv:
    """One convolution, stride 1, and what follows it."""

    channels: int
    batch_norm: bool = False
    relu: bool = True
    pool: bool = False


_SMALL_BLOCK = (_Conv(64), _Conv(64, batch_norm=True, pool=True))
_PLANS: dict[str, tuple[int, tuple[_Conv, ...]]] = {  # padding, convolutions
    "cnn_small": (0, _SMALL_BLOCK * 2),
    "cnn_large": (0, _SMALL_BLOCK * 3),
    "cnn_tiny": (0, (_Conv(32, batch_norm=True),) * 2 + (_Conv(32, batch_norm=True, relu=False),)),
    "cnn_digits": (1, (_Conv(32), _Conv(32, batch_norm=True, pool=True), _Conv(64, batch_norm=True, pool=True))),
}

_BLOCK_BACK = (None, _Conv(64), _Conv(64, batch_norm=True))
_WAYS_BACK: dict[str, tuple[_Conv | None, ...]] = {  # None doubles the size; the last convolution, to C, is not named
    "cnn_small": (*_BLOCK_BACK, None, _Conv(64)),
    "cnn_large": (*_BLOCK_BACK * 3, _Conv(64)),
    "cnn_tiny": (_Conv(32, batch_norm=True),) * 2,
    "cnn_digits": (None, _Conv(32, batch_norm=True)) * 2,
}


def _conv_encoder(kind: str, view_shape: tuple[int, ...]) -> Encoder:
    """3×3 convolutions; ends flattened in channel, row, column order. Source: the four plans of `_PLANS`."""
    if len(view_shape) != 3 or min(view_shape) < 1:
        raise ValueError(f"encoder {kind} needs views of shape (channels, height, width), got {view_shape}")
    padding, plan = _PLANS[kind]
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
    _check_dense(view_shape)
    hidden, out = widths
    flatten = () if len(view_shape) == 1 else (nn.Flatten(),)
    layers = (nn.Linear(math.prod(view_shape), hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True))
    return Encoder(nn.Sequential(*flatten, *layers, nn.Linear(hidden, out), nn.ReLU(inplace=True)), out)


def _check_dense(view_shape: tuple[int, ...]) -> None:
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
        kind = _kind_for(view_shape)
    if kind == "dense":
        return dense_encoder(view_shape, dense_widths)
    if kind not in _PLANS:
        raise ValueError(f"encoder must be one of auto, dense, {', '.join(sorted(_PLANS))}, got {kind!r}")
    return _conv_encoder(kind, view_shape)


def _kind_for(view_shape: tuple[int, ...]) -> EncoderKind:
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
    padding, plan = _PLANS[kind]
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
    _check_dense(view_shape)
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
        kind = _kind_for(view_shape)
    return (
        dense_decoder(view_shape, dense_widths, sigmoid=sigmoid) if kind == "dense" else _conv_decoder(kind, view_shape)
    )


class WeightedMean(nn.Module):
    """Fusion: mean of the latents, weighted by the softmax of one trainable number per view (1/V each at the start)."""

    def __init__(self, n_views: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((n_views,), 1 / n_views))

    def forward(self, latents: Views) -> Tensor:
        """V × (B, D) → (B, D)."""
        shares = self.weights.softmax(dim=0)
        fused = shares[0] * latents[0]
        for share, latent in zip(shares[1:], latents[1:], strict=True):
            fused = torch.addcmul(fused, share, latent)
        return fused


class ClusteringHead(nn.Module):
    """Clustering module of DDC: hidden layer (Linear, ReLU, then BatchNorm) and a linear output.

    Source: Kampffmeyer et al. 2019; Trosten et al. 2021 (SiMVC). A unit that the ReLU keeps off on all training samples
    has a running variance of nearly 0, so that BatchNorm multiplies whatever an attack gets through it by up to
    1/√1e-5 = 316. `mute_dead_units` holds such units off in inference mode; on the training samples nothing changes.
    """

    alive: Tensor | None
    """(H,) 0 for a unit that is held off, else 1; None without `mute_dead_units`."""

    def __init__(
        self, in_features: int, n_clusters: int, hidden_features: int = 100, *, mute_dead_units: bool = False
    ) -> None:
        super().__init__()
        if not n_clusters >= 2:
            raise ValueError(f"n_clusters must be ≥ 2, got {n_clusters}")
        self.hidden = nn.Sequential(
            nn.Linear(in_features, hidden_features), nn.ReLU(inplace=True), nn.BatchNorm1d(hidden_features)
        )
        self.output = nn.Sequential(nn.Linear(hidden_features, n_clusters))
        # Only where it is asked for: published weights have no such entry.
        self.register_buffer("alive", torch.ones(hidden_features) if mute_dead_units else None)

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) → hidden (B, H) and logits (B, K)."""
        linear, rectifier, norm = self.hidden
        active = rectifier(linear(fused))
        if self.alive is not None and not self.training:
            active = active * self.alive
        hidden = norm(active)
        return hidden, self.output(hidden)

    def find_dead_units(self, fused: Tensor) -> None:
        """Sets `alive` by which units are on for at least one of these samples, (N, D), those of the training."""
        assert self.alive is not None
        self.alive.copy_((self.hidden[0](fused) > 0).any(dim=0))


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
