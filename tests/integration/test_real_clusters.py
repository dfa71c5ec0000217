"""Studies on real clusters of several raylets: the results of one machine, and clusters that grow and shrink."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from clusters import LocalCluster
from fault_study import FaultStudy, note
from object_store import KEY, SECRET, ObjectStore
from postgres import Postgres
from tiny_studies import ROOT, study_dict, sweep_command, write_study

from study.database.engine import study_url
from study.database.ledger import Ledger
from study.records import TrialRecord

LIMITS = {"trials": 6, "failures": 0, "concurrent": 3}
REFUSED = "Authentication token is missing or incorrect"
"""Ray's words for who has no token, or another."""


def comparable(record: TrialRecord) -> tuple[object, ...]:
    metrics = {name: value for name, value in record.metrics.items() if not name.startswith("time/")}
    return record.number, record.state, record.overrides, record.values, metrics


def files_holding(secret: str, *folders: Path) -> list[str]:
    """Files that hold a secret in plain, whatever they are: databases, pickles, logs."""
    found = []
    for folder in folders:
        for file in folder.rglob("*"):
            try:
                if file.is_file() and secret.encode() in file.read_bytes():
                    found.append(str(file))
            except OSError:  # a socket, or gone meanwhile
                continue
    return found


@pytest.mark.slow
def test_files_and_servers_give_the_same_study_and_keep_its_secrets(
    tmp_path: Path, postgres: Postgres, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sqlite and a local folder on one machine, against PostgreSQL, S3 and three raylets; real models on real data."""
    limits = {"trials": 4, "failures": 0, "concurrent": 3}
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    for name in ("ARDMVC_STUDY_DB", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    calm = subprocess.run(
        sweep_command(write_study(here, study_dict(here, limits=limits))),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert calm.returncode == 0, calm.stderr

    # Only the driver knows the databases; workers know the store, as a machine's role would let them.
    session = tmp_path / "ray"
    session.mkdir()
    short = Path("/tmp") / f"r{os.getpid()}"  # paths of sockets may have 107 characters
    short.symlink_to(session)
    secrets = {"ARDMVC_STUDY_DB": postgres.url("study"), "MLFLOW_TRACKING_URI": postgres.url("mlflow")}
    file = write_study(there, study_dict(there, limits=limits, storage={"path": "s3://studies/servers"}))
    try:
        with LocalCluster(monkeypatch, {**store.environment, "RAY_TMPDIR": str(short)}) as cluster:
            for _ in range(3):
                cluster.add(cpus=1)
            done = subprocess.run(
                sweep_command(file, "--address", cluster.address),
                cwd=ROOT,
                env={**os.environ, **secrets, "PYTHONPATH": ""},
                capture_output=True,
                text=True,
                check=False,
            )
    finally:
        short.unlink()
    assert done.returncode == 0, done.stderr
    one = Ledger.open_existing("tiny", study_url(here / "runs")).records()
    other = Ledger.open_existing("tiny", secrets["ARDMVC_STUDY_DB"]).records()
    assert [record.state for record in one] == ["COMPLETE"] * 4
    assert [comparable(record) for record in other] == [comparable(record) for record in one]
    assert all((record.checkpoint or "").startswith("s3://studies/servers/tiny/trial_") for record in other)

    downloaded = tmp_path / "bucket"
    for key in store.listing():
        target = downloaded / key
        if not key.endswith("/"):
            target.parent.mkdir(parents=True, exist_ok=True)
            store.client.download_file("studies", key, str(target))
    dump = tmp_path / "dump"
    dump.mkdir()
    for name in ("study", "mlflow"):
        (dump / f"{name}.json").write_text(json.dumps(rows_of(postgres.url(name)), default=str))
    assert "servers" in (dump / "study.json").read_text()
    assert list(session.rglob("*.log")), "Ray wrote its logs there"
    for secret in (postgres.core, SECRET, cluster.token):
        assert files_holding(secret, there, session, downloaded, dump) == []
        assert secret not in done.stdout + done.stderr
    assert KEY not in done.stdout + done.stderr


def rows_of(url: str) -> dict[str, list[list[object]]]:
    """Every row of every table."""
    import sqlalchemy as sa

    engine = sa.create_engine(url)
    with engine.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
        return {name: [list(row) for row in connection.execute(sa.text(f'SELECT * FROM "{name}"'))] for name in tables}


@pytest.mark.slow
def test_the_data_travel_once_and_the_code_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers on nodes that have neither the file nor the packages: both are gone, or hidden, once the driver runs."""
    generator = np.random.default_rng(1)
    labels = np.arange(120) % 3
    views = {f"view_{v}": np.clip(labels[:, None] / 3 + generator.normal(0, 0.1, (120, 6)), 0, 1) for v in (0, 1)}
    data = tmp_path / "data.npz"
    np.savez(data, labels=labels, **{name: view.astype(np.float32) for name, view in views.items()})
    study = study_dict(tmp_path, limits={"trials": 3, "failures": 0, "concurrent": 1})
    study["trial"]["dataset"] = {"name": "npz", "path": str(data)}
    study["trial"]["batch_size"] = 20
    file = write_study(tmp_path, study)
    # The nodes' Python finds no package of ours: an empty folder of each name stands before them.
    blind = tmp_path / "blind"
    for package in ("study", "trainables", "ardmvc_core"):
        (blind / package).mkdir(parents=True)
        (blind / package / "__init__.py").write_text("raise ImportError('not installed on this node')\n")
    with LocalCluster(monkeypatch, {"PYTHONPATH": str(blind)}) as cluster:
        cluster.add(cpus=1)
        driver = subprocess.Popen(
            sweep_command(file, "--address", cluster.address),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert driver.stdout is not None
        seen = []
        for line in driver.stdout:
            seen.append(line)
            if "trial 0  started" in line:
                data.unlink()
        assert driver.wait() == 0, "".join(seen)
    records = Ledger.open_existing("tiny", study_url(tmp_path / "runs")).records()
    assert [record.state for record in records] == ["COMPLETE"] * 3


@pytest.mark.slow
def test_gpus_are_shared_and_a_cluster_that_grows_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU carries two trials of half a GPU each, until a second node brings another one."""
    changes = {
        "sampler": {"name": "random"},
        "limits": {"trials": 6, "failures": 0, "concurrent": 5},
        "resources": {"cpu": 1, "gpu": 0.5},
    }
    study = FaultStudy(tmp_path, changes=changes)
    calm = FaultStudy(tmp_path / "calm", changes={**changes, "resources": {"cpu": 1, "gpu": 0}})
    assert calm.finish(ROUND_SECONDS="0") == 0, calm.output
    environment = {"ROUND_LOG": str(study.log), "ROUND_SECONDS": "0.5"}
    with LocalCluster(monkeypatch, environment) as cluster:
        first = cluster.add(cpus=8, gpus=1)
        driver = study.start("--address", cluster.address)
        study.until_round(4, driver)
        study.until(lambda: study.side_by_side() == 2, driver)
        hold = Path(f"{study.log}.hold")
        hold.touch()
        second = cluster.add(cpus=8, gpus=1)
        begun = Path(f"{study.log}.begun")
        study.until(lambda: begun.read_text().count(second.node_id) == 2, driver)
        hold.unlink()
        study.until(lambda: study.side_by_side() > 2, driver)
        cluster.remove(first)
        assert study.wait(driver) == 0, study.output
    assert study.side_by_side() <= 4
    left = study.check(calm.outcome().best)
    assert {attempt.lost for record in left.records for attempt in record.attempts} <= {True}


@pytest.mark.slow
def test_a_node_whose_raylet_is_killed_in_mid_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"sampler": {"name": "random"}, "limits": {**LIMITS, "concurrent": 2}}
    calm, study = FaultStudy(tmp_path / "calm", changes=changes), FaultStudy(tmp_path / "rough", changes=changes)
    assert calm.finish(ROUND_SECONDS="0") == 0, calm.output
    with LocalCluster(monkeypatch, {"ROUND_LOG": str(study.log), "ROUND_SECONDS": "1"}) as cluster:
        for _ in range(2):
            cluster.add(cpus=1)
        driver = study.start("--address", cluster.address)
        study.until(lambda: len({node for *_, node in study.rounds()}) == 2, driver)
        known = len(study.rounds())
        study.until(lambda: len(study.rounds()) > known and study.rounds()[-1][1] < 3, driver)  # in mid-trial
        number, _, _, node = study.rounds()[-1]
        cluster.kill_raylet(cluster.nodes()[node])
        begin = time.monotonic()
        known = max(round_ for n, round_, *_ in study.rounds() if n == number)
        study.until(
            lambda: any(n == number and r >= known and other != node for n, r, _, other in study.rounds()), driver
        )
        seconds = time.monotonic() - begin
        assert study.wait(driver) == 0, study.output
    left = study.check(calm.outcome().best)
    lost = [attempt for record in left.records for attempt in record.attempts]
    assert lost
    assert all(attempt.lost for attempt in lost), lost
    note("raylet of a node SIGKILLed", left, seconds)


@pytest.mark.slow
def test_a_lost_head(tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head goes with its driver and all nodes; a new cluster goes on with the same database."""
    changes = {"sampler": {"name": "random"}, "limits": {**LIMITS, "concurrent": 2}}
    calm = FaultStudy(tmp_path / "calm", changes=changes)
    assert calm.finish(ROUND_SECONDS="0") == 0, calm.output
    study = FaultStudy(tmp_path / "rough", {"ARDMVC_STUDY_DB": postgres.url("head")}, changes)
    environment = {"ROUND_LOG": str(study.log), "ROUND_SECONDS": "0.5"}
    with LocalCluster(monkeypatch, environment) as cluster:
        cluster.add(cpus=2)
        driver = study.start("--address", cluster.address)
        study.until_round(5, driver)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    begin, known = time.monotonic(), len(study.rounds())
    with LocalCluster(monkeypatch, environment) as cluster:
        cluster.add(cpus=2)
        driver = study.start("--address", cluster.address)
        study.until_round(known + 1, driver)
        seconds = time.monotonic() - begin
        assert study.wait(driver) == 0, study.output
    note("head lost, new cluster", study.check(calm.outcome().best), seconds)


@pytest.mark.slow
def test_a_head_that_is_killed_under_its_driver(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster's, which the driver has no part in: it misses the head's answers. Another cluster goes on."""
    changes = {"sampler": {"name": "random"}, "limits": {**LIMITS, "concurrent": 2}}
    study = FaultStudy(tmp_path, {"ARDMVC_STUDY_DB": postgres.url("headless")}, changes)
    environment = {"ROUND_LOG": str(study.log), "ROUND_SECONDS": "0.5"}
    with LocalCluster(monkeypatch, environment) as cluster:
        cluster.add(cpus=2)
        driver = study.start("--address", cluster.address)
        study.until_round(5, driver)
        cluster.kill_head()
        begin = time.monotonic()
        assert study.wait(driver) == 1, study.output
        seconds = time.monotonic() - begin
        assert seconds < 58, study.output  # then Ray would end the process
        assert f"Ray's head at {cluster.address} has not answered for 3" in study.output.splitlines()[-1]
    # Running, where a call into Ray held the driver up to the end: the next driver takes these up as well.
    assert {record.state for record in study.records() if not record.finished} <= {"WAITING", "RUNNING"}
    with LocalCluster(monkeypatch, environment) as cluster:
        cluster.add(cpus=2)
        assert study.finish("--address", cluster.address) == 0, study.output
    note("head of a cluster SIGKILLed", study.check(None), seconds)


@pytest.mark.slow
def test_a_cluster_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's own record of its versions is changed; Ray reads it when a driver joins."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(study_dict(tmp_path)))
    change = (
        "import json, sys\n"
        "from ray._raylet import GcsClient\n"
        "client = GcsClient(address=sys.argv[1])\n"
        "facts = json.loads(client.internal_kv_get(b'CLUSTER_METADATA', b'cluster'))\n"
        "assert sys.argv[2] in facts\n"
        "facts[sys.argv[2]] = sys.argv[3]\n"
        "client.internal_kv_put(b'CLUSTER_METADATA', json.dumps(facts).encode(), True, b'cluster')\n"
    )
    with LocalCluster(monkeypatch) as cluster:
        for key, value, words in (
            ("python_version", "3.9.18", "Python: 3.9.18"),
            ("ray_version", "2.31.0", "Ray: 2.31.0"),
        ):
            subprocess.run([sys.executable, "-c", change, cluster.address, key, value], check=True)
            done = subprocess.run(
                sweep_command(file, "--address", cluster.address), cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 2, done.stderr
            assert f"cannot join the Ray cluster at '{cluster.address}'" in done.stderr
            assert words in done.stderr
            assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("studies.db"))


@pytest.mark.parametrize(
    ("login", "words"),
    [
        ({}, REFUSED),
        ({"RAY_AUTH_MODE": "token"}, "no authentication token was found"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, REFUSED),
        pytest.param({"RAY_AUTH_MODE": "disabled"}, REFUSED, marks=pytest.mark.slow),
        pytest.param(
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere/auth_token"},
            "/nowhere/auth_token",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["no login", "no token", "a wrong token", "disabled", "a wrong path"],
)
def test_a_cluster_takes_nobody_without_its_token(
    guarded: LocalCluster, tmp_path: Path, login: dict[str, str], words: str
) -> None:
    file = write_study(tmp_path, study_dict(tmp_path))
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    done = subprocess.run(
        sweep_command(file, "--address", guarded.address),
        cwd=ROOT,
        env={**others, "HOME": str(tmp_path), **login},  # Ray leaves a token of its own in the home of others
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"cannot join the Ray cluster at '{guarded.address}': "), done.stderr
    assert words in last
    assert "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH" in last
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("studies.db"))


def test_a_cluster_takes_who_has_its_token(guarded: LocalCluster) -> None:
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(len(ray.nodes()))"
    done = subprocess.run([sys.executable, "-c", code, guarded.address], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


@pytest.fixture(scope="module")
def guarded() -> Iterator[LocalCluster]:
    with pytest.MonkeyPatch.context() as patch, LocalCluster(patch) as cluster:
        yield cluster
