"""Which metrics a trial's last round reports: with another objective every trial would fail at its end."""

from trainables.config import AttackTrialConfig, TrialConfig

_SCORES = ("acc", "nmi", "ari")
_ATTACK = (*_SCORES, "flip", "acc_refit")
_ROBUST = (*_SCORES, "flip", "kappa")

_AGREEMENT = ("nmi_clean", "ari_clean")
_SELECT = ("utility", "pra", "pra_weighted", "stability", "entropy", "occupied", "feasible", "clean_loss")

LABEL_FREE = ("flip", "kappa", *_AGREEMENT)
"""Last parts of metrics that need no labels."""


def known_metrics(config: TrialConfig | AttackTrialConfig) -> list[str]:
    """Names of the scores in the last report of such a trial, on labelled data."""
    if isinstance(config, AttackTrialConfig):
        return [*_group("gan", _ATTACK), *_group("clean", _SCORES), "noise/flip"]
    official = [*_group("official/pre", _SCORES), *_group("official/post", _SCORES)]
    if config.protocol == "official":
        return official
    names = [*official] if config.protocol == "both" else []
    names += _group("select", _SELECT) if config.selection else []
    names += [*_group("robust", _ROBUST), *_group("clean", _SCORES)]
    if config.evaluation.tier is not None:
        # Attacks after the first run on survivors only, so they have no score of their own.
        names += [*_group("robust", _AGREEMENT), *_group("apgd_ce", _ATTACK), "noise/flip"]
        return [name for name in names if needs_no_labels(name)] if config.labels_locked else names
    for objective in config.evaluation.objectives:
        names += _group(f"pgd_{objective}", _ATTACK)
    names += _group("gan", _ATTACK)
    for eps in config.resolved_budget().gan_eps or ():
        names += _group(f"gan_{_short(eps)}", _ATTACK)
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


def _short(eps: float) -> str:
    """ε as the evaluation writes it into a metric's name: 0.2 → 0.20, 8/255 → 0.03137."""
    return f"{eps:.2f}" if round(eps, 2) == eps else f"{eps:.4g}"
