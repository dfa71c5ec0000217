"""MLflow's UI on the studies' runs: `make ui`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from study.cli import Parser, add_storage_flag, exit_code_of
from study.places import sqlite_file
from study.secrets import Address, first_line
from study.spec.yaml_file import SpecError
from study.tracking.address import local_fault, settle, tracking_uri
from study.tracking.mlflow_client import SETTINGS, make_client, with_settings
from study.tracking.pages import server_of_pages, trials_link, views

logger = logging.getLogger(__name__)

MOST_LINKS = 10

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""As in mlflow/serve.sh: nothing is sent to MLflow's makers, and no workers wait for jobs."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(
        prog="python -m study.ui",
        description="The UI of MLflow on this machine, on what MLFLOW_TRACKING_URI names or the local file.",
        epilog="Port, host and workers are MLflow's own: MLFLOW_PORT, MLFLOW_HOST, MLFLOW_WORKERS. Exit codes: "
        "2 bad input, 130 interrupted; else that of MLflow.",
    )
    add_storage_flag(result)
    result.add_argument("--debug", action="store_true", help="tracebacks and debug messages")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Becomes MLflow's server. Returns: 2 for an address that it could not use, 130 for Ctrl-C."""
    return exit_code_of(_run, parser().parse_args(argv))


def _run(given: argparse.Namespace) -> NoReturn:
    address = tracking_uri(given.storage)
    # MLflow would say so for minutes, and show an address that it cannot read.
    if fault := local_fault(address):
        raise SpecError([fault])
    if address.kind.startswith(("http", "databricks")):
        raise SpecError([f"MLFLOW_TRACKING_URI {str(address)!r} is a server, which has a UI of its own"])
    if (file := sqlite_file(address)) and file.exists():
        settle(file)
    for line in _links(address):
        print(line, file=sys.stderr, flush=True)
    # In the environment: a command line is seen by everyone on this machine.
    environment = {**QUIET, **os.environ, "MLFLOW_BACKEND_STORE_URI": address.reveal()}
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "ui"], environment)


def _links(address: Address) -> list[str]:
    """The newest studies with the page of their trials; nothing where the store cannot tell, which MLflow will say."""
    file = sqlite_file(address)
    if file is not None and not file.exists():
        return []
    try:
        with with_settings(SETTINGS):
            known = make_client(address).search_experiments(order_by=["last_update_time DESC"], max_results=MOST_LINKS)
    except Exception as error:
        logger.debug("no links to studies: %s", first_line(error))
        return []
    begin = server_of_pages()
    return [f"{study}: {begin}{trials_link(each.experiment_id, study)}" for each in known for study in views(each.tags)]


if __name__ == "__main__":
    sys.exit(main())
