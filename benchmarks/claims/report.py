"""What was found about a claim: on the terminal, as JSON, and as Markdown with one line that people write."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.claims.plot import Panel, to_svg
from benchmarks.claims.rules import Judged
from benchmarks.claims.statistics import CONFIDENCE, Interval

_LEARNED = "**What was learned:** "


@dataclass(frozen=True)
class Result:
    """A measured claim.

    Attributes:
        name: of the claim.
        claim: the claim as a sentence.
        source: where the paper says it.
        compared: what was measured, and against what.
        command: that was typed.
        quick: whether sizes were small, so that nothing is proven.
        date: ISO 8601.
        seeds: of the measurements.
        seconds: that they took.
        versions: of Python and packages.
        rules: what became of each.
        numbers: means over the seeds.
    """

    name: str
    claim: str
    source: str
    compared: str
    command: str
    quick: bool
    date: str
    seeds: list[int]
    seconds: int
    versions: dict[str, str]
    rules: list[Judged]
    numbers: dict[str, Interval]

    @property
    def passed(self) -> bool:
        """Whether all rules hold."""
        return all(rule.holds for rule in self.rules)

    @property
    def verdict(self) -> str:
        """PASS or FAIL."""
        return ("PASS" if self.passed else "FAIL") + (" (quick sizes)" if self.quick else "")

    @staticmethod
    def load(path: Path) -> "Result":
        """Read what `write` wrote.

        Args:
            path: a .json file.

        Returns:
            The result.

        Raises:
            ValueError: if the file is not the result of a claim.
        """
        try:
            record: dict[str, Any] = json.loads(path.read_text())
            del record["verdict"]
            rules = [Judged(**rule) for rule in record.pop("rules")]
            numbers = {name: Interval(**number) for name, number in record.pop("numbers").items()}
            return Result(**record, rules=rules, numbers=numbers)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: expected the result of a claim ({error!r}); measure the claim again") from error


def announce(claim: str, source: str, compared: str, rules: Sequence[str], console: Console) -> None:
    """Print what is claimed and when it passes, before anything is measured.

    Args:
        claim: the claim as a sentence.
        source: where the paper says it.
        compared: what is measured, and against what.
        rules: when it passes.
        console: to print on.
    """
    console.print(f"[bold]{claim}[/]", f"Source: {source}", f"Compared: {compared}", "Passes if", sep="\n")
    for rule in rules:
        console.print(f"- {rule}")


def show(result: Result, out: Path, console: Console) -> None:
    """Print numbers and verdict; the last line is the verdict.

    Args:
        result: to print.
        out: folder that `write` was given.
        console: to print on.
    """
    numbers = Table("number", "mean", f"{CONFIDENCE:.0%} interval", title=f"{len(result.seeds)} seeds")
    for name, number in result.numbers.items():
        numbers.add_row(name, f"{number.mean:.4g}", f"{number.low:.4g} to {number.high:.4g}")
    rules = Table("rule", "measured", "holds", title="Rules")
    for rule in result.rules:
        rules.add_row(rule.rule, rule.measured, "yes" if rule.holds else "no")
    console.print(numbers, rules, f"written to {out / result.name}.md, .json and .svg", sep="\n")
    console.print(f"{result.name}: {result.verdict}")


def write(result: Result, panels: Sequence[Panel], out: Path) -> None:
    """Write `<name>.svg`, `<name>.json` and `<name>.md`.

    What somebody wrote into the line "What was learned" of the Markdown stays, as long as the verdict does.

    Args:
        result: to write.
        panels: of the plot.
        out: folder, made if it is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{result.name}.svg").write_text(to_svg(panels))
    record = json.dumps(asdict(result) | {"verdict": result.verdict}, indent=2, allow_nan=False)
    (out / f"{result.name}.json").write_text(record + "\n")
    page = out / f"{result.name}.md"
    page.write_text("\n".join(_page(result, _learned(result, page))) + "\n")


def _learned(result: Result, page: Path) -> str:
    lines = page.read_text().splitlines() if page.exists() else []
    written = [line for line in lines if line.startswith(_LEARNED)]
    if written and lines[0] == _title(result):
        return written[0]
    broken = [rule.rule for rule in result.rules if not rule.holds]
    return _LEARNED + ("it holds as stated." if not broken else f"it does not hold: {'; '.join(broken)}.")


def _title(result: Result) -> str:
    return f"# {result.name}: {result.verdict}"


def _page(result: Result, learned: str) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    rules = [[rule.rule, rule.measured, "yes" if rule.holds else "no"] for rule in result.rules]
    numbers = [
        [name, f"{number.mean:.4g}", f"{number.low:.4g} to {number.high:.4g}", _values(number)]
        for name, number in result.numbers.items()
    ]
    return [
        _title(result), "", result.claim, "", f"Source: {result.source}", "", f"Compared: {result.compared}", "",
        learned, "", f"![{result.name}]({result.name}.svg)", "",
        *markdown_table(["rule", "measured", "holds"], rules), "",
        *markdown_table(["number", "mean", f"{CONFIDENCE:.0%} interval", "of each seed"], numbers), "",
        "Intervals are Student's t over the seeds.", "",
        f"- command: `{result.command}`", f"- date: {result.date}", f"- seeds: {', '.join(map(str, result.seeds))}",
        f"- seconds: {result.seconds}, one thread", f"- versions: {versions}",
    ]  # fmt: skip


def _values(number: Interval) -> str:
    return ", ".join(f"{value:.4g}" for value in number.values)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table.

    Args:
        columns: names.
        rows: text, one for each column.

    Returns:
        The lines.
    """
    lines = ([cell.replace("|", "\\|") for cell in cells] for cells in (columns, ["---"] * len(columns), *rows))
    return [f"| {' | '.join(cells)} |" for cells in lines]
