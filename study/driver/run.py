"""From a checked spec to a study that has reached its budget: database, lease, Ray, and what people see."""

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune

from ardmvc_core.selection.reference_partition import OldReference
from study.database.engine import LedgerError, NoStudy, check_room, database_fault, study_url
from study.database.identity import Contents
from study.database.lease import LeaseLost
from study.database.ledger import Ledger
from study.driver import StudyBroken, StudyRefused
from study.driver.conductor import Conductor, StopNow, WorkersGone, round_limit
from study.driver.live_table import LiveTable
from study.driver.open_trials import SILENCE_SECONDS
from study.driver.ray_cluster import check_place, connect, give_up, keep_ray_logs, keep_variables_here, say, stop_ray
from study.driver.ray_watch import RayWatch
from study.driver.round_costs import RoundCosts
from study.driver.tune_hooks import OptunaPruning, OptunaSearcher, Relay
from study.driver.words import headline, show_end, verdict
from study.places import ARTIFACTS, absolute
from study.planning.optuna_side import make_pruner
from study.planning.preflight import data_contents, score_parts
from study.planning.saved_models import with_target
from study.planning.suggestions import Suggestions
from study.ranking.label_free import NOT_CORRECTNESS, SECOND_PARTITION, by_pra
from study.records import Observer, TrialRecord
from study.secrets import Address, redact
from study.spec.study_spec import StudySpec
from study.tracking.mlflow_client import check_reachable
from study.tracking.pages import pages
from study.tracking.tracker import MLflowTracker, tracking_uri
from trainables.config import TrialConfig, protocols_of
from trainables.data_parts import DataKey, cached_parts, forget_parts, without_labels
from trainables.heartbeat import beat_as
from trainables.reference import REFERENCE_FILE, SIMVC_RUNS, reference_file, reference_from
from trainables.saved_trial import saved_facts
from trainables.scratch import Scratch
from trainables.storage import below, read_file, storage_fault, write_file
from trainables.trainable import TRAINABLES, time_limit

logger = logging.getLogger(__name__)

SPOT_GRACE = 15.0
"""Seconds that open rounds get after SIGTERM: a machine that is taken away gives half a minute at least, and the end in
order needs some of it."""


def run_study(
    spec: StudySpec,
    *,
    address: str | None = None,
    takeover: bool = False,
    warm_start: str | None = None,
    json_output: bool = False,
    trainable: type | None = None,
    show_results: Callable[[Sequence[TrialRecord]], None] | None = None,
) -> int:
    """Runs, continues or extends the study, until its budget is used.

    Args: address: a running Ray cluster; None starts one on this machine. takeover: take the lease of a driver that is
        gone. warm_start: name of a study whose trials inform the sampler. trainable: another class with the interface
        of those in `trainables.trainable` (benchmarks measure the stack with an empty one). show_results: called at
        the end, interrupted or not, in place of the leaderboard on stdout.
    Returns: 0 done, 1 more failures than `limits.failures`, 130 interrupted.
    Raises: StudyRefused before any trial starts; StudyBroken when the driver itself fails.
    """
    storage, uri = _stores(spec, address, probe=True)
    if address:
        connect(address, spec)
    spec, ledger, old = _open(spec, storage, takeover=takeover, warm_start=warm_start)
    run = _Run(spec, ledger, storage, uri)
    try:
        run.work(old, address, trainable)
        return run.end(show_results, json_output)
    except LeaseLost as error:
        say(f"{error}; this one has stopped")
        return 130
    except BaseException as error:
        run.leave()
        if fault := database_fault(error):
            raise StudyBroken(fault) from error
        raise
    finally:
        run.close()


def look(
    spec: StudySpec, *, address: str | None = None, takeover: bool = False, warm_start: str | None = None
) -> list[TrialRecord]:
    """Asks all that `run_study` asks before it starts Ray here or a trial, and writes nothing.

    Args: as of `run_study`.
    Returns: the trials that the study has.
    Raises: StudyRefused where `run_study` would raise it.
    """
    storage, _ = _stores(spec, address, probe=False)
    if address:
        connect(address, spec)
        stop_ray(lambda: None, 0)
    url = study_url(storage)
    with _refusals():
        spec, _, contents = _asked(spec, storage, warm_start)
        try:
            ledger = Ledger.open_existing(spec.name, url, storage)
        except NoStudy:
            check_room(url)
            return []
        ledger.check(spec, contents)
        ledger.look_for_driver(takeover=takeover)
        return ledger.records()


def _stores(spec: StudySpec, cluster: str | None, *, probe: bool) -> tuple[str, Address]:
    """The study's storage and MLflow's address, with a look at where the Ray of this machine would lie.

    Args: cluster: address of another Ray. probe: as of `storage_fault`. Raises: StudyRefused.
    """
    if not cluster:
        check_place()
    storage = absolute(spec.storage.path)
    uri = tracking_uri(storage)
    if fault := check_reachable(uri) or storage_fault(below(storage, spec.name), probe=probe):
        raise StudyRefused(fault)
    return storage, uri


class _Run:
    """What one driver opens for a study, and closes at its end."""

    def __init__(self, spec: StudySpec, ledger: Ledger, storage: str, uri: Address) -> None:
        self._spec, self._ledger, self._storage, self._uri = spec, ledger, storage, uri
        self._conductor: Conductor | None = None
        self._display: LiveTable | None = None
        self._tracker: MLflowTracker | None = None
        self._watch = RayWatch(ledger.uid, lambda fault: give_up(fault, ledger, self._watch))
        self._code = 1
        self._shown = False
        """Whether results were shown for people to read."""

    def work(self, old: Sequence[Any], address: str | None, trainable: type | None) -> None:
        """Tells MLflow of the trials that there are, and runs those that are missing."""
        spec, ledger = self._spec, self._ledger
        records = ledger.records()
        ledger.adopt(spec)
        for part in score_parts(spec):
            ledger.note_score_use(part, spec.name)
        self._tracker = MLflowTracker(
            ledger.spec,
            uri=self._uri,
            study_name=spec.name,
            artifact_root=None if spec.storage.remote else (Path(self._storage) / ARTIFACTS).as_uri(),
            identity=ledger.uid,
            held=ledger.lease.check if ledger.lease else None,
        )
        self._tracker.reconcile(records)  # what an outage has kept from MLflow
        if len(records) >= spec.trials and all(record.finished for record in records):
            return
        folder = below(self._storage, spec.name)
        _check_reference(folder)
        say("\n".join([headline(spec), *spec.notes]))
        costs = RoundCosts(spec)
        self._display = LiveTable(spec.objectives, spec.trials, records, costs=costs, stream=sys.stderr)
        if not address:
            connect(None, spec)
        self._watch.start()
        suggestions = Suggestions(spec, old)
        observers: list[Observer] = [self._display, self._tracker]
        self._conductor = Conductor(spec, ledger, suggestions, observers, folder, self._watch, costs)
        _fit(spec, self._conductor, self._watch, trainable, folder)

    def end(self, show_results: Callable[[Sequence[TrialRecord]], None] | None, json_output: bool) -> int:
        """Leaves unfinished trials to the next driver and shows the results. Returns: the exit code."""
        lost = self._ledger.lost
        waiting = self._conductor.interrupt() if self._conductor and not lost else []
        if self._display:
            self._display.close()
        if self._tracker and not lost:
            self._tracker.begin_close()
        self._code, note = verdict(self._spec, self._conductor, waiting, lost)
        if self._conductor and self._conductor.lost_workers:
            keep_ray_logs()
        if lost:
            say(note)
        elif show_results:
            say(note)
            show_results(self._ledger.records())
        else:
            show_end(self._spec, self._ledger.records(), json_output, self._code, note)
            self._shown = self._code != 130 and not json_output
        return self._code

    def leave(self) -> None:
        """The driver fails. Without a working database nothing can be said there; trials left as running are taken up
        all the same."""
        self._ledger.patience = 0.0
        with contextlib.suppress(Exception):
            if self._conductor and not self._conductor.error and not self._ledger.lost:
                self._conductor.interrupt()

    def close(self) -> None:
        if self._watch.fault:
            self._watch.end_processes()
        if self._display:
            self._display.close()
        if self._tracker:
            self._tracker.close(abandoned=self._ledger.lost)
            if self._shown:
                print(f"Compare the trials: {pages(self._uri, self._spec.storage.path, self._tracker.page)}")
        self._ledger.release()
        # The watch of a Ray that is gone stays until the last: it ends the process if that Ray holds it up.
        steps = (self._watch.close, lambda: stop_ray(self._watch.end_processes, self._code))
        for step in reversed(steps) if self._watch.fault else steps:
            step()


def _open(
    spec: StudySpec, storage: str, *, takeover: bool, warm_start: str | None
) -> tuple[StudySpec, Ledger, Sequence[Any]]:
    """The spec with its saved model found, the study with its lease taken, and the trials to start from."""
    url = study_url(storage)
    with _refusals():
        spec, old, contents = _asked(spec, storage, warm_start)
        pruner = make_pruner(spec.pruner_options(), spec.trial_config({}).rounds)
        ledger = Ledger.open_or_create(spec, url, pruner, contents)
        ledger.acquire(takeover=takeover)
        if ledger.control == "stop":
            ledger.set_control("")  # it was meant for the driver before
    ledger.patience = 60 * spec.limits.outage_minutes
    return spec, ledger, old


def _asked(spec: StudySpec, storage: str, warm_start: str | None) -> tuple[StudySpec, Sequence[Any], Contents]:
    """The spec with its saved model found, the trials to start from, and the digests of its data.

    Raises: LedgerError, DataError.
    """
    spec = with_target(spec)
    old = Ledger.open_existing(warm_start, storage_path=storage).frozen_trials() if warm_start else ()
    return spec, old, data_contents(spec)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns what is wrong with a database, or a study in it, into StudyRefused."""
    try:
        yield
    except (LedgerError, LeaseLost) as error:
        raise StudyRefused(str(error)) from error
    except Exception as error:
        if fault := database_fault(error):
            raise StudyRefused(fault) from error
        raise


def _fit(spec: StudySpec, conductor: Conductor, watch: RayWatch, trainable: type | None, folder: str) -> None:
    keep_variables_here()
    try:
        with _signals(conductor):
            runs = trainable or tune.with_parameters(
                TRAINABLES[spec.trainable], data=_data(spec), **_reference(spec, conductor, watch, folder)
            )
            again = True
            while again:
                # Nothing that Ray writes there is ever read: a new driver starts from the database.
                with Scratch("ray") as scratch:
                    _tuner(spec, conductor, runs, str(scratch)).fit()
                if conductor.error:
                    raise conductor.error
                again = conductor.sit_out_pause()  # with the workers gone: a paused study holds no GPU
    except (LeaseLost, StopNow):
        return
    except StudyBroken:
        raise
    except WorkersGone as error:
        error.__traceback__ = None  # its frames hold references of Ray's, which must be gone before Ray is
        raise StudyBroken(str(error)) from None
    except Exception as error:
        problem = conductor.error or error
        if isinstance(problem, LeaseLost):
            return
        keep_ray_logs()
        reason = database_fault(problem) or redact(f"{type(problem).__name__}: {problem}")
        raise StudyBroken(watch.fault or f"the driver stopped: {reason}") from error


def _tuner(spec: StudySpec, conductor: Conductor, runs: Any, scratch: str) -> Any:
    """Ray's side of the driver, until it is told that there is no more to run. Args: runs: the Trainable."""
    return tune.Tuner(
        tune.with_resources(runs, {"CPU": spec.resources.cpu, "GPU": spec.resources.gpu}),
        param_space={},
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearcher(conductor),
            scheduler=OptunaPruning(conductor),
            num_samples=-1,
            max_concurrent_trials=spec.limits.concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"trial_{trial.config['number']:05d}_{trial.trial_id}",
            trial_name_creator=lambda trial: f"trial_{trial.config['number']:05d}",
        ),
        run_config=tune.RunConfig(
            name=spec.name,
            storage_path=scratch,
            callbacks=[Relay(conductor)],
            # A trial that loses its worker is given out again by the conductor, from the database.
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            verbose=0,
        ),
    )


def _data(spec: StudySpec) -> dict[DataKey, Any]:
    """The data sets of the study's trials, each read once and put into Ray's object store."""
    keys: dict[DataKey, None] = {}
    if spec.trainable == "attacker":
        keys[saved_facts(spec.trial["checkpoint"], spec.trial.get("data")).config.dataset, "strict"] = None
    else:
        for overrides in spec.baselines if spec.baselines and not spec.space else ({}, *spec.baselines):
            config = spec.trial_config(overrides)
            assert isinstance(config, TrialConfig)
            keys |= dict.fromkeys((config.dataset, protocol) for protocol in protocols_of(config.protocol))
    config = spec.trial_config({})
    locked = isinstance(config, TrialConfig) and config.labels_locked
    found = {key: ray.put(without_labels(cached_parts(*key)) if locked else cached_parts(*key)) for key in keys}
    forget_parts()
    return found


def _reference(spec: StudySpec, conductor: Conductor, watch: RayWatch, folder: str) -> dict[str, Any]:
    """The partition that label-free scores are read against, from the study's folder or made there now; no argument
    for a study without such scores."""
    config = spec.trial_config({})
    if not isinstance(config, TrialConfig) or config.selection is None:
        return {}
    stored = _stored_reference(folder)
    if stored is None:
        count = config.selection.reference_runs
        say(f"training {count} plain models and {SIMVC_RUNS} of SiMVC for the reference partition …")
        stored = _train_reference(spec, config, conductor, watch)
        write_file(folder, REFERENCE_FILE, stored)
    reference = reference_from(stored, below(folder, REFERENCE_FILE))
    rule = "trials will be ranked by robust/kappa" if by_pra(spec.objectives) else "read robust/kappa"
    why = SECOND_PARTITION if reference.second_partition else "too little to choose by"
    note = "" if reference.reliable else f"; {why}: {rule}"
    say(
        f"reference partition {reference.digest()}: {len(reference.kept)} plain models vote, "
        f"their mean ARI is {reference.agreement:.2f}{note}"
    )
    say(NOT_CORRECTNESS)
    return {"reference": stored}


def _train_reference(spec: StudySpec, config: TrialConfig, conductor: Conductor, watch: RayWatch) -> bytes:
    """Trains the reference in a worker, which gets no longer than as many trials would.

    Raises: as `Conductor.tick`; StopNow when the study is to end, since half a reference is kept nowhere; StudyBroken
        if the worker is silent.
    """
    assert config.selection is not None
    limit = round_limit(spec.limits.round_minutes).seconds(last=True)
    seconds = limit * config.rounds * (config.selection.reference_runs + SIMVC_RUNS)
    options = {"num_cpus": spec.resources.cpu, "num_gpus": spec.resources.gpu, "max_retries": 3}
    key = watch.key("reference")
    watch.follow(key)
    task = ray.remote(**options)(_reference_task).remote(key, seconds, config.model_dump_json(), spec.resources.cpu)
    try:
        while not ray.wait([task], timeout=1.0)[0]:
            conductor.tick()
            silence = watch.silence(key) or 0.0
            if conductor.steering.stopping or silence >= SILENCE_SECONDS:
                ray.cancel(task, force=True)
                if conductor.steering.stopping:
                    raise StopNow(conductor.steering.stopping)
                raise StudyBroken(f"the worker that trains the reference was silent for {silence:.0f} s")
        return bytes(ray.get(task))
    finally:
        watch.forget(key)


def _reference_task(beat: str, seconds: float, config: str, threads: float) -> bytes:
    beat_as(beat)
    with time_limit(seconds):
        return reference_file(config, threads)


def _check_reference(folder: str) -> None:
    """Raises: StudyRefused if the study's reference partition is of another version."""
    try:
        _stored_reference(folder)
    except OldReference as error:
        raise StudyRefused(
            f"{below(folder, str(error))}; the trials that there are can be reported, further ones need a study of "
            "another name (--set name=…)"
        ) from None


def _stored_reference(folder: str) -> bytes | None:
    """The file of the study's reference partition; None if there is none yet, or it is damaged.

    Raises: OldReference if it is of another version.
    """
    stored = read_file(folder, REFERENCE_FILE)
    if stored is not None:
        try:
            reference_from(stored)
        except OldReference:
            raise
        except ValueError as error:
            logger.warning("%s is made again: %s", below(folder, REFERENCE_FILE), error)
            return None
    return stored


@contextmanager
def _signals(conductor: Conductor) -> Iterator[None]:
    """While trials run: Ctrl-C lets open rounds end, in bounded time; SIGTERM gives them a while, a second one none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    signalled = False

    def handle(number: int, _: Any) -> None:
        nonlocal signalled
        if signalled:
            raise KeyboardInterrupt
        signalled = True
        if number == signal.SIGTERM:
            conductor.steering.stop("SIGTERM", SPOT_GRACE)
            what = f"open rounds have {SPOT_GRACE:.0f} s to end"
        else:
            grace = conductor.steering.stop("Ctrl-C")
            what = f"open rounds come to their end first, for which they have {grace:.0f} s"
            what += "; Ctrl-C again stops at once and repeats them later"
        print(f"stopping: {what}", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
