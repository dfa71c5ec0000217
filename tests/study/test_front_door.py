"""The command `ardmvc` and the Python API lead to what the doors do."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.pruners import NopPruner

import study
from study import main as command
from study.database.engine import study_url
from study.database.ledger import Ledger
from study.spec.study_spec import StudySpec

SpecMaker = Callable[..., StudySpec]


def test_every_command_has_a_door_with_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for name in command.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            command.main([name, "--help"])
        assert ended.value.code == 0
        assert "Exit codes:" in capsys.readouterr().out, name


def test_an_unknown_command_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["swep"])
    assert ended.value.code == 2
    assert "'sweep'" in capsys.readouterr().err
    assert command.main([]) == 2


def test_the_completion_is_a_shell_script_that_knows_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--print-completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--dry-run" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert command.main(["--print-completion", "fish-and-chips"]) == 2
    assert "must be one of bash" in capsys.readouterr().err


def test_studies_of_a_database_are_listed(
    tiny_spec: SpecMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("second", "first"):
        spec = tiny_spec(name=name)
        Ledger.open_or_create(spec, study_url(spec.storage.path), NopPruner())
    assert command.main(["studies", "--storage", spec.storage.path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["study", "first", "second"]
    assert command.main(["studies", "--storage", str(tmp_path / "nowhere")]) == 2
    assert "there is no study database at" in capsys.readouterr().err


def test_a_study_is_opened_in_python(tiny_spec: SpecMaker) -> None:
    spec = tiny_spec()
    ledger = Ledger.open_or_create(spec, study_url(spec.storage.path), NopPruner())
    for weight in (0.5, 2.0):
        overrides = {"model.adversarial_weight": weight}
        ledger.add(overrides=overrides, config={}, rounds=2, baseline=False, params={}, distributions={})
    opened = study.open(spec.name, storage=spec.storage.path)
    assert opened.best is None
    assert list(opened.trials.index) == [0, 1]
    assert opened.trials["param/model.adversarial_weight"].tolist() == [0.5, 2.0]
    assert set(opened.leaderboard["state"]) == {"RUNNING"}
    assert repr(opened) == f"<study {spec.name!r}: 0 of {spec.limits.trials} trials finished>"


def test_importing_the_api_loads_neither_torch_nor_ray() -> None:
    code = "import sys, study, ardmvc_core; sys.exit(bool({'torch', 'ray', 'optuna', 'mlflow'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'sweeep'; it has"):
        study.sweeep  # noqa: B018
