"""Results as tables on the terminal, as Markdown and as JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.speed.measure import Timing
from benchmarks.speed.results import FORWARD_FLOP, STEP_FLOP, Results


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        title: heading.
        columns: names.
        rows: text, one for each column.
        note: what has to be known to read it.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str

    def show(self, console: Console) -> None:
        """Print it.

        Args:
            console: to print on.
        """
        table = Table(*self.columns, title=self.title)
        for row in self.rows:
            table.add_row(*row)
        console.print(table, self.note, "")


def show(results: Results, out: Path, console: Console) -> None:
    """Print the tables; the last line is the ratio to the first peer, gsplat's torch code.

    Args:
        results: to print.
        out: folder that `write` was given.
        console: to print on.
    """
    for sheet in _sheets(results):
        sheet.show(console)
    console.print(*_facts(results), f"written to {out / 'rasterize.md'} and {out / 'rasterize.json'}", sep="\n")
    for peer in reversed(results.peers):
        console.print(f"ratio {peer} forward+backward {results.ratio(peer):.2f}")


def write(results: Results, out: Path) -> None:
    """Write `rasterize.md` and `rasterize.json`.

    Args:
        results: to write.
        out: an existing folder.
    """
    record = asdict(results) | {"ratio": {peer: results.ratio(peer) for peer in results.peers}}
    (out / "rasterize.json").write_text(json.dumps(record, indent=2) + "\n")
    lines = ["# Speed of the rasteriser on the CPU", "", *(f"- {fact}" for fact in _facts(results))]
    for sheet in _sheets(results):
        lines += ["", f"## {sheet.title}", "", _line(sheet.columns), _line(["---"] * len(sheet.columns))]
        lines += [*(_line(row) for row in sheet.rows), "", sheet.note]
    for scene in results.captured:
        lines += ["", f"![{scene.name}: the backends side by side]({scene.picture})"]
    (out / "rasterize.md").write_text("\n".join(lines) + "\n")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _facts(results: Results) -> list[str]:
    ratios = []
    for peer in results.peers:
        with_shim, without = results.ratio(peer), results.ratio(peer, shim=False)
        ratios.append(
            f"{peer}: forward+backward takes {with_shim:.2f} times our CPU time, median over the scenes"
            + (f"; {without:.2f} without its shim" if without < with_shim else "")
        )
    return [
        f"command: {results.command}",
        *(f"{name}: {value}" for name, value in results.machine.items()),
        f"threads: {results.threads}",
        f"best of one core: {results.peak_gflops:.0f} GFLOP/s of multiply-adds in single precision",
        *ratios,
    ]


def _sheets(results: Results) -> Iterator[Sheet]:
    yield _times(results)
    yield _ratios(results)
    yield _limit(results)
    yield _agreements(results)
    yield _contribution(results)
    yield _scaling(results)
    if results.captured:
        yield _captured(results)


def _times(results: Results) -> Sheet:
    rows = []
    for cell in results.cells:
        for name, step in cell.step.items():
            times = [_ms(cell.forward[name]), _ms(step)]
            rows.append([str(cell.cell), name, *times, str(step.rounds), _megabytes(cell.memory_mb[name])])
    return Sheet(
        "Milliseconds of CPU (wall)",
        ["scene", "", "forward", "forward+backward", "rounds", "MB added"],
        rows,
        "One call each, medians over rounds in turns. MB: what forward+backward adds at its peak.",
    )


def _ms(timing: Timing) -> str:
    return f"{_three_digits(timing.cpu_ms)} ({_three_digits(timing.wall_ms)})"


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _megabytes(memory: float | None) -> str:
    return "not available" if memory is None else f"{memory:.0f}"


def _ratios(results: Results) -> Sheet:
    rows = []
    for cell in results.cells:
        ours = next(iter(cell.forward.values()))
        for peer in results.peers:
            forward, step = cell.forward[peer].cpu_ms / ours.cpu_ms, cell.step[peer]
            shim = ["", ""]
            if step.shim_ms:
                shim = [f"{cell.ratio(peer, shim=False):.2f}", f"{step.shim_ms / step.cpu_ms:.0%}"]
            rows.append([str(cell.cell), peer, f"{forward:.2f}", f"{cell.ratio(peer):.2f}", *shim])
    return Sheet(
        "CPU time of the peers over ours",
        ["scene", "peer", "forward", "forward+backward", "without shim", "share of shim"],
        rows,
        "Shim: the parts that gsplat lacks on a CPU and that this benchmark supplies; without: as if they were free.",
    )


def _limit(results: Results) -> Sheet:
    rows = []
    for cell in results.cells:
        shares = [f"{gflops / results.peak_gflops:.1%}" for gflops in cell.gflops()]
        rows.append([str(cell.cell), f"{cell.pairs / 1e6:.2f}", *shares])
    return Sheet(
        "Our share of the arithmetic limit",
        ["scene", "million pairs", "forward", "forward+backward"],
        rows,
        "Pairs of a Gaussian and a pixel that it is drawn in. Only their arithmetic counts as useful "
        f"({FORWARD_FLOP} operations forward, {STEP_FLOP - FORWARD_FLOP} backward), at the best rate of one core.",
    )


def _agreements(results: Results) -> Sheet:
    rows = []
    for cell in results.cells:
        for peer, agreement in cell.agreement.items():
            gradients = [f"{error:.1e}" for error in agreement.gradients.values()]
            rows.append([str(cell.cell), peer, f"{agreement.image_mean:.1e} / {agreement.image_max:.1e}", *gradients])
    gradients = list(next(iter(results.cells[0].agreement.values())).gradients)
    return Sheet(
        "Difference of the peers from ours",
        ["scene", "peer", "image: mean / max", *gradients],
        rows,
        "Gradients: norm of the difference over the norm of ours.",
    )


def _contribution(results: Results) -> Sheet:
    rows = []
    for result in results.contribution:
        base = result.step["none"]
        factors = [f"{step.cpu_ms / base.cpu_ms:.2f}" for loss, step in result.step.items() if loss != "none"]
        rows.append([str(result.cell), _ms(base), *factors])
    losses = [f"with {loss}, times" for loss in results.contribution[0].step if loss != "none"]
    return Sheet(
        "Cost of the exact contribution of every Gaussian to the loss",
        ["scene", "step without, ms of CPU (wall)", *losses],
        rows,
        "CPU time of a step that also gives the contributions over one that does not.",
    )


def _scaling(results: Results) -> Sheet:
    counts = list(results.scaling[0].step)
    return Sheet(
        "Our forward and backward over threads",
        [
            "scene",
            *(f"{count} thread{'s' if count > 1 else ''}, ms of CPU (wall)" for count in counts),
            "speed-up",
            "at best",
        ],
        [
            [
                str(result.cell),
                *(_ms(result.step[count]) for count in counts),
                f"{result.step[counts[0]].wall_ms / result.step[counts[-1]].wall_ms:.2f}",
                f"{result.gain:.2f}",
            ]
            for result in results.scaling
        ],
        "Speed-up: wall time with one thread over wall time with all. At best: what as many threads give to arithmetic "
        "that needs no memory, measured just after; below their number where others use the cores.",
    )


def _captured(results: Results) -> Sheet:
    rows = []
    for scene in results.captured:
        for backend, difference in scene.differences.items():
            numbers = [f"{difference.mean:.1e}", f"{difference.largest:.1e}", f"{difference.above:.1e}"]
            rows.append([scene.name, str(scene.gaussians), backend, *numbers])
    return Sheet(
        "Captured scenes: difference from the reference in float64",
        ["scene", "Gaussians", "backend", "mean", "largest", "share above 1e-4"],
        rows,
        "Colours in [0, 1] over white. Single pixels differ where a Gaussian is at the threshold of being drawn.",
    )
