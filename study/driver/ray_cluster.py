"""Ray as a cluster: started on this machine or joined, with no secret in its environment, and stopped."""

import atexit
import contextlib
import gc
import logging
import os
import re
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # its stub does not name it
from ray.exceptions import AuthenticationError, RayError

from study.database.ledger import Ledger
from study.driver import StudyRefused
from study.driver.ray_watch import END_SECONDS, RayWatch
from study.secrets import Address
from study.spec.study_spec import StudySpec
from trainables.files import write_whole
from trainables.scratch import NAME_LENGTH, Scratch, clear_scratch

logger = logging.getLogger(__name__)

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ray's own tables and per-trial log files: the database, MLflow and our table take their place.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Ray's snapshots of the experiment are never read: a new driver starts from the database.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Paths in a study are relative to where the command runs, in workers too.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # A trial whose machine was taken away is given out again from the database, as any that lost its worker.
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",
    # Interruptions are ours: open rounds come to their end first.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}

OF_DRIVER = re.compile(
    r"ARDMVC_STUDY_DB|_?MLFLOW_\w*(?:URI|STORE|USERNAME|PASSWORD|TOKEN|SECRET|KEY|AUTH)|PG[A-Z]+|MYSQL_\w+|DATABRICKS_\w+"
    r"|\w*PASSWORD"
)
"""Variables that say where the databases are and who may use them: nothing that Ray starts gets them."""

OF_WORKERS = ("RAY_CHDIR_TO_TRIAL_DIR", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")
"""What of QUIET the workers of a running cluster must be told; those of a local one inherit it."""

START_SECONDS = 300.0
"""A Ray that has not started by then, or a cluster that is not joined, does not answer."""

SHIPPED = ("ardmvc_core", "trainables", "study", "search_spaces")

NOT_SHIPPED = ["__pycache__", "*.pyc", "*.ipynb", ".git", "runs", "mlruns", "clusters"]

LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes in the path of a socket."""

UV_HOOK = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
"""Under `uv run`, Ray would ship the whole working folder to its workers, which fails if that is large, and make an
environment for each; ours have this one already, or the code that `connect` ships."""

_ray_folders: list[Scratch] = []
"""Of the Ray that `connect` has started in this process: its sockets, logs and spilled objects."""


def give_up(fault: str, ledger: Ledger | None = None, watch: RayWatch | None = None) -> None:
    """Ends the process where it stands, in a call into a Ray that does not answer; what it has not told the database
    is taken up by the next driver."""
    say(f"{fault}; the same command goes on from here")
    if watch:
        watch.end_processes()
    if ledger:
        with contextlib.suppress(Exception):
            ledger.release()
    os._exit(1)


def stop_ray(end_processes: Callable[[], None], code: int) -> None:
    """Last of all, with no other thread at work: Ray ends the whole process when one of its references is freed after
    its shutdown, and the garbage collector may do that in any thread and at any time.

    Ray waits without end for a node that was stopped and answers nobody.

    Args: end_processes: of the Ray that this driver has started; called if its shutdown takes `END_SECONDS`. code: what
        the process ends with, where it stands, if it takes as long again.
    """
    gc.collect()
    stopped = threading.Event()

    def force() -> None:
        if not stopped.wait(END_SECONDS):
            end_processes()
            if not stopped.wait(END_SECONDS):
                os._exit(code)

    threading.Thread(target=force, name="ray-end", daemon=True).start()
    ray.shutdown()
    stopped.set()
    while _ray_folders:
        _ray_folders.pop().delete()


def _ray_folder() -> str:
    """A folder for the Ray of this driver: in RAY_TMPDIR or the temporary folder, or in /tmp if that is too long for
    the paths of sockets or not in ASCII.

    Raises: StudyRefused if it cannot be made.
    """
    base = os.environ.get("RAY_TMPDIR", "")
    below_it = f"//session_2026-11-30_12-00-00_000000_{os.getpid()}/sockets/plasma_store"
    try:
        base = os.path.abspath(base or tempfile.gettempdir())
        if not base.isascii() or len(base) + NAME_LENGTH + len(below_it) > LONGEST_SOCKET:
            base = "/tmp"
        Path(base).mkdir(parents=True, exist_ok=True)
        clear_scratch(Path(base))
        _ray_folders.append(Scratch("ray", Path(base)))
        _keep_token()
    except OSError as error:
        raise StudyRefused(
            f"Ray cannot start here: no folder can be made in {base or 'a temporary folder'}: {error.strerror}; "
            "set RAY_TMPDIR to a short path that can be written to"
        ) from error
    return str(_ray_folders[-1].path)


def check_place() -> None:
    """Raises: StudyRefused if the Ray of this driver would have no folder; to be asked before a study is made."""
    _ray_folder()
    _ray_folders.pop().delete()


def _keep_token() -> None:
    """Ray keeps what its processes know each other by in the home folder; where that is read-only, it lies elsewhere
    until this process ends."""
    folder = Path.home() / ".ray"
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} or (folder / "auth_token").is_file():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        scratch = Scratch("home")
        atexit.register(scratch.delete)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(scratch.path / "auth_token")
        write_whole(scratch.path / "auth_token", secrets.token_hex(32).encode())


def keep_ray_logs() -> None:
    """For people who want to know why a worker ended; the next start deletes them."""
    while _ray_folders:
        logs = _ray_folders.pop().path / "session_latest" / "logs"
        logger.warning("Ray's logs are in %s until the next study starts", logs)


def connect(address: str | None, spec: StudySpec) -> None:
    """Starts Ray on this machine, or joins the cluster at `address`.

    Raises: StudyRefused if it cannot be joined, or has less than one trial needs: waiting for it would never end.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    if UV_HOOK not in os.environ:
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False  # the variable is read when Ray is imported
    clear_scratch()
    if address:
        _check_answers(address)
    for name in ("ray.tune", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Ray prints what its processes say of each other, to stdout; what matters of it we find out ourselves.
    ray._private.worker.print_to_stdstream = _heard_of_ray
    what = f"cannot join the Ray cluster at {address!r}" if address else "Ray cannot start here"
    options: dict[str, Any] = {"runtime_env": _our_code()}
    if not address:
        settings = {"prestart_worker_first_driver": False}  # one for each core, of which hardly any would be used
        options = {"include_dashboard": False, "_temp_dir": _ray_folder(), "_system_config": settings}
    # It ends the process, so nothing between its start and its cancelling may leave this function.
    slow = threading.Timer(START_SECONDS, give_up, [f"{what}: it takes longer than {START_SECONDS:.0f} s"])
    slow.daemon = True
    slow.start()
    try:
        with _databases_stay_here(), contextlib.nullcontext() if address else _only_what_is_used():
            # "local" so that a cluster which this machine happens to advertise is never joined by accident.
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                **options,
            )
    except Exception as error:  # of many kinds, some of no kind at all
        raise _not_joined(address, error) from error
    finally:
        slow.cancel()
    have = ray.cluster_resources()
    if address and _grows():
        return  # what is not there yet comes when a trial waits for it
    for resource, wanted in (("GPU", spec.resources.gpu), ("CPU", spec.resources.cpu)):
        if wanted > have.get(resource, 0):
            ray.shutdown()
            raise StudyRefused(
                f"resources.{resource.lower()}: a trial asks for {wanted:g}, the cluster has {have.get(resource, 0):g}"
            )


@contextmanager
def _databases_stay_here() -> Iterator[None]:
    """Ray's servers, from which local workers inherit, start without addresses and passwords of databases.

    The environment of this process stays as it is: threads that connect to a database or to MLflow meanwhile need it.
    """
    from ray._private import services

    start = services.ConsolePopen

    def start_without(command: Any, *, env: Mapping[str, str], **options: Any) -> Any:
        return start(
            command, env={name: value for name, value in env.items() if not _of_driver(name, value)}, **options
        )

    services.ConsolePopen = start_without
    try:
        yield
    finally:
        services.ConsolePopen = start


@contextmanager
def _only_what_is_used() -> Iterator[None]:
    """Ray starts on this machine without three processes of which a study has nothing, and which make it wait: what
    watches over machines to be added (it ignores SIGTERM, and Ray waits a second for it at the end), what sends logs to
    the driver, and the server of pages, which `include_dashboard` takes the pages from and starts all the same."""
    from ray._private import parameter, services

    params, server = parameter.RayParams, services.start_api_server
    parameter.RayParams = partial(params, no_monitor=True, include_log_monitor=False)
    services.start_api_server = lambda *_, **__: (None, None)  # what it gives where the server cannot start
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server = params, server


def _of_driver(name: str, value: str) -> bool:
    databases = ("postgres", "mysql", "mariadb", "mssql", "oracle")
    return bool(OF_DRIVER.fullmatch(name)) or ("://" in value and Address(value).kind.startswith(databases))


def _heard_of_ray(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    logger.debug("Ray says: %s", "\n".join(map(str, data.get("lines", ()))))


def keep_variables_here() -> None:
    """Tune hands variables to trials, AWS's keys among them, in a form that Ray writes to its logs, and for which it
    makes an environment before a worker starts. Workers have what they need from their machine or from `connect`."""
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE.clear()
    class_cache.DEFAULT_ENV_VARS.clear()


def _our_code() -> dict[str, Any]:
    """What the workers of a running cluster need of this process: the packages, and no secret.

    Each package travels once, to Ray's own store; nothing of the working folder does, so data and runs stay here.
    """
    root = Path(__file__).resolve().parents[2]
    return {
        "py_modules": [str(root / package) for package in SHIPPED],
        "excludes": NOT_SHIPPED,
        "env_vars": {name: os.environ[name] for name in OF_WORKERS},
    }


def _grows() -> bool:
    """Whether the cluster has Ray's autoscaler, as `ray up` and KubeRay set it up; it does not tell how far it goes."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    return bool(is_autoscaler_v2(fetch_from_server=True))


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes, whatever the reason.

    Raises: StudyRefused if nothing answers at `host:port` or `ray://host:port`, or if the cluster at `host:port` does
        not take our token.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        if address == "auto":
            return
        raise StudyRefused(f"--address must be host:port, ray://host:port or auto, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        if not address.startswith("ray://"):
            ensure_token_if_auth_enabled(create_token_if_missing=False)  # without it, the next line ends the process
            GcsClient(address=address)
    except (RayError, OSError) as error:
        raise _not_joined(address, error) from error


def _not_joined(address: str | None, error: Exception) -> StudyRefused:
    """What to say when Ray does not start here, or a cluster cannot be joined."""
    if not address:
        return StudyRefused(f"Ray cannot start here: {' '.join(str(error).split()) or type(error).__name__}")
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, AuthenticationError):
        reason = (
            f"{error.message}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file that holds the cluster's "
            "token, which `ray get-auth-token` prints on its head"
        )
    return StudyRefused(f"cannot join the Ray cluster at {address!r}: {reason}")


def say(note: str) -> None:
    if note:
        print(note, file=sys.stderr)
