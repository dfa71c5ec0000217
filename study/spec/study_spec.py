"""One YAML file as a checked `StudySpec`; everything that is wrong with it is reported at once."""

import json
import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from ardmvc_core.places import expanded
from ardmvc_core.ranges import shown
from study.places import taken_name
from study.records import Goal
from study.spec.distributions import Distribution, as_yaml, describe, without_noise
from study.spec.faults import Fault, every_fault, faults_of, raise_faults, shortened, suggestion
from study.spec.objectives import known_metrics, objection, without_probe
from study.spec.schema import (
    AutoSampler,
    Limits,
    NoisyGPSampler,
    NoPruner,
    Objective,
    Pruner,
    Resources,
    Sampler,
    SearchRule,
    Section,
    Storage,
    TPESampler,
)
from study.spec.space import TrialClass, apply_overrides, build_trial, parse_space, path_faults, range_faults, value_at
from study.spec.yaml_file import LARGEST_FILE, Label, SpecError, read_mapping, replaced, split_setting
from trainables.config import PLACES, AttackTrialConfig, TrialConfig
from trainables.config import identity as trial_identity

TRIAL_CONFIGS: dict[str, TrialClass] = {"model": TrialConfig, "attacker": AttackTrialConfig}

_DECISIVE = ("trainable", "trial.protocol")
"""Keys without which other keys cannot be judged."""

MOST_BASELINES = 10_000
MOST_SETTINGS = 100
"""Flags --set of one command."""
LONGEST_LABEL = 200
"""Bytes of a flag in a message."""

_PLACES = frozenset(PLACES) - {"device"}
"""Settings of a trial that are paths."""

_OPTUNA_NAMES = {"startup_trials": "n_startup_trials"}


class StudySpec(Section):
    """One study, complete: the only input of a sweep."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    """Identity of the study in the database; also a folder name."""
    seed: int = Field(default=7, ge=0, lt=2**63)
    """Seeds the sampler, and the trials that name no seed of their own."""
    trainable: Literal["model", "attacker"] = "model"
    """`model` trains and scores models; `attacker` fits attackers against one saved model."""
    trial: dict[str, Any]
    """Everything that defines one trial, as written; `trial_config` gives the checked form."""
    space: dict[str, Any] = Field(default_factory=dict)
    """Dotted path into `trial` → distribution; `distributions` gives the checked form."""
    baselines: tuple[dict[str, Any], ...] = ()
    """Overrides of trials that run before any draw, so that the table always holds them."""
    objective: tuple[Objective, ...]
    """What is optimised; two of them make a Pareto study."""
    search: SearchRule = SearchRule()
    """Which trials begin, which go on and which get a further seed; `auto` is the default, and `none` gives every trial
    all of its training."""
    sampler: Sampler = AutoSampler()
    """How the next trial is chosen."""
    pruner: Pruner = NoPruner(name="none")
    """Which trials are stopped early."""
    limits: Limits = Limits()
    """When the study is done."""
    resources: Resources = Resources()
    """What one trial takes."""
    storage: Storage = Storage()
    """Where files go."""

    @model_validator(mode="before")
    @classmethod
    def _choose_without_labels(cls, raw: Any) -> Any:
        """Where K is given in place of labels, and no objective: PRA, against a vote of plain models."""
        trial = raw.get("trial") if isinstance(raw, Mapping) and "objective" not in raw else None
        if not isinstance(trial, Mapping) or not isinstance(trial.get("dataset"), Mapping):
            return raw
        if trial["dataset"].get("n_clusters") is None:
            return raw
        return {**raw, "trial": {"selection": {}, **trial}, "objective": {"metric": "select/pra", "mode": "max"}}

    @field_validator("name")
    @classmethod
    def _is_free(cls, value: str) -> str:
        if taken_name(value):
            raise ValueError(f"must be no name of something else in the storage folder, got {value!r}")
        return value

    @field_validator("search", mode="before")
    @classmethod
    def _in_a_word(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in ("auto", "none"):
            raise ValueError(f"must be auto, none, or a mapping, got {value!r}")
        return {} if value == "auto" else {"rungs": "none", "race": False}

    @field_validator("sampler", mode="before")
    @classmethod
    def _sampler_in_a_word(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("trial", mode="before")
    @classmethod
    def _check_trial(cls, value: Any, info: ValidationInfo) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a mapping, got {shown(value)}")
        trial = {"seed": info.data["seed"], **value} if "seed" in info.data else dict(value)
        if "trainable" in info.data:
            raise_faults("trial", build_trial(TRIAL_CONFIGS[info.data["trainable"]], trial, {})[1])
        return trial

    @field_validator("space", mode="before")
    @classmethod
    def _check_space(cls, value: Any, info: ValidationInfo) -> dict[str, Any]:
        space, faults = parse_space({} if value is None else value)
        if "trainable" in info.data:
            config, trial = TRIAL_CONFIGS[info.data["trainable"]], info.data.get("trial", {})
            named = map(str, value) if isinstance(value, Mapping) else ()
            dead = path_faults(named, config, trial, space)
            faults += dead
            if "trial" in info.data:
                lost = {fault.path for fault in dead}
                faults += range_faults({path: space[path] for path in space if path not in lost}, config, trial)
        raise_faults("space", faults)
        return {path: as_yaml(distribution) for path, distribution in space.items()}

    @field_validator("baselines", mode="before")
    @classmethod
    def _check_baselines(cls, value: Any, info: ValidationInfo) -> tuple[dict[str, Any], ...]:
        entries = [] if value is None else value
        if not isinstance(entries, list | tuple) or not all(isinstance(entry, Mapping) for entry in entries):
            raise ValueError(f"must be a list of {{path: value}}, got {shown(value)}")
        if len(entries) > MOST_BASELINES:
            raise ValueError(f"must have at most {MOST_BASELINES} entries, got {len(entries)}")
        if "trainable" not in info.data:
            return tuple(map(dict, entries))
        config, trial = TRIAL_CONFIGS[info.data["trainable"]], info.data.get("trial", {})
        checked: list[dict[str, Any]] = []
        faults: list[Fault] = []
        for number, entry in enumerate(entries):
            named = {"model.name": entry["model.name"]} if "model.name" in entry else {}
            found = path_faults(map(str, entry), config, apply_overrides(trial, named), {}, may=("dataset",))
            skip = bool(found) or "trial" not in info.data
            built, wrong = (None, []) if skip else build_trial(config, trial, entry)
            faults += [fault.under(f"[{number}]") for fault in found + wrong]
            if built is not None:  # the checked values, so that 1, 1.0 and "1" are one baseline
                checked.append({path: value_at(built, path) for path in entry})
        raise_faults("baselines", faults)
        return tuple(checked)

    @field_validator("objective", mode="before")
    @classmethod
    def _check_objective(cls, value: Any, info: ValidationInfo) -> tuple[Objective, ...]:
        entries = list(value) if isinstance(value, list | tuple) else [value]
        if not 1 <= len(entries) <= 2:
            raise ValueError(f"must be one {{metric, mode}} or a list of two, got {len(entries)}")
        known = None
        if "trial" in info.data and "trainable" in info.data:
            known = known_metrics(TRIAL_CONFIGS[info.data["trainable"]].model_validate(info.data["trial"]))
        objectives: list[Objective] = []
        faults: list[Fault] = []
        for number, entry in enumerate(entries):
            objective, found = _objective(entry, known)
            objectives += [objective] if objective else []
            faults += [fault.under(f"[{number}]") if len(entries) > 1 else fault for fault in found]
        if len({objective.metric for objective in objectives}) < len(objectives):
            faults.append(Fault("", f"names {objectives[0].metric} twice"))
        raise_faults("objective", faults)
        return tuple(objectives)

    @model_validator(mode="after")
    def _check_together(self) -> "StudySpec":
        faults = self._search_faults() if self.staged else []
        if len(self.objectives) > 1 and self.pruner.name != "none" and not faults:
            faults.append(Fault("pruner.name", f"must be none with two objectives, got {self.pruner.name}"))
        if self.pruner.name != "none" and not faults and (metric := self._without_probe):
            text = f"must be none with {metric}, which only a trial's last round knows, got {self.pruner.name}"
            faults.append(Fault("pruner.name", text))
        if self.trial.get("device") == "cuda" and self.resources.gpu == 0:
            faults.append(Fault("trial.device", "must be auto or cpu while resources.gpu is 0, got cuda"))
        raise_faults("StudySpec", faults)
        return self

    def _search_faults(self) -> list[Fault]:
        """Of a study whose trials begin in cohorts."""
        faults, leg, rungs = [], self.trial_config({}).leg_rounds, self.search.rungs
        if self.pruner.name != "none":
            text = f"must be none where the rungs of `search` say which trials go on, got {self.pruner.name}"
            faults.append(Fault("pruner.name", text))
        if self.sampler.name == "nsga2":
            text = "must be another where trials begin in cohorts, since nsga2 breeds generations of its own, got nsga2"
            faults.append(Fault("sampler.name", text))
        if self.sampler.name == "gp_noise" and len(self.objectives) > 1:
            faults.append(Fault("sampler.name", "must be tpe or random with two objectives, got gp_noise"))
        if self.limits.patience is not None:
            text = f"must be none where trials rest until the search is over, got {self.limits.patience}"
            faults.append(Fault("limits.patience", text))
        if isinstance(rungs, tuple) and rungs:
            if any(after <= before for before, after in pairwise(rungs)):
                faults.append(Fault("search.rungs", f"must rise, got {list(rungs)}"))
            if max(rungs) >= leg:
                text = f"must be below {leg}, the rounds of a seed's training, got {max(rungs)}"
                faults.append(Fault("search.rungs", text))
            if metric := self._without_probe:
                faults.append(Fault("search.rungs", f"must be none with {metric}, which only the last round knows"))
        return faults

    @property
    def _without_probe(self) -> str:
        """An objective that only a trial's last round knows; empty if there is none."""
        config = self.trial_config({})
        return next((goal.metric for goal in self.objectives if without_probe(config, goal.metric)), "")

    @property
    def staged(self) -> bool:
        """Whether trials begin in cohorts, rest, and go on when the search says so."""
        return isinstance(self.trial.get("repeats"), Mapping) or isinstance(self.search.rungs, tuple)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Rounds after which trials of a cohort rest."""
        if not self.staged or self.search.rungs == "none" or (self.search.rungs == "auto" and self._without_probe):
            return ()
        if isinstance(self.search.rungs, tuple):
            return self.search.rungs
        leg = self.trial_config({}).leg_rounds
        return tuple(sorted({rung for rung in (max(1, leg // 4), leg // 2) if 0 < rung < leg}))

    @property
    def cohort(self) -> int:
        """Trials that begin together."""
        return max(8, 2 * self.limits.concurrent) if self.search.cohort == "auto" else self.search.cohort

    @property
    def objectives(self) -> tuple[Goal, ...]:
        """One objective, or two."""
        return tuple(Goal(one.metric, one.mode, tuple(sorted(one.floors.items()))) for one in self.objective)

    def distributions(self) -> dict[str, Distribution]:
        """Dotted path into the trial → distribution."""
        return parse_space(self.space)[0]

    def pointer(self) -> Callable[[Mapping[str, Any]], Hashable | None]:
        """What the points of the space differ by, up to rounding, as a function of a trial's overrides: equal for
        trials of one point, a baseline that leaves out what it does not change among them; None of a trial that is no
        point of the space."""
        space = self.distributions()
        written = self.trial_config({}) if space else None

        def point(overrides: Mapping[str, Any]) -> Hashable | None:
            if not space or not overrides.keys() <= space.keys():
                return None
            # Another model has other values where an override leaves them out.
            config = self.trial_config(overrides) if any(path.endswith(".name") for path in overrides) else written
            try:
                values = [overrides[path] if path in overrides else value_at(config, path) for path in space]
            except AttributeError:  # of another model
                return None
            inside = all(entry.contains(value) for entry, value in zip(space.values(), values, strict=True))
            return tuple(map(without_noise, values)) if inside else None

        return point

    def point_from(self, settings: Sequence[str]) -> dict[str, Any]:
        """A point of the space, whole. Args: settings: `path=value` of what differs from the trial as written.

        Raises: SpecError with every fault.
        """
        space, given, faults = self.distributions(), dict[str, Any](), list[str]()
        for setting in settings:
            try:
                path, value = split_setting(setting)
            except ValueError as error:
                faults.append(f"{setting}: {error}")
                continue
            if path not in space:
                faults.append(f"{path}: is not searched{suggestion(path, space, known=True)}")
            else:
                given[path] = value
        config = self.trial_config({})
        point = {path: given[path] if path in given else value_at(config, path) for path in space}
        for path, distribution in space.items():
            if not distribution.contains(point[path]):
                whose = "" if path in given else ", which the trial as written has"
                faults.append(f"{path}: must be in {describe(distribution)}, got {point[path]}{whose}")
        if faults:
            raise SpecError(faults)
        return point

    @property
    def points(self) -> int | None:
        """How many points the space has; None: no end of them. Without a space, the trial as written is the only one,
        and none beside a list of baselines."""
        space = self.distributions()
        if not space:
            return 0 if self.baselines else 1
        grids = [distribution.grid() for distribution in space.values()]
        return None if None in grids else math.prod(len(grid) for grid in grids if grid is not None)

    @property
    def trials(self) -> int:
        """How many trials the study comes to: `limits.trials`, or fewer if every point of the space was tried then."""
        if self.points is None:
            return self.limits.trials
        inside = set(map(self.pointer(), self.baselines)) - {None}
        return min(self.limits.trials, len(self.baselines) + self.points - len(inside))

    @property
    def notes(self) -> list[str]:
        """What people should know of the study before it starts, although it is no fault."""
        notes, seen, point = [], dict[Hashable, int](), self.pointer()
        for number, overrides in enumerate(self.baselines):
            key = point(overrides) or frozenset((path, without_noise(value)) for path, value in overrides.items())
            if (first := seen.setdefault(key, number)) != number:
                notes.append(f"baselines[{number}] repeats baselines[{first}]: the same trial will run twice")
        if self.trials < self.limits.trials:
            what = f"the space has {self.points} points" if self.space else "there is no space to search"
            baselines = f", {len(self.baselines)} of them baselines" if self.baselines else ""
            notes.append(
                f"{what}: the study ends after {self.trials} trials{baselines}, not after limits.trials = "
                f"{self.limits.trials}, since none is run twice"
            )
        return notes

    def trial_config(self, overrides: Mapping[str, Any]) -> TrialConfig | AttackTrialConfig:
        """The config of one trial.

        Args: overrides: dotted path → value, sampled or a baseline's.
        Raises: SpecError with every fault of the result.
        """
        config, faults = build_trial(TRIAL_CONFIGS[self.trainable], self.trial, overrides)
        if config is None:
            raise SpecError([str(fault.under("trial")) for fault in faults])
        return config

    def sampler_options(self) -> dict[str, Any]:
        """`name`, and the options under the names of Optuna's constructor."""
        if self.sampler.name == "auto":
            rest = self.staged and len(self.objectives) == 1
            chosen = NoisyGPSampler(name="gp_noise") if rest else TPESampler(name="tpe")
            return self.model_copy(update={"sampler": chosen}).sampler_options()
        if self.sampler.name == "gp_noise":  # our own
            return self.sampler.model_dump()
        return {_OPTUNA_NAMES.get(key, key): value for key, value in self.sampler.model_dump().items()}

    def pruner_options(self) -> dict[str, Any]:
        """`name`, and the options under our names."""
        return self.pruner.model_dump()

    def identity(self) -> dict[str, Any]:
        """What makes trials of two runs comparable, as JSON: a study goes on only with the same. Not where it runs, and
        not where its data lie; what these hold is known once they are read (`study.database.identity`)."""
        whole = self.resolved()
        whole["trial"] = trial_identity(whole["trial"])
        whole["baselines"] = [without_places(overrides) for overrides in whole["baselines"]]
        names = ("name", "seed", "trainable", "trial", "space", "baselines", "objective")
        return {name: whole[name] for name in names}

    def resolved(self) -> dict[str, Any]:
        """The whole spec with every default filled in, as JSON; loading it again gives the same spec."""
        whole = self.model_dump(mode="json")
        whole["trial"] = self.trial_config({}).model_dump(mode="json")
        objectives = [{key: own for key, own in one.items() if own != {}} for one in whole["objective"]]
        whole["objective"] = objectives[0] if len(objectives) == 1 else objectives
        plain: dict[str, Any] = json.loads(json.dumps(whole))
        return plain


def without_places(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides without those that say only where a trial runs, and where its data lie."""
    return {path: value for path, value in overrides.items() if path not in PLACES}


def as_of_today(identity: Mapping[str, Any], spec: StudySpec) -> dict[str, Any]:
    """A stored `StudySpec.identity` with the settings that came after it, at their defaults: what its trials ran with.

    As it is where its trial is no valid one any more, or the model that it attacks is gone.

    Args: spec: the study as it is to go on, which says where data lie now.
    """
    from trainables.saved_trial import saved_facts

    trial = dict(identity["trial"])
    if "dataset" in trial:
        places = {key: value for key, value in spec.trial.get("dataset", {}).items() if f"dataset.{key}" in PLACES}
        trial["dataset"] = {**places, **trial["dataset"]}
    try:
        checked = TRIAL_CONFIGS[identity["trainable"]].model_validate(trial)
        if isinstance(checked, AttackTrialConfig):
            checked = checked.against(saved_facts(checked.checkpoint).config)
    except (OSError, ValueError, KeyError):
        return dict(identity)
    baselines = [without_places(overrides) for overrides in identity["baselines"]]
    return {**identity, "trial": trial_identity(checked.model_dump(mode="json")), "baselines": baselines}


def _objective(raw: Any, known: Collection[str] | None) -> tuple[Objective | None, list[Fault]]:
    """An objective, and what is wrong with it. Args: known: metrics of the trial; None if the trial is faulty."""
    objective, faults = None, []
    try:
        objective = Objective.model_validate(raw)
    except ValidationError as error:
        faults = faults_of(error, Objective)
    metric = raw.get("metric") if isinstance(raw, Mapping) else getattr(objective, "metric", None)
    if known is None:
        return objective, faults
    named = [("metric", metric), *((f"floors.{name}", name) for name in (objective.floors if objective else ()))]
    for path, name in named:
        if isinstance(name, str) and name not in known:
            reason = objection(name)
            what = f"'{name}' {reason}" if reason else f"unknown metric '{name}'"
            faults.append(Fault(path, f"{what}{suggestion(name, known)}"))
    return objective, faults


def load_spec(file: str, sets: Sequence[str] = (), trials: int | None = None) -> StudySpec:
    """Reads a study.

    Args: file: a path, or a name in search_spaces/ with or without .yaml. sets: `path=value`, the value as in YAML;
        each replaces one value of the whole spec. trials: replaces limits.trials.
    Raises: SpecError with every fault, each with the file (or the flag), the key path and the nearest valid key.
    """
    label, raw = read_mapping(file)
    return checked_spec(label, raw, sets, trials)


def checked_spec(label: str, raw: Mapping[str, Any], sets: Sequence[str] = (), trials: int | None = None) -> StudySpec:
    """A study from a mapping like that of a file, which messages call `label`. Args and raises: as `load_spec`."""
    if len(sets) > MOST_SETTINGS or sum(map(len, sets)) > LARGEST_FILE:
        raise SpecError([f"--set: at most {MOST_SETTINGS} of them, and {LARGEST_FILE // 1024} KiB in all"])
    raw = dict(raw)
    sources: dict[str, str] = {}
    faults: list[Fault] = []
    for setting in sets:
        flag = f"--set {shortened(setting, LONGEST_LABEL)}"
        try:
            path, value = split_setting(setting)
            raw = replaced(raw, path, value)
            sources[path] = flag
        except ValueError as error:
            faults.append(Fault("", str(error), source=flag))
    if trials is not None:
        raw = replaced(raw, "limits.trials", trials)
        sources["limits.trials"] = f"--trials {shown(trials)}"
    for fault in every_fault(StudySpec, raw, _DECISIVE):
        source = _source(fault, sources, label)
        place = source.place(fault.path) if isinstance(source, Label) else ""
        faults.append(replace(fault, source=source, place=place))
    if faults:
        raise SpecError(faults)
    return StudySpec.model_validate(_with_absolute_places(raw))


def _with_absolute_places(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with absolute paths to its data: a study goes on, and its models are found, from any folder."""

    def placed(values: Any, within: str = "") -> Any:
        if not isinstance(values, Mapping):
            return values
        return {key: _absolute(value) if f"{within}{key}" in _PLACES else value for key, value in values.items()}

    trial, baselines = placed(raw.get("trial")), raw.get("baselines")
    if isinstance(trial, dict) and "dataset" in trial:
        trial["dataset"] = placed(trial["dataset"], "dataset.")
    changes = {"trial": trial, "baselines": list(map(placed, baselines)) if isinstance(baselines, list) else baselines}
    return {**raw, **{key: value for key, value in changes.items() if key in raw}}


def _absolute(place: Any) -> Any:
    if not isinstance(place, str):
        return place
    try:
        return str(Path(expanded(place)).absolute())
    except ValueError:
        return place  # the check of the data says why


def _source(fault: Fault, sources: Mapping[str, str], label: str) -> str:
    """The flag that set the faulty value, or made the unknown key above it; else the file."""
    for path, flag in sources.items():
        made = fault.message.startswith("unknown key") and path.startswith(f"{fault.path}.")
        if made or f"{fault.path}.".startswith((f"{path}.", f"{path}[")):
            return flag
    return label
