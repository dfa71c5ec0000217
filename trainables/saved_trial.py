"""What a trial's checkpoint holds, read from files that may be damaged or a stranger's.

No code in a file is ever run, sizes are bounded before anything is unpacked, and whatever is wrong is one
DamagedCheckpoint: a command refuses with it, and a trial goes on from the checkpoint before.
"""

import io
import json
import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ardmvc_core.data.reading import megabytes, one_line, read_archive, reading, reason_of, shown_path
from ardmvc_core.errors import UserError
from ardmvc_core.evaluation.budget import RETIRED
from trainables.config import TrialConfig
from trainables.storage import StorageAway, below, read_file

STATE_FILE = "state.pt"
CONFIG_FILE = "config.json"
ARRAYS_FILE = "evaluation.npz"

LARGEST = {CONFIG_FILE: 1 << 20, ARRAYS_FILE: 1 << 30, STATE_FILE: 1 << 33}
"""Bytes of each file that are read at most; a state of 700 million weights with its optimizer's has 8 GiB."""

NO_MEMORY = (MemoryError, torch.OutOfMemoryError)
"""What says nothing of a checkpoint whose sizes are checked."""

_SHOWN = 3
"""Tensors that a message names."""


class DamagedCheckpoint(UserError, ValueError):
    """A checkpoint that cannot be used; one short line that names the file and what is wrong with it."""


class SavedFacts(BaseModel):
    """`config.json` of a model trial's checkpoint; an older one may lack all but the config."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    config: TrialConfig
    contents: dict[str, str] = {}
    """Part of the data → digest of its content."""
    seeds: int | None = Field(default=None, ge=1)
    """Seeds whose training is behind it, where they are trained one after another."""
    reference_entropy: float | None = Field(default=None, ge=0)
    """Evenness of the study's reference partition, where it has one."""

    @property
    def models(self) -> int:
        """How many models it holds that are trained to their end."""
        return self.config.seeds if self.seeds is None else self.seeds


class HasState(Protocol):
    """What is trained, and can be put back to where it was."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def parsing(
    place: object, name: str, fault: str = "is damaged", *, passing: tuple[type[Exception], ...] = ()
) -> AbstractContextManager[None]:
    """Turns whatever is raised while a checkpoint's file is read, but for `passing`, into DamagedCheckpoint."""
    return reading(below(str(place), name), fault, DamagedCheckpoint, passing)


def content_of(place: str, name: str) -> bytes:
    """A file of a checkpoint (local path or URI).

    Raises: StorageAway if the storage does not answer; ValueError, or its child DamagedCheckpoint, if the file is not
        there or is none that can be read.
    """
    try:
        content = read_file(place, name, LARGEST[name])
    except StorageAway:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{shown_path(place)} cannot be read: {reason_of(error)}") from error
    if content is None:
        raise DamagedCheckpoint(f"{shown_path(place)} holds no saved model: {name} is missing")
    return content


def saved_facts(place: str, data: str | None = None) -> SavedFacts:
    """What the checkpoint of a model trial (local path or URI) tells of it.

    Args: data: where its data lie now, the file or the folder; None: where the trial has read them.
    Raises: ValueError if it is none, or its data are read from no file; StorageAway if the storage does not answer.
    """
    content = content_of(place, CONFIG_FILE)
    with parsing(place, CONFIG_FILE):
        facts = json.loads(content)
    with parsing(place, CONFIG_FILE, "holds no config of a model trial"):
        found = SavedFacts.model_validate(_in_todays_words(facts))
    if data is None:
        return found
    config = found.config.model_copy(update={"dataset": found.config.dataset.at(data)})
    return found.model_copy(update={"config": config})


def _in_todays_words(facts: Any) -> Any:
    """Without settings of an evaluation that is no more: the model is what it was, and is scored by today's."""
    evaluation = facts["config"].get("evaluation", {})
    kept = {
        name: value for name, value in evaluation.items() if name not in RETIRED and (name, value) != ("tier", None)
    }
    return {**facts, "config": {**facts["config"], "evaluation": kept}}


def saved_state(place: str) -> dict[str, Any]:
    """The state in a checkpoint, of plain values and tensors on the CPU. Raises: ValueError if it is none."""
    content = content_of(place, STATE_FILE)
    with parsing(place, STATE_FILE):
        _check_archive(content)
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # PyTorch would advise to read it without this safeguard
            raise ValueError("it holds more than plain values and tensors, or is no pickle that is whole") from error
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}, not the state of a trial")
        _check_tensors(state, len(content))
        return state


def saved_progress(state: Mapping[str, Any], rounds: int) -> tuple[int, float]:
    """Rounds and seconds that a state is behind. Raises: ValueError, KeyError if it is the state of no trial."""
    round_ = state["round"]
    if type(round_) is not int or not 0 <= round_ <= rounds:
        raise ValueError(f"its round must be a whole number in 0..{rounds}, is {one_line(round_)}")
    return round_, saved_seconds(state, "seconds")


def saved_seconds(state: Mapping[str, Any], name: str) -> float:
    """A time in a state. Raises: ValueError, KeyError if it is none."""
    seconds = state[name]
    if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValueError(f"its {name} must be ≥ 0 and finite, are {one_line(seconds)}")
    return float(seconds)


def arrays_in(content: bytes, place: str) -> dict[str, NDArray[Any]]:
    """The arrays of a trial's last evaluation. Raises: DamagedCheckpoint naming an array that cannot be read."""
    with parsing(place, ARRAYS_FILE):
        arrays, faults = read_archive(io.BytesIO(content))
        for key, reason in faults.items():
            raise ValueError(f"{one_line(key)}: {reason}")
        return arrays


def check_weights(found: Any, wanted: Mapping[str, Tensor]) -> None:
    """Compares a saved network with the tensors that its config makes, which may be on the device `meta`.

    Raises: ValueError naming tensors that are missing, too many, of another type or shape, or not finite.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"its model is a {type(found).__name__}, not a mapping of names to tensors")
    faults = [f"{one_line(name)} is unknown" for name in found if name not in wanted]
    for name, tensor in wanted.items():
        if name not in found:
            faults.append(f"{name} is missing")
        elif not isinstance(found[name], Tensor):
            faults.append(f"{name} is a {type(found[name]).__name__}, not a tensor")
        elif (is_ := _kind(found[name])) != (must := _kind(tensor)):
            faults.append(f"{name} must be {must}, is {is_}")
        elif not bool(torch.isfinite(found[name]).all()):
            faults.append(f"{name} is not finite")
    if faults:
        more = f", and {len(faults) - _SHOWN} more faults" if len(faults) > _SHOWN else ""
        raise ValueError(f"its model does not fit its config: {', '.join(faults[:_SHOWN])}{more}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {one_line(tuple(tensor.shape))}"


@contextmanager
def unchanged_if_refused(*trained: HasState) -> Iterator[None]:
    """Puts back what the block had begun to load when it fails, so that nothing goes on from half of a state."""
    before = [each.state_dict() for each in trained]
    try:
        yield
    except BaseException:
        for each, state in zip(trained, before, strict=True):
            each.load_state_dict(state)
        raise


def _check_archive(content: bytes) -> None:
    """Raises: whatever zipfile does, or ValueError, if this is not a whole file as torch.save writes it."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError("it is no file of torch.save, or its end is missing")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, and torch.save does not compress")
        if sum(member.file_size for member in members) > len(content):
            raise ValueError("its members are larger than the file")
        if (name := archive.testzip()) is not None:
            raise ValueError(f"{one_line(name)} is not what was written (its checksum differs)")


def _check_tensors(state: dict[str, Any], size: int) -> None:
    """Raises: ValueError if a tensor is not a plain one on the CPU, or is larger than the file that it comes from."""
    waiting: list[Any] = [state]
    seen: set[int] = set()  # a pickle can hold one list many times over, and itself
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            if item.layout != torch.strided or item.device.type != "cpu" or item.is_quantized:
                raise ValueError(f"it holds a tensor of a kind that is not saved ({item.layout} on {item.device})")
            if item.numel() * item.element_size() > size:
                raise ValueError(
                    f"it holds a tensor of {megabytes(item.numel() * item.element_size())}, and is of {megabytes(size)}"
                )
        elif isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | Set):
            waiting += item
