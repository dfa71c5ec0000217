"""What `study.evaluate` is asked to do, checked before anything long begins."""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ardmvc_core.ranges import Range, shown
from study.places import EVALUATIONS
from study.robustness.target import Target, find_target
from study.spec.yaml_file import SpecError
from trainables.places import folder_fault

if TYPE_CHECKING:
    from torch import nn

    from ardmvc_core.data.dataset import Part
    from ardmvc_core.evaluation.budget import ResolvedBudget
    from trainables.config import TrialConfig
    from trainables.saved_trial import SavedFacts


PARTS = ("tune", "score")

LEAST_SAMPLES = 2
"""Intervals over samples need two, and so does the training of a surrogate."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request in which nothing is wrong, with all that it needs in memory."""

    target: Target
    model: "nn.Module"
    config: "TrialConfig"
    parts: "dict[str, Part]"
    """Of the strict protocol, without labels where these are locked."""
    budgets: "tuple[ResolvedBudget, ...]"
    """Resolved; one report each."""
    folders: tuple[Path, ...]
    """One for each report; not made yet."""
    surrogates: int
    device: Any
    locked: bool
    """Whether the trial's labels are locked."""
    entropy_reference: float
    """H_ref of check C19: that of the study's reference partition, or of a balanced one where it has none."""


def check_flags(given: argparse.Namespace) -> None:
    """Everything that needs no model. Raises: SpecError with a line for each fault."""
    from ardmvc_core.attacks.tiers import check_tier

    faults = []
    try:
        check_tier(given.tier)
    except ValueError as error:
        faults.append(f"--tier: {error}")
    if given.part not in PARTS:
        faults.append(f"--part: must be one of {', '.join(PARTS)}, got {given.part!r}")
    for flag, kind in (("eps", float), ("views", int)):
        try:
            setattr(given, flag, _numbers(getattr(given, flag), kind))
        except ValueError:
            example = "0.05,0.1" if flag == "eps" else "0,1"
            faults.append(f"--{flag}: must be numbers such as {example}, got {getattr(given, flag)!r}")
    allowed = {
        "l2": Range(0, 1, above=True),
        "samples": Range(LEAST_SAMPLES, 10**9),
        "seed": Range(0, 2**63 - 1),
        "repeat": Range(0, 999),
        "surrogates": Range(0, 100),
        "certify": Range(0, 100, above=True),
    }
    for flag, numbers in allowed.items():
        number = getattr(given, flag)
        if number is not None and number not in numbers:
            faults.append(f"--{flag}: must be in {numbers}, got {shown(number)}")
    if faults:
        raise SpecError(faults)


def _numbers(text: str | None, kind: Callable[[str], Any]) -> tuple[Any, ...] | None:
    return None if text is None else tuple(kind(entry) for entry in text.split(","))


def prepare(given: argparse.Namespace) -> Request:
    """Raises: UserError for whatever keeps the request from being met."""
    from trainables.building import pick_device
    from trainables.saved_trial import saved_facts

    target = find_target(given.model, given.storage)
    try:
        facts = saved_facts(target.checkpoint, given.data)
    except (OSError, ValueError) as error:
        raise SpecError([" ".join(str(error).split())]) from error
    config = facts.config
    if config.protocol == "official":
        raise SpecError(
            [
                f"{target.reference}: strict evaluation needs a model that was trained on the strict parts (protocol "
                "strict or both); this one is of protocol official, whose training half overlaps them"
            ]
        )
    if not given.repeat < facts.models:
        raise SpecError([f"--repeat: must be in 0..{facts.models - 1}, the trial's models, got {given.repeat}"])
    device = pick_device("auto")
    parts = _parts(config)
    model = _load(target, facts, given.repeat, device)
    budgets = _budgets(given, config, len(parts[given.part].data.views))
    surrogates = _surrogates(given, parts, budgets[0])
    folders = _folders(given, target, budgets)
    locked = config.selection is not None and config.selection.lock_labels
    if locked:
        parts = {name: replace(part, data=replace(part.data, labels=None)) for name, part in parts.items()}
    return Request(
        target=target,
        model=model,
        config=config,
        parts=parts,
        budgets=budgets,
        folders=folders,
        surrogates=surrogates,
        device=device,
        locked=locked,
        entropy_reference=facts.reference_entropy or 1.0,
    )


def _parts(config: "TrialConfig") -> "dict[str, Part]":
    """Parts of the strict protocol. Raises: UserError if they cannot be read."""
    from ardmvc_core.data import check_dataset
    from trainables.data_parts import cached_parts, forget_parts

    forget_parts()
    if faults := check_dataset(config.dataset):
        raise SpecError(faults)
    return dict(cached_parts(config.dataset, "strict"))


def _surrogates(given: argparse.Namespace, parts: "dict[str, Part]", budget: "ResolvedBudget") -> int:
    """How many are trained. Raises: SpecError if a part has too few samples, for them or to be scored."""
    from ardmvc_core.evaluation.budget import too_few
    from trainables.surrogates import COUNTS

    scored, attacker = parts[given.part].data, parts["attacker"].data
    if fault := too_few(budget.scored(len(scored)), scored.n_clusters):
        raise SpecError([f"--samples: {fault} (the part {given.part} has {len(scored)})"])
    count = COUNTS.get(given.tier, 0) if given.surrogates is None else given.surrogates
    if count and len(attacker) < LEAST_SAMPLES:
        raise SpecError([f"--surrogates: the attacker part has {len(attacker)} samples, too few"])
    return int(count)


def _budgets(given: argparse.Namespace, config: "TrialConfig", n_views: int) -> "tuple[ResolvedBudget, ...]":
    """The trial's own budget with the tier, and with what the flags say, for each ε.

    Raises: SpecError naming the flag.
    """
    own = config.evaluation
    changes: dict[str, Any] = {"tier": given.tier, "further_attacks": ()}
    for flag, field in (("samples", "samples"), ("seed", "seed"), ("views", "attacked_views"), ("l2", "l2_eps")):
        if getattr(given, flag) is not None:
            changes[field] = getattr(given, flag)
    found = []
    for eps in given.eps or (None,):
        if eps is not None:
            changes["eps"] = eps
        try:
            found.append(replace(own, **changes).resolve(config.dataset.name, n_views))
        except ValueError as error:
            text = str(error)
            for field, flag in (("attacked_views", "--views"), ("eps", "--eps")):
                if text.startswith(f"{field} "):
                    text = f"{flag}: {text.removeprefix(field).strip()}"
            raise SpecError([text]) from error
    if len({budget.digest() for budget in found}) < len(found):
        raise SpecError([f"--eps: must be distinct, got {', '.join(map(str, given.eps))}"])
    return tuple(found)


def _load(target: Target, facts: "SavedFacts", repeat: int, device: Any) -> "nn.Module":
    """The model, in inference mode.

    Raises: SpecError if its weights are damaged, not finite, or lack centroids, or the data are not those of its trial.
    """
    from ardmvc_core.networks.kmeans import KMeansHead
    from trainables.building import load_model

    centroids = "cannot be attacked: its k-means head has no stored centroids"
    try:
        model, _ = load_model(target.checkpoint, device, repeat, facts)
    except (OSError, ValueError) as error:
        if re.search(r"(centroids|temperature) is missing", str(error)):
            raise SpecError([f"{target.reference} {centroids}"]) from error
        raise SpecError([" ".join(str(error).split())]) from error
    for module in model.modules():
        # Until centroids are fitted the temperature is exactly 1; fitted, it is a median of squared distances.
        if isinstance(module, KMeansHead) and float(module.temperature) == 1.0:
            raise SpecError([f"{target.reference} {centroids} (they were never fitted: its trial ended too early)"])
    return model


def _folders(given: argparse.Namespace, target: Target, budgets: "Sequence[ResolvedBudget]") -> tuple[Path, ...]:
    """Where each report goes. Raises: SpecError if it cannot be written there."""
    if given.out is None:
        root = Path("runs" if "://" in given.storage else given.storage) / EVALUATIONS
        name = target.name + ("" if given.part == "tune" else f"-{given.part}")
        name += f"-repeat{given.repeat}" if given.repeat else ""
        folders = [root / f"{name}-{budget.digest()}" for budget in budgets]
    else:
        root = Path(given.out)
        folders = [root / f"eps_{budget.eps:g}" for budget in budgets] if len(budgets) > 1 else [root]
    for folder in folders:
        if fault := folder_fault(folder):
            raise SpecError([f"the report cannot be written to {folder}: {fault}"])
    return tuple(folders)
