"""Adam as the trainer runs it: torch's fused step, without what torch's own optimizer classes bring along."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Adam:
    """Adam without weight decay; states are those of `torch.optim.Adam`, in both directions.

    torch's classes import all of its compiler when the first one is made, over a second in every process.

    Args:   groups: parameters with their learning rate, > 0. betas: decay of the two moments, each in [0, 1).
    Source: Kingma and Ba 2015, Algorithm 1.
    """

    def __init__(
        self, groups: Sequence[tuple[Iterable[nn.Parameter], float]], betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(parameters), "lr": learning_rate, "betas": betas} for parameters, learning_rate in groups
        ]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in moved:
                if parameter not in self.state:
                    moments = {name: torch.zeros_like(parameter) for name in _MOMENTS}
                    self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
            states = [self.state[parameter] for parameter in moved]
            beta1, beta2 = group["betas"]
            adam(
                moved,
                [parameter.grad for parameter in moved],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Any]:
        """Moments by the number of their parameter, and the groups; the tensors are the optimizer's own."""
        numbers: dict[Tensor, int] = {parameter: number for number, parameter in enumerate(self._parameters())}
        groups = [{**group, "params": [numbers[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": {numbers[p]: dict(entry) for p, entry in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over copies of the moments; learning rates and betas stay those that the optimizer was made with.

        Raises: ValueError if the groups are not of as many parameters.
        """
        sizes = [len(group["params"]) for group in state_dict["param_groups"]]
        wanted = [len(group["params"]) for group in self.param_groups]
        if sizes != wanted:
            raise ValueError(
                f"the state has a different number of parameter groups or parameters: {sizes}, not {wanted}"
            )
        parameters = self._parameters()
        self.state = {}
        for number, entry in state_dict["state"].items():
            parameter = parameters[number]
            moments = {name: entry[name].to(parameter, copy=True) for name in _MOMENTS}
            step = entry["step"].to(parameter.device, torch.float32, copy=True)
            self.state[parameter] = {"step": step, **moments}

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]
