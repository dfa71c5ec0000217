"""A study's YAML: what it becomes, and that everything wrong with it is said at once, with file, path and way out."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.spec.distributions import LogUniform, Uniform
from study.spec.study_spec import SpecError, StudySpec, load_spec
from trainables.config import TrialConfig

STUDY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "trial": {"dataset": {"name": "noisy_digits"}, "model": {"name": "ar_dmvc_am"}, "epochs": 4},
    "space": {"model.adversarial_weight": {"log_uniform": ["1e-2", 10]}, "model.train_eps": {"uniform": [0.02, 0.3]}},
    "baselines": [{"model.adversarial_weight": 0, "model.mitigator_weight": 0}],
    "objective": {"metric": "robust/acc", "mode": "max"},
}


def write(folder: Path, **changes: Any) -> str:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump({**STUDY, **changes}))
    return str(file)


def faults_in(file: str, *sets: str, trials: int | None = None) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_spec(file, sets, trials)
    faults = [str(fault) for fault in caught.value.faults]
    assert str(caught.value).startswith(faults[0][:300])
    return faults


def test_a_study_and_its_defaults(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path))
    assert spec.distributions() == {
        "model.adversarial_weight": LogUniform(0.01, 10),
        "model.train_eps": Uniform(0.02, 0.3),
    }
    assert [(goal.metric, goal.mode) for goal in spec.objectives] == [("robust/acc", "max")]
    assert spec.trainable == "model"
    assert spec.limits.failures == 3
    assert spec.storage.path == "runs"
    assert (spec.resources.cpu, spec.resources.gpu) == (1, 0)
    assert spec.baselines == ({"model.adversarial_weight": 0.0, "model.mitigator_weight": 0.0},)


def test_trials_take_the_seed_of_the_study_unless_they_have_their_own(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path)).trial_config({}).seed == 3
    assert load_spec(write(tmp_path), ["trial.seed=5"]).trial_config({}).seed == 5


def test_trial_config_applies_overrides_and_refuses_bad_ones(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path))
    config = spec.trial_config({"model.train_eps": 0.25})
    assert isinstance(config, TrialConfig)
    assert config.model.train_eps == 0.25
    with pytest.raises(SpecError, match=r"trial\.model\.train_eps: must be in \(0, 1\]"):
        spec.trial_config({"model.train_eps": 3})


def test_resolved_is_plain_and_loads_as_the_same_study(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path))
    resolved = spec.resolved()
    assert json.loads(json.dumps(resolved)) == resolved
    assert resolved["trial"]["model"]["train_steps"] == 10
    again = StudySpec.model_validate(resolved)
    assert again.resolved() == resolved
    assert again.identity() == spec.identity()


def test_options_go_to_optuna_under_its_own_names(tmp_path: Path) -> None:
    spec = load_spec(
        write(tmp_path, sampler={"name": "tpe", "startup_trials": 4}, pruner={"name": "median", "warmup_rounds": 2})
    )
    assert spec.sampler_options() == {"name": "tpe", "n_startup_trials": 4, "multivariate": False, "history": 200}
    assert spec.pruner_options() == {"name": "median", "startup_trials": 5, "warmup_rounds": 2}


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2", "random", "sobol"])
def test_every_sampler_has_a_name(tmp_path: Path, name: str) -> None:
    assert load_spec(write(tmp_path), [f"sampler.name={name}"]).sampler.name == name


@pytest.mark.parametrize("name", ["none", "successive_halving", "hyperband", "median"])
def test_every_pruner_has_a_name(tmp_path: Path, name: str) -> None:
    assert load_spec(write(tmp_path), [f"pruner.name={name}"]).pruner.name == name


# Identity


@pytest.mark.parametrize(
    "setting",
    [
        "trial.device=cpu",
        "limits.trials=99",
        "limits.concurrent=2",
        "resources.cpu=2",
        "storage.path=elsewhere",
        "sampler.name=random",
        "pruner.name=median",
        "trial.epochs=4",
    ],
)
def test_identity_does_not_follow_how_a_study_is_run(tmp_path: Path, setting: str) -> None:
    file = write(tmp_path)
    assert load_spec(file, [setting]).identity() == load_spec(file).identity()


def test_identity_does_not_follow_where_data_lie(tmp_path: Path) -> None:
    file = write(tmp_path)
    sets = ["trial.dataset.name=noisy_mnist"]
    moved = load_spec(file, [*sets, "trial.dataset.root=/elsewhere"])
    assert moved.identity() == load_spec(file, sets).identity()
    own = ["trial.dataset={name: npz, path: /here/own.npz}", "baselines=[{dataset.path: /here/other.npz}]"]
    moved = load_spec(file, [*own, "trial.dataset.path=there.npz", "baselines=[{dataset.path: /there/other.npz}]"])
    assert moved.identity() == load_spec(file, own).identity()
    assert moved.trial_config({}).dataset.path == str(Path.cwd() / "there.npz")


@pytest.mark.parametrize(
    "setting",
    [
        "name=other",
        "seed=4",
        "trial.epochs=5",
        "trial.evaluation.samples=5",
        "space.model.train_eps={uniform: [0.02, 0.2]}",
        "baselines=[]",
        "objective.metric=clean/acc",
    ],
)
def test_identity_follows_what_makes_trials_comparable(tmp_path: Path, setting: str) -> None:
    file = write(tmp_path)
    assert load_spec(file, [setting]).identity() != load_spec(file).identity()


def test_equal_numbers_are_one_identity(tmp_path: Path) -> None:
    first = write(tmp_path, baselines=[{"model.adversarial_weight": 1}])
    identity = load_spec(first).identity()
    assert load_spec(first, ["baselines=[{model.adversarial_weight: 1.0}]"]).identity() == identity
    assert load_spec(first, ["baselines=[{model.adversarial_weight: '1e0'}]"]).identity() == identity


# Flags


def test_set_replaces_one_value_and_trials_is_a_short_form(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path), ["trial.epochs=2", "trial.dataset.samples=100", "limits.hours=1e-1"], trials=5)
    config = spec.trial_config({})
    assert isinstance(config, TrialConfig)
    assert (config.epochs, config.dataset.samples) == (2, 100)
    assert (spec.limits.hours, spec.limits.trials) == (0.1, 5)


def test_set_reaches_a_path_of_the_space(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path), ["space.model.train_eps={uniform: [0.1, 0.2]}"])
    assert spec.distributions()["model.train_eps"] == Uniform(0.1, 0.2)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("trial.epoch=3", "--set trial.epoch=3: trial.epoch: unknown key; nearest: 'trial.epochs'"),
        ("limit.trials=3", "--set limit.trials=3: limit: unknown key; nearest: 'limits'"),
        ("trial.epochs=none", "--set trial.epochs=none: trial.epochs: must be a whole number, got 'none'"),
        ("trial.epochs", "--set trial.epochs: must be path=value"),
        ("trial.epochs.many=1", "trial.epochs is 4 and holds no keys"),
        ("trial.epochs=[1", "the value is not YAML"),
        ("space.model.trian_eps={uniform: [0.1, 0.2]}", "nearest: 'model.train_eps'"),
    ],
)
def test_a_faulty_flag_is_named(tmp_path: Path, setting: str, words: str) -> None:
    faults = faults_in(write(tmp_path), setting)
    assert len(faults) == 1
    assert words in faults[0]


@pytest.mark.parametrize("trials", [0, -3])
def test_trials_must_be_positive(tmp_path: Path, trials: int) -> None:
    faults = faults_in(write(tmp_path), trials=trials)
    assert faults == [f"--trials {trials}: limits.trials: must be ≥ 1, got {trials}"]


# Files


def test_a_missing_file_names_the_nearest_bundled_study() -> None:
    (fault,) = faults_in("ar_dmvc_amm")
    assert fault.startswith("ar_dmvc_amm: no such file, and no study of that name in search_spaces/")
    assert "nearest: 'ar_dmvc_am'" in fault


@pytest.mark.parametrize("name", ["smoke", "smoke.yaml"])
def test_a_bundled_study_is_found_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_spec(name).name == "smoke"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: [1, 2\ntrial: {", "is not YAML: line "),
        (b"name: a: b", "is not YAML: line 1, column 8: mapping values are not allowed here"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is not YAML: it is not text in UTF-8"),
        (b"name: \x00", "is not YAML"),
        (b"", "must hold a mapping of keys to values, holds nothing"),
        (b"- a\n- b", "must hold a mapping of keys to values, holds a list"),
        (b"name: a\nname: b", "is not YAML: line 2, column 1: the key 'name' stands twice"),
        (b"name: !!python/object/apply:os.getcwd []", "is not YAML: line 1"),
    ],
)
def test_a_file_that_is_no_study(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_bytes(content)
    (fault,) = faults_in(str(file))
    assert fault.startswith(f"{file}: ")
    assert words in fault


def test_a_folder_is_no_study(tmp_path: Path) -> None:
    assert faults_in(str(tmp_path)) == [f"{tmp_path}: is a folder, not a file"]


# Faults of the content


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sedd": 3}, "sedd: unknown key; nearest: 'seed'"),
        ({"name": "a b/c"}, "name: must match"),
        ({"name": ""}, "name: must match"),
        ({"seed": "x"}, "seed: must be a whole number, got 'x'"),
        ({"trainable": "attack"}, "trainable: unknown value 'attack'; nearest: 'attacker'; known: model, attacker"),
        ({"trial": [1]}, "trial: must be a mapping"),
        ({"space": [1]}, "space: must be a mapping"),
        ({"space": {"model.temprature": {"uniform": [0.1, 1]}}}, "nearest: 'model.temperature'"),
        ({"space": {"model.train_eps": {"uniform": [0.1, 2]}}}, "2.0 of uniform [0.1, 2.0] makes an invalid trial"),
        ({"space": {"evaluation.eps": {"uniform": [0.1, 0.2]}}}, "space.evaluation.eps: cannot be searched"),
        ({"baselines": {"epochs": 3}}, "baselines: must be a list"),
        ({"baselines": [{"model.train_esp": 3}]}, "baselines[0].model.train_esp: is no field of TrialConfig"),
        ({"baselines": [{}, {"model.train_eps": 3}]}, "baselines[1].model.train_eps: must be in (0, 1], got 3.0"),
        ({"baselines": [{"evaluation.eps": 0.3}]}, "baselines[0].evaluation.eps: cannot be searched"),
        ({"objective": {"metric": "robust/ac", "mode": "max"}}, "unknown metric 'robust/ac'; nearest: 'robust/acc'"),
        ({"objective": {"metric": "official/post/acc", "mode": "max"}}, "with `protocol: official` or `both` only"),
        ({"objective": {"metric": "probe/acc", "mode": "max"}}, "by the rounds before the last only"),
        ({"objective": {"metric": "loss/total", "mode": "min"}}, "'loss/total' is no score"),
        ({"objective": {"metric": "clean/acc", "mode": "up"}}, "objective.mode: unknown value 'up'"),
        ({"objective": [{"metric": "clean/acc", "mode": "max"}] * 2}, "objective: names clean/acc twice"),
        ({"objective": []}, "objective: must be one {metric, mode} or a list of two, got 0"),
        ({"sampler": {"name": "tpee"}}, "sampler.name: unknown name 'tpee'; nearest: 'tpe'"),
        ({"sampler": {"name": "random", "startup_trials": 3}}, "sampler.startup_trials: unknown key"),
        ({"sampler": {}}, "sampler.name: must be given; known: auto, random, sobol, tpe, gp, gp_noise, nsga2"),
        ({"pruner": {"name": "asha"}}, "pruner.name: unknown name 'asha'"),
        ({"pruner": {"name": "hyperband", "reduction_factor": 1}}, "pruner.reduction_factor: must be ≥ 2, got 1"),
        ({"limits": {"trials": 0}}, "limits.trials: must be ≥ 1, got 0"),
        ({"limits": {"hours": 0}}, "limits.hours: must be > 0, got 0"),
        ({"limits": {"hours": float("inf")}}, "limits.hours: must be finite"),
        ({"limits": {"failures": -1}}, "limits.failures: must be ≥ 0, got -1"),
        ({"limits": {"concurrent": 0}}, "limits.concurrent: must be ≥ 1, got 0"),
        ({"limits": {"trials": True}}, "limits.trials: must be a number, got true"),
        ({"resources": {"cpu": 0}}, "resources.cpu: must be ≥ 0.001, got 0"),
        ({"resources": {"gpu": -1}}, "resources.gpu: must be ≥ 0, got -1"),
        ({"resources": {"gpu": 1.5}}, "resources.gpu: must be whole above 1"),
        ({"storage": {"path": 3}}, "storage.path: must be text, got 3"),
    ],
)
def test_one_fault_of_the_study(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    file = write(tmp_path, **changes)
    faults = faults_in(file)
    assert len(faults) == 1
    assert faults[0].startswith(f"{file}: ")
    assert words in faults[0]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.adversarial_weight=-1", "trial.model.adversarial_weight: must be in [0, 1000000], got -1.0"),
        ("model.adversarial_weight=.nan", "trial.model.adversarial_weight: must be "),
        ("model.train_eps=0", "trial.model.train_eps: must be in (0, 1], got 0.0"),
        ("evaluation.eps=8", "evaluation.eps: must be in (0, 1] because views are in [0, 1] (8/255 is 0.031), got 8.0"),
        ("model.name=ar_dmvc_ma", "trial.model.name: unknown name 'ar_dmvc_ma'; nearest: 'ar_dmvc_am'; known: "),
        ("dataset.name=noisy_digts", "trial.dataset.name: unknown value 'noisy_digts'; nearest: 'noisy_digits'"),
        ("dataset.classes=[1]", "trial.dataset.classes: must be at least two different digits"),
        ("dataset.root=x", "trial.dataset.root: must be left out for noisy_digits, got 'x'"),
        ("model.temprature=1", "trial.model.temprature: unknown key; nearest: 'trial.model.temperature'"),
        ("temperature=1", "trial.temperature: unknown key; nearest: 'trial.model.temperature'"),
        ("model.learning_rate=fast", "trial.model.learning_rate: must be a number, got 'fast'"),
        ("epochs=yes", "trial.epochs: must be a number, got true"),
        ("device=cuda", "trial.device: must be auto or cpu while resources.gpu is 0, got cuda"),
        ("evaluation.eps=[a, b]", "trial.evaluation.eps"),
    ],
)
def test_one_fault_of_the_trial(tmp_path: Path, setting: str, words: str) -> None:
    faults = faults_in(write(tmp_path), f"trial.{setting}")
    assert words in faults[0]
    assert all(fault.startswith(f"--set trial.{setting.partition('=')[0]}=") for fault in faults[:1])


def test_all_faults_are_listed_at_once_even_behind_one_another(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        trial={
            "dataset": {"name": "noisy_digits", "noise": -1, "samples": 2},
            "model": {"name": "ar_dmvc_am", "adversarial_weight": -1, "train_eps": 2, "temprature": 1},
            "epochs": 0,
        },
        space={"model.mitigator_weight": {"uniform": [-1, 1]}, "model.tau": {"uniform": [0, 1]}},
        sampler={"name": "tpee"},
        limits={"trials": 0},
    )
    faults = faults_in(file)
    wanted = [
        "trial.dataset.noise",
        "trial.dataset.samples",
        "trial.model.adversarial_weight",
        "trial.model.train_eps",
        "trial.model.temprature",
        "trial.epochs",
        "space.model.mitigator_weight",
        "space.model.tau",
        "sampler.name",
        "limits.trials",
    ]
    assert sorted(fault.removeprefix(f"{file}: ").split(": ")[0] for fault in faults) == sorted(wanted)


def test_keys_that_decide_what_others_mean_bring_no_further_faults(tmp_path: Path) -> None:
    attacker = {"trainable": "atacker", "trial": {"checkpoint": "x"}, "space": {}, "baselines": []}
    assert len(faults_in(write(tmp_path, **attacker))) == 1
    official = {**STUDY["trial"], "protocol": "offical"}
    goal = {"metric": "official/post/acc", "mode": "max"}
    (fault,) = faults_in(write(tmp_path, trial=official, objective=goal))
    assert "trial.protocol: unknown value 'offical'; nearest: 'official'" in fault


def test_each_of_two_objectives_is_named_by_its_place(tmp_path: Path) -> None:
    goals = [{"metric": "clean/acc", "mode": "max"}, {"metric": "robust/ack", "mode": "max"}]
    (fault,) = faults_in(write(tmp_path, objective=goals))
    assert "objective[1].metric: unknown metric 'robust/ack'; nearest: 'robust/acc'" in fault


def test_two_objectives_refuse_a_pruner(tmp_path: Path) -> None:
    goals = [{"metric": "clean/acc", "mode": "max"}, {"metric": "robust/acc", "mode": "max"}]
    assert len(load_spec(write(tmp_path, objective=goals)).objectives) == 2
    (fault,) = faults_in(write(tmp_path, objective=goals, pruner={"name": "median"}))
    assert "pruner.name: must be none with two objectives, got median" in fault


def test_required_keys_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("seed: 7\n")
    assert faults_in(str(file)) == [f"{file}: {key}: must be given" for key in ("name", "trial", "objective")]


def test_an_attacker_study(tmp_path: Path) -> None:
    attacker = {
        "trainable": "attacker",
        "trial": {"checkpoint": "somewhere", "attack": {"epochs": 11}},
        "space": {"attack.mu_com": {"log_uniform": [0.01, 100]}},
        "baselines": [{"attack.mu_com": 1}],
        "objective": {"metric": "gan/flip", "mode": "max"},
    }
    assert load_spec(write(tmp_path, **attacker)).trial_config({}).rounds == 3
    file = write(tmp_path, **{**attacker, "space": {"attack.eps": {"uniform": [0.1, 0.2]}}})
    assert "space.attack.eps: cannot be searched: the evaluation budget" in faults_in(file)[0]
    file = write(tmp_path, **{**attacker, "trial": {}})
    assert "trial.checkpoint: must be given" in faults_in(file)[0]
    file = write(tmp_path, **{**attacker, "objective": {"metric": "apgd_ce/flip", "mode": "max"}})
    assert "unknown metric 'apgd_ce/flip'" in faults_in(file)[0]


def test_the_official_protocol_has_its_own_metrics(tmp_path: Path) -> None:
    goal = {"metric": "official/post/acc", "mode": "max"}
    official = {**STUDY["trial"], "protocol": "official"}
    assert load_spec(write(tmp_path, trial=official, objective=goal)).objectives[0].metric == "official/post/acc"
    assert "unknown metric 'robust/acc'" in faults_in(write(tmp_path, trial=official))[0]
