"""What people and programs read: Markdown, CSV, LaTeX, terminal and heat map, of a table made by hand."""

import csv
import io
import re

import pytest

from study.paper_table.figure import heat_map
from study.paper_table.plan import ROWS, Cell
from study.paper_table.render import FIELDS, Table, claim_lines, latex, table1_csv, table1_page, terminal
from study.paper_table.results import Claim, entries
from study.records import TrialRecord

COLUMNS = ["regdb", "noisy_mnist", "patched_mnist"]
METRICS = {
    "official/pre/acc": 0.95,
    "official/pre/nmi": 0.9,
    "official/pre/ari": 0.85,
    "official/post/acc": 0.314159,
    "official/post/nmi": 0.2,
    "official/post/ari": 0.1,
    "spread/official/post/acc": 0.0314,
    "clean/acc": 0.9,
    "clean/nmi": 0.8,
    "clean/ari": 0.7,
    "robust/acc": 0.05,
    "robust/nmi": 0.04,
    "robust/ari": 0.03,
}


def records() -> list[TrialRecord]:
    def made(number: int, model: str, scale: float) -> TrialRecord:
        given = {"model.name": model, "dataset.name": "noisy_mnist"}
        metrics = {name: value * scale for name, value in METRICS.items()}
        return TrialRecord(number=number, state="COMPLETE", overrides=given, metrics=metrics)

    return [made(0, "comvc", 1.0), made(1, "ar_dmvc_am", 0.5)]


@pytest.fixture
def table() -> Table:
    absent = {"regdb": "not run: waits for its files: idx/train_visible_1.txt"}
    return Table(entries(records(), ROWS, COLUMNS, ["official", "strict"], absent, 2))


def cells_of(text: str, heading: str) -> dict[str, list[str]]:
    """The rows of the Markdown table under a heading: model → its cells."""
    part = text.split(heading, 1)[1].split("\n#", 1)[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in part.splitlines() if line[:1] == "|"]
    assert len({len(row) for row in rows}) == 1
    return {row[0]: row[1:] for row in rows}


def test_markdown_has_the_paper_s_layout(table: Table) -> None:
    text = table1_page(table, [], ["command: `python -m study.table1`"])
    assert "- command: `python -m study.table1`" in text
    rows = cells_of(text, "### POST (GAN attack)")
    names = ["EAMC", "SiMVC", "CoMVC", "Multi-VAE", "AECoDDC", "InfoDDC", "SEM", "AR-DMVC", "AR-DMVC-AM"]
    assert list(rows) == ["model", "---", *names]
    assert rows["model"] == [f"{d} {m}" for d in ("RegDB", "NoisyMNIST", "PatchedMNIST") for m in ("ACC", "NMI", "ARI")]
    # Ours with spread and rank; then 0.31 of the paper, 0.314 − 0.31 = +0.004, fifth there.
    assert rows["CoMVC"][3] == "**0.314 ± 0.031 #1**<br>paper 0.31, +0.004, #5"
    # 0.157 against 0.93.
    assert rows["AR-DMVC-AM"][3] == "0.157 ± 0.016 #2<br>paper 0.93, −0.773, #1"
    assert rows["EAMC"][0] == "–<br>paper 0.33, #4"
    assert "0.13†" in rows["InfoDDC"][7]


def test_strict_stands_beside_it_without_published_numbers(table: Table) -> None:
    rows = cells_of(table1_page(table, [], []), "### POST (worst case)")
    assert rows["CoMVC"][3:6] == ["**0.050 #1**", "**0.040 #1**", "**0.030 #1**"]
    assert rows["EAMC"] == ["–"] * 9


def test_where_all_are_equal_nobody_is_marked_as_best() -> None:
    names = {"official/post/acc": 0.0, "official/pre/acc": 0.5}
    made = [
        TrialRecord(
            number=number,
            state="COMPLETE",
            overrides={"model.name": model, "dataset.name": "noisy_mnist"},
            metrics={**names, "official/pre/acc": 0.5 + number / 10},
        )
        for number, model in enumerate(("comvc", "sem"))
    ]
    table = Table(entries(made, ROWS, ["noisy_mnist"], ["official"], {}, 1))
    best = {(e.cell.model, e.phase) for e in table.entries if table.is_best(e)}
    assert best == {("sem", "pre")}


def test_what_was_not_run_says_so_once(table: Table) -> None:
    text = table1_page(table, [], [])
    assert text.count("RegDB: not run: waits for its files: idx/train_visible_1.txt") == 1
    assert text.count("PatchedMNIST: not run") == 1
    assert "EAMC on NoisyMNIST: not run" in text
    assert "InfoDDC on PatchedMNIST, PRE: 0.67 beside ACC 0.61 and NMI 0.28: probably a misprint" in text


def test_intervals_take_the_place_of_spreads(table: Table) -> None:
    text = table1_page(Table(table.entries, ci=True), [], [])
    # 12.706 · 0.0314 / √2 = 0.282
    assert "0.314 [0.032, 0.596]" in text
    assert "95 % confidence interval" in text


def test_csv_holds_every_number(table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(table1_csv(table))))
    assert list(rows[0]) == list(FIELDS)
    assert len(rows) == 9 * 3 * 2 * 2 * 3
    key = {"model": "comvc", "dataset": "noisy_mnist", "protocol": "official", "phase": "post", "metric": "acc"}
    (found,) = [row for row in rows if {name: row[name] for name in key} == key]
    assert float(found["ours"]) == 0.314159
    assert (found["paper"], found["rank"], found["paper_rank"]) == ("0.31", "1", "5")
    assert float(found["difference"]) == pytest.approx(0.004159)
    assert found["paper_suspect"] == "false"
    empty = [row for row in rows if row["dataset"] == "regdb"]
    assert {row["ours"] for row in empty} == {""}
    assert sum(row["paper_suspect"] == "true" for row in rows) == 7


def test_latex_is_balanced_and_bold_where_we_are_first(table: Table) -> None:
    text = latex(table)
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 2
    assert text.count("{") == text.count("}")
    for line in text.splitlines():
        if line.startswith(("EAMC", "CoMVC", "Model")):
            assert line.count("&") == 9
            assert line.endswith(r"\\")
    assert r"\textbf{0.314$\pm$0.031 \#1} {\tiny 0.31, +0.004, \#5}" in text
    assert r"0.157$\pm$0.016 \#2 {\tiny 0.93, $-$0.773, \#1}" in text
    assert r"-- {\tiny 0.67$^\dagger$, \#1}" in text
    assert r"\par PatchedMNIST: not run" in text
    assert re.search(r"(?<!\\)%", text) is None


def test_the_terminal_shows_ours_above_the_paper_s(table: Table) -> None:
    text = terminal(table)
    lines = text.splitlines()
    index = next(i for i, line in enumerate(lines) if line.startswith("CoMVC"))
    assert lines[index].split()[:2] == ["CoMVC", "0.950"]
    assert lines[index + 1].split() == ["paper", "0.99", "0.99", "0.99", "0.31", "0.20", "0.13", "#5"]
    assert "RegDB: not run: waits for its files" in text


def test_claims_say_true_false_or_unknown() -> None:
    found = [Claim("x", "noisy_mnist", "official", holds, "why") for holds in (True, False, None)]
    assert [line.split(": ")[-1] for line in claim_lines(found)] == [
        "holds (why)",
        "DOES NOT HOLD (why)",
        "cannot be said (why)",
    ]


def test_heat_map_has_a_panel_for_the_paper_and_each_protocol(table: Table) -> None:
    figure = heat_map(table)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in panels] == ["the paper", "ours, official", "ours, strict"]
    numbers = panels[1].images[0].get_array()
    assert numbers.shape == (9, 6)
    assert numbers[2, 2] == pytest.approx(0.95)
    assert numbers[2, 3] == pytest.approx(0.314159)


def test_cells_are_found_by_place(table: Table) -> None:
    assert table.at("comvc", "noisy_mnist", "official", "pre", "acc").cell == Cell("comvc", "noisy_mnist")
