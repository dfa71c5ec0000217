"""Data are known by what they hold: a changed file is refused wherever it is read, a moved one is read."""

import json
import logging
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_studies import study_dict, write_study

from study import confirm, evaluate, report, sweep
from study.database.ledger import Ledger
from study.database.score_uses import all_uses
from study.reporting import unblinding
from study.robustness.request import prepare
from trainables.config import TrialConfig
from trainables.trial import Trial

Refused = Callable[..., str]


def write_data(file: Path, scale: float = 1.0) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    views = {f"view_{v}": np.clip((labels[:, None] + rng.random((120, 4))) / 4 * scale, 0, 1) for v in (0, 1)}
    np.savez(file, labels=labels, **views)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study of a data file that it names by a relative path, and the folder is left."""
    folder, before = tmp_path_factory.mktemp("study"), Path.cwd()
    study = study_dict(folder)
    study["trial"] |= {"dataset": {"name": "npz", "path": "own.npz"}, "epochs": 2, "evaluate_every": 2}
    study |= {"limits": {"trials": 4, "failures": 0}, "storage": {"path": "runs"}}
    write_data(folder / "own.npz")
    os.chdir(folder)
    try:
        assert sweep.main([str(write_study(folder, study))]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same, as the working folder; afterwards the data are what they were."""
    monkeypatch.chdir(finished)
    for variable in ("ARDMVC_STUDY_DB", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    yield finished
    write_data(finished / "own.npz")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command, which must be refused with one message, and returns the message."""

    def run(main: Callable[[list[str]], int], *arguments: str) -> str:
        assert main(list(arguments)) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert "Traceback" not in output.err
        return output.err

    return run


@pytest.mark.parametrize("flags", [(), ("--trials", "3"), ("--dry-run",)])
def test_a_study_does_not_go_on_with_a_changed_file(here: Path, refused: Refused, flags: tuple[str, ...]) -> None:
    write_data(here / "own.npz", scale=0.9)
    message = refused(sweep.main, "tiny.yaml", *flags)
    assert "study 'tiny' exists with other data" in message
    assert "--set name=" in message
    before, after = message.split("data.trial.strict: ")[1].splitlines()[0].split(" → ")
    assert before != after
    assert len(before) == len(after) == len('"0123456789abcdef"')


@pytest.mark.parametrize("flags", [("--top", "1", "--seeds", "2"), ("--top", "1", "--seeds", "2", "--dry-run")])
def test_a_study_is_not_confirmed_on_a_changed_file(here: Path, refused: Refused, flags: tuple[str, ...]) -> None:
    write_data(here / "own.npz", scale=0.9)
    message = refused(confirm.main, "tiny", *flags)
    assert "not the data that its trial has run on" in message
    assert message.count(" → ") == 2  # of the searched trial and the baseline
    with Ledger.open_existing("tiny").engine.connect() as connection:
        assert all_uses(connection) == []


def test_a_model_is_not_evaluated_on_a_changed_file(here: Path, refused: Refused) -> None:
    write_data(here / "own.npz", scale=0.9)
    message = refused(evaluate.main, "study:tiny/0")
    assert "its data are not those that are found here (part train: " in message
    assert " → " in message


def test_an_attacker_study_does_not_attack_on_a_changed_file(
    here: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_dict(here, name="attack", trainable="attacker", trial={"checkpoint": "study:tiny/0"}, baselines=[])
    study |= {"space": {"attack.mu_com": {"log_uniform": [0.01, 100]}}, "storage": {"path": "runs"}}
    study["objective"] = {"metric": "gan/flip", "mode": "max"}
    file = str(write_study(here, study))
    assert sweep.main([file, "--dry-run"]) == 0
    capsys.readouterr()
    write_data(here / "own.npz", scale=0.9)
    message = refused(sweep.main, file)
    assert "trial.checkpoint: " in message
    assert "part train: " in message
    # Moved, it is found where the study says it is.
    write_data(here / "own.npz")
    (here / "own.npz").rename(here / "moved.npz")
    assert "no such file" in refused(sweep.main, file)
    assert sweep.main([file, "--dry-run", "--set", "trial.data=moved.npz"]) == 0


def test_a_file_that_is_read_as_another_kind_of_number_is_changed(here: Path, refused: Refused) -> None:
    """K, not a view or a label: the parts' arrays are what they were."""
    arrays = dict(np.load(here / "own.npz"))
    np.savez(here / "own.npz", n_clusters=4, **arrays)
    assert "exists with other data" in refused(sweep.main, "tiny.yaml")


def test_a_moved_file_goes_on(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "own.npz").rename(tmp_path / "renamed.npz")
    moved = f"trial.dataset.path={tmp_path / 'renamed.npz'}"
    assert sweep.main(["tiny.yaml", "--set", moved]) == 0
    assert "is finished" in capsys.readouterr().out
    assert confirm.main(["tiny", "--top", "1", "--seeds", "2", "--dry-run"]) == 0  # the study knows where they lie now
    named = capsys.readouterr().out.splitlines()[0]
    write_data(here / "own.npz")
    flags = ["--dry-run", "--set", f"trial.dataset.path={here / 'own.npz'}"]
    assert confirm.main(["tiny", "--top", "1", "--seeds", "2", *flags]) == 0
    assert capsys.readouterr().out.splitlines()[0] == named  # one confirmation, wherever the file is
    (here / "own.npz").unlink()
    request = prepare(evaluate.parser().parse_args(["study:tiny/0", "--data", str(tmp_path / "renamed.npz")]))
    assert len(request.parts["tune"].data) == 12
    assert sweep.main(["tiny.yaml", "--set", moved]) == 0


def test_an_unblinding_reads_a_moved_file_and_never_a_changed_one(
    here: Path,
    tmp_path: Path,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unblinding, "TRUTH_TIER", "probe")
    (here / "own.npz").rename(tmp_path / "renamed.npz")
    assert "own.npz: no such file" in refused(report.main, "tiny", "--unblind")
    write_data(here / "own.npz", scale=0.9)
    assert "its data are not those that are found here (part train: " in refused(report.main, "tiny", "--unblind")
    with Ledger.open_existing("tiny").engine.connect() as connection:
        assert not any("unblind" in name for _, name in all_uses(connection))  # what was refused is no use
    assert report.main(["tiny", "--unblind", "--data", str(tmp_path / "renamed.npz")]) == 0
    assert capsys.readouterr().out.startswith("# tiny, unblinded")
    assert "--data is for --unblind and --label-probe" in refused(report.main, "tiny", "--data", "own.npz")


def test_another_working_folder_goes_on(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = ["--storage", str(here / "runs")]
    assert confirm.main(["tiny", "--top", "1", "--seeds", "2", "--dry-run", *storage]) == 0
    assert len(prepare(evaluate.parser().parse_args(["study:tiny/0", *storage])).parts["tune"].data) == 12
    assert not list(tmp_path.iterdir())


def write_idx(folder: Path, brightest: int = 255) -> Path:
    """120 images of 8×8 pixels, three classes, in four files as MNIST has them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 80), ("t10k", 40)):
        images, labels = rng.integers(0, brightest, (count, 8, 8)), np.arange(count) % 3
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">{1 + array.ndim}I", 8 << 8 | array.ndim, *array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    return folder


def test_idx_files_under_another_root_go_on_and_others_are_refused(tmp_path: Path, refused: Refused) -> None:
    trial = study_dict(tmp_path)["trial"] | {"dataset": {"name": "noisy_mnist", "root": str(write_idx(tmp_path / "a"))}}
    saved = Trial(TrialConfig.model_validate({**trial, "epochs": 1}))
    (checkpoint := tmp_path / "checkpoint").mkdir()
    saved.run_round()
    saved.save(checkpoint)
    (tmp_path / "a").rename(tmp_path / "b")
    assert "not found in" in refused(evaluate.main, str(checkpoint), "--storage", str(tmp_path))
    flags = [str(checkpoint), "--storage", str(tmp_path), "--data"]
    assert len(prepare(evaluate.parser().parse_args([*flags, str(tmp_path / "b")])).parts["tune"].data) == 12
    changed = write_idx(tmp_path / "c", brightest=200)
    assert "part train: " in refused(evaluate.main, *flags, str(changed))
    # A trial goes on from its checkpoint in another place too, and never on other data.
    moved = {**trial, "epochs": 1, "dataset": {"name": "noisy_mnist", "root": str(tmp_path / "b")}}
    Trial(TrialConfig.model_validate(moved)).load(checkpoint)
    moved["dataset"]["root"] = str(changed)
    with pytest.raises(ValueError, match=r"by a trial on other data \(part train: [0-9a-f]{16} → "):
        Trial(TrialConfig.model_validate(moved)).load(checkpoint)


def test_data_of_a_set_that_reads_no_file_cannot_lie_elsewhere(tmp_path: Path, refused: Refused) -> None:
    trial = TrialConfig.model_validate({**study_dict(tmp_path)["trial"], "epochs": 1})
    Trial(trial).save(tmp_path)
    assert "noisy_digits is read from no file" in refused(evaluate.main, str(tmp_path), "--data", "elsewhere")


def test_a_checkpoint_from_before_data_were_known_is_read_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Trial(TrialConfig.model_validate({**study_dict(tmp_path)["trial"], "epochs": 1})).save(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"config": facts["config"]}))
    flags = [str(tmp_path), "--storage", str(tmp_path), "--tier", "probe"]
    with caplog.at_level(logging.WARNING):
        prepare(evaluate.parser().parse_args(flags))
    assert caplog.text.count("does not say what its data hold") == 1


def test_a_study_from_before_data_were_known_goes_on_and_says_so_once(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger.open_existing("tiny")
    identity = ledger._study.user_attrs["identity"]
    old = {**identity, "trial": {**identity["trial"], "dataset": {**identity["trial"]["dataset"], "path": "own.npz"}}}
    ledger._study.set_user_attr("identity", old)
    ledger._study.set_user_attr("contents", {})
    with caplog.at_level(logging.WARNING):
        assert sweep.main(["tiny.yaml"]) == 0
        assert sweep.main(["tiny.yaml"]) == 0
    assert caplog.text.count("begun before studies kept what their data hold") == 1
    assert Ledger.open_existing("tiny").contents["trial"].keys() == {"strict"}


def test_a_dry_run_takes_the_time_from_trials_that_ran(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["tiny.yaml", "--dry-run"]) == 0
    assert "# time       none: every trial has run" in capsys.readouterr().out
    assert sweep.main(["tiny.yaml", "--dry-run", "--trials", "7"]) == 0
    assert "for 3 trials, by the 4 complete trials of this study" in capsys.readouterr().out
