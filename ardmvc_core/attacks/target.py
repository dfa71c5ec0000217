"""What an evaluation demands of the model it judges: inference mode, and nothing that changes while it is attacked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ardmvc_core.attacks.threat import Threat, project
from ardmvc_core.batching import in_full_batches
from ardmvc_core.errors import UserError
from ardmvc_core.types import Perturb, Views


class EvaluationError(UserError, RuntimeError):
    """A number that would not mean what it says; the message names the model's part or the attack at fault."""


@contextmanager
def inference_target(model: nn.Module) -> Iterator[Callable[[str], None]]:
    """The model in inference mode with parameters that ask for no gradient; on leaving, all is as it was found.

    Yields: verify(after), which raises EvaluationError if a module is in training mode, or a buffer or parameter is
        not what it was at the start; `after` says what ran before, for the message.
    """
    modes = [(module, module.training) for module in model.modules()]
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in asking:
        parameter.requires_grad_(False)
    before = {name: value.detach().clone() for name, value in _tensors(model).items()}

    def verify(after: str) -> None:
        for name, module in model.named_modules():
            if module.training:
                raise EvaluationError(f"module '{name or type(module).__name__}' is in training mode after {after}")
        now = _tensors(model)
        for name in sorted(before.keys() | now.keys()):
            if name not in before or name not in now or not _equal(before[name], now[name]):
                kind = "parameter" if name in dict(model.named_parameters()) else "buffer"
                raise EvaluationError(f"{kind} '{name}' was changed by {after}; the target must stay as it is")

    try:
        verify("it was put into inference mode")
        yield verify
    finally:
        with torch.no_grad():
            for name, value in _tensors(model).items():
                if name in before and value.shape == before[name].shape:
                    value.copy_(before[name])
        for module, training in modes:
            module.training = training
        for parameter in asking:
            parameter.requires_grad_(True)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _equal(before: Tensor, now: Tensor) -> bool:
    if before.shape != now.shape or before.dtype != now.dtype:
        return False
    if torch.equal(before, now):
        return True
    return before.is_floating_point() and torch.allclose(before, now, rtol=0, atol=0, equal_nan=True)


def device_of(model: nn.Module, views: Views) -> torch.device:
    """Where the model's first parameter lives; for a model without parameters, where the views do."""
    parameter = next(model.parameters(), None)
    return views[0].device if parameter is None else parameter.device


def assign(model: nn.Module, views: Views, batch_size: int) -> NDArray[np.int64]:
    """Hard assignments in the model's present mode.

    Args: views: V × (N, *shape_v), N ≥ 1. batch_size: ≥ 1; a last batch of a single sample joins the one before it,
        because BatchNorm in training mode cannot take it.
    Returns: (N,) int64.
    Raises: EvaluationError if a logit is not finite, since its argmax would be arbitrary.
    """
    clusters = []
    with torch.no_grad():
        for batch in in_full_batches(views, batch_size):
            logits = model(batch).logits
            if not bool(torch.isfinite(logits).all()):
                raise EvaluationError(f"the model gives logits that are not finite for {len(logits)} samples")
            clusters.append(logits.argmax(1))
    return torch.cat(clusters).cpu().numpy()


def attacked_views(name: str, perturb: Perturb, model: nn.Module, views: Views, budget: Threat) -> Views:
    """What an attack makes of the views, projected into the budget whatever the attack claims.

    Raises: EvaluationError if the output has other shapes or dtypes, or values that are not finite.
    """
    # Copies: an attack that writes into its input must not move the clean views that it is measured against.
    moved = perturb(model, tuple(view.clone() for view in views))
    form = [(tuple(view.shape), view.dtype) for view in views]
    got = [(tuple(view.shape), view.dtype) for view in moved]
    if form != got:
        raise EvaluationError(f"attack '{name}' must return views like the clean ones {form}, got {got}")
    if not all(bool(torch.isfinite(view).all()) for view in moved):
        raise EvaluationError(f"attack '{name}' returned values that are not finite")
    return tuple(view.detach() for view in project(views, moved, budget))
