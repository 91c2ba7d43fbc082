"""What an optimiser keeps of each weight, found by a step of its own with weights of a few numbers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

# Sides of the small weights that an optimiser is tried on: no two alike, so that it can be seen which side of a weight
# a side of a state follows.
_SIDES = (3, 5, 7, 11, 13, 17, 19)


@dataclass(frozen=True)
class State:
    """A state that an optimiser keeps of one weight.

    Attributes:
        sides: of the state: the number of a side of the weight, as -1 - number, or a length.
        itemsize: bytes of an element.
    """

    sides: tuple[int, ...]
    itemsize: int

    def bytes(self, shape: Sequence[int]) -> int:
        """Size.

        Args:
            shape: of the weight.

        Returns:
            Bytes of the state.
        """
        return math.prod(shape[-1 - side] if side < 0 else side for side in self.sides) * self.itemsize


def optimizer_states(optimizer: Optimizer) -> Iterator[tuple[Tensor, tuple[State, ...]]]:
    """Find what an optimiser keeps, by a step with small weights that have as many sides as the model's.

    Args:
        optimizer: any; it has the small weights afterwards.

    Yields:
        A weight of the model and its states.

    Raises:
        ValueError: if it cannot take a step alone.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    small: dict[int, Tensor] = {id(weight): _small(weight) for weight in weights}
    for group in optimizer.param_groups:
        group["params"] = [small[id(weight)] for weight in group["params"]]
    try:
        optimizer.step()
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{type(optimizer).__name__} does not take a step by itself: {error}") from error
    for weight in weights:
        values = optimizer.state[small[id(weight)]].values()
        tensors = [value for value in values if isinstance(value, Tensor)]
        yield weight, tuple(State(_sides(tensor, small[id(weight)]), tensor.element_size()) for tensor in tensors)


def _small(weight: Tensor) -> Tensor:
    shape = [1 if length == 1 else side for length, side in zip(weight.shape, _SIDES, strict=False)]
    small = torch.zeros(shape, dtype=weight.dtype, device="cpu", requires_grad=True)
    small.grad = torch.zeros_like(small)
    return small


def _sides(state: Tensor, small: Tensor) -> tuple[int, ...]:
    numbers = {length: -1 - number for number, length in enumerate(small.shape) if length > 1}
    return tuple(numbers.get(length, length) for length in state.shape)
