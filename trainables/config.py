"""What defines one trial, complete: from these values alone it can be run again, without Ray."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ardmvc_core.attacks.generators.gan import GANConfig
from ardmvc_core.data import DatasetConfig, Protocol
from ardmvc_core.evaluation.budget import EvalBudget, ResolvedBudget
from ardmvc_core.models import MODELS
from ardmvc_core.ranges import Range, check_values
from trainables.places import divided

if TYPE_CHECKING:
    ModelConfig = Any
else:  # the union is read off the one table of models, so a new row there needs no second line here
    ModelConfig = Annotated[Union[tuple(method.config for method in MODELS.values())], Field(discriminator="name")]  # noqa: UP007

Device = Literal["auto", "cpu", "cuda"]

_BUDGET = "the evaluation budget is the ruler that trials are compared by, so it never follows the search"
_PLACE = "it says where a trial runs or reads, not what it is"


def protocols_of(protocol: Literal["strict", "official", "both"]) -> tuple[Protocol, ...]:
    """The protocols that a trial trains and scores models under, the decisive one first."""
    return ("strict", "official") if protocol == "both" else (protocol,)


PLACES = ("device", "data", "dataset.root", "dataset.path")
"""Dotted paths of a trial that say only where it runs, and where its data lie: data are known by their content."""


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's config as JSON without `PLACES`, and without the storage that a saved model lies in."""
    found = {key: value for key, value in config.items() if key not in PLACES}
    if "dataset" in found:
        found["dataset"] = {key: value for key, value in found["dataset"].items() if f"dataset.{key}" not in PLACES}
    if "checkpoint" in found:
        found["checkpoint"] = divided(found["checkpoint"])[1]
    return found


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Scores without labels, against the vote of plain models."""

    reference_runs: Annotated[int, Range(2, 1_000)] = 6
    """Plain models that are trained once a study, ≥ 2; the better half of those that do not collapse vote."""
    lock_labels: bool = False
    """Whether trials see no labels at all: then they report nothing that needs them, until `study.report --unblind`."""

    def __post_init__(self) -> None:
        check_values(self)


class Repeats(BaseModel):
    """Seeds that are trained one after another, as many as a study finds worth it: noise costs no more than it must."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int = Field(default=1, ge=1, le=1_000)
    """Seeds that every trial is trained with, side by side."""
    most: int = Field(default=5, ge=1, le=1_000)
    """Seeds that a trial may come to; every further one is trained by itself."""

    @model_validator(mode="after")
    def _check_order(self) -> "Repeats":
        if self.most < self.first:
            raise ValueError(f"most must be ≥ first = {self.first}, got {self.most}")
        return self


class TrialConfig(BaseModel):
    """A model trained on a data set, and how it is scored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    not_searchable: ClassVar[Mapping[str, str]] = {
        "evaluation": _BUDGET,
        "protocol": _BUDGET,
        "score_on": _BUDGET,
        "selection": _BUDGET,
        "evaluate_every": "rounds of different length cannot be compared or pruned against each other",
        "seed": "a search over seeds selects luck; `repeats` averages over them",
        "repeats": "trials averaged over different numbers of seeds cannot be compared",
        "device": _PLACE,
        "dataset.root": _PLACE,
        "dataset": "it is what trials are measured on, and other samples are another ruler",
    }
    """Dotted path (with all below it) that a search may not touch → why. A baseline may name a data set."""

    seed: int = Field(default=7, ge=0, lt=2**63)
    """Master seed; every random stream of the trial is derived from it and a name."""
    device: Device = "auto"
    """`auto` takes the GPU that the trial was given, and the CPU where there is none."""
    protocol: Literal["strict", "official", "both"] = "strict"
    """`strict` decides and is the headline; `official` repeats the published data and way of scoring, for Table 1 only;
    `both` trains and scores a model under each, one beside the other."""
    dataset: DatasetConfig
    """The data set and how it is made."""
    model: ModelConfig
    """The method; its `name` says which of MODELS."""
    epochs: int = Field(default=20, ge=1, le=100_000)
    """Epochs of the method's main training; pre-training has its own number, in the model's config."""
    batch_size: int = Field(default=100, ge=2, le=10**6)
    """Samples per optimizer step; contrastive and sample-pair terms need at least two."""
    repeats: Annotated[int, Field(ge=1, le=1_000)] | Repeats = 1
    """Seeds that the trial is trained with and averaged over; `{first: 1, most: 5}` begins with one, and a study gives
    further ones to the trials that may be the best."""
    evaluate_every: int = Field(default=5, ge=1, le=100_000)
    """Epochs per round: after each round the trial reports, is checkpointed and may be pruned."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` trains under autocast: many times slower than fp32 on a processor that has no bf16 of its own, and whether
    it ends where fp32 does is not shown yet."""
    evaluation: EvalBudget = EvalBudget()
    """Attacks, ε, steps and samples of the scoring; frozen for the whole study."""
    score_on: Literal["tune", "score"] = "tune"
    """The part that the strict protocol ends with; `score` is kept for `study.confirm`, which counts its uses."""
    selection: SelectionConfig | None = None
    """Reports `select/…`, scores that need no labels; None: only those that do."""

    @model_validator(mode="after")
    def _check_selection(self) -> "TrialConfig":
        if self.selection is not None and self.protocol == "official":
            raise ValueError("selection needs the tuning part of `protocol: strict` or both, got official")
        if self.labels_locked and self.protocol == "both":
            raise ValueError(
                "selection.lock_labels needs protocol strict: the official one scores with labels, got both"
            )
        if self.selection is not None and self.score_on == "score":
            raise ValueError("selection must be made on the tuning part, and score_on is 'score'")
        return self

    @model_validator(mode="after")
    def _check_budget(self) -> "TrialConfig":
        try:
            eps = self.resolved_budget().eps
        except ValueError as error:
            raise ValueError(f"evaluation.{error}") from None
        # Wherever a trial's config is stored or shown, ε is a number.
        object.__setattr__(self, "evaluation", replace(self.evaluation, eps=eps))
        return self

    @model_validator(mode="after")
    def _check_repeats(self) -> "TrialConfig":
        if isinstance(self.repeats, Repeats) and self.protocol == "both":
            raise ValueError("repeats must be a whole number with protocol both, got {first, most}")
        return self

    @property
    def legs(self) -> tuple[int, ...]:
        """Seeds of each leg of the trial: those of a leg are trained side by side, one leg after another."""
        if isinstance(self.repeats, int):
            return (self.repeats,)
        return (self.repeats.first, *[1] * (self.repeats.most - self.repeats.first))

    @property
    def seeds(self) -> int:
        """Seeds that the trial comes to at most."""
        return sum(self.legs)

    @property
    def labels_locked(self) -> bool:
        """Whether trials see no labels."""
        return self.selection is not None and self.selection.lock_labels

    def resolved_budget(self, n_views: int | None = None) -> ResolvedBudget:
        """The evaluation with the data set's ε where none is given.

        Args: n_views: None before the data are loaded; then what names single views cannot be checked against them.
        Raises: ValueError if it does not fit the data set.
        """
        eps, attacked = self.evaluation.eps, self.evaluation.attacked_views
        if n_views is None:
            n_views = len(eps) if isinstance(eps, tuple) else 1 + max(attacked or (0,))
        return self.evaluation.resolve(self.dataset.name, n_views)

    def model_under(self, protocol: Protocol) -> Any:
        """The model as a protocol has it: no published model mutes units. Training is the same with and without."""
        if protocol == "official" and hasattr(self.model, "mute_dead_units"):
            return replace(self.model, mute_dead_units=False)
        return self.model

    @property
    def total_epochs(self) -> int:
        """Epochs over all stages, of one seed."""
        return sum(stage.epochs for stage in MODELS[self.model.name].stages(self.model, self.epochs))

    @property
    def leg_rounds(self) -> int:
        """Reports of one leg; its last round may be shorter, and holds the whole evaluation."""
        return math.ceil(self.total_epochs / self.evaluate_every)

    @property
    def rounds(self) -> int:
        """Reports of a trial that is not stopped early."""
        return self.leg_rounds * len(self.legs)


class AttackTrialConfig(BaseModel):
    """A generative attack fitted against one saved model: the attacker's own hyperparameters are what is searched."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    not_searchable: ClassVar[Mapping[str, str]] = {
        "evaluation": _BUDGET,
        "attack.eps": _BUDGET,
        "checkpoint": "attackers are compared on one saved model",
        "data": _PLACE,
        "evaluate_every": "rounds of different length cannot be compared or pruned against each other",
        "seed": "a search over seeds selects luck",
        "device": _PLACE,
    }
    """Dotted path (with all below it) that a search may not touch → why."""

    seed: int = Field(default=7, ge=0, lt=2**63)
    """Master seed of the attacker; the model's own is in its checkpoint."""
    device: Device = "auto"
    """`auto` takes the GPU that the trial was given, and the CPU where there is none."""
    checkpoint: str = Field(min_length=1)
    """Folder of a model trial's checkpoint: holds the weights and the trial's config, and with it the data set."""
    data: str | None = None
    """Where the model's data lie now, the file or the folder; None: where its trial has read them."""
    attack: GANConfig = GANConfig()
    """Losses, weights μ1 μ2 μ3 and training of the generators."""
    evaluation: EvalBudget = EvalBudget()
    """ε and the samples that the attack is scored on; None follows the checkpoint's data set."""
    evaluate_every: int = Field(default=5, ge=1, le=100_000)
    """Attacker epochs per round."""

    def against(self, target: TrialConfig) -> "AttackTrialConfig":
        """The config with ε as a number: where none is given, that of the target's data set.

        Args: target: of the trial whose model is attacked.
        Raises: ValueError if the evaluation does not fit the data set.
        """
        eps = target.model_copy(update={"evaluation": self.evaluation}).resolved_budget().eps
        return self.model_copy(update={"evaluation": replace(self.evaluation, eps=eps)})

    @property
    def rounds(self) -> int:
        """Reports of a trial that is not stopped early; the last round may be shorter."""
        return math.ceil(self.attack.epochs / self.evaluate_every)

    leg_rounds = rounds
    """An attacker has one seed."""
