"""Steers a running study through its database, says how it stands, backs it up: `python -m study.control NAME pause`.

Wishes are read by the driver every few seconds, wherever it runs; this command needs nothing but the database.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.cli import Parser, add_storage_flag, exit_code_of, file_place
from study.database.status import Driver, State, Status, status_of
from study.spec.yaml_file import SpecError

if TYPE_CHECKING:
    from study.database.ledger import Ledger

WISHES, COPIES = ("pause", "resume", "stop"), ("backup", "restore")
ACTIONS = ("status", *WISHES, "enqueue", *COPIES)


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


def enqueue(ledger: "Ledger", words: Sequence[str]) -> str:
    """Asks for a point of the space: PATH=VALUE of what differs from the trial as written.

    Returns: what comes of it, in a sentence. Raises: SpecError if it is no point, or no trial is left to be made.
    """
    from study.spec.study_spec import StudySpec

    spec = StudySpec.model_validate(ledger.spec)
    point = spec.point_from(words)
    begun, queued = len(ledger.records()), len(ledger.queued())
    if begun + queued >= ledger.budget:
        waits = f", and {queued} points wait" if queued else ""
        raise SpecError(
            [f"study {spec.name!r} has begun {begun} of its {ledger.budget} trials{waits}: raise limits.trials first"]
        )
    ledger.enqueue(point)
    return f"study {spec.name!r} runs {{{', '.join(f'{path}: {value}' for path, value in point.items())}}} next"


def _open_trials(status: Status) -> str:
    numbers = [str(one.number) for one in status.open if one.at_work]
    return f"open trials ({', '.join(numbers)}) end the round they are in" if numbers else "no trial is at work"


def _word(text: str) -> str | Path:
    return text if "=" in text else file_place(text)


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
        "stop: open rounds end, then the driver; enqueue: one of the next trials is the point PATH=VALUE …; backup: "
        "writes FILE, whether the study runs or not; restore: brings the study back from FILE, into a database that "
        "does not have it",
    )
    result.add_argument(
        "words",
        metavar="FILE | PATH=VALUE …",
        nargs="*",
        type=_word,
        help="of backup, a new file, and of restore; of enqueue a point",
    )
    add_storage_flag(result)
    result.add_argument("--json", action="store_true", dest="json_output", help="the status as JSON on stdout")
    result.add_argument("--debug", action="store_true", help="tracebacks and debug messages")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: 0, or 2 for an unknown study or action, a database that is not there, or a FILE that will not do."""
    return exit_code_of(_run, parser().parse_args(argv))


def _run(given: argparse.Namespace) -> int:
    if given.action not in ACTIONS:
        raise SpecError([f"unknown action {given.action!r}; there are {', '.join(ACTIONS)}"])
    words, name = given.words, f"python -m study.control {given.name}"
    if given.action in COPIES and len(words) != 1:
        raise SpecError([f"{given.action} needs a file: {name} {given.action} FILE"])
    if given.action == "enqueue" and not words:
        raise SpecError([f"enqueue needs a point of the space: {name} enqueue PATH=VALUE …"])
    if given.action not in (*COPIES, "enqueue") and words:
        raise SpecError([f"{given.action} takes no file, got {str(words[0])!r}"])
    file = words[0] if given.action in COPIES else None

    from study.database.backup import back_up, restore
    from study.database.ledger import Ledger

    message = "" if given.action != "restore" or file is None else restore(file, given.name, given.storage)
    ledger = Ledger.open_existing(given.name, storage_path=given.storage)
    if given.action == "backup" and file is not None:
        message = back_up(ledger, file)
    elif given.action == "enqueue":
        message = enqueue(ledger, words)
    elif given.action in WISHES:
        message = act(ledger, given.action)
    if given.json_output:
        print(json.dumps({**asdict(status_of(ledger)), "message": message}))
    else:
        print(message or page(status_of(ledger)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
