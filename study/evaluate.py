"""The full report on one trained model's robustness: `python -m study.evaluate MODEL_OR_RUN`.

Everything that can be wrong with the request is found before any work; what is found about the model is the output, and
the command ends with 0 whatever the verdict.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ardmvc_core.ranges import Range, shown
from study.cli import Parser, exit_code_of, refuse
from study.provenance import command, git_commit, versions
from study.secrets import redact
from study.spec.yaml_file import SpecError

if TYPE_CHECKING:
    from torch import nn

    from ardmvc_core.data.dataset import Part
    from ardmvc_core.evaluation.budget import ResolvedBudget
    from study.robustness.page import Facts, SurrogateFacts
    from trainables.config import TrialConfig
    from trainables.surrogates import Surrogate

PARTS = ("tune", "score")
PACKAGES = ("ardmvc-study", "torch", "numpy", "scipy", "scikit-learn")
LINE_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""
LEAST_SAMPLES = 2
"""An interval over samples needs two."""

Progress = Callable[[str, float], None]
"""(what runs, share that is behind it)."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The saved model that was asked for."""

    reference: str
    """As it was asked for."""
    checkpoint: str
    """Folder or URI."""
    name: str
    """For the report's folder."""
    study: str = ""
    """That it was named through; empty for a folder."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request in which nothing is wrong, with all that it needs in memory."""

    target: Target
    model: "nn.Module"
    config: "TrialConfig"
    parts: "dict[str, Part]"
    """Of the strict protocol, without labels where these are locked."""
    budgets: "tuple[ResolvedBudget, ...]"
    """Resolved; one report each."""
    folders: tuple[Path, ...]
    """One for each report; not made yet."""
    surrogates: int
    device: Any
    locked: bool
    """Whether the trial's labels are locked."""
    entropy_reference: float
    """H_ref of check C19: that of the study's reference partition, or of a balanced one where it has none."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(
        prog="python -m study.evaluate",
        description="Attacks one trained model with a tier of the suite, checks the number that comes out, and writes "
        "the full report: Markdown, JSON, arrays and figures.",
        epilog="Exit codes: 0 done, whatever the verdict; 2 bad input; 130 interrupted.",
    )
    result.add_argument(
        "model",
        metavar="MODEL_OR_RUN",
        help="a checkpoint's folder or URI; study:NAME (its best trial) or study:NAME/7; an MLflow run (runs:/ID or "
        "its id); a registered model (models:/NAME/VERSION)",
    )
    result.add_argument("--tier", default="standard", help="probe, tune, standard or plus; default: %(default)s")
    result.add_argument(
        "--eps", metavar="E[,E2,…]", help="L∞ radii in (0, 1], a report for each; default: the trial's own"
    )
    result.add_argument(
        "--views", metavar="V[,V2,…]", help="views that may be attacked, such as 0,1; default: the trial's own"
    )
    result.add_argument(
        "--part", default="tune", help="what is scored: tune, or score, which is kept for study.confirm; default: tune"
    )
    result.add_argument("--samples", type=int, metavar="N", help="the first so many samples; default: the trial's own")
    result.add_argument("--seed", type=int, metavar="S", help="of every random draw; default: the trial's own")
    result.add_argument(
        "--repeat", type=int, default=0, metavar="R", help="which of the trial's models, from 0; default: 0"
    )
    result.add_argument("--out", metavar="FOLDER", help="default: evaluations/ in the storage folder")
    result.add_argument(
        "--surrogates",
        type=int,
        metavar="N",
        help="models trained for the transfer attack; default: 2 for standard, 5 for plus, else 0",
    )
    result.add_argument("--everyone", action="store_true", help="each attack on every sample, to compare attacks")
    result.add_argument("--no-subsets", action="store_true", help="leaves subsets of views out")
    result.add_argument(
        "--certify",
        type=float,
        metavar="SIGMA",
        help="also what smoothing with noise of that standard deviation guarantees, and votes of views",
    )
    result.add_argument(
        "--storage", default="runs", metavar="DIR", help="the study's storage.path; default: %(default)s"
    )
    result.add_argument("--json", action="store_true", dest="json_output", help="the report as JSON on stdout")
    result.add_argument("--debug", action="store_true", help="tracebacks and debug messages")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: 0 whatever the verdict, 2 for a request that cannot be met, 130 for Ctrl-C."""
    return exit_code_of(_run, parser().parse_args(argv))


def _run(given: argparse.Namespace) -> int:
    _check_flags(given)

    from ardmvc_core.attacks.target import EvaluationError
    from study.database.ledger import LedgerError, database_fault

    try:
        request = _prepare(given)
        if given.part == "score":
            note_score_use(request.target, request.parts["score"].digest, given.storage)
        return _evaluate(request, given)
    except LedgerError as error:
        return refuse(error, debug=given.debug)
    except EvaluationError as error:
        return refuse(EvaluationError(f"{given.model} cannot be judged: {error}"), debug=given.debug)
    except KeyboardInterrupt:
        print("interrupted: the report that was at work is not written", file=sys.stderr)
        return 130
    except Exception as error:
        if not (fault := database_fault(error)):
            raise
        return refuse(LedgerError(fault), debug=given.debug)


def note_score_use(target: Target, digest: str, storage: str) -> None:
    """Says that the score part is used, and notes it in the study that the model is named through.

    Args: digest: of the part's rows.
    """
    print(f"{target.reference}: the score part ({digest[:12]}) is used by this evaluation", file=sys.stderr)
    if target.study:
        from study.database.ledger import Ledger, study_url

        ledger = Ledger.open_existing(target.study, study_url(storage))
        ledger.note_score_use(f"study.evaluate {target.name}")
        print(f"uses of that part so far: {len(ledger.score_uses)}", file=sys.stderr)


# What was asked for


def _check_flags(given: argparse.Namespace) -> None:
    """Everything that needs no model. Raises: SpecError with a line for each fault."""
    from ardmvc_core.attacks.tiers import check_tier

    faults = []
    try:
        check_tier(given.tier)
    except ValueError as error:
        faults.append(f"--tier: {error}")
    if given.part not in PARTS:
        faults.append(f"--part: must be one of {', '.join(PARTS)}, got {given.part!r}")
    for flag, kind in (("eps", float), ("views", int)):
        try:
            setattr(given, flag, _numbers(getattr(given, flag), kind))
        except ValueError:
            example = "0.05,0.1" if flag == "eps" else "0,1"
            faults.append(f"--{flag}: must be numbers such as {example}, got {getattr(given, flag)!r}")
    allowed = {
        "samples": Range(LEAST_SAMPLES, 10**9),
        "seed": Range(0, 2**63 - 1),
        "repeat": Range(0, 999),
        "surrogates": Range(0, 100),
        "certify": Range(0, 100, above=True),
    }
    for flag, numbers in allowed.items():
        number = getattr(given, flag)
        if number is not None and number not in numbers:
            faults.append(f"--{flag}: must be in {numbers}, got {shown(number)}")
    if faults:
        raise SpecError(faults)


def _numbers(text: str | None, kind: Callable[[str], Any]) -> tuple[Any, ...] | None:
    return None if text is None else tuple(kind(entry) for entry in text.split(","))


def _prepare(given: argparse.Namespace) -> Request:
    """Raises: SpecError or LedgerError for whatever keeps the request from being met."""
    from ardmvc_core.data import DataError, check_dataset
    from trainables.building import pick_device
    from trainables.data_parts import cached_parts
    from trainables.saved_trial import saved_facts

    target = find_target(given.model, given.storage)
    try:
        facts = saved_facts(target.checkpoint)
    except (OSError, ValueError) as error:
        raise SpecError([" ".join(str(error).split())]) from error
    config = facts.config
    if config.protocol == "official":
        raise SpecError(
            [
                f"{target.reference}: strict evaluation needs a model that was trained on the strict parts (protocol "
                "strict or both); this one is of protocol official, whose training half overlaps them"
            ]
        )
    if not given.repeat < config.repeats:
        raise SpecError([f"--repeat: must be in 0..{config.repeats - 1}, the trial's models, got {given.repeat}"])
    if faults := check_dataset(config.dataset):
        raise SpecError(faults)
    try:
        parts = dict(cached_parts(config.dataset, "strict"))
    except DataError as error:
        raise SpecError([str(error)]) from error
    scored = parts[given.part].data
    budgets = _budgets(given, config, len(scored.views))
    if len(scored) < LEAST_SAMPLES:
        raise SpecError([f"the part {given.part} has {len(scored)} sample; intervals need at least {LEAST_SAMPLES}"])
    from trainables.surrogates import COUNTS

    surrogates = COUNTS.get(given.tier, 0) if given.surrogates is None else given.surrogates
    if surrogates and len(parts["attacker"].data) < LEAST_SAMPLES:
        raise SpecError([f"--surrogates: the attacker part has {len(parts['attacker'].data)} samples, too few"])
    _check_parts(target, parts, facts.parts)
    folders = _folders(given, target, budgets)
    device = pick_device("auto")
    locked = config.selection is not None and config.selection.lock_labels
    if locked:
        parts = {name: replace(part, data=replace(part.data, labels=None)) for name, part in parts.items()}
    return Request(
        target=target,
        model=_load(target, config, given.repeat, device),
        config=config,
        parts=parts,
        budgets=budgets,
        folders=folders,
        surrogates=surrogates,
        device=device,
        locked=locked,
        entropy_reference=facts.reference_entropy or 1.0,
    )


def _budgets(given: argparse.Namespace, config: "TrialConfig", n_views: int) -> "tuple[ResolvedBudget, ...]":
    """The trial's own budget with the tier, and with what the flags say, for each ε.

    Raises: SpecError naming the flag.
    """
    own = config.evaluation
    # A tier has neither white-box attacks in bfloat16 nor the GAN at further ε.
    changes: dict[str, Any] = {"tier": given.tier, "attack_precision": "fp32"}
    for flag, field in (("samples", "samples"), ("seed", "seed"), ("views", "attacked_views")):
        if getattr(given, flag) is not None:
            changes[field] = getattr(given, flag)
    found = []
    for eps in given.eps or (None,):
        if eps is not None:
            changes["eps"] = eps
            changes["gan_eps"] = None if own.gan_eps is None else tuple(e for e in own.gan_eps if e != eps)
        try:
            found.append(replace(own, **changes).resolve(config.dataset.name, n_views))
        except ValueError as error:
            text = str(error)
            for field, flag in (("attacked_views", "--views"), ("eps", "--eps")):
                if text.startswith(f"{field} "):
                    text = f"{flag}: {text.removeprefix(field).strip()}"
            raise SpecError([text]) from error
    if len({budget.digest() for budget in found}) < len(found):
        raise SpecError([f"--eps: must be distinct, got {', '.join(map(str, given.eps))}"])
    return tuple(found)


def _check_parts(target: Target, parts: "dict[str, Part]", stored: Mapping[str, str]) -> None:
    """Whether the data here are those that the model was trained beside. Raises: SpecError."""
    for name, part in parts.items():
        known = stored.get(name, stored.get(f"strict/{name}", part.digest))
        if known != part.digest:
            raise SpecError(
                [
                    f"{target.reference}: the part {name} of its data is not the one that is found here (digest "
                    f"{known[:12]} in the checkpoint, {part.digest[:12]} here): another file, or other rows"
                ]
            )


def _load(target: Target, config: "TrialConfig", repeat: int, device: Any) -> "nn.Module":
    """The model, in inference mode. Raises: SpecError if its weights are damaged, not finite, or lack centroids."""
    from ardmvc_core.networks.kmeans import KMeansHead
    from trainables.trial import load_model

    centroids = "cannot be attacked: its k-means head has no stored centroids"
    try:
        model, _ = load_model(target.checkpoint, device, repeat, config)
    except (OSError, ValueError) as error:
        if re.search(r"(centroids|temperature) is missing", str(error)):
            raise SpecError([f"{target.reference} {centroids}"]) from error
        raise SpecError([" ".join(str(error).split())]) from error
    for module in model.modules():
        # Until centroids are fitted the temperature is exactly 1; fitted, it is a median of squared distances.
        if isinstance(module, KMeansHead) and float(module.temperature) == 1.0:
            raise SpecError([f"{target.reference} {centroids} (they were never fitted: its trial ended too early)"])
    return model


def _folders(given: argparse.Namespace, target: Target, budgets: "Sequence[ResolvedBudget]") -> tuple[Path, ...]:
    """Where each report goes. Raises: SpecError if it cannot be written there."""
    if given.out is None:
        root = Path("runs" if "://" in given.storage else given.storage) / "evaluations"
        name = target.name + ("" if given.part == "tune" else f"-{given.part}")
        name += f"-repeat{given.repeat}" if given.repeat else ""
        folders = [root / f"{name}-{budget.digest()}" for budget in budgets]
    else:
        root = Path(given.out).expanduser()
        folders = [root / f"eps_{budget.eps:g}" for budget in budgets] if len(budgets) > 1 else [root]
    for folder in folders:
        place = folder.absolute()
        there = next(parent for parent in (place, *place.parents) if os.path.exists(parent))
        if not there.is_dir():
            raise SpecError([f"the report cannot be written to {folder}: {there} is not a folder"])
        if not os.access(there, os.W_OK | os.X_OK):
            raise SpecError([f"the report cannot be written to {folder}: no permission to write in {there}"])
    return tuple(folders)


# Which model


def find_target(reference: str, storage: str) -> Target:
    """The checkpoint that `reference` names.

    Args: reference: as MODEL_OR_RUN. storage: the studies' storage folder.
    Raises: LedgerError or SpecError naming what is missing.
    """
    if re.fullmatch(r"runs:/[^/]+", reference) or (
        re.fullmatch(r"[0-9a-f]{32}", reference) and not Path(reference).exists()
    ):
        named = _of_run(reference.removeprefix("runs:/"), storage)
        return Target(
            reference=reference, checkpoint=_checkpoint(named, storage), name=_slug(named), study=_study_of(named)
        )
    if reference.startswith(("runs:", "models:")):
        parts = re.fullmatch(r"models:/([^/@]+)/(\d+)", reference)
        if parts is None:
            raise SpecError([f"{reference}: must be runs:/ID or models:/NAME/VERSION, with a number as version"])
        source = _source_of(parts[1], parts[2], storage)
        return Target(
            reference=reference, checkpoint=_checkpoint(source, storage), name=_slug(f"{parts[1]}-{parts[2]}")
        )
    return Target(
        reference=reference,
        checkpoint=_checkpoint(reference, storage),
        name=_slug(reference),
        study=_study_of(reference),
    )


def _study_of(reference: str) -> str:
    prefix, _, name = reference.partition(":")
    return name.partition("/")[0] if prefix == "study" else ""


def _checkpoint(reference: str, storage: str) -> str:
    from study.database.ledger import LedgerError, study_url
    from study.planning.saved_models import PREFIX, find_checkpoint

    if not reference.startswith(PREFIX):
        # A file of a checkpoint stands for its folder.
        reference = re.sub(r"/(state\.pt|config\.json)$", "", reference)
    try:
        return find_checkpoint(reference, study_url(storage))
    except LedgerError as error:
        raise LedgerError(str(error).removeprefix("trial.checkpoint: ")) from error


def _slug(reference: str) -> str:
    """The last names of a reference, as one."""
    names = reference.removeprefix("study:").rstrip("/").split("/")
    return re.sub(r"[^\w.-]+", "-", "-".join(names[-2:])).strip("-.") or "model"


def _of_run(run_id: str, storage: str) -> str:
    """The study's trial that an MLflow run shows, as `study:NAME/NUMBER`; of a study's own run its best one."""
    from study.database.ledger import Ledger, study_url

    with _mlflow(storage) as client:
        tags = client.get_run(run_id).data.tags
    study, number = tags.get("study"), tags.get("trial_number")
    if not study or (number is None and tags.get("role") != "study"):
        raise SpecError([f"the MLflow run {run_id} is of no study: it has no tags study and trial_number"])
    uid = Ledger.open_existing(study, study_url(storage)).uid
    if tags.get("study_id", uid) != uid:
        raise SpecError(
            [f"the MLflow run {run_id} is of another study {study!r} than the one in this database; give its --storage"]
        )
    return f"study:{study}" if number is None else f"study:{study}/{number}"


def _source_of(name: str, version: str, storage: str) -> str:
    """The checkpoint folder that a registered model was made of."""
    with _mlflow(storage) as client:
        source = str(client.get_model_version_download_uri(name, version))
    if source.startswith(("runs:", "models:", "mlflow-artifacts:")):
        raise SpecError(
            [f"models:/{name}/{version} was registered from {source}; its source must be the folder of a checkpoint"]
        )
    return source.removeprefix("file://") if source.startswith("file:///") else source


@contextmanager
def _mlflow(storage: str) -> Iterator[Any]:
    """MLflow's client. Raises: SpecError, for what the block meets too."""
    from study.tracking import tracker as tracking
    from study.tracking.address import local_fault, sqlite_file, tracking_uri
    from study.tracking.run_fields import reason_of

    uri = tracking_uri(storage)
    if fault := local_fault(uri):
        raise SpecError([fault])
    file = sqlite_file(uri)
    if file is not None and not os.path.exists(file):
        raise SpecError([f"there is no MLflow database at {file}; give --storage or set MLFLOW_TRACKING_URI"])
    with tracking._environment(tracking.SETTINGS):
        client = tracking._client(uri)
        try:
            yield client
        except Exception as error:  # whatever it is, the model is not found
            raise SpecError([f"MLflow at {uri}: {reason_of(error)}"]) from error


# The work


def _evaluate(request: Request, given: argparse.Namespace) -> int:
    from study.robustness.page import as_json, page, write

    attacker = request.parts["attacker"].data.to(request.device)
    surrogates: tuple[Surrogate, ...] = ()
    if request.surrogates:
        from trainables.surrogates import train_surrogates

        with shown_progress(sys.stderr) as progress:
            surrogates = train_surrogates(
                request.config, attacker, request.surrogates, seed=request.budgets[0].seed, progress=progress
            )
    reports = []
    for budget, folder in zip(request.budgets, request.folders, strict=True):
        with shown_progress(sys.stderr) as progress:
            found, facts = _assess(request, given, budget, surrogates, progress)
        try:
            write(found, facts, folder)
        except OSError as error:
            return refuse(OSError(f"the report cannot be written to {folder}: {error}"), debug=given.debug)
        if given.json_output:
            reports.append({**json.loads(as_json(found, facts)), "folder": str(folder.absolute())})
        else:
            print(f"{page(found, facts)}\n\nwritten to {folder}/report.md", flush=True)
    if given.json_output:
        print(json.dumps(reports if len(reports) > 1 else reports[0], ensure_ascii=False))
    return 0


def _assess(
    request: Request,
    given: argparse.Namespace,
    budget: "ResolvedBudget",
    surrogates: "Sequence[Surrogate]",
    progress: Progress,
) -> "tuple[Any, Facts]":
    from ardmvc_core.assessment.assess import assess
    from ardmvc_core.assessment.certificates import certify
    from ardmvc_core.attacks.suite import counted_passes
    from study.robustness.page import Facts

    scored, attacker = request.parts[given.part], request.parts["attacker"]
    begin = time.monotonic()
    with counted_passes(request.model) as passes:
        found = assess(
            request.model,
            scored.data,
            attacker.data.views,
            budget,
            surrogates=[one.model for one in surrogates if not one.failure],
            everyone=given.everyone,
            subsets=not given.no_subsets,
            entropy_reference=request.entropy_reference,
            labels_locked=True if request.locked else None,
            progress=progress,
        )
        certificates = None
        if given.certify is not None:
            progress("certificates", 1.0)
            certificates = certify(
                request.model,
                found.suite.data,
                attacker.data.to(request.device).views,
                budget.attack_budget(),
                sigma=given.certify,
                seed=budget.seed,
            )
    seconds = time.monotonic() - begin
    used = {given.part: scored.digest, "attacker": attacker.digest}
    facts = Facts(
        reference=request.target.reference,
        checkpoint=redact(request.target.checkpoint),
        model=request.config.model.name,
        repeat=given.repeat,
        dataset=request.config.model_dump(mode="json")["dataset"],
        part=given.part,
        parts=used,
        everyone=given.everyone,
        surrogates=tuple(_surrogate_facts(one, found) for one in surrogates),
        device=str(request.device),
        versions=versions(PACKAGES),
        commit=git_commit(),
        command=command(),
        seconds=seconds,
        forwards=passes.forwards,
        backwards=passes.backwards,
        certificates=certificates,
    )
    return found, facts


def _surrogate_facts(one: "Surrogate", found: Any) -> "SurrogateFacts":
    from ardmvc_core.attacks.target import assign
    from ardmvc_core.evaluation.metrics import clustering_scores
    from study.robustness.page import SurrogateFacts

    agreement = None
    if not one.failure:
        data = found.suite.data
        own = assign(one.model, data.views, found.budget.batch_size)
        agreement = clustering_scores(found.suite.result.reference.clusters, own, data.n_clusters).nmi
    return SurrogateFacts(method=one.method, seed=one.seed, epochs=one.epochs, agreement=agreement, failure=one.failure)


# Progress


@contextmanager
def shown_progress(stream: TextIO) -> Iterator[Progress]:
    """Shows what runs and the time left: a bar in a terminal, elsewhere a line at most every `LINE_SECONDS`."""
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(stream)
        return
    from rich import progress
    from rich.text import Text

    clock = _TimeLeft()

    class Left(progress.ProgressColumn):
        """Counts down between two reports, which can lie minutes apart."""

        def render(self, task: progress.Task) -> Text:
            return Text(clock.text())

    columns = (
        progress.TextColumn("{task.description:24}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        Left(),
    )
    with progress.Progress(*columns, console=console, transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("", total=1.0)

        def show(what: str, share: float) -> None:
            clock.note(share)
            bar.update(task, completed=share, description=what)

        yield show


class _TimeLeft:
    """Time left by the share that is done; shares are of the largest cost, so it is more often too long than short."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begin = clock, clock()
        self._end: float | None = None

    def note(self, share: float) -> None:
        """Estimates the end anew."""
        now = self._clock()
        known = 0 < share < 1 and now - self._begin >= 1
        self._end = self._begin + (now - self._begin) / share if known else None

    def text(self) -> str:
        """`~3 min left`; empty where nothing is known yet, or what was estimated is over."""
        left = 0.0 if self._end is None else self._end - self._clock()
        if left < 1:
            return ""
        shown = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min" if left < 6000 else f"{left / 3600:.1f} h"
        return f"~{shown} left"


class _Lines:
    """Progress as plain lines."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock, self._left = stream, clock, _TimeLeft(clock)
        self._last: float | None = None

    def __call__(self, what: str, share: float) -> None:
        now = self._clock()
        if not what or (self._last is not None and now - self._last < LINE_SECONDS):
            return
        self._last = now
        self._left.note(share)
        line = f"[{time.strftime('%H:%M:%S')}] {share:4.0%}  {what}  {self._left.text()}"
        self._stream.write(line.rstrip() + "\n")
        self._stream.flush()


if __name__ == "__main__":
    sys.exit(main())
