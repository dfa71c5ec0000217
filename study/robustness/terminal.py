"""A robustness report as a short page for a terminal."""

from ardmvc_core.assessment.assess import CURVE_TIER, Assessment
from study.reporting.text import text_columns, three_decimals
from study.robustness.facts import Facts
from study.robustness.headline import chance_text, counts_of, eps50, headline, measured_value, other_threat, threat


def terminal_page(found: Assessment, facts: Facts) -> str:
    """The report on one page for a terminal: headline, a line for each attack, checks that did not pass."""
    result, values = found.suite.result, found.suite.evaluation.values
    scored = f"{facts.model} on {facts.dataset['name']}, {len(found.suite.data):,} samples of {facts.part}"
    lines = [
        headline(found),
        f"{scored}; {threat(found)}; tier {result.tier}; budget {found.budget.digest()}",
        f"noise of the same budget moves {result.noise_flip:.3f}",
    ]
    if found.eps_curve:
        lines[-1] += f"; {eps50(found)[0].lower()}{eps50(found)[1:]} (tier {CURVE_TIER})"
    lines += [text] if (text := chance_text(found)) else []
    rows = [["attack", "tested", "flipped", "new", "union", "ACC", "seconds"]]
    union = 0
    for record in result.records:
        if record.skipped:
            rows.append([record.key, f"skipped: {record.skipped}"])
            continue
        union += record.new
        acc = three_decimals(values.get(f"{record.key}/acc")) or "-"
        rows.append([record.key, *map(str, counts_of(record)), f"{union / len(found.suite.data):.3f}", acc])
        rows[-1].append(f"{record.seconds:.1f}")
    lines += ["", *text_columns(rows)]
    others = [["other threat", "flip", "ACC", "noise"]]
    for other in found.suite.threats:
        if other.skipped:
            others.append([f"skipped {other.key}: {other.skipped}"])
            continue
        scores = [values.get(f"{other.key}/flip"), values.get(f"{other.key}/acc"), other.noise_flip]
        others.append([other_threat(other), *(three_decimals(score) or "-" for score in scores)])
    lines += ["", *text_columns(others)] if len(others) > 1 else []
    marked = [check for check in found.sanity.checks if check.verdict in ("WARN", "FAIL")]
    counts = {verdict: sum(c.verdict == verdict for c in found.sanity.checks) for verdict in ("PASS", "INFO", "N/A")}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    lines += ["", f"checks: {told}" + ("; and" if marked else "")]
    texts = [[check.verdict, check.id, measured_value(check), f"{check.title}: {check.detail}"] for check in marked]
    lines += text_columns(texts, last_is_text=True)
    lines += list(found.inconsistencies)
    return "\n".join(line.rstrip() for line in lines)
