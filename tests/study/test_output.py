"""What a terminal without UTF-8 cannot show is spelt, and no command dies of it."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_studies import study_dict, write_study

from study import output


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """printed(text, encoding) → what arrives at a terminal of that encoding."""

    def run(text: str, encoding: str) -> str:
        terminal = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, encoding=encoding))
        output.show_everything()
        print(text, end="", flush=True)
        return terminal.getvalue().decode(encoding)

    return run


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "2 trials x 3 seeds, lambda 0.2 +- 0.1, eps <= 0.1 -- M\\xfcller.yaml \\udcff"),
        ("latin-1", "2 trials × 3 seeds, lambda 0.2 ± 0.1, eps <= 0.1 -- Müller.yaml \\udcff"),
        ("cp1252", "2 trials × 3 seeds, lambda 0.2 ± 0.1, eps <= 0.1 -- Müller.yaml \\udcff"),
        ("utf-8", "2 trials × 3 seeds, λ 0.2 ± 0.1, ε ≤ 0.1 ─- Müller.yaml \\udcff"),
    ],
)
def test_what_cannot_be_shown_is_spelt(printed: Callable[[str, str], str], encoding: str, shown: str) -> None:
    text = "2 trials × 3 seeds, λ 0.2 ± 0.1, ε ≤ 0.1 ─- Müller.yaml \udcff"
    assert printed(text, encoding) == shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_dry_run_and_a_refusal_are_shown_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    study = write_study(tmp_path, study_dict(tmp_path, name="any"))
    study = study.rename(study.with_name("λ × ü.yaml"))
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}

    def sweep(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "study.sweep", str(study), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, check=False)

    shown = sweep("--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert b" x " in shown.stdout or " × ".encode(encoding, "ignore") in shown.stdout
    refused = sweep("--set", "trial.epochs=0")
    assert refused.returncode == 2
    assert b"trial.epochs: must be >= 1, got 0" in refused.stderr
