"""Exponential moving average of the weights, sharded where they are."""

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import Parameter

from gsforge.training.checkpoint_files import local_part
from gsforge.training.errors import ConfigError

_log = logging.getLogger(__name__)


class EMA(Callback):
    """Averages the trained weights: a <- decay a + (1 - decay) w after every optimiser step.

    The average is what is validated and, under `state_dict`, what a checkpoint holds; the weights that training
    goes on with are beside it, under `current_model_state`. Each rank averages its own shards, without communication.

    Args:
        decay: share of the average that a step keeps, 0 <= decay < 1.
    """

    def __init__(self, decay: float = 0.9999):
        if not 0 <= decay < 1:
            raise ConfigError(f"EMA decay: expected a number in [0, 1), got {decay}")
        self.decay = decay
        self._averages: dict[str, Tensor] = {}
        self._averaged_step = 0
        self._swapped = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take loaded averages to where the weights are.

        Raises:
            ConfigError: for weights in half precision, which an average moves in steps too small for them.
        """
        self._averaged_step = trainer.global_step
        for name, weight in _trained(pl_module).items():
            if weight.dtype in (torch.float16, torch.bfloat16):
                raise ConfigError(f"EMA needs weights in float32, {name} is {weight.dtype}: use a -mixed precision")
            if name in self._averages:
                self._averages[name] = self._averages[name].to(weight.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Follow the weights."""
        if trainer.global_step == self._averaged_step:
            return  # gradients are still being accumulated
        self._averaged_step = trainer.global_step
        weights = _trained(pl_module)
        if not self._averages:
            self._averages = {name: weight.detach().clone() for name, weight in weights.items()}
            return
        averages = [local_part(self._averages[name]) for name in weights]
        torch._foreach_lerp_(averages, [local_part(weight).detach() for weight in weights.values()], 1 - self.decay)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        if self._averages:
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the weights."""
        if self._swapped:
            self._swap(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the average under `state_dict`, in the middle of a validation too."""
        if self._averages:
            both = (checkpoint["state_dict"], checkpoint["state_dict"] | self._averages)
            checkpoint["current_model_state"], checkpoint["state_dict"] = reversed(both) if self._swapped else both

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with both; a command other than fit has loaded the average alone."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if "current_model_state" not in checkpoint:
            _log.warning("the checkpoint holds no averaged weights: the average begins now")
            return
        self._averages = {name: checkpoint["state_dict"][name].clone() for name in _trained(pl_module)}
        pl_module.load_state_dict(checkpoint["current_model_state"])

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        for name, parameter in _trained(pl_module).items():
            weight, average = local_part(parameter), local_part(self._averages[name])
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)
        self._swapped = not self._swapped


def _trained(pl_module: LightningModule) -> dict[str, Parameter]:
    """Parameters that are trained, sharded where a strategy shards them."""
    for module in pl_module.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # a gathered copy would outlive a change of its shards
    return {name: parameter for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
