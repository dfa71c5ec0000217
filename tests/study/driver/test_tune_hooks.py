"""Why a trial's worker ended, and whether that counts against the trial."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import cloudpickle
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, ObjectLostError, RayActorError
from ray.tune.experiment import Trial

from study.driver.ray_cluster import QUIET
from study.driver.tune_hooks import _reason


def died(message: str, reason: "NodeDeathInfo.Reason.ValueType") -> ActorDiedError:
    """As Ray makes it of what its head tells of an actor."""
    info = NodeDeathInfo(reason=reason)
    return ActorDiedError(cause=ActorDiedErrorContext(error_message=message, actor_id=b"0" * 16, node_death_info=info))


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RayActorError(preempted=True), True),
        (died("The actor died.", NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED), True),
        (died("The actor's node was announced to go.", NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED), True),
        (NodeDiedError("gone"), True),
        (ObjectLostError("00" * 28, None, ""), True),
        (ActorUnavailableError("no answer", b"0" * 16), True),
        (died("The actor died because its node has died.", NodeDeathInfo.UNEXPECTED_TERMINATION), True),
        (died("The worker process exited with code 1.", NodeDeathInfo.UNSPECIFIED), False),
        (RayActorError(), False),
        (ValueError("node of a decision tree"), False),
    ],
)
def test_a_machine_that_is_taken_away_is_no_failure_of_the_trial(tmp_path: Path, error: Exception, lost: bool) -> None:
    file = tmp_path / "error.pkl"
    file.write_bytes(cloudpickle.dumps(error))
    reason, was_lost, unusable = _reason(SimpleNamespace(pickled_error_file=str(file)))
    assert not unusable
    assert was_lost is lost
    assert reason.startswith(f"{type(error).__name__}: ")


def test_tune_leaves_a_preempted_trial_to_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself it would start the trial again from where it once began."""
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Trial, "local_path", None)
    trial = Trial("none", stub=True, max_failures=0)
    trial.handle_error(RayActorError(preempted=True))
    assert not trial.should_recover()
