"""What a benchmark found, and the ratios drawn from it."""

import statistics
from dataclasses import dataclass

from benchmarks.speed.captured import CapturedResult
from benchmarks.speed.measure import Timing
from benchmarks.speed.peers import Agreement
from benchmarks.speed.scenes import Cell

# Additions and multiplications for one pair of Gaussian and pixel, counted by hand.
# Forward: exponent 3, exponential 13, transmittance 2, weight 1, three colours 6.
FORWARD_FLOP = 25
# Backward: exponent 3, exponential 13, transmittance 2, weight and gradient to alpha 10, colours 6, moments 6.
STEP_FLOP = FORWARD_FLOP + 40


@dataclass(frozen=True)
class CellResult:
    """All contenders on one scene; ours comes first in every dictionary.

    Attributes:
        cell: what was drawn.
        pairs: pairs of a Gaussian and a pixel that it is drawn in.
        forward: time of drawing without gradient, by contender.
        step: time of drawing and differentiating.
        memory_mb: megabytes added at the peak of a step; None where it cannot be measured.
        agreement: of the peers with ours.
    """

    cell: Cell
    pairs: int
    forward: dict[str, Timing]
    step: dict[str, Timing]
    memory_mb: dict[str, float | None]
    agreement: dict[str, Agreement]

    def ratio(self, peer: str, *, shim: bool = True) -> float:
        """CPU time of a peer's step over that of ours.

        Args:
            peer: name of the contender.
            shim: whether the parts that were supplied to the peer count.

        Returns:
            The ratio.
        """
        theirs, ours = self.step[peer], next(iter(self.step.values()))
        return (theirs.cpu_ms if shim else theirs.without_shim) / ours.cpu_ms

    def gflops(self) -> tuple[float, float]:
        """Useful arithmetic of our forward pass and of our step over their CPU time.

        Returns:
            Two numbers in GFLOP/s.
        """
        forward, step = next(iter(self.forward.values())), next(iter(self.step.values()))
        return self.pairs * FORWARD_FLOP / forward.cpu_ms / 1e6, self.pairs * STEP_FLOP / step.cpu_ms / 1e6


@dataclass(frozen=True)
class ContributionResult:
    """The cost of asking what each Gaussian contributes.

    Attributes:
        cell: what was drawn.
        step: time by loss of the contribution; `none` without one.
    """

    cell: Cell
    step: dict[str, Timing]


@dataclass(frozen=True)
class ScalingResult:
    """Our step with several threads.

    Attributes:
        cell: what was drawn.
        step: time by number of threads.
        gain: what the largest number of threads gives at best, see `measure.parallel_gain`.
    """

    cell: Cell
    step: dict[int, Timing]
    gain: float


@dataclass(frozen=True)
class Results:
    """Everything that one run measured.

    Attributes:
        command: that was typed.
        machine: processor, cores, versions, load.
        threads: that every contender was given.
        peak_gflops: multiply-adds that one core does at best, GFLOP/s.
        cells: the comparison.
        contribution: the cost of a contribution.
        scaling: over threads.
        captured: scenes drawn by all our backends.
    """

    command: str
    machine: dict[str, str]
    threads: int
    peak_gflops: float
    cells: list[CellResult]
    contribution: list[ContributionResult]
    scaling: list[ScalingResult]
    captured: list[CapturedResult]

    @property
    def peers(self) -> list[str]:
        """Names of the contenders but ours."""
        return list(self.cells[0].step)[1:]

    def ratio(self, peer: str, *, shim: bool = True) -> float:
        """Median over the scenes of `CellResult.ratio`.

        Args:
            peer: name of the contender.
            shim: whether the parts that were supplied to the peer count.

        Returns:
            The ratio.
        """
        return statistics.median(cell.ratio(peer, shim=shim) for cell in self.cells)
