"""Generator and discriminator of the GAN attack, one pair per view, with layers chosen from the shape of the view.

Images of a size that the published layers map back exactly (28 × 28, 128 × 64, …) get those layers; other images get
a padded layout that works for any size; anything else, vectors above all, gets dense layers.
"""

import torch
from torch import Tensor, nn

from ardmvc_core.types import Views, ViewShapes


class Generator(nn.Module):
    """One network per view, which sees its own view only."""

    def __init__(self, view_shapes: ViewShapes) -> None:
        super().__init__()
        pairs = [_generator_layers(shape) for shape in view_shapes]
        self.encoders = nn.ModuleList(encoder for encoder, _ in pairs)
        self.decoders = nn.ModuleList(decoder for _, decoder in pairs)

    def forward(self, views: Views) -> Views:
        """V × (B, *shape_v) → V × (B, *shape_v) in [−1, 1], not yet scaled to a budget."""
        return tuple(
            decoder(encoder(view)) for view, encoder, decoder in zip(views, self.encoders, self.decoders, strict=True)
        )


class Discriminator(nn.Module):
    """One network per view; before the sigmoid, so that the logarithms of the minimax loss stay finite."""

    def __init__(self, view_shapes: ViewShapes) -> None:
        super().__init__()
        self.models = nn.ModuleList(_discriminator_layers(shape) for shape in view_shapes)

    def forward(self, views: Views) -> Tensor:
        """V × (B, *shape_v) → (V, B) logits of being clean; views large enough for a map of scores give its mean."""
        return torch.stack([model(view).flatten(1).mean(1) for view, model in zip(views, self.models, strict=True)])


def initialise_normal(network: nn.Module) -> None:
    """The published initialisation: convolution weights N(0, 1), BatchNorm weights N(1, 0.02²) and biases 0.

    With it the generator starts deep in the flat part of tanh; dense layers keep torch's default.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 1.0)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


def _generator_layers(shape: tuple[int, ...]) -> tuple[nn.Sequential, nn.Sequential]:
    if len(shape) == 3 and all(size % 4 == 0 and size >= 16 for size in shape[1:]):
        return _published_generator(shape[0])
    if len(shape) == 3 and (shape[1] + 1) // 2 * ((shape[2] + 1) // 2) > 1:
        return _padded_generator(shape)
    return _dense_generator(shape)


def _published_generator(channels: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The published layers. Unpadded, they lead back to the same size where height and width are multiples of 4."""
    encoder = nn.Sequential(
        *_normed(nn.Conv2d(channels, 8, 3)),
        *_normed(nn.Conv2d(8, 16, 3, stride=2)),
        *_normed(nn.Conv2d(16, 32, 3, stride=2)),
    )
    decoder = nn.Sequential(
        *_normed(nn.ConvTranspose2d(32, 16, 3, stride=2, bias=False)),
        *_normed(nn.ConvTranspose2d(16, 8, 3, stride=2, bias=False)),
        nn.ConvTranspose2d(8, channels, 6, bias=False),
        nn.Tanh(),
    )
    return encoder, decoder


def _padded_generator(shape: tuple[int, ...]) -> tuple[nn.Sequential, nn.Sequential]:
    """One halving only, so that instance normalisation still has several positions on 8 × 8."""
    channels, *size = shape
    halves = [(side + 1) // 2 for side in size]
    # A transposed convolution of stride 2 gives 2n − 1; this adds what an even side lacks.
    extra = (size[0] - 2 * halves[0] + 1, size[1] - 2 * halves[1] + 1)
    encoder = nn.Sequential(
        *_normed(nn.Conv2d(channels, 16, 3, padding=1)),
        *_normed(nn.Conv2d(16, 32, 3, stride=2, padding=1)),
        *_normed(nn.Conv2d(32, 32, 3, padding=1)),
    )
    decoder = nn.Sequential(
        *_normed(nn.ConvTranspose2d(32, 32, 3, padding=1, bias=False)),
        *_normed(nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=extra, bias=False)),
        nn.ConvTranspose2d(16, channels, 3, padding=1, bias=False),
        nn.Tanh(),
    )
    return encoder, decoder


def _dense_generator(shape: tuple[int, ...]) -> tuple[nn.Sequential, nn.Sequential]:
    size = int(torch.Size(shape).numel())
    width = min(512, max(32, 2 * size))
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return encoder, nn.Sequential(nn.Linear(width, size), nn.Tanh(), nn.Unflatten(1, shape))


def _normed(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, ...]:
    return layer, nn.InstanceNorm2d(layer.out_channels), nn.ReLU()


def _discriminator_layers(shape: tuple[int, ...]) -> nn.Sequential:
    if len(shape) != 3:
        size = int(torch.Size(shape).numel())
        return nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(size, 64), nn.LeakyReLU(0.2)),
            *(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.LeakyReLU(0.2)),
            nn.Linear(64, 1),
        )
    # The published 4 × 4 kernels are unpadded and need 22 pixels; padded 3 × 3 ones fit any size.
    kernel, padding = (4, 0) if min(shape[1:]) >= 22 else (3, 1)
    return nn.Sequential(
        *(nn.Conv2d(shape[0], 8, kernel, stride=2, padding=padding), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(8, 16, kernel, stride=2, padding=padding), nn.BatchNorm2d(16), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(16, 32, kernel, stride=2, padding=padding), nn.BatchNorm2d(32), nn.LeakyReLU(0.2)),
        nn.Conv2d(32, 1, 1),
    )
