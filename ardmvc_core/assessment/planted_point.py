"""Readouts with a planted adversarial point, which a working attack must find. Source: Zimmermann et al. 2022."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ardmvc_core.attacks.noise import NoiseConfig, prepare_noise
from ardmvc_core.attacks.threat import Threat
from ardmvc_core.seeding import generator
from ardmvc_core.types import ModelOutput, Views

_NEIGHBOURS = 999

_CORNERS = 20


class PlantedReadouts(nn.Module):
    """A model's representation, read by one linear two-way readout per row of the batch."""

    def __init__(self, model: nn.Module, weights: Tensor, thresholds: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("weights", weights)
        self.register_buffer("thresholds", thresholds)

    def forward(self, views: Views) -> ModelOutput:
        """As many samples as there are readouts, in their order."""
        output: ModelOutput = self.model(views)
        assert isinstance(self.weights, Tensor)
        assert isinstance(self.thresholds, Tensor)
        score = (output.consensus.flatten(1) * self.weights).sum(1) - self.thresholds
        logits = torch.stack([torch.zeros_like(score), score], dim=1)
        return ModelOutput(
            view_latents=output.view_latents,
            consensus=output.consensus,
            logits=logits,
            assignments=logits.softmax(1),
        )


@torch.no_grad()
def plant_readouts(model: nn.Module, views: Views, budget: Threat, seed: int) -> tuple[PlantedReadouts | None, Views]:
    """A readout for each sample with one known adversarial point: a corner of the ball, apart from 999 noisy copies.

    Args:   views: V × (B, *shape_v). budget: the noise is uniform in 0.95 of its ball.
    Returns: the model with readouts of the samples for which the representation separates the corner, and their views;
        None if there is none.
    Source: Zimmermann et al. 2022 (attack unit tests); the readout is a ridge discriminant.
    """
    stream = generator(seed, "sanity", "planted", device=views[0].device)
    inner = replace(budget, eps=_scaled(budget.eps, 0.95))
    kept, weights, thresholds = [], [], []
    for row in range(len(views[0])):
        sample = tuple(view[row : row + 1] for view in views)
        many = tuple(view.expand(_NEIGHBOURS, *view.shape[1:]) for view in sample)
        inside = prepare_noise(NoiseConfig(kind="uniform"), model, many, stream, budget=inner)(model, many)
        some = tuple(view.expand(_CORNERS, *view.shape[1:]) for view in sample)
        corners = prepare_noise(NoiseConfig(kind="sign"), model, some, stream, budget=budget)(model, some)
        around = model(inside).consensus.flatten(1).double()
        centre = around.mean(0)
        spread = torch.cov(around.T).reshape(len(centre), len(centre))
        ridge = 1e-3 * spread.diagonal().mean().clamp(min=1e-12)
        eye = torch.eye(len(centre), dtype=spread.dtype, device=spread.device)
        shifts = model(corners).consensus.flatten(1).double() - centre
        # Of some corners the one that stands out most from its surroundings, in units of their spread.
        weights_of = torch.linalg.solve(spread + ridge * eye, shifts.T).T
        best = int((weights_of * shifts).sum(1).argmax())
        planted, weight = centre + shifts[best], weights_of[best]
        weight = weight / weight.norm().clamp(min=1e-12)
        highest = max(float((around @ weight).max()), float(model(sample).consensus.flatten(1)[0].double() @ weight))
        score = float(planted @ weight)
        if score > highest + 1e-6 * max(1.0, abs(highest)):
            kept.append(row)
            weights.append(weight)
            thresholds.append((highest + score) / 2)
    if not kept:
        return None, views
    dtype = views[0].dtype
    readouts = PlantedReadouts(
        model, torch.stack(weights).to(dtype), torch.tensor(thresholds, dtype=dtype, device=views[0].device)
    )
    return readouts.eval(), tuple(view[kept] for view in views)


def _scaled(eps: float | tuple[float, ...], factor: float) -> float | tuple[float, ...]:
    return tuple(e * factor for e in eps) if isinstance(eps, tuple) else eps * factor
