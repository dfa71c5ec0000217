"""MLflow's client, made quiet and patient, and fenced by the study's lease."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from study.database.lease import LeaseLost
from study.secrets import Address
from study.tracking.address import TIMEOUT, local_fault, proxy_hint
from study.tracking.run_fields import reason_of, refuses_login

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    # Trying again is done here, where it can be stopped; MLflow's own would hold the thread for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "GIT_PYTHON_REFRESH": "quiet",
}


def check_reachable(uri: str | Address) -> str | None:
    """What is wrong with an address, in a sentence without its password; None if runs can be written there.

    Answers within a few seconds; a server is asked as the tracker will ask it, with its credentials.
    """
    if fault := local_fault(uri):
        return fault
    address = Address(uri)
    if not address.kind.startswith("http"):
        return None
    try:
        with with_settings({**SETTINGS, "MLFLOW_HTTP_REQUEST_TIMEOUT": str(2 * TIMEOUT)}):
            make_client(address).search_experiments(max_results=1)
    except Exception as error:  # whatever it is, nothing can be written there
        what = "refuses this study" if refuses_login(error) else "does not answer as one"
        return f"the MLflow server {address} {what}: {reason_of(error)}{proxy_hint(address)}"
    return None


def make_client(address: Address) -> Any:
    """MLflow's client, its loggers and alembic's quiet."""
    import mlflow
    from mlflow.tracking._tracking_service import utils

    # It remembers where the files of a run go by the run alone: this process may know it from before its folder moved.
    getattr(utils, "_artifact_repos_cache", {}).clear()
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return mlflow.MlflowClient(tracking_uri=address.reveal())


@contextmanager
def with_settings(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Fenced:
    """MLflow's client, which asks before each request whether this driver still holds the study.

    A driver that was stopped and wakes up may find another at work: what it had in hand is the other's to tell.
    """

    def __init__(self, client: Any, held: Callable[[], bool]) -> None:
        self._client, self._held = client, held

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def request(*args: Any, **kwargs: Any) -> Any:
            try:
                held = self._held()
            except Exception as error:
                raise ConnectionError("the study database does not say whether this driver holds the study") from error
            if not held:
                raise LeaseLost("another driver has taken the study over")
            return method(*args, **kwargs)

        return request


def now() -> int:
    return time.time_ns() // 1_000_000
