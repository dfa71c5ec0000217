"""The files of a robustness report."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ardmvc_core.assessment.assess import Assessment
from ardmvc_core.evaluation.worst_case import SuiteEvaluation
from study.reporting.style import png
from study.reporting.text import plain_json
from study.robustness.facts import Facts
from study.robustness.figures import FIGURES, assessment_figures
from study.robustness.page import robustness_page
from trainables.storage import write_file

ATTACKS_FILE = "attacks.json"


def report_json(found: Assessment, facts: Facts) -> str:
    """`Assessment.as_json` and, under `facts`, what was evaluated; numbers that are not finite become null."""
    whole = {"facts": asdict(facts), **found.as_json()}
    return json.dumps(plain_json(whole), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def keep_attacks(suite: SuiteEvaluation, folder: Path) -> None:
    """Writes `attacks.json`, the scores of the attacks, while curves and checks are still at work.

    Raises: OSError if the folder cannot be written to.
    """
    scores = {"values": suite.evaluation.values, "warnings": suite.evaluation.warnings}
    write_file(str(folder), ATTACKS_FILE, json.dumps(plain_json(scores), indent=1, allow_nan=False).encode())


def write(found: Assessment, facts: Facts, folder: Path) -> None:
    """Writes `report.md`, `report.json`, `evaluation.npz` and `figures/*.png`, each whole or not at all.

    Figures that an earlier report left there and this one does not have are deleted, unless `figures` is a link.

    Raises: OSError if the folder cannot be written to.
    """
    figures = assessment_figures(found)
    drawn = folder / "figures"
    for name in FIGURES:
        if name in figures:
            write_file(str(drawn), f"{name}.png", png(figures[name]))
        elif not drawn.is_symlink():
            (drawn / f"{name}.png").unlink(missing_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **found.suite.evaluation.arrays())
    write_file(str(folder), "evaluation.npz", buffer.getvalue())
    write_file(str(folder), "report.json", report_json(found, facts).encode())
    (folder / ATTACKS_FILE).unlink(missing_ok=True)
    write_file(str(folder), "report.md", robustness_page(found, facts, tuple(figures)).encode())
