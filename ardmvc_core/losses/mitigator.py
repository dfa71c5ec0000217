"""AR-DMVC-AM's attack mitigator: the divergence between clean and attacked assignments."""

from typing import Literal

from torch import Tensor

KLDirection = Literal["slides", "code"]


def mitigator_kl(
    clean: Tensor, attacked: Tensor, *, direction: KLDirection, smoothing: float, stop_gradient: bool
) -> Tensor:
    """Kullback–Leibler divergence between the assignments of attacked and clean views.

    Args:   clean, attacked: (B, K) soft assignments. direction: `slides` is KL(attacked ‖ clean), as in the paper's
            bound; `code` is KL(clean ‖ attacked), as in the published code. smoothing: > 0, added to every entry
            and not renormalised (as published). stop_gradient: treat the clean assignments as constants.
    Returns: scalar, nats, mean over samples; ≥ 0.
    Raises: ValueError if direction is neither.
    Source: AR-DMVC (ICML 2024), AR-DMVC-AM objective.
    """
    reference = (clean.detach() if stop_gradient else clean) + smoothing
    moved = attacked + smoothing
    if direction == "slides":
        return _kl(moved, reference)
    if direction == "code":
        return _kl(reference, moved)
    raise ValueError(f"direction must be slides or code, got {direction!r}")


def _kl(first: Tensor, second: Tensor) -> Tensor:
    return (first * (first.log() - second.log())).sum(dim=1).mean()
