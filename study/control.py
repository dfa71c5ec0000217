"""Steers a running study through its database, says how it stands, backs it up: `python -m study.control NAME pause`.

Wishes are read by the driver every few seconds, wherever it runs; this command needs nothing but the database.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from study.cli import Parser, exit_code_of, refuse
from study.ranking.objectives import goals, spread
from study.ranking.ranking import rank, scores, since_improvement
from study.records import Goal, TrialRecord
from study.spec.yaml_file import SpecError

if TYPE_CHECKING:
    from study.database.ledger import Ledger

WISHES, COPIES = ("pause", "resume", "stop"), ("backup", "restore")
ACTIONS = ("status", *WISHES, *COPIES)
State = Literal["running", "pausing", "paused", "stopping", "finished", "not running", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Driver:
    """Who runs the study, or was the last to."""

    host: str
    pid: int
    heartbeat: float
    """Seconds since it was last heard of, by this machine's clock."""
    alive: bool | None
    """None: it runs on another machine and has not been heard of lately."""


@dataclass(frozen=True, kw_only=True)
class OpenTrial:
    """A trial that has no final state yet."""

    number: int
    at_work: bool
    """Whether a worker has it; the others wait to be given out."""
    round: int
    """Rounds done."""
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """A study at one moment."""

    study: str
    state: State
    wish: str
    """What is asked of the driver: "pause", "stop", or ""."""
    driver: Driver | None
    trials: dict[str, int]
    """State → number of trials; `budget` is limits.trials."""
    failures: dict[str, int]
    """`count` of failed trials, and `limit`."""
    hours: dict[str, float | None]
    """`used` by all drivers, and `limit`."""
    patience: dict[str, int | None]
    """Finished trials `since` the best one, and `limit`."""
    best: dict[str, Any] | None
    """`number`, and the `metrics` that are the study's objectives, with their `spread` over seeds."""
    open: tuple[OpenTrial, ...]


def status_of(ledger: "Ledger") -> Status:
    """Reads the study's state; writes nothing."""
    spec, records, wish, driver = ledger.spec, ledger.records(), ledger.control, _driver(ledger)
    limits, objectives = spec.get("limits", {}), goals(spec)
    counts = Counter(record.state.lower() for record in records)
    budget = int(limits.get("trials", len(records)))
    alive = driver.alive if driver else False
    at_work = {record.number for record in records if record.state == "RUNNING" and alive is not False}
    complete = len(records) >= budget and all(record.finished for record in records)
    state: State = "finished" if complete else "unknown" if alive is None else "not running"
    if alive:
        pausing: State = "pausing" if at_work else "paused"
        state = pausing if wish == "pause" else "stopping" if wish == "stop" else "running"
    elif wish == "stop":
        wish = ""  # whoever it was meant for is gone, and the next driver does not heed it
    ranked = [row.record for row in rank(records, objectives) if row.rank is not None] if objectives else []
    return Status(
        study=ledger.name,
        state=state,
        wish=wish,
        driver=driver,
        trials={"budget": budget, **{s: counts[s] for s in ("complete", "pruned", "fail", "running", "waiting")}},
        failures={"count": counts["fail"], "limit": int(limits.get("failures", 0))},
        hours={"used": ledger.seconds / 3600, "limit": limits.get("hours")},
        patience={"since": since_improvement(records, objectives), "limit": limits.get("patience")},
        best=_best(ranked[0], objectives) if ranked else None,
        open=tuple(
            OpenTrial(number=r.number, at_work=r.number in at_work, round=r.round, rounds=r.rounds)
            for r in records
            if not r.finished
        ),
    )


def _best(record: TrialRecord, objectives: Sequence[Goal]) -> dict[str, Any]:
    metrics = [objective.metric for objective in objectives]
    return {
        "number": record.number,
        "metrics": dict(zip(metrics, scores(record, objectives) or (), strict=True)),
        "spread": {metric: spread(record, metric) for metric in metrics},
    }


def _driver(ledger: "Ledger") -> Driver | None:
    from study.database.lease import STALE_SECONDS

    holder = ledger.holder()
    if holder is None:
        return None
    age = time.time() - holder["heartbeat"]
    alive = holder["alive"]
    if alive is None and abs(age) < STALE_SECONDS:
        alive = True
    return Driver(host=holder["host"], pid=holder["pid"], heartbeat=age, alive=alive)


def page(status: Status) -> str:
    """The status for people, one subject a line."""
    kinds = {"complete": "complete", "pruned": "pruned", "fail": "failed", "running": "running", "waiting": "waiting"}
    counts = [f"{status.trials[kind]} {word}" for kind, word in kinds.items() if status.trials[kind]]
    created, limit = sum(status.trials[kind] for kind in kinds), status.hours["limit"]
    lines = [
        ("study", status.study),
        ("state", _state(status)),
        ("driver", _who(status.driver)),
        ("trials", f"{created} of {status.trials['budget']}" + (f": {', '.join(counts)}" if counts else "")),
        ("failures", f"{status.failures['count']}; {status.failures['limit']} are put up with"),
        ("hours", f"{status.hours['used']:.2f} used" + ("" if limit is None else f" of {limit:g}")),
    ]
    if patience := status.patience["limit"]:
        lines.append(("patience", f"{status.patience['since']} of {patience} trials without a better one"))
    lines.append(("best", _best_text(status.best)))
    for place, one in enumerate(status.open):
        waits = "" if one.at_work else ", waits"
        lines.append(("" if place else "open", f"trial {one.number}: round {one.round}/{one.rounds}{waits}"))
    return "\n".join(f"{name:9} {text}" for name, text in lines)


def _best_text(best: dict[str, Any] | None) -> str:
    if best is None:
        return "no complete trial yet"
    spreads = {metric: "" if own is None else f" ± {own:.3f}" for metric, own in best["spread"].items()}
    shown = [f"{metric} {own:.3f}{spreads[metric]}" for metric, own in best["metrics"].items()]
    return f"trial {best['number']}: {', '.join(shown)}{' (one of the front)' if len(shown) > 1 else ''}"


def _state(status: Status) -> str:
    texts: dict[State, str] = {
        "running": "running",
        "pausing": "pausing: open trials end their round",
        "paused": f"paused, until `python -m study.control {status.study} resume`",
        "stopping": "stopping: open trials end their round",
        "finished": "finished",
        "not running": "not running; its command goes on with it",
        "unknown": "unknown: its driver has not been heard of",
    }
    kept = "; a pause is kept for its next driver" if status.wish == "pause" and status.state == "not running" else ""
    return texts[status.state] + kept


def _who(driver: Driver | None) -> str:
    if driver is None:
        return "nobody"
    who = f"process {driver.pid} on {driver.host}"
    heard = f"last heard of {_age(driver.heartbeat)}"
    if driver.alive is None:
        return f"{who}, {heard}; if it is gone, add --takeover to the study's command"
    return f"{who}, {heard}" if driver.alive else f"{who} is gone, {heard}"


def _age(seconds: float) -> str:
    if seconds < 0:
        return "at a time that is still to come on this machine's clock"
    return f"{seconds:.0f} s ago" if seconds < 100 else f"{seconds / 60:.0f} min ago"


def act(ledger: "Ledger", action: str) -> str:
    """Asks the driver for something. Returns: what comes of it, in a sentence."""
    status = status_of(ledger)
    return {"pause": _pause, "resume": _resume, "stop": _stop}[action](ledger, status)


def _pause(ledger: "Ledger", status: Status) -> str:
    name, alive = f"study {status.study!r}", status.driver is not None and status.driver.alive is not False
    if status.state == "finished" and not alive:
        return f"{name} is finished: there is nothing to pause"
    if status.wish == "pause":
        return f"{name} is asked to pause already"
    ledger.set_control("pause")
    if not alive:
        return f"nobody runs {name}: its next driver starts paused"
    if status.state == "unknown":
        return f"{name} pauses if its driver, {_who(status.driver)}, is still at work; otherwise the next starts paused"
    return f"{name} pauses: {_open_trials(status)}"


def _resume(ledger: "Ledger", status: Status) -> str:
    name = f"study {status.study!r}"
    if status.wish == "stop":
        return f"{name} is stopping, which is not taken back: its command goes on with it afterwards"
    if status.wish != "pause":
        return f"{name} is not paused"
    ledger.set_control("")
    if status.driver is not None and status.driver.alive is not False:
        return f"{name} goes on"
    return f"the pause is over, but nobody runs {name}: its command goes on with it"


def _stop(ledger: "Ledger", status: Status) -> str:
    name = f"study {status.study!r}"
    if status.driver is None or status.driver.alive is False:
        kept = "; it is still paused for its next driver" if status.wish == "pause" else ""
        return f"nobody runs {name}: there is nothing to stop{kept}"
    if status.wish == "stop":
        return f"{name} is asked to stop already"
    ledger.set_control("stop")
    if status.state == "unknown":
        return f"{name} stops if its driver, {_who(status.driver)}, is still at work"
    return f"{name} stops: {_open_trials(status)}, then its driver ends; its command goes on with it"


def _open_trials(status: Status) -> str:
    numbers = [str(one.number) for one in status.open if one.at_work]
    return f"open trials ({', '.join(numbers)}) end the round they are in" if numbers else "no trial is at work"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(
        prog="python -m study.control",
        description="Pauses, resumes or stops a running study, from any machine that reaches its database; says how "
        "it stands; writes it to a file and brings it back.",
        epilog="Exit codes: 0 done, 2 bad input.",
    )
    result.add_argument("name", metavar="NAME", help="name of the study")
    result.add_argument(
        "action",
        metavar="ACTION",
        nargs="?",
        default="status",
        help="status (default); pause: no new trials, open ones end their round and wait, the driver stays; resume; "
        "stop: open rounds end, then the driver; backup: writes FILE, whether the study runs or not; restore: brings "
        "the study back from FILE, into a database that does not have it",
    )
    result.add_argument("file", metavar="FILE", nargs="?", type=Path, help="of backup, a new file, and of restore")
    result.add_argument(
        "--storage", default="runs", metavar="DIR", help="the study's storage.path; default: %(default)s"
    )
    result.add_argument("--json", action="store_true", dest="json_output", help="the status as JSON on stdout")
    result.add_argument("--debug", action="store_true", help="tracebacks and debug messages")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: 0, or 2 for an unknown study or action, a database that is not there, or a FILE that will not do."""
    return exit_code_of(_run, parser().parse_args(argv))


def _run(given: argparse.Namespace) -> int:
    if given.action not in ACTIONS:
        raise SpecError([f"unknown action {given.action!r}; there are {', '.join(ACTIONS)}"])
    if given.action in COPIES and given.file is None:
        raise SpecError([f"{given.action} needs a file: python -m study.control {given.name} {given.action} FILE"])
    if given.action not in COPIES and given.file is not None:
        raise SpecError([f"{given.action} takes no file, got {str(given.file)!r}"])

    from study.database.backup import back_up, restore
    from study.database.ledger import Ledger, LedgerError, database_fault

    try:
        message = restore(given.file, given.name, given.storage) if given.action == "restore" else ""
        ledger = Ledger.open_existing(given.name, storage_path=given.storage)
        if given.action == "backup":
            message = back_up(ledger, given.file)
        elif given.action in WISHES:
            message = act(ledger, given.action)
        if given.json_output:
            print(json.dumps({**asdict(status_of(ledger)), "message": message}))
        else:
            print(message or page(status_of(ledger)))
    except LedgerError as error:
        return refuse(error, debug=given.debug)
    except Exception as error:
        if not (fault := database_fault(error)):
            raise
        return refuse(LedgerError(fault), debug=given.debug)
    return 0


if __name__ == "__main__":
    sys.exit(main())
