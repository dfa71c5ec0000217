"""Whether a study's label-free criterion chose well: `python -m study.report NAME --unblind`, once nothing is left to
choose. Every trained model is attacked on the score part, and only then are labels read.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from ardmvc_core.attacks.tiers import TIERS_VERSION, Tier
from ardmvc_core.data.dataset import MultiViewDataset
from ardmvc_core.data.reading import MIB, reading
from ardmvc_core.evaluation.worst_case import evaluate_suite
from ardmvc_core.networks.kmeans import CALIBRATION_BATCH
from ardmvc_core.selection.criteria import clean_clustering_loss, silhouette
from ardmvc_core.selection.validation import CriterionReport, validate_criterion
from study.database.ledger import Ledger
from study.ranking.label_free import KAPPA, NOT_CORRECTNESS, feasible
from study.ranking.ranking import main_budget
from study.records import TrialRecord
from study.reporting.text import markdown_table, use_of_part
from trainables.building import load_model, pick_device
from trainables.data_parts import cached_parts
from trainables.places import divided
from trainables.saved_trial import saved_facts
from trainables.storage import below, read_file, write_file

TRUTH_FILE = "unblinded.json"
TRUTH_TIER: Tier = "standard"
LEAST_TRIALS = 4
SEED = 7
"""Of the bootstrap intervals."""
DAMAGED = "is damaged (without it every trial is scored anew)"

HEADINGS = (
    *("criterion", "ρ with robust ACC", "τ", "ρ in the top half", "ρ with clean ACC", "picks trial"),
    *("its robust ACC", "regret", "of a random pick's", "top-3 regret"),
)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """One trial on the score part, with labels; means over its seeds."""

    trial: int
    robust_acc: float
    clean_acc: float
    clean_loss: float
    """Clustering loss on the tuning part: what the lowest-loss rule reads."""
    silhouette: float
    """Of the trial's own clusters in its own consensus, on the tuning part."""


def truths(
    records: Sequence[TrialRecord],
    folder: str,
    data: str | None = None,
    *,
    say: Say = lambda text: print(text, file=sys.stderr),
) -> list[Truth]:
    """Scores every complete trial of the main budget that has a checkpoint; what was scored before is read from the
    study's folder.

    Args: folder: of the study, a local path or a URI. data: as of `saved_facts`.
    Raises: ValueError if what was stored is damaged, or a checkpoint.
    """
    known = stored_truths(folder)
    found = []
    complete = _to_score(records)
    for place, record in enumerate(complete, 1):
        kept = known.get(record.number)
        assert record.checkpoint is not None
        about = {"checkpoint": divided(record.checkpoint)[1], "tier": f"{TRUTH_TIER}, version {TIERS_VERSION}"}
        if kept is None or not about.items() <= kept.items():
            say(f"unblinding trial {record.number} ({place} of {len(complete)}) …")
            known[record.number] = {**about, **_score(record.checkpoint, record.number, data)}
            write_file(folder, TRUTH_FILE, json.dumps(known, indent=1).encode())
        with reading(below(folder, TRUTH_FILE), DAMAGED):
            facts = {key: value for key, value in known[record.number].items() if key not in about}
            found.append(TypeAdapter(Truth).validate_python(facts))
    return found


def _to_score(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    budget = main_budget(records)
    return [r for r in records if r.state == "COMPLETE" and r.checkpoint and r.budget == budget]


def stored_truths(folder: str) -> dict[int, dict[str, Any]]:
    """What was scored before, by trial. Raises: ValueError naming the file if it is damaged."""
    with reading(below(folder, TRUTH_FILE), DAMAGED):
        stored = read_file(folder, TRUTH_FILE, MIB)
        known = {int(key): dict(facts) for key, facts in json.loads(stored or b"{}").items()}
        for facts in known.values():  # older versions have stored whole places
            facts["checkpoint"] = divided(facts["checkpoint"])[1]
        return known


def _score(checkpoint: str, number: int, data: str | None) -> dict[str, float]:
    facts = saved_facts(checkpoint, data)
    config = facts.config
    device = pick_device("auto")
    parts = cached_parts(config.dataset, "strict")
    tune, score = parts["tune"].data.to(device), parts["score"].data.to(device)
    budget = replace(config.evaluation, tier=TRUTH_TIER, further_attacks=())
    budget = budget.resolve(config.dataset.name, len(score.views))
    rows = []
    for repeat in range(facts.models):
        model, _ = load_model(checkpoint, device, repeat, facts)
        values = evaluate_suite(model, score, None, budget).evaluation.values
        loss = clean_clustering_loss(model, tune.views, config.batch_size)
        rows.append((values["robust/acc"], values["clean/acc"], loss, _own_silhouette(model, tune, budget.seed)))
    robust, clean, loss, shape = np.array(rows).mean(axis=0).tolist()
    return {"trial": number, "robust_acc": robust, "clean_acc": clean, "clean_loss": loss, "silhouette": shape}


def _own_silhouette(model: Any, data: MultiViewDataset, seed: int) -> float:
    from ardmvc_core.attacks.objectives.clean_reference import clean_reference

    clean = clean_reference(model, data.views, CALIBRATION_BATCH)
    return silhouette(clean.consensus.cpu().numpy(), clean.clusters.cpu().numpy(), seed=seed)


def criteria(records: Sequence[TrialRecord], found: Sequence[Truth]) -> dict[str, np.ndarray]:
    """What each rule would have ranked by, higher is better: (M,) in the order of `found`."""
    by_number = {record.number: record.metrics for record in records}
    metrics = [by_number[truth.trial] for truth in found]

    def column(name: str) -> np.ndarray:
        return np.array([own.get(name, math.nan) for own in metrics])

    rules = {
        "PRA (select/pra)": column("select/pra"),
        "stability alone (1 − robust/flip)": 1 - column("robust/flip"),
        KAPPA: column(KAPPA),
        "utility (select/utility)": column("select/utility"),
        "seed agreement": column("select/seed_agreement"),
        "lowest clean clustering loss": -np.array([truth.clean_loss for truth in found]),
        "own silhouette": np.array([truth.silhouette for truth in found]),
    }
    return {name: values for name, values in rules.items() if np.isfinite(values).any()}


def unblinding_page(name: str, records: Sequence[TrialRecord], found: Sequence[Truth], use: str) -> str:
    """The validation as Markdown. Args: use: which one of the score part it is.

    Raises: ValueError for fewer than four scored trials.
    """
    _check_enough(found)
    robust = np.array([truth.robust_acc for truth in found])
    clean = np.array([truth.clean_acc for truth in found])
    by_number = {record.number: record for record in records}
    kept = np.array([feasible(by_number[truth.trial]) for truth in found])
    lines = [
        f"# {name}, unblinded",
        "",
        f"{len(found)} complete trials, {int(kept.sum())} feasible. Truth: worst-case ACC with the fixed map, on "
        f"the score part ({use}), tier `{TRUTH_TIER}`; best {robust.max():.3f}, median {np.median(robust):.3f}, mean "
        f"{robust.mean():.3f}. ρ is Spearman's, τ Kendall's τ_b, with 95 % BCa bootstrap intervals over trials; the "
        "top half is that by the criterion.",
        "",
    ]
    rows, verdict = [], ""
    for rule, values in criteria(records, found).items():
        guarded = kept if rule.startswith(("PRA", KAPPA)) and kept.any() else None
        report = validate_criterion(values, robust, feasible=guarded, seed=SEED)
        beside = validate_criterion(values, clean, seed=SEED)
        rows.append(_row(rule, report, beside, found, robust))
        if rule.startswith("PRA"):
            verdict = _verdict(report)
    for place, truth in enumerate(found):
        if by_number[truth.trial].baseline:
            own, regret = robust[place], robust.max() - robust[place]
            name_of = f"baseline, trial {truth.trial}"
            rows.append([name_of, *[""] * 4, str(truth.trial), f"{own:.3f}", f"{regret:.3f}", "", ""])
    mean = robust[kept if kept.any() else slice(None)].mean()
    rows.append(["a random feasible trial (expected)", *[""] * 5, f"{mean:.3f}", f"{robust.max() - mean:.3f}", "", ""])
    oracle = found[int(robust.argmax())]
    last = f"Tuning with labels would have picked trial {oracle.trial} with {oracle.robust_acc:.3f}. {verdict}".strip()
    return "\n".join([*lines, markdown_table(HEADINGS, rows), "", last, "", NOT_CORRECTNESS]) + "\n"


def _check_enough(trials: Sequence[object]) -> None:
    if len(trials) < LEAST_TRIALS:
        raise ValueError(f"a criterion is validated on at least {LEAST_TRIALS} complete trials, got {len(trials)}")


def _row(
    rule: str, report: CriterionReport, beside: CriterionReport, found: Sequence[Truth], robust: np.ndarray
) -> list[str]:
    return [
        rule,
        f"{report.rho:+.2f}",
        f"{report.tau:+.2f}",
        "" if report.rho_top is None else f"{report.rho_top:+.2f}",
        f"{beside.rho.value:+.2f}",
        str(found[report.picked].trial),
        f"{robust[report.picked]:.3f}",
        f"{report.regret:.3f}",
        f"{report.normalised_regret:.2f}",
        f"{report.top3_regret:.3f}",
    ]


def _verdict(report: CriterionReport) -> str:
    if report.validated:
        return "PRA passes on this data set (lower bound of ρ above 0.5, regret at most a quarter of a random pick's)."
    return (
        "PRA is not validated on this data set: it takes a lower bound of ρ above 0.5 "
        f"(here {report.rho.low:.2f}) and a regret of at most a quarter of a random pick's (here "
        f"{report.normalised_regret:.2f})."
    )


def unblind(ledger: Ledger, records: Sequence[TrialRecord], storage: str, data: str | None = None) -> str:
    """Notes the use of the score part, scores what is not scored yet, and gives the page.

    Args: data: as of `saved_facts`.
    Raises: ValueError as `truths` and `unblinding_page`.
    """
    folder, use = below(storage, ledger.name), f"{ledger.name}: study.report --unblind"
    stored_truths(folder)  # what is refused is refused before a use is noted
    scored = _to_score(records)
    _check_enough(scored)
    first = str(scored[0].checkpoint)
    _, config = load_model(first, pick_device("auto"), facts=saved_facts(first, data))
    part = cached_parts(config.dataset, "strict")["score"].digest
    ledger.note_score_use(part, use)
    found = truths(records, folder, data)
    text = unblinding_page(ledger.name, records, found, use_of_part(use, ledger.score_uses(part)))
    write_file(folder, "unblinded.md", text.encode())
    return text
