"""Small studies: a spec as YAML would give it, and the command line as a user would start it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


def study_dict(folder: Path, **changes: Any) -> dict[str, Any]:
    """A study of a few seconds a trial on the embedded data, drawn at random so that no order of events changes it."""
    study: dict[str, Any] = {
        "name": "tiny",
        "seed": 7,
        "trial": {
            "model": {"name": "ar_dmvc_am", "train_steps": 1, "train_step_ratio": 1.0},
            "dataset": {"name": "noisy_digits", "classes": [0, 1, 2], "samples": 200},
            "epochs": 4,
            "batch_size": 25,
            "evaluate_every": 1,
            "evaluation": {"samples": 20, "probe_samples": 20, "tier": "probe"},
        },
        "space": {"model.adversarial_weight": {"log_uniform": [0.01, 10]}, "model.train_eps": {"uniform": [0.02, 0.3]}},
        "baselines": [{"model.adversarial_weight": 0, "model.mitigator_weight": 0}],
        "objective": {"metric": "robust/acc", "mode": "max"},
        "sampler": {"name": "random"},
        "limits": {"trials": 3, "failures": 0, "concurrent": 1},
        "storage": {"path": str(folder / "runs")},
    }
    return {**study, **changes}


def write_study(folder: Path, study: dict[str, Any]) -> Path:
    """The study as a file that the command line can name."""
    file = folder / f"{study['name']}.yaml"
    file.write_text(yaml.safe_dump(study))
    return file


def sweep_command(file: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "study.sweep", str(file), *arguments]


def run_sweep(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(sweep_command(file, *arguments), capture_output=True, text=True, cwd=ROOT, check=False)
