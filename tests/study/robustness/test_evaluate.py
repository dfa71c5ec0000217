"""One trained model evaluated by the command, without Ray: its files, their numbers, and what is refused beforehand."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from mlflow import MlflowClient
from optuna.trial import TrialState
from tiny_studies import study_dict, write_study

from ardmvc_core.assessment import assess as robustness
from ardmvc_core.assessment import checks as sanity
from ardmvc_core.assessment.case import Case, CheckResult
from ardmvc_core.assessment.checks import SanityReport, collapse
from ardmvc_core.assessment.consistency import map_from_confusion, scores_from_confusion
from ardmvc_core.attacks import suite
from ardmvc_core.attacks.kinds import Ascend, Transfer
from ardmvc_core.attacks.objectives.per_sample import ce
from ardmvc_core.data import DATASETS
from ardmvc_core.evaluation.intervals import Interval, bootstrap_interval
from study.compare import main as compare_main
from study.database.engine import LedgerError, study_url
from study.database.ledger import Ledger
from study.database.score_uses import all_uses
from study.evaluate import main
from study.places import sqlite_file
from study.reporting import style as figures
from study.reporting.progress import _Lines
from study.robustness.figures import FIGURES
from study.robustness.target import find_target
from study.spec.study_spec import StudySpec
from study.spec.yaml_file import SpecError
from study.sweep import main as sweep
from study.tracking.address import default_uri, make_sqlite
from trainables.config import TrialConfig
from trainables.data_parts import cached_parts
from trainables.surrogates import surrogate_configs, train_surrogates
from trainables.trial import Trial

SpecMaker = Callable[..., StudySpec]
N = 8
OK = SanityReport(
    checks=(CheckResult(id="C1a", title="more steps are never weaker", value=0.0, verdict="PASS", detail="fine"),),
    step_curve={},
)


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def evaluate(*arguments: str) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return Ended(code, out.getvalue(), err.getvalue())


def tiny_config(folder: Path, **changes: Any) -> TrialConfig:
    """The trial of the tiny studies, as a plain model in one round."""
    trial = study_dict(folder)["trial"]
    own = {"model": {"name": "comvc"}, "epochs": 15, "evaluate_every": 15, "seed": 3}
    trial["evaluation"] = {"tier": "probe", "samples": 10, "probe_samples": 10}
    return TrialConfig.model_validate({**trial, **own, **changes})


def saved(trial: Trial, folder: Path) -> Path:
    folder.mkdir(parents=True)
    trial.save(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained trial's checkpoint."""
    folder = tmp_path_factory.mktemp("trial")
    trial = Trial(tiny_config(folder))
    trial.run_round()
    return saved(trial, folder / "saved")


def few_resamples(*args: Any, **kwargs: Any) -> Interval:
    return bootstrap_interval(*args, **{**kwargs, "resamples": 10})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ε curve, few resamples, and checks that pass without work."""
    monkeypatch.setitem(DATASETS, "noisy_digits", replace(DATASETS["noisy_digits"], eps_grid=()))
    monkeypatch.setattr(robustness, "bootstrap_interval", few_resamples)
    monkeypatch.setattr(robustness, "run_checks", lambda *args, **kwargs: OK)
    monkeypatch.setattr(figures, "DPI", 40)


# The whole report


@dataclass
class Report:
    """What one run of the command left."""

    ended: Ended
    folder: Path
    json: dict[str, Any]
    markdown: str
    arrays: dict[str, Any]


@pytest.fixture(scope="module")
def report(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Everything for real, on few samples and two ε."""
    folder = tmp_path_factory.mktemp("report") / "there"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "noisy_digits", replace(DATASETS["noisy_digits"], eps_grid=(0.05, 0.3)))
        patch.setattr(robustness, "bootstrap_interval", few_resamples)
        patch.setattr(sanity, "STEP_GRID", (5, 10))
        # Where nothing survives, checks are over soon.
        settings = ("--tier", "tune", "--eps", "0.3", "--samples", str(N), "--everyone")
        ended = evaluate(str(checkpoint), *settings, "--out", str(folder))
    assert ended.code == 0, ended.err
    with np.load(folder / "evaluation.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    return Report(
        ended, folder, json.loads((folder / "report.json").read_text()), (folder / "report.md").read_text(), arrays
    )


def test_every_file_is_there_and_every_figure_is_shown(report: Report) -> None:
    files = sorted(str(file.relative_to(report.folder)) for file in report.folder.rglob("*") if file.is_file())
    drawn = [name for name in FIGURES if f"figures/{name}.png" in files]
    assert files == sorted(["evaluation.npz", "report.json", "report.md", *(f"figures/{name}.png" for name in drawn)])
    assert set(drawn) >= set(FIGURES) - {"pictures"}
    for name in drawn:
        assert f"](figures/{name}.png)" in report.markdown
        assert (report.folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert f"written to {report.folder}/report.md" in report.ended.out


def test_the_numbers_follow_from_the_stored_counts(report: Report) -> None:
    metrics, tables = report.json["metrics"], {k: np.array(v) for k, v in report.json["confusion"].items()}
    mapping = map_from_confusion(tables["class_clean"])
    keys = [attack["key"] for attack in report.json["per_attack"]]
    assert report.json["n"] == N
    assert keys == ["apgd_ce", "apgd_soft_margin", "apgd_soft_target_1", "apgd_soft_target_2"]
    for key in ("clean", *keys):
        counts = tables[f"class_{key}"]
        assert counts.sum() == N
        assert metrics[f"{key}/acc"] == pytest.approx(scores_from_confusion(counts, mapping).acc)
        assert metrics[f"{key}/ari"] == pytest.approx(scores_from_confusion(counts, mapping).ari)
    for key in keys:
        assert metrics[f"{key}/acc_refit"] == pytest.approx(scores_from_confusion(tables[f"class_{key}"]).acc)
    for key in (*keys, "robust"):
        assert metrics[f"{key}/flip"] == pytest.approx(1 - np.trace(tables[f"clean_{key}"]) / N)
    assert sum(attack["new"] for attack in report.json["per_attack"]) == round(metrics["robust/flip"] * N)
    clean, labels, moved = (report.arrays[name] for name in ("clusters/clean", "labels", "robust/flipped"))
    assert report.json["headline"]["acc"] == pytest.approx(np.mean((mapping[clean] == labels) & ~moved))


def test_what_chance_gives_stands_beside_the_scores(report: Report) -> None:
    metrics = report.json["metrics"]
    acc, nmi, under_attack = (f"{metrics[f'chance/{name}']:.3f}" for name in ("acc", "nmi", "robust_acc"))
    text = f"hance alone gives ACC {acc} and NMI {nmi} on clean views, ACC {under_attack} under attack"
    assert f"c{text}\n" in report.ended.out
    assert f"\n\nC{text}: " in report.markdown
    few = f"- Only {N} scored samples for 3 clusters: chance alone gives ACC {metrics['chance/acc']:.2f}."
    assert few in report.markdown
    assert metrics["chance/robust_acc"] == pytest.approx(metrics["chance/acc"] * (1 - metrics["robust/flip"]))


def test_the_report_says_what_was_evaluated(report: Report, checkpoint: Path) -> None:
    facts = report.json["facts"]
    stored = json.loads((checkpoint / "config.json").read_text())["contents"]
    assert facts["reference"] == facts["checkpoint"] == str(checkpoint)
    assert (facts["model"], facts["part"], facts["everyone"]) == ("comvc", "tune", True)
    assert facts["parts"] == {"tune": stored["tune"], "attacker": stored["attacker"]}
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]  # which of them says +cu130
    assert facts["forwards"] > facts["backwards"] > report.json["metrics"]["cost/backwards"]
    assert report.json["budget_hash"] in report.markdown
    assert report.json["budget_hash"] in report.ended.out
    assert set(report.json["eps_curve"]) == {"0.05", "0.3"}
    assert set(report.json["subsets"]) == {"0", "1"}


def test_the_markdown_has_its_sections_in_order(report: Report) -> None:
    sections = re.findall(r"^## (.+)$", report.markdown, flags=re.MULTILINE)
    assert sections == [
        "Clean and worst case",
        "Noise floor",
        "ε50",
        "Erasability per view",
        "Attacks",
        "Subsets of views",
        "Other threats",
        "Checks",
        "Not run",
        "Limits",
        "Provenance",
    ]
    for number in range(1, 21):
        assert re.search(rf"^\| C{number}[abc]? \|", report.markdown, flags=re.MULTILINE), number
    widths = {line.count(" | ") for line in report.markdown.split("## Checks")[1].splitlines() if line[:3] == "| C"}
    assert widths == {4}


def test_other_threats_are_columns_with_their_size(report: Report) -> None:
    moved, replaced, dropped = report.json["other_threats"]
    section = report.markdown.split("## Other threats")[1].split("## ")[0]
    radii = ", ".join(f"{radius:.3g}" for radius in moved["radii"])
    assert f"L2 ε {radii} (view by view)" in section
    assert f"L2 ε {radii} (view by view)" in report.ended.out
    assert "0.1 of the median distance between two samples" in section
    for record in (moved, replaced, dropped):
        assert re.search(rf"^\| `{record['key']}` \| .*\| {record['flip']:.3f} \[", section, flags=re.MULTILINE)
        assert report.arrays[f"{record['key']}/flipped"].mean() == record["flip"]
    assert "other norms than L∞ and L2" in report.markdown


def test_the_page_shows_attacks_and_every_check_that_did_not_pass(report: Report) -> None:
    lines = report.ended.out.splitlines()
    headline = report.json["headline"]
    assert lines[0] in report.markdown
    assert ("not established" in lines[0]) is not headline["established"]
    assert [line.split()[0] for line in lines if line.startswith("apgd_")] == [
        attack["key"] for attack in report.json["per_attack"]
    ]
    assert [line.split()[1] for line in lines if line.startswith(("WARN", "FAIL"))] == [
        check["id"] for check in report.json["checks"] if check["verdict"] in ("WARN", "FAIL")
    ]
    assert re.search(r"^\[\d\d:\d\d:\d\d\]   0%  apgd_ce$", report.ended.err, flags=re.MULTILINE)


# The headline


@pytest.mark.usefixtures("quick")
def test_a_failed_check_withholds_the_number(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [str(checkpoint), "--tier", "probe", "--samples", "8", "--no-subsets", "--out", str(tmp_path / "a")]
    good = evaluate(*arguments)
    number = f"{json.loads((tmp_path / 'a' / 'report.json').read_text())['headline']['acc']:.3f}"
    assert good.out.startswith(f"ACC under attack {number} [")
    failed = [
        replace(OK.checks[0], id="C4", verdict="FAIL"),
        replace(OK.checks[0], id="C7a", verdict="WARN"),
        replace(OK.checks[0], id="C12", verdict="FAIL"),
    ]
    bad_report = SanityReport(checks=tuple(failed), step_curve={})
    monkeypatch.setattr(robustness, "run_checks", lambda *args, **kwargs: bad_report)
    bad = evaluate(*arguments)
    assert (good.code, bad.code) == (0, 0)
    first = bad.out.splitlines()[0]
    assert first.startswith("not established (checks C4, C12); clean ACC ")
    assert first.endswith("; warnings: C7a")
    assert "under attack" not in first
    page = (tmp_path / "a" / "report.md").read_text()
    assert f"**{first}**" in page
    assert "| worst case (not established) |" in page
    assert json.loads((tmp_path / "a" / "report.json").read_text())["headline"]["failed"] == ["C4", "C12"]


@pytest.mark.usefixtures("quick")
def test_evenness_is_judged_by_the_plain_models_that_the_checkpoint_remembers(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watch(*args: Any, **settings: Any) -> SanityReport:
        seen.append(settings["entropy_reference"])
        return OK

    monkeypatch.setattr(robustness, "run_checks", watch)
    remembers = shutil.copytree(checkpoint, tmp_path / "of-a-study")
    facts = json.loads((remembers / "config.json").read_text())
    (remembers / "config.json").write_text(json.dumps({**facts, "reference_entropy": 0.75}))
    for folder in (checkpoint, remembers):
        options = ["--tier", "probe", "--samples", "4", "--no-subsets", "--out", str(tmp_path / folder.name)]
        assert evaluate(str(folder), *options).code == 0
    assert seen == [1.0, 0.75]


@pytest.mark.usefixtures("quick")
def test_a_model_that_collapsed_has_no_headline(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collapsed = shutil.copytree(checkpoint, tmp_path / "collapsed")
    state = torch.load(collapsed / "state.pt", weights_only=True)
    model = state["trainers"][0]["model"]
    for name in [name for name in model if name.startswith("head.")]:
        model[name] = torch.zeros_like(model[name])
    torch.save(state, collapsed / "state.pt")

    def only_collapse(model: Any, views: Any, budget: Any, result: Any, **settings: Any) -> SanityReport:
        case = Case(model, views, budget, result, settings["seed"], settings["batch_size"])
        return SanityReport(checks=(collapse(case, settings["entropy_reference"]),), step_curve={})

    monkeypatch.setattr(robustness, "run_checks", only_collapse)
    ended = evaluate(
        str(collapsed), "--tier", "probe", "--samples", "4", "--no-subsets", "--json", "--out", str(tmp_path / "there")
    )
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["headline"]["failed"] == ["C19"]
    assert "**not established (check C19); clean ACC " in (tmp_path / "there" / "report.md").read_text()
    assert found["headline"]["kappa"] == 0
    assert found["folder"] == str(tmp_path / "there")
    assert not (tmp_path / "there" / "figures" / "pictures.png").exists()
    assert "- the ε curve" in (tmp_path / "there" / "report.md").read_text()


@pytest.mark.usefixtures("quick")
def test_each_eps_has_a_report_of_its_own_and_figures_of_before_go(checkpoint: Path, tmp_path: Path) -> None:
    old = tmp_path / "eps_0.2" / "figures" / "eps_curve.png"
    old.parent.mkdir(parents=True)
    old.touch()
    (old.parent / "mine.png").touch()
    theirs = tmp_path / "pictures" / "eps_curve.png"  # of somebody who linked a folder there
    theirs.parent.mkdir()
    theirs.touch()
    (tmp_path / "eps_0.05").mkdir()
    (tmp_path / "eps_0.05" / "figures").symlink_to(theirs.parent)
    arguments = ("--tier", "probe", "--eps", "0.05,0.2", "--views", "1", "--samples", "4", "--part", "score", "--json")
    ended = evaluate(str(checkpoint), *arguments, "--out", str(tmp_path), "--storage", str(tmp_path / "runs"))
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert [one["budget"]["eps"] for one in found] == [0.05, 0.2]
    assert [one["budget"]["attacked_views"] for one in found] == [[1], [1]]
    assert [one["erasable"][0] for one in found] == [0, 0]
    assert [Path(one["folder"]).name for one in found] == ["eps_0.05", "eps_0.2"]
    assert (old.exists(), (old.parent / "mine.png").exists(), theirs.exists()) == (False, True, True)
    part = found[0]["facts"]["parts"]["score"]
    assert f"the score part ({part[:12]}) is used by this evaluation: use 1 of this part\n" in ended.err
    # Of no study, and counted all the same.
    with sa.create_engine(study_url(tmp_path / "runs").reveal()).connect() as connection:
        assert all_uses(connection) == [(part, f"study.evaluate {checkpoint}")]


@pytest.mark.usefixtures("quick")
def test_without_out_it_lies_in_the_storage_by_name_and_budget(checkpoint: Path, tmp_path: Path) -> None:
    ended = evaluate(
        str(checkpoint), "--tier", "probe", "--samples", "4", "--json", "--storage", str(tmp_path / "runs")
    )
    found = json.loads(ended.out)
    name = f"{checkpoint.parent.name}-{checkpoint.name}-{found['budget_hash']}"
    assert found["folder"] == str(tmp_path / "runs" / "evaluations" / name)


@pytest.mark.usefixtures("quick")
def test_locked_labels_are_not_read(checkpoint: Path, tmp_path: Path) -> None:
    locked = edited(checkpoint, tmp_path / "locked", selection={"lock_labels": True})
    ended = evaluate(str(locked), "--tier", "probe", "--samples", "4", "--json", "--out", str(tmp_path / "there"))
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert not {"clean/acc", "chance/acc"} & found["metrics"].keys()
    assert "hance alone" not in (tmp_path / "there" / "report.md").read_text()
    assert "labels" not in np.load(tmp_path / "there" / "evaluation.npz").files
    assert "**flip rate " in (tmp_path / "there" / "report.md").read_text()


# A first look


def test_a_first_look_leaves_curves_and_checks_out_and_says_so(checkpoint: Path, tmp_path: Path) -> None:
    flags = ("--tier", "probe", "--samples", "10", "--curves", "none", "--checks", "quick", "--no-other-threats")
    ended = evaluate(str(checkpoint), *flags, "--json", "--out", str(tmp_path / "there"))
    assert ended.code == 0, ended.err
    # probe: 20 steps of two attacks on 10 samples, and a last look at each.
    assert "tier probe on 10 samples, at most 42 passes of each, about " in ended.err
    assert "--curves" not in ended.err
    found = json.loads(ended.out)
    assert (found["eps_curve"], found["subsets"]) == ({}, {})
    ids = [check["id"] for check in found["checks"]]
    assert {"quick", "C5", "C8", "C12", "C19"} <= set(ids)
    assert not {"C1a", "C3a", "C7a", "C9a", "C14", "C15"} & set(ids)
    assert "warnings: quick" in (tmp_path / "there" / "report.md").read_text()


def test_the_scores_of_the_attacks_outlast_an_interruption(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ardmvc_core.assessment.assess._curves", interrupted)
    ended = evaluate(str(checkpoint), "--tier", "probe", "--samples", "10", "--out", str(tmp_path / "there"))
    assert ended.code == 130
    assert "the same command goes on behind the attacks that have ended" in ended.err
    kept = json.loads((tmp_path / "there" / "attacks.json").read_text())
    monkeypatch.undo()
    flags = ("--curves", "none", "--checks", "quick")
    asked = (str(checkpoint), "--tier", "probe", "--samples", "10", "--out", str(tmp_path / "there"))
    whole = evaluate(*asked, *flags, "--json")
    assert kept["values"]["robust/acc"] == json.loads(whole.out)["metrics"]["robust/acc"]
    assert not (tmp_path / "there" / "attacks.json").exists()


def test_an_interrupted_evaluation_goes_on_behind_the_attacks_that_have_ended(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two attacks is interrupted; by the same command only that one runs, and the numbers are those of a
    run that nothing has interrupted."""
    ran: list[str] = []
    stop = ["apgd_target_1"]
    run = Ascend.run

    def watched(self: Ascend, *args: Any) -> Any:
        ran.append(self.key)
        if self.key in stop:
            raise KeyboardInterrupt
        return run(self, *args)

    monkeypatch.setattr(Ascend, "run", watched)
    flags = ("--tier", "probe", "--samples", "10", "--curves", "none", "--checks", "quick", "--no-other-threats")
    flags = (*flags, "--json")
    there, whole = tmp_path / "there", tmp_path / "whole"
    assert evaluate(str(checkpoint), *flags, "--out", str(there)).code == 130
    assert [file.name for file in (there / "attacks").iterdir()] == ["apgd_ce.npz"]
    (there / "attacks" / "notes.txt").write_text("mine")
    stop.clear()
    ran.clear()
    found = json.loads(evaluate(str(checkpoint), *flags, "--out", str(there)).out)
    assert ran == ["apgd_target_1"]
    assert [file.name for file in (there / "attacks").iterdir()] == ["notes.txt"]
    ran.clear()
    expected = json.loads(evaluate(str(checkpoint), *flags, "--out", str(whole)).out)
    assert ran == ["apgd_ce", "apgd_target_1"]
    assert found["metrics"] == expected["metrics"]


def test_an_interrupted_evaluation_goes_on_behind_the_points_of_its_curve(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three attacks on curve and subsets of views end, the fourth is interrupted; the same command runs the others."""
    ran: list[tuple[Any, ...]] = []
    most = [3]
    run = robustness.run_suite

    def watched(model: Any, views: Any, threat: Any, **settings: Any) -> Any:
        if len(ran) == most[0]:
            raise KeyboardInterrupt
        ran.append((threat.eps, threat.attacked_views))
        return run(model, views, threat, **{**settings, "tier": "probe"})

    monkeypatch.setattr(robustness, "run_suite", watched)
    flags = ("--tier", "probe", "--samples", "10", "--checks", "quick", "--no-other-threats", "--json")
    assert evaluate(str(checkpoint), *flags, "--out", str(tmp_path / "there")).code == 130
    before, most[0] = list(ran), 99
    ran.clear()
    found = json.loads(evaluate(str(checkpoint), *flags, "--out", str(tmp_path / "there")).out)
    after = list(ran)
    ran.clear()
    expected = json.loads(evaluate(str(checkpoint), *flags, "--out", str(tmp_path / "whole")).out)
    assert (len(before), before + after) == (3, ran)
    assert (found["eps_curve"], found["subsets"]) == (expected["eps_curve"], expected["subsets"])
    assert not (tmp_path / "there" / "attacks").exists()


@pytest.mark.parametrize("change", ["another run", "torn", "other rows"])
def test_kept_attacks_that_do_not_fit_are_run_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    flags = ("--tier", "probe", "--curves", "none", "--checks", "quick", "--no-other-threats", "--out", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("ardmvc_core.assessment.assess._curves", interrupted)
        assert evaluate(str(checkpoint), "--samples", "10", *flags).code == 130
    file = tmp_path / "attacks" / "apgd_ce.npz"
    if change == "torn":
        file.write_bytes(file.read_bytes()[:100])
    elif change == "other rows":
        arrays = dict(np.load(file))
        np.savez(file, **{**arrays, "rows": arrays["rows"][::-1]})
    samples = "12" if change == "another run" else "10"
    ran: list[str] = []
    run = Ascend.run
    monkeypatch.setattr(Ascend, "run", lambda self, *args: ran.append(self.key) or run(self, *args))
    assert evaluate(str(checkpoint), "--samples", samples, *flags).code == 0
    assert "apgd_ce" in ran


# Surrogates


@pytest.mark.usefixtures("quick")
def test_certificates_are_part_of_the_report(checkpoint: Path, tmp_path: Path) -> None:
    settings = (
        "--tier",
        "probe",
        "--samples",
        "10",
        "--no-subsets",
        "--certify",
        "0.1",
        "--out",
        str(tmp_path / "there"),
    )
    assert evaluate(str(checkpoint), *settings).code == 0
    stored = json.loads((tmp_path / "there" / "report.json").read_text())["facts"]["certificates"]
    kept, right = stored["kept"], stored["accuracy"]
    assert stored["n"] == 10
    assert kept == sorted(kept, reverse=True)
    assert all(acc <= share for acc, share in zip(right, kept, strict=True))
    assert stored["broken"] == 0
    # 1,000 draws bound the radius by 2.46 σ: with σ = 0.1 on 2 × 64 values no L∞ ball of 0.1 (11.3 σ) is certified.
    assert stored["average_radius"] <= 2.47
    assert stored["linf"] == 0.0
    # One of two views is never outvoted.
    assert stored["views"] == [0.0]
    assert "## Certificates" in (tmp_path / "there" / "report.md").read_text()


def test_surrogates_are_other_models_of_the_attackers_samples(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, epochs=1, model={"name": "simvc", "learning_rate": 0.01})
    attacker = cached_parts(config.dataset, "strict")["attacker"].data
    before = torch.get_rng_state()
    found = train_surrogates(config, attacker, 3, seed=7)
    assert torch.equal(before, torch.get_rng_state())
    assert [one.method for one in found] == ["simvc", "comvc", "simvc"]
    assert [one.model.learning_rate for one in surrogate_configs(config, 3, 7)] == [0.01, 1e-3, 1e-3]
    assert len({config.seed, *(one.seed for one in found)}) == 4
    assert not any(one.model.training or one.failure for one in found)
    again = train_surrogates(config, attacker, 1, seed=7)[0]
    logits = [one.model(attacker.views).logits for one in (found[0], again)]
    assert torch.equal(*logits)


@pytest.mark.usefixtures("quick")
def test_surrogates_reach_the_transfer_attack(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = (Ascend(key="apgd_ce", objective=ce, steps=1), Transfer(key="transfer", surrogates=2, steps=1))
    monkeypatch.setattr(suite, "plan", lambda *args, **kwargs: short)
    brief = edited(checkpoint, tmp_path / "brief", epochs=1, evaluate_every=1)
    arguments = ("--tier", "probe", "--samples", "4", "--no-subsets", "--out", str(tmp_path / "there"))
    found = json.loads(evaluate(str(brief), *arguments, "--surrogates", "2", "--json").out)
    assert [one["method"] for one in found["facts"]["surrogates"]] == ["comvc", "comvc"]
    assert all(0 <= one["agreement"] <= 1 for one in found["facts"]["surrogates"])
    assert [(one["key"], one["skipped"]) for one in found["per_attack"]] == [("apgd_ce", ""), ("transfer", "")]
    without = evaluate(str(brief), *arguments)
    assert re.search(r"^transfer +skipped: no surrogate models were given$", without.out, flags=re.MULTILINE)
    assert "- attack `transfer`: no surrogate models were given" in (tmp_path / "there" / "report.md").read_text()


# Progress


def test_without_a_terminal_progress_is_a_line_now_and_then() -> None:
    clock = iter([0.0, 0.0, 0.0, 4.0, 10.0, 10.0, 10.0])  # begin; first, its estimate; second; third, estimate, text
    stream = io.StringIO()
    lines = _Lines(stream, lambda: next(clock))
    for what, share in (("first", 0.0), ("second", 0.1), ("third", 0.2)):
        lines(what, share)
    shown = [line.split("]  ")[1].split() for line in stream.getvalue().splitlines()]
    assert shown == [["0%", "first"], ["20%", "third", "~40", "s", "left"]]


# What is refused


def edited(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a checkpoint whose trial has another config."""
    shutil.copytree(source, folder)
    facts = json.loads((folder / "config.json").read_text())
    facts["config"] |= changes
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must be refused, and says why it was."""

    def run(model: Path | str, *arguments: str) -> str:
        out = tmp_path / "never"
        ended = evaluate(str(model), *arguments, "--out", str(out), "--storage", str(tmp_path / "nowhere"))
        assert (ended.code, ended.out) == (2, "")
        assert not out.exists()
        assert not (tmp_path / "nowhere").exists()
        assert len(ended.err.splitlines()) == 1, ended.err
        return ended.err.strip()

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eps", "0"], "--eps: must be in (0, 1] because views are in [0, 1] (8/255 is 0.031), got 0.0"),
        (["--eps", "0.1,8"], "--eps: must be in (0, 1] because views are in [0, 1] (8/255 is 0.031), got 8.0"),
        (["--eps", "nan"], "--eps: must be in (0, 1] because views are in [0, 1] (8/255 is 0.031), got nan"),
        (["--eps", "0.1,0.1"], "--eps: must be distinct, got 0.1, 0.1"),
        (["--eps", "8/255"], "--eps: must be numbers such as 0.05,0.1, got '8/255'"),
        (["--tier", "strong"], "--tier: tier must be one of probe, tune, standard, plus, got 'strong'"),
        (["--views", "0,2"], "--views: must be distinct, each in 0..1, got (0, 2)"),
        (["--views", "-1"], "--views: must be in [0, 99], got -1"),
        (["--views", "one"], "--views: must be numbers such as 0,1, got 'one'"),
        (["--l2", "nan"], "--l2: must be in (0, 1], got nan"),
        (["--l2", "-0.1"], "--l2: must be in (0, 1], got -0.1"),
        (["--part", "train"], "--part: must be one of tune, score, got 'train'"),
        (["--certify", "0"], "--certify: must be in (0, 100], got 0.0"),
        (["--samples", "1"], "--samples: must be in [2, 1000000000], got 1"),
        (["--surrogates", "-1"], "--surrogates: must be in [0, 100], got -1"),
        (["--repeat", "1"], "--repeat: must be in 0..0, the trial's models, got 1"),
    ],
)
def test_bad_flags(arguments: list[str], message: str, checkpoint: Path, refused: Callable[..., str]) -> None:
    assert refused(checkpoint, *arguments) == message


def test_fewer_scored_samples_than_clusters(checkpoint: Path, refused: Callable[..., str]) -> None:
    message = refused(checkpoint, "--samples", "2")
    assert message.startswith("--samples: only 2 scored samples for 3 clusters: ")
    assert message.endswith("score at least 3, better 15 or more (the part tune has 40)")


def test_what_is_no_checkpoint(checkpoint: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert refused(tmp_path) == f"{tmp_path} holds no saved model (no config.json); give a trial's checkpoint"
    attack = edited(checkpoint, tmp_path / "attack", checkpoint="x")
    assert "holds no config of a model trial" in refused(attack)
    official = edited(checkpoint, tmp_path / "official", protocol="official")
    assert "needs a model that was trained on the strict parts (protocol strict or both)" in refused(official)
    other = edited(checkpoint, tmp_path / "other", dataset={"name": "noisy_digits", "samples": 100})
    assert "its data are not those that are found here (part train: " in refused(other)
    broken = edited(checkpoint, tmp_path / "broken")
    (broken / "state.pt").write_bytes(b"torn")
    assert refused(broken).startswith(f"{broken}/state.pt: is damaged: it is no file of torch.save")
    (broken / "state.pt").unlink()
    assert refused(broken) == f"{broken} holds no saved model: state.pt is missing"


CONFIG, STATE = "config.json", "state.pt"


@pytest.mark.parametrize(
    ("file", "damage", "why"),
    [
        (CONFIG, lambda facts: [facts], "holds no config of a model trial: "),
        (CONFIG, lambda facts: {**facts, "config": 3}, "holds no config of a model trial: "),
        (CONFIG, lambda facts: {**facts, "contents": ["train"]}, "holds no config of a model trial: "),
        (CONFIG, lambda facts: {**facts, "reference_entropy": "high"}, "holds no config of a model trial: "),
        (CONFIG, lambda facts: {**facts, "config": {**facts["config"], "x" * 10**5: 0}}, "1 validation error"),
        (STATE, lambda state: [state], "is damaged: it holds a list, not the state of a trial"),
        (STATE, lambda state: {**state, "trainers": {}}, "is damaged: KeyError: 0"),
        (STATE, lambda state: {**state, "trainers": [{"model": 3}]}, "is damaged: its model is a int"),
        (STATE, lambda state: {**state, "trainers": [{"model": {}}]}, "is missing, and "),
    ],
)
def test_damaged_checkpoints(
    checkpoint: Path, tmp_path: Path, refused: Callable[..., str], file: str, damage: Callable[[Any], Any], why: str
) -> None:
    folder = edited(checkpoint, tmp_path / "damaged")
    if file == CONFIG:
        (folder / file).write_text(json.dumps(damage(json.loads((folder / file).read_text()))))
    else:
        torch.save(damage(torch.load(folder / file, weights_only=True)), folder / file)
    message = refused(folder)
    assert message.startswith(f"{folder}/{file}: ")
    assert why in message
    assert len(message.encode()) <= 2048


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 100_000, "config.json: is damaged: RecursionError"),
        (b"\xff\xfa", "config.json: is damaged: 'utf-"),
        (b" " * (1 << 21), "cannot be read: config.json has 2097152 bytes; allowed are 1048576"),
    ],
)
def test_configs_that_cannot_be_read_at_all(
    checkpoint: Path, tmp_path: Path, refused: Callable[..., str], content: bytes, why: str
) -> None:
    folder = edited(checkpoint, tmp_path / "damaged")
    (folder / CONFIG).write_bytes(content)
    assert why in refused(folder)


def test_a_study_of_attackers_is_refused_with_a_damaged_target(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = edited(checkpoint, tmp_path / "target")
    study = study_dict(tmp_path, trainable="attacker", objective={"metric": "gan/flip", "mode": "max"}, baselines=[])
    study["trial"] = {"checkpoint": str(folder), "attack": {"epochs": 1}}
    study["space"] = {"attack.mu_com": {"log_uniform": [0.01, 100]}}
    file = write_study(tmp_path, study)
    assert sweep([str(file), "--dry-run"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert sweep([str(file), "--set", "trial.evaluation.samples=2"]) == 2
    assert ": trial.evaluation.samples: only 2 scored samples for 3 clusters: " in capsys.readouterr().err
    (folder / STATE).write_bytes(b"torn")
    assert sweep([str(file)]) == 2
    message = capsys.readouterr().err
    assert f"trial.checkpoint: {folder}/state.pt: is damaged: it is no file of torch.save" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_weights_that_are_not_finite(checkpoint: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = edited(checkpoint, tmp_path / "nan")
    state = torch.load(folder / "state.pt", weights_only=True)
    name, weights = next(iter(state["trainers"][0]["model"].items()))
    weights.fill_(torch.nan)
    torch.save(state, folder / "state.pt")
    assert refused(folder).endswith(f"/state.pt: is damaged: its model does not fit its config: {name} is not finite")


def test_a_k_means_head_without_stored_centroids(tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = saved(Trial(tiny_config(tmp_path, model={"name": "multi_vae"})), tmp_path / "fresh")
    why = f"{folder} cannot be attacked: its k-means head has no stored centroids"
    assert refused(folder) == f"{why} (they were never fitted: its trial ended too early)"
    state = torch.load(folder / "state.pt", weights_only=True)
    del state["trainers"][0]["model"]["head.centroids"]
    torch.save(state, folder / "state.pt")
    assert refused(folder) == why


def test_a_place_that_cannot_be_written_to(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = evaluate(str(checkpoint), "--out", str(tmp_path / "file" / "below"))
    assert ended.code == 2
    assert ended.err.strip().endswith(f"{tmp_path / 'file'} is not a folder")


# References


@pytest.fixture
def ledger(tiny_spec: SpecMaker, checkpoint: Path) -> Ledger:
    """A study whose trial 1 is complete and has a saved model."""
    spec = tiny_spec()
    ledger = Ledger.open_or_create(spec, study_url(spec.storage.path), None)
    for number in range(2):
        config = spec.trial_config(dict(spec.baselines[0])).model_dump(mode="json")
        ledger.add(overrides={}, config=config, rounds=1, baseline=False, params={}, distributions={})
        progress = {"round": 1, "time": 1, "metrics": {}, "checkpoint": str(checkpoint) if number else None}
        ledger.progress(number, progress)
    ledger.finish(1, TrialState.COMPLETE, (0.5,))
    return ledger


def test_the_best_trial_of_a_study_is_the_one_that_its_report_puts_first(
    tiny_spec: SpecMaker, checkpoint: Path, tmp_path: Path
) -> None:
    spec = tiny_spec()
    ledger = Ledger.open_or_create(spec, study_url(spec.storage.path), None)
    config = spec.trial_config(dict(spec.baselines[0])).model_dump(mode="json")
    # The highest value is of another evaluation budget, and so not compared.
    for number, (budget, value) in enumerate([("a", 0.5), ("a", 0.6), ("b", 0.9)]):
        ledger.add(overrides={}, config=config, rounds=1, baseline=False, params={}, distributions={})
        folder = shutil.copytree(checkpoint, tmp_path / f"trial-{number}")
        facts = {"round": 1, "time": 1, "metrics": {}, "checkpoint": str(folder), "budget": budget}
        ledger.progress(number, facts)
        ledger.finish(number, TrialState.COMPLETE, (value,))
    assert find_target("study:tiny", spec.storage.path).checkpoint == str(tmp_path / "trial-1")


def test_models_of_a_study(ledger: Ledger, tiny_spec: SpecMaker, checkpoint: Path) -> None:
    storage = tiny_spec().storage.path
    for reference in ("study:tiny", "study:tiny/1"):
        found = find_target(reference, storage)
        assert (found.reference, found.checkpoint) == (reference, str(checkpoint))
    assert find_target("study:tiny/1", storage).name == "tiny-1"
    assert find_target(f"{checkpoint}/state.pt", storage).checkpoint == str(checkpoint)
    for reference, message in (
        ("study:other", "there is no study 'other'; known: tiny"),
        ("study:tiny/7", "study 'tiny' has no trial '7'; it has 0, 1"),
        ("study:tiny/0", "no complete trial with a saved model yet"),
    ):
        ended = evaluate(reference, "--storage", storage)
        assert ended.code == 2
        assert message in ended.err


def test_runs_and_registered_models(ledger: Ledger, tiny_spec: SpecMaker, checkpoint: Path) -> None:
    storage = tiny_spec().storage.path
    with pytest.raises(SpecError, match="there is no MLflow database at"):
        find_target("runs:/1", storage)
    uri = default_uri(storage)
    file = sqlite_file(uri)
    assert file is not None
    assert not file.exists()
    make_sqlite(file)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("tiny", artifact_location=str(file.parent / "mlartifacts"))

    def run(**tags: str) -> str:
        return str(client.create_run(experiment, tags=tags).info.run_id)

    own = {"study": "tiny", "study_id": ledger.uid}
    trial, parent = run(role="trial", trial_number="1", **own), run(role="study", **own)
    for reference in (trial, f"runs:/{trial}", f"runs:/{parent}"):
        assert find_target(reference, storage).checkpoint == str(checkpoint)
    assert find_target(trial, storage).name == "tiny-1"
    client.create_registered_model("net")
    for source in (str(checkpoint), checkpoint.as_uri(), f"runs:/{trial}/model", str(checkpoint.parent)):
        client.create_model_version("net", source=source)
    for version in (1, 2):
        found = find_target(f"models:/net/{version}", storage)
        assert (found.checkpoint, found.name) == (str(checkpoint), f"net-{version}")
    for reference, message in (
        (run(), "is of no study: it has no tags study and trial_number"),
        (run(role="trial", trial_number="1", study="tiny", study_id="x"), "is of another study 'tiny'"),
        (run(role="trial", trial_number="9", **own), "study 'tiny' has no trial '9'"),
        ("0" * 32, "not found"),
        ("models:/net/3", "its source must be the folder of a checkpoint"),
        ("models:/net/4", "holds no saved model"),
        ("models:/net/9", "not found"),
        ("models:/net/best", "must be runs:/ID or models:/NAME/VERSION, with a number as version"),
    ):
        with pytest.raises((SpecError, LedgerError), match=re.escape(message)):
            find_target(reference, storage)


# Reports side by side


def compare(*arguments: str) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = compare_main(arguments)
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture
def two_eps(quick: None, checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Reports on one model at ε 0.05 and 0.2."""
    settings = ("--tier", "probe", "--eps", "0.05,0.2", "--samples", "8", "--no-subsets", "--out", str(tmp_path))
    assert evaluate(str(checkpoint), *settings).code == 0
    return tmp_path / "eps_0.05", tmp_path / "eps_0.2"


def changed(report: Path, folder: Path, **headline: Any) -> Path:
    """A copy whose headline, and robust metrics with it, are other ones."""
    content = json.loads((report / "report.json").read_text())
    content["headline"] |= headline
    content["metrics"] |= {f"robust/{name}": headline[name] for name in ("acc", "flip") if name in headline}
    content["intervals"].pop("robust/acc", None)
    content["intervals"].pop("robust/flip", None)
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(content))
    return folder


def test_the_most_robust_report_comes_first_and_one_that_is_not_established_last(
    two_eps: tuple[Path, Path], tmp_path: Path
) -> None:
    weak = changed(two_eps[0], tmp_path / "weak", acc=0.25, flip=0.75)
    strong = changed(two_eps[0], tmp_path / "strong", acc=0.625, flip=0.125)
    doubtful = changed(two_eps[0], tmp_path / "doubtful", acc=1.0, flip=0.0, established=False, failed=["C4", "C8"])
    ended = compare(*map(str, (doubtful, weak, strong / "report.json")), "--output", str(tmp_path / "table.md"))
    assert ended.code == 0, ended.err
    rows = [line.split(" | ") for line in ended.out.splitlines() if line.startswith("| comvc")]
    assert [row[2:4] for row in rows] == [
        ["0.625", "0.125"],
        ["0.250", "0.750"],
        ["not established (C4, C8)", ""],
    ]
    assert rows[-1][6] == ""  # nor has it an ε50
    assert rows[0][6] != ""
    assert [row[-1] for row in rows] == [f"`{strong}/report.json` |", f"`{weak}` |", f"`{doubtful}` |"]
    assert (tmp_path / "table.md").read_text() == ended.out


def test_reports_of_two_budgets_are_refused_with_both_shown(two_eps: tuple[Path, Path], tmp_path: Path) -> None:
    ended = compare(*map(str, two_eps), "--output", str(tmp_path / "table.md"))
    hashes = [json.loads((report / "report.json").read_text())["budget_hash"] for report in two_eps]
    assert ended.code == 2
    assert hashes[0] != hashes[1]
    assert ended.err.splitlines()[1:] == [
        f"  {hashes[0]}  {two_eps[0]}",
        f"  {hashes[1]}  {two_eps[1]}",
        "  eps: 0.05 and 0.2",
    ]
    assert not (tmp_path / "table.md").exists()


def test_reports_on_other_samples_are_refused(two_eps: tuple[Path, Path], tmp_path: Path) -> None:
    other = changed(two_eps[0], tmp_path / "other")
    content = json.loads((other / "report.json").read_text())
    content["facts"]["parts"]["tune"] = "f" * 64
    (other / "report.json").write_text(json.dumps(content))
    ended = compare(str(two_eps[0]), str(other))
    assert ended.code == 2
    assert "different samples" in ended.err
    assert f"tune {'f' * 12}" in ended.err


def test_reports_with_other_surrogates_or_another_version_of_the_tiers_are_refused(
    two_eps: tuple[Path, Path], tmp_path: Path
) -> None:
    def other(name: str, change: Callable[[dict[str, Any]], None]) -> str:
        folder = changed(two_eps[0], tmp_path / name)
        content = json.loads((folder / "report.json").read_text())
        change(content)
        (folder / "report.json").write_text(json.dumps(content))
        return str(folder)

    surrogate = {"method": "comvc", "seed": 0, "epochs": 1, "agreement": 1.0, "failure": ""}
    failed = {**surrogate, "failure": "loss is nan"}
    more = other("more", lambda content: content["facts"].update(surrogates=[surrogate]))
    ended = compare(str(two_eps[0]), more)
    assert ended.code == 2
    assert "different numbers of surrogates" in ended.err
    assert "surrogates: 0 and 1" in ended.err
    # One whose training failed attacked nothing.
    assert (
        compare(str(two_eps[0]), other("none", lambda content: content["facts"].update(surrogates=[failed]))).code == 0
    )

    def older(content: dict[str, Any]) -> None:
        content["budget_hash"] = "0" * 16
        content["budget"]["tiers_version"] -= 1

    ended = compare(str(two_eps[0]), other("older", older))
    assert ended.code == 2
    assert re.search(r"tiers_version: \d+ and \d+", ended.err)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"budget_hash": "a"}'])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    ended = compare(str(tmp_path))
    assert ended.code == 2
    assert str(tmp_path) in ended.err
    assert "study.evaluate" in ended.err


GOOD_REPORT: dict[str, Any] = {
    "budget_hash": "abc",
    "budget": {"eps": 0.1, "gan_eps": [0.2]},
    "n": 100,
    "tier": "standard",
    "headline": {"established": True, "flip": 0.25, "failed": [], "warned": ["C7a"]},
    "facts": {"model": "comvc", "parts": {"tune": "d" * 64}, "surrogates": [{"failure": ""}]},
    "metrics": {"clean/acc": 0.9, "robust/acc": 0.5, "robust/flip": 0.25, "noise/flip": None},
    "intervals": {"clean/acc": {"low": 0.8, "high": 0.95}, "robust/acc": {"low": None, "high": None}},
    "eps50": None,
    "eps_curve": {"0.05": {"flip": 0.1}, "0.2": {"flip": 0.4}},
}


def write_report(folder: Path, content: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps(content))
    return str(folder)


def test_a_report_whose_intervals_are_not_finite_is_shown(tmp_path: Path) -> None:
    ended = compare(write_report(tmp_path / "one", GOOD_REPORT))
    assert ended.code == 0, ended.err
    assert "| comvc | 0.900 [0.800, 0.950] | 0.500 | 0.250 |  |  | > 0.2 | C7a |" in ended.out


@pytest.mark.parametrize(
    "changes",
    [
        {"facts": []},
        {"facts": {"model": "comvc", "parts": {"tune": 3}, "surrogates": []}},
        {"facts": {"model": "comvc", "parts": {}, "surrogates": ["none"]}},
        {"headline": {"established": True, "flip": "low", "failed": [], "warned": []}},
        {"headline": None},
        {"metrics": []},
        {"metrics": {"clean/acc": "9" * 10**5}},
        {"metrics": {"clean/acc": 10**400}},
        {"intervals": {"clean/acc": [0, 1]}},
        {"eps_curve": {"small": 1}},
        {"n": None},
    ],
)
def test_reports_that_are_damaged(tmp_path: Path, changes: dict[str, Any]) -> None:
    ended = compare(
        write_report(tmp_path / "good", GOOD_REPORT), write_report(tmp_path / "bad", {**GOOD_REPORT, **changes})
    )
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"{tmp_path / 'bad'}: holds no report.json of study.evaluate: ")
    assert len(ended.err.encode()) <= 2048


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff\xfa", b"9" * 5000, b'{"budget": ' + b"[" * 900 + b"]" * 900 + b"}"]
)
def test_files_that_are_no_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report.json").write_bytes(content)
    ended = compare(str(tmp_path / "report.json"))
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert len(ended.err.encode()) <= 2048


def test_a_report_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "report.json")  # opened, it would wait for ever
    ended = compare(str(tmp_path))
    assert ended.code == 2
    assert "is a pipe or a device, not a file" in ended.err


def test_two_budgets_of_any_size_make_one_message(tmp_path: Path) -> None:
    budgets = [{f"{name}{number}": name * 10**4 for number in range(1000)} for name in "ab"]
    reports = [
        write_report(tmp_path / str(number), {**GOOD_REPORT, "budget_hash": str(number) * 10**5, "budget": budget})
        for number, budget in enumerate(budgets)
    ]
    ended = compare(*reports)
    assert ended.code == 2
    assert "different evaluation budgets" in ended.err
    assert len(ended.err.encode()) <= 2048
