"""What `gsforge plan` found, as numbers and as tables."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from gsforge.training.rank_memory import RankMemory

_STRATEGIES = {"one process": "one process", "ddp": "DDP", "sharded": "FSDP2"}
_BESIDES = (
    "Bytes of tensors. The allocator's fragments, CUDA's context and the libraries' workspaces come on top; "
    "blocks that torch.compile has compiled keep less."
)


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters of a part of a model.

    Attributes:
        trainable: that are trained.
        frozen: that are not.
    """

    trainable: int
    frozen: int


@dataclass(frozen=True)
class StepReport:
    """Cost of a training step as it is configured.

    Attributes:
        flops: of a sample, forward and backward.
        frozen_flops: the part of them in networks that are not trained.
        kept_per_sample: bytes that the forward pass keeps for the backward pass, of a sample.
        kept_fixed: such bytes whatever the batch.
        precision: of the trainer.
        left_out: what is not counted.
    """

    flops: int
    frozen_flops: int
    kept_per_sample: int
    kept_fixed: int
    precision: str
    left_out: str | None


@dataclass(frozen=True)
class DataSize:
    """Size of a training set.

    Attributes:
        samples: in the set, where its loader tells.
        shards: files that they are in, where the data tell.
        batches: whole batches of an epoch.
    """

    samples: int | None
    shards: int | None
    batches: int


@dataclass(frozen=True)
class Duration:
    """Length of a training.

    Attributes:
        steps: of the optimiser.
        samples: seen in all, repeated ones too.
        samples_per_second: of all ranks, where known.
        seconds: in training steps, where known.
    """

    steps: int
    samples: int
    samples_per_second: float | None
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """Everything that `gsforge plan` tells.

    Attributes:
        parameters: part of the model -> its parameters.
        memory: of a rank, for several ways to run.
        legal_ranks: number of ranks -> samples of a batch on each.
        step: cost of a step, where it can be found.
        data: size of the training set, where it is there.
        duration: length of the training, where the configuration says it.
        unknown: what could not be found -> why.
    """

    parameters: dict[str, Parameters]
    memory: list[RankMemory]
    legal_ranks: dict[int, int]
    step: StepReport | None
    data: DataSize | None
    duration: Duration | None
    unknown: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All numbers, in plain types.

        Returns:
            Nested dictionaries; bytes, FLOPs and seconds.
        """
        numbers = asdict(self)
        numbers["memory"] = [asdict(memory) | {"total": memory.total} for memory in self.memory]
        return numbers


def print_plan(plan: Plan, console: Console) -> None:
    """Show a plan.

    Args:
        plan: what was found.
        console: where.
    """
    console.print(_parameters_table(plan))
    for line in _step_lines(plan):
        console.print(line, markup=False)
    console.print(_memory_table(plan))
    console.print(_BESIDES, style="dim")
    for line in _run_lines(plan):
        console.print(line, markup=False)
    for name, reason in plan.unknown.items():
        console.print(f"{name}: not known, {reason}", style="yellow", markup=False)


def _parameters_table(plan: Plan) -> Table:
    table = Table(title="parameters", title_justify="left")
    table.add_column("part")
    for name in ("trainable", "frozen"):
        table.add_column(name, justify="right")
    for name, count in plan.parameters.items():
        table.add_row(name, f"{count.trainable:,}", f"{count.frozen:,}")
    counts = plan.parameters.values()
    total = sum(count.trainable for count in counts), sum(count.frozen for count in counts)
    table.add_section()
    table.add_row("all", *(f"{number:,}" for number in total))
    return table


def _memory_table(plan: Plan) -> Table:
    # Without a cost of the step, activations would read as none.
    parts = ["weights", "gradients", "optimizer", "averages", "exchange"]
    parts += ["activations", "total"] if plan.step is not None else []
    large = any(row.total >= 1e9 for row in plan.memory)
    unit, size = ("GB", 1e9) if large else ("MB", 1e6)
    table = Table(title=f"memory of a rank, {unit}, at the moment that needs most", title_justify="left")
    for name in ("ranks", "batch"):
        table.add_column(name, justify="right")
    for name in ("strategy", "blocks"):
        table.add_column(name)
    for name in parts:
        table.add_column(name, justify="right")
    ranks = None
    for row in plan.memory:
        if ranks not in (None, row.ranks):
            table.add_section()
        ranks = row.ranks
        blocks = "recomputed" if row.checkpointed else "kept"
        values = (f"{getattr(row, part) / size:.2f}" for part in parts)
        batch = f"{row.samples}" if row.batches == 1 else f"{row.batches} x {row.samples}"
        table.add_row(str(row.ranks), batch, _STRATEGIES[row.strategy], blocks, *values)
    return table


def _step_lines(plan: Plan) -> Iterator[str]:
    if (step := plan.step) is None:
        return
    yield (
        f"a sample in a training step ({step.precision}): {_scaled(step.flops, 'FLOP')}, of which "
        f"{_scaled(step.frozen_flops, 'FLOP')} in frozen networks; it keeps {step.kept_per_sample / 1e6:,.1f} MB for "
        f"the backward pass, and the batch {step.kept_fixed / 1e6:,.1f} MB more"
    )
    if step.left_out:
        yield f"not counted: {step.left_out}"


def _run_lines(plan: Plan) -> Iterator[str]:
    if plan.legal_ranks:
        batch = max(plan.legal_ranks)
        shares = ", ".join(f"{ranks} ({samples})" for ranks, samples in plan.legal_ranks.items())
        yield f"batch of {batch:,}, ranks it can be shared out to (samples of each): {shares}"
    if plan.data is not None:
        yield _data_line(plan.data, sorted({row.ranks for row in plan.memory}))
    if (duration := plan.duration) is not None:
        epochs = f", {duration.samples / plan.data.samples:,.1f} epochs" if plan.data and plan.data.samples else ""
        yield f"training: {duration.steps:,} steps, {duration.samples:,} samples{epochs}"
        if duration.seconds is not None:
            yield (
                f"time: {_clock(duration.seconds)} at {duration.samples_per_second:,.1f} samples per second, without "
                "validations and starts"
            )


def _data_line(data: DataSize, ranks: list[int]) -> str:
    line = f"training set: {data.batches:,} batches an epoch"
    if data.samples is not None:
        line += f", {data.samples:,} samples"
    if data.shards is not None:
        shares = ", ".join(f"{data.shards / number:,.1f} on {number}" for number in ranks)
        line += f" in {data.shards:,} shards (for each rank: {shares})"
    return line


def _scaled(value: float, unit: str) -> str:
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if value >= size:
            return f"{value / size:,.1f} {prefix}{unit}"
    return f"{value / 1e6:,.1f} M{unit}"


def _clock(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
