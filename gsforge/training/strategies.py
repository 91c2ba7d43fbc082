"""Strategies of several ranks that a run resumes exactly with: `ddp` and `sharded`."""

import json
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from gsforge.core.files import atomic_file, sync_folder, write_text
from gsforge.training.checkpoint_files import (
    REST,
    SUMS,
    local_part,
    named_tensors,
    read_checkpoint,
    read_tensors,
    remove_checkpoint,
    sha256,
    with_tensors,
)
from gsforge.training.checkpoint_io import BackgroundCheckpointIO, agreed_checkpoint, check_free_space
from gsforge.training.errors import CheckpointError

_WEIGHTS = ("state_dict", "current_model_state")
_POLL_SECONDS = 0.05
_FAILED = "failed-{:05d}.txt"


def register_strategies() -> None:
    """Make `trainer.strategy` know `sharded`, and give `ddp`, which `auto` stands for, an exact resume.

    DistributedDataParallel sorts gradients into new buckets after its first step. A resumed run has a first step of its
    own, and the place in a bucket decides in which order the values of more than two ranks are added. It leaves the
    buckets as they are where it looks for unused parameters.
    """
    lasting = "DistributedDataParallel with lasting buckets"
    StrategyRegistry.register("ddp", DDPStrategy, description=lasting, override=True, find_unused_parameters=True)
    StrategyRegistry.register("sharded", ShardedStrategy, description="FSDP2 over all ranks", override=True)


class ShardedStrategy(ModelParallelStrategy):
    """Weights, gradients, optimiser state and averages sharded over all ranks (FSDP2, `fully_shard`).

    The module's `configure_model` says what is sharded. Every rank writes its own part of a checkpoint, in the
    background; the folder appears under its name when all parts are on disk. It may be read on any number of ranks, by
    any strategy, and this strategy reads the files of the others.

    Args:
        timeout: seconds after which a collective operation fails.
        save_timeout: seconds that the first rank waits for the parts of the others.
    """

    def __init__(self, timeout: float = 1800.0, save_timeout: float = 1800.0) -> None:
        super().__init__(timeout=timedelta(seconds=timeout))
        self._save_timeout = save_timeout

    @property
    def lightning_restore_optimizer(self) -> bool:
        """As for other strategies: `load_checkpoint` gives states that the optimisers take as they are."""
        return True

    def setup_environment(self) -> None:
        """Make a mesh of all ranks; Lightning's default would use those of a node for tensor parallelism."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Weights as they are, sharded.

        Returns:
            Name -> DTensor, or tensor where it is not sharded.
        """
        return self._module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """State of an optimiser as it is, sharded.

        Args:
            optimizer: one of the trainer's.

        Returns:
            Its `state_dict`, with parameters numbered as in any other run.
        """
        return (optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Copy this rank's part of a checkpoint, and begin to write it; all ranks must call it together.

        Args:
            checkpoint: tensors, DTensors and plain Python values.
            filepath: folder to create.
            storage_options: must be None.

        Raises:
            CheckpointError: for storage options.
        """
        if storage_options is not None:
            raise CheckpointError("ShardedStrategy writes files, which have no storage_options: pass None")
        # Each attempt to write has a folder of its own, so that no remains of another one are taken for its parts.
        path, token = self.broadcast((str(filepath), uuid4().hex[:12]))
        folder = Path(path)
        temporary = folder.with_name(f".{folder.name}.{token}.tmp")
        rank, ranks = self.global_rank, self.world_size

        def write(copy: dict[str, Any]) -> None:
            try:
                _write_part(copy, temporary, rank, ranks)
            except (OSError, RuntimeError, CheckpointError) as error:
                _tell_failure(temporary, rank, str(error))
                raise CheckpointError(f"rank {rank} could not write its part of {folder}: {error}") from error
            if rank == 0:
                _commit(temporary, folder, ranks, self._save_timeout)

        self._io.save(checkpoint, write)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of any strategy; of sharded tensors, this rank's part alone.

        Args:
            checkpoint_path: checkpoint, or a run's folder of them.
            weights_only: accepted for Lightning's interface, always taken as True.

        Returns:
            The checkpoint dictionary.

        Raises:
            CheckpointError: when it is missing, damaged, or holds other objects.
        """
        path = agreed_checkpoint(Path(checkpoint_path))
        checkpoint = read_checkpoint(path, contents=False)
        sharded_like = self._sharded_parameters(checkpoint)
        if not path.is_dir():
            parts = {name: _part(tensor, sharded_like.get(name)) for name, tensor in named_tensors(checkpoint)}
            return with_tensors(checkpoint, parts)
        targets = {name: _empty(tensor, sharded_like.get(name)) for name, tensor in named_tensors(checkpoint)}
        read_tensors(path, targets, distributed=True)
        return with_tensors(checkpoint, targets)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take weights from a loaded checkpoint.

        Args:
            checkpoint: what `load_checkpoint` gave.
            strict: whether names must agree.
        """
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take states of optimisers from a loaded checkpoint.

        Args:
            checkpoint: what `load_checkpoint` gave.
        """
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def teardown(self) -> None:
        """Finish writing checkpoints, which the base class forgets."""
        self.checkpoint_io.teardown()
        super().teardown()

    @property
    def _module(self) -> torch.nn.Module:
        if self.lightning_module is None:
            raise RuntimeError("no module is connected: call the trainer's fit, validate, test or predict")
        return self.lightning_module

    @property
    def _io(self) -> BackgroundCheckpointIO:
        if not isinstance(self.checkpoint_io, BackgroundCheckpointIO):
            raise CheckpointError(
                f"ShardedStrategy writes through BackgroundCheckpointIO, got {type(self.checkpoint_io).__name__}: "
                "remove it from trainer.plugins"
            )
        return self.checkpoint_io

    def _sharded_parameters(self, checkpoint: dict[str, Any]) -> dict[str, DTensor]:
        """Path of each tensor in the checkpoint that is sharded here -> the parameter whose shards it shares."""
        weights = {name: value for name, value in self._module.state_dict().items() if isinstance(value, DTensor)}
        like = {f"['{group}']['{name}']": value for group in _WEIGHTS for name, value in weights.items()}
        for number, optimizer in enumerate(self.optimizers):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            states = checkpoint["optimizer_states"][number]["state"]
            for index, state in states.items():
                parameter = parameters[index]
                for key, value in state.items():
                    if isinstance(parameter, DTensor) and getattr(value, "shape", None) == parameter.shape:
                        like[f"['optimizer_states'][{number}]['state'][{index}]['{key}']"] = parameter
        return like


def _part(whole: Tensor, like: DTensor | None) -> Tensor:
    """This rank's part of a tensor that was saved whole."""
    if like is None:
        return whole.clone()  # the file stays mapped into memory while a part of it is used
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    local = whole[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
    return DTensor.from_local(
        local.to(like.device, copy=True),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def _empty(saved: Tensor, like: DTensor | None) -> Tensor:
    """A tensor to read into."""
    if like is None:
        return torch.empty_like(saved, device="cpu")
    return torch.empty_like(like, dtype=saved.dtype, requires_grad=False)


def _write_part(checkpoint: dict[str, Any], folder: Path, rank: int, ranks: int) -> None:
    """Write the tensors that this rank holds, with their places in the whole; the first rank also writes the rest."""
    tensors, offsets = {}, {}
    for name, tensor in named_tensors(checkpoint):
        if isinstance(tensor, DTensor):
            _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
            local = local_part(tensor)
        elif rank == 0:
            local, offset = tensor, (0,) * tensor.dim()
        else:
            continue
        if local.numel():
            tensors[name], offsets[name] = local.contiguous(), {SAVED_OFFSETS_KEY: list(offset)}
    folder.mkdir(parents=True, exist_ok=True)
    check_free_space(sum(tensor.nbytes for tensor in tensors.values()), folder)
    if rank == 0:
        shapes = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            for name, tensor in named_tensors(checkpoint)
        }
        with atomic_file(folder / REST) as stream:
            torch.save(with_tensors(checkpoint, shapes), stream)
    path = folder / _part_name(rank, ranks)
    with atomic_file(path) as stream:
        save_file(tensors, stream.name, {CUSTOM_METADATA_KEY: json.dumps(offsets)})
    write_text(folder / f"{path.name}.sum", f"{sha256(path)}  {path.name}\n")


def _part_name(rank: int, ranks: int) -> str:
    return f"tensors-{rank:05d}-of-{ranks:05d}.safetensors"


def _commit(temporary: Path, folder: Path, ranks: int, timeout: float) -> None:
    """Give the folder its name once the parts of all ranks are there."""
    deadline = time.monotonic() + timeout
    sums = [temporary / f"{_part_name(rank, ranks)}.sum" for rank in range(ranks)]
    while missing := [path for path in sums if not path.exists()]:
        if failed := sorted(temporary.glob(_FAILED.format(0).replace("00000", "*"))):
            raise CheckpointError(f"{folder} was not saved: {failed[0].read_text(encoding='utf-8')}")
        if time.monotonic() > deadline:
            raise CheckpointError(
                f"{folder} was not saved: after {timeout:.0f} s {len(missing)} of {ranks} ranks had not written their "
                f"parts, among them {missing[0].name}. All ranks must see the same folder {temporary.parent}"
            )
        time.sleep(_POLL_SECONDS)
    lines = "".join(path.read_text(encoding="utf-8") for path in sums)
    write_text(temporary / SUMS, lines + f"{sha256(temporary / REST)}  {REST}\n")
    for path in sums:
        path.unlink()
    remove_checkpoint(folder)
    temporary.rename(folder)
    sync_folder(folder.parent)


def _tell_failure(temporary: Path, rank: int, message: str) -> None:
    """Let the first rank know at once; on a full disk this fails too, and it finds out by waiting."""
    try:
        write_text(temporary / _FAILED.format(rank), f"rank {rank}: {message}")
    except OSError:
        return
