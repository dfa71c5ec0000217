"""What can be wrong with a study outside its YAML: data, checkpoint, networks for these views, this machine."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from ardmvc_core.data import DataError, DatasetConfig, Protocol, check_dataset, load_parts
from ardmvc_core.models import MODELS
from ardmvc_core.types import ViewShapes
from study.metric_names import LABEL_FREE
from study.spec import StudySpec
from trainables.config import AttackTrialConfig, TrialConfig


@dataclass(frozen=True)
class DataFacts:
    """What a check needs to know of a data set that loads."""

    sizes: dict[str, int]
    """Samples of each part."""
    view_shapes: ViewShapes
    n_clusters: int
    labelled: bool


@lru_cache(maxsize=32)
def data_facts(config: DatasetConfig, protocol: Protocol) -> DataFacts:
    """Loads the data once and keeps their sizes. Raises: DataError listing the faults, one a line."""
    faults = check_dataset(config)
    if faults:
        raise DataError("\n".join(faults))
    parts = load_parts(config, protocol)
    first = next(iter(parts.values())).data
    return DataFacts(
        sizes={name: len(part.data) for name, part in parts.items()},
        view_shapes=first.view_shapes,
        n_clusters=first.n_clusters,
        labelled=first.labels is not None,
    )


def environment_faults(spec: StudySpec, *, cluster: bool) -> list[str]:
    """Faults that only data, files and this machine show; each with its key path.

    Args: cluster: whether trials run elsewhere, so that this machine's processors say nothing.
    """
    faults = [] if cluster else machine_faults(spec)
    for path, config in trials_to_check(spec):
        found = _model_faults(spec, config) if isinstance(config, TrialConfig) else _attacker_faults(config)
        faults += [f"{path}{fault}" for fault in found if not any(known.endswith(fault) for known in faults)]
    return faults


def machine_faults(spec: StudySpec) -> list[str]:
    """More processors asked for one trial than this machine has: Ray would wait for them without end."""
    faults = []
    have = {"gpu": torch.cuda.device_count(), "cpu": os.cpu_count() or 1}
    for name, wanted in (("gpu", spec.resources.gpu), ("cpu", spec.resources.cpu)):
        if wanted > have[name]:
            faults.append(
                f"resources.{name}: a trial asks for {wanted:g}, this machine has {have[name]}; "
                f"--set resources.{name}={have[name]}, or --address of a cluster that has more"
            )
    return faults


def trials_to_check(spec: StudySpec) -> Iterator[tuple[str, TrialConfig | AttackTrialConfig]]:
    """The trial as written, every baseline, and one for each end and choice of the space; each with where it comes from."""
    yield "trial.", spec.trial_config({})
    for number, overrides in enumerate(spec.baselines):
        yield f"baselines[{number}]: ", spec.trial_config(overrides)
    for path, distribution in spec.distributions().items():
        for value in distribution.probes():
            yield f"space.{path}: {value!r} makes an invalid trial: ", spec.trial_config({path: value})


def _model_faults(spec: StudySpec, config: TrialConfig) -> list[str]:
    try:
        facts = data_facts(config.dataset, config.protocol)
    except DataError as error:
        return [f"dataset: {fault}" for fault in str(error).splitlines()]
    faults = []
    if config.batch_size > facts.sizes["train"]:
        size = facts.sizes["train"]
        faults.append(f"batch_size: must be ≤ {size}, the samples that are trained on, got {config.batch_size}")
    try:
        config.resolved_budget(len(facts.view_shapes))
    except ValueError as error:
        faults.append(f"evaluation.{error}")
    try:
        with torch.device("meta"):
            MODELS[config.model.name].build(config.model, facts.view_shapes, facts.n_clusters)
    except ValueError as error:
        faults.append(f"model: {error}")
    if not facts.labelled:
        faults += [
            f"dataset: has no labels, so no trial can report {objective.metric}; objectives without labels end in "
            + " or ".join(LABEL_FREE)
            for objective in spec.objectives
            if objective.metric.rpartition("/")[2] not in LABEL_FREE
        ]
    return faults


def _attacker_faults(config: AttackTrialConfig) -> list[str]:
    try:
        target = saved_trial(config.checkpoint)
    except ValueError as error:
        return [f"checkpoint: {error}"]
    try:
        facts = data_facts(target.dataset, "strict")
        replace(config.evaluation).resolve(target.dataset.name, len(facts.view_shapes))
    except DataError as error:
        return [f"checkpoint: its data set: {fault}" for fault in str(error).splitlines()]
    except ValueError as error:
        return [f"evaluation.{error}"]
    return []


def saved_trial(folder: str) -> TrialConfig:
    """The config of the trial that left a checkpoint. Raises: ValueError if the folder holds none."""
    path = Path(folder).expanduser()
    missing = [name for name in ("config.json", "state.pt") if not (path / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} holds no saved model ({' and '.join(missing)} missing); name the checkpoint folder of a trial: "
            "--set trial.checkpoint=FOLDER"
        )
    try:
        return TrialConfig.model_validate(json.loads((path / "config.json").read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no config of a trial: {error}") from None
