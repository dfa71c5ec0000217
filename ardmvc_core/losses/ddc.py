"""Deep divergence-based clustering: a Gaussian kernel on hidden vectors and three terms on soft assignments.

Source: Kampffmeyer et al. 2019 (DDC); Trosten et al. 2021 (SiMVC, CoMVC), whose floors are used here.
"""

import torch
from torch import Tensor

_NUMERATOR_FLOOR = 1e-9
_PRODUCT_FLOOR = 1e-18
_WIDTH_FLOOR = 1e-9


def squared_distances(rows: Tensor) -> Tensor:
    """Squared distances between all rows, (…, B, D) → (…, B, B).

    Returns: |x|² + |y|² − 2 x·y; entries that should be 0 may come out slightly negative.
    """
    norms = (rows * rows).sum(dim=-1)
    return torch.add(norms[..., :, None] + norms[..., None, :], rows @ rows.mT, alpha=-2)


def kernel_width(distances: Tensor, rel_sigma: float = 0.15) -> Tensor:
    """σ² of the Gaussian kernel: `rel_sigma` times the median squared distance, constant for differentiation.

    Args:   distances: (…, B, B) squared distances; the median runs over all B² entries, diagonal included, and is the
            lower of the two middle ones.
    Returns: (…), each ≥ 1e-9. Differs from the published code, which has no floor: once half of the distances are 0
        (collapsed hidden vectors) its kernel is NaN.
    """
    return (rel_sigma * distances.detach().flatten(-2).median(dim=-1).values).clamp(min=_WIDTH_FLOOR)


def gaussian_kernel(rows: Tensor, rel_sigma: float = 0.15) -> Tensor:
    """Kernel matrix exp(−d²/(2σ²)) of the rows with the width of `kernel_width`, (…, B, D) → (…, B, B) in (0, 1]."""
    distances = squared_distances(rows)
    return torch.exp(distances.clamp(min=0) / (-2 * kernel_width(distances, rel_sigma)[..., None, None]))


def cauchy_schwarz(memberships: Tensor, kernel: Tensor) -> Tensor:
    """Mean similarity between clusters under a kernel; low where clusters are compact and apart.

    Args:   memberships: (…, B, K) ≥ 0. kernel: (…, B, B), what stands before B as it broadcasts.
    Returns: (…), each in [0, 1] up to rounding: mean over cluster pairs of N_ab/√(N_aa N_bb), N = MᵀKM. Numerators
        below 1e-9 and products below 1e-18 are replaced by these numbers and then have no gradient.
    Raises: ValueError if there are fewer than two clusters.
    """
    n_clusters = memberships.shape[-1]
    if n_clusters < 2:
        raise ValueError(f"memberships must have at least two clusters (columns), got {n_clusters}")
    overlap = memberships.mT @ kernel @ memberships
    own = overlap.diagonal(dim1=-2, dim2=-1)
    product = (own[..., :, None] * own[..., None, :]).clamp(min=_PRODUCT_FLOOR)
    ratios = overlap.clamp(min=_NUMERATOR_FLOOR) * product.rsqrt()
    return 2 / (n_clusters * (n_clusters - 1)) * ratios.triu(diagonal=1).sum(dim=(-2, -1))


def separation(assignments: Tensor, kernel: Tensor) -> Tensor:
    """DDC1: Cauchy–Schwarz similarity of the clusters. Shapes and range as `cauchy_schwarz`."""
    return cauchy_schwarz(assignments, kernel)


def orthogonality(assignments: Tensor) -> Tensor:
    """DDC2: mean inner product of two samples' assignments, (…, B, K) → (…), each in [0, 1] up to rounding.

    Raises: ValueError if there are fewer than two samples.
    """
    n_samples = assignments.shape[-2]
    if n_samples < 2:
        raise ValueError(f"assignments must have at least two samples (rows), got {n_samples}")
    # Σ_{i≠j} a_i·a_j = |Σ a_i|² − Σ |a_i|²
    sums = assignments.sum(dim=-2)
    both_orders = (sums * sums).sum(dim=-1) - (assignments * assignments).sum(dim=(-2, -1))
    return both_orders / (n_samples * (n_samples - 1))


def cluster_orthogonality(assignments: Tensor) -> Tensor:
    """DDC2 as EAMC has it: mean inner product of two clusters' columns, (B, K) → scalar ≥ 0, grows with B.

    Raises: ValueError if there are fewer than two clusters.
    """
    n_clusters = assignments.shape[1]
    if n_clusters < 2:
        raise ValueError(f"assignments must have at least two clusters (columns), got {n_clusters}")
    return 2 / (n_clusters * (n_clusters - 1)) * (assignments.T @ assignments).triu(diagonal=1).sum()


def corner_closeness(assignments: Tensor) -> Tensor:
    """exp(−|a − e_k|²), closeness to the simplex corners: (…, B, K) → the same."""
    # |a − e_k|² = |a|² − 2 a_k + 1
    return torch.exp(2 * assignments - (assignments * assignments).sum(dim=-1, keepdim=True) - 1)


def simplex_corners(assignments: Tensor, kernel: Tensor) -> Tensor:
    """DDC3: Cauchy–Schwarz similarity of closeness to the simplex corners. Shapes as DDC1."""
    return cauchy_schwarz(corner_closeness(assignments), kernel)


def ddc_terms(hidden: Tensor, assignments: Tensor) -> dict[str, Tensor]:
    """The three terms of DDC, each with weight 1.

    Args:   hidden: (…, B, D). assignments: (…, B, K), rows sum to 1; batches of the same size may be stacked before.
    Returns: `ddc1`, `ddc2`, `ddc3`, (…) each.
    Raises: ValueError if B < 2 or K < 2.
    """
    kernel = gaussian_kernel(hidden)
    memberships = torch.stack([assignments, corner_closeness(assignments)], dim=-3)
    # Separation and simplex corners at once.
    ddc1, ddc3 = cauchy_schwarz(memberships, kernel[..., None, :, :]).unbind(dim=-1)
    return {"ddc1": ddc1, "ddc2": orthogonality(assignments), "ddc3": ddc3}
