"""`gsforge plan`: what a training will need, told before it is queued."""

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console
from torch.optim import Optimizer

from gsforge.cli.plan_config import PlannedRun
from gsforge.cli.plan_report import DataSize, Duration, Parameters, Plan, StepReport, print_plan
from gsforge.cli.run import quieten
from gsforge.core.errors import GsforgeError
from gsforge.core.files import write_text
from gsforge.training.errors import ConfigError
from gsforge.training.rank_memory import ModelMemory, RankMemory, describe_model, legal_ranks, shardable
from gsforge.training.run_directory import RunDirectory
from gsforge.training.step_cost import StepCost, fake_weights, measure_step
from gsforge.viewer.run_data import read_curves

_RANKS = (1, 8, 32)  # shown where the configuration says no number
_THROUGHPUT = "time/samples_per_second"


def main(argv: Sequence[str]) -> int:
    """Run `gsforge plan`.

    Args:
        argv: arguments after `gsforge plan`.

    Returns:
        Exit code 0.

    Raises:
        argparse.ArgumentError: for options that cannot be used together with the configuration.
    """
    options, arguments = _parser().parse_known_args(argv)
    quieten()
    throughput = options.throughput if options.from_run is None else measured_throughput(options.from_run)
    if throughput is not None and not (throughput > 0 and math.isfinite(throughput)):
        raise argparse.ArgumentError(None, f"--throughput: expected samples per second above 0, got {throughput}")
    plan = make_plan(arguments, options.ranks, throughput)
    console = Console(highlight=False)
    print_plan(plan, console if console.is_terminal else Console(highlight=False, width=140))
    if options.json is not None:
        write_text(options.json, json.dumps(plan.as_dict(), indent=2) + "\n")
        console.print(f"written: {options.json}", markup=False, soft_wrap=True)
    return 0


def make_plan(arguments: Sequence[str], ranks: Sequence[int] = (), throughput: float | None = None) -> Plan:
    """Find what a training will need.

    Args:
        arguments: those of `gsforge fit`.
        ranks: numbers of ranks to tell the memory for; by default that of the configuration.
        throughput: samples per second of all ranks, where known.

    Returns:
        The plan.

    Raises:
        argparse.ArgumentError: for numbers of ranks that the batch cannot be shared out to.
        ConfigError: when the configuration cannot be built.
    """
    run = PlannedRun(arguments)
    legal = legal_ranks(run.batch_size) if run.batch_size else []
    numbers = _numbers_of_ranks(ranks, run.ranks, legal)
    unknown: dict[str, str] = {}
    parameters, model = _parameters(run.model), _describe(run)
    report, costs = _measure(run, unknown)
    data = _data_size(run, unknown)
    return Plan(
        parameters=parameters,
        memory=_memory(run, model, numbers, costs),
        legal_ranks={number: legal[-1] // number for number in legal},
        step=report,
        data=data,
        duration=_duration(run, throughput, unknown),
        unknown=unknown,
    )


def measured_throughput(run_dir: Path) -> float:
    """Samples per second of a run, over all its ranks.

    Args:
        run_dir: run directory with a CSV log.

    Returns:
        Median over the run.

    Raises:
        ConfigError: when it has logged none.
        FileNotFoundError: when it is no run directory.
    """
    run = RunDirectory(run_dir)
    run.config()
    points = read_curves(run).values.get(_THROUGHPUT, [])
    if not points:
        raise ConfigError(f"{run.logs / 'csv'} has no {_THROUGHPUT!r}: give a run that has trained with the CSVLogger")
    return statistics.median(value for _, value in points)


def _numbers_of_ranks(asked: Sequence[int], configured: int | None, legal: list[int]) -> list[int]:
    shown = [configured] if configured else [number for number in _RANKS if not legal or number in legal]
    numbers = sorted(set(asked)) or shown
    if wrong := [number for number in numbers if (number not in legal if legal else number < 1)]:
        raise argparse.ArgumentError(
            None,
            f"a batch of {legal[-1] if legal else 1} cannot be shared out to {wrong[0]} ranks: expected one of "
            f"{legal or '1, 2, ...'}, or another data.init_args.batch_size",
        )
    return numbers


def _parameters(model: LightningModule) -> dict[str, Parameters]:
    parts = {name: list(part.parameters()) for name, part in model.named_children()}
    parts["(itself)"] = list(model.parameters(recurse=False))
    found = {}
    for name, weights in parts.items():
        trainable = sum(weight.numel() for weight in weights if weight.requires_grad)
        if weights:
            found[name] = Parameters(trainable, sum(weight.numel() for weight in weights) - trainable)
    return found


def _describe(run: PlannedRun) -> ModelMemory:
    with fake_weights(run.model, run.precision[1]):
        run.add_optimizers()
        optimizers = _optimizers(run.model.configure_optimizers())
    try:
        return describe_model(run.model, optimizers, run.average)
    except ValueError as error:
        raise ConfigError(f"memory of the optimiser: {error}") from error


def _optimizers(configured: Any) -> list[Optimizer]:
    """All in what `configure_optimizers` gave, in any of the forms that Lightning takes."""
    if isinstance(configured, Optimizer):
        return [configured]
    if isinstance(configured, Mapping):
        return _optimizers(configured.get("optimizer"))
    if isinstance(configured, Sequence):
        return [optimizer for entry in configured for optimizer in _optimizers(entry)]
    return []


def _measure(run: PlannedRun, unknown: dict[str, str]) -> tuple[StepReport | None, dict[bool, StepCost | None]]:
    """Cost of a step as configured; and by whether blocks are computed again in the backward pass."""
    name, networks = type(run.model).__name__, shardable(run.model)
    networks = [network for network in networks if isinstance(getattr(network, "checkpointing", None), bool)]
    configured = any(network.checkpointing for network in networks)
    costs: dict[bool, StepCost] = {}
    if not callable(example := getattr(run.model, "example_step", None)):
        unknown["cost of a step"] = f"{name} has no `example_step`, a training step on made-up data"
        return None, {configured: None}
    warnings.filterwarnings("ignore", message=r"You are trying to `self\.log\(\)`")  # steps run without a trainer
    try:
        for checkpointing in (False, True) if networks else (False,):
            for network in networks:
                network.checkpointing = checkpointing
            costs[checkpointing] = measure_step(run.model, example, *run.precision)
    except RuntimeError as error:
        unknown["cost of a step"] = f"{name}.example_step does not run on tensors without contents: {error}"
        return None, {configured: None}
    cost = costs[configured]
    report = StepReport(
        flops=cost.flops,
        frozen_flops=cost.frozen_flops,
        kept_per_sample=cost.kept.per_sample,
        kept_fixed=cost.kept.fixed,
        precision=str(run.config.trainer.precision or "32-true"),
        left_out=getattr(run.model, "example_leaves_out", None),
    )
    return report, dict(costs)


def _memory(
    run: PlannedRun, model: ModelMemory, ranks: Sequence[int], costs: dict[bool, StepCost | None]
) -> list[RankMemory]:
    found = []
    for number in ranks:
        batches = run.batches_of_step(number)
        for checkpointed, cost in costs.items():
            found.append(model.on_rank("ddp" if number > 1 else "one process", number, batches, cost, checkpointed))
            if number > 1 and model.units:
                found.append(model.on_rank("sharded", number, batches, cost, checkpointed))
    return found


def _data_size(run: PlannedRun, unknown: dict[str, str]) -> DataSize | None:
    data = run.datamodule
    if data is None:
        unknown["training set"] = "the configuration names no `data`"
        return None
    try:
        return _read_size(data)
    except (GsforgeError, OSError) as error:
        unknown["training set"] = str(error)
        return None


def _read_size(data: LightningDataModule) -> DataSize:
    # One epoch, so that the loader's length is that of an epoch; the data modules of the project ask their trainer.
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    data.trainer = Trainer(accelerator="cpu", devices=1, max_epochs=1, **quiet)  # type: ignore[arg-type]
    parts = data.trainer.accumulate_grad_batches = getattr(data, "parts", 1)
    data.setup("fit")
    loader = data.train_dataloader()
    samples = len(loader.dataset) if hasattr(loader, "dataset") else None
    return DataSize(samples, getattr(data, "training_shards", None), len(loader) // parts)


def _duration(run: PlannedRun, throughput: float | None, unknown: dict[str, str]) -> Duration | None:
    steps, samples = run.config.trainer.max_steps, run.step_samples
    if steps <= 0 or samples is None:
        unknown["time"] = "it takes trainer.max_steps and data.init_args.batch_size"
        return None
    seconds = steps * samples / throughput if throughput else None
    return Duration(steps, steps * samples, throughput, seconds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gsforge plan",
        usage="gsforge plan --config METHOD.yaml --config TRAINER.yaml [--key value] [options]",
        description="Tell parameters, FLOPs, memory, legal numbers of ranks and time of a training. It needs neither "
        "GPUs, nor weights, nor data of the run. All options of `gsforge fit` are taken.",
        allow_abbrev=False,
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[], metavar="N", help="tell the memory for these")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--throughput", type=float, metavar="SAMPLES_PER_SECOND", help="of all ranks together")
    speed.add_argument("--from-run", type=Path, metavar="RUN", help="take the throughput that this run has logged")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers too, in bytes, FLOPs and seconds")
    return parser
