"""Hyperparameter studies of robust multi-view clustering: `load_spec`, `run`, `open`.

>>> import study
>>> spec = study.load_spec("smoke", **{"limits.trials": 3})
>>> spec.name, spec.limits.trials
('smoke', 3)

`study.run(spec)` runs it as `python -m study.sweep` does and returns a `Study`; `study.open("smoke")` opens one that is
there. Names are looked up when they are used, so that `import study` costs nothing and loads no torch.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from study.needs import PYTHON, lacking

# While Python looks for the module that `python -m study.…` names, `-m` stands in place of its file.
if (sys.version_info < PYTHON or sys.argv[:1] == ["-m"]) and lacking():
    sys.stderr.write(lacking() + "\n")
    sys.exit(2)

__version__ = "0.1.0"

_HOMES = {
    "Study": "study.handle",
    "StudyBroken": "study.driver",
    "StudyRefused": "study.driver",
    "StudySpec": "study.spec.study_spec",
    "SpecError": "study.spec.yaml_file",
    "TrialRecord": "study.records",
    "load_spec": "study.handle",
    "open": "study.handle",
    "run": "study.handle",
}
__all__ = ["SpecError", "Study", "StudyBroken", "StudyRefused", "StudySpec", "TrialRecord", "load_spec", "open", "run"]

if TYPE_CHECKING:
    from study.driver import StudyBroken, StudyRefused
    from study.handle import Study, load_spec, open, run  # noqa: A004
    from study.records import TrialRecord
    from study.spec.study_spec import StudySpec
    from study.spec.yaml_file import SpecError


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'study' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
