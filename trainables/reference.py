"""The reference partition that label-free scores are read against: computed once a study, from plain models.

A plain model is the trial's own without its defence (all weights of its defence are 0), trained with seeds of its own.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ardmvc_core.attacks.target import assign, inference_target
from ardmvc_core.data.reading import read_archive, reading
from ardmvc_core.models import MODELS
from ardmvc_core.seeding import derive_seed
from ardmvc_core.selection.criteria import clean_clustering_loss
from ardmvc_core.selection.reference_partition import PlainRun, ReferencePartition, reference_partition
from ardmvc_core.training import NonFiniteLoss, Trainer, calibrate
from trainables.building import build_model, pick_device
from trainables.config import TrialConfig
from trainables.data_parts import cached_parts, without_labels

REFERENCE_FILE = "reference.npz"


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
    """Reads what `reference_file` has made. Raises: DataError naming `place` if it is damaged."""
    with reading(place):
        return ReferencePartition.from_arrays(read_archive(io.BytesIO(stored))[0])


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
    """Trains the plain models and takes their vote; no label is read.

    Args: config: with `selection`.
    Raises: ValueError if `selection` is missing, or no plain model is fit to be a reference.
    """
    if config.selection is None:
        raise ValueError("trial.selection must be given for a reference partition")
    plain = plain_config(config)
    parts = without_labels(cached_parts(plain.dataset, "strict"))
    train, tune = parts["train"].data.to(device), parts["tune"].data.to(device)
    method = MODELS[plain.model.name]
    budget = plain.evaluation
    runs = []
    for number in range(config.selection.reference_runs):
        seed = derive_seed(config.seed, "reference", number)
        model = build_model(plain, "strict", train.view_shapes, train.n_clusters, seed).to(device)
        stages = method.stages(plain.model, plain.epochs)
        trainer = Trainer(model, stages, train.views, batch_size=plain.batch_size, seed=seed, precision=plain.precision)
        try:
            while not trainer.finished:
                trainer.run_epoch()
        except NonFiniteLoss:
            continue  # a run that diverged has no vote
        calibrate(method, model, train.views, seed)
        with inference_target(model):
            clusters = assign(model, tune.views, budget.batch_size)
            loss = clean_clustering_loss(model, tune.views, plain.batch_size)
        fusion = getattr(model, "fusion", None)
        weights = getattr(fusion, "weights", None)
        use = None if weights is None else tuple(weights.detach().flatten().softmax(0).tolist())
        runs.append(PlainRun(clusters=clusters, loss=loss, view_use=use))
    return reference_partition(runs, tune.n_clusters)
