"""The tables from paper to code in the methods' READMEs: complete rows, and names that exist."""

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = sorted((ROOT / "gsforge" / "methods").glob("*/README.md"))
HEADER = ["equation", "symbol", "function", "where we deviate and why"]
DOTTED = re.compile(r"`(gsforge(?:\.\w+)+)`")
CONFIG = re.compile(r"configs/[\w/.-]+\.yaml")


def cells(line: str) -> list[str]:
    """Split a row of a Markdown table; an escaped bar belongs to its cell."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def table(text: str) -> list[list[str]]:
    """Rows below the header of the table from paper to code."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("|") and cells(line) == HEADER]
    assert len(starts) == 1, f"expected one table with the columns {HEADER}, found {len(starts)}"
    rows = []
    for line in lines[starts[0] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(cells(line))
    return rows


def unresolved(text: str) -> list[str]:
    """Dotted names that cannot be imported."""
    missing = []
    for name in DOTTED.findall(text):
        try:
            resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    return missing


def test_every_method_has_a_readme() -> None:
    modules = sorted((ROOT / "gsforge" / "methods").glob("*/module.py"))
    assert modules
    assert {path.parent for path in modules} <= {path.parent for path in READMES}


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_rows_are_complete_and_name_a_function(path: Path) -> None:
    rows = table(path.read_text())
    assert rows
    for row in rows:
        assert len(row) == len(HEADER), row
        assert all(row), row
        assert DOTTED.search(row[2]), row


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_every_name_and_configuration_exists(path: Path) -> None:
    text = path.read_text()
    assert unresolved(text) == []
    assert [name for name in CONFIG.findall(text) if not (ROOT / name).is_file()] == []


def test_a_name_that_does_not_exist_is_found() -> None:
    text = "`gsforge.core.octree.capacity` `gsforge.core.octree.capacitie` `gsforge.core.octtree.capacity`"
    assert unresolved(text) == ["gsforge.core.octree.capacitie", "gsforge.core.octtree.capacity"]


def test_a_bar_inside_a_cell_is_escaped() -> None:
    assert cells(r"| p(x\|z) | x | f | none |") == [r"p(x\|z)", "x", "f", "none"]
