"""Memory of one rank of a training run, by what takes it: weights, gradients, optimiser, averages, activations."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from gsforge.training.optimizer_states import State, optimizer_states
from gsforge.training.step_cost import StepCost

Strategy = Literal["one process", "ddp", "sharded"]
Average = Literal["none", "trained", "all"]
"""Which weights a moving average is kept of; Lightning's own keeps all."""

_GATHERED = 3  # times a block's whole weights, or gradients, on a rank: in use, the next or last one's, and in transit


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank at the moment of the step that needs most.

    Attributes:
        strategy: how the ranks share the work.
        ranks: how many.
        samples: of a batch on a rank.
        batches: of a step on a rank; gradients are accumulated where there are several.
        checkpointed: whether blocks are computed again in the backward pass.
        weights: parameters and buffers.
        gradients: those a rank keeps.
        optimizer: states of the optimiser.
        averages: averaged weights.
        exchange: copies for the exchange with other ranks: buckets of DDP, gathered blocks of FSDP2.
        activations: what the forward pass keeps, and what the step needs for a moment.
    """

    strategy: Strategy
    ranks: int
    samples: int
    batches: int
    checkpointed: bool
    weights: int
    gradients: int
    optimizer: int
    averages: int
    exchange: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes of everything."""
        parts = (self.weights, self.gradients, self.optimizer, self.averages, self.exchange, self.activations)
        return sum(parts)


@dataclass(frozen=True)
class Weight:
    """A trained weight.

    Attributes:
        shape: its shape.
        itemsize: bytes of an element.
        states: what the optimiser keeps of it.
    """

    shape: tuple[int, ...]
    itemsize: int
    states: tuple[State, ...]

    def part(self, ranks: int) -> tuple[int, ...]:
        """What FSDP2 leaves on the rank with most of it.

        Args:
            ranks: that share it.

        Returns:
            Shape; the first side is divided.
        """
        return (math.ceil(self.shape[0] / ranks), *self.shape[1:]) if self.shape else ()


@dataclass(frozen=True)
class ModelMemory:
    """What a model takes besides activations.

    Attributes:
        trained: weights that are trained.
        rest: bytes of weights that are not, and of buffers.
        units: bytes of the weights of each block that FSDP2 gathers alone, and of all outside of blocks at the end;
            empty where the model cannot be sharded.
        averaged: whether a moving average of the trained weights is kept.
        rest_averaged: whether it holds all others too, and is never sharded, as that of Lightning.
    """

    trained: tuple[Weight, ...]
    rest: int
    units: tuple[int, ...] = ()
    averaged: bool = False
    rest_averaged: bool = False

    def on_rank(
        self,
        strategy: Strategy,
        ranks: int,
        batches: tuple[int, int],
        step: StepCost | None,
        checkpointed: bool = False,
    ) -> RankMemory:
        """Add it up.

        Args:
            strategy: how the ranks share the work.
            ranks: how many.
            batches: samples of a batch on a rank, and batches of a step.
            step: cost of a step; without it activations count as nothing.
            checkpointed: whether the step computes blocks again in the backward pass.

        Returns:
            Memory of the rank that has most of it.
        """
        shared = ranks if strategy == "sharded" else 1
        parts = [weight.part(shared) for weight in self.trained]
        trained = sum(math.prod(part) * weight.itemsize for part, weight in zip(parts, self.trained, strict=True))
        states = sum(
            state.bytes(part) for part, weight in zip(parts, self.trained, strict=True) for state in weight.states
        )
        whole = sum(math.prod(weight.shape) * weight.itemsize for weight in self.trained)
        averages = (whole + self.rest if self.rest_averaged else trained) if self.averaged else 0
        peak = step.peak(batches[0], trained, accumulated=batches[1] > 1) if step is not None else trained
        return RankMemory(
            strategy=strategy,
            ranks=ranks,
            samples=batches[0],
            batches=batches[1],
            checkpointed=checkpointed,
            weights=trained + self.rest,
            gradients=trained,
            optimizer=states,
            averages=averages,
            exchange=self._exchange(strategy, ranks, whole),
            activations=peak - trained,
        )

    def _exchange(self, strategy: Strategy, ranks: int, trained: int) -> int:
        if strategy == "ddp":
            return trained if ranks > 1 else 0
        if strategy == "sharded" and self.units:
            *blocks, outside = self.units
            return 2 * (outside + _GATHERED * max(blocks))  # weights and gradients
        return 0


def describe_model(
    model: nn.Module, optimizers: Iterable[Optimizer], average: Literal["none", "trained", "all"]
) -> ModelMemory:
    """Read off a model what it takes; no values are needed.

    Args:
        model: the model; what has a property `units` can be sharded, block by block.
        optimizers: of the model; they are not usable afterwards.
        average: which weights a moving average is kept of.

    Returns:
        Its memory.

    Raises:
        ValueError: for an optimiser whose states cannot be found by one step.
    """
    states = {id(weight): found for optimizer in optimizers for weight, found in optimizer_states(optimizer)}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    rest = [weight for weight in model.parameters() if not weight.requires_grad] + list(model.buffers())
    return ModelMemory(
        trained=tuple(
            Weight(tuple(weight.shape), weight.element_size(), states.get(id(weight), ())) for weight in trained
        ),
        rest=sum(_bytes(tensor) for tensor in rest),
        units=_units(model),
        averaged=average != "none",
        rest_averaged=average == "all",
    )


def shardable(model: nn.Module) -> list[Any]:
    """Networks that say which blocks can be sharded and computed again one by one.

    Args:
        model: searched for them.

    Returns:
        Modules with a property `units`.
    """
    return [module for module in model.modules() if isinstance(getattr(type(module), "units", None), property)]


def legal_ranks(batch_size: int) -> list[int]:
    """Numbers of ranks that a batch can be shared out to evenly.

    Args:
        batch_size: samples of a batch over all ranks.

    Returns:
        Its divisors, rising.
    """
    low = [number for number in range(1, math.isqrt(batch_size) + 1) if batch_size % number == 0]
    return sorted({*low, *(batch_size // number for number in low)})


def _units(model: nn.Module) -> tuple[int, ...]:
    blocks, outside = [], 0
    for network in shardable(model):
        sizes = [sum(_bytes(weight) for weight in unit.parameters()) for unit in network.units]
        outside += sum(_bytes(weight) for weight in network.parameters()) - sum(sizes)
        blocks += sizes
    return (*blocks, outside) if blocks else ()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
