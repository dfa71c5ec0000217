"""Which metrics a trial's last round reports: with another objective every trial would fail at its end."""

import math
from collections.abc import Iterable, Mapping

from ardmvc_core.attacks.tiers import OTHER_THREATS, plan
from ardmvc_core.evaluation.metrics import ATTACK_SCORES, PUBLISHED, ROBUST_SCORES, SCORES, UNMAPPED_SCORES
from ardmvc_core.selection.criteria import SELECT_SCORES
from study.records import Goal, TrialRecord
from trainables.config import AttackTrialConfig, TrialConfig

LABEL_FREE = ("flip", "kappa", *UNMAPPED_SCORES)
"""Last parts of metrics that need no labels."""


def known_metrics(config: TrialConfig | AttackTrialConfig) -> list[str]:
    """Names of the scores in the last report of such a trial, on labelled data."""
    if isinstance(config, AttackTrialConfig):
        return [*_group("gan", ATTACK_SCORES), *_group("clean", SCORES), "noise/flip"]
    official = [*_group("official/pre", PUBLISHED), *_group("official/post", PUBLISHED)]
    if config.protocol == "official":
        return official
    names = [*official] if config.protocol == "both" else []
    names += _group("select", SELECT_SCORES) if config.selection else []
    names += [*_group("robust", ROBUST_SCORES), *_group("clean", SCORES)]
    # Attacks after the first run on survivors only, so they have no score of their own.
    first = plan(config.evaluation.tier, 2)[0].key
    names += [*_group("robust", UNMAPPED_SCORES), *_group(first, ATTACK_SCORES), "noise/flip"]
    names += [f"{threat}/{score}" for threat in config.evaluation.other_threats for score in ("acc", "flip")]
    return [name for name in names if needs_no_labels(name)] if config.labels_locked else names


def probe_of(metric: str) -> str:
    """What the rounds before the last report in place of a score: itself, or the probe's score of the same name."""
    # No probe looks at other threats, and its own score says nothing of them.
    itself = ("clean", "gan", "noise", *OTHER_THREATS)
    return metric if metric.partition("/")[0] in itself else f"probe/{metric.rsplit('/', 1)[-1]}"


def round_value(metric: str, metrics: Mapping[str, float]) -> float | None:
    """The objective as a round knows it: itself, or the cheap probe's number of the same name before the last round."""
    value = metrics.get(metric, metrics.get(probe_of(metric)))
    return value if value is not None and math.isfinite(value) else None


def below(metrics: Mapping[str, float], floors: Iterable[tuple[str, float]]) -> bool:
    """Whether a round is known to be below a floor, by the metric itself or by the probe's of that name."""
    return any(metrics.get(name, metrics.get(probe_of(name), floor)) < floor for name, floor in floors)


def told_of(record: TrialRecord, goal: Goal) -> dict[int, float]:
    """What a trial told of its objective: by round of its first seed, and from that one's last round on by seed.

    A round that does not reach a floor of the objective is not a number.
    """
    told: dict[int, float] = {}
    before = (0, 0.0)
    """Seeds that are behind, and the sum of their values."""
    first = record.seeds - max(0, record.legs_behind - 1)
    for round_, _, metrics in record.history:
        if round_ > record.leg and round_ % record.leg:
            continue
        value = round_value(goal.metric, metrics)
        if value is None:
            continue
        low = below(metrics, goal.floors)
        if round_ < record.leg:
            told[round_] = math.nan if low else value
            continue
        seeds = first + round_ // record.leg - 1
        new, total = seeds - before[0], seeds * value
        told[record.leg + round_ // record.leg - 1] = math.nan if low else (total - before[1]) / new
        before = seeds, total
    return told


def without_probe(config: TrialConfig | AttackTrialConfig, metric: str) -> bool:
    """Whether no round but the last knows anything of a score, so that no pruner could act on it."""
    if isinstance(config, AttackTrialConfig):
        return False
    probed = {*_group("probe", (*ROBUST_SCORES, *UNMAPPED_SCORES)), *_group("clean", SCORES), "noise/flip"}
    probed |= {*_group("probe", SELECT_SCORES)} if config.selection else set()
    return probe_of(metric) not in probed


def needs_no_labels(name: str) -> bool:
    """Whether a metric can be computed on data without labels."""
    group, _, score = name.partition("/")
    return group == "select" or score in LABEL_FREE


def objection(metric: str) -> str | None:
    """Why a metric that exists cannot be an objective."""
    group = metric.split("/")[0]
    if group == "probe":
        return "is reported by the rounds before the last only; its counterpart at the end is robust, or select"
    if group == "official":
        return "is reported with `protocol: official` or `both` only"
    if group in {"loss", "time", "guard", "spread", "chance"}:
        return "is no score"
    return None


def _group(name: str, scores: tuple[str, ...]) -> list[str]:
    return [f"{name}/{score}" for score in scores]
