"""How long a trial takes, before one has run: a step of its training is tried here."""

import time
from dataclasses import replace

import torch

from ardmvc_core.models import MODELS
from ardmvc_core.seeding import global_rng_state, set_global_rng_state
from ardmvc_core.training import NonFiniteLoss, Trainer
from study.planning.cost import Cost, Passes
from trainables.building import build_model, pick_device
from trainables.config import TrialConfig, protocols_of
from trainables.data_parts import cached_parts

BACKWARD = 2.0
"""A backward pass takes about as long as two forward ones."""


def seconds_of_work(config: TrialConfig, threads: float) -> float | None:
    """Seconds that a forward pass of one training sample takes here, read off one step of the longest stage.

    Args: threads: of the processor, as a trial has them.
    Returns: None where the step has no finite loss. The global random streams are left as they were.
    """
    protocol = protocols_of(config.protocol)[0]
    train, device = cached_parts(config.dataset, protocol)["train"].data, pick_device(config.device)
    stage = max(MODELS[config.model.name].stages(config.model, config.epochs), key=lambda stage: stage.epochs)
    passes = Passes()
    for objective in stage.objectives:
        passes += Passes(objective.passes + objective.passes_without_gradient, objective.passes)
    before, streams = torch.get_num_threads(), global_rng_state()
    try:
        torch.set_num_threads(max(1, int(threads)))
        model = build_model(config, protocol, train.view_shapes, train.n_clusters, config.seed).to(device)
        batch = tuple(view[: config.batch_size] for view in train.views)
        stages = (replace(stage, epochs=2),)
        trainer = Trainer(
            model, stages, batch, batch_size=config.batch_size, seed=config.seed, precision=config.precision
        )
        trainer.run_epoch()  # the first step prepares what later ones have
        begin = time.perf_counter()
        trainer.run_epoch()
        seconds = time.perf_counter() - begin
    except NonFiniteLoss:
        return None
    finally:
        torch.set_num_threads(before)
        set_global_rng_state(streams)
    return seconds / (work(passes) * config.batch_size)


def work(passes: Passes) -> float:
    """Passes in forward ones."""
    return passes.forward + BACKWARD * passes.backward


def seconds_of(cost: Cost, config: TrialConfig, scored: int, each: float) -> float:
    """Seconds of a trial. Args: scored: samples in a batch of its evaluation. each: from `seconds_of_work`."""
    return each * (work(cost.training) * config.batch_size + work(cost.evaluation) * scored)
