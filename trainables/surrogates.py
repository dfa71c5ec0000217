"""Models that an attacker without access trains for himself: what the transfer attack makes its points on.

None of them has seen a sample that the target was trained on or is scored on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ardmvc_core.attacks.tiers import Tier
from ardmvc_core.data.dataset import MultiViewDataset
from ardmvc_core.models import MODELS
from ardmvc_core.seeding import derive_seed, global_rng_state, seed_everything, set_global_rng_state
from ardmvc_core.training import NonFiniteLoss, Trainer, calibrate
from trainables.building import build_model
from trainables.config import TrialConfig

COUNTS: Mapping[str, int] = {"standard": 2, "plus": 5}
"""Surrogates by tier of the suite; the others have no transfer attack."""
OTHERS = ("comvc", "simvc")
"""Methods after the first surrogate, in turn, each with its own defaults."""
LEAST_SAMPLES = 2
"""Of the attacker part; the losses compare samples."""

Progress = Callable[[str, float], None]
"""(what is trained, share of all epochs that is done)."""


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """One trained model of the attacker's."""

    model: nn.Module
    """In inference mode."""
    method: str
    seed: int
    epochs: int
    """Over all stages."""
    failure: str = ""
    """Why its training ended early; such a model is of no use."""


def surrogate_configs(config: TrialConfig, count: int, seed: int) -> tuple[TrialConfig, ...]:
    """What each surrogate is trained by: the trial's own method first, then `OTHERS` in turn.

    Args: count: ≥ 0. seed: of the evaluation; each surrogate has a seed of its own from it and the trial's.
    """
    found = []
    for number in range(count):
        changes: dict[str, Any] = {"seed": derive_seed(seed, "surrogate", config.seed, number)}
        if number > 0:
            changes["model"] = MODELS[OTHERS[(number - 1) % len(OTHERS)]].config()
        found.append(config.model_copy(update=changes))
    return tuple(found)


def tier_surrogates(config: TrialConfig, data: MultiViewDataset, tier: Tier, seed: int) -> tuple[nn.Module, ...]:
    """The models of use for a tier's transfer attack; none where it has no such attack. Args: as `train_surrogates`."""
    count = COUNTS.get(tier, 0)
    trained = train_surrogates(config, data, count, seed=seed) if count else ()
    return tuple(one.model for one in trained if not one.failure)


def train_surrogates(
    config: TrialConfig,
    data: MultiViewDataset,
    count: int,
    *,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Surrogate, ...]:
    """Trains the attacker's models on the attacker part, as a trial would train them.

    A plain method that cannot be built for these views gives way to the trial's own. A batch that the part does not
    fill shrinks to it. The global random streams are left as they were.

    Args: data: the attacker part, on the device to train on, at least `LEAST_SAMPLES` samples.
    Raises: ValueError if the part is too small.
    """
    if count and len(data) < LEAST_SAMPLES:
        raise ValueError(f"surrogates need an attacker part of at least {LEAST_SAMPLES} samples, it has {len(data)}")
    plans = [_trainer(own, config, data) for own in surrogate_configs(config, count, seed)]
    total, behind = sum(trainer.epochs for _, trainer in plans), 0
    streams, trained = global_rng_state(), []
    try:
        for own, trainer in plans:
            seed_everything(derive_seed(own.seed, "global"))
            failure = ""
            try:
                for epoch in range(trainer.epochs):
                    if progress is not None:
                        progress(f"surrogate {own.model.name}", (behind + epoch) / total)
                    trainer.run_epoch()
                calibrate(MODELS[own.model.name], trainer.model, data.views, own.seed)
            except NonFiniteLoss as error:
                failure = str(error)
            behind += trainer.epochs
            trained.append(
                Surrogate(
                    model=trainer.model.eval(),
                    method=own.model.name,
                    seed=own.seed,
                    epochs=trainer.epochs,
                    failure=failure,
                )
            )
    finally:
        set_global_rng_state(streams)
    return tuple(trained)


def _trainer(own: TrialConfig, config: TrialConfig, data: MultiViewDataset) -> tuple[TrialConfig, Trainer]:
    try:
        model = build_model(own, "strict", data.view_shapes, data.n_clusters, own.seed)
    except ValueError:
        own = own.model_copy(update={"model": config.model})
        model = build_model(own, "strict", data.view_shapes, data.n_clusters, own.seed)
    stages = MODELS[own.model.name].stages(own.model, own.epochs)
    batch_size = min(own.batch_size, len(data))
    device: torch.device = data.views[0].device
    return own, Trainer(
        model.to(device), stages, data.views, batch_size=batch_size, seed=own.seed, precision=own.precision
    )
