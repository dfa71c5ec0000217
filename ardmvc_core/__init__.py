"""Robust deep multi-view clustering: data, models, attacks, evaluation. Needs torch, numpy, scipy, scikit-learn.

>>> import ardmvc_core as core
>>> parts = core.load_parts(core.DatasetConfig(name="noisy_digits"), "strict")
>>> [(name, len(part.data)) for name, part in parts.items()]
[('train', 450), ('tune', 180), ('attacker', 135), ('score', 136)]
>>> sorted(core.MODELS)[:3]
['aecoddc', 'ar_dmvc', 'ar_dmvc_am']

Names are looked up when they are used, so that `import ardmvc_core` loads no torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    # data
    "DATASETS": "ardmvc_core.data",
    "DatasetConfig": "ardmvc_core.data",
    "MultiViewDataset": "ardmvc_core.data.dataset",
    "load_parts": "ardmvc_core.data",
    # models and training
    "MODELS": "ardmvc_core.models",
    "Method": "ardmvc_core.types",
    "ModelOutput": "ardmvc_core.types",
    "Trainer": "ardmvc_core.training",
    "calibrate": "ardmvc_core.training",
    # attacks
    "TIERS": "ardmvc_core.attacks.tiers",
    "Threat": "ardmvc_core.attacks.threat",
    "apgd": "ardmvc_core.attacks.searches.apgd",
    "fit_gan": "ardmvc_core.attacks.generators.gan",
    "plan": "ardmvc_core.attacks.tiers",
    "run_suite": "ardmvc_core.attacks.suite",
    # evaluation
    "EvalBudget": "ardmvc_core.evaluation.budget",
    "assess": "ardmvc_core.assessment.assess",
    "certify_smoothing": "ardmvc_core.assessment.smoothing",
    "clustering_scores": "ardmvc_core.evaluation.metrics",
    "evaluate_official": "ardmvc_core.evaluation.official",
    "evaluate_suite": "ardmvc_core.evaluation.worst_case",
    "view_votes": "ardmvc_core.assessment.view_votes",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ardmvc_core' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
