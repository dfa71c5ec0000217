"""`~` and `$NAME` in places: replaced, or refused with a reason."""

import os
import re
from typing import Any

import pytest

from ardmvc_core.data import DatasetConfig, check_dataset
from ardmvc_core.places import expanded


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DISK", "/disk 1")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("~", "/home/me"),
        ("~/runs", "/home/me/runs"),
        ("$HOME/runs", "/home/me/runs"),
        ("${DISK}/runs", "/disk 1/runs"),
        ("s3://bucket/$HOME", "s3://bucket//home/me"),
        ("./~x", "./~x"),
        ("runs/a~b", "runs/a~b"),
        ("a?b#c%41 [ü]", "a?b#c%41 [ü]"),
        ("~root/x", f"{os.path.expanduser('~root')}/x"),
    ],
)
def test_replaced(given: str, meant: str) -> None:
    assert expanded(given) == meant
    assert expanded(meant) == meant


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "must name a place, got ''"),
        ("$UNSET/runs", "'$UNSET/runs': the variable $UNSET is not set"),
        ("$EMPTY/runs", "'$EMPTY/runs': the variable $EMPTY is not set"),
        ("runs/5$", "'runs/5$': a `$` must begin a variable such as $HOME"),
        ("runs/$$HOME", "a `$` must begin a variable"),
        ("~nobody-of-that-name/runs", "~nobody-of-that-name has no home folder here"),
    ],
)
def test_refused_with_the_value(given: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        expanded(given)


@pytest.mark.parametrize("name", ["noisy_mnist", "regdb"])
def test_a_folder_of_data(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (fault,) = check_dataset(DatasetConfig(name=name, root="$UNSET/data"))
    assert "the variable $UNSET is not set" in fault
    (fault,) = check_dataset(DatasetConfig(name=name, root="$DISK/none"))
    assert "/disk 1/none" in fault
    monkeypatch.setenv("ARDMVC_DATA", "$UNSET/data")
    (fault,) = check_dataset(DatasetConfig(name=name))
    assert "the variable $UNSET is not set" in fault


def test_a_file_of_data() -> None:
    (fault,) = check_dataset(DatasetConfig(name="npz", path="$UNSET/views.npz"))
    assert "the variable $UNSET is not set" in fault
    (fault,) = check_dataset(DatasetConfig(name="npz", path="$DISK/views.npz"))
    assert "/disk 1/views.npz" in fault
