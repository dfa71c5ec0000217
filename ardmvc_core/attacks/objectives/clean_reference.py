"""What a model says about the clean samples, fixed before any attack begins and shared by all of them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ardmvc_core.attacks.objectives.shifts import latent_spread
from ardmvc_core.batching import in_full_batches
from ardmvc_core.types import Views


@dataclass(frozen=True, kw_only=True)
class CleanReference:
    """A model's output on N clean samples. Attacks need no labels: an assignment that changes is a success."""

    clusters: Tensor
    """(N,) int64, the hard assignment of each sample."""
    logits: Tensor
    """(N, K)."""
    view_latents: tuple[Tensor, ...]
    """V × (N, D_v), flattened."""
    consensus: Tensor
    """(N, D), flattened."""
    latent_units: tuple[Tensor, ...]
    """V scalars: mean squared distance between latents of different samples, so that views are commensurate."""
    consensus_unit: Tensor
    """Scalar: the same of the consensus."""
    centroids: Tensor
    """(K, D): mean consensus of each cluster; infinite where a cluster holds no sample."""

    def rows(self, index: Tensor) -> "CleanReference":
        """The reference of some of the samples, in that order; units and centroids stay those of all N."""
        return replace(
            self,
            clusters=self.clusters[index],
            logits=self.logits[index],
            view_latents=tuple(latent[index] for latent in self.view_latents),
            consensus=self.consensus[index],
        )


@torch.no_grad()
def clean_reference(model: nn.Module, views: Views, batch_size: int) -> CleanReference:
    """The reference of clean views, with the model in its present mode.

    Args:   views: V × (N, *shape_v), N ≥ 1, on the model's device. batch_size: samples of a pass, ≥ 1.
    Raises: ValueError if a logit is not finite, because its cluster would be arbitrary.
    """
    outputs = [model(batch) for batch in in_full_batches(views, batch_size)]
    logits = torch.cat([output.logits for output in outputs])
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(f"the model gives logits that are not finite for some of {len(logits)} clean samples")
    latents = tuple(
        torch.cat([latent.flatten(1) for latent in parts])
        for parts in zip(*(output.view_latents for output in outputs), strict=True)
    )
    consensus = torch.cat([output.consensus.flatten(1) for output in outputs])
    clusters = logits.argmax(1)
    return CleanReference(
        clusters=clusters,
        logits=logits,
        view_latents=latents,
        consensus=consensus,
        latent_units=tuple(latent_spread(latent) for latent in latents),
        consensus_unit=latent_spread(consensus),
        centroids=_centroids(consensus, clusters, logits.shape[1]),
    )


@torch.no_grad()
def logits_of(model: nn.Module, views: Views, batch_size: int) -> Tensor:
    """V × (N, *shape_v) → (N, K), with the model in its present mode."""
    return torch.cat([model(batch).logits for batch in in_full_batches(views, batch_size)])


def _centroids(consensus: Tensor, clusters: Tensor, n_clusters: int) -> Tensor:
    members = torch.nn.functional.one_hot(clusters, n_clusters).to(consensus.dtype)
    sizes = members.sum(0)[:, None]
    means = members.T @ consensus / sizes.clamp(min=1)
    return torch.where(sizes > 0, means, torch.full_like(means, torch.inf))
