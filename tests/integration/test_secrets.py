"""Nothing secret shows: not in messages, tracebacks, logs and command lines, whatever an address looks like."""

import base64
import html
import json
import logging
import os
import pickle
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import psycopg
import pytest
import ray
import yaml
from mlflow import MlflowClient
from postgres import Postgres
from tiny_studies import ROOT, study_dict, write_study

from study import control, report, secrets, sweep
from study import ui as study_ui
from study.database.engine import LedgerError, open_storage
from study.driver import run as runner
from study.planning.saved_models import find_checkpoint
from study.secrets import Address, cleaned, first_line, guard_output, redact, remember
from study.spec.study_spec import StudySpec
from study.tracking.address import default_uri, make_sqlite
from study.tracking.mlflow_client import check_reachable

LEFT, RIGHT = "Zq7wX", "Kp4vT"
"""The halves of every password here: what is between them is what others read wrongly, and neither may show."""
BETWEEN = (
    *("", "'", '"', "''", "`", " ", "  ", "\t", "\n", "\r\n", "@", "@@", "/", "//", "://", "#", "?", ":", "::", "%"),
    *("%zz", "%40", "%2", "&", "=", ";", ",", "$", "$(", "\\", "\\n", "[", "]", "[]", "{", "{}", "<", ">", "|", "^"),
    *("*", "+", "~", "é", "密", "😀", "\u212a", "\x7f"),
)
PASSWORDS = tuple(f"{LEFT}{between}{RIGHT}" for between in BETWEEN)
PLACE = "127.0.0.1:1/studies"
P = f"{LEFT}'{RIGHT}"
"""For addresses that are odd in themselves."""


def unique(*addresses: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(addresses))


ODD = (
    *(
        # Where the password stands
        f"postgresql+psycopg://:{P}@{PLACE}",
        f"postgresql+psycopg://me/{P}@{PLACE}",
        f"postgresql+psycopg://{P}:{P}@{PLACE}",
        f"postgresql+psycopg://{PLACE}?password={P}",
        f"postgresql+psycopg://me@{PLACE}?sslmode=disable&password={P}",
        f"postgresql+psycopg://{PLACE}?password={LEFT}@{RIGHT}",
        f"postgresql+psycopg://{PLACE}?password={LEFT}%26{RIGHT}",
        f"postgresql+psycopg://{PLACE}?password={LEFT}&{RIGHT}",
        f"postgresql+psycopg://{PLACE}?password='{LEFT} {RIGHT}'",
        f"postgresql+psycopg://{PLACE}?sslpassword={P}",
        f"postgresql+psycopg://{PLACE}?passfile={P}",
        f"postgresql+psycopg://{PLACE}?service=there&password={P}",
        f"postgresql+psycopg://{PLACE}?options=-cpassword={P}",
        f"postgresql+psycopg://{PLACE}?options=-c%20password%3D{quote(P)}%20-c%20search_path%3Dx",
        f"postgresql+psycopg://{PLACE}#password={P}",
        f"postgresql+psycopg://{PLACE}#{P}",
        f"postgresql+psycopg://{PLACE};password={P}",
        f"mssql+pyodbc:///?odbc_connect=DRIVER%3D%7Bx%7D%3BSERVER%3Dhere%3BUID%3Dme%3BPWD%3D{quote(P)}",
        f"mssql+pyodbc:///?odbc_connect=DRIVER={{x}};SERVER=here;UID=me;PWD={{{P}}}",
        f"mssql+pyodbc://me:{P}@dsn",
        f"mysql+pymysql://me:{P}@{PLACE}?ssl_key={P}",
        f"oracle+oracledb://me:{P}@127.0.0.1:1/?service_name=x",
        f"sqlite://me:{P}@127.0.0.1/x.db",
        f"sqlite:///file:nowhere.db?mode=ro&uri=true&password={P}",
        f"sqlite+pysqlcipher://:{P}@/nowhere.db",
        f"sqlite:///me:{LEFT}?{RIGHT}@127.0.0.1:1/x",
        f"nonsense://{LEFT}#'{RIGHT}@[::x]:1/x",
        f"postgresql+psycopg://127.0.0.1:1/x?#{LEFT}+@{RIGHT}#x",
        f"postgresql+psycopg://me:{{{LEFT}}}{RIGHT}@{PLACE}",
        # Hosts and ports that are none
        f"postgresql+psycopg://me:{P}@[::1/x",
        f"postgresql+psycopg://me:{P}@[zz]:1/x",
        f"postgresql+psycopg://me:{P}@::1:1/x",
        f"postgresql+psycopg://me:{P}@[::1]:1/x",
        f"postgresql+psycopg://me:{P}@127.0.0.1:port/x",
        f"postgresql+psycopg://me:{P}@127.0.0.1:99999999/x",
        f"postgresql+psycopg://me:{P}@127.0.0.1:1:2/x",
        f"postgresql+psycopg://me:{P}@127.0.0.1:-1/x",
        f"postgresql+psycopg://me:{P}@/x?host=127.0.0.1&port=1",
        f"postgresql+psycopg://me:{P}@127.0.0.1:1,127.0.0.1:2/x",
        f"postgresql+psycopg://me:{P}@a..b:1/x",
        f"postgresql+psycopg://me:{P}",
        f"postgresql+psycopg://me:{P}/x",
        f"postgresql+psycopg://me:{LEFT}{RIGHT}",
        # Not what an address begins with
        f"postgresql:me:{P}@{PLACE}",
        f"postgresql:/me:{P}@{PLACE}",
        f"postgresql//me:{P}@{PLACE}",
        f"://me:{P}@{PLACE}",
        f"//me:{P}@{PLACE}",
        f"me:{P}@{PLACE}",
        f"me/{P}@{PLACE}",
        f"me:{P}",
        f"{P}@{PLACE}",
        P,
        f" postgresql+psycopg://me:{P}@{PLACE}",
        f"postgresql+psycopg://me:{P}@{PLACE} ",
        f"postgresql+psycopg://me:{P}@{PLACE}\n",
        f'"postgresql+psycopg://me:{P}@{PLACE}"',
        f"'postgresql+psycopg://me:{P}@{PLACE}'",
        f"ARDMVC_STUDY_DB=postgresql+psycopg://me:{P}@{PLACE}",
        f"postgresql://postgresql+psycopg://me:{P}@{PLACE}",
        f"jdbc:postgresql://127.0.0.1:1/x?user=me&password={P}",
        f"jdbc:postgresql://me:{P}@{PLACE}",
        f"jdbc:oracle:thin:me/{P}@//127.0.0.1:1/x",
        f"jdbc:sqlserver://127.0.0.1:1;databaseName=x;user=me;password={{{P}}}",
        f"host=127.0.0.1 port=1 user=me password={P} dbname=x",
        f"host=127.0.0.1 port=1 user=me password='{LEFT} {RIGHT}' dbname=x",
        f"Server=127.0.0.1;Database=x;Uid=me;Pwd={P};",
        f"nonsense:{P}",
        f"nonsense://me:{P}@{PLACE}",
        f"nonsense+odd://me:{P}@{PLACE}",
        f"ftp://me:{P}@127.0.0.1:1/x",
        f"file://me:{P}@127.0.0.1/x",
        f"s3://me:{P}@bucket/x",
    ),
)
DATABASES = unique(
    *(f"postgresql+psycopg://me:{password}@{PLACE}" for password in PASSWORDS),
    *(f"postgresql+psycopg://me:{quote(password, safe='')}@{PLACE}" for password in PASSWORDS),
    *ODD,
)
SERVERS = unique(
    *(f"http://me:{password}@127.0.0.1:1" for password in PASSWORDS),
    *(f"http://me:{quote(password, safe='')}@127.0.0.1:1/x" for password in PASSWORDS),
    *(
        f"https://{LEFT}{RIGHT}@127.0.0.1:1",
        f"http://:{P}@127.0.0.1:1",
        f"http://127.0.0.1:1/x?token={P}",
        f"http://127.0.0.1:1/x?a=b&access_token={LEFT}@{RIGHT}",
        f"http://127.0.0.1:1/#{P}",
        f"HTTP://me:{P}@127.0.0.1:1",
        f"http:me:{P}@127.0.0.1:1",
        f"http:/me:{P}@127.0.0.1:1",
        f"http:///me:{P}@127.0.0.1:1",
        f"http://http://me:{P}@127.0.0.1:1",
        f"http://me:{P}@[::1",
        f"http://me:{P}@[zz]:1",
        f"http://me:{P}@127.0.0.1:port",
        f"http://me:{P}@127.0.0.1:99999",
        f"http://me:{P}@127.0.0.1:1:2",
        f"http://me:{P}@a..b:1",
        f"http://me:{P}@{'x' * 70}:1",
        f"http://me:{P}@127.0.0.1\u2100:1",
        f"http://me:{P}@",
        f"http://me:{P}",
        f"databricks://me:{P}@profile",
        f"databricks-uc://me:{P}@profile",
        f"file://me:{P}@127.0.0.1/mlruns",
        f"./mlruns:{P}@x",
    ),
    *ODD,
)


def shows(text: str) -> bool:
    return LEFT in text or RIGHT in text


@pytest.fixture
def said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., str]:
    """Runs a command in a folder with a study; returns all that it printed and logged, of every library and level."""
    monkeypatch.chdir(tmp_path)
    for variable in ("ARDMVC_STUDY_DB", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    write_study(tmp_path, study_dict(tmp_path))
    caplog.set_level(logging.DEBUG)

    def run(main: Callable[[list[str]], int], *arguments: str, code: int = 2) -> str:
        capfd.readouterr()
        caplog.clear()
        assert main(list(arguments)) == code
        output = capfd.readouterr()
        return output.out + output.err + caplog.text

    return run


@pytest.mark.parametrize("address", DATABASES)
def test_no_command_shows_the_study_databases_password(
    said: Callable[..., str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """It is refused, in one line; the traceback that --debug adds shows nothing either."""
    monkeypatch.setenv("ARDMVC_STUDY_DB", address)
    text = said(control.main, "tiny")
    assert not shows(text), text
    assert "Traceback" not in text
    assert "stud" in text
    assert text.count("\n") == 1
    text = said(report.main, "tiny", "--debug")
    assert not shows(text), text
    assert "Traceback" in text


@pytest.mark.parametrize("address", SERVERS)
def test_no_check_shows_the_tracking_servers_password(said: Callable[..., str], address: str) -> None:
    assert not shows(str(check_reachable(address)))


@pytest.mark.parametrize("variable", ["ARDMVC_STUDY_DB", "MLFLOW_TRACKING_URI"])
@pytest.mark.parametrize("address", [*DATABASES[1:16:3], *SERVERS[1:16:3], *ODD[::2]])
def test_no_sweep_shows_a_password(
    said: Callable[..., str], monkeypatch: pytest.MonkeyPatch, variable: str, address: str
) -> None:
    if variable == "MLFLOW_TRACKING_URI" and check_reachable(address) is None:
        pytest.skip("nothing is known to be wrong with it before it is used")
    monkeypatch.setenv(variable, address)
    text = said(sweep.main, "tiny.yaml", "--debug")
    assert "Traceback" in text
    assert not shows(text), text


@pytest.mark.parametrize("address", [DATABASES[1], *ODD[1::4]])
def test_no_dry_run_shows_a_password(
    said: Callable[..., str], monkeypatch: pytest.MonkeyPatch, address: str, tmp_path: Path
) -> None:
    """A study on another study's model, which has to be looked for."""
    monkeypatch.setenv("ARDMVC_STUDY_DB", address)
    attacker = {"trainable": "attacker", "trial": {"checkpoint": "study:tiny"}, "space": {}, "baselines": [{}]}
    objective = {"objective": {"metric": "gan/acc", "mode": "min"}}
    write_study(tmp_path, {**study_dict(tmp_path, name="attack"), **attacker, **objective})
    text = said(sweep.main, "attack.yaml", "--dry-run", "--debug")
    assert "trial.checkpoint: " in text
    assert not shows(text), text


@pytest.mark.parametrize("address", [*DATABASES, *SERVERS])
def test_an_address_prints_itself_without_what_is_secret(address: str) -> None:
    shown = Address(address)
    assert shown.reveal() == address
    for text in (str(shown), repr(shown), f"{shown}", f"{shown!r:>300}", f"{[shown]}", f"{ {'a': shown} }"):
        assert not shows(text), text
    assert not shows(redact(f"from {address} to {address!r} and {json.dumps(address)}"))
    assert not shows(str(cleaned({"to": [shown, address]})))
    for writes in (pickle.dumps, json.dumps, yaml.safe_dump):
        with pytest.raises((TypeError, yaml.YAMLError)) as caught:
            writes(shown)
        assert not shows(str(caught.value))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql+psycopg://me:p@ss@127.0.0.1:5432/x", "postgresql+psycopg://me:***@127.0.0.1:5432/x"),
        ("postgresql://me@[::1]:5432/x?sslmode=require", "postgresql://me@[::1]:5432/x?***"),
        ("postgresql://me:a/b@host/x", "postgresql://***"),
        ("http://me:a%2Fb@tracking.example:5000/x", "http://me:***@tracking.example:5000/x"),
        ("https://token@host", "https://***@host"),
        ("sqlite:////data/it's a:b/x.db", "sqlite:////data/it's a:b/x.db"),
        ("sqlite:////home/me@there/x.db?timeout=5", "sqlite:////home/me@there/x.db?***"),
        ("mlruns/here", "mlruns/here"),
        ("databricks", "databricks"),
        ("me:word@host", "***"),
    ],
)
def test_what_is_shown_of_an_address(address: str, shown: str) -> None:
    assert str(Address(address)) == shown


# Texts of others


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_is_found_however_it_is_quoted(password: str) -> None:
    """Spelled by the libraries that quote, and not by the code that looks for it."""
    Address(f"postgresql://me:{quote(password, safe='')}@host/x")
    spellings = [
        password,
        repr(password),
        repr(repr(password)),
        ascii(password),
        repr(password.encode()),
        json.dumps(password),
        json.dumps(password, ensure_ascii=False),
        json.dumps(json.dumps(password)),
        quote(password),
        quote(password, safe=""),
        quote(password, safe="").lower().replace(LEFT.lower(), LEFT).replace(RIGHT.lower(), RIGHT),
        quote_plus(password),
        quote(quote(password, safe=""), safe=""),
        shlex.quote(password),
        html.escape(password),
        password.replace("'", "''"),
        psycopg.conninfo.make_conninfo(password=password),
        psycopg.sql.Literal(password).as_string(None),
        yaml.safe_dump([password]),
        yaml.safe_dump([password], allow_unicode=True),
        " ".join(password.split()),
        base64.b64encode(f"me:{password}".encode()).decode(),
    ]
    for text in spellings:
        hidden = redact(f"before {text} after")
        assert not shows(hidden), (text, hidden)
        assert "bWU6" not in hidden, "the beginning of me: in base 64"
        assert hidden.startswith("before ")
        assert hidden.endswith(" after")


@pytest.mark.parametrize("password", ["a", "1", "me", "on", "'"])
def test_a_password_of_a_letter_does_not_turn_messages_into_stars(password: str) -> None:
    address = Address(f"http://me:{password}@127.0.0.1:1/x")
    message = f"cannot reach {address}: it's not on line 1, said {address.reveal()}"
    assert redact(message) == (
        "cannot reach http://me:***@127.0.0.1:1/x: it's not on line 1, said http://me:***@127.0.0.1:1/x"
    )


@pytest.mark.parametrize(
    ("password", "text", "want"),
    [
        ("postgres", "postgresql://postgres@host, postgres-1, a_postgres", "postgresql://***@host, ***-1, a_***"),
        ("adam", "model.adam: adam, adamw, madam, 'adam', \\nadam, %20adam", "model.***: ***, adamw, madam, '***', "),
        ("12345", "0.12345 and 12345, 123456", "0.12345 and ***, 123456"),
        ("hunter2-long", "xhunter2-longx", "x***x"),
    ],
)
def test_a_password_that_is_a_word_is_no_part_of_others(password: str, text: str, want: str) -> None:
    remember(password)
    assert redact(text).startswith(want)
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("MLFLOW_TRACKING_PASSWORD", True),
        ("MLFLOW_TRACKING_TOKEN", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("AWS_SESSION_TOKEN", True),
        ("PGPASSWORD", True),
        ("STUDY_DB_PASSWORD", True),
        ("DATABRICKS_TOKEN", True),
        ("AZURE_STORAGE_ACCOUNT_KEY", True),
        ("HTTPS_PROXY", True),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("MAX_TOKENS", False),
        ("PWD", False),
    ],
)
def test_what_variables_hold_is_known(monkeypatch: pytest.MonkeyPatch, name: str, secret: bool) -> None:
    word = f"{LEFT}+{RIGHT}"
    monkeypatch.setenv(name, f"http://me:{word}@proxy:8080" if name == "HTTPS_PROXY" else word)
    guard_output()
    assert shows(redact(f"it is {word}, or {quote(word)}")) != secret


def test_a_login_from_the_environment_is_known_as_a_client_sends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "alice")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    Address("http://tracking.example:5000")
    # printf %s 'alice:correct horse' | base64
    assert redact("Authorization: Basic YWxpY2U6Y29ycmVjdCBob3JzZQ==") == "Authorization: Basic ***"


def test_a_flag_that_is_on_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_TOKEN", "true")
    guard_output()
    assert redact("baseline: true") == "baseline: true"


def test_the_first_line_of_an_error_is_cut_behind_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    remember(f"{LEFT}\n{RIGHT}")
    assert first_line(ValueError(f"no {LEFT}\n{RIGHT} here\nand there")) == "no *** here"
    error = RuntimeError("outside")
    error.__cause__ = OSError(f"{LEFT}\n{RIGHT}")
    assert first_line(error) == "***"
    assert first_line(ValueError()) == "ValueError"


def test_long_texts_are_read_quickly() -> None:
    """Quotes that may be doubled, white space that may be anything: no pattern tries all ways to read them."""
    for password in ("'" * 40 + "x", "\\" * 40 + "x", " " * 40 + "x", "a'" * 30, "\\'" * 30, "%" * 40):
        remember(password)
    begin = time.process_time()
    for text in ("'" * 3000, "\\" * 3000, " " * 3000, "%27" * 1000, "a'" * 1500, "\\'" * 1500, "abc " * 100_000):
        redact(text)
    assert time.process_time() - begin < 20, "it would be minutes"


# What a process logs, warns of and dies of


def fail(text: str) -> None:
    raise RuntimeError(text)


def test_every_librarys_log_is_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    """Message, arguments, traceback and stack, in any handler; and a record whose arguments do not fit."""
    Address(DATABASES[1])
    guard_output()
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Handler()
    for name in ("sqlalchemy.engine", "optuna", "some.library"):
        log = logging.getLogger(name)
        log.addHandler(handler)
        try:
            fail(f"no {DATABASES[1]}")
        except RuntimeError:
            log.exception("cannot open %s", DATABASES[1])
        log.error("cannot open %d", DATABASES[1])
        log.error("cannot open %s", DATABASES[1], stack_info=True)
        log.removeHandler(handler)
    assert len(lines) == 9
    assert "Traceback" in lines[0]
    assert "Stack (most recent call last)" in lines[2]
    assert not shows("\n".join(lines) + caplog.text)


ENDS = {
    "an error that nobody expected": "raise RuntimeError(address) from ValueError(repr(address))",
    "an error in a thread": "import threading; t = threading.Thread(target=fail); t.start(); t.join()",
    "an error that nobody can catch": "class Odd: __del__ = lambda self: fail()\nOdd()",
    "an error while Ray is there": "import ray; fail()",
    "a warning": "import warnings; warnings.warn(address)",
    "a logged error": "import logging\ntry: fail()\nexcept RuntimeError: logging.getLogger('x').exception(address)",
}


@pytest.mark.parametrize("how", ENDS)
def test_how_a_command_ends_without_a_secret(how: str) -> None:
    script = (
        "import argparse, os, sys\n"
        "from study.cli import exit_code_of\n"
        "address = os.environ['ARDMVC_STUDY_DB']\n"
        "def fail(): raise RuntimeError(address)\n"
        "def run(given):\n"
        "    exec(sys.argv[1], globals())\n"
        "    return 0\n"
        "sys.exit(exit_code_of(run, argparse.Namespace(debug=True)))\n"
    )
    for password in (f"{LEFT}'{RIGHT}", f"{LEFT} @\n{RIGHT}"):
        done = subprocess.run(
            [sys.executable, "-c", script, ENDS[how]],
            cwd=ROOT,
            env={**os.environ, "ARDMVC_STUDY_DB": f"postgresql://me:{password}@{PLACE}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "me:***@127.0.0.1" in done.stderr
        assert not shows(done.stdout + done.stderr), done.stderr


@pytest.mark.parametrize("module", ["control", "report"])
def test_the_command_itself_shows_no_password_in_its_traceback(module: str, tmp_path: Path) -> None:
    for password in (f"{LEFT}'{RIGHT}", f"{LEFT} /@{RIGHT}"):
        done = subprocess.run(
            [sys.executable, "-m", f"study.{module}", "tiny", "--debug"],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "ARDMVC_STUDY_DB": f"postgresql+psycopg://me:{password}@{PLACE}",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "Traceback" in done.stderr
        assert not shows(done.stdout + done.stderr), done.stderr


def test_an_at_sign_in_a_password_is_explained() -> None:
    with pytest.raises(LedgerError, match=r"ARDMVC_STUDY_DB has an `@` too many: .* it is written %40"):
        open_storage(f"postgresql+psycopg://me:{LEFT}@{RIGHT}@{PLACE}", create=True)
    assert "MLFLOW_TRACKING_URI has an `@` too many" in str(
        check_reachable(f"postgresql+psycopg://me:{LEFT}@{RIGHT}@{PLACE}")
    )


@pytest.mark.parametrize("key", [P, f"{LEFT}/{RIGHT}", f"{LEFT}+{RIGHT}"])
def test_keys_in_the_address_of_a_storage_are_refused_and_not_shown(
    said: Callable[..., str], tmp_path: Path, key: str
) -> None:
    place = f"s3://KEY:{key}@bucket/x"
    text = said(sweep.main, "tiny.yaml", "--set", f"storage.path={place}", "--debug")
    assert "keys and options of a storage come from the environment" in text
    assert not shows(text), text
    write_study(tmp_path, study_dict(tmp_path, storage={"path": place}))
    text = said(sweep.main, "tiny.yaml", "--debug")
    assert not shows(text), text
    with pytest.raises(LedgerError, match="keys and options of a storage come from the environment") as caught:
        find_checkpoint(place, "sqlite:////nowhere/x.db")
    assert not shows(str(caught.value))


# Other processes


@pytest.fixture
def ui(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts `make ui` in a folder whose name has a blank."""
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    started: list[subprocess.Popen[str]] = []

    def start(**environment: str) -> "subprocess.Popen[str]":
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        kept = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        kept["PYTHONPATH"] = str(ROOT)
        command = ["make", f"BIN={Path(sys.executable).parent}", "-o", ".venv/.user", "ui"]
        with (tmp_path / "ui.log").open("w") as log:
            started.append(
                subprocess.Popen(
                    command,
                    cwd=folder,
                    env={**kept, **quiet, **environment},
                    stdout=log,
                    stderr=log,
                    text=True,
                    start_new_session=True,
                )
            )
        return started[-1]

    yield start
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.wait()


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def command_lines(session: int) -> dict[int, str]:
    """Of the processes of a session."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (ProcessLookupError, FileNotFoundError):
            continue
    return found


def until_healthy(process: "subprocess.Popen[str]", port: int, log: Path) -> dict[int, str]:
    """Waits for a server. Returns: the command lines of all that ran meanwhile."""
    seen: dict[int, str] = {}
    deadline = time.monotonic() + 120
    while True:
        seen |= command_lines(process.pid)
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return seen | command_lines(process.pid)
        except OSError:
            time.sleep(0.05)


def test_make_ui_shows_the_address_neither_on_the_terminal_nor_in_the_process_list(
    ui: Callable[..., "subprocess.Popen[str]"], tmp_path: Path, postgres: Postgres, free_port: int
) -> None:
    process = ui(MLFLOW_TRACKING_URI=postgres.url("ui"), MLFLOW_PORT=str(free_port), MLFLOW_WORKERS="1")
    seen = until_healthy(process, free_port, tmp_path / "ui.log")
    assert any("-m mlflow ui" in line for line in seen.values()), seen
    assert postgres.core not in "\n".join(seen.values())
    assert postgres.core not in (tmp_path / "ui.log").read_text()


def test_make_ui_shows_the_local_file_in_a_folder_with_a_blank(
    ui: Callable[..., "subprocess.Popen[str]"], tmp_path: Path, free_port: int
) -> None:
    make_sqlite(tmp_path / "a b" / "runs" / "mlflow.db")
    process = ui(MLFLOW_PORT=str(free_port), MLFLOW_WORKERS="1")
    until_healthy(process, free_port, tmp_path / "ui.log")
    made = MlflowClient(tracking_uri=f"http://127.0.0.1:{free_port}").create_experiment("shown")
    there = MlflowClient(tracking_uri=default_uri(str(tmp_path / "a b" / "runs")))
    assert there.get_experiment_by_name("shown").experiment_id == made


@pytest.mark.parametrize("address", [*SERVERS[1:16:5], *ODD[::3]])
def test_the_ui_of_an_address_that_cannot_be_is_refused(
    said: Callable[..., str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    text = said(study_ui.main, "--debug")
    assert "Traceback" in text
    assert not shows(text), text


WORKER = """
import os
from pathlib import Path


def environments() -> dict[str, str]:
    parent = Path(f"/proc/{os.getppid()}")
    return {
        "worker": "\\n".join(f"{name}={value}" for name, value in os.environ.items()),
        "worker's start": Path("/proc/self/environ").read_text(),
        "its parent's start": (parent / "environ").read_text(),
        "its parent": (parent / "cmdline").read_text(),
    }
"""


def test_local_workers_get_no_address_of_a_database(
    tiny_spec: Callable[..., StudySpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither they nor any other process that Ray starts; keys of the storage reach them."""
    hidden = {
        "ARDMVC_STUDY_DB": f"postgresql+psycopg://me:{P}@{PLACE}",
        "MLFLOW_TRACKING_URI": f"http://me:{P}@127.0.0.1:1",
        "MLFLOW_TRACKING_USERNAME": LEFT,
        "MLFLOW_TRACKING_PASSWORD": P,
        "MLFLOW_TRACKING_TOKEN": P,
        "MLFLOW_BACKEND_STORE_URI": P,
        "PGPASSWORD": P,
        "PGHOST": LEFT,
        "STUDY_DB_PASSWORD": P,
        "DATABASE_URL": f"postgres://me:{P}@{PLACE}",
    }
    needed = {"AWS_ACCESS_KEY_ID": "key-7", "AWS_SECRET_ACCESS_KEY": "word-7", "AWS_ENDPOINT_URL": "http://me@s3:9"}
    for name, value in {**hidden, **needed}.items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {}
    exec(WORKER, names)
    runner.connect(None, tiny_spec())
    try:
        found = ray.get(ray.remote(num_cpus=1)(names["environments"]).remote(), timeout=120)
        children = {pid: Path(f"/proc/{pid}/environ").read_text() for pid in descendants(os.getpid())}
    finally:
        ray.shutdown()
    assert "raylet" in found["its parent"]
    assert len(children) >= 3, "the control store, the raylet, a worker"
    for where, text in {**found, **{str(pid): text for pid, text in children.items()}}.items():
        assert not shows(text), where
        assert not [name for name in hidden if f"{name}=" in text], where
    for name, value in needed.items():
        assert f"{name}={value}" in found["worker"]
    assert {name: os.environ[name] for name in hidden} == hidden, "the driver needs them"


def descendants(pid: int) -> list[int]:
    """Of a process, as far as they are still there."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


# The guards themselves


def test_hooks_of_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def hook(*_: Any) -> None:
        pass

    monkeypatch.setattr(sys, "excepthook", hook)
    monkeypatch.setattr(threading, "excepthook", hook)
    monkeypatch.setattr(warnings, "formatwarning", hook)
    guard_output()
    guard_output()
    assert (sys.excepthook, threading.excepthook, warnings.formatwarning) == (hook,) * 3


def test_a_secret_that_another_thread_reads_is_not_lost() -> None:
    words = [f"{LEFT}-{number}-{RIGHT}" for number in range(200)]
    threads = [threading.Thread(target=remember, args=(word,)) for word in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not shows(redact(" ".join(words)))
    assert len(secrets._known) == len(words)
