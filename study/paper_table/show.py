"""Prints Table 1 and writes its files."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.paper_table.cells import columns_of
from study.paper_table.plan import PUBLISHED_SEED, ROWS, Cell, departures, study_name
from trainables.files import write_whole

if TYPE_CHECKING:
    from study.paper_table.results import Scored
    from study.records import TrialRecord


FILES = ("table1.md", "table1.csv", "table1.tex", "table1.png")


class Shower:
    """Prints the table of what has been run and writes its files."""

    def __init__(self, given: argparse.Namespace, seeds: int, absent: Mapping[str, str], asked: "set[Cell]") -> None:
        """Args: asked: cells of this call; one of them that failed makes `failed`."""
        self._given = given
        self._seeds = seeds
        self._absent = absent
        self._asked = asked
        self.failed = False

    def __call__(self, records: "Sequence[TrialRecord]") -> None:
        from study.paper_table.figure import heat_map
        from study.paper_table.render import Table, claim_lines, latex, table1_csv, table1_page, terminal
        from study.paper_table.results import claims, entries, newest
        from study.reporting.style import png

        given = self._given
        protocols: list[Scored] = ["official", "strict"] if given.protocol == "both" else [given.protocol]
        found = entries(records, ROWS, columns_of(given, records), protocols, self._absent, self._seeds)
        table, checked = Table(found, given.ci), claims(found)
        self.failed = any(record.state == "FAIL" and cell in self._asked for cell, record in newest(records).items())
        # What was run before is in the files; here stand the rows that were asked for.
        asked = [entry for entry in found if entry.cell.model in (given.models or ROWS)]
        print(terminal(Table(asked, given.ci)))
        print("\nThe paper's claims on these numbers:", *claim_lines(checked), sep="\n  ")
        name = study_name(given.scale, given.protocol, self._seeds)
        folder = given.output or Path(given.storage) / name
        facts = table_facts(given.scale, name, Path(given.storage), records, self._seeds)
        texts: dict[str, str] = {
            "table1.md": table1_page(table, checked, facts),
            "table1.csv": table1_csv(table),
            "table1.tex": latex(table),
        }
        try:
            for file, text in texts.items():
                write_whole(folder / file, text.encode())
            write_whole(folder / "table1.png", png(heat_map(table)))
        except OSError as error:
            print(f"the table's files are not written: {folder}: {error.strerror}", file=sys.stderr)
            self.failed = True
            return
        print(f"\nWritten: {', '.join(str(folder / file) for file in FILES)}")


def table_facts(scale: str, name: str, storage: Path, records: "Sequence[TrialRecord]", seeds: int) -> list[str]:
    """How the table was made: command, commits, seeds, and where the scale departs from what was published."""
    from study.database.ledger import Ledger
    from study.provenance import command, git_commit

    complete = [record for record in records if record.state == "COMPLETE"]
    hours = sum(record.seconds for record in complete) / 3600
    commits = Ledger.open_existing(name, storage_path=storage).commits
    return [
        f"printed by `{command()}` at commit {git_commit() or 'unknown'}",
        f"run by code of commit {', '.join(commits) or 'unknown'}",
        f"seeds: {seeds} per cell and protocol, derived from the published seed {PUBLISHED_SEED}",
        f"{len(complete)} cells, {hours:.2f} hours of trials in all, on a machine with {os.cpu_count()} processors",
        *departures(scale),
    ]
