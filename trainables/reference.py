"""The reference partition that label-free scores are read against: computed once a study, from plain models.

A plain model is the trial's own without its defence (all weights of its defence are 0), trained with seeds of its own.
Plain models vote; voters of other families object where they agree on another partition.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import nn

from ardmvc_core.attacks.target import assign, inference_target
from ardmvc_core.data.dataset import MultiViewDataset
from ardmvc_core.data.reading import read_archive, reading, shown_path
from ardmvc_core.models import MODELS
from ardmvc_core.models.simvc import SiMVCConfig
from ardmvc_core.seeding import derive_seed
from ardmvc_core.selection.criteria import clean_clustering_loss
from ardmvc_core.selection.reference_partition import OldReference, PlainRun, ReferencePartition, reference_partition
from ardmvc_core.selection.voters import Voter, view_voters, with_objections
from ardmvc_core.training import NonFiniteLoss, Trainer, calibrate
from trainables.building import build_model, pick_device
from trainables.config import TrialConfig
from trainables.data_parts import cached_parts, without_labels

REFERENCE_FILE = "reference.npz"
SIMVC_RUNS = 2
"""Of SiMVC, which costs as much as a plain model: two, so that their agreement is known."""


@dataclass
class _Provided:
    """Where this process gets the reference from; None: it computes it."""

    source: Callable[[], ReferencePartition] | None = None
    kept: tuple[str, ReferencePartition] | None = None


_provided = _Provided()


def provide_reference(source: Callable[[], ReferencePartition] | None) -> None:
    """Says where the reference comes from in this process, in place of training plain models."""
    _provided.source = source


def reference_file(config: str, threads: float) -> bytes:
    """Computes a study's reference where it runs. Args: config: a TrialConfig as JSON. Returns: an .npz file."""
    torch.set_num_threads(max(1, int(threads)))
    settings = TrialConfig.model_validate_json(config)
    reference = compute_reference(settings, pick_device(settings.device))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **reference.to_arrays())
    return buffer.getvalue()


def reference_from(stored: bytes, place: str = REFERENCE_FILE) -> ReferencePartition:
    """Reads what `reference_file` has made.

    Raises: DataError naming `place` if it is damaged, OldReference if it is of another version.
    """
    try:
        with reading(place, passing=(OldReference,)):
            return ReferencePartition.from_arrays(read_archive(io.BytesIO(stored))[0])
    except OldReference as error:
        raise OldReference(f"{shown_path(place)}: {error}") from None


def plain_config(config: TrialConfig) -> TrialConfig:
    """The trial without its defence."""
    return config.model_copy(update={"model": MODELS[config.model.name].plain(config.model)})


def study_reference(config: TrialConfig) -> ReferencePartition:
    """The reference partition of the tuning part, as it was provided, or computed and kept by this process.

    Raises: ValueError if no plain model is fit to be a reference.
    """
    if _provided.source is not None:
        return _provided.source()
    key = plain_config(config).model_dump_json()
    if _provided.kept is None or _provided.kept[0] != key:
        _provided.kept = (key, compute_reference(config, pick_device(config.device)))
    return _provided.kept[1]


def compute_reference(config: TrialConfig, device: torch.device) -> ReferencePartition:
    """Trains the plain models, takes their vote, and hears voters of other families; no label is read.

    Plain models that are not among the better half object like the others.

    Args:   config: with `selection`.
    Raises: ValueError if `selection` is missing, or no plain model is fit to be a reference.
    """
    if config.selection is None:
        raise ValueError("trial.selection must be given for a reference partition")
    plain = plain_config(config)
    parts = without_labels(cached_parts(plain.dataset, "strict"))
    train, tune = parts["train"].data.to(device), parts["tune"].data.to(device)
    runs = []
    for number in range(config.selection.reference_runs):
        model = _trained(plain, train, derive_seed(config.seed, "reference", number))
        if model is None:
            continue  # a run that diverged has no vote
        with inference_target(model):
            clusters = assign(model, tune.views, plain.evaluation.batch_size)
            loss = clean_clustering_loss(model, tune.views, plain.batch_size)
        fusion = getattr(model, "fusion", None)
        weights = getattr(fusion, "weights", None)
        use = None if weights is None else tuple(weights.detach().flatten().softmax(0).tolist())
        runs.append(PlainRun(clusters=clusters, loss=loss, view_use=use))
    reference = reference_partition(runs, tune.n_clusters)
    voters = [Voter(run.clusters) for place, run in enumerate(runs) if place not in reference.kept]
    voters += _simvc_voters(plain, train, tune)
    views = [view.cpu().numpy() for view in tune.views]
    voters += view_voters(views, reference.clusters, tune.n_clusters, config.seed)
    return with_objections(reference, voters, tune.n_clusters)


def _trained(config: TrialConfig, train: MultiViewDataset, seed: int) -> nn.Module | None:
    """A model as a trial would train it, None if it diverges. Raises: ValueError if it cannot be built."""
    method = MODELS[config.model.name]
    model = build_model(config, "strict", train.view_shapes, train.n_clusters, seed).to(train.views[0].device)
    stages = method.stages(config.model, config.epochs)
    trainer = Trainer(model, stages, train.views, batch_size=config.batch_size, seed=seed, precision=config.precision)
    try:
        while not trainer.finished:
            trainer.run_epoch()
    except NonFiniteLoss:
        return None
    calibrate(method, model, train.views, seed)
    return model


def _simvc_voters(plain: TrialConfig, train: MultiViewDataset, tune: MultiViewDataset) -> list[Voter]:
    """SiMVC with the encoders and the learning rate of the plain models, where these are of another method that has
    them; none where its encoders do not fit the views."""
    if plain.model.name == "simvc":
        return []
    shared = {field.name: getattr(plain.model, field.name, None) for field in fields(SiMVCConfig)}
    model = SiMVCConfig(**{name: value for name, value in shared.items() if value is not None} | {"name": "simvc"})
    config = plain.model_copy(update={"model": model})
    voters = []
    for number in range(SIMVC_RUNS):
        try:
            network = _trained(config, train, derive_seed(plain.seed, "voter", "simvc", number))
        except ValueError:
            return []
        if network is not None:
            with inference_target(network):
                voters.append(Voter(assign(network, tune.views, config.evaluation.batch_size)))
    return voters
