"""Files that commands write for people are the old ones or the new ones, whatever ends the command in between."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from study.database.engine import study_url
from study.database.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
OLD = b"what an earlier command wrote\n"


def torn(how: str, command: str, last: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command that comes no further than 20 bytes into a file. Args: last: what it calls before it writes."""
    whole = [sys.executable, str(SUPPORT / "torn_writer.py"), command, last, "20", *arguments]
    environment = {**os.environ, "TORN": how, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(whole, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def ends(how: str, code: int) -> int:
    return -signal.SIGXFSZ if how == "kill" else code


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A report as `study.evaluate` writes it, as far as the comparison reads it."""
    content: dict[str, Any] = {
        "budget_hash": "abc",
        "budget": {"eps": 0.1},
        "headline": {"established": True, "flip": 0.25, "failed": [], "warned": []},
        "facts": {"model": "comvc", "parts": {"score": "0123456789abcdef"}, "surrogates": []},
        "metrics": {"clean/acc": 0.75, "robust/acc": 0.5, "robust/flip": 0.25, "robust/kappa": 0.6},
        "intervals": {},
        "eps50": 0.2,
        "eps_curve": {"0.1": 0.25},
        "n": 100,
        "tier": "probe",
    }
    file = tmp_path / "report.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("how", ["kill", "full"])
def test_a_comparison(tmp_path: Path, report: Path, how: str) -> None:
    output = tmp_path / "out" / "table.md"
    output.parent.mkdir()
    output.write_bytes(OLD)
    done = torn(how, "study.compare", "study.compare:comparison_page", str(report), "--output", str(output))
    assert done.returncode == ends(how, 2), done.stderr
    assert output.read_bytes() == OLD
    if how == "full":
        assert f"--output: {output} cannot be written: File too large" in done.stderr
        assert [file.name for file in output.parent.iterdir()] == ["table.md"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A storage with a study of the table, one of whose cells has failed."""
    from study.paper_table.plan import SCALES, Cell, as_study, overrides
    from study.spec.study_spec import checked_spec

    storage = tmp_path / "runs"
    cell = overrides(Cell("simvc", "noisy_digits"), SCALES["smoke"])
    spec = checked_spec("table1", as_study("smoke", [cell], protocol="both", seeds=1, storage=str(storage)))
    ledger = Ledger.open_or_create(spec, study_url(storage), None)  # type: ignore[arg-type]
    number = ledger.add(overrides=spec.baselines[0], config={}, rounds=1, baseline=True, params={}, distributions={})
    ledger.finish(number, TrialState.FAIL, failure="the data are cursed")
    return storage


@pytest.mark.parametrize(
    ("name", "last", "how"),
    [
        ("table1.md", "study.paper_table.show:table_facts", "kill"),
        ("table1.png", "study.paper_table.figure:heat_map", "kill"),
        ("table1.png", "study.paper_table.figure:heat_map", "full"),
    ],
)
def test_the_table(tmp_path: Path, runs: Path, name: str, last: str, how: str) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / name).write_bytes(OLD)
    arguments = ["--show", "--seeds", "1", "--storage", str(runs), "--output", str(output)]
    done = torn(how, "study.table1", last, *arguments)
    assert done.returncode == ends(how, 1), done.stderr
    assert (output / name).read_bytes() == OLD
    if how == "full":
        assert f"the table's files are not written: {output}: File too large" in done.stderr
        names = ["table1.csv", "table1.md", "table1.png", "table1.tex"]
        assert sorted(file.name for file in output.iterdir()) == names


def test_a_leaderboard(tmp_path: Path, runs: Path) -> None:
    output = tmp_path / "leaderboard.json"
    output.write_bytes(OLD)
    arguments = ["table1_smoke_1seed", "--storage", str(runs), "--format", "json", "--output", str(output)]
    done = torn("kill", "study.report", "study.report:_render", *arguments)
    assert done.returncode == ends("kill", 2), done.stderr
    assert output.read_bytes() == OLD
