"""How commands end: what is meant for people is a line and a code, what is a slip of ours a traceback."""

import argparse

import pytest
import sqlalchemy as sa

from ardmvc_core.attacks.target import EvaluationError
from ardmvc_core.data import DataError
from ardmvc_core.errors import UserError
from study.cli import exit_code_of
from study.database.engine import LedgerError
from study.database.lease import LeaseHeld
from study.driver import StudyBroken, StudyRefused
from study.spec.yaml_file import SpecError
from trainables.saved_trial import DamagedCheckpoint

AWAY = sa.exc.OperationalError("SELECT", {}, Exception("server closed the connection"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SpecError(["one", "two"]), "one\ntwo\n"),
        (LedgerError("no such study"), "no such study\n"),
        (LeaseHeld("another driver"), "another driver\n"),
        (StudyRefused("no GPU"), "no GPU\n"),
        (DamagedCheckpoint("state.pt is damaged"), "state.pt is damaged\n"),
        (DataError("too few rows"), "too few rows\n"),
        (EvaluationError("a buffer was changed"), "a buffer was changed\n"),
        (AWAY, "the study database does not answer: (builtins.Exception) server closed the connection\n"),
    ],
)
def test_errors_for_people_are_said_without_a_traceback(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(given: argparse.Namespace) -> int:
        raise error

    assert exit_code_of(run, argparse.Namespace(debug=False)) == 2
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("ours"), RuntimeError("ours")])
def test_other_errors_come_through(error: Exception) -> None:
    def run(given: argparse.Namespace) -> int:
        raise error

    with pytest.raises(type(error), match="ours"):
        exit_code_of(run, argparse.Namespace(debug=False))


def test_errors_for_people_stay_what_they_were() -> None:
    assert issubclass(DataError, ValueError)
    assert issubclass(DamagedCheckpoint, ValueError)
    assert issubclass(EvaluationError, RuntimeError)
    assert issubclass(StudyBroken, UserError)
