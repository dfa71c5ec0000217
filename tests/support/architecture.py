"""The house as its imports show it: rooms, the arrows between them, and the picture in docs/architecture.md.

`python tests/support/architecture.py` draws the picture anew; a test tells when that is due.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ardmvc_core", "trainables", "study", "search_spaces")
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by tests/support/architecture.py -->", "<!-- end of the drawing -->"

DOORS = ("sweep", "confirm", "table1", "evaluate", "compare", "control", "report", "studies", "data", "ui")
FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "study": (
        ("records", "secrets", "needs", "output"),
        ("places",),
        ("provenance", "spec", "ranking", "clusters"),
        ("database",),
        ("planning", "reporting"),
        ("tracking",),
        ("driver", "robustness", "paper_table"),
        ("cli", "handle"),
        DOORS,
        ("main",),
        ("__main__",),
    ),
    "trainables": (
        ("files", "places"),
        ("config", "scratch", "storage", "heartbeat", "round_limit", "retry"),
        ("data_parts", "checkpoints", "saved_trial"),
        ("building",),
        ("reference", "surrogates"),
        ("trial",),
        ("attack_trial",),
        ("trainable",),
    ),
    "ardmvc_core": (
        ("adam", "types", "errors", "seeding", "ranges", "places"),
        ("batching", "losses", "data"),
        ("networks",),
        ("training", "attacks"),
        ("models", "evaluation"),
        ("selection", "assessment"),
    ),
}
"""Rooms of each package from the ground up. A room knows of rooms on lower floors only."""


def files() -> Iterator[tuple[str, Path]]:
    """(module, file) of all product code."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), file


def imports(*, typing: bool = True) -> Iterator[tuple[str, int, str]]:
    """(importing module, line, imported name) of every import, those inside functions too.

    Args: typing: also those that only type checkers see.
    """
    for module, file in files():
        tree = ast.parse(file.read_text())
        seen_by_checkers = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if not typing and id(node) in seen_by_checkers:
                continue
            if isinstance(node, ast.Import):
                yield from ((module, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}:{node.lineno}: relative import"
                yield from ((module, node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room(name: str) -> str | None:
    """The room of a module or of a name in it: `study.database`; None outside the packages and for a package's face."""
    parts = name.removesuffix(".__version__").split(".")
    return ".".join(parts[:2]) if parts[0] in PACKAGES and len(parts) > 1 else None


def arrows() -> dict[tuple[str, str], list[str]]:
    """(room, room that it knows of) → where, as `module:line`."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for module, line, name in imports():
        here, there = room(module), room(name)
        if here and there and here != there:
            found[here, there].append(f"{module}:{line}")
    return found


def circles() -> list[str]:
    """Modules that know of themselves by way of others, as the program runs."""
    modules = dict(files())
    knows: dict[str, set[str]] = defaultdict(set)
    for module, _, name in imports(typing=False):
        target = name if name in modules else name.rpartition(".")[0]
        if target in modules and target != module:
            knows[module].add(target)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = [start]
        while left:
            new = knows[left.pop()] - seen
            seen |= new
            left += new
        return seen

    return sorted(module for module in modules if module in reached(module))


def picture() -> str:
    """The rooms of `study` and of the core as Mermaid; arrows that others imply are left out."""
    pairs = {(a, b) for a, b in arrows() if a.split(".")[0] == b.split(".")[0]}
    lines = ["```mermaid", "flowchart TD"]
    for package in ("study", "trainables", "ardmvc_core"):
        lines.append(f"  subgraph {package}")
        for floor in reversed(FLOORS[package]):
            shown = [name for name in floor if floor != DOORS]
            if floor == DOORS:
                lines.append(f'    {package}.doors["{" · ".join(DOORS)}"]')
            lines += [f"    {package}.{name}[{name}]" for name in shown if any(f"{package}.{name}" in p for p in pairs)]
        lines.append("  end")
    drawn = {(_drawn(a), _drawn(b)) for a, b in pairs}
    drawn = {(a, b) for a, b in drawn if a != b}
    lines += [f"  {a} --> {b}" for a, b in sorted(drawn) if not _implied(a, b, drawn)]
    lines += ["  study --> trainables", "  trainables --> ardmvc_core", "```"]
    return "\n".join(lines)


def _drawn(name: str) -> str:
    package, _, place = name.partition(".")
    return f"{package}.doors" if package == "study" and place in DOORS else name


def _implied(a: str, b: str, pairs: set[tuple[str, str]]) -> bool:
    """Whether b is reached from a in two arrows or more."""
    left, seen = [c for x, c in pairs if x == a and c != b], set()
    while left:
        here = left.pop()
        if here == b:
            return True
        if here not in seen:
            seen.add(here)
            left += [c for x, c in pairs if x == here]
    return False


def drawn_page() -> str:
    """The page with the picture as it should be."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{picture()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(drawn_page())
    sys.exit(0)
