"""Which metrics a trial's last round reports: with another objective every trial would fail at its end."""

from ardmvc_core.attacks.tiers import plan
from ardmvc_core.evaluation.metrics import ATTACK_SCORES, ROBUST_SCORES, SCORES, UNMAPPED_SCORES, eps_name
from ardmvc_core.selection.criteria import SELECT_SCORES
from trainables.config import AttackTrialConfig, TrialConfig

LABEL_FREE = ("flip", "kappa", *UNMAPPED_SCORES)
"""Last parts of metrics that need no labels."""


def known_metrics(config: TrialConfig | AttackTrialConfig) -> list[str]:
    """Names of the scores in the last report of such a trial, on labelled data."""
    if isinstance(config, AttackTrialConfig):
        return [*_group("gan", ATTACK_SCORES), *_group("clean", SCORES), "noise/flip"]
    official = [*_group("official/pre", SCORES), *_group("official/post", SCORES)]
    if config.protocol == "official":
        return official
    names = [*official] if config.protocol == "both" else []
    names += _group("select", SELECT_SCORES) if config.selection else []
    names += [*_group("robust", ROBUST_SCORES), *_group("clean", SCORES)]
    if config.evaluation.tier is not None:
        # Attacks after the first run on survivors only, so they have no score of their own.
        names += [
            *_group("robust", UNMAPPED_SCORES),
            *_group(plan(config.evaluation.tier, 2)[0].key, ATTACK_SCORES),
            "noise/flip",
        ]
        return [name for name in names if needs_no_labels(name)] if config.labels_locked else names
    for objective in config.evaluation.objectives:
        names += _group(f"pgd_{objective}", ATTACK_SCORES)
    names += _group("gan", ATTACK_SCORES)
    for eps in config.resolved_budget().gan_eps:
        names += _group(f"gan_{eps_name(eps)}", ATTACK_SCORES)
    names += ["noise/flip"] if config.evaluation.noise_draws else []
    return [name for name in names if needs_no_labels(name)] if config.labels_locked else names


def needs_no_labels(name: str) -> bool:
    """Whether a metric can be computed on data without labels."""
    group, _, score = name.partition("/")
    return group == "select" or score in LABEL_FREE


def objection(metric: str) -> str | None:
    """Why a metric that exists cannot be an objective."""
    group = metric.split("/")[0]
    if group == "probe":
        return "is reported by the rounds before the last only; its counterpart at the end is pgd_assignment or robust"
    if group == "official":
        return "is reported with `protocol: official` or `both` only"
    if group in {"loss", "time", "guard", "spread"}:
        return "is no score"
    return None


def _group(name: str, scores: tuple[str, ...]) -> list[str]:
    return [f"{name}/{score}" for score in scores]
