"""When a claim passes: what is asked of which numbers. The sentence is made of the condition, so the two agree."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.claims.statistics import Interval

Numbers = Mapping[str, Interval]
_MOST_SHOWN = 3


@dataclass(frozen=True)
class Condition:
    """What is asked of a number.

    Attributes:
        text: the end of a sentence that begins with what is judged.
        margin: by how much a number passes; it fails from 0 down.
        shown: how a number is written beside the rule.
    """

    text: str
    margin: Callable[[Interval], float]
    shown: Callable[[Interval], str]


def mean_above(bound: float) -> Condition:
    """The whole 95 % interval of the mean lies above a bound.

    Args:
        bound: not itself enough.

    Returns:
        The condition.
    """
    return Condition(f"mean over seeds above {bound:g}, with its interval", lambda number: number.low - bound, str)


def mean_below(bound: float) -> Condition:
    """The whole 95 % interval of the mean lies below a bound.

    Args:
        bound: not itself enough.

    Returns:
        The condition.
    """
    return Condition(f"mean over seeds below {bound:g}, with its interval", lambda number: bound - number.high, str)


def every_above(bound: float) -> Condition:
    """Above a bound with every seed.

    Args:
        bound: not itself enough.

    Returns:
        The condition.
    """
    return Condition(
        f"above {bound:g} with every seed",
        lambda number: min(number.values) - bound,
        lambda number: f"at least {min(number.values):.5g}",
    )


def every_below(bound: float) -> Condition:
    """Below a bound with every seed.

    Args:
        bound: not itself enough.

    Returns:
        The condition.
    """
    return Condition(
        f"below {bound:g} with every seed",
        lambda number: bound - max(number.values),
        lambda number: f"at most {max(number.values):.5g}",
    )


@dataclass(frozen=True)
class Judged:
    """A rule and what became of it.

    Attributes:
        rule: as a sentence.
        measured: the numbers it asks of.
        holds: whether it does.
    """

    rule: str
    measured: str
    holds: bool


@dataclass(frozen=True)
class Rule:
    """A condition that one or more numbers have to meet.

    Attributes:
        subject: what the numbers are, in words.
        numbers: their names.
        condition: that each of them has to meet.
    """

    subject: str
    numbers: tuple[str, ...]
    condition: Condition

    @property
    def sentence(self) -> str:
        """The rule in words."""
        return f"{self.subject}: {self.condition.text}"

    def judge(self, numbers: Numbers) -> Judged:
        """Apply the rule.

        Args:
            numbers: all that were measured.

        Returns:
            Whether every number passes. What is nearest to failing comes first.
        """
        judged = sorted(self.numbers, key=lambda name: self.condition.margin(numbers[name]))
        shown = [(f"{name}: " if len(judged) > 1 else "") + self.condition.shown(numbers[name]) for name in judged]
        if len(shown) > _MOST_SHOWN:
            shown = [*shown[:1], f"nearest to failing of {len(shown)}"]
        return Judged(self.sentence, "; ".join(shown), self.condition.margin(numbers[judged[0]]) > 0)
