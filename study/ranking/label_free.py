"""Choosing among trials without labels, where a study's objective says so: who may be picked, and which one."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from study.ranking.objectives import pooled
from study.records import TrialRecord

if TYPE_CHECKING:
    from study.records import Goal

PRA = "select/pra"


def feasible(record: TrialRecord) -> bool:
    """Whether the guards against collapse hold for at least half of the trial's seeds; a trial without them passes."""
    return record.metrics.get("select/feasible", 1.0) >= 0.5


def guarded(objectives: "Sequence[Goal]") -> bool:
    """Whether the objectives choose without labels, and so only among feasible trials."""
    return any(objective.metric.startswith("select/") for objective in objectives)


def by_pra(objectives: "Sequence[Goal]") -> bool:
    """Whether a study maximises `select/pra` and nothing beside."""
    return [objective.metric for objective in objectives] == [PRA]


def reliable(records: Iterable[TrialRecord]) -> bool:
    """Whether the plain models that judged these trials agree enough; trials that none judged pass."""
    return all(record.metrics.get("select/reliable", 1.0) >= 0.5 for record in records)


def ranked_by_b(records: Iterable[TrialRecord], objectives: "Sequence[Goal]") -> bool:
    """Whether trials that maximise PRA were judged by a reference that is not reliable."""
    return by_pra(objectives) and not reliable(records)


def by_criterion_b(records: Sequence[TrialRecord]) -> dict[int, tuple[float, ...]]:
    """Number of each trial → its criterion B (`ardmvc_core.selection.criteria.criterion_b`), higher is better."""
    from ardmvc_core.selection.criteria import criterion_b

    names = ("robust/kappa", "select/seed_agreement", "select/clean_loss")
    kappa, agreement, loss = ([record.metrics.get(name, math.nan) for record in records] for name in names)
    found = criterion_b(kappa, agreement, loss).tolist()
    return {record.number: (own,) for record, own in zip(records, found, strict=True)}


def preferred(ranked: Sequence[TrialRecord], objectives: "Sequence[Goal]") -> list[TrialRecord]:
    """Trials in the order in which they are to be picked: criterion A's rule for ties.

    Where the objective is `select/pra`, those within one standard error (`tie_error`) of the best come first, those of
    higher utility before others, and of equals, where all set both weights, those with the smaller λ + γ. Everywhere
    else, and with one seed, the order is kept.

    Args: ranked: best first.
    """
    equals = tied(ranked, objectives)
    weights = {record.number: _defence_weights(record) for record in equals} if len(equals) > 1 else {}
    weighted = all(None not in own for own in weights.values())

    def key(record: TrialRecord) -> tuple[float, float]:
        weight = sum(weights[record.number]) if weighted and weights else 0.0
        return -record.metrics.get("select/utility", 0.0), weight

    return [*sorted(equals, key=key), *ranked[len(equals) :]]


def _defence_weights(record: TrialRecord) -> list[Any]:
    """What the trial sets the weights of its method's defence to; None where it sets none."""
    from ardmvc_core.models import MODELS

    method = MODELS.get(record.config.get("model", {}).get("name", ""))
    return [record.overrides.get(f"model.{name}") for name in method.defence] if method else [None]


def tie_error(ranked: Sequence[TrialRecord], objectives: "Sequence[Goal]") -> float | None:
    """Standard error of a difference in `select/pra`; None with one seed, and where something else ranks.

    Its spread over seeds is that of the better half: with that of poor trials, which vary more, 0.88 would tie with
    0.97.
    """
    if not ranked or not by_pra(objectives) or ranked_by_b(ranked, objectives):
        return None
    shared = pooled(ranked[: (len(ranked) + 1) // 2], PRA)
    return shared.error if shared else None


def tied(ranked: Sequence[TrialRecord], objectives: "Sequence[Goal]") -> list[TrialRecord]:
    """The best trial and those within one standard error of it.

    Args: ranked: best first.
    """
    error = tie_error(ranked, objectives)
    if error is None:
        return list(ranked[:1])
    lowest = ranked[0].metrics.get(PRA, math.nan) - error
    return [record for record in ranked if record is ranked[0] or record.metrics.get(PRA, math.nan) >= lowest]


def choice(ranked: Sequence[TrialRecord], objectives: "Sequence[Goal]") -> list[str]:
    """What the criterion without labels says beyond the order of its numbers."""
    if ranked_by_b(ranked, objectives):
        return [
            "the plain models agree too little to vote: trials are ranked by criterion B, the mean of their ranks in "
            "robust/kappa, seed agreement and clean loss"
        ]
    if guarded(objectives) and not reliable(ranked):
        return ["warning: the plain models agree too little for their vote to judge trials"]
    equals = tied(ranked, objectives)
    if len(equals) < 2:
        return []
    numbers = ", ".join(str(record.number) for record in equals[1:])
    error = tie_error(ranked, objectives)
    return [
        f"within one standard error ({error:.3f}) of the best: trial {numbers}; of these and the best, trial "
        f"{preferred(ranked, objectives)[0].number} is to be picked (highest utility, then smallest λ + γ)"
    ]
