import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ardmvc_core.data.dataset import MultiViewDataset
from ardmvc_core.data.locked import LabelsLocked, RaisingLabels, locked, trapped
from ardmvc_core.evaluation.metrics import clustering_scores
from ardmvc_core.evaluation.score_card import as_array

USES: dict[str, Callable[[Any], Any]] = {
    "index": lambda labels: labels[0],
    "slice": lambda labels: labels[:2],
    "mask": lambda labels: labels[torch.tensor([True, False])],
    "write": lambda labels: labels.__setitem__(0, 1),
    "len": len,
    "iterate": list,
    "unpack": lambda labels: [*labels],
    "in": lambda labels: 1 in labels,
    "bool": bool,
    "int": int,
    "float": float,
    "range": lambda labels: range(labels),
    "equal": lambda labels: labels == 1,
    "not equal": lambda labels: labels != torch.zeros(4),
    "less": lambda labels: labels < 1,
    "more": lambda labels: labels >= 1,
    "add": lambda labels: labels + 1,
    "added to": lambda labels: 1 + labels,
    "added to a tensor": lambda labels: torch.zeros(4) + labels,
    "compared by a tensor": lambda labels: torch.zeros(4) == labels,
    "compared by an array": lambda labels: np.zeros(4) == labels,
    "added to an array": lambda labels: np.zeros(4) + labels,
    "negate": lambda labels: -labels,
    "invert": lambda labels: ~labels,
    "hash": hash,
    "to": lambda labels: labels.to("cpu"),
    "cpu": lambda labels: labels.detach().cpu(),
    "numpy": lambda labels: labels.numpy(),
    "tolist": lambda labels: labels.tolist(),
    "shape": lambda labels: labels.shape,
    "dtype": lambda labels: labels.dtype,
    "max": lambda labels: labels.max(),
    "asarray": np.asarray,
    "array": np.array,
    "unique": np.unique,
    "bincount": np.bincount,
    "concatenate": lambda labels: np.concatenate([np.zeros(4), labels]),
    "mean": np.mean,
    "np.equal": lambda labels: np.equal(labels, 1),
    "as_tensor": torch.as_tensor,
    "tensor": torch.tensor,
    "torch.equal": lambda labels: torch.equal(labels, torch.zeros(4)),
    "torch.unique": torch.unique,
    "torch.bincount": torch.bincount,
    "torch.stack": lambda labels: torch.stack([torch.zeros(4), labels]),
    "index of a tensor": lambda labels: torch.eye(3)[labels],
    "index of an array": lambda labels: np.eye(3)[labels],
    "cross_entropy": lambda labels: torch.nn.functional.cross_entropy(torch.zeros(4, 3), labels),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "attribute": lambda labels: getattr(labels, "anything", None),
    "as_array": as_array,
    "scores": lambda labels: clustering_scores(labels, np.zeros(4, dtype=int), 3),
}


@pytest.fixture
def dataset() -> MultiViewDataset:
    views = (torch.rand(4, 2), torch.rand(4, 3))
    return MultiViewDataset(name="tiny", views=views, labels=torch.tensor([0, 2, 1, 1]), n_clusters=3)


def test_locked_data_have_no_labels_until_they_are_unblinded(dataset: MultiViewDataset) -> None:
    bare, holder = locked(dataset)
    assert bare.labels is bare.subset([0, 1]).labels is bare.to("cpu").labels is None
    assert bare.views is dataset.views
    assert (bare.n_clusters, bare.name) == (3, "tiny")
    assert dataset.labels is not None
    assert (holder.read, holder.tried) == (False, False)
    assert holder.unblind() is dataset.labels
    assert (holder.read, holder.tried) == (True, False)


def test_data_without_labels_can_be_locked(dataset: MultiViewDataset) -> None:
    bare, holder = locked(replace(dataset, labels=None))
    assert bare.labels is holder.unblind() is None


@pytest.mark.parametrize("use", sorted(USES))
def test_every_use_of_trapped_labels_raises(dataset: MultiViewDataset, use: str) -> None:
    spied, holder = trapped(dataset)
    assert isinstance(spied.labels, RaisingLabels)
    assert not holder.tried
    with pytest.raises(LabelsLocked, match=r"choose without them.*Unblinding\.unblind\(\)"):
        USES[use](spied.labels)
    assert (holder.read, holder.tried) == (False, True)


def test_trapped_data_raise_where_labels_would_be_moved(dataset: MultiViewDataset) -> None:
    spied, holder = trapped(dataset)
    with pytest.raises(LabelsLocked, match=r"\(\.to\)"):
        spied.to("cpu")
    with pytest.raises(LabelsLocked, match=r"\(__getitem__\)"):
        spied.subset([0, 1])
    assert holder.tried


def test_looking_past_trapped_labels_is_no_use(dataset: MultiViewDataset) -> None:
    spied, holder = trapped(dataset)
    assert len(spied) == 4
    assert spied.view_shapes == ((2,), (3,))
    assert "RaisingLabels(locked)" in f"{spied} {spied.labels}"
    assert not isinstance(spied.labels, torch.Tensor)
    assert not holder.tried


def test_locking_does_not_spring_the_trap(dataset: MultiViewDataset) -> None:
    spied, holder = trapped(dataset)
    bare, same = locked(spied)
    assert same is holder
    assert bare.labels is bare.to("cpu").subset([1]).labels is None
    assert not holder.tried
    assert same.unblind() is dataset.labels


def test_the_trap_stays_but_is_no_offence_after_unblinding(dataset: MultiViewDataset) -> None:
    spied, holder = trapped(dataset)
    holder.unblind()
    with pytest.raises(LabelsLocked, match="labels are locked"):
        len(spied.labels)
    assert (holder.read, holder.tried) == (True, False)
