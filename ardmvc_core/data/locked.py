"""Labels under lock: selection is shown a data set that has none, and any look at them before `unblind` is known of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from torch import Tensor

from ardmvc_core.data.dataset import MultiViewDataset


class LabelsLocked(RuntimeError):
    """Labels were used that are still locked; the message says how they were used and what to do."""


class Unblinding:
    """Keeps the labels of one data set, and an account of who asked for them.

    Args:   labels: (N,) int64, or None where the data set has none.
    """

    def __init__(self, labels: Tensor | None) -> None:
        self._labels = labels
        self._read = False
        self._tried = False

    @property
    def read(self) -> bool:
        """Whether `unblind` was called."""
        return self._read

    @property
    def tried(self) -> bool:
        """Whether a `RaisingLabels` was used before `unblind` was called."""
        return self._tried

    def unblind(self) -> Tensor | None:
        """The labels, (N,) int64, None where there are none. To be called once nothing is left to choose."""
        self._read = True
        return self._labels

    def refuse(self, use: str) -> NoReturn:
        """Notes that labels were used and raises LabelsLocked; `use` says how, for the message."""
        self._tried = self._tried or not self._read
        raise LabelsLocked(
            f"labels are locked and were used ({use}): choose without them, "
            "and when all is chosen take them from what Unblinding.unblind() returns"
        )


def locked(dataset: MultiViewDataset) -> tuple[MultiViewDataset, Unblinding]:
    """The data set without its labels, and what keeps them; the labels are not touched.

    Whatever is made of the result (`to`, `subset`) has no labels either. A data set from `trapped` keeps its own
    `Unblinding`, which gives the labels behind the trap.
    """
    labels = dataset.labels
    holder = _holder_of(labels) if isinstance(labels, RaisingLabels) else Unblinding(labels)
    return replace(dataset, labels=None), holder


def trapped(dataset: MultiViewDataset) -> tuple[MultiViewDataset, Unblinding]:
    """The data set with `RaisingLabels` in place of its labels, and what keeps them: to prove that code is blind.

    Its `to` and `subset` raise as well, because they would move labels; code that is blind begins with `locked`.
    """
    bare, holder = locked(dataset)
    # Past the constructor, which would ask for the length.
    object.__setattr__(bare, "labels", RaisingLabels(holder))
    return bare, holder


class RaisingLabels:
    """Stands where labels would, and raises LabelsLocked on every use, whatever the holder has given out since.

    Only its type and its text can be looked at; copying and pickling raise too, since a copy would hold the labels.
    """

    def __init__(self, holder: Unblinding) -> None:
        self._holder = holder

    def __repr__(self) -> str:
        return "RaisingLabels(locked)"

    def __getattr__(self, name: str) -> NoReturn:
        # Reached for all that is no attribute of this class: shape, to, numpy, max, __array_interface__, …
        _holder_of(self).refuse(f".{name}")

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> NoReturn:
        use = f"torch function {getattr(func, '__name__', func)}"
        _first_holder((args, kwargs)).refuse(use)


def _holder_of(labels: RaisingLabels) -> Unblinding:
    return object.__getattribute__(labels, "_holder")


def _first_holder(values: Any) -> Unblinding:
    """Of the first RaisingLabels in nested arguments; a new one if there is none to be found."""
    waiting = [values]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, RaisingLabels):
            return _holder_of(value)
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    return Unblinding(None)


def _refusal(name: str) -> Callable[..., NoReturn]:
    def use(self: RaisingLabels, *args: Any, **kwargs: Any) -> NoReturn:
        _holder_of(self).refuse(name)

    return use


# Python and NumPy look these up on the class and never ask __getattr__.
_LOOKED_UP_ON_THE_CLASS = """
    len getitem setitem delitem iter contains reversed bool int float complex index bytes hash
    eq ne lt le gt ge neg pos abs invert array array_ufunc array_function copy deepcopy reduce reduce_ex
"""
_WITH_TWO_SIDES = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift divmod"
for _name in (
    *_LOOKED_UP_ON_THE_CLASS.split(),
    *(f"{side}{name}" for name in _WITH_TWO_SIDES.split() for side in ("", "r", "i")),
):
    setattr(RaisingLabels, f"__{_name}__", _refusal(f"__{_name}__"))
