"""The table for people and programs: terminal, Markdown, CSV, LaTeX."""

from collections.abc import Callable, Iterator, Sequence

from study.paper_table.plan import Cell
from study.paper_table.results import METRICS, PHASES, SUSPECT, Claim, Entry, Phase, Scored
from study.ranking.summary import with_spread
from study.reporting.text import csv_text, markdown_table, text_columns, with_bounds

MODEL_NAMES = {
    "eamc": "EAMC",
    "simvc": "SiMVC",
    "comvc": "CoMVC",
    "multi_vae": "Multi-VAE",
    "aecoddc": "AECoDDC",
    "infoddc": "InfoDDC",
    "sem": "SEM",
    "ar_dmvc": "AR-DMVC",
    "ar_dmvc_am": "AR-DMVC-AM",
}
DATASET_NAMES = {
    "regdb": "RegDB",
    "noisy_fashion": "NoisyFashion",
    "noisy_mnist": "NoisyMNIST",
    "patched_mnist": "PatchedMNIST",
    "noisy_digits": "NoisyDigits",
}
HEADINGS: dict[Scored, str] = {
    "official": "official: scored as published (target in training mode, clusters matched to labels again after the "
    "attack)",
    "strict": "strict: target in inference mode, map and centroids fixed on clean data, worst case per sample over all "
    "attacks; the paper reports no such number",
}
PHASE_NAMES: dict[tuple[Scored, Phase], str] = {
    ("official", "pre"): "PRE (clean)",
    ("official", "post"): "POST (GAN attack)",
    ("strict", "pre"): "PRE (clean)",
    ("strict", "post"): "POST (worst case)",
}


class Table:
    """The entries by place."""

    def __init__(self, entries: Sequence[Entry], ci: bool = False) -> None:
        """Args: ci: show 95 % confidence intervals in place of standard deviations."""
        self.entries = list(entries)
        self.ci = ci
        self._places = {(e.cell, e.protocol, e.phase, e.metric): e for e in self.entries}
        self.protocols = list(dict.fromkeys(e.protocol for e in self.entries))
        self.rows = list(dict.fromkeys(e.cell.model for e in self.entries))
        self.columns = list(dict.fromkeys(e.cell.dataset for e in self.entries))

    def at(self, model: str, dataset: str, protocol: Scored, phase: Phase, metric: str) -> Entry:
        return self._places[Cell(model, dataset), protocol, phase, metric]

    def is_best(self, entry: Entry) -> bool:
        """First in its column, and not because all are equal."""
        column = [self.at(row, entry.cell.dataset, entry.protocol, entry.phase, entry.metric) for row in self.rows]
        return entry.rank == 1 and any(other.rank and other.rank > 1 for other in column)

    def ours(self, entry: Entry) -> str:
        """`0.912 ± 0.013`, with an interval where asked for, `–` where there is none."""
        if entry.ours is None:
            return "–"
        if self.ci and (interval := entry.interval()):
            return with_bounds(entry.ours, *interval)
        return with_spread(entry.ours, entry.spread)

    def empty_cells(self) -> Iterator[tuple[str, str]]:
        """What was not run, and why: a data set once if it is the same for every model."""
        for column in self.columns:
            notes = {
                row: entry.note
                for row in self.rows
                if (entry := self.at(row, column, self.protocols[0], "pre", "acc")).ours is None
            }
            if len(notes) == len(self.rows) and len(set(notes.values())) == 1:
                yield DATASET_NAMES[column], next(iter(notes.values()))
            else:
                for row, note in notes.items():
                    yield f"{MODEL_NAMES[row]} on {DATASET_NAMES[column]}", note

    def suspects(self) -> Iterator[tuple[str, str]]:
        """Doubtful numbers of the paper, a model and data set once."""
        seen = set()
        for (model, dataset, phase, _), note in SUSPECT.items():
            shown = model in self.rows and dataset in self.columns and "official" in self.protocols
            if shown and (model, dataset, phase) not in seen:
                seen.add((model, dataset, phase))
                yield f"{MODEL_NAMES[model]} on {DATASET_NAMES[dataset]}, {phase.upper()}", note


def paper_text(entry: Entry) -> str:
    """`paper 0.99, −0.078, #1`: the published number, ours minus it, and its rank there; `†` marks a suspect one."""
    if entry.paper is None:
        return ""
    mark = "†" if is_suspect(entry) else ""
    difference = "" if entry.difference is None else f", {signed(entry.difference)}"
    return f"paper {entry.paper:.2f}{mark}{difference}, #{entry.paper_rank}"


def is_suspect(entry: Entry) -> bool:
    """Whether the published number is doubtful."""
    return (entry.cell.model, entry.cell.dataset, entry.phase, entry.metric) in SUSPECT and entry.paper is not None


def signed(number: float) -> str:
    return f"{number:+.3f}".replace("-", "−")


def terminal(table: Table) -> str:
    """One block per protocol and data set that was run, two lines a model where the paper has numbers."""
    lines: list[str] = []
    for protocol in table.protocols:
        lines += ["", HEADINGS[protocol]]
        for column in table.columns:
            cells = [table.at(row, column, protocol, "pre", "acc") for row in table.rows]
            if all(entry.ours is None for entry in cells):
                continue
            lines += ["", *_block(table, protocol, column)]
    return "\n".join([*lines, *_notes(table, prefix="")]).strip("\n")


def _block(table: Table, protocol: Scored, column: str) -> list[str]:
    keys = [(phase, metric) for phase in PHASES for metric in METRICS]
    head = [DATASET_NAMES[column], *(f"{phase.upper()} {metric.upper()}" for phase, metric in keys), "POST ACC"]
    rows = [head]
    for row in table.rows:
        found = [table.at(row, column, protocol, phase, metric) for phase, metric in keys]
        rank = found[3].rank
        rows.append([MODEL_NAMES[row], *map(table.ours, found), f"#{rank}" if rank else ""])
        if any(entry.paper is not None for entry in found):
            published = [f"{e.paper:.2f}{'†' if is_suspect(e) else ''}" if e.paper is not None else "" for e in found]
            rows.append(["  paper", *published, f"#{found[3].paper_rank}"])
    return text_columns(rows)


def _notes(table: Table, prefix: str) -> list[str]:
    empty, suspect = list(table.empty_cells()), list(table.suspects())
    lines = ["", *(f"{prefix}{place}: {note}" for place, note in empty)] if empty else []
    if suspect:
        lines += ["", f"{prefix}† doubtful in the paper:", *(f"{prefix}{place}: {note}" for place, note in suspect)]
    return lines


def claim_lines(claims: Sequence[Claim]) -> list[str]:
    """One line per claim, protocol and data set."""
    words = {True: "holds", False: "DOES NOT HOLD", None: "cannot be said"}
    return [
        f"{DATASET_NAMES[claim.dataset]}, {claim.protocol}: {claim.text}: {words[claim.holds]} ({claim.evidence})"
        for claim in claims
    ]


def table1_page(table: Table, claims: Sequence[Claim], facts: Sequence[str]) -> str:
    """The table in the paper's layout, a block for each protocol and phase, with claims and notes.

    Args: facts: lines on how it was made (command, commit, seeds).
    """
    lines = ["# Table 1 of the AR-DMVC paper, beside ours", "", *(f"- {fact}" for fact in facts), ""]
    spread = "95 % confidence interval" if table.ci else "standard deviation"
    lines += [
        f"Each entry: our mean ± {spread} over seeds, our rank in the column; below it the paper's number, ours minus "
        "the paper's, the paper's rank. A dash: not run.",
    ]
    keys = [(column, metric) for column in table.columns for metric in METRICS]
    for protocol in table.protocols:
        lines += ["", f"## {HEADINGS[protocol]}"]
        for phase in PHASES:
            heads = ["model", *(f"{DATASET_NAMES[column]} {metric.upper()}" for column, metric in keys)]
            rows = []
            for row in table.rows:
                found = [table.at(row, column, protocol, phase, metric) for column, metric in keys]
                rows.append([MODEL_NAMES[row], *(_markdown_cell(table, entry) for entry in found)])
            numbers = markdown_table(heads, rows, ["---", *["---:"] * len(keys)])
            lines += ["", f"### {PHASE_NAMES[protocol, phase]}", "", numbers]
    if claims:
        lines += ["", "## The paper's claims on these numbers", "", *(f"- {line}" for line in claim_lines(claims))]
    return "\n".join([*lines, *_notes(table, prefix="- ")]) + "\n"


def _markdown_cell(table: Table, entry: Entry) -> str:
    own = table.ours(entry) if entry.rank is None else f"{table.ours(entry)} #{entry.rank}"
    if table.is_best(entry):
        own = f"**{own}**"
    paper = paper_text(entry)
    return f"{own}<br>{paper}" if paper else own


FIELDS: dict[str, Callable[[Entry], object]] = {
    "model": lambda entry: entry.cell.model,
    "dataset": lambda entry: entry.cell.dataset,
    "protocol": lambda entry: entry.protocol,
    "phase": lambda entry: entry.phase,
    "metric": lambda entry: entry.metric,
    "ours": lambda entry: entry.ours,
    "spread": lambda entry: entry.spread,
    "ci_low": lambda entry: (entry.interval() or (None, None))[0],
    "ci_high": lambda entry: (entry.interval() or (None, None))[1],
    "seeds": lambda entry: entry.seeds if entry.ours is not None else None,
    "rank": lambda entry: entry.rank,
    "paper": lambda entry: entry.paper,
    "paper_rank": lambda entry: entry.paper_rank,
    "difference": lambda entry: None if entry.difference is None else round(entry.difference, 12),
    "paper_suspect": lambda entry: str(is_suspect(entry)).lower(),
    "note": lambda entry: entry.note,
}


def table1_csv(table: Table) -> str:
    """One line per number, with a heading line; empty where there is none."""
    return csv_text(FIELDS, ([field(entry) for field in FIELDS.values()] for entry in table.entries))


def latex(table: Table) -> str:
    """A `table*` for each protocol in the paper's layout (booktabs): PRE and POST blocks, three metrics a data set."""
    return "\n".join(_latex_table(table, protocol) for protocol in table.protocols)


def _latex_table(table: Table, protocol: Scored) -> str:
    keys = [(column, metric) for column in table.columns for metric in METRICS]
    groups = " & ".join(rf"\multicolumn{{3}}{{c}}{{{DATASET_NAMES[column]}}}" for column in table.columns)
    rules = " ".join(rf"\cmidrule(lr){{{2 + 3 * i}-{4 + 3 * i}}}" for i in range(len(table.columns)))
    metrics = " & ".join(metric.upper() for _, metric in keys)
    spread = "95 % interval" if table.ci else "standard deviation"
    beside = "; small: the paper's number, ours minus it, the paper's rank" if protocol == "official" else ""
    lines = [
        r"\begin{table*}",
        r"\centering\scriptsize",
        rf"\caption{{{_escaped(f'{HEADINGS[protocol]}. Ours with {spread} and rank{beside}.')}}}",
        rf"\begin{{tabular}}{{l{'c' * len(keys)}}}",
        r"\toprule",
        rf" & {groups} \\",
        rules,
        rf"Model & {metrics} \\",
    ]
    for phase in PHASES:
        name = _escaped(PHASE_NAMES[protocol, phase])
        lines += [r"\midrule", rf"\multicolumn{{{1 + len(keys)}}}{{c}}{{{name}}} \\", r"\midrule"]
        for row in table.rows:
            cells = [_latex_cell(table, table.at(row, column, protocol, phase, metric)) for column, metric in keys]
            lines.append(rf"{MODEL_NAMES[row]} & {' & '.join(cells)} \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par {_escaped(note)}" for note in _notes(table, prefix="") if note]
    return "\n".join([*lines, r"\end{table*}", ""])


def _latex_cell(table: Table, entry: Entry) -> str:
    own = _escaped(table.ours(entry)).replace("–", "--").replace(" ± ", r"$\pm$")
    if entry.rank is not None:
        own = rf"{own} \#{entry.rank}"
    own = rf"\textbf{{{own}}}" if table.is_best(entry) else own
    if entry.paper is None:
        return own
    return rf"{own} {{\tiny {_escaped(paper_text(entry).removeprefix('paper '))}}}"


def _escaped(text: str) -> str:
    for plain, tex in {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "†": r"$^\dagger$", "−": "$-$"}.items():
        text = text.replace(plain, tex)
    return text
