"""Choosing among trials without labels, where a study's objective says so: who may be picked, and which one."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from study.ranking.objectives import pooled, value
from study.records import TrialRecord

if TYPE_CHECKING:
    from study.records import Goal

PRA = "select/pra"
KAPPA = "robust/kappa"
NOT_CORRECTNESS = (
    "Agreement is not correctness: PRA (select/pra) is robust accuracy against a vote of models that saw no label, and "
    "can be 1 where robust ACC is low; the two differ by no more than the vote's error, which "
    "`study.report NAME --label-probe LABELS.csv` bounds from a few labels."
)
"""Stands wherever PRA is shown."""
SECOND_PARTITION = "the views hold a second stable partition, and the vote may be for the wrong one"


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
    """Whether the vote that judged these trials is reliable; trials that none judged pass."""
    return all(record.metrics.get("select/reliable", 1.0) >= 0.5 for record in records)


def ranked_by_kappa(records: Iterable[TrialRecord], objectives: "Sequence[Goal]") -> bool:
    """Whether trials that maximise PRA were judged by a reference that is not reliable.

    They are then ranked by `robust/kappa` under the guards: on three data sets its ρ with robust ACC was 0.96 to 0.98.
    """
    return by_pra(objectives) and not reliable(records)


def by_kappa(records: Iterable[TrialRecord]) -> dict[int, tuple[float, ...]]:
    """Number of each trial → its `robust/kappa`, higher is better; where it is missing or no number: the lowest."""
    found = {record.number: value(record, KAPPA) for record in records}
    return {number: (-math.inf if own is None else own,) for number, own in found.items()}


def shows_pra(records: Iterable[TrialRecord]) -> bool:
    """Whether trials were scored against a vote."""
    return any(PRA in record.metrics for record in records)


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
    if not ranked or not by_pra(objectives) or ranked_by_kappa(ranked, objectives):
        return None
    shared = pooled(ranked[: (len(ranked) + 1) // 2], PRA)
    return shared.error(ranked[0].seeds, ranked[0].seeds) if shared else None


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
    second = any(record.metrics.get("select/second_partition", 0.0) >= 0.5 for record in ranked)
    why = SECOND_PARTITION if second else "the plain models agree too little for their vote to judge trials"
    if ranked_by_kappa(ranked, objectives):
        return [f"warning: {why}: trials are ranked by {KAPPA} in place of PRA"]
    if guarded(objectives) and not reliable(ranked):
        return [f"warning: {why}"]
    equals = tied(ranked, objectives)
    if len(equals) < 2:
        return []
    numbers = ", ".join(str(record.number) for record in equals[1:])
    error = tie_error(ranked, objectives)
    return [
        f"within one standard error ({error:.3f}) of the best: trial {numbers}; of these and the best, trial "
        f"{preferred(ranked, objectives)[0].number} is to be picked (highest utility, then smallest λ + γ)"
    ]
