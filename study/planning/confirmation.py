"""Which trials are confirmed, and the study that trains them again with fresh seeds."""

import argparse
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from study.spec.yaml_file import SpecError

if TYPE_CHECKING:
    from study.database.ledger import Ledger
    from study.records import TrialRecord
    from study.spec.study_spec import StudySpec


MOST_FINALISTS = 100

METRIC = "robust/acc"


def finalists(
    spec: "dict[str, Any]", records: "Sequence[TrialRecord]", top: int, wanted: Sequence[int] | None = None
) -> "list[TrialRecord]":
    """The `top` searched trials that are to be picked first, then the ranked baselines in their order.

    Args: wanted: numbers of the baselines to take; None: all that have a rank.
    Raises: LedgerError if no searched trial is complete, or a wanted baseline is not there.
    """
    from study.database.engine import LedgerError
    from study.ranking.label_free import preferred
    from study.ranking.objectives import goals
    from study.ranking.ranking import rank

    objectives = goals(spec)
    ranked = [row.record for row in rank(records, objectives) if row.rank is not None]
    searched = [record for record in preferred(ranked, objectives) if not record.baseline][:top]
    baselines = sorted((record for record in ranked if record.baseline), key=lambda record: record.number)
    if not searched:
        raise LedgerError("the study has no complete searched trial to confirm (without labels: none that is feasible)")
    if wanted is not None:
        known = [record.number for record in baselines]
        if absent := [number for number in wanted if number not in known]:
            raise LedgerError(
                f"--baselines: must be among {', '.join(map(str, known)) or 'none'}, the study's ranked baselines, "
                f"got {', '.join(map(str, absent))}"
            )
        baselines = [record for record in baselines if record.number in wanted]
    return [*searched, *baselines]


def confirmation(ledger: "Ledger", chosen: "Sequence[TrialRecord]", given: argparse.Namespace) -> "StudySpec":
    """The study that trains each finalist with `--seeds` fresh seeds and scores them on the score part.

    Raises: SpecError for a study whose trials cannot be confirmed.
    """
    from ardmvc_core.evaluation.budget import RETIRED
    from ardmvc_core.seeding import derive_seed
    from study.spec.study_spec import checked_spec, without_places
    from trainables.config import identity

    old = ledger.spec
    if old.get("trainable", "model") != "model":
        raise SpecError([f"{given.study!r} is a study of attackers; confirm is for models"])
    if old["trial"].get("protocol", "strict") == "official":
        raise SpecError([f"{given.study!r} runs the official protocol, which has no part that is kept back"])
    lists = [dict(record.overrides) for record in chosen]
    seed = derive_seed(int(old.get("seed", 7)), "confirm") % 2**31
    trial = {key: value for key, value in old["trial"].items() if key not in ("selection", "seed", "repeats")}
    kept = {name: value for name, value in trial.get("evaluation", {}).items() if name not in RETIRED}
    evaluation = {**kept, "tier": given.tier}
    trial |= {"protocol": "strict", "evaluation": evaluation, "score_on": "score", "repeats": given.seeds, "seed": seed}
    # Without places: a confirmation goes on where the data have moved.
    settings = [identity(old["trial"]), list(map(without_places, lists)), given.seeds, given.tier]
    facts = json.dumps(settings, sort_keys=True, default=str)
    digest = hashlib.sha256(facts.encode()).hexdigest()[:8]
    limits = {**old.get("limits", {}), "trials": len(lists), "hours": None, "passes": None, "patience": None}
    raw: dict[str, Any] = {
        "name": f"{given.study}.confirm-{digest}",
        "seed": seed,
        "trial": trial,
        "space": {},
        "baselines": lists,
        "objective": {"metric": METRIC, "mode": "max"},
        "pruner": {"name": "none"},
        "sampler": {"name": "random"},
        "limits": {key: value for key, value in limits.items() if value is not None},
        "resources": old.get("resources", {}),
        "storage": {**old.get("storage", {}), "path": given.storage},
    }
    return checked_spec("confirm", raw, given.sets)
