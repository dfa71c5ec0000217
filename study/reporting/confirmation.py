"""What a confirmation found: means over fresh seeds, paired differences, and how much the search flattered."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ardmvc_core.evaluation.intervals import (
    Interval,
    PairedDifference,
    expected_maximum_of,
    holm,
    paired_difference,
    probability_of_improvement,
    share_interval,
    t_interval,
)
from study.ranking.label_free import NOT_CORRECTNESS, shows_pra
from study.ranking.summary import LEAST_P, short_names, show
from study.records import TrialRecord
from study.reporting.text import markdown_table, plain_json, three_decimals, use_of_part
from study.reporting.trial_figures import load_arrays
from study.spec.study_spec import StudySpec
from trainables.saved_trial import ARRAYS_FILE, parsing
from trainables.storage import write_file

METRICS = ("robust/acc", "clean/acc", "robust/flip", "robust/kappa")
METRIC = "robust/acc"


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """One configuration, trained anew."""

    trial: int
    """Its number in the search."""
    baseline: bool
    overrides: Mapping[str, Any]
    searched: float | None
    """`robust/acc` of the search, on the tuning part with its own attacks."""
    means: Mapping[str, Interval]
    """By metric; over seeds and samples where the samples were stored, kappa over seeds."""
    seeds: tuple[float, ...]
    """`robust/acc` of each fresh seed."""
    right: NDArray[np.bool_] | None = None
    """(S, N) whether each sample is right in the worst case, by seed; None in confirmations of before it was stored."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finalist against a baseline, on the same seeds and samples."""

    trial: int
    baseline: int
    difference: PairedDifference
    adjusted_p: float
    """After Holm's correction over all comparisons of the confirmation."""
    improves: float
    """Share of the seeds on which the finalist is better."""
    sampled: bool
    """Whether the error of the samples is in it, and not that of the seeds alone."""


def finalists_of(chosen: Sequence[TrialRecord], found: Sequence[TrialRecord]) -> list[Finalist]:
    """What each configuration scored; those whose training failed are left out.

    Args: chosen: trials of the search, in the order of the confirmation's trials. found: the confirmation's trials.
    Raises: DamagedCheckpoint.
    """
    by_number = {record.number: record for record in found}
    result = []
    for number, record in enumerate(chosen):
        fresh = by_number.get(number)
        if fresh is None or fresh.state != "COMPLETE":
            continue
        with parsing(fresh.checkpoint, ARRAYS_FILE):
            arrays = load_arrays(fresh.checkpoint)
            seeds, samples = _below("seeds/", arrays), _below("samples/", arrays)
            result.append(
                Finalist(
                    trial=record.number,
                    baseline=record.baseline,
                    overrides=record.overrides,
                    searched=record.metrics.get(METRIC),
                    means={
                        # Kappa may be negative.
                        name: (t_interval if name == "robust/kappa" else share_interval)(samples.get(name, seeds[name]))
                        for name in METRICS
                        if name in seeds
                    },
                    seeds=tuple(float(value) for value in seeds[METRIC]),
                    right=samples.get(METRIC),
                )
            )
    return result


def _below(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def comparisons(finalists: Sequence[Finalist]) -> list[Comparison]:
    """Every finalist against every baseline, paired by seed and, where both have stored them, by sample."""
    baselines = [one for one in finalists if one.baseline]
    pairs = [(one, other) for other in baselines for one in finalists if not one.baseline]
    differences = [_difference(one, other) for one, other in pairs]
    adjusted = holm([difference.p_value for difference in differences])
    return [
        Comparison(
            trial=one.trial,
            baseline=other.trial,
            difference=difference,
            adjusted_p=float(p),
            improves=probability_of_improvement(one.seeds, other.seeds),
            sampled=one.right is not None and other.right is not None,
        )
        for (one, other), difference, p in zip(pairs, differences, adjusted, strict=True)
    ]


def _difference(one: Finalist, other: Finalist) -> PairedDifference:
    if one.right is None or other.right is None:
        return paired_difference(one.seeds, other.seeds)
    return paired_difference(one.right, other.right)


def show_confirmation(
    study: str,
    spec: StudySpec,
    chosen: Sequence[TrialRecord],
    found: Sequence[TrialRecord],
    *,
    uses: Sequence[str],
    folder: str,
    searched_trials: int,
) -> str:
    """The confirmation as Markdown; also written to `confirm.md` and `confirm.json` in the folder.

    Args: uses: names of all uses of its score part, oldest first; the confirmation is one of them.
    """
    finalists = finalists_of(chosen, found)
    compared = comparisons(finalists)
    text = confirmation_page(study, spec, finalists, compared, uses=uses, searched_trials=searched_trials)
    if shows_pra(chosen):
        text = f"{text}\n\nThe search had PRA. {NOT_CORRECTNESS}"
    # Each sample's outcomes stay in the trials' arrays; here it is said of how many the intervals are.
    told = [
        {name: value for name, value in asdict(one).items() if name != "right"}
        | {"samples": None if one.right is None else one.right.shape[1]}
        for one in finalists
    ]
    facts = {"finalists": told, "comparisons": [asdict(one) for one in compared]}
    whole = {"study": study, "score_uses": list(uses), **facts}
    write_file(folder, "confirm.md", f"{text}\n".encode())
    write_file(folder, "confirm.json", json.dumps(plain_json(whole), indent=1).encode())
    return text


def confirmation_page(
    study: str,
    spec: StudySpec,
    finalists: Sequence[Finalist],
    compared: Sequence[Comparison],
    *,
    uses: Sequence[str],
    searched_trials: int,
) -> str:
    """Tables for people."""
    trial = spec.trial
    lines = [
        f"# {study}, confirmed",
        "",
        f"{trial['repeats']} fresh seeds each; scored on the score part under tier `{trial['evaluation']['tier']}`; "
        f"{use_of_part(spec.name, uses)}. {_doubt(finalists)}",
        "",
        _table(finalists),
        "",
        *_differences(compared),
        *_shrinkage(finalists, searched_trials),
    ]
    return "\n".join(lines).rstrip()


def _doubt(finalists: Sequence[Finalist]) -> str:
    """What the intervals are over."""
    missing = [str(one.trial) for one in finalists if one.right is None]
    kind = "over seeds" if len(missing) == len(finalists) else "over seeds and samples (kappa: over seeds)"
    note = (
        f" Trials {', '.join(missing)} were confirmed before their samples were stored: the sampling error is not in "
        "their intervals and differences, which are over seeds."
    )
    return f"Mean and 95 % interval {kind}.{note if missing else ''}"


def _table(finalists: Sequence[Finalist]) -> str:
    names = short_names(sorted({path for one in finalists for path in one.overrides}))
    metrics = [name for name in METRICS if any(name in one.means for one in finalists)]
    rows = [
        [
            f"{one.trial}{' (baseline)' * one.baseline}",
            *(show(one.overrides.get(path)) for path in names),
            *(f"{one.means[name]:.3f}" if name in one.means else "" for name in metrics),
            three_decimals(one.searched),
        ]
        for one in finalists
    ]
    return markdown_table(["trial", *names.values(), *metrics, f"{METRIC} in the search"], rows)


def _differences(compared: Sequence[Comparison]) -> list[str]:
    if not compared:
        return []
    rows = [
        [
            str(one.trial),
            str(one.baseline),
            f"{one.difference.difference:+.3f}",
            f"{one.adjusted_p:.3f}" if one.adjusted_p >= LEAST_P else f"< {LEAST_P}",
            f"{one.improves:.0%} of the seeds",
        ]
        for one in compared
    ]
    head = f"Paired differences of {METRIC} (same seeds, same samples), p after Holm's correction over all of them:"
    return [head, "", markdown_table(["trial", "against", "difference", "p", "better on"], rows), ""]


def _shrinkage(finalists: Sequence[Finalist], searched_trials: int) -> list[str]:
    searched = [one for one in finalists if not one.baseline and one.searched is not None and METRIC in one.means]
    if not searched:
        return []
    winner = searched[0]
    assert winner.searched is not None
    fresh = winner.means[METRIC].value
    luck = expected_maximum_of(searched_trials) if searched_trials > 1 else 0.0
    return [
        f"Trial {winner.trial}, picked by the search, had {winner.searched:.3f} there and has {fresh:.3f} here: "
        f"{winner.searched - fresh:+.3f} of it was the search's luck, its samples and its attacks. The best of "
        f"{searched_trials} equally good trials looks better by about {luck:.1f} standard deviations of one trial."
    ]
