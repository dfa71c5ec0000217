"""Every command that a page names is run, cut down to seconds: in one folder, with small studies of the names it gives.

Its flags are taken as they stand; what cuts it down comes behind them.
"""

import re
import shlex
from collections.abc import Callable
from glob import glob
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from study.database.ledger import Ledger
from study.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
COMMAND = re.compile(rf"(?:python -m study\.|\bardmvc )({'|'.join(COMMANDS)})\b((?:[^\n`;&')\\]|\\\||\\\n)*)")
NEEDS = ("--address auto", "ui", "--unblind")
"""What this test has not, a running Ray cluster, a browser, and time for `standard` on every trial: parsed here, run in
test_real_clusters, test_pages_in_a_browser and test_data_identity."""


LONG = ("compare", "confirm", "evaluate", "table1")


def settings(*given: str) -> list[str]:
    return [word for each in given for word in ("--set", each)]


SHORT = settings("trial.epochs=1", "trial.dataset.samples=200")
ONE_CORE = settings("resources.gpu=0", "resources.cpu=1", "limits.concurrent=1")
PROBE = settings(
    "trial.evaluate_every=12", "trial.repeats=1", "trial.evaluation.tier=probe", "trial.evaluation.samples=20"
)
GAN = settings("trial.evaluation.official.epochs=1")
CUT = {
    "sweep": [*SHORT, *ONE_CORE, *PROBE, "--trials", "3"],
    "confirm": ["--top", "1", "--seeds", "2", "--tier", "probe"],
    "table1": ["--models", "comvc", "--datasets", "noisy_mnist", "--seeds", "1", *SHORT, *GAN, *ONE_CORE[:4]],
    "evaluate": ["--tier", "probe", "--samples", "20", "--curves", "none", "--checks", "quick", "--no-other-threats"],
}
VOTED = [*settings("trial.epochs=12"), *ONE_CORE, *PROBE, "--trials", "8"]
"""Of a study without labels: long enough for its plain models to pass their guards."""


def commands() -> list[tuple[str, str, str]]:
    """Page, command and what follows it; the first of alternatives, without what is optional."""
    found = []
    for page in PAGES:
        for name, rest in COMMAND.findall(page.read_text()):
            line = re.sub(r"\[[^\]]*\]", "", re.sub(r"\$\(.*", "NOW", rest).replace("\\|", "|").replace("\\\n", " "))
            line = re.split(r" \| |[.,:]$|[|](?=\s|$)|  | > ", line.replace("$kind", "csv").replace("…", "X"))[0]
            found.append((page.name, name, re.sub(r"\|[\w|]*", "", line).strip()))
    return sorted(set(found))


def one_each() -> list[object]:
    """What is run: each command once, those of minutes marked as slow."""
    found = {(name, rest): page for page, name, rest in commands()}
    return [
        pytest.param(
            page,
            name,
            rest,
            marks=[pytest.mark.slow]
            * (name in LONG or re.search("strict|mnist|--from", filled(name, rest)) is not None),
        )
        for (name, rest), page in found.items()
    ]


def filled(name: str, rest: str) -> str:
    """The command with what the page leaves open."""
    study = "ar_dmvc_am_strict" if "--unblind" in rest or "--label-probe" in rest else "ar_dmvc_am"
    file = {"control": "FILE.db", "data": "handwritten.mat"}.get(name, f"{study}.yaml")
    names = {"FILE": file, "OLD": study, "X": f"study:{study}/1"}
    names |= {"NAME": study, "REPORT": "runs/evaluations/*", "NEW": "runs"}
    line = re.sub(rf"\b({'|'.join(names)})\b", lambda found: names[found[1]], rest)
    return re.sub(r"study:(\w+)/\d+", r"study:\1/1", line).replace("/backups/", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command in the folder; what it printed. It must end with 0, but for a label probe without labels, which
    names samples to label."""
    monkeypatch.chdir(folder)
    for variable in ("ARDMVC_STUDY_DB", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    (folder / "LABELS.csv").write_text("sample,label\n")
    views = np.empty((6, 1), dtype=object)
    views[:, 0] = [np.random.default_rng(width).random((400, width)) for width in (216, 76, 64, 6, 240, 47)]
    scipy.io.savemat(folder / "handwritten.mat", {"X": views, "y": np.arange(400) % 10 + 1})

    def run_one(name: str, *words: str) -> str:
        code = import_module(f"study.{name}").main(words)
        said = capsys.readouterr()
        assert code == (2 if "--label-probe" in words else 0), f"{name} {shlex.join(words)}\n{said.err}"
        return said.out + said.err

    return run_one


def shorter(name: str, about: str) -> list[str]:
    """What cuts a command down. Args: about: its words, or the study that it names."""
    return VOTED if name == "sweep" and "strict" in about else CUT.get(name, [])


def prepare(run: Callable[..., str], name: str, words: list[str]) -> None:
    """Makes what the command reads, unless it is there: the study that it names, two reports, a copy."""
    read = "runs/ar_dmvc_am" if name in ("compare", "studies") else " ".join(words)
    for study in () if name == "sweep" and "--from" not in words else re.findall(r"\bar_dmvc_am\w*", read):
        if not Path("runs", study).is_dir():
            run("sweep", f"{study}.yaml", *shorter("sweep", study))
    if name == "compare" and not Path("runs/evaluations").is_dir():
        for trial in (0, 1):
            run("evaluate", f"study:ar_dmvc_am/{trial}", *CUT["evaluate"])
    if "enqueue" in words:  # of a study that has a trial left
        Ledger.open_existing(words[0])._study.set_user_attr("budget", 4)
    if "restore" in words and not Path(words[-1]).exists():
        run("control", words[0], "backup", words[-1])


@pytest.mark.parametrize(("page", "name", "rest"), one_each())
def test_a_command_of_a_page_runs(
    page: str, name: str, rest: str, run: Callable[..., str], request: pytest.FixtureRequest
) -> None:
    words = shlex.split(filled(name, rest))
    if name == "table1" or "mnist" in rest:
        request.getfixturevalue("data_root")
    parser = import_module(f"study.{name}").parser()
    if not words and name not in ("studies", "ui", "table1"):
        return  # the command's name alone
    parser.parse_args(words)
    if name in NEEDS or any(need in rest for need in NEEDS):
        return
    prepare(run, name, words)
    words = [each for word in words for each in (sorted(glob(word)) if "*" in word else [word])]
    words = list(dict.fromkeys(words)) if name == "compare" else words
    if "backup" in words:
        Path(words[-1]).unlink(missing_ok=True)
    extra = {"--from": settings("name=second"), "restore": ["--storage", "restored"]}
    more = [each for word in words for each in extra.get(word, [])]
    assert run(name, *words, *shorter(name, rest), *more).strip()


def test_pages_name_commands() -> None:
    assert set(COMMANDS) <= {name for _, name, _ in commands()}
    assert len(commands()) > 30
