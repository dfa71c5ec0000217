"""The tracking server of mlflow/: started as its README says, on a real PostgreSQL, with users and proxied files."""

import base64
import configparser
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
import yaml
from browser import Browser, eventually
from moto.server import ThreadedMotoServer
from postgres import PROGRAMS, Postgres

from study import ui as study_ui
from study.tracking.mlflow_client import check_reachable

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "mlflow"
NAME, ADMIN, USER, OTHER = "tracking.example", "head", "alice", "bob"
"""A name that nothing resolves: it comes with the Host header only."""
API, JSON = "/api/2.0/mlflow", {"Content-Type": "application/json"}
REQUIRED = {
    "PGHOST": "127.0.0.1",
    "PGUSER": "mlflow",
    "PGPASSWORD": "secret-1",
    "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow/artifacts",
    "MLFLOW_SERVER_ALLOWED_HOSTS": f"{NAME}, 127.0.0.1",
    "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
    "MLFLOW_AUTH_ADMIN_PASSWORD": "secret-2-secret-2",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret-3",
}

# What the driver of a study does, in short: one trial with a curve.
NODE = """
import sys
from study.records import TrialRecord
from study.tracking.mlflow_client import check_reachable
from study.tracking.tracker import MLflowTracker
uri, study = sys.argv[1:]
assert check_reachable(uri) is None, check_reachable(uri)
spec = {"name": study, "objective": {"metric": "clean/acc", "mode": "max"}, "limits": {"trials": 1}}
tracker = MLflowTracker(spec, uri=uri, study_name=study, experiment="shared")
tracker.reconcile([])
record = TrialRecord(number=0, state="RUNNING", config={"seed": 7}, rounds=3)
tracker.trial_started(record)
for round_ in (1, 2, 3):
    tracker.trial_reported(TrialRecord(**{**vars(record), "round": round_, "metrics": {"clean/acc": round_ / 4}}))
ended = {"state": "COMPLETE", "round": 3, "metrics": {"clean/acc": 0.75}, "values": (0.75,)}
tracker.trial_ended(TrialRecord(**{**vars(record), **ended}))
tracker.close()
"""


def clean_environment(folder: Path, **more: str) -> dict[str, str]:
    """No setting of this machine, nothing written elsewhere."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), **more}


@dataclass
class Server:
    """The server as its users know it, and what the tests may look at."""

    port: int
    folder: Path
    process: "subprocess.Popen[bytes]"
    passwords: dict[str, str]
    s3: Any

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def as_user(self, user: str) -> dict[str, str]:
        login = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": self.passwords[user]}
        return {"MLFLOW_TRACKING_URI": self.uri, **login}

    def ask(
        self, path: str, body: Any = None, *, user: str = "", method: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        """Status and content of an answer; 0 if there is none."""
        if user:
            login = base64.b64encode(f"{user}:{self.passwords[user]}".encode()).decode()
            headers["Authorization"] = f"Basic {login}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.uri + path, data, {**JSON, **headers}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                content = answer.read()
                return answer.status, json.loads(content) if content.startswith(b"{") else content
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def status(self, path: str, body: Any = None, **more: Any) -> int:
        return self.ask(path, body, **more)[0]

    def runs(self, experiment: str) -> list[dict[str, Any]]:
        _, found = self.ask(f"{API}/experiments/get-by-name?experiment_name={experiment}", user=OTHER)
        ids = [found["experiment"]["experiment_id"]]
        return self.ask(f"{API}/runs/search", {"experiment_ids": ids}, user=OTHER)[1]["runs"]

    def python(self, code: str, *arguments: str, user: str, **more: str) -> "subprocess.Popen[str]":
        """A client on another machine: knows its user and password, and nothing of databases or S3."""
        home = self.folder.parent / "client"
        home.mkdir(exist_ok=True)
        env = clean_environment(home, PYTHONPATH=str(ROOT), **self.as_user(user), **more)
        command = [sys.executable, "-c", code, *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, env=env, cwd=home, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )


def readme_code(word: str) -> str:
    """The line of Python in mlflow/README.md that holds a word."""
    (code,) = re.findall(rf'python -c "([^"]*{word}[^"]*)"', (FOLDER / "README.md").read_text())
    return code


def output(process: "subprocess.Popen[str]", text: str = "") -> str:
    out, err = process.communicate(text, timeout=120)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="module")
def database_passwords(postgres: Postgres) -> dict[str, str]:
    """Databases and roles, made as mlflow/databases.sql makes them."""
    passwords = {
        "MLFLOW_DB_PASSWORD": f"secret-{secrets.token_hex(8)}",
        "STUDY_DB_PASSWORD": f"it's-{secrets.token_hex(8)}",
    }
    login = {"PGHOST": postgres.host, "PGPORT": str(postgres.port), "PGUSER": postgres.superuser}
    env = {**os.environ, **passwords, **login, "PGPASSWORD": postgres.superuser_password, "PGDATABASE": "postgres"}
    command = [PROGRAMS / "psql", "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "-f", FOLDER / "databases.sql"]
    subprocess.run(command, env=env, check=True, capture_output=True)
    return passwords


@pytest.fixture(scope="module")
def server(
    postgres: Postgres, database_passwords: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """mlflow/serve.sh with all that it needs, and a user for studies."""
    folder = tmp_path_factory.mktemp("server") / "work"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "store", "AWS_SECRET_ACCESS_KEY": f"secret-{secrets.token_hex(8)}"}
    s3_server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3_server.start()
    endpoint = f"http://127.0.0.1:{s3_server.get_host_and_port()[1]}"
    login = {name.lower(): text for name, text in keys.items()}
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **login)
    s3.create_bucket(Bucket="mlflow")
    passwords = {user: f"secret-{secrets.token_hex(8)}" for user in (ADMIN, USER, OTHER)}
    given = {
        **REQUIRED,
        **keys,
        "PYTHON": sys.executable,
        "PGPORT": str(postgres.port),
        "PGPASSWORD": database_passwords["MLFLOW_DB_PASSWORD"],
        "MLFLOW_PORT": str(port),
        "MLFLOW_WORKERS": "1",
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "MLFLOW_AUTH_ADMIN_PASSWORD": passwords[ADMIN],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": f"secret-{secrets.token_hex(8)}",
    }
    env = clean_environment(folder, **given)
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [FOLDER / "serve.sh"], env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    found = Server(port, folder, process, passwords, s3)
    try:
        eventually(lambda: process.poll() is not None or found.status("/health") == 200)
        assert process.poll() is None, (folder / "server.log").read_text()
        output(found.python(readme_code("create_user"), user=ADMIN), f"{USER}\n{passwords[USER]}\n")
        add = {"username": OTHER, "password": passwords[OTHER]}
        assert found.status(f"{API}/users/create", add, user=ADMIN) == 200
        yield found
        process.terminate()
        assert process.wait(60) in (0, -signal.SIGTERM)
        assert _session(process.pid) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        s3_server.stop()


@pytest.mark.parametrize(
    ("user", "password", "want"),
    [
        ("", "", "refuses this study: it wants a user and a password; set {names}"),
        (USER, "", "refuses this study: it wants a user and a password; set {names}"),
        (USER, "wrong-password", "refuses this study: the user or the password in {names} is wrong"),
        ("nobody", "wrong-password", "refuses this study: the user or the password in {names} is wrong"),
    ],
)
def test_a_study_says_which_variables_are_wrong(
    server: Server, monkeypatch: pytest.MonkeyPatch, user: str, password: str, want: str
) -> None:
    monkeypatch.setenv("HOME", str(server.folder))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    fault = check_reachable(server.uri)
    assert fault is not None
    assert fault.endswith(want.format(names="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"))
    assert "wrong-password" not in fault


@pytest.mark.parametrize(
    ("host", "want"),
    [(NAME, 200), (f"{NAME}:5000", 200), ("127.0.0.1", 200), ("localhost", 403), ("evil.example", 403)],
)
def test_only_known_hosts_are_served(server: Server, host: str, want: int) -> None:
    path = f"{API}/experiments/search?max_results=1"
    assert server.status(path, user=USER, Host=host) == want
    assert server.status("/health", Host=host) == 200


def test_nothing_but_health_without_a_password(server: Server) -> None:
    assert server.status("/") == 401
    assert server.status(f"{API}/experiments/search?max_results=1") == 401
    assert server.status("/api/2.0/mlflow-artifacts/artifacts?path=") == 401
    assert server.status("/", user=USER) == 200


def test_a_page_may_change_things_under_the_servers_own_names_only(server: Server) -> None:
    search = {"max_results": 1}
    for origin, want in ((f"http://{NAME}:5000", 200), (f"https://{NAME}", 200), ("http://evil.example", 403)):
        assert server.status(f"{API}/experiments/search", search, user=USER, Origin=origin) == want, origin


def test_two_nodes_log_at_once_and_files_go_through_the_server(server: Server) -> None:
    nodes = [server.python(NODE, server.uri, f"study-{node}", user=USER) for node in "ab"]
    for node in nodes:
        output(node)
    runs = server.runs("shared")
    tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in runs]
    roles = sorted((tag["study"], tag["role"]) for tag in tags)
    assert roles == [("study-a", "study"), ("study-a", "trial"), ("study-b", "study"), ("study-b", "trial")]
    trials = [run for run, tag in zip(runs, tags, strict=True) if tag["role"] == "trial"]
    for run in trials:
        assert run["info"]["status"] == "FINISHED"
        assert {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}["clean/acc"] == 0.75
        assert run["info"]["artifact_uri"].startswith("mlflow-artifacts:/")
        name = f"artifacts/{run['info']['experiment_id']}/{run['info']['run_id']}/artifacts/config.yaml"
        stored = server.s3.get_object(Bucket="mlflow", Key=name)["Body"].read()
        assert yaml.safe_load(stored) == {"seed": 7}
        path = f"/get-artifact?run_id={run['info']['run_id']}&path=config.yaml"
        assert server.ask(path, user=OTHER) == (200, stored)


def test_others_read_a_run_and_do_not_change_it(server: Server) -> None:
    _, made = server.ask(f"{API}/experiments/create", {"name": "of alice"}, user=USER)
    _, run = server.ask(f"{API}/runs/create", made, user=USER)
    tag = {"run_id": run["run"]["info"]["run_id"], "key": "note", "value": "mine"}
    assert server.status(f"{API}/runs/set-tag", tag, user=OTHER) == 403
    assert server.status(f"{API}/runs/set-tag", tag, user=USER) == 200
    assert server.ask(f"{API}/runs/get?run_id={tag['run_id']}", user=OTHER)[0] == 200
    file = f"/api/2.0/mlflow-artifacts/artifacts/{made['experiment_id']}/{tag['run_id']}/artifacts/note.json"
    assert server.status(file, {"from": OTHER}, user=OTHER, method="PUT") == 403
    assert server.status(file, {"from": USER}, user=USER, method="PUT") == 200
    assert server.ask(file, user=OTHER) == (200, {"from": USER})
    add = {"username": "eve", "password": "a-long-password"}
    assert server.status(f"{API}/users/create", add, user=USER) == 403


def test_it_goes_on_after_an_outage_of_its_database(server: Server, postgres: Postgres) -> None:
    search = f"{API}/experiments/search?max_results=1"
    assert server.status(search, user=USER) == 200
    postgres.stop()
    try:
        assert server.status(search, user=USER) >= 500
    finally:
        postgres.start()
    eventually(lambda: server.status(search, user=USER) == 200)


def test_the_studies_database_is_open_to_its_own_role_only(
    postgres: Postgres, database_passwords: dict[str, str]
) -> None:
    login: dict[str, Any] = {"host": postgres.host, "port": postgres.port, "dbname": "studies"}
    password = database_passwords["STUDY_DB_PASSWORD"]
    with psycopg.connect(user="study", password=password, **login) as connection:
        connection.execute("CREATE TABLE trials (number int)")
    password = database_passwords["MLFLOW_DB_PASSWORD"]
    with (
        psycopg.connect(user="mlflow", password=password, **login) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT * FROM trials")
    for wrong in ({}, {"password": "guess"}):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(user="study", **login, **wrong)


@pytest.mark.browser
def test_the_page_of_an_experiment_in_a_browser(server: Server, tmp_path: Path) -> None:
    if not shutil.which("chromedriver"):
        pytest.skip("no chromedriver")
    output(server.python(NODE, server.uri, "study-c", user=USER))
    (experiment,) = {run["info"]["experiment_id"] for run in server.runs("shared")}
    browser = Browser(tmp_path, NAME)
    try:
        address = f"{NAME}:{server.port}"
        browser.open(f"http://{USER}:{server.passwords[USER]}@{address}/")
        browser.open(f"http://{address}/#/experiments/{experiment}/runs")
        eventually(lambda: "study-c" in browser.text(), 60)
        (tmp_path / "ui.png").write_bytes(browser.screenshot())
        refused = (
            "return performance.getEntriesByType('resource').filter(e => e.responseStatus >= 400).map(e => e.name)"
        )
        assert browser.run(refused) == []
    finally:
        browser.close()
    assert (
        "shared" in server.ask(f"{API}/experiments/get?experiment_id={experiment}", user=USER)[1]["experiment"]["name"]
    )


def test_no_secret_in_command_lines_and_files(
    server: Server, postgres: Postgres, database_passwords: dict[str, str]
) -> None:
    environment = _text(Path(f"/proc/{server.process.pid}/environ"))
    found = set(re.findall("secret-[0-9a-f]{16}", environment))
    assert len(found) == 4, "the server has four secrets"
    hidden = [*found, *server.passwords.values(), *database_passwords.values()]
    lines = [_text(Path(f"/proc/{pid}/cmdline")) for pid in _session(server.process.pid)]
    assert any("uvicorn" in line for line in lines)
    assert any("--backend-store-uri\0postgresql+psycopg:///mlflow\0" in line for line in lines)
    files = [file for file in server.folder.rglob("*") if file.is_file()]
    assert server.folder / "server.log" in files
    for text in [*lines, *map(_text, files), *map(_text, FOLDER.glob("*")), _text(postgres.log)]:
        assert [secret for secret in hidden if secret in text] == []


def _text(file: Path) -> str:
    return file.read_bytes().decode(errors="replace")


def _session(leader: int) -> list[int]:
    """Every process of the session that a process leads."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                found.append(int(stat.parent.name))
    return found


# serve.sh and compose.yaml, without a server


def serve(folder: Path, environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Runs serve.sh with a program in place of Python that only shows what it was called with."""
    shown = folder / "shown"
    shown.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "config=$MLFLOW_AUTH_CONFIG_PATH"\n')
    shown.chmod(0o755)
    env = clean_environment(folder, PYTHON=str(shown), **environment)
    return subprocess.run([FOLDER / "serve.sh"], env=env, cwd=folder, capture_output=True, text=True, check=False)


def options(done: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return {name: value for name, value in pairwise(lines) if name.startswith("--")}


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_variable_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    for given in ({k: v for k, v in REQUIRED.items() if k != name}, {**REQUIRED, name: ""}):
        done = serve(tmp_path, given)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"serve.sh: {name} is not set")
        assert "secret-" not in line


def test_what_serve_passes_on(tmp_path: Path) -> None:
    done = serve(tmp_path, REQUIRED)
    given = options(done)
    assert given["--app-name"] == "basic-auth"
    assert given["--artifacts-destination"] == "s3://mlflow/artifacts"
    assert given["--allowed-hosts"] == f"{NAME},{NAME}:*,127.0.0.1,127.0.0.1:*"
    assert (given["--host"], given["--port"]) == ("127.0.0.1", "5000")
    assert "secret-" not in done.stdout
    assert f"config={FOLDER / 'basic_auth.ini'}" in done.stdout
    assert options(serve(tmp_path, {**REQUIRED, "MLFLOW_HOST": "::", "MLFLOW_PORT": "80"}))["--port"] == "80"


def test_the_users_database_is_named_without_a_secret() -> None:
    settings = configparser.ConfigParser()
    settings.read(FOLDER / "basic_auth.ini")
    assert settings["mlflow"]["database_uri"] == "postgresql+psycopg:///mlflow_auth"
    assert not [name for name in settings["mlflow"] if "password" in name]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


def environments(compose: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: str(value)
        for service in compose["services"].values()
        for name, value in service.get("environment", {}).items()
        if value is not None
    }


def passed_on(compose: Mapping[str, Any]) -> list[str]:
    """Variables that a container has where they are set outside, and not otherwise."""
    services = compose["services"].values()
    return [name for service in services for name, value in service.get("environment", {}).items() if value is None]


def test_images_are_pinned_by_digest_and_packages_by_hash(compose: dict[str, Any]) -> None:
    services = compose["services"]
    recipe = services["mlflow"]["build"]["dockerfile_inline"]
    images = [service["image"] for service in services.values() if "build" not in service]
    images += re.findall(r"^FROM (.+)$", recipe, re.MULTILINE)
    assert len(images) == 2
    for image in images:
        assert re.search(r":\d+\.\d+[\w.-]*@\$\{[A-Z]+_DIGEST:\?[^}]+\}$", image), image
    (installed,) = re.findall(r"^RUN pip install (.+)$", recipe, re.MULTILINE)
    assert installed == "--no-cache-dir --require-hashes -r /srv/requirements.txt"
    assert re.search(r"^COPY mlflow/requirements.txt /srv/$", recipe, re.MULTILINE)
    pinned = set(re.findall(r"^([\w.-]+)==", (FOLDER / "requirements.txt").read_text(), re.MULTILINE))
    assert {"mlflow", "psycopg", "psycopg-binary", "boto3", "flask-wtf"} <= pinned
    assert not {"torch", "ray"} & pinned
    # What COPY names exists, and is started.
    for source in re.findall(r"mlflow/\S+", recipe):
        assert (ROOT / source).is_file()
    assert 'CMD ["/srv/serve.sh"]' in recipe
    assert os.access(FOLDER / "serve.sh", os.X_OK)


def test_secrets_of_compose_come_from_outside_and_are_refused_if_unset(compose: dict[str, Any]) -> None:
    given = environments(compose)
    secret = {name: text for name, text in given.items() if re.search("PASSWORD|SECRET", name)}
    assert len(secret) == 6
    for name, text in secret.items():
        assert re.search(r"\$\{[A-Z_]+:\?[^}]+\}", text), f"{name} has a value or a default"
    example = (FOLDER / ".env.example").read_text()
    listed = set(re.findall(r"^#?([A-Z0-9_]+)=", example, re.MULTILINE))
    used = dict(re.findall(r"\$\{([A-Z_]+):([?-])", (FOLDER / "compose.yaml").read_text()))
    assert listed == set(used) | set(passed_on(compose))
    assert set(re.findall(r"^([A-Z_]+)=$", example, re.MULTILINE)) == {
        name for name, kind in used.items() if kind == "?"
    }


def test_readme_fills_every_secret_of_the_example(tmp_path: Path) -> None:
    (script,) = re.findall(r"^digest\(\).*?>\.env\)$", (FOLDER / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    shutil.copy(FOLDER / ".env.example", tmp_path)
    if not shutil.which("openssl"):
        pytest.skip("no openssl")
    # No registry answers here: a program in place of Docker tells what it was asked for.
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\necho "$1 $2 $3 $4"\n')
    docker.chmod(0o755)
    env = {**os.environ, "PATH": f"{docker.parent}:{os.environ['PATH']}"}
    for code in (0, 1):  # a second time it overwrites nothing
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, check=False)
        assert done.returncode == code
    filled = dict(re.findall(r"^([A-Z_]+)=(.*)$", (tmp_path / ".env").read_text(), re.MULTILINE))
    digests = {name: filled.pop(name) for name in ("POSTGRES_DIGEST", "PYTHON_DIGEST")}
    images = re.findall(r"(?:image: |FROM )([\w.:-]+)@\$\{(\w+):", (FOLDER / "compose.yaml").read_text())
    assert digests == {name: f"buildx imagetools inspect {image}" for image, name in images}
    assert len(filled) == len(set(filled.values())) == 5
    assert min(map(len, filled.values())) >= 12
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    if (ROOT / ".git").exists():
        ignored = subprocess.run(["git", "check-ignore", "-q", "mlflow/.env"], cwd=ROOT, check=False)
        assert ignored.returncode == 0, "git would take .env"


def test_compose_waits_for_a_slow_start_and_opens_no_port_to_others(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in ("postgres", "mlflow"):
        check = services[name]["healthcheck"]
        assert int(check["start_period"].removesuffix("s")) >= 30, name
    assert "/health'" in services["mlflow"]["healthcheck"]["test"][-1]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    for port in ports:
        assert port.startswith("${BIND_ADDRESS:-127.0.0.1}:"), port
    assert all(volume.split(":")[0] in compose["volumes"] for s in services.values() for volume in s.get("volumes", []))


def test_what_compose_gives_serve(compose: dict[str, Any], tmp_path: Path) -> None:
    """The container's environment, as compose makes it, through the script that it starts."""
    values = {"MLFLOW_NAMES": NAME}
    given = {
        name: re.sub(r"\$\{(\w+):[?-]([^}]*)\}", lambda found: values.get(found[1], found[2]), str(text))
        for name, text in compose["services"]["mlflow"]["environment"].items()
        if text is not None
    }
    shown = options(serve(tmp_path, given))
    hosts = shown["--allowed-hosts"].split(",")
    for name in ("mlflow", "localhost", "127.0.0.1", NAME):
        assert {name, f"{name}:*"} <= set(hosts)
    assert "" not in hosts
    assert "*" not in hosts
    assert shown["--artifacts-destination"] == "/files"
    assert "files:/files" in compose["services"]["mlflow"]["volumes"]
    assert (shown["--app-name"], shown["--host"], shown["--port"]) == ("basic-auth", "0.0.0.0", "5000")


def test_containers_have_no_privileges_and_write_to_their_volumes_only(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "pid", "network_mode", "devices"} & set(service), name
    assert compose["services"]["postgres"]["user"] == "postgres"
    recipe = compose["services"]["mlflow"]["build"]["dockerfile_inline"]
    assert re.findall(r"^USER (.*)$", recipe, re.MULTILINE) == ["mlflow"]


# make ui


def test_the_ui_sends_nothing_out_and_starts_no_workers_for_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What MLflow's process is started with, as serve.sh has it."""
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda _, words, environment: started.append((words, environment)))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for given, telemetry, jobs in (
        ({}, "true", "false"),
        ({"MLFLOW_DISABLE_TELEMETRY": "false", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "true"}, "false", "true"),
    ):
        for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        study_ui.main(["--storage", str(tmp_path)])
        words, environment = started.pop()
        assert words[1:] == ["-m", "mlflow", "ui"]
        assert environment["MLFLOW_DISABLE_TELEMETRY"] == telemetry
        assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == jobs
