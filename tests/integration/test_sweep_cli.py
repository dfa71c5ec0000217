"""The command line: what it refuses (exit 2, one message, nothing left on disk), shows and hands on."""

import gzip
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from study.sweep import main

STUDY: dict[str, Any] = {
    "name": "tiny",
    "trial": {
        "dataset": {"name": "noisy_digits"},
        "model": {"name": "ar_dmvc_am", "train_steps": 3},
        "epochs": 4,
        "batch_size": 50,
        "evaluate_every": 2,
        "device": "cpu",
    },
    "space": {"model.train_eps": {"uniform": [0.02, 0.3]}},
    "baselines": [{"model.adversarial_weight": 0, "model.mitigator_weight": 0}],
    "objective": {"metric": "robust/acc", "mode": "max"},
    "sampler": {"name": "random"},
    "limits": {"trials": 6},
}

Refused = Callable[..., str]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small study in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARDMVC_STUDY_DB", raising=False)
    Path("study.yaml").write_text(yaml.safe_dump(STUDY))
    return "study.yaml"


@pytest.fixture
def refused(study: str, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must be refused, and returns its message."""

    def run(*arguments: str, file: str = study) -> str:
        before = sorted(Path().rglob("*"))
        assert main([file, *arguments]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert "Traceback" not in output.err
        assert sorted(Path().rglob("*")) == before, "something was left on disk"
        return output.err

    return run


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Stands for `study.driver.run`: notes how it was called."""

    from study.driver import StudyBroken, StudyRefused

    calls: list[dict[str, Any]] = []
    stub = types.SimpleNamespace(calls=calls, StudyRefused=StudyRefused, StudyBroken=StudyBroken, effect=lambda: 0)

    def run_study(spec: Any, **options: Any) -> int:
        calls.append({"spec": spec, **options})
        return int(stub.effect())

    stub.run_study, stub.look = run_study, lambda spec, **options: []
    monkeypatch.setitem(sys.modules, "study.driver.run", stub)
    return stub


def test_every_fault_is_a_line_with_file_path_and_way_out(refused: Refused) -> None:
    message = refused("--trials", "0", "--set", "trial.model.adversarial_weight=-1", "--set", "sampler.name=tpee")
    assert message.splitlines() == [
        "--set trial.model.adversarial_weight=-1: trial.model.adversarial_weight: must be in [0, 1000000], got -1.0",
        "--set sampler.name=tpee: sampler.name: "
        "unknown name 'tpee'; nearest: 'tpe'; known: auto, random, sobol, tpe, gp, gp_noise, nsga2",
        "--trials 0: limits.trials: must be ≥ 1, got 0",
    ]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("trial.epoch=3", "unknown key; nearest: 'trial.epochs'"),
        ("space.model.temprature={uniform: [0.1, 1]}", "is no field of TrialConfig"),
        ("space.model.train_eps={uniform: [0.1, 1.5]}", "1.5 of uniform [0.1, 1.5] makes an invalid trial"),
        ("trial.model.train_eps=0", "must be in (0, 1], got 0.0"),
        ("trial.evaluation.eps=1.5", "must be in (0, 1] because views are in [0, 1] (8/255 is 0.031), got 1.5"),
        ("trial.model.name=dmvc_am", "unknown name 'dmvc_am'; nearest: 'ar_dmvc_am'"),
        ("trial.dataset.name=mnist", "unknown value 'mnist'"),
        ("objective.metric=robust/ack", "unknown metric 'robust/ack'; nearest: 'robust/acc'"),
    ],
)
def test_a_fault_in_the_study_ends_with_exit_code_2(refused: Refused, setting: str, words: str) -> None:
    assert words in refused("--set", setting)


def test_a_missing_file_and_one_that_is_not_yaml(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no_such_study.yaml"]) == 2
    assert "no_such_study.yaml: no such file" in capsys.readouterr().err
    Path("broken.yaml").write_text("name: [1")
    assert main(["broken.yaml"]) == 2
    assert "broken.yaml: is not YAML: line 1" in capsys.readouterr().err


def test_debug_adds_the_traceback(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([study, "--trials", "0", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_command_itself_says_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "study.sweep", "nothing_here.yaml"]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# This machine


def test_more_gpus_than_the_machine_has(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    message = refused("--set", "resources.gpu=1")
    assert "study.yaml: resources.gpu: a trial asks for 1, this machine has 0" in message
    assert "--set resources.gpu=0" in message


def test_more_cores_than_the_machine_has(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert "resources.cpu: a trial asks for 3, this machine has 2" in refused("--set", "resources.cpu=3")


def test_a_cluster_is_not_measured_by_this_machine(
    study: str, runner: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main([study, "--set", "resources.gpu=1", "--address", "somewhere:6379"]) == 0
    assert runner.calls[0]["address"] == "somewhere:6379"


# Data


def test_a_data_root_without_the_files(refused: Refused, tmp_path: Path) -> None:
    message = refused("--set", "trial.dataset.name=noisy_mnist", "--set", f"trial.dataset.root={tmp_path}")
    assert "study.yaml: trial.dataset: mnist: train-images-idx3-ubyte" in message
    assert str(tmp_path) in message
    assert "ARDMVC_DATA" in message


def idx(magic: int, shape: tuple[int, ...], values: int) -> bytes:
    header = magic.to_bytes(4, "big") + b"".join(size.to_bytes(4, "big") for size in shape)
    return header + bytes(values)


@pytest.mark.parametrize("fault", ["truncated", "magic"])
def test_damaged_idx_files(refused: Refused, tmp_path: Path, fault: str) -> None:
    for part, count in (("train", 30), ("t10k", 20)):
        images = idx(0x803, (count, 28, 28), count * 28 * 28)
        labels = idx(0x801, (count,), count)
        if part == "train":
            images = images[:-9] if fault == "truncated" else idx(0x802, (count, 28, 28), count * 28 * 28)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    message = refused("--set", "trial.dataset.name=noisy_mnist", "--set", f"trial.dataset.root={tmp_path}")
    assert "study.yaml: trial.dataset: " in message
    assert "train-images-idx3-ubyte.gz" in message
    assert ("truncated" if fault == "truncated" else "magic") in message


GOOD = {
    "view_0": np.linspace(0, 1, 120).reshape(40, 3),
    "view_1": np.linspace(1, 0, 160).reshape(40, 4),
    "labels": np.arange(40) % 2,
}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({**GOOD, "view_1": GOOD["view_1"][:39]}, "views must have one common length, got view_0: 40, view_1: 39"),
        ({**GOOD, "view_1": np.where(GOOD["view_1"] > 0.9, np.nan, GOOD["view_1"])}, "view_1 must be finite, got nan"),
        ({**GOOD, "view_0": GOOD["view_0"] * 255}, "view_0 must lie in [0, 1]"),
        ({"view_0": GOOD["view_0"], "labels": GOOD["labels"]}, "at least two views are needed"),
        ({**GOOD, "labels": GOOD["labels"] / 2}, "labels must be integers, got dtype float64"),
        ({"view_0": GOOD["view_0"], "view_1": GOOD["view_1"], "n_clusters": np.array(2)}, "has no labels"),
    ],
)
def test_faulty_npz_files(refused: Refused, tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "mine.npz", **arrays)
    message = refused(
        "--set", f"trial.dataset={{name: npz, path: {tmp_path / 'mine.npz'}}}", "--set", "trial.batch_size=10"
    )
    assert words in message
    assert "study.yaml: trial.dataset: " in message


def test_a_good_npz_file_is_accepted(study: str, runner: types.SimpleNamespace, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **GOOD)
    dataset = f"trial.dataset={{name: npz, path: {tmp_path / 'mine.npz'}}}"
    assert main([study, "--set", dataset, "--set", "trial.batch_size=10"]) == 0


def test_a_search_over_what_is_measured_is_refused(refused: Refused) -> None:
    for name, values in (("shuffle_seed", "[1, 2]"), ("samples", "[100, 200]"), ("noise", "[0.1, 0.2]")):
        message = refused("--set", f"space.dataset.{name}={{choice: {values}}}")
        assert f"space.dataset.{name}: cannot be searched: it is what trials are measured on" in message


def test_batches_larger_than_the_training_part(refused: Refused) -> None:
    message = refused("--set", "space.batch_size={choice: [50, 500]}")
    assert "space.batch_size: 500 makes an invalid trial: batch_size: must be ≤ 450" in message


def test_fewer_scored_samples_than_clusters(refused: Refused) -> None:
    advice = "with fewer than one each scores mean nothing; score at least 10, better 50 or more"
    ten = ("--set", "trial.dataset.classes=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]")
    message = refused(*ten, "--set", "trial.evaluation.samples=9")
    assert message == f"study.yaml: trial.evaluation.samples: only 9 scored samples for 10 clusters: {advice}\n"
    small = (*ten, "--set", "trial.batch_size=5", "--set", "trial.dataset.samples=12")
    official = ("--set", "trial.protocol=official", "--set", "objective.metric=official/post/acc")
    for more, count in ((), 2), (official, 6):
        assert f"trial.dataset: only {count} scored samples for 10 clusters: {advice}" in refused(*small, *more)


def test_a_network_that_does_not_fit_the_views(refused: Refused) -> None:
    message = refused("--set", "trial.model.encoder=cnn_large")
    assert message.count("\n") == 1
    assert "study.yaml: trial.model: " in message


@pytest.mark.parametrize(
    ("checkpoint", "words"), [("nowhere", "nowhere holds no saved model"), ("study:absent", "no study database")]
)
def test_an_attacker_study_without_a_saved_model(refused: Refused, checkpoint: str, words: str) -> None:
    attacker = {
        "name": "attack",
        "trainable": "attacker",
        "trial": {"checkpoint": checkpoint},
        "space": {"attack.mu_com": {"log_uniform": [0.01, 100]}},
        "objective": {"metric": "gan/flip", "mode": "max"},
    }
    Path("attacker.yaml").write_text(yaml.safe_dump(attacker))
    message = refused(file="attacker.yaml")
    assert message.startswith("attacker.yaml: trial.checkpoint: ")
    assert words in message


# Dry run


def test_a_dry_run_shows_the_study_and_starts_nothing(
    study: str, runner: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([study, "--dry-run"]) == 0
    output = capsys.readouterr().out
    shown = yaml.safe_load(output)
    assert shown["trial"]["model"]["train_step_ratio"] == 0.1
    assert shown["limits"]["trials"] == 6
    lines = output[output.index("# first trials") :]
    assert lines.count("baseline") == 1
    assert lines.count("sampled") == 3
    assert "1 CPU and 0 GPU a trial" in lines
    assert "6 × 2 rounds × 2 epochs (4 in all) × 1 seeds" in lines
    assert "nothing was started" in lines
    assert runner.calls == []
    assert [path.name for path in Path().iterdir()] == ["study.yaml"]


def test_a_dry_run_counts_passes(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([study, "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    # 450 samples are 9 batches of 50, in 4 epochs 36 steps; each is 3 inner steps, a clean and an attacked pass.
    costs = [trial["cost"]["training"] for trial in facts["first_trials"]]
    assert costs[0] == {"forward": 36, "backward": 36}
    assert costs[1:] == [{"forward": 180, "backward": 180}] * 3
    evaluation = facts["first_trials"][0]["cost"]["evaluation"]
    assert facts["work"]["passes"] == {kind: 36 + 5 * 180 + 6 * evaluation[kind] for kind in ("forward", "backward")}
    assert all(0.02 <= trial["overrides"]["model.train_eps"] <= 0.3 for trial in facts["first_trials"][1:])


def test_a_dry_run_shows_no_more_trials_than_there_are(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([study, "--dry-run", "--json", "--trials", "2"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [trial["baseline"] for trial in facts["first_trials"]] == [True, False]


# Handing on


def test_a_study_is_handed_to_the_runner(study: str, runner: types.SimpleNamespace) -> None:
    arguments = ["--trials", "9", "--set", "trial.epochs=2", "--takeover", "--from", "older", "--json"]
    assert main([study, *arguments]) == 0
    (call,) = runner.calls
    assert call["spec"].limits.trials == 9
    assert call["spec"].trial_config({}).epochs == 2
    assert {name: call[name] for name in ("address", "takeover", "warm_start", "json_output")} == {
        "address": None,
        "takeover": True,
        "warm_start": "older",
        "json_output": True,
    }


@pytest.mark.parametrize("code", [0, 1, 130])
def test_the_exit_code_is_the_runner_s(study: str, runner: types.SimpleNamespace, code: int) -> None:
    runner.effect = lambda: code
    assert main([study]) == code


def test_a_refusal_of_the_runner_is_one_message(
    study: str, runner: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> int:
        raise runner.StudyRefused("another driver holds it")

    runner.effect = refuse
    assert main([study]) == 2
    assert capsys.readouterr().err == "another driver holds it\n"


def test_a_driver_that_breaks_ends_with_1_and_the_way_on(
    study: str, runner: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise runner.StudyBroken("the driver stopped: disk full")

    runner.effect = fail
    assert main([study]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "the driver stopped: disk full",
        "the same command goes on once that is mended",
    ]


def test_an_interruption_can_be_resumed(
    study: str, runner: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    runner.effect = interrupt
    assert main([study]) == 130
    assert "goes on from here" in capsys.readouterr().err
