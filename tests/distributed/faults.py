"""What goes wrong on one rank of a run."""

import os
import subprocess
import threading
import time
from typing import Any

import torch
from lightning.pytorch import Callback
from small import SmallModel
from torch import Tensor
from torch.distributed.fsdp import fully_shard


class NormedModel(SmallModel):
    """Has statistics that each rank takes of its own samples, and with DDP, which shares it, a buffer of the last ones.

    Args:
        forgotten: leave the norm out of what is sharded, so that nothing adds up its gradients.
    """

    def __init__(self, forgotten: bool = False):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("latest", torch.zeros(()))
        self.forgotten = forgotten

    def configure_model(self) -> None:
        super().configure_model()
        if self.device_mesh is not None and not self.forgotten:
            fully_shard(self.norm, mesh=self.device_mesh["data_parallel"])

    def forward(self, points: Tensor) -> Tensor:
        if self.device_mesh is None:
            self.latest.copy_(points.detach().mean())
        return super().forward(self.norm(points.flatten(0, 1)).view_as(points))


class _On(Callback):
    """Acts in one hook at one step on one rank."""

    def __init__(self, hook: str, step: int, rank: int = 0):
        self.step, self.rank = step, rank
        setattr(self, hook, self._called)

    def _called(self, trainer: Any, module: Any, *arguments: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            self.act(module, *arguments)

    def act(self, module: Any, *arguments: Any) -> None:
        raise NotImplementedError


class Sleep(_On):
    def __init__(self, hook: str, seconds: float, step: int, rank: int = 0):
        super().__init__(hook, step, rank)
        self.seconds = seconds

    def act(self, module: Any, *arguments: Any) -> None:
        time.sleep(self.seconds)


class SlowLogger(Callback):
    """Takes long to write the last lines on one rank, when it is not the main thread that asks for them."""

    def __init__(self, seconds: float, rank: int):
        self.seconds, self.rank = seconds, rank

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if trainer.global_rank == self.rank:
            finish = trainer.loggers[0].finalize

            def finish_slowly(status: str) -> None:
                if threading.current_thread() is not threading.main_thread():
                    time.sleep(self.seconds)
                finish(status)

            trainer.loggers[0].finalize = finish_slowly


class Suspend(_On):
    """Stops the process for some seconds, as a cluster does that lends its machine to another job."""

    def __init__(self, seconds: float, step: int):
        super().__init__("on_train_batch_start", step)
        self.seconds = seconds

    def act(self, module: Any, *arguments: Any) -> None:
        process = os.getpid()
        script = f"sleep 0.3; kill -STOP {process}; sleep {self.seconds}; kill -CONT {process}"
        waiting = subprocess.Popen(["sh", "-c", script])
        time.sleep(0.5)
        waiting.wait()
        time.sleep(0.3)  # here the watchdog looks again


class Spoil(_On):
    """Makes a batch useless."""

    def __init__(self, step: int, rank: int):
        super().__init__("on_train_batch_start", step, rank)

    def act(self, module: Any, *arguments: Any) -> None:
        arguments[0]["points"].fill_(float("nan"))


class ChangeWeight(_On):
    """Changes one bit."""

    def __init__(self, step: int, rank: int, name: str):
        super().__init__("on_train_batch_start", step, rank)
        self.name = name

    @torch.no_grad()
    def act(self, module: Any, *arguments: Any) -> None:
        module.get_parameter(self.name).view(torch.int32).flatten()[-1] ^= 1
