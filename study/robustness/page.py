"""The report on one model's robustness as Markdown.

Everything is read from an `Assessment`; nothing is computed here that changes a number.
"""

import json
import math
import re
from collections.abc import Sequence

from ardmvc_core.assessment.assess import CURVE_TIER, Assessment
from ardmvc_core.assessment.certificates import section
from ardmvc_core.attacks.tiers import plan
from study.reporting.text import markdown_table, three_decimals
from study.robustness.facts import Facts, SurrogateFacts
from study.robustness.headline import (
    chance_text,
    counts_of,
    eps50,
    headline,
    level_text,
    measured_value,
    other_threat,
    other_threat_rule,
    threat,
    verdict_text,
    with_interval,
)

_NAMES = {
    "acc": "ACC (fixed map)",
    "nmi": "NMI with classes",
    "ami": "AMI with classes (NMI beyond chance)",
    "ari": "ARI with classes",
    "flip": "flip rate",
    "kappa": "κ (kept, beyond chance)",
    "nmi_clean": "NMI with clean clusters",
    "ami_clean": "AMI with clean clusters",
    "ari_clean": "ARI with clean clusters",
}


def robustness_page(found: Assessment, facts: Facts, figures: Sequence[str] = ()) -> str:
    """The report as GitHub Markdown.

    Args: figures: names of those that lie in `figures/` beside it.
    """
    sections = [
        _opening(found, facts),
        _clean_and_worst(found),
        _noise_floor(found),
        _eps_section(found, figures),
        _erasability(found),
        _attacks(found, facts, figures),
        _subsets(found),
        _other_threats(found),
        _checks(found, figures),
        "" if facts.certificates is None else section(facts.certificates, markdown_table),
        _not_run(found, facts),
        _limits(found, facts),
        _provenance(found, facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _opening(found: Assessment, facts: Facts) -> str:
    title = f"# Robustness of `{facts.reference}`"
    line = f"**{headline(found)}**"
    what = (
        f"{facts.model} on {facts.dataset['name']}, {len(found.suite.data):,} samples of the part `{facts.part}`; "
        f"{threat(found)}; tier `{found.suite.result.tier}`; evaluation budget `{found.budget.digest()}`."
    )
    kind = (
        f"{level_text(found)} intervals are over the samples of this one trained model, not over trainings. Under "
        "attack a sample counts as right if it is right on clean views, under the map from clusters to classes that "
        "was fitted there, and no attack moves it to another cluster."
    )
    if found.suite.data.labels is None:
        kind = f"{level_text(found)} intervals are over the samples of this one trained model. The data have no labels."
    return "\n\n".join([title, line, what, kind])


def _clean_and_worst(found: Assessment) -> str:
    values, intervals = found.suite.evaluation.values, found.intervals
    rows = []
    for name, text in _NAMES.items():
        clean, robust = values.get(f"clean/{name}"), values.get(f"robust/{name}")
        if robust is not None:
            before = "" if clean is None else with_interval(clean, intervals.get(f"clean/{name}"))
            rows.append([text, before, with_interval(robust, intervals.get(f"robust/{name}"))])
    heading = "worst case" if found.established else "worst case (not established)"
    parts = ["## Clean and worst case", markdown_table(["", "clean", heading], rows)]
    if text := chance_text(found):
        parts.append(f"{text[0].upper()}{text[1:]}: the same clusters, dealt to samples at random and matched anew.")
    return "\n\n".join(parts)


def _noise_floor(found: Assessment) -> str:
    result = found.suite.result
    moved = float(result.noise_flipped.double().mean())
    return (
        f"## Noise floor\n\nRandom noise of the same budget moves {result.noise_flip:.3f} of the samples (mean over "
        f"draws of the stronger kind); {moved:.3f} are moved by at least one draw. Noise does not count as an attack."
    )


def _eps_section(found: Assessment, figures: Sequence[str]) -> str:
    if not found.eps_curve:
        return ""
    labelled = any(point.acc is not None for point in found.eps_curve.values())
    rows = [
        [f"{eps:g}", f"{point.flip:.3f}", *([three_decimals(point.acc)] if labelled else [])]
        for eps, point in sorted(found.eps_curve.items())
    ]
    table = markdown_table(["ε", "flip", *(["ACC (fixed map)"] if labelled else [])], rows)
    head = f"## ε50\n\n{eps50(found)}, by the tier `{CURVE_TIER}`."
    return "\n\n".join([head, table, *_picture_of("eps_curve", figures)])


def _erasability(found: Assessment) -> str:
    rows = [
        [str(view), "∞" if math.isinf(share) else f"{share:.2f}", "yes" if share >= 1 else "no"]
        for view, share in enumerate(found.erasable)
    ]
    return "\n\n".join(
        [
            "## Erasability per view",
            "2 ε over the width of the view's signal (1–99 percentile range of the mean sample). From 1 on the "
            "attacker can paint the view out.",
            markdown_table(["view", "2 ε / width", "can be erased"], rows),
        ]
    )


def _attacks(found: Assessment, facts: Facts, figures: Sequence[str]) -> str:
    values = found.suite.evaluation.values
    labelled = "robust/acc" in values
    headings = ["attack", "tested", "flipped", "new", *(["ACC (fixed map)", "ACC (refitted map)"] if labelled else [])]
    rows = []
    for record in found.suite.result.records:
        counts = ["", "", ""] if record.skipped else [f"{n:,}" for n in counts_of(record)]
        scores = (
            [three_decimals(values.get(f"{record.key}/{name}")) for name in ("acc", "acc_refit")] if labelled else []
        )
        cost = ["", "", ""] if record.skipped else [f"{record.forwards:,}", f"{record.backwards:,}"]
        cost += [] if record.skipped else [f"{record.seconds:.1f}"]
        rows.append([f"`{record.key}`", *counts, *scores, *cost, record.skipped])
    run_on = "on every sample" if facts.everyone else "on the samples that no attack before it has moved"
    text = f"In this order, each {run_on}."
    if labelled:
        text += (
            " Scores of a single attack only where it ran on every sample. The refitted map is fitted to classes after "
            "the attack, as published tables have it: it is for comparison with those, and never below the fixed one."
        )
    table = markdown_table([*headings, "forwards", "backwards", "seconds", "skipped because"], rows)
    pictures = [line for name in ("union_growth", "attack_scores", "pictures") for line in _picture_of(name, figures)]
    return "\n\n".join(["## Attacks", text, table, *pictures])


def _subsets(found: Assessment) -> str:
    if not found.subset_flips:
        return ""
    rows = [["views " + ", ".join(map(str, views)), f"{rate:.3f}"] for views, rate in found.subset_flips.items()]
    rows += [[f"any {size}, chosen per sample", f"{rate:.3f}"] for size, rate in sorted(found.subset_unions.items())]
    views = range(len(found.suite.data.views)) if found.budget.attacked_views is None else found.budget.attacked_views
    rows.append(
        [
            f"all: {', '.join(map(str, views))} (tier `{found.suite.result.tier}`)",
            three_decimals(found.suite.evaluation.values["robust/flip"]),
        ]
    )
    return f"## Subsets of views\n\nBy the tier `{CURVE_TIER}`.\n\n{markdown_table(['attacked', 'flip'], rows)}"


def _other_threats(found: Assessment) -> str:
    ran = [record for record in found.suite.threats if not record.skipped]
    if not ran:
        return ""
    values, intervals = found.suite.evaluation.values, found.intervals
    rows = []
    for record in ran:
        names = [f"{record.key}/{score}" for score in ("flip", "acc")]
        numbers = [with_interval(values[name], intervals.get(name)) for name in names if name in values]
        noise = three_decimals(record.noise_flip)
        rows.append([f"`{record.key}`", other_threat(record), *numbers, noise, other_threat_rule(found, record)])
    headings = ["attack", "what may change", "flip", *(["ACC"] if "robust/acc" in values else []), "noise flips"]
    text = "Each by itself: none is part of the headline, and no check looks at them. ACC as in the worst case above."
    return f"## Other threats\n\n{text}\n\n{markdown_table([*headings, 'how'], rows)}"


def _checks(found: Assessment, figures: Sequence[str]) -> str:
    rows = [[c.id, c.title, measured_value(c), verdict_text(c), c.detail] for c in found.sanity.checks]
    parts = ["## Checks", markdown_table(["", "check", "value", "verdict", "detail"], rows)]
    if found.inconsistencies:
        parts.append(
            "Numbers that contradict each other:\n\n" + "\n".join(f"- {line}" for line in found.inconsistencies)
        )
    return "\n\n".join([*parts, *_picture_of("step_curve", figures)])


def _not_run(found: Assessment, facts: Facts) -> str:
    result, k = found.suite.result, found.suite.data.n_clusters
    ran = {record.key for record in result.records}
    lines = [f"attack `{record.key}`: {record.skipped}" for record in result.records if record.skipped]
    # These tiers have it, but for heads whose logits are read from centroids.
    centroid_head = result.tier in ("standard", "plus") and "apgd_centroid" not in ran
    absent = [step.key for step in plan("plus", k, centroid_head=centroid_head) if step.key not in ran]
    if absent:
        lines.append(f"attacks of larger tiers: {_families(absent)}")
    if not found.eps_curve:
        lines.append("the ε curve")
    if len(found.suite.data.views) > 1 and not found.subset_flips:
        lines.append("attacks on subsets of views")
    ran_other = {record.key for record in found.suite.threats if not record.skipped}
    lines += [f"attack `{record.key}`: {record.skipped}" for record in found.suite.threats if record.skipped]
    if not found.suite.threats:
        lines.append("attacks on one whole view")
    lines += [f"check {check.id}: {check.detail}" for check in found.sanity.checks if check.verdict == "N/A"]
    lines.append(
        "attackers who see only some of the views; attackers of a collection that is clustered anew after the attack; "
        f"other norms than L∞{' and L2' if 'apgd_l2' in ran_other else ''}"
    )
    return "## Not run\n\n" + "\n".join(f"- {line}" for line in lines)


def _families(keys: Sequence[str]) -> str:
    """Keys of attacks, those that differ by their last number as one: `apgd_target_2` to `apgd_target_9`."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(re.sub(r"_\d+$", "", key), []).append(key)
    ends = [(group[0], group[-1]) for group in groups.values()]
    return ", ".join(f"`{first}`" if first == last else f"`{first}` to `{last}`" for first, last in ends)


def _limits(found: Assessment, facts: Facts) -> str:
    lines = [
        "Accuracy under attack is an upper bound and the flip rate a lower one: a stronger attack may find more. "
        "Nothing here is a guarantee.",
        f"One trained model on {len(found.suite.data):,} samples; another training seed may differ by more than the "
        "intervals.",
        f"The number of clusters, {found.suite.data.n_clusters}, was given.",
        "Bootstrap intervals of NMI and ARI are not to be trusted where these are near 0.",
    ]
    if facts.part == "tune":
        lines.append(
            "Trials are compared on the part `tune`, so its numbers flatter whichever trial was picked by them."
        )
    if any(share >= 1 for share in found.erasable):
        views = [str(view) for view, share in enumerate(found.erasable) if share >= 1]
        lines.append(f"At this ε the attacker can paint out view{'s' if len(views) > 1 else ''} {', '.join(views)}.")
    lines += [f"Check {c.id} warns ({c.title}): {c.detail}." for c in found.sanity.checks if c.verdict == "WARN"]
    lines += [f"{warning[0].upper()}{warning[1:]}." for warning in found.suite.evaluation.warnings]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _provenance(found: Assessment, facts: Facts) -> str:
    rows = [
        ["model", f"`{facts.reference}`, {facts.model}, model {facts.repeat} of its trial"],
        ["weights", f"`{facts.checkpoint}`"],
        ["data", f"`{json.dumps(facts.dataset, sort_keys=True)}`"],
        *([f"part `{name}`", f"`{digest}`"] for name, digest in facts.parts.items()),
        ["budget", f"`{found.budget.digest()}`, seed {found.budget.seed}"],
        *(["surrogate", _surrogate(one)] for one in facts.surrogates),
        ["software", ", ".join(f"{name} {version}" for name, version in facts.versions.items())],
        ["commit", facts.commit or "unknown"],
        ["command", f"`{facts.command}`"],
        ["time", f"{facts.seconds:.1f} s on {facts.device}"],
        ["passes of a sample", f"{facts.forwards:,} forward, {facts.backwards:,} of them with gradient"],
    ]
    return f"## Provenance\n\n{markdown_table(['', ''], rows)}"


def _surrogate(one: SurrogateFacts) -> str:
    text = f"{one.method}, seed {one.seed}, {one.epochs} epochs on the attacker part"
    return (
        f"{text}: {one.failure}"
        if one.failure
        else f"{text}; NMI with the target's clusters {three_decimals(one.agreement)}"
    )


def _picture_of(name: str, figures: Sequence[str]) -> list[str]:
    return [f"![{name.replace('_', ' ')}](figures/{name}.png)"] if name in figures else []
