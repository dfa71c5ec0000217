"""Models and data small enough to work scores out by hand."""

from types import SimpleNamespace

import torch
from torch import nn

from ardmvc_core.data.dataset import MultiViewDataset
from ardmvc_core.evaluation.budget import EvalBudget
from ardmvc_core.models.comvc import CoMVCConfig
from ardmvc_core.models.simvc import build


class Threshold(nn.Module):
    """Two views of one value each; cluster 1 where the first is above ½, the second is not read for clusters."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("centre", torch.tensor(0.5))

    def encode(self, views):
        return tuple(torch.cat([view, 1 - view], dim=1) for view in views)

    def forward(self, views):
        score = self.weight * 10 * (views[0] - self.centre)
        logits = torch.cat([-score, score], dim=1)
        latents = self.encode(views)
        return SimpleNamespace(view_latents=latents, consensus=score, logits=logits, assignments=logits.softmax(1))


def dataset(first, labels, n_clusters=2):
    view = torch.tensor(first).unsqueeze(1)
    return MultiViewDataset(
        name="npz",
        views=(view, torch.full_like(view, 0.5)),
        labels=None if labels is None else torch.tensor(labels),
        n_clusters=n_clusters,
    )


def added(*amounts):
    """An attack that adds fixed amounts to the first view."""
    return lambda model, views: (views[0] + torch.tensor(amounts).unsqueeze(1), views[1])


def resolved(**fields):
    return EvalBudget(**fields).resolve("npz", 2)


# Clean clusters 1, 1, 0, 1: the best map sends 1 to class 0 and 0 to class 1, and misses the last sample.
FOUR = dataset([0.55, 0.55, 0.45, 0.55], [0, 0, 1, 1])


def trained_like_model():
    torch.manual_seed(0)
    model = build(CoMVCConfig(dense_widths=(16, 8)), ((5,), (5,)), 3)
    model.encoders[1].requires_grad_(False)
    model.encoders[1].layers.eval()
    return model


def five_features(count=30):
    stream = torch.Generator().manual_seed(0)
    views = tuple(torch.rand(count, 5, generator=stream) for _ in range(2))
    return MultiViewDataset(name="npz", views=views, labels=torch.arange(count) % 3, n_clusters=3)
