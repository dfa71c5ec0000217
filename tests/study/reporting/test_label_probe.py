"""The label probe: bounds worked out by hand, and files that do not fit."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ardmvc_core.evaluation.intervals import Interval
from ardmvc_core.selection.reference_partition import ReferencePartition
from study.ranking.label_free import NOT_CORRECTNESS
from study.records import TrialRecord
from study.report import main
from study.reporting.label_probe import label_probe_page, probe_page, read_probe
from study.spec.yaml_file import SpecError
from trainables import data_parts
from trainables.config import TrialConfig

TRIAL = {
    "dataset": {"name": "noisy_digits", "classes": [0, 1, 2], "samples": 200},
    "model": {"name": "ar_dmvc_am"},
    "selection": {"reference_runs": 2},
}
SPEC = {"trial": TRIAL, "objective": {"metric": "select/pra", "mode": "max"}}


@pytest.fixture(autouse=True)
def _own_data() -> Iterator[None]:
    yield
    data_parts.forget_parts()


def record(number: int, pra: float, **changes: Any) -> TrialRecord:
    return TrialRecord(number=number, state="COMPLETE", values=(pra,), metrics={"select/pra": pra}, **changes)


def test_the_page_bounds_robust_acc_on_both_sides_of_pra() -> None:
    scored = [record(3, 0.9), record(0, 0.1, baseline=True)]
    page = probe_page("name", scored, Interval(0.06, 0.02, 0.16, 0.95), 50, 180)
    assert "50 labelled samples of the 180 that the vote is on" in page
    assert "wrong on 0.060 [0.020, 0.160] of them" in page
    assert "differ by at most 0.160" in page
    assert "| 3 | 0.900 | 0.740 to 1.000 |" in page
    assert "| 0 (baseline) | 0.100 | 0.000 to 0.260 |" in page
    assert NOT_CORRECTNESS in page


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(["sample,label", *lines]))
    return path


def test_a_probe_is_read_line_by_line(tmp_path: Path) -> None:
    assert read_probe(written(tmp_path / "a.csv", ["7,0", "", " 12 , 2"])) == {2: (7, 0), 4: (12, 2)}
    (tmp_path / "b.csv").write_bytes("\ufeffsample,label\r\n1,2\r\n".encode())
    assert read_probe(tmp_path / "b.csv") == {2: (1, 2)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the first line must be sample,label, got ''"),
        (b"id;class\n1;2\n", "the first line must be sample,label, got 'id;class'"),
        (b"label,sample\n1,2\n", "the first line must be sample,label, got 'label,sample'"),
        (b"sample,label\n1,2,3\n", "line 2 must be two whole numbers ≥ 0, sample,label, got '1,2,3'"),
        (b"sample,label\n1,cat\n", "line 2 must be two whole numbers ≥ 0, sample,label, got '1,cat'"),
        (b"sample,label\n-1,0\n", "line 2 must be two whole numbers ≥ 0, sample,label, got '-1,0'"),
        (b"sample,label\n1,0.5\n", "got '1,0.5'"),
        ("sample,label\n١,0\n".encode(), "line 2 must be two whole numbers"),
        (b"sample,label\n5,0\n6,0\n5,1\n", "line 4: sample 5 must stand there once, it is on line 2"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "cannot be read: .*a CSV file of the columns sample,label is needed"),
        (b'sample,label\n"1,2\n', "cannot be read: .*a CSV file of the columns sample,label is needed"),
        (b"sample,label\n" + b"1,2\n" * 300_000, "has 1,200,013 bytes, at most 1,048,576 are read"),
        (None, "no such file"),
    ],
)
def test_a_file_that_is_no_probe_ends_with_2_before_the_study_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    file = tmp_path / "labels.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SpecError, match=message):
        read_probe(file)
    # There is no such study: the file is what is named.
    assert main(["none", "--storage", str(tmp_path / "runs"), "--label-probe", str(file)]) == 2
    said = capsys.readouterr().err
    assert "--label-probe" in said
    assert "labels.csv" in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def voted(folder: Path) -> tuple[list[int], np.ndarray, list[TrialRecord]]:
    """A study's folder with a vote of the true classes: samples, their classes, and a trial that was scored by it."""
    tune = data_parts.cached_parts(TrialConfig.model_validate(TRIAL).dataset, "strict")["tune"]
    assert tune.data.labels is not None
    classes = tune.data.labels.numpy()
    vote = ReferencePartition(
        clusters=(classes + 1) % 3,
        weights=np.ones(len(classes)),
        agreement=1.0,
        reliable=True,
        kept=(0, 1),
        entropy=1.0,
        largest_share=0.4,
    )
    (folder / "name").mkdir()
    np.savez_compressed(folder / "name" / "reference.npz", allow_pickle=False, **vote.to_arrays())
    trial = record(0, 0.8, budget=f"budget-{tune.digest[:8]}-{vote.digest()[:8]}")
    return tune.indices.tolist(), classes, [trial]


def test_labels_are_matched_by_the_row_of_the_data_set(tmp_path: Path) -> None:
    samples, classes, records = voted(tmp_path)
    # Backwards, so that places in the vote and lines of the file differ; the first label is a wrong one.
    labels = classes[::-1].copy()[:20]
    labels[0] = (labels[0] + 1) % 3
    pairs = zip(samples[::-1][:20], labels.tolist(), strict=True)
    probe = dict(enumerate(pairs, 2))
    page = label_probe_page("name", records, SPEC, str(tmp_path), probe)
    assert f"20 labelled samples of the {len(samples)} that the vote is on" in page
    assert "wrong on 0.050 [" in page


def fault(tmp_path: Path, probe: dict[int, tuple[int, int]], records: list[TrialRecord], spec: Any = SPEC) -> str:
    with pytest.raises(SpecError) as caught:
        label_probe_page("name", records, spec, str(tmp_path), probe)
    return str(caught.value)


def test_a_probe_that_does_not_fit_the_vote_is_refused(tmp_path: Path) -> None:
    samples, classes, records = voted(tmp_path)
    whole = {line: (sample, int(c)) for line, (sample, c) in enumerate(zip(samples, classes, strict=True), 2)}
    assert "label must be in 0..2, got 3" in fault(tmp_path, {**whole, 5: (samples[3], 3)}, records)
    unknown = fault(tmp_path, {**whole, 900: (10**6, 0)}, records)
    assert f"line 900: sample 1000000 is none of the {len(samples)} that the vote is on" in unknown
    few = fault(tmp_path, dict(list(whole.items())[:14]), records)
    assert "at least 15 labelled samples are needed (5 per cluster), got 14" in few
    # Which samples to label is told, drawn at random from those of the vote.
    drawn = few.split("drawn at random: ")[1].splitlines()[0]
    told = {int(cell) for cell in next(csv.reader(io.StringIO(drawn), skipinitialspace=True))}
    assert len(told) == min(50, len(samples))
    assert told <= set(samples)


def test_a_study_without_the_vote_that_scored_it_is_refused(tmp_path: Path) -> None:
    _, _, records = voted(tmp_path)
    unscored = TrialRecord(number=0, state="COMPLETE", values=(0.5,), metrics={"robust/acc": 0.5})
    robust = {**SPEC, "objective": {"metric": "robust/acc", "mode": "max"}}
    assert "needs complete trials with select/pra" in fault(tmp_path, {}, [unscored], robust)
    other = [record(0, 0.8, budget="budget-00000000-00000000")]
    assert "are not those that trials of 'name' met" in fault(tmp_path, {}, other)
    np.savez(tmp_path / "name" / "reference.npz", clusters=np.zeros(3, np.int64))
    assert "reference.npz: is a reference partition of version 1" in fault(tmp_path, {}, records)
    (tmp_path / "name" / "reference.npz").unlink()
    assert "reference.npz is missing" in fault(tmp_path, {}, records)
