"""Collect the measured claims of a folder into its README.md, one row each, failed ones too.

python -m benchmarks.claims.table [FOLDER]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.claims.report import Result, markdown_table

COMMITTED = Path(__file__).parent / "deg" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table.

    Args:
        arguments: words after the command; those of the process by default.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims.table", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=COMMITTED, help="with .json files of claims")
    folder = parser.parse_args(arguments).folder
    results = [Result.load(path) for path in sorted(folder.glob("*.json"))]
    if not results:
        parser.error(f"{folder}: expected .json files of claims, found none; measure one with --out {folder}")
    (folder / "README.md").write_text("\n".join(_page(results)) + "\n")
    return 0


def _page(results: Sequence[Result]) -> list[str]:
    rows = [
        [
            f"[{result.name}]({result.name}.md): {result.claim}",
            "<br>".join(rule.rule for rule in result.rules),
            "<br>".join(rule.measured for rule in result.rules),
            result.verdict,
            f"`{result.command}`",
            result.date,
        ]
        for result in results
    ]
    passed = sum(result.passed for result in results)
    return [
        "# Claims, as measured", "",
        f"{passed} of {len(results)} pass. Written by `python -m benchmarks.claims.table`.", "",
        *markdown_table(["claim", "pass rule", "measured", "verdict", "command", "date"], rows),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
