"""Checkpoints of every kind of damage: one short DamagedCheckpoint, no code is run, and a trial stays what it was."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ardmvc_core.training import Trainer
from trainables.attack_trial import AttackTrial
from trainables.building import load_model
from trainables.config import AttackTrialConfig, TrialConfig
from trainables.saved_trial import ARRAYS_FILE, CONFIG_FILE, STATE_FILE, DamagedCheckpoint, arrays_in, saved_facts
from trainables.trial import Trial

CPU = torch.device("cpu")
Change = Callable[[Any], Any]


def config(**changes: Any) -> TrialConfig:
    base: dict[str, Any] = {
        "seed": 3,
        "dataset": {"name": "noisy_digits", "classes": [0, 1], "samples": 60},
        "model": {"name": "comvc"},
        "epochs": 3,
        "batch_size": 25,
        "evaluate_every": 1,
        "evaluation": {"samples": 6, "probe_samples": 6, "tier": "probe"},
    }
    return TrialConfig.model_validate({**base, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a trial in the middle of its training."""
    folder = tmp_path_factory.mktemp("whole")
    trial = Trial(config())
    trial.run_round()
    trial.save(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def refusal(folder: Path, file: str) -> str:
    """Why neither a command nor a trial goes on from the checkpoint."""
    trial = Trial(config())
    before = plain([trainer.state_dict() for trainer in trial.trainers])
    reasons = []
    for load in (lambda: load_model(str(folder), CPU), lambda: trial.load(folder)):
        with pytest.raises(DamagedCheckpoint) as error:
            load()
        reasons.append(str(error.value))
        assert reasons[-1].startswith(f"{folder}/{file}: ")
        assert len(reasons[-1].encode()) <= 2048
        assert reasons[-1].isprintable()
    assert (trial.round, trial.seconds, trial.failure) == (0, 0.0, None)
    assert plain([trainer.state_dict() for trainer in trial.trainers]) == before
    return reasons[0]


def plain(item: Any) -> Any:
    """A state as values that can be compared."""
    if isinstance(item, torch.Tensor):
        return item.numpy().tobytes()
    if isinstance(item, dict):
        return {key: plain(entry) for key, entry in item.items()}
    return [plain(entry) for entry in item] if isinstance(item, list | tuple) else item


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is damaged: Expecting value"),
        (b"\xff\xfa", "is damaged: 'utf-"),
        (b"[" * 100_000, "is damaged: RecursionError"),
        (b"[]", "holds no config of a model trial: "),
        (b"null", "holds no config of a model trial: "),
        (b'{"config": null}', "holds no config of a model trial: "),
        (b'{"config": ' + b"[" * 900 + b"]" * 900 + b"}", "holds no config of a model trial: "),
        (b'{"parts": {}}', "holds no config of a model trial: "),
        (b"9" * 5000, "is damaged: Exceeds the limit"),
    ],
)
def test_configs_that_are_none(folder: Path, content: bytes, why: str) -> None:
    (folder / CONFIG_FILE).write_bytes(content)
    assert why in refusal(folder, CONFIG_FILE)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: {**facts, "contents": "train"},
        lambda facts: {**facts, "contents": {"train": 1}},
        lambda facts: {**facts, "reference_entropy": "high"},
        lambda facts: {**facts, "reference_entropy": float("nan")},
        lambda facts: {**facts, "config": {**facts["config"], "dataset": {"name": "noisy_digits", "samples": "many"}}},
        lambda facts: {**facts, "config": {**facts["config"], "x" * 10**5: 1}},
        lambda facts: {**facts, "config": {**facts["config"], "model": {"name": "\x1b[31m"}}},
    ],
)
def test_facts_of_other_kinds(folder: Path, change: Change) -> None:
    facts = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(change(facts)))
    assert "holds no config of a model trial: " in refusal(folder, CONFIG_FILE)


def test_facts_of_an_older_checkpoint(folder: Path) -> None:
    facts = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({"config": facts["config"]}))
    assert (saved_facts(str(folder)).contents, saved_facts(str(folder)).reference_entropy) == ({}, None)


def test_a_checkpoint_from_when_evaluations_had_other_settings(folder: Path) -> None:
    facts = json.loads((folder / CONFIG_FILE).read_text())
    today = saved_facts(str(folder)).config
    retired = {"gan_eps": [0.2], "steps": 20, "objectives": ["features"], "noise_draws": 5, "gan": {"epochs": 5}}
    facts["config"]["evaluation"] |= {**retired, "probe_steps": 10, "step_ratio": 0.25, "restarts": 1, "tier": None}
    (folder / CONFIG_FILE).write_text(json.dumps(facts))
    read = saved_facts(str(folder)).config
    assert read.evaluation.tier == "tune"
    assert read.model == today.model


class Code:
    """What a pickle can hold that runs when it is read."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch ran",)


GONE = object()
WEIGHT = ("trainers", 0, "model", "head.output.0.weight")


def at(*path: str | int, to: Any = GONE) -> Change:
    """Replaces one entry of a state, by what `to` makes of it where it is a function; GONE takes the entry away."""

    def change(state: Any) -> None:
        for name in path[:-1]:
            state = state[name]
        if to is GONE:
            del state[path[-1]]
        else:
            state[path[-1]] = to(state[path[-1]]) if callable(to) else to

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (at("trainers"), "KeyError: 'trainers'"),
        (at("trainers", to=[]), "IndexError: list index out of range"),
        (at("trainers", to=3), "TypeError: 'int' object is not subscriptable"),
        (at("trainers", 0, "model"), "KeyError: 'model'"),
        (at("trainers", 0, "model", to=3), "its model is a int, not a mapping of names to tensors"),
        (at(*WEIGHT), "head.output.0.weight is missing"),
        (at(*WEIGHT[:-1], "more", to=torch.zeros(2)), "more is unknown"),
        (at(*WEIGHT, to=1.5), "head.output.0.weight is a float, not a tensor"),
        (
            at(*WEIGHT, to=torch.zeros(3)),
            "head.output.0.weight must be float32 of shape (2, 100), is float32 of shape (3,)",
        ),
        (at(*WEIGHT, to=torch.Tensor.double), "head.output.0.weight must be float32 of shape (2, 100), is float64"),
        (at(*WEIGHT, to=lambda old: old.fill_(torch.nan)), "head.output.0.weight is not finite"),
        (at(*WEIGHT, to=torch.Tensor.to_sparse), "a tensor of a kind that is not saved"),
        (at(*WEIGHT, to=lambda old: old.to("meta")), "a tensor of a kind that is not saved"),
        (at(*WEIGHT, to=torch.zeros(1).expand(1 << 40)), "it holds a tensor of 4,194,304.0 MiB"),
    ],
)
def test_states_of_another_network(folder: Path, change: Change, why: str) -> None:
    state = torch.load(folder / STATE_FILE, weights_only=True)
    change(state)
    torch.save(state, folder / STATE_FILE)
    assert why in refusal(folder, STATE_FILE)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (at("round"), "KeyError: 'round'"),
        (at("round", to="1"), "its round must be a whole number in 0..3, is 1"),
        (at("round", to=4), "its round must be a whole number in 0..3, is 4"),
        (at("seconds", to=float("nan")), "its seconds must be ≥ 0 and finite, are nan"),
        (at("train_seconds", to=-1.0), "its train_seconds must be ≥ 0 and finite, are -1.0"),
        (at("trainers", 0, "plan", to=[]), "AttributeError"),
        (at("trainers", 0, "epoch", to="1"), "at no moment of this training"),
        (at("trainers", 0, "epoch", to=2), "at no moment of this training"),
        (at("trainers", 0, "stage", to=7), "at no moment of this training"),
        (at("trainers", 0, "step", to=10**30), "at no moment of this training"),
        (at("trainers", 0, "optimizers", to=[]), "zip() argument"),
        (at("trainers", 0, "optimizers", 0, "param_groups", to=[]), "different number of parameter groups"),
        (
            at("trainers", 0, "optimizers", 0, "state", 0, "exp_avg", to=torch.zeros(7)),
            "exp_avg of an optimizer must be of shape",
        ),
        (at("trainers", 0, "batches", to=torch.zeros(3)), "RNG state must be a torch.ByteTensor"),
        (at("trainers", 0, "global", to={}), "KeyError: 'python'"),
    ],
)
def test_a_trial_does_not_go_on_from_half_a_state(folder: Path, change: Change, why: str) -> None:
    state = torch.load(folder / STATE_FILE, weights_only=True)
    change(state)
    torch.save(state, folder / STATE_FILE)
    trial = Trial(config())
    before = plain(trial.trainers[0].state_dict())
    with pytest.raises(DamagedCheckpoint) as error:
        trial.load(folder)
    assert why in str(error.value)
    assert trial.round == 0
    assert plain(trial.trainers[0].state_dict()) == before


def pickled(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def deflated(content: bytes) -> bytes:
    """The same archive, compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return buffer.getvalue()


def flipped(content: bytes) -> bytes:
    """One bit of one weight is another one, which the pickle in the archive does not show."""
    result = bytearray(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    result[largest.header_offset + 1000] ^= 1
    return bytes(result)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda content: b"", "it is no file of torch.save, or its end is missing"),
        (lambda content: b"torn", "it is no file of torch.save, or its end is missing"),
        (lambda content: content[:-100], "it is no file of torch.save, or its end is missing"),
        (flipped, "is not what was written (its checksum differs)"),
        (deflated, "it is compressed, and torch.save does not compress"),
        (lambda content: pickled([1, 2]), "it holds a list, not the state of a trial"),
        (lambda content: pickled({"trainers": Code()}), "it holds more than plain values and tensors"),
    ],
)
def test_files_that_are_no_state(
    folder: Path, make: Callable[[bytes], bytes], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / STATE_FILE).write_bytes(make((folder / STATE_FILE).read_bytes()))
    assert why in refusal(folder, STATE_FILE)
    assert not (tmp_path / "ran").exists()


def test_a_network_that_its_own_config_makes_far_too_large(folder: Path) -> None:
    """No memory is taken for it: its weights are not there."""
    facts = json.loads((folder / CONFIG_FILE).read_text())
    facts["config"]["model"] |= {"encoder": "dense", "dense_widths": [1 << 16, 1 << 16]}  # 17 GB
    (folder / CONFIG_FILE).write_text(json.dumps(facts))
    with pytest.raises(DamagedCheckpoint, match="its model does not fit its config: "):
        load_model(str(folder), CPU)


@pytest.mark.parametrize(("file", "size"), [(CONFIG_FILE, 1 << 20), (STATE_FILE, 1 << 33)])
def test_files_that_are_too_large_or_none(folder: Path, file: str, size: int) -> None:
    with (folder / file).open("r+b") as out:
        out.truncate(size + 1)  # holes, which take no room
    with pytest.raises(ValueError, match=f"cannot be read: {file} has {size + 1} bytes; allowed are {size}"):
        load_model(str(folder), CPU)
    (folder / file).unlink()
    with pytest.raises(DamagedCheckpoint, match=f"holds no saved model: {file} is missing"):
        Trial(config()).load(folder)
    os.mkfifo(folder / file)  # opened, it would wait for ever
    with pytest.raises(ValueError, match=f"cannot be read: {file} is not a file"):
        load_model(str(folder), CPU)


def test_a_machine_without_memory_is_not_the_checkpoint_s_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Trainer, state: dict[str, Any]) -> None:
        monkeypatch.undo()
        raise MemoryError

    monkeypatch.setattr(Trainer, "load_state_dict", fail)
    with pytest.raises(MemoryError):
        Trial(config()).load(folder)


def test_an_attacker_s_trial_stays_what_it_was(folder: Path, tmp_path: Path) -> None:
    attacker = AttackTrialConfig.model_validate(
        {"checkpoint": str(folder), "attack": {"epochs": 2}, "evaluate_every": 1, "evaluation": {"samples": 6}}
    )
    trial = AttackTrial(attacker)
    trial.run_round()
    trial.save(tmp_path)
    name = next(iter(torch.load(tmp_path / STATE_FILE, weights_only=True)["trainer"]["generator"]))
    before = plain(trial.trainer.state_dict())
    for change, why in (
        (at("trainer"), "KeyError: 'trainer'"),
        (at("round", to=-1), "its round must be a whole number in 0..2, is -1"),
        (at("trainer", "generator", name, to=torch.zeros(1)), f"{name} must be float32"),
        (at("trainer", "discriminator_optimizer", to={}), "KeyError"),
    ):
        damaged = torch.load(tmp_path / STATE_FILE, weights_only=True)
        change(damaged)
        (tmp_path / "damaged").mkdir(exist_ok=True)
        torch.save(damaged, tmp_path / "damaged" / STATE_FILE)
        with pytest.raises(DamagedCheckpoint) as error:
            trial.load(tmp_path / "damaged")
        assert why in str(error.value)
        assert (trial.round, plain(trial.trainer.state_dict())) == (1, before)


def test_arrays_that_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / ARRAYS_FILE, allow_pickle=False, **{"clusters/clean": np.arange(6)})
    content = (tmp_path / ARRAYS_FILE).read_bytes()
    assert arrays_in(content, "there")["clusters/clean"].tolist() == [0, 1, 2, 3, 4, 5]
    for damaged, why in (
        (b"", "it is no .npz file"),
        (content[:-9], "it is no .npz file"),
        (content.replace(b"NUMPY", b"NUMPX"), "clusters/clean: BadZipFile: Bad CRC-32"),
    ):
        with pytest.raises(DamagedCheckpoint) as error:
            arrays_in(damaged, "there")
        assert str(error.value).startswith(f"there/evaluation.npz: is damaged: {why}")
