"""`python -m study.report` on real databases, and each of its formats."""

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState
from pyarrow import parquet

from study.database.engine import study_url
from study.database.ledger import Ledger
from study.planning.optuna_side import make_pruner
from study.ranking.summary import summary
from study.records import Goal, TrialRecord
from study.report import main
from study.reporting.tables import (
    cells,
    leaderboard,
    leaderboard_csv,
    leaderboard_html,
    leaderboard_json,
    leaderboard_page,
    leaderboard_parquet,
)
from study.spec.study_spec import StudySpec

ROOT = Path(__file__).parents[3]
ROBUST = [Goal("robust/acc", "max")]
METRICS = {"clean/acc": 0.9, "spread/robust/acc": 0.0125, "gan/acc": 0.7, "loss/x": math.nan}


def trial(number: int, robust: float, **changes: object) -> TrialRecord:
    record = TrialRecord(
        number=number,
        state="COMPLETE",
        values=(robust,),
        overrides={"model.adversarial_weight": 0.5 * number, "model.encoder": "cnn_small"},
        baseline=number == 0,
        config={"seed": 7},
        round=4,
        rounds=4,
        metrics={**METRICS, "robust/acc": robust},
        budget="abc",
        seconds=61.4,
    )  # fmt: skip
    return replace(record, **changes)  # type: ignore[arg-type]


def some_trials() -> list[TrialRecord]:
    failed = trial(2, 0.0, state="FAIL", values=(), metrics={}, round=1, failure="loss | is\nnan", overrides={})
    pruned = trial(3, 0.9, state="PRUNED", values=(), round=2)
    return [trial(0, 0.25), trial(1, 0.5), failed, pruned]


def test_table_for_people() -> None:
    lines = leaderboard(some_trials(), ROBUST).splitlines()
    ranked = [line.split() for line in lines[3:5]]
    assert ranked == [
        ["1", "1", "0.5", "cnn_small", "0.500", "0.013", "0.900", "0.700", "61"],
        ["2", "0", "*", "0", "cnn_small", "0.250", "0.013", "0.900", "0.700", "61"],
    ]
    assert lines[5] == "* baseline"
    assert lines[7].startswith("  trial 3  PRUNED  stopped early at round 2/4  robust/acc 0.900 ± 0.013")
    assert lines[8] == "  trial 2  FAIL  loss | is nan (round 1/4)"
    assert leaderboard([], ROBUST) == "No trials yet."


def test_a_narrow_terminal_loses_metrics_and_no_digits() -> None:
    wide, narrow = (leaderboard(some_trials()[:2], ROBUST, width) for width in (120, 40))
    assert "0.700" in wide
    assert "0.700" not in narrow
    assert "0.500" in narrow
    assert "…" not in narrow


@pytest.mark.parametrize("parameters", [2, 4, 9])
def test_the_table_fits_eighty_columns(parameters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    overrides = {f"model.some_long_weight_{i}": 0.1 + i / 1000 for i in range(parameters)}
    metrics = dict.fromkeys(("robust/acc", "clean/acc", "robust/flip", "noise/flip"), 0.123)
    records = [replace(trial(n, 0.5), overrides=overrides, metrics=metrics) for n in (0, 1)]
    lines = leaderboard(records, ROBUST).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("0.123" in line for line in lines)
    left_out = [line for line in lines if line.startswith("too wide to show: ")]
    assert bool(left_out) is (parameters > 2)


def test_cells_put_two_objectives_fronts_in_words() -> None:
    both = [Goal("clean/acc", "max"), Goal("robust/acc", "max")]
    records = [replace(r, values=(0.9, r.metrics["robust/acc"])) for r in (trial(0, 0.25), trial(1, 0.5))]
    headings, rows = cells(records, both)
    assert headings[:2] == ["rank", "trial"]
    assert [row[:2] for row in rows] == [["1 front", "1"], ["2", "0 (baseline)"]]


def test_reasons_to_doubt_a_trial_are_shown_everywhere() -> None:
    doubtful = [trial(0, 0.25), trial(1, 0.5, warnings=("only 3 of 5 clusters hold clean samples",))]
    assert "1  !" in leaderboard(doubtful, ROBUST)
    for text in (summary(doubtful, ROBUST), leaderboard_page(doubtful, ROBUST), leaderboard_csv(doubtful, ROBUST)):
        assert "only 3 of 5 clusters hold clean samples" in text
    assert json.loads(leaderboard_json("demo", doubtful, ROBUST))["trials"][0]["warnings"] == list(doubtful[1].warnings)


def test_markdown_is_one_line_per_trial() -> None:
    text = leaderboard_page(some_trials(), ROBUST)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4
    assert "| 1 | 1 | COMPLETE | 0.5 | cnn_small | 0.500 ± 0.013 |" in table[2]
    assert "loss \\| is nan" in table[5]
    assert text.startswith("```\nBest trial and baselines")


def test_csv_and_parquet_hold_everything(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(leaderboard_csv(some_trials(), ROBUST))))
    assert [row["number"] for row in rows] == ["1", "0", "3", "2"]
    assert rows[0]["objective/robust/acc"] == "0.5"
    assert rows[0]["param/model.adversarial_weight"] == "0.5"
    assert rows[0]["spread/robust/acc"] == "0.0125"
    assert rows[0]["loss/x"] == ""
    assert rows[3]["failure"] == "loss | is\nnan"

    (tmp_path / "t.parquet").write_bytes(leaderboard_parquet(some_trials(), ROBUST))
    table = parquet.read_table(tmp_path / "t.parquet").to_pydict()
    assert table["number"] == [1, 0, 3, 2]
    assert table["rank"] == [1, 2, None, None]
    assert table["baseline"] == [False, True, False, False]
    assert table["param/model.encoder"] == ["cnn_small", "cnn_small", "cnn_small", None]


def test_parquet_bears_values_of_several_types() -> None:
    records = [trial(0, 0.1, overrides={"a": 1, "b": [1, 2]}), trial(1, 0.2, overrides={"a": "auto", "b": None})]
    table = parquet.read_table(io.BytesIO(leaderboard_parquet(records, ROBUST))).to_pydict()
    assert table["param/a"] == ['"auto"', "1"]
    assert table["param/b"] == [None, [1, 2]]


def test_json_is_one_object_that_every_reader_takes() -> None:
    whole = json.loads(leaderboard_json("demo", some_trials(), ROBUST), parse_constant=pytest.fail)
    assert whole["study"] == "demo"
    assert whole["objectives"] == [{"metric": "robust/acc", "mode": "max"}]
    assert whole["counts"] == {"COMPLETE": 2, "FAIL": 1, "PRUNED": 1}
    assert whole["best"] == [1]
    assert [entry["number"] for entry in whole["trials"]] == [1, 0, 3, 2]
    assert whole["trials"][0]["values"] == [0.5]
    assert whole["trials"][0]["spreads"] == [0.0125]
    assert whole["trials"][0]["metrics"]["loss/x"] is None
    assert whole["trials"][2]["note"] == "stopped early at round 2/4"


def test_html_escapes_what_trials_say() -> None:
    record = trial(0, 0.0, state="FAIL", values=(), failure="<script>alert(1)</script>")
    page = leaderboard_html("a <b> study", [record], ROBUST, {})
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<title>a &lt;b&gt; study</title>" in page


@pytest.fixture
def stored_study(tiny_spec: Callable[..., StudySpec]) -> StudySpec:
    spec = tiny_spec()
    ledger = Ledger.open_or_create(spec, study_url(Path(spec.storage.path)), make_pruner(spec.pruner_options(), 4))
    for number, score in enumerate((0.25, 0.5)):
        facts = {"overrides": {"model.train_eps": 0.1}, "config": {"epochs": 4}, "rounds": 4, "baseline": number == 0}
        ledger.add(**facts, params={}, distributions={})  # type: ignore[arg-type]
        metrics = {"clean/acc": 0.9, spec.objectives[0].metric: score}
        ledger.progress(number, {"round": 4, "metrics": metrics, "checkpoint": "/gone", "seconds": 2.0, "budget": "b"})
        ledger.finish(number, TrialState.COMPLETE, [score])
    return spec


def report(spec: StudySpec, *arguments: str, name: str | None = None) -> int:
    return main([name or spec.name, "--storage", spec.storage.path, *arguments])


def test_command_in_every_format(stored_study: StudySpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(stored_study) == 0
    assert "best" in capsys.readouterr().out
    for form in ("md", "csv", "json", "html", "parquet"):
        file = tmp_path / "out" / f"report.{form}"
        assert report(stored_study, "--format", form, "--output", str(file)) == 0
        assert file.stat().st_size > 100
    assert capsys.readouterr().out == ""
    assert "data:image/png;base64," in (tmp_path / "out" / "report.html").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"report.{form}" for form in ("csv", "html", "json", "md", "parquet")
    ]


def test_command_writes_figures(stored_study: StudySpec, tmp_path: Path) -> None:
    assert report(stored_study, "--figures", str(tmp_path / "figures")) == 0
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert f"history_{stored_study.objectives[0].metric.replace('/', '_')}.png" in names
    assert all((tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_an_unknown_study_is_told_with_the_known_ones(
    stored_study: StudySpec, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(stored_study, name="other") == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "other" in told.err
    assert stored_study.name in told.err
    assert "Traceback" not in told.err


def test_no_database_is_made_by_asking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--storage", str(tmp_path / "nowhere")]) == 2
    assert "there is no study database" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_places_that_cannot_be_written(
    stored_study: StudySpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert report(stored_study, "--output", str(tmp_path / "file" / "x.csv")) == 2
    assert report(stored_study, "--format", "parquet") == 2
    assert "--format parquet needs --output FILE" in capsys.readouterr().err


def test_a_module_that_can_be_run(stored_study: StudySpec) -> None:
    arguments = [stored_study.name, "--storage", stored_study.storage.path, "--format", "json"]
    command = [sys.executable, "-m", "study.report", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["best"] == [1]
