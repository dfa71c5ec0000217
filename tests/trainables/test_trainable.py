"""A Trainable without Ray goes on from its checkpoints: what is whole by its digests and does not load gives way."""

import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from object_store import ObjectStore

from study.planning.cost import round_costs
from study.planning.preflight import data_facts
from trainables import checkpoints, heartbeat
from trainables.checkpoints import upload
from trainables.config import AttackTrialConfig, TrialConfig
from trainables.heartbeat import Place, place_of
from trainables.trainable import AttackTrainable, ModelTrainable
from trainables.trial import Trial

Damage = Callable[[Path], object]
"""What happens to a checkpoint's folder before its manifest is made anew."""

CONFIG = TrialConfig.model_validate(
    {
        "seed": 3,
        "device": "cpu",
        "dataset": {"name": "noisy_digits", "classes": [0, 1, 2], "samples": 100},
        "model": {"name": "ar_dmvc_am", "train_steps": 1, "train_step_ratio": 1.0},
        "epochs": 3,
        "batch_size": 25,
        "evaluate_every": 1,
        "repeats": 2,
        "evaluation": {"samples": 10, "probe_samples": 10, "tier": "probe"},
    }
)


def given(folder: Path | str, *resume: Path, patience: float = 0.0) -> dict[str, Any]:
    """What the driver gives to a worker."""
    places = [str(place) for place in resume]
    common = {
        "number": 0,
        "threads": 1,
        "patience": patience,
        "limit": {"fixed": 0.0},
        "rounds_behind": 0,
        "whole": False,
        "beat": "b",
    }
    return {**common, "config": CONFIG.model_dump_json(), "folder": str(folder), "resume": places}


def comparable(report: dict[str, Any]) -> dict[str, Any]:
    """What is the same in every run, and is there in every run."""
    places = ("checkpoint", "seconds", "notes")
    return {name: value for name, value in report.items() if not name.startswith("time/") and name not in places}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Checkpoints of rounds 1 and 2 of a trial that was never disturbed, and its first two reports."""
    folder = tmp_path_factory.mktemp("straight")
    trainable = ModelTrainable(given(folder))
    return folder, [trainable.step(), trainable.step()]


@pytest.fixture
def trial(straight: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> tuple[Path, Path, Path]:
    """A copy of that trial: its folder, and its checkpoints of rounds 1 and 2."""
    folder = tmp_path / "trial"
    shutil.copytree(straight[0], folder)
    first, second = sorted(folder.iterdir())
    return folder, first, second


def sealed(folder: Path) -> None:
    """Makes the manifest anew, so that every digest is right."""
    names = sorted(file.name for file in folder.iterdir() if file.name != "manifest.json")
    raw = {name: (folder / name).read_bytes() for name in names}
    facts = {name: {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()} for name, body in raw.items()}
    (folder / "manifest.json").write_text(json.dumps({"files": facts}))


def state(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        found = torch.load(folder / "state.pt", weights_only=True)
        for trainer in found["trainers"]:
            for value in trainer["model"].values():
                value.zero_()  # what is half loaded shows
        change(found)
        torch.save(found, folder / "state.pt")

    return damage


def holding(name: str, raw: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(raw)


def last_weight_of_another_shape(found: dict[str, Any]) -> None:
    model = found["trainers"][-1]["model"]
    name = [name for name, value in model.items() if value.dim() > 1][-1]
    model[name] = torch.zeros(3, 5)


class Code:
    """Runs when it is unpickled by a reader that trusts it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["MARKER"],)


def code(folder: Path) -> None:
    (folder / "state.pt").write_bytes(pickle.dumps(Code()))


def code_in_an_archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / "state.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "state.pt", "w", zipfile.ZIP_STORED) as archive:
        for name, body in members.items():
            archive.writestr(name, pickle.dumps(Code(), protocol=2) if name.endswith("data.pkl") else body)


STATES: dict[str, Damage] = {
    "not a torch file": holding("state.pt", b"weights"),
    "empty": holding("state.pt", b""),
    "cut short": lambda folder: os.truncate(folder / "state.pt", (folder / "state.pt").stat().st_size // 2),
    "missing": lambda folder: (folder / "state.pt").unlink(),
    "code": code,
    "code in an archive": code_in_an_archive,
    "a list": lambda folder: torch.save([1, 2], folder / "state.pt"),
    "an entry missing": state(lambda found: found.pop("round")),
    "no number for a round": state(lambda found: found.update(round="two")),
    "another round": state(lambda found: found.update(round=1)),
    "one seed missing": state(lambda found: found["trainers"].pop()),
    "another shape in the last weight": state(last_weight_of_another_shape),
    "no optimizers": state(lambda found: found["trainers"][-1].pop("optimizers")),
    "a random stream of three bytes": state(lambda f: f["trainers"][-1].update(batches=torch.zeros(3).byte())),
    "a stage that there is not": state(lambda found: found["trainers"][-1].update(stage=99)),
}
CONFIGS: dict[str, Damage] = {
    "config not JSON": holding("config.json", b"{"),
    "config a list": holding("config.json", b"[]"),
    "config not UTF-8": holding("config.json", b"\xff"),
    "config 30,000 deep": holding("config.json", b"[" * 30_000),
    "config of another trial": holding(
        "config.json", json.dumps({"config": CONFIG.model_copy(update={"epochs": 9}).model_dump(mode="json")}).encode()
    ),
}
REPORTS: dict[str, Damage] = {
    "report not JSON": holding("report.json", b"{"),
    "report a list": holding("report.json", b"[]"),
    "report of no round": holding("report.json", b"{}"),
    "report of another round": holding("report.json", b'{"round": 5, "rounds": 3, "done": true}'),
}


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code in a checkpoint would leave a mark, and must not have run."""
    monkeypatch.setenv("MARKER", str(tmp_path / "mark"))
    yield
    assert not (tmp_path / "mark").exists()


@pytest.mark.usefixtures("marker")
@pytest.mark.parametrize("damage", [*STATES, *CONFIGS])
def test_what_does_not_load_gives_way_to_the_round_before(
    straight: tuple[Path, list[dict[str, Any]]], trial: tuple[Path, Path, Path], damage: str
) -> None:
    folder, first, second = trial
    {**STATES, **CONFIGS}[damage](second)
    sealed(second)
    report = ModelTrainable(given(folder, second, first, patience=600)).step()
    assert comparable(report) == comparable(straight[1][1])
    (note,) = json.loads(report["notes"])
    assert note.startswith(f"the checkpoint {second} is damaged: ")
    assert "weights_only" not in note  # no advice to read it without its safeguard


@pytest.mark.parametrize("damage", ["another shape in the last weight", "a random stream of three bytes"])
def test_what_is_half_loaded_is_nothing_to_go_on_from(
    straight: tuple[Path, list[dict[str, Any]]], trial: tuple[Path, Path, Path], damage: str
) -> None:
    """No checkpoint loads: the trial begins anew, as if it had read none."""
    folder, first, second = trial
    for place in (first, second):
        STATES[damage](place)
        sealed(place)
    report = ModelTrainable(given(folder, second, first)).step()
    assert comparable(report) == comparable(straight[1][0])
    assert len(json.loads(report["notes"])) == 2


@pytest.mark.usefixtures("marker")
@pytest.mark.parametrize("damage", ["code in an archive", "another shape in the last weight", *REPORTS])
def test_an_unrecorded_round_that_does_not_load_is_run_again(
    straight: tuple[Path, list[dict[str, Any]]], trial: tuple[Path, Path, Path], damage: str
) -> None:
    folder, first, second = trial
    {**STATES, **REPORTS}[damage](second)
    sealed(second)
    report = ModelTrainable(given(folder, first)).step()
    assert comparable(report) == comparable(straight[1][1])
    assert report["checkpoint"] != str(second)
    assert "notes" not in report


def test_a_file_that_no_trial_writes_makes_a_checkpoint_none(
    straight: tuple[Path, list[dict[str, Any]]], trial: tuple[Path, Path, Path]
) -> None:
    folder, first, second = trial
    (second / "extra.json").write_text("{}")
    sealed(second)
    report = ModelTrainable(given(folder, second, first)).step()
    assert comparable(report) == comparable(straight[1][1])
    assert "manifest.json lists 'extra.json', which is none of " in report["notes"]


def test_a_saved_model_whose_storage_is_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attacker's worker is built while the storage of its target does not answer."""
    model = Trial(CONFIG.model_copy(update={"epochs": 1, "repeats": 1}))
    model.save(tmp_path)
    attack = {"device": "cpu", "checkpoint": "s3://studies/model", "attack": {"epochs": 1}}
    config = AttackTrialConfig.model_validate(attack).model_dump_json()
    with ObjectStore() as store:
        store.install(monkeypatch)
        upload(tmp_path, "s3://studies/model")
        store.refuses_reads = True

        def pause(_: float) -> None:
            store.refuses_reads = False  # at the first pause: the first attempt has failed

        monkeypatch.setattr(checkpoints.time, "sleep", pause)
        trainable = AttackTrainable({**given(tmp_path / "trial", patience=600), "config": config})
        assert store.refused > 0
        assert "waited" in trainable._checkpoints.waited[0]
        assert "cannot build the trial" in trainable._checkpoints.waited[0]


def test_a_worker_tells_how_far_it_is_inside_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and attacks count, those on copies of the model too, and each round from its begin."""
    monkeypatch.setattr(heartbeat._heart, "beat_as", lambda key: None)
    trainable = ModelTrainable(given(tmp_path))
    facts = data_facts(CONFIG.dataset, CONFIG.protocol)
    costs = round_costs(CONFIG, CONFIG.resolved_budget(), facts.sizes, facts.n_clusters)
    for number in range(2):
        trainable.step()
        assert heartbeat._heart.place.round == number
        # A sample that is moved leaves an attack early.
        assert costs[number].forward / 4 < heartbeat._heart.place.passes <= costs[number].forward


@pytest.mark.parametrize("place", [Place(0, 0), Place(3, 10_500)])
def test_what_a_beat_tells_is_read_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(heartbeat.internal_kv, "_internal_kv_put", lambda key, beat, **how: told.append(beat))
    heart = heartbeat._Heart()
    heart.place = place
    heart.tell(7)
    assert place_of(told[0].encode()) == place
