"""Attacks one model as asked, and gathers what the report says."""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.provenance import command, git_commit, versions
from study.records import duration
from study.reporting.progress import Progress, shown_progress
from study.robustness.request import Request
from study.robustness.target import Target
from study.secrets import redact
from study.spec.yaml_file import SpecError

if TYPE_CHECKING:
    from ardmvc_core.assessment.assess import Assessment
    from ardmvc_core.assessment.certificates import Certificates
    from ardmvc_core.evaluation.budget import ResolvedBudget
    from study.robustness.facts import Facts, SurrogateFacts
    from study.robustness.memory import FolderMemory
    from trainables.surrogates import Surrogate


PACKAGES = ("ardmvc-study", "torch", "numpy", "scipy", "scikit-learn")


def note_score_use(target: Target, digest: str, storage: str) -> None:
    """Notes the use of the score part in the studies' database, which is made if it is missing, and says so.

    Args: digest: of the part's content. Raises: LedgerError if it cannot be noted.
    """
    from study.database.engine import engine_of, open_storage, study_url
    from study.database.score_uses import note_use, uses_of
    from study.reporting.text import use_of_part

    use = f"study.evaluate {redact(target.checkpoint)}"
    engine = engine_of(open_storage(study_url(storage), create=True))
    with engine.begin() as connection:
        note_use(connection, digest, use)
        uses = uses_of(connection, digest)
    engine.dispose()
    told = f"the score part ({digest[:12]}) is used by this evaluation: {use_of_part(use, uses)}"
    print(f"{target.reference}: {told}", file=sys.stderr)


def evaluate_all(request: Request, given: argparse.Namespace) -> int:
    from study.robustness.files import report_json, write
    from study.robustness.memory import FolderMemory
    from study.robustness.terminal import terminal_page

    attacker = request.parts["attacker"].data.to(request.device)
    surrogates: tuple[Surrogate, ...] = ()
    if request.surrogates:
        from trainables.surrogates import train_surrogates

        with shown_progress(sys.stderr) as progress:
            surrogates = train_surrogates(
                request.config, attacker, request.surrogates, seed=request.budgets[0].seed, progress=progress
            )
    reports = []
    print(_cost(request, given), file=sys.stderr, flush=True)
    for budget, folder in zip(request.budgets, request.folders, strict=True):
        with shown_progress(sys.stderr) as progress:
            memory = FolderMemory(folder, _run_digest(request, given, budget), request.device)
            found, facts = assess_one(request, given, budget, folder, memory, surrogates, progress)
        try:
            write(found, facts, folder)
        except OSError as error:
            raise SpecError([f"the report cannot be written to {folder}: {error}"]) from error
        memory.forget()
        if given.json_output:
            reports.append({**json.loads(report_json(found, facts)), "folder": str(folder.absolute())})
        else:
            print(f"{terminal_page(found, facts)}\n\nwritten to {folder}/report.md", flush=True)
    if given.json_output:
        print(json.dumps(reports if len(reports) > 1 else reports[0], ensure_ascii=False))
    return 0


def _run_digest(request: Request, given: argparse.Namespace, budget: "ResolvedBudget") -> str:
    """Of all that decides what the attacks find: model, samples, budget and surrogates."""
    parts = [request.parts[name].digest for name in (given.part, "attacker")]
    facts = [request.target.checkpoint, given.repeat, budget.digest(), *parts, given.everyone, request.surrogates]
    return hashlib.sha256(json.dumps([*facts, versions(("torch",))]).encode()).hexdigest()


def _cost(request: Request, given: argparse.Namespace) -> str:
    """What the attacks may take, in a line: by their largest number of passes, and by one pass that is tried here."""
    from ardmvc_core.attacks.objectives.clean_reference import clean_reference
    from ardmvc_core.attacks.target import inference_target
    from ardmvc_core.attacks.tiers import plan
    from study.planning.pace import BACKWARD

    budget, data = request.budgets[0], request.parts[given.part].data
    count = budget.scored(len(data))
    views = tuple(view[: min(count, budget.batch_size)].to(request.device) for view in data.views)
    with inference_target(request.model):
        clean_reference(request.model, views, budget.batch_size)  # the first pass prepares what later ones have
        begin = time.perf_counter()
        clean_reference(request.model, views, budget.batch_size)
        each = (time.perf_counter() - begin) / len(views[0])
    attacks = plan(given.tier, data.n_clusters)
    forward = sum(attack.forwards for attack in attacks)
    seconds = each * count * len(request.budgets) * (forward + BACKWARD * sum(attack.backwards for attack in attacks))
    shorter = [flag for flag, on in (("--curves none", given.curves), ("--checks quick", given.checks)) if on == "full"]
    besides = f"; curves and checks come on top, shorter with {' and '.join(shorter)}" if shorter else ""
    return (
        f"{request.target.reference}: tier {given.tier} on {count} samples, at most {forward:,} passes of each, about "
        f"{duration(seconds)} here, less if samples move{besides}"
    )


def assess_one(
    request: Request,
    given: argparse.Namespace,
    budget: "ResolvedBudget",
    folder: Path,
    memory: "FolderMemory",
    surrogates: "Sequence[Surrogate]",
    progress: Progress,
) -> "tuple[Assessment, Facts]":
    """Args: folder: of the report, where the scores of the attacks stand before curves and checks are done. memory: of
    attacks that an interrupted evaluation has finished."""
    from ardmvc_core.assessment.assess import assess
    from ardmvc_core.attacks.suite import counted_passes
    from ardmvc_core.attacks.tiers import OTHER_THREATS
    from study.robustness.facts import Facts
    from study.robustness.files import keep_attacks

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
            eps_grid=None if given.curves == "full" else (),
            subsets=given.curves == "full" and not given.no_subsets,
            threats=() if given.no_other_threats else OTHER_THREATS,
            entropy_reference=request.entropy_reference,
            labels_locked=True if request.locked else None,
            quick_checks=given.checks == "quick",
            attacked=lambda suite: keep_attacks(suite, folder),
            memory=memory,
            progress=progress,
        )
        certificates = _certificates(request, given, found, progress)
    seconds = time.monotonic() - begin
    facts = Facts(
        reference=request.target.reference,
        checkpoint=redact(request.target.checkpoint),
        model=request.config.model.name,
        repeat=given.repeat,
        dataset=request.config.model_dump(mode="json")["dataset"],
        part=given.part,
        parts={given.part: scored.digest, "attacker": attacker.digest},
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


def _certificates(
    request: Request, given: argparse.Namespace, found: "Assessment", progress: Progress
) -> "Certificates | None":
    if given.certify is None:
        return None
    from ardmvc_core.assessment.certificates import certify

    progress("certificates", 1.0)
    pool, budget = request.parts["attacker"].data.to(request.device).views, found.budget
    return certify(request.model, found.suite.data, pool, budget.threat(), sigma=given.certify, seed=budget.seed)


def _surrogate_facts(one: "Surrogate", found: "Assessment") -> "SurrogateFacts":
    from ardmvc_core.attacks.target import assign
    from ardmvc_core.evaluation.metrics import clustering_scores
    from study.robustness.facts import SurrogateFacts

    agreement = None
    if not one.failure:
        data = found.suite.data
        own = assign(one.model, data.views, found.budget.batch_size)
        agreement = clustering_scores(found.suite.result.reference.clusters, own, data.n_clusters).nmi
    return SurrogateFacts(method=one.method, seed=one.seed, epochs=one.epochs, agreement=agreement, failure=one.failure)
