"""Scores of a run of the suite: the worst case per sample under the map fixed on clean data, and each attack.

The target is in inference mode and verified unchanged. `probe` is the cheap look after a round, `evaluate_suite` the
number of a finished trial.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ardmvc_core.attacks.attack import Attack
from ardmvc_core.attacks.other_threats import ThreatRecord, run_other_threat
from ardmvc_core.attacks.suite import Memory, Progress, SuiteResult, run_suite
from ardmvc_core.attacks.target import assign, device_of, inference_target
from ardmvc_core.attacks.tiers import OtherThreat
from ardmvc_core.data.dataset import MultiViewDataset
from ardmvc_core.evaluation.budget import ResolvedBudget
from ardmvc_core.evaluation.score_card import Evaluation, ScoreCard, as_array
from ardmvc_core.types import Views


@dataclass(frozen=True, kw_only=True)
class SuiteEvaluation:
    """Named metrics and arrays, and the run that they were read from."""

    evaluation: Evaluation
    result: SuiteResult
    data: MultiViewDataset
    """The scored samples, on the model's device."""
    threats: tuple[ThreatRecord, ...] = ()
    """Of the other threats that ran or were skipped; none is in `result`."""


def scored_samples(model: nn.Module, data: MultiViewDataset, budget: ResolvedBudget) -> MultiViewDataset:
    """The samples that the budget scores, on the model's device."""
    if budget.scored(len(data)) < len(data):
        data = data.subset(range(budget.scored(len(data))))
    return data.to(device_of(model, data.views))


def evaluate_suite(
    model: nn.Module,
    data: MultiViewDataset,
    attacker_views: Views | None,
    budget: ResolvedBudget,
    *,
    surrogates: Sequence[nn.Module] = (),
    everyone: bool = False,
    progress: Progress | None = None,
    attacks: Sequence[Attack] | None = None,
    threats: Sequence[OtherThreat] | None = None,
    memory: Memory | None = None,
) -> SuiteEvaluation:
    """Runs the budget's tier and further attacks on a model in inference mode and scores it.

    Args: model: left as it was found. data: the scored part; without labels only label-free metrics appear.
        attacker_views: what generators are fitted on; None: they are skipped. surrogates, everyone, progress, attacks,
        memory: as in `run_suite`. threats: in place of those that the budget names; with `attacks` given it names none.
    Returns: `clean/…` of `SCORES`, `chance/{acc,nmi,ari,robust_acc}`, `guard/{clusters_used,min_share}`, `noise/flip`,
        `robust/…` of `ROBUST_SCORES` of the union, `robust/{nmi,ami,ari}_clean` between clean and attacked clusters,
        per attack `<key>/new` (share of the samples that it flips first) and, where it ran on every sample, `<key>/…`
        of `ATTACK_SCORES`, `<threat>/{acc,flip}` of the worst case of each other threat that ran, and
        `cost/{forwards,backwards}` in passes of a sample, those of other threats not counted.
    Raises: EvaluationError if the target changes or cannot be judged.
    """
    data = scored_samples(model, data, budget)
    device = data.views[0].device
    fitted_on = None if attacker_views is None else tuple(view.to(device) for view in attacker_views)
    with inference_target(model) as verify:
        card = ScoreCard(as_array(data.labels), assign(model, data.views, budget.batch_size), data.n_clusters)
        verify("the clean pass")
    result = run_suite(
        model,
        data.views,
        budget.threat(),
        tier=budget.tier,
        seed=budget.seed,
        batch_size=budget.batch_size,
        attacker_views=fitted_on,
        surrogates=surrogates,
        everyone=everyone,
        attacks=attacks,
        further=budget.further_attacks,
        memory=memory,
        progress=progress,
    )
    for number, record in enumerate(result.records):
        if record.skipped:
            continue
        if everyone or number == 0:  # the others met survivors only
            card.attack(record.key, record.clusters.cpu().numpy())
        card.values[f"{record.key}/new"] = record.new / len(data)
    card.union(result.clusters.cpu().numpy(), result.flipped.cpu().numpy(), result.noise_flip)
    card.values["cost/forwards"] = float(sum(record.forwards for record in result.records))
    card.values["cost/backwards"] = float(sum(record.backwards for record in result.records))
    card.examples(data.views, result.views, result.clusters.cpu().numpy())
    if threats is None:
        threats = budget.other_threats if attacks is None else ()
    others = _other_threats(threats, model, data, budget, progress)
    for other in others:
        if not other.skipped:
            card.threat(other.key, other.flipped)
    return SuiteEvaluation(evaluation=card.evaluation(), result=result, data=data, threats=others)


def _other_threats(
    threats: Sequence[OtherThreat],
    model: nn.Module,
    data: MultiViewDataset,
    budget: ResolvedBudget,
    progress: Progress | None,
) -> tuple[ThreatRecord, ...]:
    found = []
    for key in threats:
        if progress is not None:
            progress(key, 1.0)
        found.append(
            run_other_threat(
                key,
                model,
                data.views,
                l2_eps=budget.l2_eps,
                attacked_views=budget.attacked_views,
                seed=budget.seed,
                batch_size=budget.batch_size,
            )
        )
    return tuple(found)


def probe(model: nn.Module, data: MultiViewDataset, budget: ResolvedBudget) -> Evaluation:
    """The cheap evaluation of a round: clean scores, and the tier `probe` on the first `probe_samples`.

    Returns: `clean/…`, `chance/…`, `guard/…`, `noise/flip`, and what `evaluate_suite` calls `robust/…` as `probe/…`;
        among the arrays `clusters/clean` and, of the attacked samples, `probe/flipped`.
    Raises: EvaluationError as `evaluate_suite`.
    """
    data = scored_samples(model, data, budget)
    with inference_target(model):
        card = ScoreCard(as_array(data.labels), assign(model, data.views, budget.batch_size), data.n_clusters)
    result = run_suite(
        model,
        tuple(view[: budget.probe_samples] for view in data.views),
        budget.threat(),
        tier="probe",
        seed=budget.seed,
        batch_size=budget.batch_size,
    )
    card.union(result.clusters.cpu().numpy(), result.flipped.cpu().numpy(), result.noise_flip, name="probe")
    return card.evaluation()
