"""What can be wrong with a study outside its YAML: data, checkpoint, networks for these views, this machine."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

from ardmvc_core.data import DataError, DatasetConfig, Protocol, check_dataset
from ardmvc_core.evaluation.budget import EvalBudget, ResolvedBudget, too_few
from ardmvc_core.models import MODELS
from ardmvc_core.types import ViewShapes
from study.database.identity import Contents, data_differences
from study.places import ARTIFACTS, local_folder
from study.planning.cost import passes_of, round_costs
from study.planning.search import Search
from study.spec.objectives import LABEL_FREE, needs_no_labels
from study.spec.study_spec import StudySpec
from trainables.building import load_model
from trainables.config import AttackTrialConfig, TrialConfig, protocols_of
from trainables.data_parts import cached_parts, content_of, forget_parts
from trainables.places import folder_fault
from trainables.saved_trial import SavedFacts, saved_facts


@dataclass(frozen=True)
class DataFacts:
    """What a check needs to know of a data set that loads."""

    sizes: dict[str, int]
    """Samples of each part."""
    digests: dict[str, str]
    """Of each part's content."""
    view_shapes: ViewShapes
    n_clusters: int
    labelled: bool
    content: dict[str, str]
    """Protocol → digest of the content of its parts."""


@lru_cache(maxsize=32)
def data_facts(config: DatasetConfig, protocol: Protocol | Literal["both"]) -> DataFacts:
    """Loads the data once and keeps their sizes. Raises: DataError listing the faults, one a line."""
    faults = check_dataset(config)
    if faults:
        raise DataError("\n".join(faults))
    loaded = {each: cached_parts(config, each) for each in protocols_of(protocol)}
    parts = {name: part for own in loaded.values() for name, part in own.items()}
    first = next(iter(parts.values())).data
    return DataFacts(
        sizes={name: len(part.data) for name, part in parts.items()},
        digests={name: part.digest for name, part in parts.items()},
        view_shapes=first.view_shapes,
        n_clusters=first.n_clusters,
        labelled=first.labels is not None,
        content={each: content_of(own) for each, own in loaded.items()},
    )


def data_contents(spec: StudySpec) -> Contents:
    """Digests of the data of a study's trials; of one of attackers none, whose model's checkpoint has them.

    Raises: DataError if they cannot be read.
    """
    if spec.trainable == "attacker":
        return {}
    listed = bool(spec.baselines) and not spec.space
    runs = {} if listed else {"trial": spec.trial_config({})}
    for number, overrides in enumerate(spec.baselines):
        if listed or any(f"{path}.".startswith("dataset.") for path in overrides):
            runs[f"baselines[{number}]"] = spec.trial_config(overrides)
    configs = {name: config for name, config in runs.items() if isinstance(config, TrialConfig)}
    return {name: data_facts(config.dataset, config.protocol).content for name, config in configs.items()}


def environment_faults(spec: StudySpec, *, cluster: bool, contents: Contents | None = None) -> list[str]:
    """Faults that only data, files and this machine show; each with its key path. Files are read anew.

    Args: cluster: whether trials run elsewhere, so that this machine's processors say nothing. contents: what the data
        must hold, by name as in `data_contents`.
    """
    data_facts.cache_clear()
    forget_parts()
    faults = storage_faults(spec) + ([] if cluster else machine_faults(spec))
    if spec.trainable == "attacker":
        return faults + _attacker_faults(spec)
    for path, config in trials_to_check(spec):
        # The same fault in every trial is said once, of the trial as written.
        found = [fault for fault in _model_faults(spec, config) if not any(f.endswith(fault) for f in faults)]
        faults += [f"{path}{fault}" for fault in found]
    if not faults:
        faults += passes_faults(spec)
    if contents and not faults:
        changed = data_differences(contents, data_contents(spec), len(spec.baselines))
        faults += [f"{line}: these are not the data that its trial has run on" for line in changed]
    return faults


def passes_faults(spec: StudySpec) -> list[str]:
    """A limit of passes that the first trial does not fit into."""
    if spec.limits.passes is None:
        return []
    config, budget, facts = resolved_trial(spec, spec.baselines[0] if spec.baselines else {})
    costs = round_costs(config, budget, facts.sizes, facts.n_clusters)
    rounds = Search(spec, lambda record: costs).first_rounds(0) if spec.staged else config.rounds
    needed = passes_of(costs[:rounds])
    if needed <= spec.limits.passes:
        return []
    return [f"limits.passes: must be ≥ {needed:,}, what the first trial takes, got {spec.limits.passes:,}"]


def storage_faults(spec: StudySpec) -> list[str]:
    """Folders of the study that cannot be made, or not written to; nothing is made."""
    if spec.storage.remote:
        return []
    folders = [local_folder(spec.storage.path) / name for name in (spec.name, ARTIFACTS)]
    found = {fault: folder for folder in reversed(folders) if (fault := folder_fault(folder))}
    return [f"storage.path: cannot write to {folder}: {fault}" for fault, folder in found.items()]


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


def trials_to_check(spec: StudySpec) -> Iterator[tuple[str, TrialConfig]]:
    """The trial as written, the baselines, and one for each end and choice; each with where it comes from."""
    # A study without a space is a list of trials: the trial as written is not one of them.
    listed = bool(spec.baselines) and not spec.space
    cases: list[tuple[str, Mapping[str, Any]]] = [] if listed else [("trial.", {})]
    cases += [(f"baselines[{number}]: ", overrides) for number, overrides in enumerate(spec.baselines)]
    for path, distribution in spec.distributions().items():
        cases += [
            (f"space.{path}: {value!r} makes an invalid trial: ", {path: value}) for value in distribution.probes()
        ]
    for where, overrides in cases:
        config = spec.trial_config(overrides)
        assert isinstance(config, TrialConfig)
        yield where, config


def score_parts(spec: StudySpec) -> list[str]:
    """Digests of the score parts that the study's trials end on; none where they end on the tuning part.

    Raises: DataError or OSError if data cannot be read.
    """
    if spec.trial.get("score_on") != "score" or spec.trial.get("protocol") == "official":
        return []
    datasets = {config.dataset: None for _, config in trials_to_check(spec)}
    found = [data_facts(dataset, "strict").digests["score"] for dataset in datasets]
    return list(dict.fromkeys(found))


def _model_faults(spec: StudySpec, config: TrialConfig) -> list[str]:
    try:
        facts = data_facts(config.dataset, config.protocol)
    except (DataError, OSError) as error:
        return [f"dataset: {fault}" for fault in str(error).splitlines()]
    faults = []
    if config.batch_size > facts.sizes["train"]:
        size = facts.sizes["train"]
        faults.append(f"batch_size: must be ≤ {size}, the samples that are trained on, got {config.batch_size}")
    faults += _sample_faults(config.evaluation, facts, config.score_on)
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
            if not needs_no_labels(objective.metric)
        ]
    return faults


def _sample_faults(evaluation: EvalBudget, facts: DataFacts, strict_part: str) -> list[str]:
    """Fewer scored samples than clusters, in the strict protocol's part or in the half that the official one scores."""
    faults = []
    for part in (strict_part, "attack"):
        if (size := facts.sizes.get(part)) is not None:
            scored = size if part == "attack" else evaluation.scored(size)
            if fault := too_few(scored, facts.n_clusters):
                faults.append(f"{'evaluation.samples' if scored < size else 'dataset'}: {fault}")
    return faults


def _attacker_faults(spec: StudySpec) -> list[str]:
    config = spec.trial_config({})
    try:
        folder = target_folder(spec)
        saved = saved_facts(folder, spec.trial.get("data"))
    except ValueError as error:
        return [f"trial.checkpoint: {error}"]
    target = saved.config
    try:
        facts = data_facts(target.dataset, "strict")
        config.evaluation.resolve(target.dataset.name, len(facts.view_shapes))
    except (DataError, OSError) as error:
        return [f"trial.checkpoint: the data of its trial: {fault}" for fault in str(error).splitlines()]
    except ValueError as error:
        return [f"trial.evaluation.{error}"]
    if faults := _sample_faults(config.evaluation, facts, "tune"):
        return [f"trial.{fault}" for fault in faults]
    try:
        load_model(folder, torch.device("cpu"), facts=saved)
    except ValueError as error:
        return [f"trial.checkpoint: {error}"]
    return []


def resolved_trial(
    spec: StudySpec, overrides: Mapping[str, Any]
) -> tuple[TrialConfig | AttackTrialConfig, ResolvedBudget, DataFacts]:
    """The config of a trial, its evaluation with ε as a number, and its data.

    Args: overrides: of the trial; empty: the trial as written.
    Raises: DataError or ValueError if its data, or the model that it attacks, cannot be read.
    """
    config = spec.trial_config(overrides)
    if isinstance(config, AttackTrialConfig):
        dataset = target_facts(spec).config.dataset
        facts = data_facts(dataset, "strict")
    else:
        dataset = config.dataset
        facts = data_facts(dataset, config.protocol)
    return config, config.evaluation.resolve(dataset.name, len(facts.view_shapes)), facts


def target_facts(spec: StudySpec) -> SavedFacts:
    """What is known of the trial whose saved model an attacker study attacks, its data where they lie now.

    Raises: ValueError if there is no such model, or its storage does not answer.
    """
    return saved_facts(target_folder(spec), spec.trial.get("data"))


def target_folder(spec: StudySpec) -> str:
    """The checkpoint that an attacker study attacks. Raises: ValueError if there is none."""
    from study.database.engine import LedgerError
    from study.planning.saved_models import find_checkpoint

    try:
        return find_checkpoint(str(spec.trial["checkpoint"]), spec.storage.path)
    except (LedgerError, OSError) as error:
        raise ValueError(" ".join(str(error).removeprefix("trial.checkpoint: ").split())) from None
