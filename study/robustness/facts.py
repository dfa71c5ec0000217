"""What a report says beside its numbers: model, data, surrogates, versions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ardmvc_core.assessment.certificates import Certificates

HEADINGS = {
    "flip": "flip",
    "acc": "ACC (fixed map)",
    "acc_refit": "ACC (refitted map)",
    "nmi": "NMI",
    "ami": "AMI",
    "ari": "ARI",
}


@dataclass(frozen=True, kw_only=True)
class SurrogateFacts:
    """A model that the transfer attack made its points on."""

    method: str
    seed: int
    epochs: int
    agreement: float | None
    """NMI between its clusters and the target's on the scored samples; None if its training failed."""
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was evaluated, and how the numbers came about."""

    reference: str
    """The model as it was asked for."""
    checkpoint: str
    """Folder or URI of its weights."""
    model: str
    """Method."""
    repeat: int
    """Which of the trial's models."""
    dataset: Mapping[str, Any]
    """Settings of the data set."""
    part: str
    """Data part that was scored."""
    parts: Mapping[str, str]
    """Data part → digest of its rows, of those that were used."""
    everyone: bool
    """Whether each attack ran on every sample, and not only on survivors."""
    surrogates: tuple[SurrogateFacts, ...]
    device: str
    versions: Mapping[str, str]
    commit: str | None
    command: str
    seconds: float
    forwards: int
    """Passes of a sample through the target, of the whole report: attacks, curves, subsets and checks."""
    backwards: int
    """Of these, passes that were differentiated."""
    certificates: Certificates | None = None
