"""Models whose behaviour under attack is known by hand."""

import torch
from torch import nn
from torch.nn import functional as F

from ardmvc_core.types import ModelOutput


class LinearModel(nn.Module):
    """K linear scores of the concatenated views: the exact distance of a sample to another cluster is known."""

    def __init__(self, weight, bias=None, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias)
        self.scale = scale

    def forward(self, views):
        latents = tuple(view.flatten(1) for view in views)
        logits = self.scale * F.linear(torch.cat(latents, 1), self.weight, self.bias)
        return ModelOutput(view_latents=latents, consensus=logits, logits=logits, assignments=logits.softmax(1))

    @torch.no_grad()
    def distance(self, views, eps_per_view=None, norm="linf"):
        """(B,) smallest r at which moves of r · ε_v in view v reach another cluster; ε_v = 1 gives a radius.

        For a linear score w_j − w_own the largest rise in the balls is r · Σ_v ε_v |w_j − w_own|, in the dual norm of
        each view: L1 for L∞, L2 for L2; bounds of valid inputs are not looked at.
        """
        eps = eps_per_view or (1.0,) * len(views)
        x = torch.cat([view.flatten(1) for view in views], 1)
        scores = F.linear(x, self.weight, self.bias)
        own = scores.argmax(1)
        gap = scores.gather(1, own[:, None]) - scores
        slopes = (self.weight[None] - self.weight[own][:, None]).split([view[0].numel() for view in views], dim=2)
        order = {"linf": 1, "l2": 2}[norm]
        rise = sum(e * slope.norm(order, dim=2) for e, slope in zip(eps, slopes, strict=True))
        rise.scatter_(1, own[:, None], 1.0)
        return (gap / rise).scatter(1, own[:, None], torch.inf).min(1).values


def planted(n=64, sizes=(3, 5), n_clusters=2, seed=0):
    """A random LinearModel and clean views well inside the bounds: V × (n, D_v)."""
    stream = torch.Generator().manual_seed(seed)
    weight = torch.randn(n_clusters, sum(sizes), generator=stream)
    model = LinearModel(weight, bias=-weight.sum(1) / 2)
    views = tuple(0.3 + 0.4 * torch.rand(n, size, generator=stream) for size in sizes)
    return model, views


def image_and_vector(n=48, n_clusters=3, seed=0):
    """A model of an image, a view that is not to be attacked, and a vector, with clean views well inside the bounds."""
    stream = torch.Generator().manual_seed(seed)
    shapes = ((2, 3, 4), (1, 2, 2), (7,))
    weight = torch.randn(n_clusters, 24 + 4 + 7, generator=stream)
    views = tuple(0.3 + 0.4 * torch.rand(n, *shape, generator=stream) for shape in shapes)
    return LinearModel(weight, bias=-weight.sum(1) / 2), views
