"""`python -m study.data`: what it prints of a file, what it writes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from ardmvc_core.data import DatasetConfig, load_parts
from study import data as command
from study.spec.study_spec import checked_spec
from study.spec.yaml_file import SpecError

N = 40
RNG = np.random.default_rng(2)
FIRST = np.column_stack([np.linspace(0, 2, N), np.linspace(100, 300, N)[::-1], np.full(N, 7)])
SECOND = RNG.integers(0, 9, (N, 6))
LABELS = np.arange(N) % 4 * 10 + 3


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two views as columns, one feature constant, rows 4 and 9 equal, labels 3, 13, 23 and 33."""
    views = np.empty((1, 2), dtype=object)
    first, second = FIRST.copy(), SECOND.copy()
    first[9], second[9] = first[4], second[4]
    views[0, 0], views[0, 1] = first.T, second.T
    scipy.io.savemat(tmp_path / "own.mat", {"X": views, "gt": LABELS})
    return tmp_path / "own.mat"


def run(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = command.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_what_a_file_holds_and_what_becomes_of_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("inspect", file, capsys=capsys)
    assert code == 0
    for line in (
        "own.mat (MATLAB 5) holds",
        "  X: cell of 2: 3 × 40, float64, 6 × 40, int64",
        "  gt: 1 × 40, int64",
        "40 samples (its columns), 2 views, 4 clusters",
        "labels: gt, numbered 3 … 33; 10 to 10 samples a class (3: 10, 13: 10, 23: 10, 33: 10)",
        "duplicates: 2 samples equal another one in every view, counted from 0: 4 = 9",
        "parts (strict): train 20, tune 8, attacker 6, score 6",
        "parts (official): train 20, attack 20",
        "1 features that do not vary in the training part are left out.",
        f"In a study: trial.dataset: {{name: file, path: {file}}}",
    ):
        assert line in out.replace("; 1 of the groups lie in more than one part", "")


def test_eps_is_shown_in_the_units_of_the_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = load_parts(DatasetConfig(name="file", path=str(file)), "strict")["train"].indices.numpy()
    stored = scipy.io.loadmat(file)["X"][0, 0].T[rows]
    steps = sorted(0.1 * (stored.max(0) - stored.min(0))[:2])
    _, out, _ = run("inspect", file, "--eps", "0.1", capsys=capsys)
    assert f"0.1 of each feature's range: {steps[0]:.3g} … {steps[1]:.3g} as stored" in out


def test_the_same_for_programs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("inspect", file, "--json", "--set", "scale=standard", capsys=capsys)
    found = json.loads(out)
    assert code == 0
    assert (found["samples"], found["n_clusters"], found["orientation"]) == (40, 4, "columns")
    assert found["class_sizes"] == {"3": 10, "13": 10, "23": 10, "33": 10}
    assert found["duplicates"] == [[4, 9]]
    assert [view["scale"] for view in found["views"]] == ["standard", "standard"]
    assert [view["left_out"] for view in found["views"]] == [1, 0]


def test_what_was_converted_is_the_same_data(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "views.npz"
    code, said, _ = run("convert", file, "--out", out, capsys=capsys)
    assert code == 0
    assert f"trial.dataset: {{name: file, path: {out}, orientation: rows}}" in said
    with np.load(out) as arrays:
        np.testing.assert_array_equal(arrays["labels"], LABELS)
        np.testing.assert_array_equal(arrays["view_0"][5], FIRST[5])
    parts = [load_parts(DatasetConfig(name="file", path=str(place)), "strict") for place in (file, out)]
    assert [part.digest for part in parts[0].values()] == [part.digest for part in parts[1].values()]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["inspect", "--out", "x.npz"], "--out: names the file that convert writes"),
        (["convert"], "--out: names the file that convert writes"),
        (["inspect", "--eps", "2"], "--eps: must be in (0, 1]"),
        (["inspect", "--eps", "nan"], "--eps: must be in (0, 1]"),
        (["inspect", "--set", "scale=percent"], "scale"),
        (["inspect", "--set", "scael=none"], "--set: scael: unknown key"),
        (["inspect", "--set", "n_clusters=1"], "n_clusters: must be in [2, 1000000], got 1"),
        (["inspect", "--set", "views"], "--set views: must be path=value"),
        (["inspect", "--set", "n_clusters=3"], "n_clusters must be one integer ≥ 4, got 3"),
        (["inspect", "--set", "scale=[none]"], "dataset.scale must be one, or one for each of 2 views, got 1"),
        (["inspect", "--set", "views=Y"], "dataset.views: there is no Y, got X, gt"),
    ],
)
def test_what_is_refused(words: list[str], why: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(words[0], file, *words[1:], capsys=capsys)
    assert code == 2
    assert why in err
    assert "Traceback" not in err


def test_a_file_that_is_no_data_still_shows_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scipy.io.savemat(tmp_path / "own.mat", {"data": FIRST, "y": LABELS, "info": {"when": 3}, "name": "text"})
    code, out, err = run("inspect", tmp_path / "own.mat", capsys=capsys)
    assert code == 2
    assert "  data: 40 × 3, float64\n" in out
    assert "  info: struct with when\n" in out
    assert "  name: text\n" in out
    assert "at least two views are needed" in err


def study(**changes: Any) -> dict[str, Any]:
    trial = {"model": {"name": "comvc"}, "dataset": {"name": "file", "path": "own.mat", "n_clusters": 5}}
    return {"name": "tiny", "trial": trial, **changes}


def test_without_labels_and_an_objective_trials_are_chosen_by_agreement() -> None:
    spec = checked_spec("study", study())
    assert [(goal.metric, goal.mode) for goal in spec.objectives] == [("select/pra", "max")]
    assert spec.trial_config({}).selection is not None
    assert checked_spec("study", spec.resolved()).resolved() == spec.resolved()


def test_an_objective_that_is_given_stays() -> None:
    spec = checked_spec("study", study(objective={"metric": "robust/kappa", "mode": "max"}))
    assert [goal.metric for goal in spec.objectives] == ["robust/kappa"]
    assert spec.trial_config({}).selection is None


def test_a_number_of_clusters_belongs_to_a_users_file() -> None:
    spec = study()
    spec["trial"]["dataset"] = {"name": "noisy_digits", "n_clusters": 5}
    with pytest.raises(SpecError, match="n_clusters: must be left out for noisy_digits, got 5"):
        checked_spec("study", spec)
