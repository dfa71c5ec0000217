"""YAML and flags that nobody writes on purpose: exit 2, one short message, soon, and nothing else."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_studies import study_dict

from study.spec.faults import MESSAGE_BYTES, Fault, listing
from study.spec.yaml_file import LARGEST_FILE, SpecError, read_mapping

ROOT = Path(__file__).parents[2]
DIGITS = "9" * 5000
LONG = "x" * 100_000

Refused = Callable[..., str]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A small study, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARDMVC_STUDY_DB", raising=False)
    return study_dict(tmp_path)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must be refused: shortly, soon, and with one message, which it returns."""

    def run(command: str, *arguments: str) -> str:
        begin = time.monotonic()
        dry = ["--dry-run"] if command in ("sweep", "confirm", "table1") else []  # if it is not refused, nothing starts
        try:
            code = import_module(f"study.{command}").main([*dry, *arguments])
        except SystemExit as exit_:  # flags that argparse refuses
            code = exit_.code
        output = capsys.readouterr()
        assert code == 2, output.err
        assert output.out == ""
        assert output.err.strip()
        assert len(output.err.encode()) <= 2048
        assert "Traceback" not in output.err
        assert time.monotonic() - begin < 30, "it hangs"
        return output.err

    return run


def written(study: dict[str, Any], *more: str) -> str:
    """The study's file, with text at its end."""
    Path("study.yaml").write_text("\n".join([yaml.safe_dump(study), *more]))
    return "study.yaml"


# Numbers


@pytest.mark.parametrize(
    "number",
    [DIGITS, "-" + DIGITS, "0x" + "f" * 4000, "0b" + "1" * 4000, "9" * 4000, str(2**64), f"{DIGITS}.0", ".inf", ".nan"],
    ids=lambda number: number[:6],
)
@pytest.mark.parametrize("key", ["seed", "trial.epochs", "limits.hours", "trial.model.adversarial_weight"])
def test_numbers_beyond_any_range(study: dict[str, Any], refused: Refused, key: str, number: str) -> None:
    message = refused("sweep", written(study), "--set", f"{key}={number}")
    assert message.startswith(f"--set {key}=")
    section, _, last = key.rpartition(".")
    place = study
    for part in filter(None, section.split(".")):
        place = place.setdefault(part, {})
    place[last] = "THE NUMBER"
    Path("study.yaml").write_text(yaml.safe_dump(study).replace("THE NUMBER", number))
    assert refused("sweep", "study.yaml").startswith("study.yaml: ")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("limits.round_minutes=1e12", "limits.round_minutes: must be ≤ 100000, got '1e12'"),
        ("limits.outage_minutes=1000000000000.0", "limits.outage_minutes: must be ≤ 100000, got 1000000000000.0"),
        ("limits.hours='1e300'", "limits.hours: must be ≤ 100000"),
        ("seed=9223372036854775808", "seed: must be < 9223372036854775808, got 9223372036854775808"),
        ("trial.dataset.seed=4294967296", "trial.dataset.seed: must be in [0, 4294967295], got 4294967296"),
        ("trial.evaluation.seed=-1", "trial.evaluation.seed: must be in [0, 9223372036854775807], got -1"),
        ("trial.model.train_steps=1000000000", "trial.model.train_steps: must be in [1, 100000], got 1000000000"),
        ("trial.model.dense_widths=[1000000, 8]", "trial.model.dense_widths: must be in [1, 65536], got 1000000"),
        (
            "trial.evaluation.official.epochs=1000000",
            "trial.evaluation.official.epochs: must be in [1, 100000], got 1000000",
        ),
        ("trial.evaluation.attacked_views=[1000000]", "attacked_views: must be in [0, 99], got 1000000"),
        ("resources.gpu=1e-5", "resources.gpu: must be 0 or ≥ 0.001, got 1e-05"),
        ("resources.cpu=1e-300", "resources.cpu: must be ≥ 0.001, got '1e-300'"),
        (
            "space.model.train_eps={quantised: [0, 1, 1e-300]}",
            "step must be at least a 10000th of the range, got 1e-300",
        ),
        (
            "space.model.train_eps={quantised: [0, 1, 5e-324]}",
            "step must be at least a 10000th of the range, got 5e-324",
        ),
        ("space.batch_size={quantised: [2, 1000000, 1]}", "step must be at least a 10000th of the range, got 1.0"),
        ("space.model.train_eps={uniform: [-1e308, 1e308]}", "uniform needs numbers in"),
        ("space.epochs={int_uniform: [1, 18446744073709551615]}", "int_uniform needs numbers in"),
        (f"space.epochs={{int_uniform: [1, '{DIGITS[:4000]}']}}", "int_uniform needs numbers in"),
        (f"space.epochs={{choice: [{','.join(map(str, range(1, 102)))}]}}", "must hold at most 100 values, got 101"),
        (
            f"trial.evaluation.eps=[{'0.1,' * 101}]",
            "trial.evaluation.eps: must have at most 100 entries, got 101",
        ),
    ],
    ids=lambda text: text[:40],
)
def test_a_number_beyond_its_bound(study: dict[str, Any], refused: Refused, setting: str, words: str) -> None:
    assert words in refused("sweep", written(study), "--set", setting)


@pytest.mark.parametrize("text", ["1:30", "1:30.5", "010", "-0_17"])
def test_numbers_that_yaml_reads_as_other_numbers(study: dict[str, Any], refused: Refused, text: str) -> None:
    assert f"'{text}' is another number in YAML" in refused("sweep", written(study), "--set", f"limits.hours={text}")


@pytest.mark.parametrize("text", ["2026-01-01", "2026-13-45", "2001-12-14t21:59:43.10-99:00", "1e400"])
def test_dates_are_text(study: dict[str, Any], refused: Refused, text: str) -> None:
    message = refused("sweep", written(study), "--set", f"trial.epochs={text}")
    assert message == f"--set trial.epochs={text}: trial.epochs: must be a whole number, got '{text}'\n"


# Size


def keys(count: int, name: str = "key") -> str:
    return "".join(f"{name}{number}: 1\n" for number in range(count))


def test_400000_unknown_keys(study: dict[str, Any], refused: Refused) -> None:
    assert refused("sweep", written(study, keys(400_000))) == "study.yaml: must have at most 256 KiB\n"


@pytest.mark.parametrize("place", ["top", "trial", "model", "space", "baselines"])
def test_thousands_of_wrong_keys_are_counted(study: dict[str, Any], refused: Refused, place: str) -> None:
    wrong = {f"epoch_{number}": 1 for number in range(1000)}
    match place:
        case "top":
            study |= wrong
        case "trial":
            study["trial"] |= wrong
        case "model":
            study["trial"]["model"] |= wrong
        case "space":
            study["space"] |= {key: {"uniform": [0, 1]} for key in wrong}
        case _:
            study["baselines"] = [{key: 1} for key in wrong]
    *lines, last = refused("sweep", written(study)).splitlines()
    assert 2 < len(lines) < 40
    assert last == f"and {1000 - len(lines)} more"
    assert "epoch_0" in lines[0]


def test_more_keys_and_values_than_a_study_has(study: dict[str, Any], refused: Refused) -> None:
    assert "more than 10000 keys and values" in refused("sweep", written(study, keys(5_000)))
    assert "more than 10000 keys and values" in refused("sweep", written(study), "--set", f"a=[{'1,' * 10_000}]")


def test_more_baselines_than_can_be_checked_soon(study: dict[str, Any], refused: Refused) -> None:
    study["baselines"] = [{"epochs": 0}] * 3_000
    study["trial"] |= {"epochs": 1}
    message = refused("sweep", written({**study, "baselines": [{"epochs": 0}] * 3_000}))
    assert message.startswith("study.yaml: baselines[0].epochs: must be ≥ 1, got 0 (line 3, column 3)\n")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (BOMB, "more than 10000 keys and values"),
        (f"a: &a {LONG[:4000]}\nb: [{'*a, ' * 20_000}]", "more than 10000 keys and values"),
        ("a: &a [*a]", "*'a' stands for something that holds it"),
        ("a: &a {b: {c: *a}}", "*'a' stands for something that holds it"),
        ("a: " + "[" * 100 + "]" * 100, "more than 32 levels"),
        ("a: " + "[" * 100_000, "more than 32 levels"),
        ("a: " + "{a: " * 400 + "1" + "}" * 400, "more than 32 levels"),
        ("? " * 50_000, "more than 32 levels"),
        ("a: " + LONG, "text must have at most 4096 characters"),
        (f"{LONG[:300]}: 1", "a key must be plain text of at most 200 characters, got 'xxxx"),
        ("a: " + "*" + LONG, "found undefined alias 'xxxx"),
    ],
    ids=lambda text: text[:20],
)
def test_yaml_bombs(study: dict[str, Any], refused: Refused, more: str, words: str) -> None:
    assert words in refused("sweep", written(study, more))


# What is no plain YAML


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("a: !!python/object/apply:os.system [exit]", "tags such as 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: !!binary aGk=", "tags such as 'tag:yaml.org,2002:binary' are not read"),
        ("a: !!set {b}", "tags such as"),
        ("a: !!bool maybe", "tags such as"),
        ("a: !!timestamp x", "tags such as"),
        ("a: !!int ''", "tags such as"),
        ("a: !mine x", "tags such as '!mine' are not read"),
        ("1: a", "a key must be plain text of at most 200 characters, got 1"),
        ("1.5: a", "a key must be plain text"),
        ("on: a", "a key must be plain text"),
        ("null: a", "a key must be plain text"),
        ("[1, 2]: a", "a key must be plain text"),
        ("{a: b}: a", "a key must be plain text"),
        ("'': a", "a key must be plain text"),
        ("'a..b': a", "a key must be plain text"),
        ('"a\\nb": a', "a key must be plain text"),
        ("a: 1\na: 2", "the key 'a' stands twice"),
        ('a: "\\0"', r"text must not hold the character '\x00'"),
        ('a: "\\ud800"', r"text must not hold the character '\ud800'"),
        ('a: "\\e[2J"', r"text must not hold the character '\x1b'"),
        ('a: "\\UFFFFFFFF"', "cannot be read"),
        ("a: 0x_", "cannot be read"),
        ('a: "\\U00110000"', "cannot be read"),
        ("a:\n\t- b", "found character '\\t' that cannot start any token"),
        ("a: =", "is not YAML"),
        ("%YAML 2.0\n---\na: 1", "is not YAML"),
        ("---\na: 1", "is not YAML"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_plain_yaml(study: dict[str, Any], refused: Refused, more: str, words: str) -> None:
    message = refused("sweep", written(study, more))
    assert words in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds nothing"),
        (b"- a", "holds a list"),
        (b"abc", "holds a str"),
        (b"5", "holds a int"),
        (b"name: \0", "is not YAML"),
        (b"name: \xe4", "it is not text in UTF-8"),
        ("name: a".encode("utf-16"), "it is not text in UTF-8"),
        (b"\x1f\x8b\x08\x00", "it is not text in UTF-8"),
        (b"x" * (LARGEST_FILE + 1), "must have at most 256 KiB"),
    ],
)
def test_files_that_hold_no_mapping(tmp_path: Path, refused: Refused, content: bytes, words: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_bytes(content)
    assert words in refused("sweep", str(file))


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_bytes(b"a: 1\n#".ljust(LARGEST_FILE, b"x"))
    assert read_mapping(str(file)) == (str(file), {"a": 1})


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("fifo", "is a device or pipe, not a file"),
        ("/dev/zero", "is a device or pipe, not a file"),
        ("/dev/stdin", "is a device or pipe, not a file"),
        (".", "is a folder, not a file"),
        ("sparse", "must have at most 256 KiB"),
    ],
)
def test_what_is_no_file_does_not_hang(tmp_path: Path, file: str, words: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 10**11)
    command = [sys.executable, "-m", "study.sweep", file]
    with subprocess.Popen(  # with a pipe as its input that stays open
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.wait(60) == 2
        finally:
            process.kill()
        assert process.stdout
        assert process.stderr
        assert process.stdout.read() == ""
        assert process.stderr.read() == f"{file}: {words}\n"


@pytest.mark.parametrize("file", [LONG, "x" * 300, "a\0b", "\udcff", "a/" * 3000])
def test_names_that_no_file_has(study: dict[str, Any], refused: Refused, file: str) -> None:
    assert "no such file, and no study of that name in search_spaces/" in refused("sweep", file)


def test_names_that_lead_nowhere(study: dict[str, Any], refused: Refused) -> None:
    assert "~nobody_of_that_name has no home folder here" in refused("sweep", "~nobody_of_that_name/x")
    assert "must name a place, got ''" in refused("sweep", "")


# Flags


@pytest.mark.parametrize(
    "setting",
    ["=", "a", "", "=1", ".=1", "a.=1", ".a=1", "a..b=1", "space.=1", " =1", "a\nb=1", "\udcff=1", f"{LONG}=1"],
    ids=lambda text: ascii(text[:10]),
)
def test_settings_of_another_form(study: dict[str, Any], refused: Refused, setting: str) -> None:
    assert "must be path=value, such as trial.epochs=3" in refused("sweep", written(study), "--set", setting)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (f"name={LONG}", "text must have at most 4096 characters, got 'xxx"),
        (f"name={LONG[:3000]}", "name: must have at most 100 characters, got 'xxx"),
        (f"trial.model.name={LONG[:3000]}", "trial.model.name: unknown name 'xxx"),
        (f"objective.metric={LONG[:3000]}", "objective.metric: unknown metric 'xxx"),
        (f"trial.dataset={{name: npz, path: {LONG[:300]}}}", "trial.dataset: "),
        (f"trial.epochs={'[' * 50_000}", "more than 32 levels"),
        (f"trial{'.a' * 90}=1", "trial.a: unknown key"),
        ("trial.epochs=!!python/name:os.system", "tags such as"),
        ("trial.epochs={a: 1, a: 2}", "the key 'a' stands twice"),
        ("trial.model.name=[a]", "unknown name"),
        ("trial.evaluation.further_attacks=[gan]", "known: gan_official, generator, square"),
    ],
    ids=lambda text: text[:20],
)
def test_settings_with_strange_values(study: dict[str, Any], refused: Refused, setting: str, words: str) -> None:
    message = refused("sweep", written(study), "--set", setting)
    assert words in message
    assert setting[:80] in message or message.startswith("study.yaml: ")


def test_a_password_in_a_long_setting_is_hidden(study: dict[str, Any], refused: Refused) -> None:
    for setting in (f"storage.path=s3://me:s3cret@{LONG[:3000]}", f"storage.path=s3://me:{'s3cret' * 500}@bucket"):
        assert "s3cret" not in refused("sweep", written(study), "--set", setting)


def test_more_flags_than_anybody_gives(study: dict[str, Any], refused: Refused) -> None:
    file = written(study)
    assert "--set: at most 100 of them" in refused("sweep", file, *["--set", "a=1"] * 101)
    assert "at most 1000 arguments, got 40002" in refused("sweep", file, *["--set", "a=1"] * 20_000)


@pytest.mark.parametrize(
    ("command", "first", "flags"),
    [
        ("sweep", "study.yaml", ["trials"]),
        ("confirm", "name", ["top", "seeds", "baselines"]),
        ("evaluate", "study:name", ["samples", "seed", "repeat", "surrogates", "certify", "eps", "views"]),
        ("table1", "--ci", ["seeds"]),
    ],
)
@pytest.mark.parametrize("number", ["10**5000", DIGITS, DIGITS[:4000], "10**9", str(10**30), "-1", "nan", "", LONG])
def test_number_flags(
    study: dict[str, Any], refused: Refused, command: str, first: str, flags: list[str], number: str
) -> None:
    written(study)
    for flag in flags:
        message = refused(command, first, f"--{flag}={number}")
        if flag not in ("eps", "views", "baselines"):  # these are read with the study's data
            assert f"--{flag}" in message
            assert "argument" in message or "must be" in message


@pytest.mark.parametrize(("flag", "most"), [("--seeds", 100), ("--top", 100)])
def test_more_trainings_than_anybody_pays_for(refused: Refused, flag: str, most: int) -> None:
    assert f"{flag}: must be in " in refused("confirm", "name", flag, str(most + 1))
    if flag == "--seeds":
        assert "--seeds: must be in 1..100, got 101" in refused("table1", flag, "101")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("report", [LONG]),
        ("report", ["name", "--format", LONG]),
        ("control", ["name", LONG]),
        ("control", ["name", "--storage", "x" * 300]),
        ("confirm", [LONG, "--tier", LONG]),
        ("confirm", ["name", "--storage", "x" * 300]),
        ("evaluate", [f"study:{LONG}"]),
        ("evaluate", [f"models:/{LONG}"]),
        ("evaluate", ["study:name", "--part", LONG]),
        ("table1", ["--models", *[LONG] * 3]),
        ("table1", ["--dry-run", "--set", f"{LONG}=1"]),
        ("report", ["name", "--storage", "x" * 300]),
        ("compare", ["x", f"--{LONG}"]),
    ],
)
def test_long_flags_of_other_commands(
    study: dict[str, Any], refused: Refused, command: str, arguments: list[str]
) -> None:
    refused(command, *arguments)


# Messages


def test_a_list_of_faults_ends_where_the_room_does() -> None:
    few = [f"fault {number}" for number in range(100)]
    assert listing(few) == "\n".join(few)
    text = listing([f"{number:06} " + "x" * 93 for number in range(5000)])
    *lines, last = text.splitlines()
    assert len(text.encode()) <= MESSAGE_BYTES + 20
    assert len(lines) == MESSAGE_BYTES // 101
    assert last == f"and {5000 - len(lines)} more"


def test_a_long_fault_keeps_its_ends_and_no_password() -> None:
    (line,) = listing([f"begin {LONG} end"]).splitlines()
    assert line.startswith("begin xxx")
    assert line.endswith("xxx end")
    assert "…" in line
    assert len(line.encode()) <= MESSAGE_BYTES
    assert "s3cret" not in listing([f"{LONG} postgresql://me:s3cret@host/db", "postgresql://me:s3cret@host"])
    assert listing(["\udcff é"]) == "\\udcff é"


def test_what_was_meant_is_looked_for_in_faults_that_are_shown() -> None:
    asked = []

    def hint(above: str) -> str:
        asked.append(above)
        return f"; nearest: '{above}.y'"

    error = SpecError([Fault("a", "unknown key", hint).under("trial")] * 1000)
    assert str(error).splitlines()[0] == "trial.a: unknown key; nearest: 'trial.y'"
    assert len(asked) < 100
