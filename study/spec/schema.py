"""The sections of a study's YAML that stand for themselves: objective, sampler, pruner, limits, resources, storage."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ardmvc_core.places import expanded
from study.secrets import Address, has_login


class Section(BaseModel):
    """Read-only, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Objective(Section):
    """What a study optimises."""

    metric: str
    """Name of a metric that every trial's last round reports."""
    mode: Literal["max", "min"]
    """Whether more or less of it is better."""
    floors: dict[str, Annotated[float, Field(ge=-1, le=1)]] = {}
    """Metric → what a trial must have at least of it to be ranked: `{clean/acc: 0.6}`."""


class AutoSampler(Section):
    """`tpe`, or where trials begin in cohorts, with one objective, `gp_noise`."""

    name: Literal["auto"] = "auto"


class RandomSampler(Section):
    """Independent uniform draws."""

    name: Literal["random"]


class SobolSampler(Section):
    """Scrambled Sobol sequence: even cover of the space, for sensitivity figures."""

    name: Literal["sobol"]


class TPESampler(Section):
    """Tree-structured Parzen estimator."""

    name: Literal["tpe"]
    startup_trials: int = Field(default=10, ge=0, le=10**6)
    """Trials (baselines inside the space included) before the model takes over from random draws."""
    multivariate: bool = False
    """Whether parameters are modelled together; worth it when they interact."""
    history: int = Field(default=200, ge=50, le=10**6)
    """Finished trials that inform the model: the best and the newest of them (at most as many open ones beside them).
    It keeps the time of a draw from growing with the study; a study of no more trials is drawn as if without it."""


class GPSampler(Section):
    """Gaussian process; for few, costly trials."""

    name: Literal["gp"]
    startup_trials: int = Field(default=10, ge=1, le=10**6)
    """Trials before the model takes over from random draws."""


class NoisyGPSampler(Section):
    """Gaussian process that knows of rounds and seeds: trials that were stopped inform it, and one that was lucky once
    does not lead it."""

    name: Literal["gp_noise"]
    startup_trials: int = Field(default=8, ge=1, le=10**6)
    """Trials (baselines inside the space included) before the model takes over from a Sobol sequence."""


class NSGA2Sampler(Section):
    """Genetic search; for two objectives and many trials."""

    name: Literal["nsga2"]
    population_size: int = Field(default=50, ge=2, le=10**6)
    """Trials per generation."""


class NoPruner(Section):
    """Every trial runs to its last round."""

    name: Literal["none"]


class HalvingPruner(Section):
    """Asynchronous successive halving: of the trials that reach a rung, the best share goes on."""

    name: Literal["successive_halving"]
    min_rounds: int = Field(default=1, ge=1, le=100_000)
    """Rounds that every trial gets."""
    reduction_factor: int = Field(default=2, ge=2, le=1_000)
    """One trial in so many passes each rung."""


class HyperbandPruner(Section):
    """Successive halving at several minimum budgets side by side."""

    name: Literal["hyperband"]
    min_rounds: int = Field(default=1, ge=1, le=100_000)
    """Rounds that every trial of the hardest bracket gets."""
    reduction_factor: int = Field(default=2, ge=2, le=1_000)
    """One trial in so many passes each rung."""


class MedianPruner(Section):
    """Stops a trial that is worse than the median of the others at the same round."""

    name: Literal["median"]
    startup_trials: int = Field(default=5, ge=0, le=10**6)
    """Finished trials before any is stopped."""
    warmup_rounds: int = Field(default=1, ge=0, le=100_000)
    """Rounds of each trial before it may be stopped."""


Sampler = Annotated[
    AutoSampler | RandomSampler | SobolSampler | TPESampler | GPSampler | NoisyGPSampler | NSGA2Sampler,
    Field(discriminator="name"),
]
Pruner = Annotated[NoPruner | HalvingPruner | HyperbandPruner | MedianPruner, Field(discriminator="name")]


class SearchRule(Section):
    """How a search spends its budget, where trials begin in cohorts: with `trial.repeats: {first, most}`, or with rungs
    that are given here."""

    rungs: Literal["auto", "none"] | tuple[Annotated[int, Field(ge=1, le=100_000)], ...] = "auto"
    """Rounds after which the trials of a cohort rest, and the best of them go on; auto: a quarter and half of a seed's
    training."""
    keep: float = Field(default=0.5, gt=0, le=1)
    """Share of a cohort that goes on at a rung, baselines aside: they always do."""
    cohort: Literal["auto"] | Annotated[int, Field(ge=1, le=10**6)] = "auto"
    """Trials that begin together, the later ones from what the cohorts before have shown; auto: eight, or two for each
    that runs side by side."""
    race: bool = True
    """Whether trials that may be the best get further seeds, up to `trial.repeats.most`."""
    confidence: float = Field(default=0.9, ge=0.5, lt=1)
    """The race ends when a trial is the best with so much probability."""


class Limits(Section):
    """When a study is done, and what it puts up with on the way."""

    trials: int = Field(default=20, ge=1, le=10**6)
    """Trials in all, baselines included; raise it to extend a finished study."""
    passes: int | None = Field(default=None, ge=1, le=10**15)
    """Forward and backward passes of one batch each, over all trials, that are never exceeded (`--dry-run` says what a
    trial takes); None: no limit."""
    hours: float | None = Field(default=None, gt=0, le=100_000)
    """Wall-clock hours of all drivers, paused or not, after which no more trials start; None: no limit."""
    failures: int = Field(default=3, ge=0, le=10**6)
    """Failed trials that are put up with."""
    first_failures: int = Field(default=3, ge=0, le=10**6)
    """If the first so many trials of a driver all fail, the study stops: something common is wrong. 0: never."""
    patience: int | None = Field(default=None, ge=1, le=10**6)
    """Stops when so many trials in a row were finished without a better one; None: never."""
    concurrent: int = Field(default=1, ge=1, le=10_000)
    """Trials that run side by side, if the resources allow; on a cluster that grows, how far it may."""
    round_minutes: float | None = Field(default=None, ge=0, le=100_000)
    """A round that takes longer is ended as hanging, and the trial tried again from its checkpoint; so is one whose
    worker is silent as long, or 10 minutes. None: ten times the longest round seen so far, at least 10 minutes; an hour
    for a kind of round (last or not) that was not seen yet. 0: no limit."""
    outage_minutes: float = Field(default=10, ge=0, le=100_000)
    """How long a study database or a storage that does not answer is waited for."""


LEAST_SHARE = 0.001
"""Of a processor; Ray gives none of less than a tenth of it."""


class Resources(Section):
    """What one trial takes."""

    cpu: float = Field(default=1, ge=LEAST_SHARE, le=10_000)
    """Cores; also the number of threads that a trial computes with."""
    gpu: float = Field(default=0, ge=0, le=10_000)
    """GPUs; a fraction lets trials share one."""

    @field_validator("gpu")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if 0 < value < LEAST_SHARE:
            raise ValueError(f"must be 0 or ≥ {LEAST_SHARE}, got {value:g}")
        if value > 1 and not float(value).is_integer():
            raise ValueError(f"must be whole above 1, since only one GPU can be shared, got {value:g}")
        return value


def storage_place(value: str) -> str:
    """A storage's folder or URI, `~` and `$NAME` replaced. Raises: ValueError if it is none."""
    value = expanded(value)
    kind, mark, rest = value.partition("://")
    if mark and kind not in ("s3", "gs"):
        raise ValueError(f"must be a folder, or begin with s3:// or gs://, got {str(Address(value))!r}")
    if has_login(value):
        raise ValueError("keys and options of a storage come from the environment and not from its address")
    if mark and not rest.strip("/"):
        raise ValueError(f"must name a bucket or folder, got {value!r}")
    return value


class Storage(Section):
    """Where a study leaves its files."""

    path: str = Field(default="runs", min_length=1)
    """Folder of database, checkpoints and artifacts, relative to where the command runs; or a URI such as
    `s3://bucket/prefix`, which takes the checkpoints only."""

    @field_validator("path")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        return storage_place(value)

    @property
    def remote(self) -> bool:
        """Whether the path is a URI."""
        return "://" in self.path
