"""Attacks one model as asked, and gathers what the report says."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from study.provenance import command, git_commit, versions
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
    from trainables.surrogates import Surrogate


PACKAGES = ("ardmvc-study", "torch", "numpy", "scipy", "scikit-learn")


def note_score_use(target: Target, digest: str, storage: str) -> None:
    """Says that the score part is used, and notes it in the study that the model is named through.

    Args: digest: of the part's rows.
    """
    print(f"{target.reference}: the score part ({digest[:12]}) is used by this evaluation", file=sys.stderr)
    if target.study:
        from study.database.ledger import Ledger

        ledger = Ledger.open_existing(target.study, storage_path=storage)
        ledger.note_score_use(f"study.evaluate {target.name}")
        print(f"uses of that part so far: {len(ledger.score_uses)}", file=sys.stderr)


def evaluate_all(request: Request, given: argparse.Namespace) -> int:
    from study.robustness.files import report_json, write
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
    for budget, folder in zip(request.budgets, request.folders, strict=True):
        with shown_progress(sys.stderr) as progress:
            found, facts = assess_one(request, given, budget, surrogates, progress)
        try:
            write(found, facts, folder)
        except OSError as error:
            raise SpecError([f"the report cannot be written to {folder}: {error}"]) from error
        if given.json_output:
            reports.append({**json.loads(report_json(found, facts)), "folder": str(folder.absolute())})
        else:
            print(f"{terminal_page(found, facts)}\n\nwritten to {folder}/report.md", flush=True)
    if given.json_output:
        print(json.dumps(reports if len(reports) > 1 else reports[0], ensure_ascii=False))
    return 0


def assess_one(
    request: Request,
    given: argparse.Namespace,
    budget: "ResolvedBudget",
    surrogates: "Sequence[Surrogate]",
    progress: Progress,
) -> "tuple[Assessment, Facts]":
    from ardmvc_core.assessment.assess import assess
    from ardmvc_core.attacks.suite import counted_passes
    from study.robustness.facts import Facts

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
    return certify(request.model, found.suite.data, pool, budget.attack_budget(), sigma=given.certify, seed=budget.seed)


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
