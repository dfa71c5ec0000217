"""The only training loop: runs the stages of any method epoch by epoch, and stops and goes on exactly."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ardmvc_core.networks.encoders import bf16_encoders
from ardmvc_core.seeding import derive_seed, generator, global_rng_state, set_global_rng_state
from ardmvc_core.types import Method, Optimizer, Stage, StageObjective, StepContext, Views

Precision = Literal["fp32", "bf16"]


class NonFiniteLoss(RuntimeError):
    """Training met a loss term, or at the end of an epoch a parameter, that is NaN or infinite."""

    def __init__(self, stage: str, epoch: int, step: int, term: str) -> None:
        super().__init__(f"{term} is not finite in stage {stage!r}, epoch {epoch}, step {step}")
        self.stage = stage
        self.epoch = epoch
        self.step = step
        self.term = term

    def __reduce__(self) -> tuple[type, tuple[str, int, int, str]]:
        # Exceptions cross process borders by pickle, which otherwise calls the class with the message alone.
        return type(self), (self.stage, self.epoch, self.step, self.term)


class _Meter:
    """Running sums of the terms and the first step at which each was not finite; both stay on the device."""

    def __init__(self) -> None:
        self._names: dict[int, tuple[str, ...]] = {}
        self._sums: dict[int, Tensor] = {}
        self._first_bad: dict[int, Tensor] = {}

    def add(self, objective: int, names: tuple[str, ...], values: Tensor, step: int) -> None:
        """values: (T,), detached, one per name."""
        bad = torch.where(values.isfinite(), torch.inf, float(step)).to(torch.float64)
        if objective not in self._names:
            self._names[objective] = names
            self._sums[objective] = values.double()
            self._first_bad[objective] = bad
        elif self._names[objective] == names:
            self._sums[objective] += values
            torch.minimum(self._first_bad[objective], bad, out=self._first_bad[objective])
        else:
            raise ValueError(f"terms must keep their names within a stage: {self._names[objective]}, then {names}")

    def first_bad(self) -> tuple[int, str] | None:
        """(step, term) of the earliest term that was not finite. Waits for the device."""
        found = [
            (step, name)
            for objective, names in self._names.items()
            for name, step in zip(names, self._first_bad[objective].tolist(), strict=True)
            if step != float("inf")
        ]
        return min(((int(step), name) for step, name in found), key=lambda pair: pair[0], default=None)

    def means(self, steps: int) -> dict[str, float]:
        """Mean of every term over `steps` steps, and of their sum as `total`."""
        means: dict[str, float] = {}
        for objective, names in self._names.items():
            for name, total in zip(names, self._sums[objective].tolist(), strict=True):
                if name in means:
                    raise ValueError(f"term names must differ between objectives, got {name!r} twice")
                means[name] = total / steps
        return {**means, "total": sum(means.values())}


class Trainer:
    """Trains a model through stages; everything that decides what comes next is in `state_dict`.

    Args:   model: on the device where it is to be trained. stages: run one after the other, each with fresh
            optimizers. views: V × (N, *shape), float32 in [0, 1]; kept in memory on the model's device.
            batch_size: ≥ 2 and ≤ N; an epoch has ⌊N / batch_size⌋ steps, the samples left over differ every epoch.
            seed: of the named streams `batches`, `inner attack` and `prepare`. precision: `bf16` runs the encoders
            under autocast in bfloat16, inner attacks included; everything behind the latents is float32 either way.
    Raises: ValueError if a batch does not fill, there is no stage, or a stage has no epoch or no objective.
    """

    def __init__(
        self,
        model: nn.Module,
        stages: Sequence[Stage],
        views: Views,
        *,
        batch_size: int,
        seed: int,
        precision: Precision = "fp32",
    ) -> None:
        samples = len(views[0])
        if not batch_size >= 2:
            raise ValueError(f"batch_size must be ≥ 2 (the losses compare samples), got {batch_size}")
        if batch_size > samples:
            raise ValueError(f"batch_size must be ≤ the number of samples {samples}, got {batch_size}")
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
        if not stages or any(stage.epochs < 1 or not stage.objectives for stage in stages):
            raise ValueError("stages must be at least one, each with ≥ 1 epoch and ≥ 1 objective")
        self.model = model
        self._stages = tuple(stages)
        self._device = next(model.parameters()).device
        self._views = tuple(view.to(self._device) for view in views)
        self._batch_size = batch_size
        self._precision = precision
        self._seed = seed
        # On an accelerator a look at the loss would make the host wait for the device in every step.
        self._checks_every_step = self._device.type == "cpu"
        self._batches = generator(seed, "batches")
        self._inner_attack = generator(seed, "inner attack", device=self._device)
        self._stage_index = 0
        self._stage_epoch = 0
        self._epoch = 0
        self._step = 0
        self._optimizers: list[Optimizer] = []

    @property
    def views(self) -> Views:
        """The training views, V × (N, *shape), on the model's device."""
        return self._views

    @property
    def epoch(self) -> int:
        """Epochs done, over all stages."""
        return self._epoch

    @property
    def epochs(self) -> int:
        """Epochs of all stages together."""
        return sum(stage.epochs for stage in self._stages)

    @property
    def step(self) -> int:
        """Batches done, over all stages."""
        return self._step

    @property
    def finished(self) -> bool:
        """Whether the last stage has run."""
        return self._stage_index == len(self._stages)

    @property
    def stage_name(self) -> str:
        """Stage of the next epoch, or of the last one when finished."""
        return self._stages[min(self._stage_index, len(self._stages) - 1)].name

    def run_epoch(self) -> dict[str, float]:
        """One pass over the samples in a new order; leaves the model in training mode.

        Returns: mean over the steps of every named term, and of their sum as `total`.
        Raises: RuntimeError when finished. NonFiniteLoss: on the CPU before the optimizer moves, on an accelerator
            at the end of the epoch, then naming the earliest step.
        """
        if self.finished:
            raise RuntimeError(f"training is finished: all {self.epochs} epochs were run")
        stage = self._stages[self._stage_index]
        if self._stage_epoch == 0 and stage.prepare is not None:
            stage.prepare(self.model, self._views, derive_seed(self._seed, "prepare", self._stage_index))
        if self._stage_epoch == 0 or stage.renew_optimizers:
            self._optimizers = [objective.optimizer(self.model) for objective in stage.objectives]
        self.model.train()
        meter = _Meter()
        with bf16_encoders(self.model, self._precision == "bf16"), _reproducible_convolutions():
            for rows in self._batch_rows():
                views = tuple(view.index_select(0, rows) for view in self._views)
                for index, objective in enumerate(stage.objectives):
                    self._optimize(index, objective, views, meter)
                self._step += 1
        self._refuse_non_finite(meter)
        means = meter.means(self._batches_per_epoch)
        self._advance(stage)
        return means

    def _batch_rows(self) -> Iterator[Tensor]:
        samples = len(self._views[0])
        order = torch.randperm(samples, generator=self._batches).to(self._device)
        return iter(order[: samples - samples % self._batch_size].split(self._batch_size))

    def _optimize(self, index: int, objective: StageObjective, views: Views, meter: _Meter) -> None:
        context = StepContext(epoch=self._epoch, step=self._step, generator=self._inner_attack)
        terms = objective.terms(self.model, views, context)
        stacked = torch.stack(tuple(terms.values()))
        meter.add(index, tuple(terms), stacked.detach(), self._step)
        if self._checks_every_step:
            self._refuse_non_finite(meter, parameters=False)
        # All gradients, not only this optimizer's: what one objective left elsewhere must not reach the other's step.
        self.model.zero_grad(set_to_none=True)
        stacked.sum().backward()
        self._optimizers[index].step()

    def _refuse_non_finite(self, meter: _Meter, parameters: bool = True) -> None:
        bad = meter.first_bad()
        if bad is None and parameters:
            # A finite loss can have an infinite gradient; after the last step only the parameters show it.
            finite = torch.stack([p.detach().isfinite().all() for p in self.model.parameters()]).all()
            bad = None if bool(finite) else (self._step - 1, "a parameter")
        if bad is not None:
            raise NonFiniteLoss(self.stage_name, self._epoch, *bad)

    def _advance(self, stage: Stage) -> None:
        self._epoch += 1
        self._stage_epoch += 1
        if self._stage_epoch == stage.epochs:
            self._stage_index += 1
            self._stage_epoch = 0
            self._optimizers = []

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next epochs depend on, of tensors and plain types only.

        `torch.load(…, weights_only=True)` reads it back. The global random streams are part of it.
        """
        return {
            "plan": self._plan(),
            "model": _copied(self.model.state_dict()),
            "optimizers": [_copied(optimizer.state_dict()) for optimizer in self._optimizers],
            "stage": self._stage_index,
            "stage_epoch": self._stage_epoch,
            "epoch": self._epoch,
            "step": self._step,
            "batches": self._batches.get_state(),
            "inner_attack": self._inner_attack.get_state(),
            "global": global_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken, bit for bit on the same kind of machine.

        Raises: ValueError, before anything is changed, if stages, batch size, samples, precision or kind of device
            are not those of the state, or its place in them cannot be; what PyTorch raises if the model's parameters or
            the optimizers' are not, and then the trainer is not to be used before another state is loaded.
        """
        plan = self._plan()
        if state["plan"] != plan:
            changed = [f"{k} {state['plan'].get(k)} → {plan[k]}" for k in plan if state["plan"].get(k) != plan[k]]
            raise ValueError(f"the checkpoint is of another training: {', '.join(changed)}")
        place = self._checked_place(state)
        self.model.load_state_dict(state["model"])
        self._stage_index, self._stage_epoch, self._epoch, self._step = place
        self._optimizers = []
        if self._stage_epoch > 0:
            objectives = self._stages[self._stage_index].objectives
            self._optimizers = [objective.optimizer(self.model) for objective in objectives]
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
                _check_moments(optimizer)
        self._batches.set_state(state["batches"].cpu())
        self._inner_attack.set_state(state["inner_attack"].cpu())
        set_global_rng_state(state["global"])

    def _checked_place(self, state: Mapping[str, Any]) -> tuple[int, int, int, int]:
        """Stage, epoch in it, epoch and step of a state. Raises: ValueError if they are not those of one moment."""
        stage, stage_epoch, epoch, step = place = tuple(
            state[name] for name in ("stage", "stage_epoch", "epoch", "step")
        )
        if all(type(number) is int for number in place) and 0 <= stage <= len(self._stages):
            lengths = [each.epochs for each in self._stages]
            whole = 0 <= stage_epoch < (lengths[stage] if stage < len(lengths) else 1)
            if whole and epoch == sum(lengths[:stage]) + stage_epoch and step == epoch * self._batches_per_epoch:
                return stage, stage_epoch, epoch, step
        raise ValueError(
            f"the checkpoint is at no moment of this training: stage, epoch in it, epoch, step are {place}"
        )

    @property
    def _batches_per_epoch(self) -> int:
        return len(self._views[0]) // self._batch_size

    def _plan(self) -> dict[str, Any]:
        return {
            "stages": [[stage.name, stage.epochs, len(stage.objectives)] for stage in self._stages],
            "batch_size": self._batch_size,
            "samples": len(self._views[0]),
            "precision": self._precision,
            "device": self._device.type,
        }


def _check_moments(optimizer: Optimizer) -> None:
    """Raises: ValueError if what an optimizer remembers of a parameter has another shape, which PyTorch lets pass."""
    for parameter, remembered in optimizer.state.items():
        for name, moment in remembered.items():
            if isinstance(moment, Tensor) and moment.dim() and moment.shape != parameter.shape:
                raise ValueError(f"{name} of an optimizer must be of shape {parameter.shape}, is {moment.shape}")


def calibrate(method: Method, model: nn.Module, views: Views, seed: int) -> None:
    """Fits what the method's assignments need besides trained weights; to be called before the model is evaluated.

    Args: model: left in the mode that it was in. views: V × (N, *shape_v), the clean views it was trained on.
    """
    if method.calibrate is None:
        return
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            method.calibrate(model, views, derive_seed(seed, "calibrate"))
    finally:
        for module, training in modes:
            module.training = training


def _copied(value: Any) -> Any:
    """Deep copy with plain dicts and lists; tensors are detached clones."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copied(entry) for entry in value]
    return value


@contextmanager
def _reproducible_convolutions() -> Iterator[None]:
    """On CUDA: the same algorithm every time, and float32 that is not rounded to TF32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
