"""Fusion of the views' latents, and DDC's clustering head."""

import torch
from torch import Tensor, nn

from ardmvc_core.types import Views


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
