"""Made-up data for the flow model, and a callback that measures the memory of the process."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Latents(Dataset):
    def __init__(self, tokens: int, side: int):
        self.shapes = {"latent": (tokens, 16), "camera": (5,), "image": (3, side, side)}

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        return {name: torch.rand(shape, generator=generator) for name, shape in self.shapes.items()} | {
            "key": str(index)
        }


class LatentsData(LightningDataModule):
    """`batch_size` samples of a step over all ranks, as the data modules of the project take it."""

    training_shards = 12

    def __init__(self, tokens: int, side: int, batch_size: int, rank_batch_size: int | None = None):
        super().__init__()
        self.set, self.batch_size = Latents(tokens, side), batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.set, batch_size=self.batch_size, drop_last=True)


class Plain(LightningModule):
    """A model that tells nothing of a step."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.net = torch.nn.Linear(3, width)
        self.frozen = torch.nn.Linear(width, 2).requires_grad_(False)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.net(batch["camera"][:, :3]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


class DataDependent(Plain):
    """Its step asks for the value of a tensor."""

    def example_step(self, size: int) -> Tensor:
        loss = self.net(torch.zeros(size, 3)).square().mean()
        return loss if loss.item() > 0 else -loss


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


class PeakMemory(Callback):
    """Writes by how many bytes the process grew in the first steps, from a model with weights alone."""

    def __init__(self, path: str, steps: int):
        self.path, self.steps, self.before = Path(path), steps, 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew
            self.before = _status("VmRSS")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.steps:
            self.path.write_text(json.dumps(_status("VmHWM") - self.before))
