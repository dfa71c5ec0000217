"""Checkpoints that are damaged or made up: a network, or one short ValueError; no code of theirs is run."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import altered, damaged, fuzzed, refusing, values
from hypothesis import given
from hypothesis import strategies as st

from trainables.building import load_model
from trainables.config import TrialConfig
from trainables.saved_trial import ARRAYS_FILE, CONFIG_FILE, STATE_FILE, arrays_in, saved_facts
from trainables.trial import Trial

CPU = torch.device("cpu")


def config() -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "dataset": {"name": "noisy_digits", "classes": [0, 1], "samples": 60},
            "model": {"name": "comvc", "encoder": "dense", "dense_widths": [8, 4]},
            "epochs": 2,
            "batch_size": 25,
            "evaluation": {"samples": 6, "probe_samples": 6, "tier": "probe"},
        }
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial's checkpoint, as it is written."""
    folder = tmp_path_factory.mktemp("whole")
    trial = Trial(config())
    trial.trainers[0].run_epoch()  # from now on the optimizer remembers
    trial.save(folder)
    np.savez_compressed(folder / ARRAYS_FILE, allow_pickle=False, **{"clusters/clean": np.arange(6)})
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to be damaged; data sets are looked for where there are none."""
    monkeypatch.setenv("ARDMVC_DATA", str(tmp_path))
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@given(data=st.data())
@fuzzed(100)
def test_configs(folder: Path, data: st.DataObject, whole: Path) -> None:
    content = (whole / CONFIG_FILE).read_bytes()
    facts = json.loads(content)
    made_up = st.one_of(altered(facts, values()), altered(facts, values()), values()).map(
        lambda tree: json.dumps(tree).encode()
    )
    (folder / CONFIG_FILE).write_bytes(data.draw(st.one_of(damaged(content), made_up, made_up)))
    with refusing(folder, ValueError):
        saved_facts(str(folder))
        load_model(str(folder), CPU)


def tensors() -> st.SearchStrategy[Any]:
    """What a state can hold in place of a tensor or a number."""
    return st.one_of(
        values().filter(lambda value: "\ud800" not in repr(value)),
        st.sampled_from(
            [
                torch.zeros(3),
                torch.full((2, 100), torch.nan),
                torch.zeros(1).expand(1 << 40),
                torch.zeros(2, dtype=torch.complex64),
                torch.eye(3).to_sparse(),
                torch.zeros(5, device="meta"),
                torch.tensor(1, dtype=torch.int8),
                torch.nn.Parameter(torch.zeros(2)),
            ]
        ),
    )


def trees(item: Any) -> Any:
    """Mappings of a state as plain ones, which can be altered."""
    if isinstance(item, dict):
        return {key: trees(entry) for key, entry in item.items()}
    return [trees(entry) for entry in item] if isinstance(item, list) else item


@st.composite
def repacked(draw: st.DrawFn, content: bytes) -> bytes:
    """An archive of torch's with one of its members damaged, whose checksums are right again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w") as target:
        names = source.namelist()
        chosen = draw(st.sampled_from([names[0], names[0], names[0], *names]))  # the first is the pickle
        kind = draw(st.sampled_from([zipfile.ZIP_STORED] * 7 + [zipfile.ZIP_DEFLATED]))
        for name in names:
            member = source.read(name)
            target.writestr(name, draw(damaged(member, 2)) if name == chosen else member, kind)
    return buffer.getvalue()


@st.composite
def states(draw: st.DrawFn, whole: Path) -> bytes:
    """A state that is damaged, damaged within its archive, or another tree of values and tensors."""
    content = (whole / STATE_FILE).read_bytes()
    match draw(st.sampled_from(["damaged", "repacked", "altered"])):
        case "damaged":
            return draw(damaged(content))
        case "repacked":
            return draw(repacked(content))
    buffer = io.BytesIO()
    torch.save(draw(altered(trees(torch.load(whole / STATE_FILE, weights_only=True)), tensors())), buffer)
    return buffer.getvalue()


@given(data=st.data())
@fuzzed(120)
def test_states(folder: Path, data: st.DataObject, whole: Path) -> None:
    content = data.draw(states(whole))
    (folder / STATE_FILE).write_bytes(content)
    with refusing(folder, ValueError):
        load_model(str(folder), CPU)
    with refusing(folder, ValueError):
        resumed(whole).load(folder)


_resumed: list[Trial] = []


def resumed(whole: Path) -> Trial:
    """One trial for all examples, since a load that is refused leaves it as it was."""
    if not _resumed:
        _resumed.append(Trial(config()))
    _resumed[0].load(whole)
    return _resumed[0]


@given(data=st.data())
@fuzzed(60)
def test_arrays(folder: Path, data: st.DataObject, whole: Path) -> None:
    content = data.draw(damaged((whole / ARRAYS_FILE).read_bytes()))
    with refusing(folder, ValueError):
        arrays_in(content, str(folder))
