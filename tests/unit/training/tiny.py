"""A model with dropout and a data set of numbers, small enough for tests of the machinery around them."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gsforge.core.gaussians import Gaussians
from gsforge.core.reconstruction import Reconstruction


class TinyModel(LightningModule):
    """Predicts the mean colour of points; its Gaussians are the points themselves."""

    def __init__(self, width: int = 8, bad_keys: list[str] | None = None):
        super().__init__()
        self.bad_keys = set(bad_keys or [])
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, width), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(width, 3)
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = (self.net(batch["points"] + 0.1 * torch.randn_like(batch["points"])) - batch["colors"]).square().mean()
        if self.bad_keys.intersection(batch["key"]):
            loss = loss * float("nan")
        self.log("train/loss", loss)
        return loss

    def _reconstruct(self, batch: dict[str, Any]) -> Reconstruction:
        points = batch["points"]
        colors = self.net(points).sigmoid()
        batch_size, count, _ = points.shape
        picture = colors.mean(1)[:, None, :, None, None].expand(-1, 2, -1, 6, 5)
        return Reconstruction(
            keys=batch["key"],
            gaussians=Gaussians(
                means=points,
                quats=torch.tensor([1.0, 0, 0, 0]).expand(batch_size, count, 4),
                scales=torch.full_like(points, 0.02),
                opacities=torch.full((batch_size, count), 0.7),
                sh=((colors - 0.5) / 0.28209479177387814)[:, :, None],
            ),
            images={"ground truth": picture * 0, "render": picture, "density": picture},
            metrics={"psnr": colors.mean((1, 2)), "psnr_baseline": colors.amax((1, 2))},
        )

    def generate(self, picture: Tensor) -> tuple[Gaussians, Tensor]:
        """Four Gaussians whose places are the colours of four pixels."""
        points = picture[:3, 4:6, 4:6].flatten(1).T - 0.5
        scene = self._reconstruct({"key": ["picture"], "points": points[None]}).gaussians
        assert scene is not None
        return scene[0], torch.stack([picture[:3, :16, :16], picture[:3, :16, :16]])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Reconstruction:
        torch.randn(3)  # draws from the global generator, which must not disturb training
        self.log("val/loss", (self.net(batch["points"]) - batch["colors"]).square().mean(), batch_size=2)
        return self._reconstruct(batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Reconstruction:
        return self._reconstruct(batch)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Reconstruction:
        return self._reconstruct(batch)


class TinyModelWithoutPictures(TinyModel):
    generate = None  # type: ignore[assignment]


class TinyPoints(Dataset):
    def __init__(self, count: int, split: str):
        self.count = count
        self.split = split

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(index)
        points = torch.rand(5, 3, generator=generator) - 0.5
        return {"key": f"{self.split}_{index}", "points": points, "colors": points + 0.5}


class ResumableLoader:
    """A loader that starts where its state says, as the data modules of the project do."""

    def __init__(self, loader: DataLoader):
        self.loader = loader
        self.batches_done = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        start, self.batches_done = self.batches_done % len(self), self.batches_done % len(self)
        for index, batch in enumerate(self.loader):
            if index >= start:
                self.batches_done += 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"batches_done": self.batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batches_done = state["batches_done"]


class TinyData(LightningDataModule):
    def __init__(self, samples: int = 8, batch_size: int = 2):
        super().__init__()
        self.samples = samples
        self.batch_size = batch_size

    def _loader(self, split: str) -> DataLoader:
        return DataLoader(TinyPoints(self.samples, split), batch_size=self.batch_size)

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(self._loader("train"))

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self._loader("test")


class At(Callback):
    """Does something right after a training step has begun."""

    def __init__(self, step: int, action: str, micro_batch: int = 0):
        self.step = step
        self.micro_batch = micro_batch
        self.action = action

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and batch_idx % trainer.accumulate_grad_batches == self.micro_batch:
            if self.action == "die":
                raise RuntimeError("killed")
            os.kill(os.getpid(), getattr(signal, self.action))


class InValidation(Callback):
    """Sends signals during the first batch of a validation, far enough apart to count."""

    batches: list[int] = []  # noqa: RUF012

    def __init__(self, step: int, signals: list[str]):
        self.step = step
        self.signals = signals
        self.batches.clear()

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.batches.append(batch_idx)
            if batch_idx == 0:
                for name in self.signals:
                    os.kill(os.getpid(), getattr(signal, name))
                    time.sleep(1.1)


class Snapshots(Callback):
    """Weights and optimiser state after every step."""

    taken: list[dict[str, torch.Tensor]] = []  # noqa: RUF012

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.taken.clear()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        state = trainer.optimizers[0].state_dict()["state"]
        moments = {f"{index}.{name}": value.clone() for index, own in state.items() for name, value in own.items()}
        self.taken.append({name: value.clone() for name, value in pl_module.state_dict().items()} | moments)
