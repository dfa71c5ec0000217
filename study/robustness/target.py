"""Which model is meant: a checkpoint, a study's trial, an MLflow run or registered model."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.places import absolute
from study.spec.yaml_file import SpecError
from trainables.places import divided, place_of


@dataclass(frozen=True, kw_only=True)
class Target:
    """The saved model that was asked for."""

    reference: str
    """As it was asked for."""
    checkpoint: str
    """Folder or URI."""
    name: str
    """For the report's folder."""
    study: str = ""
    """That it was named through; empty for a folder."""


def find_target(reference: str, storage: str) -> Target:
    """The checkpoint that `reference` names.

    Args: reference: as MODEL_OR_RUN. storage: the studies' storage folder.
    Raises: LedgerError or SpecError naming what is missing.
    """
    if re.fullmatch(r"runs:/[^/]+", reference) or (
        re.fullmatch(r"[0-9a-f]{32}", reference) and not Path(reference).exists()
    ):
        named = _of_run(reference.removeprefix("runs:/"), storage)
        return Target(
            reference=reference, checkpoint=_checkpoint(named, storage), name=_slug(named), study=_study_of(named)
        )
    if reference.startswith(("runs:", "models:")):
        parts = re.fullmatch(r"models:/([^/@]+)/(\d+)", reference)
        if parts is None:
            raise SpecError([f"{reference}: must be runs:/ID or models:/NAME/VERSION, with a number as version"])
        source = _source_of(parts[1], parts[2], storage)
        return Target(
            reference=reference, checkpoint=_checkpoint(source, storage), name=_slug(f"{parts[1]}-{parts[2]}")
        )
    return Target(
        reference=reference,
        checkpoint=_checkpoint(reference, storage),
        name=_slug(reference),
        study=_study_of(reference),
    )


def _study_of(reference: str) -> str:
    prefix, _, name = reference.partition(":")
    return name.partition("/")[0] if prefix == "study" else ""


def _checkpoint(reference: str, storage: str) -> str:
    from study.database.engine import LedgerError
    from study.planning.saved_models import PREFIX, find_checkpoint

    if not reference.startswith(PREFIX):
        # A file of a checkpoint stands for its folder.
        reference = re.sub(r"/(state\.pt|config\.json)$", "", reference)
    try:
        return find_checkpoint(reference, storage)
    except LedgerError as error:
        raise LedgerError(str(error).removeprefix("trial.checkpoint: ")) from error


def _slug(reference: str) -> str:
    """The last names of a reference, as one."""
    names = reference.removeprefix("study:").rstrip("/").split("/")
    return re.sub(r"[^\w.-]+", "-", "-".join(names[-2:])).strip("-.") or "model"


def _of_run(run_id: str, storage: str) -> str:
    """The study's trial that an MLflow run shows, as `study:NAME/NUMBER`; of a study's own run its best one."""
    from study.database.ledger import Ledger

    with _mlflow(storage) as client:
        tags = client.get_run(run_id).data.tags
    study, number = tags.get("study"), tags.get("trial_number")
    if not study or (number is None and tags.get("role") != "study"):
        raise SpecError([f"the MLflow run {run_id} is of no study: it has no tags study and trial_number"])
    uid = Ledger.open_existing(study, storage_path=storage).uid
    if tags.get("study_id", uid) != uid:
        raise SpecError(
            [f"the MLflow run {run_id} is of another study {study!r} than the one in this database; give its --storage"]
        )
    return f"study:{study}" if number is None else f"study:{study}/{number}"


def _source_of(name: str, version: str, storage: str) -> str:
    """The checkpoint folder that a registered model was made of."""
    from study.tracking.address import local_path

    with _mlflow(storage) as client:
        source = str(client.get_model_version_download_uri(name, version))
    if source.startswith(("runs:", "models:", "mlflow-artifacts:")):
        raise SpecError(
            [f"models:/{name}/{version} was registered from {source}; its source must be the folder of a checkpoint"]
        )
    source = str(local_path(source)) if source.startswith("file:") else source
    return place_of(*divided(source), absolute(storage))


@contextmanager
def _mlflow(storage: str) -> Iterator[Any]:
    """MLflow's client. Raises: SpecError, for what the block meets too."""
    from study.places import sqlite_file
    from study.tracking.address import local_fault, proxy_hint, tracking_uri
    from study.tracking.mlflow_client import SETTINGS, make_client, with_settings
    from study.tracking.run_fields import reason_of

    uri = tracking_uri(storage)
    if fault := local_fault(uri):
        raise SpecError([fault])
    file = sqlite_file(uri)
    if file is not None and not os.path.exists(file):
        raise SpecError([f"there is no MLflow database at {file}; give --storage or set MLFLOW_TRACKING_URI"])
    with with_settings(SETTINGS):
        client = make_client(uri)
        try:
            yield client
        except Exception as error:  # whatever it is, the model is not found
            raise SpecError([f"MLflow at {uri}: {reason_of(error)}{proxy_hint(uri)}"]) from error
