"""Pictures of what a method reconstructs, during validation."""

import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from gsforge.core.reconstruction import RENDER, TRUTH, Reconstruction
from gsforge.training.checkpoints import step_of
from gsforge.training.run_directory import RunDirectory

_COMPARED = (TRUTH, RENDER)


class ValidationPictures(Callback):
    """Writes and logs the pictures of the first few validation samples.

    Files go to `validation/step_<n>/<key>.<picture>.png`; TensorBoard and W&B get ground truth above render as one
    picture, and each further picture by its name.

    Args:
        samples: how many samples; the same ones at every validation.
    """

    def __init__(self, samples: int = 4):
        self.samples = samples
        self._seen = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count samples."""
        self._seen = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the samples of this batch that are still wanted."""
        if not isinstance(outputs, Reconstruction) or trainer.sanity_checking or not trainer.is_global_zero:
            return
        step = step_of(trainer)
        folder = RunDirectory(trainer.default_root_dir).validation / f"step_{step}"
        wanted = min(len(outputs.keys), self.samples - self._seen)
        for index in range(wanted):
            strips = {name: picture_strip(images[index]) for name, images in outputs.images.items()}
            write_strips(folder, outputs.keys[index], strips)
            for logger in trainer.loggers:
                for name, picture in _compared(strips).items():
                    _log_picture(logger, f"validation/{outputs.keys[index]}/{name}", picture, step)
        self._seen += max(wanted, 0)


def picture_strip(views: Tensor) -> Tensor:
    """Put the views of one object side by side.

    Args:
        views: [V, 3, H, W] in [0, 1].

    Returns:
        [3, H, V * W] on the CPU, float32 in [0, 1].
    """
    return torch.cat(list(views.detach().float().cpu()), dim=-1).clamp(0, 1)


def write_strips(folder: Path, key: str, strips: dict[str, Tensor]) -> None:
    """Write pictures as `<key>.<name>.png`, spaces in the name as underscores.

    Args:
        folder: folder to write to, created if needed.
        key: name of the object.
        strips: picture name -> [3, H, W] in [0, 1].

    Raises:
        ValueError: when a key or name cannot be a file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, strip in strips.items():
        to_pil_image(strip).save(folder / f"{file_name(key)}.{file_name(name.replace(' ', '_'))}.png")


def file_name(key: str) -> str:
    """The key itself, checked to be a plain file name.

    Args:
        key: name of a sample or picture.

    Returns:
        The key.

    Raises:
        ValueError: when it could name a file in another folder.
    """
    if not re.fullmatch(r"[\w+-][\w.+-]*", key):
        raise ValueError(
            f"{key!r} cannot be a file name: expected letters, digits and _ . + -, not starting with a dot"
        )
    return key


def _compared(strips: dict[str, Tensor]) -> dict[str, Tensor]:
    if not all(name in strips for name in _COMPARED):
        return strips
    rest = {name: strip for name, strip in strips.items() if name not in _COMPARED}
    return {"ground truth and render": torch.cat([strips[name] for name in _COMPARED], dim=-2), **rest}


def _log_picture(logger: object, name: str, picture: Tensor, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, picture, global_step=step)
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [to_pil_image(picture)], step=step)
