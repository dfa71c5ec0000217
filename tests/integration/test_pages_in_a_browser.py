"""MLflow's pages as `make ui` serves them, clicked through in a real browser."""

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, eventually

from study.records import TrialRecord
from study.tracking.tracker import MLflowTracker, default_uri

SCORES = (0.3, 0.7, 0.5)
SPEC = {
    "name": "demo",
    "objective": {"metric": "robust/acc", "mode": "max"},
    "space": {"model.adversarial_weight": {"log_uniform": [0.01, 10]}},
    "limits": {"trials": len(SCORES)},
    "trial": {"model": {"name": "ar_dmvc"}, "dataset": {"name": "noisy_digits"}},
}


def record(number: int, folder: Path) -> TrialRecord:
    """A complete trial, with the arrays that its pictures are drawn from."""
    checkpoint = folder / f"trial_{number}"
    checkpoint.mkdir(parents=True)
    clusters, table = np.array([0, 1, 0, 1]), np.array([[2, 0], [0, 2]])
    arrays = {"clusters/clean": clusters, "clusters/gan": 1 - clusters, "confusion/class_clean": table}
    np.savez(checkpoint / "evaluation.npz", allow_pickle=False, **arrays, **{"confusion/class_gan": table[::-1]})
    weight = 0.1 * (number + 1)
    metrics = {"clean/acc": 0.9, "robust/acc": SCORES[number]}
    return TrialRecord(
        number=number,
        state="COMPLETE",
        values=(SCORES[number],),
        overrides={"model.adversarial_weight": weight},
        config={"model": {"adversarial_weight": weight}},
        round=3,
        rounds=3,
        metrics=metrics,
        history=((3, 3000, metrics),),
        checkpoint=str(checkpoint),
        ended=4000,
    )


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The address that `make ui` serves, and the link to the study that it tells."""
    tracker = MLflowTracker(SPEC, uri=default_uri(str(tmp_path)), study_name="demo")
    tracker.reconcile([record(number, tmp_path) for number in range(len(SCORES))])
    tracker.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "MLFLOW_PORT": str(port), "MLFLOW_WORKERS": "1"}
    env.pop("MLFLOW_TRACKING_URI", None)
    log = tmp_path / "ui.log"
    with log.open("w") as stream:
        command = [sys.executable, "-m", "study.ui", "--storage", str(tmp_path)]
        server = subprocess.Popen(command, env=env, stdout=stream, stderr=stream, start_new_session=True)
    address = f"http://127.0.0.1:{port}/"

    def answers() -> bool:
        assert server.poll() is None, log.read_text()
        try:
            return bool(urllib.request.urlopen(address + "health", timeout=10).status == 200)
        except OSError:
            return False

    try:
        eventually(answers, 300)
        links = [line.removeprefix("demo: ") for line in log.read_text().splitlines() if line.startswith("demo: ")]
        yield address, links[0]
    finally:
        os.killpg(server.pid, 15)
        server.wait()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if not shutil.which("chromedriver"):
        pytest.skip("no chromedriver")
    opened = Browser(tmp_path)
    yield opened
    opened.close()


def trials_shown(browser: Browser) -> list[str]:
    """Names of the runs in the table, from the top."""
    script = "return [...document.querySelectorAll('a')].map(a => a.innerText.trim())"
    return [text for text in browser.run(script) if text.startswith("trial 0")]


@pytest.mark.browser
def test_from_the_list_of_experiments_to_a_picture_of_a_trial(pages: tuple[str, str], browser: Browser) -> None:
    browser.open(pages[0] + "#/experiments")
    browser.click("a", "demo")
    browser.click("a", "Trials, best first")
    eventually(lambda: trials_shown(browser) == ["trial 001", "trial 002", "trial 000"], 60)
    shown = browser.text()
    for column in ("robust/acc", "clean/acc", "model.adversarial_weight"):
        assert column in shown, column
    browser.click("a", "trial 001")
    browser.click("[role=tab], a, button", "Artifacts")
    browser.click("*", "figures")
    browser.click("*", "confusion.png")
    picture = "return [...document.images].some(i => i.naturalWidth > 300)"
    eventually(lambda: browser.run(picture), 60)


@pytest.mark.browser
def test_the_link_that_is_printed_leads_to_the_trials(pages: tuple[str, str], browser: Browser) -> None:
    assert pages[1].startswith(pages[0] + "#/experiments/")
    browser.open(pages[1])
    eventually(lambda: trials_shown(browser) == ["trial 001", "trial 002", "trial 000"], 60)
    assert "Sort: robust/acc" in browser.text()
