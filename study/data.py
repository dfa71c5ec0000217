"""Looks into a user's file of views, or writes it as an .npz: `python -m study.data inspect FILE`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING

from study.cli import Parser, exit_code_of, file_place, place

if TYPE_CHECKING:
    from ardmvc_core.data import DatasetConfig
    from ardmvc_core.data.inspection import Inspection

SHOWN = 8
"""Groups of equal samples, and classes, that the page lists."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = Parser(
        prog="python -m study.data",
        description="Looks into a user's file or folder of views (.mat, .npz, .npy, .csv, .parquet) and says what a "
        "study would make of it, or writes it as an .npz.",
        epilog="Exit codes: 0 done, 2 bad input.",
    )
    result.add_argument("action", choices=("inspect", "convert"), help="what to do with the file")
    result.add_argument("file", type=place, metavar="FILE", help="the file, or a folder of one file a view")
    result.add_argument("--out", type=file_place, metavar="FILE", help="the .npz that convert writes")
    result.add_argument(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting as in the study's trial.dataset, such as views=X, labels=gt, scale=standard, n_clusters=5; "
        "may be given again",
    )
    result.add_argument(
        "--eps", type=float, metavar="E", help="the ε that is shown in the data's own units; default: that of a study"
    )
    result.add_argument("--json", action="store_true", dest="json_output", help="what inspect finds as JSON on stdout")
    result.add_argument("--debug", action="store_true", help="tracebacks and debug messages")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: 0, or 2 for a file that no study can be run on."""
    return exit_code_of(_run, parser().parse_args(argv))


def _run(given: argparse.Namespace) -> int:
    from ardmvc_core.data.arrays import read_contents
    from ardmvc_core.data.inspection import held, inspect_file
    from study.spec.yaml_file import SpecError

    if (given.action == "convert") != (given.out is not None):
        raise SpecError([f"--out: names the file that convert writes, and inspect writes none, got {given.out}"])
    config = _config(given.file, given.sets)
    eps = config.source.eps if given.eps is None else given.eps
    if not 0 < eps <= 1:
        raise SpecError([f"--eps: must be in (0, 1], since scaled views are in [0, 1], got {eps:g}"])
    if given.action == "convert":
        return _convert(config, given)
    if not given.json_output:
        contents = read_contents(given.file)
        print(f"{contents.path.name} ({contents.kind}) holds")
        for name, text in held(contents):
            print(f"  {name}: {text}")
        for name in contents.left_alone:
            print(f"  {name}: no array, left alone")
        print()
    found = inspect_file(config, eps)
    print(json.dumps({"eps": eps, **asdict(found)}) if given.json_output else page(found, config, eps))
    return 0


def _config(file: str, sets: Sequence[str]) -> "DatasetConfig":
    """The data set that the flags describe. Raises: SpecError with every fault."""
    from study.spec.faults import Fault
    from study.spec.space import build_trial
    from study.spec.yaml_file import SpecError, split_setting
    from trainables.config import TrialConfig

    values = {}
    for setting in sets:
        try:
            key, value = split_setting(setting)
        except ValueError as error:
            raise SpecError([Fault("", str(error), source=f"--set {setting}")]) from None
        values[key] = value
    dataset = {"name": "file", "path": file, **values}
    config, faults = build_trial(TrialConfig, {"model": {"name": "comvc"}, "dataset": dataset}, {})
    if not isinstance(config, TrialConfig):
        raise SpecError([Fault(fault.path.removeprefix("dataset."), fault.message, source="--set") for fault in faults])
    return config.dataset


def page(found: "Inspection", config: "DatasetConfig", eps: float) -> str:
    """What was found, for people."""
    from study.reporting.text import text_columns

    lines = [
        f"{found.samples:,} samples (its {found.orientation}), {len(found.views)} views, {found.n_clusters} clusters",
        "",
    ]
    rows = [
        ["view", "array", "sample", "type", "least", "most", "zeros", "scale", "left out", "clipped", f"ε {eps:g} is"]
    ]
    for number, view in enumerate(found.views):
        shape, kind = " × ".join(map(str, view.shape[1:])), f"{'sparse ' if view.sparse else ''}{view.dtype}"
        ends, shares = (f"{view.least:.4g}", f"{view.most:.4g}"), (f"{view.zeros:.0%}", f"{view.clipped:.1%}")
        cells = [str(number), view.name, shape, kind, *ends, shares[0], view.scale, str(view.left_out), shares[1]]
        rows.append([*cells, view.reach])
    lines += [*text_columns(rows, last_is_text=True), ""]
    lines += [*_label_lines(found), *_duplicate_lines(found)]
    for protocol, parts in found.parts.items():
        lines.append(f"parts ({protocol}): {', '.join(f'{part} {count:,}' for part, count in parts.items())}")
    for part, count in found.absent.items():
        lines.append(f"  {part} has no sample of {count} of the {len(found.class_sizes)} classes")
    left_out = sum(view.left_out for view in found.views)
    lines += [
        "",
        "Each view fills [0, 1] with what its training part holds; values beyond that are clipped in other parts.",
        *([f"{left_out:,} features that do not vary in the training part are left out."] if left_out else []),
        "Attacks move every feature by at most ε of [0, 1], one that is 0 too.",
        f"In a study: trial.dataset: {_as_yaml(config)}",
    ]
    return "\n".join(lines)


def _label_lines(found: "Inspection") -> list[str]:
    if found.label_name is None:
        return [
            "no labels: accuracy, NMI and ARI cannot be told; a study chooses by agreement with a vote of plain models "
            "(docs/data.md)"
        ]
    sizes = sorted(found.class_sizes.values())
    numbers = list(found.class_sizes)
    shown = ", ".join(f"{number}: {found.class_sizes[number]:,}" for number in numbers[:SHOWN])
    more = f", and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    numbering = f"numbered {numbers[0]} … {numbers[-1]}"
    return [f"labels: {found.label_name}, {numbering}; {sizes[0]:,} to {sizes[-1]:,} samples a class ({shown}{more})"]


def _duplicate_lines(found: "Inspection") -> list[str]:
    if not found.duplicates:
        return ["duplicates: none; no two samples are equal in every view"]
    samples = sum(map(len, found.duplicates))
    shown = "; ".join(" = ".join(map(str, group[:SHOWN])) for group in found.duplicates[:SHOWN])
    more = f"; and {len(found.duplicates) - SHOWN} more groups" if len(found.duplicates) > SHOWN else ""
    across = f"; {found.across_parts} of the groups lie in more than one part" if found.across_parts else ""
    return [f"duplicates: {samples:,} samples equal another one in every view, counted from 0: {shown}{more}{across}"]


def _as_yaml(config: "DatasetConfig") -> str:
    import yaml

    given = {each.name: getattr(config, each.name) for each in fields(config)}
    changed = {each.name: given[each.name] for each in fields(config) if given[each.name] != each.default}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}
    text: str = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10_000)
    return text.strip()


def _convert(config: "DatasetConfig", given: argparse.Namespace) -> int:
    import io

    import numpy as np

    from ardmvc_core.data.user_file import read_and_fit
    from study.spec.yaml_file import SpecError
    from trainables.files import write_whole

    data, _ = read_and_fit(config)
    arrays = {
        f"view_{number}": view if isinstance(view, np.ndarray) else view.toarray()
        for number, view in enumerate(data.views.values())
    }
    if data.labels is None:
        arrays["n_clusters"] = np.array(data.n_clusters)
    else:
        arrays["labels"] = np.array(data.classes)[data.labels]
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    try:
        write_whole(given.out, buffer.getvalue())
    except OSError as error:
        raise SpecError([f"--out: {given.out} cannot be written: {error.strerror}"]) from error
    kept = replace(config, path=str(given.out), views=None, labels=None, n_clusters=None, orientation="rows")
    print(f"{given.out}: {len(data):,} samples, {len(data.views)} views as they are in the file, not scaled")
    print(f"In a study: trial.dataset: {_as_yaml(kept)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
