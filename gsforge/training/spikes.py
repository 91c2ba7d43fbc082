"""Losses that lie far above the usual."""

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from gsforge.core.errors import GsforgeError

# Of a normal distribution: standard deviation / median absolute deviation.
_NORMAL = 1.4826
# A loss that hardly varies must still rise by `threshold` per cent of itself.
_SMALLEST_SCALE = 0.01


class DivergedError(GsforgeError):
    """Too many training steps in a row had a loss far above the usual."""


@dataclass
class SpikeConfig:
    """What counts as a spike of the loss, and what follows.

    Attributes:
        threshold: a loss above median + threshold * scale is a spike. The scale is the median absolute deviation, as a
            standard deviation, and at least 1 % of the median. None: losses are not watched.
        window: number of losses that median and scale are taken from; none is judged before there are so many.
        skip: leave weights and optimiser state as they are for a step with a spike.
        stop_after: stop the run after so many spikes in a row, at most half of `window`: later ones pass for usual.
            None: never, for a loss may rise for good where a term sets in.
    """

    threshold: float | None = 20.0
    window: int = 100
    skip: bool = False
    stop_after: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work."""
        if self.window < 2 or (self.threshold is not None and not self.threshold > 0):
            raise ValueError(
                f"guard.spikes: expected threshold > 0 and window >= 2, got {self.threshold} and {self.window}"
            )
        if self.stop_after is not None and not 1 <= self.stop_after <= self.window // 2:
            raise ValueError(
                f"guard.spikes.stop_after: expected at least 1 and at most half of the window of {self.window} losses, "
                f"got {self.stop_after}"
            )


class Spike(NamedTuple):
    """A loss far above the usual.

    Attributes:
        loss: the loss.
        usual: median of those before it.
        limit: what it should have stayed below.
    """

    loss: float
    usual: float
    limit: float


class LossWindow:
    """The last losses, and how many spikes in a row they end with.

    Args:
        config: what counts as a spike.
    """

    def __init__(self, config: SpikeConfig):
        self.config = config
        self.in_a_row = 0
        self._losses: deque[float] = deque(maxlen=config.window)

    def add(self, loss: float) -> Spike | None:
        """Judge a loss by those before it, and remember it, spike or not: a lasting rise becomes the usual.

        Args:
            loss: finite, the same on all ranks.

        Returns:
            The spike, if it is one.
        """
        spike = self._judge(loss)
        self._losses.append(loss)
        self.in_a_row = self.in_a_row + 1 if spike else 0
        return spike

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to judge as the run that was never stopped."""
        return {"losses": list(self._losses), "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; a shorter window takes the newest losses."""
        self._losses = deque(state_dict["losses"], maxlen=self.config.window)
        self.in_a_row = state_dict["in_a_row"]

    def _judge(self, loss: float) -> Spike | None:
        if self.config.threshold is None or len(self._losses) < self.config.window:
            return None
        usual = median(self._losses)
        scale = max(_NORMAL * median(abs(other - usual) for other in self._losses), _SMALLEST_SCALE * abs(usual))
        limit = usual + self.config.threshold * scale
        return Spike(loss, usual, limit) if loss > limit and scale > 0 else None
