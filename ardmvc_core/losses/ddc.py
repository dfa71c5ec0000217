"""Deep divergence-based clustering: a Gaussian kernel on hidden vectors and three terms on soft assignments.

Source: Kampffmeyer et al. 2019 (DDC); Trosten et al. 2021 (SiMVC, CoMVC), whose floors are used here.
"""

import torch
from torch import Tensor

_NUMERATOR_FLOOR = 1e-9
_PRODUCT_FLOOR = 1e-18
_WIDTH_FLOOR = 1e-9


def squared_distances(rows: Tensor) -> Tensor:
    """Squared distances between all rows, (B, D) → (B, B).

    Returns: |x|² − 2 x·y + |y|²; entries that should be 0 may come out slightly negative.
    """
    norms = (rows * rows).sum(dim=1)
    return norms[:, None] - 2 * rows @ rows.T + norms[None, :]


def kernel_width(distances: Tensor, rel_sigma: float = 0.15) -> Tensor:
    """σ² of the Gaussian kernel: `rel_sigma` times the median squared distance, constant for differentiation.

    Args:   distances: (B, B) squared distances; the median runs over all B² entries, diagonal included, and is the
            lower of the two middle ones.
    Returns: scalar ≥ 1e-9. Differs from the published code, which has no floor: once half of the distances are 0
        (collapsed hidden vectors) its kernel is NaN.
    """
    return (rel_sigma * distances.detach().median()).clamp(min=_WIDTH_FLOOR)


def gaussian_kernel(rows: Tensor, rel_sigma: float = 0.15) -> Tensor:
    """Kernel matrix exp(−d²/(2σ²)) of the rows with the width of `kernel_width`, (B, D) → (B, B) in (0, 1]."""
    distances = squared_distances(rows)
    return torch.exp(distances.clamp(min=0) / (-2 * kernel_width(distances, rel_sigma)))


def cauchy_schwarz(memberships: Tensor, kernel: Tensor) -> Tensor:
    """Mean similarity between clusters under a kernel; low where clusters are compact and apart.

    Args:   memberships: (B, K) ≥ 0. kernel: (B, B).
    Returns: scalar in [0, 1] up to rounding: mean over cluster pairs of N_ab/√(N_aa N_bb), N = MᵀKM. Numerators below
        1e-9 and products below 1e-18 are replaced by these numbers and then have no gradient.
    Raises: ValueError if there are fewer than two clusters.
    """
    n_clusters = memberships.shape[1]
    if n_clusters < 2:
        raise ValueError(f"memberships must have at least two clusters (columns), got {n_clusters}")
    overlap = memberships.T @ kernel @ memberships
    product = overlap.diagonal()[:, None] * overlap.diagonal()[None, :]
    numerator = torch.where(overlap < _NUMERATOR_FLOOR, _NUMERATOR_FLOOR, overlap)
    product = torch.where(product < _PRODUCT_FLOOR, _PRODUCT_FLOOR, product)
    ratios = numerator / product.sqrt()
    return 2 / (n_clusters * (n_clusters - 1)) * ratios.triu(diagonal=1).sum()


def separation(assignments: Tensor, kernel: Tensor) -> Tensor:
    """DDC1: Cauchy–Schwarz similarity of the clusters. Shapes and range as `cauchy_schwarz`."""
    return cauchy_schwarz(assignments, kernel)


def orthogonality(assignments: Tensor) -> Tensor:
    """DDC2: mean inner product of two samples' assignments, (B, K) → scalar in [0, 1].

    Raises: ValueError if there are fewer than two samples.
    """
    n_samples = assignments.shape[0]
    if n_samples < 2:
        raise ValueError(f"assignments must have at least two samples (rows), got {n_samples}")
    return 2 / (n_samples * (n_samples - 1)) * (assignments @ assignments.T).triu(diagonal=1).sum()


def cluster_orthogonality(assignments: Tensor) -> Tensor:
    """DDC2 as EAMC has it: mean inner product of two clusters' columns, (B, K) → scalar ≥ 0, grows with B.

    Raises: ValueError if there are fewer than two clusters.
    """
    n_clusters = assignments.shape[1]
    if n_clusters < 2:
        raise ValueError(f"assignments must have at least two clusters (columns), got {n_clusters}")
    return 2 / (n_clusters * (n_clusters - 1)) * (assignments.T @ assignments).triu(diagonal=1).sum()


def simplex_corners(assignments: Tensor, kernel: Tensor) -> Tensor:
    """DDC3: Cauchy–Schwarz similarity of closeness to the simplex corners, exp(−|a − e_k|²). Shapes as DDC1."""
    # |a − e_k|² = |a|² − 2 a_k + 1
    distances = (assignments * assignments).sum(dim=1, keepdim=True) - 2 * assignments + 1
    return cauchy_schwarz(torch.exp(-distances), kernel)


def ddc_terms(hidden: Tensor, assignments: Tensor) -> dict[str, Tensor]:
    """The three terms of DDC, each with weight 1.

    Args:   hidden: (B, D). assignments: (B, K), rows sum to 1.
    Returns: scalars `ddc1`, `ddc2`, `ddc3`.
    Raises: ValueError if B < 2 or K < 2.
    """
    kernel = gaussian_kernel(hidden)
    return {
        "ddc1": separation(assignments, kernel),
        "ddc2": orthogonality(assignments),
        "ddc3": simplex_corners(assignments, kernel),
    }
